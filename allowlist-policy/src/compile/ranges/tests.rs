//! The range table against a direct model: the longest prefix that contains an address.

use allowlist_common::ranges::v4::{SmallChunk, find as find_v4};
use allowlist_common::ranges::v6::find as find_v6;
use proptest::collection::btree_map;
use proptest::prelude::*;

use super::*;

fn id_v4(table: &RangeTable, address: u32) -> MatchId {
    find_v4(table.v4[root_v4(address)], address, &Words(&table.pool))
}

fn id_v6(table: &RangeTable, address: u128) -> MatchId {
    let halves = [(address >> 64) as u64, address as u64];
    find_v6(table.v6[root_v6(halves[0])], halves, &Words(&table.pool))
}

fn longest<P: Prefix>(prefixes: &[(P, Grant)], address: P::Address) -> MatchId {
    let holding = prefixes
        .iter()
        .filter(|(prefix, _)| prefix.first() <= address && address <= prefix.last());
    // The prefixes that contain an address are sorted by length.
    holding
        .last()
        .map_or(0, |(_, grant)| grant.match_id as MatchId)
}

/// Returns the addresses at the bounds of a prefix, on both sides.
fn around(first: u128, last: u128, max: u128) -> impl Iterator<Item = u128> {
    [
        first,
        first.wrapping_sub(1) & max,
        last,
        last.wrapping_add(1) & max,
        first | 1,
        last & !1,
    ]
    .into_iter()
}

fn check_v4(table: &RangeTable, prefixes: &[(Ipv4Net, Grant)], more: &[u32]) {
    let ends = prefixes.iter().flat_map(|(prefix, _)| {
        let max = u32::MAX.into();
        around(prefix.first().into(), prefix.last().into(), max).map(|address| address as u32)
    });
    for address in ends.chain(more.iter().copied()).chain([0, u32::MAX]) {
        let shown = std::net::Ipv4Addr::from(address);
        assert_eq!(id_v4(table, address), longest(prefixes, address), "{shown}");
    }
}

fn check_v6(table: &RangeTable, prefixes: &[(Ipv6Net, Grant)], more: &[u128]) {
    let ends = prefixes
        .iter()
        .flat_map(|(prefix, _)| around(prefix.first(), prefix.last(), u128::MAX));
    for address in ends.chain(more.iter().copied()).chain([0, u128::MAX]) {
        let shown = std::net::Ipv6Addr::from(address);
        assert_eq!(id_v6(table, address), longest(prefixes, address), "{shown}");
    }
}

/// Generates addresses that are often close to each other, so that prefixes are often nested, in one chunk or network.
fn close_v4() -> impl Strategy<Value = u32> {
    (
        prop_oneof![Just(0_u32), Just(0x0a01_0000), Just(u32::MAX), any::<u32>()],
        0..33_u32,
        any::<u32>(),
    )
        .prop_map(|(base, kept, other)| {
            let differs = u32::MAX.checked_shr(kept).unwrap_or(0);
            base & !differs | other & differs
        })
}

fn close_v6() -> impl Strategy<Value = u128> {
    let network: u128 = 0x2001_0db8_0000_0007 << 64;
    (
        prop_oneof![
            Just(0),
            Just(network),
            Just(network - 1),
            Just(u128::MAX),
            any::<u128>()
        ],
        0..129_u32,
        any::<u128>(),
    )
        .prop_map(|(base, kept, other)| {
            let differs = u128::MAX.checked_shr(kept).unwrap_or(0);
            base & !differs | other & differs
        })
}

fn grant(id: u8) -> Grant {
    Grant::new(1 << (id % 64), u32::from(id) + 1)
}

fn prefixes_v4() -> impl Strategy<Value = Vec<(Ipv4Net, Grant)>> {
    let prefix = (close_v4(), 0..=32_u8)
        .prop_map(|(address, length)| Ipv4Net::new_assert(address.into(), length).trunc());
    btree_map(prefix, (0..4_u8).prop_map(grant), 0..40).prop_map(|map| map.into_iter().collect())
}

