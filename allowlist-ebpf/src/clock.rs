//! The time, as of the last timer tick: a few milliseconds late at most, and cheaper than a look at
//! the machine's clock.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

/// Nanoseconds of the monotonic clock.
#[inline(always)]
pub(crate) fn nanoseconds() -> u64 {
    // SAFETY: reads the kernel's clock, and has no argument.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The same in seconds: 136 years' worth.
#[inline(always)]
pub(crate) fn seconds() -> u32 {
    (nanoseconds() / 1_000_000_000) as u32
}
