//! `return_traffic`: answers to packets of the host, and packets that only resemble answers.

use allowlist_common::packet::{ICMP, ICMPV6, SCTP, TCP, UDP, tcp_flag};
use allowlist_common::verdict::Reason;
use allowlist_tests::lab::frame::tagged;

use super::build::{
    DESTINATION, ETHERNET, GRE, HOST, HOST6, OFFICE, STRANGER, STRANGER6, VENDOR, VENDOR6, echo,
    fragment, fragment_to, icmp, packet, packet_to, ported, with, with_options,
};
use super::services::ANY;
use super::{
    ANSWER, Expected, Group, SOURCES, STRAY, UNCOVERED, allowed, config, drop, pass, refused,
};

/// The remote end of the host's flows, in no source.
pub(super) const REMOTE: &str = "198.18.0.5";
pub(super) const REMOTE6: &str = "2001:db8:55::5";

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const RST: u8 = tcp_flag::RST;
const FIN: u8 = tcp_flag::FIN;
const PSH: u8 = 1 << 3;
const URG: u8 = 1 << 5;

/// The services of the basic policy without ping, which would decide echo replies.
pub(super) const WITHOUT_PING: &str = r#"
    [services.web]
    ports = ["tcp/443", "tcp/8443-8445"]
    allow = ["vendor", "office"]
    [services.dns]
    ports = ["udp/53"]
    allow = ["office"]
"#;

pub(super) fn groups() -> Vec<Group> {
    let track = "default = \"drop\"\n";
    let tracked = |name: &str, settings: &str, rows| {
        Group::new(name, [settings, WITHOUT_PING, SOURCES].concat(), rows).after(sent())
    };
    let mut all = tcp();
    all.extend(others());
    vec![
        tracked("track", track, all),
        tracked("track, later fragments", track, fragments()),
        tracked(
            "track, observe",
            &format!("mode = \"observe\"\n{track}"),
            tcp(),
        ),
        Group::new(
            "track, services cover the ports of this host",
            [track, ANY, SOURCES].concat(),
            shared(),
        )
        .after(sent()),
        Group::new("track, ping is a service", config(track), with_ping()).after(sent()),
        Group::new("track, nothing sent", config(track), nothing_sent()),
        Group::new(
            "track, default pass",
            config("return_traffic = \"track\"\n"),
            nothing_sent(),
        )
        .after(sent()),
        Group::new(
            "established",
            config("default = \"drop\"\nreturn_traffic = \"established\"\n"),
            established(),
        )
        .after(sent()),
        Group::new(
            "established, default pass",
            config("return_traffic = \"established\"\n"),
            nothing_sent(),
        )
        .after(sent()),
        Group::new(
            "off",
            config("default = \"drop\"\nreturn_traffic = \"off\"\n"),
            nothing_sent(),
        )
        .after(sent()),
    ]
}

/// Returns the frames that the host has sent.
#[rustfmt::skip]
pub(super) fn sent() -> Vec<Vec<u8>> {
    vec![
        ported(TCP, (HOST, 50_000), (REMOTE, 443), SYN),
        ported(TCP, (HOST6, 50_006), (REMOTE6, 443), SYN),
        ported(UDP, (HOST, 50_001), (REMOTE, 53), 0),
        ported(UDP, (HOST6, 50_007), (REMOTE6, 53), 0),
        echo(HOST, REMOTE, 8, 0x1234),
        echo(HOST6, REMOTE6, 128, 0x1236),
        // Ended by the host; packets that are already in flight still pass.
        ported(TCP, (HOST, 50_002), (REMOTE, 443), SYN),
        ported(TCP, (HOST, 50_002), (REMOTE, 443), FIN | ACK),
        ported(TCP, (HOST, 50_003), (REMOTE, 443), SYN),
        ported(TCP, (HOST, 50_003), (REMOTE, 443), RST),
        // None begins a connection.
        ported(TCP, (HOST, 50_020), (REMOTE, 443), RST),
        ported(TCP, (HOST, 50_021), (REMOTE, 443), RST | ACK),
        ported(TCP, (HOST, 50_022), (REMOTE, 443), ACK),
        ported(TCP, (HOST, 50_023), (REMOTE, 443), FIN | ACK),
        ported(TCP, (HOST, 50_024), (REMOTE, 443), SYN | ACK),
        ported(TCP, (HOST, 50_025), (REMOTE, 443), SYN | RST),
        ported(TCP, (HOST, 50_026), (REMOTE, 443), SYN),
        ported(TCP, (HOST, 50_026), (REMOTE, 443), SYN | ACK),
        // Behind a tag, IPv4 options and extension headers.
        tagged(ported(TCP, (HOST, 50_010), (REMOTE, 443), SYN), &[(0x8100, 5)]),
        with_options(&ported(TCP, (HOST, 50_011), (REMOTE, 443), SYN), 1),
        packet_to(HOST6, REMOTE6, DESTINATION, &[&[UDP, 0, 1, 4, 0, 0, 0, 0][..], &50_012_u16.to_be_bytes(), &[0, 53, 0, 8, 0, 0]].concat()),
        with(ported(UDP, (HOST, 50_013), (REMOTE, 53), 0), &[(ETHERNET + 6, 0x20)]),
        // Not tracked: from a service's port, of a protocol without flows, without ports, malformed.
        ported(TCP, (HOST, 443), (REMOTE, 51_000), SYN | ACK),
        ported(UDP, (HOST, 53), (STRANGER, 51_000), 0),
        ported(SCTP, (HOST, 50_004), (REMOTE, 3868), 0),
        packet_to(HOST, REMOTE, GRE, &[0; 8]),
        fragment_to(HOST, "198.18.0.6", UDP),
        echo(HOST, REMOTE, 0, 0x4321),
        echo(HOST, REMOTE, 13, 0x1313),
        with(ported(TCP, (HOST, 50_005), (REMOTE, 443), SYN), &[(ETHERNET, 0x44)]),
    ]
}

