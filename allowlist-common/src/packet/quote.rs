//! Parses the packet that an ICMP error quotes, to find the flow that the error refers to.
//!
//! An error quotes the start of the packet that caused it: the IP header and at least 8 more bytes (RFC 792), which
//! contain the ports. The parser walks IPv6 extension headers as in any packet; if the quote ends inside them, the flow
//! is unknown.

use super::wire::{icmp, icmpv6, ipv4, ipv6};
use super::{
    Address, ICMP, ICMPV6, Ipv4, Ipv6, SCTP, Span, TCP, UDP, extensions, read_three_words,
};
use crate::flow::Flow;
use crate::frame::Frame;
use crate::ranges::opaque;

/// The position, in a frame, of the packet that an ICMP error message quotes.
///
/// The quoted packet is parsed only on demand, because few ICMP errors need it for a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote(pub(super) Span);

impl Quote {
    /// Returns the flow of the quoted packet, from its sender's side; `source` is the sender of the error.
    ///
    /// For a quoted later fragment, returns a peer (the flow without ports). Both ports are 0 for a protocol without
    /// ports. Returns `None` if the quote does not identify a flow.
    #[inline(always)]
    pub fn flow<F: Frame + ?Sized>(self, frame: &F, source: Address) -> Option<Flow> {
        Self::flow_encoded(self.encode(source), frame)
    }

    /// Encodes the position and the IP version of `source` as one number, for a BPF-to-BPF call with few arguments.
    #[inline(always)]
    pub const fn encode(self, source: Address) -> u64 {
        (source.family() as u64) << 32 | (self.0.start as u64) << 16 | self.0.end as u64
    }

    /// Returns the flow of a quoted packet like [`Self::flow`], from the number that [`Self::encode`] returned.
    #[inline(always)]
    pub fn flow_encoded<F: Frame + ?Sized>(encoded: u64, frame: &F) -> Option<Flow> {
        let (start, end) = ((encoded >> 16) as u16 as usize, encoded as u16 as usize);
        if encoded >> 32 == u64::from(ipv4::VERSION) {
            v4(frame, start, end)
        } else {
            v6(frame, start, end)
        }
    }
}

/// The mask for offsets of quoted transport headers, which bounds them for the verifier: eight extension headers of 2
/// KiB are shorter.
const OFFSETS: usize = 0x7fff;

#[inline(always)]
fn v4<F: Frame + ?Sized>(frame: &F, start: usize, end: usize) -> Option<Flow> {
    if start + ipv4::HEADER > end {
        return None;
    }
    let header = frame.read(start, Ipv4::read)?;
    if header.version != ipv4::VERSION || header.header_length < ipv4::HEADER {
        return None;
    }
    let is_later = header.fragment_offset != 0;
    let ports = if is_later {
        (0, 0)
    } else {
        let offset = start + header.header_length;
        ports(frame, offset, end, (header.protocol, ICMP, icmp::ECHO))?
    };
    let (source, destination) = (Address::V4(header.source), Address::V4(header.destination));
    let flow = Flow::between(source, destination, header.protocol, ports);
    Some(if is_later { flow.peer() } else { flow })
}

#[inline(always)]
fn v6<F: Frame + ?Sized>(frame: &F, start: usize, end: usize) -> Option<Flow> {
    if start + ipv6::HEADER > end {
        return None;
    }
    let header = frame.read(start, Ipv6::read)?;
    let source = frame.read_be_u128(start + ipv6::SOURCE_AT)?;
    let destination = frame.read_be_u128(start + ipv6::DESTINATION_AT)?;
    if header.version != ipv6::VERSION {
        return None;
    }
    let chain = extensions(frame, header.next, start + ipv6::HEADER, end).ok()?;
    // VERIFIER: Linux 6.1 loses the bound if one register is compared and another one is added (walk of 42,459
    // instructions), and without `opaque` the compiler removes the mask, which never changes the value.
    let offset = opaque(chain.offset as u32) as usize & OFFSETS;
    let is_later = chain.fragment_offset != 0;
    let ports = if is_later {
        (0, 0)
    } else {
        ports(frame, offset, end, (chain.protocol, ICMPV6, icmpv6::ECHO))?
    };
    let (source, destination) = (Address::V6(source), Address::V6(destination));
    let flow = Flow::between(source, destination, chain.protocol, ports);
    Some(if is_later { flow.peer() } else { flow })
}

