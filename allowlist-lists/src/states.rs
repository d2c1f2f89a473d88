//! The state of every source: its list, and its health if it fails.
//!
//! Pure: the caller states the result of a fetch and the time, so a test can run any sequence of answers, failures and
//! restarts. A copy of the states is cheap, since copies share the lists: a caller changes a copy, publishes it, and
//! replaces the states if publishing succeeds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use allowlist_policy::difference::Difference;
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::{Answer, Feed, Fetched, GracePrefix, Origin, Snapshot, Source};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use crate::event::{Change, Event, EventKind};
use crate::list_update::{AcceptedUpdate, RejectedUpdate, evaluate_update, expire_grace};
use crate::rejected::{RejectedList, RejectedLists, list_id};

/// The tolerance for comparing a stored time with the reading of the wall clock before it was set, which is an
/// estimate.
const MOMENT: SignedDuration = SignedDuration::from_secs(5);

/// The states of all sources: their feeds, and the health of those with a failure or a stale list.
#[derive(Clone, Debug, Default)]
pub struct SourceStates {
    feeds: Snapshot,
    /// The sources with a failure or a stale list, by name.
    health: BTreeMap<String, SourceHealth>,
}

/// The health of a source with a failure or a stale list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceHealth {
    /// The reason why the last fetch activated no list; `None` after a success.
    pub failure: Option<String>,
    /// The stable identifier of the error in `failure`; `None` without a failure.
    pub failure_code: Option<ErrorCode>,
    /// The number of consecutive fetches that activated no list.
    pub failures: u32,
    /// The list that the gate rejected last, until a later list passes the gate; `None` if there is none.
    pub rejected: Option<Arc<Fetched>>,
    /// The id of the list in `rejected`; `None` without one.
    pub rejected_id: Option<String>,
    /// The reason why the gate rejected the list in `rejected`; without meaning if that is `None`.
    pub rejection: Option<String>,
    /// Whether the operator may accept the list in `rejected`; without meaning if that is `None`.
    pub is_acceptable: bool,
    /// Whether the event that the list is stale was emitted already, so that it is not emitted again.
    pub is_stale: bool,
}

impl SourceHealth {
    /// Returns whether the source has a rejected list that the operator may accept.
    pub fn has_acceptable_list(&self) -> bool {
        self.rejected.is_some() && self.is_acceptable
    }
}

/// A new feed of a source that passed the gate and is ready to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The name of the source.
    pub source: String,
    /// The new feed of the source.
    pub feed: Feed,
    /// Whether the proposal changes the active prefixes, so that a generation has to be published.
    pub needs_publish: bool,
    delta: Option<ListDelta>,
    /// The grace prefixes of the previous feed that leave the new one, because their grace period has ended or `grace`
    /// is 0 now. Prefixes that the list has again are not among them.
    expired: Vec<IpNet>,
}

/// The change from a source's previous list to the proposed one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ListDelta {
    difference: Difference,
    grace_until: Option<Timestamp>,
    accepted: bool,
}

impl ListDelta {
    fn change(self) -> Change {
        Change::new(self.difference.added, self.difference.removed)
    }
}

impl Proposal {
    /// Returns the prefixes that the proposal adds to and removes from the source's list; empty if the list is
    /// unchanged.
    pub fn change(&self) -> Change {
        let delta = self.delta.clone();
        delta.map_or_else(Change::default, ListDelta::change)
    }
}

impl SourceStates {
    /// Returns the states of sources with these feeds, and without failures.
    pub fn new(feeds: Snapshot) -> Self {
        Self {
            feeds,
            health: BTreeMap::new(),
        }
    }

    /// Returns the feeds of all sources.
    pub fn feeds(&self) -> &Snapshot {
        &self.feeds
    }

    /// Returns the feed of the source named `name`, or `None` if it has no list yet.
    pub fn feed(&self, name: &str) -> Option<&Feed> {
        self.feeds.get(name).map(Arc::as_ref)
    }

    /// Moves the feed and the health of the source named `name` from the states `from` to these states.
    pub fn move_from(&mut self, name: &str, from: &mut Self) {
        self.feeds.extend(from.feeds.remove_entry(name));
        self.health.extend(from.health.remove_entry(name));
    }

