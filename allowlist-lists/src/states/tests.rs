//! Sequences of answers: the active prefixes, the events, and the state after failures.

use std::time::Duration;

use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::{Format, Http, Lookup};

use super::*;

mod hostile;
mod window;

const DAY: i64 = 86_400;

fn vendor() -> Source {
    let url = "https://example.com/".parse().expect("a URL");
    Source::new("vendor", Origin::Http(Http::new(vec![url], Format::Text)))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("a time")
}

fn list(text: &str) -> Vec<IpNet> {
    let mut list: Vec<IpNet> = text
        .split_whitespace()
        .map(|token| crate::feed::parse_prefix(token).expect("a prefix"))
        .collect();
    list.sort_unstable();
    list
}

fn answer(text: &str, now: Timestamp) -> Answer {
    Answer::List(Fetched {
        prefixes: list(text),
        notes: Vec::new(),
        fetched: now,
        validators: Vec::new(),
        again: None,
        kept: Vec::new(),
    })
}

/// Commits a list that must pass the gate.
fn take(lists: &mut SourceStates, source: &Source, text: &str, second: i64) -> Vec<EventKind> {
    let now = at(second);
    let proposal = lists
        .propose(source, answer(text, now), now)
        .expect("passes");
    whats(adopt(lists, proposal, now))
}

/// Sets the generation that the expected events have.
fn with_generation(events: Vec<Event>) -> Vec<Event> {
    events
        .into_iter()
        .map(|event| event.with_generation(7))
        .collect()
}

fn adopt(lists: &mut SourceStates, proposal: Proposal, now: Timestamp) -> Vec<Event> {
    with_generation(lists.commit(proposal, now))
}

fn whats(events: Vec<Event>) -> Vec<EventKind> {
    events.into_iter().map(|event| event.kind).collect()
}

fn active(lists: &SourceStates) -> String {
    let prefixes = lists.feeds()["vendor"].sorted_active();
    let prefixes: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
    prefixes.join(" ")
}

fn changed(added: &str, removed: &str, until: Option<i64>) -> EventKind {
    EventKind::Changed {
        generation: 7,
        change: Change::new(list(added), list(removed)),
        grace_until: until.map(at),
        accepted: false,
    }
}

#[test]
fn removed_prefixes_stay_for_their_grace_period() {
    let (source, mut lists) = (vendor(), SourceStates::default());
    let events = take(&mut lists, &source, "8.8.8.8 9.9.9.9", 0);
    assert_eq!(events, [changed("8.8.8.8 9.9.9.9", "", None)]);
    let events = take(&mut lists, &source, "8.8.8.8 1.1.1.1", 10);
    assert_eq!(events, [changed("1.1.1.1", "9.9.9.9", Some(10 + DAY))]);
    assert_eq!(active(&lists), "1.1.1.1/32 8.8.8.8/32 9.9.9.9/32");
    // One event, and the grace period goes on when the same list arrives again.
    assert_eq!(take(&mut lists, &source, "8.8.8.8 1.1.1.1", 20), []);
    assert_eq!(active(&lists), "1.1.1.1/32 8.8.8.8/32 9.9.9.9/32");

    assert_eq!(lists.next_expiry(), Some(at(10 + DAY)));
    assert_eq!(lists.expire_grace(at(9 + DAY)), []);
    // A change of a copy leaves the states as they were.
    let before = lists.feeds().clone();
    assert_eq!(lists.clone().expire_grace(at(10 + DAY)).len(), 1);
    assert_eq!(*lists.feeds(), before);
    let events = with_generation(lists.expire_grace(at(10 + DAY)));
    let gone = Change::new(Vec::new(), list("9.9.9.9"));
    let released = EventKind::Released {
        generation: 7,
        change: gone,
    };
    assert_eq!(whats(events), [released]);
    assert_eq!(active(&lists), "1.1.1.1/32 8.8.8.8/32");
    assert_eq!(lists.next_expiry(), None);
}

