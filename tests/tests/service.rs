//! The program as a service: its notifications to a service manager, and its unit under systemd.

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use allowlist_tests::lab::{Ended, Manager, Program, Testbed, eventually};
use allowlist_tests::{require_root, skip};
use anyhow::{Context, ensure};
use expect_test::expect;
use nix::sys::signal::Signal;

const UNIT: &str = include_str!("../../dist/allowlist.service");

/// Long enough for a machine that is busy building.
const SOON: Duration = Duration::from_mins(3);
/// The wait for a packet that must not arrive.
const NEVER: Duration = Duration::from_millis(200);

/// A port that the peer of a site reaches, and one that it does not reach.
const OPEN: u16 = 7000;
const CLOSED: u16 = 7001;
const CONFIG: &str = r#"
interfaces = ["eth0"]
[services.open]
ports = ["udp/7000"]
allow = ["peer"]
[services.closed]
ports = ["udp/7001"]
allow = ["elsewhere"]
[sources.peer]
prefixes = ["198.51.100.2"]
[sources.elsewhere]
prefixes = ["203.0.113.0/24"]
"#;

/// Receives one notification: its assignments by name.
fn receive(manager: &UnixDatagram) -> anyhow::Result<BTreeMap<String, String>> {
    let mut bytes = [0; 4096];
    let length = manager.recv(&mut bytes).context("no notification")?;
    let text = std::str::from_utf8(&bytes[..length])?;
    let assignments = text.lines().map(|line| {
        let (name, value) = line.split_once('=').context(line.to_owned())?;
        Ok((name.to_owned(), value.to_owned()))
    });
    assignments.collect()
}

/// Waits for the notification with this assignment, and returns it. Skips others.
fn wait_for(
    manager: &UnixDatagram,
    name: &str,
    value: &str,
) -> anyhow::Result<BTreeMap<String, String>> {
    loop {
        let message = receive(manager).with_context(|| format!("waiting for {name}={value}"))?;
        if message.get(name).is_some_and(|found| found == value) {
            return Ok(message);
        }
    }
}

#[test]
fn notifications_follow_the_protocol_of_systemd() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let socket = site.scratch.file("notify");
    let manager = UnixDatagram::bind(&socket)?;
    manager.set_read_timeout(Some(SOON))?;
    let list = site.scratch.write("lab.txt", "203.0.113.0/25\n")?;
    let seen = site.scratch.file("environment");
    let hook = format!(
        "{}[sources.lab]\nfile = \"lab.txt\"\n[on_change]\ncommand = [\"/bin/sh\", \"-c\", \"env > {seen}.new; mv {seen}.new {seen}\"]\n",
        CONFIG.replace("\"elsewhere\"", "\"elsewhere\", \"lab\""),
        seen = seen.display()
    );
    let config = site.scratch.write("allowlist.toml", hook)?;
    let mut run = site.command(&["run".as_ref(), "--config".as_ref(), config.as_os_str()])?;
    run.env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "1000000");
    let mut run = Program::start(run)?;
    let ready = wait_for(&manager, "READY", "1")?;
    expect!["filtering eth0, 3 prefixes from 3 sources, generation 1"].assert_eq(&ready["STATUS"]);
    // The filter is attached before READY=1.
    check_filters(&site)?;
    wait_for(&manager, "WATCHDOG", "1")?;
    wait_for(&manager, "WATCHDOG", "1")?;
    for _ in 0..2 {
        run.signal(Signal::SIGHUP)?;
        let reloading = wait_for(&manager, "RELOADING", "1")?;
        let time: u64 = reloading["MONOTONIC_USEC"].parse()?;
        ensure!(time > 0, "{reloading:?}");
        wait_for(&manager, "READY", "1")?;
    }
    // The command of [on_change] is not the service, so it inherits no notification socket.
    fs::write(&list, "203.0.113.0/26\n")?;
    eventually(|| Ok(seen.exists())).with_context(|| run.output())?;
    let environment = fs::read_to_string(&seen)?;
    ensure!(
        environment.contains("ALLOWLIST_SOURCE=lab"),
        "{environment}"
    );
    ensure!(!environment.contains("NOTIFY_SOCKET"), "{environment}");
    // READY=1 ends the reload of an invalid configuration too; without it the service would stay in state `reloading`.
    fs::write(&config, "interfaces = 7\n")?;
    run.signal(Signal::SIGHUP)?;
    wait_for(&manager, "RELOADING", "1")?;
    wait_for(&manager, "READY", "1")?;
    run.signal(Signal::SIGTERM)?;
    wait_for(&manager, "STOPPING", "1")?;
    ensure!(run.wait(SOON)?.success(), "{}", run.output());
    Ok(())
}

/// Returns true if a datagram of the peer arrives at this port of the host.
fn reaches(site: &Testbed, port: u16) -> anyhow::Result<bool> {
    let inbox = site.host.run(|| UdpSocket::bind(("198.51.100.1", port)))?;
    inbox.set_read_timeout(Some(NEVER))?;
    let sender = site.peer.run(|| UdpSocket::bind(("198.51.100.2", 0)))?;
    sender.send_to(b"hello", ("198.51.100.1", port))?;
    Ok(inbox.recv(&mut [0; 16]).is_ok())
}

fn check_filters(site: &Testbed) -> anyhow::Result<()> {
    ensure!(reaches(site, OPEN)?, "{OPEN} is not reached");
    ensure!(!reaches(site, CLOSED)?, "{CLOSED} is reached");
    Ok(())
}

