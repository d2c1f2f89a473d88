//! Computes the time until the next fetch of a source. Pure: reads no clock.

use std::time::Duration;

use allowlist_policy::Source;

/// The delay before the fetch after a first failure; doubles with each further failure.
const FIRST_RETRY: Duration = Duration::from_secs(15);
/// The longest delay of a fetch that a server's Retry-After header can cause.
const LONGEST_WAIT: Duration = Duration::from_hours(24);
/// The largest random extension of a fetch interval, as a fraction, so that hosts do not fetch at the same moment.
const JITTER: f64 = 0.1;

/// Returns the delay before the next fetch after a success. `again` is the delay that the source requested, if any;
/// `chance` is a random number from 0 to 1.
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
