//! A closed host on an ordinary link, where neighbours are forgotten within seconds and have to be
//! found again by what `[keep]` lets in.

use allowlist_tests::lab::{LinkKind, PEER_MAC, Tap, eventually};
use allowlist_tests::require_root;
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;

use super::talk::{FRAGMENTED, Server, pings};
use super::*;

/// Both ends doubt a neighbour half a second after they heard of it, and ask it a second later.
fn forgetful() -> anyhow::Result<Testbed> {
    let site = Testbed::on(LinkKind::Ordinary)?;
    for namespace in [&site.host, &site.peer] {
        for family in ["ipv4", "ipv6"] {
            for (name, value) in [
                ("base_reachable_time_ms", "500"),
                ("delay_first_probe_time", "1"),
                ("gc_stale_time", "1"),
                ("retrans_time_ms", "100"),
            ] {
                namespace.set(&format!("{family}/neigh/eth0/{name}"), value)?;
            }
        }
    }
    Ok(site)
}

/// Datagrams and echoes, by which no kernel takes its neighbour to be there still; a connection's
/// acknowledgements would do.
fn works(site: &Testbed, server: &Server, family: Family) -> anyhow::Result<bool> {
    Ok(server.answers(site, family, 8, SOON)?
        && server.answers(site, family, FRAGMENTED, SOON)?
        && pings(site, family, SOON)?)
}

/// Whether a frame is the peer's answer to where it is: ARP's, and IPv6's.
fn told_where(frame: &[u8]) -> [bool; 2] {
    let is = |at: usize, bytes: &[u8]| frame.get(at..at + bytes.len()) == Some(bytes);
    let is_peers = is(6, &PEER_MAC);
    [
        is_peers && is(12, &[0x08, 0x06]) && is(20, &[0, 2]),
        is_peers && is(12, &[0x86, 0xdd]) && is(20, &[58]) && is(54, &[136]),
    ]
}

/// What the host does itself goes on for longer than it knows where its neighbour is.
#[track_caller]
fn check_goes_on(attach_mode: &str) {
    /// How often the host has to have asked, in each family: once, and then again.
    const TIMES: usize = 4;
    let goes_on = || -> anyhow::Result<()> {
        let site = forgetful()?;
        let server = Server::start(&site)?;
        let tap = Tap::new(&site.peer)?;
        let _filter = close(&site, "", &["--attach-mode", attach_mode])?;
        let mut told = [0; 2];
        eventually(|| {
            for family in FAMILIES {
                ensure!(works(&site, &server, family)?, "{}", family.peer);
            }
            for frame in tap.drain()? {
                for (times, is_told) in told.iter_mut().zip(told_where(&frame)) {
                    *times += usize::from(is_told);
                }
            }
            Ok(told.iter().all(|times| *times >= TIMES))
        })
        .with_context(|| format!("asked {told:?} times: {:?}", site.counted("eth0")))?;
        for family in FAMILIES {
            assert!(server.accepts(&site, family, SOON)?, "{}", family.peer);
        }
        Ok(())
    };
    goes_on().unwrap_or_else(|error| panic!("{attach_mode}: {error:?}"));
}

#[test]
fn neighbours_are_found_again_in_native_mode() {
    require_root!();
    check_goes_on("native");
}

#[test]
fn neighbours_are_found_again_in_generic_mode() {
    require_root!();
    check_goes_on("generic");
}

/// The other side of it: what is not kept ends the host's conversations as soon as entries expire, of
/// that family alone.
#[test]
fn without_arp_and_neighbour_discovery_the_host_falls_off() -> anyhow::Result<()> {
    require_root!();
    let [v4, v6] = FAMILIES;
    for (key, lost, found, dropped) in [
        ("arp", v4, v6, "drop arp"),
        ("neighbour_discovery", v6, v4, "drop default"),
    ] {
        let site = forgetful()?;
        let server = Server::start(&site)?;
        let mut filter = close(&site, "", &[])?;
        for family in FAMILIES {
            ensure!(server.answers(&site, family, 8, SOON)?, "{}", family.peer);
        }
        filter.stop(Signal::SIGTERM, SOON)?;
        let _filter = close(&site, &format!("keep.{key} = false"), &[])?;
        // Three times: a busy machine may miss an answer.
        let mut missed = 0;
        eventually(|| {
            let is_answered = server.answers(&site, lost, 8, NEVER)?;
            missed = if is_answered { 0 } else { missed + 1 };
            Ok(missed == 3)
        })
        .context(key)?;
        assert!(server.answers(&site, found, 8, SOON)?, "{key}");
        let counted = site.counted("eth0")?;
        assert!(packets(&counted, dropped) > 0, "{key}: {counted}");
    }
    Ok(())
}
