//! Packets that are longer than their length field can state: merged by the kernel (BIG TCP), and jumbograms.

use allowlist_common::packet::{TCP, UDP};
use allowlist_tests::lab::frame::{self, tagged};

use super::build::{
    ETHERNET, GRE, HOP_BY_HOP, OFFICE, STRANGER, STRANGER6, VENDOR, VENDOR6, fragment, host, ip,
    packet, tcp, tcp_header, udp, with, with_options,
};
use super::{Expected, MALFORMED, UNCOVERED, allowed, refused};

const WEB: Expected = allowed("vendor", "web");
/// The longest packet that a length field can state.
const LONGEST: usize = 65_535;

#[rustfmt::skip]
pub(super) fn rows() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let longest4 = ETHERNET + LONGEST;
    let longest6 = ETHERNET + 40 + LONGEST;
    let tag = [(0x8100, 5)];
    vec![
        ("merged TCP", unstated(tcp(VENDOR, 443), 66_000), WEB),
        ("merged TCP, stranger", unstated(tcp(STRANGER, 443), 66_000), refused("web")),
        ("merged TCP to an unprotected port", unstated(tcp(STRANGER, 22), 66_000), UNCOVERED),
        ("merged TCP with options", unstated(with_options(&tcp(VENDOR, 443), 3), 66_000), WEB),
        ("merged TCP in a tag", tagged(unstated(tcp(VENDOR, 443), 66_000), &tag), WEB),
        ("merged TCP in a tag, stranger", tagged(unstated(tcp(STRANGER, 443), 66_000), &tag), refused("web")),
        ("merged UDP", unstated(udp(OFFICE, 40_000, 53), 66_000), allowed("office", "dns")),
        ("a length of 0, and one byte more than can be stated", unstated(tcp(VENDOR, 443), longest4 + 1), WEB),
        ("a length of 0, and as many bytes as can be stated", unstated(tcp(VENDOR, 443), longest4), MALFORMED),
        ("a length of 0 in a tag, and as many bytes as can be stated", tagged(unstated(tcp(VENDOR, 443), longest4), &tag), MALFORMED),
        ("a length of 0, and 9000 bytes", unstated(tcp(VENDOR, 443), 9000), MALFORMED),
        ("a length of 1, and 66000 bytes", with(unstated(tcp(VENDOR, 443), 66_000), &[(ETHERNET + 3, 1)]), MALFORMED),
        ("a length below the header, and 66000 bytes", with(unstated(tcp(VENDOR, 443), 66_000), &[(ETHERNET + 3, 19)]), MALFORMED),
        ("a broken header of 66000 bytes", with(unstated(tcp(VENDOR, 443), 66_000), &[(ETHERNET, 0x44)]), MALFORMED),
        ("a later fragment of a length of 0", unstated(fragment(VENDOR, TCP), 66_000), allowed("vendor", "")),
        ("merged TCP, IPv6", unstated(tcp(VENDOR6, 443), 66_000), WEB),
        ("merged TCP, IPv6, stranger", unstated(tcp(STRANGER6, 443), 66_000), refused("web")),
        ("merged TCP, IPv6, behind options that state no length", unstated(behind(VENDOR6, [0, 0, 1, 4, 0, 0, 0, 0]), 66_000), WEB),
        ("a payload length of 0, and one byte more than can be stated", unstated(tcp(VENDOR6, 443), longest6 + 1), WEB),
        ("a payload length of 0, and as many bytes as can be stated", unstated(tcp(VENDOR6, 443), longest6), MALFORMED),
        ("a payload length of 0 in a tag, and as many bytes as can be stated", tagged(unstated(tcp(VENDOR6, 443), longest6), &tag), MALFORMED),
        ("a payload length of 0, of a protocol without ports", unstated(packet(STRANGER6, GRE, &[]), 66_000), UNCOVERED),
        ("a jumbogram", jumbogram(VENDOR6, 66_000, 0), WEB),
        ("a jumbogram, stranger", jumbogram(STRANGER6, 66_000, 0), refused("web")),
        ("a jumbogram in a tag", tagged(jumbogram(VENDOR6, 66_000, 0), &tag), WEB),
        ("a jumbogram that is padded", jumbogram(VENDOR6, 66_000, -8), WEB),
        ("a jumbogram that is longer than its frame", jumbogram(VENDOR6, 66_000, 1), MALFORMED),
        ("a jumbogram of the minimum length", jumbogram(VENDOR6, longest6 + 1, 0), WEB),
        ("a jumbogram whose length would fit its length field", jumbogram(VENDOR6, longest6 + 8, -8), MALFORMED),
        ("a jumbogram of a length of 0", jumbogram(VENDOR6, 66_000, -(66_000 - 54)), MALFORMED),
        ("a short jumbogram", jumbogram(VENDOR6, 9000, 0), MALFORMED),
        ("a jumbogram whose option is not the first", unstated(behind(VENDOR6, [0, 1, 1, 0, 0xc2, 4, 0, 1]), 66_000), WEB),
        ("a merged UDP datagram, IPv6", unstated(frame::udp(at(STRANGER6, 40_000), at(host(STRANGER6), 53), b""), 66_000), refused("dns")),
        ("a payload length of 0, of UDP", packet(STRANGER6, UDP, &[]), MALFORMED),
    ]
}

fn at(address: &str, port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::new(ip(address), port)
}

/// Sets the length field to 0, and pads the frame with zeros to this size.
fn unstated(mut frame: Vec<u8>, bytes: usize) -> Vec<u8> {
    let length = match frame[ETHERNET] >> 4 {
        4 => ETHERNET + 2,
        _ => ETHERNET + 4,
    };
    frame[length..length + 2].fill(0);
    frame.resize(bytes, 0);
    frame
}

/// Returns TCP to web behind a hop-by-hop header, whose first byte is added.
fn behind(source: &str, header: [u8; 8]) -> Vec<u8> {
    let mut header = header.to_vec();
    header[0] = TCP;
    if header[1] == 1 {
        header.extend([0x11, 0x3a, 0, 0, 0, 0, 0, 0]);
    }
    packet(source, HOP_BY_HOP, &[header, tcp_header(443)].concat())
}

/// Returns TCP to web in a frame of this size, with a jumbo payload option that states the length plus `more`.
fn jumbogram(source: &str, bytes: usize, more: isize) -> Vec<u8> {
    let stated = (bytes - ETHERNET - 40).checked_add_signed(more);
    let stated = stated.expect("a length") as u32;
    let mut header = [0, 0, 0xc2, 4, 0, 0, 0, 0];
    header[4..].copy_from_slice(&stated.to_be_bytes());
    unstated(behind(source, header), bytes)
}