/// Returns a segment from port 443 of the remote to this port of the host.
fn segment(source: &str, port: u16, flags: u8) -> Vec<u8> {
    ported(
        TCP,
        (source, 443),
        (super::build::host(source), port),
        flags,
    )
}

#[rustfmt::skip]
fn tcp() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("SYN and ACK", segment(REMOTE, 50_000, SYN | ACK), ANSWER),
        ("ACK", segment(REMOTE, 50_000, ACK), ANSWER),
        ("data", segment(REMOTE, 50_000, PSH | ACK), ANSWER),
        ("RST", segment(REMOTE, 50_000, RST), ANSWER),
        ("RST and ACK", segment(REMOTE, 50_000, RST | ACK), ANSWER),
        ("FIN and ACK", segment(REMOTE, 50_000, FIN | ACK), ANSWER),
        ("SYN", segment(REMOTE, 50_000, SYN), UNCOVERED),
        ("SYN with ECN flags", segment(REMOTE, 50_000, SYN | 0xc0), UNCOVERED),
        ("FIN", segment(REMOTE, 50_000, FIN), UNCOVERED),
        ("no flag", segment(REMOTE, 50_000, 0), UNCOVERED),
        ("FIN, PSH and URG", segment(REMOTE, 50_000, FIN | PSH | URG), UNCOVERED),
        ("SYN and FIN", segment(REMOTE, 50_000, SYN | FIN), UNCOVERED),
        ("another remote port", ported(TCP, (REMOTE, 444), (HOST, 50_000), ACK), UNCOVERED),
        ("another local port", segment(REMOTE, 50_009, ACK), UNCOVERED),
        ("another flow's local port", segment(REMOTE, 50_001, ACK), UNCOVERED),
        ("another remote address", segment(STRANGER, 50_000, ACK), UNCOVERED),
        ("another local address", ported(TCP, (REMOTE, 443), ("198.51.100.9", 50_000), ACK), UNCOVERED),
        ("the other family", segment(REMOTE6, 50_000, ACK), UNCOVERED),
        ("an IPv4-mapped remote", ported(TCP, ("::ffff:198.18.0.5", 443), ("::ffff:198.51.100.1", 50_000), ACK), UNCOVERED),
        ("the zero-padded remote", ported(TCP, ("c612:5::", 443), ("c633:6401::", 50_000), ACK), UNCOVERED),
        ("the other protocol", ported(UDP, (REMOTE, 443), (HOST, 50_000), 0), UNCOVERED),
        ("the host's own, sent back", ported(TCP, (HOST, 50_000), (REMOTE, 443), ACK), refused("web")),
        ("ports the wrong way round", ported(TCP, (REMOTE, 50_000), (HOST, 443), ACK), refused("web")),
        ("IPv6, SYN and ACK", segment(REMOTE6, 50_006, SYN | ACK), ANSWER),
        ("IPv6, RST", segment(REMOTE6, 50_006, RST), ANSWER),
        ("IPv6, SYN", segment(REMOTE6, 50_006, SYN), UNCOVERED),
        ("IPv6, another remote", segment(STRANGER6, 50_006, ACK), UNCOVERED),
        ("IPv6, another local address", ported(TCP, (REMOTE6, 443), ("2001:db8:ffff::2", 50_006), ACK), UNCOVERED),
        ("after the host's FIN", segment(REMOTE, 50_002, ACK), ANSWER),
        ("after the host's RST", segment(REMOTE, 50_003, RST), ANSWER),
        ("after an RST alone", segment(REMOTE, 50_020, RST), UNCOVERED),
        ("after an RST and ACK alone", segment(REMOTE, 50_021, ACK), UNCOVERED),
        ("after an ACK alone", segment(REMOTE, 50_022, ACK), UNCOVERED),
        ("after a FIN alone", segment(REMOTE, 50_023, ACK), UNCOVERED),
        ("in an accepted connection", segment(REMOTE, 50_024, ACK), UNCOVERED),
        ("after a SYN and RST", segment(REMOTE, 50_025, ACK), UNCOVERED),
        ("in a simultaneously opened connection", segment(REMOTE, 50_026, ACK), UNCOVERED),
        ("to a segment that was sent behind a tag", segment(REMOTE, 50_010, ACK), ANSWER),
        ("to a segment that was sent with options", segment(REMOTE, 50_011, ACK), ANSWER),
        ("to a malformed segment", segment(REMOTE, 50_005, ACK), UNCOVERED),
        ("an answer in a tag", tagged(segment(REMOTE, 50_000, ACK), &[(0x8100, 5)]), ANSWER),
        ("an answer with IPv4 options", with_options(&segment(REMOTE, 50_000, ACK), 2), ANSWER),
        ("an answer behind a header", packet_to(REMOTE6, HOST6, DESTINATION, &[&[TCP, 0, 1, 4, 0, 0, 0, 0][..], &segment(REMOTE6, 50_006, ACK)[ETHERNET + 40..]].concat()), ANSWER),
        ("an answer's first fragment", with(segment(REMOTE, 50_000, ACK), &[(ETHERNET + 6, 0x20)]), ANSWER),
        ("to a service's port, which is not tracked", ported(TCP, (REMOTE, 51_000), (HOST, 443), ACK), refused("web")),
        ("to a service's port, vendor", ported(TCP, (VENDOR, 51_000), (HOST, 443), ACK), allowed("vendor", "web")),
    ]
}

