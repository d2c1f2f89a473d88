//! Lists that pass the gate, and the rejections of other lists.

use allowlist_policy::difference::{is_v4, is_v6};
use allowlist_policy::{Http, Origin};
use expect_test::{ExpectFile, expect_file};

use super::*;
use crate::feed::tests::answers::{Answers, variant};

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
    let http = Http::new(vec![url], allowlist_policy::Format::Text);
    let mut source = Source::new("vendor", Origin::Http(http));
    change(&mut source.gate);
    source
}

/// The lists of a test with the gate's decisions, and the texts of the rejections.
#[derive(Default)]
struct Table(Answers);

impl Table {
    /// Judges the list `new` after the list `last`; `expected` is "passes" or the kind of the refusal.
    #[track_caller]
    fn check(&mut self, change: impl FnOnce(&mut Gate), last: &str, new: &str, expected: &str) {
        let previous = (!last.is_empty()).then(|| list(last));
        let before = previous.as_deref().map(|list| before(list, list, &[]));
        let rejection = judge(&source(change), before, &list(new), false).err();
        let answer = rejection
            .as_ref()
            .map_or_else(|| "passes".to_owned(), variant);
        assert_eq!(answer, expected, "{last} | {new}");
        let input = match last {
            "" => new.to_owned(),
            last => format!("{new} after {last}"),
        };
        self.0
            .add(&input, rejection.map(|rejection| rejection.to_string()));
    }

    fn end(&self, file: &ExpectFile) {
        self.0.check(file);
    }
}

#[test]
fn numbers() {
    let mut table = Table::default();
    table.check(|_| {}, "", "8.8.8.8", "passes");
    table.check(|_| {}, "", "", "TooFew");
    table.check(|gate| gate.min = 2, "", "8.8.8.8 9.9.9.9", "passes");
    table.check(|gate| gate.min = 3, "", "8.8.8.8 9.9.9.9", "TooFew");
    table.check(|gate| gate.max = Some(1), "", "8.8.8.8 9.9.9.9", "TooMany");
    table.end(&expect_file!["snapshots/numbers.txt"]);
}

#[test]
fn must_cover() {
    let mut table = Table::default();
    let demand = |text: &'static str| move |gate: &mut Gate| gate.must_cover = list(text);
    table.check(demand("8.8.8.8"), "", "8.8.8.0/24", "passes");
    table.check(
        demand("8.8.8.0/24"),
        "",
        "8.8.8.0/25 8.8.8.128/25",
        "passes",
    );
    table.check(
        demand("8.8.8.0/24 9.9.9.9"),
        "",
        "8.8.8.0/25 9.9.9.9",
        "NotCovered",
    );
    table.check(demand("2600::1"), "", "8.8.8.8", "NotCovered");
    table.end(&expect_file!["snapshots/must_cover.txt"]);
}

#[test]
fn widths() {
    let mut table = Table::default();
    table.check(|_| {}, "", "3.0.0.0/8 2600::/20", "passes");
    table.check(|_| {}, "", "2.0.0.0/7", "TooWide");
    table.check(|_| {}, "", "2600::/19", "TooWide");
    table.check(
        |gate| gate.min_prefix_len_v4 = 24,
        "",
        "8.8.0.0/16",
        "TooWide",
    );
    table.end(&expect_file!["snapshots/widths.txt"]);
}

