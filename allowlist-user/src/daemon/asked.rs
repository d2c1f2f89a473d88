//! What is asked over the socket: carried out one after the other, each answered when it is done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use log::{info, warn};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::confirm::Pending;
use super::reload::Asker;
use super::{Daemon, InForce};
use crate::additions::source_name;
use crate::audit::{Deed, Who};
use crate::compile::Tables;
use crate::control::{Care, Done, Refreshed, Request, Wanted};
use crate::error_code::{CodedError, ErrorCode, bail_with};
use crate::hints;
use crate::ledger::{Change, Unconfirmed};
use crate::lists::SourceStates;
use crate::policy::Mode;
use crate::session::{ChangeOrigin, Generation, lockout};

/// How often a disk that failed is tried again for changes that are active without it.
const CATCH_UP_EVERY: Duration = Duration::from_secs(10);

/// Somebody who waits for lists.
pub(super) struct Refreshing {
    /// Whose.
    left: BTreeSet<String>,
    sources: BTreeMap<String, Refreshed>,
    /// The lists before, for the changes in the answer.
    before: SourceStates,
    answer: oneshot::Sender<Result<Done, CodedError>>,
}

impl Daemon {
    pub(super) async fn carry_out(&mut self, request: Request) {
        let Request {
            wanted,
            care,
            who,
            answer,
        } = request;
        let policy = self.policy_number();
        let (deed, done) = match wanted {
            Wanted::Reload => return self.reload(Some(Asker { who, care, answer })),
            Wanted::Refresh(source) => return self.refresh(source.as_deref(), who, answer),
            Wanted::Add(entries) => self.add(&entries, &care, &who),
            Wanted::Remove(entries) => self.remove(&entries, &care, &who),
            Wanted::Mode(mode) => (Deed::Mode { mode }, self.change_mode(mode, &care, &who)),
            Wanted::Accept { source, id } => {
                let done = self.accept(&source, id.as_deref(), &care);
                (Deed::Accept { source, id }, done)
            }
            Wanted::Rollback(to) => self.roll_back(to, &care, &who).await,
            Wanted::Confirm => (Deed::Confirm, self.confirm()),
        };
        let refused = done.as_ref().err().map(|problem| problem.error.clone());
        let makes_policy = matches!(deed, Deed::Add(_) | Deed::Remove(_) | Deed::Mode { .. });
        let no_change = makes_policy && done.is_ok() && self.policy_number() == policy;
        self.log_request(who, deed, refused, no_change);
        let _ = answer.send(done); // whoever asked may be gone
    }

    fn change_mode(&mut self, mode: Mode, care: &Care, who: &Who) -> Result<Done, CodedError> {
        let change = Change {
            mode: (mode != self.config.mode).then_some(mode),
            ..self.change(who, format!("mode {}", mode.name()))
        };
        // What is asked again and again does not push out the policies that can be gone back to.
        let newest = self.ledger.known().newest();
        if mode == self.mode && newest.is_some_and(|newest| newest.change.mode == change.mode) {
            self.require_free()?;
            return Ok(Done {
                notes: vec![format!("no change: the mode is already {}", mode.name())],
                warnings: self.standing_warnings(),
                ..self.done()
            });
        }
        let mut done = self.apply(change, care)?;
        done.notes.push(match mode {
            Mode::Enforce => {
                "mode enforce: packets that the policy does not allow are dropped".to_owned()
            }
            Mode::Observe => "mode observe: every packet passes; drops are only counted".to_owned(),
        });
        done.warnings.extend(self.standing_warnings());
        Ok(done)
    }

    /// What is in force now, to be answered with what was done about it.
    pub(super) fn done(&self) -> Done {
        Done {
            generation: self.dataplane.generation(),
            policy: self.policy_number(),
            ..Done::default()
        }
    }

    /// A change that changes nothing yet.
    pub(super) fn change(&self, who: &Who, what: String) -> Change {
        let newest = self.ledger.known().newest().map(|policy| &policy.change);
        Change {
            time: Timestamp::now(),
            by: who.to_string(),
            what,
            written: Some(self.written.clone()),
            edits: Vec::new(),
            mode: newest.and_then(|change| change.mode),
            held_back: newest.and_then(|change| change.held_back),
            unconfirmed: None,
        }
    }

