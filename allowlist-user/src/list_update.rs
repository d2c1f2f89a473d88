//! What becomes of a source's feed when the source is asked again: it is taken whole, with what it lists
//! no more held back for its grace period, or it stays as it is.
//!
//! Pure: the caller fetches, tells the time, publishes and stores. So the daemon, `check` and `diff` decide
//! alike, and a test can play any sequence.

use ipnet::IpNet;
use jiff::Timestamp;

use crate::difference::Difference;
use crate::gate::{self, Before, Rejection, judge};
use crate::past;
use crate::policy::{Answer, Family, Feed, Fetched, Held, Origin, PerFamily, Source};
use crate::rejected::list_id;

/// A feed that passed the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedUpdate {
    /// What the source has from now on.
    pub feed: Feed,
    /// What its list has more and less than the one before.
    pub difference: Difference,
}

/// A feed that did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedUpdate {
    /// Why.
    pub rejection: Rejection,
    /// What it would have changed.
    pub difference: Difference,
    /// The list, for an operator who accepts it after all.
    pub fetched: Fetched,
    /// The feed that the source keeps, with the ages of this answer.
    pub kept: Option<Feed>,
}

impl RejectedUpdate {
    /// Why, of which source, and what to do.
    pub fn reason(&self, source: &Source) -> String {
        let name = &source.name;
        let reason = format!("source {name}: {}: {}", source.origin, self.rejection);
        if self.rejection.is_acceptable() {
            let id = list_id(name, &self.fetched.prefixes);
            let reason = format!("{reason}; the id of this list is {id}");
            format!("{reason}; if the vendor means it, `allowlist accept {name}` lets it in")
        } else {
            reason
        }
    }
}

/// What a source has after an answer. `last` is what it has now; `accepted` is the operator's word for this
/// list.
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
            // Nobody asks whether a list is new who has none.
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
            let held = hold(source, Some(&last), &[], &last.prefixes, now);
            let feed = Feed {
                held,
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
    // What is in force already was let in before, maybe by the operator. What no list may have is for the
    // configuration, which may be another now.
    let is_judged_anew = !accepted && is_news;
    let (earliest, fewest) = match last {
        Some(last) if is_judged_anew => (
            past::earliest(&last.changes, &last.prefixes),
            past::fewest(last, now),
        ),
        _ => (Vec::new(), PerFamily::default()),
    };
    let window = source.gate.growth_window.as_secs();
    let active = last.iter().flat_map(|last| &last.held);
    let active = active.filter(|held| held.until > now);
    let held: Vec<IpNet> = active.clone().map(|held| held.prefix).collect();
    let settled = active.filter(|held| held.seconds >= window);
    let settled: Vec<IpNet> = settled.map(|held| held.prefix).collect();
    let before = last.map(|last| Before {
        last: &last.prefixes,
        earliest: &earliest,
        held: &held,
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
    let mut held = hold(source, last, &difference.removed, &fetched.prefixes, now);
    let changes = match last {
        Some(last) if !accepted => past::changes(source, last, &fetched.prefixes, now),
        _ => Vec::new(),
    };
    if accepted {
        // Later lists are compared with the approved state: the list, and the grace prefixes beside it.
        for held in &mut held {
            held.seconds = u64::MAX;
        }
    }
    let feed = Feed {
        prefixes: fetched.prefixes,
        held,
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

/// The feed with the notes that its size demands now.
fn with_notes(source: &Source, mut feed: Feed) -> Feed {
    feed.notes = gate::without_notes(std::mem::take(&mut feed.notes));
    if !matches!(source.origin, Origin::Prefixes(_) | Origin::Added) {
        let notes = if feed.held.is_empty() {
            gate::notes(source, &feed.prefixes)
        } else {
            let mut active: Vec<IpNet> = feed.in_force().collect();
            active.sort_unstable();
            gate::notes(source, &active)
        };
        feed.notes.extend(notes);
    }
    feed
}

/// Adds the previous prefixes of each family without an answer to the list.
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

/// The feed without what has been held for long enough; none if it would be the same.
pub fn expire_grace(feed: &Feed, now: Timestamp) -> Option<(Feed, Vec<IpNet>)> {
    let (held, gone): (Vec<Held>, Vec<Held>) = feed.held.iter().partition(|held| held.until > now);
    let gone = gone.into_iter().map(|held| held.prefix).collect::<Vec<_>>();
    (!gone.is_empty()).then(|| {
        let feed = Feed {
            held,
            ..feed.clone()
        };
        (feed, gone)
    })
}

/// Nothing is held for longer: a shorter grace period may be configured meanwhile, and what was stamped by a
/// clock that was ahead has it no longer for that.
fn end_of_grace(source: &Source, now: Timestamp) -> Timestamp {
    now.saturating_add(source.grace).unwrap_or(Timestamp::MAX)
}

/// What was held before and is not listed again, and what is listed no more.
fn hold(
    source: &Source,
    last: Option<&Feed>,
    removed: &[IpNet],
    listed: &[IpNet],
    now: Timestamp,
) -> Vec<Held> {
    let until = end_of_grace(source, now);
    let before = last.map_or(&[][..], |feed| &feed.held);
    let mut held: Vec<Held> = before
        .iter()
        .map(|held| Held {
            until: held.until.min(until),
            ..*held
        })
        .filter(|held| held.until > now && listed.binary_search(&held.prefix).is_err())
        .collect();
    if until > now {
        held.extend(removed.iter().map(|&prefix| Held {
            prefix,
            until,
            seconds: 0,
        }));
    }
    held.sort_unstable();
    held
}
