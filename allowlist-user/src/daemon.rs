//! The loop that keeps the kernel in step with the sources: fetch, compile, publish, on a timer.
//!
//! Invariants: before the first packet is judged a whole generation is published; a source that
//! fails keeps its last good prefixes, and so does the kernel; nothing is attached by a start that
//! fails. Start is strict, refresh is not.

mod files;
mod first;
mod interfaces;
mod refresh;
mod schedule;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use log::{info, warn};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::files::Files;
use self::first::First;
use self::interfaces::{look_up_all, warn_of_stripped_tags};
use self::refresh::{Clocks, in_words};
use crate::cli::Paths;
use crate::compile::{CompileError, Names, Tables, compile};
use crate::config::Config;
use crate::control::{Control, Live, Request};
use crate::dataplane::Dataplane;
use crate::gather::Fetches;
use crate::history::History;
use crate::hook::Teller;
use crate::interface::Facts;
use crate::lists::Lists;
use crate::policy::{Feed, Mode, Origin, Snapshot};
use crate::record::Record;
use crate::state::{StateDir, StateLock};

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
    lists: Lists,
    fetches: Fetches,
    /// By source name: when to fetch it next. Sources that cannot change are not in it.
    due: BTreeMap<String, Instant>,
    /// By source name: when its file was touched first since it was read last.
    writing: BTreeMap<String, Instant>,
    /// Interfaces that were removed since the filter was put on them.
    lost: BTreeSet<String>,
    /// By interface index: what prints its trace.
    traces: BTreeMap<u32, JoinHandle<()>>,
    /// By source name: when its list was put on disk last.
    kept: BTreeMap<String, Instant>,
    files: Files,
    history: History,
    teller: Teller,
    clocks: Clocks,
    /// Not before this is tried again to let go of what was held.
    release_after: Instant,
}

impl Daemon {
    /// Gets every source, publishes, attaches. On an error all is as it was before.
    pub async fn start(config: Config, options: Options) -> Result<Self> {
        look_up_all(&config.interfaces).await?; // a mistyped name should not wait for the fetches
        let state = StateDir::open(&options.paths.state_dir)?;
        let lock = state.lock()?;
        // Before they are read: what is written meanwhile is read again.
        let files =
            Files::watch(
                config
                    .policy
                    .used_sources()
                    .filter_map(|source| match &source.origin {
                        Origin::File { path, .. } => Some(path.as_path()),
                        _ => None,
                    }),
            );
        let First {
            lists,
            fetched,
            events,
        } = First::lists(&config, &state).await?;
        let record = Record::load(&options.paths.state_dir);
        let previous = record
            .as_ref()
            .map_or_else(Names::default, |record| record.names.clone());
        // Before the kernel is touched: most of what can be wrong is found here.
        let (tables, anew) = compile_or_number_anew(&config, lists.feeds(), &previous)?;
        let interfaces = look_up_all(&config.interfaces).await?;

        let control = Control::listen(&options.paths.socket)?;
        let dataplane = Dataplane::open(
            &options.paths.pin_dir,
            config.rules.tracks().then_some(config.max_flows),
        )?;
        let found = dataplane.in_force()?;
        let adopted = dataplane.counted_generation();
        let mut daemon = Self {
            names: tables.names.clone(),
            control,
            files,
            history: History::new(&options.paths.state_dir, config.history_bytes),
            teller: Teller::start(config.hook.clone()),
            clocks: Clocks::now(),
            release_after: Instant::now(),
            config,
            options,
            state,
            _lock: lock,
            lists,
            fetches: Fetches::default(),
            due: BTreeMap::new(),
            writing: BTreeMap::new(),
            lost: BTreeSet::new(),
            traces: BTreeMap::new(),
            kept: BTreeMap::new(),
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
            daemon.keep(source, true);
        }
        let generation = daemon.dataplane.generation();
        let events: Vec<_> = events
            .into_iter()
            .map(|event| event.of(generation))
            .collect();
        daemon.tell_of(&events);
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
        self.with_lists(|daemon, lists| daemon.put_in_force(lists, tables))?;
        // Where another version filters, last: till then it is as if this start had not been.
        let (anothers, new) = self.those_of_another_version(new)?;
        for facts in new.into_iter().chain(anothers) {
            self.attach(facts, self.options.trace)?;
        }
        let indices: Vec<u32> = interfaces.iter().map(|facts| facts.index).collect();
        let mut detached = self.dataplane.detach_others(&indices)?;
        detached.extend(self.dataplane.retire_others()?);
        for name in detached {
            info!("{name}: detached, since it is not configured any more");
        }
        Ok(())
    }

