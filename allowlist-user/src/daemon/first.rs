//! The lists that a daemon starts with: strict, but content with last-good.

use anyhow::{Result, bail};
use jiff::Timestamp;
use log::warn;

use crate::config::Config;
use crate::gather::gather;
use crate::policy::{Feed, Origin, Snapshot, Source};
use crate::renew::renew;
use crate::source::{Answer, FetchError};
use crate::state::StateDir;

/// What a daemon starts with.
pub(super) struct First {
    pub(super) snapshot: Snapshot,
    /// The sources that were fetched for it, and are not on disk yet.
    pub(super) fetched: Vec<Source>,
}

impl First {
    /// Every used source's prefixes: a fetched list from disk where there is one, so that a start
    /// needs no network, and everything else as it is now.
    pub(super) async fn snapshot(config: &Config, state: &StateDir) -> Result<Self> {
        let mut first = Self {
            snapshot: Snapshot::new(),
            fetched: Vec::new(),
        };
        let mut wanted = Vec::new();
        let mut kept = Snapshot::new();
        for source in config.policy.used_sources() {
            let last_good = state.load(source).unwrap_or_else(|error| {
                warn!("{error}");
                None
            });
            match (last_good, &source.origin) {
                (Some(feed), Origin::Http(_)) => {
                    first.snapshot.insert(source.name.clone(), feed);
                    continue;
                }
                (Some(feed), _) => {
                    kept.insert(source.name.clone(), feed);
                }
                (None, _) => {}
            }
            wanted.push((source.clone(), Vec::new()));
        }
        let mut failed = 0;
        for (source, answer) in gather(wanted).await {
            let last = kept.remove(&source.name);
            match (taken(&source, last.as_ref(), answer), last) {
                (Ok(feed), _) => {
                    first.snapshot.insert(source.name.clone(), feed);
                    first.fetched.push(source);
                }
                (Err(error), Some(feed)) => {
                    warn!("{error:#}; its last good list is used");
                    first.snapshot.insert(source.name.clone(), feed);
                }
                (Err(error), None) => {
                    failed += 1;
                    log::error!("{error:#}");
                }
            }
        }
        if failed > 0 {
            bail!(
                "{failed} of the sources could not be had and have no last good list, so nothing was attached"
            );
        }
        Ok(first)
    }
}

fn taken(source: &Source, last: Option<&Feed>, answer: Result<Answer, FetchError>) -> Result<Feed> {
    match renew(source, last, answer?, false, Timestamp::now()) {
        Ok(renewal) => Ok(renewal.feed),
        Err(refused) => bail!("source {}: {}", source.name, refused.refusal),
    }
}
