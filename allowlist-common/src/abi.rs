//! The ABI between the kernel programs and the loader: names, value types and sizes of the maps.
//!
//! Invariant: a change here or in [`crate::flow`] that an older program or loader would misread raises [`VERSION`].
//! The pin path contains the version, so two versions share only the maps that [`PINNED`] declares compatible.

mod control;
mod egress;
mod egress_event;
mod event;
mod fallback;
mod generation;
mod identity;
mod names;
mod seen;
mod services;

pub use control::{
    Control, ControlBits, ControlValue, EgressControl, Engine, Exemptions, PublishedValue, Refusal,
    ReturnTraffic,
};
pub use egress::{
    CONNECT_PROGRAMS, Calls, DaemonProcess, EGRESS_COUNTERS, EGRESS_MATCHES, EGRESS_PINNED,
    EGRESS_PREFIXES, EGRESS_RULES, EGRESS_SETTINGS, EGRESS_TABLES, EgressCounters, EgressSettings,
    Endpoint, MAX_ENDPOINTS, MAX_UNIT_TEXT, OWN_ADDRESSES, PROCESS, PROCESS_ID_PROGRAM,
    RECEIVE_PROGRAM, RECEIVED, Received, RuleCalls, UNIT_OFFSETS, UNIT_PROGRAMS, UNIT_TEXTS, UNITS,
    UnitKey, UnitRow, UnitText,
};
pub use egress_event::{
    EGRESS_BUDGET, EGRESS_EVENT_BYTES, EGRESS_EVENTS, EGRESS_LEASE, EgressEvent, EgressLease,
    PackedCall,
};
pub use event::{EVENTS_PER_WINDOW, Event, EventBudget, window};
pub use fallback::Fallback;
pub use generation::{GenerationTables, MIN_POOL_WORDS, Root};
pub use identity::{Identity, MAPS_OF_PROGRAM};
pub use names::{
    ANSWER_COUNTERS, ASKERS, AnswerCount, AnswerCounters, LEARNED, LEARNED_BELOW, LISTED_NAMES,
    Learned, LearnedNames, ListedName, MAX_LEARNED, MAX_LEARNED_BELOW, MAX_NAMES, NAME_CALLS,
    NAME_GRANTS, NAME_QUOTA, NAME_STATES, NAMES_OF_ADDRESS, NameGrant, NameGrants, NameState,
    QUERIES, QUERY_PROGRAM, QueryKey, TICK_SHIFT, WILDCARD_QUOTA,
};
pub use seen::{
    ANSWERED, AnsweredKey, MAX_ANSWERED, MAX_SEEN, SEEN, SEEN_LEVELS, SeenCalls, SeenKey,
};
pub use services::{
    CLASS_UNKNOWN, CLASSES, InterfaceServices, ServiceId, ServiceTable, fragment_class, service_set,
};

use crate::verdict::{Reason, Verdict};

/// The version of the map contents. `docs/internals.md` has the meaning of each version.
pub const VERSION: u32 = 8;

/// The name of the XDP program in the object file and in the kernel.
pub const PROGRAM: &str = "allowlist";
/// The name of the flow tracker in the object file and in the kernel.
pub const TRACKER_PROGRAM: &str = "allowlist_track";

