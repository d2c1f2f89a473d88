//! Handles the requests of the control socket, one after the other; answers each when it has taken effect.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use allowlist_lists::states::SourceStates;
use allowlist_policy::Mode;
use allowlist_policy::compile::Tables;
use allowlist_policy::error_code::{ErrorCode, bail_with};
use allowlist_policy::hints;
use allowlist_policy::lockout::ChangeOrigin;
use anyhow::Result;
use jiff::Timestamp;
use log::{info, warn};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::confirm::Pending;
use super::reload::Requester;
use super::{Active, Daemon};
use crate::additions::source_name;
use crate::audit::{Actor, AuditAction};
use crate::control::{ApplyOptions, ApplyOutcome, Operation, QueuedRequest, RefreshOutcome};
use crate::error_code::ApiError;
use crate::journal::{Change, ConfirmDeadline};
use crate::session;

/// The retry interval for writing changes that are active but not in the journal.
const CATCH_UP_EVERY: Duration = Duration::from_secs(10);

/// A refresh request whose fetches are in progress.
pub(super) struct Refreshing {
    /// The names of the sources whose fetch has not ended yet.
    left: BTreeSet<String>,
    /// The sources with a fetch in progress at the time of the request. It may have read the list before, so only the
    /// next fetch counts.
    stale: BTreeSet<String>,
    sources: BTreeMap<String, RefreshOutcome>,
    /// The lists before the refresh, to compute the changes for the answer.
    before: SourceStates,
    answer: oneshot::Sender<Result<ApplyOutcome, ApiError>>,
}

impl Daemon {
    /// Handles a request and sends the answer.
    pub(super) async fn handle_request(&mut self, request: QueuedRequest) {
        let QueuedRequest {
            operation,
            options,
            actor,
            answer,
        } = request;
        let policy = self.policy_number();
        let (action, done) = match operation {
            Operation::Reload => {
                return self.reload(Some(Requester {
                    actor,
                    options,
                    answer,
                }));
            }
            Operation::Refresh(source) => return self.refresh(source.as_deref(), actor, answer),
            Operation::Add(entries) => self.add(&entries, &options, &actor),
            Operation::Remove(entries) => self.remove(&entries, &options, &actor),
            Operation::Mode(mode) => (
                AuditAction::Mode { mode },
                self.change_mode(mode, &options, &actor),
            ),
            Operation::Accept { source, id } => {
                let done = self.accept(&source, id.as_deref(), &options);
                (AuditAction::Accept { source, id }, done)
            }
            Operation::Rollback(to) => self.roll_back(to, &options, &actor).await,
            Operation::Confirm => (AuditAction::Confirm, self.confirm()),
        };
        let refused = done.as_ref().err().map(|problem| problem.error.clone());
        let makes_policy = matches!(
            action,
            AuditAction::Add(_) | AuditAction::Remove(_) | AuditAction::Mode { .. }
        );
        let no_change = makes_policy && done.is_ok() && self.policy_number() == policy;
        self.log_request(actor, action, refused, no_change);
        let _ = answer.send(done); // the client may have disconnected
    }

    fn change_mode(
        &mut self,
        mode: Mode,
        options: &ApplyOptions,
        actor: &Actor,
    ) -> Result<ApplyOutcome, ApiError> {
        let change = Change {
            mode: (mode != self.config.mode).then_some(mode),
            ..self.change(actor, format!("mode {}", mode.name()))
        };
        // No new policy, since the number of stored ones is limited.
        let newest = self.journal.known().newest();
        if mode == self.mode && newest.is_some_and(|newest| newest.change.mode == change.mode) {
            self.require_idle()?;
            return Ok(ApplyOutcome {
                notes: vec![format!("no change: the mode is already {}", mode.name())],
                warnings: self.state_warnings(),
                ..self.outcome()
            });
        }
        let mut done = self.apply(change, options)?;
        done.notes.push(match mode {
            Mode::Enforce => {
                "mode enforce: packets that the policy does not allow are dropped".to_owned()
            }
            Mode::Observe => "mode observe: every packet passes; drops are only counted".to_owned(),
        });
        done.warnings.extend(self.state_warnings());
        Ok(done)
    }

    /// Returns a successful answer with the active generation and policy number, as a base for other answers.
    pub(super) fn outcome(&self) -> ApplyOutcome {
        ApplyOutcome {
            generation: self.dataplane.generation(),
            policy: self.policy_number(),
            ..ApplyOutcome::default()
        }
    }

    /// Returns a change by `actor` that leaves the policy as it is; `what` is its description. A base for other
    /// changes.
    pub(super) fn change(&self, actor: &Actor, what: String) -> Change {
        let newest = self.journal.known().newest().map(|policy| &policy.change);
        Change {
            time: Timestamp::now(),
            by: actor.to_string(),
            what,
            written: Some(self.written.clone()),
            edits: Vec::new(),
            mode: newest.and_then(|change| change.mode),
            suppressed_config_crc: newest.and_then(|change| change.suppressed_config_crc),
            unconfirmed: None,
        }
    }

