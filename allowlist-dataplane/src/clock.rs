//! Reads the clock of the kernel programs (`bpf_ktime_get_ns`) from userspace.
//!
//! In a time namespace, `CLOCK_MONOTONIC` has an offset that the kernel programs do not have (`time_namespaces(7)`).
//! The offset is subtracted, so that deadlines are correct for the kernel programs.

use std::fs;
use std::sync::LazyLock;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The offset of `CLOCK_MONOTONIC` in this process's time namespace, in nanoseconds.
static OFFSET: LazyLock<i128> = LazyLock::new(|| {
    let text = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    monotonic_offset(&text).unwrap_or(0)
});

/// Returns the current time of the kernel programs' clock: monotonic, without the offset of a time namespace.
pub fn kernel_clock() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Returns the time that `bpf_ktime_get_coarse_ns` returns, in nanoseconds: at most one tick behind
/// [`kernel_clock`].
pub(super) fn kernel_clock_coarse() -> u64 {
    read(ClockId::CLOCK_MONOTONIC_COARSE).as_nanos() as u64
}

fn read(clock: ClockId) -> Duration {
    let now = clock_gettime(clock).expect("every kernel has this clock");
    let now = Duration::from(now).as_nanos().cast_signed() - *OFFSET;
    Duration::from_nanos(u64::try_from(now).unwrap_or(0))
}

/// Returns the monotonic offset in nanoseconds from the text of `/proc/PID/timens_offsets`, with lines such as
/// `monotonic 97200 0`; `None` if the text has no such line.
fn monotonic_offset(text: &str) -> Option<i128> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        // Older kernels write the number of the clock.
        let is_monotonic = matches!(words.next()?, "monotonic" | "1");
        let seconds: i128 = words.next()?.parse().ok()?;
        let nanoseconds: i128 = words.next()?.parse().ok()?;
        is_monotonic.then_some(seconds * 1_000_000_000 + nanoseconds)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_a_time_namespace() {
        for (text, expected) in [
            (
                "monotonic  97200  5\nboottime  1  0\n",
                Some(97_200_000_000_005),
            ),
            (
                "monotonic           -3         0\nboottime             0         0\n",
                Some(-3_000_000_000),
            ),
            ("1 7 0\n7 8 0\n", Some(7_000_000_000)),
            ("boottime 1 0\n", None),
            ("", None),
            ("monotonic x\n", None),
        ] {
            assert_eq!(monotonic_offset(text), expected, "{text:?}");
        }
    }
}
