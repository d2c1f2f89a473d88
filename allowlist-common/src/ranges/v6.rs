//! The range table's IPv6 half.
//!
//! Of IPv6 far more ranges begin with the same 16 bits than of IPv4, and mostly close together. So a chunk is a *node*: an
//! index by some of the next bits, those that tell its ranges apart, into *blocks*, each a cache line: 7 numbers, and a
//! word that says how far each one reaches. A number is where a range begins, without the 16 bits that the root has used,
//! and its id in the lowest bits; it tells networks (/64) apart. It reaches as far as the next one begins, or 2^n networks
//! and nobody's behind them, which spares most prefixes a number for their end. What one place of an index node to is one
//! block, which begins with the range that goes on there; where more ranges begin than it has room for, it is a node again,
//! of that place's addresses.
//! All addresses outside of what an index reaches share its last place. A chunk of few ranges is a block, and one of none the id.
//!
//! Where ranges begin inside a network, its number is *deep*: twice there, and the two ids together are the place of a
//! *host chunk*: a word of ids and where the up to 3 ranges begin; or for more of them a head with their count and
//! the id before them, where they begin, and then their ids, four in a word.

use super::{MatchId, Pool, ROOT_BITS, opaque, partition_point, sign_mask};

/// In a root: a place follows, and not an id.
///
/// The lowest bit, since a test of it costs a kernel program no more than that.
pub const CHUNK: u32 = 1;
/// With a place: it is a node's, and not a block's; in units of blocks both.
pub const NODE: u32 = 1 << 1;
/// Where the place, or the id, begins in a root or in a place of an index.
pub const PLACE_SHIFT: u32 = 2;

/// Words of a block.
pub const BLOCK_WORDS: usize = 8;
/// Numbers of a block. The word behind them has a byte for each, from the lowest on: how far it reaches.
pub const BLOCK_ENTRIES: usize = BLOCK_WORDS - 1;
/// How far a number reaches, as the `n` of 2^n networks: as far as the next one.
pub const UNTIL_NEXT: u8 = 63;
/// Bits of an id in a number.
pub const ID_BITS: u32 = 14;
/// In an id: the other bits are part of a place in the pool.
pub const HOST_LEVEL: MatchId = 1 << (ID_BITS - 1);

/// Halves before a node's index: two words. The first is where the index begins, by its scale. The second is how far
/// an address is shifted to be on that scale and, in its upper half, which place of the index is the last.
pub const NODE_HEAD: u32 = 4;
/// Places of an index, at least, but for the last one.
pub const MIN_NODE_SLOTS: u64 = 16;

/// In the first word of a host chunk: it is a longer one.
pub const LARGE_HOST_CHUNK: u64 = 1 << 63;
/// Bits of an id, in a host chunk.
pub const HOST_ID_BITS: u32 = 16;
/// Ranges that begin in a short host chunk, at most.
pub const SMALL_HOST_CHUNK_RANGES: usize = 3;

/// Bits of an address that tell networks apart within a chunk.
pub const NETWORK_BITS: u32 = 64 - ROOT_BITS;
const NETWORK: u64 = (1 << NETWORK_BITS) - 1;

/// The index of a network in its root.
#[inline(always)]
pub const fn root(network: u64) -> usize {
    (network >> NETWORK_BITS) as usize
}

/// The number of a range that begins with a network.
#[inline(always)]
pub const fn entry(network: u64, id: MatchId) -> u64 {
    (network & NETWORK) << ID_BITS | id as u64
}

/// The id of an address, by what the root holds for it.
#[inline(always)]
pub fn find<P: Pool>(root: u32, address: [u64; 2], pool: &P) -> MatchId {
    if root & CHUNK == 0 {
        return (root >> PLACE_SHIFT) as MatchId;
    }
    search(root, address, pool).unwrap_or(0)
}

#[inline(always)]
fn search<P: Pool>(root: u32, [network, host]: [u64; 2], pool: &P) -> Option<MatchId> {
    let mut node = root;
    // As many as there can be: each tells 4 bits apart at least, and the last of them only one of a network's bits.
    macro_rules! levels {
        ($($level:literal)*) => {
            'found: {
                $(
                    let _ = $level;
                    if node & NODE == 0 {
                        break 'found;
                    }
                    node = child(node >> PLACE_SHIFT, network, pool)?;
                )*
            }
        };
    }
    levels!(1 2 3 4 5 6 7 8 9 10 11 12);
    let block = pool.cache_line_at(node >> PLACE_SHIFT)?;
    let last = upper_bound(block, network);
    let id = id_at(block, last) & coverage_mask(block, last, network);
    if id & HOST_LEVEL == 0 {
        return Some(id);
    }
    let first = id_at(block, last.wrapping_sub(1));
    search_host_chunk(host_chunk_index(first, id), host, pool)
}

