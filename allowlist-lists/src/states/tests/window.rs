//! Lists that grow and shrink within the growth window, one sequence a test: which lists are compared, and which pass.

use super::hostile::v4;
use super::*;
use crate::gate::Rejection;
use crate::state::StateDir;

const HOUR: i64 = 3_600;

/// A host that fetches one list, at hours that the test states.
struct Host {
    source: Source,
    lists: SourceStates,
}

impl Host {
    fn new() -> Self {
        Self {
            source: vendor(),
            lists: SourceStates::default(),
        }
    }

    /// The vendor answers with a list.
    fn answer(&mut self, text: &str, hour: i64) -> Result<(), Rejection> {
        self.take(answer(text, at(hour * HOUR)), hour)
    }

    /// The vendor answers that its list is the same.
    fn unchanged(&mut self, hour: i64) {
        let answer = Answer::Unchanged(at(hour * HOUR));
        self.take(answer, hour).expect("passes");
    }

    /// The vendor answers that its list is the same at each of the hours.
    fn unchanged_in(&mut self, hours: std::ops::Range<i64>) {
        hours.for_each(|hour| self.unchanged(hour));
    }

    fn take(&mut self, answer: Answer, hour: i64) -> Result<(), Rejection> {
        let now = at(hour * HOUR);
        self.lists.expire_grace(now);
        match self.lists.propose(&self.source, answer, now) {
            Ok(proposal) => {
                adopt(&mut self.lists, proposal, now);
                Ok(())
            }
            Err(refused) => {
                let rejection = refused.rejection.clone();
                let reason = refused.reason(&self.source);
                self.lists.record_rejection("vendor", *refused, reason, now);
                Err(rejection)
            }
        }
    }

    /// The operator accepts the rejected list.
    fn accept(&mut self, hour: i64) {
        let proposal = self.lists.propose_rejected(&self.source, at(hour * HOUR));
        let proposal = proposal.expect("waits").expect("is accepted");
        adopt(&mut self.lists, proposal, at(hour * HOUR));
    }

    /// The daemon ends, and another starts with the list on disk.
    fn restart(&mut self) {
        let folder = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(&folder.path().join("state")).expect("is made");
        let feed = self.lists.feed("vendor").expect("has a list");
        state.store(&self.source, feed).expect("is stored");
        let feed = state.load(&self.source).expect("is readable");
        let feeds = [("vendor".to_owned(), feed.expect("is there").into())];
        self.lists = SourceStates::new(feeds.into());
    }
}

#[track_caller]
fn check_grown(answered: &Result<(), Rejection>) {
    assert!(
        matches!(answered, Err(Rejection::Grown { .. })),
        "{answered:?}"
    );
}

#[track_caller]
fn check_regrown(answered: &Result<(), Rejection>) {
    assert!(
        matches!(answered, Err(Rejection::Regrown { .. })),
        "{answered:?}"
    );
}

#[test]
fn the_window_ends_at_the_answer_and_not_at_the_one_before() {
    let mut host = Host::new();
    assert_eq!(host.answer("32.0.0.0/12", 0), Ok(()));
    assert_eq!(host.answer("32.0.0.0/13", 10), Ok(()));
    host.unchanged_in(11..176);
    assert_eq!(host.answer("32.0.0.0/12", 176), Ok(()));
    host.unchanged(177);
    // At hour 177 a week before was hour 9; now it is hour 35, when the list and its grace prefixes were a /13.
    check_grown(&host.answer("32.0.0.0/11", 203));
}

#[test]
fn a_list_that_shrinks_and_grows_again_is_compared_with_its_smallest() {
    let mut host = Host::new();
    assert_eq!(host.answer("32.0.0.0/12", 0), Ok(()));
    assert_eq!(host.answer("32.0.0.0/13", 10), Ok(()));
    host.unchanged_in(11..100);
    // As much as a week ago, and more than that would be four times as much as a day ago.
    assert_eq!(host.answer("32.0.0.0/12", 100), Ok(()));
    check_regrown(&host.answer("32.0.0.0/11", 101));
    host.unchanged_in(102..267);
    check_grown(&host.answer("32.0.0.0/11", 267));
    assert_eq!(host.answer("32.0.0.0/11", 268), Ok(()));
}

#[test]
fn lists_that_take_turns_open_no_more_than_both() {
    let mut host = Host::new();
    assert_eq!(host.answer("32.0.0.0/13 32.8.0.0/14", 0), Ok(()));
    for hour in 1..400 {
        let list = match hour % 2 {
            0 => "32.0.0.0/13 32.8.0.0/14",
            _ => "32.0.0.0/13",
        };
        assert_eq!(host.answer(list, hour), Ok(()), "{hour}");
    }
    assert_eq!(host.lists.feeds()["vendor"].len(), 2);
    assert_eq!(host.answer("32.0.0.0/13 40.0.0.1", 400), Ok(()));
    check_grown(&host.answer("32.0.0.0/11 40.0.0.1", 401));
}

