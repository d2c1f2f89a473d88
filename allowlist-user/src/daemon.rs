//! The loop that keeps the kernel in step with the sources: fetch, compile, publish, on a timer.
//!
//! Invariants: before the first packet is judged a whole generation is published; a source that
//! fails keeps its last good prefixes, and so does the kernel; nothing is attached by a start that
//! fails. Start is strict, refresh is not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use log::{info, warn};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::cli::Paths;
use crate::compile::{Names, Tables, compile};
use crate::config::Config;
use crate::control::{Control, Live};
use crate::dataplane::{Dataplane, View, detach_all, print_trace};
use crate::gather::{Fetched, gather, used};
use crate::interface::{self, Facts};
use crate::policy::{Snapshot, Source};
use crate::record::Record;
use crate::state::{StateDir, StateLock};

/// How long after a first failure a source is tried again; doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(15);
/// How often to look whether somebody detached the filter, or an interface came back.
const LOOK: Duration = Duration::from_secs(1);

/// What `run` was asked for besides the configuration.
pub struct Options {
    /// Where everything is.
    pub paths: Paths,
    /// Leave the filter in force on Ctrl-C.
    pub keep: bool,
    /// Print a line a packet.
    pub trace: bool,
}

/// What ends a daemon from outside. Listened to from before the start, so that none is lost.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Listens.
    pub fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Returns when either has come.
    pub async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A running filter.
pub struct Daemon {
    config: Config,
    options: Options,
    state: StateDir,
    _lock: StateLock,
    control: Control,
    dataplane: Dataplane,
    names: Names,
    snapshot: Snapshot,
    /// By source name: why it could not be fetched last time, and how often in a row.
    failures: BTreeMap<String, Failure>,
    /// By source name: when to fetch it next. Sources that cannot change are not in it.
    due: BTreeMap<String, Instant>,
    /// Interfaces that were removed since the filter was put on them.
    lost: BTreeSet<String>,
}

struct Failure {
    reason: String,
    times: u32,
}

impl Daemon {
    /// Gets every source, publishes, attaches. On an error all is as it was before.
    pub async fn start(config: Config, options: Options) -> Result<Self> {
        let mut interfaces = Vec::new();
        for name in &config.interfaces {
            interfaces.push(interface::look_up(name).await?);
        }
        let state = StateDir::open(&options.paths.state_dir)?;
        let lock = state.lock()?;
        let snapshot = first_snapshot(&config, &state).await?;
        let record = Record::load(&options.paths.state_dir).unwrap_or_else(|error| {
            warn!("{error:#}");
            None
        });
        let previous = record
            .as_ref()
            .map_or_else(Names::default, |record| record.names.clone());
        // Before the kernel is touched: most of what can be wrong is found here.
        let tables = compile(&config.policy, &snapshot, config.max_prefixes, &previous)?;

        let control = Control::listen(&options.paths.socket)?;
        let dataplane = Dataplane::open(&options.paths.pin_dir)?;
        let found = dataplane.in_force()?;
        let adopted = dataplane.generation();
        let mut daemon = Self {
            names: tables.names.clone(),
            control,
            config,
            options,
            state,
            _lock: lock,
            snapshot,
            failures: BTreeMap::new(),
            due: BTreeMap::new(),
            lost: BTreeSet::new(),
            dataplane,
        };
        // Written before its generation is in force, so a record may be one ahead of the kernel.
        let known = record.is_some_and(|record| record.generation.wrapping_sub(adopted) <= 1);
        if let Err(error) = daemon.begin(&tables, &interfaces, adopted == 0 || known) {
            daemon.dataplane.restore(&found).context(format!(
                "{error:#}; and what was in force before could not be put in force again"
            ))?;
            return Err(error);
        }
        daemon.schedule_all();
        Ok(daemon)
    }

    /// Publishes the first generation, then attaches: from then on packets are judged.
    fn begin(&mut self, tables: &Tables, interfaces: &[Facts], counts_known: bool) -> Result<()> {
        if !counts_known {
            warn!(
                "what was counted by source is not known in this state directory: those counts start anew"
            );
            self.dataplane.forget_matches()?;
        }
        self.put_in_force(tables)?;
        for facts in interfaces {
            self.attach(facts)?;
        }
        for name in self.dataplane.detach_others(&self.config.interfaces)? {
            info!("{name}: detached, since it is not configured any more");
        }
        Ok(())
    }

