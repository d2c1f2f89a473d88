//! The loop that keeps the kernel in step with the sources and with what people ask: fetch, compile, publish.
//!
//! - this file is the loop, and what is put in force
//! - `start` is how a daemon begins, `plan` with which policy, `first` with which lists, `opening` its first
//!   reads of sources, `stop` how it ends
//! - `refresh` takes lists in, `schedule` says when they are asked for, `files` which files were touched
//! - `asked` carries out requests of the socket: `added`, `reload`, `confirm`; `changes` has the lines of an
//!   answer
//! - `interfaces` keeps the filter on them, `selfcheck` compares the kernel with the published state
//!
//! Invariants: before the first packet is judged a whole generation is published; a source that fails keeps
//! its last good prefixes, and so does the kernel; what is asked is on disk before it is in force, and in
//! force before it is answered; what cannot be done whole is not done.

mod added;
mod asked;
mod changes;
mod confirm;
mod files;
mod first;
mod interfaces;
mod opening;
mod plan;
mod refresh;
mod reload;
mod schedule;
mod selfcheck;
mod start;
mod stop;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use log::{info, warn};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::added::Expiry;
use self::asked::Refreshing;
use self::files::Files;
use self::first::Late;
use self::interfaces::{absent, indices_of};
use self::opening::{Opening, opening_ends};
use self::refresh::Clocks;
use self::reload::Reloading;
use self::selfcheck::SelfCheck;
use crate::audit::{Audit, Deed, Entry, Who};
use crate::bounded::within;
use crate::cli::Paths;
use crate::compile::{CompileError, Names, Tables, compile, require_room};
use crate::config::{AttachMode, Config};
use crate::control::{Care, Control, Live, Unconfirmed};
use crate::dataplane::Dataplane;
use crate::error_code::bail_with;
use crate::gather::Fetches;
use crate::history::History;
use crate::hook::Teller;
use crate::interface::Links;
use crate::ledger::{Ledger, Written};
use crate::lists::SourceStates;
use crate::netlink::index_of;
use crate::notify::Notify;
use crate::policy::{AtStart, Feed, Mode, Policy, Snapshot, Source};
use crate::record::Record;
use crate::session::Generation;
use crate::state::{StateDir, StateLock};
use crate::text::on_one_line;
use crate::trust;

/// How often to look whether somebody detached the filter, and whether all is as it should be.
const LOOK: Duration = Duration::from_secs(1);

const COUNTS_ANEW: &str =
    "what was counted by source so far cannot be told apart any more: those counts start anew";

/// What `run` was asked for.
pub struct Options {
    /// Where everything is.
    pub paths: Paths,
    /// The configuration.
    pub written: Written,
    /// How the program is attached, if that was typed.
    pub attach: Option<AttachMode>,
    /// Leave the filter in force on Ctrl-C.
    pub keep: bool,
    /// Print a line a packet.
    pub trace: bool,
    /// With how much care to start.
    pub care: Care,
    /// What the configuration is warned of on this host.
    pub warnings: fn(&Config) -> Vec<String>,
}

impl Options {
    /// What a configuration says, with what was typed.
    fn read(&self, written: &Written) -> Result<Config> {
        let file = written.file.as_deref();
        let file = file.unwrap_or(std::path::Path::new("the command line"));
        let mut config = Config::parse(&written.text, file)?;
        if !written.interfaces.is_empty() {
            config.interfaces.clone_from(&written.interfaces);
        }
        if let Some(attach) = self.attach {
            config.attach = attach;
        }
        Ok(config)
    }
}

impl Options {
    /// Requires that no user but root decides which commands run and which secrets are used.
    ///
    /// # Errors
    /// The first path of the configuration that others could change. A file of the user behind `sudo` is only a
    /// warning, unless it names a command or a secret.
    fn require_trusted(written: &Written, config: &Config) -> Result<()> {
        let (written, config) = (written.clone(), config.clone());
        let work = move || trust::concerns(written.file.as_deref(), &written.text, &config);
        let concerns = within(std::path::Path::new("trusted"), LOOK * 2, work, drop)?;
        for concern in concerns {
            if concern.is_fatal {
                bail_with!(
                    UntrustedPath,
                    "{}; `allowlist check` lists every such path",
                    concern.message
                );
            }
            warn!("{}", concern.message);
        }
        Ok(())
    }
}

/// What reaches a daemon from outside. Listened to from before the start, so that none is lost.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Listens.
    pub fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when one has come that ends a program.
    pub async fn end(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What was put in force, to be compared with what would be.
struct InForce {
    config: Arc<Config>,
    mode: Mode,
    tables: Arc<Tables>,
}

impl InForce {
    fn generation(&self) -> Generation<'_> {
        Generation {
            config: &self.config,
            mode: self.mode,
            tables: &self.tables,
        }
    }
}

