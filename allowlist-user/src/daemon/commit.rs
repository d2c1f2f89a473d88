//! The one transaction: every change of the effective state becomes active here, as a whole or not at all.
//!
//! The order is: plan, lockout check, journal on disk, kernel tables, control word, the daemon's state. A failure
//! before the last step leaves everything as it was, since the old state is kept until then.

use allowlist_dataplane::netlink::index_of;
use allowlist_dataplane::{Attachments, Publication, Write};
use allowlist_lists::state::StateError;
use allowlist_policy::compile::{CompileError, Tables};
use allowlist_policy::error_code::{CodedError, ErrorCode};
use allowlist_policy::lockout::{ChangeOrigin, LockoutError};
use jiff::Timestamp;
use log::warn;
use thiserror::Error;

use super::Daemon;
use super::confirm::Pending;
use super::egress;
use super::interfaces::present;
use super::store::Durability;
use crate::control::ApplyOptions;
use crate::effective::{
    Compiled, EffectiveState, KernelWrites, KnownIds, Plan, Scope, plan, tracking,
};
use crate::error_code::{ApiError, coded, refusal};
use crate::generation_meta::GenerationMeta;
use crate::journal::{Change, ConfirmDeadline};
use crate::session;

/// A change of the effective state that is not active yet.
pub(super) struct Transaction {
    /// The state after the change.
    pub(super) next: EffectiveState,
    /// The record of the change for the journal; `None` for a change that makes no policy, such as that of a list.
    pub(super) record: Option<Change>,
    /// Whether the change becomes active if the record cannot be written.
    pub(super) durability: Durability,
    /// The options of the lockout check and of commit confirm; `None` for a change that no client requested, without
    /// lockout check.
    pub(super) options: Option<ApplyOptions>,
    /// The origin of the change, for the error of the lockout check.
    pub(super) origin: ChangeOrigin,
    /// Whether a generation is published even if the tables are the same.
    pub(super) always: bool,
}

impl Transaction {
    /// Returns the transaction that makes `next` active: without a record, and without a lockout check.
    pub(super) fn new(next: EffectiveState) -> Self {
        Self {
            next,
            record: None,
            durability: Durability::BestEffort,
            options: None,
            origin: ChangeOrigin::Command,
            always: false,
        }
    }

    /// Returns the transaction that publishes `state` again, although its tables are the same.
    pub(super) fn again(state: EffectiveState) -> Self {
        Self {
            always: true,
            ..Self::new(state)
        }
    }
}

/// The result of a transaction.
#[derive(Debug, Default)]
pub(super) struct Committed {
    /// A line for each difference that reports show.
    pub(super) changes: Vec<String>,
    /// The warning that the change is active but could not be written to the journal; `None` without such a failure.
    pub(super) warning: Option<String>,
    /// The deadline of the confirmation; `None` if none is needed.
    pub(super) confirm_until: Option<Timestamp>,
}

