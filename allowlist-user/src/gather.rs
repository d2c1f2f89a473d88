//! Several sources fetched at a time.
//!
//! Keeps nothing and decides nothing about failures: they come back beside what was got.

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::policy::{Source, Validator};
use crate::source::{Answer, FetchError, fetch};

/// Fetches under way at once. Vendors count requests, and a small host has few sockets to spare.
const AT_ONCE: usize = 8;

/// What came of fetching a source.
pub type Gathered = (Source, Result<Answer, FetchError>);

/// Fetches these sources, each with what is known of the list that it gave last; what came of each, in no
/// particular order.
pub async fn gather(sources: Vec<(Source, Vec<Validator>)>) -> Vec<Gathered> {
    stream::iter(sources)
        .map(|(source, known)| async move {
            let answer = fetch(&source, &known).await;
            (source, answer)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}
