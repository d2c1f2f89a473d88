//! Updates lists while the daemon runs: fetches, evaluates and publishes them, ends grace periods, emits events.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use allowlist_lists::event::{Event, EventKind};
use allowlist_lists::gather::Gathered;
use allowlist_lists::list_update::RejectedUpdate;
use allowlist_lists::rejected;
use allowlist_lists::states::Proposal;
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::hints;
use allowlist_policy::{Answer, Origin, Source};
use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use log::{info, warn};
use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::{Daemon, schedule};
use crate::control::{ApplyOptions, ApplyOutcome};
use crate::error_code::{ApiError, code_of};

/// The delay between the first write to a file and the read of that file; each further write extends it.
const SETTLE: Duration = Duration::from_millis(300);
/// The longest delay between the first write to a file and its read, even if the file is written repeatedly.
const LONGEST_SETTLE: Duration = Duration::from_secs(5);
/// The interval at which an unchanged list is stored again, so that its age on disk stays current.
const KEEP_EVERY: Duration = Duration::from_mins(10);
/// The smallest difference between the clocks that counts as a step of the wall clock.
const JUMP: SignedDuration = SignedDuration::from_secs(10);

/// The delay until another attempt to publish without expired prefixes, after a failure.
pub(super) const RELEASE_RETRY: Duration = Duration::from_mins(1);

/// The wall clock and the boot clock, read at the same moment.
pub(super) struct Clocks {
    wall: Timestamp,
    /// The time since the boot, suspended time included.
    steady: Duration,
}

impl Clocks {
    /// Reads the wall clock and the boot clock.
    pub(super) fn now() -> Self {
        let steady = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        Self {
            wall: Timestamp::now(),
            steady,
        }
    }

    /// Returns by how much the wall clock was stepped between `self` and `now`: its progress minus that of the boot
    /// clock.
    fn jump(&self, now: &Self) -> SignedDuration {
        let by_wall = now.wall.duration_since(self.wall);
        let passed = now.steady.saturating_sub(self.steady);
        by_wall.saturating_sub(SignedDuration::try_from(passed).unwrap_or(SignedDuration::ZERO))
    }
}

/// The outcome of a fetch, which decides when the next fetch follows.
enum FetchOutcome {
    Active,
    Rejected,
    Failed,
}

impl Daemon {
    /// Starts the fetches that are due, in the background.
    pub(super) fn fetch_due(&mut self) {
        let now = Instant::now();
        let due: Vec<Source> = self
            .config
            .policy
            .used_sources()
            .filter(|source| self.due.get(&source.name).is_some_and(|due| *due <= now))
            // One fetch per source at a time, or answers could arrive in the wrong order. A file that is written during
            // its read is due after the read.
            .filter(|source| !self.fetches.is_running(&source.name))
            .cloned()
            .collect();
        for source in due {
            let last = self.lists.feed(&source.name);
            let known = last.map_or_else(Vec::new, |feed| feed.validators.clone());
            // The outcome determines the next fetch.
            self.due.remove(&source.name);
            self.writing.remove(&source.name);
            self.fetches.start(source, known);
        }
    }