    /// Carries out a change of what is added by command, or of the mode: on disk, then in force, or neither.
    pub(super) fn apply(&mut self, mut change: Change, care: &Care) -> Result<Done, CodedError> {
        self.require_free()?;
        let edits: BTreeSet<String> = change
            .edits
            .iter()
            .map(|edit| edit.service().to_owned())
            .collect();
        let what = change.what.clone();
        let by = change.by.clone();
        change.unconfirmed = self.unconfirmed(care);
        let unconfirmed = change.unconfirmed;
        let additions = self.ledger.known().additions().clone();
        self.ledger.stage(change);
        let mode = self.mode;
        self.follow_ledger(&edits);
        let warning = match self.put_change_in_force(care, edits.is_empty()) {
            Ok(warning) => warning,
            Err(problem) => {
                self.ledger.take_back();
                self.follow_ledger(&edits);
                self.mode = mode;
                return Err(problem);
            }
        };
        let now = self.ledger.now();
        self.ledger.tidy(&self.state, &now);
        self.pending = unconfirmed.map(|unconfirmed| Pending::new(unconfirmed, what, by));
        Ok(Done {
            changes: self.changes_since(&self.config, mode, &additions, self.lists.feeds()),
            warnings: warning.into_iter().collect(),
            confirm_until: unconfirmed.map(|unconfirmed| unconfirmed.until),
            ..self.done()
        })
    }

    /// A mode takes effect without the disk too; then there is a warning.
    fn put_change_in_force(
        &mut self,
        care: &Care,
        is_mode: bool,
    ) -> Result<Option<String>, CodedError> {
        let (tables, anew) = self.compiled(&self.lists).map_err(anyhow::Error::from)?;
        self.require_session(care, &tables)?;
        if let Some(within) = care.confirm_within {
            self.dataplane.arm_rollback(within)?;
        }
        let put = || {
            let warning = self.write_ledger(!is_mode)?;
            if is_mode {
                self.dataplane.set_mode(self.mode);
                if let Some(in_force) = &mut self.in_force {
                    in_force.mode = self.mode;
                }
            } else {
                self.with_lists(|daemon, lists| daemon.put_in_force(lists, tables.into()))?;
                if anew {
                    warn!(target: "allowlist::counters-reset", "{}", super::COUNTS_ANEW);
                    self.dataplane.forget_counts()?;
                }
            }
            anyhow::Ok(warning)
        };
        let done = put();
        if done.is_err() && care.confirm_within.is_some() {
            // Nothing has changed that would have to be taken back.
            self.dataplane.confirm()?;
        }
        Ok(done?)
    }

    /// Writes the change that was staged. Where it does not need the disk, a disk that fails is a warning.
    pub(super) fn write_ledger(&mut self, needs_disk: bool) -> Result<Option<String>> {
        match self.ledger.write() {
            Ok(_) => Ok(None),
            Err(error) if needs_disk => bail_with!(DiskFailed, "{error}"),
            Err(error) => {
                self.ledger.keep_in_memory();
                let warning = format!(
                    "{error}; the change is active, and it is written as soon as the disk allows it: a restart before that undoes it"
                );
                warn!("{warning}");
                Ok(Some(warning))
            }
        }
    }

    /// Writes the changes that are active without the disk, if there are some.
    pub(super) fn catch_up_ledger(&mut self) {
        if !self.ledger.is_behind() || self.catch_up_after > Instant::now() {
            return;
        }
        match self.ledger.catch_up() {
            Ok(()) => info!("the changes that were active without the disk are written"),
            Err(_) => self.catch_up_after = Instant::now() + CATCH_UP_EVERY,
        }
    }

    /// Refuses what would cut the connection over which it is asked.
    pub(super) fn require_session(&self, care: &Care, tables: &Tables) -> Result<(), CodedError> {
        self.require_session_by(care, tables, ChangeOrigin::Command)
    }

    pub(super) fn require_session_by(
        &self,
        care: &Care,
        tables: &Tables,
        by: ChangeOrigin,
    ) -> Result<(), CodedError> {
        if care.force {
            return Ok(());
        }
        let before = self.in_force.as_ref().map(InForce::generation);
        let after = Generation {
            config: &self.config,
            mode: self.mode,
            tables,
        };
        lockout::check(care.session.as_ref(), before, after, by)
            .map_err(|cut| CodedError::new(ErrorCode::Lockout, cut.to_string()))
    }

    /// What has to be confirmed, by this care.
    pub(super) fn unconfirmed(&self, care: &Care) -> Option<Unconfirmed> {
        care.confirm_within.map(|within| Unconfirmed {
            until: Timestamp::now() + within,
            back_to: self.policy_number(),
        })
    }

