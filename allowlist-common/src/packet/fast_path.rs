//! A parser for the most common packets: unfragmented TCP or UDP directly after an IP header without options, with at
//! most one VLAN tag.
//!
//! Invariant: for such a packet, [`super::parse`] returns the same result; all other frames are left to it.

use super::wire::{ethernet, ip, ipv4, ipv6, transport};
use super::{Address, Packet, TCP, Transport, UDP, min_header_length, read_tag, u16_at, u32_at};
use crate::frame::{Frame, u64_at};

/// The number of bytes read from a transport header.
const PORTS: usize = transport::UDP_HEADER;

/// Parses a packet, and returns the result of `v4` or `v6`; `None` for a frame that needs [`super::parse`].
///
/// Takes two closures, so that the code that uses the packet is compiled for each family.
#[inline(always)]
pub fn parse_fast<F: Frame + ?Sized, T>(
    frame: &F,
    v4: impl FnOnce(Packet) -> Option<T>,
    v6: impl FnOnce(Packet) -> Option<T>,
) -> Option<T> {
    let mut kind = frame.read_be_u16(ethernet::TYPE_AT)?;
    let (mut start, mut vlan) = (ethernet::HEADER, 0);
    if kind == ethernet::VLAN {
        (vlan, kind) = read_tag(frame, ethernet::HEADER)?;
        start += ethernet::TAG;
    }
    match kind {
        ethernet::IPV4 => v4(parse_v4(frame, start, vlan)?),
        ethernet::IPV6 => v6(parse_v6(frame, start, vlan)?),
        _ => None,
    }
}

/// Parses a packet with an IPv4 header at `start`.
#[inline(always)]
fn parse_v4<F: Frame + ?Sized>(frame: &F, start: usize, vlan: u16) -> Option<Packet> {
    const FRAGMENT: u16 = ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET;
    let packet = frame.read::<{ ipv4::HEADER + PORTS }, _>(start, |header| {
        let length = u16_at::<{ ipv4::TOTAL_LENGTH_AT }>(header) as usize;
        let protocol = header[ipv4::PROTOCOL_AT];
        if header[0] != ipv4::VERSION_AND_MIN_LENGTH
            || u16_at::<{ ipv4::FRAGMENT_AT }>(header) & FRAGMENT != 0
            || !matches!(protocol, TCP | UDP)
            || length < ipv4::HEADER + min_header_length(protocol)
            || start + length > frame.length()
        {
            return None;
        }
        Some(Packet {
            vlan,
            source: Address::V4(u32_at::<{ ipv4::SOURCE_AT }>(header)),
            destination: Address::V4(u32_at::<{ ipv4::DESTINATION_AT }>(header)),
            hops: header[ipv4::TTL_AT],
            protocol,
            transport: ports(u64_at::<{ ipv4::HEADER }>(header)),
        })
    })??;
    with_flags(frame, start + ipv4::HEADER, packet)
}

/// Parses a packet with an IPv6 header at `start`.
#[inline(always)]
fn parse_v6<F: Frame + ?Sized>(frame: &F, start: usize, vlan: u16) -> Option<Packet> {
    let packet = frame.read::<{ ipv6::HEADER + PORTS }, _>(start, |header| {
        let length = u16_at::<{ ipv6::PAYLOAD_LENGTH_AT }>(header) as usize;
        let protocol = header[ipv6::NEXT_HEADER_AT];
        if header[0] >> ip::VERSION_SHIFT != ipv6::VERSION
            || !matches!(protocol, TCP | UDP)
            || length < min_header_length(protocol)
            || start + ipv6::HEADER + length > frame.length()
        {
            return None;
        }
        Some(Packet {
            vlan,
            source: Address::V6([
                u64_at::<{ ipv6::SOURCE_AT }>(header),
                u64_at::<{ ipv6::SOURCE_AT + 8 }>(header),
            ]),
            destination: Address::V6([
                u64_at::<{ ipv6::DESTINATION_AT }>(header),
                u64_at::<{ ipv6::DESTINATION_AT + 8 }>(header),
            ]),
            hops: header[ipv6::HOP_LIMIT_AT],
            protocol,
            transport: ports(u64_at::<{ ipv6::HEADER }>(header)),
        })
    })??;
    with_flags(frame, start + ipv6::HEADER, packet)
}

/// Returns the ports in the first 8 bytes of a transport header.
///
/// VERIFIER: after a 16-bit byte swap, Linux 6.1 knows no bounds for the 64-bit register; after a shift and a
/// truncation, it knows that the value has 16 bits.
#[inline(always)]
const fn ports(header: u64) -> Transport {
    let (source, destination) = ((header >> 48) as u16, (header >> 32) as u16);
    let flags = 0;
    Transport::Ports {
        source,
        destination,
        flags,
    }
}

#[inline(always)]
fn with_flags<F: Frame + ?Sized>(frame: &F, start: usize, mut packet: Packet) -> Option<Packet> {
    if packet.protocol == TCP
        && let Transport::Ports { flags, .. } = &mut packet.transport
    {
        *flags = frame.read::<1, _>(start + transport::TCP_FLAGS_AT, |byte| byte[0])?;
    }
    Some(packet)
}