#[test]
fn a_prefix_that_returns_ends_its_grace_period() {
    let (source, mut lists) = (vendor(), SourceStates::default());
    take(&mut lists, &source, "8.8.8.8 9.9.9.9", 0);
    take(&mut lists, &source, "8.8.8.8", 10);
    let events = take(&mut lists, &source, "8.8.8.8 9.9.9.9", 20);
    assert_eq!(events, [changed("9.9.9.9", "", None)]);
    assert_eq!(lists.next_expiry(), None);
    // A second time away is a second grace period.
    take(&mut lists, &source, "8.8.8.8", 30);
    assert_eq!(lists.next_expiry(), Some(at(30 + DAY)));
}

#[test]
fn without_a_grace_period_prefixes_are_removed_at_once() {
    let (mut source, mut lists) = (vendor(), SourceStates::default());
    take(&mut lists, &source, "8.8.8.8 9.9.9.9 1.1.1.1", 0);
    take(&mut lists, &source, "8.8.8.8 9.9.9.9", 5);
    source.grace = Duration::ZERO;
    let events = take(&mut lists, &source, "8.8.8.8", 10);
    // So are prefixes whose longer grace period has begun.
    let gone = EventKind::Released {
        generation: 7,
        change: Change::new(Vec::new(), list("1.1.1.1")),
    };
    assert_eq!(events, [changed("", "9.9.9.9", None), gone]);
    assert_eq!(active(&lists), "8.8.8.8/32");
}

#[test]
fn forbidden_prefixes_are_rejected_in_the_active_list_too() {
    let (mut source, mut lists) = (vendor(), SourceStates::default());
    take(&mut lists, &source, "8.8.8.8 9.0.0.0/8", 0);
    // The size of an active list is not checked again.
    source.gate.min = 3;
    assert_eq!(take(&mut lists, &source, "8.8.8.8 9.0.0.0/8", 10), []);
    source.gate.min_prefix_len_v4 = 16;
    let now = at(20);
    for again in [answer("8.8.8.8 9.0.0.0/8", now), Answer::Unchanged(now)] {
        let refused = lists.propose(&source, again, now).expect_err("is too wide");
        assert!(!refused.rejection.is_acceptable());
    }
}

#[test]
fn a_shorter_grace_period_counts_where_nothing_is_new() {
    let (mut source, mut lists) = (vendor(), SourceStates::default());
    take(&mut lists, &source, "8.8.8.8 9.9.9.9", 0);
    take(&mut lists, &source, "8.8.8.8", 10);
    source.grace = Duration::from_mins(1);
    let proposal = lists
        .propose(&source, Answer::Unchanged(at(20)), at(20))
        .expect("passes");
    assert_eq!(adopt(&mut lists, proposal, at(20)), []);
    assert_eq!(lists.next_expiry(), Some(at(80)));
}

#[test]
fn rotating_answers_do_not_flap() {
    let lookup = Lookup::new(vec!["a.example.com".to_owned()]);
    let source = Source::new("vendor", Origin::Names(lookup));
    let mut lists = SourceStates::default();
    take(&mut lists, &source, "8.8.8.1 8.8.8.2", 0);
    for round in 1..10 {
        let now = at(60 * round);
        let turn = if round % 2 == 0 {
            "8.8.8.1 8.8.8.2"
        } else {
            "8.8.8.3 8.8.8.4"
        };
        let proposal = lists
            .propose(&source, answer(turn, now), now)
            .expect("passes");
        assert_eq!(proposal.needs_publish, round == 1, "{round}");
        let events = whats(adopt(&mut lists, proposal, now));
        let expected = if round == 1 {
            vec![changed("8.8.8.3 8.8.8.4", "", None)]
        } else {
            vec![]
        };
        assert_eq!(events, expected, "{round}");
        assert_eq!(
            active(&lists),
            "8.8.8.1/32 8.8.8.2/32 8.8.8.3/32 8.8.8.4/32"
        );
    }
    // A prefix that stays away is removed a grace period after its last answer.
    assert_eq!(lists.next_expiry(), Some(at(9 * 60 + DAY)));
}

