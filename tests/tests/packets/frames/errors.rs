//! ICMP errors with flow tracking: an error passes only if it quotes a packet that the host has sent.

use allowlist_common::packet::{ICMP, ICMPV6, SCTP, TCP, UDP, tcp_flag};
use allowlist_common::verdict::Reason;
use allowlist_tests::lab::frame::tagged;

use super::answers::{REMOTE, REMOTE6, WITHOUT_PING, sent};
use super::build::{
    AUTHENTICATION, DESTINATION, ESP, ETHERNET, FRAGMENT, GRE, HOP_BY_HOP, HOST, HOST6, OFFICE,
    OFFICE6, ROUTING, STRANGER, STRANGER6, VENDOR, VENDOR6, cut, echo, error, fragment_to, host,
    packet_to, padded, ported, quote, shortened, with, with_options,
};
use super::{Expected, Group, SOURCES, UNCOVERED, allowed, drop, pass};

/// A router between the host and the remote, in no source.
const ROUTER: &str = "198.18.99.1";
const ROUTER6: &str = "2001:db8:99::1";

/// The error quotes a packet of the host.
const WANTED: Expected = pass(Reason::IcmpError);
/// The error quotes no packet of the host.
const UNWANTED: Expected = drop(Reason::IcmpError);

pub(super) fn groups() -> Vec<Group> {
    let group = |name: &str, settings: &str, policy: &str, rows| {
        Group::new(name, [settings, policy, SOURCES].concat(), rows).after(sent())
    };
    let track = "default = \"drop\"\n";
    let observe = "mode = \"observe\"\ndefault = \"drop\"\n";
    let loose = "default = \"drop\"\nreturn_traffic = \"established\"\n";
    let not_exempt = "default = \"drop\"\n[keep]\nicmp_errors = false\n";
    let mut all = flows();
    all.extend(served());
    all.extend(quotes());
    vec![
        group("errors, track", track, WITHOUT_PING, all),
        group("errors, observe", observe, WITHOUT_PING, served()),
        group("errors, established", loose, WITHOUT_PING, untracked()),
        group("errors, default pass", "", WITHOUT_PING, untracked()),
        group(
            "errors, not exempt",
            not_exempt,
            WITHOUT_PING,
            not_exempt_rows(),
        ),
        group("errors, any", track, ANY, any()),
    ]
}

const ANY: &str = r#"
    [services.all]
    ports = ["any"]
    allow = ["office"]
"#;

/// Errors about the host's packets, from a router or from the remote end.
fn about(kind: u8, frame: &[u8]) -> Vec<u8> {
    let (router, to) = if frame[ETHERNET] >> 4 == 4 {
        (ROUTER, HOST)
    } else {
        (ROUTER6, HOST6)
    };
    error(router, to, kind, &quote(frame))
}

fn tcp(port: u16) -> Vec<u8> {
    ported(TCP, (HOST, port), (REMOTE, 443), tcp_flag::ACK)
}

fn tcp6(port: u16) -> Vec<u8> {
    ported(TCP, (HOST6, port), (REMOTE6, 443), tcp_flag::ACK)
}

