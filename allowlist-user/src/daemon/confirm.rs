//! A change that waits to be confirmed: kept, or taken back when its time is over.
//!
//! The kernel takes it back by itself at that moment, whatever becomes of this process; what is done here
//! makes everything else agree with it.

use std::time::Duration;

use anyhow::{Result, bail};
use jiff::Timestamp;
use log::warn;
use tokio::time::Instant;

use super::{Daemon, plan};
use crate::audit::{Deed, Who};
use crate::control::Done;
use crate::error_code::bail_with;
use crate::error_code::{CodedError, ErrorCode};
use crate::ledger::{Ledger, Unconfirmed};

/// A change that waits.
pub(super) struct Pending {
    pub(super) deadline: Instant,
    pub(super) what: String,
    pub(super) by: String,
    /// The policy to go back to; none where nothing was filtered.
    back_to: Option<u64>,
}

impl Pending {
    pub(super) fn new(unconfirmed: Unconfirmed, what: String, by: String) -> Self {
        let left = unconfirmed.until.duration_since(Timestamp::now());
        Self {
            deadline: Instant::now() + left.try_into().unwrap_or(Duration::ZERO),
            what,
            by,
            back_to: unconfirmed.back_to,
        }
    }

    /// What a daemon before this one left waiting.
    pub(super) fn found(ledger: &Ledger, left: Duration) -> Option<Self> {
        let newest = ledger.known().newest()?;
        let unconfirmed = newest.change.unconfirmed?;
        Some(Self {
            deadline: Instant::now() + left,
            what: newest.change.what.clone(),
            by: newest.change.by.clone(),
            back_to: unconfirmed.back_to,
        })
    }
}

impl Daemon {
    /// Makes a start one that has to be confirmed.
    pub(super) fn guard_start(&mut self, within: Duration) -> Result<()> {
        self.dataplane.arm_rollback(within)?;
        let newest = self.ledger.known().newest();
        let unconfirmed = newest.and_then(|policy| policy.change.unconfirmed);
        self.pending = Some(Pending::new(
            unconfirmed.unwrap_or(Unconfirmed {
                until: Timestamp::now() + within,
                back_to: self.policy_number(),
            }),
            format!("start by {}", self.written.origin()),
            Who::Daemon.to_string(),
        ));
        Ok(())
    }

    /// Whether a change waits whose time is over, by this process's clock or by the kernel's.
    pub(super) fn is_too_late(&self) -> bool {
        let has_fallen_back = || {
            let pending = self.dataplane.pending();
            pending.is_some_and(|pending| pending.fell_back)
        };
        self.pending
            .as_ref()
            .is_some_and(|pending| pending.deadline <= Instant::now() || has_fallen_back())
    }

    /// Keeps the change that waits.
    pub(super) fn confirm(&mut self) -> Result<Done, CodedError> {
        let Some(pending) = &self.pending else {
            return Err(CodedError::new(
                ErrorCode::NothingPending,
                "no change waits to be confirmed; if one did, it was taken back: `allowlist log` tells",
            ));
        };
        let what = pending.what.clone();
        let is_over = self
            .dataplane
            .pending()
            .is_none_or(|pending| pending.fell_back);
        if is_over || self.is_too_late() {
            return Err(CodedError::new(
                ErrorCode::NotConfirmed,
                format!("{what}: it is too late: what was before is in force again"),
            ));
        }
        self.ledger.confirm().map_err(anyhow::Error::from)?;
        self.dataplane.confirm()?;
        self.pending = None;
        Ok(Done {
            notes: vec![format!("{what}: confirmed")],
            ..self.done()
        })
    }

    /// Takes back what was not confirmed. An error ends the daemon: the kernel goes on by what was before, and
    /// the next start does too.
    pub(super) async fn take_back_unconfirmed(&mut self) -> Result<()> {
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        warn!(target: "allowlist::not-confirmed", "{}: not confirmed in time, and taken back", pending.what);
        // A publish of the change must not end what the kernel went back to.
        self.dataplane.fall_back()?;
        let Some(number) = pending.back_to else {
            self.log(Who::Daemon, Deed::NotConfirmed, None);
            self.notify.stopping();
            self.dataplane.detach()?;
            bail_with!(
                NotConfirmed,
                "not confirmed in time, so the filter is off again: everything passes"
            );
        };
        self.go_back(number).await?;
        self.log(Who::Daemon, Deed::NotConfirmed, None);
        Ok(())
    }

    /// Makes an earlier policy the one that everything agrees with.
    async fn go_back(&mut self, number: u64) -> Result<()> {
        let known = self.ledger.known();
        let Some(before) = known.get(number) else {
            bail!(
                "policy {number} is not known any more, so the configuration of now cannot be taken back; the kernel goes on by what was before"
            );
        };
        let change = plan::back(known, before, &self.written, Timestamp::now());
        self.replace(change, &crate::control::Care::default(), None)
            .await
            .map(drop)
            .map_err(|problem| anyhow::anyhow!("{}", problem.error))
    }
}
