//! The schedule of fetches: starts those that are due, and computes the time of the next fetch of each source.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use allowlist_lists::gather::{Fetches, Gathered};
use allowlist_policy::{Origin, Policy, Source};
use jiff::Timestamp;
use tokio::time::Instant;

use super::files::Files;
use crate::config::Config;
use crate::effective::EffectiveState;

/// The time after the last write to a file until the file is read, at most [`LONGEST_SETTLE`] after the first write.
const SETTLE: Duration = Duration::from_millis(300);
/// The longest delay between the first write to a file and its read, even if the file is written repeatedly.
const LONGEST_SETTLE: Duration = Duration::from_secs(5);

/// The delay before the fetch after a first failure; doubles with each further failure, up to the source's `every`.
const FIRST_RETRY: Duration = Duration::from_secs(15);
/// The longest delay of a fetch that a server's Retry-After header can cause.
const LONGEST_WAIT: Duration = Duration::from_hours(24);
/// The largest random extension of a fetch interval, as a fraction, so that hosts do not fetch at the same moment.
const JITTER: f64 = 0.1;

/// What [`Schedule::ready`] waits for.
pub(super) enum Ready {
    /// A fetch has ended.
    Fetched(Box<Gathered>),
    /// The watched files at these paths were written.
    Written(BTreeSet<PathBuf>),
}

/// The fetches that are due or in progress, and the watch on files.
#[derive(Default)]
pub(super) struct Schedule {
    fetches: Fetches,
    /// By source name: the time of the next fetch. A source that cannot change has no entry; the start of a fetch
    /// removes the entry, and its end adds the next.
    due: BTreeMap<String, Instant>,
    /// By source name: the time of the first write to the source's file since the file was last read.
    writing: BTreeMap<String, Instant>,
    files: Files,
}

impl Schedule {
    /// Watches the files of the configuration's file sources, instead of those that are watched now.
    pub(super) fn watch_files(&mut self, config: &Config) {
        let paths = config.policy.used_sources().filter_map(|source| {
            let Origin::File { path, .. } = &source.origin else {
                return None;
            };
            Some(path.as_path())
        });
        self.files = Files::watch(paths);
    }

    /// Waits until a fetch has ended, or watched files were written.
    pub(super) async fn ready(&mut self) -> Ready {
        tokio::select! {
            Some(gathered) = self.fetches.next() => Ready::Fetched(Box::new(gathered)),
            paths = self.files.touched() => Ready::Written(paths),
        }
    }

    /// Schedules reads of the file sources at these paths, which were written.
    pub(super) fn schedule_files(&mut self, policy: &Policy, paths: &BTreeSet<PathBuf>) {
        let now = Instant::now();
        for source in policy.used_sources() {
            if matches!(&source.origin, Origin::File { path, .. } if paths.contains(path)) {
                let name = &source.name;
                let first = *self.writing.entry(name.clone()).or_insert(now);
                let soon = (now + SETTLE).min(first + LONGEST_SETTLE);
                self.due.insert(name.clone(), soon);
            }
        }
    }

    /// Starts the fetches that are due, in the background.
    pub(super) fn fetch_due(&mut self, state: &EffectiveState) {
        let now = Instant::now();
        let due: Vec<Source> = state
            .config()
            .policy
            .used_sources()
            .filter(|source| self.due.get(&source.name).is_some_and(|due| *due <= now))
            // One fetch per source at a time, or answers could arrive in the wrong order. A file that is written during
            // its read is due after the read.
            .filter(|source| !self.is_running(&source.name))
            .cloned()
            .collect();
        for source in due {
            let last = state.sources().feed(&source.name);
            let known = last.map_or_else(Vec::new, |feed| feed.validators.clone());
            // The outcome determines the next fetch.
            self.due.remove(&source.name);
            self.writing.remove(&source.name);
            self.fetches.start(source, known);
        }
    }

    /// Makes the source named `name` due now.
    pub(super) fn make_due(&mut self, name: &str) {
        self.due.insert(name.to_owned(), Instant::now());
    }

    /// Returns whether the source named `name` is being fetched.
    pub(super) fn is_running(&self, name: &str) -> bool {
        self.fetches.is_running(name)
    }