    /// Applies a change of the added prefixes or the mode: writes it to the journal, then activates it. After an error,
    /// neither is done.
    pub(super) fn apply(
        &mut self,
        mut change: Change,
        options: &ApplyOptions,
    ) -> Result<ApplyOutcome, ApiError> {
        self.require_idle()?;
        let edits: BTreeSet<String> = change
            .edits
            .iter()
            .map(|edit| edit.service().to_owned())
            .collect();
        let what = change.what.clone();
        let by = change.by.clone();
        change.unconfirmed = self.unconfirmed(options);
        let unconfirmed = change.unconfirmed;
        let additions = self.journal.known().additions().clone();
        self.journal.stage(change);
        let mode = self.mode;
        self.apply_journal(&edits);
        let warning = match self.activate_change(options, edits.is_empty()) {
            Ok(warning) => warning,
            Err(problem) => {
                self.journal.undo_last();
                self.apply_journal(&edits);
                self.mode = mode;
                return Err(problem);
            }
        };
        let now = self.journal.now();
        self.journal.compact(&self.state, &now);
        self.pending = unconfirmed.map(|unconfirmed| Pending::new(unconfirmed, what, by));
        Ok(ApplyOutcome {
            changes: self.changes_since(&self.config, mode, &additions, self.lists.feeds()),
            warnings: warning.into_iter().collect(),
            confirm_until: unconfirmed.map(|unconfirmed| unconfirmed.until),
            ..self.outcome()
        })
    }

    /// Writes a staged change to the journal, then activates it. If `is_mode`, the change takes effect even if the disk
    /// fails, and a warning is returned.
    fn activate_change(
        &mut self,
        options: &ApplyOptions,
        is_mode: bool,
    ) -> Result<Option<String>, ApiError> {
        let (tables, anew) = self.compiled(&self.lists).map_err(anyhow::Error::from)?;
        self.require_session(options, &tables)?;
        if let Some(within) = options.confirm_within {
            self.dataplane.arm_rollback(within)?;
        }
        let put = || {
            let warning = self.write_journal(!is_mode)?;
            if is_mode {
                self.dataplane.set_mode(self.mode);
                if let Some(active) = &mut self.active {
                    active.mode = self.mode;
                }
            } else {
                self.with_lists(|daemon, lists| daemon.activate(lists, tables.into()))?;
                if anew {
                    warn!(target: "allowlist::counters-reset", "{}", super::COUNTS_ANEW);
                    self.dataplane.forget_counts()?;
                }
            }
            anyhow::Ok(warning)
        };
        let done = put();
        if done.is_err() && options.confirm_within.is_some() {
            // Nothing has changed, so nothing needs a rollback.
            self.dataplane.confirm()?;
        }
        Ok(done?)
    }

    /// Writes the staged change to the journal. Without `needs_disk`, a failure is returned as a warning, and the
    /// change stays in memory.
    pub(super) fn write_journal(&mut self, needs_disk: bool) -> Result<Option<String>> {
        match self.journal.write() {
            Ok(_) => Ok(None),
            Err(error) if needs_disk => bail_with!(DiskFailed, "{error}"),
            Err(error) => {
                self.journal.keep_in_memory();
                let warning = format!(
                    "cannot write the change to the journal: {error}; the change is active, but a restart loses it unless it is written before; retrying"
                );
                warn!("{warning}");
                Ok(Some(warning))
            }
        }
    }

    /// Writes the active changes that are missing from the journal. After a failure, the next attempt follows after
    /// [`CATCH_UP_EVERY`].
    pub(super) fn catch_up_journal(&mut self) {
        if !self.journal.is_behind() || self.catch_up_after > Instant::now() {
            return;
        }
        match self.journal.catch_up() {
            Ok(()) => info!("all active changes are in the journal again"),
            Err(_) => self.catch_up_after = Instant::now() + CATCH_UP_EVERY,
        }
    }

    /// Refuses tables that would cut the connection over which the change was requested, unless the options have
    /// `force`.
    pub(super) fn require_session(
        &self,
        options: &ApplyOptions,
        tables: &Tables,
    ) -> Result<(), ApiError> {
        self.require_session_by(options, tables, ChangeOrigin::Command)
    }

    /// Does the lockout check for these tables; `by` is the origin of the change, which the error names.
    pub(super) fn require_session_by(
        &self,
        options: &ApplyOptions,
        tables: &Tables,
        by: ChangeOrigin,
    ) -> Result<(), ApiError> {
        if options.force {
            return Ok(());
        }
        let before = self.active.as_ref().map(Active::generation);
        let after = self.config.generation(self.mode, tables);
        session::check(options.session.as_ref(), before, after, by)
            .map_err(|cut| ApiError::new(ErrorCode::Lockout, cut.to_string()))
    }

