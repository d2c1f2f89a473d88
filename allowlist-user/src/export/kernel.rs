//! Formats for the filters of Linux: `nft`, `ipset`, `iptables`.
//!
//! Invariants: a load replaces the sets or the chain of this name atomically, or changes nothing; loads are idempotent;
//! rules that refer to the sets or the chain stay, and so do objects with other names. The first load needs no existing
//! object, and a family may be empty.

use std::fmt::Display;

use super::{Export, ExportError, lines};

/// The maximum number of elements of an exported set, larger than any list. Costs no memory. Must never change, since
/// `create -exist` refuses an existing set with another limit.
const MAX_ELEMENTS: u32 = 1 << 24;
/// The smallest `hashsize` of an exported set, which is the default of `ipset`.
const SMALLEST_TABLE: usize = 1024;

/// Names that an exported chain must not have: `iptables` would empty its built-in chain of that name, or fail.
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

/// Returns the export for nftables. It neither deletes tables nor recreates sets, since rules in the same table may use
/// them.
pub(super) fn nft(export: &Export) -> String {
    let (name, port) = (export.options.name, export.options.port);
    let usage = format!(
        "Load: nft -f FILE. It atomically replaces the elements of the two sets and changes nothing else.
A set belongs to its table, so rules that use it must be in the same table:
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

/// Returns one statement that adds all elements to a set, since nft merges the intervals of a set after each statement.
fn nft_elements(name: &str, set: &str, prefixes: &[impl Display]) -> String {
    // Empty braces are a syntax error.
    if prefixes.is_empty() {
        return String::new();
    }
    let elements = lines(prefixes, "    ", ",");
    format!("add element inet {name} {set} {{\n{elements}}}\n")
}

pub(super) fn ipset(export: &Export) -> String {
    let (name, port) = (export.options.name, export.options.port);
    let usage = format!(
        "Load: ipset restore -file FILE. It fills {name}-t4 and {name}-t6, then swaps each with its set.
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
    // An aborted load leaves elements in them.
    text += &format!("flush {name}-t4\nflush {name}-t6\n");
    text += &lines(v4, &format!("add {name}-t4 "), "");
    text += &lines(v6, &format!("add {name}-t6 "), "");
    for family in ["4", "6"] {
        text += &format!("swap {name}-v{family} {name}-t{family}\n");
    }
    text + &format!("destroy {name}-t4\ndestroy {name}-t6\n")
}

/// Returns the elements of an `ipset` set for these prefixes. A set cannot contain `/0`, which becomes two halves.
fn set_elements(prefixes: impl Iterator<Item = ipnet::IpNet>) -> Vec<ipnet::IpNet> {
    prefixes
        .flat_map(|prefix| {
            let length = prefix.prefix_len().max(1);
            prefix.subnets(length).expect("not shorter than the prefix")
        })
        .collect()
}

/// Returns one file for `iptables-restore` and `ip6tables-restore`: each skips the lines that are marked for the other.
pub(super) fn iptables(export: &Export) -> Result<String, ExportError> {
    let chain = export.options.name.to_ascii_uppercase();
    if RESERVED_CHAINS.contains(&chain.as_str()) {
        return Err(ExportError::ReservedChain { chain });
    }
    let port = export.options.port;
    let usage = format!(
        "Load: iptables-restore --noflush FILE; ip6tables-restore --noflush FILE. Each reads its own lines.
It atomically replaces the rules of chain {chain} and changes nothing else. Unlisted sources return from it.
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
