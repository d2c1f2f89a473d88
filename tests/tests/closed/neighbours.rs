//! A closed host on an ordinary link, where neighbour entries expire within seconds and are resolved again by the packets
//! that `[keep]` exempts.

use allowlist_tests::lab::{LinkKind, PEER_MAC, Tap, eventually};
use allowlist_tests::require_root;
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;

use super::conversations::{FRAGMENTED, Server, pings};
use super::*;

/// Returns a testbed whose neighbour entries become stale after half a second and are probed a second later.
fn with_short_neighbour_lifetimes() -> anyhow::Result<Testbed> {
    let testbed = Testbed::on(LinkKind::Ordinary)?;
    for namespace in [&testbed.host, &testbed.peer] {
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
    Ok(testbed)
}

/// Reports whether datagrams and echo requests are answered. They do not confirm a neighbour entry, unlike the
/// acknowledgements of a connection.
fn works(testbed: &Testbed, server: &Server, family: Family) -> anyhow::Result<bool> {
    Ok(server.answers(testbed, family, 8, SOON)?
        && server.answers(testbed, family, FRAGMENTED, SOON)?
        && pings(testbed, family, SOON)?)
}

/// Reports whether a frame is an ARP reply or a neighbour advertisement of the peer.
fn neighbour_answers(frame: &[u8]) -> [bool; 2] {
    let is = |at: usize, bytes: &[u8]| frame.get(at..at + bytes.len()) == Some(bytes);
    let is_peers = is(6, &PEER_MAC);
    [
        is_peers && is(12, &[0x08, 0x06]) && is(20, &[0, 2]),
        is_peers && is(12, &[0x86, 0xdd]) && is(20, &[58]) && is(54, &[136]),
    ]
}

/// Checks that the host's conversations continue after its neighbour entries have expired.
#[track_caller]
fn check_continues(attach_mode: &str) {
    /// The minimum number of resolutions in each family.
    const TIMES: usize = 4;
    let continues = || -> anyhow::Result<()> {
        let testbed = with_short_neighbour_lifetimes()?;
        let server = Server::start(&testbed)?;
        let tap = Tap::new(&testbed.peer)?;
        let _filter = close(&testbed, "", &["--attach-mode", attach_mode])?;
        let mut answers = [0; 2];
        eventually(|| {
            for family in FAMILIES {
                ensure!(works(&testbed, &server, family)?, "{}", family.peer);
            }
            for frame in tap.drain()? {
                for (count, is_answer) in answers.iter_mut().zip(neighbour_answers(&frame)) {
                    *count += usize::from(is_answer);
                }
            }
            Ok(answers.iter().all(|count| *count >= TIMES))
        })
        .with_context(|| format!("{answers:?} answers: {:?}", testbed.counted("eth0")))?;
        for family in FAMILIES {
            assert!(server.accepts(&testbed, family, SOON)?, "{}", family.peer);
        }
        Ok(())
    };
    continues().unwrap_or_else(|error| panic!("{attach_mode}: {error:?}"));
}

#[test]
fn neighbours_are_resolved_again_in_native_mode() {
    require_root!();
    check_continues("native");
}

#[test]
fn neighbours_are_resolved_again_in_generic_mode() {
    require_root!();
    check_continues("generic");
}

/// Without an exemption, the host's conversations of that family end when its neighbour entry expires.
#[test]
fn without_arp_and_neighbour_discovery_the_host_is_unreachable() -> anyhow::Result<()> {
    require_root!();
    let [v4, v6] = FAMILIES;
    for (key, unreachable, reachable, dropped) in [
        ("arp", v4, v6, "drop arp"),
        ("neighbour_discovery", v6, v4, "drop default"),
    ] {
        let testbed = with_short_neighbour_lifetimes()?;
        let server = Server::start(&testbed)?;
        let mut filter = close(&testbed, "", &[])?;
        for family in FAMILIES {
            ensure!(
                server.answers(&testbed, family, 8, SOON)?,
                "{}",
                family.peer
            );
        }
        filter.stop(Signal::SIGTERM, SOON)?;
        let _filter = close(&testbed, &format!("keep.{key} = false"), &[])?;
        // Three times, because a busy machine may miss an answer.
        let mut missed = 0;
        eventually(|| {
            let is_answered = server.answers(&testbed, unreachable, 8, NEVER)?;
            missed = if is_answered { 0 } else { missed + 1 };
            Ok(missed == 3)
        })
        .context(key)?;
        assert!(server.answers(&testbed, reachable, 8, SOON)?, "{key}");
        let counted = testbed.counted("eth0")?;
        assert!(packets(&counted, dropped) > 0, "{key}: {counted}");
    }
    Ok(())
}
