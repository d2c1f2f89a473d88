//! The coarse monotonic clock: the time of the last timer tick, which is a few milliseconds late at most, and cheaper
//! to read than the hardware clock.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;

/// Returns the monotonic time of the last timer tick in nanoseconds, which is a few milliseconds late at most.
#[inline(always)]
pub fn nanoseconds() -> u64 {
    // SAFETY: the helper has no arguments and reads the kernel's clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Returns the monotonic time of the last timer tick in seconds. Wraps around after 136 years.
#[inline(always)]
pub fn seconds() -> u32 {
    (nanoseconds() / NANOSECONDS_PER_SECOND) as u32
}
