//! Headers at their limits, under the basic policy: tags, options, extension header chains, overlapping fragments, and
//! frames that end before, in and behind each header.

use allowlist_common::packet::{ICMP, ICMPV6, SCTP, TCP, UDP};
use allowlist_common::verdict::Reason;
use allowlist_tests::lab::frame::{self, tagged};

use super::build::{
    AUTHENTICATION, DESTINATION, ESP, ETHERNET, FRAGMENT, GRE, HOP_BY_HOP, NO_NEXT, OFFICE,
    OFFICE6, ROUTING, STRANGER, STRANGER6, VENDOR, VENDOR6, cut, extended, fragment, fragment_at,
    icmp, packet, packet_to, padded, shortened, tcp, tcp_header, udp, with, with_options,
};
use super::{CUT_SHORT, Expected, MALFORMED, STRAY, UNCOVERED, allowed, pass, refused};

const WEB: Expected = allowed("vendor", "web");

pub(super) fn rows() -> Vec<(String, Vec<u8>, Expected)> {
    let mut rows: Vec<_> = [tags(), ipv4(), ipv6(), fragments(), jumbo()]
        .into_iter()
        .flatten()
        .map(|(description, frame, end)| (description.to_owned(), frame, end))
        .collect();
    rows.extend(ends());
    rows
}

#[rustfmt::skip]
fn tags() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let q = 0x8100;
    let ad = 0x88a8;
    vec![
        ("a tag that only has a priority", tagged(tcp(VENDOR, 443), &[(q, 0xe000)]), WEB),
        ("a tag that only has a priority, stranger", tagged(tcp(STRANGER, 443), &[(q, 0xe000)]), refused("web")),
        ("802.1ad tag alone, vendor", tagged(tcp(VENDOR, 443), &[(ad, 5)]), WEB),
        ("two 802.1Q tags", tagged(tcp(VENDOR, 443), &[(q, 5), (q, 6)]), WEB),
        ("two 802.1ad tags, stranger, IPv6", tagged(tcp(STRANGER6, 443), &[(ad, 5), (ad, 6)]), refused("web")),
        ("802.1Q outside 802.1ad", tagged(tcp(VENDOR6, 443), &[(q, 5), (ad, 6)]), WEB),
        ("three tags, 802.1ad outside", tagged(tcp(VENDOR6, 443), &[(ad, 5), (q, 6), (q, 7)]), MALFORMED),
        ("three tags around LLDP", tagged(frame::ethernet(0x88cc, &[0; 46]), &[(q, 5), (q, 6), (q, 7)]), MALFORMED),
        ("two tags around ARP", tagged(frame::ethernet(0x0806, &[0; 28]), &[(ad, 5), (q, 6)]), pass(Reason::Arp)),
        ("one tag around LLDP", tagged(frame::ethernet(0x88cc, &[0; 46]), &[(q, 5)]), pass(Reason::NotIp)),
        ("0x9100 is not recognised as a tag", tagged(tcp(STRANGER, 443), &[(0x9100, 5)]), pass(Reason::NotIp)),
        ("PPPoE is not IP", frame::ethernet(0x8864, &[0; 46]), pass(Reason::NotIp)),
        ("MPLS is not IP", frame::ethernet(0x8847, &[0; 46]), pass(Reason::NotIp)),
        ("one tag around a broken header", tagged(with(tcp(VENDOR, 443), &[(ETHERNET, 0x44)]), &[(q, 5)]), MALFORMED),
        ("two tags and nothing behind", cut(tagged(tcp(VENDOR, 443), &[(q, 5), (q, 6)]), 22), CUT_SHORT),
        ("the second tag is cut", cut(tagged(tcp(VENDOR, 443), &[(q, 5), (q, 6)]), 20), CUT_SHORT),
    ]
}

