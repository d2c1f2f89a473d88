//! Unsolicited packets to a closed host: none reaches a socket, including those that resemble an answer.

use std::net::{Ipv6Addr, TcpListener};

use allowlist_common::packet::tcp_flag::{ACK, RST, SYN};
use allowlist_tests::lab::{FrameSender, frame};
use allowlist_tests::require_root;
use serde_json::json;

use super::conversations::{DOMAIN, Server};
use super::*;

/// The ports of a client socket of the host, and of a listening one.
const OWN: u16 = 40_000;
const LISTENING: u16 = 8080;
/// The name of the last forged frame.
const FRAGMENT: &str = "a fragment";

/// Returns frames that resemble answers, after the host has sent a datagram from `OWN` to port `DOMAIN` of the peer, and has
/// a connection from `connected` to that port.
fn forged(family: Family, connected: u16) -> Vec<(&'static str, Vec<u8>)> {
    let (own, peer, stranger) = (
        family.host(OWN),
        family.peer(DOMAIN),
        family.stranger(DOMAIN),
    );
    let (host, other) = (own.ip(), stranger.ip());
    let listening = family.host(LISTENING);
    let mut elsewhere = family.host(connected);
    elsewhere.set_port(connected + 1);
    vec![
        ("a SYN", frame::tcp(stranger, listening, SYN)),
        ("a SYN of the peer", frame::tcp(peer, listening, SYN)),
        (
            "a SYN in the flow",
            frame::tcp(peer, family.host(connected), SYN),
        ),
        ("a SYN+ACK", frame::tcp(peer, listening, SYN | ACK)),
        ("an ACK", frame::tcp(stranger, family.host(connected), ACK)),
        ("an ACK to another port", frame::tcp(peer, elsewhere, ACK)),
        ("a RST", frame::tcp(stranger, family.host(connected), RST)),
        (
            "a RST from another port",
            frame::tcp(family.peer(54), family.host(connected), RST),
        ),
        ("a datagram", frame::udp(stranger, listening, b"hello")),
        (
            "a datagram of another address",
            frame::udp(stranger, own, b"forged"),
        ),
        (
            "a datagram from another port",
            frame::udp(family.peer(54), own, b"forged"),
        ),
        (
            "a datagram to another port",
            frame::udp(peer, family.host(OWN + 1), b"forged"),
        ),
        ("an echo request", frame::echo_request(other, host)),
        (
            "an echo request of the peer",
            frame::echo_request(peer.ip(), host),
        ),
        ("an echo reply", frame::echo_reply(peer.ip(), host, OWN)),
        (FRAGMENT, frame::later_fragment(other, host, 17, &[0; 64])),
    ]
}

/// Binds three sockets on the host: a client, one on the adjacent port, and a server.
fn inboxes(testbed: &Testbed) -> anyhow::Result<[UdpSocket; 3]> {
    let bind = |port| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port));
    Ok(testbed
        .host
        .run(|| Ok::<_, std::io::Error>([bind(OWN)?, bind(OWN + 1)?, bind(LISTENING)?]))?)
}

