//! The refresh requests in progress: each is answered when the fetches that it waits for have ended.

use std::collections::{BTreeMap, BTreeSet};

use allowlist_lists::states::SourceStates;
use allowlist_policy::Policy;
use tokio::sync::oneshot;

use crate::control::{ApplyOutcome, RefreshOutcome};
use crate::error_code::ApiError;

/// A refresh request whose fetches are in progress.
pub(super) struct Refresh {
    /// The names of the sources whose fetch has not ended yet.
    pub(super) left: BTreeSet<String>,
    /// The names of the sources that were being fetched at the time of the request. Such a fetch may have read the list
    /// before the request, so only the fetch after it counts.
    pub(super) stale: BTreeSet<String>,
    /// The outcomes of the fetches that have ended, by source name.
    pub(super) sources: BTreeMap<String, RefreshOutcome>,
    /// The lists before the refresh, to compute the changes for the answer.
    pub(super) before: SourceStates,
    pub(super) answer: oneshot::Sender<Result<ApplyOutcome, ApiError>>,
}

/// The refresh requests in progress.
#[derive(Default)]
pub(super) struct Refreshes(Vec<Refresh>);

impl Refreshes {
    /// Adds a request.
    pub(super) fn add(&mut self, refresh: Refresh) {
        self.0.push(refresh);
    }

    /// Records the outcome of a fetch of source `name` in each request that waits for it.
    pub(super) fn note(&mut self, name: &str, outcome: &RefreshOutcome) {
        for waiting in &mut self.0 {
            if !waiting.stale.remove(name) && waiting.left.remove(name) {
                waiting.sources.insert(name.to_owned(), outcome.clone());
            }
        }
    }

    /// Removes and returns the requests whose fetches have all ended. Sources that `policy` does not have are skipped.
    pub(super) fn take_complete(&mut self, policy: &Policy) -> Vec<Refresh> {
        for waiting in &mut self.0 {
            waiting.left.retain(|name| policy.source(name).is_some());
        }
        self.0
            .extract_if(.., |waiting| waiting.left.is_empty())
            .collect()
    }
}
