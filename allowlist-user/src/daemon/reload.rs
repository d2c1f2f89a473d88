//! Reload and rollback: activates another configuration as a whole, or refuses it with the reason.
//!
//! A reload fetches its lists in the background while the present configuration stays active. A rollback uses only
//! the lists on disk.

use std::sync::Arc;

use allowlist_dataplane::interface::require_distinct;
use allowlist_lists::states::SourceStates;
use allowlist_policy::Source;
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::hints;
use allowlist_policy::lockout::ChangeOrigin;
use log::{info, warn};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};

use super::commit::Transaction;
use super::initial_lists::{Fetch, InitialLists};
use super::interfaces::warn_of_offloads;
use super::start_plan::suppressed_config_crc;
use super::store::Durability;
use super::{Daemon, Logged, Options};
use crate::audit::Actor;
use crate::config::Config;
use crate::control::{ApplyOptions, ApplyOutcome, Control};
use crate::effective::EffectiveState;
use crate::error_code::ApiError;
use crate::hook::HookQueue;
use crate::journal::{Change, ConfigText};
use crate::operation::Operation;

/// The client that requested a reload and waits for the answer.
pub(super) struct Requester {
    pub(super) actor: Actor,
    pub(super) options: ApplyOptions,
    pub(super) answer: oneshot::Sender<Result<ApplyOutcome, ApiError>>,
}

/// A reload in progress.
pub(super) struct Reloading {
    config: Config,
    written: Arc<ConfigText>,
    requester: Option<Requester>,
    task: JoinHandle<InitialLists>,
    /// Whether SIGHUP arrived during this reload, so that the file must be read again afterwards.
    again: bool,
}

impl Reloading {
    /// Waits until the lists of the reload are fetched, and returns them; waits forever if no reload is in progress.
    pub(super) async fn prepared(reloading: &mut Option<Self>) -> Result<InitialLists, JoinError> {
        match reloading {
            Some(reloading) => (&mut reloading.task).await,
            None => std::future::pending().await,
        }
    }
}

/// A configuration to activate, with its text and the lists that it needs.
struct NextConfig {
    config: Config,
    written: Arc<ConfigText>,
    /// The lists of the sources that are new or changed in this configuration.
    first: InitialLists,
}

impl Daemon {
    /// Starts a reload, for a client or, without `requester`, after SIGHUP.
    pub(super) fn reload(&mut self, requester: Option<Requester>) {
        if let Some(reloading) = &mut self.reloading {
            match requester {
                None => reloading.again = true, // further signals cause one more reload
                Some(requester) => self.answer_reload(
                    Some(requester),
                    Err(ApiError::new(
                        ErrorCode::Busy,
                        "a reload is in progress; try again when it has ended",
                    )),
                    None,
                ),
            }
            return;
        }
        self.notify.reloading();
        match self.prepare() {
            Ok(Some(mut reloading)) => {
                reloading.requester = requester;
                self.reloading = Some(reloading);
            }
            Ok(None) => {
                let mut notes = vec!["the configuration is unchanged".to_owned()];
                if self.admit_group() {
                    notes.push("control_group has access to the control socket now".to_owned());
                }
                let done = ApplyOutcome {
                    notes,
                    warnings: self.state_warnings(),
                    ..self.outcome()
                };
                self.answer_reload(requester, Ok(done), None);
            }
            Err(problem) => self.answer_reload(requester, Err(problem), None),
        }
    }

    /// Reads the configuration file, and starts to fetch the lists of new and changed sources. Returns `None` if the
    /// configuration has not changed.
    fn prepare(&mut self) -> Result<Option<Reloading>, ApiError> {
        if self.pending.is_some() {
            self.require_idle()?;
        }
        let Some(file) = &self.options.written.file else {
            return Err(ApiError::new(
                ErrorCode::NoConfigFile,
                "the daemon was started without a configuration file, so there is nothing to reload; restart it instead",
            ));
        };
        let text = Config::file_text(file).map_err(anyhow::Error::from)?;
        let interfaces = self.options.written.interfaces.clone();
        let written = Arc::new(ConfigText::new(Some(file.clone()), text, interfaces));
        let config = self.options.read(&written).map_err(ApiError::from)?;
        Options::require_trusted(&written, &config).map_err(ApiError::from)?;
        if config.interfaces.is_empty() {
            return Err(ApiError::new(
                ErrorCode::NoInterface,
                "no interface is configured; set `interfaces`",
            ));
        }
        require_distinct(&config.interfaces)?;
        let active = self.state.config();
        if config.control_group != active.control_group {
            Control::require_group(config.control_group.as_deref())?;
        }
        let newest = self.store.journal.known().newest();
        let is_suppressed =
            newest.is_some_and(|policy| policy.change.suppressed_config_crc.is_some());
        if *written == **self.state.written() && !self.is_inactive && !is_suppressed {
            return Ok(None);
        }
        let wanted = self.changed_sources(&config);
        let (state, late) = (self.store.state_dir().clone(), self.late.clone());
        let task = tokio::spawn(async move {
            InitialLists::lists(wanted, &state, Fetch::Missing, &late).await
        });
        Ok(Some(Reloading {
            config,
            written,
            requester: None,
            task,
            again: false,
        }))
    }