#[rustfmt::skip]
fn ipv4() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("most IPv4 options", with_options(&tcp(VENDOR, 443), 10), WEB),
        ("most IPv4 options, stranger", with_options(&tcp(STRANGER, 443), 10), refused("web")),
        ("options that resemble ports of a service", with_options(&tcp(STRANGER, 22), 10), UNCOVERED),
        ("IPv4 options of a later fragment", with_options(&fragment(VENDOR, TCP), 2), allowed("vendor", "")),
        ("IPv4 options before an ICMP message", with_options(&icmp(OFFICE, 8), 3), allowed("office", "ping")),
        ("version 0", with(tcp(VENDOR, 443), &[(ETHERNET, 0x05)]), MALFORMED),
        ("version 15", with(tcp(VENDOR, 443), &[(ETHERNET, 0xf5)]), MALFORMED),
        ("header length 0", with(tcp(VENDOR, 443), &[(ETHERNET, 0x40)]), MALFORMED),
        ("header length of a word too much cuts TCP", with(tcp(VENDOR, 443), &[(ETHERNET, 0x46)]), MALFORMED),
        ("total length one past the frame", with(tcp(VENDOR, 443), &[(ETHERNET + 3, 41)]), CUT_SHORT),
        ("total length 65535", with(tcp(VENDOR, 443), &[(ETHERNET + 2, 255), (ETHERNET + 3, 255)]), MALFORMED),
        ("total length is the header, of a protocol without ports", packet(STRANGER, GRE, &[]), UNCOVERED),
        ("total length is the header, of TCP", packet(VENDOR, TCP, &[]), MALFORMED),
        ("no hops left", with(tcp(VENDOR, 443), &[(ETHERNET + 8, 0)]), WEB),
        ("the reserved flag", with(tcp(VENDOR, 443), &[(ETHERNET + 6, 0x80)]), WEB),
        ("do not fragment", with(tcp(VENDOR, 443), &[(ETHERNET + 6, 0x40)]), WEB),
        ("to a broadcast address", packet_to(STRANGER, "255.255.255.255", TCP, &tcp_header(443)), refused("web")),
        ("to a multicast address", packet_to(VENDOR, "224.0.0.1", TCP, &tcp_header(443)), WEB),
        ("from the host's own address", packet_to("198.51.100.1", "198.51.100.1", TCP, &tcp_header(443)), refused("web")),
        ("IPv6 in IPv4 is decided by the IPv4 header", packet(STRANGER, 41, &tcp(VENDOR6, 443)[ETHERNET..]), UNCOVERED),
        ("protocol 0 over IPv4", packet(STRANGER, HOP_BY_HOP, &[TCP, 0, 0, 0, 0, 0, 0, 0]), UNCOVERED),
        ("an authentication header over IPv4 hides its ports", packet(STRANGER, AUTHENTICATION, &[TCP, 1, 0, 0]), UNCOVERED),
        ("ESP over IPv4", packet(STRANGER, ESP, &[0; 32]), UNCOVERED),
        ("protocol 255", packet(STRANGER, 255, &[0; 8]), UNCOVERED),
        ("an unused ICMP type", icmp(STRANGER, 255), refused("ping")),
        ("source quench is not an error", icmp(STRANGER, 4), refused("ping")),
        ("the type before time exceeded", icmp(STRANGER, 10), refused("ping")),
        ("echo reply", icmp(STRANGER, 0), refused("ping")),
        ("SCTP, which no service covers", packet(STRANGER, SCTP, &[0; 12]), UNCOVERED),
        ("UDP to a TCP service's port, stranger", udp(STRANGER, 443, 8443), UNCOVERED),
        ("UDP with a length that contradicts the packet", with(udp(OFFICE, 40_000, 53), &[(ETHERNET + 20 + 4, 255)]), allowed("office", "dns")),
        ("TCP with a data offset of 0", with(tcp(VENDOR, 443), &[(ETHERNET + 20 + 12, 0)]), WEB),
        ("TCP from a service's port", with(tcp(STRANGER, 22), &[(ETHERNET + 20, 1), (ETHERNET + 21, 0xbb)]), UNCOVERED),
    ]
}