    /// Returns the earliest time of a scheduled fetch, without the sources that are being fetched.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let waiting = self
            .due
            .iter()
            .filter(|(name, _)| !self.fetches.is_running(name));
        waiting.map(|(_, due)| *due).min()
    }

    /// Schedules reads of the file sources at these paths, which were written.
    pub(super) fn touched(&mut self, paths: &BTreeSet<PathBuf>) {
        let now = Instant::now();
        for source in self.config.policy.used_sources() {
            if matches!(&source.origin, Origin::File { path, .. } if paths.contains(path)) {
                let name = &source.name;
                let first = *self.writing.entry(name.clone()).or_insert(now);
                let soon = (now + SETTLE).min(first + LONGEST_SETTLE);
                self.due.insert(name.clone(), soon);
            }
        }
    }

    /// Handles the outcome of a fetch. After a failure or a rejection the last-good list stays active.
    pub(super) fn handle_fetch(&mut self, gathered: Gathered) {
        let Gathered {
            source,
            answer,
            retry_after,
        } = gathered;
        if self.policy.source(&source.name) != Some(&source) {
            // The configuration has changed since the fetch began.
            self.note_refreshed(&source.name);
            return;
        }
        let now = self.now();
        let again = match &answer {
            Ok(Answer::List(fetched)) => fetched.again,
            _ => None,
        };
        let taken = match answer.map(|answer| self.lists.propose(&source, answer, now)) {
            Ok(Ok(proposal)) => match self.adopt(&source, proposal, now, None) {
                Ok(_) => FetchOutcome::Active,
                Err(error) => {
                    warn!(
                        target: "allowlist::list-rejected",
                        "{error:#}; the last-good list stays active"
                    );
                    FetchOutcome::Rejected
                }
            },
            Ok(Err(refused)) => {
                self.refuse(&source, *refused, now);
                FetchOutcome::Rejected
            }
            Err(error) => {
                warn!(
                    target: "allowlist::fetch-failed",
                    "{error:#}; {}",
                    self.instead(&source.name)
                );
                let (code, reason) = (code_of(&error), format!("{error:#}"));
                let events = self.lists.record_failure(&source.name, code, reason, now);
                self.emit_events(&events);
                FetchOutcome::Failed
            }
        };
        let failures = self
            .lists
            .health(&source.name)
            .map_or(0, |one| one.failures);
        let chance = fastrand::f64();
        let wait = match taken {
            FetchOutcome::Active => schedule::after_success(&source, again, chance),
            // A complete list will hardly differ in a minute, and vendors limit requests.
            FetchOutcome::Rejected => schedule::after_success(&source, None, chance),
            FetchOutcome::Failed => schedule::after_failure(&source, failures, retry_after, chance),
        };
        self.schedule(&source, wait);
        self.is_meta_outdated = true;
        self.update_meta();
        self.note_refreshed(&source.name);
    }

    /// Returns the consequence of a failed fetch of source `name`, for the log.
    fn instead(&self, name: &str) -> &'static str {
        if self.lists.feed(name).is_some() {
            "the last-good list stays active"
        } else {
            "there is no list yet; retrying"
        }
    }

    /// Records and logs a list that the gate rejected, and stores the source's list again.
    pub(super) fn refuse(&mut self, source: &Source, refused: RejectedUpdate, now: Timestamp) {
        let name = &source.name;
        let reason = refused.reason(source);
        warn!(
            target: "allowlist::list-rejected",
            "{reason}; {} (would add {} prefixes and remove {})",
            self.instead(name),
            refused.difference.added.len(),
            refused.difference.removed.len()
        );
        let events = self.lists.record_rejection(name, refused, reason, now);
        // The ages of the list's changes have changed.
        self.keep(source, false);
        self.emit_events(&events);
    }

    /// Publishes a list that passed the gate, then stores it, and returns the events. A list that does not fit the
    /// tables is rejected as by the gate. With `options`, does the lockout check first.
    pub(super) fn adopt(
        &mut self,
        source: &Source,
        proposal: Proposal,
        now: Timestamp,
        options: Option<&ApplyOptions>,
    ) -> Result<Vec<Event>> {
        let name = &source.name;
        let is_news = proposal.needs_publish;
        let (old, old_notes) = match self.lists.feed(name) {
            Some(feed) => (feed.prefixes.len(), feed.notes.clone()),
            None => (0, Vec::new()),
        };
        let adopted = self.with_lists(|daemon, lists| {
            lists.commit(proposal, now, |lists| {
                if is_news {
                    daemon.publish(lists, options)
                } else {
                    Ok(daemon.dataplane.generation())
                }
            })
        });
        let events = match adopted {
            Ok(events) => events,
            // The operator may repeat the request with --force.
            Err((error, _)) if error.is::<ApiError>() => return Err(error),
            Err((error, change)) => {
                let error = error.context(format!("source {name}"));
                let (code, reason) = (code_of(&error), format!("{error:#}"));
                let events = self
                    .lists
                    .record_unpublished(name, code, reason, change, now);
                self.emit_events(&events);
                return Err(error);
            }
        };
        let feed = self.lists.feed(name).expect("it was adopted");
        // A new grace period alone does not change the tables.
        let is_changed = |event: &Event| matches!(event.kind, EventKind::Changed { .. });
        let is_other = is_news || events.iter().any(is_changed);
        if is_other {
            let grace = match feed.grace.len() {
                0 => String::new(),
                grace => format!(", {grace} more in their grace period"),
            };
            info!(
                target: "allowlist::list-changed",
                "{name}: changed from {old} to {} prefixes{grace}; generation {}",
                feed.prefixes.len(),
                self.dataplane.generation()
            );
        }
        for note in feed.notes.iter().filter(|note| !old_notes.contains(note)) {
            warn!("{name}: {note}");
        }
        self.keep(source, is_other);
        self.emit_events(&events);
        Ok(events)
    }

    /// Accepts the rejected list of source `name` that has this id; without an id, refuses, and the error names the
    /// present id.
    pub(super) fn accept(
        &mut self,
        name: &str,
        id: Option<&str>,
        options: &ApplyOptions,
    ) -> Result<ApplyOutcome, ApiError> {
        let refuse = |kind, error: String| Err(ApiError::new(kind, error));
        let Some(source) = self.config.policy.source(name).cloned() else {
            let names: Vec<_> = self
                .config
                .policy
                .used_sources()
                .map(|one| &*one.name)
                .collect();
            let there_are = hints::there_are(names);
            return refuse(
                ErrorCode::UnknownSource,
                format!("no source is called {name:?}; {there_are}"),
            );
        };
        let now = self.now();
        let proposal = match self.lists.propose_rejected(&source, now) {
            Some(Ok(proposal)) => proposal,
            Some(Err(refused)) => {
                let refusal = refused.rejection;
                return refuse(refusal.code(), format!("source {name}: {refusal}"));
            }
            None => {
                let health = self.lists.health(name);
                let failure = health.and_then(|health| health.failure.as_ref());
                let error = match failure {
                    Some(failure) => format!(
                        "{name} has no rejected list to accept; the last fetch failed: {failure}"
                    ),
                    None => {
                        format!("{name} has no rejected list; `allowlist status` shows its state")
                    }
                };
                return refuse(ErrorCode::NoRejectedList, error);
            }
        };
        let ids = self.lists.rejected_ids();
        let current = ids.get(name).copied().unwrap_or_default();
        let command = rejected::command(name, current);
        match id {
            Some(id) if id == current => {}
            Some(_) => {
                return refuse(
                    ErrorCode::AnotherRejectedList,
                    format!(
                        "{name} has a newer rejected list now, with the id {current}; `allowlist diff {name}` shows it, `{command}` accepts it"
                    ),
                );
            }
            None => {
                return refuse(
                    ErrorCode::InvalidRequest,
                    format!(
                        "accept needs the `id` of the rejected list, which is {current} for {name}; `allowlist diff {name}` shows the list, `{command}` accepts it"
                    ),
                );
            }
        }
        let before = self.lists.clone();
        let adopted = self.adopt(&source, proposal, now, Some(options));
        self.is_meta_outdated = true;
        self.update_meta();
        let change = adopted
            .map_err(ApiError::from)?
            .into_iter()
            .find_map(|event| match event.kind {
                EventKind::Changed { change, .. } => Some(change),
                _ => None,
            });
        let additions = self.journal.known().additions();
        Ok(ApplyOutcome {
            changes: self.changes_since(&self.config, self.mode, additions, before.feeds()),
            change: Some(change.unwrap_or_default()),
            ..self.outcome()
        })
    }

    /// Returns the time of the wall clock. If that clock was stepped, first shifts all stored times by the step.
    pub(super) fn now(&mut self) -> Timestamp {
        let clocks = Clocks::now();
        let jump = self.clocks.jump(&clocks);
        if jump.abs() > JUMP {
            warn!(
                target: "allowlist::clock-set",
                "the wall clock was set by {}s; grace periods are adjusted",
                jump.as_secs()
            );
            self.lists.apply_clock_step(clocks.wall, jump);
            // The next start uses the times on disk.
            let used: Vec<Source> = self.config.policy.used_sources().cloned().collect();
            for source in &used {
                self.keep(source, true);
            }
        }
        self.clocks = clocks;
        self.clocks.wall
    }

    /// Removes grace prefixes and added prefixes that have expired, and logs lists that have become stale.
    pub(super) fn handle_timers(&mut self) {
        let now = self.now();
        if self.lists.next_expiry().is_some_and(|next| next <= now)
            && self.release_after <= Instant::now()
        {
            self.release(now);
        }
        let events = self
            .lists
            .mark_stale(self.config.policy.used_sources(), now);
        for event in &events {
            if let EventKind::Stale { fetched } = event.kind {
                warn!(
                    target: "allowlist::list-stale",
                    "{}: list is stale: last fetched {fetched}, max_age {}; still in use; see `allowlist status`",
                    event.source,
                    self.max_age(&event.source)
                );
            }
        }
        self.emit_events(&events);
        self.expire();
    }

    /// Returns the `max_age` of source `name` as text, for the log.
    fn max_age(&self, name: &str) -> String {
        let source = self.config.policy.source(name);
        let max_age = source.map(|source| source.max_age).unwrap_or_default();
        humantime::format_duration(max_age).to_string()
    }

    /// Publishes the lists without the prefixes whose grace period has ended at `now`.
    fn release(&mut self, now: Timestamp) {
        let released = self.with_lists(|daemon, lists| {
            lists.expire_grace(now, |lists| daemon.publish(lists, None))
        });
        match released {
            Ok(events) => {
                for event in &events {
                    let name = &event.source;
                    info!(
                        "{name}: a grace period has ended; generation {}",
                        self.dataplane.generation()
                    );
                    if let Some(source) = self.config.policy.source(name).cloned() {
                        self.keep(&source, true);
                    }
                }
                self.emit_events(&events);
            }
            Err(error) => {
                warn!(
                    "cannot publish the end of a grace period: {error:#}; grace prefixes stay allowed; retrying"
                );
                self.release_after = Instant::now() + RELEASE_RETRY;
            }
        }
        self.is_meta_outdated = true;
        self.update_meta();
    }

    /// Appends events to the history, and passes them to the hook. Failures are logged.
    pub(super) fn emit_events(&self, events: &[Event]) {
        for event in events {
            let added = self
                .disk()
                .and_then(|_| Ok(self.event_log.add(&event.into())?));
            if let Err(error) = added {
                warn!("{}: cannot append to the history: {error:#}", event.source);
            }
            self.hook_queue.enqueue(event);
        }
    }

    /// Stores the source's list for the next start. If `is_other` is false, the list is unchanged, and is stored only
    /// every [`KEEP_EVERY`].
    pub(super) fn keep(&mut self, source: &Source, is_other: bool) {
        let Some(feed) = self.lists.feed(&source.name) else {
            return;
        };
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
                "{}: cannot store the list for the next start: {error:#}",
                source.name
            ),
        }
    }

    /// Schedules the next fetch of each source by the age of its list. With `is_start`, files are due at once.
    pub(super) fn schedule_all(&mut self, is_start: bool) {
        let (now, clock) = (Instant::now(), Timestamp::now());
        let changing = self
            .config
            .policy
            .used_sources()
            .filter(|source| source.can_change());
        let due = changing.map(|source| {
            let every = match source.origin {
                // The time to live of the last DNS answer is not stored.
                Origin::Names(_) => Duration::ZERO,
                Origin::File { .. } if is_start => Duration::ZERO,
                _ => source.every,
            };
            let fetched = self.lists.feed(&source.name).map(|feed| feed.fetched);
            // The age is unknown if the clock is behind: fetch at once.
            let age = fetched.and_then(|fetched| clock.duration_since(fetched).try_into().ok());
            let age = age.unwrap_or(every);
            // A failed fetch at the start is retried as any other.
            let failed = self.lists.health(&source.name);
            let wait = match failed.filter(|health| health.failure.is_some()) {
                Some(health) => {
                    schedule::after_failure(source, health.failures, None, fastrand::f64())
                }
                None => every.saturating_sub(age),
            };
            (source.name.clone(), now + wait)
        });
        self.due = due.collect();
    }

    fn schedule(&mut self, source: &Source, wait: Duration) {
        // A file that was written meanwhile is due earlier.
        let due = Instant::now() + wait;
        self.due
            .entry(source.name.clone())
            .and_modify(|known| *known = (*known).min(due))
            .or_insert(due);
    }
}
