//! The start of a daemon: chooses the policy, reads the lists, publishes and attaches.
//!
//! Invariants: a failed start restores the earlier state of the kernel; a start needs no network; an unconfirmed change
//! is rolled back, also if no daemon ran at its deadline.

use std::io::ErrorKind;
use std::sync::Arc;

use allowlist_dataplane::interface::require_distinct;
use allowlist_dataplane::netlink::index_of;
use allowlist_dataplane::{Dataplane, View, Write, kernel_clock, require_namespace};
use allowlist_policy::error_code::{CodedError, ErrorCode, bail_with};
use allowlist_policy::lockout::ChangeOrigin;
use allowlist_policy::{AtStart, Mode, Origin};
use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use log::{info, warn};
use tokio::sync::mpsc;

use super::clocks::Expiries;
use super::confirm::Pending;
use super::initial_lists::{Fetch, InitialLists};
use super::interfaces::{Interfaces, look_up_all, warn_of_offloads};
use super::kernel::Kernel;
use super::learned::LearnedFile;
use super::refreshing::Refreshes;
use super::resolvers::HostResolvers;
use super::schedule::Schedule;
use super::start_plan::{StartPlan, start};
use super::store::Store;
use super::{Daemon, Logged, Options, Signals};
use crate::additions::Additions;
use crate::audit::Actor;
use crate::config::Config;
use crate::control::{ApplyOptions, Control};
use crate::effective::{EffectiveState, tracking};
use crate::error_code::ApiError;
use crate::hook::HookQueue;
use crate::journal::{Change, ConfigText, ConfirmDeadline, Journal};
use crate::notify::Notify;
use crate::operation::Operation;

impl Daemon {
    /// Starts a daemon: reads the local lists, publishes a generation and attaches the filter. An error leaves the
    /// kernel as it was.
    ///
    /// A signal while lists are read is an error; a later signal is handled by [`Daemon::serve`].
    pub async fn start(options: Options, notify: Notify, signals: &mut Signals) -> Result<Self> {
        let typed = options.read(&options.written)?;
        require_trusted(&options.written, &typed)?;
        require_interfaces(&options, &typed).await?;
        let mut store = Store::open(&options.paths.state_dir, &options.written.text)?;
        // A change is still pending if the kernel has it as pending.
        let waits = View::open(&options.paths.pin_dir)
            .ok()
            .and_then(|view| view.pending().ok().flatten())
            .filter(|pending| !pending.fell_back);
        let before = Previous::of(&options, &store.journal);
        let plan = plan(&options, &mut store.journal, waits.is_some());
        let config = options.read(&plan.written)?;
        if plan.active_policy.is_some() {
            require_trusted(&plan.written, &config)?;
        }
        let wanted = config.policy.used_sources().cloned().collect();
        let (late, late_lists) = mpsc::unbounded_channel();
        let first = tokio::select! {
            biased;
            () = signals.end() => bail!("a signal interrupted the start; nothing was changed"),
            first = InitialLists::lists(wanted, store.state_dir(), Fetch::None, &late) => first,
        };
        require_namespace(&options.paths.pin_dir).context(
            "the daemon is not started, because another filter uses this pin directory; choose another --pin-dir (and --state-dir and --socket), or remove the other filter with `allowlist detach --force`",
        )?;
        let control = Control::listen(&options.paths, config.control_group.as_deref())?;
        let (kernel, meta) = Kernel::open(&options.paths, tracking(&config)).await?;
        store.set_limits(&config);
        let known = store.journal.known();
        let by_command = known.newest().and_then(|policy| policy.change.mode);
        let mode = by_command.unwrap_or(config.mode);
        let egress_by_command = known.newest().and_then(|policy| policy.change.egress_mode);
        let egress_mode = egress_by_command.unwrap_or_else(|| config.egress_mode());
        let mut resolvers = HostResolvers::default();
        resolvers.read().await;
        let mut daemon = Self {
            is_inactive: !first.missing.is_empty() && config.at_start == AtStart::Wait,
            pending: waits.and_then(|waits| Pending::found(&store.journal, waits.left)),
            hook_queue: HookQueue::start(config.hook.clone()),
            state: EffectiveState::new(
                Arc::new(config),
                plan.written,
                mode,
                Arc::new(known.additions().clone()),
                first.lists.clone(),
            )
            .with_egress_mode(egress_mode),
            kernel,
            interfaces: Interfaces::listen(),
            store,
            learned: LearnedFile::default(),
            resolvers,
            truncated_until: kernel_clock(),
            is_meta_outdated: false,
            schedule: Schedule::default(),
            expiries: Expiries::new(),
            opening: None,
            late,
            late_lists,
            control,
            reloading: None,
            refreshes: Refreshes::default(),
            notify,
            started: Timestamp::now(),
            since: meta.since,
            warnings: Vec::new(),
            access_warning: None,
            options,
        };
        daemon.begin_with_lists(first).await?;
        if let Some(previous) = before {
            let before = previous.state(&daemon.state);
            for line in daemon.changes_since(&before) {
                info!("changed by this start: {line}");
            }
        }
        if plan.rolled_back.is_some() {
            let to = daemon.store.policy_number();
            let operation = Operation::NotConfirmed { to };
            daemon.log(Actor::Daemon, operation, Logged::done());
        }
        Ok(daemon)
    }

