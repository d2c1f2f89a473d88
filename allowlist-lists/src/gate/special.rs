//! Addresses that are not used as source addresses on the internet.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Returns the special-purpose block that `prefix` overlaps and the purpose of the block, or `None` if there is none.
pub(super) fn special_use(prefix: IpNet) -> Option<(IpNet, &'static str)> {
    let meets = |block: &IpNet| block.contains(&prefix) || prefix.contains(block);
    match prefix {
        IpNet::V4(_) => V4
            .iter()
            .map(|&(address, length, what)| {
                let block = Ipv4Net::new_assert(Ipv4Addr::from(address), length);
                (IpNet::V4(block), what)
            })
            .find(|(block, _)| meets(block)),
        IpNet::V6(_) => V6
            .iter()
            .map(|&(address, length, what)| {
                let block = Ipv6Net::new_assert(Ipv6Addr::from(address), length);
                (IpNet::V6(block), what)
            })
            .find(|(block, _)| meets(block)),
    }
}

/// Returns whether `prefix` is IPv4, or lies in `2000::/3`, the only block that IANA allocates from.
pub(super) fn is_global_unicast(prefix: IpNet) -> bool {
    match prefix {
        IpNet::V4(_) => true,
        IpNet::V6(prefix) => prefix.prefix_len() >= 3 && prefix.network().segments()[0] >> 13 == 1,
    }
}

/// The special-purpose blocks of IPv4: first address, prefix length and purpose.
///
/// These are the blocks that IANA's registry of special-purpose addresses (RFC 6890) lists as not globally reachable,
/// those that embed any IPv4 address, and multicast, which is never a source address.
const V4: &[([u8; 4], u8, &str)] = &[
    ([0, 0, 0, 0], 8, "\"this network\""),
    ([10, 0, 0, 0], 8, "private"),
    ([100, 64, 0, 0], 10, "carrier-grade NAT"),
    ([127, 0, 0, 0], 8, "loopback"),
    ([169, 254, 0, 0], 16, "link-local"),
    ([172, 16, 0, 0], 12, "private"),
    ([192, 0, 0, 0], 24, "IETF protocols"),
    ([192, 0, 2, 0], 24, "documentation"),
    ([192, 88, 99, 0], 24, "6to4 relay, retired"),
    ([192, 168, 0, 0], 16, "private"),
    ([198, 18, 0, 0], 15, "benchmarking"),
    ([198, 51, 100, 0], 24, "documentation"),
    ([203, 0, 113, 0], 24, "documentation"),
    ([224, 0, 0, 0], 4, "multicast"),
    ([240, 0, 0, 0], 4, "reserved"),
];

/// The special-purpose blocks of IPv6: first address, prefix length and purpose.
const V6: &[([u16; 8], u8, &str)] = &[
    ([0, 0, 0, 0, 0, 0, 0, 0], 127, "unspecified or loopback"),
    ([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, "IPv4-mapped"),
    ([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, "NAT64"),
    ([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, "NAT64"),
    ([0x100, 0, 0, 0, 0, 0, 0, 0], 64, "discard-only"),
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, "Teredo"),
    ([0x2001, 2, 0, 0, 0, 0, 0, 0], 48, "benchmarking"),
    ([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28, "ORCHID, retired"),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, "documentation"),
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, "6to4"),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, "documentation"),
    ([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, "SRv6 SIDs"),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, "private"),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link-local"),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast"),
];
