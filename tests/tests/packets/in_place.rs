//! Publishes that change one prefix, in place, or many prefixes, in another slot: after each publish, table and verdicts
//! are those of the last published policy.

use std::cell::RefCell;
use std::collections::BTreeMap;

use allowlist_common::abi::Grant;
use allowlist_common::verdict::Verdict;
use allowlist_dataplane::Entry;
use allowlist_policy::compile::Tables;
use allowlist_policy::{Engine, Mode, Rules};
use allowlist_tests::require_root;
use ipnet::{IpNet, Ipv4Net};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::check::Compiled;
use super::frames::tcp;
use super::kernel::Kernel;
use super::{is_long, runner};

const CONFIG: &str = "interfaces = ['eth0']\n[services.web]\nports = ['tcp/443']\nallow = ['one']\n\
                      [sources.one]\nprefixes = ['192.0.2.1']\n";

/// Nested and adjacent prefixes of both families.
const PREFIXES: [&str; 9] = [
    "0.0.0.0/0",
    "198.18.0.0/15",
    "198.18.0.0/16",
    "198.18.0.0/24",
    "198.18.0.7/32",
    "198.19.0.0/16",
    "::/0",
    "2001:db8::/32",
    "2001:db8::7/128",
];
const SOURCES: [&str; 6] = [
    "198.18.0.7",
    "198.18.0.8",
    "198.18.1.1",
    "198.19.0.1",
    "192.0.2.9",
    "198.20.0.1",
];

const ENGINES: [Engine; 2] = [Engine::RangeTable, Engine::LpmTrie];

fn rules(lookup: Engine) -> Rules {
    Rules {
        lookup,
        ..Rules::default()
    }
}

/// The match id of each prefix.
type Model = BTreeMap<IpNet, u32>;

/// Reports whether an id reaches the service.
const fn reaches(id: u32) -> bool {
    id != 2
}

fn tables(base: &Tables, model: &Model) -> Tables {
    let mut tables = base.clone();
    (tables.v4, tables.v6) = (Vec::new(), Vec::new());
    for (&prefix, &id) in model {
        let grant = Grant::new(u64::from(reaches(id)), id);
        match prefix {
            IpNet::V4(prefix) => tables.v4.push((prefix, grant)),
            IpNet::V6(prefix) => tables.v6.push((prefix, grant)),
        }
    }
    tables
}

fn entries(tables: &Tables) -> Vec<(IpNet, Grant)> {
    let v4 = tables
        .v4
        .iter()
        .map(|(prefix, grant)| (IpNet::V4(*prefix), *grant));
    let v6 = tables
        .v6
        .iter()
        .map(|(prefix, grant)| (IpNet::V6(*prefix), *grant));
    v4.chain(v6).collect()
}

fn in_kernel(kernel: &Kernel) -> Vec<(IpNet, Grant)> {
    let entries = kernel.view().entries().expect("a list").into_iter();
    entries
        .map(|Entry { prefix, grant }| (prefix, grant))
        .collect()
}

/// Returns the verdict for a source by its longest prefix.
fn verdict(model: &Model, source: &str) -> Verdict {
    let source: Ipv4Net = format!("{source}/32").parse().expect("an address");
    let containing = model
        .iter()
        .filter(|(prefix, _)| prefix.contains(&IpNet::V4(source)));
    match containing.max_by_key(|(prefix, _)| prefix.prefix_len()) {
        Some((_, id)) if reaches(*id) => Verdict::Pass,
        _ => Verdict::Drop,
    }
}

#[test]
fn the_table_matches_the_last_publish() {
    require_root!();
    for engine in ENGINES {
        publish_in_turn(rules(engine));
    }
}