    /// Activates the configuration, unless a list is missing and `at_start` is `wait`. `first` has the lists of the
    /// start.
    async fn begin_with_lists(&mut self, first: InitialLists) -> Result<()> {
        let now = self.store.journal.now();
        self.expiries.schedule(self.state.additions(), &now);
        self.publish_status();
        let config = Arc::clone(self.state.config());
        for (service, count) in self.state.additions().without_service(&config.policy) {
            warn!(
                "{count} added prefixes have no effect, because their service {service} is not configured any more; add [services.{service}] again if they are still needed"
            );
        }
        if self.state.mode() != config.mode {
            warn!(
                target: "allowlist::mode-by-command",
                "mode {0} was set by command before this start, but the configuration states {1}; to return to mode {1}, run `allowlist mode {1}`",
                self.state.mode().name(),
                config.mode.name()
            );
        }
        self.interfaces.warn_missing(&config.interfaces);
        self.warn_missing_lists(&first.missing);
        if self.is_inactive {
            // Check now that the lists fit the tables.
            self.state.compile(&self.kernel.ids, index_of)?;
        } else {
            self.start_filtering().await?;
        }
        // After the filter is attached, since these may block on a disk that hangs.
        self.warnings = (self.options.warnings)(&config);
        for warning in &self.warnings {
            warn!("{warning}");
        }
        for source in &first.fetched {
            self.keep(source, true);
        }
        self.emit_events(first.events);
        self.schedule.schedule_all(&self.state, true);
        Ok(())
    }

