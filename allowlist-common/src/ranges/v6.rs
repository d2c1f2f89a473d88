//! The IPv6 part of the range table.
//!
//! Far more IPv6 ranges than IPv4 ranges share their first 16 bits, and most are close together. A chunk is therefore a
//! small tree:
//!
//! - A *block* is one cache line: 7 entries, and one word with a *coverage byte* for each. An entry has the start of a
//!   range, in units of networks (/64) and without the 16 bits of the root, and the match id in its lowest bits. The
//!   coverage byte encodes how many /64 networks the entry covers: all up to the next entry, or a power of two, after
//!   which networks without a match follow. Most prefixes therefore need no second entry for their end.
//! - A *node* is an index of blocks by the address bits that distinguish its ranges. An index slot leads to a block,
//!   which begins with the range that covers the slot's start, or to another node if the slot has more ranges than a
//!   block. All addresses outside of the indexed interval share the last slot.
//!
//! The root entry of a chunk with few ranges leads to a block, and that of a chunk with one range is the match id.
//!
//! A network in which ranges begin has a *host-level* entry: two entries, whose ids together are the index of a *host
//! chunk*. A small host chunk is one word of ids and up to 3 range starts. A large one has a head with the number of
//! ranges and the first id, then the range starts, then their ids, four per word.

use super::{MatchId, Pool, ROOT_BITS, opaque, partition_point, sign_mask};
use crate::volatile::VolatileRef;

/// The flag in a root entry for a block or a node; without it, the entry is a match id.
///
/// The lowest bit, which is the cheapest for the kernel program to test.
pub const CHUNK: u32 = 1;
/// The flag in a root entry or an index slot for a node; without it, the slot leads to a block. Both have an index in
/// units of blocks.
pub const NODE: u32 = 1 << 1;
/// The bit position of the index, or of the match id, in a root entry or an index slot.
pub const PLACE_SHIFT: u32 = 2;

/// The size of a block in words.
pub const BLOCK_WORDS: usize = 8;
/// A block, or the head of a node: one cache line.
pub type Block = [u64; BLOCK_WORDS];
/// The number of entries in a block. The word after the entries has the coverage byte of each, from the lowest byte on.
pub const BLOCK_ENTRIES: usize = BLOCK_WORDS - 1;
/// The coverage byte of an entry that covers all /64 networks up to the next entry.
///
/// A coverage byte encodes how many /64 networks an entry covers: any other value `n` stands for 2^n networks.
pub const UNTIL_NEXT: u8 = 63;
/// The number of match id bits in an entry.
pub const ID_BITS: u32 = 14;
/// The flag in an id for a host-level entry: the other bits are half of the index of a host chunk.
pub const HOST_LEVEL: MatchId = 1 << (ID_BITS - 1);

/// The size of a node's head in units of 4 bytes: two words. The first is the scaled start of the index. The second has
/// the shift that scales an address, and in its upper half the number of the last slot.
pub const NODE_HEAD: u32 = 4;
/// The minimum number of index slots, without the last one.
pub const MIN_NODE_SLOTS: u64 = 16;

/// The flag in the first word of a large host chunk.
pub const LARGE_HOST_CHUNK: u64 = 1 << 63;
/// The number of match id bits in a host chunk.
pub const HOST_ID_BITS: u32 = 16;
/// The maximum number of range starts in a small host chunk.
pub const SMALL_HOST_CHUNK_RANGES: usize = 3;

/// The number of address bits that distinguish the networks of a chunk.
pub const NETWORK_BITS: u32 = 64 - ROOT_BITS;
const NETWORK: u64 = (1 << NETWORK_BITS) - 1;

/// Returns the index of the root entry for a network, the upper 64 bits of an address.
#[inline(always)]
pub const fn root(network: u64) -> usize {
    (network >> NETWORK_BITS) as usize
}

/// Returns the block entry of a range that begins with `network` and has the match id `id`.
#[inline(always)]
pub const fn entry(network: u64, id: MatchId) -> u64 {
    (network & NETWORK) << ID_BITS | id as u64
}

/// Returns the match id of an IPv6 address, from its `root` entry and the pool; 0 for no match.
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
    // The maximum depth: each level but the last resolves at least 4 of the 48 network bits.
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
    let last = last_started(block, network);
    let entry = entry_at(block, last);
    let id = id_of(entry) & coverage_mask(block, last, entry, network);
    if id & HOST_LEVEL == 0 {
        return Some(id);
    }
    let first = id_of(entry_at(block, last.wrapping_sub(1)));
    search_host_chunk(host_chunk_index(first, id), host, pool)
}

