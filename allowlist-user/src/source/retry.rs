//! How long a server asks to be left alone.
//!
//! Reads headers only. A server cannot silence this host for longer than a day.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// However long a server asks for, it is asked again then.
const LONGEST: Duration = Duration::from_hours(24);

/// What the server says, from now on; none if it says nothing that can be understood, or nothing any more.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let said = text(headers, RETRY_AFTER.as_str()).and_then(|text| wait(text, now));
    let said = said.or_else(|| {
        let reset = is_limited(headers).then(|| text(headers, "x-ratelimit-reset"))??;
        until(Timestamp::from_second(reset.parse().ok()?).ok()?, now)
    })?;
    Some(said.min(LONGEST))
}

/// Whether the server says that this host has no more requests left.
pub(super) fn is_limited(headers: &HeaderMap) -> bool {
    text(headers, "x-ratelimit-remaining") == Some("0")
}

/// Seconds, or a date such as `Sun, 06 Nov 1994 08:49:37 GMT`.
fn wait(text: &str, now: Timestamp) -> Option<Duration> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a long time all the same.
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

    /// What headers say, and how many seconds that is.
    type Row = (&'static [(&'static str, &'static str)], Option<u64>);

    #[test]
    fn a_server_is_left_alone_for_as_long_as_it_asks() {
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
