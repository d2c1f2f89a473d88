//! Added prefixes: one and many, with and without a time to live.

use std::fmt::Write as _;
use std::thread;

use allowlist_tests::lab::FrameSender;
use allowlist_tests::lab::stream::{PROTECTED, datagram, drain, inbox, ip};

use super::*;

#[test]
fn a_prefix_is_added_and_removed() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::new()?;
    assert!(host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]) && !host.passes(STRANGERS[1]));
    let before = host.active_state()?;
    host.done(&["add", STRANGERS[0], "--service", "web", "--note", "on call"]);
    host.done(&["add", "2001:db8:bad::/48", "--service", "web"]);
    assert!(host.passes(STRANGERS[0]) && host.passes(STRANGERS[1]));
    let list = host.done(&["list", "--added"]);
    assert!(list.contains("on call") && list.contains("root"), "{list}");
    assert_eq!(added(&host)?, ["192.0.2.66/32", "2001:db8:bad::/48"]);
    // Packets of added prefixes are counted like those of a source.
    let sources = &host.testbed.json("status")?["sources"];
    assert_eq!(sources["added.web"]["passed_packets"], 2, "{sources}");

    // The prefix survives SIGKILL of the daemon.
    host.kill()?;
    assert!(host.passes(STRANGERS[0]));
    host.start(&[])?;
    assert!(host.passes(STRANGERS[0]) && host.passes(STRANGERS[1]));
    assert_eq!(added(&host)?.len(), 2);
    let sources = &host.testbed.json("status")?["sources"];
    assert_eq!(sources["added.web"]["passed_packets"], 5, "{sources}");

    host.done(&["remove", STRANGERS[0]]);
    host.done(&["remove", "2001:db8:bad::/48", "--service", "web"]);
    assert!(!host.passes(STRANGERS[0]) && !host.passes(STRANGERS[1]) && host.passes(FRIENDS[0]));
    assert_eq!(host.active_state()?, before);
    let expected = ["start", "add", "add", "start", "remove", "remove"];
    assert_eq!(log(&host)?, expected);
    Ok(())
}

#[test]
fn invalid_requests_change_nothing() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    host.done(&["add", "192.0.2.1", "--service", "ssh"]);
    let before = host.active_state()?;
    let mut snapshot = Snapshot::new();
    for (arguments, code, name) in [
        (
            &["add", "192.0.2.2", "--service", "wbe"][..],
            "unknown-service",
            "\"wbe\"",
        ),
        (
            &["add", "192.0.2.2/24", "--service", "web"],
            "invalid-prefix",
            "192.0.2.0/24",
        ),
        (
            &["add", "invalid", "--service", "web"],
            "invalid-prefix",
            "invalid",
        ),
        (
            &["add", "0.0.0.0/0", "--service", "web"],
            "prefix-too-wide",
            "0.0.0.0/0",
        ),
        (
            &["add", "192.0.2.2", "192.0.2.3/8", "--service", "web"],
            "invalid-prefix",
            "192.0.2.3/8",
        ),
        (
            &["add", "192.0.2.2", "--service", "web", "--note", "a\nb"],
            "invalid-request",
            "note",
        ),
        (&["remove", "192.0.2.9"], "not-added", "192.0.2.9/32"),
        (
            &["remove", "192.0.2.1", "--service", "web"],
            "not-added",
            "web",
        ),
        (&["remove", "203.0.113.0/24"], "not-added", "friends"),
    ] {
        let ended = host.refused(arguments, code, &[name]);
        snapshot.ended(&arguments.join(" "), &ended, None);
        assert_eq!(host.active_state()?, before, "{arguments:?}");
    }
    for (arguments, option) in [
        (
            &["add", "192.0.2.1", "--service", "web", "--ttl", "0s"][..],
            "--ttl",
        ),
        (&["add", "192.0.2.1"], "--service"),
    ] {
        let ended = host.run(arguments)?;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(option), "{ended:?}");
        snapshot.ended(&arguments.join(" "), &ended, None);
    }
    host.done(&["add", "0.0.0.0/0", "--service", "web", "--force"]);
    assert!(host.passes(STRANGERS[0]));
    assert_eq!(
        log(&host)?
            .iter()
            .filter(|line| line.ends_with("refused"))
            .count(),
        9
    );
    // The log has one line for each request, also for an invalid prefix.
    let log = host.done(&["log"]);
    let begins_with_time = |line: &&str| line.starts_with("20");
    assert_eq!(log.lines().filter(begins_with_time).count(), 12, "{log}");
    assert!(log.contains("\"invalid\""), "{log}");
    snapshot.text("log", &log, Some(&host.testbed.scratch));
    snapshot.check(&expect_file!["snapshots/added_refused.txt"]);
    Ok(())
}

