//! Lists that pass the gate, and what is said of those that do not.

use super::*;
use crate::difference::{is_v4, is_v6};
use crate::policy::{Http, Origin};

fn list(text: &str) -> Vec<IpNet> {
    let mut list: Vec<IpNet> = text
        .split_whitespace()
        .map(|token| crate::feed::parse_prefix(token).expect("a prefix"))
        .collect();
    list.sort_unstable();
    list
}

/// `count` addresses in a row from that one.
fn addresses(first: &str, count: u32) -> String {
    let first: std::net::Ipv4Addr = first.parse().expect("an address");
    let all = (0..count).map(|n| std::net::Ipv4Addr::from(u32::from(first) + n).to_string());
    all.collect::<Vec<_>>().join(" ")
}

fn source(change: impl FnOnce(&mut Gate)) -> Source {
    let url = "https://example.com/".parse().expect("a URL");
    let http = Http::new(vec![url], crate::policy::Format::Text);
    let mut source = Source::new("vendor", Origin::Http(http));
    change(&mut source.gate);
    source
}

#[track_caller]
fn check(change: impl FnOnce(&mut Gate), last: &str, new: &str, expected: &str) {
    let last = (!last.is_empty()).then(|| list(last));
    let before = last.as_deref().map(|last| before(last, last, &[]));
    let judged = judge(&source(change), before, &list(new), false);
    let said = judged.map_or_else(|refusal| refusal.to_string(), |()| "passes".to_owned());
    assert_eq!(said, expected, "{last:?} | {new}");
}

#[test]
fn numbers() {
    check(|_| {}, "", "8.8.8.8", "passes");
    check(
        |_| {},
        "",
        "",
        "has 0 prefixes, and at least 1 are expected; lower `min` if that is right",
    );
    check(|gate| gate.min = 2, "", "8.8.8.8 9.9.9.9", "passes");
    check(
        |gate| gate.min = 3,
        "",
        "8.8.8.8 9.9.9.9",
        "has 2 prefixes, and at least 3 are expected; lower `min` if that is right",
    );
    check(
        |gate| gate.max = Some(1),
        "",
        "8.8.8.8 9.9.9.9",
        "has 2 prefixes, and at most 1 are expected; raise `max` if that is right",
    );
}

#[test]
fn what_must_be_covered() {
    let demand = |text: &'static str| move |gate: &mut Gate| gate.must_cover = list(text);
    check(demand("8.8.8.8"), "", "8.8.8.0/24", "passes");
    check(
        demand("8.8.8.0/24"),
        "",
        "8.8.8.0/25 8.8.8.128/25",
        "passes",
    );
    check(
        demand("8.8.8.0/24 9.9.9.9"),
        "",
        "8.8.8.0/25 9.9.9.9",
        "does not cover 8.8.8.0/24, as `must_cover` demands; change `must_cover` if it need not",
    );
    check(
        demand("2600::1"),
        "",
        "8.8.8.8",
        "does not cover 2600::1/128, as `must_cover` demands; change `must_cover` if it need not",
    );
}

#[test]
fn widths() {
    check(|_| {}, "", "3.0.0.0/8 2600::/20", "passes");
    check(
        |_| {},
        "",
        "2.0.0.0/7",
        "has 2.0.0.0/7, which is wider than /8, as wide as a list is trusted with; if it is meant, set `min_prefix_len`",
    );
    check(
        |_| {},
        "",
        "2600::/19",
        "has 2600::/19, which is wider than /20, as wide as a list is trusted with; if it is meant, set `min_prefix_len`",
    );
    check(
        |gate| gate.min_prefix_len_v4 = 24,
        "",
        "8.8.0.0/16",
        "has 8.8.0.0/16, which is wider than /24, as wide as a list is trusted with; if it is meant, set `min_prefix_len`",
    );
}

