//! The egress policy: programs in a cgroup of the test make calls, and a real daemon with real maps judges them.
//!
//! The policy is attached to the test's own cgroup, so other programs of this machine are never judged.

mod asker;
mod calls;
mod clients;
mod dnsmasq;
mod explaining;
mod forged;
mod forwarding;
mod learning;
mod names;
mod others;
mod own_calls;
mod replies;
mod resolved;
mod seeds;
mod services;
mod switching;
mod units;
mod watching;

use std::path::PathBuf;

use allowlist_tests::lab::{Cgroup, Ended, Namespace, Program, Testbed};
use anyhow::{Context as _, ensure};
use serde_json::Value;

/// Makes calls by `calls.py` in a namespace and a cgroup, and returns the result of each.
fn call(
    namespace: &Namespace,
    cgroup: &Cgroup,
    calls: &[(&str, &str, u16)],
) -> anyhow::Result<Vec<String>> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/egress/calls.py");
    let mut command = namespace.command("python3")?;
    command.arg(script);
    for (kind, address, port) in calls {
        command.args([*kind, *address, &port.to_string()]);
    }
    cgroup.hold(&mut command)?;
    let ended = Ended::of(command)?;
    ensure!(ended.code == Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))
}

/// Starts the daemon with an egress policy on the cgroup; `rest` are further lines of `[egress]` and other tables.
fn start(testbed: &Testbed, cgroup: &Cgroup, rest: &str) -> anyhow::Result<Program> {
    let config = testbed
        .scratch
        .write("allowlist.toml", config(cgroup, rest))?;
    testbed.filter(&["--config".as_ref(), config.as_os_str()])
}

/// Returns a configuration with an egress policy on the cgroup that refuses by default.
fn config(cgroup: &Cgroup, rest: &str) -> String {
    format!(
        "interfaces = [\"eth0\"]\n\n[egress]\ndefault = \"refuse\"\ncgroups = [\"{}\"]\n{rest}",
        cgroup.below_root().display()
    )
}

/// The rule that allows the peer's two addresses on TCP and UDP port 443.
const PARTNER: &str = "
[egress.rules.partner]
to = [\"partner\"]
ports = [\"tcp/443\", \"udp/443\"]

[sources.partner]
prefixes = [\"198.51.100.2/32\", \"2001:db8:1::2/128\"]
";

/// Returns the counter of a kind of call, a verdict and a reason from `allowlist status --json`.
fn counter(testbed: &Testbed, call: &str, verdict: &str, reason: &str) -> anyhow::Result<u64> {
    let status = testbed.json("status")?;
    let counter: &Value = &status["egress"]["counters"][call][verdict][reason];
    counter.as_u64().with_context(|| status.to_string())
}
