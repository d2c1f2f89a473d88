//! Compares the parser of the fast path with the complete parser. Runs without root.

use allowlist_common::packet::{Contents, Packet, parse, parse_fast};

use super::frames::groups;

fn fast(frame: &[u8]) -> Option<Packet> {
    parse_fast(frame, Some, Some)
}

/// Parses all hand-made frames, all their beginnings, and all variants with one changed bit in the headers.
#[test]
fn the_fast_path_agrees_with_the_parser() {
    const HEADERS: usize = 14 + 8 + 40 + 60;
    let mut parsed = 0;
    let mut check = |frame: &[u8]| {
        if let Some(packet) = fast(frame) {
            assert_eq!(Ok(Contents::Ip(packet)), parse(frame), "{frame:02x?}");
            parsed += 1;
        }
    };
    for row in groups().iter().flat_map(|group| &group.rows) {
        let mut frame = row.frame.clone();
        for length in 0..=frame.len().min(10_000) {
            check(&frame[..length]);
        }
        for offset in 0..frame.len().min(HEADERS) {
            for bit in 0..8 {
                frame[offset] ^= 1 << bit;
                check(&frame);
                frame[offset] ^= 1 << bit;
            }
        }
    }
    assert!(parsed > 10_000, "only {parsed}");
}

/// The fast path accepts the most frequent packets.
#[test]
fn the_fast_path_accepts_common_packets() {
    use allowlist_tests::lab::frame;
    let ends = |from: &str, to: &str| (from.parse().expect("one"), to.parse().expect("one"));
    for (from, to) in [
        ends("192.0.2.1:1024", "198.51.100.1:443"),
        ends("[2001:db8::1]:1024", "[2001:db8::2]:443"),
    ] {
        for untagged in [
            frame::tcp_syn(from, to),
            frame::udp(from, to, b""),
            frame::udp(from, to, &[0; 1400]),
        ] {
            let tagged = frame::tagged(untagged.clone(), &[(0x8100, 7)]);
            let twice = frame::tagged(untagged.clone(), &[(0x88a8, 7), (0x8100, 8)]);
            assert!(fast(&untagged).is_some_and(|packet| packet.vlan == 0));
            assert!(fast(&tagged).is_some_and(|packet| packet.vlan == 7));
            assert!(fast(&twice).is_none());
        }
    }
}
