//! Parses a frame to the fields that a packet is judged by: addresses, protocol, ports.
//!
//! Invariants: the parser reads nothing beyond the length in the IP header, so Ethernet padding is never parsed as a
//! header; it reads no ports from a later fragment; a packet with inconsistent headers is [`Malformed`]. Knows no
//! policy. The submodule `quote` parses the packet inside an ICMP error.
//!
//! Formats: IEEE 802.1Q, RFC 791 (IPv4), RFC 8200 (IPv6 and its extension headers), RFC 2675 (jumbograms),
//! RFC 4302 (AH), RFC 9293 (TCP), RFC 9260 (SCTP).

mod address;
mod addresses;
mod fast_path;
mod malformed;
mod packed;
mod quote;
pub mod wire;

pub use address::Address;
pub use addresses::{Addresses, read_addresses};
pub use fast_path::parse_fast;
pub use malformed::Malformed;
pub use packed::{PackedMeta, PackedPacket};
pub use quote::Quote;
pub use wire::protocol::{ICMP, ICMPV6, IGMP, SCTP, TCP, UDP};
pub use wire::tcp_flag;

use crate::frame::{Frame, u16_at, u32_at};
use wire::{ethernet, extension, icmp, icmpv6, ip, ipv4, ipv6, transport};

/// The contents of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// The frame is an ARP message.
    Arp,
    /// The frame is neither ARP nor IP.
    Other,
    /// The frame is an IPv4 or IPv6 packet.
    Ip(Packet),
}

/// The fields that a packet is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The id of the outermost VLAN tag; 0 without a tag, or with a priority tag.
    pub vlan: u16,
    /// The source address.
    pub source: Address,
    /// The destination address.
    pub destination: Address,
    /// The time to live, or hop limit.
    pub hops: u8,
    /// The transport protocol, after all extension headers.
    pub protocol: u8,
    /// The fields of the transport header.
    pub transport: Transport,
}

/// The fields of a transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The packet is TCP, UDP or SCTP.
    Ports {
        /// The source port.
        source: u16,
        /// The destination port.
        destination: u16,
        /// The TCP flags, see [`tcp_flag`]; 0 for other protocols.
        flags: u8,
    },
    /// The packet is ICMP or ICMPv6, except errors.
    Icmp {
        /// The type of the ICMP message.
        kind: u8,
        /// The identifier of an echo message: the upper half of the second word.
        identifier: u16,
    },
    /// The packet is an error of ICMP over IPv4 or of ICMPv6 over IPv6, including those of path MTU discovery.
    IcmpError {
        /// The type of the ICMP message.
        kind: u8,
        /// The position of the quoted packet.
        quote: Quote,
    },
    /// The packet is a fragment other than the first: the transport header is in another packet.
    LaterFragment,
    /// The packet is of a protocol without ports.
    Other,
}

/// A range of bytes in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u16,
    end: u16,
}

impl Span {
    /// Returns the span from `start` to `end`, with the end limited to 64 KiB. All headers end before this limit, so
    /// only payload is cut off.
    #[inline(always)]
    const fn new(start: usize, end: usize) -> Self {
        let end = if end > u16::MAX as usize {
            u16::MAX as usize
        } else {
            end
        };
        Self {
            start: start as u16,
            end: end as u16,
        }
    }

    #[inline(always)]
    const fn bounds(self) -> (usize, usize) {
        (self.start as usize, self.end as usize)
    }
}

/// The maximum number of 802.1Q and 802.1ad tags. A frame with more is malformed, because its contents are unknown.
const MAX_TAGS: usize = 2;
/// The maximum number of IPv6 extension headers. A frame with more is malformed.
const MAX_EXTENSIONS: usize = 8;

/// Reports whether a next-header number is an IPv6 extension header that the parser walks through.
///
/// In an IPv4 header the same numbers are ordinary protocols (51 is AH).
#[inline(always)]
pub const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        extension::HOP_BY_HOP
            | extension::ROUTING
            | extension::FRAGMENT
            | extension::AUTHENTICATION
            | extension::DESTINATION
    )
}

/// Reports whether the transport protocol of a later fragment is unknown: an IPv6 fragment that begins with an
/// extension header.
///
/// `family` is the IP version; `protocol` is the next header of the fragment header.
#[inline(always)]
pub const fn hides_protocol(family: u8, protocol: u8) -> bool {
    family == ipv6::VERSION && is_extension(protocol)
}

