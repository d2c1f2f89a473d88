//! Sequences of lists from a vendor that tries to open as much as it can, with the gate's defaults: its active
//! prefixes stay bounded, other sources are served, and each answer costs little to report.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::difference::{is_v4, lost};
use crate::gate::Refusal;

const HOUR: i64 = 3_600;
/// The most bytes that one answer may add to the log and to the history, beside its prefixes.
const MOST_BYTES: usize = 1_000;

/// The vendor's next list.
#[derive(Clone, Debug)]
enum Move {
    /// The same prefixes, each wider by so many bits.
    Widen(u8),
    /// Other prefixes of the same width.
    Replace(u8),
    /// So many prefixes of this length more.
    More(u8, u8),
    /// The first so many.
    Fewer(u8),
    /// All public /8s.
    Everything,
    /// A list that it served before.
    Again(usize),
}

fn moves() -> impl Strategy<Value = (Move, i64)> {
    let one = prop_oneof![
        3 => (1..3_u8).prop_map(Move::Widen),
        3 => any::<u8>().prop_map(Move::Replace),
        2 => (1..40_u8, 12..33_u8).prop_map(|(count, length)| Move::More(count, length)),
        1 => (1..60_u8).prop_map(Move::Fewer),
        1 => Just(Move::Everything),
        1 => any::<usize>().prop_map(Move::Again),
    ];
    (one, 1..30_i64)
}

fn v4(address: u32, length: u8) -> IpNet {
    let net = ipnet::Ipv4Net::new(address.into(), length).expect("a length");
    IpNet::V4(net.trunc())
}

/// Public addresses that are not special.
fn public(number: u32) -> u32 {
    0x2000_0000 | (number % 0x0800_0000)
}

fn next(list: &[IpNet], served: &[Vec<IpNet>], what: &Move) -> Vec<IpNet> {
    let start = |prefix: &IpNet| match prefix.network() {
        std::net::IpAddr::V4(address) => u32::from(address),
        std::net::IpAddr::V6(_) => 0,
    };
    let mut next: Vec<IpNet> = match what {
        Move::Widen(bits) => {
            let wider = |prefix: &IpNet| {
                v4(
                    start(prefix),
                    prefix.prefix_len().saturating_sub(*bits).max(8),
                )
            };
            list.iter().map(wider).collect()
        }
        Move::Replace(place) => list
            .iter()
            .map(|prefix| {
                let moved = start(prefix).wrapping_add(u32::from(*place) << 18);
                v4(public(moved), prefix.prefix_len())
            })
            .collect(),
        Move::More(count, length) => {
            let more = (0..u32::from(*count)).map(|n| v4(public(n << 20), *length));
            list.iter().copied().chain(more).collect()
        }
        Move::Fewer(count) => list.iter().take(usize::from(*count)).copied().collect(),
        Move::Everything => (11..127_u32)
            .chain(128..224)
            .filter(|first| ![100, 169, 172, 192, 198, 203].contains(first))
            .map(|first| v4(first << 24, 8))
            .collect(),
        Move::Again(place) => served[place % served.len()].clone(),
    };
    next.sort_unstable();
    next.dedup();
    next
}

fn size(list: &[IpNet]) -> u128 {
    lost(list, &[], is_v4).0
}

fn active(lists: &Lists) -> Vec<IpNet> {
    let mut active: Vec<_> = lists.feeds()["vendor"].in_force().collect();
    active.sort_unstable();
    active
}

proptest! {
    // The same sequences at each run: others are found by changing the seed.
    #![proptest_config(ProptestConfig { cases: 40, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]

    #[test]
    fn a_hostile_vendor_opens_little(
        first in prop::collection::btree_set((any::<u32>(), 16..33_u8), 1..60),
        steps in prop::collection::vec(moves(), 1..80),
    ) {
        let source = vendor();
        let other = Source { name: "other".to_owned(), ..vendor() };
        let mut lists = Lists::default();
        let mut list: Vec<IpNet> = first.iter().map(|(at, length)| v4(public(*at), *length)).collect();
        list.sort_unstable();
        list.dedup();
        let mut served = vec![list.clone()];
        // Each accepted list and its time, by the part of the time between two answers that is believed.
        let mut known: Vec<(i64, Vec<IpNet>)> = Vec::new();
        let (mut hour, mut believed, mut taken) = (0, 0, 0);
        for (step, wait) in std::iter::once((Move::Again(0), 0)).chain(steps) {
            hour += wait;
            let now = at(hour * HOUR);
            let Ok(_) = lists.release(now, |_| Ok::<_, Infallible>(7));
            list = next(&list, &served, &step);
            served.push(list.clone());
            let answer = Answer::List(Fetched::new(list.clone(), now));
            let before_it = if known.is_empty() { Vec::new() } else { active(&lists) };
            let events = match lists.propose(&source, answer, now) {
                Ok(proposal) => {
                    believed += (hour - taken).min(7 * 24 / 4);
                    taken = hour;
                    known.push((believed, proposal.feed.prefixes.clone()));
                    adopt(&mut lists, proposal, now)
                }
                Err(refused) => {
                    // The vendor goes on from its last accepted list.
                    list = lists.feeds()["vendor"].prefixes.clone();
                    let reason = refused.reason(&source);
                    prop_assert!(reason.len() < MOST_BYTES, "{}", reason);
                    lists.refuse("vendor", *refused, reason, now)
                }
            };
            prop_assert!(events.len() <= 3, "{:?}", events);
            for event in events {
                let text = serde_json::to_string(&event.shortened()).expect("is JSON");
                prop_assert!(text.len() < MOST_BYTES + 400 * 24, "{}", text);
            }
            let size_now = size(&active(&lists));
            prop_assert!(size_now <= (1 << 32) / 50, "{} addresses are active", size_now);
            if lost(&active(&lists), &before_it, is_v4).1 > 0 && known.len() > 1 {
                // A window ago, or up to a part of the window before, or the first list.
                let (week, most) = (7 * 24, 7 * 24 + 7 * 3 + 30);
                let place = known.iter().rposition(|(at, _)| *at <= believed - most).unwrap_or(0);
                let before = known[place..known.len() - 1]
                    .iter()
                    .enumerate()
                    .take_while(|(place, (at, _))| *place == 0 || *at <= believed - week)
                    .map(|(_, (_, list))| size(list))
                    .max();
                let before = before.expect("at least one");
                prop_assert!(
                    size_now <= 2 * before + 4096,
                    "{} addresses are active after {} a week ago", size_now, before
                );
            }

            // Another source is not delayed.
            let lists_other = format!("8.8.8.{}", hour % 5);
            let proposal = lists.propose(&other, answer_of(&lists_other, now), now);
            adopt(&mut lists, proposal.expect("passes"), now);
        }
    }
}

