//! Several sources fetched at a time.
//!
//! Keeps nothing and decides nothing about failures: they come back beside what was got.

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::policy::{Feed, Source};
use crate::source::{FetchError, fetch};

/// Fetches under way at once. Vendors count requests, and a small host has few sockets to spare.
const AT_ONCE: usize = 8;

/// What came of fetching a source.
pub type Fetched = (Source, Result<Feed, FetchError>);

/// Fetches these sources; what came of each, in no particular order.
pub async fn gather(sources: Vec<Source>) -> Vec<Fetched> {
    stream::iter(sources)
        .map(|source| async move {
            let feed = fetch(&source).await;
            (source, feed)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}