/// Parses a frame.
///
/// # Errors
/// Fails with the reason why the frame is malformed.
#[inline(always)]
pub fn parse<F: Frame + ?Sized>(frame: &F) -> Result<Contents, Malformed> {
    let (mut contents, header) = parse_network(frame)?;
    if let Contents::Ip(packet) = &mut contents
        && let Some(header) = header
    {
        let family = packet.source.family();
        packet.transport = parse_transport(frame, family, packet.protocol, header)?;
    }
    Ok(contents)
}

/// Parses a frame up to the network header: the first half of [`parse`].
///
/// Returns the contents, with [`Transport::Other`] as a placeholder, and the position of the transport header for
/// [`parse_transport`]. A later fragment has no transport header: its transport is [`Transport::LaterFragment`], and
/// the position is `None`.
///
/// # Errors
/// Fails with the reason why the frame is malformed.
#[inline(always)]
pub fn parse_network<F: Frame + ?Sized>(frame: &F) -> Result<(Contents, Option<Span>), Malformed> {
    let mut kind = frame
        .read_be_u16(ethernet::TYPE_AT)
        .ok_or(Malformed::EthernetHeader)?;
    let mut offset = ethernet::HEADER;
    let mut vlan = 0;
    for _ in 0..MAX_TAGS {
        if is_tag(kind) {
            let (id, inner) = read_tag(frame, offset).ok_or(Malformed::EthernetHeader)?;
            if offset == ethernet::HEADER {
                vlan = id;
            }
            kind = inner;
            offset += ethernet::TAG;
        }
    }
    let (packet, header) = match kind {
        ethernet::IPV4 => parse_ipv4(frame, offset, vlan)?,
        ethernet::IPV6 => parse_ipv6(frame, offset, vlan)?,
        ethernet::ARP => return Ok((Contents::Arp, None)),
        _ if is_tag(kind) => return Err(Malformed::VlanDepth),
        _ => return Ok((Contents::Other, None)),
    };
    Ok((Contents::Ip(packet), header))
}

#[inline(always)]
const fn is_tag(kind: u16) -> bool {
    kind == ethernet::VLAN || kind == ethernet::SERVICE_VLAN
}

/// Reads the VLAN id of a tag, and the type after it; `None` if the frame ends inside the tag.
#[inline(always)]
fn read_tag<F: Frame + ?Sized>(frame: &F, offset: usize) -> Option<(u16, u16)> {
    frame.read::<{ ethernet::TAG }, _>(offset, |tag| {
        (
            u16_at::<{ ethernet::TAG_CONTROL_AT }>(tag) & ethernet::VLAN_ID,
            u16_at::<{ ethernet::TAG_TYPE_AT }>(tag),
        )
    })
}

/// The fixed part of an IPv4 header.
struct Ipv4 {
    version: u8,
    header_length: usize,
    total_length: usize,
    fragment_offset: usize,
    hops: u8,
    protocol: u8,
    source: u32,
    destination: u32,
}

impl Ipv4 {
    #[inline(always)]
    fn read(header: &[u8; ipv4::HEADER]) -> Self {
        let fragment = u16_at::<{ ipv4::FRAGMENT_AT }>(header) & ipv4::FRAGMENT_OFFSET;
        Self {
            version: header[0] >> ip::VERSION_SHIFT,
            header_length: (header[0] & ipv4::HEADER_LENGTH) as usize * ipv4::HEADER_LENGTH_UNIT,
            total_length: u16_at::<{ ipv4::TOTAL_LENGTH_AT }>(header) as usize,
            fragment_offset: fragment as usize * ipv4::FRAGMENT_UNIT,
            hops: header[ipv4::TTL_AT],
            protocol: header[ipv4::PROTOCOL_AT],
            source: u32_at::<{ ipv4::SOURCE_AT }>(header),
            destination: u32_at::<{ ipv4::DESTINATION_AT }>(header),
        }
    }
}

#[inline(always)]
fn parse_ipv4<F: Frame + ?Sized>(
    frame: &F,
    start: usize,
    vlan: u16,
) -> Result<(Packet, Option<Span>), Malformed> {
    let header = frame.read(start, Ipv4::read).ok_or(Malformed::IpHeader)?;
    if header.version != ipv4::VERSION {
        return Err(Malformed::IpVersion);
    }
    if header.header_length < ipv4::HEADER {
        return Err(Malformed::HeaderLength);
    }
    let end = if header.total_length == 0 && frame.length() > start + ip::MAX_LENGTH_FIELD {
        frame.length() // merged by the kernel (BIG TCP): longer than the length field's maximum
    } else {
        start + header.total_length
    };
    if end < start + header.header_length || end > frame.length() {
        return Err(Malformed::PacketLength);
    }
    let (transport, span) = if header.fragment_offset == 0 {
        let span = Span::new(start + header.header_length, end);
        (Transport::Other, Some(span))
    } else {
        (
            later_fragment(header.protocol, header.fragment_offset)?,
            None,
        )
    };
    let packet = Packet {
        vlan,
        source: Address::V4(header.source),
        destination: Address::V4(header.destination),
        hops: header.hops,
        protocol: header.protocol,
        transport,
    };
    Ok((packet, span))
}