/// Array of one [`ControlValue`]: the control word and the deadline of events. One value, so that a packet needs one
/// lookup for both.
pub const CONTROL: &str = "CONTROL";
/// Array of one [`Fallback`]: the control word that replaces an unconfirmed change at its deadline.
pub const FALLBACK: &str = "FALLBACK";
/// Array of [`GenerationTables`] by slot; each value ends with the slot's pool, the chunks of its range table
/// ([`crate::ranges`]).
pub const GENERATIONS: &str = "GENERATIONS";
/// Array of arrays of `u64` by slot: the prefixes from which a range table was compiled. Only userspace uses it.
pub const PREFIXES: &str = "PREFIXES";
/// Array of tries by slot, from IPv4 prefixes to [`Grant`]s; empty unless [`Engine::LpmTrie`] is used.
pub const TRIES_V4: &str = "TRIES_V4";
/// Array of tries by slot, from IPv6 prefixes to [`Grant`]s; empty unless [`Engine::LpmTrie`] is used.
pub const TRIES_V6: &str = "TRIES_V6";
/// Per-CPU array of [`Counters`], by interface slot: packets by verdict and reason.
pub const COUNTERS: &str = "COUNTERS";
/// Per-CPU array of [`Traffic`], by match id ([`MAX_MATCHES`]): the traffic that passed because a service allows its
/// source address.
pub const MATCHES: &str = "MATCHES";
/// Per-CPU array of [`ServiceTraffic`], by service counter id ([`MAX_SERVICE_COUNTS`]): the traffic to services, passed
/// and dropped.
pub const SERVICE_COUNTS: &str = "SERVICE_COUNTS";
/// Array of [`Interface`], by interface slot. Only userspace uses it.
pub const INTERFACES: &str = "INTERFACES";
/// Array of [`Identity`], by interface slot: the interface and the ids of the programs and maps that were attached there.
/// The self-check compares the kernel with it; only userspace uses it.
pub const IDENTITIES: &str = "IDENTITIES";
/// Array of one [`PublishedValue`]: a copy of the last stored control word, and whether `detach` has started. Only
/// userspace uses it.
pub const PUBLISHED: &str = "PUBLISHED";
/// Array of arrays of `u64` by slot: the metadata of the slot's generation, such as the names of its ids. Only userspace
/// uses it, and creates it.
pub const METADATA: &str = "METADATA";
/// LRU hash from [`crate::flow::Flow`] to [`crate::flow::FlowEntry`]: the flows that this host initiated.
pub const FLOWS: &str = "FLOWS";
/// LRU hash like [`FLOWS`], for the peers of flows; a separate map, so that peers evict no flows.
pub const PEERS: &str = "PEERS";
/// LRU hash from [`crate::flow::Flow::foreign`] to [`crate::flow::FlowEntry`]: the flows that the other side initiated
/// while everything passed, or whose origin is unknown.
pub const FOREIGN: &str = "FOREIGN";
/// Array of [`crate::flow::ForeignPort`] by local UDP port: the times until which datagrams from it may be replies.
pub const FOREIGN_PORTS: &str = "FOREIGN_PORTS";
/// Per-CPU array of one [`crate::flow::Crowding`]: the count of new entries in [`FOREIGN`].
pub const CROWDING: &str = "CROWDING";
/// Array of one [`crate::flow::Marking`]: the interface slots on which the flow tracker may create UDP flows, and the
/// time until which entries of [`FOREIGN`] may be missing.
pub const MARKING: &str = "MARKING";
/// Array of one [`crate::flow::PortsInUse`]: the local ports that may have live flows in [`FLOWS`] or [`PEERS`].
pub const PORTS: &str = "PORTS";
/// Ring buffer of [`Event`]s, one for each dropped packet while there is a reader.
pub const EVENTS: &str = "EVENTS";
/// Per-CPU array of one [`EventBudget`], which limits the rate of events.
pub const EVENT_BUDGET: &str = "EVENT_BUDGET";

/// The pinned maps, each with the oldest ABI version whose contents are compatible. An upgrade from that version or a
/// newer one adopts the map.
///
/// `None` stands for maps that belong to a generation or an attached program. They are never adopted: the older program
/// uses its own until it is replaced.
pub const PINNED: [(&str, Option<u32>); 22] = [
    (CONTROL, None),
    (FALLBACK, None),
    (GENERATIONS, None),
    (PREFIXES, None),
    (TRIES_V4, None),
    (TRIES_V6, None),
    (COUNTERS, Some(8)),
    (MATCHES, Some(8)),
    (SERVICE_COUNTS, Some(8)),
    (INTERFACES, Some(8)),
    (IDENTITIES, None),
    (PUBLISHED, None),
    (METADATA, None),
    (FLOWS, Some(8)),
    (PEERS, Some(8)),
    (FOREIGN, Some(8)),
    (FOREIGN_PORTS, Some(8)),
    (CROWDING, Some(8)),
    (MARKING, Some(8)),
    (PORTS, Some(8)),
    (EVENTS, Some(8)),
    (EVENT_BUDGET, Some(8)),
];

