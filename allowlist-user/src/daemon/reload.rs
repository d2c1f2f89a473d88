//! Another configuration in the place of the one in force: all of it, or none with the reason.
//!
//! A reload is made ready beside the loop, since its lists may take a while; what is in force meanwhile goes
//! on. A rollback needs nobody outside: what was in force once is on disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use log::{info, warn};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};

use super::confirm::Pending;
use super::first::{Ask, First};
use super::interfaces::{present, warn_of_offloads};
use super::plan::held_back;
use super::start::watched;
use super::{Daemon, Options};
use crate::additions::{Additions, source_name};
use crate::audit::{Audit, Deed, Who};
use crate::config::Config;
use crate::control::{Care, Control, Done};
use crate::error_code::{CodedError, ErrorCode};
use crate::hints;
use crate::history::History;
use crate::hook::Teller;
use crate::interface::require_distinct;
use crate::ledger::{Change, Written};
use crate::lists::SourceStates;
use crate::policy::Source;
use crate::session::ChangeOrigin;

/// Who asked for a reload, and waits for it.
pub(super) struct Asker {
    pub(super) who: Who,
    pub(super) care: Care,
    pub(super) answer: oneshot::Sender<Result<Done, CodedError>>,
}

/// A configuration that is being made ready.
pub(super) struct Reloading {
    config: Config,
    written: Arc<Written>,
    asker: Option<Asker>,
    task: JoinHandle<First>,
    /// Whether somebody signalled meanwhile: the file may be another by now.
    again: bool,
}

impl Reloading {
    /// Returns when its lists are there.
    pub(super) async fn prepared(reloading: &mut Option<Self>) -> Result<First, JoinError> {
        match reloading {
            Some(reloading) => (&mut reloading.task).await,
            None => std::future::pending().await,
        }
    }
}

/// What takes the place of what is in force.
struct Next {
    config: Config,
    written: Arc<Written>,
    /// The lists of sources that are not as they were.
    first: First,
}

impl Daemon {
    /// Begins to read the configuration again: for somebody who waits, or on a signal.
    pub(super) fn reload(&mut self, asker: Option<Asker>) {
        if let Some(reloading) = &mut self.reloading {
            match asker {
                None => reloading.again = true, // a storm of signals is one reload more
                Some(asker) => self.answer_reload(
                    Some(asker),
                    Err(CodedError::new(
                        ErrorCode::Busy,
                        "the configuration is being reloaded at this moment; ask again",
                    )),
                    None,
                ),
            }
            return;
        }
        self.notify.reloading();
        match self.prepare() {
            Ok(Some(mut reloading)) => {
                reloading.asker = asker;
                self.reloading = Some(reloading);
            }
            Ok(None) => {
                let done = Done {
                    notes: vec!["the configuration is unchanged".to_owned()],
                    warnings: self.standing_warnings(),
                    ..self.done()
                };
                self.answer_reload(asker, Ok(done), None);
            }
            Err(problem) => self.answer_reload(asker, Err(problem), None),
        }
    }

    /// Reads the file, and begins to get the lists that it needs more; none if nothing is new.
    fn prepare(&mut self) -> Result<Option<Reloading>, CodedError> {
        if self.pending.is_some() {
            self.require_free()?;
        }
        let Some(file) = &self.options.written.file else {
            return Err(CodedError::new(
                ErrorCode::NoConfigFile,
                "this filter was started without a configuration file, so there is none to reload; start it anew",
            ));
        };
        let text = Config::file_text(file).map_err(anyhow::Error::from)?;
        let interfaces = self.options.written.interfaces.clone();
        let written = Arc::new(Written::new(Some(file.clone()), text, interfaces));
        let config = self.options.read(&written).map_err(CodedError::from)?;
        Options::require_trusted(&written, &config).map_err(CodedError::from)?;
        if config.interfaces.is_empty() {
            return Err(CodedError::new(
                ErrorCode::NoInterface,
                "no interface to filter on; set `interfaces`",
            ));
        }
        require_distinct(&config.interfaces)?;
        if config.control_group != self.config.control_group {
            Control::require_group(config.control_group.as_deref())?;
        }
        let newest = self.ledger.known().newest();
        let is_held_back = newest.is_some_and(|policy| policy.change.held_back.is_some());
        if *written == *self.written && !self.waiting && !is_held_back {
            return Ok(None);
        }
        let wanted = self.changed_sources(&config);
        let (state, late) = (self.state.clone(), self.late.clone());
        let task =
            tokio::spawn(async move { First::lists(wanted, &state, Ask::Everybody, &late).await });
        Ok(Some(Reloading {
            config,
            written,
            asker: None,
            task,
            again: false,
        }))
    }