/// The fields of an IPv6 header before the addresses.
struct Ipv6 {
    version: u8,
    payload_length: usize,
    next: u8,
    hops: u8,
}

impl Ipv6 {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the kernel program reads packet memory in place"
    )]
    #[inline(always)]
    fn read(header: &[u8; ipv6::FIELDS]) -> Self {
        Self {
            version: header[0] >> ip::VERSION_SHIFT,
            payload_length: u16_at::<{ ipv6::PAYLOAD_LENGTH_AT }>(header) as usize,
            next: header[ipv6::NEXT_HEADER_AT],
            hops: header[ipv6::HOP_LIMIT_AT],
        }
    }
}

#[inline(always)]
fn parse_ipv6<F: Frame + ?Sized>(
    frame: &F,
    start: usize,
    vlan: u16,
) -> Result<(Packet, Option<Span>), Malformed> {
    let header = frame.read(start, Ipv6::read).ok_or(Malformed::IpHeader)?;
    let source = frame
        .read_be_u128(start + ipv6::SOURCE_AT)
        .ok_or(Malformed::IpHeader)?;
    let destination = frame
        .read_be_u128(start + ipv6::DESTINATION_AT)
        .ok_or(Malformed::IpHeader)?;
    if header.version != ipv6::VERSION {
        return Err(Malformed::IpVersion);
    }
    let payload = start + ipv6::HEADER;
    let end = if header.payload_length == 0 && frame.length() > payload + ip::MAX_LENGTH_FIELD {
        jumbogram_end(frame, header.next, payload)?
    } else {
        payload + header.payload_length
    };
    if end > frame.length() {
        return Err(Malformed::PacketLength);
    }
    let chain = extensions(frame, header.next, payload, end)?;
    let (transport, span) = if chain.fragment_offset == 0 {
        (Transport::Other, Some(Span::new(chain.offset, end)))
    } else {
        (later_fragment(chain.protocol, chain.fragment_offset)?, None)
    };
    let packet = Packet {
        vlan,
        source: Address::V6(source),
        destination: Address::V6(destination),
        hops: header.hops,
        protocol: chain.protocol,
        transport,
    };
    Ok((packet, span))
}

/// Returns the end of an IPv6 packet that is longer than its length field's maximum, with the payload at `payload`.
///
/// The jumbo payload option (RFC 2675) has the length; the kernel writes it as the first option. Without the option,
/// the packet ends with the frame: some kernels write no option.
#[inline(always)]
fn jumbogram_end<F: Frame + ?Sized>(
    frame: &F,
    next: u8,
    payload: usize,
) -> Result<usize, Malformed> {
    if next != extension::HOP_BY_HOP {
        return Ok(frame.length());
    }
    let (option, length) = frame
        .read::<{ extension::JUMBO_HEADER }, _>(payload, |header| {
            (
                u16_at::<{ extension::FIRST_OPTION_AT }>(header),
                u32_at::<{ extension::JUMBO_LENGTH_AT }>(header) as usize,
            )
        })
        .ok_or(Malformed::ExtensionHeader)?;
    if option != extension::JUMBO_PAYLOAD {
        return Ok(frame.length());
    }
    if length <= ip::MAX_LENGTH_FIELD || length > frame.length() {
        return Err(Malformed::PacketLength);
    }
    Ok(payload + length)
}

/// The end of a chain of extension headers.
struct Chain {
    /// The protocol after the chain.
    protocol: u8,
    /// The offset of that protocol's header in the frame.
    offset: usize,
    /// The fragment offset in bytes; if not 0, the protocol's header is in another packet.
    fragment_offset: usize,
}