/// Returns the contents of a node's index slot for a network; `None` if the node or the index slot is out of the pool's
/// bounds.
#[inline(always)]
fn child<P: Pool>(node: u32, network: u64, pool: &P) -> Option<u32> {
    let head = pool.cache_line_at(node)?;
    let (first, second) = (head.at(0).load(), head.at(1).load());
    let (shift, last) = (second as u32, (second >> 32).cast_signed());
    let scaled = (network & NETWORK) >> (shift & 63);
    // A network before the first slot wraps around, and is far behind the last one.
    let slot = (scaled.wrapping_sub(first) & NETWORK).cast_signed();
    let before_last = slot - last;
    let slot = last + (before_last & i64::from(sign_mask(before_last).cast_signed()));
    let index = node
        .wrapping_mul(2 * BLOCK_WORDS as u32)
        .wrapping_add(NODE_HEAD);
    pool.u32_at(index.wrapping_add(slot.cast_unsigned() as u32))
}

/// Returns the index of a block's last entry that begins at a network or before it. The first entry always does.
#[inline(always)]
fn last_started(block: VolatileRef<'_, Block>, network: u64) -> u32 {
    // Greater than the entry of the same network with any id.
    let after = (entry(network, (1 << ID_BITS) - 1) + 1).cast_signed();
    // -1 or 0, because both numbers have 62 bits. Not a shift by 63, for the reason in `sign_mask`.
    let started = |index| (block.at(index).load().cast_signed().wrapping_sub(after)) >> 62;
    // Summed in pairs, which shortens the dependency chain.
    let pairs = [
        started(1).wrapping_add(started(2)),
        started(3).wrapping_add(started(4)),
        started(5).wrapping_add(started(6)),
    ];
    let sum = pairs[0].wrapping_add(pairs[1]).wrapping_add(pairs[2]);
    (sum.cast_unsigned() as u32).wrapping_neg()
}

/// Returns the entry at an index of a block.
#[inline(always)]
fn entry_at(block: VolatileRef<'_, Block>, index: u32) -> u64 {
    block.at(index as usize % BLOCK_WORDS).load()
}

/// Returns the match id of an entry of a block.
#[inline(always)]
const fn id_of(entry: u64) -> MatchId {
    entry as MatchId & ((1 << ID_BITS) - 1)
}

/// Returns a mask for the id of `entry`, which is at `index` of a block: all bits are set if the entry covers
/// `network`, else none.
#[inline(always)]
fn coverage_mask(block: VolatileRef<'_, Block>, index: u32, entry: u64, network: u64) -> MatchId {
    let coverage = block.at(BLOCK_ENTRIES).load() >> (index % BLOCK_WORDS as u32 * u8::BITS);
    let behind = (network & NETWORK).wrapping_sub(entry >> ID_BITS) >> (coverage & 63);
    sign_mask(behind.cast_signed().wrapping_sub(1)) as MatchId
}

/// Returns the index of a host chunk from the two ids of a host-level entry, in units of 32 bytes.
#[inline(always)]
const fn host_chunk_index(first: MatchId, second: MatchId) -> u32 {
    ((first & !HOST_LEVEL) as u32) << (ID_BITS - 1) | (second & !HOST_LEVEL) as u32
}

/// Returns the two ids that encode the index of a host chunk; `None` if the index is too large.
pub const fn host_level_ids(index: u32) -> Option<(MatchId, MatchId)> {
    let first = index >> (ID_BITS - 1);
    if first >= HOST_LEVEL as u32 {
        return None;
    }
    Some((
        first as MatchId | HOST_LEVEL,
        (index as MatchId & (HOST_LEVEL - 1)) | HOST_LEVEL,
    ))
}

/// Returns the match id of a host, the lower 64 bits of an address, in the host chunk at `index`; `None` if it is out
/// of the pool's bounds.
#[inline(always)]
fn search_host_chunk<P: Pool>(index: u32, host: u64, pool: &P) -> Option<MatchId> {
    let chunk = pool.u64x4_at(index)?;
    let first = chunk.at(0).load();
    if first & LARGE_HOST_CHUNK == 0 {
        let started = |index| sign_mask(!difference(host, chunk.at(index).load()));
        let count = started(1)
            .wrapping_add(started(2))
            .wrapping_add(started(3))
            .wrapping_neg();
        return Some((first >> (count % 4 * HOST_ID_BITS)) as MatchId);
    }
    let head = index.wrapping_mul(4);
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
    let index = before - 1;
    let ids = pool.u64_at(head.wrapping_add(1 + count + index / 4))?;
    Some((ids >> (index % 4 * HOST_ID_BITS)) as MatchId)
}

/// Returns a number with the sign of `a - b`, computed from 32-bit halves, because the difference has 65 bits.
#[inline(always)]
const fn difference(a: u64, b: u64) -> i64 {
    const HALF: u64 = 0xffff_ffff;
    let high = (a >> 32).cast_signed() - (b >> 32).cast_signed();
    let low = (a & HALF).cast_signed() - (b & HALF).cast_signed();
    high + (low >> 32) // the borrow of the lower halves
}