    /// Returns the used sources that are new or changed in `config`, or have no list.
    fn changed_sources(&self, config: &Config) -> Vec<Source> {
        let is_same = |source: &Source| {
            self.state.config().policy.source(&source.name) == Some(source)
                && self.state.sources().feed(&source.name).is_some()
        };
        let used = config.policy.used_sources();
        used.filter(|source| !is_same(source)).cloned().collect()
    }

    /// Activates a reload whose lists are fetched, or refuses it; then answers the client, if any.
    pub(super) async fn commit_reload(&mut self, prepared: Result<InitialLists, JoinError>) {
        let Some(Reloading {
            config,
            written,
            requester,
            again,
            ..
        }) = self.reloading.take()
        else {
            return;
        };
        let (actor, options) = match &requester {
            Some(requester) => (requester.actor.clone(), requester.options.clone()),
            None => (Actor::Signal, ApplyOptions::default()),
        };
        let done = match prepared {
            Ok(first) => {
                let mut change = Change {
                    written: Some(Arc::clone(&written)),
                    suppressed_config_crc: None,
                    ..self.change(&actor, self.reload_operation())
                };
                // A new mode in the file ends the mode set by command. A rollback restores both.
                let active = self.state.config();
                if config.mode != active.mode {
                    change.mode = None;
                }
                if config.egress_mode() != active.egress_mode() {
                    change.egress_mode = None;
                }
                let next = NextConfig {
                    config,
                    written,
                    first,
                };
                self.activate_next(next, change, &options, true).await
            }
            Err(error) => Err(ApiError::new(
                ErrorCode::Refused,
                format!(
                    "the task that fetches the lists has failed: {error}; the active configuration is unchanged; try again"
                ),
            )),
        };
        let policy = done.as_ref().ok().and_then(|done| done.policy);
        self.answer_reload(requester, done, policy);
        if again {
            self.reload(None);
        }
    }

    /// Logs the result of a reload, and sends it to the client, if any. `policy` is the number of the new policy;
    /// `None` if the reload made none.
    fn answer_reload(
        &mut self,
        requester: Option<Requester>,
        done: Result<ApplyOutcome, ApiError>,
        policy: Option<u64>,
    ) {
        for line in done
            .iter()
            .flat_map(|done| done.changes.iter().chain(&done.notes))
        {
            info!("reload: {line}");
        }
        let actor = requester
            .as_ref()
            .map_or(Actor::Signal, |requester| requester.actor.clone());
        let logged = match &done {
            Err(refusal) => Logged::Refused(refusal.error.clone()),
            Ok(_) if policy.is_none() => Logged::NoChange,
            Ok(_) => Logged::Done { policy },
        };
        self.log(actor, self.reload_operation(), logged);
        self.notify.ready(&self.state_line());
        if let Some(requester) = requester {
            let _ = requester.answer.send(done);
        }
    }

    fn reload_operation(&self) -> Operation {
        let file = self.options.written.file.as_ref();
        Operation::Reload {
            from: file.map(|file| file.display().to_string()),
        }
    }

