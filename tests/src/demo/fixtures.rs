//! The packets of the demo with their expected decisions.
//!
//! Invariant: the vendors' addresses are copied from the vendors' pages and not from the catalogue, so the demo also checks
//! the catalogue. Uses neither the kernel nor sockets.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use allowlist_common::verdict::{Reason, Verdict};
use ipnet::IpNet;

/// The source addresses of PagerDuty's webhooks, from the example for the old URL in PagerDuty's documentation.
pub(crate) const PAGERDUTY: [&str; 17] = [
    "52.13.4.226",
    "54.176.87.101",
    "54.185.79.76",
    "54.201.209.177",
    "54.202.99.6",
    "54.212.55.143",
    "104.42.123.77",
    "50.18.129.59",
    "34.210.57.30",
    "34.210.242.134",
    "52.34.208.156",
    "34.202.21.89",
    "34.239.229.93",
    "34.231.45.166",
    "34.248.147.39",
    "54.77.228.115",
    "54.154.145.191",
];

/// Traffic from Workato, US data center.
const WORKATO: [&str; 3] = ["52.5.142.59", "34.226.132.221", "52.54.43.157"];

/// NAT addresses of Freshchat and Freddy Self-service, all regions.
const FRESHCHAT: [&str; 43] = [
    // US
    "52.1.37.96",
    "52.1.32.88",
    "18.208.240.77",
    "52.201.75.8",
    "34.231.139.135",
    "34.231.245.167",
    "44.206.73.232",
    "44.206.73.233",
    "44.206.73.234",
    "44.206.73.235",
    "44.206.73.236",
    "44.206.73.237",
    "44.206.73.238",
    "44.206.73.239",
    // EU
    "18.184.146.22",
    "18.197.127.133",
    "3.71.140.232",
    "52.29.254.13",
    "52.57.253.205",
    "18.194.170.216",
    "3.74.148.8",
    "3.74.148.9",
    "3.74.148.10",
    "3.74.148.11",
    // IN
    "13.232.152.211",
    "52.66.184.184",
    "35.154.161.243",
    "13.126.85.255",
    "13.234.127.182",
    "43.204.166.208",
    "43.204.166.209",
    "43.204.166.210",
    "43.204.166.211",
    // AU
    "3.105.197.171",
    "13.210.157.231",
    "54.206.10.178",
    "3.104.16.220",
    "13.238.97.24",
    "13.238.188.219",
    "3.26.254.196",
    "3.26.254.197",
    "3.26.254.198",
    "3.26.254.199",
];

/// The operator's own networks.
pub(crate) const OFFICE: [&str; 2] = ["203.0.113.0/24", "2001:db8:7::/48"];

/// Addresses of no source, and not adjacent to a source.
const STRANGERS: [&str; 2] = ["192.0.2.66", "2001:db8:bad::66"];

/// The port that is open to the vendors and the office.
pub(crate) const WEBHOOKS: Port = Port::Tcp(443);
/// The port that is open to the office.
pub(crate) const SSH: Port = Port::Tcp(22);
/// Ports that no service covers.
pub(crate) const UNPROTECTED: [Port; 2] = [Port::Tcp(8080), Port::Udp(9000)];

/// The destination port of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    Tcp(u16),
    Udp(u16),
}

/// The owner of an address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The address belongs to the source (a list of the configuration) of this name.
    Source(&'static str),
    /// The address belongs to no source, and is the first such address after a prefix of the source of this name.
    NextTo(&'static str),
    Unlisted,
}

/// A verdict with its reason.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) verdict: Verdict,
    pub(crate) reason: Reason,
}

/// One packet, or the first of one connection.
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) owner: Owner,
    pub(crate) port: Port,
    pub(crate) expected: Decision,
}

