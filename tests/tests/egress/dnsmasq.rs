//! Rules by name with dnsmasq as the local resolver, which forwards queries, and answers from its cache.

use std::net::{Ipv4Addr, SocketAddr};

use allowlist_tests::lab::{Cgroup, Program, Testbed, eventually};
use allowlist_tests::{require_root, skip};
use anyhow::ensure;
use serde_json::{Value, json};

use super::asker::{Answer, Asker};
use super::clients::is_installed;
use super::names::{SERVERS, SOON, records, rule, serve, start_unpolled};
use super::*;

/// The address of dnsmasq on the host.
const LOCAL: &str = "127.0.0.1:53";
/// The resolvers of the policy: dnsmasq, and the server that it queries.
const RESOLVERS: &str = "resolvers = [\"127.0.0.1\", \"198.51.100.2:5300\"]\n";
const NAMES: [&str; 4] = [
    "first.example.com",
    "cached.example.com",
    "moving.example.com",
    "later.example.com",
];

/// The answers of the server that dnsmasq queries.
fn table() -> Value {
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

/// Starts dnsmasq on the host, in a cgroup. It logs what it does with each query.
fn dnsmasq(testbed: &Testbed, cgroup: &Cgroup) -> anyhow::Result<Program> {
    let text = "\
        port=53\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nserver=198.51.100.2#5300\n\
        user=root\npid-file\nlog-queries\nlog-facility=-\nkeep-in-foreground\n";
    let config = testbed.scratch.write("dnsmasq.conf", text)?;
    let mut command = testbed.host.command("dnsmasq")?;
    command.arg(format!("--conf-file={}", config.display()));
    cgroup.hold(&mut command)?;
    let dnsmasq = Program::start(command)?;
    dnsmasq.wait_for_line("started, version", SOON)?;
    Ok(dnsmasq)
}

/// Starts the daemon with a rule for the names, and these resolvers.
fn daemon(testbed: &Testbed, cgroup: &Cgroup, resolvers: &str) -> anyhow::Result<Program> {
    start_unpolled(testbed, cgroup, &format!("{resolvers}{}", rule(&NAMES)))
}

fn local() -> SocketAddr {
    LOCAL.parse().expect("it is one")
}

/// dnsmasq is not judged, so the kernel reads only what dnsmasq answers to the program.
#[test]
fn answers_of_dnsmasq_are_believed() -> anyhow::Result<()> {
    require_root!();
    if !is_installed("dnsmasq") {
        skip!("needs dnsmasq (Debian's package dnsmasq-base)");
    }
    let (testbed, cgroup, outside) = (Testbed::new()?, Cgroup::new()?, Cgroup::new()?);
    let _server = serve(&testbed.peer, SERVERS[0], &table())?;
    let resolver = dnsmasq(&testbed, &outside)?;
    let _daemon = daemon(&testbed, &cgroup, RESOLVERS)?;
    let program = Asker::new(&testbed, &cgroup, local())?;
    let stranger = Asker::new(&testbed, &outside, local())?;

    assert_eq!(program.resolve("first.example.com")?, ["ok", "ok"]);
    resolver.wait_for_line("forwarded first.example.com to 198.51.100.2", SOON)?;

    // Asked before by a program that is not judged, so the answer comes from the cache.
    let address = Ipv4Addr::new(192, 0, 2, 3);
    let first = stranger.ask("cached.example.com")?;
    assert_eq!(
        first,
        Answer {
            addresses: vec![address],
            ttl: Some(3600)
        }
    );
    resolver.wait_for_line("forwarded cached.example.com to 198.51.100.2", SOON)?;
    assert_eq!(program.connect(address)?, "EPERM");
    assert_eq!(program.resolve("cached.example.com")?, ["ok"]);
    resolver.wait_for_line("cached cached.example.com is", SOON)?;
    eventually(|| {
        let answer = program.ask("cached.example.com")?;
        ensure!(program.connect(address)? == "ok", "{answer:?}");
        Ok(answer.addresses == [address] && answer.ttl < first.ttl)
    })?;

    // Each new address lives for a second in the cache: forwarded and cached answers alternate.
    let mut seen = Vec::new();
    eventually(|| {
        let addresses = program.ask("moving.example.com")?.addresses;
        for address in addresses {
            ensure!(program.connect(address)? == "ok", "{address}");
            if !seen.contains(&address) {
                seen.push(address);
            }
        }
        Ok(seen.len() >= 3)
    })?;

    assert_eq!(program.resolve("other.example.com")?, ["EPERM"]);

    // A restart of dnsmasq empties its cache.
    drop(resolver);
    assert_eq!(program.connect(address)?, "ok");
    let resolver = dnsmasq(&testbed, &outside)?;
    assert_eq!(program.resolve("cached.example.com")?, ["ok"]);
    assert_eq!(program.resolve("later.example.com")?, ["ok"]);
    resolver.wait_for_line("forwarded cached.example.com to 198.51.100.2", SOON)?;
    assert_eq!(program.resolve("other.example.com")?, ["EPERM"]);
    Ok(())
}

/// As on most hosts: dnsmasq is judged like every program, so it may query only the servers in `resolvers`.
#[test]
fn a_judged_dnsmasq_reaches_its_servers_in_resolvers_only() -> anyhow::Result<()> {
    require_root!();
    if !is_installed("dnsmasq") {
        skip!("needs dnsmasq (Debian's package dnsmasq-base)");
    }
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let (service, programs) = (cgroup.child("dnsmasq.service")?, cgroup.child("programs")?);
    let _server = serve(&testbed.peer, SERVERS[0], &table())?;
    let _resolver = dnsmasq(&testbed, &service)?;
    let first = daemon(&testbed, &cgroup, "resolvers = [\"127.0.0.1\"]\n")?;
    let program = Asker::new(&testbed, &programs, local())?;
    let none = Answer {
        addresses: Vec::new(),
        ttl: None,
    };
    assert_eq!(program.ask("first.example.com")?, none);
    assert!(counter(&testbed, "send", "refuse", "default")? > 0);

    drop(first);
    let _daemon = daemon(&testbed, &cgroup, RESOLVERS)?;
    assert_eq!(program.resolve("first.example.com")?, ["ok", "ok"]);
    // The second answer is from the cache.
    assert_eq!(program.resolve("first.example.com")?, ["ok", "ok"]);
    assert_eq!(program.resolve("other.example.com")?, ["EPERM"]);
    Ok(())
}
