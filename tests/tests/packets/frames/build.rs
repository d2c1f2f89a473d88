//! Packets of the tables, byte by byte: who sends them, and what is done to their headers.
//!
//! Knows no policy. Checksums are right only where `allowlist_tests::lab::frame` makes them: nothing
//! that judges these frames looks.

use std::net::{IpAddr, SocketAddr};

use allowlist_common::packet::{ICMP, ICMPV6, TCP, UDP};
use allowlist_tests::lab::frame;

/// In the vendor's prefixes: reaches web.
pub(crate) const VENDOR: &str = "192.0.2.15";
pub(crate) const VENDOR6: &str = "2001:db8:1::ffff";
/// In the office's: reaches everything.
pub(crate) const OFFICE: &str = "203.0.113.9";
pub(crate) const OFFICE6: &str = "2001:db8:7:1::9";
/// In nobody's; the first one is next to the vendor's prefix.
pub(crate) const STRANGER: &str = "192.0.2.16";
pub(crate) const STRANGER6: &str = "2001:db8:1:1::";
/// A neighbour, by its address on the link alone.
pub(crate) const NEIGHBOUR6: &str = "fe80::9";
/// The protected host.
pub(crate) const HOST: &str = "198.51.100.1";
pub(crate) const HOST6: &str = "2001:db8:ffff::1";
/// Its address on the link.
pub(crate) const LINK6: &str = "fe80::1";

pub(crate) const ETHERNET: usize = 14;
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const GRE: u8 = 47;
pub(crate) const ESP: u8 = 50;
pub(crate) const AUTHENTICATION: u8 = 51;
pub(crate) const NO_NEXT: u8 = 59;
pub(crate) const DESTINATION: u8 = 60;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The protected host's address of the same family.
pub(crate) fn host(source: &str) -> &'static str {
    if ip(source).is_ipv4() { HOST } else { HOST6 }
}

pub(crate) fn tcp(source: &str, port: u16) -> Vec<u8> {
    frame::tcp_syn(
        SocketAddr::new(ip(source), 40_000),
        SocketAddr::new(ip(host(source)), port),
    )
}

pub(crate) fn udp(source: &str, from: u16, port: u16) -> Vec<u8> {
    frame::udp(
        SocketAddr::new(ip(source), from),
        SocketAddr::new(ip(host(source)), port),
        b"hello",
    )
}

/// From a DHCPv6 server's port to a client's.
pub(crate) fn dhcpv6(source: &str, to: &str) -> Vec<u8> {
    ported(UDP, (source, 547), (to, 546), 0)
}

/// The frame of an IPv4 or IPv6 packet with so many hops left.
pub(crate) fn with_hops(frame: Vec<u8>, hops: u8) -> Vec<u8> {
    let is_v4 = frame[ETHERNET] >> 4 == 4;
    with(frame, &[(ETHERNET + if is_v4 { 8 } else { 7 }, hops)])
}

/// An ICMP message of a type, with room for what any of them carries.
pub(crate) fn icmp(source: &str, kind: u8) -> Vec<u8> {
    let mut message = [0; 32];
    message[0] = kind;
    packet(source, icmp_of(source), &message)
}

/// The protocol of the ICMP of an address's family.
pub(crate) fn icmp_of(address: &str) -> u8 {
    if ip(address).is_ipv4() { ICMP } else { ICMPV6 }
}

/// To the protected host.
pub(crate) fn packet(source: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    packet_to(source, host(source), protocol, payload)
}

pub(crate) fn packet_to(source: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame::packet(ip(source), ip(to), protocol, payload)
}

pub(crate) fn fragment(source: &str, protocol: u8) -> Vec<u8> {
    fragment_to(source, host(source), protocol)
}

pub(crate) fn fragment_to(source: &str, to: &str, protocol: u8) -> Vec<u8> {
    frame::later_fragment(ip(source), ip(to), protocol, &[0xff; 32])
}

