//! A parsed frame in six words of map memory, which the kernel program passes from one parsing step to the next:
//! network header, transport header, decision.
//!
//! Invariant: written and read one 64-bit word at a time. A load that is wider than the preceding store defeats
//! store-to-load forwarding, which costs more than the packing.

use super::{Address, Contents, Malformed, Packet, Quote, Span, Transport};

/// A parsed frame, packed to six words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PackedPacket {
    source: [u64; 2],
    destination: [u64; 2],
    /// The fields of the packet except the addresses.
    pub meta: PackedMeta,
}

/// The fields of a packed packet except the addresses: the part that parsing the transport header changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PackedMeta {
    /// The fields from the lowest byte on: contents, family, hops, protocol, transport, detail; then 16 bits of VLAN
    /// id.
    ///
    /// For a malformed frame, the second byte is the cause.
    header: u64,
    /// Two 16-bit fields of the transport header in the lowest bits, then 32 bits of frame length.
    words: u64,
}

// Values of the contents byte.
const MALFORMED: u8 = 0;
const ARP: u8 = 1;
const OTHER: u8 = 2;
const IP: u8 = 3;

// Values of the transport byte, which define the meaning of the two fields and of the detail byte.
/// The transport is TCP, UDP or SCTP: the fields are the ports, and the detail is the TCP flags.
const PORTS: u8 = 0;
/// The transport is ICMP or ICMPv6: the first field is the identifier, and the detail is the message's type.
const ICMP: u8 = 1;
/// The transport is an ICMP error: the fields are the span of the quoted packet, and the detail is the message's type.
const ICMP_ERROR: u8 = 2;
const LATER_FRAGMENT: u8 = 3;
const NO_PORTS: u8 = 4;
/// The transport header is not parsed yet: the fields are its span.
const UNPARSED: u8 = 5;

impl PackedPacket {
    /// Packs the result of [`super::parse_network`] for a frame of `length` bytes.
    #[inline(always)]
    pub const fn from_network(
        found: &Result<(Contents, Option<Span>), Malformed>,
        length: u32,
    ) -> Self {
        let (contents, header) = match found {
            Ok((contents, header)) => (contents, *header),
            Err(cause) => {
                return Self {
                    source: [0; 2],
                    destination: [0; 2],
                    meta: PackedMeta::malformed(*cause, length),
                };
            }
        };
        let packet = match contents {
            Contents::Arp => return Self::without_ip(ARP, length),
            Contents::Other => return Self::without_ip(OTHER, length),
            Contents::Ip(packet) => packet,
        };
        let transport = match header {
            Some(header) => (UNPARSED, [header.start, header.end], 0),
            None => pack_transport(packet.transport),
        };
        let meta = PackedMeta {
            header: IP as u64
                | (packet.source.family() as u64) << 8
                | (packet.hops as u64) << 16
                | (packet.protocol as u64) << 24
                | (packet.vlan as u64) << 48,
            words: (length as u64) << 32,
        };
        Self {
            source: packet.source.padded(),
            destination: packet.destination.padded(),
            meta: meta.with_transport(transport),
        }
    }

    #[inline(always)]
    const fn without_ip(contents: u8, length: u32) -> Self {
        Self {
            source: [0; 2],
            destination: [0; 2],
            meta: PackedMeta::without_ip(contents, length),
        }
    }

    /// Returns a copy with another [`PackedMeta`].
    #[must_use]
    pub const fn with_meta(self, meta: PackedMeta) -> Self {
        Self { meta, ..self }
    }

    /// Unpacks the result of parsing a frame.
    ///
    /// # Errors
    /// Fails with the reason why the frame is malformed.
    #[inline(always)]
    pub const fn unpack(&self) -> Result<Contents, Malformed> {
        match self.meta.header as u8 {
            MALFORMED => {
                return Err(match self.meta.cause() {
                    Some(cause) => cause,
                    None => Malformed::EthernetHeader, // never written
                });
            }
            ARP => return Ok(Contents::Arp),
            OTHER => return Ok(Contents::Other),
            _ => {}
        }
        let family = (self.meta.header >> 8) as u8;
        let (first, second) = (self.meta.words as u16, (self.meta.words >> 16) as u16);
        let detail = (self.meta.header >> 40) as u8;
        Ok(Contents::Ip(Packet {
            vlan: (self.meta.header >> 48) as u16,
            source: Address::from_padded(family, self.source),
            destination: Address::from_padded(family, self.destination),
            hops: (self.meta.header >> 16) as u8,
            protocol: (self.meta.header >> 24) as u8,
            transport: match (self.meta.header >> 32) as u8 {
                PORTS => Transport::Ports {
                    source: first,
                    destination: second,
                    flags: detail,
                },
                ICMP => Transport::Icmp {
                    kind: detail,
                    identifier: first,
                },
                ICMP_ERROR => Transport::IcmpError {
                    kind: detail,
                    quote: Quote(Span {
                        start: first,
                        end: second,
                    }),
                },
                LATER_FRAGMENT => Transport::LaterFragment,
                _ => Transport::Other,
            },
        }))
    }
}

impl PackedMeta {
    #[inline(always)]
    const fn without_ip(contents: u8, length: u32) -> Self {
        Self {
            header: contents as u64,
            words: (length as u64) << 32,
        }
    }

    #[inline(always)]
    const fn malformed(cause: Malformed, length: u32) -> Self {
        Self {
            header: MALFORMED as u64 | (cause as u64) << 8,
            words: (length as u64) << 32,
        }
    }

