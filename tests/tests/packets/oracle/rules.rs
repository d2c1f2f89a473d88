//! Renders a configuration as nftables rules for the ingress hook of an interface, which sees the same packets as the
//! filter: before reassembly, and including frames that are not IP.
//!
//! Shares no code with the compiler or the kernel program. The rules add the Ethernet source of each frame, which is the
//! number of the frame, to the set of its verdict. Supports only `established` and `off` as `return_traffic`.

use std::fmt::Write as _;

use allowlist_policy::{Keep, Policy, Ports, ReturnTraffic, Rules, Service, Snapshot, Verdict};
use ipnet::IpNet;

/// The table's family and name.
pub(super) const TABLE: &str = "netdev oracle";
/// The set of frames that pass.
pub(super) const PASSED: &str = "passed";
/// The set of frames that are dropped.
pub(super) const DROPPED: &str = "dropped";

/// Matches IPv6.
const IPV6: &str = "meta protocol ip6";
/// The IPv6 extension headers, which hide the protocol of a later fragment.
const EXTENSIONS: &str = "{ 0, 43, 44, 51, 60 }";

/// Returns the input of `nft -f` that replaces the table.
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
    chain("whole", exempt(rules.keep) + &by_service(&services, covers));
    chain("addressed", addressed());
    chain("judge", judge(rules, interface));
    text + "}\n"
}

fn end(set: &str, verdict: &str) -> String {
    format!("add @{set} {{ ether saddr counter }} {verdict}\n")
}

/// Returns the sets of allowed addresses of a service, one per family.
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

/// Returns the rules that allow the sources of the services, then those that drop other packets to the services, and then
/// those for all other packets.
fn by_service(services: &[(usize, &Service)], matches: impl Fn(&Ports) -> Vec<String>) -> String {
    let mut text = String::new();
    for (place, service) in services {
        for rule in service.ports.iter().flat_map(&matches) {
            // nft refuses a rule that matches one family and compares an address of the other.
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

/// Returns the matches for whole packets to the ports.
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

/// Returns the matches for later fragments that may belong to such packets.
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
        Verdict::Pass => "goto pass\n",
        Verdict::Drop => closed,
    }
    .to_owned()
}

/// Drops fragments that begin inside the transport header; offsets are in units of 8 bytes.
const OVERLAPPING: &str = "meta l4proto 6 ip frag-off & 0x1fff 1-2 goto refuse
meta l4proto 6 frag frag-off 1-2 goto refuse
meta l4proto 132 ip frag-off & 0x1fff 1 goto refuse
meta l4proto 132 frag frag-off 1 goto refuse
";

/// Returns the rules that separate later fragments, and drop other packets without a complete transport header. The header
/// is complete if its last byte can be compared.
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

/// Returns the rules of the exemptions, which precede the services.
fn exempt(keep: Keep) -> String {
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
        .filter(|(is_exempt, _)| *is_exempt)
        .flat_map(|(_, rules)| *rules)
    {
        let _ = writeln!(text, "{rule} goto pass");
    }
    text
}

/// Returns the base chain. A packet whose headers the kernel cannot parse has no protocol to compare.
fn judge(rules: Rules, interface: &str) -> String {
    let target = |is_exempt| if is_exempt { "pass" } else { "refuse" };
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