    /// Activates the daemon's state: publishes and attaches for the first time, or replaces the state of an earlier
    /// daemon.
    pub(super) async fn start_filtering(&mut self) -> Result<()> {
        let state = self.state.clone();
        let attachments = self.attachments(&state, true).await;
        let attachments = attachments.map_err(CodedError::from)?;
        let names: Vec<_> = attachments
            .interfaces
            .iter()
            .map(|one| one.name.clone())
            .collect();
        // Before the kernel is changed: most errors are found here.
        let compiled = state.compile(&self.kernel.ids, index_of)?;
        let options = self.options.apply.clone();
        self.require_session_by(
            &state,
            &compiled.tables,
            &options,
            ChangeOrigin::Configuration,
        )
        .map_err(|cut| CodedError::new(ErrorCode::Lockout, cut.to_string()))?;
        let has_pending = self.pending.is_some();
        let read = move |dataplane: &mut Dataplane| -> allowlist_dataplane::Result<_> {
            let found = dataplane.applied_state()?.mode();
            if !has_pending && dataplane.pending().is_some() {
                // Permanently: its deadline has passed or the journal lacks it, and the next publish is another change.
                dataplane.fall_back()?;
            }
            Ok(found)
        };
        let found = self.kernel.run(read).await?;
        let confirm_within = options.confirm_within.filter(|_| !has_pending);
        let mut is_new = self.store.journal.has_staged();
        if let Err(error) = self.store.journal.write() {
            // The filter starts without the journal.
            warn!(
                "cannot write the policy of this start to the journal: {error}; a later rollback to this policy is not possible"
            );
            self.store.journal.undo_last();
            is_new = false;
        }
        let known = !compiled.is_renumbered && self.kernel.are_counts_known;
        let publication = self.publication(&state, compiled, !known, Some(attachments));
        let write = Write::Generation(publication);
        match self.kernel.apply(write, confirm_within).await {
            Ok(attached) => self.interfaces.note_attached(attached),
            Err(error) => {
                if is_new {
                    self.store.journal.undo_last();
                }
                return Err(error.into());
            }
        }
        if let Some(within) = confirm_within {
            self.pending = Some(self.pending_start(within));
        }
        match (found, state.mode()) {
            (Some(Mode::Enforce), Mode::Observe) => {
                warn!("mode enforce -> observe by this start: drops are only counted now");
            }
            (Some(Mode::Observe), Mode::Enforce) => {
                info!("mode observe -> enforce by this start: packets are dropped now");
            }
            _ => {}
        }
        if found.is_none() || self.since.is_none() {
            self.since = Some(Timestamp::now());
        }
        self.is_inactive = false;
        self.restore_learned().await;
        self.store_meta().await;
        self.store.remove_older_meta();
        for name in &names {
            warn_of_offloads(name).await;
        }
        let policy = self.store.policy_number();
        self.log(
            Actor::Daemon,
            start(state.written()),
            Logged::Done { policy },
        );
        Ok(())
    }

    /// Activates an inactive configuration if every source has a list now.
    pub(super) async fn start_filtering_if_complete(&mut self) -> Result<()> {
        if !self.is_inactive || !self.state.missing().is_empty() {
            return Ok(());
        }
        self.start_filtering().await?;
        if self.opening.is_none() {
            self.announce_ready();
        }
        Ok(())
    }

    /// Activates the state `next` in place of the inactive one, since none of its lists is missing; then announces that
    /// the daemon is ready. Returns the deadline of the confirmation, if any.
    ///
    /// # Errors
    /// After an error, the daemon still has the inactive state.
    pub(super) async fn start_filtering_next(
        &mut self,
        next: EffectiveState,
        mut change: Change,
        options: &ApplyOptions,
    ) -> Result<Option<Timestamp>, ApiError> {
        let deadline = self.deadline(options);
        change.unconfirmed = deadline;
        if self.store.journal.has_staged() {
            self.store.journal.undo_last(); // this change replaces the start that waited for lists
        }
        self.store.journal.stage(change);
        let before = std::mem::replace(&mut self.state, next);
        self.options.apply = options.clone();
        if let Err(error) = self.start_filtering().await {
            self.store.journal.undo_last();
            self.state = before;
            return Err(error.into());
        }
        self.announce_ready();
        Ok(deadline.map(|deadline| deadline.until))
    }

    /// Logs each source without a list in `missing`, with the reason. Skips files, which are read as soon as the filter
    /// is attached.
    fn warn_missing_lists(&self, missing: &[(String, String)]) {
        let config = self.state.config();
        let is_file = |name: &str| {
            let source = config.policy.source(name);
            source.is_some_and(|source| matches!(source.origin, Origin::File { .. }))
        };
        for (name, reason) in missing.iter().filter(|(name, _)| !is_file(name)) {
            let consequence = match config.at_start {
                AtStart::Wait => {
                    "the filter is not attached until the list arrives (at_start = \"wait\")"
                }
                AtStart::Pass => {
                    "every address passes as if listed until the list arrives (at_start = \"pass\")"
                }
                AtStart::Drop => {
                    "the source matches nothing until the list arrives (at_start = \"drop\")"
                }
            };
            warn!(target: "allowlist::missing-list", "{name}: no list yet ({reason}); {consequence}");
        }
    }
}

