//! A parser for the most common packets: unfragmented TCP or UDP directly after an IP header without options, with at
//! most one VLAN tag.
//!
//! Invariant: for such a packet, [`super::parse`] returns the same result; all other frames are left to it.

use super::{Address, ETHERNET, IPV4, IPV6, Packet, TAG, TCP, Transport, UDP};
use super::{min_header_length, u16_at, u32_at};
use crate::frame::{Frame, u64_at};

/// The number of bytes read from a transport header: the size of a UDP header.
const PORTS: usize = 8;
/// The offset of the flags in a TCP header.
const FLAGS: usize = 13;

/// Parses a packet, and returns the result of `v4` or `v6`; `None` for a frame that needs [`super::parse`].
///
/// Takes two closures, so that the code that uses the packet is compiled for each family.
#[inline(always)]
pub fn parse_fast<F: Frame + ?Sized, T>(
    frame: &F,
    v4: impl FnOnce(Packet) -> Option<T>,
    v6: impl FnOnce(Packet) -> Option<T>,
) -> Option<T> {
    const TAGGED: u16 = 0x8100;
    let mut kind = frame.read_be_u16(ETHERNET - 2)?;
    let (mut start, mut vlan) = (ETHERNET, 0);
    if kind == TAGGED {
        (vlan, kind) = frame.read::<TAG, _>(ETHERNET, |tag| {
            (u16_at::<0>(tag) & 0x0fff, u16_at::<2>(tag))
        })?;
        start += TAG;
    }
    match kind {
        0x0800 => v4(parse_v4(frame, start, vlan)?),
        0x86dd => v6(parse_v6(frame, start, vlan)?),
        _ => None,
    }
}

/// Parses a packet with an IPv4 header at `start`.
#[inline(always)]
fn parse_v4<F: Frame + ?Sized>(frame: &F, start: usize, vlan: u16) -> Option<Packet> {
    const VERSION_AND_LENGTH: u8 = 0x45;
    const FRAGMENT: u16 = 0x3fff;
    let packet = frame.read::<{ IPV4 + PORTS }, _>(start, |header| {
        let length = u16_at::<2>(header) as usize;
        let protocol = header[9];
        if header[0] != VERSION_AND_LENGTH
            || u16_at::<6>(header) & FRAGMENT != 0
            || !matches!(protocol, TCP | UDP)
            || length < IPV4 + min_header_length(protocol)
            || start + length > frame.length()
        {
            return None;
        }
        Some(Packet {
            vlan,
            source: Address::V4(u32_at::<12>(header)),
            destination: Address::V4(u32_at::<16>(header)),
            hops: header[8],
            protocol,
            transport: ports(u64_at::<IPV4>(header)),
        })
    })??;
    with_flags(frame, start + IPV4, packet)
}

/// Parses a packet with an IPv6 header at `start`.
#[inline(always)]
fn parse_v6<F: Frame + ?Sized>(frame: &F, start: usize, vlan: u16) -> Option<Packet> {
    let packet = frame.read::<{ IPV6 + PORTS }, _>(start, |header| {
        let length = u16_at::<4>(header) as usize;
        let protocol = header[6];
        if header[0] >> 4 != 6
            || !matches!(protocol, TCP | UDP)
            || length < min_header_length(protocol)
            || start + IPV6 + length > frame.length()
        {
            return None;
        }
        Some(Packet {
            vlan,
            source: Address::V6([u64_at::<8>(header), u64_at::<16>(header)]),
            destination: Address::V6([u64_at::<24>(header), u64_at::<32>(header)]),
            hops: header[7],
            protocol,
            transport: ports(u64_at::<IPV6>(header)),
        })
    })??;
    with_flags(frame, start + IPV6, packet)
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
        *flags = frame.read::<1, _>(start + FLAGS, |byte| byte[0])?;
    }
    Some(packet)
}
