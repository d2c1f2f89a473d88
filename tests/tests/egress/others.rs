//! Failures of other systems that their users reported, and that this one must not have: one test for each.

use std::time::Duration;

use allowlist_tests::lab::{Cgroup, Testbed, eventually};
use allowlist_tests::require_root;
use nix::sys::signal::Signal;
use serde_json::json;

use super::names::{SERVERS, SOON, records, resolve, rule, serve, start_unpolled, start_with};
use super::*;

/// Cilium refuses an address when its time to live ends, although programs keep it longer (cilium#23086, #14320); and
/// without its agent no program resolves a name (cilium#21059, #30984).
#[test]
fn an_address_stays_allowed_after_its_time_to_live_and_names_work_without_the_daemon()
-> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let table = json!({
        "events.example.com": { "records": [["A", 1, "192.0.2.77"]] },
        "later.example.com": { "records": [["A", 1, "192.0.2.78"]] },
    });
    let names = ["events.example.com", "later.example.com"];
    let mut daemon = start_with(&testbed, &cgroup, "", &names)?;
    let _server = serve(&testbed.peer, SERVERS[0], &table)?;
    let results = resolve(&testbed.host, &cgroup, SERVERS[0], &names[..1])?;
    assert_eq!(results, json!([["ok"]]));
    daemon.stop(Signal::SIGKILL, SOON)?;
    // Longer than the time to live; however much longer the test takes, it is far from `linger`.
    std::thread::sleep(Duration::from_secs(2));
    let kept = [("udp_connect", "192.0.2.77", 443)];
    assert_eq!(call(&testbed.host, &cgroup, &kept)?, ["ok"]);
    let results = resolve(&testbed.host, &cgroup, SERVERS[0], &names[1..])?;
    assert_eq!(results, json!([["ok"]]));
    Ok(())
}

/// `IPAddressAllow=` of systemd has addresses without ports and names, and does nothing for programs of a user's own
/// manager or in a container (systemd#12327, #9513).
#[test]
fn a_name_is_allowed_on_its_port_only_and_in_containers_too() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let container = cgroup.child("user@1000.service")?;
    let table = json!({ "events.example.com": records(&[("A", "192.0.2.77")]) });
    let names = ["events.example.com"];
    let _daemon = start_with(&testbed, &cgroup, "", &names)?;
    let _server = serve(&testbed.peer, SERVERS[0], &table)?;
    let results = resolve(&testbed.host, &container, SERVERS[0], &names)?;
    assert_eq!(results, json!([["ok"]]));
    let calls = [
        ("udp_connect", "192.0.2.77", 443),
        ("udp_connect", "192.0.2.77", 80),
        ("udp_connect", "192.0.2.78", 443),
    ];
    // In the daemon's network namespace, and in another one.
    for namespace in [&testbed.host, &testbed.peer] {
        let results = call(namespace, &container, &calls)?;
        assert_eq!(results, ["ok", "EPERM", "EPERM"]);
    }
    Ok(())
}

/// dnsmasq's `nftset` adds each answered address, private ones included, for every program of the host, and the
/// entries stay until the set has a timeout of its own.
#[test]
fn an_answer_opens_nothing_private_and_only_for_its_units_and_its_time() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let (agent, other) = (cgroup.child("agent")?, cgroup.child("other")?);
    let table = json!({
        "events.example.com": { "records": [["A", 1, "192.0.2.77"], ["A", 1, "10.0.0.1"]] },
    });
    let names = ["events.example.com"];
    let unit = format!("units = [\"{}\"]\n", agent.below_root().display());
    let rule = rule(&names).replace("\n[sources", &format!("{unit}\n[sources"));
    let settings = format!("linger = \"1s\"\n{}{rule}", super::names::resolvers());
    let _daemon = start_unpolled(&testbed, &cgroup, &settings)?;
    let _server = serve(&testbed.peer, SERVERS[0], &table)?;
    let results = resolve(&testbed.host, &other, SERVERS[0], &names)?;
    assert_eq!(results, json!([["EPERM", "EPERM"]]));
    let results = resolve(&testbed.host, &agent, SERVERS[0], &names)?;
    assert_eq!(results, json!([["ok", "EPERM"]]));
    let answered = [("udp_connect", "192.0.2.77", 443)];
    eventually(|| Ok(call(&testbed.host, &agent, &answered)? == ["EPERM"]))
}