/// Returns the value of a line of `/proc/PID/status`.
fn status_of(manager: &Manager, pid: &str, name: &str) -> anyhow::Result<String> {
    let status = fs::read_to_string(manager.file(&format!("/proc/{pid}/status")))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let value = line.with_context(|| format!("no {name} in {status}"))?;
    Ok(value.trim_start_matches(':').trim().to_owned())
}

#[test]
fn the_unit_runs_under_systemd() -> anyhow::Result<()> {
    require_root!();
    if Manager::program().is_none() {
        skip!("this machine has no systemd");
    }
    let site = Testbed::new()?;
    // The manager has no journal, and /etc is read-only.
    let drop_in = "[Service]\n\
        Environment=ALLOWLIST_CONFIG=/usr/local/etc/allowlist.toml\n\
        StandardOutput=append:/run/allowlist.log\n\
        StandardError=append:/run/allowlist.log\n";
    let units = [
        ("allowlist.service", UNIT),
        ("allowlist.service.d/test.conf", drop_in),
    ];
    let manager = Manager::start(&site, &units)?;
    let config = manager.file("/usr/local/etc/allowlist.toml");
    fs::write(&config, CONFIG)?;
    let show = |what: &str| manager.ask(&["show", "--value", "--property", what, "allowlist"]);
    let log = || fs::read_to_string(manager.file("/run/allowlist.log")).unwrap_or_default();

    ensure!(
        reaches(&site, CLOSED)?,
        "the port is closed before the start"
    );
    manager.ask(&["start", "allowlist"]).with_context(log)?;
    check_filters(&site).with_context(log)?;
    ensure!(!show("StatusText")?.is_empty());

    let first = show("MainPID")?;
    // Exactly CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN.
    for set in ["CapEff", "CapBnd"] {
        let set = status_of(&manager, &first, set)?;
        ensure!(
            u64::from_str_radix(&set, 16)? == 1 << 39 | 1 << 38 | 1 << 12,
            "{set}"
        );
    }
    ensure!(status_of(&manager, &first, "NoNewPrivs")? == "1");
    ensure!(
        status_of(&manager, &first, "Seccomp")? == "2",
        "no seccomp filter"
    );

    // After a crash the filter stays attached, and the next daemon adopts it.
    manager.ask(&["kill", "--signal", "KILL", "allowlist"])?;
    check_filters(&site)?;
    eventually(|| Ok(show("ActiveState")? == "active" && show("MainPID")? != first))
        .with_context(log)?;
    check_filters(&site)?;

    // The new configuration is active when the reload ends; the reload of an invalid one fails and changes nothing.
    fs::write(
        &config,
        CONFIG.replace("\"elsewhere\"", "\"elsewhere\", \"peer\""),
    )?;
    manager.ask(&["reload", "allowlist"]).with_context(log)?;
    ensure!(reaches(&site, CLOSED)?, "{}", log());
    fs::write(&config, "interfaces = 7\n")?;
    let refused = manager.systemctl(&["reload", "allowlist"])?;
    ensure!(refused.code != Some(0), "{refused:?}");
    ensure!(show("ActiveState")? == "active" && reaches(&site, CLOSED)?);
    fs::write(&config, CONFIG)?;
    manager.ask(&["reload", "allowlist"]).with_context(log)?;
    check_filters(&site)?;

    // A stop leaves the filter attached.
    manager.ask(&["stop", "allowlist"])?;
    ensure!(show("Result")? == "success", "{}", log());
    check_filters(&site)?;
    manager.ask(&["start", "allowlist"]).with_context(log)?;
    check_filters(&site)?;

    // `detach` ends the service, which is not restarted.
    let detached = manager.run("/usr/local/sbin/allowlist", &["detach"])?;
    ensure!(detached.code == Some(0), "{detached:?}");
    eventually(|| Ok(show("ActiveState")? == "inactive")).with_context(log)?;
    ensure!(show("Result")? == "success", "{}", log());
    ensure!(reaches(&site, CLOSED)?);
    Ok(())
}

/// Runs `systemd-analyze` on the unit. Another program replaces allowlist, which is not installed.
fn analyzed(arguments: &[&str]) -> anyhow::Result<Option<Ended>> {
    let folder = tempfile::tempdir()?;
    let unit = folder.path().join("allowlist.service");
    fs::write(
        &unit,
        UNIT.replace("/usr/local/sbin/allowlist", "/usr/bin/true"),
    )?;
    if !Path::new("/usr/bin/systemd-analyze").exists() {
        return Ok(None);
    }
    let mut command = Command::new("/usr/bin/systemd-analyze");
    command.args(arguments).arg(&unit);
    Ended::of(command).map(Some)
}

#[test]
fn systemd_analyze_accepts_the_unit() -> anyhow::Result<()> {
    // The manual page of the unit is not installed.
    let Some(verified) = analyzed(&["verify", "--man=no"])? else {
        skip!("this machine has no systemd-analyze");
    };
    ensure!(
        verified.code == Some(0) && verified.stdout.is_empty() && verified.stderr.is_empty(),
        "{verified:?}"
    );
    Ok(())
}

/// systemd rates the exposure of a unit from 0 (isolated) to 10.
#[test]
fn the_exposure_of_the_unit_is_below_2() -> anyhow::Result<()> {
    let Some(rated) = analyzed(&["security", "--offline=true", "--no-pager"])? else {
        skip!("this machine has no systemd-analyze");
    };
    ensure!(rated.code == Some(0), "{rated:?}");
    let overall = rated
        .stdout
        .lines()
        .find_map(|line| line.split_once("Overall exposure level for allowlist.service: "))
        .context("no overall exposure level")?;
    let level = overall.1.split(' ').next().unwrap_or_default();
    ensure!(level.parse::<f64>()? < 2.0, "{}", rated.stdout);
    Ok(())
}
