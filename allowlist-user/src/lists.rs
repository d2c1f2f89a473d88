//! What each source has and how it stands: the book that a daemon keeps of its lists.
//!
//! Pure: it is told what came of a fetch and what time it is, says what would be in force then, and is told
//! whether that got in force. So a test can play any sequence of answers, failures and restarts.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use crate::difference::Difference;
use crate::error_code::ErrorCode;
use crate::event::{Change, Event, What};
use crate::policy::{Answer, Feed, Fetched, Held, Origin, Snapshot, Source};
use crate::rejected::{RejectedList, RejectedLists, list_id};
use crate::renew::{Refused, Renewal, release, renew};

/// Two times that are no further apart are of the same moment: a look at the clock is never that late.
const MOMENT: SignedDuration = SignedDuration::from_secs(5);

/// The book.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    feeds: Snapshot,
    /// Sources that are not well; by name.
    standings: BTreeMap<String, Standing>,
}

/// How a source stands that is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Why the last attempt brought no list that is in force.
    pub failure: Option<String>,
    /// The code of that reason.
    pub failure_code: Option<ErrorCode>,
    /// How many attempts in a row brought none.
    pub times: u32,
    /// The list that the gate refused last.
    pub refused: Option<Fetched>,
    /// The id of that list.
    pub refused_id: Option<String>,
    /// The reason of the gate.
    pub refusal: Option<String>,
    /// Whether the operator may accept that list.
    pub is_acceptable: bool,
    /// Whether somebody was told that the list is older than it should be.
    pub is_stale: bool,
}

impl Standing {
    /// Whether a list waits for the operator to accept it.
    pub fn waits(&self) -> bool {
        self.refused.is_some() && self.is_acceptable
    }
}

/// What a source would have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The source's name.
    pub source: String,
    /// Its list.
    pub feed: Feed,
    /// Whether the kernel has to be told, or only the disk.
    pub is_news: bool,
    happened: Option<Happened>,
    /// What was held, and is not any more though it is not listed again: grace is shorter now.
    let_go: Vec<IpNet>,
}

/// A list that is other than the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Happened {
    difference: Difference,
    held_until: Option<Timestamp>,
    accepted: bool,
}

impl Happened {
    fn change(self) -> Change {
        Change::new(self.difference.added, self.difference.removed)
    }
}

impl Lists {
    /// With the lists that a start begins with.
    pub fn new(feeds: Snapshot) -> Self {
        Self {
            feeds,
            standings: BTreeMap::new(),
        }
    }

    /// What every source has.
    pub fn feeds(&self) -> &Snapshot {
        &self.feeds
    }

    /// What a source has.
    pub fn feed(&self, name: &str) -> Option<&Feed> {
        self.feeds.get(name)
    }

    /// Takes over what another book says of a source.
    pub fn take_over(&mut self, name: &str, from: &mut Self) {
        self.feeds.extend(from.feeds.remove_entry(name));
        self.standings.extend(from.standings.remove_entry(name));
    }

    /// Puts a list in that comes from no source, or takes it out.
    pub fn put(&mut self, name: &str, feed: Option<Feed>) {
        match feed {
            Some(feed) => self.feeds.insert(name.to_owned(), feed),
            None => self.feeds.remove(name),
        };
    }

    /// How a source stands, if it is not well.
    pub fn standing(&self, name: &str) -> Option<&Standing> {
        self.standings.get(name)
    }

    /// The ids of the rejected lists that wait, by source.
    pub fn rejected_ids(&self) -> BTreeMap<&str, &str> {
        let ids = self.standings.iter();
        ids.filter_map(|(name, standing)| Some((&**name, standing.refused_id.as_deref()?)))
            .collect()
    }

    /// The rejected lists that wait, compared with the active ones.
    pub fn rejected(&self) -> RejectedLists {
        let list = |(name, standing): (&String, &Standing)| {
            let fetched = standing.refused.as_ref()?;
            let active = self.feeds.get(name).map_or(&[][..], |feed| &feed.prefixes);
            let list = RejectedList {
                id: standing.refused_id.clone()?,
                fetched: fetched.fetched,
                reason: standing.refusal.clone().unwrap_or_default(),
                acceptable: standing.is_acceptable,
                prefixes: fetched.prefixes.len(),
                difference: Difference::between(active, &fetched.prefixes),
            };
            Some((name.clone(), list))
        };
        RejectedLists {
            sources: self.standings.iter().filter_map(list).collect(),
        }
    }

    /// What an answer would make of a source; an error if the gate refuses it.
    pub fn propose(
        &self,
        source: &Source,
        answer: Answer,
        now: Timestamp,
    ) -> Result<Proposal, Box<Refused>> {
        let last = self.feeds.get(&source.name);
        let renewal = renew(source, last, answer, false, now)?;
        Ok(proposal(source, last, renewal, false))
    }

