//! A host that is closed during its conversations, by a successful and by a failed start.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use allowlist_common::abi::VERSION;
use allowlist_tests::lab::{Scratch, eventually};
use allowlist_tests::require_root;
use anyhow::{Context as _, ensure};
use aya::programs::SchedClassifier;
use aya::programs::links::PinnedLink;
use aya::programs::tc::TcAttachType;
use nix::sys::signal::Signal;

use super::conversations::Server;
use super::*;

const DOWNLOADS: usize = 4;
/// The interval at which each server sends. The host sends only acknowledgements.
const BETWEEN: Duration = Duration::from_millis(300);
/// The timeout of one read or write.
const PATIENCE: Duration = Duration::from_millis(200);

/// Connections in which the host only receives continue, because the flow tracker records their acknowledgements in time.
fn downloads_continue(start_open: bool) -> anyhow::Result<()> {
    let testbed = Testbed::new()?;
    let server = Server::start(&testbed)?;
    if start_open {
        let open = [
            "--iface",
            "eth0",
            "--allow",
            "203.0.113.0/24",
            "--port",
            "tcp/443",
            "--enforce",
        ];
        testbed.filter(&open)?.stop(Signal::SIGTERM, SOON)?;
    }
    let mut streams = Vec::new();
    for _ in 0..DOWNLOADS {
        let client = testbed
            .host
            .run(|| TcpStream::connect(at(FAMILIES[0].peer, 53)))?;
        let (far_end, _) = server.tcp.accept()?;
        client.set_read_timeout(Some(PATIENCE))?;
        far_end.set_write_timeout(Some(PATIENCE))?;
        streams.push((client, far_end));
    }
    let received: [AtomicU64; DOWNLOADS] = Default::default();
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopped = &stopped;
        for ((client, far_end), received) in streams.iter_mut().zip(&received) {
            scope.spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    // If the connection is cut, the send queue fills up, and the write fails.
                    let _ = far_end.write(&[7; 1000]);
                    thread::sleep(BETWEEN);
                }
            });
            scope.spawn(move || {
                let mut buffer = [0; 4096];
                while !stopped.load(Ordering::Relaxed) {
                    if let Ok(length) = client.read(&mut buffer) {
                        received.fetch_add(length as u64, Ordering::Relaxed);
                    }
                }
            });
        }
        let closed = (|| {
            let filter = close(&testbed, "", &[])?;
            let at_first = received
                .each_ref()
                .map(|received| received.load(Ordering::Relaxed));
            let continues = || {
                let mut both = received.iter().zip(at_first);
                Ok(both.all(|(received, first)| received.load(Ordering::Relaxed) > first + 3_000))
            };
            eventually(continues).context("a download has stopped")?;
            drop(filter);
            anyhow::Ok(())
        })();
        stopped.store(true, Ordering::Relaxed);
        closed
    })
}

#[test]
fn a_first_start_interrupts_no_download() -> anyhow::Result<()> {
    require_root!();
    downloads_continue(false)
}

#[test]
fn closing_an_open_filter_interrupts_no_download() -> anyhow::Result<()> {
    require_root!();
    downloads_continue(true)
}

/// The daemon restores a removed pin of the flow tracker, and logs a warning.
#[test]
fn a_missing_tracker_pin_is_restored() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let server = Server::start(&testbed)?;
    let filter = close(&testbed, "", &[])?;
    let pins = testbed.scratch.pin_dir().join(format!("v{VERSION}"));
    std::fs::remove_file(pins.join("egress_0"))?;
    filter.wait_for_line("warning[tracker-pin-missing]: ", SOON)?;
    eventually(|| Ok(pins.join("egress_0").exists())).with_context(|| filter.output())?;
    eventually(|| server.answers(&testbed, FAMILIES[0], 8, NEVER))?;
    Ok(())
}

/// While another process holds the former link, the kernel refuses to attach the flow tracker again. The daemon waits for
/// the end of the link, and does not fall back to clsact.
#[test]
fn the_daemon_waits_for_the_end_of_the_former_link() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let server = Server::start(&testbed)?;
    let filter = close(&testbed, "", &[])?;
    let pin = testbed
        .scratch
        .pin_dir()
        .join(format!("v{VERSION}"))
        .join("egress_0");
    let held = PinnedLink::from_pin(&pin)?;
    std::fs::remove_file(&pin)?;
    // Longer than the interval of the self-check.
    thread::sleep(Duration::from_millis(1200));
    drop(held);
    eventually(|| Ok(pin.exists())).with_context(|| filter.output())?;
    eventually(|| server.answers(&testbed, FAMILIES[0], 8, NEVER))?;
    Ok(())
}

/// A start that fails because another filter holds one interface leaves no programs on the other one.
#[test]
fn a_failed_start_leaves_no_pins() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    testbed.second_link()?;
    let other = Scratch::new()?;
    let held = [
        "--iface",
        "eth1",
        "--allow",
        "203.0.113.0/24",
        "--port",
        "tcp/444",
        "--enforce",
    ];
    let mut arguments: Vec<std::ffi::OsString> = held.map(Into::into).to_vec();
    arguments.extend(other.arguments());
    testbed.filter(&arguments)?.stop(Signal::SIGTERM, SOON)?;

    let refused = close(&testbed, "", &["--iface", "eth0", "--iface", "eth1"]);
    ensure!(refused.is_err(), "eth1 has another filter");
    for interface in ["eth0", "eth1"] {
        let found = testbed
            .host
            .run(|| SchedClassifier::query_tcx(interface, TcAttachType::Egress))?;
        ensure!(found.1.is_empty(), "{interface}: {:?}", found.1);
    }
    ensure!(
        !testbed
            .scratch
            .pin_dir()
            .join(format!("v{VERSION}"))
            .exists()
    );
    Ok(())
}
