//! A configuration as nftables rules, at an interface's ingress, where the filter is as well: before
//! fragments are put together, and with frames that are not IP.
//!
//! Shares no code with the compiler or with the kernel program. Each frame ends in one of two sets, by
//! its Ethernet source, which is how the sender numbers frames. Knows no return traffic but
//! `established` and `off`.

use std::fmt::Write as _;

use allowlist_user::policy::{
    DefaultVerdict, Keep, Policy, Ports, ReturnTraffic, Rules, Service, Snapshot,
};
use ipnet::IpNet;

/// The table's family and name.
pub(super) const TABLE: &str = "netdev oracle";
/// The set of frames that pass.
pub(super) const PASSED: &str = "passed";
/// The set of those that do not.
pub(super) const DROPPED: &str = "dropped";

/// Matches IPv6 alone.
const IPV6: &str = "meta protocol ip6";
/// IPv6 extension headers: of a later fragment they hide the protocol.
const EXTENSIONS: &str = "{ 0, 43, 44, 51, 60 }";

/// The input of `nft -f` that replaces the table.
pub(super) fn render(
    policy: &Policy,
    snapshot: &Snapshot,
    rules: Rules,
    interface: &str,
) -> String {
    let services: Vec<_> = policy
        .services
        .iter()
        .enumerate()
        .filter(|(_, service)| service.is_on(interface))
        .collect();
    let mut text = format!("table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    for set in [PASSED, DROPPED] {
        let _ = writeln!(text, "set {set} {{ type ether_addr; flags dynamic; }}");
    }
    for (place, service) in &services {
        text += &sets(*place, service, snapshot);
    }
    let mut chain = |name: &str, rules: String| {
        let _ = writeln!(text, "chain {name} {{\n{rules}}}");
    };
    chain("pass", end(PASSED, "accept"));
    chain("refuse", end(DROPPED, "drop"));
    chain("uncovered", uncovered(rules));
    chain(
        "later",
        OVERLAPPING.to_owned() + &by_service(&services, later),
    );
    chain("whole", kept(rules.keep) + &by_service(&services, covers));
    chain("addressed", addressed());
    chain("judge", judge(rules, interface));
    text + "}\n"
}

fn end(set: &str, verdict: &str) -> String {
    format!("add @{set} {{ ether saddr counter }} {verdict}\n")
}

/// The addresses that may reach a service, by family.
fn sets(place: usize, service: &Service, snapshot: &Snapshot) -> String {
    let prefixes = service
        .allow
        .iter()
        .flat_map(|name| &snapshot[name].prefixes);
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) =
        prefixes.partition(|prefix| matches!(prefix, IpNet::V4(_)));
    let mut text = String::new();
    for (family, prefixes) in [(4, v4), (6, v6)] {
        let prefixes: Vec<_> = prefixes.iter().map(IpNet::to_string).collect();
        let elements = if prefixes.is_empty() {
            String::new()
        } else {
            format!("elements = {{ {} }}", prefixes.join(", "))
        };
        let _ = writeln!(
            text,
            "set s{place}v{family} {{ type ipv{family}_addr; flags interval; auto-merge; {elements} }}"
        );
    }
    text
}

/// First whom any service lets in, then what any service covers, then the rest.
fn by_service(services: &[(usize, &Service)], matches: impl Fn(&Ports) -> Vec<String>) -> String {
    let mut text = String::new();
    for (place, service) in services {
        for rule in service.ports.iter().flat_map(&matches) {
            // nft refuses a rule of one family that compares an address of the other.
            if !rule.starts_with(IPV6) {
                let _ = writeln!(text, "{rule} ip saddr @s{place}v4 goto pass");
            }
            let _ = writeln!(text, "{rule} ip6 saddr @s{place}v6 goto pass");
        }
    }
    for (_, service) in services {
        for rule in service.ports.iter().flat_map(&matches) {
            let _ = writeln!(text, "{rule} goto refuse");
        }
    }
    text + "goto uncovered\n"
}

/// What matches a packet with ports, or of a protocol without.
fn covers(ports: &Ports) -> Vec<String> {
    vec![match ports {
        Ports::Tcp(range) => format!("tcp dport {}-{}", range.start(), range.end()),
        Ports::Udp(range) => format!("udp dport {}-{}", range.start(), range.end()),
        Ports::Sctp(range) => format!("sctp dport {}-{}", range.start(), range.end()),
        Ports::Icmp => "meta l4proto { 1, 58 }".to_owned(),
        Ports::Protocol(number) => format!("meta l4proto {number}"),
        Ports::Any => String::new(),
    }]
}

