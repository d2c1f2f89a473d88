//! The VLAN and the addresses of a malformed frame, for drop events.
//!
//! Does not check the frame and decides nothing.

use super::wire::{ethernet, ipv6};
use super::{Address, Ipv4, Ipv6, MAX_TAGS, is_tag, read_tag};
use crate::frame::Frame;

/// The VLAN, and fields of the fixed IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The id of the outermost VLAN tag; 0 for none.
    pub vlan: u16,
    /// The source address.
    pub source: Address,
    /// The destination address.
    pub destination: Address,
    /// The IPv4 protocol, or the next header field of the fixed IPv6 header.
    pub protocol: u8,
}

/// Returns the addresses of a frame, even of a malformed one.
///
/// Returns `None` if the frame is not IP, ends inside the fixed IP header, or has another IP version than its Ethernet
/// type.
#[inline(always)]
pub fn read_addresses<F: Frame + ?Sized>(frame: &F) -> Option<Addresses> {
    let mut kind = frame.read_be_u16(ethernet::TYPE_AT)?;
    let mut offset = ethernet::HEADER;
    let mut vlan = 0;
    for _ in 0..MAX_TAGS {
        if is_tag(kind) {
            let (id, inner) = read_tag(frame, offset)?;
            if offset == ethernet::HEADER {
                vlan = id;
            }
            kind = inner;
            offset += ethernet::TAG;
        }
    }
    let (version, source, destination, protocol) = match kind {
        ethernet::IPV4 => {
            let header = frame.read(offset, Ipv4::read)?;
            let source = Address::V4(header.source);
            let destination = Address::V4(header.destination);
            (header.version, source, destination, header.protocol)
        }
        ethernet::IPV6 => {
            let header = frame.read(offset, Ipv6::read)?;
            let source = Address::V6(frame.read_be_u128(offset + ipv6::SOURCE_AT)?);
            let destination = Address::V6(frame.read_be_u128(offset + ipv6::DESTINATION_AT)?);
            (header.version, source, destination, header.next)
        }
        _ => return None,
    };
    (version == source.family()).then_some(Addresses {
        vlan,
        source,
        destination,
        protocol,
    })
}
