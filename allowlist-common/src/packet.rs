//! Bytes of a frame to the facts that a packet is judged by: source, protocol, ports.
//!
//! Invariants: nothing is read past the end that the IP header names, so padding is never taken
//! for a header; ports are never read from a fragment that has none; what contradicts itself is
//! [`Malformed`], never a guess. Knows no policy.
//!
//! Formats: IEEE 802.1Q, RFC 791 (IPv4), RFC 8200 (IPv6 and its extension headers), RFC 4302 (AH).

use crate::frame::Frame;

/// The frame's headers contradict themselves or its length, or are deeper than is looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4, in network order.
    V4([u8; 4]),
    /// IPv6, in network order.
    V6([u8; 16]),
}

/// What a packet is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sent it, or says so.
    pub source: Address,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// The transport protocol, after all extension headers.
    pub protocol: u8,
    /// What the transport header says.
    pub transport: Transport,
}

/// What the transport header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP or UDP.
    Ports {
        /// Of the sender.
        source: u16,
        /// Of this host.
        destination: u16,
    },
    /// ICMP or ICMPv6: the message type.
    Icmp(u8),
    /// A fragment that is not the first: the transport header is in another packet.
    LaterFragment,
    /// A protocol without ports.
    Other,
}

/// ICMP for IPv4.
pub const ICMP: u8 = 1;
/// Group membership for IPv4.
pub const IGMP: u8 = 2;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;

/// 802.1Q and 802.1ad tags that are looked through. More is malformed: nobody could say what is in it.
const MAX_TAGS: usize = 2;
/// IPv6 extension headers that are looked through.
const MAX_EXTENSIONS: usize = 8;

const ETHERNET: usize = 14;
const TAG: usize = 4;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// The packet in a frame; `None` where the frame carries no IP.
#[inline(always)]
pub fn parse<F: Frame + ?Sized>(frame: &F) -> Result<Option<Packet>, Malformed> {
    let mut kind = frame.number(ETHERNET - 2).ok_or(Malformed)?;
    let mut offset = ETHERNET;
    for _ in 0..MAX_TAGS {
        if is_tag(kind) {
            kind = frame.number(offset + TAG - 2).ok_or(Malformed)?;
            offset += TAG;
        }
    }
    match kind {
        0x0800 => ipv4(frame, offset).map(Some),
        0x86dd => ipv6(frame, offset).map(Some),
        _ if is_tag(kind) => Err(Malformed),
        _ => Ok(None),
    }
}

#[inline(always)]
const fn is_tag(kind: u16) -> bool {
    kind == 0x8100 || kind == 0x88a8
}

#[inline(always)]
fn ipv4<F: Frame + ?Sized>(frame: &F, start: usize) -> Result<Packet, Malformed> {
    let header: [u8; IPV4] = frame.bytes(start).ok_or(Malformed)?;
    let header_length = (header[0] & 0x0f) as usize * 4;
    let total_length = u16::from_be_bytes([header[2], header[3]]) as usize;
    if header[0] >> 4 != 4 || header_length < IPV4 || total_length < header_length {
        return Err(Malformed);
    }
    let end = start + total_length;
    if end > frame.length() {
        return Err(Malformed);
    }
    let protocol = header[9];
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    Ok(Packet {
        source: Address::V4([header[12], header[13], header[14], header[15]]),
        hops: header[8],
        protocol,
        transport: if fragment_offset == 0 {
            transport(frame, protocol, start + header_length, end)?
        } else {
            Transport::LaterFragment
        },
    })
}

#[inline(always)]
fn ipv6<F: Frame + ?Sized>(frame: &F, start: usize) -> Result<Packet, Malformed> {
    let header: [u8; 8] = frame.bytes(start).ok_or(Malformed)?;
    let source = frame.bytes(start + 8).ok_or(Malformed)?;
    let end = start + IPV6 + u16::from_be_bytes([header[4], header[5]]) as usize;
    if header[0] >> 4 != 6 || end > frame.length() {
        return Err(Malformed);
    }
    let (protocol, offset, later_fragment) = extensions(frame, header[6], start + IPV6, end)?;
    Ok(Packet {
        source: Address::V6(source),
        hops: header[7],
        protocol,
        transport: if later_fragment {
            Transport::LaterFragment
        } else {
            transport(frame, protocol, offset, end)?
        },
    })
}

/// Walks the chain of extension headers to the transport protocol, where its header starts, and
/// whether it is in another fragment.
#[inline(always)]
fn extensions<F: Frame + ?Sized>(
    frame: &F,
    first: u8,
    start: usize,
    end: usize,
) -> Result<(u8, usize, bool), Malformed> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let mut protocol = first;
    let mut offset = start;
    // One turn more than there may be headers: the last one only finds the chain's end.
    for turn in 0..=MAX_EXTENSIONS {
        if !matches!(
            protocol,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
        ) {
            return Ok((protocol, offset, false));
        }
        if turn == MAX_EXTENSIONS {
            break;
        }
        let header: [u8; 4] = frame.bytes(offset).ok_or(Malformed)?;
        let length = match protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (header[1] as usize + 2) * 4,
            _ => (header[1] as usize + 1) * 8,
        };
        if offset + length > end {
            return Err(Malformed);
        }
        if protocol == FRAGMENT && u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
            return Ok((header[0], offset, true));
        }
        protocol = header[0];
        offset += length;
    }
    Err(Malformed)
}

/// Reads ports or the ICMP type. A header that does not fit whole is malformed, also in a first
/// fragment: no honest sender splits one (RFC 1858 has the attack).
#[inline(always)]
fn transport<F: Frame + ?Sized>(
    frame: &F,
    protocol: u8,
    offset: usize,
    end: usize,
) -> Result<Transport, Malformed> {
    let least = match protocol {
        TCP => 20,
        UDP | ICMP | ICMPV6 => 8,
        _ => return Ok(Transport::Other),
    };
    if offset + least > end {
        return Err(Malformed);
    }
    let header: [u8; 4] = frame.bytes(offset).ok_or(Malformed)?;
    Ok(match protocol {
        TCP | UDP => Transport::Ports {
            source: u16::from_be_bytes([header[0], header[1]]),
            destination: u16::from_be_bytes([header[2], header[3]]),
        },
        _ => Transport::Icmp(header[0]),
    })
}