    fn attach(&mut self, facts: &Facts) -> Result<()> {
        let attached = self
            .dataplane
            .attach(facts, self.config.attach, self.options.trace)?;
        if let Some(warning) = attached.warning {
            warn!("{warning}");
        }
        info!("{}: attached in {} mode", facts.name, attached.mode.name());
        if self.options.trace {
            print_trace(attached.object)?;
        }
        Ok(())
    }

    /// Puts the filter on interfaces again that were removed and have come back.
    async fn look_after_interfaces(&mut self) -> Result<()> {
        let attachments = View::open(&self.options.paths.pin_dir)?.attachments()?;
        let is_attached = |name: &String| {
            let mut attached = attachments.iter().filter(|one| one.attached);
            attached.any(|one| one.name == *name)
        };
        for name in self.config.interfaces.clone() {
            if is_attached(&name) {
                self.lost.remove(&name);
                continue;
            }
            let first_seen = self.lost.insert(name.clone());
            if first_seen {
                warn!(
                    "{name}: removed, and with it the filter on it; it is put on again when {name} is back"
                );
            }
            let Ok(facts) = interface::look_up(&name).await else {
                continue;
            };
            match self.attach(&facts) {
                Err(error) if first_seen => warn!("{error:#}; this is tried again"),
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps the kernel in step until a signal, or until somebody detaches the filter.
    pub async fn serve(mut self, mut signals: Signals) -> Result<()> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut fetching: Option<JoinHandle<Vec<Fetched>>> = None;
        self.tell();
        println!("{}", self.ready_line());
        loop {
            let next = self.due.values().min().copied();
            tokio::select! {
                _ = signals.interrupt.recv() => return self.interrupted(),
                _ = signals.terminate.recv() => {
                    info!("stopped; the filter stays in force, and `allowlist detach` takes it off");
                    return Ok(());
                }
                _ = look.tick() => {
                    if !self.dataplane.is_in_force() {
                        info!("stopped: the filter was detached");
                        return Ok(());
                    }
                    if let Err(error) = self.look_after_interfaces().await {
                        warn!("{error:#}");
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && fetching.is_none() => {
                    fetching = Some(self.fetch_due());
                }
                fetched = async { fetching.as_mut().expect("the branch's condition").await }, if fetching.is_some() => {
                    fetching = None;
                    self.take_in(fetched.context("a fetch ended unexpectedly")?);
                    self.tell();
                }
            }
        }
    }

    /// Starts fetching what is due, beside this loop.
    fn fetch_due(&mut self) -> JoinHandle<Vec<Fetched>> {
        let now = Instant::now();
        let due: Vec<Source> = used(&self.config.policy)
            .filter(|source| self.due.get(&source.name).is_some_and(|due| *due <= now))
            .cloned()
            .collect();
        tokio::spawn(gather(due))
    }

    /// Takes in what was fetched; what failed stays as it is.
    fn take_in(&mut self, fetched: Vec<Fetched>) {
        let before = self.snapshot.clone();
        for (source, feed) in fetched {
            match feed {
                Ok(feed) => {
                    if let Err(error) = self.state.store(&source, &feed) {
                        warn!("{}: not kept for the next start: {error}", source.name);
                    }
                    self.failures.remove(&source.name);
                    self.snapshot.insert(source.name.clone(), feed);
                    self.schedule(&source, source.every);
                }
                Err(error) => {
                    warn!("{error}; its last good list stays in force");
                    let failure = self.failures.entry(source.name.clone()).or_insert(Failure {
                        reason: String::new(),
                        times: 0,
                    });
                    failure.reason = error.to_string();
                    let wait = FIRST_RETRY.saturating_mul(1 << failure.times.min(10));
                    failure.times += 1;
                    self.schedule(&source, wait.min(source.every));
                }
            }
        }
        let changed: Vec<String> = self
            .snapshot
            .iter()
            .filter(|(name, feed)| {
                before
                    .get(*name)
                    .is_none_or(|old| old.prefixes != feed.prefixes)
            })
            .map(|(name, _)| name.clone())
            .collect();
        let done = if changed.is_empty() {
            self.record(self.dataplane.generation())
        } else {
            self.publish_changes(&before, &changed)
        };
        if let Err(error) = done {
            self.snapshot = before;
            log::error!("{error:#}; what was in force stays in force");
        }
    }

    fn publish_changes(&mut self, before: &Snapshot, changed: &[String]) -> Result<()> {
        let tables = compile(
            &self.config.policy,
            &self.snapshot,
            self.config.max_prefixes,
            &self.names,
        )?;
        self.names = tables.names.clone();
        let generation = self.put_in_force(&tables)?;
        for name in changed {
            let old = before.get(name).map_or(0, |feed| feed.prefixes.len());
            let new = self.snapshot[name].prefixes.len();
            info!("{name}: changed, {old} prefixes before and {new} now; generation {generation}");
        }
        Ok(())
    }

    /// Publishes, with the record on disk first: a record may name what the kernel does not have
    /// yet, but the kernel never has what no record names.
    fn put_in_force(&mut self, tables: &Tables) -> Result<u32> {
        self.record(self.dataplane.generation().wrapping_add(1))?;
        self.dataplane
            .publish(tables, self.config.mode, self.config.default)
    }

    fn record(&self, generation: u32) -> Result<()> {
        let failures = self
            .failures
            .iter()
            .map(|(name, failure)| (name.clone(), failure.reason.clone()))
            .collect();
        Record::of(
            generation,
            &self.names,
            &self.config.policy,
            &self.snapshot,
            &failures,
        )
        .store(&self.state)
    }

    /// What came from disk is fetched anew at once; what was just fetched, when its time has come.
    fn schedule_all(&mut self) {
        for source in used(&self.config.policy).cloned().collect::<Vec<_>>() {
            if !source.can_change() {
                continue;
            }
            let age = self
                .snapshot
                .get(&source.name)
                .map_or(source.every, |feed| {
                    Timestamp::now()
                        .duration_since(feed.fetched)
                        .try_into()
                        .unwrap_or_default()
                });
            self.schedule(&source, source.every.saturating_sub(age));
        }
    }

    fn schedule(&mut self, source: &Source, wait: Duration) {
        self.due.insert(source.name.clone(), Instant::now() + wait);
    }

    fn interrupted(self) -> Result<()> {
        if self.options.keep {
            info!(
                "stopped; the filter stays in force, as --keep asks; `allowlist detach` takes it off"
            );
            return Ok(());
        }
        let interfaces = detach_all(&self.options.paths.pin_dir)?;
        info!(
            "stopped; detached from {}: everything passes",
            interfaces.join(", ")
        );
        Ok(())
    }

    /// Tells whoever asks the socket.
    fn tell(&self) {
        let now = (Instant::now(), Timestamp::now());
        let next = self.due.iter().map(|(name, due)| {
            let wait = due.saturating_duration_since(now.0);
            (name.clone(), now.1 + wait)
        });
        self.control.tell(Live {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            next_fetch: next.collect(),
        });
    }

    fn ready_line(&self) -> String {
        let prefixes: usize = self.snapshot.values().map(|feed| feed.prefixes.len()).sum();
        format!(
            "ready: filtering {} by {prefixes} prefixes of {} sources, generation {}",
            self.config.interfaces.join(", "),
            self.snapshot.len(),
            self.dataplane.generation()
        )
    }
}

/// Every used source's prefixes: from disk where a fetch was kept, else fetched now.
async fn first_snapshot(config: &Config, state: &StateDir) -> Result<Snapshot> {
    let mut snapshot = Snapshot::new();
    let mut missing = Vec::new();
    for source in used(&config.policy) {
        match state.load(source) {
            Ok(Some(feed)) => {
                snapshot.insert(source.name.clone(), feed);
                continue;
            }
            Ok(None) => {}
            Err(error) => warn!("{error}"),
        }
        missing.push(source.clone());
    }
    let mut failed = 0;
    for (source, fetched) in gather(missing).await {
        match fetched {
            Ok(feed) => {
                if let Err(error) = state.store(&source, &feed) {
                    warn!("{}: not kept for the next start: {error}", source.name);
                }
                snapshot.insert(source.name.clone(), feed);
            }
            Err(error) => {
                failed += 1;
                log::error!("{error}");
            }
        }
    }
    if failed > 0 {
        bail!(
            "{failed} of the sources could not be had and have no last good list, so nothing was attached"
        );
    }
    Ok(snapshot)
}
