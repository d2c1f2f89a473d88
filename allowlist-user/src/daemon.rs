//! The daemon's event loop: fetches lists, compiles and publishes generations, and handles requests.
//!
//! - this file: the loop, and the activation of a generation
//! - `start`: the start; `start_plan`: its policy; `initial_lists`: its lists; `opening`: the first read of file
//!   sources; `stop`: the end
//! - `refresh`: evaluates fetched lists; `schedule`: computes fetch times; `files`: watches file sources
//! - `requests`: handles requests of the socket, with `additions`, `reload` and `confirm`; `changes`: the lines of
//!   an answer
//! - `interfaces`: attaches the filter; `selfcheck`: compares the kernel with the published state; `meta`: stores the
//!   names in the kernel
//!
//! Invariants: a whole generation is published before the first packet is judged; a source that fails keeps its
//! last-good list; a change is on disk before it is active, and active before it is answered; a change is applied
//! as a whole or not at all.

mod additions;
mod changes;
mod confirm;
mod files;
mod initial_lists;
mod interfaces;
mod meta;
mod opening;
mod refresh;
mod reload;
mod requests;
mod schedule;
mod selfcheck;
mod start;
mod start_plan;
mod stop;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use allowlist_dataplane::AttachModeRequest;
use allowlist_dataplane::Dataplane;
use allowlist_dataplane::interface::Links;
use allowlist_dataplane::netlink::index_of;
use allowlist_files::bounded::within;
use allowlist_lists::gather::Fetches;
use allowlist_lists::state::{StateDir, StateLock};
use allowlist_lists::states::SourceStates;
use allowlist_policy::compile::{CompileError, IdTable, Tables, compile, require_room};
use allowlist_policy::error_code::bail_with;
use allowlist_policy::lockout::Generation;
use allowlist_policy::text::on_one_line;
use allowlist_policy::{AtStart, Feed, Mode, Policy, Snapshot, Source};
use anyhow::Result;
use jiff::Timestamp;
use log::{info, warn};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::additions::Expiry;
use self::files::Files;
use self::initial_lists::Late;
use self::interfaces::{absent, indices_of};
use self::opening::{Opening, opening_ends};
use self::refresh::Clocks;
use self::reload::Reloading;
use self::requests::Refreshing;
use self::selfcheck::SelfCheck;
use crate::audit::{Actor, AuditAction, AuditEntry};
use crate::cli::Paths;
use crate::config::Config;
use crate::control::{ApplyOptions, Control, DaemonStatus, PendingChange};
use crate::event_log::EventLog;
use crate::generation_meta::ServiceMeta;
use crate::hook::HookQueue;
use crate::journal::{ConfigText, Journal};
use crate::notify::Notify;
use crate::trusted_paths::{self, Concern};

/// The interval of the self-check, and of the check whether the filter was detached.
const LOOK: Duration = Duration::from_secs(1);

const COUNTS_ANEW: &str =
    "the match ids are renumbered, so the counters of sources and services restart at 0";

/// The options of `allowlist run`, which a daemon keeps for its lifetime.
pub struct Options {
    /// The paths of the socket, the pins and the state.
    pub paths: Paths,
    /// The text of the configuration at the start, with its origin.
    pub written: ConfigText,
    /// The attach mode from the command line, which overrides the configuration; `None` without that option.
    pub attach: Option<AttachModeRequest>,
    /// Whether the filter stays attached after Ctrl-C (`--keep`).
    pub keep: bool,
    /// Whether to log one line per packet (`--trace`).
    pub trace: bool,
    /// The options of the lockout check and of commit confirm for the start.
    pub apply: ApplyOptions,
    /// The function that returns the warnings about a configuration on this host.
    pub warnings: fn(&Config) -> Vec<String>,
}

