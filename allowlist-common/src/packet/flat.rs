//! What was parsed, in a fixed layout without gaps: for a map's memory, in which the kernel program hands
//! it from one function to the next: the network layer is parsed, then the transport header, then judged.

use super::{Address, Contents, Malformed, Packet, Quote, Span, Transport};

/// See the module. Every field is always set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flat {
    source: [u64; 2],
    destination: [u64; 2],
    /// Ports; of an ICMP message its identifier, of an error where the quote starts and ends; before
    /// it was read, where the transport header does.
    words: [u16; 2],
    vlan: u16,
    contents: u8,
    family: u8,
    hops: u8,
    protocol: u8,
    transport: u8,
    /// TCP's flags or ICMP's type.
    detail: u8,
}

const MALFORMED: u8 = 0;
const ARP: u8 = 1;
const OTHER: u8 = 2;
const IP: u8 = 3;

const PORTS: u8 = 0;
const ICMP: u8 = 1;
const ICMP_ERROR: u8 = 2;
const LATER_FRAGMENT: u8 = 3;
const NO_PORTS: u8 = 4;
const UNREAD: u8 = 5;

impl From<Result<Contents, Malformed>> for Flat {
    #[inline(always)]
    fn from(parsed: Result<Contents, Malformed>) -> Self {
        let mut flat = Self::default();
        match parsed {
            Err(Malformed) => flat.contents = MALFORMED,
            Ok(Contents::Arp) => flat.contents = ARP,
            Ok(Contents::Other) => flat.contents = OTHER,
            Ok(Contents::Ip(packet)) => {
                flat.contents = IP;
                flat.source = packet.source.padded();
                flat.destination = packet.destination.padded();
                flat.vlan = packet.vlan;
                flat.family = packet.source.family();
                flat.hops = packet.hops;
                flat.protocol = packet.protocol;
                flat.set_transport(Ok(packet.transport));
            }
        }
        flat
    }
}

impl Flat {
    /// What [`super::parse_network`] found.
    #[inline(always)]
    pub fn of_network(found: Result<(Contents, Option<Span>), Malformed>) -> Self {
        let header = match found {
            Ok((_, header)) => header,
            Err(Malformed) => None,
        };
        let mut flat = Self::from(found.map(|(contents, _)| contents));
        if let Some(header) = header {
            flat.transport = UNREAD;
            flat.words = [header.start, header.end];
        }
        flat
    }

    /// The family, the protocol and the place of a transport header that is still to be read.
    #[inline(always)]
    pub const fn unread(&self) -> Option<(u8, u8, Span)> {
        if self.contents != IP || self.transport != UNREAD {
            return None;
        }
        let [start, end] = self.words;
        Some((self.family, self.protocol, Span { start, end }))
    }

    /// Adds what [`super::parse_transport`] found.
    #[inline(always)]
    pub const fn set_transport(&mut self, found: Result<Transport, Malformed>) {
        let Ok(transport) = found else {
            self.contents = MALFORMED;
            return;
        };
        (self.transport, self.words, self.detail) = match transport {
            Transport::Ports {
                source,
                destination,
                flags,
            } => (PORTS, [source, destination], flags),
            Transport::Icmp { kind, identifier } => (ICMP, [identifier, 0], kind),
            Transport::IcmpError { kind, quote } => {
                (ICMP_ERROR, [quote.0.start, quote.0.end], kind)
            }
            Transport::LaterFragment => (LATER_FRAGMENT, [0, 0], 0),
            Transport::Other => (NO_PORTS, [0, 0], 0),
        };
    }

    /// What it was made from.
    #[inline(always)]
    pub const fn parsed(&self) -> Result<Contents, Malformed> {
        match self.contents {
            MALFORMED => return Err(Malformed),
            ARP => return Ok(Contents::Arp),
            OTHER => return Ok(Contents::Other),
            _ => {}
        }
        let [first, second] = self.words;
        Ok(Contents::Ip(Packet {
            vlan: self.vlan,
            source: Address::from_padded(self.family, self.source),
            destination: Address::from_padded(self.family, self.destination),
            hops: self.hops,
            protocol: self.protocol,
            transport: match self.transport {
                PORTS => Transport::Ports {
                    source: first,
                    destination: second,
                    flags: self.detail,
                },
                ICMP => Transport::Icmp {
                    kind: self.detail,
                    identifier: first,
                },
                ICMP_ERROR => Transport::IcmpError {
                    kind: self.detail,
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

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;

    use super::*;

    #[test]
    fn nothing_is_lost() {
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
        let mut all = vec![Err(Malformed), Ok(Contents::Arp), Ok(Contents::Other)];
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
            assert_eq!(Flat::from(parsed).parsed(), parsed);
        }
    }
}
