//! The lists that a daemon starts with: strict, but content with last-good.

use std::convert::Infallible;

use anyhow::{Result, bail};
use jiff::Timestamp;
use log::warn;

use crate::config::Config;
use crate::event::Event;
use crate::gather::{Gathered, gather};
use crate::lists::Lists;
use crate::policy::{Origin, Snapshot, Source};
use crate::renew::release;
use crate::state::StateDir;

/// What a daemon starts with.
pub(super) struct First {
    pub(super) lists: Lists,
    /// The sources that were fetched for it, and are not on disk yet.
    pub(super) fetched: Vec<Source>,
    /// What is other than it was before; the generation is yet to be made.
    pub(super) events: Vec<Event>,
}

impl First {
    /// Every used source's list: a fetched one from disk where there is one, so that a start needs no
    /// network, and everything else as it is now.
    pub(super) async fn lists(config: &Config, state: &StateDir) -> Result<Self> {
        let now = Timestamp::now();
        let mut last_good = Snapshot::new();
        let mut wanted = Vec::new();
        for source in config.policy.used_sources() {
            let feed = state.load(source).unwrap_or_else(|error| {
                warn!("{error}");
                None
            });
            let is_remote = matches!(source.origin, Origin::Http(_) | Origin::Names(_));
            if feed.is_none() || !is_remote {
                wanted.push((source.clone(), Vec::new()));
            }
            if let Some(feed) = feed {
                // While nothing ran, time went on.
                let feed = release(&feed, now).map_or(feed, |(feed, _)| feed);
                last_good.insert(source.name.clone(), feed);
            }
        }
        let mut first = Self {
            lists: Lists::new(last_good),
            fetched: Vec::new(),
            events: Vec::new(),
        };
        let mut failed = 0;
        for gathered in gather(wanted).await {
            let source = gathered.source.clone();
            match first.take(gathered, now) {
                Ok(()) => first.fetched.push(source),
                Err(error) if first.lists.feed(&source.name).is_some() => {
                    warn!("{error:#}; its last good list is used");
                }
                Err(error) => {
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

    fn take(&mut self, gathered: Gathered, now: Timestamp) -> Result<()> {
        let Gathered { source, answer, .. } = gathered;
        let proposal = match self.lists.propose(&source, answer?, now) {
            Ok(proposal) => proposal,
            Err(refused) => bail!(
                "source {}: {}: {}",
                source.name,
                source.origin,
                refused.refusal
            ),
        };
        for note in &proposal.feed.notes {
            warn!("{}: {note}", source.name);
        }
        let Ok(events) = self.lists.adopt(proposal, now, |_| Ok::<_, Infallible>(0));
        // What the configuration or the program holds is news to nobody.
        if source.can_change() {
            self.events.extend(events);
        }
        Ok(())
    }
}