impl Options {
    /// Parses the text of a configuration, and applies the attach mode and the interfaces of the command line.
    fn read(&self, written: &ConfigText) -> Result<Config> {
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
    /// Requires that only root can change the commands and the secrets of a configuration.
    ///
    /// # Errors
    /// Names the first path that other users can change. A path that only the user behind `sudo` can change is logged,
    /// unless it leads to a command or a secret.
    fn require_trusted(written: &ConfigText, config: &Config) -> Result<()> {
        Self::refuse_untrusted(Self::concerns(written, config)?)
    }

    /// Returns the paths of the configuration that other users can change.
    ///
    /// # Errors
    /// A file system hangs.
    fn concerns(written: &ConfigText, config: &Config) -> io::Result<Vec<Concern>> {
        let (written, config) = (written.clone(), config.clone());
        let work = move || trusted_paths::concerns(written.file.as_deref(), &written.text, &config);
        within(std::path::Path::new("trusted"), LOOK * 2, work, drop)
    }

    /// Returns an error for the first fatal concern, and logs the others as warnings.
    fn refuse_untrusted(concerns: Vec<Concern>) -> Result<()> {
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

/// The signals of a daemon. Handlers are installed before the start, so that no signal is lost.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Installs the handlers of the daemon's signals.
    pub fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits until SIGINT or SIGTERM arrives.
    pub async fn end(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The generation that this process published last, for the lockout check.
struct Active {
    config: Arc<Config>,
    mode: Mode,
    tables: Arc<Tables>,
}

impl Active {
    fn generation(&self) -> Generation<'_> {
        self.config.generation(self.mode, &self.tables)
    }
}

/// A running daemon.
pub struct Daemon {
    /// The active configuration.
    config: Arc<Config>,
    written: Arc<ConfigText>,
    /// The policy of the configuration, with a source of added prefixes for each service that has some.
    policy: Policy,
    mode: Mode,
    options: Options,
    state: StateDir,
    /// The lock of the state directory; `None` if the directory could not be opened, in which case nothing is stored.
    lock: Option<StateLock>,
    control: Control,
    dataplane: Dataplane,
    notify: Notify,
    ids: IdTable,
    /// The generation that this process published last; `None` before its first publish.
    active: Option<Active>,
    lists: SourceStates,
    journal: Journal,
    /// Whether the configuration is not active yet, since sources have no list and `at_start` is `wait`.
    inactive: bool,
    fetches: Fetches,
    /// By source name: the time of the next fetch. Sources that cannot change have no entry.
    due: BTreeMap<String, Instant>,
    /// By source name: the time of the first write to the source's file since the file was last read.
    writing: BTreeMap<String, Instant>,
    /// By name of a removed interface: the last logged reason why the filter cannot attach to the interface that now
    /// has this name, if any.
    lost: BTreeMap<String, Option<String>>,
    /// By interface name: the interface's index at the last publish.
    published_on: BTreeMap<String, u32>,
    self_check: SelfCheck,
    /// Notifications of interface changes; `None` if they cannot be received, in which case interfaces are polled.
    links: Option<Links>,
    /// By interface index: the task that prints the trace of the interface.
    traces: BTreeMap<u32, JoinHandle<()>>,
    /// By source name: the time at which the source's list was last stored on disk.
    kept: BTreeMap<String, Instant>,
    files: Files,
    /// The first reads of file sources; `None` once the start is announced.
    opening: Option<Opening>,
    late: Late,
    /// Last-good lists that were read from disk after the time limit of a start or a change.
    late_lists: UnboundedReceiver<(Source, Feed)>,
    event_log: EventLog,
    hook_queue: HookQueue,
    clocks: Clocks,
    /// The earliest time for another attempt to publish without expired grace prefixes and added prefixes.
    release_after: Instant,
    expiry: Expiry,
    /// The earliest time for the next attempt to write active changes that are missing from the journal.
    catch_up_after: Instant,
    /// The reload in progress, if any.
    reloading: Option<Reloading>,
    /// The refresh requests in progress.
    refreshing: Vec<Refreshing>,
    /// The change that is pending confirmation, if any.
    pending: Option<confirm::Pending>,
    /// Whether the metadata in the kernel is older than the active state.
    is_meta_outdated: bool,
    /// The services of the metadata in the kernel.
    named_services: BTreeMap<String, ServiceMeta>,
    /// Whether `ids` names all ids of the counters in the kernel.
    are_counts_known: bool,
    started: Timestamp,
    /// The time since which packets have been filtered without interruption; `None` before the first activation.
    since: Option<Timestamp>,
    warnings: Vec<String>,
}

impl Daemon {
    /// Runs the event loop until a signal arrives or the filter is detached.
    pub async fn serve(mut self, mut signals: Signals) -> Result<()> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.publish_status();
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
                    self.handle_timers();
                    self.update_meta();
                    self.catch_up_journal();
                    // The kernel's clock decides, also if this process was stopped meanwhile.
                    if self.is_too_late() {
                        self.roll_back_unconfirmed().await?;
                        self.publish_status();
                    }
                }
                () = changed(&mut self.links) => {
                    if self.is_detached()? {
                        return Ok(());
                    }
                    self.look_after_interfaces().await;
                }
                request = self.control.request() => {
                    self.handle_request(request).await;
                    self.start_filtering_if_complete().await?;
                    self.publish_status();
                }
                paths = self.files.touched() => self.touched(&paths),
                () = opening_ends(self.opening.as_ref()), if self.opening.is_some() => self.announce(),
                Some((source, feed)) = self.late_lists.recv() => {
                    self.take_late_list(&source, feed);
                    self.start_filtering_if_complete().await?;
                    self.publish_status();
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    self.fetch_due();
                }
                () = sleep_until(next_time.unwrap_or_else(Instant::now)), if next_time.is_some() => {
                    self.handle_timers();
                    if self.is_too_late() {
                        self.roll_back_unconfirmed().await?;
                    }
                    self.publish_status();
                }
                Some(gathered) = self.fetches.next() => {
                    let name = gathered.source.name.clone();
                    self.handle_fetch(gathered);
                    self.start_filtering_if_complete().await?;
                    self.note_opened(&name);
                    self.publish_status();
                }
                prepared = Reloading::prepared(&mut self.reloading), if self.reloading.is_some() => {
                    self.commit_reload(prepared).await;
                    self.publish_status();
                }
            }
        }
    }

    /// Returns the time of the next expiry of an added prefix or the deadline of the pending change, whichever is
    /// first.
    fn next_time(&self) -> Option<Instant> {
        let expiry = match self.expiry {
            Expiry::Never => None,
            Expiry::At(expiry) => Some(expiry.max(self.release_after)),
            Expiry::Unpublished => Some(self.release_after),
        };
        let confirm = self.pending.as_ref().map(|pending| pending.deadline);
        [expiry, confirm].into_iter().flatten().min()
    }

    /// Calls `act` with the daemon and its lists, both mutable; `self.lists` is empty during the call.
    fn with_lists<T>(&mut self, act: impl FnOnce(&mut Self, &mut SourceStates) -> T) -> T {
        let mut lists = std::mem::take(&mut self.lists);
        let done = act(self, &mut lists);
        self.lists = lists;
        done
    }

    /// Returns the names of the used sources that have no list in `lists`.
    fn missing(&self, lists: &SourceStates) -> Vec<String> {
        let sources = self.policy.used_sources().map(|source| &source.name);
        let missing = sources.filter(|name| lists.feed(name).is_none());
        missing.cloned().collect()
    }

    /// Compiles `lists` into tables, and returns the tables and whether the match ids were renumbered. A missing list
    /// is replaced as `at_start` defines.
    fn compiled(&self, lists: &SourceStates) -> Result<(Tables, bool), CompileError> {
        let policy = self.policy.on_interfaces(&self.config.interfaces, index_of);
        let mut snapshot = Cow::Borrowed(lists.feeds());
        for name in self.missing(lists) {
            let feed = Feed::new(self.config.at_start.stand_in(), Timestamp::now());
            snapshot.to_mut().insert(name, feed);
        }
        compile_or_number_anew(&policy, &snapshot, self.config.max_prefixes, &self.ids)
    }

    /// Compiles and publishes `lists`; returns the active generation. While the configuration is inactive, only checks
    /// that the lists fit the tables. With `options`, does the lockout check first.
    fn publish(&mut self, lists: &SourceStates, options: Option<&ApplyOptions>) -> Result<u32> {
        let (tables, anew) = self.compiled(lists)?;
        if self.inactive {
            return Ok(self.dataplane.generation());
        }
        if let Some(options) = options {
            self.require_session(options, &tables)?;
        }
        let generation = self.activate(lists, Arc::new(tables))?;
        if anew {
            warn!(target: "allowlist::counters-reset", "{COUNTS_ANEW}");
            self.dataplane.forget_counts()?;
        }
        Ok(generation)
    }

    /// Publishes compiled tables with the names of their ids, and returns the new generation.
    fn activate(&mut self, lists: &SourceStates, tables: Arc<Tables>) -> Result<u32> {
        self.ids = tables.ids.clone();
        let meta = self.meta(lists);
        let generation = self.dataplane.publish(
            &tables,
            self.mode,
            &self.config.rules,
            &self.config.interfaces,
            &meta.encode(),
        )?;
        // A change in place stores the metadata only for new ids. Counts and times may follow later.
        if meta.services == self.named_services {
            self.is_meta_outdated = true;
        } else {
            self.store_meta(meta);
        }
        self.published_on = indices_of(&self.config.interfaces);
        self.active = Some(Active {
            config: Arc::clone(&self.config),
            mode: self.mode,
            tables,
        });
        Ok(generation)
    }

    /// Logs an action, and appends it to the audit log; `refused` is the reason if the action was refused.
    fn log(&self, actor: Actor, action: AuditAction, refused: Option<String>) {
        let no_change = refused.is_none() && matches!(action, AuditAction::Reload { policy: None });
        self.log_request(actor, action, refused, no_change);
    }

    /// Logs an action, and appends it to the audit log. `refused` is the reason of a refusal; `no_change` marks a
    /// successful action without an effect. A failure to write the audit log is only logged.
    fn log_request(
        &self,
        actor: Actor,
        action: AuditAction,
        refused: Option<String>,
        no_change: bool,
    ) {
        match &refused {
            Some(reason) => {
                warn!(target: "allowlist::request-refused", "{actor}: {action}: refused, nothing was changed: {reason}");
            }
            None if no_change => info!("{actor}: {action}: no change"),
            None => info!("{actor}: {action}"),
        }
        let entry = AuditEntry {
            time: Timestamp::now(),
            actor,
            action,
            refused,
            no_change,
            generation: self.dataplane.generation(),
        };
        let added = self
            .disk()
            .and_then(|_| Ok(self.event_log.add(&entry.into())?));
        if let Err(error) = added {
            warn!("cannot append to the audit log: {error:#}");
        }
    }

    /// Returns the number of the active policy, or `None` if the journal has no policy.
    fn policy_number(&self) -> Option<u64> {
        let newest = self.journal.known().newest()?;
        Some(newest.number)
    }

    /// Updates the status that the API and the service manager report.
    fn publish_status(&self) {
        let now = (Instant::now(), Timestamp::now());
        let at = |due: Instant| now.1 + due.saturating_duration_since(now.0);
        let next = self.due.iter().map(|(name, due)| (name.clone(), at(*due)));
        let newest = self.journal.known().newest();
        let missing = self.missing(&self.lists);
        let ids = self.control.rejected_ids();
        let published = ids.iter().map(|(source, id)| (&**source, &**id));
        if !published.eq(self.lists.rejected_ids()) {
            self.control.publish_rejected(self.lists.rejected());
        }
        self.control.set_status(DaemonStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
            configuration: self.written.origin(),
            configured_mode: Some(self.config.mode),
            policy: self.policy_number(),
            config_suppressed: newest
                .is_some_and(|policy| policy.change.suppressed_config_crc.is_some()),
            failing_open: self.config.at_start == AtStart::Pass && !missing.is_empty(),
            missing_sources: missing,
            inactive: self.inactive,
            missing_interfaces: absent(&self.config.interfaces),
            pending: self.pending.as_ref().map(|pending| PendingChange {
                what: pending.what.clone(),
                by: pending.by.clone(),
                until: at(pending.deadline),
            }),
            warnings: self.state_warnings(),
            next_fetch: next.collect(),
        });
        self.notify.status(&self.state_line());
    }

    /// Returns the state directory.
    ///
    /// # Errors
    /// Fails if the state directory could not be opened and locked at the start.
    fn disk(&self) -> Result<&StateDir> {
        if self.lock.is_none() {
            bail_with!(
                InvalidStateDir,
                "{}: the state directory could not be opened at the start; repair it, then restart the daemon",
                self.state.path().display()
            );
        }
        Ok(&self.state)
    }

    /// Prints the line that ends the start, and notifies the service manager. A closed standard output is ignored.
    fn announce_ready(&mut self) {
        self.opening = None;
        let line = self.state_line();
        let _ = writeln!(io::stdout(), "ready: {}", on_one_line(&line));
        self.notify.ready(&line);
    }

    fn state_line(&self) -> String {
        if self.inactive {
            return format!(
                "waiting for the lists of {}; the configuration is not active yet",
                self.missing(&self.lists).join(", ")
            );
        }
        let feeds = self.lists.feeds();
        let prefixes: usize = feeds.values().map(Feed::len).sum();
        let absent = absent(&self.config.interfaces);
        let mut there = self.config.interfaces.clone();
        there.retain(|name| !absent.contains(name));
        let mut on = if there.is_empty() {
            "no interface".to_owned()
        } else {
            there.join(", ")
        };
        if !absent.is_empty() {
            on += &format!(" (missing: {})", absent.join(", "));
        }
        format!(
            "{} {on}, {prefixes} prefixes from {} sources, generation {}",
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

/// Compiles `snapshot` with the match ids in `known`, or with new ids if those are used up. Returns the tables, and
/// whether the ids are new.
///
/// Match ids run out after thousands of changes of the overlaps between sources.
fn compile_or_number_anew(
    policy: &Policy,
    snapshot: &Snapshot,
    max_prefixes: u32,
    known: &IdTable,
) -> Result<(Tables, bool), CompileError> {
    require_room(policy, snapshot, max_prefixes)?;
    let compile = |ids| compile(policy, snapshot, u32::MAX, ids);
    match compile(known) {
        Err(CompileError::TooManyMatches | CompileError::TooManyServiceCounts) => {
            Ok((compile(&IdTable::default())?, true))
        }
        tables => Ok((tables?, false)),
    }
}
