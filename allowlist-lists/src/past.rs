//! The changes of a list within its source's growth window, the time over which the gate limits all changes together
//! (`growth_window`). From them, the list at the window's start and the fewest active addresses since then are
//! restored.
//!
//! Invariants: the oldest list that can be restored was active at the window's start or before it, or is the
//! source's first; no count of active addresses within the window is missed; the number of entries and their prefixes
//! are bounded. Ages advance with each answer, also with one that the gate rejects, by no more than a bounded step and
//! never backwards, so a wall clock that is set neither empties the window nor extends it. Pure: the caller states the
//! time.

use std::cmp::Ordering;
use std::time::Duration;

use allowlist_policy::difference::{Difference, covered, is_v4, is_v6};
use allowlist_policy::{Feed, PastChange, PerFamily, Source};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

/// The number of equal parts of the growth window. The changes within one part are merged into one entry, so an entry
/// is dropped at most one part too late.
const PARTS: u32 = 8;
/// The divisor for the most by which ages advance between two answers: the growth window divided by this number, or two
/// intervals of fetching if they are longer.
const STEPS: u32 = 4;
/// The most prefixes that all entries together may hold; if they hold more, they are merged into one entry.
const MOST_PREFIXES: usize = 500_000;

/// Returns the list at the start of the growth window, or the source's first list if the source is younger.
///
/// `changes` are those that led to the list `prefixes`, newest first.
pub fn earliest(changes: &[PastChange], prefixes: &[IpNet]) -> Vec<IpNet> {
    let undo = |list: Vec<IpNet>, change: &PastChange| merge(&list, &change.removed, &change.added);
    changes.iter().fold(prefixes.to_vec(), undo)
}

/// Returns the smallest number of addresses of `feed` that were active at one time within the growth window.
///
/// Grace prefixes count as active.
pub fn fewest(feed: &Feed, now: Timestamp) -> PerFamily {
    let before_changes = feed.changes.iter().filter_map(|change| change.fewest);
    before_changes.fold(active(feed, now), PerFamily::least)
}

/// Returns `feed` with the ages of its changes and grace prefixes advanced to `now`.
///
/// Changes that are older than the growth window of `source` are omitted.
pub fn aged(source: &Source, feed: &Feed, now: Timestamp) -> Feed {
    let window = source.gate.growth_window.as_secs();
    let passed = passed(source, feed, now);
    let mut aged = feed.clone();
    for change in &mut aged.changes {
        change.seconds = change.seconds.saturating_add(passed.as_secs());
        change.oldest_seconds = change.oldest_seconds.saturating_add(passed.as_secs());
    }
    for grace in &mut aged.grace {
        grace.seconds = grace.seconds.saturating_add(passed.as_secs());
    }
    aged.changes.retain(|change| change.seconds < window);
    // The part of a second that did not count yet.
    let rest = SignedDuration::from_nanos(passed.subsec_nanos().into());
    aged.answered = now.saturating_sub(rest).unwrap_or(now);
    aged
}

/// Returns the changes of a source after the list `prefixes` replaces that of `last` at the time `now`.
///
/// The ages in `last` must be advanced to `now`, as by [`aged`].
pub fn changes(
    source: &Source,
    last: &Feed,
    prefixes: &[IpNet],
    now: Timestamp,
) -> Vec<PastChange> {
    let mut changes: Vec<PastChange> = last.changes.clone();
    if last.prefixes == prefixes {
        return changes;
    }
    let active = active(last, now);
    let window = source.gate.growth_window.as_secs();
    let is_recent =
        |newest: &PastChange| newest.oldest_seconds < (window / u64::from(PARTS)).max(1);
    match changes.first().filter(|newest| is_recent(newest)) {
        Some(newest) => {
            let before = earliest(&changes[..1], &last.prefixes);
            let fewest = newest.fewest.map_or(active, |fewest| fewest.least(active));
            changes[0] = between(&before, prefixes, newest.oldest_seconds, fewest);
        }
        None => changes.insert(0, between(&last.prefixes, prefixes, 0, active)),
    }
    let size = |change: &PastChange| change.added.len() + change.removed.len();
    if changes.len() > 1 && changes.iter().map(size).sum::<usize>() > MOST_PREFIXES {
        let before = earliest(&changes, prefixes);
        let oldest_seconds = changes.last().map_or(0, |oldest| oldest.oldest_seconds);
        let fewest = changes.iter().filter_map(|change| change.fewest);
        let fewest = fewest.fold(active, PerFamily::least);
        changes = vec![between(&before, prefixes, oldest_seconds, fewest)];
    }
    changes
}

/// Returns the entry for the change from the list `before` to the list `after`. Its newest change has the age 0, its
/// oldest the age `oldest_seconds`; `fewest` is the smallest number of addresses that were active before these changes.
fn between(
    before: &[IpNet],
    after: &[IpNet],
    oldest_seconds: u64,
    fewest: PerFamily,
) -> PastChange {
    let difference = Difference::between(before, after);
    PastChange {
        seconds: 0,
        oldest_seconds,
        added: difference.added,
        removed: difference.removed,
        fewest: Some(fewest),
    }
}

/// Returns the number of addresses of `feed` that are active at the time `now`, grace prefixes included.
fn active(feed: &Feed, now: Timestamp) -> PerFamily {
    let grace = feed.grace.iter().filter(|grace| grace.until > now);
    let mut active = feed.prefixes.clone();
    active.extend(grace.map(|grace| grace.prefix));
    active.sort_unstable();
    PerFamily {
        v4: covered(&active, is_v4),
        v6: covered(&active, is_v6),
    }
}