    /// The used sources of a configuration that are not as they are now.
    fn changed_sources(&self, config: &Config) -> Vec<Source> {
        let is_same = |source: &Source| {
            self.config.policy.source(&source.name) == Some(source)
                && self.lists.feed(&source.name).is_some()
        };
        let used = config.policy.used_sources();
        used.filter(|source| !is_same(source)).cloned().collect()
    }

    /// The lists of a reload are there: it is put in force, or refused.
    pub(super) async fn commit_reload(&mut self, prepared: Result<First, JoinError>) {
        let Some(Reloading {
            config,
            written,
            asker,
            again,
            ..
        }) = self.reloading.take()
        else {
            return;
        };
        let (who, care) = match &asker {
            Some(asker) => (asker.who.clone(), asker.care.clone()),
            None => (Who::Signal, Care::default()),
        };
        let done = match prepared {
            Ok(first) => {
                let change = Change {
                    written: Some(Arc::clone(&written)),
                    held_back: None,
                    ..self.change(&who, format!("reload of {}", written.origin()))
                };
                let next = Next {
                    config,
                    written,
                    first,
                };
                self.put_next_in_force(next, change, &care, true).await
            }
            Err(error) => Err(CodedError::new(
                ErrorCode::Refused,
                format!("the lists could not be got: {error}"),
            )),
        };
        let policy = done.as_ref().ok().and_then(|done| done.policy);
        self.answer_reload(asker, done, policy);
        if again {
            self.reload(None);
        }
    }

    fn answer_reload(
        &mut self,
        asker: Option<Asker>,
        done: Result<Done, CodedError>,
        policy: Option<u64>,
    ) {
        for line in done
            .iter()
            .flat_map(|done| done.changes.iter().chain(&done.notes))
        {
            info!("reload: {line}");
        }
        let refused = done.as_ref().err().map(|problem| problem.error.clone());
        let who = asker
            .as_ref()
            .map_or(Who::Signal, |asker| asker.who.clone());
        self.log(who, Deed::Reload { policy }, refused);
        self.notify.ready(&self.state_line());
        if let Some(asker) = asker {
            let _ = asker.answer.send(done);
        }
    }

    /// Puts an earlier policy in force again: the one before the newest, or the one of this number.
    pub(super) async fn roll_back(
        &mut self,
        to: Option<u64>,
        care: &Care,
        who: &Who,
    ) -> (Deed, Result<Done, CodedError>) {
        let known = self.ledger.known();
        let newest = self.policy_number().unwrap_or_default();
        let before = known.policies().rev().nth(1).map(|policy| policy.number);
        let number = to.or(before).unwrap_or_default();
        let deed = |policy| Deed::Rollback { to: number, policy };
        if self.pending.is_some() {
            // It is what somebody who cannot wait for the time to be over asks for.
            let (config, mode) = (Arc::clone(&self.config), self.mode);
            let (additions, lists) = (known.additions().clone(), self.lists.clone());
            let done = self.take_back_unconfirmed().await;
            let done = done.map_err(CodedError::from).map(|()| Done {
                changes: self.changes_since(&config, mode, &additions, lists.feeds()),
                notes: vec!["the unconfirmed change is rolled back".to_owned()],
                ..self.done()
            });
            return (deed(self.policy_number()), done);
        }
        let Some(policy) = known.get(number).filter(|policy| policy.number != newest) else {
            let numbers: Vec<_> = known
                .policies()
                .map(|policy| policy.number.to_string())
                .collect();
            let (code, error) = match to {
                Some(number) if number == newest => (
                    ErrorCode::AlreadyActive,
                    format!("policy {number} is in force already"),
                ),
                Some(number) => (
                    ErrorCode::UnknownPolicy,
                    format!(
                        "there is no policy {number} to go back to; {}",
                        hints::there_are(numbers)
                    ),
                ),
                None => (
                    ErrorCode::UnknownPolicy,
                    "there is no policy before this one to go back to".to_owned(),
                ),
            };
            return (deed(None), Err(CodedError::new(code, error)));
        };
        let written = Arc::clone(policy.written());
        let change = Change {
            mode: policy.change.mode,
            edits: known.back_to(number),
            held_back: self.held_back_for(&written),
            written: Some(Arc::clone(&written)),
            ..self.change(who, format!("rollback to policy {number}"))
        };
        let may = self
            .require_free()
            .and_then(|()| self.require_same_power(&written, who));
        let done = match may {
            Ok(()) => self.replace(change, care, Some(number)).await,
            Err(problem) => Err(problem),
        };
        let policy = done.as_ref().ok().and_then(|done| done.policy);
        (deed(policy), done)
    }