#[rustfmt::skip]
fn others() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("UDP", ported(UDP, (REMOTE, 53), (HOST, 50_001), 0), ANSWER),
        ("UDP, IPv6", ported(UDP, (REMOTE6, 53), (HOST6, 50_007), 0), ANSWER),
        ("UDP, another remote port", ported(UDP, (REMOTE, 54), (HOST, 50_001), 0), UNCOVERED),
        ("UDP, another local port", ported(UDP, (REMOTE, 53), (HOST, 50_009), 0), UNCOVERED),
        ("UDP, another remote", ported(UDP, (STRANGER, 53), (HOST, 50_001), 0), UNCOVERED),
        ("UDP, another local address", ported(UDP, (REMOTE6, 53), ("2001:db8:ffff::2", 50_007), 0), UNCOVERED),
        ("UDP to a datagram that was sent behind a header", ported(UDP, (REMOTE6, 53), (HOST6, 50_012), 0), ANSWER),
        ("UDP to a datagram that was sent as a first fragment", ported(UDP, (REMOTE, 53), (HOST, 50_013), 0), ANSWER),
        ("UDP to a service's port, which is not tracked", ported(UDP, (STRANGER, 51_000), (HOST, 53), 0), refused("dns")),
        ("TCP of a UDP flow's ports", ported(TCP, (REMOTE, 53), (HOST, 50_001), ACK), UNCOVERED),
        ("SCTP has no flows", ported(SCTP, (REMOTE, 3868), (HOST, 50_004), 0), UNCOVERED),
        ("GRE has no flows", packet(REMOTE, GRE, &[0; 8]), UNCOVERED),
        ("echo reply", echo(REMOTE, HOST, 0, 0x1234), ANSWER),
        ("echo reply, IPv6", echo(REMOTE6, HOST6, 129, 0x1236), ANSWER),
        ("echo reply, another identifier", echo(REMOTE, HOST, 0, 0x1235), UNCOVERED),
        ("echo reply, identifier 0, from a peer: no request had it", echo(REMOTE, HOST, 0, 0), UNCOVERED),
        ("echo reply, identifier 0, stranger", echo(STRANGER, HOST, 0, 0), UNCOVERED),
        ("echo reply, another remote", echo(STRANGER, HOST, 0, 0x1234), UNCOVERED),
        ("echo reply, IPv6, another identifier", echo(REMOTE6, HOST6, 129, 0x1234), UNCOVERED),
        ("echo request of that identifier", echo(REMOTE, HOST, 8, 0x1234), UNCOVERED),
        ("echo request of that identifier, IPv6", echo(REMOTE6, HOST6, 128, 0x1236), UNCOVERED),
        ("echo reply to an echo reply", echo(REMOTE, HOST, 0, 0x4321), UNCOVERED),
        ("the host's own echo request, sent back", echo(HOST, REMOTE, 8, 0x1234), UNCOVERED),
        ("timestamp reply", echo(REMOTE, HOST, 14, 0x1313), UNCOVERED),
        ("IPv4's echo reply over IPv6", packet_to(REMOTE6, HOST6, ICMP, &[0, 0, 0, 0, 0x12, 0x36, 0, 1]), UNCOVERED),
        ("IPv6's echo reply over IPv4", packet_to(REMOTE, HOST, ICMPV6, &[129, 0, 0, 0, 0x12, 0x34, 0, 1]), UNCOVERED),
        ("ports 0 and 0, from a peer: nothing was sent from there", ported(UDP, (REMOTE, 0), (HOST, 0), 0), UNCOVERED),
        ("ports 0 and 0, stranger", ported(UDP, (STRANGER, 0), (HOST, 0), 0), UNCOVERED),
    ]
}