/// Returns the time from the last answer to `now`, limited to two intervals of fetching or to a quarter of the growth
/// window.
///
/// The limit is the larger of the two. It is needed because the clock may have been set forward, or the host may have
/// been off.
fn passed(source: &Source, last: &Feed, now: Timestamp) -> Duration {
    let believed = (source.gate.growth_window / STEPS).max(source.every * 2);
    let passed = now.duration_since(last.answered);
    Duration::try_from(passed).unwrap_or_default().min(believed)
}

/// Returns `list` with the prefixes in `more` and without those in `less`. All three are sorted and distinct.
fn merge(list: &[IpNet], more: &[IpNet], less: &[IpNet]) -> Vec<IpNet> {
    let mut merged = Vec::with_capacity(list.len() + more.len());
    let (mut list, mut more) = (list.iter().peekable(), more.iter().peekable());
    let mut less = less.iter().peekable();
    loop {
        let order = match (list.peek(), more.peek()) {
            (Some(old), Some(new)) => old.cmp(new),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return merged,
        };
        let next = match order {
            Ordering::Less => list.next(),
            Ordering::Greater => more.next(),
            Ordering::Equal => {
                list.next();
                more.next()
            }
        };
        let Some(next) = next else { return merged };
        while less.next_if(|gone| *gone < next).is_some() {}
        if less.peek() != Some(&next) {
            merged.push(*next);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use allowlist_policy::{Format, Http, Origin};

    const DAY: u64 = 86_400;
    const WINDOW: u64 = 7 * DAY;

    fn source() -> Source {
        let url = "https://example.com/".parse().expect("a URL");
        Source::new("vendor", Origin::Http(Http::new(vec![url], Format::Text)))
    }

    fn prefixes(hosts: &BTreeSet<u8>) -> Vec<IpNet> {
        let prefix = |host| format!("9.9.9.{host}/32").parse().expect("a prefix");
        hosts
            .iter()
            .map(prefix)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    fn next(source: &Source, before: &Feed, list: &[IpNet], fetched: Timestamp) -> Feed {
        let before = aged(source, before, fetched);
        Feed {
            changes: changes(source, &before, list, fetched),
            answered: before.answered,
            ..Feed::new(list.to_vec(), fetched)
        }
    }

    #[test]
    fn a_clock_step_moves_no_list_out_of_the_window() {
        let source = source();
        let list = |hosts: &[u8]| prefixes(&hosts.iter().copied().collect());
        let first = list(&[1]);
        let mut feed = Feed::new(first.clone(), at(0));
        // Decades back, decades ahead, and a day at a time.
        for second in [0, -900_000_000, 900_000_000, 5, 86_400, 0] {
            feed = next(&source, &feed, &list(&[1, 2]), at(second));
            assert_eq!(earliest(&feed.changes, &feed.prefixes), first, "{second}");
        }
    }

    proptest! {
        /// The restored list is the one of a window ago, or one of up to an eighth of a window before, and
        /// never a newer one.
        #[test]
        fn the_list_of_a_window_ago_is_restored(
            answers in prop::collection::vec((prop::collection::btree_set(any::<u8>(), 1..8), 1..40_u64), 1..120),
        ) {
            let source = source();
            let mut lists: Vec<(u64, Vec<IpNet>)> = Vec::new();
            let mut now = 0;
            let mut feed: Option<Feed> = None;
            for (hosts, hours) in answers {
                // No longer than is believed between two answers.
                now += (hours * 3600).min(WINDOW / 8);
                let list = prefixes(&hosts);
                let fetched = at(now.cast_signed());
                feed = Some(match &feed {
                    Some(last) => next(&source, last, &list, fetched),
                    None => Feed::new(list.clone(), fetched),
                });
                lists.push((now, list));
                let feed = feed.as_ref().expect("it was set");
                prop_assert!(feed.changes.len() <= PARTS as usize + 2);
                let restored = earliest(&feed.changes, &feed.prefixes);
                let active = |ago: u64| {
                    let then = now.saturating_sub(ago);
                    lists.iter().rposition(|(since, _)| *since <= then).unwrap_or(0)
                };
                let (oldest, newest) = (active(WINDOW + WINDOW / 8), active(WINDOW));
                prop_assert!(
                    lists[oldest..=newest].iter().any(|(_, list)| *list == restored),
                    "of {:?}", lists
                );
            }
        }
    }

    #[test]
    fn the_prefixes_that_are_kept_are_bounded() {
        let source = source();
        let list = |place: u32| -> Vec<IpNet> {
            let prefix = |n: u32| std::net::Ipv4Addr::from(0x1000_0000 + place * 0x10_0000 + n * 4);
            (0..100_000)
                .map(|n| IpNet::from(std::net::IpAddr::V4(prefix(n))))
                .collect()
        };
        let mut feed = Feed::new(list(0), at(0));
        for day in 1..7_u32 {
            feed = next(&source, &feed, &list(day), at(i64::from(day) * 86_400));
            let kept = feed
                .changes
                .iter()
                .map(|one| one.added.len() + one.removed.len());
            assert!(kept.sum::<usize>() <= MOST_PREFIXES);
            assert_eq!(earliest(&feed.changes, &feed.prefixes), list(0));
        }
    }
}