#[rustfmt::skip]
fn ipv6() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("last address of the prefix, IPv6", tcp("2001:db8:1::ffff:ffff:ffff:ffff", 443), WEB),
        ("an IPv4-mapped source to an unprotected port", tcp("::ffff:192.0.2.1", 22), UNCOVERED),
        ("an IPv4-compatible source is not that IPv4 source", tcp("::192.0.2.1", 443), refused("web")),
        ("address ::", tcp("::", 443), refused("web")),
        ("a link-local source", tcp("fe80::1", 443), refused("web")),
        ("a traffic class", with(tcp(VENDOR6, 443), &[(ETHERNET, 0x6f)]), WEB),
        ("version 7", with(tcp(VENDOR6, 443), &[(ETHERNET, 0x70)]), MALFORMED),
        ("payload length one past the frame", with(tcp(VENDOR6, 443), &[(ETHERNET + 5, 21)]), CUT_SHORT),
        ("payload length 0, of TCP", with(tcp(VENDOR6, 443), &[(ETHERNET + 5, 0)]), MALFORMED),
        ("payload length 0, of a protocol without ports", packet(STRANGER6, GRE, &[]), UNCOVERED),
        ("payload length 65535", with(tcp(VENDOR6, 443), &[(ETHERNET + 4, 255), (ETHERNET + 5, 255)]), MALFORMED),
        ("hop-by-hop, routing and destination options", extended(VENDOR6, &[HOP_BY_HOP, ROUTING, DESTINATION], 443), WEB),
        ("the same, stranger", extended(STRANGER6, &[HOP_BY_HOP, ROUTING, DESTINATION], 443), refused("web")),
        ("a hop-by-hop header that is not the first", extended(VENDOR6, &[DESTINATION, HOP_BY_HOP], 443), WEB),
        ("an atomic fragment behind options, stranger", extended(STRANGER6, &[DESTINATION, FRAGMENT], 443), refused("web")),
        ("options behind an atomic fragment", extended(VENDOR6, &[FRAGMENT, DESTINATION], 443), WEB),
        ("a long options header", packet(VENDOR6, DESTINATION, &[&[TCP, 4, 1, 36][..], &[0; 36], &tcp_header(443)].concat()), WEB),
        ("a long options header, stranger", packet(STRANGER6, DESTINATION, &[&[TCP, 4, 1, 36][..], &[0; 36], &tcp_header(443)].concat()), refused("web")),
        ("a fragment header with a nonzero reserved byte", packet(VENDOR6, FRAGMENT, &[&[TCP, 9, 0, 0, 0, 0, 0, 1][..], &tcp_header(443)].concat()), WEB),
        ("options behind which the packet ends", packet(STRANGER6, DESTINATION, &[NO_NEXT, 0, 1, 4, 0, 0, 0, 0]), UNCOVERED),
        ("options behind which TCP ends", packet(VENDOR6, DESTINATION, &[TCP, 0, 1, 4, 0, 0, 0, 0]), MALFORMED),
        ("a fragment header cut short", packet(VENDOR6, FRAGMENT, &[TCP, 0, 0, 0]), MALFORMED),
        ("an authentication header past the packet", packet(VENDOR6, AUTHENTICATION, &[TCP, 9, 0, 0, 0, 0, 0, 0]), MALFORMED),
        ("a mobility header is not followed", packet(STRANGER6, 135, &[TCP, 0, 0, 0, 0, 0, 0, 0]), UNCOVERED),
        ("eight headers, the last one a fragment's", extended(VENDOR6, &[HOP_BY_HOP, 60, 60, 60, 60, 60, 60, FRAGMENT], 443), WEB),
        ("neighbour solicitation behind options", with(packet(STRANGER6, DESTINATION, &[&[ICMPV6, 0, 1, 4, 0, 0, 0, 0][..], &[135, 0, 0, 0, 0, 0, 0, 0]].concat()), &[(ETHERNET + 7, 255)]), pass(Reason::NeighbourDiscovery)),
        ("router solicitation from the link", with(icmp(STRANGER6, 133), &[(ETHERNET + 7, 255)]), pass(Reason::NeighbourDiscovery)),
        ("the type before it", with(icmp(STRANGER6, 132), &[(ETHERNET + 7, 255)]), refused("ping")),
        ("the type after a redirect", with(icmp(STRANGER6, 138), &[(ETHERNET + 7, 255)]), refused("ping")),
        ("neighbour solicitation with no hop left", with(icmp(STRANGER6, 135), &[(ETHERNET + 7, 0)]), refused("ping")),
        ("time exceeded, IPv6", icmp(STRANGER6, 3), pass(Reason::IcmpError)),
        ("the type before an error, IPv6", icmp(STRANGER6, 0), refused("ping")),
        ("the type after the errors, IPv6", icmp(STRANGER6, 5), refused("ping")),
        ("echo reply, IPv6", icmp(STRANGER6, 129), refused("ping")),
        ("UDP with a length of 0", with(udp(OFFICE6, 40_000, 53), &[(ETHERNET + 40 + 5, 0)]), allowed("office", "dns")),
    ]
}

