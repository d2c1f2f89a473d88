//! The packet that an ICMP error quotes, to the flow that the error is about.
//!
//! An error quotes the start of the packet that it is about: its IP header and, by RFC 792, at least 8
//! bytes more, so its ports. IPv6 extension headers in the quote are not walked, but for one fragment
//! header, since what this host sends has no others: then the flow is not told.

use super::{Address, FRAGMENT, ICMP, ICMPV6, IPV4, IPV6, Ipv4, Ipv6, Span, TCP, UDP};
use crate::flow::Flow;
use crate::frame::{Frame, u16_at};

/// Where in a frame a packet is quoted. Not read before somebody asks, since few do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote(pub(super) Span);

impl Quote {
    /// The flow of the quoted packet, from its sender's side, in an error that came from `source`;
    /// without ports where it is a later fragment, or of a protocol without ports. `None` where
    /// nothing is quoted that a flow could be told from.
    #[inline(always)]
    pub fn flow<F: Frame + ?Sized>(self, frame: &F, source: Address) -> Option<Flow> {
        Self::flow_at(self.encode(source), frame)
    }

    /// Both in one number, which is all that a function of the kernel program takes.
    #[inline(always)]
    pub const fn encode(self, source: Address) -> u64 {
        (source.family() as u64) << 32 | (self.0.start as u64) << 16 | self.0.end as u64
    }

    /// The same as [`Self::flow`], for what [`Self::encode`] made.
    #[inline(always)]
    pub fn flow_at<F: Frame + ?Sized>(encoded: u64, frame: &F) -> Option<Flow> {
        let (start, end) = ((encoded >> 16) as u16 as usize, encoded as u16 as usize);
        if encoded >> 32 == 4 {
            v4(frame, start, end)
        } else {
            v6(frame, start, end)
        }
    }
}

#[inline(always)]
fn v4<F: Frame + ?Sized>(frame: &F, start: usize, end: usize) -> Option<Flow> {
    if start + IPV4 > end {
        return None;
    }
    let header = frame.read(start, Ipv4::read)?;
    if header.version != 4 || header.header_length < IPV4 {
        return None;
    }
    let ports = if header.fragment_offset == 0 {
        let offset = start + header.header_length;
        ports(frame, offset, end, (header.protocol, ICMP, 8))?
    } else {
        (0, 0)
    };
    Some(Flow::between(
        Address::V4(header.source),
        Address::V4(header.destination),
        header.protocol,
        ports,
    ))
}

#[inline(always)]
fn v6<F: Frame + ?Sized>(frame: &F, start: usize, end: usize) -> Option<Flow> {
    if start + IPV6 > end {
        return None;
    }
    let header = frame.read(start, Ipv6::read)?;
    let source = frame.halves(start + 8)?;
    let destination = frame.halves(start + 24)?;
    if header.version != 6 {
        return None;
    }
    let mut protocol = header.next;
    let mut offset = start + IPV6;
    let mut is_later = false;
    if protocol == FRAGMENT {
        if offset + 8 > end {
            return None;
        }
        (protocol, is_later) = frame.read::<4, _>(offset, |header| {
            (header[0], u16_at::<2>(header) & 0xfff8 != 0)
        })?;
        offset += 8;
    }
    let ports = if is_later {
        (0, 0)
    } else {
        ports(frame, offset, end, (protocol, ICMPV6, 128))?
    };
    Some(Flow::between(
        Address::V6(source),
        Address::V6(destination),
        protocol,
        ports,
    ))
}

/// The sender's port and the receiver's, or an echo request's identifier, or none.
#[inline(always)]
fn ports<F: Frame + ?Sized>(
    frame: &F,
    offset: usize,
    end: usize,
    (protocol, icmp, echo): (u8, u8, u8),
) -> Option<(u16, u16)> {
    if protocol != TCP && protocol != UDP && protocol != icmp {
        return Some((0, 0));
    }
    if offset + 8 > end {
        return None;
    }
    let (first, second, third) = frame.read::<8, _>(offset, |header| {
        (
            u16_at::<0>(header),
            u16_at::<2>(header),
            u16_at::<4>(header),
        )
    })?;
    if protocol == icmp {
        // Only a question can be answered by an error that anybody waits for.
        return ((first >> 8) as u8 == echo).then_some((third, 0));
    }
    Some((first, second))
}
