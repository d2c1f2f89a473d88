//! The start of a daemon: chooses the policy, reads the lists, publishes and attaches.
//!
//! Invariants: a failed start restores the earlier state of the kernel; a start needs no network; an unconfirmed change
//! is rolled back, also if no daemon ran at its deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use allowlist_dataplane::interface::{InterfaceInfo, Links, require_distinct};
use allowlist_dataplane::{Dataplane, View, require_namespace};
use allowlist_lists::gather::Fetches;
use allowlist_lists::state::{StateDir, StateError, StateLock};
use allowlist_policy::compile::Tables;
use allowlist_policy::error_code::bail_with;
use allowlist_policy::lockout::ChangeOrigin;
use allowlist_policy::{AtStart, Mode, Origin};
use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use log::{info, warn};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::additions::Expiry;
use super::confirm::Pending;
use super::files::Files;
use super::initial_lists::{Fetch, InitialLists};
use super::interfaces::{look_up_all, present, warn_of_offloads};
use super::refresh::Clocks;
use super::selfcheck::SelfCheck;
use super::start_plan::StartPlan;
use super::{COUNTS_ANEW, Daemon, Options, Signals};
use crate::additions::Additions;
use crate::audit::{Actor, AuditAction};
use crate::config::Config;
use crate::control::Control;
use crate::event_log::EventLog;
use crate::generation_meta::GenerationMeta;
use crate::hook::HookQueue;
use crate::journal::{Change, ConfigText, ConfirmDeadline, Journal};
use crate::notify::Notify;
use crate::time::Now;

/// The time for which outbound flows are tracked before the filter judges its first packet.
const LISTEN: Duration = Duration::from_secs(1);

impl Daemon {
    /// Starts a daemon: reads the local lists, publishes a generation and attaches the filter. An error leaves the
    /// kernel as it was.
    ///
    /// A signal while lists are read is an error; a later signal is handled by [`Daemon::serve`].
    pub async fn start(options: Options, notify: Notify, signals: &mut Signals) -> Result<Self> {
        let typed = options.read(&options.written)?;
        require_trusted(&options.written, &typed)?;
        require_interfaces(&options, &typed).await?;
        let (state, lock) = open_state(&options.paths.state_dir)?;
        let mut journal = Journal::open(&state, &Now::current(), &options.written.text);
        // A change is still pending if the kernel has it as pending.
        let waits = View::open(&options.paths.pin_dir)
            .ok()
            .and_then(|view| view.pending().ok().flatten())
            .filter(|pending| !pending.fell_back);
        let before = Previous::of(&options, &journal);
        let plan = plan(&options, &mut journal, waits.is_some());
        let config = options.read(&plan.written)?;
        if plan.active_policy.is_some() {
            require_trusted(&plan.written, &config)?;
        }
        let wanted = config.policy.used_sources().cloned().collect();
        let (late, late_lists) = mpsc::unbounded_channel();
        let mut first = tokio::select! {
            biased;
            () = signals.end() => bail!("interrupted; nothing was attached"),
            first = InitialLists::lists(wanted, &state, Fetch::None, &late) => first,
        };
        require_namespace(&options.paths.pin_dir).context(
            "not started; choose another --pin-dir (and --state-dir and --socket), or remove that filter with `allowlist detach --force`",
        )?;
        let control = Control::listen(&options.paths, config.control_group.as_deref())?;
        let dataplane = Dataplane::open(
            &options.paths.pin_dir,
            config.rules.tracks().then_some(config.max_flows),
        )?;
        let known = GenerationMeta::of_counters(&dataplane, &options.paths.state_dir)?;
        let are_counts_known = known.is_some() || dataplane.counted_generation() == 0;
        let meta = known.unwrap_or_default();
        let mut daemon = Self {
            control,
            files: Files::default(),
            opening: None,
            late,
            late_lists,
            event_log: EventLog::new(
                &options.paths.state_dir,
                config.log_bytes,
                config.history_bytes,
            ),
            hook_queue: HookQueue::start(config.hook.clone()),
            clocks: Clocks::now(),
            release_after: Instant::now(),
            catch_up_after: Instant::now(),
            expiry: Expiry::Never,
            warnings: Vec::new(),
            ids: meta.ids,
            active: None,
            lists: std::mem::take(&mut first.lists),
            inactive: !first.missing.is_empty() && config.at_start == AtStart::Wait,
            fetches: Fetches::default(),
            due: BTreeMap::new(),
            writing: BTreeMap::new(),
            lost: BTreeMap::new(),
            published_on: BTreeMap::new(),
            self_check: SelfCheck::default(),
            links: listen_to_links(),
            traces: BTreeMap::new(),
            kept: BTreeMap::new(),
            reloading: None,
            refreshing: Vec::new(),
            pending: waits.and_then(|waits| Pending::found(&journal, waits.left)),
            is_meta_outdated: false,
            named_services: BTreeMap::new(),
            are_counts_known,
            started: Timestamp::now(),
            since: meta.since,
            written: plan.written,
            policy: config.policy.clone(),
            mode: config.mode,
            config: Arc::new(config),
            options,
            state,
            lock,
            journal,
            dataplane,
            notify,
        };
        daemon.begin_with_lists(&first).await?;
        if let Some(Previous {
            config,
            mode,
            additions,
        }) = &before
        {
            let lists = daemon.lists.feeds();
            for line in daemon.changes_since(config, *mode, additions, lists) {
                info!("changed by this start: {line}");
            }
        }
        if plan.rolled_back.is_some() {
            daemon.log(Actor::Daemon, AuditAction::NotConfirmed, None);
        }
        Ok(daemon)
    }

