//! How a daemon begins: with which policy, with which lists, and what of it is put in force at once.
//!
//! Invariants: nothing is attached by a start that fails, and what was in force before is again; a start needs
//! no network; a change that was not confirmed is taken back, also when nothing ran meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use log::{info, warn};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::added::Expiry;
use super::confirm::Pending;
use super::files::Files;
use super::first::{Ask, First};
use super::interfaces::{look_up_all, present, warn_of_offloads};
use super::plan::Plan;
use super::refresh::Clocks;
use super::selfcheck::SelfCheck;
use super::{COUNTS_ANEW, Daemon, Options, Signals};
use crate::additions::Additions;
use crate::audit::{Audit, Deed, Who};
use crate::compile::Tables;
use crate::config::Config;
use crate::control::Control;
use crate::dataplane::{Dataplane, View, require_namespace};
use crate::error_code::bail_with;
use crate::gather::Fetches;
use crate::history::History;
use crate::hook::Teller;
use crate::interface::{InterfaceInfo, Links, require_distinct};
use crate::ledger::{Change, Ledger, Unconfirmed, Written};
use crate::notify::Notify;
use crate::policy::{AtStart, Mode, Origin};
use crate::record::Record;
use crate::session::ChangeOrigin;
use crate::state::{StateDir, StateError, StateLock};
use crate::time::Now;

/// How long a closed host's own traffic is noted before the first packet is judged by it.
const LISTEN: Duration = Duration::from_secs(1);

impl Daemon {
    /// Gets every list that is at hand, publishes, attaches. On an error all is as it was before.
    ///
    /// A signal is an error while lists are waited for. Once the kernel is touched it is left for [`Daemon::serve`],
    /// which knows what to take off.
    pub async fn start(options: Options, notify: Notify, signals: &mut Signals) -> Result<Self> {
        let typed = options.read(&options.written)?;
        require_trusted(&options.written, &typed)?;
        require_interfaces(&options, &typed).await?;
        let (state, lock) = open_state(&options.paths.state_dir)?;
        let mut ledger = Ledger::open(&state, &Now::current(), &options.written.text);
        // A change still waits if the kernel says so: till its time is over it goes on waiting.
        let waits = View::open(&options.paths.pin_dir)
            .ok()
            .and_then(|view| view.pending().ok().flatten())
            .filter(|pending| !pending.fell_back);
        let before = Previous::of(&options, &ledger);
        let plan = plan(&options, &mut ledger, waits.is_some());
        let config = options.read(&plan.written)?;
        if plan.instead.is_some() {
            require_trusted(&plan.written, &config)?;
        }
        let wanted = config.policy.used_sources().cloned().collect();
        let (late, late_lists) = mpsc::unbounded_channel();
        let mut first = tokio::select! {
            biased;
            () = signals.end() => bail!("interrupted before anything was attached"),
            first = First::lists(wanted, &state, Ask::Nobody, &late) => first,
        };
        require_namespace(&options.paths.pin_dir).context(
            "not started; choose another --pin-dir (and --state-dir and --socket), or `allowlist detach --force` takes that filter off",
        )?;
        let control = Control::listen(&options.paths, config.control_group.as_deref())?;
        let dataplane = Dataplane::open(
            &options.paths.pin_dir,
            config.rules.tracks().then_some(config.max_flows),
        )?;
        let record = Record::load(&options.paths.state_dir).unwrap_or_default();
        let mut daemon = Self {
            control,
            files: Files::default(),
            opening: None,
            late,
            late_lists,
            history: History::new(&options.paths.state_dir, config.history_bytes),
            audit: Audit::new(&options.paths.state_dir, config.log_bytes),
            teller: Teller::start(config.hook.clone()),
            clocks: Clocks::now(),
            release_after: Instant::now(),
            catch_up_after: Instant::now(),
            expiry: Expiry::Never,
            warnings: Vec::new(),
            names: record.names,
            in_force: None,
            lists: std::mem::take(&mut first.lists),
            waiting: !first.missing.is_empty() && config.at_start == AtStart::Wait,
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
            pending: waits.and_then(|waits| Pending::found(&ledger, waits.left)),
            record_is_old: false,
            is_policy_new: true,
            started: Timestamp::now(),
            since: record.since,
            written: plan.written,
            policy: config.policy.clone(),
            mode: config.mode,
            config: Arc::new(config),
            options,
            state,
            lock,
            ledger,
            dataplane,
            notify,
        };
        daemon.begin_with(&first).await?;
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
        if plan.taken_back.is_some() {
            daemon.log(Who::Daemon, Deed::NotConfirmed, None);
        }
        Ok(daemon)
    }

