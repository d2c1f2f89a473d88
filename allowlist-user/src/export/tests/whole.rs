//! Each format admits exactly the listed addresses, for lists of any size.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Exports a million prefixes, no two of which merge, in all formats.
#[test]
fn exports_a_million_prefixes() {
    let many = apart(1_000_000);
    for format in Format::ALL {
        let result = export_one(format, "a", &many);
        assert_eq!(result.is_err(), format == Format::AwsSecurityGroup);
    }
}

/// Whether the range is IPv6, its first and its last address.
type Range = (bool, u128, u128);

/// The formats that repeat prefixes, or that do not merge them.
const REPEATS: [Format; 3] = [Format::Plain, Format::Json, Format::MysqlGrant];

/// Returns the merged ranges, sorted and not adjacent.
fn ranges(prefixes: impl IntoIterator<Item = IpNet>) -> Vec<Range> {
    let range = |prefix: IpNet| match prefix {
        IpNet::V4(v4) => (
            false,
            v4.network().to_bits().into(),
            v4.broadcast().to_bits().into(),
        ),
        IpNet::V6(v6) => (true, v6.network().to_bits(), v6.broadcast().to_bits()),
    };
    let sorted: BTreeSet<Range> = prefixes.into_iter().map(range).collect();
    let mut merged = Vec::<Range>::new();
    for (family, first, last) in sorted {
        match merged.last_mut() {
            Some(before) if before.0 == family && first <= before.2.saturating_add(1) => {
                before.2 = before.2.max(last);
            }
            _ => merged.push((family, first, last)),
        }
    }
    merged
}

/// Returns all addresses and prefixes in a text without its comments.
fn found(text: &str) -> Vec<IpNet> {
    let is_between = |c: char| !c.is_ascii_hexdigit() && !".:/".contains(c);
    let text = without_comments(text);
    let tokens = text.split(is_between);
    tokens.filter_map(found_prefix).collect()
}

fn found_prefix(token: &str) -> Option<IpNet> {
    if let Some((address, mask)) = token.split_once('/')
        && let Ok(mask) = mask.parse::<IpAddr>()
    {
        return IpNet::with_netmask(address.parse().ok()?, mask).ok();
    }
    let address = token.parse::<IpAddr>().map(IpNet::from);
    address.ok().or_else(|| token.parse().ok())
}

/// Generates prefixes of few addresses and at the ends of the address space, so that they overlap.
fn any_prefix() -> impl Strategy<Value = IpNet> {
    let address = prop_oneof![0_u32..64, (u32::MAX - 64)..=u32::MAX, any::<u32>()];
    let wide = prop_oneof![0_u128..64, (u128::MAX - 64)..=u128::MAX, any::<u128>()];
    let v4 = (address, prop_oneof![0_u8..=2, 24_u8..=32])
        .prop_map(|(bits, length)| IpNet::new_assert(Ipv4Addr::from_bits(bits).into(), length));
    let v6 = (wide, prop_oneof![0_u8..=2, 120_u8..=128])
        .prop_map(|(bits, length)| IpNet::new_assert(Ipv6Addr::from_bits(bits).into(), length));
    prop_oneof![v4, v6]
}

proptest! {
    #[test]
    fn exactly_the_listed_addresses_are_admitted(
        prefixes in vec(any_prefix(), 1..24),
        cut in 0_usize..24,
    ) {
        let (first, second) = prefixes.split_at(cut.min(prefixes.len()));
        let lists = [("a", first), ("b", second)].map(|(source, prefixes)| Listed {
            source,
            origin: "the configuration",
            prefixes,
        });
        let merged = ranges(prefixes.iter().copied());
        for format in Format::ALL {
            let text = match export(format, &options("allowlist"), &lists) {
                Ok(text) => text,
                Err(ExportError::NoHost { .. }) => continue,
                Err(error) => panic!("{format}: {error}"),
            };
            let admitted = found(&text);
            if !REPEATS.contains(&format) {
                let overlaps = |pair: &[IpNet]| pair[0].contains(&pair[1]) || pair[1].contains(&pair[0]);
                let mut sorted = admitted.clone();
                sorted.sort_unstable();
                prop_assert!(!sorted.windows(2).any(overlaps), "{}", text);
            }
            let admitted = ranges(admitted);
            if format == Format::MysqlGrant {
                let v4 = |ranges: &[Range]| ranges.iter().filter(|range| !range.0).copied().collect::<Vec<_>>();
                prop_assert_eq!(v4(&admitted), v4(&merged), "{}", text);
                let is_listed = |range: &Range| {
                    merged.iter().any(|listed| listed.0 == range.0 && listed.1 <= range.1 && range.2 <= listed.2)
                };
                prop_assert!(admitted.iter().all(is_listed), "{}", text);
                let is_single = |range: &&Range| range.1 == range.2;
                prop_assert!(merged.iter().filter(is_single).all(|range| admitted.contains(range)), "{}", text);
            } else {
                prop_assert_eq!(&admitted, &merged, "{}", text);
            }
        }
    }
}