    /// Takes over what the ledger says: of these services what is added, and the mode.
    pub(super) fn follow_ledger(&mut self, services: &BTreeSet<String>) {
        let known = self.ledger.known();
        let additions = known.additions();
        for service in services {
            let name = source_name(service);
            self.lists.set_feed(&name, additions.feed(service));
        }
        if !services.is_empty() {
            let policy = additions.with(&self.config.policy);
            self.is_policy_new |= policy != self.policy;
            self.policy = policy;
        }
        let newest = known.newest();
        let mode = newest.and_then(|policy| policy.change.mode);
        self.mode = mode.unwrap_or(self.config.mode);
        if !services.is_empty() {
            self.schedule_expiry();
        }
    }

    /// Whether a change can be made now.
    pub(super) fn require_free(&self) -> Result<(), CodedError> {
        let refuse = |code, error: String| Err(CodedError::new(code, error));
        if self.waiting {
            let missing = self.missing(&self.lists).join(", ");
            return refuse(
                ErrorCode::MissingLists,
                format!(
                    "nothing is in force yet, since there is no list of {missing}; mend the configuration and `allowlist reload`, or set at_start"
                ),
            );
        }
        if self.reloading.is_some() {
            return Err(CodedError::new(
                ErrorCode::Busy,
                "the configuration is being reloaded at this moment; ask again",
            ));
        }
        if let Some(pending) = &self.pending {
            let left = pending.deadline.saturating_duration_since(Instant::now());
            return refuse(
                ErrorCode::ChangePending,
                format!(
                    "{} by {} waits to be confirmed, and is taken back in {} s; `allowlist confirm` or `allowlist rollback` first",
                    pending.what,
                    pending.by,
                    left.as_secs()
                ),
            );
        }
        Ok(())
    }

    fn refresh(
        &mut self,
        source: Option<&str>,
        who: Who,
        answer: oneshot::Sender<Result<Done, CodedError>>,
    ) {
        let changing = self.policy.used_sources().filter(|one| one.can_change());
        let mut names: BTreeSet<String> = changing.map(|one| one.name.clone()).collect();
        if let Some(name) = source {
            if !names.contains(name) {
                let error = format!(
                    "there is no source {name:?} that can be fetched; {}",
                    hints::there_are(names)
                );
                let _ = answer.send(Err(CodedError::new(ErrorCode::UnknownSource, error)));
                return;
            }
            names.retain(|one| one == name);
        }
        let sources = names.iter().cloned().collect();
        self.log(who, Deed::Refresh { sources }, None);
        for name in &names {
            self.due.insert(name.clone(), Instant::now());
        }
        self.refreshing.push(Refreshing {
            left: names,
            sources: BTreeMap::new(),
            before: self.lists.clone(),
            answer,
        });
        self.answer_refreshed();
        self.fetch_due();
    }

    /// A source was asked: whoever waits for it may know.
    pub(super) fn note_refreshed(&mut self, name: &str) {
        let health = self.lists.health(name);
        let failure = health.and_then(|health| health.failure.clone());
        let failure_code = health.and_then(|health| health.failure_code);
        let outcome = Refreshed {
            ok: failure.is_none(),
            prefixes: self.lists.feed(name).map_or(0, crate::policy::Feed::len),
            failure,
            failure_code,
        };
        for waiting in &mut self.refreshing {
            if waiting.left.remove(name) {
                waiting.sources.insert(name.to_owned(), outcome.clone());
            }
        }
        self.answer_refreshed();
    }

    /// Answers those who wait for nothing any more. A source that is gone is waited for by nobody.
    pub(super) fn answer_refreshed(&mut self) {
        let policy = &self.policy;
        for waiting in &mut self.refreshing {
            waiting.left.retain(|name| policy.source(name).is_some());
        }
        let is_done = |waiting: &mut Refreshing| waiting.left.is_empty();
        let complete: Vec<Refreshing> = self.refreshing.extract_if(.., is_done).collect();
        for waiting in complete {
            let additions = self.ledger.known().additions();
            let before = waiting.before.feeds();
            let done = Done {
                changes: self.changes_since(&self.config, self.mode, additions, before),
                sources: waiting.sources,
                ..self.done()
            };
            let _ = waiting.answer.send(Ok(done));
        }
    }
}
