//! The range table: an address to the match id of the range that it lies in, in one load for most addresses and
//! a short search for the others.
//!
//! The prefixes of a policy cut the addresses into ranges, each with one match id. A root, indexed by an
//! address's first 16 bits, holds either the id itself, where no range ends within those addresses, or the place
//! of a *chunk* in the pool: the ranges that begin there, in order. This is the scheme of M. Zec, L. Rizzo and
//! M. Mikuc, "DXR: Towards a Billion Routing Lookups Per Second in Software" (ACM SIGCOMM CCR 42(5), 2012); the
//! layout of a chunk, and how IPv6 fits, are this file's own:
//!
//! - A chunk begins with a *head*, its count of ranges after the first and the first one's id. What follows is one
//!   number a range: where it begins, without the 16 bits that the root has used, and its id in the lowest 16 bits.
//!   So the search needs no second array, and numbers are compared whole.
//! - An IPv4 number has 32 bits. An IPv6 one has 64, and tells networks (/64) apart. Where ranges begin inside a
//!   network, its number is *deep*: twice there, and the two ids together are the place of another chunk, of the
//!   hosts' halves of the address.
//!
//! Invariant: whatever the memory holds, a lookup ends, and reads only what [`Pool`] gives it. Knows nothing of what an
//! id means; how the memory is filled is `allowlist-user`'s.

/// What a root holds for addresses that no range tells apart, and a range's number in its lowest bits: index into
/// [`crate::abi::MATCHES`]; 0 is nobody's.
pub type MatchId = u16;

/// In a root: the other bits are a place in the pool, in units of that family's numbers.
pub const CHUNK: u32 = 1 << 31;
/// In an id of IPv6: the other bits are part of a place in the pool.
pub const DEEP: MatchId = 1 << 15;
/// Address bits that the root is indexed by.
pub const ROOT_BITS: u32 = 16;
/// Bits of an id.
pub const ID_BITS: u32 = 16;

/// The memory that chunks are in. A place that does not exist ends the lookup with nobody's id.
///
/// VERIFIER: were there a number for such a place as well, each turn of a search would double the paths.
pub trait Pool {
    /// The 8 bytes at a place.
    fn word(&self, place: u32) -> Option<u64>;
    /// The 4 bytes at a place: twice as many places as words.
    fn half(&self, place: u32) -> Option<u32>;
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
    if root & CHUNK == 0 {
        return root as MatchId;
    }
    search_v4(root & !CHUNK, address, pool).unwrap_or(0)
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

/// The id of an IPv6 address, by what the root holds for it.
#[inline(always)]
pub fn find_v6<P: Pool>(root: u32, address: [u64; 2], pool: &P) -> MatchId {
    if root & CHUNK == 0 {
        return root as MatchId;
    }
    search_v6(root & !CHUNK, address, pool).unwrap_or(0)
}

#[inline(always)]
fn search_v6<P: Pool>(head: u32, [network, host]: [u64; 2], pool: &P) -> Option<MatchId> {
    let start = (network << ROOT_BITS >> ID_BITS) as i64;
    let count = (pool.word(head)? >> ID_BITS) as u32;
    let before = begun(count, |number| {
        let begins = (pool.word(head + number)? >> ID_BITS) as i64;
        Some(begins - start - 1)
    })?;
    let id = pool.word(head + before)? as MatchId;
    if id & DEEP == 0 {
        return Some(id);
    }
    let first = pool.word((head + before).wrapping_sub(1))? as MatchId;
    search_hosts(deep_place(first, id), host, pool)
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
    (number >> 48) as u32
}

/// A number that is negative where `a - b` is, by halves, since a difference of two of 64 bits has 65.
#[inline(always)]
const fn difference(a: u64, b: u64) -> i64 {
    const HALF: u64 = 0xffff_ffff;
    let high = (a >> 32) as i64 - (b >> 32) as i64;
    let low = (a & HALF) as i64 - (b & HALF) as i64;
    high + (low >> 32) // the lower halves take 1 or nothing
}