#[test]
fn special_use() {
    let refused = |prefix: &str, block: &str, what: &str| {
        format!(
            "has {prefix}, of which {block} is {what} (RFC 6890), where no vendor calls from; if it is meant, set `allow_special_use = true`"
        )
    };
    for (prefix, block, what) in [
        ("10.1.2.3/32", "10.0.0.0/8", "private"),
        ("0.0.0.0/8", "0.0.0.0/8", "\"this network\""),
        (
            "100.64.0.0/10",
            "100.64.0.0/10",
            "shared by carriers' customers",
        ),
        (
            "100.0.0.0/8",
            "100.64.0.0/10",
            "shared by carriers' customers",
        ),
        ("127.0.0.1/32", "127.0.0.0/8", "loopback"),
        ("169.254.169.254/32", "169.254.0.0/16", "link-local"),
        ("172.31.255.255/32", "172.16.0.0/12", "private"),
        ("192.0.2.0/24", "192.0.2.0/24", "documentation"),
        ("192.168.0.0/16", "192.168.0.0/16", "private"),
        ("198.19.255.255/32", "198.18.0.0/15", "for benchmarks"),
        ("224.0.0.1/32", "224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "240.0.0.0/4", "reserved"),
        ("::1/128", "::/127", "unspecified or loopback"),
        ("2001:db8::/32", "2001:db8::/32", "documentation"),
        ("2002::/20", "2002::/16", "6to4"),
        ("fd00::1/128", "fc00::/7", "private"),
        ("fe80::1/128", "fe80::/10", "link-local"),
        ("ff02::1/128", "ff00::/8", "multicast"),
    ] {
        check(|_| {}, "", prefix, &refused(prefix, block, what));
        check(|gate| gate.allow_special_use = true, "", prefix, "passes");
    }
    // What words of a page and numbers of programs look like.
    for prefix in [
        "a::b/128",
        "10::30/128",
        "dead::beef/128",
        "4000::/20",
        "1fff:ffff::/32",
    ] {
        let refused = format!(
            "has {prefix}, which is not in 2000::/3, where all IPv6 addresses of the internet are; if it is meant, set `allow_special_use = true`"
        );
        check(|_| {}, "", prefix, &refused);
        check(|gate| gate.allow_special_use = true, "", prefix, "passes");
    }
    // Neighbours of those, and blocks that are somebody's.
    for prefix in [
        "9.255.255.255 11.0.0.0",
        "100.63.255.255 100.128.0.0",
        "172.15.255.255 172.32.0.0",
        "192.0.1.0 192.0.3.0",
        "198.17.255.255 198.20.0.0",
        "223.255.255.255",
        "2001:200::/32 2001:4860::/32 2003::/20 2600::/20",
    ] {
        check(|_| {}, "", prefix, "passes");
    }
}

#[test]
fn shrinking() {
    let ten = addresses("8.8.8.0", 10);
    let shrunk = |removed: usize, percent: u32, family: &str| {
        format!(
            "lists {removed} prefixes less, and with them {percent} % of the {family} addresses that it covered; more than 50 % at once is not believed; raise `max_shrink` if it is right"
        )
    };
    check(|_| {}, &ten, &addresses("8.8.8.0", 5), "passes");
    check(
        |_| {},
        &ten,
        &addresses("8.8.8.0", 4),
        &shrunk(6, 60, "IPv4"),
    );
    check(
        |gate| gate.max_shrink = 600,
        &ten,
        &addresses("8.8.8.0", 4),
        "passes",
    );
    check(|gate| gate.max_shrink = 1000, &ten, "9.9.9.9", "passes");
    // Few prefixes may go, however great a part they are.
    check(|_| {}, &addresses("8.8.8.0", 6), "8.8.8.0", "passes");
    check(
        |_| {},
        &addresses("8.8.8.0", 7),
        "8.8.8.0",
        &shrunk(6, 85, "IPv4"),
    );
    // In a long list those few may be nearly all of it.
    let long = format!("9.0.0.0/12 9.32.0.0/12 {}", addresses("8.8.8.0", 100));
    check(
        |_| {},
        &long,
        &addresses("8.8.8.0", 100),
        &shrunk(2, 99, "IPv4"),
    );
    // Another list in its place is as suspicious as none.
    check(
        |_| {},
        &ten,
        &addresses("9.9.9.0", 10),
        &shrunk(10, 100, "IPv4"),
    );
    // What is split or merged covers what it did.
    check(|_| {}, &addresses("8.8.8.0", 8), "8.8.8.0/29", "passes");
    check(
        |_| {},
        "8.8.8.0/29 8.8.9.0/24",
        &addresses("8.8.8.0", 8),
        "passes",
    );
    // A family that vanishes is not made up for by the other.
    let both =
        format!("{ten} 2600:1::/32 2600:2::/32 2600:3::/32 2600:4::/32 2600:5::/32 2600:6::/32");
    check(|_| {}, &both, &ten, &shrunk(6, 100, "IPv6"));
    // Growth is nobody's loss.
    check(|_| {}, &ten, &addresses("8.8.8.0", 250), "passes");
}

#[test]
fn the_operator_may_accept_a_size_and_nothing_else() {
    for (new, is_acceptable) in [
        ("8.8.8.8", true),
        ("10.0.0.0/8", false),
        ("a::b", false),
        ("2.0.0.0/7", false),
    ] {
        let source = source(|gate| gate.min = 2);
        let judged = judge(&source, None, &list(new), true);
        assert_eq!(judged.is_ok(), is_acceptable, "{new}");
        let refusal = judge(&source, None, &list(new), false).expect_err("is refused");
        assert_eq!(refusal.is_acceptable(), is_acceptable, "{new}");
    }
}

fn before<'l>(last: &'l [IpNet], earliest: &'l [IpNet], held: &'l [IpNet]) -> Before<'l> {
    let covered = |family: fn(&IpNet) -> bool| lost(last, &[], family).0;
    Before {
        last,
        earliest,
        held,
        settled: &[],
        fewest: PerFamily {
            v4: covered(is_v4),
            v6: covered(is_v6),
        },
    }
}