/// Where a node node to for a network.
#[inline(always)]
fn child<P: Pool>(node: u32, network: u64, pool: &P) -> Option<u32> {
    let head = pool.cache_line_at(node)?;
    let (first, shift, last) = (head[0], head[1] as u32, (head[1] >> 32).cast_signed());
    let scaled = (network & NETWORK) >> (shift & 63);
    // Before the first one is as far away as can be.
    let place = (scaled.wrapping_sub(first) & NETWORK).cast_signed();
    let before_last = place - last;
    let place = last + (before_last & i64::from(sign_mask(before_last).cast_signed()));
    let index = node
        .wrapping_mul(2 * BLOCK_WORDS as u32)
        .wrapping_add(NODE_HEAD);
    pool.u32_at(index.wrapping_add(place.cast_unsigned() as u32))
}

/// Which number of a block is the last that begins at an address or before it; the first one does.
#[inline(always)]
fn upper_bound(block: &[u64; BLOCK_WORDS], network: u64) -> u32 {
    // Whatever the id.
    let after = (entry(network, (1 << ID_BITS) - 1) + 1).cast_signed();
    // Of two numbers of 62 bits: -1 or 0. Not 63, as in `sign_mask`.
    let begun = |place: usize| (block[place].cast_signed().wrapping_sub(after)) >> 62;
    // In pairs, so that no sum waits for all of those before it.
    let pairs = [
        begun(1).wrapping_add(begun(2)),
        begun(3).wrapping_add(begun(4)),
        begun(5).wrapping_add(begun(6)),
    ];
    let sum = pairs[0].wrapping_add(pairs[1]).wrapping_add(pairs[2]);
    (sum.cast_unsigned() as u32).wrapping_neg()
}

/// The id of a block's number.
#[inline(always)]
const fn id_at(block: &[u64; BLOCK_WORDS], place: u32) -> MatchId {
    block[place as usize % BLOCK_WORDS] as MatchId & ((1 << ID_BITS) - 1)
}

/// All bits if a block's number reaches as far as a network, and else none.
#[inline(always)]
fn coverage_mask(block: &[u64; BLOCK_WORDS], place: u32, network: u64) -> MatchId {
    let begins = block[place as usize % BLOCK_WORDS] >> ID_BITS;
    let reaches = block[BLOCK_ENTRIES] >> (place % BLOCK_WORDS as u32 * u8::BITS);
    let behind = (network & NETWORK).wrapping_sub(begins) >> (reaches & 63);
    sign_mask(behind.cast_signed().wrapping_sub(1)) as MatchId
}

/// The place that the ids of a deep number's two halves make together, in quads.
#[inline(always)]
const fn host_chunk_index(first: MatchId, second: MatchId) -> u32 {
    ((first & !HOST_LEVEL) as u32) << (ID_BITS - 1) | (second & !HOST_LEVEL) as u32
}

/// The ids that together make a place; `None` if it is too far.
pub const fn host_level_ids(place: u32) -> Option<(MatchId, MatchId)> {
    let first = place >> (ID_BITS - 1);
    if first >= HOST_LEVEL as u32 {
        return None;
    }
    Some((
        first as MatchId | HOST_LEVEL,
        (place as MatchId & (HOST_LEVEL - 1)) | HOST_LEVEL,
    ))
}

/// The id of a host in a deep network.
#[inline(always)]
fn search_host_chunk<P: Pool>(place: u32, host: u64, pool: &P) -> Option<MatchId> {
    let chunk = pool.u64x4_at(place)?;
    let first = chunk[0];
    if first & LARGE_HOST_CHUNK == 0 {
        let begun = |place: usize| sign_mask(!difference(host, chunk[place]));
        let count = begun(1)
            .wrapping_add(begun(2))
            .wrapping_add(begun(3))
            .wrapping_neg();
        return Some((first >> (count % 4 * HOST_ID_BITS)) as MatchId);
    }
    let head = place.wrapping_mul(4);
    let count = (first >> HOST_ID_BITS) as u32;
    let before = partition_point(count, |number| {
        Some(!difference(
            host,
            pool.u64_at(opaque(head.wrapping_add(number)))?,
        ))
    })?;
    if before == 0 {
        return Some(first as MatchId);
    }
    let place = before - 1;
    let ids = pool.u64_at(head.wrapping_add(1 + count + place / 4))?;
    Some((ids >> (place % 4 * HOST_ID_BITS)) as MatchId)
}

/// A number that is negative where `a - b` is, by halves, since a difference of two of 64 bits has 65.
#[inline(always)]
const fn difference(a: u64, b: u64) -> i64 {
    const HALF: u64 = 0xffff_ffff;
    let high = (a >> 32).cast_signed() - (b >> 32).cast_signed();
    let low = (a & HALF).cast_signed() - (b & HALF).cast_signed();
    high + (low >> 32) // the lower halves take 1 or nothing
}