#[rustfmt::skip]
fn fragments() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let first = |frame: Vec<u8>| with(frame, &[(ETHERNET + 6, 0x20), (ETHERNET + 7, 0)]);
    vec![
        ("a fragment that overlaps TCP's flags", fragment_at(VENDOR, TCP, 8), MALFORMED),
        ("a fragment that overlaps the end of TCP's header", fragment_at(VENDOR, TCP, 16), MALFORMED),
        ("a fragment just behind TCP's header", fragment_at(VENDOR, TCP, 24), allowed("vendor", "")),
        ("a fragment just behind TCP's header, stranger", fragment_at(STRANGER, TCP, 24), STRAY),
        ("a fragment just behind UDP's header", fragment_at(OFFICE, UDP, 8), allowed("office", "")),
        ("a fragment that overlaps SCTP's header", fragment_at(STRANGER, SCTP, 8), MALFORMED),
        ("a fragment just behind SCTP's header", fragment_at(STRANGER, SCTP, 16), UNCOVERED),
        ("a fragment just behind ICMP's header", fragment_at(OFFICE, ICMP, 8), allowed("office", "")),
        ("a fragment just behind ICMP's header, stranger", fragment_at(STRANGER, ICMP, 8), STRAY),
        ("an early fragment of a protocol without ports", fragment_at(STRANGER, GRE, 8), UNCOVERED),
        ("a fragment that overlaps TCP's flags, IPv6", fragment_at(VENDOR6, TCP, 8), MALFORMED),
        ("a fragment just behind TCP's header, IPv6", fragment_at(VENDOR6, TCP, 24), allowed("vendor", "")),
        ("a fragment at the end of the longest packet", fragment_at(VENDOR, TCP, 65_528), allowed("vendor", "")),
        ("a fragment at the end of the longest packet, IPv6, stranger", fragment_at(STRANGER6, TCP, 65_528), STRAY),
        ("a later fragment that is short", shortened(fragment(VENDOR, TCP), ETHERNET + 21), allowed("vendor", "")),
        ("a later fragment without a byte", shortened(fragment(STRANGER, TCP), ETHERNET + 20), STRAY),
        ("a later fragment with more to come", with(fragment(VENDOR, TCP), &[(ETHERNET + 6, 0x20)]), allowed("vendor", "")),
        ("a first fragment of UDP, office", first(udp(OFFICE, 40_000, 53)), allowed("office", "dns")),
        ("a first fragment of UDP, vendor", first(udp(VENDOR, 40_000, 53)), refused("dns")),
        ("a first fragment of an echo request", first(icmp(OFFICE, 8)), allowed("office", "ping")),
        ("a later fragment of ICMPv6", fragment(OFFICE6, ICMPV6), allowed("office", "")),
        ("a later fragment of ICMPv6, stranger", fragment(STRANGER6, ICMPV6), STRAY),
        ("a later fragment of ESP", fragment(STRANGER6, ESP), UNCOVERED),
        ("a later fragment that begins with options: any service", fragment(VENDOR6, DESTINATION), allowed("vendor", "")),
        ("a later fragment that begins with options, stranger", fragment(STRANGER6, DESTINATION), STRAY),
        ("a later fragment that begins with a routing header, office", fragment(OFFICE6, ROUTING), allowed("office", "")),
        ("a later fragment of no next header", fragment(STRANGER6, NO_NEXT), UNCOVERED),
        ("a fragment inside a fragment", packet(VENDOR6, FRAGMENT, &[&[FRAGMENT, 0, 0, 0, 0, 0, 0, 1][..], &[TCP, 0, 0, 32, 0, 0, 0, 2], &[0; 16]].concat()), allowed("vendor", "")),
        ("a later fragment of hop-by-hop's number over IPv4", fragment(STRANGER, HOP_BY_HOP), UNCOVERED),
        ("a later fragment of routing's number over IPv4", fragment(STRANGER, ROUTING), UNCOVERED),
        ("a later fragment of fragment's number over IPv4", fragment(STRANGER, FRAGMENT), UNCOVERED),
        ("a later fragment of AH over IPv4", fragment(STRANGER, AUTHENTICATION), UNCOVERED),
        ("a later fragment of AH over IPv4, office", fragment(OFFICE, AUTHENTICATION), UNCOVERED),
        ("a later fragment of AH over IPv4 in a tag", tagged(fragment(STRANGER, AUTHENTICATION), &[(0x8100, 5)]), UNCOVERED),
        ("an early fragment of AH over IPv4", fragment_at(STRANGER, AUTHENTICATION, 8), UNCOVERED),
        ("a later fragment of destination options' number over IPv4", fragment(STRANGER, DESTINATION), UNCOVERED),
        ("a later fragment of ESP over IPv4", fragment(STRANGER, ESP), UNCOVERED),
        ("a first fragment of AH over IPv4", first(packet(STRANGER, AUTHENTICATION, &[TCP, 1, 0, 0])), UNCOVERED),
        ("a later fragment that begins with AH, IPv6", fragment(STRANGER6, AUTHENTICATION), STRAY),
        ("a later fragment that begins with AH, IPv6, vendor", fragment(VENDOR6, AUTHENTICATION), allowed("vendor", "")),
        ("a later fragment that begins with a fragment header, IPv6", fragment(STRANGER6, FRAGMENT), STRAY),
        ("a later fragment that begins with hop-by-hop options, IPv6", fragment(STRANGER6, HOP_BY_HOP), STRAY),
        ("a first fragment whose options are behind its header, stranger", with(extended(STRANGER6, &[FRAGMENT, DESTINATION], 443), &[(ETHERNET + 40 + 3, 1)]), refused("web")),
        ("a first fragment whose options are behind its header, vendor", with(extended(VENDOR6, &[FRAGMENT, DESTINATION, AUTHENTICATION], 443), &[(ETHERNET + 40 + 3, 1)]), WEB),
        ("an atomic fragment inside another", extended(VENDOR6, &[FRAGMENT, FRAGMENT], 443), WEB),
        ("one tag around a later fragment", tagged(fragment(STRANGER, TCP), &[(0x8100, 5)]), STRAY),
    ]
}

