//! Any sequence of feeds, failures, restarts and times: the table is what a model says, and never worse than
//! the last good list.
//!
//! The parts that ship are played together as the daemon plays them: `feed` reads the bytes, `lists` and the
//! gate decide, `state` keeps and finds again, `compile` makes the table. The model is a few lines over sets.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use allowlist_lists::feed;
use allowlist_lists::list_update::expire_grace;
use allowlist_lists::source::{Answer, Fetched};
use allowlist_lists::state::StateDir;
use allowlist_lists::states::SourceStates;
use allowlist_policy::compile::{Names, compile};
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::{Format, Http, Origin, Policy, Ports, Service, Snapshot, Source};
use ipnet::{IpNet, Ipv4Net};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

const SOURCES: [&str; 3] = ["a", "b", "c"];
const GRACE: SignedDuration = SignedDuration::from_hours(24);
/// A source's first list must be one, as a start without it is refused.
const FIRST: u8 = 200;

#[derive(Clone, Debug)]
enum Step {
    /// A source answers with the addresses of these last bytes.
    Feed(usize, BTreeSet<u8>),
    /// A source answers with bytes that are no list.
    Garbage(usize, Vec<u8>),
    /// It says that nothing is new.
    Unchanged(usize),
    /// The operator accepts what was refused.
    Accept(usize),
    /// Time goes by.
    Hours(i64),
    /// The daemon ends, and another starts from the disk.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let source = 0..SOURCES.len();
    prop_oneof![
        5 => (source.clone(), prop::collection::btree_set(any::<u8>(), 0..20))
            .prop_map(|(source, hosts)| Step::Feed(source, hosts)),
        1 => (source.clone(), any::<Vec<u8>>()).prop_map(|(source, bytes)| Step::Garbage(source, bytes)),
        1 => source.clone().prop_map(Step::Unchanged),
        1 => source.prop_map(Step::Accept),
        3 => (1..30i64).prop_map(Step::Hours),
        2 => Just(Step::Restart),
    ]
}

/// What a source should have, said plainly.
#[derive(Clone, Debug, Default)]
struct Model {
    listed: BTreeSet<u8>,
    /// When what it lists no more goes.
    held: BTreeMap<u8, Timestamp>,
    refused: Option<BTreeSet<u8>>,
    /// The list before the answers of this moment, since the growth window of the sources is a second.
    before: (Option<Timestamp>, BTreeSet<u8>),
}

impl Model {
    fn take(&mut self, hosts: &BTreeSet<u8>, now: Timestamp) {
        for gone in self.listed.difference(hosts) {
            self.held.insert(*gone, now + GRACE);
        }
        self.held
            .retain(|host, until| *until > now && !hosts.contains(host));
        self.listed.clone_from(hosts);
        self.refused = None;
    }

    fn answer(&mut self, hosts: &BTreeSet<u8>, now: Timestamp) {
        if self.before.0 != Some(now) {
            self.before = (Some(now), self.listed.clone());
        }
        let is_suspicious = |list: &BTreeSet<u8>| {
            let lost = list.difference(hosts).count();
            lost > 5 && lost * 2 > list.len()
        };
        let loses = is_suspicious(&self.listed) || is_suspicious(&self.before.1);
        if *hosts != self.listed && loses {
            self.refused = Some(hosts.clone());
        } else {
            self.take(hosts, now);
        }
    }

    fn accept(&mut self, now: Timestamp) {
        if let Some(refused) = self.refused.take() {
            self.take(&refused, now);
            self.before = (Some(now), refused);
        }
    }

    fn in_force(&self, now: Timestamp) -> BTreeSet<u8> {
        let held = self.held.iter().filter(|(_, until)| **until > now);
        self.listed
            .iter()
            .chain(held.map(|(host, _)| host))
            .copied()
            .collect()
    }
}

fn policy() -> Policy {
    let source = |name: &str| {
        let url = format!("https://{name}.example.com/")
            .parse()
            .expect("a URL");
        let mut source = Source::new(
            name,
            Origin::Http(Http::new(vec![url], Format::json_array())),
        );
        source.grace = Duration::from_hours(24);
        source.gate.growth_window = Duration::from_secs(1);
        source
    };
    Policy {
        services: vec![Service {
            name: "web".to_owned(),
            ports: vec![Ports::Tcp(443..=443)],
            interfaces: Vec::new(),
            allow: SOURCES.map(str::to_owned).to_vec(),
        }],
        sources: SOURCES.map(source).to_vec(),
    }
}

fn address(source: usize, host: u8) -> IpNet {
    // Sources share half of their addresses: what one lists no more, another may.
    let third = if host < 128 { 8 } else { source as u8 };
    Ipv4Net::from(std::net::Ipv4Addr::new(9, 9, third, host)).into()
}

/// What the daemon does, without a kernel.
struct Played {
    policy: Policy,
    state: StateDir,
    lists: SourceStates,
    names: Names,
    now: Timestamp,
}

