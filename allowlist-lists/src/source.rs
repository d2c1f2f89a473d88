//! Fetches the list of a source from its origin. The only user of the HTTP client and of the resolver.
//!
//! Invariants: a request without TLS goes only to loopback or where the operator allows it; no body is read beyond
//! its limit; secrets appear in no message, and are sent only to the servers that they are configured for; and a list
//! is returned only if it was received and parsed completely. Keeps no state: the caller handles failures and the
//! last-good list.

mod archive;
mod error;
mod file;
mod gzip;
mod http;
mod names;
mod retry;

use allowlist_policy::{Origin, Source, Validator};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use tokio::sync::Semaphore;

pub use archive::ArchiveError;
pub use error::{FetchError, FetchErrorCause, Obstacle, RedirectError, Remedy};
pub use gzip::GzipError;
pub use http::AddressError;
pub use http::post;
pub use names::NameError;

use crate::feed::List;
pub use allowlist_policy::{Answer, Fetched};
use error::Failure;

/// Fetches the list of `source`. HTTP requests are conditional if `known` has the validators ([`Validator`]) of the
/// last answer: a list that the server confirms as unchanged gives [`Answer::Unchanged`]. An empty `known` always gives
/// the list, except for [`Origin::Added`], which is never fetched and always unchanged.
pub async fn fetch(source: &Source, known: &[Validator]) -> Result<Answer, FetchError> {
    let now = Timestamp::now();
    let today = now.to_zoned(TimeZone::UTC).date();
    let may_be_empty = source.gate.min == 0;
    let answer = match &source.origin {
        Origin::Prefixes(prefixes) => Ok(Answer::List(Fetched::new(prefixes.clone(), now))),
        // The daemon keeps the added prefixes itself.
        Origin::Added => Ok(Answer::Unchanged(now)),
        Origin::BuiltIn { prefixes, checked } => Ok(Answer::List(Fetched::new(
            prefixes.clone(),
            midnight(*checked),
        ))),
        Origin::File { path, format } => file::fetch(path, format, may_be_empty, now, today)
            .await
            .map(Answer::List)
            .map_err(Failure::from),
        Origin::Http(http) => http::fetch(http, known, may_be_empty, now, today).await,
        Origin::Names(lookup) => names::fetch(lookup, now)
            .await
            .map(Answer::List)
            .map_err(Failure::from),
    };
    answer.map_err(|failure| FetchError {
        name: source.name.clone(),
        origin: failure.place.unwrap_or_else(|| source.origin.to_string()),
        cause: failure.cause,
        retry_after: failure.retry_after,
    })
}

/// Runs `work`, which takes long, on a thread for blocking work, and returns its result.
///
/// On a small host the runtime has only one thread. Parsing a page on that thread would delay every other fetch, signal
/// and timer.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await, // the runtime ends, and the waiting task with it
        },
    }
}

/// The memory, in MiB, that the lists being parsed may reserve together; parsing of a further list waits until enough
/// is free. A parsed list may take many times the memory of its text.
static ROOM: Semaphore = Semaphore::const_new(ROOM_MIB);
const ROOM_MIB: usize = 128;
/// The most memory that one list reserves, in MiB, even if it may need more, so that a large list leaves room for a
/// second one.
const MOST_MIB: usize = ROOM_MIB / 2;
/// The bytes of memory that a list reserves for each byte of its text.
const MEMORY_OF_TEXT: usize = 32;

/// Runs `parse` for a list whose text has `length` bytes on a thread for blocking work, as soon as its memory can be
/// reserved.
async fn parse_blocking<T: Send + 'static>(
    length: usize,
    parse: impl FnOnce() -> T + Send + 'static,
) -> T {
    let mib = ((length * MEMORY_OF_TEXT) >> 20).clamp(1, MOST_MIB);
    let room = ROOM.acquire_many(mib as u32).await; // it is never closed
    run_blocking(move || {
        let parsed = parse();
        // Released only when parsing ends, even after a timeout.
        drop(room);
        parsed
    })
    .await
}

/// Returns the union of `lists` with the fetch time `fetched`; equal notes are merged.
fn union(lists: impl IntoIterator<Item = List>, fetched: Timestamp) -> Fetched {
    let mut union = Fetched::new(Vec::new(), fetched);
    for list in lists {
        union.prefixes.extend(list.prefixes);
        for note in list.notes {
            if !union.notes.contains(&note) {
                union.notes.push(note);
            }
        }
    }
    union.prefixes.sort_unstable();
    union.prefixes.dedup();
    union
}

fn midnight(day: Date) -> Timestamp {
    day.to_zoned(TimeZone::UTC)
        .expect("a day of this century is in range")
        .timestamp()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use allowlist_policy::{Format, Select};

    #[test]
    fn a_list_that_takes_long_holds_up_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("list.json");
        let list = serde_json::json!({ "prefixes": vec!["192.0.2.1"; 2000] });
        std::fs::write(&path, list.to_string()).expect("a file");
        // Quadratic: all of the document for each of its items.
        let select = Select::new("$.prefixes[?count($..*) > 0]").expect("a JSONPath");
        let format = Format::Json(vec![select].into());
        let source = Source::new("lab", Origin::File { path, format });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let (answer, ticks) = runtime.expect("a runtime").block_on(async {
            let mut tick = tokio::time::interval(Duration::from_millis(1));
            let mut ticks = 0;
            let fetched = fetch(&source, &[]);
            tokio::pin!(fetched);
            loop {
                tokio::select! {
                    answer = &mut fetched => break (answer, ticks),
                    _ = tick.tick() => ticks += 1,
                }
            }
        });
        assert!(matches!(answer, Ok(Answer::List(_))), "{answer:?}");
        assert!(ticks > 10, "{ticks}");
    }
}