/// A fragment that begins so many bytes into its packet.
pub(crate) fn fragment_at(source: &str, protocol: u8, bytes: u16) -> Vec<u8> {
    let frame = fragment(source, protocol);
    let offset = (bytes / 8).to_be_bytes();
    if ip(source).is_ipv4() {
        with(
            frame,
            &[(ETHERNET + 6, offset[0]), (ETHERNET + 7, offset[1])],
        )
    } else {
        let offset = bytes.to_be_bytes();
        with(
            frame,
            &[(ETHERNET + 42, offset[0]), (ETHERNET + 43, offset[1])],
        )
    }
}

/// A packet whose first 4 bytes are ports, as long as the longest such header; `byte13` is TCP's flags.
pub(crate) fn ported(
    protocol: u8,
    (source, from): (&str, u16),
    (to, port): (&str, u16),
    byte13: u8,
) -> Vec<u8> {
    let mut header = [0; 20];
    header[..2].copy_from_slice(&from.to_be_bytes());
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = byte13;
    packet_to(source, to, protocol, &header)
}

/// An ICMP message with an identifier.
pub(crate) fn echo(source: &str, to: &str, kind: u8, identifier: u16) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    packet_to(
        source,
        to,
        icmp_of(source),
        &[kind, 0, 0, 0, high, low, 0, 1],
    )
}

/// The frame with bytes replaced.
pub(crate) fn with(mut frame: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for (place, byte) in changes {
        frame[*place] = *byte;
    }
    frame
}

pub(crate) fn cut(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.truncate(length);
    frame
}

/// Cut, and with an IP header that knows of it.
pub(crate) fn shortened(frame: Vec<u8>, length: usize) -> Vec<u8> {
    let mut frame = cut(frame, length);
    let (place, payload) = if frame[ETHERNET] >> 4 == 4 {
        (ETHERNET + 2, length - ETHERNET)
    } else {
        (ETHERNET + 4, length - ETHERNET - 40)
    };
    frame[place..place + 2].copy_from_slice(&(payload as u16).to_be_bytes());
    frame
}

pub(crate) fn padded(mut frame: Vec<u8>, bytes: usize) -> Vec<u8> {
    frame.resize(frame.len() + bytes, 0);
    frame
}

/// A minimal TCP header to a port.
pub(crate) fn tcp_header(port: u16) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[..2].copy_from_slice(&40_000_u16.to_be_bytes());
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[12] = 5 << 4;
    header
}

/// IPv6 with extension headers of these kinds, 8 bytes each, in front of TCP to a port.
pub(crate) fn extended(source: &str, headers: &[u8], port: u16) -> Vec<u8> {
    let mut payload = Vec::new();
    for next in headers.iter().skip(1).chain([&TCP]) {
        payload.extend([*next, 0, 0, 0, 0, 0, 0, 0]);
    }
    payload.extend(tcp_header(port));
    packet(source, headers[0], &payload)
}

/// The frame of an IPv4 packet with options, so many times 4 bytes.
pub(crate) fn with_options(frame: &[u8], words: u8) -> Vec<u8> {
    let (before, after) = frame.split_at(ETHERNET + 20);
    let options = [1_u8, 1, 1, 0].repeat(words.into());
    let mut changed = [before, &options, after].concat();
    changed[ETHERNET] = 0x45 + words;
    let length = (changed.len() - ETHERNET) as u16;
    changed[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
    changed
}

/// An ICMP error about `quoted`, which starts with its IP header.
pub(crate) fn error(source: &str, to: &str, kind: u8, quoted: &[u8]) -> Vec<u8> {
    let message = [&[kind, 0, 0, 0, 0, 0, 5, 0], quoted].concat();
    packet_to(source, to, icmp_of(source), &message)
}

/// What an error quotes of a frame: its IP header and 8 bytes more.
pub(crate) fn quote(frame: &[u8]) -> Vec<u8> {
    let header = match frame[ETHERNET] >> 4 {
        4 => usize::from(frame[ETHERNET] & 0x0f) * 4,
        _ => 40,
    };
    frame[ETHERNET..ETHERNET + header + 8].to_vec()
}
