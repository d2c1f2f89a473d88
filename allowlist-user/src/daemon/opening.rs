//! The second half of a start: reads file sources, then announces that the daemon is ready.
//!
//! Invariants: no file of a source is accessed before the filter is attached; a file that hangs delays the
//! announcement by [`FILES`] at most.

use std::collections::BTreeSet;
use std::time::Duration;

use allowlist_policy::{Feed, Origin, Source};
use log::{info, warn};
use tokio::time::{Instant, sleep_until};

use super::Daemon;
use super::commit::Transaction;

/// The time limit for the first reads of file sources, after which the start is announced without them.
const FILES: Duration = Duration::from_secs(2);

/// The first reads of file sources, which the announcement of the start waits for.
pub(super) struct Opening {
    /// The names of the sources whose first read has not ended.
    reading: BTreeSet<String>,
    until: Instant,
}

/// Waits until the time limit for the first reads of the sources' files after a start has passed; waits forever if
/// `opening` is `None`, because the start is complete.
pub(super) async fn opening_ends(opening: Option<&Opening>) {
    if let Some(opening) = opening {
        sleep_until(opening.until).await;
    }
}

impl Daemon {
    /// Watches the files of file sources, and fetches all sources that are due.
    pub(super) fn open_sources(&mut self) {
        // Before the first read, so that a write during it causes another.
        let config = self.state.config();
        self.schedule.watch_files(config);
        let files = config.policy.used_sources();
        let files = files.filter(|source| matches!(source.origin, Origin::File { .. }));
        self.opening = Some(Opening {
            reading: files.map(|source| source.name.clone()).collect(),
            until: Instant::now() + FILES,
        });
        self.schedule.fetch_due(&self.state);
        self.announce_if_read();
    }

    /// Records that the first read of source `name` has ended. After the last one, announces the start.
    pub(super) fn note_opened(&mut self, name: &str) {
        if let Some(opening) = &mut self.opening {
            opening.reading.remove(name);
        }
        self.announce_if_read();
    }

    fn announce_if_read(&mut self) {
        if self
            .opening
            .as_ref()
            .is_some_and(|opening| opening.reading.is_empty())
        {
            self.announce();
        }
    }

    /// Announces that the daemon is ready. While the configuration is inactive, only the service manager is notified.
    pub(super) fn announce(&mut self) {
        let Some(opening) = self.opening.take() else {
            return;
        };
        for name in &opening.reading {
            warn!(
                "source {name}: its file was not read within {}; the start continues, and the file is used once it is read",
                humantime::format_duration(FILES)
            );
        }
        if self.is_inactive {
            self.notify.ready(&self.state_line());
        } else {
            self.announce_ready();
        }
    }

    /// Handles a last-good list that was read after the time limit: activates it if no list was fetched meanwhile. A
    /// list that was fetched meanwhile had no predecessor, so the gate evaluates it again as the successor of the
    /// last-good list.
    pub(super) async fn take_late_list(&mut self, source: &Source, feed: Feed) {
        let name = &source.name;
        if self.state.policy().source(name) != Some(source) {
            return;
        }
        info!("{name}: the last-good list was read from disk after the time limit of the start");
        let now = self.now();
        match self.state.sources().propose_after(source, &feed, now) {
            None => self.publish_late(name, feed).await,
            Some(Ok(proposal)) => {
                let mut lists = self.state.sources().clone();
                lists.set_feed(name, Some(feed));
                if let Err(error) = self.adopt(source, lists, proposal, now, None).await {
                    warn!("source {name}: {error}; the present list stays active");
                }
            }
            Some(Err(refused)) => {
                self.publish_late(name, feed).await;
                self.refuse(source, *refused, now);
                self.keep(source, true);
            }
        }
    }

    /// Publishes the last-good list `feed` in place of the present list of source `name`.
    async fn publish_late(&mut self, name: &str, feed: Feed) {
        let mut lists = self.state.sources().clone();
        lists.set_feed(name, Some(feed));
        let next = self.state.with_sources(lists);
        if let Err(error) = self.commit(Transaction::new(next)).await {
            warn!(
                "source {name}: the last-good list cannot be activated: {error}; the present list stays active"
            );
        }
    }
}