    /// Returns the deadline by which a change with these options must be confirmed, or `None` without `confirm_within`.
    pub(super) fn unconfirmed(&self, options: &ApplyOptions) -> Option<ConfirmDeadline> {
        options.confirm_within.map(|within| ConfirmDeadline {
            until: Timestamp::now() + within,
            revert_to: self.policy_number(),
        })
    }

    /// Applies the mode of the journal's newest policy, and the journal's added prefixes of `services`.
    pub(super) fn apply_journal(&mut self, services: &BTreeSet<String>) {
        let known = self.journal.known();
        let additions = known.additions();
        for service in services {
            let name = source_name(service);
            self.lists.set_feed(&name, additions.feed(service));
        }
        if !services.is_empty() {
            let policy = additions.with(&self.config.policy);
            self.policy = policy;
        }
        let newest = known.newest();
        let mode = newest.and_then(|policy| policy.change.mode);
        self.mode = mode.unwrap_or(self.config.mode);
        if !services.is_empty() {
            self.schedule_expiry();
        }
    }

    /// Requires that a change can be made now.
    ///
    /// # Errors
    /// Fails if the configuration is inactive, a reload is in progress, or a change is pending confirmation.
    pub(super) fn require_idle(&self) -> Result<(), ApiError> {
        let refuse = |code, error: String| Err(ApiError::new(code, error));
        if self.inactive {
            let missing = self.missing(&self.lists).join(", ");
            return refuse(
                ErrorCode::MissingLists,
                format!(
                    "the configuration is not active, since these sources have no list: {missing}; change the configuration and `allowlist reload`, or set at_start"
                ),
            );
        }
        if self.reloading.is_some() {
            return Err(ApiError::new(
                ErrorCode::Busy,
                "a reload is in progress; try again",
            ));
        }
        if let Some(pending) = &self.pending {
            let left = pending.deadline.saturating_duration_since(Instant::now());
            return refuse(
                ErrorCode::ChangePending,
                format!(
                    "a change is pending ({} by {}) and is rolled back in {} s; `allowlist confirm` or `allowlist rollback` first",
                    pending.what,
                    pending.by,
                    left.as_secs()
                ),
            );
        }
        Ok(())
    }

    /// Fetches one source, or all sources, now. The answer is sent when all fetches have ended.
    fn refresh(
        &mut self,
        source: Option<&str>,
        actor: Actor,
        answer: oneshot::Sender<Result<ApplyOutcome, ApiError>>,
    ) {
        let changing = self.policy.used_sources().filter(|one| one.can_change());
        let mut names: BTreeSet<String> = changing.map(|one| one.name.clone()).collect();
        if let Some(name) = source {
            if !names.contains(name) {
                let error = format!(
                    "no source that can be fetched is called {name:?}; {}",
                    hints::there_are(names)
                );
                let _ = answer.send(Err(ApiError::new(ErrorCode::UnknownSource, error)));
                return;
            }
            names.retain(|one| one == name);
        }
        let sources = names.iter().cloned().collect();
        self.log(actor, AuditAction::Refresh { sources }, None);
        for name in &names {
            self.due.insert(name.clone(), Instant::now());
        }
        let in_progress = |name: &&String| self.fetches.is_running(name);
        self.refreshing.push(Refreshing {
            stale: names.iter().filter(in_progress).cloned().collect(),
            left: names,
            sources: BTreeMap::new(),
            before: self.lists.clone(),
            answer,
        });
        self.answer_refreshed();
        self.fetch_due();
    }

    /// Records the result of a fetch of source `name` in each refresh request that waits for it.
    pub(super) fn note_refreshed(&mut self, name: &str) {
        let health = self.lists.health(name);
        let failure = health.and_then(|health| health.failure.clone());
        let failure_code = health.and_then(|health| health.failure_code);
        let outcome = RefreshOutcome {
            ok: failure.is_none(),
            prefixes: self.lists.feed(name).map_or(0, allowlist_policy::Feed::len),
            failure,
            failure_code,
        };
        for waiting in &mut self.refreshing {
            if !waiting.stale.remove(name) && waiting.left.remove(name) {
                waiting.sources.insert(name.to_owned(), outcome.clone());
            }
        }
        self.answer_refreshed();
    }

    /// Answers the refresh requests whose fetches have all ended. Sources that are no longer configured are skipped.
    pub(super) fn answer_refreshed(&mut self) {
        let policy = &self.policy;
        for waiting in &mut self.refreshing {
            waiting.left.retain(|name| policy.source(name).is_some());
        }
        let is_done = |waiting: &mut Refreshing| waiting.left.is_empty();
        let complete: Vec<Refreshing> = self.refreshing.extract_if(.., is_done).collect();
        for waiting in complete {
            let additions = self.journal.known().additions();
            let before = waiting.before.feeds();
            let done = ApplyOutcome {
                changes: self.changes_since(&self.config, self.mode, additions, before),
                sources: waiting.sources,
                ..self.outcome()
            };
            let _ = waiting.answer.send(Ok(done));
        }
    }
}
