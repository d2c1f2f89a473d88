//! Formats for Linux's own filters: `nft`, `ipset`, `iptables`.
//!
//! Invariants: a load replaces the sets or the chain of this name in one step, or changes nothing; a second
//! load is like the first; rules that refer to them stay, and so does everything of another name. Each
//! loads where nothing is there yet, and with a family that lists nobody.

use std::fmt::Display;

use super::{Export, ExportError, lines};

/// Room for as many prefixes as anybody lists. It costs nothing, and must never change: `create -exist`
/// refuses a set that is there with another limit.
const MAX_ELEMENTS: u32 = 1 << 24;
/// What `ipset` starts with when it is not told.
const SMALLEST_TABLE: usize = 1024;

/// What a chain may not be called: `iptables` would empty its own chain or end at line two.
const RESERVED_CHAINS: [&str; 9] = [
    "ACCEPT",
    "DROP",
    "FORWARD",
    "INPUT",
    "OUTPUT",
    "POSTROUTING",
    "PREROUTING",
    "QUEUE",
    "RETURN",
];

/// No table is deleted and no set is made anew: rules in the same table may use them.
pub(super) fn nft(export: &Export) -> String {
    let (name, port) = (export.options.name, export.options.port);
    let usage = format!(
        "Load: nft -f FILE. It replaces what is in the two sets, in one step, and touches nothing else.
A set belongs to its table, so rules that use it are in the same one:
  nft 'add chain inet {name} input {{ type filter hook input priority filter; policy accept; }}'
  nft add rule inet {name} input tcp dport {port} ip saddr @v4 accept
  nft add rule inet {name} input tcp dport {port} ip6 saddr @v6 accept
  nft add rule inet {name} input tcp dport {port} drop"
    );
    let mut text = header(export, &usage);
    text += &format!(
        "add table inet {name}
add set inet {name} v4 {{ type ipv4_addr; flags interval; }}
add set inet {name} v6 {{ type ipv6_addr; flags interval; }}
flush set inet {name} v4
flush set inet {name} v6
"
    );
    text + &nft_elements(name, "v4", &export.v4) + &nft_elements(name, "v6", &export.v6)
}

/// All in one statement: nft merges a set's intervals again for each.
fn nft_elements(name: &str, set: &str, prefixes: &[impl Display]) -> String {
    // An empty list between the braces is no syntax.
    if prefixes.is_empty() {
        return String::new();
    }
    let elements = lines(prefixes, "    ", ",");
    format!("add element inet {name} {set} {{\n{elements}}}\n")
}

pub(super) fn ipset(export: &Export) -> String {
    let (name, port) = (export.options.name, export.options.port);
    let usage = format!(
        "Load: ipset restore -file FILE. It fills {name}-t4 and {name}-t6, and then swaps each with its set.
Use: iptables -A INPUT -p tcp --dport {port} -m set --match-set {name}-v4 src -j ACCEPT
     iptables -A INPUT -p tcp --dport {port} -j DROP
     and the same with ip6tables and {name}-v6"
    );
    let v4 = export.v4.iter().copied().map(ipnet::IpNet::V4);
    let v6 = export.v6.iter().copied().map(ipnet::IpNet::V6);
    let (v4, v6) = (set_elements(v4), set_elements(v6));
    let mut text = header(export, &usage);
    for (set, family, size) in [
        ("v4", "inet", 0),
        ("v6", "inet6", 0),
        ("t4", "inet", v4.len()),
        ("t6", "inet6", v6.len()),
    ] {
        let size = size.next_power_of_two().max(SMALLEST_TABLE);
        text += &format!(
            "create {name}-{set} hash:net family {family} hashsize {size} maxelem {MAX_ELEMENTS} -exist\n"
        );
    }
    // A load that was cut short leaves them behind.
    text += &format!("flush {name}-t4\nflush {name}-t6\n");
    text += &lines(v4, &format!("add {name}-t4 "), "");
    text += &lines(v6, &format!("add {name}-t6 "), "");
    for family in ["4", "6"] {
        text += &format!("swap {name}-v{family} {name}-t{family}\n");
    }
    text + &format!("destroy {name}-t4\ndestroy {name}-t6\n")
}

/// A set holds no `/0`, but both halves of it.
fn set_elements(prefixes: impl Iterator<Item = ipnet::IpNet>) -> Vec<ipnet::IpNet> {
    prefixes
        .flat_map(|prefix| {
            let length = prefix.prefix_len().max(1);
            prefix.subnets(length).expect("not shorter than the prefix")
        })
        .collect()
}

/// One file for both tools: each passes over lines that are marked for the other.
pub(super) fn iptables(export: &Export) -> Result<String, ExportError> {
    let chain = export.options.name.to_ascii_uppercase();
    if RESERVED_CHAINS.contains(&chain.as_str()) {
        return Err(ExportError::ReservedChain { chain });
    }
    let port = export.options.port;
    let usage = format!(
        "Load: iptables-restore --noflush FILE; ip6tables-restore --noflush FILE. Each takes its own lines.
It replaces what is in the chain {chain}, in one step, and touches nothing else. Whoever is not listed returns.
Use: iptables -A INPUT -p tcp --dport {port} -j {chain}
     iptables -A INPUT -p tcp --dport {port} -j DROP
     and the same with ip6tables"
    );
    let rules = lines(&export.v4, &format!("-4 -A {chain} -s "), " -j ACCEPT")
        + &lines(&export.v6, &format!("-6 -A {chain} -s "), " -j ACCEPT");
    Ok(header(export, &usage)
        + &format!("*filter\n:{chain} - [0:0]\n{rules}-A {chain} -j RETURN\nCOMMIT\n"))
}

fn header(export: &Export, usage: &str) -> String {
    export.header("#", &usage.lines().collect::<Vec<_>>())
}
