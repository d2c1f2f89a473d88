//! Handles the requests of the control socket, one after the other; answers each when it has taken effect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::hints;
use allowlist_policy::{Feed, Mode};
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::commit::{Committed, Transaction};
use super::refreshing::Refresh;
use super::reload::Requester;
use super::store::Durability;
use super::{Daemon, Logged};
use crate::audit::Actor;
use crate::control::{ApplyOptions, ApplyOutcome, QueuedRequest, RefreshOutcome};
use crate::effective::{EffectiveState, difference};
use crate::error_code::ApiError;
use crate::journal::Change;
use crate::operation::Operation;

impl Daemon {
    /// Handles a request and sends the answer.
    pub(super) async fn handle_request(&mut self, request: QueuedRequest) {
        let QueuedRequest {
            operation,
            options,
            actor,
            answer,
        } = request;
        let policy = self.store.policy_number();
        let (operation, done) = match operation {
            Operation::Reload { .. } => {
                return self.reload(Some(Requester {
                    actor,
                    options,
                    answer,
                }));
            }
            Operation::Refresh { sources } => return self.refresh(&sources, actor, answer),
            Operation::Add(entries) => self.add(&entries, &options, &actor).await,
            Operation::Remove(entries) => self.remove(&entries, &options, &actor).await,
            Operation::Mode { mode, egress } => {
                let done = if egress {
                    self.change_egress_mode(mode, &options, &actor).await
                } else {
                    self.change_mode(mode, &options, &actor).await
                };
                (Operation::Mode { mode, egress }, done)
            }
            Operation::Accept { source, id } => {
                let done = self.accept(&source, id.as_deref(), &options).await;
                (Operation::Accept { source, id }, done)
            }
            Operation::Rollback { to } => self.roll_back(to, &options, &actor).await,
            Operation::Confirm => (Operation::Confirm, self.confirm().await),
            Operation::Start { .. }
            | Operation::Stop { .. }
            | Operation::Expire(_)
            | Operation::NotConfirmed { .. } => return, // no path requests these
        };
        let makes_policy = matches!(
            operation,
            Operation::Add(_) | Operation::Remove(_) | Operation::Mode { .. }
        );
        let logged = match &done {
            Err(refusal) => Logged::Refused(refusal.error.clone()),
            Ok(_) if makes_policy && self.store.policy_number() == policy => Logged::NoChange,
            Ok(done) => Logged::Done {
                policy: done
                    .policy
                    .filter(|_| matches!(operation, Operation::Rollback { .. })),
            },
        };
        self.log(actor, operation, logged);
        let _ = answer.send(done); // the client may have disconnected
    }

    async fn change_mode(
        &mut self,
        mode: Mode,
        options: &ApplyOptions,
        actor: &Actor,
    ) -> Result<ApplyOutcome, ApiError> {
        let change = Change {
            mode: (mode != self.state.config().mode).then_some(mode),
            ..self.change(
                actor,
                Operation::Mode {
                    mode,
                    egress: false,
                },
            )
        };
        // No new policy, since the number of stored ones is limited.
        let newest = self.store.journal.known().newest();
        if mode == self.state.mode()
            && newest.is_some_and(|newest| newest.change.mode == change.mode)
        {
            self.require_idle()?;
            return Ok(ApplyOutcome {
                notes: vec![format!("no change: the mode is already {}", mode.name())],
                warnings: self.state_warnings(),
                ..self.outcome()
            });
        }
        let mut done = self.apply(change, options).await?;
        done.notes.push(match mode {
            Mode::Enforce => {
                "mode enforce: packets that the policy does not allow are dropped".to_owned()
            }
            Mode::Observe => "mode observe: every packet passes; drops are only counted".to_owned(),
        });
        done.warnings.extend(self.state_warnings());
        Ok(done)
    }

    async fn change_egress_mode(
        &mut self,
        mode: Mode,
        options: &ApplyOptions,
        actor: &Actor,
    ) -> Result<ApplyOutcome, ApiError> {
        let config = self.state.config();
        if config.policy.egress.is_none() {
            let error = "the configuration has no egress policy, so there is no mode to set; add [egress] to the configuration";
            return Err(ApiError::new(ErrorCode::NoEgressPolicy, error));
        }
        let change = Change {
            egress_mode: (mode != config.egress_mode()).then_some(mode),
            ..self.change(actor, Operation::Mode { mode, egress: true })
        };
        // No new policy, since the number of stored ones is limited.
        let newest = self.store.journal.known().newest();
        if mode == self.state.egress_mode()
            && newest.is_some_and(|newest| newest.change.egress_mode == change.egress_mode)
        {
            self.require_idle()?;
            return Ok(ApplyOutcome {
                notes: vec![format!(
                    "no change: the mode of the egress policy is already {}",
                    mode.name()
                )],
                ..self.outcome()
            });
        }
        let mut done = self.apply(change, options).await?;
        done.notes.push(match mode {
            Mode::Enforce => "egress mode enforce: connections to destinations that the egress policy does not allow are refused".to_owned(),
            Mode::Observe => "egress mode observe: no connection is refused; refusals are only counted".to_owned(),
        });
        Ok(done)
    }

