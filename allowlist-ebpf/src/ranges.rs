//! A source in the range table: loads from one map value, and no call.
//!
//! The search is `allowlist_common::ranges`'; this file gives it the memory behind the tables.

use allowlist_common::abi::{GenerationTables, Grant, MAX_MATCHES, POOL_LEAST};
use allowlist_common::packet::Address;
use allowlist_common::ranges::{self, BLOCK, Pool, QUAD};
use aya_ebpf::Global;

/// The words of the pool behind each generation's tables.
#[unsafe(no_mangle)]
static POOL: Global<u32> = Global::new(POOL_LEAST);

/// What a source may reach, by the range table behind `tables`.
#[inline(always)]
pub(crate) fn grant(tables: &'static GenerationTables, source: &Address) -> Grant {
    let pool = After {
        start: core::ptr::from_ref(tables).wrapping_add(1).cast(),
        words: POOL.load(),
    };
    let id = match *source {
        Address::V4(address) => {
            let root = tables.v4[ranges::root_v4(address)];
            ranges::find_v4(root, address, &pool)
        }
        Address::V6(address) => {
            let root = tables.v6[ranges::root_v6(address[0])];
            ranges::find_v6(root, address, &pool)
        }
    };
    // Nobody's id reaches nothing: to tell it from the others would be one more guess.
    let services = tables.reach[(id % MAX_MATCHES as u16) as usize];
    Grant::new(services, u32::from(id))
}

/// The words that follow the tables in their map value.
#[derive(Clone, Copy)]
struct After {
    start: *const u64,
    words: u32,
}

impl Pool for After {
    #[inline(always)]
    fn word(&self, place: u32) -> Option<u64> {
        let place = alone(place);
        // VERIFIER: compared with a constant of this load, so it knows how far the place reaches.
        if place >= self.words {
            return None;
        }
        // SAFETY: the value that the tables are in has so many words behind them.
        Some(unsafe { *self.start.add(place as usize) })
    }

    #[inline(always)]
    fn half(&self, place: u32) -> Option<u32> {
        let place = alone(place);
        if place >= self.words * 2 {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { *self.start.cast::<u32>().add(place as usize) })
    }
    #[inline(always)]
    fn quad(&self, place: u32) -> Option<&[u32; QUAD]> {
        if place >= self.words * 2 / QUAD as u32 {
            return None;
        }
        // SAFETY: as above; words are aligned for it.
        Some(unsafe { &*self.start.cast::<[u32; QUAD]>().add(place as usize) })
    }

    #[inline(always)]
    fn block(&self, place: u32) -> Option<&[u64; BLOCK]> {
        if place >= self.words / BLOCK as u32 {
            return None;
        }
        // SAFETY: as above; words are aligned for it.
        Some(unsafe { &*self.start.cast::<[u64; BLOCK]>().add(place as usize) })
    }
}

/// The same number, which nothing else has.
///
/// VERIFIER: one that is kept for later as well may be compared in one place and added in another; Linux 6.1 does not
/// know that they are the same.
#[inline(always)]
fn alone(place: u32) -> u32 {
    // SAFETY: of a variable.
    unsafe { (&raw const place).read_volatile() }
}
