//! The daemon's event loop: fetches lists, changes the effective state, and handles requests.
//!
//! - this file: the loop, and the daemon's status
//! - `commit`: the one transaction by which every change becomes active; `kernel`: the thread of the data plane;
//!   `store`: the files
//! - `start`: the start; `start_plan`: its policy; `initial_lists`: its lists; `opening`: the first read of file
//!   sources; `stop`: the end
//! - `refresh`: evaluates fetched lists; `schedule`: fetches, and computes their times; `files`: watches file sources;
//!   `clocks`: expiries and steps of the wall clock
//! - `requests`: handles requests of the socket, with `additions`, `reload` and `confirm`; `refreshing`: the refresh
//!   requests in progress
//! - `interfaces`: attaches the filter; `selfcheck`: compares the kernel with the published state
//!
//! Invariants: a whole generation is published before the first packet is judged; a source that fails keeps its
//! last-good list; a change is on disk before it is active, and active before it is answered; a change is applied
//! as a whole or not at all.

mod additions;
mod clocks;
mod commit;
mod confirm;
mod egress;
mod files;
mod initial_lists;
mod interfaces;
mod kernel;
mod learned;
mod opening;
mod refresh;
mod refreshing;
mod reload;
mod requests;
mod resolvers;
mod schedule;
mod selfcheck;
mod start;
mod start_plan;
mod stop;
mod store;

use std::io::{self, Write as _};
use std::time::Duration;

use allowlist_dataplane::AttachModeRequest;
use allowlist_files::bounded::within;
use allowlist_policy::error_code::bail_with;
use allowlist_policy::hints::counted;
use allowlist_policy::text::on_one_line;
use allowlist_policy::{AtStart, Feed, Mode, Source};
use anyhow::{Context as _, Result};
use jiff::Timestamp;
use log::{info, warn};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::clocks::Expiries;
use self::confirm::Pending;
use self::initial_lists::Late;
use self::interfaces::{Interfaces, absent};
use self::kernel::Kernel;
use self::learned::LearnedFile;
use self::opening::{Opening, opening_ends};
use self::refreshing::Refreshes;
use self::reload::Reloading;
use self::resolvers::HostResolvers;
use self::schedule::{Ready, Schedule};
use self::store::Store;
use crate::audit::{Actor, AuditEntry};
use crate::cli::Paths;
use crate::config::Config;
use crate::control::{ApplyOptions, Control, DaemonStatus, PendingChange};
use crate::effective::EffectiveState;
use crate::hook::HookQueue;
use crate::journal::ConfigText;
use crate::notify::Notify;
use crate::operation::Operation;
use crate::trusted_paths::{self, Concern};

/// The interval of the self-check, and of the check whether the filter was detached.
const LOOK: Duration = Duration::from_secs(1);

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
    /// Requires that only root can change the configuration file and the files that it names.
    ///
    /// # Errors
    /// The error names the first path that other users can change. A path that only the user behind `sudo` can change
    /// is no error but a warning, unless it leads to a command, a secret or a certificate.
    fn require_trusted(written: &ConfigText, config: &Config) -> Result<()> {
        let concerns = Self::concerns(written, config)
            .context("cannot check which users can change the files of the configuration")?;
        Self::refuse_untrusted(concerns)
    }

    /// Returns the paths of the configuration that other users can change.
    ///
    /// # Errors
    /// Fails if a file system does not answer within 2 seconds.
    fn concerns(written: &ConfigText, config: &Config) -> io::Result<Vec<Concern>> {
        let (written, config) = (written.clone(), config.clone());
        let work = move || trusted_paths::concerns(written.file.as_deref(), &written.text, &config);
        within(std::path::Path::new("trusted"), LOOK * 2, work, drop)
    }

    /// Returns an error for the first fatal concern, and logs the concerns before it as warnings.
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
        let listen = |kind| signal(kind).context("cannot install the daemon's signal handlers");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
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

/// The result of an operation, for the logs.
enum Logged {
    /// The operation was done.
    Done {
        /// The number of the policy that a start or a change of the configuration made active; `None` for any other
        /// operation.
        policy: Option<u64>,
    },
    /// The operation was done, and had nothing to change.
    NoChange,
    /// The operation was refused for this reason.
    Refused(String),
}

impl Logged {
    /// Returns the result of an operation that was done, and made no configuration active.
    fn done() -> Self {
        Self::Done { policy: None }
    }
}

