//! Random sequences of lists, failures, restarts and time steps: the compiled table agrees with a model.
//!
//! The test calls the shipped modules in the order of the daemon: `feed` parses, `lists` and the gate decide, `state` stores
//! and loads, `compile` makes the table. The model consists of a few sets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use allowlist_lists::feed;
use allowlist_lists::list_update::expire_grace;
use allowlist_lists::source::{Answer, Fetched};
use allowlist_lists::state::StateDir;
use allowlist_lists::states::SourceStates;
use allowlist_policy::compile::{IdTable, compile};
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::{Format, Http, Origin, Policy, Ports, Service, Snapshot, Source};
use ipnet::{IpNet, Ipv4Net};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

const SOURCES: [&str; 3] = ["a", "b", "c"];
const GRACE: SignedDuration = SignedDuration::from_hours(24);
/// The last byte of the only address in the first list of each source.
const FIRST: u8 = 200;

#[derive(Clone, Debug)]
enum Step {
    /// A source answers with the addresses that have these last bytes.
    Feed(usize, BTreeSet<u8>),
    /// A source answers with bytes that are not a list.
    Garbage(usize, Vec<u8>),
    /// A source answers that its list is unchanged.
    Unchanged(usize),
    /// The operator accepts the rejected list.
    Accept(usize),
    /// Hours pass.
    Hours(i64),
    /// The daemon ends, and another one starts from the disk.
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

/// The expected state of a source.
#[derive(Clone, Debug, Default)]
struct Model {
    listed: BTreeSet<u8>,
    /// The grace prefixes, with the ends of their grace periods.
    grace: BTreeMap<u8, Timestamp>,
    rejected: Option<BTreeSet<u8>>,
    /// The list before the answers of the current time, because the growth window of the sources is a second.
    before: (Option<Timestamp>, BTreeSet<u8>),
}

impl Model {
    fn take(&mut self, hosts: &BTreeSet<u8>, now: Timestamp) {
        for removed in self.listed.difference(hosts) {
            self.grace.insert(*removed, now + GRACE);
        }
        self.grace
            .retain(|host, until| *until > now && !hosts.contains(host));
        self.listed.clone_from(hosts);
        self.rejected = None;
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
            self.rejected = Some(hosts.clone());
        } else {
            self.take(hosts, now);
        }
    }

    fn accept(&mut self, now: Timestamp) {
        if let Some(rejected) = self.rejected.take() {
            self.take(&rejected, now);
            self.before = (Some(now), rejected);
        }
    }

    fn effective(&self, now: Timestamp) -> BTreeSet<u8> {
        let grace = self.grace.iter().filter(|(_, until)| **until > now);
        self.listed
            .iter()
            .chain(grace.map(|(host, _)| host))
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
        egress: None,
    }
}

fn address(source: usize, host: u8) -> IpNet {
    // Sources share half of their addresses, so an address can leave one list and remain in another.
    let third = if host < 128 { 8 } else { source as u8 };
    Ipv4Net::from(std::net::Ipv4Addr::new(9, 9, third, host)).into()
}

/// The daemon without a kernel.
struct Daemon {
    policy: Policy,
    state: StateDir,
    lists: SourceStates,
    ids: IdTable,
    now: Timestamp,
}

impl Daemon {
    fn answer(&mut self, index: usize, bytes: &[u8]) {
        let source = self.policy.sources[index].clone();
        let today = self.now.to_zoned(jiff::tz::TimeZone::UTC).date();
        let Ok(list) = feed::parse(&Format::json_array(), bytes, today) else {
            self.lists.record_failure(
                &source.name,
                ErrorCode::ListMalformed,
                "is not a list".to_owned(),
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
                self.lists.commit(proposal, self.now);
                self.keep(source);
            }
            Err(rejected) => {
                let reason = rejected.rejection.to_string();
                self.lists
                    .record_rejection(&source.name, *rejected, reason, self.now);
            }
        }
    }

