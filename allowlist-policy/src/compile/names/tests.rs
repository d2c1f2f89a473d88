//! The compiled names have the grants of the rules: they equal a slow model that loops over rules, sources and
//! patterns; and the keys of names, as the kernel's trie matches them.

use std::collections::BTreeSet;

use allowlist_common::abi::service_set;
use allowlist_common::dns::{NameKey, WildcardKey};
use jiff::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::compile::{IdTable, Tables, compile_egress};
use crate::policy::{Egress, EgressRule, Feed, Lookup, Ports, Service, Snapshot, Source};

/// Names of few labels, so that they are below each other, and some whose texts only end alike.
const NAMES: [&str; 10] = [
    "x.test",
    "a.x.test",
    "b.x.test",
    "ab.x.test",
    "a.b.x.test",
    "b.a.b.x.test",
    "ax.test",
    "x.testa",
    "test.x",
    "b.test",
];
/// A label that no pattern has.
const FRESH: &str = "fresh";
/// The port that all rules cover; the rule with the index `n` also covers `FIRST_PORT + n`.
const SHARED_PORT: u16 = 443;
const FIRST_PORT: u16 = 1000;

/// Reports whether a pattern covers a name.
fn covers(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => name.ends_with(suffix) && name != &suffix[1..],
        None => name == pattern,
    }
}

/// Returns the indexes of the rules that allow the addresses of a name, from the rules themselves.
fn slow(policy: &Policy, name: &str, is_closed: bool) -> BTreeSet<usize> {
    let rules = policy
        .egress
        .as_ref()
        .expect("an egress policy")
        .rules
        .iter();
    let allows = |source: &Source| match &source.origin {
        Origin::Names(lookup) => {
            lookup.believes_answers
                && (!is_closed || source.gate.allow_special_use)
                && lookup.patterns().iter().any(|one| covers(one, name))
        }
        _ => false,
    };
    let all = rules.enumerate().filter(|(_, rule)| {
        let mut sources = policy.sources.iter();
        sources.any(|source| rule.to.contains(&source.name) && allows(source))
    });
    all.map(|(index, _)| index).collect()
}

/// Returns the indexes of the rules that a set of kernel services allows.
fn rules(tables: &Tables, services: u64) -> BTreeSet<usize> {
    let of_port = |port: u16| {
        let anywhere = tables.services.tcp[usize::from(port)];
        service_set(tables.services.interfaces[0].effective[anywhere as usize])
    };
    let found: BTreeSet<usize> = (0..8)
        .filter(|index| of_port(FIRST_PORT + *index as u16) & services != 0)
        .collect();
    // A port of several rules is allowed if one of the rules allows the name.
    assert_eq!(of_port(SHARED_PORT) & services != 0, !found.is_empty());
    found
}

/// Returns the rules that allow the addresses of the name with an id: outside of closed ranges, and in them.
fn granted(tables: &Tables, id: u32) -> [BTreeSet<usize>; 2] {
    let grant = tables.names.grants[id as usize];
    [grant.services, grant.special].map(|services| rules(tables, services))
}

/// Returns the listed pattern that the kernel's trie finds for a name.
fn matched<'t>(tables: &'t Tables, name: &str) -> Option<&'t ListedPattern> {
    let keys: Vec<NameKey> = tables.names.listed.iter().map(|one| key(0, one)).collect();
    let wanted = NameKey::new(0, name, WildcardKey::Exact).expect("a key");
    longest(&keys, &wanted).map(|place| &tables.names.listed[place])
}

fn key(slot: u8, pattern: &ListedPattern) -> NameKey {
    let kind = if pattern.is_wildcard {
        WildcardKey::Below
    } else {
        WildcardKey::Exact
    };
    NameKey::new(slot, &pattern.name, kind).expect("a key")
}

/// Returns the place of the longest of the keys that is a prefix of `wanted`, bit by bit, as in the kernel's trie.
fn longest(keys: &[NameKey], wanted: &NameKey) -> Option<usize> {
    let bit = |key: &NameKey, bit: u32| key.data[bit as usize / 8] >> (7 - bit % 8) & 1;
    let all = keys.iter().enumerate().filter(|(_, key)| {
        key.bits <= wanted.bits && (0..key.bits).all(|place| bit(key, place) == bit(wanted, place))
    });
    all.max_by_key(|(_, key)| key.bits).map(|(place, _)| place)
}

