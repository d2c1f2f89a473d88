//! What the maps hold: their names, their values, their sizes.
//!
//! A change of anything here or in [`crate::flow`] that an older program or an older loader would
//! misread raises [`VERSION`], which is part of the pin path, so that two versions never share a map.

mod control;
mod event;
mod fallback;
mod generation;
mod identity;
mod services;

pub use control::{Control, ControlBits, Engine, Exemptions, ReturnTraffic};
pub use event::{EVENTS_PER_WINDOW, Event, EventBudget, window};
pub use fallback::Fallback;
pub use generation::{GenerationTables, MIN_POOL_WORDS, Root};
pub use identity::{Identity, MAPS_OF_PROGRAM};
pub use services::{
    CLASS_UNKNOWN, CLASSES, InterfaceServices, ServiceId, ServiceTable, fragment_class, service_set,
};

use crate::verdict::{Reason, Verdict};

/// The version of everything that the maps hold.
pub const VERSION: u32 = 8;

/// The XDP program's name in the object file and in the kernel.
pub const PROGRAM: &str = "allowlist";
/// The name of the program that notes what this host sends.
pub const TRACKER_PROGRAM: &str = "allowlist_track";

/// Array of one pair of `u64`: the [`Control`] word; and until when somebody reads events, in nanoseconds of the
/// monotonic clock. Together, so that a packet finds both by one look.
pub const CONTROL: &str = "CONTROL";
/// Array of one [`Fallback`].
pub const FALLBACK: &str = "FALLBACK";
/// Array of [`GenerationTables`] by slot, each with its pool behind it.
pub const GENERATIONS: &str = "GENERATIONS";
/// Slots of an array of words: the prefixes that a range table was made from. Userspace alone reads and writes it.
pub const PREFIXES: &str = "PREFIXES";
/// Slots of a trie from IPv4 prefixes to [`Grant`]s; empty but with [`Engine::LpmTrie`].
pub const TRIES_V4: &str = "TRIES_V4";
/// Slots of a trie from IPv6 prefixes to [`Grant`]s; likewise.
pub const TRIES_V6: &str = "TRIES_V6";
/// Per-CPU array of [`Counters`], by interface slot.
pub const COUNTERS: &str = "COUNTERS";
/// Per-CPU array of [`Traffic`], by match id.
pub const MATCHES: &str = "MATCHES";
/// Per-CPU array of [`ServiceTraffic`], by service count id.
pub const SERVICE_COUNTS: &str = "SERVICE_COUNTS";
/// Array of [`Interface`], by interface slot. Userspace alone reads and writes it.
pub const INTERFACES: &str = "INTERFACES";
/// Array of [`Identity`], by interface slot: the state that a self-check compares the kernel with. Userspace alone reads and
/// writes it.
pub const IDENTITIES: &str = "IDENTITIES";
/// Array of one pair of `u64`: a copy of the [`Control`] word that was stored last; and 1 once the filter is being
/// detached on purpose. Userspace alone reads and writes it.
pub const PUBLISHED: &str = "PUBLISHED";
/// Array of one `u64`: what tells which names the ids in force have. Userspace alone reads and writes it.
pub const NAMES: &str = "NAMES";
/// Least-recently-used hash from [`crate::flow::Flow`] to [`crate::flow::FlowEntry`]: the flows that this host
/// initiated.
pub const FLOWS: &str = "FLOWS";
/// The same for their peers, so that they take no room from flows.
pub const PEERS: &str = "PEERS";
/// Least-recently-used hash from [`crate::flow::Flow::foreign`] to [`crate::flow::FlowEntry`]: the flows that the
/// other side initiated while everything passed, or whose origin is unknown.
pub const FOREIGN: &str = "FOREIGN";
/// Array of [`crate::flow::ForeignPort`] by local UDP port.
pub const FOREIGN_PORTS: &str = "FOREIGN_PORTS";
/// Per-CPU array of one [`crate::flow::Crowding`].
pub const CROWDING: &str = "CROWDING";
/// Array of one [`crate::flow::Marking`].
pub const MARKING: &str = "MARKING";
/// Array of one [`crate::flow::PortsInUse`].
pub const PORTS: &str = "PORTS";
/// Ring buffer of [`Event`]s.
pub const EVENTS: &str = "EVENTS";
/// Per-CPU array of one [`EventBudget`].
pub const EVENT_BUDGET: &str = "EVENT_BUDGET";