    fn accept(&mut self, index: usize) {
        let source = self.policy.sources[index].clone();
        if let Some(Ok(proposal)) = self.lists.propose_rejected(&source, self.now) {
            self.lists.commit(proposal, self.now);
            self.keep(&source);
        }
    }

    fn keep(&self, source: &Source) {
        let feed = self
            .lists
            .feed(&source.name)
            .expect("the list is committed");
        self.state.store(source, feed).expect("the list is stored");
    }

    fn pass(&mut self, hours: i64) {
        self.now += SignedDuration::from_hours(hours);
        for event in self.lists.expire_grace(self.now) {
            let source = self.policy.source(&event.source).expect("a source");
            self.keep(source);
        }
    }

    fn restart(&mut self) {
        let mut feeds = Snapshot::new();
        for source in &self.policy.sources {
            let feed = self
                .state
                .load(source)
                .expect("readable state")
                .expect("a stored list");
            let feed = expire_grace(&feed, self.now).map_or(feed, |(feed, _)| feed);
            feeds.insert(source.name.clone(), feed.into());
        }
        self.lists = SourceStates::new(feeds);
    }

    /// Returns the compiled prefixes with their sources.
    fn table(&mut self) -> BTreeMap<IpNet, Vec<String>> {
        let tables = compile(&self.policy, self.lists.feeds(), 10_000, &self.ids).expect("tables");
        self.ids = tables.ids.clone();
        let entry = |(prefix, grant): &(Ipv4Net, allowlist_common::abi::Grant)| {
            ((*prefix).into(), self.ids.sources_of(grant.match_id))
        };
        tables.v4.iter().map(entry).collect()
    }
}

fn bytes(index: usize, hosts: &BTreeSet<u8>) -> Vec<u8> {
    let words: Vec<_> = hosts
        .iter()
        .map(|host| address(index, *host).addr().to_string())
        .collect();
    serde_json::to_vec(&words).expect("strings are JSON")
}

/// Creates a directory, in memory if possible, because the state is written to disk after each step.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory")
}

fn check(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let folder = folder();
    let now = Timestamp::from_second(1_800_000_000).expect("a time");
    let mut daemon = Daemon {
        policy: policy(),
        state: StateDir::open(&folder.path().join("state")).expect("a state directory"),
        lists: SourceStates::default(),
        ids: IdTable::default(),
        now,
    };
    let mut models = SOURCES.map(|_| Model::default());
    for (index, model) in models.iter_mut().enumerate() {
        let first = BTreeSet::from([FIRST]);
        daemon.answer(index, &bytes(index, &first));
        model.take(&first, now);
    }
    for step in steps {
        match &step {
            Step::Feed(index, hosts) => {
                daemon.answer(*index, &bytes(*index, hosts));
                // An empty list is rejected.
                if !hosts.is_empty() {
                    models[*index].answer(hosts, daemon.now);
                }
            }
            Step::Garbage(index, bytes) => daemon.answer(*index, bytes),
            Step::Unchanged(index) => {
                let source = daemon.policy.sources[*index].clone();
                let now = daemon.now;
                daemon.take(&source, Answer::Unchanged(now));
                // The active list is the newest one again.
                models[*index].rejected = None;
            }
            Step::Accept(index) => {
                daemon.accept(*index);
                models[*index].accept(daemon.now);
            }
            Step::Hours(hours) => daemon.pass(*hours),
            Step::Restart => {
                daemon.restart();
                // The rejected list is fetched again.
                for model in &mut models {
                    model.rejected = None;
                }
            }
        }
        let mut expected = BTreeMap::<IpNet, Vec<String>>::new();
        for (index, model) in models.iter().enumerate() {
            for host in model.effective(daemon.now) {
                let sources = expected.entry(address(index, host)).or_default();
                sources.push(SOURCES[index].to_owned());
            }
        }
        prop_assert_eq!(daemon.table(), expected, "after {:?}", step);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn the_table_agrees_with_the_model(steps in prop::collection::vec(step(), 1..40)) {
        check(steps)?;
    }
}
