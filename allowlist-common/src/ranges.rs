//! The range table: an address to the match id of the range that it lies in, in one load for most addresses and
//! a short search for the others.
//!
//! The prefixes of a policy cut the addresses into ranges, each with one match id. A root, indexed by an
//! address's first 16 bits, holds either the id itself, where no range ends within those addresses, or the place
//! of a *chunk* in the pool: the ranges that begin there, in order. This is the scheme of M. Zec, L. Rizzo and
//! M. Mikuc, "DXR: Towards a Billion Routing Lookups Per Second in Software" (ACM SIGCOMM CCR 42(5), 2012); the
//! layout of a chunk, and how IPv6 fits, are this file's own:
//!
//! - An IPv4 chunk begins with a *head*, its count of ranges after the first and the first one's id. What follows is
//!   one number a range: where it begins, without the 16 bits that the root has used, and its id in the lowest 16 bits.
//!   So the search needs no second array, and halves the chunk until the range is found. Most chunks have next to
//!   no ranges: up to 4 are a *quad*, without a head, whose numbers are all looked at and none of them is waited for.
//! - Of IPv6 far more ranges begin with the same 16 bits. A chunk is a tree of *blocks*, 8 numbers of 64 bits each, as
//!   much as a cache line holds: a block is read at once, and leads to the next. The root has the number of levels. In
//!   the lowest level numbers are as above, in order, and tell networks (/64) apart. In those above, a number has where
//!   its block of the next level begins, and the lowest 16 bits of the first two are where the first of these is.
//! - Where ranges begin inside a network, its number is *deep*: twice there, and the two ids together are the place of
//!   the hosts' chunk: a head as above, where the ranges begin, then their ids.
//!
//! Invariant: whatever the memory holds, a lookup ends, and reads only what [`Pool`] gives it. Knows nothing of what an
//! id means; how the memory is filled is `allowlist-user`'s.

/// What a root holds for addresses that no range tells apart, and a range's number in its lowest bits: index into
/// [`crate::abi::MATCHES`]; 0 is nobody's.
pub type MatchId = u16;

/// In a root, of which the upper bits are what this says: a place in the pool, in units of that family's numbers; else
/// the id.
///
/// The lowest bit, since a test of it costs a kernel program no more than that.
pub const CHUNK: u32 = 1;
/// In an id of IPv6: the other bits are part of a place in the pool.
pub const DEEP: MatchId = 1 << 15;
/// Address bits that the root is indexed by.
pub const ROOT_BITS: u32 = 16;
/// Bits of an id.
pub const ID_BITS: u32 = 16;

/// In a root of IPv4: the chunk is a quad, and its place is in units of those.
pub const IS_QUAD: u32 = 1 << 1;
/// Where the upper bits of a root begin.
pub const ROOT_SHIFT: u32 = 2;
/// Numbers of a quad.
pub const QUAD: usize = 4;
/// In the upper bits of a root of IPv6, above a chunk's place in blocks: levels of its tree above the lowest. There are
/// 7 at most: with them more numbers fit than a place can tell.
pub const LEVELS_SHIFT: u32 = 27;
/// Numbers of a block.
pub const BLOCK: usize = 8;

/// The memory that chunks are in. A place that does not exist ends the lookup with nobody's id.
///
/// VERIFIER: were there a number for such a place as well, each turn of a search would double the paths.
pub trait Pool {
    /// The 8 bytes at a place.
    fn word(&self, place: u32) -> Option<u64>;
    /// The 4 bytes at a place: twice as many places as words.
    fn half(&self, place: u32) -> Option<u32>;
    /// The halves of a quad: a quarter as many places as halves.
    fn quad(&self, place: u32) -> Option<&[u32; QUAD]>;
    /// The words of a block: an eighth as many places as words.
    fn block(&self, place: u32) -> Option<&[u64; BLOCK]>;
}

/// The index of an IPv4 address in its root.
#[inline(always)]
pub const fn root_v4(address: u32) -> usize {
    (address >> (32 - ROOT_BITS)) as usize
}

/// The index of an IPv6 network in its root.
#[inline(always)]
pub const fn root_v6(network: u64) -> usize {
    (network >> (64 - ROOT_BITS)) as usize
}

/// The id of an IPv4 address, by what the root holds for it.
#[inline(always)]
pub fn find_v4<P: Pool>(root: u32, address: u32, pool: &P) -> MatchId {
    let place = root >> ROOT_SHIFT;
    if root & CHUNK == 0 {
        return place as MatchId;
    }
    if root & IS_QUAD == 0 {
        search_v4(place, address, pool).unwrap_or(0)
    } else {
        search_quad(place, address, pool).unwrap_or(0)
    }
}

#[inline(always)]
fn search_v4<P: Pool>(head: u32, address: u32, pool: &P) -> Option<MatchId> {
    let start = i64::from(address & 0xffff);
    let count = pool.half(head)? >> ID_BITS;
    let before = begun(count, |number| {
        let begins = i64::from(pool.half(head + number)? >> ID_BITS);
        Some(begins - start - 1)
    })?;
    Some(pool.half(head + before)? as MatchId)
}