/// Every map that outlives the program that made it, and is pinned under its name; and since which
/// version it means what it means now. From there on a newer program takes it over from an older one.
///
/// What packets are judged by is each version's own: until it is replaced, the older program judges by what it had.
/// Events mean what they did, but whoever reads an older program's has only that one's folder locked.
pub const PINNED: [(&str, u32); 22] = [
    (CONTROL, VERSION),
    (FALLBACK, VERSION),
    (GENERATIONS, VERSION),
    (PREFIXES, VERSION),
    (TRIES_V4, VERSION),
    (TRIES_V6, VERSION),
    (COUNTERS, 8),
    (MATCHES, 2),
    (SERVICE_COUNTS, 2),
    (INTERFACES, 2),
    (IDENTITIES, VERSION),
    (PUBLISHED, VERSION),
    (NAMES, 3),
    // Older versions recorded replies to strangers as well.
    (FLOWS, 8),
    (PEERS, 8),
    (FOREIGN, 8),
    (FOREIGN_PORTS, 8),
    (CROWDING, 8),
    (MARKING, 8),
    (PORTS, 8),
    (EVENTS, 3),
    (EVENT_BUDGET, 3),
];

/// Load-time constant, `u32`: the slot of the interface that this copy of the program serves.
pub const GLOBAL_INTERFACE: &str = "INTERFACE";
/// Load-time constant, `u32`: 8-byte words of the pool behind each [`GenerationTables`].
pub const GLOBAL_POOL: &str = "POOL";
/// Load-time constant, `u32`: how many CPUs the kernel may have.
pub const GLOBAL_CPUS: &str = "CPUS";
/// Load-time constant, `u8`: 1 makes the program log a line a packet.
pub const GLOBAL_TRACE: &str = "TRACE";

/// Generations that the maps have room for: the one in use, the one being filled, and the one to go back to
/// where a change waits to be confirmed.
pub const SLOTS: u32 = 3;
/// The most services, since a set of them is one `u64`.
pub const MAX_SERVICES: usize = 64;
/// The most interfaces that one set of maps serves.
pub const MAX_INTERFACES: u32 = 64;
/// The most match ids. Id 0 is nobody's.
pub const MAX_MATCHES: u32 = 4096;
/// The most service count ids. Id 0 is no service's.
pub const MAX_SERVICE_COUNTS: u32 = 1024;
/// Bytes of the ring buffer.
pub const EVENT_BYTES: u32 = 1 << 18;

/// What a source may reach, and the id to count it under.
///
/// Packed since a trie's value has the alignment of its key, 4 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, packed(4))]
pub struct Grant {
    services: u64,
    /// Index into [`MATCHES`].
    pub match_id: u32,
}

impl Grant {
    /// A grant of a set of services.
    pub const fn new(services: u64, match_id: u32) -> Self {
        Self { services, match_id }
    }

    /// The set of services.
    #[inline(always)]
    pub const fn services(self) -> u64 {
        self.services
    }
}

/// Packets by verdict and reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    packets: [[u64; Reason::ALL.len()]; Verdict::ALL.len()],
}

impl Counters {
    /// Nothing counted.
    pub const ZERO: Self = Self {
        packets: [[0; Reason::ALL.len()]; Verdict::ALL.len()],
    };

    /// How many packets had that end.
    pub const fn get(&self, verdict: Verdict, reason: Reason) -> u64 {
        self.packets[verdict as usize][reason as usize]
    }

    /// Where to count packets of that end.
    #[inline(always)]
    pub const fn cell(&mut self, verdict: Verdict, reason: Reason) -> &mut u64 {
        &mut self.packets[verdict as usize][reason as usize]
    }
}