#[test]
fn sizes() {
    let all_of = |length: u8, count: u32| {
        let prefix = |n: u32| format!("{}/{length}", std::net::Ipv4Addr::from(n << (32 - length)));
        (32..32 + count).map(prefix).collect::<Vec<_>>().join(" ")
    };
    check(|_| {}, "", &all_of(8, 5), "passes");
    check(
        |_| {},
        "",
        &all_of(8, 6),
        "covers 100663296 IPv4 addresses (2.34 % of IPv4), and at most 85899345 IPv4 addresses (2.00 % of IPv4) are expected; raise `max_addresses` if that is right",
    );
    // Overlaps count once, and each family has its own limit.
    check(
        |_| {},
        "",
        "32.0.0.0/8 32.0.0.0/9 32.1.0.0/16 2600::/20",
        "passes",
    );
    check(
        |gate| gate.max_addresses.v6 = 1 << 108,
        "",
        "32.0.0.0/8 2600::/20 2610::/20",
        "covers 536870912 IPv6 /48s, and at most 268435456 IPv6 /48s are expected; raise `max_addresses` if that is right",
    );
    let few = |gate: &mut Gate| gate.max_addresses.v4 = 10;
    check(few, "", &addresses("8.8.8.0", 10), "passes");
    check(
        few,
        "",
        &addresses("8.8.8.0", 11),
        "covers 11 IPv4 addresses, and at most 10 IPv4 addresses are expected; raise `max_addresses` if that is right",
    );
    // A list that adds nothing is no reason to keep a larger one.
    check(
        few,
        &addresses("8.8.8.0", 20),
        &addresses("8.8.8.0", 19),
        "passes",
    );
}

#[test]
fn growing() {
    let grown = |grown: &str, before: &str, limit: &str| {
        format!(
            "covers {grown} that it did not cover, in addition to {before}; more than {limit} at once is not accepted; raise `max_growth` if it is right"
        )
    };
    check(|_| {}, "32.0.0.0/16", "32.0.0.0/15", "passes");
    check(
        |_| {},
        "32.0.0.0/16",
        "32.0.0.0/15 40.0.0.0/32",
        &grown(
            "65537 IPv4 addresses",
            "65536 IPv4 addresses",
            "65536 IPv4 addresses",
        ),
    );
    check(
        |gate| gate.max_growth = 3000,
        "32.0.0.0/16",
        "32.0.0.0/14",
        "passes",
    );
    // One prefix is replaced by one prefix.
    check(
        |_| {},
        "32.0.0.0/24",
        "32.0.0.0/8",
        &grown(
            "16776960 IPv4 addresses (0.39 % of IPv4)",
            "256 IPv4 addresses",
            "4096 IPv4 addresses",
        ),
    );
    // Small lists grow by great parts, and addresses that were covered are no growth.
    check(|_| {}, "8.8.8.8", "8.8.8.8 32.0.0.0/20", "passes");
    check(|_| {}, "32.0.0.0/8", &addresses("32.0.0.0", 200), "passes");
    check(|_| {}, "8.8.8.8", "8.8.8.8 2600::/28", "passes");
    check(
        |_| {},
        "8.8.8.8",
        "8.8.8.8 2600::/27",
        &grown("2097152 IPv6 /48s", "0 IPv6 addresses", "1048576 IPv6 /48s"),
    );
}

