//! The clocks that end a grant with a time limit: the wall clock and the boot clock.
//!
//! The wall clock can be set to any time, so it must not decide alone: a grant also ends when its time to live has
//! passed on the boot clock (`CLOCK_BOOTTIME`, which counts a suspended host's time too and cannot be set), while the
//! host is up.

use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The file with the kernel's random identifier of this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A moment by the boot clock, together with the boot that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uptime {
    /// The kernel's random identifier of the boot.
    pub boot: String,
    /// The seconds since the boot, suspended time included.
    pub seconds: u64,
}

impl Uptime {
    /// Returns the present moment, or `None` if the kernel has no identifier of the boot.
    pub fn now() -> Option<Self> {
        static BOOT: LazyLock<Option<String>> = LazyLock::new(|| {
            let text = std::fs::read_to_string(BOOT_ID).ok()?;
            Some(text.trim().to_owned())
        });
        let boot = BOOT.clone()?;
        Some(Self {
            boot,
            seconds: since_boot().as_secs(),
        })
    }

    /// Returns the moment that is `time` after this one.
    #[must_use]
    pub fn after(&self, time: Duration) -> Self {
        Self {
            boot: self.boot.clone(),
            seconds: self.seconds.saturating_add(time.as_secs()),
        }
    }

    /// Returns the time from this moment until `later`: zero if `later` has passed, `None` if it is of another boot.
    pub fn until(&self, later: &Self) -> Option<Duration> {
        (self.boot == later.boot)
            .then(|| Duration::from_secs(later.seconds.saturating_sub(self.seconds)))
    }
}

/// Returns the time since the boot, suspended time included.
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// A moment by the wall clock and the boot clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Now {
    /// The time of the wall clock, or a later time if the wall clock is known to be behind.
    pub wall: Timestamp,
    /// The time of the boot clock; `None` if the kernel has no identifier of the boot.
    pub uptime: Option<Uptime>,
}

impl Now {
    /// Returns the present moment by both clocks.
    pub fn current() -> Self {
        Self {
            wall: Timestamp::now(),
            uptime: Uptime::now(),
        }
    }

    /// Returns a moment that is known by the wall clock alone.
    pub const fn by_wall(wall: Timestamp) -> Self {
        Self { wall, uptime: None }
    }

    /// Returns the time from this moment until an expiry, zero if it has passed.
    ///
    /// The expiry is `until` by the wall clock or `uptime` by the boot clock, whichever is first. `uptime` is ignored
    /// if it is of another boot.
    pub fn left(&self, until: Timestamp, uptime: Option<&Uptime>) -> Duration {
        let by_wall = Duration::try_from(until.duration_since(self.wall)).unwrap_or(Duration::ZERO);
        let by_boot = self
            .uptime
            .as_ref()
            .zip(uptime)
            .and_then(|(now, later)| now.until(later));
        by_boot.map_or(by_wall, |by_boot| by_wall.min(by_boot))
    }
}

/// A wall clock that never goes backwards while the host is up.
#[derive(Clone, Copy, Debug)]
pub struct SteadyClock {
    /// The latest wall-clock time that was passed to [`Self::learn`] or [`Self::not_before`].
    latest: Timestamp,
    /// The time of the boot clock when `latest` was set.
    learnt: Duration,
}

impl SteadyClock {
    /// Returns a clock whose time is never before `latest`.
    pub fn not_before(latest: Timestamp) -> Self {
        Self {
            latest,
            learnt: since_boot(),
        }
    }

    /// Advances the clock to `time`, such as that of a journal entry, if it is later than the clock's time.
    pub fn learn(&mut self, time: Timestamp) {
        if time > self.at(since_boot()) {
            *self = Self::not_before(time);
        }
    }

    /// Returns the present moment. Its wall-clock time is never before the latest one that was passed to
    /// [`Self::learn`], plus the time since then.
    pub fn now(&self) -> Now {
        Now {
            wall: Timestamp::now().max(self.at(since_boot())),
            uptime: Uptime::now(),
        }
    }

    /// Returns the wall-clock time when the boot clock shows `boot`, counted from `latest`.
    fn at(&self, boot: Duration) -> Timestamp {
        let passed = boot.saturating_sub(self.learnt);
        self.latest.checked_add(passed).unwrap_or(self.latest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn uptime(boot: &str, seconds: u64) -> Uptime {
        Uptime {
            boot: boot.to_owned(),
            seconds,
        }
    }

    #[test]
    fn a_grant_ends_by_the_first_of_both_clocks() {
        for (wall, up, until, deadline, expected) in [
            (100, uptime("a", 10), 160, Some(uptime("a", 70)), 60),
            // The wall clock was set back, or ahead when the grant was made.
            (40, uptime("a", 60), 160, Some(uptime("a", 70)), 10),
            (100, uptime("a", 80), 99_999, Some(uptime("a", 70)), 0),
            // It was set ahead.
            (200, uptime("a", 20), 160, Some(uptime("a", 70)), 0),
            // Another boot, or none known.
            (100, uptime("b", 500), 160, Some(uptime("a", 70)), 60),
            (100, uptime("b", 500), 160, None, 60),
        ] {
            let now = Now {
                wall: second(wall),
                uptime: Some(up),
            };
            let left = now.left(second(until), deadline.as_ref());
            assert_eq!(
                left,
                Duration::from_secs(expected),
                "{now:?} {until} {deadline:?}"
            );
        }
    }

    #[test]
    fn the_clock_is_not_behind_what_was_learnt() {
        let far = Timestamp::now() + Duration::from_secs(1_000_000);
        let mut clock = SteadyClock::not_before(second(0));
        assert!(clock.now().wall < far);
        clock.learn(far);
        assert!(clock.now().wall >= far);
        clock.learn(second(5));
        assert!(clock.now().wall >= far);
        assert_eq!(
            clock.at(clock.learnt + Duration::from_secs(7)),
            far + Duration::from_secs(7)
        );
    }
}
