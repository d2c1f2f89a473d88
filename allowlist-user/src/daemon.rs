//! The loop that keeps the kernel in step with the sources: fetch, compile, publish, on a timer.
//!
//! Invariants: before the first packet is judged a whole generation is published; a source that
//! fails keeps its last good prefixes, and so does the kernel; nothing is attached by a start that
//! fails. Start is strict, refresh is not.

mod first;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use log::{info, warn};
use nix::net::if_::if_nametoindex;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::first::First;
use crate::cli::Paths;
use crate::compile::{CompileError, Names, Tables, compile};
use crate::config::Config;
use crate::control::{Control, Live, Request};
use crate::dataplane::{Dataplane, View, print_trace};
use crate::gather::{Gathered, gather};
use crate::interface::{self, Facts};
use crate::policy::{Feed, Mode, Snapshot, Source, Validator};
use crate::record::Record;
use crate::renew::renew;
use crate::state::{StateDir, StateLock};

/// How long after a first failure a source is tried again; doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(15);
/// How often to look whether somebody detached the filter, or an interface came back.
const LOOK: Duration = Duration::from_secs(1);

/// How long a closed host's own traffic is noted before the first packet is judged by it.
const LISTEN: Duration = Duration::from_secs(1);

const COUNTS_ANEW: &str =
    "what was counted by source so far cannot be told apart any more: those counts start anew";

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
    /// By interface index: what prints its trace.
    traces: BTreeMap<u32, JoinHandle<()>>,
}

struct Failure {
    reason: String,
    times: u32,
}

