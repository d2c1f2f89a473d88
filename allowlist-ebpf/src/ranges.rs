//! Source lookup in the range table: loads from one map value, without a helper call.
//!
//! `allowlist_common::ranges` has the search; this file gives it the pool after the tables.

use allowlist_common::abi::{GenerationTables, Grant, MAX_MATCHES, MIN_POOL_WORDS};
use allowlist_common::packet::Address;
use allowlist_common::ranges::v6::BLOCK_WORDS;
use allowlist_common::ranges::{Pool, v4, v6};
use aya_ebpf::Global;

/// The size of the pool after each generation's tables, in words.
#[unsafe(no_mangle)]
static POOL: Global<u32> = Global::new(MIN_POOL_WORDS);

/// Returns the services that a source may reach, by a lookup in the range table in and after `tables`.
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
    // Id 0 reaches no service; testing for it would be one more branch to mispredict.
    let services = tables.reach[(id % MAX_MATCHES as u16) as usize];
    Grant::new(services, u32::from(id))
}

/// The pool: the words after the tables in the same map value.
#[derive(Clone, Copy)]
struct TrailingPool {
    start: *const u64,
    words: u32,
}

impl Pool for TrailingPool {
    #[inline(always)]
    fn u64_at(&self, index: u32) -> Option<u64> {
        // VERIFIER: compared with a load-time constant, so the verifier knows the index's bound.
        if index >= self.words {
            return None;
        }
        // SAFETY: the map value has `words` words after the tables.
        Some(unsafe { *self.start.add(index as usize) })
    }

    #[inline(always)]
    fn u32_at(&self, index: u32) -> Option<u32> {
        if index >= self.words * 2 {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { *self.start.cast::<u32>().add(index as usize) })
    }

    #[inline(always)]
    fn u64x4_at(&self, index: u32) -> Option<&[u64; 4]> {
        if index >= self.words / 4 {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { &*self.start.cast::<[u64; 4]>().add(index as usize) })
    }

    #[inline(always)]
    fn cache_line_at(&self, index: u32) -> Option<&[u64; BLOCK_WORDS]> {
        if index >= self.words / BLOCK_WORDS as u32 {
            return None;
        }
        // SAFETY: as above; an array of words has the alignment of a word.
        Some(unsafe { &*self.start.cast::<[u64; BLOCK_WORDS]>().add(index as usize) })
    }

    #[inline(always)]
    fn prefetch(&self, index: u32) {
        if index < self.words * 2 {
            // SAFETY: as above. Volatile, because the compiler would remove an unused load.
            let _ = unsafe { self.start.cast::<u32>().add(index as usize).read_volatile() };
        }
    }
}