/// A running filter.
pub struct Daemon {
    /// As it is written.
    config: Arc<Config>,
    written: Arc<Written>,
    /// The configuration's, with what was added by command.
    policy: Policy,
    mode: Mode,
    options: Options,
    state: StateDir,
    /// Held since the state folder was opened; none while it does not answer. Then nothing is written there.
    lock: Option<StateLock>,
    control: Control,
    dataplane: Dataplane,
    notify: Notify,
    names: Names,
    /// What this process put in force last.
    in_force: Option<InForce>,
    lists: SourceStates,
    ledger: Ledger,
    audit: Audit,
    /// Nothing is attached before every source has a list.
    waiting: bool,
    fetches: Fetches,
    /// By source name: when to fetch it next. Sources that cannot change are not in it.
    due: BTreeMap<String, Instant>,
    /// By source name: when its file was touched first since it was read last.
    writing: BTreeMap<String, Instant>,
    /// By name of an interface that was removed since the filter was attached: the last reason in the log for which the
    /// filter does not attach to the next one, once there is a reason.
    lost: BTreeMap<String, Option<String>>,
    /// By name of an interface: the index that it had at the last publish.
    published_on: BTreeMap<String, u32>,
    self_check: SelfCheck,
    /// Tells when any interface changes; none where the kernel does not tell.
    links: Option<Links>,
    /// By interface index: what prints its trace.
    traces: BTreeMap<u32, JoinHandle<()>>,
    /// By source name: when its list was put on disk last.
    kept: BTreeMap<String, Instant>,
    files: Files,
    /// The first reads of a start, until it is announced.
    opening: Option<Opening>,
    late: Late,
    /// Last-good lists that were read from disk too late for the start or the change that needed them.
    late_lists: UnboundedReceiver<(Source, Feed)>,
    history: History,
    teller: Teller,
    clocks: Clocks,
    /// Not before this is tried again to let go of what was held, or is over.
    release_after: Instant,
    expiry: Expiry,
    /// Not before this the changes that are active without the disk are written.
    catch_up_after: Instant,
    /// A configuration that is being made ready.
    reloading: Option<Reloading>,
    /// Who waits for lists.
    refreshing: Vec<Refreshing>,
    /// A change that waits to be confirmed.
    pending: Option<confirm::Pending>,
    /// Whether the record on disk is older than what is in force.
    record_is_old: bool,
    /// Whether the record has to say other words of services than before.
    is_policy_new: bool,
    started: Timestamp,
    /// Since when packets are filtered without a gap.
    since: Option<Timestamp>,
    warnings: Vec<String>,
}