    /// Sets the feed of the source named `name`, or removes it if `feed` is `None`. Emits no events.
    pub fn set_feed(&mut self, name: &str, feed: Option<Feed>) {
        match feed {
            Some(feed) => self.feeds.insert(name.to_owned(), Arc::new(feed)),
            None => self.feeds.remove(name),
        };
    }

    /// Returns the health of the source named `name`, or `None` if it has neither a failure nor a stale list.
    pub fn health(&self, name: &str) -> Option<&SourceHealth> {
        self.health.get(name)
    }

    /// Returns the ids of the rejected lists, by the name of their source.
    pub fn rejected_ids(&self) -> BTreeMap<&str, &str> {
        let ids = self.health.iter();
        ids.filter_map(|(name, health)| Some((&**name, health.rejected_id.as_deref()?)))
            .collect()
    }

    /// Returns the rejected lists of all sources, each with its difference from the active list.
    pub fn rejected(&self) -> RejectedLists {
        let list = |(name, health): (&String, &SourceHealth)| {
            let fetched = health.rejected.as_ref()?;
            let active = self.feed(name).map_or(&[][..], |feed| &feed.prefixes);
            let list = RejectedList {
                id: health.rejected_id.clone()?,
                fetched: fetched.fetched,
                reason: health.rejection.clone().unwrap_or_default(),
                acceptable: health.is_acceptable,
                prefixes: fetched.prefixes.len(),
                difference: Difference::between(active, &fetched.prefixes),
            };
            Some((name.clone(), list))
        };
        RejectedLists {
            sources: self.health.iter().filter_map(list).collect(),
        }
    }

    /// Evaluates the answer of `source` against its current feed, and returns the new feed as a proposal.
    ///
    /// # Errors
    /// The gate rejects the list.
    pub fn propose(
        &self,
        source: &Source,
        answer: Answer,
        now: Timestamp,
    ) -> Result<Proposal, Box<RejectedUpdate>> {
        let last = self.feed(&source.name);
        let update = evaluate_update(source, last, answer, false, now)?;
        Ok(proposal(source, last, update, false))
    }

    /// Evaluates the present list of `source` as the successor of `last_good`, which was read from disk only after the
    /// present list had been fetched.
    ///
    /// `None` means that the source has no present list. An error means that the gate rejects the present list.
    pub fn propose_after(
        &self,
        source: &Source,
        last_good: &Feed,
        now: Timestamp,
    ) -> Option<Result<Proposal, Box<RejectedUpdate>>> {
        let feed = self.feed(&source.name)?.clone();
        let fetched = Fetched {
            notes: feed.notes,
            validators: feed.validators,
            ..Fetched::new(feed.prefixes, feed.fetched)
        };
        let update = evaluate_update(source, Some(last_good), Answer::List(fetched), false, now);
        Some(update.map(|update| proposal(source, Some(last_good), update, false)))
    }

    /// Evaluates the rejected list of `source` as accepted by the operator.
    ///
    /// `None` means that the source has no rejected list that the operator may accept.
    pub fn propose_rejected(
        &self,
        source: &Source,
        now: Timestamp,
    ) -> Option<Result<Proposal, Box<RejectedUpdate>>> {
        let health = self.health.get(&source.name)?;
        let fetched = health.rejected.as_ref().filter(|_| health.is_acceptable)?;
        let fetched = Fetched::clone(fetched);
        let last = self.feed(&source.name);
        let update = evaluate_update(source, last, Answer::List(fetched), true, now);
        Some(update.map(|update| proposal(source, last, update, true)))
    }

    /// Removes all grace prefixes whose grace period ended by `now`. Returns the events, with the generation 0 until
    /// [`Event::with_generation`] sets it.
    pub fn expire_grace(&mut self, now: Timestamp) -> Vec<Event> {
        let released: Vec<(String, Feed, Vec<IpNet>)> = self
            .feeds
            .iter()
            .filter_map(|(name, feed)| {
                let (feed, gone) = expire_grace(feed, now)?;
                Some((name.clone(), feed, gone))
            })
            .collect();
        let mut happened = Vec::new();
        for (name, feed, gone) in released {
            let change = Change::new(Vec::new(), gone);
            let kind = EventKind::Released {
                generation: 0,
                change,
            };
            happened.extend(events(&name, now, [kind]));
            self.set_feed(&name, Some(feed));
        }
        happened
    }

