//! The difference between two lists, in prefixes and in addresses.
//!
//! Lists are sorted and distinct, as in feeds, so that one pass over both suffices. Does not know sources.

use std::cmp::Ordering;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The difference between an old and a new list of prefixes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The prefixes that are only in the new list; sorted.
    pub added: Vec<IpNet>,
    /// The prefixes that are only in the old list; sorted.
    pub removed: Vec<IpNet>,
}

impl Difference {
    /// Returns the difference between the lists `old` and `new`. Both must be sorted and distinct.
    pub fn between(old: &[IpNet], new: &[IpNet]) -> Self {
        let mut difference = Self::default();
        let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (Some(old), Some(new)) => old.cmp(new),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return difference,
            };
            match order {
                Ordering::Less => difference.removed.extend(old.next()),
                Ordering::Greater => difference.added.extend(new.next()),
                Ordering::Equal => {
                    old.next();
                    new.next();
                }
            }
        }
    }

    /// Returns whether the two lists are equal.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

/// The first and the last address of a range, as integers.
type Range = (u128, u128);

/// Returns two numbers of addresses: how many the prefixes of `old` in one family cover, and how many of these `new`
/// does not cover.
///
/// Both lists must be sorted; `is_family` selects the family. For `::/0` the number is one too low (it saturates),
/// which does not matter to ratios.
pub fn lost(old: &[IpNet], new: &[IpNet], is_family: fn(&IpNet) -> bool) -> (u128, u128) {
    let (old, new) = (merged(old, is_family), merged(new, is_family));
    let mut new = new.into_iter().peekable();
    let (mut covered, mut kept) = (0u128, 0u128);
    for (first, last) in old {
        covered = covered.saturating_add((last - first).saturating_add(1));
        while new.next_if(|&(_, end)| end < first).is_some() {}
        // A range of `new` may extend into the next range of `old`, so it is peeked, not consumed.
        while let Some(&(start, end)) = new.peek() {
            if start > last {
                break;
            }
            let overlap = end.min(last) - start.max(first);
            kept = kept.saturating_add(overlap.saturating_add(1));
            if end > last {
                break;
            }
            new.next();
        }
    }
    (covered, covered - kept.min(covered))
}

/// Returns the number of addresses that the sorted `prefixes` cover in the family that `is_family` selects.
///
/// For `::/0` the number is one too low (it saturates), which does not matter to ratios.
pub fn covered(prefixes: &[IpNet], is_family: fn(&IpNet) -> bool) -> u128 {
    let mut covered = 0u128;
    let mut next = 0;
    for prefix in prefixes.iter().filter(|prefix| is_family(prefix)) {
        let (first, last) = range(prefix);
        let first = first.max(next);
        if first <= last {
            covered = covered.saturating_add((last - first).saturating_add(1));
            next = last.saturating_add(1);
        }
    }
    covered
}

/// Returns the first and the last address of `prefix`, as integers.
fn range(prefix: &IpNet) -> Range {
    match prefix {
        IpNet::V4(v4) => (
            u128::from(u32::from(v4.network())),
            u128::from(u32::from(v4.broadcast())),
        ),
        IpNet::V6(v6) => (u128::from(v6.network()), u128::from(v6.broadcast())),
    }
}

/// Returns the addresses of one family in the sorted `prefixes` as sorted, disjoint ranges; `is_family` selects the
/// family.
fn merged(prefixes: &[IpNet], is_family: fn(&IpNet) -> bool) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    // Sorted by first address, wider prefixes first.
    for prefix in prefixes.iter().filter(|prefix| is_family(prefix)) {
        let (first, last) = range(prefix);
        match ranges.last_mut() {
            Some((_, end)) if first <= *end => *end = last.max(*end),
            _ => ranges.push((first, last)),
        }
    }
    ranges
}

/// Returns whether the sorted `prefixes` together cover all addresses of `wanted`.
pub fn covers(prefixes: &[IpNet], wanted: IpNet) -> bool {
    let family: fn(&IpNet) -> bool = if wanted.addr().is_ipv4() {
        is_v4
    } else {
        is_v6
    };
    lost(&[wanted], prefixes, family).1 == 0
}