/// Returns all packets, with `pagerduty` as that vendor's prefixes.
pub(crate) fn packets(pagerduty: &[IpNet]) -> Vec<Packet> {
    let sources = [
        ("pagerduty", pagerduty.to_vec()),
        ("workato", networks(&WORKATO)),
        ("freshchat", networks(&FRESHCHAT)),
        ("office", networks(&OFFICE)),
    ];
    let senders = senders(&sources);
    let mut packets = Vec::new();
    for &(owner, source) in &senders {
        let expected = Decision::of_service(matches!(owner, Owner::Source(_)));
        packets.push(Packet {
            source,
            owner,
            port: WEBHOOKS,
            expected,
        });
    }
    let mut one_of_each = senders;
    one_of_each.dedup_by_key(|(owner, source)| (*owner, source.is_ipv4()));
    for (owner, source) in one_of_each {
        let expected = Decision::of_service(owner == Owner::Source("office"));
        packets.push(Packet {
            source,
            owner,
            port: SSH,
            expected,
        });
    }
    for source in STRANGERS.map(parsed) {
        for port in UNPROTECTED {
            let expected = Decision::DEFAULT;
            packets.push(Packet {
                source,
                owner: Owner::Unlisted,
                port,
                expected,
            });
        }
    }
    packets
}

/// Returns an address of each prefix and the first address after it that is in no prefix, ordered by source and owner.
fn senders(sources: &[(&'static str, Vec<IpNet>)]) -> Vec<(Owner, IpAddr)> {
    let taken: Vec<IpNet> = sources
        .iter()
        .flat_map(|(_, prefixes)| prefixes)
        .copied()
        .collect();
    let mut senders = Vec::new();
    for (name, prefixes) in sources {
        senders.extend(
            prefixes
                .iter()
                .map(|&prefix| (Owner::Source(name), member(prefix))),
        );
        // Adjacent addresses share the address after them, which is needed once.
        let after: BTreeSet<IpAddr> = prefixes
            .iter()
            .filter_map(|prefix| first_free_after(*prefix, &taken))
            .collect();
        senders.extend(
            after
                .into_iter()
                .map(|address| (Owner::NextTo(name), address)),
        );
    }
    senders
}

/// Returns an address of a prefix, but not the network address unless it is the only one.
fn member(prefix: IpNet) -> IpAddr {
    prefix.hosts().nth(6).unwrap_or(prefix.network())
}

/// Returns the first address after a prefix that is in no prefix of `taken`; `None` at the end of the address space.
fn first_free_after(prefix: IpNet, taken: &[IpNet]) -> Option<IpAddr> {
    let mut address = successor(prefix.broadcast())?;
    while let Some(holder) = taken.iter().find(|prefix| prefix.contains(&address)) {
        address = successor(holder.broadcast())?;
    }
    Some(address)
}

fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(Ipv4Addr::from(u32::from(address).checked_add(1)?).into()),
        IpAddr::V6(address) => Some(Ipv6Addr::from(u128::from(address).checked_add(1)?).into()),
    }
}

/// Parses constants as prefixes; an address is a prefix of full length.
pub(crate) fn networks(texts: &[&str]) -> Vec<IpNet> {
    texts
        .iter()
        .map(|text| text.parse().unwrap_or_else(|_| IpNet::from(parsed(text))))
        .collect()
}

fn parsed(text: &str) -> IpAddr {
    text.parse().expect("the constant is an address")
}

impl Decision {
    const ALLOWED: Self = Self {
        verdict: Verdict::Pass,
        reason: Reason::Allowed,
    };
    const NOT_ALLOWED: Self = Self {
        verdict: Verdict::Drop,
        reason: Reason::NotAllowed,
    };
    const DEFAULT: Self = Self {
        verdict: Verdict::Pass,
        reason: Reason::Default,
    };

    fn of_service(is_allowed: bool) -> Self {
        if is_allowed {
            Self::ALLOWED
        } else {
            Self::NOT_ALLOWED
        }
    }
}

impl Owner {
    /// Returns the name of the source that the address belongs to; `None` if it belongs to none.
    pub(crate) fn source(self) -> Option<&'static str> {
        match self {
            Self::Source(name) => Some(name),
            Self::NextTo(_) | Self::Unlisted => None,
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.verdict.name(), self.reason.name())
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(name) => out.write_str(name),
            Self::NextTo(name) => write!(out, "no source (next to {name})"),
            Self::Unlisted => out.write_str("no source"),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(out, "tcp/{port}"),
            Self::Udp(port) => write!(out, "udp/{port}"),
        }
    }
}
