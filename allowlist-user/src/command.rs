//! The commands: each turns its arguments into calls of the library and prints a report.

mod change;
mod check;
mod detach;
mod explain;
mod learn;
mod lists;
mod progress;
mod providers;
mod watch;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use allowlist_dataplane::AttachModeRequest;
use allowlist_dataplane::netlink::index_of;
use allowlist_dataplane::sockets;
use allowlist_dataplane::{self as dataplane, View};
use allowlist_files::bounded;
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::error_code::bail_with;
use allowlist_policy::hints;
use allowlist_policy::text::{printable, printable_json};
use anyhow::{Context as _, Result};
use log::{debug, info, warn};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;

use crate::cli::{
    Cli, Command, FlowsCommand, InlineConfig, List, Log, Output, Paths, Require, Run,
    StatusOptions, generate,
};
use crate::config::Config;
use crate::control::Client;
use crate::daemon::{self, Daemon, Signals};
use crate::error_code::code_of;
use crate::journal::ConfigText;
use crate::notify::Notify;
use crate::report::{self, Added, AuditLog, PolicyList, Report, Sources, Status};
use crate::trusted_paths;

const CONFIG: &str = "/etc/allowlist/allowlist.toml";
/// The exit code of a query whose answer is no.
const NO: u8 = 3;
/// The exit code of a change that the lockout check refused.
const WOULD_CUT: u8 = 4;
/// The limit of open files below which a warning is logged; enough for a host with a few interfaces.
const FEWEST_FILES: u64 = 256;
/// The limit of open files that is enough for 64 interfaces.
const MANY_FILES: u64 = 4096;

/// Returns the line that reports an error: `error[CODE]: TEXT`. If a resource limit of this process is the cause, a
/// hint follows.
pub fn error_text(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let label = match code_of(error) {
        ErrorCode::Failed => "error".to_owned(),
        code => format!("error[{code}]"),
    };
    match hints::limit(&text) {
        Some(hint) => format!("{label}: {text}; {hint}"),
        None => format!("{label}: {text}"),
    }
}

/// Returns the exit code of the program for an error.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    match code_of(error) {
        ErrorCode::Lockout => ExitCode::from(WOULD_CUT),
        _ => ExitCode::FAILURE,
    }
}

/// Runs a command, and returns the exit code of the program.
///
/// # Errors
/// Returns the error of the command; [`exit_code`] has the exit code for it.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context(
        "cannot start the threads of this process (check its limits of processes and memory)",
    )?;
    let done = runtime.block_on(async {
        let paths = cli.paths;
        if !matches!(cli.command, Command::Run(_)) {
            report::fit_to_terminal();
        }
        match cli.command {
            Command::Explain(options) => return explain::explain(&paths, options).await,
            Command::Status(output) => return status(&paths, output).await,
            Command::Run(run) => Box::pin(filter(paths, run)).await,
            Command::Check(check) => return check::check(&paths, check).await,
            Command::Fetch(options) => lists::fetch(&paths, &options).await,
            Command::Providers(options) => providers::providers(&paths, &options).await,
            Command::Diff(options) => lists::diff(&paths, &options).await,
            Command::History(options) => lists::history(&paths, &options),
            Command::Accept(options) => change::accept(&paths, options).await,
            Command::Add(options) => change::add(&paths, options).await,
            Command::Remove(options) => change::remove(&paths, options).await,
            Command::Refresh(options) => change::refresh(&paths, options).await,
            Command::Reload(options) => change::reload(&paths, options).await,
            Command::Confirm(output) => change::confirm(&paths, output).await,
            Command::Rollback(options) if options.list => {
                let read = || PolicyList::read(&paths.state_dir);
                show(&paths, "policies", options.output, read).await
            }
            Command::Rollback(options) => change::rollback(&paths, options).await,
            Command::Log(options) => log_of(&paths, &options).await,
            Command::Sources(output) => sources(&paths, output).await,
            Command::Export(options) => lists::export(&paths, &options).await,
            Command::List(options) => list(&paths, &options).await,
            Command::Mode(options) => change::mode(&paths, options).await,
            Command::Flows { command } => flows(&paths, &command),
            Command::Watch(options) if options.egress => watch::calls(&paths, &options).await,
            Command::Watch(options) => watch::packets(&paths, &options).await,
            Command::Learn(options) => learn::learn(&paths, options),
            Command::Detach(options) => detach::run(&paths, &options),
            Command::Verify(output) => verify(output),
            Command::Completions(options) => print(&generate::completions(options.shell)),
            Command::Version => print(concat!("allowlist ", env!("CARGO_PKG_VERSION"), "\n")),
            Command::Man(options) => write_pages(&options.folder),
        }?;
        Ok(ExitCode::SUCCESS)
    });
    // A fetch that hangs in a resolver must not hold up the exit.
    runtime.shutdown_background();
    done
}