#[track_caller]
fn check(attach_mode: &str) {
    let checked = || -> anyhow::Result<()> {
        let testbed = Testbed::new()?;
        let server = Server::start(&testbed)?;
        let inboxes = inboxes(&testbed)?;
        let listener = testbed
            .host
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, LISTENING)))?;
        listener.set_nonblocking(true)?;
        let _filter = close(&testbed, "", &["--attach-mode", attach_mode])?;
        let sender = FrameSender::new(&testbed.peer, "eth0")?;
        for family in FAMILIES {
            inboxes[0].send_to(b"question", family.peer(DOMAIN))?;
            let (client, _server) = server
                .accept(&testbed, family, SOON)?
                .expect("the connection is established");
            let before = testbed.counted("eth0")?;
            let forged = forged(family, client.local_addr()?.port());
            for (number, (name, frame)) in (1..).zip(&forged) {
                sender.send(frame)?;
                let mut expected = before.clone();
                if *name == FRAGMENT {
                    // The fragment may belong to the service, so it has another counter.
                    expected["drop fragment"] = json!(packets(&before, "drop fragment") + 1);
                }
                let others = number - u64::from(*name == FRAGMENT);
                expected["drop default"] = json!(packets(&before, "drop default") + others);
                testbed
                    .check_counted("eth0", &expected)
                    .map_err(|error| error.context(format!("{name} {}", family.peer)))?;
            }
            // An answer arrives, so the sockets would have received the forged frames too.
            sender.send(&frame::udp(family.peer(DOMAIN), family.host(OWN), b"real"))?;
            let answer = Some((b"real".to_vec(), family.peer(0).ip()));
            assert_eq!(receive(&inboxes[0], SOON)?, answer);
            let stranger = testbed.peer.run(|| {
                let listening = family.host(LISTENING);
                std::net::TcpStream::connect_timeout(&listening, NEVER)
            });
            assert!(stranger.is_err(), "{}", family.peer);
        }
        for inbox in &inboxes {
            assert_eq!(receive(inbox, NEVER)?, None);
        }
        assert!(listener.accept().is_err());
        Ok(())
    };
    checked().unwrap_or_else(|error| panic!("{attach_mode}: {error:?}"));
}

#[test]
fn unsolicited_packets_are_dropped_in_native_mode() {
    require_root!();
    check("native");
}

#[test]
fn unsolicited_packets_are_dropped_in_generic_mode() {
    require_root!();
    check("generic");
}

/// Without tracking, answers by UDP are lost, and `established` passes unsolicited ACKs.
#[test]
fn without_tracking_only_segments_without_syn_pass() -> anyhow::Result<()> {
    require_root!();
    for (return_traffic, acks) in [("established", true), ("off", false)] {
        let testbed = Testbed::new()?;
        let lines = format!("return_traffic = '{return_traffic}'");
        let _filter = close(&testbed, &lines, &[])?;
        let sender = FrameSender::new(&testbed.peer, "eth0")?;
        let _server = Server::start(&testbed)?; // without it, the peer answers with ICMP errors
        let inboxes = inboxes(&testbed)?;
        for family in FAMILIES {
            inboxes[0].send_to(b"question", family.peer(DOMAIN))?;
            let listening = family.host(LISTENING);
            for frame in [
                frame::tcp(family.stranger(DOMAIN), listening, SYN),
                frame::tcp(family.stranger(DOMAIN), listening, ACK),
                frame::tcp(family.stranger(DOMAIN), listening, RST | ACK),
                frame::udp(family.peer(DOMAIN), family.host(OWN), b"answer"),
            ] {
                sender.send(&frame)?;
            }
        }
        let expected = if acks {
            json!({"pass answer": 4, "drop default": 4})
        } else {
            json!({"drop default": 8})
        };
        testbed.check_counted("eth0", &expected)?;
        assert_eq!(receive(&inboxes[0], NEVER)?, None);
    }
    Ok(())
}

/// A connection that another host opened in observe mode is not a flow of this host: its packets are not counted as answers.
#[test]
fn connections_opened_while_observing_are_not_answers() -> anyhow::Result<()> {
    use std::io::{Read as _, Write as _};
    require_root!();
    let testbed = Testbed::new()?;
    let family = FAMILIES[0];
    let closed_port = at(family.host, 22);
    let listener = testbed
        .host
        .run(|| std::net::TcpListener::bind(closed_port))?;
    let _filter = close(&testbed, "mode = \"observe\"", &[])?;
    let mut stranger = testbed
        .peer
        .run(|| std::net::TcpStream::connect(closed_port))?;
    let (mut host, _) = listener.accept()?;
    let mut got = [0; 5];
    stranger.write_all(b"hello")?;
    host.read_exact(&mut got)?;
    host.write_all(b"hello")?;
    stranger.read_exact(&mut got)?;
    let counted = testbed.counted("eth0")?;
    assert_eq!(packets(&counted, "pass answer"), 0, "{counted}");
    assert!(packets(&counted, "drop default") > 2, "{counted}");
    Ok(())
}