    /// Judges the list of a source that answered before its last-good list was read, as the list after the last-good
    /// one. None if the source has not answered.
    pub fn propose_after(
        &self,
        source: &Source,
        last_good: &Feed,
        now: Timestamp,
    ) -> Option<Result<Proposal, Box<Refused>>> {
        let feed = self.feeds.get(&source.name)?.clone();
        let fetched = Fetched {
            notes: feed.notes,
            validators: feed.validators,
            ..Fetched::new(feed.prefixes, feed.fetched)
        };
        let renewal = renew(source, Some(last_good), Answer::List(fetched), false, now);
        Some(renewal.map(|renewal| proposal(source, Some(last_good), renewal, false)))
    }

    /// What the list that was refused last would make of a source; none if there is none.
    pub fn propose_refused(
        &self,
        source: &Source,
        now: Timestamp,
    ) -> Option<Result<Proposal, Box<Refused>>> {
        let standing = self.standings.get(&source.name)?;
        let fetched = standing
            .refused
            .clone()
            .filter(|_| standing.is_acceptable)?;
        let last = self.feeds.get(&source.name);
        let renewal = renew(source, last, Answer::List(fetched), true, now);
        Some(renewal.map(|renewal| proposal(source, last, renewal, true)))
    }

    /// Lets go of what was held for long enough, of all sources at once, if that can be put in force; else all
    /// stays as it was. What is asked to do that gets the book as it would be, and says which generation has it.
    pub fn release<E>(
        &mut self,
        now: Timestamp,
        put_in_force: impl FnOnce(&Self) -> Result<u32, E>,
    ) -> Result<Vec<Event>, E> {
        let released: Vec<(String, Feed, Vec<IpNet>)> = self
            .feeds
            .iter()
            .filter_map(|(name, feed)| {
                let (feed, gone) = release(feed, now)?;
                Some((name.clone(), feed, gone))
            })
            .collect();
        let (mut before, mut gone) = (Vec::new(), Vec::new());
        for (name, feed, prefixes) in released {
            before.extend(
                self.feeds
                    .insert(name.clone(), feed)
                    .map(|feed| (name.clone(), feed)),
            );
            gone.push((name, prefixes));
        }
        let generation = put_in_force(self).inspect_err(|_| self.feeds.extend(before))?;
        let released = gone.into_iter().flat_map(|(name, prefixes)| {
            let change = Change::new(Vec::new(), prefixes);
            events(&name, now, [What::Released { generation, change }])
        });
        Ok(released.collect())
    }

    /// When the next prefix goes that is held.
    pub fn next_release(&self) -> Option<Timestamp> {
        let held = self.feeds.values().flat_map(|feed| &feed.held);
        held.map(|held| held.until).min()
    }

    /// Takes a proposal over, if it can be put in force; else all stays as it was, and what would have changed
    /// comes back. What is asked to do that gets the book as it would be, and says which generation has it.
    pub fn adopt<E>(
        &mut self,
        proposal: Proposal,
        now: Timestamp,
        put_in_force: impl FnOnce(&Self) -> Result<u32, E>,
    ) -> Result<Vec<Event>, (E, Change)> {
        let Proposal {
            source: name,
            feed,
            is_news: _,
            happened,
            let_go,
        } = proposal;
        let before = self.feeds.insert(name.clone(), feed);
        let standing = self.standings.remove(&name);
        let generation = match put_in_force(self) {
            Ok(generation) => generation,
            Err(error) => {
                match before {
                    Some(before) => self.feeds.insert(name.clone(), before),
                    None => self.feeds.remove(&name),
                };
                self.standings
                    .extend(standing.map(|standing| (name, standing)));
                let change = happened.map_or_else(Change::default, Happened::change);
                return Err((error, change));
            }
        };
        let was_bad = standing.is_some_and(|standing| standing.failure.is_some());
        let changed = happened.map(|happened| What::Changed {
            generation,
            held_until: happened.held_until,
            accepted: happened.accepted,
            change: happened.change(),
        });
        let released = (!let_go.is_empty()).then(|| What::Released {
            generation,
            change: Change::new(Vec::new(), let_go),
        });
        let recovered = was_bad.then_some(What::Recovered);
        let happened = [recovered, changed, released].into_iter().flatten();
        Ok(events(&name, now, happened))
    }

    /// The source could not be had, or what it has cannot be in force.
    pub fn fail(
        &mut self,
        name: &str,
        code: ErrorCode,
        reason: String,
        now: Timestamp,
    ) -> Vec<Event> {
        let standing = self.standings.entry(name.to_owned()).or_default();
        standing.times = standing.times.saturating_add(1);
        let is_first = standing.failure.is_none();
        standing.failure = Some(reason.clone());
        standing.failure_code = Some(code);
        let happened = is_first.then_some(What::Failed { reason });
        events(name, now, happened)
    }