    /// Applies the journal's added prefixes and the lists in `first`, and activates the configuration, unless a list is
    /// missing and `at_start` is `wait`.
    async fn begin_with_lists(&mut self, first: &InitialLists) -> Result<()> {
        let added: BTreeSet<String> = self
            .journal
            .known()
            .additions()
            .services()
            .cloned()
            .collect();
        self.apply_journal(&added);
        self.publish_status();
        let additions = self.journal.known().additions();
        for (service, count) in additions.without_service(&self.config.policy) {
            warn!(
                "{count} added prefixes have no effect: their service {service} is not configured any more"
            );
        }
        if self.mode != self.config.mode {
            warn!(
                target: "allowlist::mode-by-command",
                "mode {} was set by command before this start; the configuration states {}",
                self.mode.name(),
                self.config.mode.name()
            );
        }
        self.warn_missing_interfaces();
        self.warn_missing_lists(&first.missing);
        if self.inactive {
            // Check now that the lists fit the tables.
            self.compiled(&self.lists)?;
        } else {
            self.start_filtering().await?;
        }
        // After the filter is attached, since these may block on a disk that hangs.
        self.warnings = (self.options.warnings)(&self.config);
        for warning in &self.warnings {
            warn!("{warning}");
        }
        for source in &first.fetched {
            self.keep(source, true);
        }
        let generation = self.dataplane.generation();
        let events: Vec<_> = first
            .events
            .iter()
            .map(|event| event.clone().with_generation(generation))
            .collect();
        self.emit_events(&events);
        self.schedule_all(true);
        Ok(())
    }

