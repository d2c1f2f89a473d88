//! The maps that all programs share: the addresses to look up, in order, and the counters.
//!
//! `bench/src/programs.rs` fills and reads them, and repeats their sizes.

use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::btf_map;

/// The number of addresses; a power of two, so that a mask wraps the position around.
const ADDRESSES: usize = 1 << 20;

/// IPv4 addresses as numbers in host order.
#[btf_map]
static ADDRESSES_V4: Array<[u32; ADDRESSES], 1> = Array::new();
/// IPv6 addresses, the upper half first. Flat, because the kernel refuses an array of arrays.
#[btf_map]
static ADDRESSES_V6: Array<[u64; ADDRESSES * 2], 1> = Array::new();
#[btf_map]
static TALLY: PerCpuArray<Tally, 1> = PerCpuArray::new();

/// One CPU's counters.
#[repr(C)]
pub(crate) struct Tally {
    /// The number of addresses taken so far, and the position of the next one.
    taken: u64,
    /// The number of successful lookups, or of passed packets.
    found: u64,
    /// The number of dropped packets.
    dropped: u64,
    /// The sum of all addresses and results, so that the compiler cannot remove their computation.
    sum: u64,
}

impl Tally {
    /// Returns this CPU's counters.
    #[inline(always)]
    pub(crate) fn get<'a>() -> Option<&'a mut Self> {
        let tally = TALLY.get_ptr_mut(0)?;
        // SAFETY: this CPU's copy, and no other program runs on this CPU at the same time; each program calls this
        // function once, so the reference is unique.
        Some(unsafe { &mut *tally })
    }

    /// Counts the 16-bit result of a lookup; 0 if it found nothing.
    #[inline(always)]
    pub(crate) const fn record(&mut self, address: u64, found: u64) {
        // Branch-free: if half of the lookups find nothing, a branch would be mispredicted half of the time.
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

/// Returns the next IPv4 address.
#[inline(always)]
pub(crate) fn next_v4(tally: &mut Tally) -> Option<u32> {
    let addresses = ADDRESSES_V4.get_ptr(0)?;
    // SAFETY: the mask keeps the position inside the array, which userspace has filled.
    Some(unsafe { *addresses.cast::<u32>().add(tally.next()) })
}

/// Returns the next IPv6 address.
#[inline(always)]
pub(crate) fn next_v6(tally: &mut Tally) -> Option<[u64; 2]> {
    let addresses = ADDRESSES_V6.get_ptr(0)?;
    // SAFETY: as above.
    Some(unsafe { *addresses.cast::<[u64; 2]>().add(tally.next()) })
}