#[test]
fn special_use() {
    let mut table = Table::default();
    for (prefix, block) in [
        ("10.1.2.3/32", "10.0.0.0/8"),
        ("0.0.0.0/8", "0.0.0.0/8"),
        ("100.64.0.0/10", "100.64.0.0/10"),
        ("100.0.0.0/8", "100.64.0.0/10"),
        ("127.0.0.1/32", "127.0.0.0/8"),
        ("169.254.169.254/32", "169.254.0.0/16"),
        ("172.31.255.255/32", "172.16.0.0/12"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.168.0.0/16", "192.168.0.0/16"),
        ("198.19.255.255/32", "198.18.0.0/15"),
        ("224.0.0.1/32", "224.0.0.0/4"),
        ("255.255.255.255/32", "240.0.0.0/4"),
        ("::1/128", "::/127"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2002::/20", "2002::/16"),
        ("fd00::1/128", "fc00::/7"),
        ("fe80::1/128", "fe80::/10"),
        ("ff02::1/128", "ff00::/8"),
    ] {
        table.check(|_| {}, "", prefix, "SpecialUse");
        let rejection = judge(&source(|_| {}), None, &list(prefix), false);
        let is_block = |special: IpNet| special.to_string() == block;
        assert!(
            matches!(rejection, Err(Rejection::SpecialUse { special, .. }) if is_block(special)),
            "{rejection:?}"
        );
        table.check(|gate| gate.allow_special_use = true, "", prefix, "passes");
    }
    // Words of a page and version numbers that parse as addresses.
    for prefix in [
        "a::b/128",
        "10::30/128",
        "dead::beef/128",
        "4000::/20",
        "1fff:ffff::/32",
    ] {
        table.check(|_| {}, "", prefix, "NotGlobal");
        table.check(|gate| gate.allow_special_use = true, "", prefix, "passes");
    }
    // Neighbouring and allocated blocks.
    for prefix in [
        "9.255.255.255 11.0.0.0",
        "100.63.255.255 100.128.0.0",
        "172.15.255.255 172.32.0.0",
        "192.0.1.0 192.0.3.0",
        "198.17.255.255 198.20.0.0",
        "223.255.255.255",
        "2001:200::/32 2001:4860::/32 2003::/20 2600::/20",
    ] {
        table.check(|_| {}, "", prefix, "passes");
    }
    table.end(&expect_file!["snapshots/special_use.txt"]);
}

#[test]
fn shrinking() {
    let mut table = Table::default();
    let ten = addresses("8.8.8.0", 10);
    table.check(|_| {}, &ten, &addresses("8.8.8.0", 5), "passes");
    table.check(|_| {}, &ten, &addresses("8.8.8.0", 4), "Shrunk");
    table.check(
        |gate| gate.max_shrink = 600,
        &ten,
        &addresses("8.8.8.0", 4),
        "passes",
    );
    table.check(|gate| gate.max_shrink = 1000, &ten, "9.9.9.9", "passes");
    table.check(
        |gate| gate.max_shrink = 5,
        &addresses("8.8.8.0", 160),
        &addresses("8.8.8.0", 159),
        "Shrunk",
    );
    // A small list may lose a few prefixes, however large a part they are.
    table.check(|_| {}, &addresses("8.8.8.0", 6), "8.8.8.0", "passes");
    table.check(|_| {}, &addresses("8.8.8.0", 7), "8.8.8.0", "Shrunk");
    // In a long list, two prefixes may have nearly all addresses.
    let long = format!("9.0.0.0/12 9.32.0.0/12 {}", addresses("8.8.8.0", 100));
    table.check(|_| {}, &long, &addresses("8.8.8.0", 100), "Shrunk");
    // A list without any previous address is rejected.
    table.check(|_| {}, &ten, &addresses("9.9.9.0", 10), "Shrunk");
    // Split or merged prefixes cover the same addresses.
    table.check(|_| {}, &addresses("8.8.8.0", 8), "8.8.8.0/29", "passes");
    table.check(
        |_| {},
        "8.8.8.0/29 8.8.9.0/24",
        &addresses("8.8.8.0", 8),
        "passes",
    );
    // The other family does not compensate for the loss of one.
    let both =
        format!("{ten} 2600:1::/32 2600:2::/32 2600:3::/32 2600:4::/32 2600:5::/32 2600:6::/32");
    table.check(|_| {}, &both, &ten, "Shrunk");
    // Growth is no loss.
    table.check(|_| {}, &ten, &addresses("8.8.8.0", 250), "passes");
    table.end(&expect_file!["snapshots/shrinking.txt"]);
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
        let rejection = judge(&source, None, &list(new), false).expect_err("is refused");
        assert_eq!(rejection.is_acceptable(), is_acceptable, "{new}");
    }
}

fn before<'l>(last: &'l [IpNet], earliest: &'l [IpNet], grace: &'l [IpNet]) -> Before<'l> {
    let covered = |family: fn(&IpNet) -> bool| lost(last, &[], family).0;
    Before {
        last,
        earliest,
        grace,
        settled: &[],
        fewest: PerFamily {
            v4: covered(is_v4),
            v6: covered(is_v6),
        },
    }
}

#[test]
fn sizes() {
    let mut table = Table::default();
    let all_of = |length: u8, count: u32| {
        let prefix = |n: u32| format!("{}/{length}", std::net::Ipv4Addr::from(n << (32 - length)));
        (32..32 + count).map(prefix).collect::<Vec<_>>().join(" ")
    };
    table.check(|_| {}, "", &all_of(8, 5), "passes");
    table.check(|_| {}, "", &all_of(8, 6), "TooManyAddresses");
    // Overlaps count once, and each family has its own limit.
    table.check(
        |_| {},
        "",
        "32.0.0.0/8 32.0.0.0/9 32.1.0.0/16 2600::/20",
        "passes",
    );
    table.check(
        |gate| gate.max_addresses.v6 = 1 << 108,
        "",
        "32.0.0.0/8 2600::/20 2610::/20",
        "TooManyAddresses",
    );
    let few = |gate: &mut Gate| gate.max_addresses.v4 = 10;
    table.check(few, "", &addresses("8.8.8.0", 10), "passes");
    table.check(few, "", &addresses("8.8.8.0", 11), "TooManyAddresses");
    // A list that adds nothing is no reason to keep a larger one.
    table.check(
        few,
        &addresses("8.8.8.0", 20),
        &addresses("8.8.8.0", 19),
        "passes",
    );
    table.end(&expect_file!["snapshots/sizes.txt"]);
}

