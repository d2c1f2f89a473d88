//! Evaluates a new answer of a source: the list is accepted as a whole, with the removed prefixes in their grace
//! period, or rejected as a whole.
//!
//! Pure: the caller fetches, states the time, publishes and stores. So the daemon, `check` and `diff` decide alike,
//! and a test can run any sequence of answers.

use allowlist_policy::difference::Difference;
use allowlist_policy::{Answer, Family, Feed, Fetched, GracePrefix, Origin, PerFamily, Source};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::gate::{self, Before, Rejection, judge};
use crate::past;
use crate::rejected::list_id;

/// The new feed of a source, from an answer that the gate accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedUpdate {
    /// The new feed of the source.
    pub feed: Feed,
    /// The prefixes that the update adds to the list and removes from it.
    pub difference: Difference,
}

/// A list that the gate rejected, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedUpdate {
    /// The reason why the gate rejected the list.
    pub rejection: Rejection,
    /// The difference from the current list to the rejected one.
    pub difference: Difference,
    /// The rejected list, which the operator may accept if `rejection` permits it.
    pub fetched: Fetched,
    /// The feed that the source keeps, with the ages of its changes and grace prefixes advanced to this answer; `None`
    /// to keep the feed as it is.
    pub kept: Option<Feed>,
}

impl RejectedUpdate {
    /// Returns the reason with the name of `source` and the remedy, for display.
    pub fn reason(&self, source: &Source) -> String {
        let name = &source.name;
        let reason = format!("source {name}: {}: {}", source.origin, self.rejection);
        if self.rejection.is_acceptable() {
            let id = list_id(name, &self.fetched.prefixes);
            let reason = format!("{reason}; the id of this list is {id}");
            format!("{reason}; if the list is right, accept it with `allowlist accept {name}`")
        } else {
            reason
        }
    }
}

/// Evaluates the answer of `source` against `last`, its current feed (`None` if it has none), and returns its new feed
/// or the rejection.
///
/// With `accepted`, the operator has accepted this list: only its prefixes are checked, not its size and changes.
pub fn evaluate_update(
    source: &Source,
    last: Option<&Feed>,
    answer: Answer,
    accepted: bool,
    now: Timestamp,
) -> Result<AcceptedUpdate, Box<RejectedUpdate>> {
    let last = last.map(|feed| past::aged(source, feed, now));
    let last = last.as_ref();
    let fetched = match answer {
        Answer::List(fetched) => with_kept(fetched, last),
        Answer::Unchanged(fetched) => {
            // Conditional requests are only sent when a list exists.
            let last = last
                .cloned()
                .unwrap_or_else(|| Feed::new(Vec::new(), fetched));
            if let Err(rejection) = judge(source, None, &last.prefixes, true) {
                return Err(Box::new(RejectedUpdate {
                    rejection,
                    difference: Difference::default(),
                    fetched: Fetched {
                        prefixes: last.prefixes,
                        notes: last.notes,
                        fetched,
                        validators: last.validators,
                        again: None,
                        kept: Vec::new(),
                    },
                    kept: None,
                }));
            }
            let grace = grace_prefixes(source, Some(&last), &[], &last.prefixes, now);
            let feed = Feed {
                grace,
                fetched,
                ..last
            };
            return Ok(AcceptedUpdate {
                feed: with_notes(source, feed),
                difference: Difference::default(),
            });
        }
    };
    let listed = last.map_or(&[][..], |feed| &feed.prefixes);
    let difference = Difference::between(listed, &fetched.prefixes);
    let is_news = last.is_none() || !difference.is_empty();
    // An unchanged list passed before, maybe by `accept`, so its size is not checked again. Its prefixes are, since the
    // configuration may have changed.
    let is_judged_anew = !accepted && is_news;
    let (earliest, fewest) = match last {
        Some(last) if is_judged_anew => (
            past::earliest(&last.changes, &last.prefixes),
            past::fewest(last, now),
        ),
        _ => (Vec::new(), PerFamily::default()),
    };
    let window = source.gate.growth_window.as_secs();
    let active = last.iter().flat_map(|last| &last.grace);
    let active = active.filter(|grace| grace.until > now);
    let grace: Vec<IpNet> = active.clone().map(|grace| grace.prefix).collect();
    let settled = active.filter(|grace| grace.seconds >= window);
    let settled: Vec<IpNet> = settled.map(|grace| grace.prefix).collect();
    let before = last.map(|last| Before {
        last: &last.prefixes,
        earliest: &earliest,
        grace: &grace,
        settled: &settled,
        fewest,
    });
    if !matches!(source.origin, Origin::Prefixes(_))
        && let Err(rejection) = judge(source, before, &fetched.prefixes, !is_judged_anew)
    {
        return Err(Box::new(RejectedUpdate {
            rejection,
            difference,
            fetched,
            kept: last.cloned(),
        }));
    }
    let mut grace = grace_prefixes(source, last, &difference.removed, &fetched.prefixes, now);
    let changes = match last {
        Some(last) if !accepted => past::changes(source, last, &fetched.prefixes, now),
        _ => Vec::new(),
    };
    if accepted {
        // Later lists are compared with the approved state: the list, and the grace prefixes beside it.
        for grace in &mut grace {
            grace.seconds = u64::MAX;
        }
    }
    let feed = Feed {
        prefixes: fetched.prefixes,
        grace,
        fetched: fetched.fetched,
        validators: fetched.validators,
        notes: fetched.notes,
        changes,
        answered: last.map_or(now, |last| last.answered),
    };
    Ok(AcceptedUpdate {
        feed: with_notes(source, feed),
        difference,
    })
}

