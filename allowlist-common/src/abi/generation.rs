//! What one generation is looked up in, but for the tries: the services, and the range table's roots; its pool follows.
//!
//! One map value, so that a packet finds all of it by one look for its slot. Only the pool's size differs from map to
//! map, which is why it comes last.

use super::{MAX_MATCHES, ServiceTable};
use crate::ranges::ROOT_BITS;

/// By the first bits of an address: what [`crate::ranges`] makes of it.
pub type Root = [u32; 1 << ROOT_BITS];

/// Words of the smallest pool: of one that nothing is in yet.
pub const MIN_POOL_WORDS: u32 = 1 << 13;

/// See the module.
#[derive(Clone, PartialEq, Eq)]
#[repr(C)]
pub struct GenerationTables {
    /// What each port belongs to.
    pub services: ServiceTable,
    /// By match id: the set of services that it reaches.
    pub reach: [u64; MAX_MATCHES as usize],
    /// The range table's root for IPv4.
    pub v4: Root,
    /// And for IPv6.
    pub v6: Root,
}