#[test]
fn a_rejected_list_can_be_accepted() {
    let (source, mut lists) = (vendor(), SourceStates::default());
    let many = (0..10)
        .map(|n| format!("8.8.8.{n}"))
        .collect::<Vec<_>>()
        .join(" ");
    take(&mut lists, &source, &many, 0);
    assert!(lists.propose_rejected(&source, at(1)).is_none());
    for round in 1..=2 {
        let now = at(round);
        let refused = *lists
            .propose(&source, answer("9.9.9.9", now), now)
            .expect_err("is refused");
        let events = whats(lists.record_rejection("vendor", refused, "why".to_owned(), now));
        let change = Change::new(list("9.9.9.9"), list(&many));
        let reason = "why".to_owned();
        let expected = (round == 1).then_some(EventKind::Refused { reason, change });
        assert_eq!(events, Vec::from_iter(expected), "told once");
    }
    assert_eq!(lists.feeds()["vendor"].prefixes, list(&many));
    assert_eq!(
        lists.health("vendor").map(|health| health.failures),
        Some(2)
    );

    let proposal = lists
        .propose_rejected(&source, at(3))
        .expect("waits")
        .expect("is accepted");
    let events = whats(adopt(&mut lists, proposal, at(3)));
    let accepted = EventKind::Changed {
        generation: 7,
        change: Change::new(list("9.9.9.9"), list(&many)),
        grace_until: Some(at(3 + DAY)),
        accepted: true,
    };
    assert_eq!(events, [EventKind::Recovered, accepted]);
    assert_eq!(lists.health("vendor"), None);
    assert!(lists.propose_rejected(&source, at(4)).is_none());
    // It is the last good one now.
    assert_eq!(take(&mut lists, &source, "9.9.9.9", 5), []);
}

#[test]
fn a_failed_publish_changes_nothing() {
    let (source, mut lists) = (vendor(), SourceStates::default());
    let proposal = lists
        .propose(&source, answer("8.8.8.8", at(0)), at(0))
        .expect("passes");
    let change = Change::new(list("8.8.8.8"), Vec::new());
    assert_eq!(proposal.change(), change);
    let mut copy = lists.clone();
    copy.commit(proposal, at(0));
    assert!(lists.feeds().is_empty());
    take(&mut lists, &source, "8.8.8.8", 1);
    let events =
        whats(lists.record_failure("vendor", ErrorCode::Timeout, "down".to_owned(), at(2)));
    let reason = "down".to_owned();
    assert_eq!(events, [EventKind::Failed { reason }]);
    assert_eq!(
        lists.record_failure("vendor", ErrorCode::Timeout, "still down".to_owned(), at(3)),
        []
    );
    let before = lists.feeds().clone();
    let proposal = lists
        .propose(&source, answer("9.9.9.9", at(4)), at(4))
        .expect("passes");
    lists.clone().commit(proposal, at(4));
    assert_eq!(
        (
            lists.feeds(),
            lists.health("vendor").map(|one| one.failures)
        ),
        (&before, Some(2))
    );
    assert_eq!(
        take(&mut lists, &source, "8.8.8.8", 5),
        [EventKind::Recovered]
    );
}

#[test]
fn an_unchanged_answer_renews_the_age_of_a_list() {
    let (source, mut lists) = (vendor(), SourceStates::default());
    take(&mut lists, &source, "8.8.8.8", 0);
    let old = 15 * DAY;
    let sources = [source.clone()];
    let stale = lists.mark_stale(sources.iter(), at(old));
    assert_eq!(whats(stale), [EventKind::Stale { fetched: at(0) }]);
    assert_eq!(
        lists.mark_stale(sources.iter(), at(old + 1)),
        [],
        "told once"
    );
    let unchanged = Answer::Unchanged(at(old + 2));
    let proposal = lists
        .propose(&source, unchanged, at(old + 2))
        .expect("passes");
    assert!(!proposal.needs_publish);
    assert_eq!(adopt(&mut lists, proposal, at(old + 2)), []);
    assert_eq!(lists.feeds()["vendor"].fetched, at(old + 2));
    assert_eq!(active(&lists), "8.8.8.8/32");
    assert_eq!(lists.mark_stale(sources.iter(), at(old + 3)), []);
}