/// Load-time constant, `u32`: the interface slot of this copy of the program.
pub const GLOBAL_INTERFACE: &str = "INTERFACE";
/// Load-time constant, `u32`: the size of the pool after each [`GenerationTables`], in 8-byte words.
pub const GLOBAL_POOL: &str = "POOL";
/// Load-time constant, `u32`: the number of possible CPUs.
pub const GLOBAL_CPUS: &str = "CPUS";
/// Load-time constant, `u8`: 1 enables one log line per packet.
pub const GLOBAL_TRACE: &str = "TRACE";

/// The number of generations in the maps: the active one, the one being written, and the fallback of a pending change.
pub const SLOTS: u32 = 3;
/// The maximum number of kernel services, the distinct sets of configured services that cover a port: one bit of a
/// `u64` each. A policy with more is refused.
pub const MAX_SERVICES: usize = 64;
/// The maximum number of interfaces that share one set of maps; attaching to a further one fails. An *interface slot*
/// is the number of such an interface, below this maximum; a *slot* alone is the number of a generation's tables, below
/// [`SLOTS`].
pub const MAX_INTERFACES: u32 = 64;
/// The number of match ids. A match id stands for the sources that list an address, and id 0 for no source. A policy
/// that needs more is refused.
pub const MAX_MATCHES: u32 = 4096;
/// The number of service counter ids. Such an id stands for the services that cover a port, and id 0 for no service. A
/// policy that needs more is refused.
pub const MAX_SERVICE_COUNTS: u32 = 1024;
/// The size of the ring buffer [`EVENTS`] in bytes.
pub const EVENT_BYTES: u32 = 1 << 18;

/// The kernel services that a source address may reach, and the match id under which its packets are counted.
///
/// Packed, because a trie's value has the alignment of its key, 4 bytes.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, packed(4))]
pub struct Grant {
    services: u64,
    /// The match id: an index into [`MATCHES`], under which the allowed packets of the address are counted.
    pub match_id: u32,
}

impl Grant {
    /// Returns a grant of a set of services.
    pub const fn new(services: u64, match_id: u32) -> Self {
        Self { services, match_id }
    }

    /// Returns the set of kernel services: bit `n - 1` is the service with the number `n`.
    #[inline(always)]
    pub const fn services(self) -> u64 {
        self.services
    }
}

/// The number of packets by verdict and reason.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    packets: [[u64; Reason::ALL.len()]; Verdict::ALL.len()],
}

impl Counters {
    /// The counters of a new map: all are 0.
    pub const ZERO: Self = Self {
        packets: [[0; Reason::ALL.len()]; Verdict::ALL.len()],
    };

    /// Returns the number of packets with a verdict and a reason.
    pub const fn get(&self, verdict: Verdict, reason: Reason) -> u64 {
        self.packets[verdict as usize][reason as usize]
    }

    /// Returns the counter for a verdict and a reason.
    #[inline(always)]
    pub const fn cell(&mut self, verdict: Verdict, reason: Reason) -> &mut u64 {
        &mut self.packets[verdict as usize][reason as usize]
    }
}

/// The number, size and last time of frames, such as those that passed under one match id.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traffic {
    /// The number of frames.
    pub packets: u64,
    /// The size of all frames in bytes, including their link-layer headers.
    pub bytes: u64,
    /// The time of the last frame, in nanoseconds of the monotonic clock; 0 before the first.
    pub last: u64,
}

/// Counters of the packets to one set of services.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceTraffic {
    /// Traffic from source addresses that may reach the services.
    pub passed: Traffic,
    /// The number of dropped frames.
    pub dropped_packets: u64,
    /// The size of the dropped frames in bytes.
    pub dropped_bytes: u64,
}

