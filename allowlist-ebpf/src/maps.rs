//! The maps, and what is looked up in them: the generation in force, and flows.
//!
//! Names, values and sizes are `allowlist_common::abi`'s. The numbers here are defaults: the loader
//! sets what depends on the configuration.

use allowlist_common::abi::{
    ControlBits, Counters, EVENT_BYTES, Engine, Event, EventBudget, Fallback, GenerationTables,
    Grant, Identity, Interface, MAX_INTERFACES, MAX_MATCHES, MAX_SERVICE_COUNTS, MIN_POOL_WORDS,
    SLOTS, ServiceId, ServiceTraffic, Traffic, service_set,
};
use allowlist_common::flow::{
    Crowding, FOREIGN_FLOWS, Flow, FlowEntry, ForeignPort, Marking, PortsInUse, port_table,
};
use allowlist_common::judge::Tables;
use allowlist_common::packet::{Address, Quote};
use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;

use crate::{clock, frames, ranges, track, tries};

pub(crate) type Slots<Inner> = ArrayOfMaps<Inner, { SLOTS as usize }>;
/// Flows by their keys, the least recently used one evicted first.
pub(crate) type FlowTable<const ROOM: usize> = LruHashMap<Flow, FlowEntry, ROOM>;
/// In words, since BTF need not know more.
type TableWords = [u64; size_of::<GenerationTables>() / 8 + MIN_POOL_WORDS as usize];

