//! The host's conversations continue while the daemon is killed, stopped and started again, also with another size of the
//! flow table: no answer is lost, and each is counted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use allowlist_common::abi::VERSION;
use allowlist_tests::lab::{PEER_MAC, Tap, bridge};
use allowlist_tests::require_root;
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::conversations::{Server, client_socket, talk};
use super::*;

/// The time between two messages, which limits the number of packets that the tap has to store.
const PAUSE: Duration = Duration::from_millis(2);

/// Exchanges messages while a task runs, and returns the number of messages of each conversation.
fn talking(
    testbed: &Testbed,
    server: &Server,
    task: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    /// Stops the conversations also if the task panics; otherwise the scope would wait for them forever.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    // Opened before the task, so that the flow tracker does not see their first packets again.
    let mut connections = Vec::new();
    let mut clients = Vec::new();
    for family in FAMILIES {
        connections.push(
            server
                .accept(testbed, family, SOON)?
                .context("the connection is not established")?,
        );
        clients.push(client_socket(testbed, family)?);
    }
    let stopped = AtomicBool::new(false);
    let mut exchange = || {
        let mut words = 0;
        while !stopped.load(Ordering::Relaxed) {
            for (client, far_end) in &mut connections {
                talk(client, far_end)?;
            }
            for client in &clients {
                ensure!(
                    server.answers_to(client, 8, SOON)?,
                    "lost an answer after {words} messages"
                );
            }
            words += 1;
            thread::sleep(PAUSE);
        }
        Ok(words)
    };
    thread::scope(|scope| {
        let talking = scope.spawn(&mut exchange);
        let stop = Stop(&stopped);
        task()?;
        drop(stop);
        talking.join().expect("the conversation does not panic")
    })
}

/// Conversations in which the host has sent once, so that only the flow table identifies the answers.
struct Idle(Vec<UdpSocket>);

impl Idle {
    fn new(testbed: &Testbed, server: &Server) -> anyhow::Result<Self> {
        let mut clients = Vec::new();
        for family in FAMILIES {
            let client = client_socket(testbed, family)?;
            ensure!(server.answers_to(&client, 8, SOON)?, "{}", family.peer);
            clients.push(client);
        }
        Ok(Self(clients))
    }

    /// Sends another answer in each conversation, and checks that it arrives.
    fn check_answers(&self, server: &Server) -> anyhow::Result<()> {
        for client in &self.0 {
            let address = client.local_addr()?;
            server.udp.send_to(b"late", address)?;
            ensure!(receive(client, SOON)?.is_some(), "no answer to {address}");
        }
        Ok(())
    }
}

#[track_caller]
fn check(attach_mode: &str) {
    let checked = || -> anyhow::Result<()> {
        let testbed = Testbed::new()?;
        let server = Server::start(&testbed)?;
        let tap = Tap::new(&testbed.peer)?;
        let start = |max_flows| {
            let lines = format!("max_flows = {max_flows}");
            close(&testbed, &lines, &["--attach-mode", attach_mode])
        };
        let mut filter = start(2048)?;
        let idle = Idle::new(&testbed, &server)?;
        let words = talking(&testbed, &server, || {
            for (signal, max_flows) in [
                (Signal::SIGKILL, 2048),
                (Signal::SIGTERM, 2048),
                (Signal::SIGKILL, 4096),
                (Signal::SIGTERM, 1024),
            ] {
                filter.stop(signal, SOON)?;
                filter = start(max_flows)?;
                assert_eq!(testbed.json("status")?["flows"]["room"], max_flows);
                idle.check_answers(&server)
                    .with_context(|| format!("after {signal}, with {max_flows}"))?;
            }
            Ok(())
        })?;
        ensure!(words > 100, "only {words} messages");
        let frames = tap.drain()?;
        let sent = frames.iter().filter(|frame| frame[6..12] == PEER_MAC);
        testbed.check_counted("eth0", &json!({"pass answer": sent.count()}))
    };
    checked().unwrap_or_else(|error| panic!("{attach_mode}: {error:?}"));
}

#[test]
fn restarts_lose_no_answer_in_native_mode() {
    require_root!();
    check("native");
}

#[test]
fn restarts_lose_no_answer_in_generic_mode() {
    require_root!();
    check("generic");
}

/// Starts with other rules that fail when they attach to the interface: the previous rules stay active, with their flows.
#[test]
fn failed_starts_change_nothing() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let server = Server::start(&testbed)?;
    let mut filter = close(&testbed, "", &[])?;
    let idle = Idle::new(&testbed, &server)?;
    filter.stop(Signal::SIGTERM, SOON)?;
    let config = testbed.scratch.file("allowlist.toml").display().to_string();
    let closed = std::fs::read_to_string(&config)?;
    for (from, to) in [
        ("default = \"drop\"", "default = \"pass\""),
        (
            "default = \"drop\"",
            "default = \"drop\"\nreturn_traffic = \"off\"",
        ),
        ("default = \"drop\"", "default = \"drop\"\nmax_flows = 1024"),
    ] {
        testbed
            .scratch
            .write("allowlist.toml", closed.replace(from, to))?;
        // No driver of a virtual link supports offload.
        let ended = testbed.run(&["run", "--config", &config, "--attach-mode", "offload"])?;
        ensure!(ended.code == Some(1), "{to}: {ended:?}");
        assert_eq!(testbed.json("status")?["return_traffic"], "track", "{to}");
        idle.check_answers(&server).context(to)?;
        let new = Idle::new(&testbed, &server).context(to)?;
        new.check_answers(&server).context(to)?;
    }
    Ok(())
}

/// Answers to flows that the previous version recorded pass in this version, and during the upgrade.
#[test]
fn upgrades_lose_no_answer() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let server = Server::start(&testbed)?;
    let mut filter = close(&testbed, "", &[])?;
    let pins = testbed.scratch.pin_dir().to_owned();
    for _ in 0..2 {
        let idle = Idle::new(&testbed, &server)?;
        let words = talking(&testbed, &server, || {
            filter.stop(Signal::SIGTERM, SOON)?;
            std::fs::rename(pins.join(format!("v{VERSION}")), pins.join("v2"))?;
            idle.check_answers(&server).context("before the upgrade")?;
            filter = close(&testbed, "", &[])?;
            idle.check_answers(&server).context("after the upgrade")
        })?;
        ensure!(words > 10, "only {words} messages");
        ensure!(!pins.join("v2").exists());
    }
    Ok(())
}

/// A failed start of this version keeps the flows of the previous version.
#[test]
fn failed_upgrades_lose_no_answer() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let server = Server::start(&testbed)?;
    let mut filter = close(&testbed, "", &[])?;
    let idle = Idle::new(&testbed, &server)?;
    filter.stop(Signal::SIGTERM, SOON)?;
    let pins = testbed.scratch.pin_dir();
    std::fs::rename(pins.join(format!("v{VERSION}")), pins.join("v2"))?;
    let config = testbed.scratch.file("allowlist.toml").display().to_string();
    bridge(&testbed.host, "br0", &[])?; // a bridge has no native mode
    let options = ["--iface", "br0", "--attach-mode", "native"];
    let ended = testbed.run(&[&["run", "--config", &config], &options[..]].concat())?;
    ensure!(ended.code == Some(1), "{ended:?}");
    ensure!(pins.join("v2").exists() && !pins.join(format!("v{VERSION}")).exists());
    idle.check_answers(&server)?;
    let new = Idle::new(&testbed, &server)?;
    new.check_answers(&server)
}
