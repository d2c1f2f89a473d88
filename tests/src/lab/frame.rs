//! Ethernet frames from the peer's end of a link to the host's end.
//!
//! Invariant: the frames are well-formed, including checksums; tests of malformed frames modify them. Does not send:
//! [`FrameSender`](super::FrameSender) does.

use std::net::{IpAddr, SocketAddr};

use allowlist_common::packet::tcp_flag;
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    EtherType, Ethernet2Header, Icmpv4Type, Icmpv6Type, IpFragOffset, IpHeaders, IpNumber,
    Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header, PacketBuilder, PacketBuilderStep,
};

use super::{HOST_MAC, PEER_MAC};

/// The offset in bytes of the Ethernet type, or of the first VLAN tag.
const TYPE_OFFSET: usize = 12;
/// The IP identification of all frames, and the identifier of echo requests.
const IDENTIFICATION: u16 = 0x0a11;

/// Returns a TCP SYN.
pub fn tcp_syn(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let packet = ip(source.ip(), destination.ip())
        .tcp(source.port(), destination.port(), 0, 65_535)
        .syn();
    written(|frame| packet.write_to_vec(frame, &[]))
}

/// Returns a TCP segment with these flags of [`tcp_flag`].
pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Vec<u8> {
    const NUMBER: u32 = 1;
    let mut packet =
        ip(source.ip(), destination.ip()).tcp(source.port(), destination.port(), NUMBER, 65_535);
    let has = |flag| flags & flag != 0;
    if has(tcp_flag::SYN) {
        packet = packet.syn();
    }
    if has(tcp_flag::ACK) {
        packet = packet.ack(NUMBER);
    }
    if has(tcp_flag::RST) {
        packet = packet.rst();
    }
    if has(tcp_flag::FIN) {
        packet = packet.fin();
    }
    written(|frame| packet.write_to_vec(frame, &[]))
}

/// Returns a UDP datagram.
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let packet = ip(source.ip(), destination.ip()).udp(source.port(), destination.port());
    written(|frame| packet.write_to_vec(frame, payload))
}

/// Returns an ICMP or ICMPv6 echo request.
pub fn echo_request(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let packet = ip(source, destination);
    if source.is_ipv4() {
        written(|frame| {
            packet
                .icmpv4_echo_request(IDENTIFICATION, 1)
                .write_to_vec(frame, &[])
        })
    } else {
        written(|frame| {
            packet
                .icmpv6_echo_request(IDENTIFICATION, 1)
                .write_to_vec(frame, &[])
        })
    }
}

/// Returns an echo reply with this identifier.
pub fn echo_reply(source: IpAddr, destination: IpAddr, identifier: u16) -> Vec<u8> {
    let packet = ip(source, destination);
    if source.is_ipv4() {
        let packet = packet.icmpv4_echo_reply(identifier, 1);
        written(|frame| packet.write_to_vec(frame, &[]))
    } else {
        let packet = packet.icmpv6_echo_reply(identifier, 1);
        written(|frame| packet.write_to_vec(frame, &[]))
    }
}

/// Returns a router's fragmentation-needed or packet-too-big error with `mtu`, which quotes `quoted`.
pub fn too_big(router: IpAddr, destination: IpAddr, mtu: u16, quoted: &[u8]) -> Vec<u8> {
    let packet = ip(router, destination);
    if router.is_ipv4() {
        let needed = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
        let packet = packet.icmpv4(Icmpv4Type::DestinationUnreachable(needed));
        written(|frame| packet.write_to_vec(frame, quoted))
    } else {
        let packet = packet.icmpv6(Icmpv6Type::PacketTooBig { mtu: mtu.into() });
        written(|frame| packet.write_to_vec(frame, quoted))
    }
}

/// Returns a packet of any protocol with any payload, which may begin with an IPv6 extension header.
pub fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut headers = headers(source, destination);
    let length = payload.len();
    let (kind, header) = match &mut headers {
        IpHeaders::Ipv4(header, _) => {
            header.protocol = IpNumber(protocol);
            header
                .set_payload_len(length)
                .expect("the payload of a test fits into a packet");
            header.header_checksum = header.calc_header_checksum();
            (EtherType::IPV4, header.to_bytes().to_vec())
        }
        IpHeaders::Ipv6(header, _) => {
            header.next_header = IpNumber(protocol);
            header
                .set_payload_length(length)
                .expect("the payload of a test fits into a packet");
            (EtherType::IPV6, header.to_bytes().to_vec())
        }
    };
    ethernet(kind.0, &[&header, payload].concat())
}

/// Returns the last fragment of a packet, which has no ports.
pub fn later_fragment(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    // In units of 8 bytes.
    let offset = IpFragOffset::try_new(100).expect("the offset fits into 13 bits");
    let mut headers = headers(source, destination);
    match &mut headers {
        IpHeaders::Ipv4(header, _) => {
            header.dont_fragment = false;
            header.fragment_offset = offset;
        }
        IpHeaders::Ipv6(_, extensions) => {
            extensions.fragment = Some(Ipv6FragmentHeader::new(
                IpNumber(protocol),
                offset,
                false,
                IDENTIFICATION.into(),
            ));
        }
    }
    let packet = PacketBuilder::ethernet2(PEER_MAC, HOST_MAC).ip(headers);
    written(|frame| packet.write_to_vec(frame, IpNumber(protocol), payload))
}

/// Returns a frame of any type with any payload.
pub fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header {
        source: PEER_MAC,
        destination: HOST_MAC,
        ether_type: EtherType(ether_type),
    };
    [&header.to_bytes(), payload].concat()
}

/// Inserts VLAN tags, the outermost first. Each has a type (0x8100 or 0x88a8) and a VLAN id.
pub fn tagged(mut frame: Vec<u8>, tags: &[(u16, u16)]) -> Vec<u8> {
    let bytes = tags
        .iter()
        .flat_map(|(kind, vlan)| [kind.to_be_bytes(), vlan.to_be_bytes()]);
    frame.splice(TYPE_OFFSET..TYPE_OFFSET, bytes.flatten());
    frame
}

fn ip(source: IpAddr, destination: IpAddr) -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ethernet2(PEER_MAC, HOST_MAC).ip(headers(source, destination))
}

/// Returns IP headers; the lengths, protocol and checksum are set when the frame is written.
fn headers(source: IpAddr, destination: IpAddr) -> IpHeaders {
    const HOP_LIMIT: u8 = 64;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = Ipv4Header {
                identification: IDENTIFICATION,
                time_to_live: HOP_LIMIT,
                source: source.octets(),
                destination: destination.octets(),
                ..Default::default()
            };
            IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                hop_limit: HOP_LIMIT,
                source: source.octets(),
                destination: destination.octets(),
                ..Default::default()
            };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        }
        _ => panic!("{source} and {destination} are of two families"),
    }
}

fn written<E: std::fmt::Debug>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame).expect("the payload of a test fits into a packet");
    frame
}
