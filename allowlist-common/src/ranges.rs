//! The range table: maps an address to the match id of the range that contains it.
//!
//! The prefixes of a policy divide the address space into ranges, each with one match id. A root table, indexed by the
//! first 16 bits of an address, has the index of a *chunk* in the pool: the sorted ranges that begin with these bits.
//! This is the scheme of M. Zec, L. Rizzo and M. Mikuc, "DXR: Towards a Billion Routing Lookups Per Second in Software"
//! (ACM SIGCOMM CCR 42(5), 2012); the chunk layouts are this project's own: [`v4`], [`v6`].
//!
//! Under random traffic, a lookup's cost is cache misses and branch mispredictions, of about 20 cycles each. The common
//! path is therefore branch-free: it compares numbers by the sign of their difference.
//!
//! Invariant: a lookup terminates and stays inside the [`Pool`] for any memory contents. Does not know the meaning of a
//! match id; `allowlist-policy` compiles the tables.

pub mod v4;
pub mod v6;

use crate::volatile::VolatileRef;

/// The match id of a range: an index into [`crate::abi::MATCHES`], which stands for the sources that list its
/// addresses. Id 0 stands for no match.
pub type MatchId = u16;

/// The number of address bits that index the root.
pub const ROOT_BITS: u32 = 16;

/// The memory of the range table's chunks.
///
/// Each access takes an index in units of its own width. An index out of bounds ends the lookup without a match. In the
/// kernel, userspace appends chunks at the same time, so an implementation makes volatile loads.
///
/// VERIFIER: with a default value instead of `None`, each step of a search would double the number of paths.
pub trait Pool {
    /// Returns the 4 bytes at an index in units of 4 bytes; `None` if it is out of bounds.
    fn u32_at(&self, index: u32) -> Option<u32>;
    /// Returns the 8 bytes at an index in units of 8 bytes; `None` if it is out of bounds.
    fn u64_at(&self, index: u32) -> Option<u64>;
    /// Returns the 32 bytes at an index in units of 32 bytes; `None` if it is out of bounds.
    fn u64x4_at(&self, index: u32) -> Option<VolatileRef<'_, [u64; 4]>>;
    /// Returns the 64 bytes at an index in units of 64 bytes; `None` if it is out of bounds.
    fn cache_line_at(&self, index: u32) -> Option<VolatileRef<'_, v6::Block>>;
    /// Prefetches the cache line with the 4 bytes at an index in units of 4 bytes.
    fn prefetch(&self, index: u32);
}

/// Searches `count` sorted entries by binary search, and returns the number of those that begin at an address or before
/// it.
///
/// `after` compares an entry, numbered from 1, with the address: its result is negative if the entry begins at the
/// address or before it. Returns `None` if `after` does.
///
/// VERIFIER: unrolled, so that the verifier compares the states of one step only with those of the same step.
#[inline(always)]
fn partition_point(count: u32, after: impl Fn(u32) -> Option<i64>) -> Option<u32> {
    let mut before = 0;
    let mut left = count;
    macro_rules! step {
        () => {
            let step = left - left / 2;
            before += step & sign_mask(after(before + step)?);
            left /= 2;
            if left == 0 {
                return Some(before);
            }
        };
    }
    macro_rules! eight_steps {
        () => {
            step!();
            step!();
            step!();
            step!();
            step!();
            step!();
            step!();
            step!();
        };
    }
    // One step per bit of a count.
    eight_steps!();
    eight_steps!();
    eight_steps!();
    Some(before)
}

/// Returns a word of all ones for a negative number, and 0 otherwise. The number's upper 16 bits must be equal.
///
/// Branch-free: a branch would be mispredicted half of the time, and would double the verifier's paths in each step. A
/// shift by 48 instead of 63 keeps the compiler from recognizing a comparison and emitting a branch.
#[inline(always)]
const fn sign_mask(number: i64) -> u32 {
    (number >> 48).cast_unsigned() as u32
}

/// Returns its argument, with a value that is opaque to the compiler.
///
/// VERIFIER: otherwise the compiler may keep the number in two registers, compare one and add the other, and Linux 6.1
/// does not know that both are equal.
#[inline(always)]
#[expect(unsafe_code, reason = "a volatile read is an optimization barrier")]
pub fn opaque(value: u32) -> u32 {
    // SAFETY: reads a local variable.
    unsafe { (&raw const value).read_volatile() }
}
