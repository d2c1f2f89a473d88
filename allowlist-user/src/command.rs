//! What each command does: from what was typed to a call into the library and a printed report.

mod lists;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use log::{info, warn};

use crate::cli::{Cli, Command, Output, Paths, Run, Small, Watch, generate};
use crate::config::{AttachMode, Config};
use crate::control;
use crate::daemon::{self, Daemon, Signals};
use crate::dataplane::{self, Seen, View};
use crate::policy::Mode;
use crate::report::{self, Epoch, Status};

const CONFIG: &str = "/etc/allowlist/allowlist.toml";

/// Warnings and errors as lines on standard error; `RUST_LOG` says which (default: info and up).
pub fn start_log() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format(|out, record| {
            let level = match record.level() {
                log::Level::Error => "error: ",
                log::Level::Warn => "warning: ",
                _ => "",
            };
            writeln!(out, "{level}{}", record.args())
        })
        .init();
}

/// Carries out what was typed.
pub fn run(cli: Cli) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let done = runtime.block_on(async {
        let paths = cli.paths;
        match cli.command {
            Command::Run(run) => filter(paths, run).await,
            Command::Check(check) => lists::check(&paths, check).await,
            Command::Fetch(options) => lists::fetch(&paths, &options).await,
            Command::Providers(options) => lists::providers(&options),
            Command::Diff(options) => lists::diff(&paths, &options).await,
            Command::History(options) => lists::history(&paths, &options),
            Command::Accept(options) => lists::accept(&paths, &options).await,
            Command::Export(options) => lists::export(&paths, &options).await,
            Command::Status(output) => print_status(&paths, output).await,
            Command::List(output) => print_list(&paths, output),
            Command::Mode(change) => set_mode(&paths, change.mode.into()).await,
            Command::Watch(options) => watch(&paths, &options).await,
            Command::Detach(output) => detach(&paths, output),
            Command::Verify(output) => verify(output),
            Command::Completions(options) => print(&generate::completions(options.shell)),
            Command::Man(options) => write_pages(&options.folder),
        }
    });
    // A fetch that hangs in a resolver must not hold up the exit.
    runtime.shutdown_background();
    done
}

async fn filter(paths: Paths, run: Run) -> Result<()> {
    dataplane::require_privileges()?;
    let mut config = config(&paths, run.small)?;
    if let Some(mode) = run.attach_mode {
        config.attach = AttachMode::from(mode);
    }
    if config.interfaces.is_empty() {
        bail!("no interface to filter on; set `interfaces` in the configuration, or give --iface");
    }
    for warning in warnings(&config) {
        warn!("{warning}");
    }
    let options = daemon::Options {
        paths,
        keep: run.keep,
        trace: run.trace,
    };
    let mut signals = Signals::listen()?;
    let daemon = tokio::select! {
        started = Daemon::start(config, options) => started?,
        // A start waits for sources only before it touches the kernel.
        () = signals.any() => bail!("interrupted before anything was attached"),
    };
    daemon.serve(signals).await
}

/// What should be thought about, on this host.
fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = config.warnings();
    // Without it nothing is known, and nothing is said.
    if let Some(own) = own_ports() {
        warnings.extend(config.own_port_warnings(&own));
    }
    if let Some(program) = config.hook.command.first()
        && !Path::new(program).is_file()
    {
        warnings.push(format!(
            "on_change: there is no program {program} on this host now, so nobody would be told"
        ));
    }
    if std::fs::read_to_string("/sys/kernel/realtime").is_ok_and(|text| text.trim() == "1") {
        warnings.push(
            "this kernel is a real-time one, on which the programs may interrupt each other: they were not made for that, and may judge and count wrongly".to_owned(),
        );
    }
    warnings
}

/// The ports from which the kernel lets this host's own connections be made.
fn own_ports() -> Option<RangeInclusive<u16>> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

async fn print_status(paths: &Paths, output: Output) -> Result<()> {
    // The kernel is asked, not the daemon: what is in force counts, whoever is still running.
    let mut status = Status::read(&paths.pin_dir, &paths.state_dir)?;
    status.daemon = control::ask(&paths.socket).await;
    if output.json {
        print_json(&status.json())
    } else {
        print(&status.text())
    }
}