#[test]
fn a_batch_is_added_as_a_whole_or_not_at_all() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let mut many = String::from("# from the partner\n\n");
    for number in 0..10_000 {
        writeln!(
            many,
            "100.64.{}.{}  # host {number}",
            number >> 8,
            number & 255
        )?;
    }
    let wrong = format!("{many}100.64.0.1/8\n");
    let add = ["add", "--service", "web"];
    let ended = host.run_with(&add, &wrong)?;
    require_error(&ended, "invalid-prefix", &["standard input:10003: "]);
    expect![[r#"
        error[invalid-prefix]: standard input:10003: "100.64.0.1/8" has host bits set; write "100.0.0.0/8" for the network, or "100.64.0.1/32" for the address
        nothing was changed
    "#]].assert_eq(&ended.stderr);
    assert!(added(&host)?.is_empty() && !host.passes("100.64.0.1"));
    let ended = host.run_with(&add, &many)?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(added(&host)?.len(), 10_000);
    assert!(host.passes("100.64.0.1") && host.passes("100.64.39.15"));
    assert!(!host.passes("100.64.40.1"));
    // A single prefix can be removed; a request with an unknown prefix is refused as a whole.
    host.done(&["remove", "100.64.0.1"]);
    assert!(!host.passes("100.64.0.1") && host.passes("100.64.0.2"));
    let ended = host.run_with(&["remove"], &many)?;
    assert_eq!(ended.code, Some(1), "one prefix does not exist: {ended:?}");
    assert!(host.passes("100.64.0.2"));
    host.done(&["rollback"]);
    assert_eq!(added(&host)?.len(), 10_000);
    assert_eq!(host.run_with(&["remove"], &many)?.code, Some(0));
    assert!(added(&host)?.is_empty() && !host.passes("100.64.0.2"));
    let ended = host.run_with(&add, "# nothing\n")?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    expect![[r#"
        error: standard input has no prefix; nothing was changed; write one prefix per line
    "#]]
    .assert_eq(&ended.stderr);
    Ok(())
}

/// A request without effect creates no policy in the history, and so removes no earlier one.
#[test]
fn requests_without_effect_make_no_policy() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let policy = || -> anyhow::Result<Value> {
        Ok(host.testbed.json("status")?["daemon"]["policy"].clone())
    };
    host.done(&["add", STRANGERS[0], "--service", "web", "--ttl", "1h"]);
    let mut snapshot = Snapshot::new();
    for (arguments, is_new) in [
        (
            &["add", STRANGERS[0], "--service", "web", "--ttl", "2h"][..],
            true,
        ),
        (
            &["add", STRANGERS[0], "--service", "web", "--note", "mine"],
            true,
        ),
        (
            &["add", STRANGERS[0], "--service", "web", "--note", "mine"],
            false,
        ),
        (
            &[
                "add",
                STRANGERS[0],
                "192.0.2.9",
                "--service",
                "web",
                "--ttl",
                "1h",
            ],
            true,
        ),
        (&["mode", "enforce"], false),
        (&["mode", "observe"], true),
        (&["mode", "observe"], false),
        (&["reload", "--confirm-within", "1h"], false),
    ] {
        let before = (policy()?, host.active_state()?);
        let answer = host.done(arguments);
        snapshot.text(&arguments.join(" "), &answer, Some(&host.testbed.scratch));
        let logged: Value = serde_json::from_str(&host.done(&["log", "--count", "1", "--json"]))?;
        let is_marked = logged["entries"][0]["no_change"] == true;
        assert_eq!(is_marked, !is_new, "{arguments:?}: {logged}");
        let text = host.done(&["log", "--count", "1"]);
        snapshot.text("log --count 1", &text, Some(&host.testbed.scratch));
        let status = host.testbed.json("status")?;
        assert!(status["unconfirmed"].is_null(), "{arguments:?}: {status}");
        let after = (policy()?, host.active_state()?);
        assert_eq!(after != before, is_new, "{arguments:?}: {answer}");
        assert_eq!(after.0 != before.0, is_new, "{arguments:?}: {answer}");
    }
    snapshot.check(&expect_file!["snapshots/no_change.txt"]);
    Ok(())
}

/// An export contains the added prefixes.
#[test]
fn added_prefixes_are_exported() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let exported = |more: &[&str]| {
        host.done(
            &[
                &["export", "--format", "plain", "--config", &host.config],
                more,
            ]
            .concat(),
        )
    };
    let has = |text: &str| text.lines().any(|line| line == "192.0.2.66/32");
    assert!(!has(&exported(&[])));
    host.done(&["add", STRANGERS[0], "--service", "web", "--ttl", "1h"]);
    assert!(has(&exported(&[])) && has(&exported(&["--fetch"])));
    assert!(has(&exported(&["added.web"])) && !has(&exported(&["friends"])));
    host.done(&["add", STRANGERS[0], "--service", "web", "--ttl", "1s"]);
    eventually(|| Ok(!has(&exported(&[]))))?;
    assert!(exported(&[]).contains("203.0.113.0/24"));
    Ok(())
}

/// Removing an added prefix does not affect the same prefix of a source.
#[test]
fn removing_an_added_prefix_affects_no_source() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    for prefix in ["203.0.113.7/32", "203.0.113.0/24", "203.0.112.0/23"] {
        host.done(&["add", prefix, "--service", "web"]);
        assert!(host.passes(FRIENDS[0]));
    }
    assert!(host.passes("203.0.112.1"));
    for prefix in ["203.0.113.0/24", "203.0.112.0/23", "203.0.113.7/32"] {
        host.done(&["remove", prefix]);
        assert!(host.passes(FRIENDS[0]), "{prefix}");
    }
    assert!(!host.passes("203.0.112.1"));
    Ok(())
}