/// Returns `feed` with new notes about its size instead of the earlier ones.
fn with_notes(source: &Source, mut feed: Feed) -> Feed {
    feed.notes = gate::without_notes(std::mem::take(&mut feed.notes));
    if !matches!(source.origin, Origin::Prefixes(_) | Origin::Added) {
        let notes = if feed.grace.is_empty() {
            gate::notes(source, &feed.prefixes)
        } else {
            let mut active: Vec<IpNet> = feed.active().collect();
            active.sort_unstable();
            gate::notes(source, &active)
        };
        feed.notes.extend(notes);
    }
    feed
}

/// Adds to `fetched` the prefixes in `last` of the address families in which a query failed ([`Fetched::kept`]).
fn with_kept(mut fetched: Fetched, last: Option<&Feed>) -> Fetched {
    let kept = std::mem::take(&mut fetched.kept);
    if let Some(last) = last.filter(|_| !kept.is_empty()) {
        let before = last.prefixes.iter();
        fetched
            .prefixes
            .extend(before.filter(|prefix| kept.contains(&Family::of(prefix))));
        fetched.prefixes.sort_unstable();
        fetched.prefixes.dedup();
    }
    fetched
}

/// Returns `feed` without the grace prefixes whose grace period ended by `now`, and these prefixes.
///
/// `None` means that no grace period has ended.
pub fn expire_grace(feed: &Feed, now: Timestamp) -> Option<(Feed, Vec<IpNet>)> {
    let (grace, gone): (Vec<GracePrefix>, Vec<GracePrefix>) =
        feed.grace.iter().partition(|grace| grace.until > now);
    let gone = gone
        .into_iter()
        .map(|grace| grace.prefix)
        .collect::<Vec<_>>();
    (!gone.is_empty()).then(|| {
        let feed = Feed {
            grace,
            ..feed.clone()
        };
        (feed, gone)
    })
}

/// Returns the latest time at which a grace period of `source` may end: `now` plus its configured grace period.
///
/// Stored ends are clamped to this time, since a longer grace period or a clock that was ahead may have set a later
/// one.
fn end_of_grace(source: &Source, now: Timestamp) -> Timestamp {
    now.saturating_add(source.grace).unwrap_or(Timestamp::MAX)
}

/// Returns the new grace prefixes of `source`, sorted: those of `last` whose grace period has not ended and that are
/// not in the new list `listed`, and, unless `grace` is 0, those in `removed`.
fn grace_prefixes(
    source: &Source,
    last: Option<&Feed>,
    removed: &[IpNet],
    listed: &[IpNet],
    now: Timestamp,
) -> Vec<GracePrefix> {
    let until = end_of_grace(source, now);
    let before = last.map_or(&[][..], |feed| &feed.grace);
    let mut grace: Vec<GracePrefix> = before
        .iter()
        .map(|grace| GracePrefix {
            until: grace.until.min(until),
            ..*grace
        })
        .filter(|grace| grace.until > now && listed.binary_search(&grace.prefix).is_err())
        .collect();
    if until > now {
        grace.extend(removed.iter().map(|&prefix| GracePrefix {
            prefix,
            until,
            seconds: 0,
        }));
    }
    grace.sort_unstable();
    grace
}
