//! Rules by name with dnsmasq as the local resolver.

use std::net::SocketAddr;

use allowlist_tests::lab::{Cgroup, Program, Testbed};
use allowlist_tests::{require_root, skip};

use super::asker::{Answer, Asker};
use super::clients::is_installed;
use super::forwarding::{self, policy, table};
use super::names::{SERVERS, SOON, serve, start_unpolled};
use super::*;

/// The address of dnsmasq on the host.
const LOCAL: &str = "127.0.0.1:53";
/// The resolvers of the policy: dnsmasq, and the server that it queries.
const RESOLVERS: &str = "resolvers = [\"127.0.0.1\", \"198.51.100.2:5300\"]\n";
/// The configuration of dnsmasq. It logs each query.
const CONFIG: &str = "\
    port=53\n\
    listen-address=127.0.0.1\n\
    bind-interfaces\n\
    no-resolv\n\
    no-hosts\n\
    server=198.51.100.2#5300\n\
    user=root\n\
    pid-file\n\
    log-queries\n\
    log-facility=-\n\
    keep-in-foreground\n";

/// Starts dnsmasq on the host, in a cgroup.
fn dnsmasq(testbed: &Testbed, cgroup: &Cgroup) -> anyhow::Result<Program> {
    let config = testbed.scratch.write("dnsmasq.conf", CONFIG)?;
    let mut command = testbed.host.command("dnsmasq")?;
    command.arg(format!("--conf-file={}", config.display()));
    cgroup.hold(&mut command)?;
    let dnsmasq = Program::start(command)?;
    dnsmasq.wait_for_line("started, version", SOON)?;
    Ok(dnsmasq)
}

fn local() -> SocketAddr {
    LOCAL.parse().expect("it is one")
}

#[test]
fn answers_of_dnsmasq_are_believed() -> anyhow::Result<()> {
    require_root!();
    if !is_installed("dnsmasq") {
        skip!("needs dnsmasq (Debian's package dnsmasq-base)");
    }
    let (testbed, outside) = (Testbed::new()?, Cgroup::new()?);
    let _server = serve(&testbed.peer, SERVERS[0], &table())?;
    let start = || dnsmasq(&testbed, &outside);
    let cached = "cached cached.example.com is";
    forwarding::check(&testbed, &outside, local(), RESOLVERS, start, cached)
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
    let only_local = policy("resolvers = [\"127.0.0.1\"]\n");
    let daemon = start_unpolled(&testbed, &cgroup, &only_local)?;
    let program = Asker::new(&testbed, &programs, local())?;
    let none = Answer {
        addresses: Vec::new(),
        ttl: None,
    };
    assert_eq!(program.ask("first.example.com")?, none);
    assert!(counter(&testbed, "send", "refuse", "default")? > 0);

    drop(daemon);
    let _daemon = start_unpolled(&testbed, &cgroup, &policy(RESOLVERS))?;
    assert_eq!(program.resolve("first.example.com")?, ["ok", "ok"]);
    // The second answer is from the cache.
    assert_eq!(program.resolve("first.example.com")?, ["ok", "ok"]);
    assert_eq!(program.resolve("other.example.com")?, ["EPERM"]);
    Ok(())
}
