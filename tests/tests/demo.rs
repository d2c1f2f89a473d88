//! Tests of the demo that `cargo xtask run` starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use allowlist_tests::lab::Program;
use allowlist_tests::require_root;
use expect_test::expect_file;
use nix::sys::signal::Signal;
use serde_json::Value;

/// Long enough for a machine that is busy building.
const SOON: Duration = Duration::from_mins(1);

fn demo(arguments: &[&str]) -> anyhow::Result<Program> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_allowlist-demo"));
    command.args(arguments);
    Program::start(command)
}

#[test]
fn every_verdict_agrees_with_the_socket() -> anyhow::Result<()> {
    require_root!();
    let mut demo = demo(&["--json"])?;
    let status = demo.wait(SOON)?;
    assert!(status.success(), "{}", demo.output());

    let document: Value = serde_json::from_str(&demo.stdout())?;
    let packets = document["packets"].as_array().expect("packets is an array");
    for packet in packets {
        assert_eq!(packet["delivered"], packet["verdict"] == "pass", "{packet}");
    }
    let allowed = |provider: &str, port: &str| {
        let of_provider = packets
            .iter()
            .filter(|packet| packet["provider"] == provider);
        of_provider
            .filter(|packet| packet["port"] == port && packet["reason"] == "allowed")
            .count()
    };
    for (provider, count) in [
        ("pagerduty", 17),
        ("workato", 3),
        ("freshchat", 43),
        ("office", 2),
    ] {
        assert_eq!(allowed(provider, "tcp/443"), count, "{provider}");
    }
    assert_eq!(
        (allowed("office", "tcp/22"), allowed("pagerduty", "tcp/22")),
        (2, 0)
    );

    let dropped = packets
        .iter()
        .filter(|packet| packet["verdict"] == "drop")
        .count();
    assert_eq!(document["counters"]["eth0"]["drop"]["not-allowed"], dropped);
    let results: Vec<&Value> = ["alerts", "batch"]
        .iter()
        .zip(document["egress"].as_array().expect("cgroup v2 is mounted"))
        .map(|(unit, attempt)| {
            assert_eq!(attempt["unit"], *unit);
            &attempt["result"]
        })
        .collect();
    assert_eq!(results, ["connected", "EPERM"]);
    Ok(())
}

/// The counters of passed packets are replaced, because a busy machine retransmits segments.
#[test]
fn the_text_shows_each_packet() -> anyhow::Result<()> {
    require_root!();
    let mut demo = demo(&[])?;
    let status = demo.wait(SOON)?;
    assert!(status.success(), "{}", demo.output());
    let output = demo.stdout();
    let lines = output.lines().map(|line| {
        let counted = line.trim_start().split_once("  pass ");
        counted.map_or_else(
            || line.to_owned(),
            |(_, reason)| format!("<n> pass {reason}"),
        )
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    expect_file!["snapshots/demo.txt"].assert_eq(&text);
    Ok(())
}

#[test]
fn options_are_documented() -> anyhow::Result<()> {
    let mut demo = demo(&["--help"])?;
    assert!(demo.wait(SOON)?.success(), "{}", demo.output());
    expect_file!["snapshots/demo_help.txt"].assert_eq(&demo.stdout());
    Ok(())
}

#[test]
fn signals_leave_nothing_behind() -> anyhow::Result<()> {
    require_root!();
    let mounts = || fs::read_to_string("/proc/self/mountinfo");
    let before = mounts()?;
    for (signal, code) in [
        (Signal::SIGINT, Some(130)),
        (Signal::SIGTERM, Some(143)),
        (Signal::SIGKILL, None),
    ] {
        let mut demo = demo(&[])?;
        let filter = first_child(demo.id());
        demo.signal(signal)?;
        assert_eq!(demo.wait(SOON)?.code(), code, "{}", demo.output());
        assert!(
            eventually(|| !is_running(&filter)),
            "{} still runs after {signal}",
            filter.display()
        );
    }
    assert_eq!(mounts()?, before);
    Ok(())
}

/// Returns the process that the demo starts, which is the filter.
fn first_child(parent: u32) -> PathBuf {
    let list = format!("/proc/{parent}/task/{parent}/children");
    let mut child = None;
    let has_started = eventually(|| {
        let children = fs::read_to_string(&list).unwrap_or_default();
        child = children
            .split_whitespace()
            .next()
            .map(|id| Path::new("/proc").join(id));
        child.is_some()
    });
    assert!(has_started, "the demo started no process");
    child.expect("a process")
}

/// Reports whether a process runs. A zombie has no executable.
fn is_running(process: &Path) -> bool {
    fs::read_link(process.join("exe")).is_ok()
}

fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + SOON;
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        thread::sleep(Duration::from_millis(1));
    }
    false
}