#[rustfmt::skip]
fn flows() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let udp = ported(UDP, (HOST, 50_001), (REMOTE, 53), 0);
    let udp6 = ported(UDP, (HOST6, 50_007), (REMOTE6, 53), 0);
    vec![
        ("unreachable, or fragmentation needed", about(3, &tcp(50_000)), WANTED),
        ("time exceeded", about(11, &tcp(50_000)), WANTED),
        ("parameter problem", about(12, &tcp(50_000)), WANTED),
        ("port unreachable, from the other side", error(REMOTE, HOST, 3, &quote(&udp)), WANTED),
        ("about an echo request", about(11, &echo(HOST, REMOTE, 8, 0x1234)), WANTED),
        ("unreachable, IPv6", about(1, &tcp6(50_006)), WANTED),
        ("packet too big", about(2, &tcp6(50_006)), WANTED),
        ("time exceeded, IPv6", about(3, &udp6), WANTED),
        ("parameter problem, IPv6", about(4, &udp6), WANTED),
        ("port unreachable, IPv6, from the other side", error(REMOTE6, HOST6, 1, &quote(&udp6)), WANTED),
        ("about an echo request, IPv6", about(3, &echo(HOST6, REMOTE6, 128, 0x1236)), WANTED),
        ("in a tag", tagged(about(3, &tcp(50_000)), &[(0x8100, 5)]), WANTED),
        ("with IPv4 options", with_options(&about(3, &tcp(50_000)), 3), WANTED),
        ("behind a header", packet_to(ROUTER6, HOST6, DESTINATION, &[&[ICMPV6, 0, 1, 4, 0, 0, 0, 0][..], &about(2, &tcp6(50_006))[ETHERNET + 40..]].concat()), WANTED),
        ("another local port", about(3, &tcp(50_009)), UNWANTED),
        ("another remote port", about(3, &ported(TCP, (HOST, 50_000), (REMOTE, 80), 0)), UNWANTED),
        ("another remote", about(3, &ported(TCP, (HOST, 50_000), (STRANGER, 443), 0)), UNWANTED),
        ("the other protocol", about(3, &ported(UDP, (HOST, 50_000), (REMOTE, 443), 0)), UNWANTED),
        ("another identifier", about(11, &echo(HOST, REMOTE, 8, 0x1235)), UNWANTED),
        ("about an echo reply", about(11, &echo(HOST, REMOTE, 0, 0x4321)), UNWANTED),
        ("another local port, IPv6", about(2, &tcp6(50_009)), UNWANTED),
        ("another remote, IPv6", about(2, &ported(TCP, (HOST6, 50_006), (STRANGER6, 443), 0)), UNWANTED),
        ("about another identifier, IPv6", about(3, &echo(HOST6, REMOTE6, 128, 0x1234)), UNWANTED),
        ("about a packet that the host received", about(3, &ported(TCP, (REMOTE, 443), (HOST, 50_000), 0)), UNWANTED),
        ("to an address that did not send it", error(ROUTER, "198.51.100.9", 3, &quote(&tcp(50_000))), UNWANTED),
        ("to an address that did not send it, IPv6", error(ROUTER6, "2001:db8:ffff::2", 2, &quote(&tcp6(50_006))), UNWANTED),
        ("about a packet of another source address", about(3, &ported(TCP, ("198.51.100.9", 50_000), (REMOTE, 443), 0)), UNWANTED),
        ("about SCTP", about(3, &ported(SCTP, (HOST, 50_004), (REMOTE, 3868), 0)), UNWANTED),
        ("about GRE", about(3, &packet_to(HOST, REMOTE, GRE, &[0; 8])), UNWANTED),
    ]
}

/// Errors about a service's answers, which are not tracked.
#[rustfmt::skip]
fn served() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let web = |to| ported(TCP, (host(to), 443), (to, 40_000), tcp_flag::ACK);
    let dns = |to| ported(UDP, (host(to), 53), (to, 40_000), 0);
    vec![
        ("web to the vendor", about(3, &web(VENDOR)), WANTED),
        ("web to the vendor, IPv6", about(2, &web(VENDOR6)), WANTED),
        ("web to the office", about(3, &web(OFFICE)), WANTED),
        ("web to a stranger", about(3, &web(STRANGER)), UNWANTED),
        ("web to a stranger, IPv6", about(2, &web(STRANGER6)), UNWANTED),
        ("web to a remote to which the host has sent a segment", about(3, &ported(TCP, (HOST, 443), (REMOTE, 51_000), 0)), UNWANTED),
        ("dns to the office", about(3, &dns(OFFICE)), WANTED),
        ("dns to the office, IPv6", about(1, &dns(OFFICE6)), WANTED),
        ("dns to the vendor", about(3, &dns(VENDOR)), UNWANTED),
        ("web to the vendor, to another address", error(ROUTER, "198.51.100.9", 3, &quote(&web(VENDOR))), UNWANTED),
        ("an unprotected port to the vendor", about(3, &ported(TCP, (HOST, 22), (VENDOR, 40_000), 0)), UNWANTED),
        ("a fragment to the vendor", about(3, &fragment_to(HOST, VENDOR, TCP)), WANTED),
        ("a fragment of UDP to the vendor", about(3, &fragment_to(HOST, VENDOR, UDP)), UNWANTED),
        ("a fragment to a stranger", about(3, &fragment_to(HOST, STRANGER, TCP)), UNWANTED),
        ("a fragment to the office, IPv6", about(2, &fragment_to(HOST6, OFFICE6, UDP)), WANTED),
        ("GRE to the office, which no service covers", about(3, &packet_to(HOST, OFFICE, GRE, &[0; 8])), UNWANTED),
        ("an echo to the office, which no service covers", about(3, &echo(HOST, OFFICE, 8, 7)), UNWANTED),
        ("port 0 to the vendor, which no service covers", about(3, &ported(TCP, (HOST, 0), (VENDOR, 40_000), 0)), UNWANTED),
    ]
}

