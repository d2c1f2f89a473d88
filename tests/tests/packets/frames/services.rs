//! Services that share ports, SCTP, services of one interface, and `any`.
//!
//! The program under test is attached to `eth0`.

use allowlist_common::packet::{ICMP, ICMPV6, SCTP, TCP, UDP};
use allowlist_common::verdict::Reason;
use allowlist_tests::lab::frame;

use super::build::{
    AUTHENTICATION, DESTINATION, ESP, ETHERNET, GRE, HOP_BY_HOP, NO_NEXT, OFFICE, OFFICE6,
    STRANGER, STRANGER6, VENDOR, VENDOR6, fragment, host, icmp, packet, ported, shortened, tcp,
    udp, with, with_hops,
};
use super::{Expected, Group, MALFORMED, SOURCES, STRAY, UNCOVERED, allowed, pass, refused};

pub(super) fn groups() -> Vec<Group> {
    let settings = [("pass", "pass"), ("drop", "drop\"\nreturn_traffic = \"off")];
    settings
        .into_iter()
        .flat_map(|(default, value)| {
            let config = |policy| format!("default = \"{value}\"\n{policy}{SOURCES}");
            [
                Group::new(
                    format!("SCTP and shared ports, default {default}"),
                    config(SHARED),
                    shared(),
                ),
                Group::new(
                    format!("interfaces, default {default}"),
                    config(LIMITED),
                    limited(),
                ),
                Group::new(format!("any, default {default}"), config(ANY), any()),
                Group::new(
                    format!("protocols, default {default}"),
                    config(PROTOCOLS),
                    protocols(),
                ),
            ]
        })
        .collect()
}

fn sctp(source: &str, port: u16) -> Vec<u8> {
    ported(SCTP, (source, 40_000), (host(source), port), 0)
}

const SHARED: &str = r#"
    [services.signalling]
    ports = ["sctp/3868", "sctp/5000-5002"]
    allow = ["vendor"]
    [services.admin]
    ports = ["tcp/80", "udp/80", "sctp/80", "sctp/5002"]
    allow = ["office"]
    [services.web]
    ports = ["tcp/80-81"]
    allow = ["vendor"]
    [sources.branch]
    prefixes = ["203.0.113.128/25"]
    [services.top]
    ports = ["tcp/65535", "udp/65535", "sctp/65535", "tcp/1"]
    allow = ["branch"]
"#;
/// An address in the branch's prefix, which is inside the office's.
const BRANCH: &str = "203.0.113.200";

#[rustfmt::skip]
fn shared() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("SCTP, vendor", sctp(VENDOR, 3868), allowed("vendor", "signalling")),
        ("SCTP, vendor, IPv6", sctp(VENDOR6, 3868), allowed("vendor", "signalling")),
        ("SCTP, stranger", sctp(STRANGER, 3868), refused("signalling")),
        ("SCTP, stranger, IPv6", sctp(STRANGER6, 3868), refused("signalling")),
        ("SCTP, office to the vendor's port", sctp(OFFICE, 3868), refused("signalling")),
        ("SCTP, before a range", sctp(STRANGER, 4999), UNCOVERED),
        ("SCTP, first of a range", sctp(VENDOR, 5000), allowed("vendor", "signalling")),
        ("SCTP, in a range, stranger", sctp(STRANGER, 5001), refused("signalling")),
        ("SCTP, last of a range, which two services have", sctp(VENDOR, 5002), allowed("vendor", "admin signalling")),
        ("the same, office", sctp(OFFICE, 5002), allowed("office", "admin signalling")),
        ("the same, stranger", sctp(STRANGER, 5002), refused("admin signalling")),
        ("SCTP, after a range", sctp(STRANGER, 5003), UNCOVERED),
        ("TCP to an SCTP port", tcp(STRANGER, 3868), UNCOVERED),
        ("UDP to an SCTP port", udp(STRANGER, 40_000, 5000), UNCOVERED),
        ("SCTP to a TCP port", sctp(STRANGER, 81), UNCOVERED),
        ("SCTP to a port of three protocols, office", sctp(OFFICE, 80), allowed("office", "admin")),
        ("SCTP to a port of three protocols, vendor", sctp(VENDOR, 80), refused("admin")),
        ("SCTP behind options", packet(VENDOR6, DESTINATION, &[&[SCTP, 0, 1, 4, 0, 0, 0, 0][..], &[0, 1, 0x0f, 0x1c], &[0; 8]].concat()), allowed("vendor", "signalling")),
        ("SCTP of 11 bytes", shortened(sctp(VENDOR, 3868), ETHERNET + 20 + 11), MALFORMED),
        ("SCTP of 12 bytes", shortened(sctp(VENDOR, 3868), ETHERNET + 20 + 12), allowed("vendor", "signalling")),
        ("later fragment of SCTP, vendor", fragment(VENDOR, SCTP), allowed("vendor", "")),
        ("later fragment of SCTP, office", fragment(OFFICE6, SCTP), allowed("office", "")),
        ("later fragment of SCTP, stranger", fragment(STRANGER, SCTP), STRAY),
        ("later fragment of UDP, vendor", fragment(VENDOR, UDP), STRAY),
        ("a port of two services, vendor", tcp(VENDOR, 80), allowed("vendor", "admin web")),
        ("a port of two services, office", tcp(OFFICE, 80), allowed("office", "admin web")),
        ("a port of two services, stranger", tcp(STRANGER, 80), refused("admin web")),
        ("the adjacent port, vendor", tcp(VENDOR6, 81), allowed("vendor", "web")),
        ("the adjacent port, office", tcp(OFFICE6, 81), refused("web")),
        ("UDP of a service with both, office", udp(OFFICE, 40_000, 80), allowed("office", "admin")),
        ("UDP of a service with both, vendor", udp(VENDOR, 40_000, 80), refused("admin")),
        ("an address in two prefixes", tcp(BRANCH, 80), allowed("branch office", "admin web")),
        ("an address in two prefixes, of which one is allowed", tcp(BRANCH, 65_535), allowed("branch office", "top")),
        ("the wider prefix is not allowed", tcp(OFFICE, 65_535), refused("top")),
        ("highest port of UDP", udp(BRANCH, 40_000, 65_535), allowed("branch office", "top")),
        ("highest port of SCTP, stranger", sctp(STRANGER, 65_535), refused("top")),
        ("the lowest port", tcp(BRANCH, 1), allowed("branch office", "top")),
        ("port 0", tcp(STRANGER, 0), UNCOVERED),
        ("ICMP, which no service covers", icmp(STRANGER, 8), UNCOVERED),
        ("later fragment of ICMP, which no service covers", fragment(STRANGER, ICMP), UNCOVERED),
    ]
}