fn pattern() -> impl Strategy<Value = String> {
    (select(NAMES.to_vec()), any::<bool>()).prop_map(|(name, is_wildcard)| {
        let wildcard = if is_wildcard { "*." } else { "" };
        format!("{wildcard}{name}")
    })
}

fn lookup(patterns: &[String]) -> Lookup {
    let (wildcards, names): (Vec<&String>, Vec<&String>) =
        patterns.iter().partition(|one| one.starts_with('*'));
    let mut lookup = Lookup::new(names.into_iter().cloned().collect());
    lookup.wildcards = wildcards.iter().map(|one| one[2..].to_owned()).collect();
    lookup
}

fn rule(index: usize, to: Vec<String>) -> EgressRule {
    EgressRule {
        name: format!("rule{index}"),
        to,
        ports: [FIRST_PORT + index as u16, SHARED_PORT]
            .map(|port| Ports::Tcp(port..=port))
            .to_vec(),
        units: Vec::new(),
    }
}

fn policy(sources: Vec<Source>, rules: Vec<Vec<String>>) -> Policy {
    let rules = rules.into_iter().enumerate();
    Policy {
        // A service has no part in what calls may do.
        services: vec![Service {
            name: "web".to_owned(),
            ports: vec![Ports::Any],
            interfaces: Vec::new(),
            allow: vec!["source0".to_owned()],
        }],
        sources,
        egress: Some(Egress {
            rules: rules.map(|(index, to)| rule(index, to)).collect(),
            ..Egress::default()
        }),
    }
}

/// Returns random policies over five sources of names, of which rules use some.
fn policies() -> impl Strategy<Value = Policy> {
    let source = (
        vec(pattern(), 0..5),
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.8),
    );
    let names: Vec<String> = (0..5).map(|n| format!("source{n}")).collect();
    let rules = vec(subsequence(names, 1..=3), 0..5);
    (vec(source, 5), rules).prop_map(|(sources, rules)| {
        let sources = sources.into_iter().enumerate();
        let sources = sources.map(|(n, (patterns, is_special, believes))| {
            let mut lookup = lookup(&patterns);
            lookup.believes_answers = believes;
            let mut source = Source::new(&format!("source{n}"), Origin::Names(lookup));
            source.gate.allow_special_use = is_special;
            source
        });
        policy(sources.collect(), rules)
    })
}

