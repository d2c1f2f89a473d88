//! A source in the range table: loads from one map value, and no call.
//!
//! The search is `allowlist_common::ranges`'; this file gives it the memory behind the tables.

use allowlist_common::abi::{GenerationTables, Grant, MAX_MATCHES, MIN_POOL_WORDS};
use allowlist_common::packet::Address;
use allowlist_common::ranges::v6::BLOCK_WORDS;
use allowlist_common::ranges::{Pool, v4, v6};
use aya_ebpf::Global;

/// The words of the pool behind each generation's tables.
#[unsafe(no_mangle)]
static POOL: Global<u32> = Global::new(MIN_POOL_WORDS);

/// What a source may reach, by the range table behind `tables`.
#[inline(always)]
pub(crate) fn grant(tables: &'static GenerationTables, source: &Address) -> Grant {
    let pool = TrailingPool {
        start: core::ptr::from_ref(tables).wrapping_add(1).cast(),
        words: POOL.load(),
    };
    let id = match *source {
        Address::V4(address) => {
            let root = tables.v4[v4::root(address)];
            v4::find(root, address, &pool)
        }
        Address::V6(address) => {
            let root = tables.v6[v6::root(address[0])];
            v6::find(root, address, &pool)
        }
    };
    // Nobody's id reaches nothing: to tell it from the others would be one more guess.
    let services = tables.reach[(id % MAX_MATCHES as u16) as usize];
    Grant::new(services, u32::from(id))
}

/// The words that follow the tables in their map value.
#[derive(Clone, Copy)]
struct TrailingPool {
    start: *const u64,
    words: u32,
}

impl Pool for TrailingPool {
    #[inline(always)]
    fn u64_at(&self, place: u32) -> Option<u64> {
        // VERIFIER: compared with a constant of this load, so it knows how far the place reaches.
        if place >= self.words {
            return None;
        }
        // SAFETY: the value that the tables are in has so many words behind them.
        Some(unsafe { *self.start.add(place as usize) })
    }

    #[inline(always)]
    fn u32_at(&self, place: u32) -> Option<u32> {
        if place >= self.words * 2 {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { *self.start.cast::<u32>().add(place as usize) })
    }

    #[inline(always)]
    fn u64x4_at(&self, place: u32) -> Option<&[u64; 4]> {
        if place >= self.words / 4 {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { &*self.start.cast::<[u64; 4]>().add(place as usize) })
    }

    #[inline(always)]
    fn cache_line_at(&self, place: u32) -> Option<&[u64; BLOCK_WORDS]> {
        if place >= self.words / BLOCK_WORDS as u32 {
            return None;
        }
        // SAFETY: as above; words are aligned for it.
        Some(unsafe { &*self.start.cast::<[u64; BLOCK_WORDS]>().add(place as usize) })
    }

    #[inline(always)]
    fn prefetch(&self, place: u32) {
        if place < self.words * 2 {
            // SAFETY: as above. Volatile, since what is there is not looked at.
            let _ = unsafe { self.start.cast::<u32>().add(place as usize).read_volatile() };
        }
    }
}