#[rustfmt::skip]
fn fragments() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("TCP, of a peer", fragment(REMOTE, TCP), ANSWER),
        ("TCP, of a peer, IPv6", fragment(REMOTE6, TCP), ANSWER),
        ("UDP, of a peer", fragment(REMOTE, UDP), ANSWER),
        ("ICMP, of a peer", fragment(REMOTE, ICMP), ANSWER),
        ("ICMPv6, of a peer", fragment(REMOTE6, ICMPV6), ANSWER),
        ("TCP, stranger", fragment(STRANGER, TCP), STRAY),
        ("UDP, stranger, IPv6", fragment(STRANGER6, UDP), STRAY),
        ("ICMP, stranger, which no service covers", fragment(STRANGER, ICMP), UNCOVERED),
        ("TCP, vendor", fragment(VENDOR, TCP), allowed("vendor", "")),
        ("UDP, vendor", fragment(VENDOR, UDP), STRAY),
        ("UDP, office", fragment(OFFICE, UDP), allowed("office", "")),
        ("TCP, of a peer, to another address", fragment_to(REMOTE, "198.51.100.9", TCP), STRAY),
        ("UDP, of a remote to which the host sent only fragments", fragment("198.18.0.6", UDP), STRAY),
        ("SCTP, of a peer", fragment(REMOTE, SCTP), UNCOVERED),
        ("GRE, of a peer", fragment(REMOTE, GRE), UNCOVERED),
        ("begins with options, of a peer", fragment(REMOTE6, DESTINATION), STRAY),
        ("begins with options, vendor", fragment(VENDOR6, DESTINATION), allowed("vendor", "")),
        ("ICMPv6 over IPv4, of a peer", fragment(REMOTE, ICMPV6), UNCOVERED),
    ]
}

#[rustfmt::skip]
fn shared() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("SYN and ACK", segment(REMOTE, 50_000, SYN | ACK), ANSWER),
        ("data, IPv6", segment(REMOTE6, 50_006, PSH | ACK), ANSWER),
        ("SYN", segment(REMOTE, 50_000, SYN), refused("all")),
        ("another remote", segment(STRANGER, 50_000, ACK), refused("all")),
        ("another port", segment(REMOTE, 50_009, ACK), refused("all")),
        ("UDP", ported(UDP, (REMOTE, 53), (HOST, 50_001), 0), ANSWER),
        ("UDP, IPv6", ported(UDP, (REMOTE6, 53), (HOST6, 50_007), 0), ANSWER),
        ("UDP, another remote", ported(UDP, (STRANGER, 53), (HOST, 50_001), 0), refused("all")),
        ("UDP that the host sent from a low port of the same service", ported(UDP, (STRANGER, 51_000), (HOST, 53), 0), ANSWER),
        ("UDP, office", ported(UDP, (OFFICE, 53), (HOST, 50_001), 0), allowed("office", "all")),
        ("SYN, office", segment(OFFICE, 50_000, SYN), allowed("office", "all")),
        ("echo reply", echo(REMOTE, HOST, 0, 0x1234), ANSWER),
        ("echo request", echo(STRANGER, HOST, 8, 0x1234), refused("all")),
        ("to a port below the ephemeral range, which another service covers too", ported(TCP, (REMOTE, 51_000), (HOST, 443), ACK), refused("all web")),
        ("to that port, vendor", ported(TCP, (VENDOR, 51_000), (HOST, 443), ACK), allowed("vendor", "all web")),
        ("GRE", packet(STRANGER, GRE, &[0; 8]), refused("all")),
    ]
}