    /// Returns the reason why the frame is malformed; `None` for a well-formed frame.
    #[inline(always)]
    pub const fn cause(&self) -> Option<Malformed> {
        if self.is_malformed() {
            Malformed::from_number((self.header >> 8) as u8)
        } else {
            None
        }
    }

    #[inline(always)]
    const fn with_transport(self, (transport, words, detail): (u8, [u16; 2], u8)) -> Self {
        const TRANSPORT_AND_DETAIL: u64 = 0xffff << 32;
        const WORDS: u64 = 0xffff_ffff;
        Self {
            header: self.header & !TRANSPORT_AND_DETAIL
                | (transport as u64) << 32
                | (detail as u64) << 40,
            words: self.words & !WORDS | (words[0] as u64) | (words[1] as u64) << 16,
        }
    }

    /// Returns the IP version, protocol and position of a transport header that is not parsed yet; `None` if there is
    /// none.
    #[inline(always)]
    pub const fn unparsed_transport(&self) -> Option<(u8, u8, Span)> {
        if self.header as u8 != IP || (self.header >> 32) as u8 != UNPARSED {
            return None;
        }
        let span = Span {
            start: self.words as u16,
            end: (self.words >> 16) as u16,
        };
        Some(((self.header >> 8) as u8, (self.header >> 24) as u8, span))
    }

    /// Reports whether the frame is malformed.
    #[inline(always)]
    pub const fn is_malformed(&self) -> bool {
        self.header as u8 == MALFORMED
    }

    /// Returns a copy with the result of [`super::parse_transport`].
    #[inline(always)]
    #[must_use]
    pub const fn with_parsed_transport(self, found: Result<Transport, Malformed>) -> Self {
        match found {
            Ok(transport) => self.with_transport(pack_transport(transport)),
            Err(cause) => Self::malformed(cause, self.length()),
        }
    }

    /// Returns the frame's size in bytes.
    #[inline(always)]
    pub const fn length(&self) -> u32 {
        (self.words >> 32) as u32
    }
}

#[inline(always)]
const fn pack_transport(transport: Transport) -> (u8, [u16; 2], u8) {
    match transport {
        Transport::Ports {
            source,
            destination,
            flags,
        } => (PORTS, [source, destination], flags),
        Transport::Icmp { kind, identifier } => (ICMP, [identifier, 0], kind),
        Transport::IcmpError { kind, quote } => (ICMP_ERROR, [quote.0.start, quote.0.end], kind),
        Transport::LaterFragment => (LATER_FRAGMENT, [0, 0], 0),
        Transport::Other => (NO_PORTS, [0, 0], 0),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;

    use super::*;

    #[test]
    fn parsed_frames_round_trip() {
        let transports = [
            Transport::Ports {
                source: 1,
                destination: u16::MAX,
                flags: 0x12,
            },
            Transport::Icmp {
                kind: 8,
                identifier: 77,
            },
            Transport::IcmpError {
                kind: 3,
                quote: Quote(Span { start: 42, end: 70 }),
            },
            Transport::LaterFragment,
            Transport::Other,
        ];
        let addresses = [
            (Address::V4(1), Address::V4(u32::MAX)),
            (Address::V6([1, 2]), Address::V6([u64::MAX, 3])),
        ];
        let mut all = vec![Ok(Contents::Arp), Ok(Contents::Other)];
        all.extend(Malformed::ALL.map(Err));
        for transport in transports {
            for (source, destination) in addresses {
                all.push(Ok(Contents::Ip(Packet {
                    vlan: 4095,
                    source,
                    destination,
                    hops: 255,
                    protocol: 6,
                    transport,
                })));
            }
        }
        for parsed in all {
            let packed = PackedPacket::from_network(&parsed.map(|contents| (contents, None)), 1514);
            assert_eq!(packed.unpack(), parsed);
            assert_eq!(packed.meta.length(), 1514);
            assert_eq!(packed.meta.unparsed_transport(), None);
            assert_eq!(packed.meta.cause(), parsed.err());
        }
    }

    #[test]
    fn transport_header_is_parsed_in_a_second_step() {
        let packet = Packet {
            vlan: 7,
            source: Address::V6([1, 2]),
            destination: Address::V6([3, 4]),
            hops: 64,
            protocol: 6,
            transport: Transport::Other,
        };
        let span = Span { start: 54, end: 99 };
        let found = Ok((Contents::Ip(packet), Some(span)));
        let pending = PackedPacket::from_network(&found, 99);
        assert_eq!(pending.meta.unparsed_transport(), Some((6, 6, span)));
        let transport = Transport::Ports {
            source: 1,
            destination: 2,
            flags: 3,
        };
        let with = |found| pending.with_meta(pending.meta.with_parsed_transport(found));
        let whole = with(Ok(transport));
        let expected = Packet {
            transport,
            ..packet
        };
        assert_eq!(whole.unpack(), Ok(Contents::Ip(expected)));
        assert_eq!(
            (whole.meta.length(), whole.meta.unparsed_transport()),
            (99, None)
        );
        let malformed = with(Err(Malformed::TransportHeader));
        assert_eq!(malformed.unpack(), Err(Malformed::TransportHeader));
        assert_eq!(
            (malformed.meta.length(), malformed.meta.unparsed_transport()),
            (99, None)
        );
    }
}