/// Returns whether `prefix` is an IPv4 prefix.
pub fn is_v4(prefix: &IpNet) -> bool {
    prefix.addr().is_ipv4()
}

/// Returns whether `prefix` is an IPv6 prefix.
pub fn is_v6(prefix: &IpNet) -> bool {
    prefix.addr().is_ipv6()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ipnet::Ipv4Net;
    use proptest::prelude::*;

    use super::*;

    fn list(text: &str) -> Vec<IpNet> {
        let mut list: Vec<IpNet> = text
            .split_whitespace()
            .map(|token| token.parse().expect("a prefix"))
            .collect();
        list.sort_unstable();
        list
    }

    #[test]
    fn lost_addresses_are_counted_by_family() {
        let cases = [
            ("10.0.0.0/24", "10.0.0.0/24", (256, 0)),
            ("10.0.0.0/24", "10.0.0.0/25", (256, 128)),
            ("10.0.0.0/24", "10.0.0.0/25 10.0.0.128/25", (256, 0)),
            ("10.0.0.0/24 10.0.0.0/25", "10.0.0.0/8", (256, 0)),
            ("10.0.0.0/24 10.0.2.0/24", "10.0.0.0/16", (512, 0)),
            ("10.0.0.0/24 10.0.2.0/24", "10.0.1.0/24", (512, 512)),
            ("10.0.0.0/24", "", (256, 256)),
            ("", "10.0.0.0/24", (0, 0)),
            ("10.0.0.0/24 2001:db8::/32", "10.0.0.0/24", (256, 0)),
        ];
        for (old, new, expected) in cases {
            assert_eq!(
                lost(&list(old), &list(new), is_v4),
                expected,
                "{old} | {new}"
            );
        }
        let v6 = list("2001:db8::/127 ::/0");
        assert_eq!(lost(&v6, &v6, is_v6), (u128::MAX, 0));
    }

    #[test]
    fn adjacent_prefixes_cover_a_wider_one() {
        for (prefixes, wanted, expected) in [
            ("10.0.0.0/25 10.0.0.128/25", "10.0.0.0/24", true),
            ("10.0.0.0/25 10.0.0.129/32", "10.0.0.0/24", false),
            ("0.0.0.0/0", "2001:db8::1/128", false),
            ("::/0", "2001:db8::1/128", true),
        ] {
            let wanted: IpNet = wanted.parse().expect("a prefix");
            assert_eq!(
                covers(&list(prefixes), wanted),
                expected,
                "{prefixes} {wanted}"
            );
        }
    }

    fn small() -> impl Strategy<Value = Vec<IpNet>> {
        let prefix = (any::<u8>(), 24..=32u8).prop_map(|(host, length)| {
            IpNet::V4(Ipv4Net::new_assert([10, 0, 0, host].into(), length).trunc())
        });
        prop::collection::btree_set(prefix, 0..12).prop_map(|set| set.into_iter().collect())
    }

    proptest! {
        #[test]
        fn agrees_with_sets(old in small(), new in small()) {
            let [o, n] = [&old, &new].map(|list| list.iter().copied().collect::<BTreeSet<_>>());
            let difference = Difference::between(&old, &new);
            prop_assert_eq!(&difference.added, &n.difference(&o).copied().collect::<Vec<_>>());
            prop_assert_eq!(&difference.removed, &o.difference(&n).copied().collect::<Vec<_>>());

            let [o, n] = [&old, &new].map(|list| {
                (0..=255u8)
                    .filter(|host| {
                        let address = std::net::IpAddr::from([10, 0, 0, *host]);
                        list.iter().any(|prefix| prefix.contains(&address))
                    })
                    .collect::<BTreeSet<_>>()
            });
            let expected = (o.len() as u128, o.difference(&n).count() as u128);
            prop_assert_eq!(lost(&old, &new, is_v4), expected);
            prop_assert_eq!(covered(&old, is_v4), expected.0);
        }
    }
}
