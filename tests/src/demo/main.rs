//! `allowlist-demo`: runs the filter in network namespaces, and shows its decisions for real packets.
//!
//! `topology` creates a host with the filter, and an internet; `fixtures` has the packets with their expected decisions;
//! `probe` sends them; `egress` runs programs that connect; `report` prints the results. Invariant: all kernel objects belong to this process, so the kernel
//! removes them at its end.

mod counters;
mod egress;
mod fixtures;
mod probe;
mod report;
mod topology;

use std::process::ExitCode;

use allowlist_tests::skip::is_root;
use anyhow::ensure;
use clap::Parser;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use topology::Topology;

/// Sends packets from allowed and other addresses through the filter, in private network namespaces, and
/// shows the decision for each.
#[derive(Parser)]
#[command(name = "allowlist-demo")]
struct Options {
    /// Fetch PagerDuty's list from PagerDuty instead of a copy on loopback.
    #[arg(long)]
    online: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    /// Be one of the programs that the egress policy judges: resolve a name by this name server, and connect.
    #[arg(long, hide = true, value_name = "SERVER")]
    connect_by: Option<std::net::SocketAddr>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    if let Some(server) = options.connect_by {
        return egress::connect_by(server);
    }
    ensure!(
        is_root(),
        "the demo needs root, to make network namespaces and to load a BPF program: run it with sudo"
    );
    end_on_signals()?;

    let pagerduty = topology::pagerduty(options.online)?;
    let packets = fixtures::packets(&pagerduty);
    let topology = Topology::new(&pagerduty, &packets)?;
    if !options.json {
        println!("{}\n", topology::SUMMARY);
    }
    let observed = probe::send_all(&topology, packets)?;
    let counters = topology.counters()?;
    let attempts = topology.attempts()?;
    if options.json {
        report::json(&observed, &counters, attempts.as_deref())?;
    } else {
        report::text(&observed, &counters)?;
        report::egress(attempts.as_deref())?;
    }

    let mut disagreements = report::disagreements(&observed);
    disagreements.extend(egress::disagreements(
        attempts.as_deref().unwrap_or_default(),
    ));
    for line in &disagreements {
        eprintln!("{line}");
    }
    let count = observed.len();
    ensure!(
        disagreements.is_empty(),
        "{} of {count} packets and of the calls of programs have an unexpected result, as listed above",
        disagreements.len()
    );
    if !options.json {
        println!("{count} packets, every verdict agrees with the receiving socket");
    }
    Ok(())
}

/// Exits on a signal with the exit code that shells use for it (130 for Ctrl-C). The kernel then removes child processes,
/// namespaces and mounts.
#[expect(unsafe_code, reason = "a signal handler")]
fn end_on_signals() -> nix::Result<()> {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: `_exit` is async-signal-safe, and does not return.
        unsafe { libc::_exit(128 + signal) }
    }
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler makes only one async-signal-safe call.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}
