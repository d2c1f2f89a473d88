//! The configuration parser: arbitrary text either is a valid configuration, which compiles or fails with a message, or
//! is refused with located messages.

use std::path::Path;

use allowlist_policy::compile::{IdTable, Tables, compile};
use allowlist_policy::{Feed, Origin, Policy, Snapshot};
use allowlist_user::config::{Config, ConfigError, Problem};

/// Parses the bytes as a configuration.
///
/// # Panics
/// If a message is empty or has no location, if compiled tables violate an invariant of `compile`, or if the program
/// panics.
pub fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match Config::parse(&text, Path::new("fuzz.toml")) {
        Ok(config) => check_config(&config),
        Err(error) => {
            assert_ne!(error.to_string(), "");
            let ConfigError::Invalid(problems) = error else {
                panic!("parsing reads no file, but failed with: {error}");
            };
            assert!(!problems.is_empty());
            for problem in &problems {
                check_problem(problem, &text);
            }
        }
    }
}

fn check_problem(problem: &Problem, text: &str) {
    assert_ne!(problem.message, "", "{problem:?}");
    let (_, line, column) = problem.place.as_ref().expect("a location in the text");
    let lines = text.split('\n').count();
    assert!((1..=lines).contains(line), "{problem:?} of {lines} lines");
    assert!(*column >= 1, "{problem:?}");
}

fn check_config(config: &Config) {
    for warning in config
        .warnings()
        .into_iter()
        .chain(config.own_port_warnings(&(32768..=60999)))
    {
        assert_ne!(warning, "");
    }
    let snapshot = snapshot(&config.policy);
    let compiled = |previous| compile(&config.policy, &snapshot, config.max_prefixes, previous);
    match compiled(&IdTable::default()) {
        Ok(tables) => {
            check_tables(&tables, config);
            let again = compiled(&tables.ids).expect("the same input compiles again");
            assert_eq!(again.ids, tables.ids, "ids changed their meaning");
            assert_eq!((again.v4, again.v6), (tables.v4, tables.v6));
        }
        Err(error) => assert_ne!(error.to_string(), ""),
    }
}

/// Returns every source's prefixes: the configured ones, or fixed ones for a source that would be fetched.
fn snapshot(policy: &Policy) -> Snapshot {
    let fetched = ["192.0.2.0/24", "2001:db8::/32"].map(|text| text.parse().expect("a prefix"));
    policy
        .sources
        .iter()
        .map(|source| {
            let prefixes = match &source.origin {
                Origin::Prefixes(prefixes) | Origin::BuiltIn { prefixes, .. } => prefixes.clone(),
                Origin::Added | Origin::File { .. } | Origin::Http(_) | Origin::Names(_) => {
                    fetched.to_vec()
                }
            };
            let feed = Feed::new(prefixes, jiff::Timestamp::UNIX_EPOCH);
            (source.name.clone(), feed.into())
        })
        .collect()
}

fn check_tables(tables: &Tables, config: &Config) {
    let v4 = tables.v4.iter().map(|(prefix, _)| ((*prefix).into(), ()));
    let v6 = tables.v6.iter().map(|(prefix, _)| ((*prefix).into(), ()));
    let prefixes: Vec<ipnet::IpNet> = v4.chain(v6).map(|(prefix, ())| prefix).collect();
    assert!(prefixes.is_sorted_by(|a, b| a < b), "{prefixes:?}");
    assert!(prefixes.iter().all(|prefix| *prefix == prefix.trunc()));
    assert!(prefixes.len() <= config.max_prefixes as usize);
    let grants = tables.v4.iter().map(|(_, grant)| grant);
    for grant in grants.chain(tables.v6.iter().map(|(_, grant)| grant)) {
        let sources = tables.ids.sources_of(grant.match_id);
        assert!(!sources.is_empty(), "{grant:?} has no sources");
        assert!(
            sources
                .iter()
                .all(|name| config.policy.source(name).is_some()),
            "{sources:?}"
        );
    }
}