fn prefixes_v6() -> impl Strategy<Value = Vec<(Ipv6Net, Grant)>> {
    let prefix = (close_v6(), 0..=128_u8)
        .prop_map(|(address, length)| Ipv6Net::new_assert(address.into(), length).trunc());
    btree_map(prefix, (0..4_u8).prop_map(grant), 0..40).prop_map(|map| map.into_iter().collect())
}

proptest! {
    #[test]
    fn the_longest_prefix_wins(
        v4 in prefixes_v4(),
        v6 in prefixes_v6(),
        more_v4 in proptest::collection::vec(close_v4(), 20),
        more_v6 in proptest::collection::vec(close_v6(), 20),
    ) {
        let table = RangeTable::of(&v4, &v6);
        check_v4(&table, &v4, &more_v4);
        check_v6(&table, &v6, &more_v6);
        for grant in v4.iter().map(|entry| entry.1).chain(v6.iter().map(|entry| entry.1)) {
            prop_assert_eq!(table.reach[grant.match_id as usize], grant.services());
        }
    }

    /// A table with an appended part gives the ids of the table that is compiled from the changed prefixes.
    #[test]
    fn an_appended_part_equals_a_full_build(
        before in prefixes_v4(),
        before_v6 in prefixes_v6(),
        after in prefixes_v4(),
        after_v6 in prefixes_v6(),
    ) {
        let mut table = RangeTable::of(&before, &before_v6);
        let whole = RangeTable::of(&after, &after_v6);
        let mut changed: Vec<u32> = before.iter().chain(&after).flat_map(|(prefix, _)| [prefix.first(), prefix.last()]).collect();
        changed.sort_unstable();
        for address in changed {
            let part = part_v4(&after, address, table.pool.len());
            table.v4[root_v4(address)] = part.root;
            table.pool.extend(part.words);
            for address in [address, address ^ 1, address ^ 0x8000] {
                prop_assert_eq!(id_v4(&table, address), id_v4(&whole, address));
            }
        }
        for (prefix, _) in before_v6.iter().chain(&after_v6) {
            for address in [prefix.first(), prefix.last()] {
                let part = part_v6(&after_v6, address, table.pool.len());
                table.v6[root_v6((address >> 64) as u64)] = part.root;
                table.pool.extend(part.words);
                for address in [address, address ^ 1, address ^ 1 << 63, address ^ 1 << 64, address ^ 1 << 90] {
                    prop_assert_eq!(id_v6(&table, address), id_v6(&whole, address));
                }
            }
        }
    }
}

/// The fullest chunk, and a single prefix.
#[test]
fn extremes() {
    let small_chunk = size_of::<SmallChunk>() / size_of::<u64>();
    let every_one: Vec<(Ipv4Net, Grant)> = (0..0x1_0000_u32)
        .map(|low| {
            let prefix = Ipv4Net::new_assert((0x0a01_0000 | low).into(), 32);
            (prefix, grant((low % 3) as u8))
        })
        .collect();
    let all = [(Ipv6Net::new_assert(0.into(), 0), grant(0))];
    let table = RangeTable::of(&every_one, &all);
    for (prefix, grant) in &every_one {
        let id = id_v4(&table, prefix.first());
        assert_eq!(u32::from(id), grant.match_id, "{prefix}");
    }
    assert_eq!(
        (id_v4(&table, 0x0a00_ffff), id_v4(&table, 0x0a02_0000)),
        (0, 0)
    );
    check_v6(&table, &all, &[1, 1 << 127]);
    assert_eq!(table.pool.len(), small_chunk + (1 << 15));

    let everybody = [(Ipv4Net::new_assert(0.into(), 0), grant(0))];
    let table = RangeTable::of(&everybody, &[]);
    check_v4(&table, &everybody, &[1 << 31]);
    check_v6(&table, &[], &[1, 1 << 127]);
    assert_eq!(table.pool.len(), small_chunk);
}