#[test]
fn a_forbidden_list_causes_one_event() {
    let (source, mut lists) = (vendor(), SourceStates::default());
    take(&mut lists, &source, "8.8.8.8", 0);
    for round in 1..=3 {
        let now = at(round);
        let refused = lists.propose(&source, answer("10.0.0.0/8", now), now);
        let refused = *refused.expect_err("is refused");
        let events = lists.record_rejection("vendor", refused, "private".to_owned(), now);
        assert_eq!(events.len(), usize::from(round == 1), "{round}");
        assert!(lists.propose_rejected(&source, now).is_none());
        assert!(
            lists
                .health("vendor")
                .is_some_and(|one| !one.has_acceptable_list())
        );
    }
    // So does a list for which the tables have no room.
    let change = Change::new(list("9.9.9.9"), Vec::new());
    for round in 1..=2 {
        let events = lists.record_unpublished(
            "vendor",
            ErrorCode::TooManyPrefixes,
            "full".to_owned(),
            change.clone(),
            at(round),
        );
        assert_eq!(events.len(), usize::from(round == 1), "{round}");
    }
}

#[test]
fn all_expired_prefixes_are_removed_in_one_generation() {
    let mut lists = SourceStates::default();
    let sources = ["a", "b"].map(|name| Source {
        name: name.to_owned(),
        ..vendor()
    });
    for source in &sources {
        take(&mut lists, source, "8.8.8.8 9.9.9.9", 0);
        take(&mut lists, source, "8.8.8.8", 10);
    }
    assert_eq!(lists.expire_grace(at(10 + DAY)).len(), 2);
}

#[test]
fn an_unchanged_answer_applies_a_shorter_grace_period() {
    let (mut source, mut lists) = (vendor(), SourceStates::default());
    take(&mut lists, &source, "8.8.8.8 9.9.9.9", 0);
    take(&mut lists, &source, "8.8.8.8", 10);
    source.grace = Duration::from_mins(1);
    let unchanged = lists
        .propose(&source, Answer::Unchanged(at(20)), at(20))
        .expect("passes");
    adopt(&mut lists, unchanged, at(20));
    assert_eq!(lists.next_expiry(), Some(at(80)));
}

#[test]
fn a_clock_step_shortens_no_grace_period() {
    let year = SignedDuration::from_hours(24 * 365);
    // A clock that is set back lengthens it until the next answer.
    for (by, expected) in [
        (year * 3, DAY - 10),
        (-year * 3, DAY - 10 + 3 * year.as_secs()),
    ] {
        let (source, mut lists) = (vendor(), SourceStates::default());
        take(&mut lists, &source, "8.8.8.8 9.9.9.9", 0);
        take(&mut lists, &source, "8.8.8.8", 10);
        lists.apply_clock_step(at(20) + by, by);
        let left = lists
            .next_expiry()
            .expect("is in its grace period")
            .duration_since(at(20) + by);
        assert_eq!(left.as_secs(), expected);
        let unchanged = Answer::Unchanged(at(20) + by);
        let proposal = lists
            .propose(&source, unchanged, at(20) + by)
            .expect("passes");
        adopt(&mut lists, proposal, at(20) + by);
        let left = lists
            .next_expiry()
            .expect("is in its grace period")
            .duration_since(at(20) + by);
        assert!((DAY - 10..=DAY).contains(&left.as_secs()), "{left:?}");
    }
    // A host without a battery-backed clock boots in 1970: times from the disk are right.
    let (source, mut lists) = (vendor(), SourceStates::default());
    take(&mut lists, &source, "8.8.8.8 9.9.9.9", 0);
    take(&mut lists, &source, "8.8.8.8", 10);
    let before = lists.feeds().clone();
    lists.apply_clock_step(at(20), at(20).duration_since(Timestamp::UNIX_EPOCH));
    assert_eq!(*lists.feeds(), before);
}