impl Traffic {
    /// Returns the sum of two traffic counts, with the later of their times.
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
    /// Returns the sum of two sets of counters.
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
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Interface {
    /// The interface index; 0 before the first attach.
    pub index: u32,
    /// The active attach mode: 1 native, 2 generic, 3 offload.
    pub attach_mode: u32,
    /// The flow tracker's hook: 0 none, 1 a tcx link, 2 a clsact filter.
    pub egress: u32,
    /// The interface's name, zero-padded; empty for a free slot.
    pub name: [u8; 16],
}

#[cfg(feature = "aya")]
mod user {
    use super::{
        AnswerCounters, AnsweredKey, Calls, Counters, DaemonProcess, EgressCounters, EgressEvent,
        EgressLease, EgressSettings, Event, EventBudget, Fallback, Grant, Identity, Interface,
        LearnedNames, ListedName, NameState, Received, RuleCalls, SeenCalls, SeenKey, ServiceTable,
        ServiceTraffic, Traffic, UnitKey, UnitText,
    };
    use crate::dns::Noted;
    use crate::flow::{Crowding, Flow, FlowEntry, ForeignPort, Marking, PortsInUse};

    const fn require_pod<T: bytemuck::Pod>() {}

    macro_rules! plain_old_data {
        ($($value:ty),*) => {$(
            const _: () = require_pod::<$value>();
            // SAFETY: bytemuck's derive checks that the type is `#[repr(C)]`, has no padding, and that every bit pattern
            // is valid.
            #[expect(unsafe_code, reason = "aya requires an unsafe marker for plain-old-data types")]
            unsafe impl aya::Pod for $value {}
        )*};
    }

    plain_old_data!(
        AnswerCounters,
        AnsweredKey,
        Calls,
        Counters,
        Crowding,
        DaemonProcess,
        EgressCounters,
        EgressEvent,
        EgressLease,
        EgressSettings,
        Event,
        EventBudget,
        Fallback,
        Flow,
        ForeignPort,
        Grant,
        Identity,
        Interface,
        LearnedNames,
        ListedName,
        Marking,
        NameState,
        Noted,
        PortsInUse,
        Received,
        RuleCalls,
        SeenCalls,
        SeenKey,
        ServiceTable,
        ServiceTraffic,
        FlowEntry,
        Traffic,
        UnitKey,
        UnitText
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::{NameKey, Noted};
    use crate::flow::{Crowding, Flow, FlowEntry, ForeignPort, Marking, PortsInUse};

    /// Maps that older versions pinned have this layout: a different size requires a new `VERSION`.
    #[test]
    fn sizes() {
        assert_eq!(VERSION, 8);
        assert_eq!(size_of::<ControlValue>(), 16);
        assert_eq!(size_of::<PublishedValue>(), 16);
        assert_eq!(size_of::<Fallback>(), 32);
        assert_eq!(size_of::<Grant>(), 12);
        assert_eq!(size_of::<UnitKey>(), 16);
        assert_eq!(size_of::<UnitText>(), 520);
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
        assert_eq!(size_of::<EgressSettings>(), 24 * MAX_ENDPOINTS + 32);
        assert_eq!(size_of::<EgressCounters>(), 8 * 3 * 2 * 10);
        assert_eq!(size_of::<EgressEvent>(), 72);
        assert_eq!(size_of::<EgressLease>(), 16);
        assert_eq!(size_of::<Calls>(), 16);
        assert_eq!(size_of::<RuleCalls>(), 32);
        assert_eq!(size_of::<DaemonProcess>(), 16);
        assert_eq!(size_of::<Received>(), 32);
        assert_eq!(size_of::<NameKey>(), 4 + 256);
        assert_eq!(size_of::<Noted>(), 260 + 16);
        assert_eq!(size_of::<ListedName>(), 8);
        assert_eq!(size_of::<NameGrants>(), 16 * MAX_NAMES);
        assert_eq!(size_of::<NameState>(), 24);
        assert_eq!(size_of::<QueryKey>(), 32);
        assert_eq!(size_of::<LearnedNames>(), 8 * NAMES_OF_ADDRESS);
        assert_eq!(size_of::<AnswerCounters>(), 8 * 8);
        assert_eq!(size_of::<SeenKey>(), 32);
        assert_eq!(size_of::<SeenCalls>(), 72);
        assert_eq!(size_of::<AnsweredKey>(), 32);
    }

    #[test]
    fn grants_store_all_64_services() {
        for services in [0, 1, 1 << 31, 1 << 32, 1 << 63, u64::MAX] {
            assert_eq!(Grant::new(services, 7).services(), services);
        }
    }
}