impl Played {
    fn answer(&mut self, place: usize, bytes: &[u8]) {
        let source = self.policy.sources[place].clone();
        let today = self.now.to_zoned(jiff::tz::TimeZone::UTC).date();
        let Ok(list) = feed::parse(&Format::json_array(), bytes, today) else {
            self.lists.record_failure(
                &source.name,
                ErrorCode::ListMalformed,
                "is no list".to_owned(),
                self.now,
            );
            return;
        };
        self.take(
            &source,
            Answer::List(Fetched {
                prefixes: list.prefixes,
                notes: list.notes,
                fetched: self.now,
                validators: Vec::new(),
                again: None,
                kept: Vec::new(),
            }),
        );
    }

    fn take(&mut self, source: &Source, answer: Answer) {
        match self.lists.propose(source, answer, self.now) {
            Ok(proposal) => {
                let Ok(_) = self
                    .lists
                    .commit(proposal, self.now, |_| Ok::<_, Infallible>(0));
                self.keep(source);
            }
            Err(refused) => {
                let reason = refused.rejection.to_string();
                self.lists
                    .record_rejection(&source.name, *refused, reason, self.now);
            }
        }
    }

    fn accept(&mut self, place: usize) {
        let source = self.policy.sources[place].clone();
        if let Some(Ok(proposal)) = self.lists.propose_rejected(&source, self.now) {
            let Ok(_) = self
                .lists
                .commit(proposal, self.now, |_| Ok::<_, Infallible>(0));
            self.keep(&source);
        }
    }

    fn keep(&self, source: &Source) {
        let feed = self.lists.feed(&source.name).expect("it was adopted");
        self.state.store(source, feed).expect("is stored");
    }

    fn pass(&mut self, hours: i64) {
        self.now += SignedDuration::from_hours(hours);
        let Ok(events) = self
            .lists
            .expire_grace(self.now, |_| Ok::<_, Infallible>(0));
        for event in events {
            let source = self.policy.source(&event.source).expect("is known");
            self.keep(source);
        }
    }

    fn restart(&mut self) {
        let mut feeds = Snapshot::new();
        for source in &self.policy.sources {
            let feed = self
                .state
                .load(source)
                .expect("is readable")
                .expect("is there");
            let feed = expire_grace(&feed, self.now).map_or(feed, |(feed, _)| feed);
            feeds.insert(source.name.clone(), feed);
        }
        self.lists = SourceStates::new(feeds);
    }

    /// The table: each prefix with the sources behind it.
    fn table(&mut self) -> BTreeMap<IpNet, Vec<String>> {
        let tables = compile(&self.policy, self.lists.feeds(), 10_000, &self.names).expect("fits");
        self.names = tables.names.clone();
        let entry = |(prefix, grant): &(Ipv4Net, allowlist_common::abi::Grant)| {
            ((*prefix).into(), self.names.sources_of(grant.match_id))
        };
        tables.v4.iter().map(entry).collect()
    }
}

fn bytes(place: usize, hosts: &BTreeSet<u8>) -> Vec<u8> {
    let words: Vec<_> = hosts
        .iter()
        .map(|host| address(place, *host).addr().to_string())
        .collect();
    serde_json::to_vec(&words).expect("strings are JSON")
}

/// In memory where there is such a place: what is stored has to reach the disk each time.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a folder")
}

fn check(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let folder = folder();
    let now = Timestamp::from_second(1_800_000_000).expect("a time");
    let mut played = Played {
        policy: policy(),
        state: StateDir::open(&folder.path().join("state")).expect("is made"),
        lists: SourceStates::default(),
        names: Names::default(),
        now,
    };
    let mut models = SOURCES.map(|_| Model::default());
    for (place, model) in models.iter_mut().enumerate() {
        let first = BTreeSet::from([FIRST]);
        played.answer(place, &bytes(place, &first));
        model.take(&first, now);
    }
    for step in steps {
        match &step {
            Step::Feed(place, hosts) => {
                played.answer(*place, &bytes(*place, hosts));
                // An empty list is none.
                if !hosts.is_empty() {
                    models[*place].answer(hosts, played.now);
                }
            }
            Step::Garbage(place, bytes) => played.answer(*place, bytes),
            Step::Unchanged(place) => {
                let source = played.policy.sources[*place].clone();
                let now = played.now;
                played.take(&source, Answer::Unchanged(now));
                // The list that is in force is the newest after all.
                models[*place].refused = None;
            }
            Step::Accept(place) => {
                played.accept(*place);
                models[*place].accept(played.now);
            }
            Step::Hours(hours) => played.pass(*hours),
            Step::Restart => {
                played.restart();
                // What nobody accepted is asked for again.
                for model in &mut models {
                    model.refused = None;
                }
            }
        }
        let mut expected = BTreeMap::<IpNet, Vec<String>>::new();
        for (place, model) in models.iter().enumerate() {
            for host in model.in_force(played.now) {
                let sources = expected.entry(address(place, host)).or_default();
                sources.push(SOURCES[place].to_owned());
            }
        }
        prop_assert_eq!(played.table(), expected, "after {:?}", step);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn the_table_is_the_models(steps in prop::collection::vec(step(), 1..40)) {
        check(steps)?;
    }
}
