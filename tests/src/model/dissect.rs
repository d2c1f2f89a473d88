//! A frame parser that follows the documents: up to two VLAN tags, IPv4, IPv6 with up to eight extension headers, BIG TCP
//! packets, TCP, UDP, SCTP, ICMP, and the packets that ICMP errors quote.
//!
//! Shares no code with the shipped parser: it takes slices, and a frame that is too short for a slice is malformed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use allowlist_common::packet::{ICMP, ICMPV6, Malformed, SCTP, TCP, UDP};

use super::{Content, Packet};

/// A parsed frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedFrame {
    /// A malformed frame: inconsistent, cut short, or with too many VLAN tags.
    Malformed(Malformed),
    /// ARP.
    Arp,
    /// Neither ARP nor IP.
    NotIp,
    /// IPv4 or IPv6.
    Ip(Packet),
}

/// The IPv6 extension headers with a next header: hop-by-hop options, routing, fragment, authentication, destination
/// options.
pub const EXTENSIONS: [u8; 5] = [0, 43, FRAGMENT, AUTHENTICATION, 60];
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

/// Parses a frame.
pub fn dissect(frame: &[u8]) -> ParsedFrame {
    let (kind, rest) = match untagged(frame) {
        Ok(found) => found,
        Err(cause) => return ParsedFrame::Malformed(cause),
    };
    let packet = match kind {
        0x0806 => return ParsedFrame::Arp,
        0x0800 => ipv4(rest),
        0x86dd => ipv6(rest),
        _ => return ParsedFrame::NotIp,
    };
    packet.map_or_else(ParsedFrame::Malformed, ParsedFrame::Ip)
}

/// Returns the `EtherType` behind the VLAN tags, and the bytes after it.
fn untagged(frame: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    let is_tag = |kind| kind == 0x8100 || kind == 0x88a8;
    let mut kind = number(frame, 12).ok_or(Malformed::EthernetHeader)?;
    let mut rest = &frame[14..];
    let mut tags = 0;
    while is_tag(kind) {
        tags += 1;
        if tags > 2 {
            return Err(Malformed::VlanDepth);
        }
        kind = number(rest, 2).ok_or(Malformed::EthernetHeader)?;
        rest = &rest[4..];
    }
    Ok((kind, rest))
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn v4_addresses(header: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let address = |at: usize| {
        let octets: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(octets)))
    };
    Some((address(12)?, address(16)?))
}

fn v6_addresses(header: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let address = |at: usize| {
        let octets: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    };
    Some((address(8)?, address(24)?))
}

/// The length in bytes of the smallest packet that does not fit into the length field of an IP header.
const BIG: usize = 65_536;

fn ipv4(bytes: &[u8]) -> Result<Packet, Malformed> {
    let (source, destination) = v4_addresses(bytes).ok_or(Malformed::IpHeader)?;
    let header_length = usize::from(bytes[0] & 15) * 4;
    if bytes[0] >> 4 != 4 {
        return Err(Malformed::IpVersion);
    }
    if header_length < 20 {
        return Err(Malformed::HeaderLength);
    }
    let total_length = match u16::from_be_bytes([bytes[2], bytes[3]]) {
        0 if bytes.len() >= BIG => bytes.len(),
        stated => usize::from(stated),
    };
    // Cut to the packet's length, because the link may have padded the frame.
    let payload = bytes.get(..total_length);
    let payload = payload.and_then(|packet| packet.get(header_length..));
    let payload = payload.ok_or(Malformed::PacketLength)?;
    let protocol = bytes[9];
    let fragment_offset = usize::from(u16::from_be_bytes([bytes[6], bytes[7]]) & 0x1fff) * 8;
    let content = if fragment_offset == 0 {
        transport(payload, protocol, false)?
    } else {
        later_fragment(protocol, fragment_offset)?
    };
    Ok(Packet {
        source,
        destination,
        hops: bytes[8],
        protocol,
        content,
    })
}

fn ipv6(bytes: &[u8]) -> Result<Packet, Malformed> {
    let (source, destination) = v6_addresses(bytes).ok_or(Malformed::IpHeader)?;
    if bytes[0] >> 4 != 6 {
        return Err(Malformed::IpVersion);
    }
    let behind = &bytes[40..];
    let payload_length = match u16::from_be_bytes([bytes[4], bytes[5]]) {
        0 if behind.len() >= BIG => jumbo_length(bytes[6], behind)?,
        stated => usize::from(stated),
    };
    let payload = behind
        .get(..payload_length)
        .ok_or(Malformed::PacketLength)?;
    let chain = chain(bytes[6], payload)?;
    let content = if chain.fragment_offset == 0 {
        transport(chain.payload, chain.protocol, true)?
    } else {
        later_fragment(chain.protocol, chain.fragment_offset)?
    };
    Ok(Packet {
        source,
        destination,
        hops: bytes[7],
        protocol: chain.protocol,
        content,
    })
}

/// Returns the length of a payload that is too long for its length field: the value of the jumbo payload option, if that is
/// the first hop-by-hop option, or the length of the frame.
fn jumbo_length(next: u8, behind: &[u8]) -> Result<usize, Malformed> {
    match (next, behind) {
        (0, [_, _, 0xc2, 4, stated @ ..]) => {
            let stated = stated.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
            let stated = stated.map_or(0, |stated| stated as usize);
            let is_valid = stated >= BIG;
            is_valid.then_some(stated).ok_or(Malformed::PacketLength)
        }
        _ => Ok(behind.len()),
    }
}