    /// Returns a successful answer with the active generation and policy number, as a base for other answers.
    pub(super) fn outcome(&self) -> ApplyOutcome {
        ApplyOutcome {
            generation: self.kernel.generation(),
            policy: self.store.policy_number(),
            ..ApplyOutcome::default()
        }
    }

    /// Returns a change by `actor` that leaves the policy as it is; a base for other changes.
    pub(super) fn change(&self, actor: &Actor, operation: Operation) -> Change {
        let newest = self.store.journal.known().newest();
        let newest = newest.map(|policy| &policy.change);
        Change {
            time: Timestamp::now(),
            by: actor.to_string(),
            operation: operation.into(),
            written: Some(Arc::clone(self.state.written())),
            edits: Vec::new(),
            mode: newest.and_then(|change| change.mode),
            egress_mode: newest.and_then(|change| change.egress_mode),
            suppressed_config_crc: newest.and_then(|change| change.suppressed_config_crc),
            unconfirmed: None,
        }
    }

    /// Applies a change of the added prefixes or the mode.
    pub(super) async fn apply(
        &mut self,
        change: Change,
        options: &ApplyOptions,
    ) -> Result<ApplyOutcome, ApiError> {
        self.require_idle()?;
        // Without the disk the mode can be changed, but no prefix added.
        let durability = if change.edits.is_empty() {
            Durability::BestEffort
        } else {
            Durability::Required
        };
        let next = self.state.with_change(&change);
        let transaction = Transaction {
            record: Some(change),
            durability,
            options: Some(options.clone()),
            ..Transaction::new(next)
        };
        let committed = self.commit(transaction).await?;
        let now = self.store.journal.now();
        self.expiries.schedule(self.state.additions(), &now);
        Ok(self.outcome_of(committed))
    }

    /// Returns the answer for a transaction.
    pub(super) fn outcome_of(&self, committed: Committed) -> ApplyOutcome {
        ApplyOutcome {
            changes: committed.changes,
            warnings: committed.warning.into_iter().collect(),
            confirm_until: committed.confirm_until,
            ..self.outcome()
        }
    }

    /// Returns a line for each difference between an earlier effective state and the present one.
    pub(super) fn changes_since(&self, before: &EffectiveState) -> Vec<String> {
        difference(before, &self.state, Timestamp::now())
    }

    /// Requires that a change can be made now.
    ///
    /// # Errors
    /// Fails if the configuration is inactive, a reload is in progress, or a change is pending confirmation.
    pub(super) fn require_idle(&self) -> Result<(), ApiError> {
        let refuse = |code, error: String| Err(ApiError::new(code, error));
        if self.is_inactive {
            let missing = self.state.missing().join(", ");
            return refuse(
                ErrorCode::MissingLists,
                format!(
                    "the configuration is not active, since these sources have no list: {missing}; change the configuration or its at_start, then run `allowlist reload`"
                ),
            );
        }
        if self.reloading.is_some() {
            return Err(ApiError::new(
                ErrorCode::Busy,
                "a reload is in progress; try again when it has ended",
            ));
        }
        if let Some(pending) = &self.pending {
            return Err(pending.refusal(""));
        }
        Ok(())
    }

    /// Fetches one source, or all sources, now. The answer is sent when all fetches have ended.
    fn refresh(
        &mut self,
        sources: &[String],
        actor: Actor,
        answer: oneshot::Sender<Result<ApplyOutcome, ApiError>>,
    ) {
        let used = self.state.policy().used_sources();
        let changing = used.filter(|one| one.can_change());
        let mut names: BTreeSet<String> = changing.map(|one| one.name.clone()).collect();
        if let [name, ..] = sources {
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
        self.log(actor, Operation::Refresh { sources }, Logged::done());
        for name in &names {
            self.schedule.make_due(name);
        }
        let in_progress = |name: &&String| self.schedule.is_running(name);
        let refresh = Refresh {
            stale: names.iter().filter(in_progress).cloned().collect(),
            left: names,
            sources: BTreeMap::new(),
            before: self.state.sources().clone(),
            answer,
        };
        self.refreshes.add(refresh);
        self.answer_refreshed();
        self.schedule.fetch_due(&self.state);
    }

    /// Records the result of a fetch of source `name` in each refresh request that waits for it.
    pub(super) fn note_refreshed(&mut self, name: &str) {
        let sources = self.state.sources();
        let health = sources.health(name);
        let failure = health.and_then(|health| health.failure.clone());
        let failure_code = health.and_then(|health| health.failure_code);
        let outcome = RefreshOutcome {
            ok: failure.is_none(),
            prefixes: sources.feed(name).map_or(0, Feed::len),
            failure,
            failure_code,
        };
        self.refreshes.note(name, &outcome);
        self.answer_refreshed();
    }

    /// Answers the refresh requests whose fetches have all ended. Sources that are no longer configured are skipped.
    pub(super) fn answer_refreshed(&mut self) {
        for waiting in self.refreshes.take_complete(self.state.policy()) {
            let done = ApplyOutcome {
                changes: self.changes_since(&self.state.with_sources(waiting.before)),
                sources: waiting.sources,
                ..self.outcome()
            };
            let _ = waiting.answer.send(Ok(done));
        }
    }
}
