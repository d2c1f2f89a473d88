//! The time until the next request, as a server states it.
//!
//! Reads headers only. A server cannot silence this host for longer than a day.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// The longest time for which a server can delay the next request; a longer stated time is cut to this.
const LONGEST: Duration = Duration::from_hours(24);

/// Returns the time until the server permits the next request, as `headers` state it at the time `now`.
///
/// `None` means that no header states a valid time in the future.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let said = text(headers, RETRY_AFTER.as_str()).and_then(|text| wait(text, now));
    let said = said.or_else(|| {
        let reset = is_limited(headers).then(|| text(headers, "x-ratelimit-reset"))??;
        until(Timestamp::from_second(reset.parse().ok()?).ok()?, now)
    })?;
    Some(said.min(LONGEST))
}

/// Returns whether `headers` state that this host has used up the requests that the server permits.
pub(super) fn is_limited(headers: &HeaderMap) -> bool {
    text(headers, "x-ratelimit-remaining") == Some("0")
}

/// Returns the time from `now` that `text` states in seconds, or as a date such as `Sun, 06 Nov 1994 08:49:37 GMT`.
///
/// `None` means that the text is neither, or that the time is not in the future.
fn wait(text: &str, now: Timestamp) -> Option<Duration> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that does not fit is a long time as well.
        let seconds = text.parse().unwrap_or(u64::MAX);
        return (seconds > 0).then(|| Duration::from_secs(seconds));
    }
    until(rfc2822::parse(text).ok()?.timestamp(), now)
}

fn until(then: Timestamp, now: Timestamp) -> Option<Duration> {
    let wait = Duration::try_from(then.duration_since(now)).ok()?;
    (!wait.is_zero()).then_some(wait)
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    Some(headers.get(name)?.to_str().ok()?.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers, and the expected seconds.
    type Row = (&'static [(&'static str, &'static str)], Option<u64>);

    #[test]
    fn retry_times_are_read_from_headers() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().expect("a time");
        let day = 24 * 3600;
        let table: &[Row] = &[
            (&[], None),
            (&[("retry-after", "120")], Some(120)),
            (&[("retry-after", " 7 ")], Some(7)),
            (&[("retry-after", "0")], None),
            (&[("retry-after", "-5")], None),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "")], None),
            (&[("retry-after", "99999999999999999999999")], Some(day)),
            (
                &[("retry-after", "Tue, 24 Nov 2026 12:05:00 GMT")],
                Some(300),
            ),
            (&[("retry-after", "Tue, 24 Nov 2026 11:59:00 GMT")], None),
            (
                &[("retry-after", "Tue, 24 Nov 2099 12:05:00 GMT")],
                Some(day),
            ),
            // 2026-11-24T12:10:00Z
            (
                &[
                    ("x-ratelimit-remaining", "0"),
                    ("x-ratelimit-reset", "1795522200"),
                ],
                Some(600),
            ),
            (
                &[
                    ("x-ratelimit-remaining", "17"),
                    ("x-ratelimit-reset", "1795522200"),
                ],
                None,
            ),
            (&[("x-ratelimit-reset", "1795522200")], None),
            (
                &[
                    ("retry-after", "60"),
                    ("x-ratelimit-remaining", "0"),
                    ("x-ratelimit-reset", "1795522200"),
                ],
                Some(60),
            ),
            (
                &[
                    ("x-ratelimit-remaining", "0"),
                    ("x-ratelimit-reset", "99999999999999999"),
                ],
                None,
            ),
        ];
        for (said, expected) in table {
            let headers = said
                .iter()
                .map(|(name, value)| {
                    (
                        name.parse().expect("a name"),
                        value.parse().expect("a value"),
                    )
                })
                .collect::<HeaderMap>();
            assert_eq!(
                retry_after(&headers, now),
                expected.map(Duration::from_secs),
                "{said:?}"
            );
        }
    }
}
