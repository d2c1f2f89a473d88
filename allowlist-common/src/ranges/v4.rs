//! The range table's IPv4 half.
//!
//! Nearly all chunks of all but the largest lists are a [`SmallChunk`]: up to 6 ranges begin there, and all of them are looked at
//! at once. The addresses of a place where none does have a six too, one for all of the same id, so there is nothing to guess.
//!
//! A longer chunk begins with a *head*, its count of ranges after the first and the first one's id. What follows is one
//! number a range: where it begins, without the 16 bits that the root has used, and its id in the lowest 16 bits. The
//! search halves the chunk until the range is found.

use super::{MatchId, Pool, ROOT_BITS, opaque, partition_point};

/// In a root: the chunk is a longer one, and its place is in halves. Else it is a six, and its place in those.
///
/// The lowest bit, since a test of it costs a kernel program no more than that.
pub const LARGE_CHUNK: u32 = 1;
/// Where the place begins in a root.
pub const ROOT_SHIFT: u32 = 1;
/// Bits of an id, in a longer chunk's numbers.
pub const ID_BITS: u32 = 16;
/// Ranges that begin in a [`SmallChunk`], at most.
pub const SMALL_CHUNK_RANGES: usize = 6;

/// A chunk of up to 6 ranges after the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SmallChunk {
    /// Where each begins, three to a word, [`LANE_BITS`] bits each. Those that are not needed begin with the chunk.
    pub starts: [u64; 2],
    /// The id before the first of these begins, then that of each, then what is not looked at.
    pub ids: [MatchId; 8],
}

/// Bits of a start in [`SmallChunk::starts`]: 16, and 5 that are 0.
pub const LANE_BITS: u32 = 21;
/// A number in each lane.
const LANE_ONES: u64 = 1 | 1 << LANE_BITS | 1 << (2 * LANE_BITS);
/// The uppermost bit of each lane. It is still there after a subtraction of what is not more than the rest.
const LANE_MSB: u64 = LANE_ONES << (LANE_BITS - 1);

impl SmallChunk {
    /// A quad of a pool as a six.
    #[inline(always)]
    #[expect(
        unsafe_code,
        reason = "four numbers of 64 bits as two, and eight of 16"
    )]
    const fn of(quad: &[u64; 4]) -> &Self {
        // SAFETY: as large, no more aligned, and any bits are one; little-endian, as the kernel's program reads it.
        unsafe { &*core::ptr::from_ref(quad).cast() }
    }

    /// The id of an address.
    #[inline(always)]
    const fn find(&self, address: u32) -> MatchId {
        let address = ((address & 0xffff) as u64 * LANE_ONES) | LANE_MSB;
        let begun = [
            address.wrapping_sub(self.starts[0]) & LANE_MSB,
            address.wrapping_sub(self.starts[1]) & LANE_MSB,
        ];
        // Of two lanes each; then the sum of the three is in the uppermost.
        let begun = (begun[0] >> (LANE_BITS - 1)) + (begun[1] >> (LANE_BITS - 1));
        let count = begun.wrapping_mul(LANE_ONES) >> (2 * LANE_BITS);
        self.ids[(count & 7) as usize]
    }
}

/// The index of an address in its root.
#[inline(always)]
pub const fn root(address: u32) -> usize {
    (address >> (32 - ROOT_BITS)) as usize
}

/// The id of an address, by what the root holds for it.
#[inline(always)]
pub fn find<P: Pool>(root: u32, address: u32, pool: &P) -> MatchId {
    let place = root >> ROOT_SHIFT;
    if root & LARGE_CHUNK == 0 {
        match pool.u64x4_at(place) {
            Some(quad) => SmallChunk::of(quad).find(address),
            None => 0,
        }
    } else {
        search(place, address, pool).unwrap_or(0)
    }
}

#[inline(always)]
fn search<P: Pool>(head: u32, address: u32, pool: &P) -> Option<MatchId> {
    // Numbers of a cache line, of which the search may come to the next and the one after that.
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