/// The end of a chain of extension headers.
struct Chain<'a> {
    protocol: u8,
    payload: &'a [u8],
    fragment_offset: usize,
}

fn chain(first: u8, mut payload: &[u8]) -> Result<Chain<'_>, Malformed> {
    let mut protocol = first;
    let mut headers = 0;
    let mut fragment_offset = 0;
    while EXTENSIONS.contains(&protocol) && fragment_offset == 0 {
        headers += 1;
        if headers > 8 {
            return Err(Malformed::ExtensionDepth);
        }
        let units = payload.get(1).ok_or(Malformed::ExtensionHeader)?;
        let units = usize::from(*units);
        let length = match protocol {
            FRAGMENT => 8,
            AUTHENTICATION => 4 * (units + 2),
            _ => 8 * (units + 1),
        };
        let header = payload.get(..length).ok_or(Malformed::ExtensionHeader)?;
        if protocol == FRAGMENT {
            fragment_offset = usize::from(u16::from_be_bytes([header[2], header[3]]) >> 3) * 8;
        }
        protocol = header[0];
        payload = &payload[length..];
    }
    Ok(Chain {
        protocol,
        payload,
        fragment_offset,
    })
}

/// Returns the minimum header length of a protocol in bytes; 0 for a protocol whose header is not parsed.
const fn shortest(protocol: u8) -> usize {
    match protocol {
        TCP => 20,
        UDP | ICMP | ICMPV6 => 8,
        SCTP => 12,
        _ => 0,
    }
}

/// Rejects a later fragment that overlaps the transport header in the first one.
fn later_fragment(protocol: u8, offset: usize) -> Result<Content, Malformed> {
    let is_behind = offset >= shortest(protocol);
    is_behind
        .then_some(Content::LaterFragment)
        .ok_or(Malformed::FragmentOverlap)
}

fn transport(payload: &[u8], protocol: u8, is_v6: bool) -> Result<Content, Malformed> {
    if payload.len() < shortest(protocol) {
        return Err(Malformed::TransportHeader);
    }
    let number = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
    Ok(match protocol {
        TCP | UDP | SCTP => Content::Ports {
            source: number(0),
            destination: number(2),
            flags: if protocol == TCP { payload[13] } else { 0 },
        },
        ICMP if !is_v6 && [3, 11, 12].contains(&payload[0]) => {
            Content::IcmpError(quoted_v4(&payload[8..]).map(Box::new))
        }
        ICMPV6 if is_v6 && (1..=4).contains(&payload[0]) => {
            Content::IcmpError(quoted_v6(&payload[8..]).map(Box::new))
        }
        ICMP | ICMPV6 => Content::Icmp {
            kind: payload[0],
            identifier: number(4),
        },
        _ => Content::Other,
    })
}

/// Parses the IPv4 packet that an ICMP error quotes. Ignores its length field, because only its start is quoted.
fn quoted_v4(bytes: &[u8]) -> Option<Packet> {
    let (source, destination) = v4_addresses(bytes)?;
    let header_length = usize::from(bytes[0] & 15) * 4;
    if bytes[0] >> 4 != 4 || header_length < 20 {
        return None;
    }
    let protocol = bytes[9];
    let is_later = number(bytes, 6)? & 0x1fff != 0;
    Some(Packet {
        source,
        destination,
        hops: bytes[8],
        protocol,
        content: quoted_content(bytes.get(header_length..), protocol, is_later, (ICMP, 8))?,
    })
}

/// Parses the IPv6 packet that an ICMPv6 error quotes, with its extension headers.
fn quoted_v6(bytes: &[u8]) -> Option<Packet> {
    let (source, destination) = v6_addresses(bytes)?;
    if bytes[0] >> 4 != 6 {
        return None;
    }
    let chain = chain(bytes[6], &bytes[40..]).ok()?;
    let is_later = chain.fragment_offset != 0;
    let protocol = chain.protocol;
    Some(Packet {
        source,
        destination,
        hops: bytes[7],
        protocol,
        content: quoted_content(Some(chain.payload), protocol, is_later, (ICMPV6, 128))?,
    })
}

/// Parses the 8 bytes of transport header that RFC 792 requires in a quote: the ports, or the identifier of an echo
/// request. Other ICMP messages have no tracked flow.
fn quoted_content(
    payload: Option<&[u8]>,
    protocol: u8,
    is_later: bool,
    (icmp, echo_request): (u8, u8),
) -> Option<Content> {
    if is_later {
        return Some(Content::LaterFragment);
    }
    if ![TCP, UDP, SCTP, icmp].contains(&protocol) {
        return Some(Content::Other);
    }
    let payload = payload?.get(..8)?;
    if protocol != icmp {
        return Some(Content::Ports {
            source: number(payload, 0)?,
            destination: number(payload, 2)?,
            flags: 0,
        });
    }
    (payload[0] == echo_request).then_some(Content::Icmp {
        kind: payload[0],
        identifier: number(payload, 4)?,
    })
}
