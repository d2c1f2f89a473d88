//! The maps of the egress policy, and lookups in them for one calling program.

use allowlist_common::abi::{
    Calls, ControlBits, DaemonProcess, EGRESS_EVENT_BYTES, EgressCounters, EgressEvent,
    EgressLease, EgressSettings, EventBudget, GenerationTables, Grant, MAX_INTERFACES, MAX_MATCHES,
    MAX_SERVICE_COUNTS, Received, RuleCalls, SLOTS, ServiceId, UnitKey,
};
use allowlist_common::egress::{EgressReason, EgressTables, address_key};
use allowlist_common::packet::Address;
use allowlist_common::volatile::VolatileRef;
use allowlist_ebpf::control::{Generation, volatile};
use allowlist_ebpf::{clock, ranges};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid, bpf_get_socket_cookie,
};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockAddrContext;

/// The maximum number of addresses of this host. With more, a publish of an egress policy fails.
const MAX_OWN_ADDRESSES: usize = 4096;
/// The number of entries for endpoints from which UDP sockets have received; more evict the least recently used entry.
const MAX_RECEIVED: usize = 1 << 14;
/// The maximum number of cgroups of units, in all slots together. With more, a publish of an egress policy fails.
const MAX_UNITS: usize = 4096;
/// The first level of cgroups below the root that is not searched for units: a rule for a unit at this level or deeper
/// has no effect.
const MAX_DEPTH: i32 = 12;

#[btf_map]
static EGRESS_TABLES: Array<Generation, { SLOTS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
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
static UNITS: HashMap<UnitKey, u32, MAX_UNITS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
pub(crate) static EGRESS_LEASE: Array<EgressLease, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static EGRESS_EVENTS: RingBuf<EgressEvent, { EGRESS_EVENT_BYTES as usize }> =
    RingBuf::new();
#[btf_map]
pub(crate) static EGRESS_BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();

/// The tables of the active generation, for one calling program.
pub(crate) struct Caller<'a> {
    word: ControlBits,
    tables: VolatileRef<'static, GenerationTables>,
    settings: VolatileRef<'static, EgressSettings>,
    ctx: &'a SockAddrContext,
    /// The row of the caller's unit in the tables; 0 if no rule is limited to units that the caller belongs to.
    row: usize,
}

impl<'a> Caller<'a> {
    /// Returns the tables for the program that made the call; `None` before the first publish.
    #[inline(always)]
    pub(crate) fn of(word: ControlBits, ctx: &'a SockAddrContext) -> Option<Self> {
        let tables: VolatileRef<'static, Generation> =
            EGRESS_TABLES.get_ptr(word.slot()).map(volatile)?;
        let settings = EGRESS_SETTINGS.get_ptr(word.slot()).map(volatile)?;
        let row = if settings.has_units() {
            unit_row(word.slot())
        } else {
            0
        };
        Some(Self {
            word,
            // SAFETY: the tables are the first field of the value.
            tables: unsafe { VolatileRef::new(tables.pointer().cast()) },
            settings,
            ctx,
            row: (row % MAX_INTERFACES) as usize,
        })
    }
}

/// Returns the row of the calling program's unit: the unit of the deepest of its cgroups that belongs to one; 0 if none
/// does.
#[inline(never)]
fn unit_row(slot: u32) -> u32 {
    let mut row = 0;
    for depth in 1..=MAX_DEPTH {
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
            row = volatile(found).load();
        }
    }
    row
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
        self.settings
            .exempt_endpoint(address_key(*address), protocol, port)
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
    fn rules_of_port(&self, protocol: u8, port: u16) -> ServiceId {
        self.tables
            .services()
            .port_service(self.row, protocol, port)
    }

    #[inline(always)]
    fn rules_of_protocol(&self, protocol: u8) -> ServiceId {
        self.tables.services().protocol_service(self.row, protocol)
    }

    #[inline(always)]
    fn rule_counter_id(&self, rules: ServiceId) -> u32 {
        self.tables.services().counter_id(rules)
    }

    #[inline(always)]
    fn grant(&self, destination: &Address) -> Option<Grant> {
        Some(ranges::grant(self.tables, destination))
    }
}
