//! A local resolver in front of the egress policy by name: it forwards queries, answers from its cache with decreasing
//! times to live, and restarts. The tests of each resolver run these cases.

use std::net::{Ipv4Addr, SocketAddr};

use allowlist_tests::lab::{Cgroup, Program, Testbed, eventually};
use anyhow::ensure;
use serde_json::{Value, json};

use super::asker::{Answer, Asker};
use super::names::{SOON, records, rule, start_unpolled};

/// The names that a rule lists.
const NAMES: [&str; 4] = [
    "first.example.com",
    "cached.example.com",
    "moving.example.com",
    "later.example.com",
];

/// Returns the answers of the server that the local resolver queries; no rule lists the last name.
pub(super) fn table() -> Value {
    json!({
        "first.example.com": records(&[("A", "192.0.2.1"), ("A", "192.0.2.2")]),
        "cached.example.com": { "records": [
            ["CNAME", 3600, "alias.example.org"],
            ["A", 3600, "192.0.2.3"],
        ] },
        "moving.example.com": { "records": [], "mode": "fresh" },
        "later.example.com": records(&[("A", "192.0.2.4")]),
        "other.example.com": records(&[("A", "192.0.2.5")]),
    })
}

/// Returns lines of `[egress]`, followed by the rule for the names, which the daemon cannot resolve by polling.
pub(super) fn policy(lines: &str) -> String {
    format!("{lines}{}", rule(&NAMES))
}

/// Checks the answers of a local resolver to a program of the judged cgroup. The resolver is in a cgroup that is not
/// judged, so the kernel reads only the resolver's answers to the program.
///
/// `start` starts the resolver, which listens at `address`; `cached` is a part of the line that it prints when it answers
/// for cached.example.com from its cache.
pub(super) fn check(
    testbed: &Testbed,
    outside: &Cgroup,
    address: SocketAddr,
    resolvers: &str,
    start: impl Fn() -> anyhow::Result<Program>,
    cached: &str,
) -> anyhow::Result<()> {
    let cgroup = Cgroup::new()?;
    let resolver = start()?;
    let _daemon = start_unpolled(testbed, &cgroup, &policy(resolvers))?;
    let program = Asker::new(testbed, &cgroup, address)?;
    let stranger = Asker::new(testbed, outside, address)?;
    assert_eq!(program.resolve("first.example.com")?, ["ok", "ok"]);
    check_cache(&program, &stranger)?;
    resolver.wait_for_line(cached, SOON)?;
    check_new_addresses(&program)?;
    assert_eq!(program.resolve("other.example.com")?, ["EPERM"]);

    // A restart empties the cache.
    drop(resolver);
    let known = Ipv4Addr::new(192, 0, 2, 3);
    assert_eq!(program.connect(known)?, "ok");
    let _resolver = start()?;
    assert_eq!(program.resolve("later.example.com")?, ["ok"]);
    assert_eq!(program.resolve("cached.example.com")?, ["ok"]);
    assert_eq!(program.resolve("other.example.com")?, ["EPERM"]);
    Ok(())
}

/// A program that is not judged sends the query first, so the judged program gets its answer from the cache.
fn check_cache(program: &Asker, stranger: &Asker) -> anyhow::Result<()> {
    let address = Ipv4Addr::new(192, 0, 2, 3);
    let first = stranger.ask("cached.example.com")?;
    let expected = Answer {
        addresses: vec![address],
        ttl: Some(3600),
    };
    assert_eq!(first, expected);
    assert_eq!(program.connect(address)?, "EPERM");
    assert_eq!(program.resolve("cached.example.com")?, ["ok"]);
    eventually(|| {
        let answer = program.ask("cached.example.com")?;
        ensure!(program.connect(address)? == "ok", "{answer:?}");
        Ok(answer.addresses == [address] && answer.ttl < first.ttl)
    })
}

/// The name has a new address in each answer of the server, which stays in the cache for a second: forwarded and cached
/// answers alternate.
fn check_new_addresses(program: &Asker) -> anyhow::Result<()> {
    let mut seen = Vec::new();
    eventually(|| {
        for address in program.ask("moving.example.com")?.addresses {
            ensure!(program.connect(address)? == "ok", "{address}");
            if !seen.contains(&address) {
                seen.push(address);
            }
        }
        Ok(seen.len() >= 3)
    })
}
