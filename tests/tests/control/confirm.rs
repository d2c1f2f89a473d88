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
    for (change, friend, stranger) in CHANGES {
        prepare(&host, change)?;
        let before = host.in_force()?;
        let text = host.done(&[change, WITHIN].concat());
        assert!(text.contains("allowlist confirm"), "{text}");
        let status = host.site.run(&["status"])?.stdout;
        assert!(status.contains("UNCONFIRMED: "), "{status}");
        // Nothing else meanwhile.
        host.refused(
            &["add", "192.0.2.77", "--service", "web"],
            1,
            &["waits to be confirmed", "`allowlist confirm`"],
        );
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
        host.refused(&["confirm"], 1, &["no change waits to be confirmed"]);
        if change[0] != "reload" {
            host.done(&["rollback"]);
            assert_eq!(host.in_force()?, before, "{change:?}");
        }
    }
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
        host.refused(&["confirm"], 1, &["no change waits to be confirmed"]);
        let log = host.done(&["log"]);
        assert!(
            log.trim_end().contains("take back what was not confirmed"),
            "{log}"
        );
    }
    // What the file says was taken back, and does not count until it says something else, or is asked for.
    let status = host.site.run(&["status"])?.stdout;
    assert!(
        status.contains("is not in force; mend it, then `allowlist reload`"),
        "{status}"
    );
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
        let status = host.site.run(&["status"])?.stdout;
        assert!(status.contains("was not confirmed in time"), "{status}");
        host.start(&[])?;
        assert!(
            host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]),
            "{change:?}"
        );
        assert_eq!(host.in_force()?, before, "{change:?}");
        let said = host.daemon().stderr();
        assert!(
            said.contains("was not confirmed in time, and is taken back"),
            "{said}"
        );
    }
    // The file still says what was taken back.
    host.kill()?;
    host.start(&[])?;
    assert!(host.passes(FRIENDS[0]));
    let said = host.daemon().stderr();
    assert!(said.contains("its last change was taken back"), "{said}");
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
    assert!(
        said.contains("not confirmed in time, so the filter is off again"),
        "{said}"
    );
    assert!(host.passes(STRANGERS[0]));
    let status = host.run(&["status"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    assert!(
        status.stdout.contains("no filter is in force"),
        "{status:?}"
    );

    host.start(WITHIN)?;
    host.kill()?;
    assert!(!host.passes(STRANGERS[0]));
    host.site.end_time_to_confirm()?;
    assert!(host.passes(STRANGERS[0]), "the kernel lets everything pass");
    let status = host.run(&["status"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    assert!(status.stdout.starts_with("not filtering: "), "{status:?}");
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