/// Complete and truncated quotes.
#[rustfmt::skip]
fn quotes() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let whole = about(3, &tcp(50_000));
    let whole6 = about(2, &tcp6(50_006));
    let inside = ETHERNET + 20 + 8;
    let inside6 = ETHERNET + 40 + 8;
    let fragment_header = |offset: u8| packet_to(HOST6, REMOTE6, FRAGMENT, &[&[TCP, 0, 0, offset, 0, 0, 0, 1][..], &tcp6(50_006)[ETHERNET + 40..]].concat());
    let quoted6 = |frame: &[u8]| error(ROUTER6, HOST6, 2, &frame[ETHERNET..]);
    let unread = error(ROUTER, HOST, 3, &tcp(50_000)[ETHERNET..ETHERNET + 27]);
    vec![
        ("nothing quoted", error(ROUTER, HOST, 3, &[]), UNWANTED),
        ("nothing quoted, IPv6", error(ROUTER6, HOST6, 2, &[]), UNWANTED),
        ("a truncated IP header", error(ROUTER, HOST, 3, &tcp(50_000)[ETHERNET..ETHERNET + 19]), UNWANTED),
        ("an IP header alone", error(ROUTER, HOST, 3, &tcp(50_000)[ETHERNET..ETHERNET + 20]), UNWANTED),
        ("7 bytes behind it", unread.clone(), UNWANTED),
        ("7 bytes behind it, and padding", padded(unread, 10), UNWANTED),
        ("a truncated IPv6 header", error(ROUTER6, HOST6, 2, &tcp6(50_006)[ETHERNET..ETHERNET + 39]), UNWANTED),
        ("an IPv6 header alone", error(ROUTER6, HOST6, 2, &tcp6(50_006)[ETHERNET..ETHERNET + 40]), UNWANTED),
        ("7 bytes behind it, IPv6", error(ROUTER6, HOST6, 2, &tcp6(50_006)[ETHERNET..ETHERNET + 47]), UNWANTED),
        ("more than 8 bytes", error(ROUTER, HOST, 3, &tcp(50_000)[ETHERNET..]), WANTED),
        ("1200 bytes, IPv6", quoted6(&padded(tcp6(50_006), 1140)), WANTED),
        ("wrong version inside", with(whole.clone(), &[(inside, 0x55)]), UNWANTED),
        ("IPv6 inside IPv4's", error(ROUTER, HOST, 3, &quote(&tcp6(50_006))), UNWANTED),
        ("IPv4 inside IPv6's", error(ROUTER6, HOST6, 2, &padded(quote(&tcp(50_000)), 40)), UNWANTED),
        ("header length below 5 inside", with(whole.clone(), &[(inside, 0x44)]), UNWANTED),
        ("header length past the quote", with(whole.clone(), &[(inside, 0x46)]), UNWANTED),
        ("a wrong total length inside", with(whole.clone(), &[(inside + 2, 255)]), WANTED),
        ("a packet with options", about(3, &with_options(&tcp(50_000), 1)), WANTED),
        ("a packet with most options", about(3, &with_options(&tcp(50_000), 10)), WANTED),
        ("a packet with options, another's", about(3, &with_options(&tcp(50_009), 1)), UNWANTED),
        ("a first fragment", with(whole.clone(), &[(inside + 6, 0x20)]), WANTED),
        ("a later fragment to a peer", about(3, &fragment_to(HOST, REMOTE, TCP)), WANTED),
        ("a later fragment of UDP to a peer", about(11, &fragment_to(HOST, REMOTE, UDP)), WANTED),
        ("a later fragment to a remote without a flow", about(3, &fragment_to(HOST, "198.18.0.6", UDP)), UNWANTED),
        ("a later fragment of SCTP to a peer", about(3, &fragment_to(HOST, REMOTE, SCTP)), UNWANTED),
        ("a later fragment to a peer, IPv6", about(2, &fragment_to(HOST6, REMOTE6, TCP)), WANTED),
        ("a first fragment, IPv6", quoted6(&fragment_header(1)), WANTED),
        ("a fragment header cut short", quoted6(&fragment_header(1)[..ETHERNET + 44]), UNWANTED),
        ("a packet with hop-by-hop options", quoted6(&behind(&[HOP_BY_HOP], 50_006)), WANTED),
        ("a packet with destination options", quoted6(&behind(&[DESTINATION], 50_006)), WANTED),
        ("a packet with a routing header", quoted6(&behind(&[ROUTING], 50_006)), WANTED),
        ("a packet with an authentication header", quoted6(&behind(&[AUTHENTICATION], 50_006)), WANTED),
        ("a packet with every header", quoted6(&behind(&[HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION], 50_006)), WANTED),
        ("a packet with every header, another's", quoted6(&behind(&[HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION], 50_009)), UNWANTED),
        ("a packet with options, another's, IPv6", quoted6(&behind(&[DESTINATION], 50_009)), UNWANTED),
        ("a packet with options, in a tag", tagged(quoted6(&behind(&[DESTINATION], 50_006)), &[(0x88a8, 5), (0x8100, 6)]), WANTED),
        ("an atomic fragment with options", quoted6(&behind(&[FRAGMENT, DESTINATION], 50_006)), WANTED),
        ("a packet with eight headers", quoted6(&behind(&[DESTINATION; 8], 50_006)), WANTED),
        ("a packet with nine headers", quoted6(&behind(&[DESTINATION; 9], 50_006)), UNWANTED),
        ("a packet with options, cut behind 8 bytes of TCP", quoted6(&cut(behind(&[DESTINATION], 50_006), ETHERNET + 40 + 8 + 8)), WANTED),
        ("a packet with options, cut in TCP's ports", quoted6(&cut(behind(&[DESTINATION], 50_006), ETHERNET + 40 + 8 + 7)), UNWANTED),
        ("a packet with options, cut behind them", quoted6(&cut(behind(&[DESTINATION], 50_006), ETHERNET + 40 + 8)), UNWANTED),
        ("a packet with options, cut in them", quoted6(&cut(behind(&[DESTINATION], 50_006), ETHERNET + 40 + 3)), UNWANTED),
        ("a packet with options that claim to be longer than the quote", with(quoted6(&behind(&[DESTINATION], 50_006)), &[(inside6 + 41, 200)]), UNWANTED),
        ("a packet with ESP behind options", quoted6(&packet_to(HOST6, REMOTE6, DESTINATION, &[&[ESP, 0, 1, 4, 0, 0, 0, 0][..], &[0; 16]].concat())), UNWANTED),
        ("a datagram that was sent with options", quoted6(&packet_to(HOST6, REMOTE6, DESTINATION, &[&[UDP, 0, 1, 4, 0, 0, 0, 0][..], &50_012_u16.to_be_bytes(), &[0, 53, 0, 8, 0, 0]].concat())), WANTED),
        ("a later fragment that begins with options, to a peer", quoted6(&fragment_to(HOST6, REMOTE6, DESTINATION)), WANTED),
        ("a later fragment that begins with options, to a stranger", quoted6(&fragment_to(HOST6, "2001:db8:55::6", DESTINATION)), UNWANTED),
        ("a later fragment of AH over IPv4 to a peer", about(3, &fragment_to(HOST, REMOTE, AUTHENTICATION)), UNWANTED),
        ("behind options, about a packet with options", behind_options(&quoted6(&behind(&[DESTINATION], 50_006))), WANTED),
        ("an error about an error, IPv6", quoted6(&error(HOST6, REMOTE6, 1, &quote(&ported(UDP, (REMOTE6, 53), (HOST6, 50_007), 0)))), UNWANTED),
        ("wrong version inside, IPv6", with(whole6, &[(inside6, 0x45)]), UNWANTED),
        ("an error about an error", about(3, &error(HOST, REMOTE, 3, &quote(&ported(UDP, (REMOTE, 53), (HOST, 50_001), 0)))), UNWANTED),
        ("the message cut before its quote", shortened(whole.clone(), inside), UNWANTED),
        ("the message cut in its header", shortened(whole.clone(), inside - 1), super::MALFORMED),
        ("a later fragment of an error, of a peer", fragment_to(REMOTE, HOST, ICMP), super::ANSWER),
        ("a later fragment of an error, of a router", fragment_to(ROUTER, HOST, ICMP), UNCOVERED),
        ("a redirect is not an error", about(5, &tcp(50_000)), UNCOVERED),
    ]
}

