//! Sequences of lists from a vendor that tries to open as much as it can, with the gate's defaults: its active
//! addresses stay bounded over every growth window, other sources are served, and each answer costs little to report.
//! Restarts, a clock that is set, and an operator who accepts a list change nothing about that.

use allowlist_policy::PerFamily;
use allowlist_policy::difference::{covered, is_v4, is_v6};
use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::*;
use crate::state::StateDir;

const HOUR: i64 = 3_600;
/// The growth window, in hours.
const WEEK: i64 = 7 * 24;
/// The most of the window that counts between two answers, in hours.
const MOST_BETWEEN: i64 = WEEK / 4;
/// The most bytes that one answer may add to the log and to the history, beside its prefixes.
const MOST_BYTES: usize = 1_000;
/// The addresses that any list may gain: an IPv4 /20, and an IPv6 /28.
const FREE: PerFamily = PerFamily {
    v4: 1 << 12,
    v6: 1 << 100,
};

/// What happens before the next answer, and the list in it.
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
    /// IPv4 prefixes become IPv6 prefixes, and IPv6 prefixes become IPv4 prefixes.
    Exchange,
    /// The server reports that nothing is new.
    Unchanged,
    /// The operator accepts the rejected list, if one waits.
    Accept,
    /// The daemon ends, and another starts with the lists on disk.
    Restart,
    /// The wall clock is set by so many hours: back, also while no daemon runs; or forward while one runs, from a time
    /// before the last answer no further than to the right time.
    Clock(i64),
}

fn moves() -> impl Strategy<Value = (Move, i64)> {
    let one = prop_oneof![
        6 => (1..3_u8).prop_map(Move::Widen),
        6 => any::<u8>().prop_map(Move::Replace),
        4 => (1..40_u8, 12..33_u8).prop_map(|(count, length)| Move::More(count, length)),
        4 => (1..60_u8).prop_map(Move::Fewer),
        1 => Just(Move::Everything),
        6 => any::<usize>().prop_map(Move::Again),
        1 => Just(Move::Exchange),
        3 => Just(Move::Unchanged),
        1 => Just(Move::Accept),
        2 => Just(Move::Restart),
        1 => (-2_000..2_000_i64).prop_map(Move::Clock),
    ];
    (one, 0..30_i64)
}

pub(super) fn v4(address: u32, length: u8) -> IpNet {
    let net = Ipv4Net::new(address.into(), length).expect("a length");
    IpNet::V4(net.trunc())
}

/// Public addresses that are not special.
fn public(number: u32) -> u32 {
    0x2000_0000 | (number % 0x0800_0000)
}

/// The prefix of the other family: an IPv4 /20 and an IPv6 /28 stand for each other.
fn exchanged(prefix: &IpNet) -> IpNet {
    match prefix {
        IpNet::V4(net) => {
            let address = 0x26 << 120 | u128::from(u32::from(net.network())) << 88;
            IpNet::V6(Ipv6Net::new(address.into(), net.prefix_len() + 8).expect("a length"))
        }
        IpNet::V6(net) => v4(
            (u128::from(net.network()) >> 88) as u32,
            net.prefix_len().clamp(8, 40) - 8,
        ),
    }
}

fn widened(prefix: &IpNet, bits: u8) -> IpNet {
    match prefix {
        IpNet::V4(net) => v4(
            net.network().into(),
            net.prefix_len().saturating_sub(bits).max(8),
        ),
        IpNet::V6(net) => {
            let length = net.prefix_len().saturating_sub(bits).max(20);
            let net = Ipv6Net::new(net.network(), length).expect("a length");
            IpNet::V6(net.trunc())
        }
    }
}

fn moved(prefix: &IpNet, place: u8) -> IpNet {
    match prefix {
        IpNet::V4(net) => {
            let moved = u32::from(net.network()).wrapping_add(u32::from(place) << 18);
            v4(public(moved), net.prefix_len())
        }
        IpNet::V6(_) => exchanged(&moved(&exchanged(prefix), place)),
    }
}

/// The list after a move of the vendor; none if the move is none of its own.
fn next(list: &[IpNet], served: &[Vec<IpNet>], what: &Move) -> Option<Vec<IpNet>> {
    let mut next: Vec<IpNet> = match what {
        Move::Widen(bits) => list.iter().map(|prefix| widened(prefix, *bits)).collect(),
        Move::Replace(place) => list.iter().map(|prefix| moved(prefix, *place)).collect(),
        Move::More(count, length) => {
            let more = (0..u32::from(*count)).map(|n| v4(public(n << 20), *length));
            list.iter().copied().chain(more).collect()
        }
        Move::Fewer(count) => list.iter().take(usize::from(*count)).copied().collect(),
        Move::Everything => everything(),
        Move::Again(place) => served[place % served.len()].clone(),
        Move::Exchange => list.iter().map(exchanged).collect(),
        Move::Unchanged | Move::Accept | Move::Restart | Move::Clock(_) => return None,
    };
    next.sort_unstable();
    next.dedup();
    Some(next)
}