    /// Rolls back to policy number `to`; `None` stands for the policy before the newest. While a change is pending, only
    /// the policy before it can be restored. Returns the operation for the audit log, and the result.
    pub(super) async fn roll_back(
        &mut self,
        to: Option<u64>,
        options: &ApplyOptions,
        actor: &Actor,
    ) -> (Operation, Result<ApplyOutcome, ApiError>) {
        if let Some(pending) = &self.pending {
            let before = pending.revert_to;
            let operation = Operation::Rollback { to: to.or(before) };
            let done = match to {
                Some(number) if to != before => {
                    Err(pending.refusal(&format!(", then `allowlist rollback {number}`")))
                }
                _ => self.roll_back_pending().await,
            };
            return (operation, done);
        }
        let known = self.store.journal.known();
        let newest = self.store.policy_number().unwrap_or_default();
        let before = known.policies().rev().nth(1).map(|policy| policy.number);
        let operation = Operation::Rollback { to: to.or(before) };
        let number = to.or(before).unwrap_or_default();
        let Some(policy) = known.get(number).filter(|policy| policy.number != newest) else {
            let numbers: Vec<_> = known
                .policies()
                .map(|policy| policy.number.to_string())
                .collect();
            let (code, error) = match to {
                Some(number) if number == newest => (
                    ErrorCode::AlreadyActive,
                    format!("policy {number} is active already"),
                ),
                Some(number) => (
                    ErrorCode::UnknownPolicy,
                    format!(
                        "no stored policy has the number {number}; {}",
                        hints::there_are(numbers)
                    ),
                ),
                None => (
                    ErrorCode::UnknownPolicy,
                    "there is no earlier policy to roll back to".to_owned(),
                ),
            };
            return (operation, Err(ApiError::new(code, error)));
        };
        let written = Arc::clone(policy.written());
        let change = Change {
            mode: policy.change.mode,
            egress_mode: policy.change.egress_mode,
            edits: known.revert_edits(number),
            suppressed_config_crc: self.suppressed_crc_for(&written),
            written: Some(Arc::clone(&written)),
            ..self.change(actor, operation.clone())
        };
        let may = self
            .require_idle()
            .and_then(|()| self.require_same_power(&written, actor));
        let done = match may {
            Ok(()) => self.replace(change, options, Some(number)).await,
            Err(problem) => Err(problem),
        };
        (operation, done)
    }

    /// Rolls the pending change back before its deadline.
    async fn roll_back_pending(&mut self) -> Result<ApplyOutcome, ApiError> {
        let before = self.state.clone();
        self.roll_back_unconfirmed().await?;
        Ok(ApplyOutcome {
            changes: self.changes_since(&before),
            notes: vec!["the pending change is rolled back".to_owned()],
            ..self.outcome()
        })
    }

    /// Returns the checksum of the text in the configuration file, so that the file is suppressed after a rollback to
    /// `written`. Returns `None` if the file has the text of `written`, cannot be read, or there is no file.
    fn suppressed_crc_for(&self, written: &ConfigText) -> Option<u32> {
        let file = self.options.written.file.as_ref()?;
        let text = Config::file_text(file).ok()?;
        let said = ConfigText::new(Some(file.clone()), text, Vec::new());
        suppressed_config_crc(&said, written)
    }

    /// Activates a change that has another configuration, using only local lists. `number` is the policy that a client
    /// restores, for the notes of the answer; `None` at the rollback of an unconfirmed change.
    pub(super) async fn replace(
        &mut self,
        change: Change,
        options: &ApplyOptions,
        number: Option<u64>,
    ) -> Result<ApplyOutcome, ApiError> {
        let written = change
            .written
            .clone()
            .unwrap_or_else(|| Arc::clone(self.state.written()));
        let config = self.options.read(&written)?;
        let missing = written.missing_secrets_warning();
        let wanted = self.changed_sources(&config);
        let first =
            InitialLists::lists(wanted, self.store.state_dir(), Fetch::None, &self.late).await;
        let next = NextConfig {
            config,
            written,
            first,
        };
        let mut done = self.activate_next(next, change, options, false).await?;
        if let Some(missing) = missing {
            warn!("{missing}");
            done.warnings.push(missing);
        }
        if let Some(number) = number {
            done.notes
                .insert(0, format!("policy {number} is active again"));
        }
        Ok(done)
    }

    /// Requires root for a rollback that restores another `control_group` or `[on_change]`, so that members of the
    /// group cannot restore a permission that root has revoked.
    fn require_same_power(&self, written: &ConfigText, actor: &Actor) -> Result<(), ApiError> {
        if !matches!(actor, Actor::Peer(peer) if peer.uid != 0) {
            return Ok(());
        }
        let (config, now) = (self.options.read(written)?, self.state.config());
        let changed = if config.control_group != now.control_group {
            Some("control_group")
        } else if config.hook != now.hook {
            Some("[on_change]")
        } else {
            None
        };
        let Some(key) = changed else { return Ok(()) };
        Err(ApiError::new(
            ErrorCode::Forbidden,
            format!("the earlier policy has another {key}, which only root may restore; try sudo"),
        ))
    }