#[rustfmt::skip]
fn jumbo() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let data = |source: &str, bytes: usize| {
        let frame = padded(tcp(source, 443), bytes);
        let length = frame.len();
        shortened(frame, length)
    };
    vec![
        ("9000 bytes of TCP", data(VENDOR, 9000), WEB),
        ("9000 bytes of TCP, stranger", data(STRANGER, 9000), refused("web")),
        ("9000 bytes of TCP, IPv6", data(VENDOR6, 9000), WEB),
        ("9000 bytes of TCP, IPv6, stranger", data(STRANGER6, 9000), refused("web")),
        ("9000 bytes of TCP in a tag", tagged(data(STRANGER, 9000), &[(0x8100, 5)]), refused("web")),
        ("9000 bytes, and a total length of one more", with(data(VENDOR, 9000), &[(ETHERNET + 2, 0x23), (ETHERNET + 3, 0x51)]), CUT_SHORT),
        ("9000 bytes of padding do not make TCP's header whole", padded(with(tcp(VENDOR, 443), &[(ETHERNET + 3, 39)]), 9000), MALFORMED),
        ("eight headers of 48 bytes", long_chain(VENDOR6), WEB),
        ("eight headers of 48 bytes, stranger", long_chain(STRANGER6), refused("web")),
        ("9000 bytes of a later fragment", shortened(padded(fragment(STRANGER, TCP), 9000), ETHERNET + 20 + 32 + 9000), STRAY),
        ("9000 bytes that are not IP", frame::ethernet(0x88cc, &[0; 9000]), pass(Reason::NotIp)),
    ]
}

