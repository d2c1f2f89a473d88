//! `[keep]`: each exemption on and off, under both default verdicts. Without its exemption, a packet is decided like any
//! other, or dropped if it is not IP.

use allowlist_common::packet::ICMPV6;
use allowlist_common::verdict::Reason;
use allowlist_tests::lab::frame;

use super::build::{
    ETHERNET, HOP_BY_HOP, LINK6, NEIGHBOUR6, OFFICE, OFFICE6, STRANGER, STRANGER6, VENDOR, dhcpv6,
    icmp, packet, tcp, udp, with, with_hops,
};
use super::{Expected, Group, UNCOVERED, allowed, config, drop, pass, refused};

const KEYS: [&str; 6] = [
    "arp",
    "neighbour_discovery",
    "icmp_errors",
    "dhcp",
    "multicast",
    "not_ip",
];

pub(super) fn groups() -> Vec<Group> {
    let each = KEYS.iter().map(|key| vec![*key]);
    let sets = each.chain([KEYS.to_vec(), vec![]]);
    sets.flat_map(|off| ["pass", "drop"].map(|default| group(&off, default)))
        .collect()
}

fn group(off: &[&str], default: &str) -> Group {
    let keys: String = off.iter().flat_map(|key| [*key, " = false\n"]).collect();
    let settings = format!("default = \"{default}\"\nreturn_traffic = \"off\"\n[keep]\n{keys}");
    let rows = rows()
        .into_iter()
        .map(|(key, description, frame, exempt, otherwise)| {
            let end = if off.contains(&key) {
                otherwise
            } else {
                exempt
            };
            (description, frame, end)
        })
        .collect();
    Group::new(
        format!("not exempt: {off:?}, default {default}"),
        config(&settings),
        rows,
    )
}

/// Returns key, description, frame, and the decisions with and without the exemption.
#[rustfmt::skip]
fn rows() -> Vec<(&'static str, &'static str, Vec<u8>, Expected, Expected)> {
    use Reason::{Arp, Dhcp, IcmpError, Multicast, NeighbourDiscovery, NotIp};
    let from_link = |frame| with(frame, &[(ETHERNET + 7, 255)]);
    let ping = refused("ping");
    let office = allowed("office", "ping");
    let web = refused("web");
    let report = [&[ICMPV6, 0, 5, 2, 0, 0, 1, 0][..], &[143, 0, 0, 0, 0, 0, 0, 0]].concat();
    vec![
        ("arp", "ARP", frame::ethernet(0x0806, &[0; 28]), pass(Arp), drop(Arp)),
        ("arp", "tagged ARP", frame::tagged(frame::ethernet(0x0806, &[0; 28]), &[(0x8100, 5)]), pass(Arp), drop(Arp)),
        ("not_ip", "LLDP", frame::ethernet(0x88cc, &[0; 46]), pass(NotIp), drop(NotIp)),
        ("not_ip", "802.3 length", frame::ethernet(46, &[0; 46]), pass(NotIp), drop(NotIp)),
        ("not_ip", "PPPoE", frame::ethernet(0x8864, &[0; 46]), pass(NotIp), drop(NotIp)),
        ("neighbour_discovery", "solicitation, stranger", from_link(icmp(STRANGER6, 135)), pass(NeighbourDiscovery), ping),
        ("neighbour_discovery", "solicitation, office", from_link(icmp(OFFICE6, 135)), pass(NeighbourDiscovery), office),
        ("neighbour_discovery", "router advertisement", from_link(icmp(STRANGER6, 134)), pass(NeighbourDiscovery), ping),
        ("", "solicitation from elsewhere", icmp(STRANGER6, 135), ping, ping),
        ("icmp_errors", "unreachable, stranger", icmp(STRANGER, 3), pass(IcmpError), ping),
        ("icmp_errors", "unreachable, office", icmp(OFFICE, 3), pass(IcmpError), office),
        ("icmp_errors", "packet too big, stranger", icmp(STRANGER6, 2), pass(IcmpError), ping),
        ("icmp_errors", "packet too big, office", icmp(OFFICE6, 2), pass(IcmpError), office),
        ("dhcp", "DHCP answer", udp(STRANGER, 67, 68), pass(Dhcp), UNCOVERED),
        ("dhcp", "DHCPv6 answer", dhcpv6(NEIGHBOUR6, LINK6), pass(Dhcp), UNCOVERED),
        ("", "DHCPv6 answer from another network", udp(STRANGER6, 547, 546), UNCOVERED, UNCOVERED),
        ("", "DHCP's ports the wrong way", udp(STRANGER, 68, 67), UNCOVERED, UNCOVERED),
        ("", "DHCPv6's ports the wrong way", udp(STRANGER6, 546, 547), UNCOVERED, UNCOVERED),
        ("multicast", "IGMP", with_hops(packet(STRANGER, 2, &[0x11; 8]), 1), pass(Multicast), UNCOVERED),
        ("", "IGMP from another network", packet(STRANGER, 2, &[0x11; 8]), UNCOVERED, UNCOVERED),
        ("multicast", "listener query", with_hops(icmp(NEIGHBOUR6, 130), 1), pass(Multicast), ping),
        ("", "listener query, stranger", with_hops(icmp(STRANGER6, 130), 1), ping, ping),
        ("", "listener query, office", with_hops(icmp(OFFICE6, 130), 1), office, office),
        ("multicast", "listener report behind options", with_hops(packet(NEIGHBOUR6, HOP_BY_HOP, &report), 1), pass(Multicast), ping),
        ("", "echo request, stranger", icmp(STRANGER, 8), ping, ping),
        ("", "echo request, office", icmp(OFFICE, 8), office, office),
        ("", "vendor to its port", tcp(VENDOR, 443), allowed("vendor", "web"), allowed("vendor", "web")),
        ("", "stranger to that port", tcp(STRANGER, 443), web, web),
    ]
}