    /// Activates the configuration: publishes and attaches for the first time, or replaces the state of an earlier
    /// daemon.
    pub(super) async fn start_filtering(&mut self) -> Result<()> {
        let interfaces = present(&self.config.interfaces).await?;
        let found = self.dataplane.applied_state()?;
        // Before the kernel is changed: most errors are found here.
        let (tables, anew) = self.compiled(&self.lists)?;
        let options = self.options.apply.clone();
        self.require_session_by(&options, &tables, ChangeOrigin::Configuration)?;
        if self.pending.is_none() && self.dataplane.pending().is_some() {
            // Permanently: its deadline has passed or the journal lacks it, and the next publish is another change.
            self.dataplane.fall_back()?;
        }
        if let Some(within) = options.confirm_within
            && self.pending.is_none()
        {
            self.require_confirmation(within)?;
        }
        let mut is_new = self.journal.has_staged();
        if let Err(error) = self.journal.write() {
            // The filter starts without the journal.
            warn!(
                "cannot write this policy to the journal: {error}; a rollback to it will not be possible"
            );
            self.journal.undo_last();
            is_new = false;
        }
        let known = !anew && self.are_counts_known;
        let begun = self.publish_and_attach(tables, &interfaces, known, true);
        if let Err(error) = begun {
            self.dataplane.restore(&found).context(format!(
                "{error:#}; and the earlier state could not be restored"
            ))?;
            if is_new {
                self.journal.undo_last();
            }
            return Err(error);
        }
        match (found.mode(), self.mode) {
            (Some(Mode::Enforce), Mode::Observe) => {
                warn!("mode enforce -> observe by this start: drops are only counted now");
            }
            (Some(Mode::Observe), Mode::Enforce) => {
                info!("mode observe -> enforce by this start: packets are dropped now");
            }
            _ => {}
        }
        if found.mode().is_none() || self.since.is_none() {
            self.since = Some(Timestamp::now());
            self.is_meta_outdated = true;
            self.update_meta();
        }
        self.inactive = false;
        self.are_counts_known = true;
        if self.lock.is_some()
            && let Err(error) = GenerationMeta::remove_older(&self.options.paths.state_dir)
        {
            warn!("{error:#}");
        }
        for facts in &interfaces {
            warn_of_offloads(&facts.name).await;
        }
        let action = AuditAction::Start {
            from: self.written.origin(),
            policy: self.policy_number().unwrap_or_default(),
        };
        self.log(Actor::Daemon, action, None);
        Ok(())
    }

    /// Activates an inactive configuration if every source has a list now.
    pub(super) async fn start_filtering_if_complete(&mut self) -> Result<()> {
        if !self.inactive || !self.missing(&self.lists).is_empty() {
            return Ok(());
        }
        self.start_filtering().await?;
        if self.opening.is_none() {
            self.announce_ready();
        }
        Ok(())
    }

    /// Logs each source without a list in `missing`, with the reason. Skips files, which are read as soon as the filter
    /// is attached.
    fn warn_missing_lists(&self, missing: &[(String, String)]) {
        let is_file = |name: &str| {
            let source = self.config.policy.source(name);
            source.is_some_and(|source| matches!(source.origin, Origin::File { .. }))
        };
        for (name, reason) in missing.iter().filter(|(name, _)| !is_file(name)) {
            let consequence = match self.config.at_start {
                AtStart::Wait => "the filter is not attached until the list arrives",
                AtStart::Pass => "every address passes as if listed until the list arrives",
                AtStart::Drop => "the source matches nothing until the list arrives",
            };
            warn!(target: "allowlist::missing-list", "{name}: no list yet ({reason}); {consequence} (at_start)");
        }
    }

    /// Publishes a generation, then attaches the filter to `interfaces`.
    ///
    /// If return traffic is tracked, outbound flows are tracked for [`LISTEN`] before the first packet is judged, so
    /// that present connections continue. Without `counts_known`, counters restart at 0. With `renews`, the program is
    /// also replaced on interfaces that have it already.
    pub(super) fn publish_and_attach(
        &mut self,
        tables: Tables,
        interfaces: &[InterfaceInfo],
        counts_known: bool,
        renews: bool,
    ) -> Result<()> {
        if !counts_known {
            warn!(target: "allowlist::counters-reset", "{COUNTS_ANEW}");
            self.dataplane.forget_counts()?;
        }
        // Filtered interfaces change to this program first, with the present tables.
        let (mut filtered, mut new) = (Vec::new(), Vec::new());
        let mut is_news = false;
        self.dataplane.prepare_tracking()?;
        for facts in interfaces {
            is_news |= self.dataplane.enable_tracking(facts)?;
            if self.dataplane.filters(facts)? {
                filtered.push(facts);
            } else {
                new.push(facts);
            }
        }
        if self.dataplane.is_patched() {
            new.append(&mut filtered); // its maps are empty before the publish
        }
        for facts in filtered.into_iter().filter(|_| renews) {
            self.attach(facts, self.options.trace)?;
        }
        self.dataplane.finish_flow_migration()?;
        self.dataplane.adopt_clients()?;
        if is_news {
            std::thread::sleep(LISTEN);
            self.dataplane.adopt_clients()?; // those since the first call
        }
        self.with_lists(|daemon, lists| daemon.activate(lists, Arc::new(tables)))?;
        // Interfaces with another version's program last, so that a failure before leaves them as they were.
        let (anothers, new) = self.those_of_another_version(new)?;
        for facts in new.into_iter().chain(anothers) {
            self.attach(facts, self.options.trace)?;
        }
        self.dataplane.arm()?;
        let indices: Vec<u32> = interfaces.iter().map(|facts| facts.index).collect();
        let mut detached = self.dataplane.detach_others(&indices)?;
        detached.extend(self.dataplane.remove_previous()?);
        for name in detached {
            info!(
                target: "allowlist::detached",
                "{name}: detached, not configured any more"
            );
        }
        Ok(())
    }

