//! The tables of one generation except the tries: services, grants, and the roots of the range table.
//!
//! One map value, so that a packet needs one map lookup. The pool follows the tables in the same value: it comes last
//! because only its size differs between maps.

use super::{MAX_MATCHES, ServiceTable};
use crate::ranges::ROOT_BITS;

/// A root of the range table, indexed by the first bits of an address; [`crate::ranges`] defines the entries.
pub type Root = [u32; 1 << ROOT_BITS];

/// The minimum size of a pool in words, which an empty table has.
pub const MIN_POOL_WORDS: u32 = 1 << 13;

/// The tables of one generation; its pool follows in the same map value.
#[derive(Clone, PartialEq, Eq)]
#[repr(C)]
pub struct GenerationTables {
    /// The services of ports and protocols.
    pub services: ServiceTable,
    /// The set of services that a source may reach, by match id.
    pub reach: [u64; MAX_MATCHES as usize],
    /// The IPv4 root of the range table.
    pub v4: Root,
    /// The IPv6 root of the range table.
    pub v6: Root,
}
