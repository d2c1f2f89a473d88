//! Bytes of a frame to the facts that a packet is judged by: addresses, protocol, ports.
//!
//! Invariants: nothing is read past the end that the IP header names, so padding is never taken
//! for a header; ports are never read from a fragment that has none; what contradicts itself is
//! [`Malformed`], never a guess. Knows no policy. What an ICMP error quotes is `quote`'s.
//!
//! Formats: IEEE 802.1Q, RFC 791 (IPv4), RFC 8200 (IPv6 and its extension headers), RFC 2675 (jumbograms),
//! RFC 4302 (AH), RFC 9293 (TCP), RFC 9260 (SCTP).

mod addresses;
mod fast_path;
mod malformed;
mod packed;
mod quote;

pub use addresses::{Addresses, read_addresses};
pub use fast_path::parse_fast;
pub use malformed::Malformed;
pub use packed::{PackedMeta, PackedPacket};
pub use quote::Quote;

use core::net::IpAddr;

use crate::frame::{Frame, u16_at, u32_at};

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// A question or answer of ARP.
    Arp,
    /// Neither that nor IP.
    Other,
    /// IPv4 or IPv6.
    Ip(Packet),
}

/// An address of a packet, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4.
    V4(u32),
    /// IPv6: its network half and its host half.
    V6([u64; 2]),
}

/// What a packet is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The id in the outermost VLAN tag; 0 where there is none, or one that only has a priority.
    pub vlan: u16,
    /// Who sent it, or says so.
    pub source: Address,
    /// To whom.
    pub destination: Address,
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
    /// TCP, UDP or SCTP.
    Ports {
        /// Of the sender.
        source: u16,
        /// Of the receiver.
        destination: u16,
        /// Of TCP, as in [`tcp_flag`]; 0 for other protocols.
        flags: u8,
    },
    /// ICMP or ICMPv6, but for errors.
    Icmp {
        /// The message's type.
        kind: u8,
        /// The second word's first half, which is the identifier of an echo.
        identifier: u16,
    },
    /// An error of IPv4's ICMP or of IPv6's ICMPv6, path MTU included.
    IcmpError {
        /// The message's type.
        kind: u8,
        /// Where the packet is quoted that the error is about.
        quote: Quote,
    },
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
/// SCTP.
pub const SCTP: u8 = 132;

/// From where to where something lies in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u16,
    end: u16,
}

impl Span {
    /// Headers start well before 64 KiB. A packet may end a little behind, of which nobody reads.
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

/// TCP's flags, as they stand in its header.
pub mod tcp_flag {
    /// The sender has no more to send.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 1 << 1;
    /// Ends a connection at once.
    pub const RST: u8 = 1 << 2;
    /// Acknowledges something, as all segments do but the first.
    pub const ACK: u8 = 1 << 4;
}

/// 802.1Q and 802.1ad tags that are looked through. More is malformed: nobody could say what is in it.
const MAX_TAGS: usize = 2;
/// IPv6 extension headers that are looked through.
const MAX_EXTENSIONS: usize = 8;
/// The greatest length that an IP header's 16-bit length field can state.
const MAX_LENGTH_FIELD: usize = u16::MAX as usize;

const ETHERNET: usize = 14;
const TAG: usize = 4;
const IPV4: usize = 20;
const IPV6: usize = 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// Whether a protocol number is that of an IPv6 extension header that is looked through.
///
/// In an IPv4 header the same numbers are protocols like any other (51 is AH).
#[inline(always)]
pub const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
    )
}

/// Whether a later fragment of that `family` and protocol hides its transport protocol: it is IPv6 and begins with an
/// extension header.
#[inline(always)]
pub const fn hides_protocol(family: u8, protocol: u8) -> bool {
    family == 6 && is_extension(protocol)
}

impl Address {
    /// In 16 bytes: an IPv4 address takes the first 4, and the others are zeros.
    #[inline(always)]
    pub const fn padded(self) -> [u64; 2] {
        match self {
            Self::V4(address) => [(address as u64) << 32, 0],
            Self::V6(halves) => halves,
        }
    }

    /// 4 or 6.
    #[inline(always)]
    pub const fn family(self) -> u8 {
        match self {
            Self::V4(_) => 4,
            Self::V6(_) => 6,
        }
    }

