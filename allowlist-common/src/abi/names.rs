//! The maps by which the egress policy allows the addresses of names: the kernel programs read the answers that this
//! host's resolvers give to its programs, and store the addresses before a program can use them.
//!
//! Three steps: a query for a listed name is noted ([`QUERIES`]) if its socket sent or connected to a resolver
//! ([`ASKERS`]); the answer to it is read, and its addresses are stored with the id of the listed name and the time
//! until which they are valid ([`LEARNED`], [`LEARNED_BELOW`]); a call to an address is allowed if the tables of the
//! active generation allow one of its names ([`NAME_GRANTS`]). Ids of names keep their meaning over generations, so
//! learnt addresses stay valid.

use crate::dns::NameKey;
use crate::volatile::{VolatileRef, field};

/// The program that notes queries, at the hook for packets from a cgroup's sockets.
pub const QUERY_PROGRAM: &str = "allow_query";

/// Trie from [`NameKey`] to [`ListedName`]: the names that rules list, in all slots.
pub const LISTED_NAMES: &str = "LISTED_NAMES";
/// Array of [`NameGrants`] by slot.
pub const NAME_GRANTS: &str = "NAME_GRANTS";
/// Array of [`NameState`] by the id of a name.
pub const NAME_STATES: &str = "NAME_STATES";
/// Per-CPU array of [`Calls`](super::Calls) by the id of a name: the calls that passed because the address was learnt
/// for it.
pub const NAME_CALLS: &str = "NAME_CALLS";
/// LRU hash from the cookie of a socket to `u8`: the UDP sockets that sent or connected to a resolver; the value has no
/// meaning.
pub const ASKERS: &str = "ASKERS";
/// LRU hash from [`QueryKey`] to [`crate::dns::Noted`]: the queries that have no answer yet: those for
/// listed names, and in observe mode or with the default verdict pass those for other names too.
pub const QUERIES: &str = "QUERIES";
/// LRU hash from an address ([`crate::egress::address_key`]) to [`LearnedNames`]: the addresses that were answered for
/// names that rules list exactly.
pub const LEARNED: &str = "LEARNED";
/// LRU hash like [`LEARNED`], for names that a wildcard covers; a separate map, so that they evict no others.
pub const LEARNED_BELOW: &str = "LEARNED_BELOW";
/// Per-CPU array of one [`AnswerCounters`].
pub const ANSWER_COUNTERS: &str = "ANSWER_COUNTERS";

/// The number of ids of names; id 0 stands for no name. A policy that needs more is refused.
pub const MAX_NAMES: usize = 4096;
/// The number of entries in [`LEARNED`].
pub const MAX_LEARNED: usize = 1 << 15;
/// The number of entries in [`LEARNED_BELOW`].
pub const MAX_LEARNED_BELOW: usize = 1 << 14;
/// The number of listed names of one address. An address of more is not learnt for the further ones.
pub const NAMES_OF_ADDRESS: usize = 8;
/// The number of new addresses of an exact name that are learnt within the policy's `linger`; further ones are not.
pub const NAME_QUOTA: u64 = 1000;
/// As [`NAME_QUOTA`], of all names together that one wildcard covers.
pub const WILDCARD_QUOTA: u64 = 4000;

/// The kernel's unit of the time until which an address is valid: 2^20 nanoseconds of the monotonic clock, about one
/// millisecond.
pub const TICK_SHIFT: u32 = 20;

/// A listed name in [`LISTED_NAMES`].
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ListedName {
    /// The id of the name.
    pub id: u32,
    /// The union of [`Self::BELOW`] and [`Self::SPECIAL`].
    pub kind: u32,
}

impl ListedName {
    /// The name is a wildcard.
    pub const BELOW: u32 = 1;
    /// A source that lists the name permits addresses in closed ranges.
    pub const SPECIAL: u32 = 2;
}

/// The rules that allow the addresses of a name, as sets of kernel services.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NameGrant {
    /// The rules that allow the addresses outside of closed ranges.
    pub services: u64,
    /// The rules that allow the addresses in closed ranges.
    pub special: u64,
}

/// The grants of all names in a generation, by id.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct NameGrants {
    /// The grants, indexed by the id of the name.
    pub grants: [NameGrant; MAX_NAMES],
}