fn publish_in_turn(rules: Rules) {
    let base = Compiled::of(CONFIG).tables;
    let kernel = RefCell::new(Kernel::new());
    let grant = prop_oneof![Just(None), (1..4_u32).prop_map(Some)];
    let prefix = select(&PREFIXES[..]).prop_map(|text| text.parse().expect("a prefix"));
    // Usually one change, so that many consecutive publishes are in place.
    let changes = prop_oneof![
        4 => vec((prefix.clone(), grant.clone()), 1),
        1 => vec((prefix, grant), 0..4),
    ];
    let publish = (
        changes,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.1),
    );
    let cases = if is_long() { 300 } else { 20 };
    let done = runner(cases).run(&vec(publish, 1..40), |publishes| {
        let mut kernel = kernel.borrow_mut();
        let mut model = Model::new();
        kernel.publish_on(&tables(&base, &model), Mode::Enforce, rules, &[]);
        for (changes, is_rolled_back, is_observed) in publishes {
            let before = (model.clone(), kernel.view().control().expect("a word"));
            let found = is_rolled_back.then(|| kernel.applied_state());
            for (prefix, grant) in changes {
                match grant {
                    Some(grant) => model.insert(prefix, grant),
                    None => model.remove(&prefix),
                };
            }
            let mode = if is_observed {
                Mode::Observe
            } else {
                Mode::Enforce
            };
            kernel.publish_on(&tables(&base, &model), mode, rules, &[]);
            let now = kernel.view().control().expect("a word");
            prop_assert_eq!(now.generation, before.1.generation + 1);
            let differing = PREFIXES
                .map(|text| text.parse().expect("a prefix"))
                .into_iter()
                .filter(|prefix| model.get(prefix) != before.0.get(prefix))
                .count();
            // After a rollback, the dataplane does not know the contents of the slots, so any publish may use another slot.
            if differing > 1 || now.observe != before.1.observe {
                prop_assert_ne!(now.slot, before.1.slot, "{} in place", differing);
            }
            if let Some(found) = found {
                kernel.restore(&found);
                model = before.0;
            }
            prop_assert_eq!(in_kernel(&kernel), entries(&tables(&base, &model)));
            for source in SOURCES.iter().filter(|_| !is_observed && !before.1.observe) {
                let found = kernel.verdict(&tcp(source, 443));
                prop_assert_eq!(found, verdict(&model, source), "{}", source);
            }
        }
        Ok(())
    });
    done.unwrap_or_else(|error| panic!("{error}"));
}

/// A change of one prefix does not rewrite a hundred thousand others.
#[test]
fn one_prefix_among_many_changes_in_place() {
    require_root!();
    for engine in ENGINES {
        change_one_among_many(rules(engine));
    }
}

fn change_one_among_many(rules: Rules) {
    let base = Compiled::of(CONFIG).tables;
    let mut kernel = Kernel::new();
    let many = (0..100_000_u32).map(|index| {
        let prefix = Ipv4Net::new((0x0a00_0000 + 2 * index).into(), 32).expect("a prefix");
        (IpNet::V4(prefix), 1)
    });
    let mut model: Model = many.collect();
    kernel.publish_on(&tables(&base, &model), Mode::Enforce, rules, &[]);
    let slot = kernel.view().control().expect("a word").slot;
    let one: IpNet = "198.18.0.7/32".parse().expect("a prefix");
    let other: IpNet = "2001:db8::7/128".parse().expect("a prefix");
    let steps = [
        (one, Some(1), Verdict::Pass),
        (one, Some(2), Verdict::Drop),
        (one, Some(3), Verdict::Pass),
        (other, Some(3), Verdict::Pass),
        (one, None, Verdict::Drop),
        (other, None, Verdict::Drop),
    ];
    for (prefix, grant, expected) in steps {
        match grant {
            Some(grant) => model.insert(prefix, grant),
            None => model.remove(&prefix),
        };
        let tables = tables(&base, &model);
        let start = std::time::Instant::now();
        kernel.publish_on(&tables, Mode::Enforce, rules, &[]);
        println!("{prefix} to {grant:?} in {:?}", start.elapsed());
        assert_eq!(kernel.view().control().expect("a word").slot, slot);
        assert_eq!(kernel.verdict(&tcp("198.18.0.7", 443)), expected);
    }
    assert_eq!(in_kernel(&kernel), entries(&tables(&base, &model)));
}
