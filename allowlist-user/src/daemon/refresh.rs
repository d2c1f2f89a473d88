//! Updates lists while the daemon runs: evaluates and publishes them, ends grace periods, emits events.

use std::sync::Arc;

use allowlist_lists::event::{Event, EventKind};
use allowlist_lists::gather::Gathered;
use allowlist_lists::list_update::RejectedUpdate;
use allowlist_lists::rejected;
use allowlist_lists::states::{Proposal, SourceStates};
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::hints::{self, counted};
use allowlist_policy::{Answer, Source};
use jiff::Timestamp;
use log::{info, warn};

use super::commit::{CommitError, Transaction};
use super::{Daemon, schedule};
use crate::control::{ApplyOptions, ApplyOutcome};
use crate::error_code::{ApiError, code_of};

/// The outcome of a fetch, which decides when the next fetch follows.
enum FetchOutcome {
    Active,
    Rejected,
    Failed,
}

impl Daemon {
    /// Handles the outcome of a fetch. After a failure or a rejection the last-good list stays active.
    pub(super) async fn handle_fetch(&mut self, gathered: Gathered) {
        let Gathered {
            source,
            answer,
            retry_after,
        } = gathered;
        if self.state.policy().source(&source.name) != Some(&source) {
            // The configuration has changed since the fetch began.
            self.note_refreshed(&source.name);
            return;
        }
        let now = self.now();
        let again = match &answer {
            Ok(Answer::List(fetched)) => fetched.again,
            _ => None,
        };
        let lists = self.state.sources().clone();
        let taken = match answer.map(|answer| lists.propose(&source, answer, now)) {
            Ok(Ok(proposal)) => match self.adopt(&source, lists, proposal, now, None).await {
                Ok(_) => FetchOutcome::Active,
                Err(error) => {
                    warn!(
                        target: "allowlist::list-rejected",
                        "source {}: {error}; the last-good list stays active",
                        source.name
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
                let states = self.state.sources_mut();
                let events = states.record_failure(&source.name, code, reason, now);
                self.emit_events(events);
                FetchOutcome::Failed
            }
        };
        let health = self.state.sources().health(&source.name);
        let failures = health.map_or(0, |one| one.failures);
        let chance = fastrand::f64();
        let wait = match taken {
            FetchOutcome::Active => schedule::after_success(&source, again, chance),
            // A complete list will hardly differ in a minute, and vendors limit requests.
            FetchOutcome::Rejected => schedule::after_success(&source, None, chance),
            FetchOutcome::Failed => schedule::after_failure(&source, failures, retry_after, chance),
        };
        self.schedule.schedule(&source, wait);
        self.store_meta().await;
        self.note_refreshed(&source.name);
    }

    /// Returns the text that states what follows from a failed fetch of source `name`, for the log.
    fn instead(&self, name: &str) -> &'static str {
        if self.state.sources().feed(name).is_some() {
            "the last-good list stays active"
        } else {
            "there is no list yet; retrying"
        }
    }

    /// Records and logs a list that the gate rejected, and stores the source's active list with its newer ages on disk,
    /// at most every 10 minutes.
    pub(super) fn refuse(&mut self, source: &Source, refused: RejectedUpdate, now: Timestamp) {
        let name = &source.name;
        let reason = refused.reason(source);
        warn!(
            target: "allowlist::list-rejected",
            "{reason}; {} (the rejected list would add {} and remove {})",
            self.instead(name),
            counted(refused.difference.added.len(), "prefix"),
            refused.difference.removed.len()
        );
        let states = self.state.sources_mut();
        let events = states.record_rejection(name, refused, reason, now);
        // The ages of the list's changes have changed.
        self.keep(source, false);
        self.emit_events(events);
    }

    /// Activates `lists` with the list in `proposal`, which passed the gate, and stores that list on disk. Returns the
    /// events of the change.
    ///
    /// A list that does not fit the tables is rejected as by the gate. With `options`, the lockout check must pass
    /// first.
    pub(super) async fn adopt(
        &mut self,
        source: &Source,
        mut lists: SourceStates,
        proposal: Proposal,
        now: Timestamp,
        options: Option<ApplyOptions>,
    ) -> Result<Vec<Event>, CommitError> {
        let name = &source.name;
        let is_news = proposal.needs_publish;
        let change = proposal.change();
        let (old, old_notes) = match self.state.sources().feed(name) {
            Some(feed) => (feed.prefixes.len(), feed.notes.clone()),
            None => (0, Vec::new()),
        };
        let events = lists.commit(proposal, now);
        let transaction = Transaction {
            options,
            ..Transaction::new(self.state.with_sources(lists))
        };
        match self.commit(transaction).await {
            Ok(_) => {}
            // The operator may repeat the request with --force.
            Err(error @ CommitError::Lockout(_)) => return Err(error),
            Err(error) => {
                let (code, reason) = (error.code(), format!("source {name}: {error}"));
                let states = self.state.sources_mut();
                let events = states.record_unpublished(name, code, reason, change, now);
                self.emit_events(events);
                return Err(error);
            }
        }
        let feed = self.state.sources().feed(name).expect("it was adopted");
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
                "{name}: changed from {old} to {}{grace}; generation {}",
                counted(feed.prefixes.len(), "prefix"),
                self.kernel.generation()
            );
        }
        for note in feed.notes.iter().filter(|note| !old_notes.contains(note)) {
            warn!("{name}: {note}");
        }
        self.keep(source, is_other);
        self.emit_events(events.clone());
        Ok(events)
    }

    /// Accepts the rejected list of source `name` if it has the id `id`. Without an id, refuses, and the error names
    /// the id of the rejected list.
    pub(super) async fn accept(
        &mut self,
        name: &str,
        id: Option<&str>,
        options: &ApplyOptions,
    ) -> Result<ApplyOutcome, ApiError> {
        let refuse = |kind, error: String| Err(ApiError::new(kind, error));
        let policy = &self.state.config().policy;
        let Some(source) = policy.source(name).cloned() else {
            let names: Vec<_> = policy.used_sources().map(|one| &*one.name).collect();
            let there_are = hints::there_are(names);
            return refuse(
                ErrorCode::UnknownSource,
                format!("no source is called {name:?}; {there_are}"),
            );
        };
        let now = self.now();
        let lists = self.state.sources().clone();
        let proposal = match lists.propose_rejected(&source, now) {
            Some(Ok(proposal)) => proposal,
            Some(Err(refused)) => {
                let refusal = refused.rejection;
                return refuse(refusal.code(), format!("source {name}: {refusal}"));
            }
            None => {
                let health = lists.health(name);
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
        let ids = lists.rejected_ids();
        let current = ids.get(name).copied().unwrap_or_default();
        let command = rejected::command(name, current);
        match id {
            Some(id) if id == current => {}
            Some(id) => {
                return refuse(
                    ErrorCode::AnotherRejectedList,
                    format!(
                        "{name}: the rejected list has the id {current} now, not {id:?}; `allowlist diff {name}` shows the list, `{command}` accepts it"
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
        let before = self.state.clone();
        let options = Some(options.clone());
        let adopted = self.adopt(&source, lists, proposal, now, options).await;
        self.store_meta().await;
        let change = adopted?.into_iter().find_map(|event| match event.kind {
            EventKind::Changed { change, .. } => Some(change),
            _ => None,
        });
        Ok(ApplyOutcome {
            changes: self.changes_since(&before),
            change: Some(change.unwrap_or_default()),
            ..self.outcome()
        })
    }

    /// Returns the time of the wall clock. If that clock was stepped forward, first shifts the times of all lists by
    /// the step.
    pub(super) fn now(&mut self) -> Timestamp {
        let (now, step) = self.expiries.read_clock();
        if let Some(step) = step {
            warn!(
                target: "allowlist::clock-set",
                "the wall clock was stepped by {} s; the ends of grace periods are moved by this time",
                step.as_secs()
            );
            self.state.sources_mut().apply_clock_step(now, step);
            // The next start uses the times on disk.
            let config = Arc::clone(self.state.config());
            for source in config.policy.used_sources() {
                self.keep(source, true);
            }
        }
        now
    }

    /// Removes grace prefixes and added prefixes that have expired, and logs lists that have become stale.
    pub(super) async fn handle_timers(&mut self) {
        let now = self.now();
        let next = self.state.sources().next_expiry();
        if next.is_some_and(|next| next <= now) && self.expiries.may_publish() {
            self.release(now).await;
        }
        let config = Arc::clone(self.state.config());
        let states = self.state.sources_mut();
        let events = states.mark_stale(config.policy.used_sources(), now);
        for event in &events {
            if let EventKind::Stale { fetched } = event.kind {
                let source = config.policy.source(&event.source);
                let max_age = source.map(|source| source.max_age).unwrap_or_default();
                warn!(
                    target: "allowlist::list-stale",
                    "{}: the list is stale: it was last fetched at {fetched}, and max_age is {}; it stays active; `allowlist sources` shows the next fetch",
                    event.source,
                    humantime::format_duration(max_age)
                );
            }
        }
        self.emit_events(events);
        if self.expiries.next().is_some() && self.expiries.may_publish() {
            self.expire_added().await;
        }
    }

    /// Publishes the lists without the prefixes whose grace period has ended at `now`.
    async fn release(&mut self, now: Timestamp) {
        let mut lists = self.state.sources().clone();
        let events = lists.expire_grace(now);
        let next = self.state.with_sources(lists);
        match self.commit(Transaction::new(next)).await {
            Ok(_) => {
                let config = Arc::clone(self.state.config());
                for event in &events {
                    let name = &event.source;
                    info!(
                        "{name}: a grace period has ended, and its prefixes are not allowed any more; generation {}",
                        self.kernel.generation()
                    );
                    if let Some(source) = config.policy.source(name) {
                        self.keep(source, true);
                    }
                }
                self.emit_events(events);
            }
            Err(error) => {
                warn!(
                    "cannot publish the end of a grace period: {error}; grace prefixes stay allowed; retrying"
                );
                self.expiries.delay();
            }
        }
        self.store_meta().await;
    }

    /// Appends events of the active generation to the event log, and passes them to the hook. Failures are logged.
    pub(super) fn emit_events(&self, events: Vec<Event>) {
        let generation = self.kernel.generation();
        for event in events {
            let event = event.with_generation(generation);
            self.store.add_event(&event);
            self.hook_queue.enqueue(&event);
        }
    }

    /// Stores the source's list for the next start. If `is_other` is false, the list is unchanged, and is stored only
    /// if this was last done more than ten minutes ago.
    pub(super) fn keep(&mut self, source: &Source, is_other: bool) {
        if let Some(feed) = self.state.sources().feed(&source.name) {
            self.store.keep(source, feed, is_other);
        }
    }
}