#[btf_map]
static CONTROL: Array<[u64; 2], 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static FALLBACK: Array<Fallback, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static GENERATIONS: Array<TableWords, { SLOTS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<Counters, { MAX_INTERFACES as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static MATCHES: PerCpuArray<Traffic, { MAX_MATCHES as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static SERVICE_COUNTS: PerCpuArray<ServiceTraffic, { MAX_SERVICE_COUNTS as usize }> =
    PerCpuArray::new();
/// Read and written by userspace alone; here so that it is made and pinned with the others.
#[btf_map]
static INTERFACES: Array<Interface, { MAX_INTERFACES as usize }> = Array::new();
/// Likewise.
#[btf_map]
static IDENTITIES: Array<Identity, { MAX_INTERFACES as usize }> = Array::new();
/// Likewise.
#[btf_map]
static PUBLISHED: Array<[u64; 2], 1, { BPF_F_MMAPABLE as usize }> = Array::new();
/// Likewise.
#[btf_map]
static PREFIXES: Slots<Array<u64, 1, { (BPF_F_MMAPABLE | BPF_F_INNER_MAP) as usize }>> =
    Slots::new();
/// Likewise.
#[btf_map]
static NAMES: Array<u64, 1> = Array::new();
#[btf_map]
pub(crate) static FLOWS: FlowTable<1> = FlowTable::new();
#[btf_map]
pub(crate) static PEERS: FlowTable<1> = FlowTable::new();
#[btf_map]
pub(crate) static FOREIGN: FlowTable<{ FOREIGN_FLOWS as usize }> = FlowTable::new();
#[btf_map]
pub(crate) static FOREIGN_PORTS: Array<ForeignPort, { 1 << 16 }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
#[btf_map]
pub(crate) static CROWDING: PerCpuArray<Crowding, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static MARKING: Array<Marking, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static PORTS: Array<PortsInUse, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static EVENTS: RingBuf<Event, { EVENT_BYTES as usize }> = RingBuf::new();
#[btf_map]
pub(crate) static EVENT_BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();

/// The slot of the interface that this copy of the program serves.
#[unsafe(no_mangle)]
pub(crate) static INTERFACE: Global<u32> = Global::new(0);

/// The same as an index that is always in bounds.
#[inline(always)]
fn slot() -> usize {
    (INTERFACE.load() % MAX_INTERFACES) as usize
}

/// Words that userspace stores to at any time.
#[derive(Clone, Copy)]
pub(crate) struct ControlRef(*const [u64; 2]);

impl ControlRef {
    /// `None` is for a map that is missing, which none ever is.
    #[inline(always)]
    pub(crate) fn get() -> Option<Self> {
        CONTROL.get_ptr(0).map(Self)
    }

    /// The control word. To be read once a packet.
    #[inline(always)]
    pub(crate) fn bits(self) -> ControlBits {
        ControlBits(self.load(0))
    }

    /// Until when somebody reads events, by the kernel's monotonic clock; 0 is for nobody.
    #[inline(always)]
    pub(crate) fn events_deadline_ns(self) -> u64 {
        self.load(1)
    }

    #[inline(always)]
    fn load(self, place: usize) -> u64 {
        // SAFETY: in the map's one element, 8 bytes at an address divisible by 8. Volatile, since userspace stores to
        // it at any time and it must be loaded once and whole.
        unsafe { self.0.cast::<u64>().add(place).read_volatile() }
    }
}

/// What packets of this interface are judged by: the word, or what it falls back to.
#[inline(always)]
pub(crate) fn effective_control(word: ControlBits) -> ControlBits {
    if word.is_pending_or_open() {
        ControlBits(resolve_fallback(word.0))
    } else {
        word
    }
}

/// VERIFIER: a function of its own, since it is hardly ever called, so that it costs nothing else anything.
#[inline(never)]
fn resolve_fallback(word: u64) -> u64 {
    let Some(fallback) = FALLBACK.get_ptr(0) else {
        return word;
    };
    // SAFETY: the pointer is to the map's one element. Each part is 8 bytes at an address divisible by 8,
    // which userspace stores at once; which parts it stores while a word is pending, `Fallback` says.
    let fallback = unsafe {
        Fallback {
            until: (&raw const (*fallback).until).read_volatile(),
            word: (&raw const (*fallback).word).read_volatile(),
            interfaces: (&raw const (*fallback).interfaces).read_volatile(),
            bypassed: (&raw const (*fallback).bypassed).read_volatile(),
        }
    };
    fallback.effective(word, INTERFACE.load(), clock::nanoseconds())
}

/// The state of the marks of foreign flows on this interface: whether they are complete, and until when some may
/// be missing.
#[inline(always)]
pub(crate) fn marking() -> (bool, u32) {
    let Some(marking) = MARKING.get_ptr(0) else {
        return (false, 0);
    };
    // SAFETY: the map's one element. Volatile, since userspace and other CPUs store to it at any time; each field is
    // stored at once.
    let (armed, crowded_until) = unsafe {
        (
            (&raw const (*marking).armed).read_volatile(),
            (&raw const (*marking).crowded_until).read_volatile(),
        )
    };
    (armed >> slot() & 1 != 0, crowded_until as u32)
}

/// Whether a service covers a port on this interface that this host does not connect from.
#[inline(always)]
pub(crate) fn is_served(word: ControlBits, protocol: u8, port: u16) -> bool {
    let Some(tables) = tables(word) else {
        return false;
    };
    let service = tables.services.port_service(slot(), protocol, port);
    service != 0
        && !(word.shares_ports() && tables.services.is_shared(slot(), service_set(service)))
}

#[inline(always)]
fn tables(word: ControlBits) -> Option<&'static GenerationTables> {
    let words = GENERATIONS.get(word.slot())?;
    // SAFETY: the loader wrote tables there, which are as large and need no more alignment.
    Some(unsafe { &*core::ptr::from_ref(words).cast() })
}

/// The tables of the generation that one control word names, for one frame.
pub(crate) struct Generation<'a> {
    word: ControlBits,
    tables: &'static GenerationTables,
    /// Of the frame that is judged.
    ctx: &'a XdpContext,
}

impl<'a> Generation<'a> {
    /// `None` before the first publish.
    #[inline(always)]
    pub(crate) fn of(word: ControlBits, ctx: &'a XdpContext) -> Option<Self> {
        Some(Self {
            word,
            ctx,
            tables: tables(word)?,
        })
    }
}

impl Tables for Generation<'_> {
    #[inline(always)]
    fn control(&self) -> ControlBits {
        self.word
    }

    #[inline(always)]
    fn service_of_port(&self, protocol: u8, port: u16) -> ServiceId {
        self.tables.services.port_service(slot(), protocol, port)
    }

    #[inline(always)]
    fn service_of_protocol(&self, protocol: u8) -> ServiceId {
        self.tables.services.protocol_service(slot(), protocol)
    }

    #[inline(always)]
    fn services_of_protocol(&self, family: u8, protocol: u8) -> u64 {
        let services = &self.tables.services;
        services.protocol_services(slot(), family, protocol)
    }

    #[inline(always)]
    fn is_shared(&self, services: u64) -> bool {
        self.tables.services.is_shared(slot(), services)
    }

    #[inline(always)]
    fn service_counter_id(&self, service: ServiceId) -> u32 {
        self.tables.services.counter_ids[service as usize]
    }

    #[inline(always)]
    fn grant(&self, source: &Address) -> Option<Grant> {
        match self.word.lookup() {
            Engine::RangeTable => Some(ranges::grant(self.tables, source)),
            Engine::LpmTrie => tries::grant(self.word.slot(), source),
        }
    }

    #[inline(always)]
    fn port_has_flows(&self, protocol: u8, port: u16) -> bool {
        let Some(ports) = PORTS.get_ptr(0) else {
            return false;
        };
        // SAFETY: the map's one element; 4 aligned bytes of it, loaded at once.
        let until = unsafe { (*ports).until[port_table(protocol)][port as usize] };
        until != 0 && clock::seconds() < until
    }

    #[inline(always)]
    fn has_flow(&self, flow: &Flow) -> bool {
        let entry = if flow.is_peer() {
            track::lookup(&PEERS, flow)
        } else {
            track::lookup(&FLOWS, flow)
        };
        entry.is_some_and(|entry| entry.is_alive(clock::seconds()))
    }

    #[inline(always)]
    fn flow_quoted_by(&self, quote: Quote, source: Address) -> Option<Flow> {
        frames::quoted_flow(self.ctx, quote, source)
    }
}
