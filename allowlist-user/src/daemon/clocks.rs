//! The clocks: expiries of grace prefixes and added prefixes, and steps of the wall clock.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use crate::additions::Additions;
use crate::time::Now;

/// The smallest difference between the clocks that counts as a step of the wall clock.
const JUMP: SignedDuration = SignedDuration::from_secs(10);
/// The delay until another attempt to publish without expired prefixes, after a failure.
const RETRY: Duration = Duration::from_mins(1);

/// The wall clock and the boot clock, read at the same moment.
struct Clocks {
    wall: Timestamp,
    /// The time since the boot, suspended time included.
    steady: Duration,
}

impl Clocks {
    /// Reads the wall clock and the boot clock.
    fn now() -> Self {
        let steady = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        Self {
            wall: Timestamp::now(),
            steady,
        }
    }

    /// Returns by how much the wall clock was stepped between `self` and `now`: its progress minus that of the boot
    /// clock.
    fn jump(&self, now: &Self) -> SignedDuration {
        let by_wall = now.wall.duration_since(self.wall);
        let passed = now.steady.saturating_sub(self.steady);
        by_wall.saturating_sub(SignedDuration::try_from(passed).unwrap_or(SignedDuration::ZERO))
    }
}

/// The times of expiries, and the clocks by which they are measured.
pub(super) struct Expiries {
    clocks: Clocks,
    /// The time at which the next added prefix expires; `None` if none has a time to live.
    added: Option<Instant>,
    /// The earliest time for another attempt to publish without expired prefixes, after a failure.
    retry_after: Instant,
}

impl Expiries {
    /// Reads both clocks, and returns them without a scheduled expiry.
    pub(super) fn new() -> Self {
        Self {
            clocks: Clocks::now(),
            added: None,
            retry_after: Instant::now(),
        }
    }

    /// Returns the time of the wall clock, and the step of that clock since the last call; `None` if there was no step.
    pub(super) fn read_clock(&mut self) -> (Timestamp, Option<SignedDuration>) {
        let clocks = Clocks::now();
        let jump = self.clocks.jump(&clocks);
        self.clocks = clocks;
        (self.clocks.wall, Some(jump).filter(|by| by.abs() > JUMP))
    }

    /// Schedules the next expiry of an added prefix, by the wall clock or the boot clock, whichever is first.
    pub(super) fn schedule(&mut self, additions: &Additions, now: &Now) {
        let left = additions.next_expiry(now);
        self.added = left.map(|left| Instant::now() + left);
    }

    /// Returns the time at which the next added prefix expires, or at which a failed expiry is repeated; `None` if no
    /// added prefix has a time to live.
    pub(super) fn next(&self) -> Option<Instant> {
        self.added.map(|added| added.max(self.retry_after))
    }

    /// Returns whether the removal of expired prefixes may be published now; false for [`RETRY`] after [`Self::delay`].
    pub(super) fn may_publish(&self) -> bool {
        self.retry_after <= Instant::now()
    }

    /// Delays the next attempt to publish the removal of expired prefixes by [`RETRY`], after a failure.
    pub(super) fn delay(&mut self) {
        self.retry_after = Instant::now() + RETRY;
    }
}