#[rustfmt::skip]
fn with_ping() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("echo reply to a request of the host, although a service covers ICMP", echo(REMOTE, HOST, 0, 0x1234), ANSWER),
        ("echo reply without a request", echo(REMOTE, HOST, 0, 0x1235), refused("ping")),
        ("echo request, office", icmp(OFFICE, 8), allowed("office", "ping")),
        ("later fragment of ICMP, of a peer", fragment(REMOTE, ICMP), ANSWER),
        ("later fragment of ICMP, stranger", fragment(STRANGER, ICMP), STRAY),
        ("an answer", segment(REMOTE, 50_000, ACK), ANSWER),
    ]
}

/// Rows for a host that has sent no packet, or with settings that ignore sent packets.
#[rustfmt::skip]
fn nothing_sent() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("SYN and ACK", segment(REMOTE, 50_000, SYN | ACK), UNCOVERED),
        ("RST, IPv6", segment(REMOTE6, 50_006, RST), UNCOVERED),
        ("SYN", segment(REMOTE, 50_000, SYN), UNCOVERED),
        ("UDP", ported(UDP, (REMOTE, 53), (HOST, 50_001), 0), UNCOVERED),
        ("echo reply", echo(REMOTE, HOST, 0, 0x1234), refused("ping")),
        ("later fragment", fragment(REMOTE, TCP), STRAY),
        ("later fragment, vendor", fragment(VENDOR, TCP), allowed("vendor", "")),
        ("ACK to a service, vendor", ported(TCP, (VENDOR, 51_000), (HOST, 443), ACK), allowed("vendor", "web")),
        ("ACK to a service, stranger", ported(TCP, (STRANGER, 51_000), (HOST, 443), ACK), refused("web")),
    ]
}

#[rustfmt::skip]
fn established() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("SYN and ACK, stranger", segment(STRANGER, 50_000, SYN | ACK), ANSWER),
        ("ACK", segment(REMOTE, 50_000, ACK), ANSWER),
        ("ACK to any port", segment(REMOTE, 9, ACK), ANSWER),
        ("RST, IPv6", segment(STRANGER6, 50_000, RST), ANSWER),
        ("FIN and ACK", segment(STRANGER, 50_000, FIN | ACK), ANSWER),
        ("SYN", segment(REMOTE, 50_000, SYN), UNCOVERED),
        ("FIN", segment(REMOTE, 50_000, FIN), UNCOVERED),
        ("no flag", segment(REMOTE, 50_000, 0), UNCOVERED),
        ("FIN, PSH and URG, IPv6", segment(REMOTE6, 50_000, FIN | PSH | URG), UNCOVERED),
        ("ACK to a service, stranger", segment(STRANGER, 443, ACK), refused("web")),
        ("ACK to a service, vendor", segment(VENDOR, 443, ACK), allowed("vendor", "web")),
        ("UDP", ported(UDP, (REMOTE, 53), (HOST, 50_001), 0), UNCOVERED),
        ("SCTP", ported(SCTP, (REMOTE, 3868), (HOST, 50_004), 0xff), UNCOVERED),
        ("echo reply", echo(REMOTE, HOST, 0, 0x1234), refused("ping")),
        ("later fragment of TCP", fragment(REMOTE, TCP), STRAY),
        ("later fragment of GRE", fragment(REMOTE, GRE), UNCOVERED),
        ("an ICMP error, independent of the quote", icmp(STRANGER, 3), pass(Reason::IcmpError)),
        ("IPv4's broken header", with(segment(REMOTE, 50_000, ACK), &[(ETHERNET, 0x44)]), drop(Reason::Malformed)),
    ]
}