    /// With these lists, and with what the ledger says was added by command.
    async fn begin_with(&mut self, first: &First) -> Result<()> {
        let added: BTreeSet<String> = self
            .ledger
            .known()
            .additions()
            .services()
            .cloned()
            .collect();
        self.follow_ledger(&added);
        self.tell();
        let additions = self.ledger.known().additions();
        for (service, count) in additions.without_service(&self.config.policy) {
            warn!(
                "{count} prefixes were added to {service}, which is no service of the configuration any more: they reach nothing"
            );
        }
        if self.mode != self.config.mode {
            warn!(
                target: "allowlist::mode-by-command",
                "mode {} by command, as before this start; the configuration says {}",
                self.mode.name(),
                self.config.mode.name()
            );
        }
        self.say_absent();
        self.say_missing(&first.missing);
        if self.waiting {
            // What does not fit will not fit later either.
            self.compiled(&self.lists)?;
        } else {
            self.enter().await?;
        }
        // Only now, since the filter does not need them: a disk may hang, and a hook's program may be on one.
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
            .map(|event| event.clone().of(generation))
            .collect();
        self.tell_of(&events);
        self.schedule_all(true);
        Ok(())
    }

    /// Puts the filter in force, the first time or in the place of another daemon's.
    pub(super) async fn enter(&mut self) -> Result<()> {
        let interfaces = present(&self.config.interfaces).await?;
        let record = Record::load(&self.options.paths.state_dir);
        let found = self.dataplane.applied_state()?;
        // Before the kernel is touched: most of what can be wrong is found here.
        let (tables, anew) = self.compiled(&self.lists)?;
        let care = self.options.care.clone();
        self.require_session_by(&care, &tables, ChangeOrigin::Configuration)?;
        if self.pending.is_none() && self.dataplane.pending().is_some() {
            // For good: it is over, or nobody knows of it any more, and what is published now is another change.
            self.dataplane.fall_back()?;
        }
        if let Some(within) = care.confirm_within
            && self.pending.is_none()
        {
            self.guard_start(within)?;
        }
        let mut is_new = self.ledger.is_staged();
        if let Err(error) = self.ledger.write() {
            // A full disk is no reason not to filter.
            warn!("{error}; this policy cannot be gone back to");
            self.ledger.take_back();
            is_new = false;
        }
        let known = !anew && self.are_counts_known(record.as_ref())?;
        let begun = self.begin(tables, &interfaces, known, true);
        if let Err(error) = begun {
            self.dataplane.restore(&found).context(format!(
                "{error:#}; and what was in force before could not be put in force again"
            ))?;
            let recorded = match record {
                Some(record) => self.disk().and_then(|state| record.store(state)),
                None => Record::remove(&self.options.paths.state_dir),
            };
            if let Err(error) = recorded {
                warn!("the record on disk is of a start that failed: {error:#}");
            }
            if is_new {
                self.ledger.take_back();
            }
            return Err(error);
        }
        match (found.mode(), self.mode) {
            (Some(Mode::Enforce), Mode::Observe) => warn!(
                "drops were carried out till now, and from now on everything passes: this start has mode observe"
            ),
            (Some(Mode::Observe), Mode::Enforce) => {
                info!("everything passed till now, and from now on drops are carried out");
            }
            _ => {}
        }
        if found.mode().is_none() || self.since.is_none() {
            self.since = Some(Timestamp::now());
            self.record_is_old = true;
        }
        self.waiting = false;
        for facts in &interfaces {
            warn_of_offloads(&facts.name).await;
        }
        let deed = Deed::Start {
            from: self.written.origin(),
            policy: self.policy_number().unwrap_or_default(),
        };
        self.log(Who::Daemon, deed, None);
        Ok(())
    }

    /// Whether what the kernel has counted is under the names of the record.
    fn are_counts_known(&self, record: Option<&Record>) -> Result<bool> {
        let adopted = self.dataplane.counted_generation();
        let named = self.dataplane.named()?;
        Ok(match record {
            _ if adopted == 0 => true,
            None => false,
            // A version that noted nothing wrote its record before its generation was in force.
            Some(record) if named == 0 => record.generation.wrapping_sub(adopted) <= 1,
            Some(record) => record.is_of(named),
        })
    }

    /// Puts the filter in force that waited for lists, if they are all there.
    pub(super) async fn enter_if_complete(&mut self) -> Result<()> {
        if !self.waiting || !self.missing(&self.lists).is_empty() {
            return Ok(());
        }
        self.enter().await?;
        if self.opening.is_none() {
            self.say_ready();
        }
        Ok(())
    }

    /// Of files nothing is reported yet: they are read as soon as the filter is on.
    fn say_missing(&self, missing: &[(String, String)]) {
        let is_file = |name: &str| {
            let source = self.config.policy.source(name);
            source.is_some_and(|source| matches!(source.origin, Origin::File { .. }))
        };
        for (name, reason) in missing.iter().filter(|(name, _)| !is_file(name)) {
            let consequence = match self.config.at_start {
                AtStart::Wait => "nothing is attached till it has one",
                AtStart::Pass => "till it has one, whoever connects passes as if it were listed",
                AtStart::Drop => "till it has one, it lets nobody in",
            };
            warn!(target: "allowlist::missing-list", "{name} has no list yet ({reason}); {consequence}, as at_start says");
        }
    }