/// Compiles a policy whose sources have empty lists.
fn compile(policy: &Policy, previous: &IdTable) -> Result<Tables, CompileError> {
    let lists = policy.sources.iter().map(|source| {
        let feed = Feed::new(Vec::new(), Timestamp::UNIX_EPOCH).into();
        (source.name.clone(), feed)
    });
    let tables = compile_egress(policy, &lists.collect::<Snapshot>(), 10, previous)?;
    Ok(tables.expect("an egress policy"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn names_are_granted_what_their_patterns_are(
        policy in policies(),
        earlier in vec(policies(), 0..3),
    ) {
        let mut previous = IdTable::default();
        for policy in &earlier {
            previous = compile(policy, &previous).expect("it fits").ids;
        }
        let tables = compile(&policy, &previous).expect("it fits");
        let (names, ids) = (&tables.names, &tables.ids.names);

        // Ids keep their meaning.
        prop_assert!(tables.ids.extends(&previous));
        prop_assert_eq!(&ids[0], "");
        prop_assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
        prop_assert_eq!(names.grants.len(), ids.len());
        prop_assert_eq!(names.grants[0], NameGrant::default());
        for listed in &names.listed {
            let wildcard = if listed.is_wildcard { "*." } else { "" };
            prop_assert_eq!(&ids[listed.id as usize], &format!("{wildcard}{}", listed.name));
            prop_assert_ne!(&granted(&tables, listed.id)[0], &BTreeSet::new());
        }

        // A name that a program queries has the grants of all patterns that cover it.
        let below = NAMES.map(|name| format!("{FRESH}.{name}"));
        for name in NAMES.iter().copied().chain(below.iter().map(String::as_str)) {
            let expected = [false, true].map(|is_closed| slow(&policy, name, is_closed));
            let listed = matched(&tables, name);
            let found = listed.map(|listed| granted(&tables, listed.id)).unwrap_or_default();
            prop_assert_eq!(&found, &expected, "{}", name);
            let is_special = listed.is_some_and(|listed| listed.is_special);
            prop_assert_eq!(is_special, !expected[1].is_empty(), "{}", name);
        }

        // Addresses learnt for an earlier name have the grants of that name in the current policy.
        for (id, earlier) in (0..).zip(ids).skip(1) {
            let one = match earlier.strip_prefix("*.") {
                Some(below) => format!("{FRESH}.{below}"),
                None => earlier.clone(),
            };
            let expected = [false, true].map(|is_closed| slow(&policy, &one, is_closed));
            prop_assert_eq!(granted(&tables, id), expected, "{}", earlier);
        }
    }

    /// Of the keys in the kernel's trie, the name itself is found first, and then the longest wildcard; those of another
    /// slot are not found.
    #[test]
    fn the_exact_name_matches_before_the_longest_wildcard(
        listed in vec((pattern(), 0_u8..2), 0..20),
        slot in 0_u8..3,
    ) {
        let keys: Vec<NameKey> = listed.iter().map(|(text, slot)| {
            let (name, kind) = match text.strip_prefix("*.") {
                Some(name) => (name, WildcardKey::Below),
                None => (text.as_str(), WildcardKey::Exact),
            };
            NameKey::new(*slot, name, kind).expect("a key")
        }).collect();
        let below = NAMES.map(|name| format!("{FRESH}.{name}"));
        for name in NAMES.iter().copied().chain(below.iter().map(String::as_str)) {
            let key = NameKey::new(slot, name, WildcardKey::Exact).expect("a key");
            let found = longest(&keys, &key).map(|place| listed[place].clone());
            let all = listed.iter().filter(|one| one.1 == slot && covers(&one.0, name));
            let best = all.max_by_key(|one| (one.0 == name, one.0.len()));
            prop_assert_eq!(found, best.cloned(), "{}", name);
        }
    }
}

/// Names that are gone keep their ids, and count.
#[test]
fn names_have_a_maximum_number() {
    let names = |numbers: std::ops::Range<usize>| {
        let names = numbers.map(|n| format!("n{n}.test")).collect::<Vec<_>>();
        let source = Source::new("source0", Origin::Names(lookup(&names)));
        policy(vec![source], vec![vec!["source0".to_owned()]])
    };
    let none = IdTable::default();
    let ids = compile(&names(0..MAX_NAMES - 1), &none)
        .expect("it fits")
        .ids;
    let error = |policy: &Policy, previous: &IdTable| compile(policy, previous).err();
    let too_many = Some(CompileError::TooManyNames);
    assert_eq!(error(&names(0..MAX_NAMES), &none), too_many);
    assert_eq!(error(&names(7..9), &ids), None);
    assert_eq!(error(&names(MAX_NAMES - 1..MAX_NAMES), &ids), too_many);
    // Names of no rule, and those whose answers are not believed, do not count.
    let mut unused = names(0..MAX_NAMES);
    unused.egress = Some(Egress::default());
    assert_eq!(error(&unused, &none), None);
    let mut polled = names(0..MAX_NAMES);
    if let Origin::Names(lookup) = &mut polled.sources[0].origin {
        lookup.believes_answers = false;
    }
    assert_eq!(error(&polled, &none), None);
}

/// The tables for packets have no names.
#[test]
fn services_learn_no_names() {
    let names = ["a.test".to_owned()];
    let source = Source::new("source0", Origin::Names(lookup(&names)));
    let policy = policy(vec![source], vec![vec!["source0".to_owned()]]);
    let feed = Feed::new(Vec::new(), Timestamp::UNIX_EPOCH).into();
    let lists = Snapshot::from([("source0".to_owned(), feed)]);
    let tables = crate::compile::compile(&policy, &lists, 10, &IdTable::default());
    let tables = tables.expect("it fits");
    assert_eq!(tables.names, NameTable::default());
    assert_eq!(tables.ids.names, Vec::<String>::new());
}
