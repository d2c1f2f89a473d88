//! The IPv4 part of the range table.
//!
//! Except in the largest lists, nearly all chunks are a [`SmallChunk`] of up to 6 range starts, which a lookup compares
//! at once by SWAR (SIMD within a register). A root entry without range starts also has a small chunk, which all such
//! entries with the same match id share, so that the lookup needs no branch for them.
//!
//! A large chunk begins with a *head*: the number of ranges after the first, and the first range's match id. One entry
//! per further range follows: the lower 16 bits of its first address, and its match id in the lowest 16 bits. A binary
//! search finds the range.

use super::{MatchId, Pool, ROOT_BITS, opaque, partition_point};
use crate::volatile::{VolatileRef, field};

/// The flag in a root entry for a large chunk, whose index is in units of 4 bytes. Without it, the index is in units of
/// [`SmallChunk`].
///
/// The lowest bit, which is the cheapest for the kernel program to test.
pub const LARGE_CHUNK: u32 = 1;
/// The bit position of the chunk's index in a root entry.
pub const ROOT_SHIFT: u32 = 1;
/// The number of match id bits in an entry of a large chunk.
pub const ID_BITS: u32 = 16;
/// The maximum number of range starts in a [`SmallChunk`].
pub const SMALL_CHUNK_RANGES: usize = 6;

/// A chunk of up to 6 ranges after the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SmallChunk {
    /// The range starts in ascending order, three per word, in lanes of [`LANE_BITS`] bits. Unused lanes come first and
    /// are 0, so that a lookup always counts them as started.
    pub starts: [u64; 2],
    /// The match id of the first range, then an id for each lane, then one unused id. An unused lane has the id of the
    /// first range.
    pub ids: [MatchId; 8],
}

/// The number of bits of a lane in [`SmallChunk::starts`]: 16 bits of address, and 5 zero bits.
pub const LANE_BITS: u32 = 21;
/// The number 1 in each lane.
const LANE_ONES: u64 = 1 | 1 << LANE_BITS | 1 << (2 * LANE_BITS);
/// The most significant bit of each lane. Set in the minuend, it remains set if the subtrahend is not greater.
const LANE_MSB: u64 = LANE_ONES << (LANE_BITS - 1);

impl<'m> VolatileRef<'m, SmallChunk> {
    /// Reinterprets four words of a pool as a small chunk.
    #[inline(always)]
    #[expect(
        unsafe_code,
        reason = "reinterprets the last two words as eight 16-bit ids"
    )]
    const fn from_words(words: VolatileRef<'m, [u64; 4]>) -> Self {
        // SAFETY: same size and no greater alignment; little-endian, as in the kernel.
        unsafe { Self::new(words.pointer().cast()) }
    }

    /// Returns the match id of the range of this chunk that contains an address.
    #[inline(always)]
    fn find(self, address: u32) -> MatchId {
        let address = (u64::from(address & 0xffff) * LANE_ONES) | LANE_MSB;
        let starts = field!(self, starts);
        let started = [
            address.wrapping_sub(starts.at(0).load()) & LANE_MSB,
            address.wrapping_sub(starts.at(1).load()) & LANE_MSB,
        ];
        // Each lane of the sum counts two starts; the multiplication adds up the three lanes in the uppermost one.
        let started = (started[0] >> (LANE_BITS - 1)) + (started[1] >> (LANE_BITS - 1));
        let count = started.wrapping_mul(LANE_ONES) >> (2 * LANE_BITS);
        field!(self, ids).at((count & 7) as usize).load()
    }
}

/// Returns the index of the root entry for an address.
#[inline(always)]
pub const fn root(address: u32) -> usize {
    (address >> (32 - ROOT_BITS)) as usize
}

/// Returns the match id of an IPv4 address, from its `root` entry and the pool; 0 for no match.
#[inline(always)]
pub fn find<P: Pool>(root: u32, address: u32, pool: &P) -> MatchId {
    let index = root >> ROOT_SHIFT;
    if root & LARGE_CHUNK == 0 {
        match pool.u64x4_at(index) {
            Some(words) => VolatileRef::<SmallChunk>::from_words(words).find(address),
            None => 0,
        }
    } else {
        search(index, address, pool).unwrap_or(0)
    }
}

#[inline(always)]
fn search<P: Pool>(head: u32, address: u32, pool: &P) -> Option<MatchId> {
    // The number of entries in a cache line. Prefetches the next two lines of the chunk.
    const LINE: u32 = 16;
    pool.prefetch(opaque(head + LINE));
    pool.prefetch(opaque(head + 2 * LINE));
    let start = i64::from(address & 0xffff);
    let count = pool.u32_at(opaque(head))? >> ID_BITS;
    let before = partition_point(count, |number| {
        let begins = i64::from(pool.u32_at(opaque(head + number))? >> ID_BITS);
        Some(begins - start - 1)
    })?;
    Some(pool.u32_at(opaque(head + before))? as MatchId)
}
