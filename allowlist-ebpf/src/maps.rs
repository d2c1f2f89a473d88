//! The maps, and what is looked up in them: the generation in force, and flows.
//!
//! Names, values and sizes are `allowlist_common::abi`'s. The numbers here are defaults: the loader
//! sets what depends on the configuration.

use allowlist_common::abi::{
    Control, Counters, EVENT_BYTES, Engine, Event, EventBudget, Fallback, GenerationTables, Grant,
    Interface, MAX_INTERFACES, MAX_MATCHES, MAX_SERVICE_COUNTS, POOL_LEAST, SLOTS, ServiceId,
    ServiceTraffic, Traffic,
};
use allowlist_common::flow::{Flow, PortsInUse, Tracked, port_table};
use allowlist_common::judge::Tables;
use allowlist_common::packet::{Address, Quote};
use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;

use crate::{clock, frames, ranges, sent, tries};

pub(crate) type Slots<Inner> = ArrayOfMaps<Inner, { SLOTS as usize }>;
/// VERIFIER: values of maps in slots must not be structs to BTF. Linux 5.15 to 6.1 compares what it
/// knows of a timer in them (`bpf_map_meta_equal`), which differs between a map made from BTF and one
/// made without, as the loader makes them, and refuses to put the one in the other's place.
type TableWords = [u64; size_of::<GenerationTables>() / 8 + POOL_LEAST as usize];

#[btf_map]
static CONTROL: Array<u64, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static FALLBACK: Array<Fallback, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static GENERATIONS: Slots<Array<TableWords, 1, { BPF_F_MMAPABLE as usize }>> = Slots::new();
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
static PREFIXES: Slots<Array<u64, 1, { (BPF_F_MMAPABLE | BPF_F_INNER_MAP) as usize }>> =
    Slots::new();
/// Likewise.
#[btf_map]
static NAMES: Array<u64, 1> = Array::new();
#[btf_map]
pub(crate) static FLOWS: LruHashMap<Flow, Tracked, 1> = LruHashMap::new();
#[btf_map]
pub(crate) static PORTS: Array<PortsInUse, 1> = Array::new();
#[btf_map]
pub(crate) static EVENTS: RingBuf<Event, { EVENT_BYTES as usize }> = RingBuf::new();
#[btf_map]
pub(crate) static EVENT_BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static WATCHED: Array<u64, 1> = Array::new();

/// The slot of the interface that this copy of the program serves.
#[unsafe(no_mangle)]
pub(crate) static INTERFACE: Global<u32> = Global::new(0);

/// The same as an index that is always in bounds.
#[inline(always)]
fn slot() -> usize {
    (INTERFACE.load() % MAX_INTERFACES) as usize
}

/// What packets of this interface are judged by: the control word, read once, or what it falls back to.
#[inline(always)]
pub(crate) fn control() -> Option<Control> {
    let word = CONTROL.get_ptr(0)?;
    // SAFETY: the pointer is to the map's one element, 8 bytes at an address divisible by 8.
    // Volatile, since userspace stores to it at any time and it must be loaded once and whole.
    let mut word = unsafe { word.read_volatile() };
    if Control::is_provisional(word) {
        word = judged_by(word);
    }
    Some(Control::decode(word))
}

/// VERIFIER: a function of its own, since it is hardly ever called, so that it costs nothing else anything.
#[inline(never)]
fn judged_by(word: u64) -> u64 {
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
            spared: (&raw const (*fallback).spared).read_volatile(),
        }
    };
    fallback.judges(word, INTERFACE.load(), clock::nanoseconds())
}

/// The service that covers a port on this interface; 0 is none.
#[inline(always)]
pub(crate) fn service_of_port(control: Control, protocol: u8, port: u16) -> ServiceId {
    tables(control).map_or(0, |tables| tables.services.of_port(slot(), protocol, port))
}

#[inline(always)]
fn tables(control: Control) -> Option<&'static GenerationTables> {
    let words = GENERATIONS.get(control.slot)?.get(0)?;
    // SAFETY: the loader wrote tables there, which are as large and need no more alignment.
    Some(unsafe { &*core::ptr::from_ref(words).cast() })
}

/// The tables of the generation that one control word names, for one frame.
pub(crate) struct Generation<'a> {
    control: Control,
    tables: &'static GenerationTables,
    /// Of the frame that is judged.
    ctx: &'a XdpContext,
}

impl<'a> Generation<'a> {
    /// `None` where a slot is empty, which the loader never lets happen.
    #[inline(always)]
    pub(crate) fn of(control: Control, ctx: &'a XdpContext) -> Option<Self> {
        Some(Self {
            control,
            ctx,
            tables: tables(control)?,
        })
    }
}

impl Tables for Generation<'_> {
    #[inline(always)]
    fn control(&self) -> &Control {
        &self.control
    }

    #[inline(always)]
    fn service_of_port(&self, protocol: u8, port: u16) -> ServiceId {
        self.tables.services.of_port(slot(), protocol, port)
    }

    #[inline(always)]
    fn service_of_protocol(&self, protocol: u8) -> ServiceId {
        self.tables.services.of_protocol(slot(), protocol)
    }

    #[inline(always)]
    fn services_of_protocol(&self, protocol: u8) -> u64 {
        self.tables.services.any_of_protocol(slot(), protocol)
    }

    #[inline(always)]
    fn counted(&self, service: ServiceId) -> u32 {
        self.tables.services.counted[service as usize]
    }

    #[inline(always)]
    fn grant(&self, source: &Address) -> Option<Grant> {
        match self.control.lookup {
            Engine::RangeTable => Some(ranges::grant(self.tables, source)),
            Engine::LpmTrie => tries::grant(self.control.slot, source),
        }
    }

    #[inline(always)]
    fn sent_from(&self, protocol: u8, port: u16) -> bool {
        let Some(ports) = PORTS.get_ptr(0) else {
            return false;
        };
        // SAFETY: the map's one element; 4 aligned bytes of it, loaded at once.
        let until = unsafe { (*ports).until[port_table(protocol)][port as usize] };
        until != 0 && clock::seconds() < until
    }

    #[inline(always)]
    fn sent(&self, flow: &Flow) -> bool {
        sent::find(flow).is_some_and(|entry| entry.is_alive(clock::seconds()))
    }

    #[inline(always)]
    fn quoted(&self, quote: Quote, source: Address) -> Option<Flow> {
        frames::quoted(self.ctx, quote, source)
    }
}