/// What passed under one match id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traffic {
    /// Frames.
    pub packets: u64,
    /// Bytes of frames, link-layer header included.
    pub bytes: u64,
    /// When the last one came, in nanoseconds of the monotonic clock; 0 before the first.
    pub last: u64,
}

/// What became of packets to one set of services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceTraffic {
    /// From sources that reach it.
    pub passed: Traffic,
    /// Frames from others.
    pub dropped_packets: u64,
    /// Bytes of those.
    pub dropped_bytes: u64,
}

impl Traffic {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            last: self.last.max(other.last),
        }
    }
}

impl ServiceTraffic {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed.plus(other.passed),
            dropped_packets: self.dropped_packets + other.dropped_packets,
            dropped_bytes: self.dropped_bytes + other.dropped_bytes,
        }
    }
}

/// An interface that the filter is, or was, attached to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Interface {
    /// The kernel's index of it; 0 before it was attached to.
    pub index: u32,
    /// The attach mode in force: 1 native, 2 generic, 3 offload.
    pub attach_mode: u32,
    /// How outbound packets are noted: 0 not at all, 1 by a tcx link, 2 by a clsact filter.
    pub egress: u32,
    /// Zero-padded; empty marks a free slot.
    pub name: [u8; 16],
}

#[cfg(feature = "user")]
mod user {
    use super::{
        Counters, Event, EventBudget, Fallback, Grant, Identity, Interface, ServiceTable,
        ServiceTraffic, Traffic,
    };
    use crate::flow::{Crowding, Flow, FlowEntry, ForeignPort, Marking, PortsInUse};

    macro_rules! plain_old_data {
        ($($value:ty),*) => {$(
            // SAFETY: `#[repr(C)]`, integers and arrays of them only, so no bit pattern is
            // invalid; without padding, since the test below holds the sizes.
            #[expect(unsafe_code, reason = "aya asks for a promise about the memory layout")]
            unsafe impl aya::Pod for $value {}
        )*};
    }

    plain_old_data!(
        Counters,
        Crowding,
        Event,
        EventBudget,
        Fallback,
        Flow,
        ForeignPort,
        Grant,
        Identity,
        Interface,
        Marking,
        PortsInUse,
        ServiceTable,
        ServiceTraffic,
        FlowEntry,
        Traffic
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Crowding, Flow, FlowEntry, ForeignPort, Marking, PortsInUse};

    /// The layout is what older pins hold: a new size means a new `VERSION`.
    #[test]
    fn sizes() {
        assert_eq!(VERSION, 8);
        assert_eq!(size_of::<Fallback>(), 32);
        assert_eq!(size_of::<Grant>(), 12);
        assert_eq!(size_of::<InterfaceServices>(), 256 + 8 * 5);
        assert_eq!(
            size_of::<ServiceTable>(),
            3 * 65536 + 256 + 64 * (256 + 8 * 5) + 4 * 256
        );
        assert_eq!(
            size_of::<GenerationTables>(),
            size_of::<ServiceTable>() + 8 * 4096 + 2 * 4 * 65536
        );
        assert_eq!(size_of::<Counters>(), 8 * 26);
        assert_eq!(size_of::<Traffic>(), 24);
        assert_eq!(size_of::<ServiceTraffic>(), 40);
        assert_eq!(size_of::<Interface>(), 28);
        assert_eq!(size_of::<Identity>(), 40 + 4 * 32);
        assert!(PINNED.len() <= MAPS_OF_PROGRAM);
        assert_eq!(size_of::<Event>(), 64);
        assert_eq!(size_of::<EventBudget>(), 24);
        assert_eq!(size_of::<Flow>(), 40);
        assert_eq!(size_of::<FlowEntry>(), 8);
        assert_eq!(size_of::<ForeignPort>(), 8);
        assert_eq!(size_of::<Crowding>(), 8);
        assert_eq!(size_of::<Marking>(), 16);
        assert_eq!(size_of::<PortsInUse>(), 3 * 4 * 65536);
    }

    #[test]
    fn grants_keep_all_64_services() {
        for services in [0, 1, 1 << 31, 1 << 32, 1 << 63, u64::MAX] {
            assert_eq!(Grant::new(services, 7).services(), services);
        }
    }
}
