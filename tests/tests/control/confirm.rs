//! Changes that are taken back unless they are confirmed: by the daemon, and by the kernel alone.

use super::*;

/// No test waits for it: a test ends the time itself.
const WITHIN: &[&str] = &["--confirm-within", "24h"];

/// Without the friends.
fn unfriendly() -> String {
    CONFIG.replace("203.0.113.0/24", "198.18.0.0/24")
}

/// Each kind of a change, and whether the friend and the stranger pass by it.
const CHANGES: [(&[&str], bool, bool); 4] = [
    (&["add", "192.0.2.66", "--service", "web"], true, true),
    (&["remove", "203.0.113.7"], false, false),
    (&["mode", "observe"], true, true),
    (&["reload"], true, false),
];

/// What they change: a friend who passes by what was added alone.
fn begin(host: &Host) -> anyhow::Result<()> {
    host.done(&["add", "203.0.113.7", "--service", "web"]);
    host.write(&unfriendly())?;
    host.done(&["reload"]);
    Ok(())
}

/// What a reload is to find.
fn prepare(host: &Host, change: &[&str]) -> anyhow::Result<()> {
    if change[0] == "reload" {
        host.write(&unfriendly().replace("198.18.0.0/24", "198.19.0.0/24"))?;
    }
    Ok(())
}

#[test]
fn what_is_confirmed_stays() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::new()?;
    begin(&host)?;
    let mut snapshot = Snapshot::new();
    for (change, friend, stranger) in CHANGES {
        prepare(&host, change)?;
        let before = host.in_force()?;
        let text = host.done(&[change, WITHIN].concat());
        assert!(text.contains("allowlist confirm"), "{text}");
        let status = host.site.run(&["status"])?.stdout;
        assert!(status.contains("UNCONFIRMED: "), "{status}");
        // Nothing else meanwhile.
        let ended = host.refused(
            &["add", "192.0.2.77", "--service", "web"],
            "change-pending",
            &["`allowlist confirm`"],
        );
        snapshot.ended(&change.join(" "), &ended, Some(&host.site.scratch));
        if change[0] == "remove" {
            // It goes on waiting over a restart.
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
            assert_eq!(host.in_force()?, before, "{change:?}");
        }
    }
    snapshot.check(&expect_file!["snapshots/pending.txt"]);
    Ok(())
}

#[test]
fn what_is_not_confirmed_is_taken_back() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    begin(&host)?;
    for (change, friend, stranger) in CHANGES {
        prepare(&host, change)?;
        let before = host.in_force()?;
        host.done(&[change, WITHIN].concat());
        assert_eq!(
            (host.passes(FRIENDS[0]), host.passes(STRANGERS[0])),
            (friend, stranger),
            "{change:?}"
        );
        host.site.end_time_to_confirm()?;
        assert!(
            host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]),
            "the kernel reverts at once: {change:?}"
        );
        eventually(|| Ok(host.in_force()? == before))?;
        eventually(|| Ok(host.site.json("status")?["unconfirmed"].is_null()))?;
        host.refused(&["confirm"], "nothing-pending", &[]);
        assert!(
            log(&host)?.contains(&"not-confirmed".to_owned()),
            "{change:?}"
        );
    }
    // The file's last change was rolled back, and is not active until the file changes or is reloaded.
    let daemon = host.site.json("status")?["daemon"].clone();
    assert_eq!(daemon["held_back"], true, "{daemon}");
    Ok(())
}

/// A time that is short: however slow the machine is, it is over some time.
#[test]
fn the_time_passes_by_itself() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let before = host.in_force()?;
    host.run(&["mode", "observe", "--confirm-within", "1s"])?;
    let is_back = || -> anyhow::Result<bool> {
        let status = host.site.json("status")?;
        Ok(status["unconfirmed"].is_null() && host.in_force()? == before)
    };
    eventually(is_back)?;
    Ok(())
}