    /// Whether the address is an IPv6 link-local one (`fe80::/10`): routers forward no packet from or to such an
    /// address (RFC 4291, 2.5.6).
    #[inline(always)]
    pub const fn is_link_local(self) -> bool {
        matches!(self, Self::V6([network, _]) if network >> 54 == 0xfe80 >> 6)
    }

    /// Whether the address is the unspecified one of its family.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        matches!(self, Self::V4(0) | Self::V6([0, 0]))
    }

    /// What `padded` made of an address of that family.
    #[inline(always)]
    pub const fn from_padded(family: u8, padded: [u64; 2]) -> Self {
        if family == 4 {
            Self::V4((padded[0] >> 32) as u32)
        } else {
            Self::V6(padded)
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                Self::V6([(bits >> 64) as u64, bits as u64])
            }
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address {
            Address::V4(number) => Self::V4(number.into()),
            Address::V6([network, host]) => {
                Self::V6((u128::from(network) << 64 | u128::from(host)).into())
            }
        }
    }
}

/// What a frame carries, and if it is a packet, what it is judged by.
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

/// The first half of [`parse`]: all but what the transport header says, and where that header is.
/// Nowhere in a later fragment, which is told as one.
#[inline(always)]
pub fn parse_network<F: Frame + ?Sized>(frame: &F) -> Result<(Contents, Option<Span>), Malformed> {
    let mut kind = frame
        .read_be_u16(ETHERNET - 2)
        .ok_or(Malformed::EthernetHeader)?;
    let mut offset = ETHERNET;
    let mut vlan = 0;
    for _ in 0..MAX_TAGS {
        if is_tag(kind) {
            let (id, inner) = frame
                .read::<TAG, _>(offset, |tag| (u16_at::<0>(tag) & 0x0fff, u16_at::<2>(tag)))
                .ok_or(Malformed::EthernetHeader)?;
            if offset == ETHERNET {
                vlan = id;
            }
            kind = inner;
            offset += TAG;
        }
    }
    let (packet, header) = match kind {
        0x0800 => ipv4(frame, offset, vlan)?,
        0x86dd => ipv6(frame, offset, vlan)?,
        0x0806 => return Ok((Contents::Arp, None)),
        _ if is_tag(kind) => return Err(Malformed::VlanDepth),
        _ => return Ok((Contents::Other, None)),
    };
    Ok((Contents::Ip(packet), header))
}

#[inline(always)]
const fn is_tag(kind: u16) -> bool {
    kind == 0x8100 || kind == 0x88a8
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
    fn read(header: &[u8; IPV4]) -> Self {
        Self {
            version: header[0] >> 4,
            header_length: (header[0] & 0x0f) as usize * 4,
            total_length: u16_at::<2>(header) as usize,
            fragment_offset: (u16_at::<6>(header) & 0x1fff) as usize * 8,
            hops: header[8],
            protocol: header[9],
            source: u32_at::<12>(header),
            destination: u32_at::<16>(header),
        }
    }
}

#[inline(always)]
fn ipv4<F: Frame + ?Sized>(
    frame: &F,
    start: usize,
    vlan: u16,
) -> Result<(Packet, Option<Span>), Malformed> {
    let header = frame.read(start, Ipv4::read).ok_or(Malformed::IpHeader)?;
    if header.version != 4 {
        return Err(Malformed::IpVersion);
    }
    if header.header_length < IPV4 {
        return Err(Malformed::HeaderLength);
    }
    let end = if header.total_length == 0 && frame.length() > start + MAX_LENGTH_FIELD {
        frame.length() // merged by the kernel (BIG TCP): more than the field can state
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

/// The first 8 bytes of an IPv6 header; its addresses follow.
struct Ipv6 {
    version: u8,
    payload_length: usize,
    next: u8,
    hops: u8,
}

impl Ipv6 {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "it reads where the frame lies"
    )]
    #[inline(always)]
    fn read(header: &[u8; 8]) -> Self {
        Self {
            version: header[0] >> 4,
            payload_length: u16_at::<4>(header) as usize,
            next: header[6],
            hops: header[7],
        }
    }
}

