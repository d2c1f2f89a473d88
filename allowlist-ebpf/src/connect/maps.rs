//! The maps of the egress policy, and lookups in them for one calling program.

use allowlist_common::abi::{
    AnswerCounters, AnsweredKey, Calls, ControlBits, DaemonProcess, EGRESS_EVENT_BYTES,
    EgressCounters, EgressEvent, EgressLease, EgressSettings, EventBudget, GenerationTables, Grant,
    Learned, LearnedNames, ListedName, MAX_ANSWERED, MAX_LEARNED, MAX_LEARNED_BELOW, MAX_MATCHES,
    MAX_NAMES, MAX_SEEN, MAX_SERVICE_COUNTS, NAMES_OF_ADDRESS, NameGrants, NameState, QueryKey,
    Received, RuleCalls, SLOTS, SeenCalls, SeenKey, ServiceId, ServiceTable, UnitKey, UnitRow,
};
use allowlist_common::dns::Noted;
use allowlist_common::egress::units::MAX_LEVELS;
use allowlist_common::egress::{
    CoveringRules, EgressReason, EgressTables, Request, address_key, is_closed, unmapped,
};
use allowlist_common::packet::{Address, UDP};
use allowlist_common::ranges::MatchId;
use allowlist_common::volatile::VolatileRef;
use allowlist_ebpf::control::{Generation, volatile};
use allowlist_ebpf::{clock, ranges};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid, bpf_get_netns_cookie,
    bpf_get_socket_cookie,
};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockAddrContext;

use crate::udp::Datagram;

/// The maximum number of addresses of this host. With more, a publish of an egress policy fails.
const MAX_OWN_ADDRESSES: usize = 4096;
/// The number of entries for endpoints from which UDP sockets have received; more evict the least recently used entry.
const MAX_RECEIVED: usize = 1 << 14;
/// The maximum number of cgroups of units, in all slots together. With more, a publish of an egress policy fails, and the
/// cgroups of new units have no rows.
const MAX_UNITS: usize = 4096;
/// The number of entries for sockets that sent or connected to a resolver; more evict the least recently used entry.
const MAX_ASKERS: usize = 1 << 13;
/// The number of queries without an answer that are noted; more evict the least recently used one.
const MAX_QUERIES: usize = 1 << 12;

