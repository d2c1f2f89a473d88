//! Commit confirm: a pending change is confirmed, or rolled back at its deadline.
//!
//! The kernel rolls back at the deadline, also if this process has ended. This module then makes the journal
//! and the daemon's state agree with the kernel.

use std::time::Duration;

use allowlist_dataplane::Dataplane;
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::error_code::bail_with;
use anyhow::{Result, bail};
use jiff::Timestamp;
use log::warn;
use tokio::time::Instant;

use super::{Daemon, Logged, start_plan};
use crate::audit::Actor;
use crate::control::{ApplyOptions, ApplyOutcome};
use crate::error_code::ApiError;
use crate::journal::{ConfirmDeadline, Journal};
use crate::operation::Operation;

/// A change that is rolled back at its deadline unless it is confirmed before.
pub(super) struct Pending {
    /// The deadline by this process's monotonic clock.
    pub(super) deadline: Instant,
    /// The description of the operation that made the change.
    pub(super) what: String,
    /// The name of the user who made the change, or of the daemon.
    pub(super) by: String,
    /// The number of the policy that a rollback restores; `None` if nothing was filtered before.
    pub(super) revert_to: Option<u64>,
}

impl Pending {
    pub(super) fn new(unconfirmed: ConfirmDeadline, what: String, by: String) -> Self {
        let left = unconfirmed.until.duration_since(Timestamp::now());
        Self {
            deadline: Instant::now() + left.try_into().unwrap_or(Duration::ZERO),
            what,
            by,
            revert_to: unconfirmed.revert_to,
        }
    }

    /// Returns the change that an earlier daemon left pending; `left` is the time until its deadline. `None` without
    /// such a change.
    pub(super) fn found(journal: &Journal, left: Duration) -> Option<Self> {
        let newest = journal.known().newest()?;
        let unconfirmed = newest.change.unconfirmed?;
        Some(Self {
            deadline: Instant::now() + left,
            what: newest.change.operation.to_string(),
            by: newest.change.by.clone(),
            revert_to: unconfirmed.revert_to,
        })
    }

    /// Returns the error for a request of another change while this one is pending. `then` ends the message, and states
    /// what to do once this change is confirmed or rolled back.
    pub(super) fn refusal(&self, then: &str) -> ApiError {
        let left = self.deadline.saturating_duration_since(Instant::now());
        ApiError::new(
            ErrorCode::ChangePending,
            format!(
                "a change is pending ({} by {}) and is rolled back in {} s; run `allowlist confirm` or `allowlist rollback` first{then}",
                self.what,
                self.by,
                left.as_secs()
            ),
        )
    }
}

impl Daemon {
    /// Returns the pending change of a start that is rolled back unless it is confirmed. `within` is the time until its
    /// deadline, used if the journal has no deadline.
    pub(super) fn pending_start(&self, within: Duration) -> Pending {
        let newest = self.store.journal.known().newest();
        let unconfirmed = newest.and_then(|policy| policy.change.unconfirmed);
        Pending::new(
            unconfirmed.unwrap_or(ConfirmDeadline {
                until: Timestamp::now() + within,
                revert_to: self.store.policy_number(),
            }),
            start_plan::start(self.state.written()).to_string(),
            Actor::Daemon.to_string(),
        )
    }

    /// Returns whether a pending change has passed its deadline, by this process's clock or by the kernel's.
    pub(super) async fn is_too_late(&self) -> bool {
        let Some(pending) = &self.pending else {
            return false;
        };
        let has_fallen_back = |dataplane: &mut Dataplane| {
            let pending = dataplane.pending();
            pending.is_some_and(|pending| pending.fell_back)
        };
        pending.deadline <= Instant::now() || self.kernel.run(has_fallen_back).await
    }

    /// Confirms the pending change, and returns the answer for the client.
    pub(super) async fn confirm(&mut self) -> Result<ApplyOutcome, ApiError> {
        let Some(pending) = &self.pending else {
            return Err(ApiError::new(
                ErrorCode::NothingPending,
                "no change is pending; an earlier one may have been rolled back, see `allowlist log`",
            ));
        };
        let what = pending.what.clone();
        let is_over = |dataplane: &mut Dataplane| {
            let pending = dataplane.pending();
            pending.is_none_or(|pending| pending.fell_back)
        };
        if self.kernel.run(is_over).await || self.is_too_late().await {
            return Err(ApiError::new(
                ErrorCode::NotConfirmed,
                format!(
                    "{what}: not confirmed, because the deadline has passed and the change is rolled back; make the change again"
                ),
            ));
        }
        self.store.journal.confirm().map_err(anyhow::Error::from)?;
        self.kernel.run(Dataplane::confirm).await?;
        self.pending = None;
        Ok(ApplyOutcome {
            notes: vec![format!("{what}: confirmed")],
            ..self.outcome()
        })
    }

    /// Rolls back the pending change after its deadline. An error ends the daemon: the kernel filters by the policy
    /// before the change, and the next start uses that policy too.
    pub(super) async fn roll_back_unconfirmed(&mut self) -> Result<()> {
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        warn!(target: "allowlist::not-confirmed", "{}: not confirmed in time, so this change is rolled back", pending.what);
        // A publish must not end the state that the kernel rolled back to.
        self.kernel.run(Dataplane::fall_back).await?;
        self.kernel.is_behind = true; // lists may have changed since the change
        let Some(number) = pending.revert_to else {
            self.log(
                Actor::Daemon,
                Operation::NotConfirmed { to: None },
                Logged::done(),
            );
            self.notify.stopping();
            self.kernel.run(|dataplane| dataplane.detach()).await?;
            bail_with!(
                NotConfirmed,
                "the start was not confirmed in time: the filter is detached, and every packet passes; run `allowlist run` again, and then `allowlist confirm`"
            );
        };
        self.restore_policy(number).await?;
        let operation = Operation::NotConfirmed { to: Some(number) };
        self.log(Actor::Daemon, operation, Logged::done());
        Ok(())
    }

    /// Activates the earlier policy that has this number.
    async fn restore_policy(&mut self, number: u64) -> Result<()> {
        let known = self.store.journal.known();
        let Some(before) = known.get(number) else {
            bail!(
                "policy {number} is not in the journal any more, so the daemon cannot roll back to it; the kernel filters by the policy before the change; start the daemon again with `allowlist run`"
            );
        };
        let change = start_plan::back(known, before, self.state.written(), Timestamp::now());
        self.replace(change, &ApplyOptions::default(), None).await?;
        Ok(())
    }
}
