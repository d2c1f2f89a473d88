//! The daemon's own calls pass without a rule, also in a PID namespace of its own, as in a container.

use allowlist_tests::lab::{Cgroup, Program, Testbed, eventually};
use allowlist_tests::require_root;
use serde_json::json;

use super::names::{SERVERS, SOON, records, rule, serve};
use super::*;

/// Runs a program with the capabilities of the daemon's systemd unit.
const PRIVILEGES: [&str; 3] = ["setpriv", "--bounding-set", "-all,+bpf,+perfmon,+net_admin"];

/// Starts the daemon in the judged cgroup, by a program with arguments before those of the daemon. The daemon has to
/// resolve a name by a server that no rule allows.
fn check(starter: &[&str]) -> anyhow::Result<()> {
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let table = json!({ "events.example.com": records(&[("A", "20.0.0.77")]) });
    let _server = serve(&testbed.peer, SERVERS[0], &table)?;
    let rule = rule(&["events.example.com"])
        .replace("127.0.0.1:9", "198.51.100.2:5300")
        .replace("200ms", "60s");
    let rest = format!("resolvers = [\"192.0.2.53\"]\n{rule}");
    let text = format!("at_start = \"drop\"\n{}", config(&cgroup, &rest));
    let path = testbed.scratch.write("allowlist.toml", text)?;
    let run = testbed.command(&["run".as_ref(), "--config".as_ref(), path.as_os_str()])?;
    let mut command = testbed.host.command(starter[0])?;
    command
        .args(&starter[1..])
        .arg(run.get_program())
        .args(run.get_args());
    cgroup.hold(&mut command)?;
    let daemon = Program::start(command)?;
    daemon.wait_for_line("ready", SOON)?;
    let calls = [
        ("udp_connect", "20.0.0.77", 443),
        ("udp_connect", "198.51.100.2", 5300),
    ];
    // Another program in the same cgroup is not exempt.
    eventually(|| Ok(call(&testbed.host, &cgroup, &calls)? == ["ok", "EPERM"]))
        .with_context(|| daemon.output())?;
    let passed = |kind| counter(&testbed, kind, "pass", "daemon");
    assert!(
        passed("probe")? + passed("send")? > 0,
        "{}",
        daemon.output()
    );
    Ok(())
}

#[test]
fn the_daemon_needs_no_rule() -> anyhow::Result<()> {
    require_root!();
    check(&PRIVILEGES)
}

#[test]
fn the_daemon_needs_no_rule_in_a_pid_namespace_of_its_own() -> anyhow::Result<()> {
    require_root!();
    let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    check(&[&unshare[..], &PRIVILEGES].concat())
}
