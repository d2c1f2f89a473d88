//! Plain packets, which the kernel program parses in one go, against how every frame is parsed. Runs without root.

use allowlist_common::packet::{Contents, Packet, parse, parse_fast};

use super::frames::groups;

fn in_one_go(frame: &[u8]) -> Option<Packet> {
    parse_fast(frame, Some, Some)
}

/// Every hand-made frame, each of its starts, and each with one bit changed in the part that headers are in.
#[test]
fn a_plain_packet_is_what_parsing_says() {
    const HEADERS: usize = 14 + 8 + 40 + 60;
    let mut plain_ones = 0;
    let mut check = |frame: &[u8]| {
        if let Some(packet) = in_one_go(frame) {
            assert_eq!(Ok(Contents::Ip(packet)), parse(frame), "{frame:02x?}");
            plain_ones += 1;
        }
    };
    for row in groups().iter().flat_map(|group| &group.rows) {
        let mut frame = row.frame.clone();
        for length in 0..=frame.len().min(10_000) {
            check(&frame[..length]);
        }
        for place in 0..frame.len().min(HEADERS) {
            for bit in 0..8 {
                frame[place] ^= 1 << bit;
                check(&frame);
                frame[place] ^= 1 << bit;
            }
        }
    }
    assert!(plain_ones > 10_000, "only {plain_ones}");
}

/// What most of the world sends is plain: else the short way is there for nothing.
#[test]
fn common_packets_are_plain() {
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
            assert!(in_one_go(&untagged).is_some_and(|packet| packet.vlan == 0));
            assert!(in_one_go(&tagged).is_some_and(|packet| packet.vlan == 7));
            assert!(in_one_go(&twice).is_none());
        }
    }
}
