//! A start once the filter is on: the sources that are files are read, then the start is announced.
//!
//! Invariants: nothing that a source names is touched before the filter is on; and no file that does not answer
//! delays the announcement for longer than [`FILES`].

use std::collections::BTreeSet;
use std::time::Duration;

use log::{info, warn};
use tokio::time::{Instant, sleep_until};

use super::Daemon;
use super::start::watched;
use crate::policy::{Feed, Origin, Source};

/// How long the announcement of a start waits for the sources that are files.
const FILES: Duration = Duration::from_secs(2);

/// The files that are read for the first time since the start.
pub(super) struct Opening {
    /// Names of sources.
    reading: BTreeSet<String>,
    until: Instant,
}

/// Returns when the announcement waits no longer.
pub(super) async fn opening_ends(opening: Option<&Opening>) {
    if let Some(opening) = opening {
        sleep_until(opening.until).await;
    }
}

impl Daemon {
    /// Begins to watch the files of sources, and to fetch all sources that are due.
    pub(super) fn open_sources(&mut self) {
        // Before they are read: a file that is written during the read is read again.
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

    /// A source was read, or could not be.
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

    /// Reports that the start is done, or which lists it waits for.
    pub(super) fn announce(&mut self) {
        let Some(opening) = self.opening.take() else {
            return;
        };
        for name in &opening.reading {
            warn!(
                "{name}: its file was not read within {}; the read goes on",
                humantime::format_duration(FILES)
            );
        }
        if self.waiting {
            self.notify.ready(&self.state_line());
        } else {
            self.say_ready();
        }
    }

    /// Takes in a last-good list that came from the disk too late. If the source has answered before, its list was
    /// judged as a first one, and is judged again as the list after the last-good one.
    pub(super) fn take_late(&mut self, source: &Source, feed: Feed) {
        let name = &source.name;
        if self.policy.source(name) != Some(source) {
            return;
        }
        info!("{name}: its last good list was read from disk late");
        let now = self.now();
        match self.lists.propose_after(source, &feed, now) {
            None => self.publish_late(name, feed),
            Some(Ok(proposal)) => {
                let current = self.lists.feed(name).cloned();
                self.lists.set_feed(name, Some(feed));
                if let Err(error) = self.adopt(source, proposal, now, None) {
                    warn!("{error:#}; the list that it has stays active");
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

    /// Publishes a last-good list in the place of the list that the source has, if any.
    fn publish_late(&mut self, name: &str, feed: Feed) {
        let current = self.lists.feed(name).cloned();
        let published = self.with_lists(|daemon, lists| {
            lists.set_feed(name, Some(feed));
            daemon
                .publish(lists, None)
                .inspect_err(|_| lists.set_feed(name, current))
        });
        if let Err(error) = published {
            warn!("source {name}: its last good list cannot be used: {error:#}");
        }
    }
}