fn answer_of(text: &str, now: Timestamp) -> Answer {
    Answer::List(Fetched::new(super::list(text), now))
}

#[test]
fn all_public_networks_at_once_are_refused() {
    let (source, lists) = (vendor(), Lists::default());
    let everything = next(&[], &[], &Move::Everything);
    let refused = lists
        .propose(
            &source,
            Answer::List(Fetched::new(everything, at(0))),
            at(0),
        )
        .expect_err("is refused");
    assert!(
        matches!(refused.refusal, Refusal::TooManyAddresses { .. }),
        "{refused:?}"
    );
}

/// Takes a list every hour until one is rejected. Returns the number of accepted lists and the reason.
fn taken(lists: impl IntoIterator<Item = Vec<IpNet>>) -> (usize, Refusal) {
    let (source, mut known) = (vendor(), Lists::default());
    for (hour, (count, list)) in (0_i64..).zip(lists.into_iter().enumerate()) {
        let now = at(hour * HOUR);
        match known.propose(&source, Answer::List(Fetched::new(list, now)), now) {
            Ok(proposal) => adopt(&mut known, proposal, now),
            Err(refused) => return (count, refused.refusal),
        };
    }
    panic!("every list was accepted")
}

#[test]
fn small_steps_add_up() {
    // From a /24 to a /8, bit by bit: up to a /20, which is no more than any list may grow.
    let (count, refusal) = taken((0..=16).map(|bits| vec![v4(0x2000_0000, 24 - bits)]));
    assert_eq!(count, 5, "{refusal}");
    assert!(matches!(refusal, Refusal::Grown { .. }), "{refusal}");
    // Of fifty addresses, five less each time.
    let fifty: Vec<IpNet> = (0..50).map(|n| v4(0x2000_0000 + n * 2, 32)).collect();
    let (count, refusal) = taken((0..10).map(|n| fifty[..50 - 5 * n].to_vec()));
    assert_eq!(count, 6, "{refusal}");
    assert!(matches!(refusal, Refusal::Shrunk { .. }), "{refusal}");
}

#[test]
fn later_lists_are_compared_with_an_accepted_list() {
    let (source, mut lists) = (vendor(), Lists::default());
    take(&mut lists, &source, "32.0.0.0/24", 0);
    let wide = answer_of("32.0.0.0/12", at(HOUR));
    let refused = lists
        .propose(&source, wide, at(HOUR))
        .expect_err("is refused");
    assert!(refused.refusal.is_acceptable());
    let reason = refused.reason(&source);
    lists.refuse("vendor", *refused, reason, at(HOUR));
    let proposal = lists.propose_refused(&source, at(HOUR)).expect("waits");
    adopt(&mut lists, proposal.expect("is accepted"), at(HOUR));
    take(&mut lists, &source, "32.0.0.0/12 33.0.0.0/24", 2 * HOUR);
}

#[test]
fn a_week_later_a_list_may_grow_again() {
    let (source, mut lists) = (vendor(), Lists::default());
    take(&mut lists, &source, "32.0.0.0/16", 0);
    let double = |day: i64| answer_of("32.0.0.0/15", at(day * DAY));
    let four = |at: Timestamp| answer_of("32.0.0.0/14", at);
    let proposal = lists.propose(&source, double(0), at(0)).expect("passes");
    adopt(&mut lists, proposal, at(0));
    for day in 1..7 {
        let now = at(day * DAY);
        assert!(lists.propose(&source, four(now), now).is_err(), "{day}");
        let proposal = lists.propose(&source, double(day), now).expect("passes");
        adopt(&mut lists, proposal, now);
    }
    let now = at(7 * DAY + HOUR);
    let proposal = lists.propose(&source, double(7), now).expect("passes");
    adopt(&mut lists, proposal, now);
    let now = at(7 * DAY + 2 * HOUR);
    lists.propose(&source, four(now), now).expect("passes");
}