impl Daemon {
    /// Gets every source, publishes, attaches. On an error all is as it was before.
    pub async fn start(config: Config, options: Options) -> Result<Self> {
        look_up_all(&config.interfaces).await?; // a mistyped name should not wait for the fetches
        let state = StateDir::open(&options.paths.state_dir)?;
        let lock = state.lock()?;
        let First { snapshot, fetched } = First::snapshot(&config, &state).await?;
        let record = Record::load(&options.paths.state_dir);
        let previous = record
            .as_ref()
            .map_or_else(Names::default, |record| record.names.clone());
        // Before the kernel is touched: most of what can be wrong is found here.
        let (tables, anew) = compile_or_number_anew(&config, &snapshot, &previous)?;
        let interfaces = look_up_all(&config.interfaces).await?;

        let control = Control::listen(&options.paths.socket)?;
        let dataplane = Dataplane::open(
            &options.paths.pin_dir,
            config.rules.tracks().then_some(config.max_flows),
        )?;
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
            traces: BTreeMap::new(),
            dataplane,
        };
        // Written before its generation is in force, so a record may be one ahead of the kernel.
        let known = record
            .as_ref()
            .is_some_and(|record| record.generation.wrapping_sub(adopted) <= 1);
        if let Err(error) = daemon.begin(&tables, &interfaces, adopted == 0 || (known && !anew)) {
            daemon.dataplane.restore(&found).context(format!(
                "{error:#}; and what was in force before could not be put in force again"
            ))?;
            match record {
                Some(record) => record.store(&daemon.state)?,
                None => Record::remove(&daemon.options.paths.state_dir)?,
            }
            return Err(error);
        }
        match (found.mode(), daemon.config.mode) {
            (Some(Mode::Enforce), Mode::Observe) => warn!(
                "drops were carried out till now, and from now on everything passes: this start has mode observe"
            ),
            (Some(Mode::Observe), Mode::Enforce) => {
                info!("everything passed till now, and from now on drops are carried out");
            }
            _ => {}
        }
        for source in &fetched {
            daemon.keep(source);
        }
        for facts in &interfaces {
            warn_of_stripped_tags(&facts.name).await;
        }
        daemon.schedule_all();
        Ok(daemon)
    }

    /// Publishes the first generation, then attaches: from then on packets are judged.
    ///
    /// Where a closed host is to tell answers, what it sends is noted before the first packet is judged by
    /// that, for long enough to know the connections that are open and talk.
    fn begin(&mut self, tables: &Tables, interfaces: &[Facts], counts_known: bool) -> Result<()> {
        if !counts_known {
            warn!("{COUNTS_ANEW}");
            self.dataplane.forget_counts()?;
        }
        // What filters already changes over to this program first: by the same tables, until the publish.
        let (mut filtered, mut new) = (Vec::new(), Vec::new());
        let mut is_news = false;
        for facts in interfaces {
            is_news |= self.dataplane.follow(facts)?;
            if self.dataplane.filters(facts)? {
                filtered.push(facts);
            } else {
                new.push(facts);
            }
        }
        for facts in filtered {
            self.attach(facts, self.options.trace)?;
        }
        self.dataplane.settle()?;
        if is_news {
            std::thread::sleep(LISTEN);
        }
        self.put_in_force(tables)?;
        for facts in new {
            self.attach(facts, self.options.trace)?;
        }
        let indices: Vec<u32> = interfaces.iter().map(|facts| facts.index).collect();
        for name in self.dataplane.detach_others(&indices)? {
            info!("{name}: detached, since it is not configured any more");
        }
        Ok(())
    }

    fn attach(&mut self, facts: &Facts, trace: bool) -> Result<()> {
        let attached = self.dataplane.attach(facts, self.config.attach, trace)?;
        if let Some(warning) = attached.warning {
            warn!("{warning}");
        }
        if let Some(old) = self.traces.remove(&facts.index) {
            old.abort();
        }
        if trace {
            let task = print_trace(attached.object)?;
            self.traces.insert(facts.index, task);
        }
        info!("{}: attached in {} mode", facts.name, attached.mode.name());
        Ok(())
    }

    /// Puts the filter on interfaces again that were removed and have come back.
    async fn look_after_interfaces(&mut self) -> Result<()> {
        let attachments = View::open(&self.options.paths.pin_dir)?.attachments()?;
        for name in self.config.interfaces.clone() {
            let index = if_nametoindex(&*name).ok();
            if index.is_some() && attachments.iter().any(|one| one.index == index) {
                self.lost.remove(&name);
                if self.config.rules.tracks() {
                    self.look_after_egress(&name).await;
                }
                continue;
            }
            let first_seen = self.lost.insert(name.clone());
            if first_seen {
                warn!(
                    "{name}: the filter is off, since the interface is gone or is another one now; it is put on again when there is one"
                );
            }
            let Ok(facts) = interface::look_up(&name).await else {
                continue;
            };
            if self.limits_services() {
                self.publish()?; // the new interface may have another slot, and its services go by that
            }
            match self.attach(&facts, self.options.trace) {
                Ok(()) => warn_of_stripped_tags(&name).await,
                Err(error) if first_seen => warn!("{error:#}; this is tried again"),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Notes what is sent again, where somebody took off what does.
    async fn look_after_egress(&mut self, name: &str) {
        let Ok(facts) = interface::look_up(name).await else {
            return;
        };
        match self.dataplane.follows(&facts) {
            Ok(true) => {}
            Ok(false) => {
                warn!(
                    "{name}: what this host sends was not noted any more, so answers to it were dropped; it is again"
                );
                if let Err(error) = self.dataplane.follow(&facts) {
                    warn!("{error:#}; this is tried again");
                }
            }
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Whether some service is not everywhere.
    fn limits_services(&self) -> bool {
        let mut services = self.config.policy.services.iter();
        services.any(|service| !service.interfaces.is_empty())
    }

    /// Keeps the kernel in step until a signal, or until somebody detaches the filter.
    pub async fn serve(mut self, mut signals: Signals) -> Result<()> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut fetching: Option<JoinHandle<Vec<Gathered>>> = None;
        self.tell();
        // Whoever waits for this line may be gone, which is no reason to stop.
        let _ = writeln!(io::stdout(), "{}", self.ready_line());
        loop {
            let next = self.due.values().min().copied();
            tokio::select! {
                _ = signals.interrupt.recv() => return self.interrupted().await,
                _ = signals.terminate.recv() => {
                    return self.leave("stopped; the filter stays in force, and `allowlist detach` takes it off").await;
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
                request = self.control.request() => self.carry_out(request),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && fetching.is_none() => {
                    fetching = Some(self.fetch_due());
                }
                fetched = async { fetching.as_mut().expect("the branch's condition").await }, if fetching.is_some() => {
                    fetching = None;
                    match fetched {
                        Ok(fetched) => self.take_in(fetched),
                        Err(error) => {
                            warn!("a fetch ended unexpectedly: {error}; all that was due is fetched again");
                            self.postpone_due();
                        }
                    }
                    self.tell();
                }
            }
        }
    }

    fn carry_out(&mut self, request: Request) {
        match request {
            Request::Mode(mode, done) => {
                self.config.mode = mode;
                self.dataplane.set_mode(mode);
                match mode {
                    Mode::Enforce => info!("mode enforce: drops are carried out"),
                    Mode::Observe => info!("mode observe: everything passes"),
                }
                let _ = done.send(()); // whoever asked may be gone
            }
        }
    }

    /// Starts fetching what is due, beside this loop.
    fn fetch_due(&mut self) -> JoinHandle<Vec<Gathered>> {
        let now = Instant::now();
        let due: Vec<(Source, Vec<Validator>)> = self
            .config
            .policy
            .used_sources()
            .filter(|source| self.due.get(&source.name).is_some_and(|due| *due <= now))
            .map(|source| {
                let last = self.snapshot.get(&source.name);
                let known = last.map_or_else(Vec::new, |feed| feed.validators.clone());
                (source.clone(), known)
            })
            .collect();
        tokio::spawn(gather(due))
    }

    fn postpone_due(&mut self) {
        let now = Instant::now();
        for due in self.due.values_mut().filter(|due| **due <= now) {
            *due = now + FIRST_RETRY;
        }
    }

    /// Takes in what was fetched, one source after the other: what cannot be had or cannot be put in
    /// force stays as it is, and holds up nobody else.
    fn take_in(&mut self, fetched: Vec<Gathered>) {
        for (source, feed) in fetched {
            let done = match feed {
                Ok(answer) => self.take_in_answer(&source, answer),
                Err(error) => Err(error.into()),
            };
            match done {
                Ok(()) => {
                    self.failures.remove(&source.name);
                    self.schedule(&source, source.every);
                }
                Err(error) => {
                    warn!("{error:#}; its last good list stays in force");
                    let times = self
                        .failures
                        .get(&source.name)
                        .map_or(0, |failure| failure.times);
                    let wait = FIRST_RETRY.saturating_mul(1 << times.min(10));
                    let failure = Failure {
                        reason: format!("{error:#}"),
                        times: times + 1,
                    };
                    self.failures.insert(source.name.clone(), failure);
                    self.schedule(&source, wait.min(source.every));
                }
            }
        }
        self.record(self.dataplane.generation());
    }

    fn take_in_answer(&mut self, source: &Source, answer: crate::source::Answer) -> Result<()> {
        let last = self.snapshot.get(&source.name);
        match renew(source, last, answer, false, Timestamp::now()) {
            Ok(renewal) => self.take_in_one(source, renewal.feed),
            Err(refused) => anyhow::bail!("source {}: {}", source.name, refused.refusal),
        }
    }

    /// In force first, on disk second: a list that does not get in force is not the last good one.
    fn take_in_one(&mut self, source: &Source, feed: Feed) -> Result<()> {
        let name = &source.name;
        let before = self.snapshot.insert(name.clone(), feed);
        let old = before.as_ref().map_or(&[][..], |feed| &feed.prefixes);
        if old != self.snapshot[name].prefixes {
            match self.publish() {
                Ok(generation) => info!(
                    "{name}: changed, {} prefixes before and {} now; generation {generation}",
                    old.len(),
                    self.snapshot[name].prefixes.len()
                ),
                Err(error) => {
                    match before {
                        Some(before) => self.snapshot.insert(name.clone(), before),
                        None => self.snapshot.remove(name),
                    };
                    return Err(error.context(format!("source {name}")));
                }
            }
        }
        self.keep(source);
        Ok(())
    }

    /// Puts a source's prefixes on disk, for the next start.
    fn keep(&self, source: &Source) {
        if let Some(feed) = self.snapshot.get(&source.name)
            && let Err(error) = self.state.store(source, feed)
        {
            warn!("{}: not kept for the next start: {error}", source.name);
        }
    }

    fn publish(&mut self) -> Result<u32> {
        let (tables, anew) = compile_or_number_anew(&self.config, &self.snapshot, &self.names)?;
        self.names = tables.names.clone();
        let generation = self.put_in_force(&tables)?;
        if anew {
            warn!("{COUNTS_ANEW}");
            self.dataplane.forget_counts()?;
        }
        Ok(generation)
    }

    /// Publishes, with the record on disk first: it may name what the kernel does not have yet, but
    /// should name all that it has.
    fn put_in_force(&mut self, tables: &Tables) -> Result<u32> {
        self.record(self.dataplane.generation().wrapping_add(1));
        self.dataplane.publish(
            tables,
            self.config.mode,
            &self.config.rules,
            &self.config.interfaces,
        )
    }

    /// A full disk is no reason not to filter: a record holds only words.
    fn record(&self, generation: u32) {
        let failures = self
            .failures
            .iter()
            .map(|(name, failure)| (name.clone(), failure.reason.clone()))
            .collect();
        let record = Record::of(
            generation,
            &self.names,
            &self.config.policy,
            &self.snapshot,
            &failures,
        );
        if let Err(error) = record.store(&self.state) {
            warn!("status and list will not name the sources rightly: {error:#}");
        }
    }

    /// Fetches each source when what is there is as old as `every` says, which may be at once.
    fn schedule_all(&mut self) {
        let (now, clock) = (Instant::now(), Timestamp::now());
        let changing = self
            .config
            .policy
            .used_sources()
            .filter(|source| source.can_change());
        let due = changing.map(|source| {
            let fetched = self.snapshot.get(&source.name).map(|feed| feed.fetched);
            let age = fetched.map_or(source.every, |fetched| {
                clock.duration_since(fetched).try_into().unwrap_or_default()
            });
            (source.name.clone(), now + source.every.saturating_sub(age))
        });
        self.due = due.collect();
    }

    fn schedule(&mut self, source: &Source, wait: Duration) {
        self.due.insert(source.name.clone(), Instant::now() + wait);
    }

    async fn interrupted(self) -> Result<()> {
        if self.options.keep {
            return self
                .leave("stopped; the filter stays in force, as --keep asks; `allowlist detach` takes it off")
                .await;
        }
        if !self.dataplane.is_in_force() {
            info!("stopped: the filter was detached");
            return Ok(());
        }
        let interfaces = self.dataplane.detach()?;
        info!(
            "stopped; detached from {}: everything passes",
            interfaces.join(", ")
        );
        Ok(())
    }

    /// Ends with the filter in force, and without a trace that nobody would read.
    async fn leave(mut self, last_words: &str) -> Result<()> {
        if self.options.trace {
            for facts in look_up_all(&self.config.interfaces).await? {
                self.attach(&facts, false)?;
            }
        }
        info!("{last_words}");
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
            "ready: {} {} by {prefixes} prefixes of {} sources, generation {}",
            match self.config.mode {
                Mode::Enforce => "filtering",
                Mode::Observe => "observing (nothing is dropped)",
            },
            self.config.interfaces.join(", "),
            self.snapshot.len(),
            self.dataplane.generation()
        )
    }
}

async fn warn_of_stripped_tags(name: &str) {
    if interface::strips_vlan_tags(name).await {
        warn!(
            "{name} takes VLAN tags off before the filter sees them, so `watch` shows no VLAN; verdicts are the same; `ethtool -K {name} rxvlan off` leaves them on"
        );
    }
}

async fn look_up_all(names: &[String]) -> Result<Vec<Facts>> {
    let mut all = Vec::new();
    for name in names {
        all.push(interface::look_up(name).await?);
    }
    Ok(all)
}

/// Compiles with the match ids that are known; with new ones where those have run out, as they do
/// after thousands of changes of which sources overlap.
///
/// # Returns
/// Also whether the ids are new.
fn compile_or_number_anew(
    config: &Config,
    snapshot: &Snapshot,
    known: &Names,
) -> Result<(Tables, bool), CompileError> {
    let compile = |names| compile(&config.policy, snapshot, config.max_prefixes, names);
    match compile(known) {
        Err(CompileError::TooManyMatches | CompileError::TooManyServiceCounts) => {
            Ok((compile(&Names::default())?, true))
        }
        tables => Ok((tables?, false)),
    }
}