async fn filter(paths: Paths, run: Run) -> Result<()> {
    // First, so that no signal is lost.
    let mut signals = Signals::listen()?;
    let notify = Notify::from_environment();
    dataplane::require_privileges()?;
    raise_file_limit();
    if dataplane::has_private_pins(&paths.pin_dir) {
        warn!(
            "{} is mounted in a private mount namespace only, so the filter ends with the last process of that namespace, and not only by `allowlist detach`; use nsenter --net instead of ip netns exec, or mount the host's /sys/fs/bpf into the container",
            paths.pin_dir.display()
        );
    }
    let is_try = run.inline.is_policy() && !run.inline.enforce;
    let mut written = load_config_text(&paths, run.inline)?;
    if is_try {
        info!(
            "observe mode: every packet passes, and drops are only counted; --enforce or `allowlist mode enforce` drops packets"
        );
    }
    if let Some(file) = &mut written.file {
        // A reload reads the file again, after a possible change of the working directory.
        *file = std::path::absolute(&file).with_context(|| {
            format!(
                "cannot make the path of the configuration file {} absolute",
                file.display()
            )
        })?;
    }
    let options = daemon::Options {
        written,
        attach: run.attach_mode.map(AttachModeRequest::from),
        keep: run.keep,
        trace: run.trace,
        apply: change::care(&run.care),
        warnings,
        paths,
    };
    let daemon = Daemon::start(options, notify, &mut signals).await?;
    Box::pin(daemon.serve(signals)).await
}

/// Raises this process's limit of open files as far as permitted, since each interface, list and connection uses some.
fn raise_file_limit() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    let wanted = hard.min(MANY_FILES);
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_err() {
        debug!("cannot raise the limit of open files from {soft} to {wanted}");
    }
    if hard < FEWEST_FILES {
        warn!(
            "the limit of open files is {hard}, and the daemon may need more than {FEWEST_FILES}; set LimitNOFILE={MANY_FILES} in the unit, or run `ulimit -n {MANY_FILES}` before the start"
        );
    }
}

/// Returns the warnings about a configuration that depend on this host.
fn warnings(config: &Config) -> Vec<String> {
    let mut config = config.clone();
    if let Cow::Owned(policy) = config.policy.on_interfaces(&config.interfaces, index_of) {
        config.policy = policy;
    }
    let mut warnings = config.warnings();
    warnings.extend(config.ssh_warning());
    // Without the list of own ports there is no warning.
    if let Ok(own) = sockets::own_ports() {
        warnings.extend(config.own_port_warnings(&own));
    }
    if let Some(program) = config.hook.command.first() {
        let path = Path::new(program).to_owned();
        match bounded::within(
            Path::new(program),
            bounded::PATIENCE,
            move || path.is_file(),
            drop,
        ) {
            Ok(true) => {}
            Ok(false) => warnings.push(format!(
                "on_change: this host has no program {program}, so no event can be delivered; install it, or correct `command`"
            )),
            Err(error) => warnings.push(format!("on_change: cannot check whether the program {program} exists: {error}")),
        }
    }
    if std::fs::read_to_string("/sys/kernel/realtime").is_ok_and(|text| text.trim() == "1") {
        warnings.push(
            "this is a real-time kernel (PREEMPT_RT), on which eBPF programs preempt each other: verdicts and counters may be wrong; use a kernel without PREEMPT_RT".to_owned(),
        );
    }
    warnings
}