    /// Those that another version's program is on, and those that it is not on.
    fn those_of_another_version<'a>(
        &self,
        interfaces: Vec<&'a Facts>,
    ) -> Result<(Vec<&'a Facts>, Vec<&'a Facts>)> {
        let (mut anothers, mut new) = (Vec::new(), Vec::new());
        for facts in interfaces {
            if self.dataplane.is_anothers(facts.index)? {
                anothers.push(facts);
            } else {
                new.push(facts);
            }
        }
        Ok((anothers, new))
    }

    /// Keeps the kernel in step until a signal, or until somebody detaches the filter.
    pub async fn serve(mut self, mut signals: Signals) -> Result<()> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.tell();
        // Whoever waits for this line may be gone, which is no reason to stop.
        let _ = writeln!(io::stdout(), "{}", self.ready_line());
        loop {
            let next = self.next_due();
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
                    self.pass_time();
                }
                request = self.control.request() => self.carry_out(request),
                paths = self.files.touched() => self.touched(&paths),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    self.fetch_due();
                }
                Some(gathered) = self.fetches.next() => {
                    self.take_in(gathered);
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
            Request::Accept(name, done) => {
                let accepted = self.accept(&name);
                if accepted.is_ok() {
                    info!("{name}: the list that was refused is accepted");
                }
                let _ = done.send(in_words(accepted));
            }
        }
    }

    /// Does something with the lists for which the rest of the daemon is needed too.
    fn with_lists<T>(&mut self, act: impl FnOnce(&mut Self, &mut Lists) -> T) -> T {
        let mut lists = std::mem::take(&mut self.lists);
        let done = act(self, &mut lists);
        self.lists = lists;
        done
    }

    /// Publishes these lists.
    fn publish(&mut self, lists: &Lists) -> Result<u32> {
        let (tables, anew) = compile_or_number_anew(&self.config, lists.feeds(), &self.names)?;
        self.names = tables.names.clone();
        let generation = self.put_in_force(lists, &tables)?;
        if anew {
            warn!("{COUNTS_ANEW}");
            self.dataplane.forget_counts()?;
        }
        Ok(generation)
    }

    /// Publishes, with the record on disk first: it may name what the kernel does not have yet, but
    /// should name all that it has.
    fn put_in_force(&mut self, lists: &Lists, tables: &Tables) -> Result<u32> {
        self.record(lists, self.dataplane.counted_generation().wrapping_add(1));
        self.dataplane.publish(
            tables,
            self.config.mode,
            &self.config.rules,
            &self.config.interfaces,
        )
    }

    /// A full disk is no reason not to filter: a record holds only words.
    fn record(&self, lists: &Lists, generation: u32) {
        let record = Record::of(generation, &self.names, &self.config.policy, lists);
        if let Err(error) = record.store(&self.state) {
            warn!("status and list will not name the sources rightly: {error:#}");
        }
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
        let feeds = self.lists.feeds();
        let prefixes: usize = feeds.values().map(Feed::len).sum();
        format!(
            "ready: {} {} by {prefixes} prefixes of {} sources, generation {}",
            match self.config.mode {
                Mode::Enforce => "filtering",
                Mode::Observe => "observing (nothing is dropped)",
            },
            self.config.interfaces.join(", "),
            feeds.len(),
            self.dataplane.generation()
        )
    }
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
