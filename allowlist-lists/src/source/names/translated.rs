//! IPv6 addresses that stand for IPv4 addresses, as a DNS64 server synthesises them (RFC 6147).
//!
//! Recognises the well-known prefixes, and the prefixes of this host's network (RFC 7050) if their length is /96; other
//! lengths are rare.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_resolver::proto::rr::{Name, RecordType};
use ipnet::{IpNet, Ipv6Net};
use tokio::time::Instant;

use super::query::{Server, query};

/// The well-known prefixes of IPv6 addresses that stand for IPv4 addresses (RFC 6052 and RFC 8215).
const WELL_KNOWN: [Ipv6Net; 2] = [
    Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96),
    Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
];
/// A name that has only A records (RFC 7050): AAAA records for it come from a DNS64 server, and show its prefix.
const PROBE: &str = "ipv4only.arpa.";
const PROBED: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];
const LENGTH: u8 = 96;

pub(super) fn is_well_known(prefix: &IpNet) -> bool {
    WELL_KNOWN.iter().any(|known| is_within(prefix, known))
}

pub(super) fn is_within(prefix: &IpNet, wider: &Ipv6Net) -> bool {
    matches!(prefix, IpNet::V6(prefix) if wider.contains(prefix))
}

/// Returns whether the last 32 bits of an address in `v6` are an address in `v4`, as in addresses that a DNS64 server
/// synthesises.
pub(super) fn is_suspect(v4: &BTreeSet<IpNet>, v6: &BTreeSet<IpNet>) -> bool {
    let ends = v6.iter().filter_map(|prefix| match prefix {
        IpNet::V6(prefix) => Some(end(prefix.addr())),
        IpNet::V4(_) => None,
    });
    ends.into_iter()
        .any(|end| v4.contains(&IpNet::new_assert(end.into(), 32)))
}

/// Returns the prefixes that this network's DNS64 server puts before IPv4 addresses; empty if the network has none, or
/// if the query fails.
pub(super) async fn discover(servers: &[Server], deadline: Instant) -> Vec<Ipv6Net> {
    let name = Name::from_ascii(PROBE).expect("it is a name");
    let Ok(found) = query(servers, PROBE, name, RecordType::AAAA, deadline).await else {
        return Vec::new();
    };
    let mut translators: Vec<_> = found
        .prefixes
        .iter()
        .filter_map(|prefix| match prefix {
            IpNet::V6(prefix) if PROBED.contains(&end(prefix.addr())) => {
                Some(Ipv6Net::new_assert(prefix.addr(), LENGTH).trunc())
            }
            _ => None,
        })
        .collect();
    translators.dedup();
    translators
}

/// Returns the last 32 bits of `address` as an IPv4 address.
fn end(address: Ipv6Addr) -> Ipv4Addr {
    Ipv4Addr::from(u128::from(address) as u32)
}