    /// Splits interfaces into those that have the program of another version attached, and the rest.
    fn those_of_another_version<'a>(
        &self,
        interfaces: Vec<&'a InterfaceInfo>,
    ) -> Result<(Vec<&'a InterfaceInfo>, Vec<&'a InterfaceInfo>)> {
        let (mut anothers, mut new) = (Vec::new(), Vec::new());
        for facts in interfaces {
            if self.dataplane.has_previous_link(facts.index)? {
                anothers.push(facts);
            } else {
                new.push(facts);
            }
        }
        Ok((anothers, new))
    }
}

/// Requires that only root can change the configuration's commands and secrets. If a file system hangs, this is only
/// logged: such a path can neither run a command nor reveal a secret.
fn require_trusted(written: &ConfigText, config: &Config) -> Result<()> {
    match Options::concerns(written, config) {
        Err(error) if error.kind() == ErrorKind::TimedOut => {
            warn!(
                "cannot check which users can change the paths of the configuration: {error}; starting without this check"
            );
            Ok(())
        }
        examined => Options::refuse_untrusted(examined?),
    }
}

/// Opens and locks the state directory. If the directory hangs or cannot be opened, the filter starts without a lock
/// (`None`), and stores nothing.
fn open_state(path: &Path) -> Result<(StateDir, Option<StateLock>)> {
    let opened = StateDir::open(path).and_then(|state| {
        let lock = state.lock()?;
        Ok((state, Some(lock)))
    });
    match opened {
        // A directory that other users can change is an error, and not used at all.
        Err(StateError::Io { path, cause }) if cause.kind() != ErrorKind::Other => {
            let error = StateError::Io {
                path: path.clone(),
                cause,
            };
            warn!("{error}; starting without last-good lists; changes are not stored");
            Ok((StateDir::unopened(&path), None))
        }
        opened => Ok(opened?),
    }
}

/// The effective policy before a start, to log the changes that the start makes.
struct Previous {
    config: Config,
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
            config,
        })
    }
}

/// Chooses the policy of the start; if it is a new policy, stages it in the journal. `waits` is whether the newest
/// change is still pending.
fn plan(options: &Options, journal: &mut Journal, waits: bool) -> StartPlan {
    let mode = |written: &ConfigText| Some(options.read(written).ok()?.mode);
    let now = Timestamp::now();
    let mut plan = StartPlan::new(options.written.clone(), journal.known(), waits, mode, now);
    if let Some(what) = &plan.rolled_back {
        warn!(target: "allowlist::not-confirmed", "{what}: not confirmed in time, rolled back");
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
            what: format!("start by {}", plan.written.origin()),
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

fn listen_to_links() -> Option<Links> {
    match Links::listen() {
        Ok(links) => Some(links),
        Err(error) => {
            warn!("{error:#}; polling the interfaces every second instead");
            None
        }
    }
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

/// Starts a watch on the files of the configuration's file sources.
pub(super) fn watched(config: &Config) -> Files {
    Files::watch(
        config
            .policy
            .used_sources()
            .filter_map(|source| match &source.origin {
                Origin::File { path, .. } => Some(path.as_path()),
                _ => None,
            }),
    )
}
