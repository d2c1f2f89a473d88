//! The maps from which `allowlist learn` proposes rules: the destinations that programs used and that no rule allows, and
//! the names that programs queried before.
//!
//! Both only describe. No program reads them for a decision, so a lie in an answer, or an eviction, changes a proposal and
//! never a verdict. Entries are kept from the creation of the maps on, over generations and over starts of the daemon.

use crate::egress::Call;
use crate::packet::{SCTP, TCP, UDP};

/// LRU hash from [`SeenKey`] to [`SeenCalls`]: the calls that no rule allows, by cgroup and destination. They are refused,
/// or would be in enforce mode, or pass because of `default = "pass"`.
pub const SEEN: &str = "SEEN";
/// LRU hash from [`AnsweredKey`] to [`crate::dns::Noted`]: the names that no rule lists, and for which a resolver answered
/// an address. Filled in observe mode and with the default verdict pass.
pub const ANSWERED: &str = "ANSWERED";

/// The number of entries in [`SEEN`].
pub const MAX_SEEN: usize = 1 << 14;
/// The number of entries in [`ANSWERED`].
pub const MAX_ANSWERED: usize = 1 << 13;
/// The number of a program's outer cgroups whose ids are kept in [`SeenCalls`], from the first level below the root.
pub const SEEN_LEVELS: usize = 4;

/// The key of [`SEEN`]: the calling program's cgroup, and the destination.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct SeenKey {
    /// The id of the cgroup.
    pub cgroup: u64,
    /// The destination address, as [`crate::egress::address_key`] returns it.
    pub address: [u64; 2],
    /// The protocol on the wire in bits 16 to 23, and the port; the port is 0 for a protocol without ports.
    pub endpoint: u64,
}

impl SeenKey {
    /// Returns the value of [`Self::endpoint`] for a protocol on the wire and a port, which is ignored for a protocol
    /// without ports.
    #[inline(always)]
    pub const fn endpoint_of(protocol: u8, port: u16) -> u64 {
        let port = match protocol {
            TCP | UDP | SCTP => port,
            _ => 0,
        };
        (protocol as u64) << 16 | port as u64
    }

    /// Returns the protocol on the wire.
    pub const fn protocol(&self) -> u8 {
        (self.endpoint >> 16) as u8
    }

    /// Returns the port; 0 for a protocol without ports.
    pub const fn port(&self) -> u16 {
        self.endpoint as u16
    }
}

/// The calls of the programs in a cgroup to one destination.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SeenCalls {
    /// The time of the first call, in nanoseconds of the monotonic clock.
    pub first: u64,
    /// The time of the last call, in nanoseconds of the monotonic clock.
    pub last: u64,
    /// The number of calls by kind, indexed by the number of the [`Call`].
    pub calls: [u64; Call::ALL.len()],
    /// The ids of the cgroup's outer cgroups and of itself, from the first level below the root; 0 for a level below
    /// it. They identify the slice of a program after its own cgroup was removed.
    pub levels: [u64; SEEN_LEVELS],
}

/// The key of [`ANSWERED`]: the cgroup of the socket that sent the query, an address, and the name.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct AnsweredKey {
    /// The id of the cgroup of the socket that sent the query: that of the program, or that of a local resolver.
    pub cgroup: u64,
    /// The address, as [`crate::egress::address_key`] returns it.
    pub address: [u64; 2],
    /// The hash of the name ([`crate::dns::Noted::hash`]), so that names with the same address do not replace each
    /// other.
    pub hash: u64,
}