    /// Publishes a generation, then attaches: from then on packets are judged.
    ///
    /// Where a closed host is to tell answers, what it sends is noted before the first packet is judged by
    /// that, for long enough to know the connections that are open and talk.
    ///
    /// `renews` is whether the program on interfaces that are filtered already is replaced by this one's.
    pub(super) fn begin(
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
        // What filters already changes over to this program first: by the same tables, until the publish.
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
            new.append(&mut filtered); // its maps hold nothing before the publish
        }
        for facts in filtered.into_iter().filter(|_| renews) {
            self.attach(facts, self.options.trace)?;
        }
        self.dataplane.finish_flow_migration()?;
        self.dataplane.adopt_clients()?;
        if is_news {
            std::thread::sleep(LISTEN);
            self.dataplane.adopt_clients()?; // those of that second
        }
        self.with_lists(|daemon, lists| daemon.put_in_force(lists, Arc::new(tables)))?;
        // Where another version filters, last: till then it is as if this start had not been.
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
                "{name}: detached, since it is not configured any more"
            );
        }
        Ok(())
    }

    /// Those that another version's program is on, and those that it is not on.
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

/// Requires trusted paths, but no file system that answers: one that hangs can run no command and give no secret.
fn require_trusted(written: &Written, config: &Config) -> Result<()> {
    match Options::require_trusted(written, config) {
        Err(error)
            if error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == ErrorKind::TimedOut) =>
        {
            warn!("the paths of the configuration could not be examined: {error}");
            Ok(())
        }
        examined => examined,
    }
}

/// Opens and locks the state folder. One that does not answer, or that the system refuses, does not keep the filter
/// from starting: then there is no lock, and nothing is kept.
fn open_state(path: &Path) -> Result<(StateDir, Option<StateLock>)> {
    let opened = StateDir::open(path).and_then(|state| {
        let lock = state.lock()?;
        Ok((state, Some(lock)))
    });
    match opened {
        // Not a folder that other users could change: nothing in it is read.
        Err(StateError::Io { path, cause }) if cause.kind() != ErrorKind::Other => {
            let error = StateError::Io {
                path: path.clone(),
                cause,
            };
            warn!("{error}; the filter starts without last-good lists, and no command is kept");
            Ok((StateDir::unopened(&path), None))
        }
        opened => Ok(opened?),
    }
}

/// The policy before a start, for the log of the changes.
struct Previous {
    config: Config,
    mode: Mode,
    additions: Additions,
}

impl Previous {
    /// The newest policy in the journal, if there is one that this version can read.
    fn of(options: &Options, ledger: &Ledger) -> Option<Self> {
        let known = ledger.known();
        let newest = known.newest()?;
        let config = options.read(newest.written()).ok()?;
        Some(Self {
            mode: newest.change.mode.unwrap_or(config.mode),
            additions: known.additions().clone(),
            config,
        })
    }
}

/// With which policy to begin; the one that a start makes is staged.
fn plan(options: &Options, ledger: &mut Ledger, waits: bool) -> Plan {
    let mode = |written: &Written| Some(options.read(written).ok()?.mode);
    let now = Timestamp::now();
    let mut plan = Plan::of(options.written.clone(), ledger.known(), waits, mode, now);
    if let Some(what) = &plan.taken_back {
        warn!(target: "allowlist::not-confirmed", "{what}: was not confirmed in time, and is taken back");
    }
    if let Some(number) = plan.instead {
        warn!(
            target: "allowlist::config-suppressed",
            "{}: its last change was taken back, so policy {number} is in force and not what the file says; mend the file, or `allowlist reload` to try it again",
            options.written.origin()
        );
    }
    if let Some(missing) = plan.written.missing_secrets_warning() {
        warn!("{missing}");
    }
    let change = plan.change.take().or_else(|| {
        // What is asked to be confirmed is a policy, whatever else is the same.
        options.care.confirm_within?;
        let newest = ledger.known().newest()?;
        Some(Change {
            time: now,
            by: Who::Daemon.to_string(),
            what: format!("start by {}", plan.written.origin()),
            edits: Vec::new(),
            ..newest.change.clone()
        })
    });
    if let Some(mut change) = change {
        let newest = ledger.known().newest();
        change.unconfirmed = if waits {
            ledger.known().unconfirmed() // as before: another start is no confirmation
        } else {
            options.care.confirm_within.map(|within| Unconfirmed {
                until: now + within,
                back_to: newest.map(|policy| policy.number),
            })
        };
        ledger.stage(change);
    }
    plan
}

fn listen_to_links() -> Option<Links> {
    match Links::listen() {
        Ok(links) => Some(links),
        Err(error) => {
            warn!("{error:#}; interfaces are looked at once a second instead");
            None
        }
    }
}

/// A name that was typed wrongly is an error; one of a file may be of an interface that comes later, as at a
/// boot.
async fn require_interfaces(options: &Options, config: &Config) -> Result<()> {
    if !options.written.interfaces.is_empty() {
        look_up_all(&config.interfaces).await?;
    }
    if config.interfaces.is_empty() {
        bail_with!(
            NoInterface,
            "no interface to filter on; set `interfaces` in the configuration, or give --iface"
        );
    }
    require_distinct(&config.interfaces)
}

/// The files that the sources are read from.
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