    /// Returns the earliest time at which a grace period of any source ends, or `None` if there are no grace prefixes.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        let grace = self.feeds.values().flat_map(|feed| &feed.grace);
        grace.map(|grace| grace.until).min()
    }

    /// Makes the proposed feed the feed of its source, and clears the source's health. Returns the events, with the
    /// generation 0 until [`Event::with_generation`] sets it.
    pub fn commit(&mut self, proposal: Proposal, now: Timestamp) -> Vec<Event> {
        let Proposal {
            source: name,
            feed,
            needs_publish: _,
            delta,
            expired,
        } = proposal;
        self.set_feed(&name, Some(feed));
        let health = self.health.remove(&name);
        let was_bad = health.is_some_and(|health| health.failure.is_some());
        let changed = delta.map(|delta| EventKind::Changed {
            generation: 0,
            grace_until: delta.grace_until,
            accepted: delta.accepted,
            change: delta.change(),
        });
        let released = (!expired.is_empty()).then(|| EventKind::Released {
            generation: 0,
            change: Change::new(Vec::new(), expired),
        });
        let recovered = was_bad.then_some(EventKind::Recovered);
        let happened = [recovered, changed, released].into_iter().flatten();
        events(&name, now, happened)
    }

    /// Records that fetching the source named `name` failed, or gave no valid list. Returns an event only for the first
    /// failure since the last success.
    pub fn record_failure(
        &mut self,
        name: &str,
        code: ErrorCode,
        reason: String,
        now: Timestamp,
    ) -> Vec<Event> {
        let health = self.health.entry(name.to_owned()).or_default();
        health.failures = health.failures.saturating_add(1);
        let is_first = health.failure.is_none();
        health.failure = Some(reason.clone());
        health.failure_code = Some(code);
        let happened = is_first.then_some(EventKind::Failed { reason });
        events(name, now, happened)
    }

    /// Records that the gate rejected a list of the source named `name`. Returns an event unless the source's last
    /// failure was the same rejection of the same list.
    pub fn record_rejection(
        &mut self,
        name: &str,
        refused: RejectedUpdate,
        reason: String,
        now: Timestamp,
    ) -> Vec<Event> {
        if let Some(kept) = refused.kept {
            self.set_feed(name, Some(kept));
        }
        let health = self.health.entry(name.to_owned()).or_default();
        health.failures = health.failures.saturating_add(1);
        let is_known = health.failure.as_ref() == Some(&reason)
            && health.rejected.as_ref().map(|list| &list.prefixes)
                == Some(&refused.fetched.prefixes);
        health.failure = Some(reason.clone());
        health.failure_code = Some(refused.rejection.code());
        health.is_acceptable = refused.rejection.is_acceptable();
        health.rejected_id = Some(list_id(name, &refused.fetched.prefixes));
        health.rejection = Some(refused.rejection.to_string());
        health.rejected = Some(Arc::new(refused.fetched));
        let happened = (!is_known).then(|| EventKind::Refused {
            reason,
            change: Change::new(refused.difference.added, refused.difference.removed),
        });
        events(name, now, happened)
    }

    /// Records that a list of the source named `name` passed the gate but could not be published. Returns an event
    /// unless the last failure had the same reason.
    pub fn record_unpublished(
        &mut self,
        name: &str,
        code: ErrorCode,
        reason: String,
        change: Change,
        now: Timestamp,
    ) -> Vec<Event> {
        let health = self.health.entry(name.to_owned()).or_default();
        health.failures = health.failures.saturating_add(1);
        let is_known = health.failure.replace(reason.clone()).as_ref() == Some(&reason);
        health.failure_code = Some(code);
        health.rejected = None;
        health.rejected_id = None;
        let happened = (!is_known).then_some(EventKind::Refused { reason, change });
        events(name, now, happened)
    }

    /// Marks each of `sources` whose list is stale; returns an event for each that was not marked before.
    pub fn mark_stale<'s>(
        &mut self,
        sources: impl Iterator<Item = &'s Source>,
        now: Timestamp,
    ) -> Vec<Event> {
        let mut happened = Vec::new();
        for source in sources {
            let Some(feed) = self.feeds.get(&source.name) else {
                continue;
            };
            if is_stale(source, feed, now) {
                let health = self.health.entry(source.name.clone()).or_default();
                if !std::mem::replace(&mut health.is_stale, true) {
                    let fetched = feed.fetched;
                    happened.extend(events(&source.name, now, [EventKind::Stale { fetched }]));
                }
            }
        }
        happened
    }

    /// Shifts stored times by `by` after the clock was set forward to `now`, so that no grace period ends early.
    ///
    /// Does nothing after the clock was set back: times then stay later than they should be until the next answer,
    /// which is harmless.
    pub fn apply_clock_step(&mut self, now: Timestamp, by: SignedDuration) {
        let Ok(before) = now.checked_sub(by) else {
            return;
        };
        if by.is_negative() {
            return;
        }
        for feed in self.feeds.values_mut().map(Arc::make_mut) {
            // A time after anything that this clock has shown was taken before a boot, or after the clock was set, and
            // is right.
            for time in [&mut feed.fetched, &mut feed.answered] {
                if *time <= before.saturating_add(MOMENT).unwrap_or(before) {
                    *time = time.saturating_add(by).unwrap_or(*time);
                }
            }
            for grace in &mut feed.grace {
                if grace.until.duration_since(before) <= longest_grace() {
                    grace.until = grace.until.saturating_add(by).unwrap_or(grace.until);
                }
            }
        }
    }
}

