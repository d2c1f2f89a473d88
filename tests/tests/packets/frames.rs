//! Hand-made frames, what is said of each, and the reason that it must end in under the policy of
//! `main.rs`. Each decision of the program is here on both of its sides.

use std::net::{IpAddr, SocketAddr};

use allowlist_common::packet::{ICMP, ICMPV6, TCP, UDP};
use allowlist_common::verdict::Reason;
use allowlist_tests::lab::frame;

/// In the vendor's prefixes: reaches web.
pub(crate) const VENDOR: &str = "192.0.2.15";
pub(crate) const VENDOR6: &str = "2001:db8:1::ffff";
/// In the office's: reaches everything.
pub(crate) const OFFICE: &str = "203.0.113.9";
const OFFICE6: &str = "2001:db8:7:1::9";
/// In nobody's; the first one is next to the vendor's prefix.
pub(crate) const STRANGER: &str = "192.0.2.16";
const STRANGER6: &str = "2001:db8:1:1::";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The protected host's address of the same family.
fn host(source: &str) -> IpAddr {
    ip(if ip(source).is_ipv4() {
        "198.51.100.1"
    } else {
        "2001:db8:ffff::1"
    })
}

pub(crate) fn tcp(source: &str, port: u16) -> Vec<u8> {
    frame::tcp_syn(
        SocketAddr::new(ip(source), 40_000),
        SocketAddr::new(host(source), port),
    )
}

pub(crate) fn udp(source: &str, from: u16, port: u16) -> Vec<u8> {
    frame::udp(
        SocketAddr::new(ip(source), from),
        SocketAddr::new(host(source), port),
        b"hello",
    )
}

/// An ICMP message of a type, with room for what any of them carries.
pub(crate) fn icmp(source: &str, kind: u8) -> Vec<u8> {
    let protocol = if ip(source).is_ipv4() { ICMP } else { ICMPV6 };
    let mut message = [0; 32];
    message[0] = kind;
    frame::packet(ip(source), host(source), protocol, &message)
}

pub(crate) fn packet(source: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame::packet(ip(source), host(source), protocol, payload)
}

fn fragment(source: &str, protocol: u8) -> Vec<u8> {
    frame::later_fragment(ip(source), host(source), protocol, &[0xff; 32])
}

/// The frame with bytes replaced.
fn with(mut frame: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for (place, byte) in changes {
        frame[*place] = *byte;
    }
    frame
}

fn cut(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.truncate(length);
    frame
}

fn padded(mut frame: Vec<u8>, bytes: usize) -> Vec<u8> {
    frame.resize(frame.len() + bytes, 0);
    frame
}

/// A minimal TCP header to a port.
fn tcp_header(port: u16) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[..2].copy_from_slice(&40_000_u16.to_be_bytes());
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[12] = 5 << 4;
    header
}

/// IPv6 with extension headers of these kinds, 8 bytes each, in front of TCP to a port.
fn extended(source: &str, headers: &[u8], port: u16) -> Vec<u8> {
    let mut payload = Vec::new();
    for next in headers.iter().skip(1).chain([&TCP]) {
        payload.extend([*next, 0, 0, 0, 0, 0, 0, 0]);
    }
    payload.extend(tcp_header(port));
    packet(source, headers[0], &payload)
}

const ETHERNET: usize = 14;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ESP: u8 = 50;
const AUTHENTICATION: u8 = 51;
const NO_NEXT: u8 = 59;
const DESTINATION: u8 = 60;