/// A stream of datagrams shows that the prefix expires once, and not early.
#[test]
fn a_prefix_expires_once() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let inbox = inbox(&host.testbed, PROTECTED)?;
    let sender = FrameSender::new(&host.testbed.peer, "eth0")?;
    let mut sent = 0_u64;
    let mut offer = |count| -> anyhow::Result<u64> {
        for _ in 0..count {
            let number = sent.to_be_bytes();
            sender.send(&datagram(ip(STRANGERS[0]), PROTECTED, &number))?;
            sent += 1;
        }
        Ok(sent)
    };
    host.done(&["add", STRANGERS[0], "--service", "web", "--ttl", "2s"]);
    eventually(|| {
        offer(20)?;
        Ok(log(&host)?.last().is_some_and(|last| last == "expire"))
    })?;
    let over = offer(0)?;
    offer(20)?;
    let received = drain(&inbox)?.remove(&ip(STRANGERS[0])).unwrap_or_default();
    let last = match received.last() {
        Some(last) => u64::from_be_bytes(last[..].try_into()?) + 1,
        None => 0,
    };
    assert_eq!(received.len() as u64, last, "the prefix returned");
    assert!(last <= over, "{last} of {over} passed");
    let entries: Value = serde_json::from_str(&host.done(&["log", "--json"]))?;
    let entry = |what: &str| {
        let entries = entries["entries"].as_array().into_iter().flatten();
        let mut found = entries.filter(|one| one.to_string().contains(&format!("\"{what}\"")));
        found.next_back().cloned().unwrap_or_default()
    };
    let time = |value: &Value| {
        value
            .as_str()
            .unwrap_or_default()
            .parse::<jiff::Timestamp>()
    };
    let until = time(&entry("add")["until"])?;
    let expired = time(&entry("expire")["time"])?;
    // Both clocks can end an added prefix, and the wall clock may be slewed during the test.
    let slack = jiff::SignedDuration::from_secs(1);
    assert!(until <= expired + slack, "{until} {expired}");
    assert!(added(&host)?.is_empty());
    Ok(())
}

#[test]
fn a_prefix_expires_without_a_daemon() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::new()?;
    host.done(&["add", STRANGERS[0], "--service", "web", "--ttl", "1s"]);
    host.done(&["add", STRANGERS[1], "--service", "web", "--ttl", "1s"]);
    // The last request determines the time to live.
    host.done(&["add", STRANGERS[1], "--service", "web", "--ttl", "1h"]);
    host.kill()?;
    thread::sleep(Duration::from_millis(1100));
    host.start(&[])?;
    assert!(!host.passes(STRANGERS[0]) && host.passes(STRANGERS[1]));
    assert_eq!(added(&host)?, ["2001:db8:bad::66/128"]);
    Ok(())
}

/// Added prefixes of a service that is not configured have no effect until the service returns.
#[test]
fn added_prefixes_return_with_their_service() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    host.done(&["add", STRANGERS[0], "--service", "web"]);
    host.write(&CONFIG.replace("services.web", "services.www"))?;
    host.done(&["reload"]);
    assert!(!host.passes(STRANGERS[0]) && host.passes(FRIENDS[0]));
    host.write(CONFIG)?;
    host.done(&["reload"]);
    assert!(host.passes(STRANGERS[0]));
    Ok(())
}
