//! Compares the product's parser with the model's, and with the other parsers that the kernel program uses: the fast
//! path, and parsing in two steps.

use allowlist_common::flow::Flow;
use allowlist_common::frame::Frame;
use allowlist_common::packet::{
    Address, Contents, Malformed, PackedPacket, Packet, Transport, parse, parse_fast,
    parse_network, parse_transport, read_addresses,
};
use allowlist_tests::model::dissect::ParsedFrame;
use allowlist_tests::model::{self, Content};

use super::hex;

/// Checks that the product's parser agrees with the model's result for the frame, `facts`, in all fields of the model.
pub(super) fn check(frame: &[u8], facts: &ParsedFrame) {
    let parsed = parse(frame);
    let agree = match (&parsed, facts) {
        (Err(cause), ParsedFrame::Malformed(expected)) => cause == expected,
        (Ok(Contents::Arp), ParsedFrame::Arp) | (Ok(Contents::Other), ParsedFrame::NotIp) => true,
        (Ok(Contents::Ip(packet)), ParsedFrame::Ip(expected)) => is_same(packet, expected, frame),
        _ => false,
    };
    assert!(agree, "{parsed:?}\n{facts:?}\n{}", hex(frame));
    // The addresses for drop events of malformed frames.
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

/// Returns the flow of a quoted packet.
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

/// Compares all parsers: in two steps with a packed intermediate result, the fast path, and with a frame of which only
/// the first `linear` bytes are readable.
pub(super) fn check_parsers(frame: &[u8], linear: usize) {
    let whole = parse(frame);
    let packed = PackedPacket::from_network(&whole.map(|contents| (contents, None)), 0);
    assert_eq!(packed.unpack(), whole, "{}", hex(frame));
    assert_eq!(in_two_steps(frame), whole, "{}", hex(frame));
    if let Some(packet) = parse_fast(frame, Some, Some) {
        assert_eq!(Ok(Contents::Ip(packet)), whole, "{}", hex(frame));
    }
    let part = LinearPart {
        bytes: &frame[..linear.min(frame.len())],
        length: frame.len(),
    };
    let parsed_part = parse(&part);
    assert!(
        parsed_part == whole || parsed_part.is_err(),
        "the first {linear} bytes: {parsed_part:?}, all bytes: {whole:?}\n{}",
        hex(frame)
    );
    assert_eq!(
        in_two_steps(&part),
        parsed_part,
        "{linear} bytes of {}",
        hex(frame)
    );
}

fn in_two_steps<F: Frame + ?Sized>(frame: &F) -> Result<Contents, Malformed> {
    let packed = PackedPacket::from_network(&parse_network(frame), frame.length() as u32);
    match packed.meta.unparsed_transport() {
        Some((family, protocol, header)) => {
            let transport = parse_transport(frame, family, protocol, header);
            packed
                .with_meta(packed.meta.with_parsed_transport(transport))
                .unpack()
        }
        None => packed.unpack(),
    }
}

/// A frame in several buffers, of which only the first is readable.
struct LinearPart<'a> {
    bytes: &'a [u8],
    length: usize,
}

impl Frame for LinearPart<'_> {
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