#[test]
fn a_change_is_judged_against_the_start_of_the_window_too() {
    let source = source(|_| {});
    let (last, earliest) = (list("32.0.0.0/15"), list("32.0.0.0/16"));
    let judged = judge(
        &source,
        Some(before(&last, &earliest, &[])),
        &list("32.0.0.0/14"),
        false,
    );
    let expected = Refusal::Grown {
        grown: Amount {
            family: Family::V4,
            addresses: 3 << 16,
        },
        before: Amount {
            family: Family::V4,
            addresses: 1 << 16,
        },
        limit: Amount {
            family: Family::V4,
            addresses: 1 << 16,
        },
        within: Within::Window(Gate::GROWTH_WINDOW),
    };
    assert_eq!(judged, Err(expected.clone()));
    assert!(
        expected.to_string().contains(" within 7days "),
        "{expected}"
    );
    // A prefix in its grace period counts.
    let held = list("48.0.0.0/16");
    let new = list("32.0.0.0/16 56.0.0.0/32");
    let judged = judge(
        &source,
        Some(before(&earliest, &earliest, &held)),
        &new,
        false,
    );
    assert!(matches!(judged, Err(Refusal::Grown { .. })), "{judged:?}");
    let judged = judge(
        &source,
        Some(before(&earliest, &earliest, &[])),
        &new,
        false,
    );
    assert_eq!(judged, Ok(()));
    let (last, earliest) = (
        list(&addresses("8.8.8.0", 6)),
        list(&addresses("8.8.8.0", 10)),
    );
    let judged = judge(
        &source,
        Some(before(&last, &earliest, &[])),
        &list("8.8.8.0 8.8.8.1"),
        false,
    );
    assert!(
        matches!(
            judged,
            Err(Refusal::Shrunk {
                within: Within::Window(_),
                ..
            })
        ),
        "{judged:?}"
    );
    // The first list of all has nothing to grow from. An empty list is one from which the next must not grow much.
    let first = list("32.0.0.0/8");
    assert_eq!(judge(&source, None, &first, false), Ok(()));
    let emptied = Some(before(&[], &[], &[]));
    let judged = judge(&source, emptied, &first, false);
    assert!(matches!(judged, Err(Refusal::Grown { .. })), "{judged:?}");
    assert_eq!(judge(&source, emptied, &list("32.0.0.0/20"), false), Ok(()));
}

#[test]
fn a_list_grows_from_the_fewest_active_addresses_of_the_window() {
    let source = source(|_| {});
    let all = list("32.0.0.0/15");
    let fewest = PerFamily { v4: 1 << 16, v6: 0 };
    let before = Before {
        fewest,
        ..before(&all, &all, &[])
    };
    let judged = judge(&source, Some(before), &list("32.0.0.0/15 8.8.8.8"), false);
    let amount = |addresses| Amount {
        family: Family::V4,
        addresses,
    };
    let expected = Refusal::Regrown {
        next: amount((1 << 17) + 1),
        fewest: amount(1 << 16),
        limit: amount(1 << 16),
        window: Gate::GROWTH_WINDOW,
    };
    assert_eq!(judged, Err(expected.clone()));
    assert!(expected.is_acceptable());
    assert_eq!(
        judge(&source, Some(before), &list("32.0.0.0/16"), false),
        Ok(())
    );
}

#[test]
fn a_prefix_that_left_before_the_window_is_no_growth() {
    let source = source(|_| {});
    let (last, held) = (list("32.0.0.0/16"), list("48.0.0.0/15"));
    let before = Before {
        fewest: PerFamily { v4: 3 << 16, v6: 0 },
        ..before(&last, &last, &held)
    };
    let new = list("32.0.0.0/16 8.8.8.8");
    let judged = judge(&source, Some(before), &new, false);
    assert!(matches!(judged, Err(Refusal::Grown { .. })), "{judged:?}");
    let settled = Before {
        settled: &held,
        ..before
    };
    assert_eq!(judge(&source, Some(settled), &new, false), Ok(()));
}

#[test]
fn a_family_that_vanishes_is_no_small_loss() {
    // A list of one prefix has another one.
    check(|_| {}, "8.8.8.8", "2600::1", "passes");
    check(
        |_| {},
        "8.8.8.8 2600::/32",
        "8.8.8.8",
        "lists 1 prefixes less, and with them 100 % of the IPv6 addresses that it covered; more than 50 % at once is not believed; raise `max_shrink` if it is right",
    );
    check(
        |gate| gate.max_shrink = 1000,
        "8.8.8.8 2600::/32",
        "8.8.8.8",
        "passes",
    );
    check(
        |_| {},
        "8.8.8.8 2600::/32 2601::/32",
        "8.8.8.8 2601::/32",
        "passes",
    );
}

#[test]
fn a_great_part_of_a_family_is_noted_unless_the_catalogue_states_it() {
    let wide = list("32.0.0.0/7");
    assert_eq!(notes(&source(|_| {}), &wide), [""; 0]);
    let wide = list("32.0.0.0/6");
    let noted = notes(&source(|_| {}), &wide);
    assert!(
        noted[0].starts_with("covers 67108864 IPv4 addresses (1.56 % of IPv4)"),
        "{noted:?}"
    );
    assert_eq!(
        without_notes([noted, vec!["else".to_owned()]].concat()),
        ["else"]
    );
    let aws = crate::catalogue::find("aws").expect("is in the catalogue");
    let parameters = [("service".to_owned(), "AMAZON".to_owned())].into();
    let aws = crate::config::provided("aws", aws, &[], &parameters).expect("is a source");
    assert_eq!(notes(&aws, &wide), [""; 0]);
}