pub(super) fn everything() -> Vec<IpNet> {
    (11..127_u32)
        .chain(128..224)
        .filter(|first| ![100, 169, 172, 192, 198, 203].contains(first))
        .map(|first| v4(first << 24, 8))
        .collect()
}

fn size(list: &[IpNet]) -> PerFamily {
    PerFamily {
        v4: covered(list, is_v4),
        v6: covered(list, is_v6),
    }
}

fn families(size: PerFamily) -> [u128; 2] {
    [size.v4, size.v6]
}

/// The addresses that were active at one time, by a clock that is never set.
#[derive(Clone, Copy, Debug)]
struct Moment {
    hour: i64,
    active: PerFamily,
}

/// A vendor, and a host that fetches its list.
struct Played {
    sources: [Source; 2],
    lists: SourceStates,
    state: StateDir,
    /// The hours that have really passed.
    hour: i64,
    /// The wall clock's lead over them.
    lead: i64,
    /// The vendor's list, and all that it served.
    list: Vec<IpNet>,
    served: Vec<Vec<IpNet>>,
    /// The numbers of active addresses since the operator last accepted a list.
    moments: Vec<Moment>,
    /// Each list since then and the time from which it was active, by the part of the time between two answers that
    /// counts.
    listed: Vec<(i64, PerFamily)>,
    believed: i64,
    /// The wall clock at the last answer, in hours.
    answered: i64,
    lead_at_answer: i64,
    /// The limit of active addresses: `max_addresses`, unless the operator accepts more.
    most: PerFamily,
}

impl Played {
    fn new(folder: &std::path::Path, first: Vec<IpNet>) -> Self {
        let source = vendor();
        Self {
            most: source.gate.max_addresses,
            sources: [
                Source {
                    name: "other".to_owned(),
                    ..vendor()
                },
                source,
            ],
            lists: SourceStates::default(),
            state: StateDir::open(&folder.join("state")).expect("is made"),
            hour: 0,
            lead: 0,
            list: first.clone(),
            served: vec![first],
            moments: Vec::new(),
            listed: Vec::new(),
            believed: 0,
            answered: 0,
            lead_at_answer: 0,
        }
    }

    fn now(&self) -> Timestamp {
        at((self.hour + self.lead) * HOUR)
    }

    fn feed(&self) -> Option<&Feed> {
        self.lists.feed("vendor")
    }

    fn active(&self) -> PerFamily {
        let mut active: Vec<_> = self.feed().into_iter().flat_map(Feed::active).collect();
        active.sort_unstable();
        size(&active)
    }

    /// The grace prefixes from before the operator accepted a list.
    fn settled(&self) -> PerFamily {
        let grace = self.feed().into_iter().flat_map(|feed| &feed.grace);
        let settled = grace.filter(|grace| grace.seconds == u64::MAX);
        let mut settled: Vec<IpNet> = settled.map(|grace| grace.prefix).collect();
        settled.sort_unstable();
        size(&settled)
    }

    fn note(&mut self) {
        if self.feed().is_some() {
            let (hour, active) = (self.hour, self.active());
            self.moments.push(Moment { hour, active });
        }
    }

    fn release(&mut self) {
        let now = self.now();
        self.lists.expire_grace(now);
    }

    fn restart(&mut self) {
        let mut feeds = Snapshot::new();
        for source in &self.sources {
            if let Some(feed) = self.lists.feed(&source.name) {
                self.state.store(source, feed).expect("is stored");
                let feed = self.state.load(source).expect("is readable");
                feeds.extend(feed.map(|feed| (source.name.clone(), feed.into())));
            }
        }
        self.lists = SourceStates::new(feeds);
        self.release();
    }

    fn set_clock(&mut self, hours: i64) {
        let is_behind = self.answered > self.hour + self.lead;
        let right = self.lead_at_answer - self.lead;
        let hours = if is_behind { hours.min(right) } else { hours };
        self.lead += hours;
        if hours < 0 && hours % 2 == 0 {
            self.restart();
            return;
        }
        let by = SignedDuration::from_hours(hours);
        self.lists.apply_clock_step(self.now(), by);
        if hours > 0 && !is_behind {
            self.answered += hours;
            self.lead_at_answer += hours;
        }
    }

    /// Time that the gate counts, since the vendor answered.
    fn pass(&mut self) {
        let wall = self.hour + self.lead;
        self.believed += (wall - self.answered).clamp(0, MOST_BETWEEN);
        self.answered = wall;
        self.lead_at_answer = self.lead;
    }

    fn accept(&mut self) {
        let now = self.now();
        let source = self.sources[1].clone();
        let Some(Ok(proposal)) = self.lists.propose_rejected(&source, now) else {
            return;
        };
        adopt(&mut self.lists, proposal, now);
        self.pass();
        self.list.clone_from(&self.lists.feeds()["vendor"].prefixes);
        self.moments.clear();
        self.listed = vec![(self.believed, size(&self.list))];
        self.note();
        let (most, active) = (self.most, self.active());
        self.most = PerFamily {
            v4: most.v4.max(active.v4),
            v6: most.v6.max(active.v6),
        };
    }