fn print_list(paths: &Paths, output: Output) -> Result<()> {
    let list = report::List::read(&paths.pin_dir, &paths.state_dir)?;
    if output.json {
        print_json(&list.json())
    } else {
        print(&list.text())
    }
}

async fn set_mode(paths: &Paths, mode: Mode) -> Result<()> {
    control::ask_for_mode(&paths.socket, mode).await?;
    print(match mode {
        Mode::Enforce => "mode enforce: drops are carried out\n",
        Mode::Observe => "mode observe: everything passes\n",
    })
}

async fn watch(paths: &Paths, options: &Watch) -> Result<()> {
    let mut signals = Signals::listen()?;
    let mut watch = dataplane::Watch::open(&paths.pin_dir)?;
    let view = View::open(&paths.pin_dir)?;
    let mut observes = view.control()?.observe;
    if observes {
        info!("{}", shown_in(observes));
    }
    let epoch = Epoch::new(Timestamp::now(), dataplane::clock());
    let mut out = std::io::stdout();
    let mut left = options.count;
    while left != Some(0) {
        let seen = tokio::select! {
            seen = watch.next() => seen?,
            () = signals.any() => break,
        };
        // It may change at any time, and then the same line means something else.
        if let Ok(control) = view.control()
            && control.observe != observes
        {
            observes = control.observe;
            info!("{}", shown_in(observes));
        }
        let line = if options.json {
            report::seen_json(&seen, epoch).to_string()
        } else {
            report::seen_text(&seen, epoch)
        };
        if writeln!(out, "{line}").is_err() {
            break; // whoever reads has seen enough
        }
        match seen {
            Seen::Detached => break,
            Seen::Drop(..) => left = left.map(|left| left - 1),
            Seen::Suppressed(_) => {}
        }
    }
    Ok(())
}

fn shown_in(observe: bool) -> &'static str {
    if observe {
        "mode observe: what is shown passes all the same"
    } else {
        "mode enforce: what is shown is dropped"
    }
}

fn verify(output: Output) -> Result<()> {
    let verified = dataplane::verify(false)?;
    if output.json {
        print_json(&serde_json::json!({ "programs": verified }))
    } else {
        print(&report::verified_text(&verified))
    }
}

fn detach(paths: &Paths, output: Output) -> Result<()> {
    let interfaces = dataplane::detach_all(&paths.pin_dir)?;
    if output.json {
        return print_json(&serde_json::json!({ "detached": interfaces }));
    }
    if interfaces.is_empty() {
        print("no interface was filtered; what was left of a filter is removed\n")
    } else {
        print(&format!(
            "detached from {}: everything passes\n",
            interfaces.join(", ")
        ))
    }
}

fn write_pages(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let pages = generate::pages();
    for (name, text) in &pages {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    print(&format!(
        "wrote {} pages to {}\n",
        pages.len(),
        folder.display()
    ))
}

/// The file, or the small configuration that the options make.
fn config(paths: &Paths, mut small: Small) -> Result<Config> {
    let mut seen = BTreeSet::new();
    small.iface.retain(|name| seen.insert(name.clone()));
    if small.is_policy() {
        if let Some(file) = &paths.config {
            bail!(
                "--allow, --provider and --port make a configuration of their own, and {} (from --config or ALLOWLIST_CONFIG) is another; leave one out",
                file.display()
            );
        }
        return Ok(Config::small(
            small.iface,
            small.allow,
            small.provider,
            small.port,
        )?);
    }
    let file = paths.config.as_deref().unwrap_or(Path::new(CONFIG));
    if paths.config.is_none() && !file.exists() {
        bail!(
            "there is no {CONFIG}; write one, give another by --config, or describe a small one by --iface, --allow, --provider and --port"
        );
    }
    let mut config = Config::load(file)?;
    if !small.iface.is_empty() {
        config.interfaces = small.iface;
    }
    Ok(config)
}

fn print_json(document: &serde_json::Value) -> Result<()> {
    print(&format!("{document:#}\n"))
}

/// Prints to standard output. A reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}
