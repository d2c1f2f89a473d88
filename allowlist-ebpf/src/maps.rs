//! The maps, and the three things done with them: find the generation in force, look up, count.
//!
//! Names, values and sizes are `allowlist_common::abi`'s. The numbers here are defaults: the loader
//! sets what depends on the configuration.

use allowlist_common::abi::{
    Control, Counters, Grant, Interface, MAX_INTERFACES, MAX_MATCHES, SLOTS, ServiceId,
    ServiceTable, Traffic,
};
use allowlist_common::judge::{Decision, Tables};
use allowlist_common::packet::Address;
use allowlist_common::verdict::Verdict;
use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, LpmTrie, PerCpuArray};
use aya_ebpf::macros::btf_map;

type Slots<Inner> = ArrayOfMaps<Inner, { SLOTS as usize }>;
type Trie<K> = LpmTrie<K, Grant, 1>;

#[btf_map]
static CONTROL: Array<u64, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static SERVICES: Slots<Array<ServiceTable, 1>> = Slots::new();
#[btf_map]
static SOURCES_V4: Slots<Trie<[u8; 4]>> = Slots::new();
#[btf_map]
static SOURCES_V6: Slots<Trie<[u8; 16]>> = Slots::new();
#[btf_map]
static COUNTERS: PerCpuArray<Counters, { MAX_INTERFACES as usize }> = PerCpuArray::new();
#[btf_map]
static MATCHES: PerCpuArray<Traffic, { MAX_MATCHES as usize }> = PerCpuArray::new();
/// Read and written by userspace alone; here so that it is made and pinned with the others.
#[btf_map]
static INTERFACES: Array<Interface, { MAX_INTERFACES as usize }> = Array::new();

/// The slot of the interface that this copy of the program serves.
#[unsafe(no_mangle)]
static INTERFACE: Global<u32> = Global::new(0);

/// The control word, read once.
#[inline(always)]
pub(crate) fn control() -> Option<Control> {
    let word = CONTROL.get_ptr(0)?;
    // SAFETY: the pointer is to the map's one element, 8 bytes at an address divisible by 8.
    // Volatile, since userspace stores to it at any time and it must be loaded once and whole.
    Some(Control::decode(unsafe { word.read_volatile() }))
}

/// Counts a packet's end: once under its interface, verdict and reason, and once under what let it in.
#[inline(always)]
pub(crate) fn count(decision: &Decision, bytes: u64) {
    if let Some(counters) = COUNTERS.get_ptr_mut(INTERFACE.load()) {
        // SAFETY: this CPU's own copy, and no other program runs on this CPU meanwhile.
        unsafe { *(*counters).cell(decision.verdict, decision.reason) += 1 };
    }
    if decision.matched != 0
        && let Some(traffic) = MATCHES.get_ptr_mut(decision.matched)
    {
        // SAFETY: as above.
        unsafe {
            (*traffic).packets += 1;
            (*traffic).bytes += bytes;
        }
    }
}

/// The tables of the generation that one control word names.
pub(crate) struct Generation {
    services: &'static ServiceTable,
    v4: &'static Trie<[u8; 4]>,
    v6: &'static Trie<[u8; 16]>,
    default_verdict: Verdict,
}

impl Generation {
    /// `None` where a slot is empty, which the loader never lets happen.
    #[inline(always)]
    pub(crate) fn of(control: Control) -> Option<Self> {
        Some(Self {
            services: SERVICES.get(control.slot)?.get(0)?,
            v4: SOURCES_V4.get(control.slot)?,
            v6: SOURCES_V6.get(control.slot)?,
            default_verdict: control.default_verdict,
        })
    }
}

impl Tables for Generation {
    #[inline(always)]
    fn service_of_port(&self, protocol: u8, port: u16) -> ServiceId {
        self.services.of_port(protocol, port)
    }

    #[inline(always)]
    fn service_of_protocol(&self, protocol: u8) -> ServiceId {
        self.services.protocol[protocol as usize]
    }

    #[inline(always)]
    fn services_of_protocol(&self, protocol: u8) -> u64 {
        self.services.any_of_protocol[protocol as usize]
    }

    #[inline(always)]
    fn grant(&self, source: &Address) -> Option<Grant> {
        match *source {
            Address::V4(address) => self.v4.get(&Key::new(32, address)).copied(),
            Address::V6(address) => self.v6.get(&Key::new(128, address)).copied(),
        }
    }

    #[inline(always)]
    fn default_verdict(&self) -> Verdict {
        self.default_verdict
    }
}
