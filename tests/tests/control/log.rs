//! The whole log of a daemon: one scripted run with each kind of change, refusal and failure.

use allowlist_tests::vendor::{Answer, Vendor};

use super::*;

/// `web` allows the vendor's list; `ssh` allows the testbed's peer.
fn config(url: &str) -> String {
    format!(
        r#"
interfaces = ["eth0"]
at_start = "drop"
[services.web]
ports = ["udp/443"]
allow = ["vendor"]
[services.ssh]
ports = ["tcp/22"]
allow = ["peer"]
[sources.vendor]
url = "{url}"
format = "json"
every = "24h"
allow_special_use = true
min = 3
[sources.peer]
prefixes = ["198.51.100.2"]
"#
    )
}

/// Each step waits for its record, so that the order of the log is always the same.
#[test]
fn the_log_of_one_run() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::down("")?;
    let answer = Answer::json(r#"["203.0.113.7", "203.0.113.8", "203.0.113.9"]"#);
    let vendor = host
        .testbed
        .host
        .run(|| Vendor::start([("/list", answer)]))?;
    let config = config(&vendor.url("/list"));
    host.write(&config)?;
    host.start(&[])?;
    host.daemon().wait_for_line("generation 2", SOON)?;
    host.done(&["add", "192.0.2.66", "--service", "web", "--ttl", "1h"]);
    vendor.answer("/list", Answer::Status(404));
    assert_eq!(host.run(&["refresh", "vendor"])?.code, Some(1));
    vendor.answer("/list", Answer::json(r#"["203.0.113.7"]"#));
    assert_eq!(host.run(&["refresh", "vendor"])?.code, Some(1));
    let rejected = host.done(&["diff", "--json", "--config", &host.config]);
    let rejected: Value = serde_json::from_str(&rejected)?;
    let id = rejected["rejected"]["vendor"]["id"]
        .as_str()
        .context("an id")?;
    host.done(&["accept", "vendor", id]);
    host.write(&config.replace("udp/443", "udp/70000"))?;
    host.refused(&["reload"], "config-invalid", &["70000"]);
    host.write(&config.replace("udp/443", "udp/444"))?;
    host.done(&["reload"]);
    host.done(&["mode", "observe"]);
    host.refused(&["remove", "192.0.2.1"], "not-added", &["192.0.2.1"]);
    host.done(&["rollback"]);
    host.done(&["remove", "192.0.2.66", "--confirm-within", "24h"]);
    host.testbed.end_time_to_confirm()?;
    // The rollback is the last record of the change.
    eventually(|| Ok(log(&host)?.iter().any(|action| action == "not-confirmed")))?;
    let mut snapshot = Snapshot::new();
    let text = host.daemon().stderr();
    snapshot.text("until the end", &text, Some(&host.testbed.scratch));
    host.done(&["detach"]);
    host.daemon().wait(SOON)?;
    let text = host.daemon().stderr();
    let last = text.lines().next_back().unwrap_or_default();
    snapshot.text("the last record", last, Some(&host.testbed.scratch));
    snapshot.check(&expect_file!["snapshots/log.txt"]);
    Ok(())
}