    /// Returns the earliest time of a scheduled fetch, without the sources that are being fetched; `None` if there is
    /// none.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let waiting = self.due.iter().filter(|(name, _)| !self.is_running(name));
        waiting.map(|(_, due)| *due).min()
    }

    /// Returns the time of the next fetch of each source that can change, by source name.
    pub(super) fn due(&self) -> impl Iterator<Item = (&String, Instant)> {
        self.due.iter().map(|(name, due)| (name, *due))
    }

    /// Schedules the next fetch of each source by the age of its list. With `is_start`, file sources are due at once.
    pub(super) fn schedule_all(&mut self, state: &EffectiveState, is_start: bool) {
        let (now, clock) = (Instant::now(), Timestamp::now());
        let used = state.config().policy.used_sources();
        let due = used.filter(|source| source.can_change()).map(|source| {
            let every = match source.origin {
                // The time to live of the last DNS answer is not stored.
                Origin::Names(_) => Duration::ZERO,
                Origin::File { .. } if is_start => Duration::ZERO,
                _ => source.every,
            };
            let fetched = state.sources().feed(&source.name).map(|feed| feed.fetched);
            // The age is unknown if the clock is behind: fetch at once.
            let age = fetched.and_then(|fetched| clock.duration_since(fetched).try_into().ok());
            let age = age.unwrap_or(every);
            // A failed fetch at the start is retried as any other.
            let failed = state.sources().health(&source.name);
            let wait = match failed.filter(|health| health.failure.is_some()) {
                Some(health) => after_failure(source, health.failures, None, fastrand::f64()),
                None => every.saturating_sub(age),
            };
            (source.name.clone(), now + wait)
        });
        self.due = due.collect();
        self.writing.clear();
    }

    /// Schedules the next fetch of a source after this delay. A file that was written meanwhile is due earlier.
    pub(super) fn schedule(&mut self, source: &Source, wait: Duration) {
        let due = Instant::now() + wait;
        self.due
            .entry(source.name.clone())
            .and_modify(|known| *known = (*known).min(due))
            .or_insert(due);
    }
}

/// Returns the delay before the next fetch after a success. `again` is the delay that the source requested, if any, and
/// counts if it is shorter than the source's `every`. `chance` is a random number from 0 to 1.
pub(super) fn after_success(source: &Source, again: Option<Duration>, chance: f64) -> Duration {
    let every = again.map_or(source.every, |again| again.min(source.every));
    with_jitter(every, chance)
}

/// Returns the delay before the next fetch after the `times`-th consecutive failure. `asked` is the server's
/// Retry-After, if any; `chance` is a random number from 0 to 1.
pub(super) fn after_failure(
    source: &Source,
    times: u32,
    asked: Option<Duration>,
    chance: f64,
) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(1 << times.saturating_sub(1).min(10));
    let wait = doubled.min(source.every);
    let wait = asked.map_or(wait, |asked| asked.min(LONGEST_WAIT).max(wait));
    with_jitter(wait, chance)
}

/// Returns the delay `wait` with a random extension of up to [`JITTER`]. `chance` is a random number from 0 to 1.
fn with_jitter(wait: Duration, chance: f64) -> Duration {
    wait.mul_f64(1.0 + JITTER * chance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use allowlist_policy::Origin;

    #[test]
    fn delays() {
        let secs = Duration::from_secs;
        let source = Source::new("x", Origin::Prefixes(Vec::new()));
        assert_eq!(after_success(&source, None, 0.0), source.every);
        assert_eq!(after_success(&source, None, 1.0), secs(3960));
        assert_eq!(after_success(&source, Some(secs(60)), 0.0), secs(60));
        assert_eq!(after_success(&source, Some(secs(86400)), 0.0), source.every);
        for (times, asked, expected) in [
            (1, None, 15),
            (2, None, 30),
            (3, None, 60),
            (9, None, 3600),
            (u32::MAX, None, 3600),
            (1, Some(5), 15),
            (1, Some(120), 120),
            (1, Some(1_000_000), 86400),
        ] {
            let wait = after_failure(&source, times, asked.map(secs), 0.0);
            assert_eq!(wait, secs(expected), "{times} {asked:?}");
        }
    }
}
