//! Lists while the daemon runs: asked for when they are due, taken in when they are good, let go of when their
//! time is over; and who is told of it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use log::{info, warn};
use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::{Daemon, schedule};
use crate::control::{Care, Done};
use crate::error_code::{CodedError, ErrorCode};
use crate::event::{Event, What};
use crate::gather::Gathered;
use crate::hints;
use crate::list_update::RejectedUpdate;
use crate::lists::Proposal;
use crate::policy::{Answer, Origin, Source};
use crate::rejected;

/// After a file was touched, its writer is left this long to be done.
const SETTLE: Duration = Duration::from_millis(300);
/// A file that is touched again and again is read after this at the latest.
const LONGEST_SETTLE: Duration = Duration::from_secs(5);
/// A list that is what it was is not put on disk again for this long: only its age is newer.
const KEEP_EVERY: Duration = Duration::from_mins(10);
/// A clock that is off by more than this was set.
const JUMP: SignedDuration = SignedDuration::from_secs(10);

/// A release that cannot be put in force is tried again after this.
pub(super) const RELEASE_RETRY: Duration = Duration::from_mins(1);

/// What the two clocks showed when they were compared last.
pub(super) struct Clocks {
    wall: Timestamp,
    /// Since the boot; goes on while the host sleeps.
    steady: Duration,
}

impl Clocks {
    pub(super) fn now() -> Self {
        let steady = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        Self {
            wall: Timestamp::now(),
            steady,
        }
    }

    /// By how much the wall clock was set since `self`.
    fn jump(&self, now: &Self) -> SignedDuration {
        let by_wall = now.wall.duration_since(self.wall);
        let passed = now.steady.saturating_sub(self.steady);
        by_wall.saturating_sub(SignedDuration::try_from(passed).unwrap_or(SignedDuration::ZERO))
    }
}

/// What became of an answer.
enum Taken {
    InForce,
    Refused,
    Failed,
}

impl Daemon {
    /// Starts fetching what is due, beside the loop.
    pub(super) fn fetch_due(&mut self) {
        let now = Instant::now();
        let due: Vec<Source> = self
            .config
            .policy
            .used_sources()
            .filter(|source| self.due.get(&source.name).is_some_and(|due| *due <= now))
            // Two answers of one source could change places: a file that is written while it is read is due
            // when that is done.
            .filter(|source| !self.fetches.is_running(&source.name))
            .cloned()
            .collect();
        for source in due {
            let last = self.lists.feed(&source.name);
            let known = last.map_or_else(Vec::new, |feed| feed.validators.clone());
            // What comes of it says when it is due again.
            self.due.remove(&source.name);
            self.writing.remove(&source.name);
            self.fetches.start(source, known);
        }
    }