const LIMITED: &str = r#"
    interfaces = ["eth0", "eth1"]
    [services.here]
    ports = ["tcp/8000"]
    interfaces = ["eth0"]
    allow = ["vendor"]
    [services.there]
    ports = ["tcp/8000", "tcp/9000", "udp/53", "sctp/80"]
    interfaces = ["eth1"]
    allow = ["office"]
    [services.both]
    ports = ["tcp/7000"]
    interfaces = ["eth0", "eth1"]
    allow = ["office"]
    [services.everywhere]
    ports = ["tcp/9000-9001"]
    allow = ["branch"]
    [services.ping]
    ports = ["icmp"]
    interfaces = ["eth1"]
    allow = ["office"]
    [sources.branch]
    prefixes = ["198.18.0.0/24"]
"#;
/// An address that reaches the service on all interfaces.
const ELSEWHERE: &str = "198.18.0.1";

#[rustfmt::skip]
fn limited() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("a service of this interface, vendor", tcp(VENDOR, 8000), allowed("vendor", "here")),
        ("a service of this interface, stranger", tcp(STRANGER, 8000), refused("here")),
        ("a source of that port's service on the other interface", tcp(OFFICE, 8000), refused("here")),
        ("a service of both, office", tcp(OFFICE6, 7000), allowed("office", "both")),
        ("a service of both, stranger", tcp(STRANGER6, 7000), refused("both")),
        ("a shared port, of which only one service is on this interface", tcp(ELSEWHERE, 9000), allowed("branch", "everywhere")),
        ("a shared port, source of the service on the other interface", tcp(OFFICE, 9000), refused("everywhere")),
        ("the adjacent port", tcp(STRANGER, 9001), refused("everywhere")),
        ("the other interface's UDP port, office", udp(OFFICE, 40_000, 53), UNCOVERED),
        ("the other interface's UDP port, stranger", udp(STRANGER, 40_000, 53), UNCOVERED),
        ("the other interface's SCTP port", sctp(OFFICE, 80), UNCOVERED),
        ("the other interface's ping", icmp(OFFICE, 8), UNCOVERED),
        ("the other interface's ping, IPv6", icmp(STRANGER6, 128), UNCOVERED),
        ("later fragment of TCP, vendor", fragment(VENDOR, TCP), allowed("vendor", "")),
        ("later fragment of TCP, office", fragment(OFFICE, TCP), allowed("office", "")),
        ("later fragment of TCP, stranger", fragment(STRANGER6, TCP), STRAY),
        ("later fragment of the other interface's UDP", fragment(OFFICE, UDP), UNCOVERED),
        ("later fragment of the other interface's ICMP", fragment(STRANGER6, ICMPV6), UNCOVERED),
        ("later fragment that begins with options, stranger", fragment(STRANGER6, DESTINATION), STRAY),
    ]
}