/// A running daemon.
pub struct Daemon {
    options: Options,
    /// The effective state, by which the kernel judges packets unless `is_inactive`.
    state: EffectiveState,
    /// Whether `state` is not active yet, since sources have no list and `at_start` is `wait`.
    is_inactive: bool,
    /// The change that is pending confirmation, if any.
    pending: Option<Pending>,
    kernel: Kernel,
    interfaces: Interfaces,
    store: Store,
    /// The file with the addresses that were learnt for names.
    learned: LearnedFile,
    /// This host's resolvers, for an egress policy that names none.
    resolvers: HostResolvers,
    /// The time up to which truncated answers were handled, on the kernel's clock.
    truncated_until: Duration,
    /// Whether the metadata in the kernel (names and states of sources, for reports) is older than `state`.
    is_meta_outdated: bool,
    schedule: Schedule,
    expiries: Expiries,
    /// The first reads of file sources; `None` once the start is announced.
    opening: Option<Opening>,
    late: Late,
    /// Last-good lists that were read from disk after the time limit of a start or a change.
    late_lists: UnboundedReceiver<(Source, Feed)>,
    control: Control,
    /// The reload in progress, if any.
    reloading: Option<Reloading>,
    refreshes: Refreshes,
    hook_queue: HookQueue,
    notify: Notify,
    started: Timestamp,
    /// The time since which packets have been filtered without interruption; `None` before the first activation.
    since: Option<Timestamp>,
    /// The warnings about the configuration.
    warnings: Vec<String>,
    /// The warning that the configured `control_group` has no access to the control socket; `None` if it has.
    access_warning: Option<String>,
}

