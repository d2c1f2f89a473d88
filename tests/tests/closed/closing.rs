//! A host that is closed while it talks, by a start that goes well and by one that does not.

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

use super::talk::Server;
use super::*;

const DOWNLOADS: usize = 4;
/// The host hears so often of each, and says nothing but that it has heard.
const BETWEEN: Duration = Duration::from_millis(300);
/// What its kernel waits for more, before it says so.
const PATIENCE: Duration = Duration::from_millis(200);

/// Connections in which the host only listens go on: what it acknowledges makes them known in time.
fn downloads_go_on(start_open: bool) -> anyhow::Result<()> {
    let site = Testbed::new()?;
    let server = Server::start(&site)?;
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
        site.filter(&open)?.stop(Signal::SIGTERM, SOON)?;
    }
    let mut streams = Vec::new();
    for _ in 0..DOWNLOADS {
        let client = site
            .host
            .run(|| TcpStream::connect(at(FAMILIES[0].peer, 53)))?;
        let (far_end, _) = server.tcp.accept()?;
        client.set_read_timeout(Some(PATIENCE))?;
        far_end.set_write_timeout(Some(PATIENCE))?;
        streams.push((client, far_end));
    }
    let heard: [AtomicU64; DOWNLOADS] = Default::default();
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopped = &stopped;
        for ((client, far_end), heard) in streams.iter_mut().zip(&heard) {
            scope.spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    // One that is cut off fills its sender's queue, which is no concern of this thread.
                    let _ = far_end.write(&[7; 1000]);
                    thread::sleep(BETWEEN);
                }
            });
            scope.spawn(move || {
                let mut buffer = [0; 4096];
                while !stopped.load(Ordering::Relaxed) {
                    if let Ok(length) = client.read(&mut buffer) {
                        heard.fetch_add(length as u64, Ordering::Relaxed);
                    }
                }
            });
        }
        let closed = (|| {
            let filter = close(&site, "", &[])?;
            let at_first = heard.each_ref().map(|heard| heard.load(Ordering::Relaxed));
            let goes_on = || {
                let mut both = heard.iter().zip(at_first);
                Ok(both.all(|(heard, first)| heard.load(Ordering::Relaxed) > first + 3_000))
            };
            eventually(goes_on).context("some download hears nothing any more")?;
            drop(filter);
            anyhow::Ok(())
        })();
        stopped.store(true, Ordering::Relaxed);
        closed
    })
}

#[test]
fn for_the_first_time_cuts_off_no_download() -> anyhow::Result<()> {
    require_root!();
    downloads_go_on(false)
}

#[test]
fn an_open_filter_cuts_off_no_download() -> anyhow::Result<()> {
    require_root!();
    downloads_go_on(true)
}

/// Somebody took off what notes the host's packets: the daemon puts it back, and says so.
#[test]
fn restores_a_missing_tracker_pin() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let server = Server::start(&site)?;
    let filter = close(&site, "", &[])?;
    let pins = site.scratch.pin_dir().join(format!("v{VERSION}"));
    std::fs::remove_file(pins.join("egress_0"))?;
    filter.wait_for_line("warning[tracker-pin-missing]: ", SOON)?;
    eventually(|| Ok(pins.join("egress_0").exists())).with_context(|| filter.output())?;
    eventually(|| server.answers(&site, FAMILIES[0], 8, NEVER))?;
    Ok(())
}

/// The kernel has the flow tracker on the interface for as long as another process holds its link, and refuses the same
/// program once more. The daemon waits for that, and does not take the older hook instead.
#[test]
fn waits_until_the_former_link_is_freed() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let server = Server::start(&site)?;
    let filter = close(&site, "", &[])?;
    let pin = site
        .scratch
        .pin_dir()
        .join(format!("v{VERSION}"))
        .join("egress_0");
    let held = PinnedLink::from_pin(&pin)?;
    std::fs::remove_file(&pin)?;
    // Longer than it takes the self-check to look.
    thread::sleep(Duration::from_millis(1200));
    drop(held);
    eventually(|| Ok(pin.exists())).with_context(|| filter.output())?;
    eventually(|| server.answers(&site, FAMILIES[0], 8, NEVER))?;
    Ok(())
}

/// What holds one interface is in the way of the start, and then nothing is on the other.
#[test]
fn that_fails_leaves_no_pins() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    site.second_link()?;
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
    site.filter(&arguments)?.stop(Signal::SIGTERM, SOON)?;

    let refused = close(&site, "", &["--iface", "eth0", "--iface", "eth1"]);
    ensure!(refused.is_err(), "eth1 has another filter");
    for interface in ["eth0", "eth1"] {
        let found = site
            .host
            .run(|| SchedClassifier::query_tcx(interface, TcAttachType::Egress))?;
        ensure!(found.1.is_empty(), "{interface}: {:?}", found.1);
    }
    ensure!(!site.scratch.pin_dir().join(format!("v{VERSION}")).exists());
    Ok(())
}