#[inline(always)]
fn ipv6<F: Frame + ?Sized>(
    frame: &F,
    start: usize,
    vlan: u16,
) -> Result<(Packet, Option<Span>), Malformed> {
    let header = frame.read(start, Ipv6::read).ok_or(Malformed::IpHeader)?;
    let source = frame.read_be_u128(start + 8).ok_or(Malformed::IpHeader)?;
    let destination = frame.read_be_u128(start + 24).ok_or(Malformed::IpHeader)?;
    if header.version != 6 {
        return Err(Malformed::IpVersion);
    }
    let payload = start + IPV6;
    let end = if header.payload_length == 0 && frame.length() > payload + MAX_LENGTH_FIELD {
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

/// The end of an IPv6 packet that is longer than its length field can state, whose payload starts at `payload`: the
/// jumbo payload option states it (RFC 2675), which the kernel puts first; without one the packet ends with
/// the frame, as kernels that write no option mean it.
#[inline(always)]
fn jumbogram_end<F: Frame + ?Sized>(
    frame: &F,
    next: u8,
    payload: usize,
) -> Result<usize, Malformed> {
    /// The option's type and its length.
    const JUMBO: u16 = 0xc204;
    if next != HOP_BY_HOP {
        return Ok(frame.length());
    }
    let (option, length) = frame
        .read::<8, _>(payload, |header| {
            (u16_at::<2>(header), u32_at::<4>(header) as usize)
        })
        .ok_or(Malformed::ExtensionHeader)?;
    if option != JUMBO {
        return Ok(frame.length());
    }
    if length <= MAX_LENGTH_FIELD || length > frame.length() {
        return Err(Malformed::PacketLength);
    }
    Ok(payload + length)
}

/// Where a chain of extension headers ends.
struct Chain {
    /// What follows.
    protocol: u8,
    /// Where that starts.
    offset: usize,
    /// Bytes of the unfragmented packet before it; then it starts in another packet.
    fragment_offset: usize,
}

/// Walks the chain of extension headers.
#[inline(always)]
fn extensions<F: Frame + ?Sized>(
    frame: &F,
    first: u8,
    start: usize,
    end: usize,
) -> Result<Chain, Malformed> {
    let mut protocol = first;
    let mut offset = start;
    // One turn more than there may be headers: the last one only finds the chain's end.
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
        let (next, units, third) = frame
            .read::<4, _>(offset, |header| {
                (header[0], header[1] as usize, u16_at::<2>(header))
            })
            .ok_or(Malformed::ExtensionHeader)?;
        let length = match protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        if offset + length > end {
            return Err(Malformed::ExtensionHeader);
        }
        if protocol == FRAGMENT {
            let fragment_offset = (third & 0xfff8) as usize;
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

/// The bytes that a transport header has at least; 0 for protocols that are not looked into.
#[inline(always)]
const fn min_header_length(protocol: u8) -> usize {
    match protocol {
        TCP => 20,
        SCTP => 12,
        UDP | ICMP | ICMPV6 => 8,
        _ => 0,
    }
}

/// A fragment that begins inside the transport header would rewrite what the first one said
/// (RFC 1858, RFC 3128), and no honest sender makes one, since the first holds the header whole.
#[inline(always)]
const fn later_fragment(protocol: u8, fragment_offset: usize) -> Result<Transport, Malformed> {
    if fragment_offset < min_header_length(protocol) {
        Err(Malformed::FragmentOverlap)
    } else {
        Ok(Transport::LaterFragment)
    }
}

/// The second half of [`parse`]: what the transport header says. A header that does not fit whole is
/// malformed, also in a first fragment: no honest sender splits one (RFC 1858 has the attack).
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
            .read::<14, _>(offset, |header| Transport::Ports {
                source: u16_at::<0>(header),
                destination: u16_at::<2>(header),
                flags: header[13],
            })
            .ok_or(Malformed::TransportHeader);
    }
    let (first, second, third) = frame
        .read::<8, _>(offset, |header| {
            (
                u16_at::<0>(header),
                u16_at::<2>(header),
                u16_at::<4>(header),
            )
        })
        .ok_or(Malformed::TransportHeader)?;
    let kind = (first >> 8) as u8;
    Ok(match (family, protocol, kind) {
        (4, ICMP, 3 | 11 | 12) | (6, ICMPV6, 1..=4) => Transport::IcmpError {
            kind,
            quote: Quote(Span::new(offset + least, end)),
        },
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
