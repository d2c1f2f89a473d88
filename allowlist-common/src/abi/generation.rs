//! The tables of one generation except the tries: services, grants, and the roots of the range table.
//!
//! One map value, so that a packet needs one map lookup. The pool, which has the chunks of the range table, follows the
//! tables in the same value. It comes last, because its size differs between maps.

use super::{Grant, MAX_MATCHES, ServiceTable};
use crate::packet::Address;
use crate::ranges::{MatchId, Pool, ROOT_BITS, v4, v6};
use crate::volatile::{VolatileRef, field};

/// A root of the range table, indexed by the first bits of an address; [`crate::ranges`] defines the entries.
pub type Root = [u32; 1 << ROOT_BITS];

/// The minimum size of a pool, in words of 8 bytes: the pool of an empty range table has this size.
pub const MIN_POOL_WORDS: u32 = 1 << 13;

/// The tables of one generation; its pool follows in the same map value.
#[derive(Clone, PartialEq, Eq)]
#[repr(C)]
pub struct GenerationTables {
    /// The services of ports and protocols.
    pub services: ServiceTable,
    /// The set of kernel services that source addresses may reach, by their match id.
    pub reach: [u64; MAX_MATCHES as usize],
    /// The IPv4 root of the range table.
    pub v4: Root,
    /// The IPv6 root of the range table.
    pub v6: Root,
}

impl<'m> VolatileRef<'m, GenerationTables> {
    /// Returns the services of ports and protocols.
    #[inline(always)]
    pub const fn services(self) -> VolatileRef<'m, ServiceTable> {
        field!(self, services)
    }

    /// Returns the match id of a source address, by a lookup in the range table with its `pool`; 0 for no match.
    #[inline(always)]
    pub fn find<P: Pool>(self, source: &Address, pool: &P) -> MatchId {
        match *source {
            Address::V4(address) => {
                let root = field!(self, v4).at(v4::root(address)).load();
                v4::find(root, address, pool)
            }
            Address::V6(address) => {
                let root = field!(self, v6).at(v6::root(address[0])).load();
                v6::find(root, address, pool)
            }
        }
    }

    /// Returns the [`Grant`] for a match id: the id, and the services that its addresses may reach.
    #[inline(always)]
    pub fn grant(self, id: MatchId) -> Grant {
        let services = field!(self, reach)
            .at((id % MAX_MATCHES as u16) as usize)
            .load();
        Grant::new(services, u32::from(id))
    }
}