/// The kernel goes back by itself, and the next start agrees with it.
#[test]
fn a_daemon_that_dies_confirms_nothing() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::new()?;
    begin(&host)?;
    for (change, friend, stranger) in CHANGES {
        prepare(&host, change)?;
        let before = host.in_force()?;
        host.done(&[change, WITHIN].concat());
        host.kill()?;
        assert_eq!(
            (host.passes(FRIENDS[0]), host.passes(STRANGERS[0])),
            (friend, stranger),
            "{change:?}"
        );
        host.site.end_time_to_confirm()?;
        assert!(
            host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]),
            "{change:?}"
        );
        let status = host.site.json("status")?;
        assert_eq!(status["unconfirmed"]["taken_back"], true, "{status}");
        host.start(&[])?;
        assert!(
            host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]),
            "{change:?}"
        );
        assert_eq!(host.in_force()?, before, "{change:?}");
        let said = host.daemon().stderr();
        assert!(said.contains("warning[not-confirmed]: "), "{said}");
    }
    // The file still says what was taken back.
    host.kill()?;
    host.start(&[])?;
    assert!(host.passes(FRIENDS[0]));
    let said = host.daemon().stderr();
    assert!(said.contains("warning[config-suppressed]: "), "{said}");
    host.write(&unfriendly().replace("198.18.0.0/24", "198.18.1.0/24"))?;
    host.kill()?;
    host.start(&[])?;
    host.done(&["remove", "203.0.113.7"]);
    assert!(!host.passes(FRIENDS[0]), "another file counts");
    Ok(())
}

/// A first start that is not confirmed leaves the host as it was: open.
#[test]
fn a_first_start_that_is_not_confirmed_is_taken_off() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::down(CONFIG)?;
    host.start(WITHIN)?;
    assert!(!host.passes(STRANGERS[0]));
    host.site.end_time_to_confirm()?;
    let ended = host.daemon().wait(SOON)?;
    assert_eq!(ended.code(), Some(1));
    let said = host.daemon().stderr();
    assert!(said.contains("error[not-confirmed]: "), "{said}");
    assert!(host.passes(STRANGERS[0]));
    let status = host.run(&["status"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    let mut snapshot = Snapshot::new();
    snapshot.ended("status of no filter", &status, Some(&host.site.scratch));

    host.start(WITHIN)?;
    host.kill()?;
    assert!(!host.passes(STRANGERS[0]));
    host.site.end_time_to_confirm()?;
    assert!(host.passes(STRANGERS[0]), "every packet passes");
    let status = host.run(&["status"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    assert!(status.stdout.starts_with("not filtering: "), "{status:?}");
    let head = status.stdout.split("dropped: ").next().unwrap_or_default();
    snapshot.text(
        "status of an unconfirmed filter",
        head,
        Some(&host.site.scratch),
    );
    snapshot.check(&expect_file!["snapshots/first_start_unconfirmed.txt"]);
    // Whoever starts it again means it.
    host.start(WITHIN)?;
    host.done(&["confirm"]);
    assert!(!host.passes(STRANGERS[0]));
    Ok(())
}

/// A start over a running filter goes back to that one's policy.
#[test]
fn another_start_that_is_not_confirmed_goes_back() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::new()?;
    host.daemon().stop(Signal::SIGTERM, SOON)?;
    host.write(&unfriendly())?;
    host.start(WITHIN)?;
    assert!(!host.passes(FRIENDS[0]));
    host.site.end_time_to_confirm()?;
    assert!(host.passes(FRIENDS[0]));
    eventually(|| {
        let status = host.site.json("status")?;
        Ok(status["daemon"]["held_back"] == true && status["unconfirmed"].is_null())
    })?;
    Ok(())
}

/// Who cannot wait for the time to be over.
#[test]
fn a_rollback_takes_back_what_waits() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let before = host.in_force()?;
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
    assert_eq!(host.in_force()?, before);
    host.done(&["add", STRANGERS[0], "--service", "web"]);
    Ok(())
}