fn longest_grace() -> SignedDuration {
    SignedDuration::try_from(Source::LONGEST_GRACE).unwrap_or(SignedDuration::MAX)
}

/// Returns whether the list of `source` is stale at the time `now`: fetched longer ago than `max_age`.
pub fn is_stale(source: &Source, feed: &Feed, now: Timestamp) -> bool {
    let age: Result<Duration, _> = now.duration_since(feed.fetched).try_into();
    // The age of a list from the future is unknown.
    source.can_age() && age.is_ok_and(|age| age > source.max_age)
}

fn proposal(
    source: &Source,
    last: Option<&Feed>,
    update: AcceptedUpdate,
    accepted: bool,
) -> Proposal {
    let AcceptedUpdate {
        feed,
        mut difference,
    } = update;
    let was_in_grace = last.map_or(&[][..], |last| &last.grace);
    let expired = was_in_grace
        .iter()
        .map(|grace| grace.prefix)
        .filter(|prefix| !is_in_grace(&feed.grace, prefix))
        .filter(|prefix| feed.prefixes.binary_search(prefix).is_err())
        .collect();
    let is_same = |last: &Feed| difference.is_empty() && last.grace.len() == feed.grace.len();
    let needs_publish =
        last.is_none_or(|last| !is_same(last) && last.sorted_active() != feed.sorted_active());
    if matches!(source.origin, Origin::Names(_)) {
        // The answers of a name rotate: a grace prefix that returns was never removed, and a missing one may return.
        difference
            .added
            .retain(|prefix| !is_in_grace(was_in_grace, prefix));
        difference
            .removed
            .retain(|prefix| !is_in_grace(&feed.grace, prefix));
    }
    let grace_until = difference
        .removed
        .first()
        .and_then(|prefix| feed.grace.iter().find(|grace| grace.prefix == *prefix))
        .map(|grace| grace.until);
    let delta = (last.is_none() || !difference.is_empty()).then_some(ListDelta {
        difference,
        grace_until,
        accepted,
    });
    Proposal {
        source: source.name.clone(),
        feed,
        needs_publish,
        delta,
        expired,
    }
}

/// Returns whether `prefix` is one of the grace prefixes in `grace`, which must be sorted.
fn is_in_grace(grace: &[GracePrefix], prefix: &IpNet) -> bool {
    grace
        .binary_search_by_key(prefix, |grace| grace.prefix)
        .is_ok()
}

fn events(
    name: &str,
    time: Timestamp,
    happened: impl IntoIterator<Item = EventKind>,
) -> Vec<Event> {
    let event = |what| Event {
        time,
        source: name.to_owned(),
        kind: what,
    };
    happened.into_iter().map(event).collect()
}

#[cfg(test)]
mod tests;
