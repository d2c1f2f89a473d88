//! The daemon's files: the journal, the event log and the last-good lists.
//!
//! Invariants: a change with [`Durability::Required`] is in the journal before it is active; without the disk,
//! everything else continues in memory and is logged.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use allowlist_lists::event::Event;
use allowlist_lists::state::{StateDir, StateError, StateLock};
use allowlist_policy::error_code::bail_with;
use allowlist_policy::{Feed, Source};
use anyhow::Result;
use log::{info, warn};
use tokio::time::Instant;

use crate::audit::AuditEntry;
use crate::config::Config;
use crate::event_log::EventLog;
use crate::generation_meta::GenerationMeta;
use crate::journal::{Change, Journal};
use crate::time::Now;

/// The interval at which an unchanged list is stored again, so that its age on disk stays current.
const KEEP_EVERY: Duration = Duration::from_mins(10);
/// The retry interval for writing changes that are active but not in the journal.
const CATCH_UP_EVERY: Duration = Duration::from_secs(10);

/// Whether a change becomes active if the disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// The change is refused: a restart must not lose it, since it may grant access that others rely on.
    Required,
    /// The change becomes active with a warning, and is written to the journal later.
    BestEffort,
}

/// The files in the state directory.
pub(super) struct Store {
    state: StateDir,
    /// The lock of the state directory; `None` if the directory could not be opened, in which case nothing is stored.
    lock: Option<StateLock>,
    pub(super) journal: Journal,
    event_log: EventLog,
    /// By source name: the time at which the source's list was last stored.
    kept: BTreeMap<String, Instant>,
    /// The earliest time for the next attempt to write active changes that are missing from the journal.
    catch_up_after: Instant,
}

impl Store {
    /// Opens and locks the state directory, and reads the journal. `current` is the text of the present configuration,
    /// from which secrets are restored.
    ///
    /// If the directory hangs or cannot be opened, the filter starts without it, and stores nothing.
    ///
    /// # Errors
    /// Fails if another process has the lock, or other users can change the directory.
    pub(super) fn open(path: &Path, current: &str) -> Result<Self> {
        let opened = StateDir::open(path).and_then(|state| {
            let lock = state.lock()?;
            Ok((state, Some(lock)))
        });
        let (state, lock) = match opened {
            // A directory that other users can change is an error, and not used at all.
            Err(StateError::Io { path, cause }) if cause.kind() != ErrorKind::Other => {
                let error = StateError::Io {
                    path: path.clone(),
                    cause,
                };
                warn!(
                    "{error}; starting without last-good lists, and a restart loses changes; repair the state directory, then restart the daemon"
                );
                (StateDir::unopened(&path), None)
            }
            opened => opened?,
        };
        Ok(Self {
            journal: Journal::open(&state, &Now::current(), current),
            event_log: EventLog::new(path, 0, 0),
            kept: BTreeMap::new(),
            catch_up_after: Instant::now(),
            state,
            lock,
        })
    }

    /// Applies the size limits of a configuration to the event log.
    pub(super) fn set_limits(&mut self, config: &Config) {
        let path = self.state.path();
        self.event_log = EventLog::new(path, config.log_bytes, config.history_bytes);
    }

    /// Returns the state directory, for reading.
    pub(super) fn state_dir(&self) -> &StateDir {
        &self.state
    }

    /// Returns the state directory, for writing.
    ///
    /// # Errors
    /// Fails if the state directory could not be opened and locked at the start.
    fn disk(&self) -> Result<&StateDir> {
        if self.lock.is_none() {
            bail_with!(
                InvalidStateDir,
                "{}: the state directory could not be opened at the start; repair it, then restart the daemon",
                self.state.path().display()
            );
        }
        Ok(&self.state)
    }

    /// Writes a file of the state directory.
    ///
    /// # Errors
    /// Fails if the file cannot be written; the earlier one stays then.
    pub(super) fn write(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        Ok(self.disk()?.write(name, bytes)?)
    }

    /// Returns the number of the newest policy, or `None` if the journal has no policy.
    pub(super) fn policy_number(&self) -> Option<u64> {
        let newest = self.journal.known().newest()?;
        Some(newest.number)
    }

    /// Writes a change to the journal. With [`Durability::BestEffort`], a failure is returned as a warning, to be logged
    /// once the change is active, and the change stays in memory. [`Journal::undo_last`] removes the change.
    ///
    /// # Errors
    /// Fails if the change cannot be written and the durability is required; the change is not recorded then.
    pub(super) fn record(
        &mut self,
        change: Change,
        durability: Durability,
    ) -> Result<Option<String>, StateError> {
        self.journal.stage(change);
        match self.journal.write() {
            Ok(_) => Ok(None),
            Err(error) if durability == Durability::Required => {
                self.journal.undo_last();
                Err(error)
            }
            Err(error) => {
                self.journal.keep_in_memory();
                Ok(Some(format!(
                    "cannot write the change to the journal: {error}; the change takes effect anyway, and the write is retried; a restart before the write succeeds loses the change"
                )))
            }
        }
    }

    /// Rewrites the journal if later changes have replaced most of its edits of added prefixes.
    pub(super) fn compact_journal(&mut self) {
        let now = self.journal.now();
        self.journal.compact(&self.state, &now);
    }

    /// Writes the active changes that are missing from the journal. After a failure, the next attempt follows after
    /// [`CATCH_UP_EVERY`].
    pub(super) fn catch_up_journal(&mut self) {
        if !self.journal.is_behind() || self.catch_up_after > Instant::now() {
            return;
        }
        match self.journal.catch_up() {
            Ok(()) => info!("the journal has all active changes now; a restart loses none"),
            Err(_) => self.catch_up_after = Instant::now() + CATCH_UP_EVERY,
        }
    }

    /// Appends an operation to the event log. A failure is logged.
    pub(super) fn add_operation(&self, entry: AuditEntry) {
        let record = entry.into();
        let added = self.disk().and_then(|_| Ok(self.event_log.add(&record)?));
        if let Err(error) = added {
            warn!(
                "cannot append to the audit log, so `allowlist log` will lack this operation: {error:#}"
            );
        }
    }

    /// Appends an event of a list to the event log. A failure is logged.
    pub(super) fn add_event(&self, event: &Event) {
        let record = event.into();
        let added = self.disk().and_then(|_| Ok(self.event_log.add(&record)?));
        if let Err(error) = added {
            warn!(
                "{}: cannot append to the history, so `allowlist history` will lack an event of this source: {error:#}",
                event.source
            );
        }
    }

    /// Stores the list of a source for the next start. If `is_other` is false, the list is unchanged, and is stored only
    /// every [`KEEP_EVERY`]. A failure is logged.
    pub(super) fn keep(&mut self, source: &Source, feed: &Feed, is_other: bool) {
        let is_kept = |at: &Instant| at.elapsed() < KEEP_EVERY;
        if !is_other && self.kept.get(&source.name).is_some_and(is_kept) {
            return;
        }
        let stored = self.disk().and_then(|state| Ok(state.store(source, feed)?));
        match stored {
            Ok(()) => {
                self.kept.insert(source.name.clone(), Instant::now());
            }
            Err(error) => warn!(
                "{}: cannot store the list for the next start: {error:#}; the list is active, and storing it is retried after the next fetch",
                source.name
            ),
        }
    }

    /// Removes the metadata that an earlier version of the program stored on disk. A failure is logged.
    pub(super) fn remove_older_meta(&self) {
        if self.lock.is_some()
            && let Err(error) = GenerationMeta::remove_older(self.state.path())
        {
            warn!("{error:#}; the file is not used any more, so nothing else is affected");
        }
    }
}
