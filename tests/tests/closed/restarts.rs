//! The host's own conversations go on while the daemon is killed, stopped and started again, also with
//! another room for flows: no answer is lost, and each is counted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use allowlist_common::abi::VERSION;
use allowlist_tests::lab::{PEER_MAC, Tap, bridge};
use allowlist_tests::require_root;
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::talk::{Server, ask_socket, talk};
use super::*;

/// Between two rounds of talk: a tap has room for only so many packets.
const PAUSE: Duration = Duration::from_millis(2);

/// Talks all the while that a task takes.
///
/// # Returns
/// How many words each conversation had.
fn talking(
    site: &Testbed,
    server: &Server,
    task: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    /// Also when the task panics: else the talk would be waited for in vain.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    // Begun before: their first packets are not seen again.
    let mut connections = Vec::new();
    let mut clients = Vec::new();
    for family in FAMILIES {
        connections.push(
            server
                .accept(site, family, SOON)?
                .context("answers to connections come in")?,
        );
        clients.push(ask_socket(site, family)?);
    }
    let stopped = AtomicBool::new(false);
    let mut words = || {
        let mut words = 0;
        while !stopped.load(Ordering::Relaxed) {
            for (client, far_end) in &mut connections {
                talk(client, far_end)?;
            }
            for client in &clients {
                ensure!(
                    server.answers_to(client, 8, SOON)?,
                    "lost after {words} words"
                );
            }
            words += 1;
            thread::sleep(PAUSE);
        }
        Ok(words)
    };
    thread::scope(|scope| {
        let talking = scope.spawn(&mut words);
        let stop = Stop(&stopped);
        task()?;
        drop(stop);
        talking.join().expect("talking does not panic")
    })
}

/// Conversations in which the host has spoken once, so that nothing but its memory tells what answers
/// it.
struct Idle(Vec<UdpSocket>);

impl Idle {
    fn new(site: &Testbed, server: &Server) -> anyhow::Result<Self> {
        let mut clients = Vec::new();
        for family in FAMILIES {
            let client = ask_socket(site, family)?;
            ensure!(server.answers_to(&client, 8, SOON)?, "{}", family.peer);
            clients.push(client);
        }
        Ok(Self(clients))
    }

    /// One more answer to each.
    fn hear(&self, server: &Server) -> anyhow::Result<()> {
        for client in &self.0 {
            let address = client.local_addr()?;
            server.udp.send_to(b"late", address)?;
            ensure!(receive(client, SOON)?.is_some(), "{address} hears nothing");
        }
        Ok(())
    }
}

#[track_caller]
fn check(attach_mode: &str) {
    let checked = || -> anyhow::Result<()> {
        let site = Testbed::new()?;
        let server = Server::start(&site)?;
        let tap = Tap::new(&site.peer)?;
        let start = |max_flows| {
            let lines = format!("max_flows = {max_flows}");
            close(&site, &lines, &["--attach-mode", attach_mode])
        };
        let mut filter = start(2048)?;
        let idle = Idle::new(&site, &server)?;
        let words = talking(&site, &server, || {
            for (signal, max_flows) in [
                (Signal::SIGKILL, 2048),
                (Signal::SIGTERM, 2048),
                (Signal::SIGKILL, 4096),
                (Signal::SIGTERM, 1024),
            ] {
                filter.stop(signal, SOON)?;
                filter = start(max_flows)?;
                assert_eq!(site.json("status")?["flows"]["room"], max_flows);
                idle.hear(&server)
                    .with_context(|| format!("after {signal}, with {max_flows}"))?;
            }
            Ok(())
        })?;
        ensure!(words > 100, "{words} words are no conversation");
        let frames = tap.drain()?;
        let sent = frames.iter().filter(|frame| frame[6..12] == PEER_MAC);
        site.check_counted("eth0", &json!({"pass answer": sent.count()}))
    };
    checked().unwrap_or_else(|error| panic!("{attach_mode}: {error:?}"));
}

#[test]
fn lose_no_answer_in_native_mode() {
    require_root!();
    check("native");
}

#[test]
fn lose_no_answer_in_generic_mode() {
    require_root!();
    check("generic");
}

/// Starts that come as far as the interface and fail there, by other rules: what was in force goes on, with
/// what was noted till then.
#[test]
fn that_fail_change_nothing() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let server = Server::start(&site)?;
    let mut filter = close(&site, "", &[])?;
    let idle = Idle::new(&site, &server)?;
    filter.stop(Signal::SIGTERM, SOON)?;
    let config = site.scratch.file("allowlist.toml").display().to_string();
    let closed = std::fs::read_to_string(&config)?;
    for (from, to) in [
        ("default = \"drop\"", "default = \"pass\""),
        (
            "default = \"drop\"",
            "default = \"drop\"\nreturn_traffic = \"off\"",
        ),
        ("default = \"drop\"", "default = \"drop\"\nmax_flows = 1024"),
    ] {
        site.scratch
            .write("allowlist.toml", closed.replace(from, to))?;
        // No driver of a virtual link offers it.
        let ended = site.run(&["run", "--config", &config, "--attach-mode", "offload"])?;
        ensure!(ended.code == Some(1), "{to}: {ended:?}");
        assert_eq!(site.json("status")?["return_traffic"], "track", "{to}");
        idle.hear(&server).context(to)?;
        let new = Idle::new(&site, &server).context(to)?;
        new.hear(&server).context(to)?;
    }
    Ok(())
}

/// What the host has sent by an older version's notes is answered by this one's: without a pause in which
/// nothing but those notes could tell.
#[test]
fn and_upgrades_lose_no_answer() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let server = Server::start(&site)?;
    let mut filter = close(&site, "", &[])?;
    let pins = site.scratch.pin_dir().to_owned();
    for _ in 0..2 {
        let idle = Idle::new(&site, &server)?;
        let words = talking(&site, &server, || {
            filter.stop(Signal::SIGTERM, SOON)?;
            std::fs::rename(pins.join(format!("v{VERSION}")), pins.join("v2"))?;
            idle.hear(&server).context("before the upgrade")?;
            filter = close(&site, "", &[])?;
            idle.hear(&server).context("after the upgrade")
        })?;
        ensure!(words > 10, "{words} words are no conversation");
        ensure!(!pins.join("v2").exists());
    }
    Ok(())
}

/// A start that fails beside an older version's filter takes none of its notes away.
#[test]
fn and_failed_upgrades_lose_no_answer() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let server = Server::start(&site)?;
    let mut filter = close(&site, "", &[])?;
    let idle = Idle::new(&site, &server)?;
    filter.stop(Signal::SIGTERM, SOON)?;
    let pins = site.scratch.pin_dir();
    std::fs::rename(pins.join(format!("v{VERSION}")), pins.join("v2"))?;
    let config = site.scratch.file("allowlist.toml").display().to_string();
    bridge(&site.host, "br0", &[])?; // which has no native mode
    let options = ["--iface", "br0", "--attach-mode", "native"];
    let ended = site.run(&[&["run", "--config", &config], &options[..]].concat())?;
    ensure!(ended.code == Some(1), "{ended:?}");
    ensure!(pins.join("v2").exists() && !pins.join(format!("v{VERSION}")).exists());
    idle.hear(&server)?;
    let new = Idle::new(&site, &server)?;
    new.hear(&server)
}