#[test]
fn a_list_that_was_rejected_for_long_is_compared_with_the_list_of_a_week_ago() {
    let mut host = Host::new();
    assert_eq!(host.answer("32.0.0.0/16", 0), Ok(()));
    assert_eq!(host.answer("32.0.0.0/15", 1), Ok(()));
    for hour in 2..169 {
        check_grown(&host.answer("32.0.0.0/15 40.0.0.0/16", hour));
    }
    assert_eq!(host.answer("32.0.0.0/15 40.0.0.0/16", 169), Ok(()));
}

#[test]
fn the_window_passes_with_answers_that_nothing_is_new_and_outlives_restarts() {
    let mut host = Host::new();
    assert_eq!(host.answer("32.0.0.0/16", 0), Ok(()));
    assert_eq!(host.answer("32.0.0.0/15", 1), Ok(()));
    for hour in (2..168).step_by(24) {
        host.unchanged_in(hour..(hour + 24).min(169));
        host.restart();
        check_grown(&host.answer("32.0.0.0/14", (hour + 23).min(168)));
        host.restart();
    }
    host.unchanged(169);
    host.restart();
    assert_eq!(host.answer("32.0.0.0/14", 170), Ok(()));
}

#[test]
fn a_clock_that_is_set_ends_no_window() {
    let year = 365 * 24;
    for by in [-10 * year, 10 * year] {
        let mut host = Host::new();
        assert_eq!(host.answer("32.0.0.0/16", 0), Ok(()));
        assert_eq!(host.answer("32.0.0.0/15", 1), Ok(()));
        // While the daemon runs, and while none does: then a quarter of the window counts.
        let set = SignedDuration::from_hours(by);
        host.lists.apply_clock_step(at((2 + by) * HOUR), set);
        check_grown(&host.answer("32.0.0.0/14", 2 + by));
        host.restart();
        check_grown(&host.answer("32.0.0.0/14", 3 + 2 * by));
        host.restart();
        check_grown(&host.answer("32.0.0.0/14", 4));
    }
}

#[test]
fn an_emptied_list_is_no_first_list() {
    let mut host = Host::new();
    host.source.gate.min = 0;
    assert_eq!(host.answer("8.8.8.8", 0), Ok(()));
    assert_eq!(host.answer("", 1), Ok(()));
    check_grown(&host.answer("32.0.0.0/9", 2));
    host.unchanged_in(3..400);
    check_grown(&host.answer("32.0.0.0/9", 400));
    assert_eq!(host.answer("32.0.0.0/20", 401), Ok(()));
}

#[test]
fn families_that_change_places_are_compared_each_with_itself() {
    let mut host = Host::new();
    assert_eq!(host.answer("32.0.0.0/12", 0), Ok(()));
    assert_eq!(host.answer("2600::/28", 1), Ok(()));
    check_grown(&host.answer("2600::/26", 2));
    // The grace period of the IPv4 prefix is over.
    host.unchanged_in(3..26);
    check_grown(&host.answer("32.0.0.0/12", 26));
    assert_eq!(host.answer("32.0.0.0/20", 27), Ok(()));
}

#[test]
fn prefixes_that_left_with_an_accepted_list_are_no_growth() {
    let mut host = Host::new();
    let many: Vec<_> = (0..10).map(|n| format!("32.{n}.0.0/16")).collect();
    assert_eq!(host.answer(&many.join(" "), 0), Ok(()));
    assert!(host.answer("32.0.0.0/18", 1).is_err());
    host.accept(2);
    host.restart();
    assert_eq!(host.answer("32.0.0.0/18 40.0.0.1", 3), Ok(()));
    // Added addresses are compared with the accepted list alone.
    check_grown(&host.answer("32.0.0.0/18 48.0.0.0/17", 4));
}

#[test]
fn a_list_that_came_before_the_last_good_one_is_compared_with_it() {
    let mut host = Host::new();
    assert_eq!(host.answer("32.0.0.0/16", 0), Ok(()));
    let last_good = host.lists.feeds()["vendor"].clone();
    let after = |text: &str| {
        let mut host = Host::new();
        assert_eq!(host.answer(text, 1), Ok(()));
        let proposal = host.lists.propose_after(&host.source, &last_good, at(HOUR));
        proposal.expect("the source has answered")
    };
    check_grown(
        &after("32.0.0.0/14")
            .map(|_| ())
            .map_err(|refused| refused.rejection),
    );
    let feed = after("32.0.0.0/17").expect("passes").feed;
    assert_eq!(feed.prefixes, list("32.0.0.0/17"));
    assert_eq!(feed.grace.len(), 1);
    assert_eq!(feed.changes.len(), 1);
    let silent = Host::new();
    let proposal = silent
        .lists
        .propose_after(&silent.source, &last_good, at(HOUR));
    assert!(proposal.is_none());
}

