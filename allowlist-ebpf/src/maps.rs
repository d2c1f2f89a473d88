//! The maps, and lookups in them: the control word, the active generation and flows.
//!
//! `allowlist_common::abi` defines names, values and sizes. Sizes of 1 are placeholders: the loader sets the sizes that
//! depend on the configuration.

use allowlist_common::abi::{
    ControlBits, Counters, EVENT_BYTES, Engine, Event, EventBudget, GenerationTables, Grant,
    Identity, Interface, MAX_INTERFACES, MAX_MATCHES, MAX_SERVICE_COUNTS, PublishedValue, SLOTS,
    ServiceId, ServiceTraffic, Traffic, service_set,
};
use allowlist_common::flow::{
    Crowding, FOREIGN_FLOWS, Flow, FlowEntry, ForeignPort, Marking, PortsInUse,
};
use allowlist_common::judge::Tables;
use allowlist_common::packet::{Address, Quote};
use allowlist_common::volatile::VolatileRef;
use allowlist_ebpf::control::FALLBACK;
pub(crate) use allowlist_ebpf::control::{ControlRef, Generation, control, volatile};
use allowlist_ebpf::{clock, ranges};
use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;

use crate::{frames, track, tries};

pub(crate) type Slots<Inner> = ArrayOfMaps<Inner, { SLOTS as usize }>;
/// A flow table; a flow beyond its size evicts the least recently used one.
pub(crate) type FlowTable<const ENTRIES: usize> = LruHashMap<Flow, FlowEntry, ENTRIES>;

#[btf_map]
static GENERATIONS: Array<Generation, { SLOTS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<Counters, { MAX_INTERFACES as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static MATCHES: PerCpuArray<Traffic, { MAX_MATCHES as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static SERVICE_COUNTS: PerCpuArray<ServiceTraffic, { MAX_SERVICE_COUNTS as usize }> =
    PerCpuArray::new();
// Only userspace uses the next four maps. They are here so that they are created and pinned with the others.
#[btf_map]
static INTERFACES: Array<Interface, { MAX_INTERFACES as usize }> = Array::new();
#[btf_map]
static IDENTITIES: Array<Identity, { MAX_INTERFACES as usize }> = Array::new();
#[btf_map]
static PUBLISHED: Array<PublishedValue, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static PREFIXES: Slots<Array<u64, 1, { (BPF_F_MMAPABLE | BPF_F_INNER_MAP) as usize }>> =
    Slots::new();
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

/// The interface slot of this copy of the program.
#[unsafe(no_mangle)]
pub(crate) static INTERFACE: Global<u32> = Global::new(0);

/// Returns the interface slot as an index that is always in bounds.
#[inline(always)]
fn slot() -> usize {
    (INTERFACE.load() % MAX_INTERFACES) as usize
}

/// Returns the effective control word of this interface: `word`, or its fallback.
#[inline(always)]
pub(crate) fn effective_control(word: ControlBits) -> ControlBits {
    if word.is_pending_or_open() {
        ControlBits(resolve_fallback(word.0))
    } else {
        word
    }
}

/// Returns the effective control word for a pending or open word.
///
/// VERIFIER: a separate function, because it is a cold path.
#[inline(never)]
fn resolve_fallback(word: u64) -> u64 {
    let Some(fallback) = FALLBACK.get_ptr(0) else {
        return word;
    };
    let fallback = volatile(fallback).load_fields();
    fallback.effective(word, INTERFACE.load(), clock::nanoseconds())
}

/// Returns whether foreign flows are marked on this interface, and the time until which marks may be missing.
///
/// The first value is true if the receive path marks the flows that the other side initiates on this interface, and the
/// ports of older sockets are known. The second is for all interfaces, in seconds of the monotonic clock: until then,
/// the mark of a flow may be missing because it was evicted. Returns `(false, 0)` without the map, which does not occur
/// in practice.
#[inline(always)]
pub(crate) fn marking() -> (bool, u32) {
    let Some(marking) = MARKING.get_ptr(0) else {
        return (false, 0);
    };
    let marking = volatile(marking);
    let is_armed = marking.armed() >> slot() & 1 != 0;
    (is_armed, marking.crowded_until())
}

/// Reports whether a service covers a port on this interface, and this host does not connect from the service's ports.
#[inline(always)]
pub(crate) fn is_served(word: ControlBits, protocol: u8, port: u16) -> bool {
    let Some(tables) = tables(word) else {
        return false;
    };
    let services = tables.services();
    let service = services.port_service(slot(), protocol, port);
    service != 0 && !(word.shares_ports() && services.is_shared(slot(), service_set(service)))
}

#[inline(always)]
fn tables(word: ControlBits) -> Option<VolatileRef<'static, GenerationTables>> {
    let generation = GENERATIONS.get_ptr(word.slot())?;
    Some(volatile(generation.cast()))
}

/// The generation that a control word refers to, for one frame.
pub(crate) struct ActiveGeneration<'a> {
    word: ControlBits,
    tables: VolatileRef<'static, GenerationTables>,
    /// The context of the frame, in which a quoted packet is parsed on demand.
    ctx: &'a XdpContext,
}

impl<'a> ActiveGeneration<'a> {
    /// Returns the generation of a control word; `None` before the first publish.
    #[inline(always)]
    pub(crate) fn of(word: ControlBits, ctx: &'a XdpContext) -> Option<Self> {
        Some(Self {
            word,
            ctx,
            tables: tables(word)?,
        })
    }
}

impl Tables for ActiveGeneration<'_> {
    #[inline(always)]
    fn control(&self) -> ControlBits {
        self.word
    }

    #[inline(always)]
    fn service_of_port(&self, protocol: u8, port: u16) -> ServiceId {
        self.tables.services().port_service(slot(), protocol, port)
    }

    #[inline(always)]
    fn service_of_protocol(&self, protocol: u8) -> ServiceId {
        self.tables.services().protocol_service(slot(), protocol)
    }

    #[inline(always)]
    fn services_of_protocol(&self, family: u8, protocol: u8) -> u64 {
        let services = self.tables.services();
        services.protocol_services(slot(), family, protocol)
    }

    #[inline(always)]
    fn is_shared(&self, services: u64) -> bool {
        self.tables.services().is_shared(slot(), services)
    }

    #[inline(always)]
    fn service_counter_id(&self, service: ServiceId) -> u32 {
        self.tables.services().counter_id(service)
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
        let until = volatile(ports).until(protocol, port);
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