impl Daemon {
    /// Keeps the kernel in step until a signal, or until somebody detaches the filter.
    pub async fn serve(mut self, mut signals: Signals) -> Result<()> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.tell();
        self.open_sources();
        loop {
            let next = self.next_due();
            let next_time = self.next_time();
            tokio::select! {
                _ = signals.interrupt.recv() => return Box::pin(self.interrupted()).await,
                _ = signals.terminate.recv() => return Box::pin(self.terminated()).await,
                _ = signals.hangup.recv() => self.reload(None),
                _ = look.tick() => {
                    self.notify.alive();
                    if self.is_detached()? {
                        return Ok(());
                    }
                    self.look_after_interfaces().await;
                    self.pass_time();
                    self.write_record();
                    self.catch_up_ledger();
                    // The kernel's clock counts, also after this process was stopped for a while.
                    if self.is_too_late() {
                        self.take_back_unconfirmed().await?;
                        self.tell();
                    }
                }
                () = changed(&mut self.links) => {
                    if self.is_detached()? {
                        return Ok(());
                    }
                    self.look_after_interfaces().await;
                }
                request = self.control.request() => {
                    self.carry_out(request).await;
                    self.enter_if_complete().await?;
                    self.tell();
                }
                paths = self.files.touched() => self.touched(&paths),
                () = opening_ends(self.opening.as_ref()), if self.opening.is_some() => self.announce(),
                Some((source, feed)) = self.late_lists.recv() => {
                    self.take_late(&source, feed);
                    self.enter_if_complete().await?;
                    self.tell();
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    self.fetch_due();
                }
                () = sleep_until(next_time.unwrap_or_else(Instant::now)), if next_time.is_some() => {
                    self.pass_time();
                    if self.is_too_late() {
                        self.take_back_unconfirmed().await?;
                    }
                    self.tell();
                }
                Some(gathered) = self.fetches.next() => {
                    let name = gathered.source.name.clone();
                    self.take_in(gathered);
                    self.enter_if_complete().await?;
                    self.note_opened(&name);
                    self.tell();
                }
                prepared = Reloading::prepared(&mut self.reloading), if self.reloading.is_some() => {
                    self.commit_reload(prepared).await;
                    self.tell();
                }
            }
        }
    }

    /// When something is due that goes by the clock to the moment.
    fn next_time(&self) -> Option<Instant> {
        let expiry = match self.expiry {
            Expiry::Never => None,
            Expiry::At(expiry) => Some(expiry.max(self.release_after)),
            Expiry::Unpublished => Some(self.release_after),
        };
        let confirm = self.pending.as_ref().map(|pending| pending.deadline);
        [expiry, confirm].into_iter().flatten().min()
    }

    /// Does something with the lists for which the rest of the daemon is needed too.
    fn with_lists<T>(&mut self, act: impl FnOnce(&mut Self, &mut SourceStates) -> T) -> T {
        let mut lists = std::mem::take(&mut self.lists);
        let done = act(self, &mut lists);
        self.lists = lists;
        done
    }

    /// The used sources that have no list.
    fn missing(&self, lists: &SourceStates) -> Vec<String> {
        let sources = self.policy.used_sources().map(|source| &source.name);
        let missing = sources.filter(|name| lists.feed(name).is_none());
        missing.cloned().collect()
    }

    /// What these lists and what stands in for those that are missing come to.
    fn compiled(&self, lists: &SourceStates) -> Result<(Tables, bool), CompileError> {
        let policy = self.policy.on_interfaces(&self.config.interfaces, index_of);
        let mut snapshot = Cow::Borrowed(lists.feeds());
        for name in self.missing(lists) {
            let feed = Feed::new(self.config.at_start.stand_in(), Timestamp::now());
            snapshot.to_mut().insert(name, feed);
        }
        compile_or_number_anew(&policy, &snapshot, self.config.max_prefixes, &self.names)
    }

    /// Publishes these lists; while nothing is attached yet, they only have to fit.
    fn publish(&mut self, lists: &SourceStates, care: Option<&Care>) -> Result<u32> {
        let (tables, anew) = self.compiled(lists)?;
        if self.waiting {
            return Ok(self.dataplane.generation());
        }
        if let Some(care) = care {
            self.require_session(care, &tables)?;
        }
        let generation = self.put_in_force(lists, Arc::new(tables))?;
        if anew {
            warn!(target: "allowlist::counters-reset", "{COUNTS_ANEW}");
            self.dataplane.forget_counts()?;
        }
        Ok(generation)
    }

    /// Publishes. The record is on disk first wherever it has to say anything new: it may name what the kernel
    /// does not have yet, but should name all that it has.
    fn put_in_force(&mut self, lists: &SourceStates, tables: Arc<Tables>) -> Result<u32> {
        if tables.names != self.names || self.in_force.is_none() || self.is_policy_new {
            self.names = tables.names.clone();
            self.record(lists, self.dataplane.counted_generation().wrapping_add(1));
            self.dataplane.name(self.names.checksum())?;
        } else {
            self.record_is_old = true;
        }
        let generation = self.dataplane.publish(
            &tables,
            self.mode,
            &self.config.rules,
            &self.config.interfaces,
        )?;
        self.published_on = indices_of(&self.config.interfaces);
        self.in_force = Some(InForce {
            config: Arc::clone(&self.config),
            mode: self.mode,
            tables,
        });
        Ok(generation)
    }

    /// A full disk is no reason not to filter: a record holds only words.
    fn record(&mut self, lists: &SourceStates, generation: u32) {
        let record = Record {
            before: self.dataplane.named().unwrap_or_default(),
            ..Record::of(generation, &self.names, &self.policy, lists, self.since)
        };
        if let Err(error) = self.disk().and_then(|state| record.store(state)) {
            warn!("status and list will not name the sources rightly: {error:#}");
        }
        (self.record_is_old, self.is_policy_new) = (false, false);
    }

    /// Writes the record if it is old.
    fn write_record(&mut self) {
        if self.record_is_old {
            self.with_lists(|daemon, lists| daemon.record(lists, daemon.dataplane.generation()));
        }
    }

    /// What was done, or refused, into the audit trail. A full disk is no reason not to do it.
    fn log(&self, who: Who, deed: Deed, refused: Option<String>) {
        let no_change = refused.is_none() && matches!(deed, Deed::Reload { policy: None });
        self.log_request(who, deed, refused, no_change);
    }

    /// Logs a request and its outcome. `no_change` is about one that succeeded.
    fn log_request(&self, who: Who, deed: Deed, refused: Option<String>, no_change: bool) {
        match &refused {
            Some(reason) => {
                warn!(target: "allowlist::request-refused", "{who}: {deed}: not done, and nothing was changed: {reason}");
            }
            None if no_change => info!("{who}: {deed}: no change"),
            None => info!("{who}: {deed}"),
        }
        let entry = Entry {
            time: Timestamp::now(),
            who,
            deed,
            refused,
            no_change,
            generation: self.dataplane.generation(),
        };
        let added = self.disk().and_then(|_| Ok(self.audit.add(&entry)?));
        if let Err(error) = added {
            warn!("the audit trail has a gap: {error:#}");
        }
    }

    /// The number of the policy in force, if there is room on disk to know it.
    fn policy_number(&self) -> Option<u64> {
        let newest = self.ledger.known().newest()?;
        Some(newest.number)
    }

    /// Tells whoever asks the socket, and the service manager.
    fn tell(&self) {
        let now = (Instant::now(), Timestamp::now());
        let at = |due: Instant| now.1 + due.saturating_duration_since(now.0);
        let next = self.due.iter().map(|(name, due)| (name.clone(), at(*due)));
        let newest = self.ledger.known().newest();
        let missing = self.missing(&self.lists);
        let ids = self.control.rejected_ids();
        let published = ids.iter().map(|(source, id)| (&**source, &**id));
        if !published.eq(self.lists.rejected_ids()) {
            self.control.publish_rejected(self.lists.rejected());
        }
        self.control.tell(Live {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
            configuration: self.written.origin(),
            configured_mode: Some(self.config.mode),
            policy: self.policy_number(),
            held_back: newest.is_some_and(|policy| policy.change.held_back.is_some()),
            is_open: self.config.at_start == AtStart::Pass && !missing.is_empty(),
            waiting: missing,
            is_waiting: self.waiting,
            waiting_for: absent(&self.config.interfaces),
            pending: self.pending.as_ref().map(|pending| Unconfirmed {
                what: pending.what.clone(),
                by: pending.by.clone(),
                until: at(pending.deadline),
            }),
            warnings: self.standing_warnings(),
            next_fetch: next.collect(),
        });
        self.notify.status(&self.state_line());
    }

    /// The state folder, if it may be written to.
    fn disk(&self) -> Result<&StateDir> {
        if self.lock.is_none() {
            bail_with!(
                InvalidStateDir,
                "{}: could not be opened at the start; restart the daemon once it can",
                self.state.path().display()
            );
        }
        Ok(&self.state)
    }

    /// For whoever waits for it, who may be gone, which is no reason to stop.
    fn say_ready(&mut self) {
        self.opening = None;
        let line = self.state_line();
        let _ = writeln!(io::stdout(), "ready: {}", on_one_line(&line));
        self.notify.ready(&line);
    }

    fn state_line(&self) -> String {
        if self.waiting {
            return format!(
                "waiting for lists of {}: nothing is filtered by this configuration till then",
                self.missing(&self.lists).join(", ")
            );
        }
        let feeds = self.lists.feeds();
        let prefixes: usize = feeds.values().map(Feed::len).sum();
        let absent = absent(&self.config.interfaces);
        let mut there = self.config.interfaces.clone();
        there.retain(|name| !absent.contains(name));
        let mut on = if there.is_empty() {
            "nothing yet".to_owned()
        } else {
            there.join(", ")
        };
        if !absent.is_empty() {
            on += &format!(", waiting for {},", absent.join(", "));
        }
        format!(
            "{} {on} by {prefixes} prefixes of {} sources, generation {}",
            match self.mode {
                Mode::Enforce => "filtering",
                Mode::Observe => "observing (nothing is dropped)",
            },
            feeds.len(),
            self.dataplane.generation()
        )
    }
}

async fn changed(links: &mut Option<Links>) {
    match links {
        Some(links) => links.changed().await,
        None => std::future::pending().await,
    }
}

/// Compiles with the match ids that are known; with new ones where those have run out, as they do
/// after thousands of changes of which sources overlap.
///
/// # Returns
/// Also whether the ids are new.
fn compile_or_number_anew(
    policy: &Policy,
    snapshot: &Snapshot,
    max_prefixes: u32,
    known: &Names,
) -> Result<(Tables, bool), CompileError> {
    require_room(policy, snapshot, max_prefixes)?;
    let compile = |names| compile(policy, snapshot, u32::MAX, names);
    match compile(known) {
        Err(CompileError::TooManyMatches | CompileError::TooManyServiceCounts) => {
            Ok((compile(&Names::default())?, true))
        }
        tables => Ok((tables?, false)),
    }
}