/// Returns a warning for each path that users other than root can change: the configuration file, and the paths in it.
fn path_warnings(paths: &Paths, config: &Config) -> Vec<String> {
    let file = paths.config.as_deref().unwrap_or(Path::new(CONFIG));
    let text = Config::file_text(file).unwrap_or_default();
    let concerns = trusted_paths::concerns(Some(file), &text, config);
    concerns
        .into_iter()
        .map(|concern| concern.message)
        .collect()
}

/// Prints the report that `read` returns. If `read` fails and this user is not root, prints the daemon's report `name`
/// instead.
async fn show<R: Report>(
    paths: &Paths,
    name: &str,
    output: Output,
    read: impl FnOnce() -> Result<R>,
) -> Result<()> {
    match read() {
        Ok(report) => print_report(&report, output),
        Err(error) => print(&asked(paths, name, output, error).await?),
    }
}

fn print_report(report: &impl Report, output: Output) -> Result<()> {
    if output.json {
        print_json(&report.json())
    } else {
        print(&report::wrapped(&report.text()))
    }
}

/// Requests the report `name` from the daemon, after a user's own attempt to read it has failed with `error`.
///
/// # Errors
/// Returns `error` if the request fails too, and for root without a request.
async fn asked(paths: &Paths, name: &str, output: Output, error: anyhow::Error) -> Result<String> {
    if geteuid().is_root() {
        return Err(error);
    }
    let client = Client::new(&paths.socket);
    client.report(name, output.json).await.map_err(|_| error)
}

async fn status(paths: &Paths, options: StatusOptions) -> Result<ExitCode> {
    let output = options.output;
    let must_enforce = options.require == Some(Require::Enforce);
    // The kernel is queried, not the daemon: the active state counts, whether or not a daemon runs.
    let is_so = match read_status(paths).await {
        Ok(status) => {
            print_report(&status, output)?;
            if must_enforce {
                status.is_filtering()
            } else {
                status.is_as_configured()
            }
        }
        Err(error) if code_of(&error) == ErrorCode::NothingAttached => {
            if output.json {
                print_json(&serde_json::json!({
                    "as_configured": false,
                    "filtering": false,
                    "interfaces": [],
                }))?;
            } else {
                print(&format!("{error}\n"))?;
            }
            false
        }
        Err(error) => {
            let as_json = Output { json: true };
            let json = asked(paths, "status", as_json, error).await?;
            let client = Client::new(&paths.socket);
            print(&client.report("status", output.json).await?)?;
            let json: serde_json::Value =
                serde_json::from_str(&json).context("cannot parse the daemon's report `status`")?;
            let key = if must_enforce {
                "filtering"
            } else {
                "as_configured"
            };
            json[key] == true
        }
    };
    Ok(answer(is_so))
}

async fn read_status(paths: &Paths) -> Result<Status> {
    let mut status = Status::read(&paths.pin_dir, &paths.state_dir)?;
    status.daemon = Client::new(&paths.socket).live().await;
    Ok(status)
}

/// Returns the exit code of a query: 0 if the answer is yes (`is_so`), otherwise [`NO`].
fn answer(is_so: bool) -> ExitCode {
    if is_so {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NO)
    }
}

async fn sources(paths: &Paths, output: Output) -> Result<()> {
    match read_status(paths).await {
        Ok(status) => print_report(&Sources(status), output),
        Err(error) => print(&asked(paths, "sources", output, error).await?),
    }
}

async fn list(paths: &Paths, options: &List) -> Result<()> {
    if options.added {
        let read = || Added::read(&paths.state_dir);
        return show(paths, "added", options.output, read).await;
    }
    let (only, service) = (options.only.as_ref(), options.service.as_deref());
    let mut query = url::form_urlencoded::Serializer::new("list?".to_owned());
    query.extend_pairs(only.map(|only| ("only", only.to_string())));
    query.extend_pairs(service.map(|name| ("service", name)));
    let query = query.finish();
    let read = || report::List::read(&paths.pin_dir)?.narrow(only, service);
    show(paths, query.trim_end_matches('?'), options.output, read).await
}

