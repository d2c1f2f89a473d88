//! Every source that the policy uses to one snapshot, several fetches at a time.
//!
//! Keeps nothing and decides nothing about failures: they come back beside what was got.

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::policy::{Feed, Policy, Source};
use crate::source::{FetchError, Fetcher};

/// Fetches under way at once. Vendors count requests, and a small host has few sockets to spare.
const AT_ONCE: usize = 8;

/// What came of fetching a source.
pub type Fetched = (Source, Result<Feed, FetchError>);

/// Fetches these sources; what came of each, in no particular order.
pub async fn gather(sources: Vec<Source>) -> Vec<Fetched> {
    let fetcher = &Fetcher::new();
    stream::iter(sources)
        .map(|source| async move {
            let feed = fetcher.fetch(&source).await;
            (source, feed)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

/// The sources that some service names: the others are not fetched.
pub fn used(policy: &Policy) -> impl Iterator<Item = &Source> {
    policy.sources.iter().filter(|source| {
        policy
            .services
            .iter()
            .any(|service| service.allow.contains(&source.name))
    })
}
