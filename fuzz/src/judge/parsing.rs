//! What a frame is, by the parser that ships: the same as by the model, and the same by every way to it
//! that the kernel program takes.

use allowlist_common::flow::Flow;
use allowlist_common::frame::Frame;
use allowlist_common::packet::{
    Address, Contents, Malformed, PackedPacket, Packet, Transport, parse, parse_fast,
    parse_network, parse_transport, read_addresses,
};
use allowlist_tests::model::dissect::Facts;
use allowlist_tests::model::{self, Content};

use super::hex;

/// Against the model: a difference here need not show in a verdict.
pub(super) fn check(frame: &[u8], facts: &Facts) {
    let parsed = parse(frame);
    let agree = match (&parsed, facts) {
        (Err(cause), Facts::Malformed(expected)) => cause == expected,
        (Ok(Contents::Arp), Facts::Arp) | (Ok(Contents::Other), Facts::NotIp) => true,
        (Ok(Contents::Ip(packet)), Facts::Ip(expected)) => is_same(packet, expected, frame),
        _ => false,
    };
    assert!(agree, "{parsed:?}\n{facts:?}\n{}", hex(frame));
    // The addresses that drop events of malformed frames show.
    if let Ok(Contents::Ip(packet)) = parsed {
        let read = read_addresses(frame).map(|read| (read.vlan, read.source, read.destination));
        assert_eq!(read, Some((packet.vlan, packet.source, packet.destination)));
    }
}

fn is_same(packet: &Packet, expected: &model::Packet, frame: &[u8]) -> bool {
    let same_content = match (packet.transport, &expected.content) {
        (
            Transport::Ports {
                source,
                destination,
                flags,
            },
            Content::Ports {
                source: expected_source,
                destination: expected_destination,
                flags: expected_flags,
            },
        ) => {
            (source, destination, flags)
                == (*expected_source, *expected_destination, *expected_flags)
        }
        (
            Transport::Icmp { kind, identifier },
            Content::Icmp {
                kind: expected_kind,
                identifier: expected_identifier,
            },
        ) => (kind, identifier) == (*expected_kind, *expected_identifier),
        (Transport::IcmpError { quote, .. }, Content::IcmpError(quoted)) => {
            quote.flow(frame, packet.source) == quoted.as_deref().map(flow)
        }
        (Transport::LaterFragment, Content::LaterFragment) | (Transport::Other, Content::Other) => {
            true
        }
        _ => false,
    };
    same_content
        && packet.source == Address::from(expected.source)
        && packet.destination == Address::from(expected.destination)
        && packet.hops == expected.hops
        && packet.protocol == expected.protocol
}

/// The flow of a quoted packet.
fn flow(quoted: &model::Packet) -> Flow {
    let (local_port, remote_port) = match quoted.content {
        Content::Ports {
            source,
            destination,
            ..
        } => (source, destination),
        Content::Icmp { identifier, .. } => (identifier, 0),
        _ => (0, 0),
    };
    let local = Address::from(quoted.source);
    Flow {
        local: local.padded(),
        remote: Address::from(quoted.destination).padded(),
        local_port,
        remote_port,
        protocol: quoted.protocol,
        family: local.family(),
        peer: u16::from(quoted.content == Content::LaterFragment),
    }
}

/// Parsing in halves, and what is handed over between them, as the kernel program does it; and of a frame
/// of which only the first `piece` bytes can be read.
pub(super) fn check_ways(frame: &[u8], piece: usize) {
    let whole = parse(frame);
    let flat = PackedPacket::from_network(&whole.map(|contents| (contents, None)), 0);
    assert_eq!(flat.unpack(), whole, "{}", hex(frame));
    assert_eq!(in_halves(frame), whole, "{}", hex(frame));
    if let Some(packet) = parse_fast(frame, Some, Some) {
        assert_eq!(Ok(Contents::Ip(packet)), whole, "{}", hex(frame));
    }
    let cut = Piece {
        bytes: &frame[..piece.min(frame.len())],
        length: frame.len(),
    };
    let of_piece = parse(&cut);
    assert!(
        of_piece == whole || of_piece.is_err(),
        "the first {piece} bytes: {of_piece:?}, and all: {whole:?}\n{}",
        hex(frame)
    );
    assert_eq!(in_halves(&cut), of_piece, "{piece} of {}", hex(frame));
}

fn in_halves<F: Frame + ?Sized>(frame: &F) -> Result<Contents, Malformed> {
    let flat = PackedPacket::from_network(&parse_network(frame), frame.length() as u32);
    match flat.meta.unparsed_transport() {
        Some((family, protocol, header)) => {
            let found = parse_transport(frame, family, protocol, header);
            flat.with_meta(flat.meta.with_parsed_transport(found))
                .unpack()
        }
        None => flat.unpack(),
    }
}

/// A frame in several pieces, of which the first is read.
struct Piece<'a> {
    bytes: &'a [u8],
    length: usize,
}

impl Frame for Piece<'_> {
    fn length(&self) -> usize {
        self.length
    }

    fn read<const N: usize, T>(
        &self,
        offset: usize,
        read: impl FnOnce(&[u8; N]) -> T,
    ) -> Option<T> {
        self.bytes.read(offset, read)
    }
}