    /// Activates a configuration as a whole. With `is_strict`, a missing list and a failing disk are errors, otherwise
    /// only warnings.
    async fn activate_next(
        &mut self,
        next: NextConfig,
        change: Change,
        options: &ApplyOptions,
        is_strict: bool,
    ) -> Result<ApplyOutcome, ApiError> {
        let NextConfig {
            config,
            written,
            first,
        } = next;
        if is_strict && !first.missing.is_empty() {
            let reasons: Vec<_> = first
                .missing
                .iter()
                .map(|(name, reason)| format!("source {name} has no list: {reason}"))
                .collect();
            return Err(ApiError::new(ErrorCode::MissingLists, reasons.join("\n")));
        }
        for (name, _) in &first.missing {
            warn!(target: "allowlist::missing-list", "{name}: no list on this host; the source matches nothing until the list is fetched");
        }
        let before = self.state.clone();
        let InitialLists {
            lists,
            fetched,
            events,
            ..
        } = first;
        let state = self.next_state(config, written, &change, lists);
        let mut done = if self.is_inactive {
            let confirm_until = self.start_filtering_next(state, change, options).await?;
            ApplyOutcome {
                changes: self.changes_since(&before),
                confirm_until,
                ..self.outcome()
            }
        } else {
            let transaction = Transaction {
                record: Some(change),
                durability: if is_strict {
                    Durability::Required
                } else {
                    Durability::BestEffort
                },
                options: Some(options.clone()),
                origin: ChangeOrigin::Configuration,
                ..Transaction::new(state)
            };
            let committed = self.commit(transaction).await?;
            self.outcome_of(committed)
        };
        self.finish_next(&before, &fetched);
        self.emit_events(events);
        for name in &self.state.config().interfaces {
            if !before.config().interfaces.contains(name) {
                warn_of_offloads(name).await;
            }
        }
        if done.changes.is_empty() {
            let note = "no effective changes (only comments or formatting differ)";
            done.notes.push(note.to_owned());
        }
        done.warnings.extend(self.state_warnings());
        Ok(done)
    }

    /// Returns the state after a change of the configuration. `changed` has the lists of the sources that are new or
    /// changed in it.
    fn next_state(
        &self,
        config: Config,
        written: Arc<ConfigText>,
        change: &Change,
        mut changed: SourceStates,
    ) -> EffectiveState {
        let mut present = self.state.sources().clone();
        let mut sources = SourceStates::default();
        for source in config.policy.used_sources() {
            let name = &source.name;
            let is_same = self.state.config().policy.source(name) == Some(source);
            if is_same && present.feed(name).is_some() {
                sources.move_from(name, &mut present);
            } else {
                sources.move_from(name, &mut changed);
            }
        }
        let (mode, additions) = (config.mode, Arc::clone(self.state.additions()));
        EffectiveState::new(Arc::new(config), written, mode, additions, sources).with_change(change)
    }

    /// Does the steps after the activation of a configuration, none of which can fail: access, hook, logs, watches and
    /// schedule. `fetched` are the sources whose lists differ from those on disk.
    fn finish_next(&mut self, before: &EffectiveState, fetched: &[Source]) {
        let config = Arc::clone(self.state.config());
        self.admit_group();
        if config.hook != before.config().hook {
            self.hook_queue = HookQueue::start(config.hook.clone());
        }
        self.store.set_limits(&config);
        self.schedule.watch_files(&config);
        self.warnings = (self.options.warnings)(&config);
        for warning in &self.warnings {
            warn!("{warning}");
        }
        self.interfaces.warn_missing(&config.interfaces);
        for source in fetched {
            self.keep(source, true);
        }
        let now = self.store.journal.now();
        self.expiries.schedule(self.state.additions(), &now);
        self.is_meta_outdated = true;
        self.schedule.schedule_all(&self.state, false);
        self.answer_refreshed();
    }

    /// Gives the configured `control_group` access to the control socket, if it does not have it yet. Returns whether it
    /// has access from now on. A failure is logged, and stays a warning of the state until a later attempt succeeds.
    fn admit_group(&mut self) -> bool {
        let group = self.state.config().control_group.as_deref();
        if self.control.admitted() == group {
            self.access_warning = None;
            return false;
        }
        let failed = self.control.admit(group).err().map(|error| {
            let newest = self.store.journal.known().newest();
            // A reload would end the rollback.
            let is_suppressed =
                newest.is_some_and(|policy| policy.change.suppressed_config_crc.is_some());
            let retry = if is_suppressed {
                "restart the daemon"
            } else {
                "run `allowlist reload`"
            };
            format!(
                "control_group is not applied to the control socket: {error:#}; correct the cause, then {retry}"
            )
        });
        if let Some(warning) = &failed {
            warn!("{warning}");
        }
        self.access_warning = failed;
        self.access_warning.is_none()
    }
}