    /// The gate refused what the source has.
    pub fn refuse(
        &mut self,
        name: &str,
        refused: Refused,
        reason: String,
        now: Timestamp,
    ) -> Vec<Event> {
        if let Some(kept) = refused.kept {
            self.feeds.insert(name.to_owned(), kept);
        }
        let standing = self.standings.entry(name.to_owned()).or_default();
        standing.times = standing.times.saturating_add(1);
        let is_known = standing.failure.as_ref() == Some(&reason)
            && standing.refused.as_ref().map(|list| &list.prefixes)
                == Some(&refused.fetched.prefixes);
        standing.failure = Some(reason.clone());
        standing.failure_code = Some(refused.refusal.code());
        standing.is_acceptable = refused.refusal.is_acceptable();
        standing.refused_id = Some(list_id(name, &refused.fetched.prefixes));
        standing.refusal = Some(refused.refusal.to_string());
        standing.refused = Some(refused.fetched);
        let happened = (!is_known).then(|| What::Refused {
            reason,
            change: Change::new(refused.difference.added, refused.difference.removed),
        });
        events(name, now, happened)
    }

    /// A list passed the gate, and cannot be in force all the same.
    pub fn reject(
        &mut self,
        name: &str,
        code: ErrorCode,
        reason: String,
        change: Change,
        now: Timestamp,
    ) -> Vec<Event> {
        let standing = self.standings.entry(name.to_owned()).or_default();
        standing.times = standing.times.saturating_add(1);
        let is_known = standing.failure.replace(reason.clone()).as_ref() == Some(&reason);
        standing.failure_code = Some(code);
        standing.refused = None;
        standing.refused_id = None;
        let happened = (!is_known).then_some(What::Refused { reason, change });
        events(name, now, happened)
    }

    /// Says once of each of these sources that its list is older than it should be.
    pub fn age<'s>(
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
                let standing = self.standings.entry(source.name.clone()).or_default();
                if !std::mem::replace(&mut standing.is_stale, true) {
                    let fetched = feed.fetched;
                    happened.extend(events(&source.name, now, [What::Stale { fetched }]));
                }
            }
        }
        happened
    }

    /// The clock was set forward by so much, and shows `now`: what was stamped by it before goes along, so that
    /// nothing that is held goes early. Where it was set back, times are later than they should be until the
    /// next answer, which is nobody's loss.
    pub fn shift(&mut self, now: Timestamp, by: SignedDuration) {
        let Ok(before) = now.checked_sub(by) else {
            return;
        };
        if by.is_negative() {
            return;
        }
        for feed in self.feeds.values_mut() {
            // What is later than anything that this clock showed was stamped by a better one, before a boot,
            // or after this one was set.
            for time in [&mut feed.fetched, &mut feed.answered] {
                if *time <= before.saturating_add(MOMENT).unwrap_or(before) {
                    *time = time.saturating_add(by).unwrap_or(*time);
                }
            }
            for held in &mut feed.held {
                if held.until.duration_since(before) <= longest_grace() {
                    held.until = held.until.saturating_add(by).unwrap_or(held.until);
                }
            }
        }
    }
}

fn longest_grace() -> SignedDuration {
    SignedDuration::try_from(Source::LONGEST_GRACE).unwrap_or(SignedDuration::MAX)
}

/// Whether a list is older than it should be.
pub fn is_stale(source: &Source, feed: &Feed, now: Timestamp) -> bool {
    let age: Result<Duration, _> = now.duration_since(feed.fetched).try_into();
    // Of a list from the future nothing is known.
    source.can_age() && age.is_ok_and(|age| age > source.max_age)
}

fn proposal(source: &Source, last: Option<&Feed>, renewal: Renewal, accepted: bool) -> Proposal {
    let Renewal {
        feed,
        mut difference,
    } = renewal;
    let was_held = last.map_or(&[][..], |last| &last.held);
    let let_go = was_held
        .iter()
        .map(|held| held.prefix)
        .filter(|prefix| !is_held(&feed.held, prefix))
        .filter(|prefix| feed.prefixes.binary_search(prefix).is_err())
        .collect();
    let is_same = |last: &Feed| difference.is_empty() && last.held.len() == feed.held.len();
    let is_news = last.is_none_or(|last| !is_same(last) && in_force(last) != in_force(&feed));
    if matches!(source.origin, Origin::Names(_)) {
        // Answers take turns: what comes back was never gone, and what is away may come back.
        difference.added.retain(|prefix| !is_held(was_held, prefix));
        difference
            .removed
            .retain(|prefix| !is_held(&feed.held, prefix));
    }
    let held_until = difference
        .removed
        .first()
        .and_then(|prefix| feed.held.iter().find(|held| held.prefix == *prefix))
        .map(|held| held.until);
    let happened = (last.is_none() || !difference.is_empty()).then_some(Happened {
        difference,
        held_until,
        accepted,
    });
    Proposal {
        source: source.name.clone(),
        feed,
        is_news,
        happened,
        let_go,
    }
}

/// `held` is in order.
fn is_held(held: &[Held], prefix: &IpNet) -> bool {
    held.binary_search_by_key(prefix, |held| held.prefix)
        .is_ok()
}

fn in_force(feed: &Feed) -> Vec<IpNet> {
    let mut prefixes: Vec<IpNet> = feed.in_force().collect();
    prefixes.sort_unstable();
    prefixes
}

fn events(name: &str, time: Timestamp, happened: impl IntoIterator<Item = What>) -> Vec<Event> {
    let event = |what| Event {
        time,
        source: name.to_owned(),
        what,
    };
    happened.into_iter().map(event).collect()
}

#[cfg(test)]
mod tests;