/// Walks the chain of extension headers from `start`, in a packet that ends at `end`.
#[inline(always)]
fn extensions<F: Frame + ?Sized>(
    frame: &F,
    first: u8,
    start: usize,
    end: usize,
) -> Result<Chain, Malformed> {
    let mut protocol = first;
    let mut offset = start;
    // One iteration more than the maximum number of headers: the last one only detects the end of the chain.
    for turn in 0..=MAX_EXTENSIONS {
        if !is_extension(protocol) {
            return Ok(Chain {
                protocol,
                offset,
                fragment_offset: 0,
            });
        }
        if turn == MAX_EXTENSIONS {
            break;
        }
        let (next, units, fragment) = frame
            .read::<{ extension::FIELDS }, _>(offset, |header| {
                (
                    header[extension::NEXT_HEADER_AT],
                    header[extension::LENGTH_AT] as usize,
                    u16_at::<{ extension::FRAGMENT_AT }>(header),
                )
            })
            .ok_or(Malformed::ExtensionHeader)?;
        let length = match protocol {
            extension::FRAGMENT => extension::FRAGMENT_HEADER,
            extension::AUTHENTICATION => (units + 2) * extension::AUTHENTICATION_UNIT,
            _ => (units + 1) * extension::LENGTH_UNIT,
        };
        if offset + length > end {
            return Err(Malformed::ExtensionHeader);
        }
        if protocol == extension::FRAGMENT {
            let fragment_offset = (fragment & extension::FRAGMENT_OFFSET) as usize;
            if fragment_offset != 0 {
                return Ok(Chain {
                    protocol: next,
                    offset,
                    fragment_offset,
                });
            }
        }
        protocol = next;
        offset += length;
    }
    Err(Malformed::ExtensionDepth)
}

/// Returns the minimum length of a transport header; 0 for protocols that are not parsed.
#[inline(always)]
const fn min_header_length(protocol: u8) -> usize {
    match protocol {
        TCP => transport::TCP_HEADER,
        SCTP => transport::SCTP_HEADER,
        UDP => transport::UDP_HEADER,
        ICMP | ICMPV6 => icmp::HEADER,
        _ => 0,
    }
}

/// Rejects a later fragment that begins inside the transport header, because it could overwrite the ports that the
/// first fragment has (RFC 1858, RFC 3128). Regular senders put the whole header into the first fragment.
#[inline(always)]
const fn later_fragment(protocol: u8, fragment_offset: usize) -> Result<Transport, Malformed> {
    if fragment_offset < min_header_length(protocol) {
        Err(Malformed::FragmentOverlap)
    } else {
        Ok(Transport::LaterFragment)
    }
}

/// Parses the transport header: the second half of [`parse`].
///
/// # Errors
/// Fails if the header is truncated. This includes the header of a first fragment: regular senders do not split it, and
/// the tiny fragment attack does (RFC 1858).
#[inline(always)]
pub fn parse_transport<F: Frame + ?Sized>(
    frame: &F,
    family: u8,
    protocol: u8,
    header: Span,
) -> Result<Transport, Malformed> {
    let least = min_header_length(protocol);
    let (offset, end) = header.bounds();
    if least == 0 {
        return Ok(Transport::Other);
    }
    if offset + least > end {
        return Err(Malformed::TransportHeader);
    }
    if protocol == TCP {
        return frame
            .read::<{ transport::TCP_FLAGS_AT + 1 }, _>(offset, |header| Transport::Ports {
                source: u16_at::<{ transport::SOURCE_PORT_AT }>(header),
                destination: u16_at::<{ transport::DESTINATION_PORT_AT }>(header),
                flags: header[transport::TCP_FLAGS_AT],
            })
            .ok_or(Malformed::TransportHeader);
    }
    let (first, second, third) =
        read_three_words(frame, offset).ok_or(Malformed::TransportHeader)?;
    let kind = (first >> 8) as u8;
    Ok(match (family, protocol, kind) {
        (
            ipv4::VERSION,
            ICMP,
            icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM,
        )
        | (ipv6::VERSION, ICMPV6, icmpv6::UNREACHABLE..=icmpv6::PARAMETER_PROBLEM) => {
            Transport::IcmpError {
                kind,
                quote: Quote(Span::new(offset + least, end)),
            }
        }
        (_, ICMP | ICMPV6, _) => Transport::Icmp {
            kind,
            identifier: third,
        },
        _ => Transport::Ports {
            source: first,
            destination: second,
            flags: 0,
        },
    })
}

/// Reads the first three 16-bit numbers of a transport header: the ports of UDP and SCTP are the first two; of ICMP,
/// the type is the upper half of the first, and the identifier of an echo message is the third.
#[inline(always)]
fn read_three_words<F: Frame + ?Sized>(frame: &F, offset: usize) -> Option<(u16, u16, u16)> {
    const { assert!(icmp::TYPE_AT == transport::SOURCE_PORT_AT) };
    frame.read::<8, _>(offset, |header| {
        (
            u16_at::<{ transport::SOURCE_PORT_AT }>(header),
            u16_at::<{ transport::DESTINATION_PORT_AT }>(header),
            u16_at::<{ icmp::IDENTIFIER_AT }>(header),
        )
    })
}