    /// The checksum of what the file says now, if that is another configuration than `written`.
    fn held_back_for(&self, written: &Written) -> Option<u32> {
        let file = self.options.written.file.as_ref()?;
        let text = Config::file_text(file).ok()?;
        let said = Written::new(Some(file.clone()), text, Vec::new());
        held_back(&said, written)
    }

    /// Puts a change in force that brings another configuration, with what is on this host.
    pub(super) async fn replace(
        &mut self,
        change: Change,
        care: &Care,
        number: Option<u64>,
    ) -> Result<Done, CodedError> {
        let written = change
            .written
            .clone()
            .unwrap_or_else(|| Arc::clone(&self.written));
        let config = self.options.read(&written)?;
        let missing = written.missing_secrets_warning();
        let wanted = self.changed_sources(&config);
        let first = First::lists(wanted, &self.state, Ask::Nobody, &self.late).await;
        let next = Next {
            config,
            written,
            first,
        };
        let mut done = self.put_next_in_force(next, change, care, false).await?;
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

    /// Members of `control_group` may not restore what root has revoked since: the users of the control socket,
    /// and the program of `[on_change]`.
    fn require_same_power(&self, written: &Written, who: &Who) -> Result<(), CodedError> {
        if !matches!(who, Who::Peer(peer) if peer.uid != 0) {
            return Ok(());
        }
        let (config, now) = (self.options.read(written)?, &self.config);
        let changed = if config.control_group != now.control_group {
            Some("control_group")
        } else if config.hook != now.hook {
            Some("[on_change]")
        } else {
            None
        };
        let Some(key) = changed else { return Ok(()) };
        Err(CodedError::new(
            ErrorCode::Forbidden,
            format!(
                "that policy has another {key} than the active one, which only root may restore; try sudo"
            ),
        ))
    }

    /// All of it, or none.
    async fn put_next_in_force(
        &mut self,
        next: Next,
        mut change: Change,
        care: &Care,
        is_strict: bool,
    ) -> Result<Done, CodedError> {
        let Next {
            config,
            written,
            mut first,
        } = next;
        if is_strict && !first.missing.is_empty() {
            let reasons: Vec<_> = first
                .missing
                .iter()
                .map(|(name, reason)| format!("{name} has no list: {reason}"))
                .collect();
            return Err(CodedError::new(ErrorCode::MissingLists, reasons.join("\n")));
        }
        for (name, _) in &first.missing {
            warn!(target: "allowlist::missing-list", "{name} has no list on this host, and lets nobody in till it is fetched");
        }
        let interfaces = present(&config.interfaces).await?;
        let (what, by) = (change.what.clone(), change.by.clone());
        change.unconfirmed = self.unconfirmed(care);
        if config.mode != self.config.mode {
            change.mode = None; // what the file says newly is meant
        }
        let unconfirmed = change.unconfirmed;
        if self.ledger.is_staged() {
            self.ledger.take_back(); // the start that waited is not wanted any more
        }
        let additions = self.ledger.known().additions().clone();
        self.ledger.stage(change);
        let before = self.exchange(config, written, &mut first, additions);
        let entered = if self.waiting {
            self.enter_next(care).await.map(|()| None)
        } else {
            self.begin_next(&interfaces, care, &before.config, is_strict)
        };
        let warning = match entered {
            Ok(warning) => warning,
            Err(problem) => {
                self.ledger.take_back();
                self.restore(before);
                return Err(problem);
            }
        };
        let changes = self.changes_since(
            &before.config,
            before.mode,
            &before.additions,
            before.lists.feeds(),
        );
        let config = before.config;
        self.pending = unconfirmed.map(|unconfirmed| Pending::new(unconfirmed, what, by));
        self.finish_next(&config, &first);
        for facts in &interfaces {
            if !config.interfaces.contains(&facts.name) {
                warn_of_offloads(&facts.name).await;
            }
        }
        let mut notes = Vec::new();
        if changes.is_empty() {
            notes.push("no effective changes (only comments or formatting differ)".to_owned());
        }
        Ok(Done {
            changes,
            notes,
            warnings: warning
                .into_iter()
                .chain(self.standing_warnings())
                .collect(),
            confirm_until: unconfirmed.map(|unconfirmed| unconfirmed.until),
            ..self.done()
        })
    }

    /// Makes everything but the kernel that of another configuration.
    ///
    /// # Returns
    /// What was before.
    fn exchange(
        &mut self,
        config: Config,
        written: Arc<Written>,
        first: &mut First,
        before: Additions,
    ) -> Before {
        let lists = self.lists.clone();
        let mut next = SourceStates::default();
        for source in config.policy.used_sources() {
            let name = &source.name;
            let is_same = self.config.policy.source(name) == Some(source);
            if is_same && self.lists.feed(name).is_some() {
                next.move_from(name, &mut self.lists);
            } else {
                next.move_from(name, &mut first.lists);
            }
        }
        let additions = self.ledger.known().additions();
        for service in additions.services() {
            next.set_feed(&source_name(service), additions.feed(service));
        }
        let before = Before {
            policy: std::mem::replace(&mut self.policy, additions.with(&config.policy)),
            config: std::mem::replace(&mut self.config, Arc::new(config)),
            written: std::mem::replace(&mut self.written, written),
            lists,
            mode: self.mode,
            additions: before,
        };
        self.lists = next;
        self.is_policy_new = true;
        self.follow_ledger(&BTreeSet::new());
        self.schedule_expiry();
        before
    }

    fn restore(&mut self, before: Before) {
        let Before {
            config,
            policy,
            written,
            lists,
            mode,
            additions: _,
        } = before;
        (
            self.config,
            self.policy,
            self.written,
            self.lists,
            self.mode,
        ) = (config, policy, written, lists, mode);
        self.schedule_expiry();
    }

    /// Puts the first configuration in force for which all lists are there.
    async fn enter_next(&mut self, care: &Care) -> Result<(), CodedError> {
        self.options.care = care.clone();
        self.enter().await?;
        self.say_ready();
        Ok(())
    }

    /// Puts in the kernel what everything else is of by now. Without `needs_disk`, a disk that fails is a warning.
    fn begin_next(
        &mut self,
        interfaces: &[crate::interface::InterfaceInfo],
        care: &Care,
        before: &Config,
        needs_disk: bool,
    ) -> Result<Option<String>, CodedError> {
        let (tables, anew) = self.compiled(&self.lists).map_err(anyhow::Error::from)?;
        self.require_session_by(care, &tables, ChangeOrigin::Configuration)?;
        let found = self.dataplane.applied_state()?;
        let tracking = |config: &Config| config.rules.tracks().then_some(config.max_flows);
        let is_tracking_other = tracking(before) != tracking(&self.config);
        let put = || {
            if let Some(within) = care.confirm_within {
                self.dataplane.arm_rollback(within)?;
            }
            let warning = self.write_ledger(needs_disk)?;
            if is_tracking_other {
                self.dataplane.track(tracking(&self.config))?;
            }
            let renews = is_tracking_other || before.attach != self.config.attach;
            self.begin(tables, interfaces, !anew, renews)?;
            anyhow::Ok(warning)
        };
        put().map_err(|error| match self.dataplane.restore(&found) {
            Ok(()) => error.into(),
            Err(again) => CodedError::new(
                ErrorCode::Refused,
                format!(
                    "{error:#}; and what was in force before could not be put in force again: {again:#}"
                ),
            ),
        })
    }

    /// What follows once it is in force, and cannot fail any more.
    fn finish_next(&mut self, before: &Config, first: &First) {
        let paths = &self.options.paths;
        if self.config.control_group != before.control_group
            && let Err(error) = self.control.admit(self.config.control_group.as_deref())
        {
            warn!("{error:#}; who may ask is as before");
        }
        if self.config.hook != before.hook {
            self.teller = Teller::start(self.config.hook.clone());
        }
        self.history = History::new(&paths.state_dir, self.config.history_bytes);
        self.audit = Audit::new(&paths.state_dir, self.config.log_bytes);
        self.files = watched(&self.config);
        self.warnings = (self.options.warnings)(&self.config);
        for warning in &self.warnings {
            warn!("{warning}");
        }
        self.lost
            .retain(|name, _| self.config.interfaces.contains(name));
        self.say_absent();
        for source in &first.fetched {
            self.keep(source, true);
        }
        let generation = self.dataplane.generation();
        let events: Vec<_> = first
            .events
            .iter()
            .map(|event| event.clone().of(generation))
            .collect();
        self.tell_of(&events);
        let now = self.ledger.now();
        self.ledger.tidy(&self.state, &now);
        self.record_is_old = true;
        self.writing.clear();
        self.schedule_all(false);
        self.answer_refreshed();
    }
}

/// The state that a change replaces: it is restored if the change fails, and compared with the new one.
struct Before {
    config: Arc<Config>,
    policy: crate::policy::Policy,
    written: Arc<Written>,
    lists: SourceStates,
    mode: crate::policy::Mode,
    additions: Additions,
}
