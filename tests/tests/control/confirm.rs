//! Commit confirm: unconfirmed changes are rolled back, by the daemon and by the kernel alone.

use super::*;

/// Longer than any test, which ends the time explicitly.
const WITHIN: &[&str] = &["--confirm-within", "24h"];

/// Returns the configuration without the friend's prefix.
fn unfriendly() -> String {
    CONFIG.replace("203.0.113.0/24", "198.18.0.0/24")
}

/// Each kind of change, and whether the friend and the stranger pass afterwards.
const CHANGES: [(&[&str], bool, bool); 4] = [
    (&["add", "192.0.2.66", "--service", "web"], true, true),
    (&["remove", "203.0.113.7"], false, false),
    (&["mode", "observe"], true, true),
    (&["reload"], true, false),
];

/// Makes the friend pass by an added prefix only.
fn begin(host: &Host) -> anyhow::Result<()> {
    host.done(&["add", "203.0.113.7", "--service", "web"]);
    host.write(&unfriendly())?;
    host.done(&["reload"]);
    Ok(())
}

/// Writes the configuration of a reload.
fn prepare(host: &Host, change: &[&str]) -> anyhow::Result<()> {
    if change[0] == "reload" {
        host.write(&unfriendly().replace("198.18.0.0/24", "198.19.0.0/24"))?;
    }
    Ok(())
}

#[test]
fn confirmed_changes_stay() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::new()?;
    begin(&host)?;
    let mut snapshot = Snapshot::new();
    for (change, friend, stranger) in CHANGES {
        prepare(&host, change)?;
        let before = host.active_state()?;
        let text = host.done(&[change, WITHIN].concat());
        assert!(text.contains("allowlist confirm"), "{text}");
        let status = host.testbed.run(&["status"])?.stdout;
        assert!(status.contains("UNCONFIRMED: "), "{status}");
        // Other changes are refused while one is pending.
        let ended = host.refused(
            &["add", "192.0.2.77", "--service", "web"],
            "change-pending",
            &["`allowlist confirm`"],
        );
        snapshot.ended(&change.join(" "), &ended, Some(&host.testbed.scratch));
        if change[0] == "remove" {
            // The change stays pending over a restart.
            host.kill()?;
            host.start(&[])?;
        }
        host.done(&["confirm"]);
        assert_eq!(
            (host.passes(FRIENDS[0]), host.passes(STRANGERS[0])),
            (friend, stranger),
            "{change:?}"
        );
        host.refused(&["confirm"], "nothing-pending", &[]);
        if change[0] != "reload" {
            host.done(&["rollback"]);
            assert_eq!(host.active_state()?, before, "{change:?}");
        }
    }
    snapshot.check(&expect_file!["snapshots/pending.txt"]);
    Ok(())
}

#[test]
fn unconfirmed_changes_are_rolled_back() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    begin(&host)?;
    for (change, friend, stranger) in CHANGES {
        prepare(&host, change)?;
        let before = host.active_state()?;
        host.done(&[change, WITHIN].concat());
        assert_eq!(
            (host.passes(FRIENDS[0]), host.passes(STRANGERS[0])),
            (friend, stranger),
            "{change:?}"
        );
        host.testbed.end_time_to_confirm()?;
        assert!(
            host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]),
            "the kernel reverts at once: {change:?}"
        );
        eventually(|| Ok(host.active_state()? == before))?;
        eventually(|| Ok(host.testbed.json("status")?["unconfirmed"].is_null()))?;
        host.refused(&["confirm"], "nothing-pending", &[]);
        assert!(
            log(&host)?.contains(&"not-confirmed".to_owned()),
            "{change:?}"
        );
    }
    // The last change of the file was rolled back, so the file is inactive until it changes or is reloaded.
    let daemon = host.testbed.json("status")?["daemon"].clone();
    assert_eq!(daemon["config_suppressed"], true, "{daemon}");
    Ok(())
}

/// The deadline passes without a command.
#[test]
fn the_deadline_passes() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let before = host.active_state()?;
    host.run(&["mode", "observe", "--confirm-within", "1s"])?;
    let is_back = || -> anyhow::Result<bool> {
        let status = host.testbed.json("status")?;
        Ok(status["unconfirmed"].is_null() && host.active_state()? == before)
    };
    eventually(is_back)?;
    Ok(())
}

