//! Finds the UDP header of a packet that a socket sends or receives.

use allowlist_common::egress::address_key;
use allowlist_common::packet::wire::{extension, ip, ipv4, ipv6, transport};
use allowlist_common::packet::{Address, UDP};
use aya_ebpf::programs::SkBuffContext;

/// The maximum number of headers after the fixed IPv6 header, including the UDP header. A packet with more is ignored.
const MAX_EXTENSIONS: usize = 6;

/// The side of a packet on which the other host is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remote {
    Source,
    Destination,
}

/// The other endpoint of a UDP packet, and where the packet's payload begins.
#[derive(Clone, Copy)]
pub(crate) struct Datagram {
    /// The address, as [`address_key`] returns it.
    ///
    /// VERIFIER: not an [`Address`], whose unused bytes the compiler would read without a value.
    pub(crate) address: [u64; 2],
    pub(crate) port: u16,
    /// The offset of the payload from the IP header, in bytes.
    pub(crate) payload: u32,
}

/// Returns the other endpoint of a UDP packet; `None` for another packet, or if it cannot be parsed.
///
/// Reads the linear part of the packet directly, since this runs for every packet: a call of a helper for each field costs
/// more than all the rest. Packets with unusual headers are read by the helper.
#[inline(always)]
pub(crate) fn read(ctx: &SkBuffContext, remote: Remote) -> Option<Datagram> {
    match read_linear(ctx, remote) {
        Linear::Udp(datagram) => Some(datagram),
        Linear::Other => None,
        Linear::Unusual => read_any(ctx, remote),
    }
}

/// The result of reading the linear part of a packet.
enum Linear {
    /// A UDP packet, without IPv4 options or IPv6 extension headers.
    Udp(Datagram),
    /// A packet of another protocol.
    Other,
    /// A packet that needs [`read_any`].
    Unusual,
}

#[inline(always)]
fn read_linear(ctx: &SkBuffContext, remote: Remote) -> Linear {
    let packet = ctx.skb.skb;
    // SAFETY: the context is this program's.
    let (start, end) = unsafe {
        (
            (&raw const (*packet).data).read_volatile() as usize,
            (&raw const (*packet).data_end).read_volatile() as usize,
        )
    };
    if start + ipv4::HEADER + transport::UDP_HEADER > end {
        return Linear::Unusual;
    }
    // SAFETY: the packet has these bytes, as compared above.
    let header = unsafe { &*(start as *const [u8; ipv4::HEADER + transport::UDP_HEADER]) };
    if header[0] >> ip::VERSION_SHIFT == ipv4::VERSION {
        if header[ipv4::PROTOCOL_AT] != UDP {
            return Linear::Other;
        }
        if header[0] != ipv4::VERSION_AND_MIN_LENGTH {
            return Linear::Unusual;
        }
        let [address, port] = match remote {
            Remote::Source => [ipv4::SOURCE_AT, ipv4::HEADER],
            Remote::Destination => [ipv4::DESTINATION_AT, ipv4::HEADER + 2],
        };
        return Linear::Udp(Datagram {
            address: address_key(Address::V4(u32::from_be_bytes(field(header, address)))),
            port: u16::from_be_bytes(field(header, port)),
            payload: header.len() as u32,
        });
    }
    match header[ipv6::NEXT_HEADER_AT] {
        UDP => {}
        extension::HOP_BY_HOP
        | extension::ROUTING
        | extension::DESTINATION
        | extension::FRAGMENT => return Linear::Unusual,
        _ => return Linear::Other,
    }
    if start + ipv6::HEADER + transport::UDP_HEADER > end {
        return Linear::Unusual;
    }
    // SAFETY: the packet has these bytes, as compared above.
    let header = unsafe { &*(start as *const [u8; ipv6::HEADER + transport::UDP_HEADER]) };
    let [address, port] = match remote {
        Remote::Source => [ipv6::SOURCE_AT, ipv6::HEADER],
        Remote::Destination => [ipv6::DESTINATION_AT, ipv6::HEADER + 2],
    };
    Linear::Udp(Datagram {
        address: [address, address + 8].map(|at| u64::from_be_bytes(field(header, at))),
        port: u16::from_be_bytes(field(header, port)),
        payload: header.len() as u32,
    })
}

/// Returns the `N` bytes at a position in a header.
#[inline(always)]
fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    // Positions are constants, and inside the header, so the compiler removes both checks.
    *header[at..]
        .first_chunk()
        .expect("the field is inside the header")
}

/// Reads a packet as [`read`] does, also if its headers are not in the linear part.
#[inline(always)]
fn read_any(ctx: &SkBuffContext, remote: Remote) -> Option<Datagram> {
    let first: u8 = ctx.load(0).ok()?;
    let (address, header) = match first >> 4 {
        4 => read_v4(ctx, first, remote)?,
        6 => read_v6(ctx, remote)?,
        _ => return None,
    };
    let port = match remote {
        Remote::Source => header,
        Remote::Destination => header + 2,
    };
    Some(Datagram {
        address: address_key(address),
        port: u16::from_be(ctx.load(port).ok()?),
        payload: (header + transport::UDP_HEADER) as u32,
    })
}

#[inline(always)]
fn read_v4(ctx: &SkBuffContext, first: u8, remote: Remote) -> Option<(Address, usize)> {
    let protocol: u8 = ctx.load(ipv4::PROTOCOL_AT).ok()?;
    if protocol != UDP {
        return None;
    }
    let at = match remote {
        Remote::Source => ipv4::SOURCE_AT,
        Remote::Destination => ipv4::DESTINATION_AT,
    };
    let address: u32 = ctx.load(at).ok()?;
    let header = usize::from(first & ipv4::HEADER_LENGTH) * ipv4::HEADER_LENGTH_UNIT;
    Some((Address::V4(u32::from_be(address)), header))
}

#[inline(always)]
fn read_v6(ctx: &SkBuffContext, remote: Remote) -> Option<(Address, usize)> {
    let mut next: u8 = ctx.load(ipv6::NEXT_HEADER_AT).ok()?;
    let mut header = ipv6::HEADER;
    for _ in 0..=MAX_EXTENSIONS {
        match next {
            UDP => {
                let at = match remote {
                    Remote::Source => ipv6::SOURCE_AT,
                    Remote::Destination => ipv6::DESTINATION_AT,
                };
                let network: u64 = ctx.load(at).ok()?;
                let host: u64 = ctx.load(at + 8).ok()?;
                return Some((
                    Address::V6([u64::from_be(network), u64::from_be(host)]),
                    header,
                ));
            }
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {
                next = ctx.load(header).ok()?;
                let units: u8 = ctx.load(header + 1).ok()?;
                header += (usize::from(units) + 1) * 8;
            }
            extension::FRAGMENT => {
                next = ctx.load(header).ok()?;
                header += 8;
            }
            _ => return None,
        }
    }
    None
}