/// Returns an IPv6 segment of the host behind these extension headers.
fn behind(headers: &[u8], port: u16) -> Vec<u8> {
    let mut payload = Vec::new();
    for (place, kind) in headers.iter().enumerate() {
        let next = *headers.get(place + 1).unwrap_or(&TCP);
        payload.extend([next, u8::from(*kind == AUTHENTICATION), 0, 0, 0, 0, 0, 0]);
        if *kind == AUTHENTICATION {
            payload.extend([0; 4]);
        }
    }
    payload.extend(&tcp6(port)[ETHERNET + 40..]);
    packet_to(HOST6, REMOTE6, headers[0], &payload)
}

/// Inserts destination options before an ICMPv6 error.
fn behind_options(error: &[u8]) -> Vec<u8> {
    let options = [ICMPV6, 0, 1, 4, 0, 0, 0, 0];
    let payload = [&options[..], &error[ETHERNET + 40..]].concat();
    packet_to(ROUTER6, HOST6, DESTINATION, &payload)
}

/// Without flow tracking, all errors pass.
#[rustfmt::skip]
fn untracked() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("about no packet of the host", about(3, &tcp(50_009)), WANTED),
        ("about no packet of the host, IPv6", about(2, &tcp6(50_009)), WANTED),
        ("nothing quoted", error(ROUTER, HOST, 3, &[]), WANTED),
        ("about a packet of another source address", about(3, &ported(TCP, ("198.51.100.9", 50_000), (REMOTE, 443), 0)), WANTED),
    ]
}