/// The kernel rolls back without the daemon, and the next start agrees with it.
#[test]
fn changes_are_rolled_back_without_a_daemon() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::new()?;
    begin(&host)?;
    for (change, friend, stranger) in CHANGES {
        prepare(&host, change)?;
        let before = host.active_state()?;
        host.done(&[change, WITHIN].concat());
        host.kill()?;
        assert_eq!(
            (host.passes(FRIENDS[0]), host.passes(STRANGERS[0])),
            (friend, stranger),
            "{change:?}"
        );
        host.testbed.end_time_to_confirm()?;
        assert!(
            host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]),
            "{change:?}"
        );
        let status = host.testbed.json("status")?;
        assert_eq!(status["unconfirmed"]["rolled_back"], true, "{status}");
        host.start(&[])?;
        assert!(
            host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]),
            "{change:?}"
        );
        assert_eq!(host.active_state()?, before, "{change:?}");
        let log = host.daemon().stderr();
        assert!(log.contains("warning[not-confirmed]: "), "{log}");
    }
    // The configuration file is still suppressed.
    host.kill()?;
    host.start(&[])?;
    assert!(host.passes(FRIENDS[0]));
    let log = host.daemon().stderr();
    assert!(log.contains("warning[config-suppressed]: "), "{log}");
    host.write(&unfriendly().replace("198.18.0.0/24", "198.18.1.0/24"))?;
    host.kill()?;
    host.start(&[])?;
    host.done(&["remove", "203.0.113.7"]);
    assert!(!host.passes(FRIENDS[0]), "a changed file is used");
    Ok(())
}

/// An unconfirmed first start leaves the host without a filter.
#[test]
fn an_unconfirmed_first_start_is_detached() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::down(CONFIG)?;
    host.start(WITHIN)?;
    assert!(!host.passes(STRANGERS[0]));
    host.testbed.end_time_to_confirm()?;
    let ended = host.daemon().wait(SOON)?;
    assert_eq!(ended.code(), Some(1));
    let log = host.daemon().stderr();
    assert!(log.contains("error[not-confirmed]: "), "{log}");
    assert!(host.passes(STRANGERS[0]));
    let status = host.run(&["status"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    let mut snapshot = Snapshot::new();
    snapshot.ended("status of no filter", &status, Some(&host.testbed.scratch));

    host.start(WITHIN)?;
    host.kill()?;
    assert!(!host.passes(STRANGERS[0]));
    host.testbed.end_time_to_confirm()?;
    assert!(host.passes(STRANGERS[0]), "every packet passes");
    let status = host.run(&["status"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    assert!(status.stdout.starts_with("not filtering: "), "{status:?}");
    let head = status.stdout.split("dropped: ").next().unwrap_or_default();
    snapshot.text(
        "status of an unconfirmed filter",
        head,
        Some(&host.testbed.scratch),
    );
    snapshot.check(&expect_file!["snapshots/first_start_unconfirmed.txt"]);
    // A further start is a new one.
    host.start(WITHIN)?;
    host.done(&["confirm"]);
    assert!(!host.passes(STRANGERS[0]));
    Ok(())
}

/// An unconfirmed start over an attached filter restores the earlier policy.
#[test]
fn an_unconfirmed_start_restores_the_earlier_policy() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::new()?;
    host.daemon().stop(Signal::SIGTERM, SOON)?;
    host.write(&unfriendly())?;
    host.start(WITHIN)?;
    assert!(!host.passes(FRIENDS[0]));
    host.testbed.end_time_to_confirm()?;
    assert!(host.passes(FRIENDS[0]));
    eventually(|| {
        let status = host.testbed.json("status")?;
        Ok(status["daemon"]["config_suppressed"] == true && status["unconfirmed"].is_null())
    })?;
    Ok(())
}

/// A rollback ends a pending change before its deadline.
#[test]
fn a_rollback_ends_the_pending_change() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let before = host.active_state()?;
    host.done(&[
        "add",
        STRANGERS[0],
        "--service",
        "web",
        "--confirm-within",
        "1h",
    ]);
    assert!(host.passes(STRANGERS[0]));
    host.done(&["rollback"]);
    assert!(!host.passes(STRANGERS[0]));
    assert_eq!(host.active_state()?, before);
    host.done(&["add", STRANGERS[0], "--service", "web"]);
    Ok(())
}

/// While a change is pending, a rollback to another policy than the one before it is refused.
#[test]
fn a_rollback_by_number_restores_that_policy_or_nothing() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let add = |prefix: &str, within: &[&str]| {
        host.done(&[&["add", prefix, "--service", "web"], within].concat())
    };
    add("192.0.2.77", &[]);
    let before = host.active_state()?;
    add(STRANGERS[0], WITHIN);
    let mut snapshot = Snapshot::new();
    for number in ["1", "3", "99"] {
        let ended = host.refused(
            &["rollback", number],
            "change-pending",
            &["`allowlist confirm`", &format!("rollback {number}`")],
        );
        snapshot.ended(
            &format!("rollback {number}"),
            &ended,
            Some(&host.testbed.scratch),
        );
        assert!(host.passes(STRANGERS[0]), "the change is still pending");
    }
    snapshot.check(&expect_file!["snapshots/pending_rollback.txt"]);
    host.done(&["rollback", "2"]);
    assert!(!host.passes(STRANGERS[0]));
    assert_eq!(host.active_state()?, before);
    let document: Value = serde_json::from_str(&host.done(&["log", "--count", "1", "--json"]))?;
    assert_eq!(document["entries"][0]["to"], 2, "{document}");
    Ok(())
}
