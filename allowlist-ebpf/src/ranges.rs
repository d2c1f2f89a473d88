//! Source lookup in the range table: loads from one map value, without a helper call.
//!
//! `allowlist_common::ranges` has the search; this file gives it the pool after the tables.

use allowlist_common::abi::{GenerationTables, Grant, MIN_POOL_WORDS};
use allowlist_common::packet::Address;
use allowlist_common::ranges::v6::{BLOCK_WORDS, Block};
use allowlist_common::ranges::{MatchId, Pool};
use allowlist_common::volatile::{VolatileRef, Word};
use aya_ebpf::Global;

/// The size of the pool after each generation's tables, in words of 8 bytes.
#[unsafe(no_mangle)]
static POOL: Global<u32> = Global::new(MIN_POOL_WORDS);

/// Returns the services that a source address may reach, by a lookup in the range table in `tables` and the pool after
/// it.
#[inline(always)]
pub fn grant(tables: VolatileRef<'static, GenerationTables>, source: &Address) -> Grant {
    // Id 0 reaches no service; testing for it would be one more branch to mispredict.
    tables.grant(find(tables, source))
}

/// Returns the match id of a source address.
#[inline(always)]
pub fn find(tables: VolatileRef<'static, GenerationTables>, source: &Address) -> MatchId {
    let pool = TrailingPool {
        start: tables.pointer().wrapping_add(1).cast(),
        words: POOL.load(),
    };
    tables.find(source, &pool)
}

/// The pool: the words after the tables in the same map value.
#[derive(Clone, Copy)]
struct TrailingPool {
    start: *const u64,
    words: u32,
}

impl TrailingPool {
    /// Returns a reference to the value at an index in units of `T`, below `count`; `None` if it is out of bounds.
    #[inline(always)]
    fn at<T>(&self, index: u32, count: u32) -> Option<VolatileRef<'_, T>> {
        // VERIFIER: compared with a load-time constant, so the verifier knows the index's bound.
        if index >= count {
            return None;
        }
        // SAFETY: the map value has `words` words after the tables, and `count` is the number of `T` in them. `T` is an
        // integer or an array of words, and has no greater alignment than a word.
        Some(unsafe { VolatileRef::new(self.start.cast::<T>().add(index as usize)) })
    }

    #[inline(always)]
    fn load<T: Word>(&self, index: u32, count: u32) -> Option<T> {
        self.at(index, count).map(VolatileRef::load)
    }
}

impl Pool for TrailingPool {
    #[inline(always)]
    fn u64_at(&self, index: u32) -> Option<u64> {
        self.load(index, self.words)
    }

    #[inline(always)]
    fn u32_at(&self, index: u32) -> Option<u32> {
        self.load(index, self.words * 2)
    }

    #[inline(always)]
    fn u64x4_at(&self, index: u32) -> Option<VolatileRef<'_, [u64; 4]>> {
        self.at(index, self.words / 4)
    }

    #[inline(always)]
    fn cache_line_at(&self, index: u32) -> Option<VolatileRef<'_, Block>> {
        self.at(index, self.words / BLOCK_WORDS as u32)
    }

    #[inline(always)]
    fn prefetch(&self, index: u32) {
        // The compiler keeps a volatile load whose result is not used.
        let _: Option<u32> = self.u32_at(index);
    }
}