#[test]
fn another_name_is_another_source() {
    let mut host = Host::new();
    assert_eq!(host.answer("8.8.8.8", 0), Ok(()));
    let renamed = Source {
        name: "renamed".to_owned(),
        ..vendor()
    };
    let folder = tempfile::tempdir().expect("a folder");
    let state = StateDir::open(&folder.path().join("state")).expect("is made");
    let feed = host.lists.feed("vendor").expect("has a list");
    state.store(&host.source, feed).expect("is stored");
    assert_eq!(state.load(&renamed).expect("is readable"), None);
    // Its first list is limited by `max_addresses` alone.
    let now = at(HOUR);
    let propose = |text: &str| host.lists.propose(&renamed, answer(text, now), now);
    propose("32.0.0.0/9").expect("passes");
    let refused = propose("32.0.0.0/8 33.0.0.0/8 34.0.0.0/8 35.0.0.0/8 36.0.0.0/8 37.0.0.0/8");
    let rejection = refused.expect_err("is refused").rejection;
    assert!(
        matches!(rejection, Rejection::TooManyAddresses { .. }),
        "{rejection}"
    );
}

#[test]
fn all_public_networks_at_once_are_refused() {
    let (source, lists) = (vendor(), SourceStates::default());
    let everything = Fetched::new(super::hostile::everything(), at(0));
    let refused = lists
        .propose(&source, Answer::List(everything), at(0))
        .expect_err("is refused");
    assert!(
        matches!(refused.rejection, Rejection::TooManyAddresses { .. }),
        "{refused:?}"
    );
}

/// Takes a list every hour until one is rejected. Returns the number of accepted lists and the reason.
fn taken(lists: impl IntoIterator<Item = Vec<IpNet>>) -> (usize, Rejection) {
    let (source, mut known) = (vendor(), SourceStates::default());
    for (hour, (count, list)) in (0_i64..).zip(lists.into_iter().enumerate()) {
        let now = at(hour * HOUR);
        match known.propose(&source, Answer::List(Fetched::new(list, now)), now) {
            Ok(proposal) => adopt(&mut known, proposal, now),
            Err(refused) => return (count, refused.rejection),
        };
    }
    panic!("every list was accepted")
}

#[test]
fn small_steps_add_up() {
    // From a /24 to a /8, bit by bit: up to a /20, which is no more than any list may grow.
    let (count, rejection) = taken((0..=16).map(|bits| vec![v4(0x2000_0000, 24 - bits)]));
    assert_eq!(count, 5, "{rejection}");
    assert!(matches!(rejection, Rejection::Grown { .. }), "{rejection}");
    // Of fifty addresses, five less each time.
    let fifty: Vec<IpNet> = (0..50).map(|n| v4(0x2000_0000 + n * 2, 32)).collect();
    let (count, rejection) = taken((0..10).map(|n| fifty[..50 - 5 * n].to_vec()));
    assert_eq!(count, 6, "{rejection}");
    assert!(matches!(rejection, Rejection::Shrunk { .. }), "{rejection}");
}

#[test]
fn later_lists_are_compared_with_an_accepted_list() {
    let (source, mut lists) = (vendor(), SourceStates::default());
    take(&mut lists, &source, "32.0.0.0/24", 0);
    let wide = answer("32.0.0.0/12", at(HOUR));
    let refused = lists
        .propose(&source, wide, at(HOUR))
        .expect_err("is refused");
    assert!(refused.rejection.is_acceptable());
    let reason = refused.reason(&source);
    lists.record_rejection("vendor", *refused, reason, at(HOUR));
    let proposal = lists.propose_rejected(&source, at(HOUR)).expect("waits");
    adopt(&mut lists, proposal.expect("is accepted"), at(HOUR));
    take(&mut lists, &source, "32.0.0.0/12 33.0.0.0/24", 2 * HOUR);
}

#[test]
fn a_week_later_a_list_may_grow_again() {
    let (source, mut lists) = (vendor(), SourceStates::default());
    take(&mut lists, &source, "32.0.0.0/16", 0);
    let double = |day: i64| answer("32.0.0.0/15", at(day * DAY));
    let four = |at: Timestamp| answer("32.0.0.0/14", at);
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
