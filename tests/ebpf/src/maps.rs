//! The maps that all programs share: addresses in the order in which they come, and what was counted.
//!
//! `tests/src/bench/programs.rs` is their other side, and repeats their sizes.

use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::btf_map;

/// A power of two: the position in the array is masked by it, and starts again.
const ADDRESSES: usize = 1 << 20;

/// As host numbers.
#[btf_map]
static ADDRESSES_V4: Array<[u32; ADDRESSES], 1> = Array::new();
/// Two halves each, the one with the network first. Not an array of arrays, which the kernel does not take.
#[btf_map]
static ADDRESSES_V6: Array<[u64; ADDRESSES * 2], 1> = Array::new();
#[btf_map]
static TALLY: PerCpuArray<Tally, 1> = PerCpuArray::new();

/// What this CPU counted.
#[repr(C)]
pub(crate) struct Tally {
    /// Addresses taken so far, which is also the position of the next.
    taken: u64,
    /// Lookups that found something, or packets that passed.
    found: u64,
    /// Packets that were dropped by what they are.
    dropped: u64,
    /// Of all that was seen, so that it must be computed.
    sum: u64,
}

impl Tally {
    /// This CPU's.
    #[inline(always)]
    pub(crate) fn here<'a>() -> Option<&'a mut Self> {
        let tally = TALLY.get_ptr_mut(0)?;
        // SAFETY: this CPU's own copy, and no other program runs on this CPU meanwhile; each program
        // asks once, so nothing else refers to it.
        Some(unsafe { &mut *tally })
    }

    /// What a lookup found, 0 if nothing: a number of 16 bits.
    #[inline(always)]
    pub(crate) const fn looked_up(&mut self, address: u64, found: u64) {
        // Whether it is 0 is a branch, which would be guessed wrong half of the time where half of the lookups find nothing.
        let one_if_found = ((found & 0xffff) + 0xffff) >> 16;
        self.found = self.found.wrapping_add(one_if_found);
        self.sum = self.sum.wrapping_add(address.wrapping_add(found));
    }

    #[inline(always)]
    pub(crate) const fn pass(&mut self) {
        self.found = self.found.wrapping_add(1);
    }

    #[inline(always)]
    pub(crate) const fn drop(&mut self) {
        self.dropped = self.dropped.wrapping_add(1);
    }

    #[inline(always)]
    const fn next(&mut self) -> usize {
        let position = self.taken as usize & (ADDRESSES - 1);
        self.taken = self.taken.wrapping_add(1);
        position
    }
}

/// The next address.
#[inline(always)]
pub(crate) fn next_v4(tally: &mut Tally) -> Option<u32> {
    let addresses = ADDRESSES_V4.get_ptr(0)?;
    // SAFETY: the position is masked to what the array holds, and userspace fills it before.
    Some(unsafe { *addresses.cast::<u32>().add(tally.next()) })
}

/// The next address.
#[inline(always)]
pub(crate) fn next_v6(tally: &mut Tally) -> Option<[u64; 2]> {
    let addresses = ADDRESSES_V6.get_ptr(0)?;
    // SAFETY: as above.
    Some(unsafe { *addresses.cast::<[u64; 2]>().add(tally.next()) })
}