/// The reason why a transaction changed nothing.
#[derive(Debug, Error)]
pub(super) enum CommitError {
    /// The lists do not fit the tables.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The change would cut the session of the client, who may repeat the request with `--force`.
    #[error(transparent)]
    Lockout(#[from] Box<LockoutError>),
    /// The change could not be written to the journal.
    #[error(transparent)]
    Journal(#[from] StateError),
    /// The interfaces could not be read.
    #[error("{0:#}")]
    Interfaces(anyhow::Error),
    /// A write to the kernel failed.
    #[error("{0:#}")]
    Kernel(#[from] allowlist_dataplane::Error),
}

impl CommitError {
    /// Returns the code of the error.
    pub(super) fn code(&self) -> ErrorCode {
        match self {
            Self::Compile(error) => error.code(),
            Self::Lockout(_) => ErrorCode::Lockout,
            Self::Journal(_) => ErrorCode::DiskFailed,
            Self::Interfaces(error) => coded(error).code,
            Self::Kernel(error) => error.code(),
        }
    }
}

impl From<CommitError> for CodedError {
    fn from(error: CommitError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<CommitError> for ApiError {
    fn from(error: CommitError) -> Self {
        refusal(error.into())
    }
}

impl Daemon {
    /// Makes the next state of a transaction active. While the configuration is inactive, only checks that its lists
    /// fit the tables.
    ///
    /// # Errors
    /// Nothing has changed: neither the journal, nor the kernel, nor this daemon's state.
    pub(super) async fn commit(
        &mut self,
        transaction: Transaction,
    ) -> Result<Committed, CommitError> {
        let Transaction {
            next,
            record,
            durability,
            options,
            origin,
            always,
        } = transaction;
        let now = Timestamp::now();
        let ids = &self.kernel.ids;
        if self.is_inactive {
            next.compile(ids, index_of)?;
            self.state = next;
            return Ok(Committed::default());
        }
        let always = always || self.kernel.is_behind;
        let Plan { changes, writes } = plan(&self.state, &next, always, ids, index_of, now)?;
        if let Some(options) = &options {
            self.require_session(&next, &writes, options, origin)?;
        }
        let options = options.unwrap_or_default();
        let deadline = self.deadline(&options);
        let is_recorded = record.is_some();
        let pending = deadline.zip(record.as_ref()).map(|(deadline, change)| {
            Pending::new(deadline, change.operation.to_string(), change.by.clone())
        });
        let mut warning = None;
        if let Some(mut change) = record {
            change.unconfirmed = deadline;
            warning = self.store.record(change, durability)?;
        }
        if let Err(error) = self.write(&next, writes, &options).await {
            if is_recorded {
                self.store.journal.undo_last();
            }
            self.is_meta_outdated = true; // it may describe the next state
            return Err(error);
        }
        if let Some(warning) = &warning {
            warn!("{warning}");
        }
        let before = std::mem::replace(&mut self.state, next);
        // A change in place stores the metadata only for new ids. Counts and times may follow later.
        if before.policy().services == self.state.policy().services {
            self.is_meta_outdated = true;
        } else {
            self.store_meta().await;
        }
        if is_recorded {
            self.pending = pending;
            self.store.compact_journal();
        }
        Ok(Committed {
            changes,
            warning,
            confirm_until: deadline.map(|deadline| deadline.until),
        })
    }

    /// Writes the state `next` to the kernel, so that the kernel judges packets by it.
    async fn write(
        &mut self,
        next: &EffectiveState,
        writes: KernelWrites,
        options: &ApplyOptions,
    ) -> Result<(), CommitError> {
        let write = match writes {
            KernelWrites::Nothing if options.confirm_within.is_none() => return Ok(()),
            // A pending change needs a word of its own to go back from.
            KernelWrites::Nothing | KernelWrites::Mode => Write::Mode {
                mode: next.mode(),
                egress: next.egress_mode(),
            },
            KernelWrites::Generation { compiled, scope } => {
                let attachments = match scope {
                    Scope::Tables => None,
                    Scope::Interfaces { renews } => Some(self.attachments(next, renews).await?),
                };
                let forgets_counts = compiled.is_renumbered;
                let publication = self.publication(next, compiled, forgets_counts, attachments);
                Write::Generation(publication)
            }
        };
        let attached = self.kernel.apply(write, options.confirm_within).await?;
        self.interfaces.note_attached(attached);
        Ok(())
    }

    /// Returns the generation to publish for the state `next`. With `forgets_counts`, the counters restart at 0.
    pub(super) fn publication(
        &self,
        next: &EffectiveState,
        compiled: Compiled,
        forgets_counts: bool,
        attachments: Option<Attachments>,
    ) -> Publication {
        let config = next.config();
        Publication {
            mode: next.mode(),
            rules: config.rules,
            names: config.interfaces.clone(),
            metadata: self.metadata(next, &compiled.ids()).encode(),
            forgets_counts,
            attachments,
            egress: egress::publication(next, compiled.egress, self.resolvers.known())
                .map(Box::new),
            tables: compiled.tables,
        }
    }

    fn metadata(&self, state: &EffectiveState, ids: &KnownIds) -> GenerationMeta {
        GenerationMeta::new(ids, state.policy(), state.sources(), self.since)
    }

    /// Returns the interfaces to attach the filter to for the state `next`, with the settings of their programs.
    ///
    /// With `renews`, programs that are attached already are replaced.
    pub(super) async fn attachments(
        &self,
        next: &EffectiveState,
        renews: bool,
    ) -> Result<Attachments, CommitError> {
        let config = next.config();
        let interfaces = present(&config.interfaces).await;
        let tracks = tracking(config);
        Ok(Attachments {
            interfaces: interfaces.map_err(CommitError::Interfaces)?,
            mode: config.attach,
            renews,
            tracking: (tracks != tracking(self.state.config())).then_some(tracks),
            trace: self.options.trace,
        })
    }

    /// Does the lockout check for a change, unless the options have `force`.
    fn require_session(
        &self,
        next: &EffectiveState,
        writes: &KernelWrites,
        options: &ApplyOptions,
        origin: ChangeOrigin,
    ) -> Result<(), Box<LockoutError>> {
        let before = self.kernel.tables.as_ref();
        let after = match writes {
            KernelWrites::Generation { compiled, .. } => Some(&compiled.tables),
            KernelWrites::Mode => before,
            KernelWrites::Nothing => None,
        };
        let Some(after) = after else {
            return Ok(());
        };
        self.require_session_by(next, after, options, origin)
    }

    /// Does the lockout check for these tables of the state `next`, unless the options have `force`.
    pub(super) fn require_session_by(
        &self,
        next: &EffectiveState,
        tables: &Tables,
        options: &ApplyOptions,
        origin: ChangeOrigin,
    ) -> Result<(), Box<LockoutError>> {
        if options.force {
            return Ok(());
        }
        let (state, before) = (&self.state, self.kernel.tables.as_ref());
        let before = before.map(|tables| state.config().generation(state.mode(), tables));
        let after = next.config().generation(next.mode(), tables);
        session::check(options.session.as_ref(), before, after, origin)
    }

    /// Returns the deadline by which a change with these options must be confirmed, or `None` without `confirm_within`.
    pub(super) fn deadline(&self, options: &ApplyOptions) -> Option<ConfirmDeadline> {
        options.confirm_within.map(|within| ConfirmDeadline {
            until: Timestamp::now() + within,
            revert_to: self.store.policy_number(),
        })
    }

    /// Stores the metadata of the active generation in the kernel, if the metadata there may be older.
    pub(super) async fn update_meta(&mut self) {
        if self.is_meta_outdated {
            self.store_meta().await;
        }
    }

    /// Stores the metadata of the active generation in the kernel. A failure is logged.
    pub(super) async fn store_meta(&mut self) {
        self.is_meta_outdated = false;
        let metadata = self.metadata(&self.state, &self.kernel.ids).encode();
        let stored = self
            .kernel
            .run(move |dataplane| dataplane.set_metadata(&metadata));
        if let Err(error) = stored.await {
            warn!(
                "cannot store the names and states of the sources in the kernel: {error:#}; until the next change or fetch, reports may show their earlier state"
            );
        }
    }
}
