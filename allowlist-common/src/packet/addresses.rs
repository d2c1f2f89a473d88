//! The reportable facts of a malformed frame: its VLAN and the fixed part of its IP header.
//!
//! Knows no cause of malformation, and decides nothing.

use super::{Address, ETHERNET, Ipv4, Ipv6, MAX_TAGS, TAG, is_tag};
use crate::frame::{Frame, u16_at};

/// The fixed part of an IP header, as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The id in the outermost VLAN tag; 0 where there is none.
    pub vlan: u16,
    /// The sender's address.
    pub source: Address,
    /// The receiver's address.
    pub destination: Address,
    /// The protocol of IPv4, or IPv6's first next header.
    pub protocol: u8,
}

/// The addresses of a frame, even of a malformed one; `None` where it is no IP packet, or ends inside the fixed part
/// of its IP header, or the header's version is another one.
#[inline(always)]
pub fn read_addresses<F: Frame + ?Sized>(frame: &F) -> Option<Addresses> {
    let mut kind = frame.read_be_u16(ETHERNET - 2)?;
    let mut offset = ETHERNET;
    let mut vlan = 0;
    for _ in 0..MAX_TAGS {
        if is_tag(kind) {
            let (id, inner) = frame
                .read::<TAG, _>(offset, |tag| (u16_at::<0>(tag) & 0x0fff, u16_at::<2>(tag)))?;
            if offset == ETHERNET {
                vlan = id;
            }
            kind = inner;
            offset += TAG;
        }
    }
    let (version, source, destination, protocol) = match kind {
        0x0800 => {
            let header = frame.read(offset, Ipv4::read)?;
            let source = Address::V4(header.source);
            let destination = Address::V4(header.destination);
            (header.version, source, destination, header.protocol)
        }
        0x86dd => {
            let header = frame.read(offset, Ipv6::read)?;
            let source = Address::V6(frame.read_be_u128(offset + 8)?);
            let destination = Address::V6(frame.read_be_u128(offset + 24)?);
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