#[btf_map]
static EGRESS_TABLES: Array<Generation, { SLOTS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
// Only userspace uses this map. It is here so that it is created and pinned with the others.
#[btf_map]
static EGRESS_PREFIXES: ArrayOfMaps<
    Array<u64, 1, { (BPF_F_MMAPABLE | BPF_F_INNER_MAP) as usize }>,
    { SLOTS as usize },
> = ArrayOfMaps::new();
#[btf_map]
static EGRESS_SETTINGS: Array<EgressSettings, { SLOTS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
#[btf_map]
pub(crate) static EGRESS_COUNTERS: PerCpuArray<EgressCounters, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static EGRESS_MATCHES: PerCpuArray<Calls, { MAX_MATCHES as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static EGRESS_RULES: PerCpuArray<RuleCalls, { MAX_SERVICE_COUNTS as usize }> =
    PerCpuArray::new();
#[btf_map]
static OWN_ADDRESSES: HashMap<[u64; 2], u8, MAX_OWN_ADDRESSES, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
static PROCESS: Array<DaemonProcess, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static RECEIVED: LruHashMap<Received, u8, MAX_RECEIVED> = LruHashMap::new();
#[btf_map]
pub(crate) static UNITS: HashMap<UnitKey, u32, MAX_UNITS, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub(crate) static EGRESS_LEASE: Array<EgressLease, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static EGRESS_EVENTS: RingBuf<EgressEvent, { EGRESS_EVENT_BYTES as usize }> =
    RingBuf::new();
#[btf_map]
pub(crate) static EGRESS_BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static LISTED_NAMES: LpmTrie<[u8; 256], ListedName, { SLOTS as usize * MAX_NAMES }> =
    LpmTrie::new();
#[btf_map]
static NAME_GRANTS: Array<NameGrants, { SLOTS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
#[btf_map]
pub(crate) static NAME_STATES: Array<NameState, MAX_NAMES, { BPF_F_MMAPABLE as usize }> =
    Array::new();
#[btf_map]
pub(crate) static NAME_CALLS: PerCpuArray<Calls, MAX_NAMES> = PerCpuArray::new();
#[btf_map]
pub(crate) static ASKERS: LruHashMap<u64, u8, MAX_ASKERS> = LruHashMap::new();
#[btf_map]
pub(crate) static QUERIES: LruHashMap<QueryKey, Noted, MAX_QUERIES> = LruHashMap::new();
#[btf_map]
pub(crate) static LEARNED: LruHashMap<[u64; 2], LearnedNames, MAX_LEARNED> = LruHashMap::new();
#[btf_map]
pub(crate) static LEARNED_BELOW: LruHashMap<[u64; 2], LearnedNames, MAX_LEARNED_BELOW> =
    LruHashMap::new();
#[btf_map]
pub(crate) static ANSWER_COUNTERS: PerCpuArray<AnswerCounters, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static SEEN: LruHashMap<SeenKey, SeenCalls, MAX_SEEN> = LruHashMap::new();
#[btf_map]
pub(crate) static ANSWERED: LruHashMap<AnsweredKey, Noted, MAX_ANSWERED> = LruHashMap::new();

/// The resolvers of the active generation, whose answers are read.
#[derive(Clone, Copy)]
pub(crate) struct Resolvers(VolatileRef<'static, EgressSettings>);

/// Returns the resolvers of the active generation; `None` if answers are not read, because no rule lists a name, and no
/// other names are learnt either.
#[inline(always)]
pub(crate) fn resolvers(word: ControlBits) -> Option<Resolvers> {
    let settings = EGRESS_SETTINGS.get_ptr(word.slot()).map(volatile)?;
    (settings.linger() != 0 || word.egress_learns()).then_some(Resolvers(settings))
}

impl Resolvers {
    /// Reports whether the other endpoint of a datagram is a resolver.
    #[inline(always)]
    pub(crate) fn has(self, datagram: &Datagram) -> bool {
        self.0.may_be_resolver_port(datagram.port)
            && is_resolver(self.0, &datagram.address, datagram.port)
    }

    #[inline(always)]
    fn is(self, address: &Address, port: u16) -> bool {
        is_resolver(self.0, &address_key(*address), port)
    }

    /// Returns the time for which a learnt address is valid at least, in nanoseconds.
    #[inline(always)]
    pub(crate) fn linger(self) -> u64 {
        self.0.linger()
    }
}

#[inline(always)]
fn is_resolver(
    settings: VolatileRef<'static, EgressSettings>,
    address: &[u64; 2],
    port: u16,
) -> bool {
    exempt_endpoint(settings, address, UDP.into(), port.into()) == EgressReason::Resolver as u32
}

/// Returns the number of the reason why an endpoint is exempt; 0, the number of a reason that no endpoint has, if it is
/// not.
///
/// VERIFIER: a separate function, since the loop would be walked for each path that leads here.
#[inline(never)]
fn exempt_endpoint(
    settings: VolatileRef<'static, EgressSettings>,
    address: &[u64; 2],
    protocol: u32,
    port: u32,
) -> u32 {
    let exempt = settings.exempt_endpoint(*address, protocol as u8, port as u16);
    exempt.map_or(0, |reason| reason as u32)
}

/// Records the socket of a call to a resolver, so that the answer to its query is believed: only sockets in the network
/// namespace of the daemon, since in a namespace of its own a program could give itself the answer.
#[inline(always)]
pub(crate) fn note_asker(word: ControlBits, ctx: &SockAddrContext, request: &Request) {
    let Some(resolvers) = resolvers(word) else {
        return;
    };
    if request.protocol != UDP.into() || !resolvers.is(&unmapped(request.destination), request.port)
    {
        return;
    }
    // SAFETY: the context is this program's.
    let (namespace, socket) = unsafe {
        (
            bpf_get_netns_cookie(ctx.as_ptr()),
            bpf_get_socket_cookie(ctx.as_ptr()),
        )
    };
    // A lookup marks the entry as recently used, and is cheaper than an insertion.
    if resolvers.0.believes(namespace) && ASKERS.get_ptr(socket).is_none() {
        let _ = ASKERS.insert(socket, 1, 0); // fails under contention; the answer is then not read
    }
}

/// The tables of the active generation, for one calling program.
pub(crate) struct Caller<'a> {
    word: ControlBits,
    tables: VolatileRef<'static, GenerationTables>,
    settings: VolatileRef<'static, EgressSettings>,
    ctx: &'a SockAddrContext,
    /// The rows of the caller's units in the tables.
    rows: Rows,
}

impl<'a> Caller<'a> {
    /// Returns the tables for the program that made the call; `None` before the first publish.
    #[inline(always)]
    pub(crate) fn of(word: ControlBits, ctx: &'a SockAddrContext) -> Option<Self> {
        let tables: VolatileRef<'static, Generation> =
            EGRESS_TABLES.get_ptr(word.slot()).map(volatile)?;
        let settings = EGRESS_SETTINGS.get_ptr(word.slot()).map(volatile)?;
        let has_units = settings.has_units();
        // VERIFIER: always 0, which the verifier does not know. All values of `rows` have the same unknown bits, so the
        // rest of the program is verified once, and not once for each depth at which a row was found.
        let zero = u64::from(has_units >> 1);
        let zero = zero << 32 | zero;
        let rows = if has_units != 0 {
            unit_rows(word.slot(), zero)
        } else {
            zero & Rows::BITS
        };
        Some(Self {
            word,
            // SAFETY: the tables are the first field of the value.
            tables: unsafe { VolatileRef::new(tables.pointer().cast()) },
            settings,
            ctx,
            rows: Rows(rows),
        })
    }
}

/// The rows of a calling program's units, as one integer, so that a function of its own can return it.
///
/// The lower half is the [`UnitRow`] of the deepest of the caller's cgroups that a rule names by its path; 0, the row of
/// all other programs, if none does. The upper half is that of a cgroup inside it that a rule names by name; 0 if
/// none does.
#[derive(Clone, Copy)]
struct Rows(u64);

impl Rows {
    /// The bits that a value may have.
    const BITS: u64 = (UnitRow::BITS as u64) << 32 | UnitRow::BITS as u64;

    #[inline(always)]
    const fn by_path(self) -> UnitRow {
        UnitRow(self.0 as u32)
    }

    #[inline(always)]
    const fn by_name(self) -> UnitRow {
        UnitRow((self.0 >> 32) as u32)
    }
}

/// Returns the [`Rows`] of the calling program.
///
/// A unit that is known by name is in slices only, so a program belongs to at most one. The row of a cgroup inside that
/// is known by path includes its rules. `zero` is 0.
#[inline(never)]
fn unit_rows(slot: u32, zero: u64) -> u64 {
    let mut rows = zero & Rows::BITS;
    for depth in 1..=MAX_LEVELS {
        // SAFETY: has no pointer arguments.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(depth) };
        if id == 0 {
            break;
        }
        let key = UnitKey {
            cgroup: id,
            slot: slot.into(),
        };
        if let Some(found) = UNITS.get_ptr(key) {
            let found = volatile(found).load();
            let found = if UnitRow(found).is_by_name() {
                rows & u64::from(u32::MAX) | u64::from(found) << 32
            } else {
                u64::from(found)
            };
            // VERIFIER: the same unknown bits in each round, so that a round is verified once, and not once for each
            // number of rows that were found before.
            rows = (found | zero) & Rows::BITS;
        }
    }
    rows
}

impl Caller<'_> {
    /// Returns the union of what `look_up` returns for the rows of the caller's units.
    #[inline(always)]
    fn covering(
        &self,
        look_up: impl Fn(VolatileRef<'static, ServiceTable>, usize) -> ServiceId,
    ) -> CoveringRules {
        let services = self.tables.services();
        let by_name = self.rows.by_name();
        // VERIFIER: a mask instead of a branch, which would double the paths through the rest of the program.
        let mask = ServiceId::from(by_name.is_by_name()).wrapping_neg();
        CoveringRules {
            by_path: look_up(services, self.rows.by_path().row()),
            by_name: look_up(services, by_name.row()) & mask,
        }
    }
}

impl EgressTables for Caller<'_> {
    #[inline(always)]
    fn control(&self) -> ControlBits {
        self.word
    }

    #[inline(always)]
    fn is_own(&self, address: &Address) -> bool {
        OWN_ADDRESSES.get_ptr(address_key(*address)).is_some()
    }

    #[inline(always)]
    fn is_daemon(&self) -> bool {
        let Some(process) = PROCESS.get_ptr(0) else {
            return false;
        };
        // SAFETY: has no arguments.
        let id = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
        volatile(process).is(id, clock::nanoseconds())
    }

    #[inline(always)]
    fn exempt_endpoint(&self, address: &Address, protocol: u8, port: u16) -> Option<EgressReason> {
        let key = address_key(*address);
        match exempt_endpoint(self.settings, &key, protocol.into(), port.into()) {
            0 => None,
            reason if reason == EgressReason::Resolver as u32 => Some(EgressReason::Resolver),
            _ => Some(EgressReason::Essential),
        }
    }

    #[inline(always)]
    fn has_received_from(&self, address: &Address, port: u16) -> bool {
        let key = Received {
            // SAFETY: the context is this program's.
            socket: unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) },
            address: address_key(*address),
            port: port.into(),
        };
        RECEIVED.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn rules_of_port(&self, protocol: u8, port: u16) -> CoveringRules {
        self.covering(|services, row| services.port_service(row, protocol, port))
    }

    #[inline(always)]
    fn rules_of_protocol(&self, protocol: u8) -> CoveringRules {
        self.covering(|services, row| services.protocol_service(row, protocol))
    }

    #[inline(always)]
    fn rule_counter_id(&self, rules: ServiceId) -> u32 {
        self.tables.services().counter_id(rules)
    }

    #[inline(always)]
    fn grant(&self, destination: &Address) -> Option<Grant> {
        Some(self.tables.grant(find(self.tables, destination)))
    }

    #[inline(always)]
    fn learned_name(&self, destination: &Address, rules: u64) -> u32 {
        if self.settings.linger() == 0 {
            return 0;
        }
        let key = address_key(*destination);
        learned_name(&key, rules, self.word.slot())
    }
}

/// Returns the match id of a destination.
///
/// VERIFIER: a separate function, since a translated address is looked up twice: inlined, both lookups' paths are
/// multiplied.
#[inline(never)]
fn find(tables: VolatileRef<'static, GenerationTables>, destination: &Address) -> MatchId {
    ranges::find(tables, destination)
}

/// Returns the id of a valid name of an address that one of the rules in the set `rules` allows; 0 if there is none.
///
/// VERIFIER: a separate function, since the loops would be walked for each path that leads here.
#[inline(never)]
fn learned_name(address: &[u64; 2], rules: u64, slot: u32) -> u32 {
    let Some(grants) = NAME_GRANTS.get_ptr(slot).map(volatile) else {
        return 0;
    };
    let now = clock::nanoseconds();
    // VERIFIER: once, since its paths are multiplied by those before.
    let is_closed = is_closed(&unmapped(Address::V6(*address)));
    for names in [LEARNED.get_ptr(address), LEARNED_BELOW.get_ptr(address)] {
        let Some(names) = names else {
            continue;
        };
        for place in 0..NAMES_OF_ADDRESS {
            // SAFETY: the kernel keeps the entry while the program runs.
            let word = unsafe { (&raw const (*names).entries[place]).read_volatile() };
            let entry = Learned(word);
            if entry.until() > now && grants.services(entry.id(), is_closed) & rules != 0 {
                return entry.id();
            }
        }
    }
    0
}