#[rustfmt::skip]
fn not_exempt_rows() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("about a flow of the host", about(3, &tcp(50_000)), UNCOVERED),
        ("about a flow of the host, IPv6", about(2, &tcp6(50_006)), UNCOVERED),
        ("about no packet of the host", about(3, &tcp(50_009)), UNCOVERED),
        ("an answer", ported(TCP, (REMOTE, 443), (HOST, 50_000), tcp_flag::ACK), super::ANSWER),
    ]
}

/// With `any`, the service also covers protocols without ports, which have no flows.
#[rustfmt::skip]
fn any() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("GRE to the office", about(3, &packet_to(HOST, OFFICE, GRE, &[0; 8])), WANTED),
        ("GRE to a stranger", about(3, &packet_to(HOST, STRANGER, GRE, &[0; 8])), UNWANTED),
        ("SCTP to the office", about(3, &ported(SCTP, (HOST, 9), (OFFICE, 9), 0)), WANTED),
        ("any TCP port to the office, IPv6", about(2, &ported(TCP, (HOST6, 9), (OFFICE6, 9), 0)), WANTED),
        ("any TCP port to a stranger", about(3, &ported(TCP, (HOST, 9), (STRANGER, 9), 0)), UNWANTED),
        ("a flow of this host, from a port that the service covers", about(3, &tcp(50_000)), WANTED),
        ("an echo to the office", about(11, &echo(HOST, OFFICE, 8, 7)), WANTED),
        ("from the office, without a quote", error(OFFICE, HOST, 3, &[]), UNWANTED),
        ("an answer to a port that the service covers", ported(TCP, (REMOTE, 443), (HOST, 50_000), tcp_flag::ACK), super::ANSWER),
        ("the office", ported(TCP, (OFFICE, 443), (HOST, 50_000), tcp_flag::ACK), allowed("office", "all")),
    ]
}