#[test]
fn growing() {
    let mut table = Table::default();
    table.check(|_| {}, "32.0.0.0/16", "32.0.0.0/15", "passes");
    table.check(|_| {}, "32.0.0.0/16", "32.0.0.0/15 40.0.0.0/32", "Grown");
    table.check(
        |gate| gate.max_growth = 3000,
        "32.0.0.0/16",
        "32.0.0.0/14",
        "passes",
    );
    // One prefix is replaced by one prefix.
    table.check(|_| {}, "32.0.0.0/24", "32.0.0.0/8", "Grown");
    // Small lists grow by great parts, and addresses that were covered are no growth.
    table.check(|_| {}, "8.8.8.8", "8.8.8.8 32.0.0.0/20", "passes");
    table.check(|_| {}, "32.0.0.0/8", &addresses("32.0.0.0", 200), "passes");
    table.check(|_| {}, "8.8.8.8", "8.8.8.8 2600::/28", "passes");
    table.check(|_| {}, "8.8.8.8", "8.8.8.8 2600::/27", "Grown");
    table.end(&expect_file!["snapshots/growing.txt"]);
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
    let expected = Rejection::Grown {
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
    let mut answers = Answers::default();
    answers.add("32.0.0.0/14 after 32.0.0.0/15", Some(expected.to_string()));
    answers.check(&expect_file!["snapshots/growth_within_the_window.txt"]);
    // A prefix in its grace period counts.
    let grace = list("48.0.0.0/16");
    let new = list("32.0.0.0/16 56.0.0.0/32");
    let judged = judge(
        &source,
        Some(before(&earliest, &earliest, &grace)),
        &new,
        false,
    );
    assert!(matches!(judged, Err(Rejection::Grown { .. })), "{judged:?}");
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
            Err(Rejection::Shrunk {
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
    assert!(matches!(judged, Err(Rejection::Grown { .. })), "{judged:?}");
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
    let expected = Rejection::Regrown {
        next: amount((1 << 17) + 1),
        fewest: amount(1 << 16),
        limit: amount(1 << 16),
        window: Gate::GROWTH_WINDOW,
    };
    assert_eq!(judged, Err(expected.clone()));
    assert!(expected.is_acceptable());
    let mut answers = Answers::default();
    answers.add("32.0.0.0/15 8.8.8.8", Some(expected.to_string()));
    answers.check(&expect_file!["snapshots/growth_from_the_fewest.txt"]);
    assert_eq!(
        judge(&source, Some(before), &list("32.0.0.0/16"), false),
        Ok(())
    );
}

#[test]
fn a_prefix_that_left_before_the_window_is_no_growth() {
    let source = source(|_| {});
    let (last, grace) = (list("32.0.0.0/16"), list("48.0.0.0/15"));
    let before = Before {
        fewest: PerFamily { v4: 3 << 16, v6: 0 },
        ..before(&last, &last, &grace)
    };
    let new = list("32.0.0.0/16 8.8.8.8");
    let judged = judge(&source, Some(before), &new, false);
    assert!(matches!(judged, Err(Rejection::Grown { .. })), "{judged:?}");
    let settled = Before {
        settled: &grace,
        ..before
    };
    assert_eq!(judge(&source, Some(settled), &new, false), Ok(()));
}

#[test]
fn loss_of_a_family_is_always_judged() {
    let mut table = Table::default();
    // A list of one prefix has another one.
    table.check(|_| {}, "8.8.8.8", "2600::1", "passes");
    table.check(|_| {}, "8.8.8.8 2600::/32", "8.8.8.8", "Shrunk");
    table.check(
        |gate| gate.max_shrink = 1000,
        "8.8.8.8 2600::/32",
        "8.8.8.8",
        "passes",
    );
    table.check(
        |_| {},
        "8.8.8.8 2600::/32 2601::/32",
        "8.8.8.8 2601::/32",
        "passes",
    );
    table.end(&expect_file!["snapshots/loss_of_a_family.txt"]);
}

#[test]
fn a_great_part_of_a_family_is_noted_unless_the_catalogue_states_it() {
    let wide = list("32.0.0.0/7");
    assert_eq!(notes(&source(|_| {}), &wide), [""; 0]);
    let wide = list("32.0.0.0/6");
    let noted = notes(&source(|_| {}), &wide);
    assert_eq!(noted.len(), 1, "{noted:?}");
    let mut answers = Answers::default();
    answers.add("32.0.0.0/6", noted.first().cloned());
    answers.check(&expect_file!["snapshots/note_of_the_size.txt"]);
    assert_eq!(
        without_notes([noted, vec!["else".to_owned()]].concat()),
        ["else"]
    );
}