/// Refuses a start if other users can change the configuration file, or a file that it names and that leads to a command
/// or a secret.
///
/// If the check times out because a file system hangs, the start continues, with a log record: a file that cannot be read
/// can neither run a command nor reveal a secret.
fn require_trusted(written: &ConfigText, config: &Config) -> Result<()> {
    match Options::concerns(written, config) {
        Err(error) if error.kind() == ErrorKind::TimedOut => {
            warn!(
                "cannot check which users can change the paths of the configuration: {error}; starting without this check"
            );
            Ok(())
        }
        examined => Options::refuse_untrusted(
            examined
                .context("cannot check which users can change the files of the configuration")?,
        ),
    }
}

/// The effective policy before a start, to log the changes that the start makes.
struct Previous {
    config: Config,
    written: Arc<ConfigText>,
    mode: Mode,
    additions: Additions,
}

impl Previous {
    /// Returns the newest policy of the journal, or `None` if there is none or this version cannot read its
    /// configuration.
    fn of(options: &Options, journal: &Journal) -> Option<Self> {
        let known = journal.known();
        let newest = known.newest()?;
        let config = options.read(newest.written()).ok()?;
        Some(Self {
            mode: newest.change.mode.unwrap_or(config.mode),
            additions: known.additions().clone(),
            written: Arc::clone(newest.written()),
            config,
        })
    }

    /// Returns the effective state of this policy with the lists of the present state.
    fn state(self, present: &EffectiveState) -> EffectiveState {
        EffectiveState::new(
            Arc::new(self.config),
            self.written,
            self.mode,
            Arc::new(self.additions),
            present.sources().clone(),
        )
    }
}

/// Chooses the policy of the start; if it is a new policy, stages it in the journal. `waits` is whether the newest
/// change is still pending.
fn plan(options: &Options, journal: &mut Journal, waits: bool) -> StartPlan {
    let modes = |written: &ConfigText| {
        let config = options.read(written).ok()?;
        Some((config.mode, config.egress_mode()))
    };
    let now = Timestamp::now();
    let mut plan = StartPlan::new(options.written.clone(), journal.known(), waits, modes, now);
    if let Some(what) = &plan.rolled_back {
        warn!(target: "allowlist::not-confirmed", "{what}: not confirmed in time, so this change is rolled back");
    }
    if let Some(number) = plan.active_policy {
        warn!(
            target: "allowlist::config-suppressed",
            "{}: the file's last change was rolled back, so policy {number} is active instead; change the file, or apply it with `allowlist reload`",
            options.written.origin()
        );
    }
    if let Some(missing) = plan.written.missing_secrets_warning() {
        warn!("{missing}");
    }
    let change = plan.change.take().or_else(|| {
        // A start with --confirm-within is a policy of its own, even without changes.
        options.apply.confirm_within?;
        let newest = journal.known().newest()?;
        Some(Change {
            time: now,
            by: Actor::Daemon.to_string(),
            operation: start(&plan.written).into(),
            edits: Vec::new(),
            ..newest.change.clone()
        })
    });
    if let Some(mut change) = change {
        let newest = journal.known().newest();
        change.unconfirmed = if waits {
            journal.known().unconfirmed() // a start confirms nothing
        } else {
            options.apply.confirm_within.map(|within| ConfirmDeadline {
                until: now + within,
                revert_to: newest.map(|policy| policy.number),
            })
        };
        journal.stage(change);
    }
    plan
}

/// Requires at least one interface. An interface of the command line must exist; one of the file may appear later, as
/// at a boot.
async fn require_interfaces(options: &Options, config: &Config) -> Result<()> {
    if !options.written.interfaces.is_empty() {
        look_up_all(&config.interfaces).await?;
    }
    if config.interfaces.is_empty() {
        bail_with!(
            NoInterface,
            "no interface is configured; set `interfaces` in the configuration, or use --iface"
        );
    }
    require_distinct(&config.interfaces)?;
    Ok(())
}
