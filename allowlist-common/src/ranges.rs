//! The range table: an address to the match id of the range that it lies in.
//!
//! The prefixes of a policy cut the addresses into ranges, each with one match id. A root, indexed by an
//! address's first 16 bits, has the place of a *chunk* in the pool: the ranges that begin there, in order. This is the
//! scheme of M. Zec, L. Rizzo and M. Mikuc, "DXR: Towards a Billion Routing Lookups Per Second in Software" (ACM SIGCOMM
//! CCR 42(5), 2012); the layout of a chunk is this project's own, and each family's: [`v4`], [`v6`].
//!
//! What random traffic costs is, besides memory that is not in a cache, guesses: a branch that goes this way for one
//! address and that way for the next holds a processor up for some twenty cycles. So what most addresses need goes one way: numbers
//! are compared by what a subtraction leaves, and not by branches.
//!
//! Invariant: whatever the memory holds, a lookup ends, and reads only what [`Pool`] gives it. Knows nothing of what an
//! id means; how the memory is filled is `allowlist-user`'s.

pub mod v4;
pub mod v6;

/// A range's number: index into [`crate::abi::MATCHES`]; 0 is nobody's.
pub type MatchId = u16;

/// Address bits that the root is indexed by.
pub const ROOT_BITS: u32 = 16;

/// The memory that chunks are in. A place that does not exist ends the lookup with nobody's id.
///
/// VERIFIER: were there a number for such a place as well, each turn of a search would double the paths.
pub trait Pool {
    /// The 4 bytes at a place.
    fn u32_at(&self, place: u32) -> Option<u32>;
    /// The 8 bytes at a place: half as many places as halves.
    fn u64_at(&self, place: u32) -> Option<u64>;
    /// A quarter as many places as words.
    fn u64x4_at(&self, place: u32) -> Option<&[u64; 4]>;
    /// An eighth as many places as words.
    fn cache_line_at(&self, place: u32) -> Option<&[u64; v6::BLOCK_WORDS]>;
    /// Asks for the memory of a half that will be looked at, perhaps, so that it comes meanwhile.
    fn prefetch(&self, place: u32);
}

/// How many of a chunk's `count` numbers begin at an address or before it: a search that halves what is left, where
/// `after` says whether a number begins after it, by a number that is not negative. The first number is 1.
///
/// VERIFIER: turns one after the other and no loop, so that each turn's states are compared with that turn's alone.
#[inline(always)]
fn partition_point(count: u32, after: impl Fn(u32) -> Option<i64>) -> Option<u32> {
    let mut before = 0;
    let mut left = count;
    macro_rules! turn {
        () => {
            let step = left - left / 2;
            before += step & sign_mask(after(before + step)?);
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
const fn sign_mask(number: i64) -> u32 {
    (number >> 48).cast_unsigned() as u32
}

/// The same number, which nothing else has.
///
/// VERIFIER: one that is kept for later as well may be compared in one place and added in another; Linux 6.1 does not
/// know that they are the same.
#[inline(always)]
#[expect(unsafe_code, reason = "what the compiler is not to see through")]
pub(crate) fn opaque(place: u32) -> u32 {
    // SAFETY: of a variable.
    unsafe { (&raw const place).read_volatile() }
}
