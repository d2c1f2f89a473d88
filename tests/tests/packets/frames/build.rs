//! Builds the frames of the tables: addresses, packets, and modifications of headers.
//!
//! Does not depend on the policy. Only frames of `allowlist_tests::lab::frame` have valid checksums; the filter and
//! nftables at ingress ignore checksums.

use std::net::{IpAddr, SocketAddr};

use allowlist_common::packet::{ICMP, ICMPV6, TCP, UDP};
use allowlist_tests::lab::frame;

/// Addresses of the vendor, which reach web.
pub(crate) const VENDOR: &str = "192.0.2.15";
pub(crate) const VENDOR6: &str = "2001:db8:1::ffff";
/// Addresses of the office, which reach all services.
pub(crate) const OFFICE: &str = "203.0.113.9";
pub(crate) const OFFICE6: &str = "2001:db8:7:1::9";
/// Addresses in no source, adjacent to the vendor's prefixes.
pub(crate) const STRANGER: &str = "192.0.2.16";
pub(crate) const STRANGER6: &str = "2001:db8:1:1::";
/// The link-local address of a neighbour.
pub(crate) const NEIGHBOUR6: &str = "fe80::9";
/// The protected host.
pub(crate) const HOST: &str = "198.51.100.1";
pub(crate) const HOST6: &str = "2001:db8:ffff::1";
/// The link-local address of the protected host.
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

/// Returns the protected host's address of the same family.
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

/// Returns a packet from a DHCPv6 server's port to a client's.
pub(crate) fn dhcpv6(source: &str, to: &str) -> Vec<u8> {
    ported(UDP, (source, 547), (to, 546), 0)
}

/// Sets the time to live or hop limit.
pub(crate) fn with_hops(frame: Vec<u8>, hops: u8) -> Vec<u8> {
    let is_v4 = frame[ETHERNET] >> 4 == 4;
    with(frame, &[(ETHERNET + if is_v4 { 8 } else { 7 }, hops)])
}

/// Returns an ICMP message of this type, long enough for each type.
pub(crate) fn icmp(source: &str, kind: u8) -> Vec<u8> {
    let mut message = [0; 32];
    message[0] = kind;
    packet(source, icmp_of(source), &message)
}

/// Returns the ICMP protocol of an address's family.
pub(crate) fn icmp_of(address: &str) -> u8 {
    if ip(address).is_ipv4() { ICMP } else { ICMPV6 }
}

/// Returns a packet to the protected host.
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

/// Returns a fragment with this offset in bytes.
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

/// Returns a packet whose payload is a transport header with ports, as long as that of TCP; `byte13` is the TCP flags.
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

/// Returns an ICMP message with an identifier.
pub(crate) fn echo(source: &str, to: &str, kind: u8, identifier: u16) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    packet_to(
        source,
        to,
        icmp_of(source),
        &[kind, 0, 0, 0, high, low, 0, 1],
    )
}

/// Replaces bytes of a frame.
pub(crate) fn with(mut frame: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for (offset, byte) in changes {
        frame[*offset] = *byte;
    }
    frame
}

pub(crate) fn cut(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.truncate(length);
    frame
}

/// Truncates the frame, and adjusts the length in the IP header.
pub(crate) fn shortened(frame: Vec<u8>, length: usize) -> Vec<u8> {
    let mut frame = cut(frame, length);
    let (offset, payload) = if frame[ETHERNET] >> 4 == 4 {
        (ETHERNET + 2, length - ETHERNET)
    } else {
        (ETHERNET + 4, length - ETHERNET - 40)
    };
    frame[offset..offset + 2].copy_from_slice(&(payload as u16).to_be_bytes());
    frame
}

pub(crate) fn padded(mut frame: Vec<u8>, bytes: usize) -> Vec<u8> {
    frame.resize(frame.len() + bytes, 0);
    frame
}

/// Returns a TCP header without options to this port.
pub(crate) fn tcp_header(port: u16) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[..2].copy_from_slice(&40_000_u16.to_be_bytes());
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[12] = 5 << 4;
    header
}

/// Returns IPv6 with these extension headers of 8 bytes each, and TCP to this port.
pub(crate) fn extended(source: &str, headers: &[u8], port: u16) -> Vec<u8> {
    let mut payload = Vec::new();
    for next in headers.iter().skip(1).chain([&TCP]) {
        payload.extend([*next, 0, 0, 0, 0, 0, 0, 0]);
    }
    payload.extend(tcp_header(port));
    packet(source, headers[0], &payload)
}

/// Adds IPv4 options of this number of 32-bit words.
pub(crate) fn with_options(frame: &[u8], words: u8) -> Vec<u8> {
    let (before, after) = frame.split_at(ETHERNET + 20);
    let options = [1_u8, 1, 1, 0].repeat(words.into());
    let mut changed = [before, &options, after].concat();
    changed[ETHERNET] = 0x45 + words;
    let length = (changed.len() - ETHERNET) as u16;
    changed[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
    changed
}

/// Returns an ICMP error that quotes `quoted`, which begins with its IP header.
pub(crate) fn error(source: &str, to: &str, kind: u8, quoted: &[u8]) -> Vec<u8> {
    let message = [&[kind, 0, 0, 0, 0, 0, 5, 0], quoted].concat();
    packet_to(source, to, icmp_of(source), &message)
}

/// Returns the quote of a frame in an ICMP error: the IP header and 8 more bytes.
pub(crate) fn quote(frame: &[u8]) -> Vec<u8> {
    let header = match frame[ETHERNET] >> 4 {
        4 => usize::from(frame[ETHERNET] & 0x0f) * 4,
        _ => 40,
    };
    frame[ETHERNET..ETHERNET + header + 8].to_vec()
}