/// What matches a later fragment that could be to the same.
fn later(ports: &Ports) -> Vec<String> {
    let protocols = match ports {
        Ports::Tcp(_) => "6",
        Ports::Udp(_) => "17",
        Ports::Sctp(_) => "132",
        Ports::Icmp => "{ 1, 58 }",
        Ports::Protocol(number) => &number.to_string(),
        Ports::Any => return vec![String::new()],
    };
    vec![
        format!("meta l4proto {protocols}"),
        format!("{IPV6} meta l4proto {EXTENSIONS}"),
    ]
}

fn uncovered(rules: Rules) -> String {
    let closed = match rules.return_traffic {
        ReturnTraffic::Established => "tcp flags & (ack | rst) != 0 goto pass\ngoto refuse\n",
        ReturnTraffic::Off | ReturnTraffic::Track => "goto refuse\n",
    };
    match rules.default {
        DefaultVerdict::Pass => "goto pass\n",
        DefaultVerdict::Drop => closed,
    }
    .to_owned()
}

/// A fragment that begins in a transport header, in units of 8 bytes.
const OVERLAPPING: &str = "meta l4proto 6 ip frag-off & 0x1fff 1-2 goto refuse
meta l4proto 6 frag frag-off 1-2 goto refuse
meta l4proto 132 ip frag-off & 0x1fff 1 goto refuse
meta l4proto 132 frag frag-off 1 goto refuse
";

/// Later fragments apart; of the others the transport header must be whole, which is to say that its last
/// byte can be compared with something.
fn addressed() -> String {
    let mut text =
        String::from("ip frag-off & 0x1fff != 0 goto later\nfrag frag-off != 0 goto later\n");
    for (protocol, bytes) in [(6, 20), (17, 8), (132, 12), (1, 8), (58, 8)] {
        let last = format!("meta l4proto {protocol} @th,{},8", (bytes - 1) * 8);
        let _ = writeln!(text, "{last} 0 goto whole\n{last} != 0 goto whole");
        let _ = writeln!(text, "meta l4proto {protocol} goto refuse");
    }
    text + "goto whole\n"
}

/// What passes before the services are asked.
fn kept(keep: Keep) -> String {
    let exceptions: [(bool, &[&str]); 4] = [
        (
            keep.neighbour_discovery,
            &["meta protocol ip6 ip6 hoplimit 255 icmpv6 type 133-137"],
        ),
        (
            keep.icmp_errors,
            &[
                "meta protocol ip icmp type { 3, 11, 12 }",
                "meta protocol ip6 icmpv6 type 1-4",
            ],
        ),
        (
            keep.multicast,
            &[
                "meta protocol ip ip ttl 1 meta l4proto 2",
                "meta protocol ip6 ip6 hoplimit 1 ip6 saddr { fe80::/10, :: } icmpv6 type { 130, 131, 132, 143 }",
            ],
        ),
        (
            keep.dhcp,
            &[
                "meta protocol ip udp sport 67 udp dport 68",
                "meta protocol ip6 ip6 daddr fe80::/10 udp sport 547 udp dport 546",
            ],
        ),
    ];
    let mut text = String::new();
    for rule in exceptions
        .iter()
        .filter(|(kept, _)| *kept)
        .flat_map(|(_, rules)| *rules)
    {
        let _ = writeln!(text, "{rule} goto pass");
    }
    text
}

/// Where a frame comes in. A packet whose headers the kernel cannot follow has no protocol to compare.
fn judge(rules: Rules, interface: &str) -> String {
    let target = |kept| if kept { "pass" } else { "refuse" };
    format!(
        "type filter hook ingress device \"{interface}\" priority -500; policy accept;\n\
         meta protocol arp goto {}\n\
         meta protocol != {{ ip, ip6 }} goto {}\n\
         meta l4proto != 255 goto addressed\n\
         meta l4proto 255 goto addressed\n\
         goto refuse\n",
        target(rules.keep.arp),
        target(rules.keep.not_ip),
    )
}