    /// When something is to be fetched next that is not under way.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let waiting = self
            .due
            .iter()
            .filter(|(name, _)| !self.fetches.is_running(name));
        waiting.map(|(_, due)| *due).min()
    }

    /// Files were written: they are read again when their writers should be done.
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

    /// Takes in what came of one fetch. What cannot be had, or cannot be put in force, stays as it is.
    pub(super) fn take_in(&mut self, gathered: Gathered) {
        let Gathered {
            source,
            answer,
            retry_after,
        } = gathered;
        if self.policy.source(&source.name) != Some(&source) {
            // Another configuration is in force since it was asked, and brought a list of its own.
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
                Ok(_) => Taken::InForce,
                Err(error) => {
                    warn!(
                        target: "allowlist::list-rejected",
                        "{error:#}; its last good list stays in force"
                    );
                    Taken::Refused
                }
            },
            Ok(Err(refused)) => {
                self.refuse(&source, *refused, now);
                Taken::Refused
            }
            Err(error) => {
                warn!(
                    target: "allowlist::fetch-failed",
                    "{error:#}; {}",
                    self.instead(&source.name)
                );
                let (code, reason) = (ErrorCode::of(&error), format!("{error:#}"));
                let events = self.lists.record_failure(&source.name, code, reason, now);
                self.tell_of(&events);
                Taken::Failed
            }
        };
        let failures = self
            .lists
            .health(&source.name)
            .map_or(0, |one| one.failures);
        let chance = fastrand::f64();
        let wait = match taken {
            Taken::InForce => schedule::after_success(&source, again, chance),
            // What came whole will not be another list in a minute, and vendors count requests.
            Taken::Refused => schedule::after_success(&source, None, chance),
            Taken::Failed => schedule::after_failure(&source, failures, retry_after, chance),
        };
        self.schedule(&source, wait);
        self.record_is_old = true;
        self.write_record();
        self.note_refreshed(&source.name);
    }

    /// What is in force where a source gives nothing.
    fn instead(&self, name: &str) -> &'static str {
        if self.lists.feed(name).is_some() {
            "its last good list stays in force"
        } else {
            "it has no list yet, and is asked again"
        }
    }

    pub(super) fn refuse(&mut self, source: &Source, refused: RejectedUpdate, now: Timestamp) {
        let name = &source.name;
        let reason = refused.reason(source);
        warn!(
            target: "allowlist::list-rejected",
            "{reason}; {} ({} prefixes would come, {} would go)",
            self.instead(name),
            refused.difference.added.len(),
            refused.difference.removed.len()
        );
        let events = self.lists.record_rejection(name, refused, reason, now);
        // The ages of the list's changes advanced.
        self.keep(source, false);
        self.tell_of(&events);
    }

    /// In force first, on disk second: a list that does not get in force, for which there may be no room in the
    /// tables, is refused as if the gate had done it.
    pub(super) fn adopt(
        &mut self,
        source: &Source,
        proposal: Proposal,
        now: Timestamp,
        care: Option<&Care>,
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
                    daemon.publish(lists, care)
                } else {
                    Ok(daemon.dataplane.generation())
                }
            })
        });
        let events = match adopted {
            Ok(events) => events,
            // The operator may ask again, with more force.
            Err((error, _)) if error.is::<CodedError>() => return Err(error),
            Err((error, change)) => {
                let error = error.context(format!("source {name}"));
                let (code, reason) = (ErrorCode::of(&error), format!("{error:#}"));
                let events = self
                    .lists
                    .record_unpublished(name, code, reason, change, now);
                self.tell_of(&events);
                return Err(error);
            }
        };
        let feed = self.lists.feed(name).expect("it was adopted");
        // What is only held from now on is no news to the kernel.
        let is_changed = |event: &Event| matches!(event.what, What::Changed { .. });
        let is_other = is_news || events.iter().any(is_changed);
        if is_other {
            let held = match feed.held.len() {
                0 => String::new(),
                held => format!(" ({held} more until their grace period is over)"),
            };
            info!(
                target: "allowlist::list-changed",
                "{name}: changed, {old} prefixes before and {} now{held}; generation {}",
                feed.prefixes.len(),
                self.dataplane.generation()
            );
        }
        for note in feed.notes.iter().filter(|note| !old_notes.contains(note)) {
            warn!("{name}: {note}");
        }
        self.keep(source, is_other);
        self.tell_of(&events);
        Ok(events)
    }

    /// Accepts the list of this id, and no other, that the gate rejected and that waits.
    pub(super) fn accept(
        &mut self,
        name: &str,
        id: Option<&str>,
        care: &Care,
    ) -> Result<Done, CodedError> {
        let refuse = |kind, error: String| Err(CodedError::new(kind, error));
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
                format!("there is no source {name:?}; {there_are}"),
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
                    Some(failure) => format!("there is no list of {name} to accept: {failure}"),
                    None => {
                        format!("no list of {name} was refused; `allowlist status` shows its state")
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
                        "the rejected list of {name} is another one now, {current}; `allowlist diff {name}` shows it, and `{command}` accepts it"
                    ),
                );
            }
            None => {
                return refuse(
                    ErrorCode::InvalidRequest,
                    format!(
                        "accept needs the `id` of the rejected list; of {name} it is {current} now: `allowlist diff {name}` shows the list, and `{command}` accepts it"
                    ),
                );
            }
        }
        let before = self.lists.clone();
        let adopted = self.adopt(&source, proposal, now, Some(care));
        self.record_is_old = true;
        self.write_record();
        let change = adopted
            .map_err(CodedError::from)?
            .into_iter()
            .find_map(|event| match event.what {
                What::Changed { change, .. } => Some(change),
                _ => None,
            });
        let additions = self.ledger.known().additions();
        Ok(Done {
            changes: self.changes_since(&self.config, self.mode, additions, before.feeds()),
            change: Some(change.unwrap_or_default()),
            ..self.done()
        })
    }

    /// What time it is. Where the clock was set meanwhile, all that was stamped by it goes along first.
    pub(super) fn now(&mut self) -> Timestamp {
        let clocks = Clocks::now();
        let jump = self.clocks.jump(&clocks);
        if jump.abs() > JUMP {
            warn!(
                target: "allowlist::clock-set",
                "the clock was set by {}s; grace periods go on as if it had been right before",
                jump.as_secs()
            );
            self.lists.apply_clock_step(clocks.wall, jump);
            // The next start goes by what is on disk.
            let used: Vec<Source> = self.config.policy.used_sources().cloned().collect();
            for source in &used {
                self.keep(source, true);
            }
        }
        self.clocks = clocks;
        self.clocks.wall
    }

    /// Lets go of what was held for long enough, and says which lists are too old.
    pub(super) fn pass_time(&mut self) {
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
            if let What::Stale { fetched } = event.what {
                warn!(
                    target: "allowlist::list-stale",
                    "{}: its list is of {fetched}, which is longer ago than its max_age; it stays in force; `allowlist status` says why there is none that is newer",
                    event.source
                );
            }
        }
        self.tell_of(&events);
        self.expire();
    }

    fn release(&mut self, now: Timestamp) {
        let released = self.with_lists(|daemon, lists| {
            lists.expire_grace(now, |lists| daemon.publish(lists, None))
        });
        match released {
            Ok(events) => {
                for event in &events {
                    let name = &event.source;
                    info!(
                        "{name}: a grace period is over; generation {}",
                        self.dataplane.generation()
                    );
                    if let Some(source) = self.config.policy.source(name).cloned() {
                        self.keep(&source, true);
                    }
                }
                self.tell_of(&events);
            }
            Err(error) => {
                warn!(
                    "what was held for its grace period stays for now: {error:#}; this is tried again"
                );
                self.release_after = Instant::now() + RELEASE_RETRY;
            }
        }
        self.record_is_old = true;
        self.write_record();
    }

    /// Writes it down, and tells the hook. A full disk is no reason not to filter.
    pub(super) fn tell_of(&self, events: &[Event]) {
        for event in events {
            let added = self.disk().and_then(|_| Ok(self.history.add(event)?));
            if let Err(error) = added {
                warn!("{}: the history has a gap: {error:#}", event.source);
            }
            self.teller.tell(event);
        }
    }

    /// Puts a source's list on disk, for the next start.
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
            Err(error) => warn!("{}: not kept for the next start: {error:#}", source.name),
        }
    }

    /// Schedules each source for when its list is as old as `every`, which may be at once. At a start, files are read
    /// at once.
    pub(super) fn schedule_all(&mut self, is_start: bool) {
        let (now, clock) = (Instant::now(), Timestamp::now());
        let changing = self
            .config
            .policy
            .used_sources()
            .filter(|source| source.can_change());
        let due = changing.map(|source| {
            let every = match source.origin {
                // How long an answer of before was good for, nobody remembers.
                Origin::Names(_) => Duration::ZERO,
                Origin::File { .. } if is_start => Duration::ZERO,
                _ => source.every,
            };
            let fetched = self.lists.feed(&source.name).map(|feed| feed.fetched);
            // A list of which the age is not known, since the clock is behind, is as old as can be.
            let age = fetched.and_then(|fetched| clock.duration_since(fetched).try_into().ok());
            let age = age.unwrap_or(every);
            // What was asked at the start in vain is tried again as it is while the daemon runs.
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
        // A file that was touched meanwhile is due already.
        let due = Instant::now() + wait;
        self.due
            .entry(source.name.clone())
            .and_modify(|known| *known = (*known).min(due))
            .or_insert(due);
    }
}