    fn answer(&mut self, list: Option<Vec<IpNet>>) -> Result<(), TestCaseError> {
        let now = self.now();
        let source = self.sources[1].clone();
        let answer = match &list {
            Some(list) => Answer::List(Fetched::new(list.clone(), now)),
            None => Answer::Unchanged(now),
        };
        self.served.extend(list.clone());
        self.list = list.unwrap_or_else(|| self.list.clone());
        self.pass();
        let events = match self.lists.propose(&source, answer, now) {
            Ok(proposal) => {
                self.listed
                    .push((self.believed, size(&proposal.feed.prefixes)));
                adopt(&mut self.lists, proposal, now)
            }
            Err(refused) => {
                // The vendor goes on from its last accepted list.
                self.list = self
                    .feed()
                    .map_or_else(Vec::new, |feed| feed.prefixes.clone());
                let reason = refused.reason(&source);
                prop_assert!(reason.len() < MOST_BYTES, "{}", reason);
                self.lists.record_rejection("vendor", *refused, reason, now)
            }
        };
        prop_assert!(events.len() <= 3, "{:?}", events);
        for event in events {
            let text = serde_json::to_string(&event.shortened()).expect("is JSON");
            prop_assert!(text.len() < MOST_BYTES + 400 * 24, "{}", text);
        }
        Ok(())
    }

    /// Compares the active addresses with those at every time of the window before, and with the list of a window ago.
    /// The operator accepted the addresses `settled` beside a list.
    fn check(&self, before: PerFamily, settled: PerFamily) -> Result<(), TestCaseError> {
        let active = families(self.active());
        for (active, most) in active.into_iter().zip(families(self.most)) {
            prop_assert!(active <= most, "{} addresses are active", active);
        }
        let recent = |moment: &&Moment| moment.hour > self.hour - WEEK;
        for moment in self.moments.iter().filter(recent) {
            let then = families(moment.active);
            for (family, active) in active.into_iter().enumerate() {
                let limit = 2 * then[family] + families(FREE)[family];
                prop_assert!(
                    active <= limit,
                    "{} addresses are active after {:?}",
                    active,
                    moment
                );
            }
        }
        let grows = |family: usize| active[family] > families(before)[family];
        // An entry of the past ends up to an eighth of the window late.
        let (newest, oldest) = (self.believed - WEEK, self.believed - WEEK - WEEK / 8);
        let place = self.listed.iter().rposition(|(since, _)| *since <= oldest);
        let place = place.unwrap_or(0);
        let compared = self.listed.iter().skip(place).enumerate();
        let compared = compared.take_while(|(place, (since, _))| *place == 0 || *since <= newest);
        let sizes: Vec<_> = compared.map(|(_, (_, size))| families(*size)).collect();
        for family in (0..2).filter(|family| grows(*family)) {
            let listed = sizes.iter().map(|size| size[family]).max();
            let limit = 2 * listed.unwrap_or(u128::MAX >> 2)
                + families(FREE)[family]
                + families(settled)[family];
            prop_assert!(
                active[family] <= limit,
                "{} addresses are active after {:?} a week ago",
                active[family],
                listed
            );
        }
        Ok(())
    }

    fn step(&mut self, what: &Move, wait: i64) -> Result<(), TestCaseError> {
        self.hour += wait;
        self.release();
        self.note();
        let (before, settled) = (self.active(), self.settled());
        match what {
            Move::Accept => self.accept(),
            Move::Restart => self.restart(),
            Move::Clock(hours) => self.set_clock(*hours),
            Move::Unchanged => self.answer(None)?,
            _ => {
                let list = next(&self.list, &self.served, what);
                self.answer(list)?;
            }
        }
        if !matches!(what, Move::Accept) {
            self.check(before, settled)?;
        }
        self.note();

        // Another source is not delayed.
        let now = self.now();
        let list = format!("8.8.8.{}", self.hour % 5);
        let proposal = self
            .lists
            .propose(&self.sources[0], answer(&list, now), now);
        adopt(&mut self.lists, proposal.expect("passes"), now);
        Ok(())
    }
}

proptest! {
    // An eighth of the usual number, since each case is long.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.div_ceil(8),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_hostile_vendor_opens_little(
        first in prop::collection::btree_set((any::<u32>(), 16..33_u8), 1..60),
        steps in prop::collection::vec(moves(), 1..80),
    ) {
        let list: std::collections::BTreeSet<IpNet> =
            first.iter().map(|(at, length)| v4(public(*at), *length)).collect();
        // In memory if possible: each stored list is written through to the disk.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        let mut played = Played::new(folder.path(), list.into_iter().collect());
        played.step(&Move::Again(0), 0)?;
        for (step, wait) in steps {
            played.step(&step, wait)?;
        }
    }
}
