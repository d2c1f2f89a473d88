//! The packets that nearly all traffic is, parsed in one go: TCP or UDP right after an IP header without options,
//! whole, in at most one VLAN tag.
//!
//! Invariant: of a plain packet [`super::parse`] says the same; what is anything else is left to it.

use super::{Address, ETHERNET, IPV4, IPV6, Packet, TAG, TCP, Transport, UDP};
use super::{min_header_length, u16_at, u32_at};
use crate::frame::{Frame, u64_at};

/// Of a transport header, what is read: as much as UDP has.
const PORTS: usize = 8;
/// Where TCP's header has its flags.
const FLAGS: usize = 13;

/// What `v4` or `v6` make of a plain packet; `None` for other frames.
///
/// Two functions, so that each is compiled for its family.
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

/// A plain packet of IPv4, whose header is at `start`.
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

/// A plain packet of IPv6, whose header is at `start`.
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

/// By the first 8 bytes of the transport header.
///
/// VERIFIER: to Linux 6.1 a port whose bytes were swapped alone could be any number of 64 bits; one that is cut out of
/// more is a port.
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