/// So many ranges in one entry of the root that nodes are nested and some networks have host levels.
#[test]
fn nested_nodes_and_host_levels() {
    let network = 0x2001_0db8_u128 << 96;
    let every_third: Vec<(Ipv6Net, Grant)> = (0..20_000_u128)
        .map(|number| {
            let length = if number % 5 == 0 { 128 } else { 64 };
            let prefix = Ipv6Net::new_assert((network + ((3 * number) << 64)).into(), length);
            (prefix, grant((number % 3) as u8))
        })
        .collect();
    let table = RangeTable::of(&[], &every_third);
    let check = |address: u128, expected: MatchId| {
        let shown = std::net::Ipv6Addr::from(address);
        assert_eq!(id_v6(&table, address), expected, "{shown}");
    };
    for (prefix, grant) in &every_third {
        check(prefix.first(), grant.match_id as MatchId);
        check(prefix.last(), grant.match_id as MatchId);
        for beside in [
            prefix.first() - 1,
            prefix.last() + 1,
            prefix.last() + (1 << 64),
        ] {
            check(beside, 0);
        }
    }
}

/// Ranges at decreasing distances, so that one slot of each index contains nearly all ranges: the deepest nesting of
/// nodes. At both ends of the address space, and with both ends of a chunk.
#[test]
fn ranges_at_decreasing_distances() {
    let mut prefixes = std::collections::BTreeMap::new();
    for (number, base) in [0, u128::MAX, 0x2001_0db8_u128 << 96, 0x2001_u128 << 112]
        .into_iter()
        .enumerate()
    {
        for bit in 0..112 {
            for distance in [1_u128 << bit, 3 << bit] {
                for address in [base ^ distance, base.wrapping_add(distance)] {
                    let length = if bit < 64 { 128 } else { 64 };
                    let prefix = Ipv6Net::new_assert(address.into(), length).trunc();
                    prefixes.insert(prefix, grant((bit + number) as u8 % 5));
                }
            }
        }
    }
    let prefixes: Vec<_> = prefixes.into_iter().collect();
    let table = RangeTable::of(&[], &prefixes);
    check_v6(&table, &prefixes, &[]);
}

/// Chunks of each length at which the lookup changes, and of the neighbouring lengths.
#[test]
fn lengths_of_chunks() {
    for count in (0..12).chain([20, 100]) {
        let v4: Vec<(Ipv4Net, Grant)> = (0..count)
            .map(|number| {
                let prefix = Ipv4Net::new_assert((0x0a01_0007 + 3 * number).into(), 32);
                (prefix, grant(number as u8 % 5))
            })
            .collect();
        let hosts = |network: u128| {
            (0..count).map(move |number| {
                let address = network << 64 | u128::from(7 + 3 * number);
                (
                    Ipv6Net::new_assert(address.into(), 128),
                    grant(number as u8 % 5),
                )
            })
        };
        let networks = |network: u128| {
            (0..count).map(move |number| {
                let address = (network + u128::from(7 + 3 * number)) << 64;
                (
                    Ipv6Net::new_assert(address.into(), 64),
                    grant(number as u8 % 5),
                )
            })
        };
        let v6: Vec<_> = hosts(0x2001_0db8_0000_0000)
            .chain(networks(0x2001_0db8_0000_0000))
            .chain(networks(0x2002_0000_0000_0000))
            .chain(hosts(0xffff_ffff_ffff_ffff))
            .collect();
        let table = RangeTable::of(&v4, &v6);
        check_v4(&table, &v4, &[]);
        check_v6(&table, &v6, &[]);
    }
}

/// The deepest nesting of nodes: each resolves 4 bits, and one slot contains all ranges but one.
#[test]
fn deepest_nodes() {
    let few = [1, 3, 5, 7, 9, 11, 13, 14].into_iter();
    let networks = few.chain((7..48).step_by(4).map(|bit| 1 << bit));
    let prefixes: Vec<(Ipv6Net, Grant)> = networks
        .zip(0..)
        .map(|(network, number): (u128, u8)| {
            let address = 0x2001_u128 << 112 | network << 64;
            (Ipv6Net::new_assert(address.into(), 64), grant(number % 5))
        })
        .collect();
    let table = RangeTable::of(&[], &prefixes);
    check_v6(&table, &prefixes, &[]);
}