/// A service that covers all ports, including the ephemeral ones, and a service with one port.
pub(super) const ANY: &str = r#"
    [services.all]
    ports = ["any"]
    allow = ["office"]
    [services.web]
    ports = ["tcp/443"]
    allow = ["vendor"]
"#;

#[rustfmt::skip]
fn any() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let all = allowed("office", "all");
    vec![
        ("a port of its own, vendor", tcp(VENDOR, 443), allowed("vendor", "all web")),
        ("a port of its own, office", tcp(OFFICE, 443), allowed("office", "all web")),
        ("a port of its own, stranger", tcp(STRANGER, 443), refused("all web")),
        ("any TCP port, office", tcp(OFFICE6, 1), all),
        ("any TCP port, vendor", tcp(VENDOR6, 1), refused("all")),
        ("TCP port 0, office", tcp(OFFICE, 0), all),
        ("TCP port 0, stranger", tcp(STRANGER, 0), refused("all")),
        ("any UDP port, office", udp(OFFICE, 40_000, 65_535), all),
        ("any UDP port, stranger", udp(STRANGER6, 40_000, 443), refused("all")),
        ("any SCTP port, office", sctp(OFFICE, 9), all),
        ("any SCTP port, stranger", sctp(STRANGER, 9), refused("all")),
        ("echo request, office", icmp(OFFICE6, 128), all),
        ("echo request, vendor", icmp(VENDOR, 8), refused("all")),
        ("IPv4 redirect, office", icmp(OFFICE, 5), all),
        ("IPv4 redirect, stranger", icmp(STRANGER, 5), refused("all")),
        ("GRE, office", packet(OFFICE, GRE, &[0; 8]), all),
        ("GRE, stranger", packet(STRANGER, GRE, &[0; 8]), refused("all")),
        ("ESP, stranger, IPv6", packet(STRANGER6, ESP, &[0; 32]), refused("all")),
        ("protocol 255, stranger", packet(STRANGER, 255, &[]), refused("all")),
        ("no next header, office", packet(OFFICE6, NO_NEXT, &[]), all),
        ("no next header, stranger", packet(STRANGER6, NO_NEXT, &[]), refused("all")),
        ("later fragment of TCP, vendor", fragment(VENDOR, TCP), allowed("vendor", "")),
        ("later fragment of UDP, vendor", fragment(VENDOR, UDP), STRAY),
        ("later fragment of GRE, office", fragment(OFFICE, GRE), allowed("office", "")),
        ("later fragment of GRE, stranger", fragment(STRANGER, GRE), STRAY),
        ("later fragment that begins with options, vendor", fragment(VENDOR6, DESTINATION), allowed("vendor", "")),
        ("later fragment that begins with options, stranger", fragment(STRANGER6, DESTINATION), STRAY),
        ("later fragment of AH over IPv4, office", fragment(OFFICE, AUTHENTICATION), allowed("office", "")),
        ("later fragment of AH over IPv4, vendor", fragment(VENDOR, AUTHENTICATION), STRAY),
        ("later fragment of options' number over IPv4, vendor", fragment(VENDOR, DESTINATION), STRAY),
        ("ARP", frame::ethernet(0x0806, &[0; 28]), pass(Reason::Arp)),
        ("LLDP", frame::ethernet(0x88cc, &[0; 46]), pass(Reason::NotIp)),
        ("IGMP", with_hops(packet(STRANGER, 2, &[0x11; 8]), 1), pass(Reason::Multicast)),
        ("DHCP answer", udp(STRANGER, 67, 68), pass(Reason::Dhcp)),
        ("neighbour solicitation", with(icmp(STRANGER6, 135), &[(ETHERNET + 7, 255)]), pass(Reason::NeighbourDiscovery)),
        ("an ICMP error", icmp(STRANGER, 3), pass(Reason::IcmpError)),
        ("broken headers, office", with(tcp(OFFICE, 443), &[(ETHERNET, 0x44)]), MALFORMED),
    ]
}

const PROTOCOLS: &str = r#"
    [services.redundancy]
    ports = ["ip/112", "ip/ospf"]
    allow = ["vendor"]
    [services.tunnels]
    ports = ["gre", "ip/ESP", "ip/51"]
    allow = ["office"]
    [services.ping4]
    ports = ["ip/1"]
    allow = ["office"]
    [services.stream]
    ports = ["ip/6"]
    allow = ["vendor"]
    [services.web]
    ports = ["tcp/443"]
    allow = ["office"]
    [services.last]
    ports = ["ip/255", "ip/0"]
    allow = ["vendor"]
"#;
const VRRP: u8 = 112;
const OSPF: u8 = 89;