/// Returns the source and destination port, or the identifier of an echo request and 0, or zeros for other protocols.
///
/// Returns `None` for other ICMP messages, and if the quote ends before the ports or the identifier.
#[inline(always)]
fn ports<F: Frame + ?Sized>(
    frame: &F,
    offset: usize,
    end: usize,
    (protocol, icmp, echo): (u8, u8, u8),
) -> Option<(u16, u16)> {
    if protocol != TCP && protocol != UDP && protocol != SCTP && protocol != icmp {
        return Some((0, 0));
    }
    if offset + icmp::MIN_QUOTED > end {
        return None;
    }
    let (first, second, third) = read_three_words(frame, offset)?;
    if protocol == icmp {
        // Of ICMP messages, only echo requests make an error expected.
        return ((first >> 8) as u8 == echo).then_some((third, 0));
    }
    Some((first, second))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::super::wire::extension::{
        AUTHENTICATION, DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING,
    };
    use super::*;

    /// Not 0, so that a parser that ignores the offset fails.
    const START: usize = 42;
    const ROUTER: Address = Address::V4(9);
    const ROUTER6: Address = Address::V6([9, 9]);
    const GRE: u8 = 47;
    const ESP: u8 = 50;

    /// Returns the IPv4 header of a packet from 198.51.100.1 to 10.0.0.1.
    fn header(protocol: u8, fragment: u16) -> Vec<u8> {
        let [high, low] = fragment.to_be_bytes();
        vec![
            0x45, 0, 5, 0, 0, 7, high, low, 64, protocol, 0, 0, 198, 51, 100, 1, 10, 0, 0, 1,
        ]
    }

    /// Returns the IPv6 header of a packet from `2001:db8::1` to `2001:db8::2`.
    fn header6(protocol: u8) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0, 5, 0, protocol, 64];
        for last in [1, 2] {
            header.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        header
    }

    fn flow(protocol: u8, local_port: u16, remote_port: u16) -> Flow {
        Flow {
            local: [0xc633_6401 << 32, 0],
            remote: [0x0a00_0001 << 32, 0],
            local_port,
            remote_port,
            protocol,
            family: 4,
            peer: 0,
        }
    }

    fn flow6(protocol: u8, local_port: u16, remote_port: u16) -> Flow {
        Flow {
            local: [0x2001_0db8 << 32, 1],
            remote: [0x2001_0db8 << 32, 2],
            family: 6,
            ..flow(protocol, local_port, remote_port)
        }
    }

    /// Checks the flow that each quote identifies.
    fn check(table: &[(&str, Address, Vec<u8>, Option<Flow>)]) {
        for (what, router, quoted, expected) in table {
            let mut frame = vec![0xff; START];
            frame.extend(quoted);
            let end = frame.len();
            frame.extend([0xff; 20]); // Ethernet padding, after the quote
            let quote = Quote(Span::new(START, end));
            assert_eq!(quote.flow(&*frame, *router), *expected, "{what}");
        }
    }

    const PORTS: [u8; 8] = [0x03, 0xe8, 0x01, 0xbb, 0, 8, 0, 0]; // 1000 to 443
    const PING: [u8; 8] = [8, 0, 0, 0, 0, 77, 0, 1];
    const PING6: [u8; 8] = [128, 0, 0, 0, 0, 77, 0, 1];

    #[test]
    #[rustfmt::skip]
    fn flows_of_quoted_ipv4_packets() {
        let quoted = |protocol, payload: &[u8]| [&header(protocol, 0), payload].concat();
        let mut options = quoted(UDP, &[&[1; 8][..], &PORTS].concat());
        options[0] = 0x47;
        let mut version = quoted(UDP, &PORTS);
        version[0] = 0x65;
        let mut short = quoted(UDP, &PORTS);
        short[0] = 0x44;
        check(&[
            ("TCP", ROUTER, quoted(TCP, &PORTS), Some(flow(TCP, 1000, 443))),
            ("UDP", ROUTER, quoted(UDP, &PORTS), Some(flow(UDP, 1000, 443))),
            ("SCTP", ROUTER, quoted(SCTP, &PORTS), Some(flow(SCTP, 1000, 443))),
            ("ports behind options", ROUTER, options, Some(flow(UDP, 1000, 443))),
            ("ping", ROUTER, quoted(ICMP, &PING), Some(flow(ICMP, 77, 0))),
            ("an answer to a ping", ROUTER, quoted(ICMP, &[0; 8]), None),
            ("an error", ROUTER, quoted(ICMP, &[3, 0, 0, 0, 0, 77, 0, 1]), None),
            ("IPv6's ping is a protocol without ports", ROUTER, quoted(ICMPV6, &PING6), Some(flow(ICMPV6, 0, 0))),
            ("GRE", ROUTER, quoted(GRE, &PORTS), Some(flow(GRE, 0, 0))),
            ("GRE's header alone", ROUTER, quoted(GRE, &[]), Some(flow(GRE, 0, 0))),
            ("first fragment", ROUTER, [&header(UDP, 0x2000)[..], &PORTS].concat(), Some(flow(UDP, 1000, 443))),
            ("later fragment", ROUTER, [&header(UDP, 100)[..], &PORTS].concat(), Some(flow(UDP, 0, 0).peer())),
            ("ports cut off", ROUTER, quoted(UDP, &PORTS[..7]), None),
            ("header cut off", ROUTER, header(GRE, 0)[..19].to_vec(), None),
            ("nothing", ROUTER, vec![], None),
            ("wrong version", ROUTER, version, None),
            ("header too short", ROUTER, short, None),
            ("IPv4 in an error of IPv6", ROUTER6, [quoted(UDP, &PORTS), vec![0; 40]].concat(), None),
        ]);
    }

    #[test]
    #[rustfmt::skip]
    fn flows_of_quoted_ipv6_packets() {
        let quoted = |protocol, payload: &[u8]| [&header6(protocol), payload].concat();
        let fragment = |protocol, offset: u8| [protocol, 0, 0, offset << 3 | 1, 0, 0, 0, 7];
        let options = |next| [next, 0, 1, 4, 0, 0, 0, 0];
        // One segment, already visited: the packet's destination is the final one.
        let segments = |next| [&[next, 2, 4, 0][..], &[0; 20]].concat();
        let fragmented = |protocol, offset, payload: &[u8]| {
            quoted(FRAGMENT, &[&fragment(protocol, offset), payload].concat())
        };
        check(&[
            ("TCP", ROUTER6, quoted(TCP, &PORTS), Some(flow6(TCP, 1000, 443))),
            ("SCTP", ROUTER6, quoted(SCTP, &PORTS), Some(flow6(SCTP, 1000, 443))),
            ("ping", ROUTER6, quoted(ICMPV6, &PING6), Some(flow6(ICMPV6, 77, 0))),
            ("an answer to a ping", ROUTER6, quoted(ICMPV6, &[129, 0, 0, 0, 0, 77, 0, 1]), None),
            ("IPv4's ping is a protocol without ports", ROUTER6, quoted(ICMP, &PING), Some(flow6(ICMP, 0, 0))),
            ("GRE", ROUTER6, quoted(GRE, &PORTS), Some(flow6(GRE, 0, 0))),
            ("first fragment", ROUTER6, fragmented(UDP, 0, &PORTS), Some(flow6(UDP, 1000, 443))),
            ("later fragment", ROUTER6, fragmented(UDP, 4, &PORTS), Some(flow6(UDP, 0, 0).peer())),
            ("later fragment after options", ROUTER6, fragmented(60, 4, &[]), Some(flow6(60, 0, 0).peer())),
            ("ports behind hop-by-hop options", ROUTER6, quoted(HOP_BY_HOP, &[&options(TCP)[..], &PORTS].concat()), Some(flow6(TCP, 1000, 443))),
            ("ports behind destination options", ROUTER6, quoted(DESTINATION, &[&options(UDP)[..], &PORTS].concat()), Some(flow6(UDP, 1000, 443))),
            ("ports behind a routing header", ROUTER6, quoted(ROUTING, &[&segments(TCP)[..], &PORTS].concat()), Some(flow6(TCP, 1000, 443))),
            ("ports behind an authentication header", ROUTER6, quoted(AUTHENTICATION, &[&[TCP, 1][..], &[0; 10], &PORTS].concat()), Some(flow6(TCP, 1000, 443))),
            ("ports behind three headers", ROUTER6, quoted(HOP_BY_HOP, &[&options(ROUTING)[..], &segments(DESTINATION), &options(TCP), &PORTS].concat()), Some(flow6(TCP, 1000, 443))),
            ("a ping behind options", ROUTER6, quoted(DESTINATION, &[&options(ICMPV6)[..], &PING6].concat()), Some(flow6(ICMPV6, 77, 0))),
            ("ESP behind options", ROUTER6, quoted(DESTINATION, &[&options(ESP)[..], &PORTS].concat()), Some(flow6(ESP, 0, 0))),
            ("a first fragment whose ports are behind options", ROUTER6, fragmented(DESTINATION, 0, &[&options(UDP)[..], &PORTS].concat()), Some(flow6(UDP, 1000, 443))),
            ("a later fragment behind hop-by-hop options", ROUTER6, quoted(HOP_BY_HOP, &[&options(FRAGMENT)[..], &fragment(UDP, 4), &PORTS].concat()), Some(flow6(UDP, 0, 0).peer())),
            ("a second fragment header", ROUTER6, fragmented(FRAGMENT, 0, &[&fragment(UDP, 0)[..], &PORTS].concat()), Some(flow6(UDP, 1000, 443))),
            ("eight headers", ROUTER6, quoted(DESTINATION, &[&options(DESTINATION).repeat(7)[..], &options(TCP), &PORTS].concat()), Some(flow6(TCP, 1000, 443))),
            ("nine headers", ROUTER6, quoted(DESTINATION, &[&options(DESTINATION).repeat(8)[..], &options(TCP), &PORTS].concat()), None),
            ("options cut off", ROUTER6, quoted(DESTINATION, &options(TCP)[..7]), None),
            ("options longer than the quote", ROUTER6, quoted(DESTINATION, &[&[TCP, 9][..], &[0; 22]].concat()), None),
            ("ports cut off behind options", ROUTER6, quoted(DESTINATION, &[&options(TCP)[..], &PORTS[..7]].concat()), None),
            ("fragment header cut off", ROUTER6, quoted(FRAGMENT, &fragment(UDP, 4)[..7]), None),
            ("ports cut off", ROUTER6, quoted(TCP, &PORTS[..7]), None),
            ("header cut off", ROUTER6, header6(GRE)[..39].to_vec(), None),
            ("IPv6 in an error of IPv4", ROUTER, quoted(TCP, &PORTS), None),
        ]);
    }

    #[test]
    fn quotes_may_end_beyond_64_kib() {
        let frame = [&header(UDP, 0)[..], &PORTS, &vec![0; 70_000]].concat();
        let quote = Quote(Span::new(0, frame.len()));
        assert_eq!(quote.flow(&*frame, ROUTER), Some(flow(UDP, 1000, 443)));
    }
}
