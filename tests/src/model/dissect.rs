//! A frame's bytes to facts, by the rules that the documents state: two VLAN tags, IPv4, IPv6 with up
//! to eight extension headers, TCP, UDP, SCTP and ICMP, and what ICMP's errors quote.
//!
//! Shares no code with the parser that ships: it cuts slices, and what does not fit is malformed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use allowlist_common::packet::{ICMP, ICMPV6, SCTP, TCP, UDP};

use super::{Content, Packet};

/// What a frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Facts {
    /// It contradicts itself or its length, or hides what is in it.
    Malformed,
    /// ARP.
    Arp,
    /// Neither that nor IP.
    NotIp,
    /// IPv4 or IPv6.
    Ip(Packet),
}

/// IPv6's extension headers that lead on to another header: hop-by-hop options, routing, fragment,
/// authentication, destination options.
pub const EXTENSIONS: [u8; 5] = [0, 43, FRAGMENT, AUTHENTICATION, 60];
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

/// What a frame is.
pub fn dissect(frame: &[u8]) -> Facts {
    let Some((kind, rest)) = untagged(frame) else {
        return Facts::Malformed;
    };
    let packet = match kind {
        0x0806 => return Facts::Arp,
        0x0800 => ipv4(rest),
        0x86dd => ipv6(rest),
        _ => return Facts::NotIp,
    };
    packet.map_or(Facts::Malformed, Facts::Ip)
}

/// The type of what is in the frame, and that.
fn untagged(frame: &[u8]) -> Option<(u16, &[u8])> {
    let is_tag = |kind| kind == 0x8100 || kind == 0x88a8;
    let mut kind = number(frame, 12)?;
    let mut rest = &frame[14..];
    let mut tags = 0;
    while is_tag(kind) {
        tags += 1;
        if tags > 2 {
            return None;
        }
        kind = number(rest, 2)?;
        rest = &rest[4..];
    }
    Some((kind, rest))
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

/// `None` is malformed.
fn ipv4(bytes: &[u8]) -> Option<Packet> {
    let (source, destination) = v4_addresses(bytes)?;
    let header_length = usize::from(bytes[0] & 15) * 4;
    let total_length = usize::from(number(bytes, 2)?);
    if bytes[0] >> 4 != 4 || header_length < 20 {
        return None;
    }
    // Cut to the packet's length: what the link padded behind it is not part of it.
    let payload = bytes.get(..total_length)?.get(header_length..)?;
    let protocol = bytes[9];
    let fragment_offset = usize::from(number(bytes, 6)? & 0x1fff) * 8;
    let content = if fragment_offset == 0 {
        transport(payload, protocol, false)?
    } else {
        later_fragment(protocol, fragment_offset)?
    };
    Some(Packet {
        source,
        destination,
        hops: bytes[8],
        protocol,
        content,
    })
}

/// `None` is malformed.
fn ipv6(bytes: &[u8]) -> Option<Packet> {
    let (source, destination) = v6_addresses(bytes)?;
    if bytes[0] >> 4 != 6 {
        return None;
    }
    let payload_length = usize::from(number(bytes, 4)?);
    let mut payload = bytes[40..].get(..payload_length)?;
    let mut protocol = bytes[6];
    let mut headers = 0;
    let mut fragment_offset = 0;
    while EXTENSIONS.contains(&protocol) && fragment_offset == 0 {
        headers += 1;
        if headers > 8 {
            return None;
        }
        let units = usize::from(*payload.get(1)?);
        let length = match protocol {
            FRAGMENT => 8,
            AUTHENTICATION => 4 * (units + 2),
            _ => 8 * (units + 1),
        };
        let header = payload.get(..length)?;
        if protocol == FRAGMENT {
            fragment_offset = usize::from(number(header, 2)? >> 3) * 8;
        }
        protocol = header[0];
        payload = &payload[length..];
    }
    let content = if fragment_offset == 0 {
        transport(payload, protocol, true)?
    } else {
        later_fragment(protocol, fragment_offset)?
    };
    Some(Packet {
        source,
        destination,
        hops: bytes[7],
        protocol,
        content,
    })
}

/// The bytes of the shortest header that a protocol can have.
const fn shortest(protocol: u8) -> usize {
    match protocol {
        TCP => 20,
        UDP | ICMP | ICMPV6 => 8,
        SCTP => 12,
        _ => 0,
    }
}

/// A later fragment must not begin where the first one's header was.
fn later_fragment(protocol: u8, offset: usize) -> Option<Content> {
    (offset >= shortest(protocol)).then_some(Content::LaterFragment)
}

fn transport(payload: &[u8], protocol: u8, is_v6: bool) -> Option<Content> {
    if payload.len() < shortest(protocol) {
        return None;
    }
    Some(match protocol {
        TCP | UDP | SCTP => Content::Ports {
            source: number(payload, 0)?,
            destination: number(payload, 2)?,
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
            identifier: number(payload, 4)?,
        },
        _ => Content::Other,
    })
}

/// The packet that an error quotes: its start only, and what it says of its length is not asked.
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

/// The same; of extension headers a fragment header alone is looked through.
fn quoted_v6(bytes: &[u8]) -> Option<Packet> {
    let (source, destination) = v6_addresses(bytes)?;
    if bytes[0] >> 4 != 6 {
        return None;
    }
    let mut protocol = bytes[6];
    let mut payload = &bytes[40..];
    let mut is_later = false;
    if protocol == FRAGMENT {
        let header = payload.get(..8)?;
        protocol = header[0];
        is_later = number(header, 2)? >> 3 != 0;
        payload = &payload[8..];
    }
    if EXTENSIONS.contains(&protocol) && !is_later {
        return None;
    }
    Some(Packet {
        source,
        destination,
        hops: bytes[7],
        protocol,
        content: quoted_content(Some(payload), protocol, is_later, (ICMPV6, 128))?,
    })
}

/// The 8 bytes that RFC 792 promises have the ports, or the identifier of an echo request: nobody waits
/// for an error about another message.
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