impl Daemon {
    /// Runs the event loop until a signal arrives or the filter is detached.
    pub async fn serve(mut self, mut signals: Signals) -> Result<()> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.publish_status();
        self.open_sources();
        loop {
            let next = self.schedule.next_due();
            let next_time = self.next_time();
            tokio::select! {
                _ = signals.interrupt.recv() => return Box::pin(self.interrupted()).await,
                _ = signals.terminate.recv() => return Box::pin(self.terminated()).await,
                _ = signals.hangup.recv() => self.reload(None),
                _ = look.tick() => {
                    self.notify.alive();
                    if self.is_detached().await? {
                        return Ok(());
                    }
                    self.look_after_interfaces().await;
                    self.refresh_egress().await;
                    self.follow_resolvers().await;
                    self.store_learned_if_due().await;
                    self.handle_timers().await;
                    self.update_meta().await;
                    self.store.catch_up_journal();
                    // The kernel's clock decides, also if this process was stopped for some time.
                    if self.is_too_late().await {
                        self.roll_back_unconfirmed().await?;
                        self.publish_status();
                    }
                }
                () = self.interfaces.changed() => {
                    if self.is_detached().await? {
                        return Ok(());
                    }
                    self.look_after_interfaces().await;
                    self.refresh_egress().await;
                }
                request = self.control.request() => {
                    self.handle_request(request).await;
                    self.start_filtering_if_complete().await?;
                    self.publish_status();
                }
                () = opening_ends(self.opening.as_ref()), if self.opening.is_some() => self.announce(),
                Some((source, feed)) = self.late_lists.recv() => {
                    self.take_late_list(&source, feed).await;
                    self.start_filtering_if_complete().await?;
                    self.publish_status();
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    self.schedule.fetch_due(&self.state);
                }
                () = sleep_until(next_time.unwrap_or_else(Instant::now)), if next_time.is_some() => {
                    self.handle_timers().await;
                    if self.is_too_late().await {
                        self.roll_back_unconfirmed().await?;
                    }
                    self.publish_status();
                }
                ready = self.schedule.ready() => match ready {
                    Ready::Written(paths) => {
                        self.schedule.schedule_files(self.state.policy(), &paths);
                    }
                    Ready::Fetched(gathered) => {
                        let name = gathered.source.name.clone();
                        self.handle_fetch(*gathered).await;
                        self.start_filtering_if_complete().await?;
                        self.note_opened(&name);
                        self.publish_status();
                    }
                },
                prepared = Reloading::prepared(&mut self.reloading), if self.reloading.is_some() => {
                    self.commit_reload(prepared).await;
                    self.publish_status();
                }
            }
        }
    }

    /// Returns the time of the next expiry of an added prefix or the deadline of the pending change, whichever is
    /// first; `None` if there is neither.
    fn next_time(&self) -> Option<Instant> {
        let confirm = self.pending.as_ref().map(|pending| pending.deadline);
        [self.expiries.next(), confirm].into_iter().flatten().min()
    }

    /// Logs an operation, and appends it to the event log.
    fn log(&self, actor: Actor, operation: Operation, logged: Logged) {
        let mut entry = AuditEntry {
            time: Timestamp::now(),
            actor,
            operation,
            policy: None,
            refused: None,
            no_change: false,
            generation: self.kernel.generation(),
        };
        match logged {
            Logged::Done { policy } => entry.policy = policy,
            Logged::NoChange => entry.no_change = true,
            Logged::Refused(reason) => entry.refused = Some(reason),
        }
        let (actor, summary) = (&entry.actor, entry.summary());
        match &entry.refused {
            Some(reason) => {
                warn!(target: "allowlist::request-refused", "{actor}: {summary}: refused, nothing was changed: {reason}");
            }
            None if entry.no_change => info!("{actor}: {summary}: no change"),
            None => info!("{actor}: {summary}"),
        }
        self.store.add_operation(entry);
    }

    /// Updates the status that the API and the service manager report.
    fn publish_status(&self) {
        let now = (Instant::now(), Timestamp::now());
        let at = |due: Instant| now.1 + due.saturating_duration_since(now.0);
        let newest = self.store.journal.known().newest();
        let missing = self.state.missing();
        let sources = self.state.sources();
        let ids = self.control.rejected_ids();
        let published = ids.iter().map(|(source, id)| (&**source, &**id));
        if !published.eq(sources.rejected_ids()) {
            self.control.publish_rejected(sources.rejected());
        }
        let config = self.state.config();
        self.control.set_status(DaemonStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
            configuration: self.state.written().origin(),
            configured_mode: Some(config.mode),
            policy: self.store.policy_number(),
            config_suppressed: newest
                .is_some_and(|policy| policy.change.suppressed_config_crc.is_some()),
            failing_open: config.at_start == AtStart::Pass && !missing.is_empty(),
            missing_sources: missing,
            inactive: self.is_inactive,
            missing_interfaces: absent(&config.interfaces),
            pending: self.pending.as_ref().map(|pending| PendingChange {
                what: pending.what.clone(),
                by: pending.by.clone(),
                until: at(pending.deadline),
            }),
            warnings: self.state_warnings(),
            next_fetch: self
                .schedule
                .due()
                .map(|(name, due)| (name.clone(), at(due)))
                .collect(),
        });
        self.notify.status(&self.state_line());
    }

    /// Returns the warnings about the present state: one if a command has set another mode than the configuration's,
    /// one if `control_group` is not applied, and those about the configuration.
    fn state_warnings(&self) -> Vec<String> {
        let (mode, configured) = (self.state.mode(), self.state.config().mode);
        let by_command = (mode != configured).then(|| {
            let configured = configured.name();
            format!(
                "mode {} was set by command, but {} states {configured}; to return to mode {configured}, run `allowlist mode {configured}`",
                mode.name(),
                self.state.written().origin(),
            )
        });
        let warnings = self.warnings.iter().cloned();
        let access = self.access_warning.clone();
        by_command
            .into_iter()
            .chain(access)
            .chain(warnings)
            .collect()
    }

    /// Prints the line that ends the start, and notifies the service manager. A closed standard output is ignored.
    fn announce_ready(&mut self) {
        self.opening = None;
        let line = self.state_line();
        let _ = writeln!(io::stdout(), "ready: {}", on_one_line(&line));
        self.notify.ready(&line);
    }

    fn state_line(&self) -> String {
        if self.is_inactive {
            return format!(
                "waiting for the lists of {}; the configuration is not active yet",
                self.state.missing().join(", ")
            );
        }
        let feeds = self.state.sources().feeds();
        let prefixes: usize = feeds.values().map(|feed| feed.len()).sum();
        let interfaces = &self.state.config().interfaces;
        let absent = absent(interfaces);
        let mut there = interfaces.clone();
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
            "{} {on}, {} from {}, generation {}",
            match self.state.mode() {
                Mode::Enforce => "filtering",
                Mode::Observe => "observing (nothing is dropped)",
            },
            counted(prefixes, "prefix"),
            counted(feeds.len(), "source"),
            self.kernel.generation()
        )
    }
}