#[inline(always)]
fn search_quad<P: Pool>(place: u32, address: u32, pool: &P) -> Option<MatchId> {
    let start = i64::from(address & 0xffff);
    let quad = pool.quad(place)?;
    // From one number to the next, as far as they begin at the address or before it.
    let step = |place: usize| {
        let begins = i64::from(quad[place] >> ID_BITS);
        quad[place].wrapping_sub(quad[place - 1]) & if_negative(begins - start - 1)
    };
    let last = quad[0]
        .wrapping_add(step(1))
        .wrapping_add(step(2))
        .wrapping_add(step(3));
    Some(last as MatchId)
}

/// The id of an IPv6 address, by what the root holds for it.
#[inline(always)]
pub fn find_v6<P: Pool>(root: u32, address: [u64; 2], pool: &P) -> MatchId {
    let chunk = root >> ROOT_SHIFT;
    if root & CHUNK == 0 {
        return chunk as MatchId;
    }
    search_v6(chunk, address, pool).unwrap_or(0)
}

#[inline(always)]
fn search_v6<P: Pool>(chunk: u32, [network, host]: [u64; 2], pool: &P) -> Option<MatchId> {
    let start = (network << ROOT_BITS >> ID_BITS).cast_signed();
    let levels = chunk >> LEVELS_SHIFT;
    let mut place = chunk & ((1 << LEVELS_SHIFT) - 1);
    macro_rules! level {
        ($number:literal) => {
            if $number < levels {
                let block = pool.block(place)?;
                let first = u32::from(block[0] as u16) | u32::from(block[1] as u16) << 16;
                place = first.wrapping_add(last_begun(block, start));
            }
        };
    }
    level!(6);
    level!(5);
    level!(4);
    level!(3);
    level!(2);
    level!(1);
    level!(0);
    let found = place
        .wrapping_mul(BLOCK as u32)
        .wrapping_add(last_begun(pool.block(place)?, start));
    let id = pool.word(found)? as MatchId;
    if id & DEEP == 0 {
        return Some(id);
    }
    let first = pool.word(found.wrapping_sub(1))? as MatchId;
    search_hosts(deep_place(first, id), host, pool)
}

/// Which number of a block is the last that begins at an address or before it; the first one does.
#[inline(always)]
fn last_begun(block: &[u64; BLOCK], start: i64) -> u32 {
    let begun = |place: usize| if_negative((block[place] >> ID_BITS).cast_signed() - start - 1);
    // Each is -1 or 0.
    let sum = begun(1)
        .wrapping_add(begun(2))
        .wrapping_add(begun(3))
        .wrapping_add(begun(4))
        .wrapping_add(begun(5))
        .wrapping_add(begun(6))
        .wrapping_add(begun(7));
    sum.wrapping_neg()
}

/// The place that the ids of a deep number's two halves make together.
#[inline(always)]
pub const fn deep_place(first: MatchId, second: MatchId) -> u32 {
    ((first & !DEEP) as u32) << (ID_BITS - 1) | (second & !DEEP) as u32
}

/// The ids that together make a place.
pub const fn deep_ids(place: u32) -> (MatchId, MatchId) {
    let first = (place >> (ID_BITS - 1)) as MatchId;
    (first | DEEP, place as MatchId | DEEP)
}

/// The id of a host in a deep network: its chunk has all starts, whole, then all ids, four in a word.
#[inline(always)]
fn search_hosts<P: Pool>(head: u32, host: u64, pool: &P) -> Option<MatchId> {
    let first = pool.word(head)?;
    let count = (first >> ID_BITS) as u32;
    let before = begun(count, |number| {
        Some(!difference(host, pool.word(head + number)?))
    })?;
    if before == 0 {
        return Some(first as MatchId);
    }
    let place = before - 1;
    let ids = pool.word(head + 1 + count + place / 4)?;
    Some((ids >> (place % 4 * ID_BITS)) as MatchId)
}

/// How many of a chunk's `count` numbers begin at an address or before it: a search that halves what is left, where
/// `after` says whether a number begins after it, by a number that is not negative. The first number is 1.
///
/// VERIFIER: turns one after the other and no loop, so that each turn's states are compared with that turn's alone.
#[inline(always)]
fn begun(count: u32, after: impl Fn(u32) -> Option<i64>) -> Option<u32> {
    let mut before = 0;
    let mut left = count;
    macro_rules! turn {
        () => {
            let step = left - left / 2;
            before += step & if_negative(after(before + step)?);
            left /= 2;
            if left == 0 {
                return Some(before);
            }
        };
    }
    macro_rules! eight_turns {
        () => {
            turn!();
            turn!();
            turn!();
            turn!();
            turn!();
            turn!();
            turn!();
            turn!();
        };
    }
    // As many as a count has bits.
    eight_turns!();
    eight_turns!();
    eight_turns!();
    Some(before)
}

/// All bits for a number below 0, and none for another; of numbers whose upper 16 bits are alike.
///
/// Not a branch, which a processor would guess wrong half of the time, and with which the verifier would walk twice as
/// many paths each turn. That the shift is not by 63 keeps the compiler from seeing one in it.
#[inline(always)]
const fn if_negative(number: i64) -> u32 {
    (number >> 48).cast_unsigned() as u32
}

/// A number that is negative where `a - b` is, by halves, since a difference of two of 64 bits has 65.
#[inline(always)]
const fn difference(a: u64, b: u64) -> i64 {
    const HALF: u64 = 0xffff_ffff;
    let high = (a >> 32).cast_signed() - (b >> 32).cast_signed();
    let low = (a & HALF).cast_signed() - (b & HALF).cast_signed();
    high + (low >> 32) // the lower halves take 1 or nothing
}