#[rustfmt::skip]
fn protocols() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let message = |source, protocol| packet(source, protocol, &[0x21; 8]);
    vec![
        ("VRRP, vendor", message(VENDOR, VRRP), allowed("vendor", "redundancy")),
        ("VRRP, vendor, IPv6", message(VENDOR6, VRRP), allowed("vendor", "redundancy")),
        ("VRRP, stranger", message(STRANGER, VRRP), refused("redundancy")),
        ("VRRP, office", message(OFFICE6, VRRP), refused("redundancy")),
        ("VRRP in a tag", frame::tagged(message(VENDOR, VRRP), &[(0x8100, 5)]), allowed("vendor", "redundancy")),
        ("VRRP without a byte", message(VENDOR, VRRP)[..ETHERNET + 20].to_vec(), MALFORMED_LENGTH),
        ("the protocol before it", message(STRANGER, 111), UNCOVERED),
        ("the protocol after it", message(STRANGER, 113), UNCOVERED),
        ("OSPF, vendor", message(VENDOR, OSPF), allowed("vendor", "redundancy")),
        ("OSPF, stranger, IPv6", message(STRANGER6, OSPF), refused("redundancy")),
        ("GRE, office", message(OFFICE, GRE), allowed("office", "tunnels")),
        ("GRE, vendor", message(VENDOR, GRE), refused("tunnels")),
        ("ESP, office, IPv6", message(OFFICE6, ESP), allowed("office", "tunnels")),
        ("AH over IPv4, office", packet(OFFICE, AUTHENTICATION, &[TCP, 1, 0, 0]), allowed("office", "tunnels")),
        ("AH over IPv4, stranger", packet(STRANGER, AUTHENTICATION, &[TCP, 1, 0, 0]), refused("tunnels")),
        ("AH over IPv6 is skipped", packet(OFFICE6, AUTHENTICATION, &[&[UDP, 1, 0, 0][..], &[0; 16]].concat()), UNCOVERED),
        ("IPv4's echo request, office", icmp(OFFICE, 8), allowed("office", "ping4")),
        ("IPv4's echo request, stranger", icmp(STRANGER, 8), refused("ping4")),
        ("IPv6's echo request, stranger", icmp(STRANGER6, 128), UNCOVERED),
        ("any TCP port, vendor", tcp(VENDOR, 1), allowed("vendor", "stream")),
        ("TCP port 0, vendor", tcp(VENDOR6, 0), allowed("vendor", "stream")),
        ("any TCP port, stranger", tcp(STRANGER, 65_535), refused("stream")),
        ("a port of both, office", tcp(OFFICE, 443), allowed("office", "stream web")),
        ("a port of both, stranger", tcp(STRANGER, 443), refused("stream web")),
        ("a UDP port", udp(STRANGER, 40_000, 443), UNCOVERED),
        ("protocol 255, vendor", message(VENDOR, 255), allowed("vendor", "last")),
        ("protocol 255, stranger", message(STRANGER6, 255), refused("last")),
        ("protocol 0 over IPv4, vendor", message(VENDOR, HOP_BY_HOP), allowed("vendor", "last")),
        ("later fragment of VRRP, vendor", fragment(VENDOR, VRRP), allowed("vendor", "")),
        ("later fragment of VRRP, stranger", fragment(STRANGER, VRRP), STRAY),
        ("later fragment of VRRP, stranger, IPv6", fragment(STRANGER6, VRRP), STRAY),
        ("later fragment of an uncovered protocol, IP protocol 111", fragment(STRANGER, 111), UNCOVERED),
        ("later fragment of GRE, vendor", fragment(VENDOR6, GRE), STRAY),
        ("later fragment of AH over IPv4, office", fragment(OFFICE, AUTHENTICATION), allowed("office", "")),
        ("later fragment of AH over IPv4, stranger", fragment(STRANGER, AUTHENTICATION), STRAY),
        ("later fragment of routing's number over IPv4", fragment(STRANGER, 43), UNCOVERED),
        ("later fragment of IPv4's ICMP, stranger", fragment(STRANGER, ICMP), STRAY),
        ("later fragment of IPv6's ICMP, stranger", fragment(STRANGER6, ICMPV6), UNCOVERED),
        ("later fragment of TCP, vendor", fragment(VENDOR, TCP), allowed("vendor", "")),
        ("later fragment that begins with options, office", fragment(OFFICE6, DESTINATION), allowed("office", "")),
        ("later fragment that begins with options, stranger", fragment(STRANGER6, DESTINATION), STRAY),
        ("IGMP, which is exempt", with_hops(packet(STRANGER, 2, &[0x11; 8]), 1), pass(Reason::Multicast)),
    ]
}

/// Malformed, because the length in the IP header exceeds the frame.
const MALFORMED_LENGTH: Expected = super::CUT_SHORT;
