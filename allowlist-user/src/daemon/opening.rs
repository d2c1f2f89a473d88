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
use super::start::watched;

/// The time limit for the first reads of file sources, after which the start is announced without them.
const FILES: Duration = Duration::from_secs(2);

/// The first reads of file sources, which the announcement of the start waits for.
pub(super) struct Opening {
    /// The names of the sources whose first read has not ended.
    reading: BTreeSet<String>,
    until: Instant,
}

/// Waits until the time limit of the first reads; waits forever if `opening` is `None`.
pub(super) async fn opening_ends(opening: Option<&Opening>) {
    if let Some(opening) = opening {
        sleep_until(opening.until).await;
    }
}

impl Daemon {
    /// Watches the files of file sources, and fetches all sources that are due.
    pub(super) fn open_sources(&mut self) {
        // Before the first read, so that a write during it causes another.
        self.files = watched(&self.config);
        let files = self.config.policy.used_sources();
        let files = files.filter(|source| matches!(source.origin, Origin::File { .. }));
        self.opening = Some(Opening {
            reading: files.map(|source| source.name.clone()).collect(),
            until: Instant::now() + FILES,
        });
        self.fetch_due();
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
                "{name}: its file was not read within {}; still reading",
                humantime::format_duration(FILES)
            );
        }
        if self.inactive {
            self.notify.ready(&self.state_line());
        } else {
            self.announce_ready();
        }
    }

    /// Handles a last-good list that was read after the time limit. A list that was fetched meanwhile was evaluated as
    /// the first one; it is evaluated again as the successor of the last-good list.
    pub(super) fn take_late_list(&mut self, source: &Source, feed: Feed) {
        let name = &source.name;
        if self.policy.source(name) != Some(source) {
            return;
        }
        info!("{name}: the last-good list was read from disk after the time limit of the start");
        let now = self.now();
        match self.lists.propose_after(source, &feed, now) {
            None => self.publish_late(name, feed),
            Some(Ok(proposal)) => {
                let current = self.lists.feed(name).cloned();
                self.lists.set_feed(name, Some(feed));
                if let Err(error) = self.adopt(source, proposal, now, None) {
                    warn!("{error:#}; the present list stays active");
                    self.lists.set_feed(name, current);
                }
            }
            Some(Err(refused)) => {
                self.publish_late(name, feed);
                self.refuse(source, *refused, now);
                self.keep(source, true);
            }
        }
    }

    /// Publishes the last-good list `feed` in place of the present list of source `name`.
    fn publish_late(&mut self, name: &str, feed: Feed) {
        let current = self.lists.feed(name).cloned();
        let published = self.with_lists(|daemon, lists| {
            lists.set_feed(name, Some(feed));
            daemon
                .publish(lists, None)
                .inspect_err(|_| lists.set_feed(name, current))
        });
        if let Err(error) = published {
            warn!("source {name}: the last-good list cannot be used: {error:#}");
        }
    }
}