/// TCP to web behind as many extension headers as are looked through, 48 bytes each.
fn long_chain(source: &str) -> Vec<u8> {
    let mut payload = Vec::new();
    for next in [DESTINATION; 7].iter().chain([&TCP]) {
        payload.extend([*next, 5, 1, 44]);
        payload.extend([0; 44]);
    }
    payload.extend(tcp_header(443));
    packet(source, DESTINATION, &payload)
}

/// Frames that end at the start and in the middle of each header, with matching and with unchanged length fields.
fn ends() -> Vec<(String, Vec<u8>, Expected)> {
    let tags = [(0x88a8, 5), (0x8100, 6)];
    let mut rows = Vec::new();
    let whole = [
        (
            "TCP",
            tcp(VENDOR, 443),
            vec![14, 15, 33, 34, 36, 38, 47, 53],
        ),
        (
            "TCP over IPv6",
            tcp(VENDOR6, 443),
            vec![14, 22, 37, 53, 54, 56, 58, 67, 73],
        ),
        ("UDP", udp(OFFICE, 40_000, 53), vec![34, 35, 38, 41]),
        (
            "tagged TCP",
            tagged(tcp(VENDOR, 443), &tags),
            vec![14, 17, 18, 21, 22, 41, 42, 61],
        ),
        (
            "TCP behind two headers",
            extended(VENDOR6, &[HOP_BY_HOP, FRAGMENT], 443),
            vec![54, 57, 61, 62, 69, 70, 89],
        ),
    ];
    for (what, frame, lengths) in whole {
        for length in lengths {
            let description = format!("{what}, cut after {length} bytes");
            rows.push((description, cut(frame.clone(), length), CUT_SHORT));
        }
    }
    let knowing = [
        ("TCP", tcp(VENDOR, 443), ETHERNET + 20, 20, WEB),
        ("TCP over IPv6", tcp(VENDOR6, 443), ETHERNET + 40, 20, WEB),
        (
            "UDP",
            udp(OFFICE, 40_000, 53),
            ETHERNET + 20,
            8,
            allowed("office", "dns"),
        ),
        (
            "ICMP",
            icmp(OFFICE, 8),
            ETHERNET + 20,
            8,
            allowed("office", "ping"),
        ),
        (
            "ICMPv6",
            icmp(OFFICE6, 128),
            ETHERNET + 40,
            8,
            allowed("office", "ping"),
        ),
        (
            "SCTP",
            packet(STRANGER, SCTP, &[0; 16]),
            ETHERNET + 20,
            12,
            UNCOVERED,
        ),
    ];
    for (what, frame, start, least, whole) in knowing {
        for bytes in [0, 3, 4, least - 1, least] {
            let description = format!("{what} of {bytes} bytes");
            let end = if bytes == least { whole } else { MALFORMED };
            rows.push((description, shortened(frame.clone(), start + bytes), end));
        }
    }
    rows
}