fn flows(paths: &Paths, command: &FlowsCommand) -> Result<()> {
    let (report, output) = match command {
        FlowsCommand::List { prefix, output } => {
            let view = View::open(&paths.pin_dir)?;
            let report = report::Flows {
                room: Some(view.flows()?.0),
                flows: view.tracked(prefix.as_ref())?,
            };
            (report, output)
        }
        FlowsCommand::Cut { prefix, output } => {
            let view = View::open_for_writing(&paths.pin_dir)?;
            let report = report::Flows {
                room: None,
                flows: view.cut(prefix)?,
            };
            (report, output)
        }
    };
    print_report(&report, *output)
}

async fn log_of(paths: &Paths, options: &Log) -> Result<()> {
    let read = || AuditLog::read(&paths.state_dir, Some(options.count));
    let name = format!("log?count={}", options.count);
    show(paths, &name, options.output, read).await
}

fn verify(output: Output) -> Result<()> {
    let verified = dataplane::verify(false)?;
    if output.json {
        print_json(&serde_json::json!({ "programs": verified }))
    } else {
        print(&report::verified_text(&verified))
    }
}

fn write_pages(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| {
        format!(
            "cannot create the folder {} for the man pages",
            folder.display()
        )
    })?;
    let pages = generate::pages();
    for (name, text) in &pages {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    print(&format!(
        "wrote {} man pages to {}\n",
        pages.len(),
        folder.display()
    ))
}

/// Returns the parsed configuration: of the file, or the one that the command-line options define.
fn config(paths: &Paths, inline: InlineConfig) -> Result<Config> {
    let written = load_config_text(paths, inline)?;
    let file = written.file.as_deref();
    let mut config = Config::parse(&written.text, file.unwrap_or(Path::new("the command line")))?;
    if !written.interfaces.is_empty() {
        config.interfaces = written.interfaces;
    }
    Ok(config)
}

/// Returns the text of the configuration: of the file, or the one that the command-line options define.
fn load_config_text(paths: &Paths, mut inline: InlineConfig) -> Result<ConfigText> {
    let mut seen = BTreeSet::new();
    inline.iface.retain(|name| seen.insert(name.clone()));
    if inline.is_policy() {
        if let Some(file) = &paths.config {
            bail_with!(
                InvalidRequest,
                "--allow, --provider and --port define a configuration, but a configuration file is given too: {} (by --config or ALLOWLIST_CONFIG); use only one of them",
                file.display()
            );
        }
        let text =
            Config::inline_toml(inline.mode(), &inline.allow, &inline.provider, &inline.port);
        // Its errors name the options.
        Config::from_inline(
            inline.iface.clone(),
            inline.allow,
            inline.provider,
            inline.port,
        )?;
        return Ok(ConfigText::new(None, text, inline.iface));
    }
    let file = paths.config.as_deref().unwrap_or(Path::new(CONFIG));
    if inline.enforce {
        bail_with!(
            InvalidRequest,
            "--enforce applies to a configuration from options; {} has its own mode: set `mode` there, or run `allowlist mode enforce`",
            file.display()
        );
    }
    if paths.config.is_none() && !file.exists() {
        bail_with!(
            ConfigUnreadable,
            "{CONFIG} does not exist; create it, name another file with --config, or use --iface, --allow, --provider and --port"
        );
    }
    let text = Config::text(file)?;
    Ok(ConfigText::new(Some(file.to_owned()), text, inline.iface))
}

fn print_json(document: &serde_json::Value) -> Result<()> {
    print(&printable_json(&format!("{document:#}\n")))
}

/// Prints a text to standard output, with control characters escaped. A closed pipe (`| head`) is no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out
        .write_all(printable(text).as_bytes())
        .and_then(|()| out.flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}
