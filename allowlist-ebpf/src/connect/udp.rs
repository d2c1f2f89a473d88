//! Finds the UDP header of a packet that a socket sends or receives.

use allowlist_common::packet::wire::{extension, ipv4, ipv6};
use allowlist_common::packet::{Address, UDP};
use aya_ebpf::programs::SkBuffContext;

/// The maximum number of headers after the fixed IPv6 header, including the UDP header. A packet with more is ignored.
const MAX_EXTENSIONS: usize = 6;
/// The size of a UDP header in bytes.
const UDP_HEADER: usize = 8;

/// The side of a packet on which the other host is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remote {
    Source,
    Destination,
}

/// The other endpoint of a UDP packet, and where the packet's payload begins.
#[derive(Clone, Copy)]
pub(crate) struct Datagram {
    pub(crate) address: Address,
    pub(crate) port: u16,
    /// The offset of the payload from the IP header, in bytes.
    pub(crate) payload: u32,
}

/// Returns the other endpoint of a UDP packet; `None` for another packet, or if it cannot be parsed.
#[inline(always)]
pub(crate) fn read(ctx: &SkBuffContext, remote: Remote) -> Option<Datagram> {
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
        address,
        port: u16::from_be(ctx.load(port).ok()?),
        payload: (header + UDP_HEADER) as u32,
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
        Remote::Destination => ipv4::SOURCE_AT + 4,
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
                    Remote::Destination => ipv6::SOURCE_AT + 16,
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