/// What is said of each frame, the frame, and the reason it must end in.
#[rustfmt::skip]
#[expect(clippy::too_many_lines, reason = "a table")]
pub(crate) fn frames() -> Vec<(&'static str, Vec<u8>, Reason)> {
    use Reason::{Allowed, Arp, Default, Dhcp, IcmpError, Malformed, Multicast, NeighbourDiscovery, NotAllowed, NotIp};
    let in_extensions = |protocol: u8, payload: &[u8]| packet(VENDOR6, protocol, payload);
    vec![
        // Sources and ports
        ("vendor to its port", tcp(VENDOR, 443), Allowed),
        ("vendor to its port, IPv6", tcp(VENDOR6, 443), Allowed),
        ("first address of the prefix", tcp("192.0.2.0", 443), Allowed),
        ("address before the prefix", tcp("192.0.1.255", 443), NotAllowed),
        ("address after the prefix", tcp(STRANGER, 443), NotAllowed),
        ("first address of the prefix, IPv6", tcp("2001:db8:1::", 443), Allowed),
        ("address before the prefix, IPv6", tcp("2001:db8:0:ffff:ffff:ffff:ffff:ffff", 443), NotAllowed),
        ("address after the prefix, IPv6", tcp(STRANGER6, 443), NotAllowed),
        ("first port of a range", tcp(VENDOR, 8443), Allowed),
        ("last port of a range", tcp(VENDOR, 8445), Allowed),
        ("port before a range", tcp(STRANGER, 8442), Default),
        ("port after a range", tcp(STRANGER, 8446), Default),
        ("inside a range, stranger", tcp(STRANGER, 8444), NotAllowed),
        ("vendor to a service that is not its", udp(VENDOR, 40_000, 53), NotAllowed),
        ("office to that service", udp(OFFICE, 40_000, 53), Allowed),
        ("office to that service, IPv6", udp(OFFICE6, 40_000, 53), Allowed),
        ("unprotected TCP port", tcp(STRANGER, 22), Default),
        ("unprotected UDP port, IPv6", udp(STRANGER6, 40_000, 443), Default),
        ("the protected number of the other protocol", udp(STRANGER, 40_000, 443), Default),
        ("highest port", tcp(STRANGER, 65535), Default),
        ("port 0", tcp(STRANGER, 0), Default),
        ("a protocol that no service covers", packet(STRANGER, 47, &[0; 8]), Default),
        ("address 0.0.0.0", tcp("0.0.0.0", 443), NotAllowed),
        ("address 255.255.255.255", tcp("255.255.255.255", 443), NotAllowed),
        ("an IPv4-mapped source is not that IPv4 source", tcp("::ffff:192.0.2.1", 443), NotAllowed),
        // Not IP
        ("ARP", frame::ethernet(0x0806, &[0; 28]), Arp),
        ("LLDP", frame::ethernet(0x88cc, &[0; 46]), NotIp),
        ("802.3 length instead of a type", frame::ethernet(46, &[0; 46]), NotIp),
        ("tagged ARP", frame::tagged(frame::ethernet(0x0806, &[0; 28]), &[(0x8100, 5)]), Arp),
        // VLANs
        ("one tag, vendor", frame::tagged(tcp(VENDOR, 443), &[(0x8100, 5)]), Allowed),
        ("one tag, stranger", frame::tagged(tcp(STRANGER, 443), &[(0x8100, 5)]), NotAllowed),
        ("802.1ad tag, stranger", frame::tagged(tcp(STRANGER6, 443), &[(0x88a8, 5)]), NotAllowed),
        ("two tags, vendor", frame::tagged(tcp(VENDOR6, 443), &[(0x88a8, 5), (0x8100, 6)]), Allowed),
        ("two tags, stranger", frame::tagged(tcp(STRANGER, 443), &[(0x88a8, 5), (0x8100, 6)]), NotAllowed),
        ("three tags hide what is in them", frame::tagged(tcp(VENDOR, 443), &[(0x8100, 5), (0x8100, 6), (0x8100, 7)]), Malformed),
        ("a tag and nothing behind", cut(frame::tagged(tcp(VENDOR, 443), &[(0x8100, 5)]), 16), Malformed),
        // Keeps the host alive
        ("neighbour solicitation from the link", with(icmp(STRANGER6, 135), &[(ETHERNET + 7, 255)]), NeighbourDiscovery),
        ("router advertisement from the link", with(icmp(STRANGER6, 134), &[(ETHERNET + 7, 255)]), NeighbourDiscovery),
        ("redirect from the link, IPv6", with(icmp(STRANGER6, 137), &[(ETHERNET + 7, 255)]), NeighbourDiscovery),
        ("node information query from the link", with(icmp(STRANGER6, 139), &[(ETHERNET + 7, 255)]), NotAllowed),
        ("neighbour advertisement one hop away", with(icmp(STRANGER6, 136), &[(ETHERNET + 7, 254)]), NotAllowed),
        ("neighbour advertisement from elsewhere", icmp(STRANGER6, 136), NotAllowed),
        ("destination unreachable", icmp(STRANGER, 3), IcmpError),
        ("time exceeded", icmp(STRANGER, 11), IcmpError),
        ("parameter problem", icmp(STRANGER, 12), IcmpError),
        ("timestamp request, stranger", icmp(STRANGER, 13), NotAllowed),
        ("destination unreachable, IPv6", icmp(STRANGER6, 1), IcmpError),
        ("packet too big", icmp(STRANGER6, 2), IcmpError),
        ("parameter problem", icmp(STRANGER6, 4), IcmpError),
        ("echo request, stranger", icmp(STRANGER, 8), NotAllowed),
        ("echo request, office", icmp(OFFICE, 8), Allowed),
        ("echo request, stranger, IPv6", icmp(STRANGER6, 128), NotAllowed),
        ("echo request, office, IPv6", icmp(OFFICE6, 128), Allowed),
        ("IPv4 redirect, stranger", icmp(STRANGER, 5), NotAllowed),
        ("DHCP answer", udp(STRANGER, 67, 68), Dhcp),
        ("to the DHCP client's port, but from another", udp(STRANGER, 53, 68), Default),
        ("DHCPv6 answer", udp(STRANGER6, 547, 546), Dhcp),
        ("to the DHCPv6 client's port, but from another", udp(STRANGER6, 53, 546), Default),
        ("DHCP ports over IPv6", udp(STRANGER6, 67, 68), Default),
        ("ICMPv6 over IPv4 is neither an error nor neighbour discovery", with(packet(STRANGER, ICMPV6, &[1, 0, 0, 0, 0, 0, 0, 0]), &[(ETHERNET + 8, 255)]), NotAllowed),
        ("neighbour solicitation over IPv4", with(packet(STRANGER, ICMPV6, &[135, 0, 0, 0, 0, 0, 0, 0]), &[(ETHERNET + 8, 255)]), NotAllowed),
        ("an ICMP error over IPv6", packet(STRANGER6, ICMP, &[3, 0, 0, 0, 0, 0, 0, 0]), NotAllowed),
        ("IGMP over IPv6", packet(STRANGER6, 2, &[0x11; 8]), Default),
        ("IGMP", packet(STRANGER, 2, &[0x11; 8]), Multicast),
        ("multicast listener report", icmp(STRANGER6, 131), Multicast),
        ("multicast listener report 2", icmp(STRANGER6, 143), Multicast),
        ("the message after it is none", icmp(STRANGER6, 144), NotAllowed),
        ("multicast listener query", icmp(STRANGER6, 130), Multicast),
        ("multicast listener report 2 behind a hop-by-hop header", packet(STRANGER6, HOP_BY_HOP, &[&[ICMPV6, 0, 5, 2, 0, 0, 1, 0][..], &[143, 0, 0, 0, 0, 0, 0, 0]].concat()), Multicast),
        // Fragments: by source alone
        ("later fragment, vendor", fragment(VENDOR, TCP), Allowed),
        ("later fragment, stranger", fragment(STRANGER, TCP), NotAllowed),
        ("later fragment of a protocol where the vendor has no service", fragment(VENDOR, UDP), NotAllowed),
        ("later fragment, office, IPv6", fragment(OFFICE6, UDP), Allowed),
        ("later fragment, stranger, IPv6", fragment(STRANGER6, TCP), NotAllowed),
        ("later fragment of an uncovered protocol", fragment(STRANGER, 47), Default),
        ("a later fragment's bytes are not ports", with(fragment(STRANGER, TCP), &[(ETHERNET + 20 + 2, 0), (ETHERNET + 20 + 3, 22)]), NotAllowed),
        ("first fragment, vendor", with(tcp(VENDOR, 443), &[(ETHERNET + 6, 0x20)]), Allowed),
        ("first fragment, stranger", with(tcp(STRANGER, 443), &[(ETHERNET + 6, 0x20)]), NotAllowed),
        ("first fragment too short for its TCP header", with(packet(VENDOR, TCP, &[0; 8]), &[(ETHERNET + 6, 0x20)]), Malformed),
        // IPv4 headers
        ("IPv4 options are skipped", with_options(&tcp(VENDOR, 443)), Allowed),
        ("ports behind IPv4 options", with_options(&tcp(STRANGER, 443)), NotAllowed),
        ("wrong version in an IPv4 frame", with(tcp(VENDOR, 443), &[(ETHERNET, 0x65)]), Malformed),
        ("header length below 5", with(tcp(VENDOR, 443), &[(ETHERNET, 0x44)]), Malformed),
        ("header length past the packet", with(tcp(VENDOR, 443), &[(ETHERNET, 0x4f)]), Malformed),
        ("total length past the frame", with(tcp(VENDOR, 443), &[(ETHERNET + 3, 255)]), Malformed),
        ("total length below the header", with(tcp(VENDOR, 443), &[(ETHERNET + 3, 19)]), Malformed),
        ("total length below the header, of a protocol without ports", with(packet(STRANGER, 47, &[0; 8]), &[(ETHERNET + 3, 19)]), Malformed),
        ("total length 0", with(tcp(VENDOR, 443), &[(ETHERNET + 2, 0), (ETHERNET + 3, 0)]), Malformed),
        ("total length cuts the TCP header; padding is no header", with(tcp(VENDOR, 443), &[(ETHERNET + 3, 39)]), Malformed),
        ("padding behind a short packet", padded(tcp(VENDOR, 443), 10), Allowed),
        ("frame ends in the IPv4 header", cut(tcp(VENDOR, 443), ETHERNET + 19), Malformed),
        ("frame ends in the TCP header", cut(tcp(VENDOR, 443), ETHERNET + 39), Malformed),
        ("UDP shorter than its header", packet(OFFICE, UDP, &[0; 7]), Malformed),
        ("ICMP shorter than its header", packet(OFFICE, ICMP, &[8; 7]), Malformed),
        ("nothing but an Ethernet header", cut(tcp(VENDOR, 443), ETHERNET), Malformed),
        // IPv6 headers
        ("wrong version in an IPv6 frame", with(tcp(VENDOR6, 443), &[(ETHERNET, 0x45)]), Malformed),
        ("frame ends in the IPv6 header", cut(tcp(VENDOR6, 443), ETHERNET + 39), Malformed),
        ("payload length past the frame", with(tcp(VENDOR6, 443), &[(ETHERNET + 5, 255)]), Malformed),
        ("payload length cuts the TCP header", with(tcp(VENDOR6, 443), &[(ETHERNET + 5, 19)]), Malformed),
        ("hop-by-hop header, vendor", extended(VENDOR6, &[HOP_BY_HOP], 443), Allowed),
        ("hop-by-hop header, stranger", extended(STRANGER6, &[HOP_BY_HOP], 443), NotAllowed),
        ("routing header, stranger", extended(STRANGER6, &[ROUTING], 443), NotAllowed),
        ("destination options, stranger", extended(STRANGER6, &[DESTINATION], 443), NotAllowed),
        ("atomic fragment, vendor", extended(VENDOR6, &[FRAGMENT], 443), Allowed),
        ("atomic fragment, stranger", extended(STRANGER6, &[FRAGMENT], 443), NotAllowed),
        ("first fragment with more to come, vendor, IPv6", with(extended(VENDOR6, &[FRAGMENT], 443), &[(ETHERNET + 40 + 3, 1)]), Allowed),
        ("first fragment with more to come, stranger, IPv6", with(extended(STRANGER6, &[FRAGMENT], 443), &[(ETHERNET + 40 + 3, 1)]), NotAllowed),
        ("first fragment too short for its TCP header, IPv6", packet(VENDOR6, FRAGMENT, &[TCP, 0, 0, 1, 0, 0, 0, 1, 0x9c, 0x40, 1, 0xbb, 0, 0, 0, 0]), Malformed),
        ("authentication header, vendor", in_extensions(AUTHENTICATION, &[&[TCP, 1, 0, 0][..], &[0; 8], &tcp_header(443)].concat()), Allowed),
        ("authentication header, port behind it", in_extensions(AUTHENTICATION, &[&[TCP, 1, 0, 0][..], &[0; 8], &tcp_header(22)].concat()), Default),
        ("eight extension headers, stranger", extended(STRANGER6, &[DESTINATION; 8], 443), NotAllowed),
        ("eight extension headers, vendor", extended(VENDOR6, &[DESTINATION; 8], 443), Allowed),
        ("nine extension headers", extended(VENDOR6, &[DESTINATION; 9], 443), Malformed),
        ("extension header past the packet", in_extensions(DESTINATION, &[TCP, 9, 0, 0, 0, 0, 0, 0]), Malformed),
        ("extension header a little past the packet", in_extensions(DESTINATION, &[NO_NEXT, 1, 0, 0, 0, 0, 0, 0]), Malformed),
        ("extension header cut short", in_extensions(DESTINATION, &[TCP, 0, 0]), Malformed),
        ("later fragment behind other headers", in_extensions(DESTINATION, &[&[FRAGMENT, 0, 0, 0, 0, 0, 0, 0][..], &[TCP, 0, 0, 32, 0, 0, 0, 1], &[0; 16]].concat()), Allowed),
        ("ESP hides its ports", packet(STRANGER6, ESP, &[0; 32]), Default),
        ("no next header", packet(STRANGER6, NO_NEXT, &[]), Default),
    ]
}

/// The frame with 4 bytes of IPv4 options.
fn with_options(frame: &[u8]) -> Vec<u8> {
    let (before, after) = frame.split_at(ETHERNET + 20);
    let mut changed = [before, &[1, 1, 1, 0], after].concat();
    changed[ETHERNET] = 0x46;
    let length = u16::from_be_bytes([changed[ETHERNET + 2], changed[ETHERNET + 3]]) + 4;
    changed[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
    changed
}