impl VolatileRef<'_, NameGrants> {
    /// Returns the set of rules that allow an address of the name with an id; none for an unknown id. `is_closed` states
    /// whether the address is in a closed range.
    #[inline(always)]
    pub fn services(self, id: u32, is_closed: bool) -> u64 {
        let grant = field!(self, grants).at(id as usize % MAX_NAMES);
        if is_closed {
            field!(grant, special).load()
        } else {
            field!(grant, services).load()
        }
    }
}

/// The state of a name, which the kernel keeps over generations.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NameState {
    /// The begin of the time in which `count` addresses were learnt, in nanoseconds of the monotonic clock.
    pub since: u64,
    /// The number of new addresses since then. CPUs that add at the same moment may count one addition once.
    pub count: u64,
    /// The time of the last truncated answer, in nanoseconds of the monotonic clock; 0 before the first.
    pub truncated: u64,
}

/// The key of [`QUERIES`]: by what an answer is recognised.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct QueryKey {
    /// The kernel's cookie of the socket.
    pub socket: u64,
    /// The resolver's address, as [`crate::egress::address_key`] returns it.
    pub resolver: [u64; 2],
    /// The resolver's port in bits 16 to 31, and the id of the message in the lowest 16 bits.
    pub port_and_id: u64,
}

/// The listed names of a learnt address.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LearnedNames {
    /// The entries, in no order; 0 for an unused one. Each is one word, so that a program can replace it by one atomic
    /// operation.
    pub entries: [u64; NAMES_OF_ADDRESS],
}

/// An entry of [`LearnedNames`]: the id of a name in the upper 16 bits, and the tick ([`TICK_SHIFT`]) at which it
/// becomes invalid in the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learned(pub u64);

impl Learned {
    const ID_SHIFT: u32 = 48;

    /// Returns an entry for the name with an id, which is valid until a time in nanoseconds of the monotonic clock.
    #[inline(always)]
    pub const fn new(id: u32, until: u64) -> Self {
        Self((id as u64) << Self::ID_SHIFT | until >> TICK_SHIFT)
    }

    /// Returns the id of the name; 0 for an unused entry.
    #[inline(always)]
    pub const fn id(self) -> u32 {
        (self.0 >> Self::ID_SHIFT) as u32
    }

    /// Returns the time at which the entry becomes invalid, in nanoseconds of the monotonic clock.
    #[inline(always)]
    pub const fn until(self) -> u64 {
        (self.0 & ((1 << Self::ID_SHIFT) - 1)) << TICK_SHIFT
    }
}

/// What happened to queries, answers and their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AnswerCount {
    /// Queries for a listed name that were noted.
    Queries = 0,
    /// Answers to noted queries that were believed.
    Answers = 1,
    /// Addresses of believed answers that were stored, or whose time was extended.
    Addresses = 2,
    /// Addresses that were not stored, because they are in a closed range.
    Closed = 3,
    /// Addresses that were not stored, because the quota of the name was used up.
    OverQuota = 4,
    /// Addresses that were not stored, because they have too many names already.
    Crowded = 5,
    /// Truncated answers to noted queries.
    Truncated = 6,
    /// Answers to noted queries that do not repeat the question, or deviate from the format.
    Malformed = 7,
}

impl AnswerCount {
    /// All counts, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Queries,
        Self::Answers,
        Self::Addresses,
        Self::Closed,
        Self::OverQuota,
        Self::Crowded,
        Self::Truncated,
        Self::Malformed,
    ];

    /// Returns the name of the count, as in reports and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queries => "queries",
            Self::Answers => "answers",
            Self::Addresses => "addresses",
            Self::Closed => "closed-range",
            Self::OverQuota => "over-quota",
            Self::Crowded => "crowded",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
        }
    }
}

/// The counters of queries and answers.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AnswerCounters {
    counts: [u64; AnswerCount::ALL.len()],
}

impl AnswerCounters {
    /// Returns a count.
    pub const fn get(&self, count: AnswerCount) -> u64 {
        self.counts[count as usize]
    }

    /// Returns the counter of a count.
    #[inline(always)]
    pub const fn cell(&mut self, count: AnswerCount) -> &mut u64 {
        &mut self.counts[count as usize]
    }
}

/// The kernel's limit for the keys of a trie: 4 bytes for the length, and 256 bytes of data.
const _: () = assert!(size_of::<NameKey>() == 260);
