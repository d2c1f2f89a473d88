//! Rollback to earlier policies.

use super::*;

#[test]
fn a_rollback_restores_the_whole_policy() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::new()?;
    let first = host.active_state()?;
    let mut snapshot = Snapshot::new();
    let ended = host.refused(&["rollback"], "unknown-policy", &[]);
    snapshot.ended("rollback", &ended, None);
    host.done(&["add", STRANGERS[0], "--service", "web"]); // 2
    host.done(&["mode", "observe"]); // 3
    let third = host.active_state()?;
    host.write(&format!("default = 'drop'\n{CONFIG}"))?;
    host.done(&["reload"]); // 4
    host.done(&["remove", STRANGERS[0]]); // 5
    let fifth = host.active_state()?;
    let list: Value = serde_json::from_str(&host.done(&["rollback", "--list", "--json"]))?;
    let newest = list["policies"][0]["what"].as_str().unwrap_or_default();
    assert!(newest.contains("192.0.2.66/32"), "{list}");
    let list = host.done(&["rollback", "--list"]);
    snapshot.text("rollback --list", &list, Some(&host.testbed.scratch));
    host.done(&["rollback", "3"]);
    assert_eq!(host.active_state()?, third);
    host.done(&["rollback"]);
    assert_eq!(host.active_state()?, fifth);
    host.done(&["rollback", "1"]);
    assert_eq!(host.active_state()?, first);
    for (number, code, names) in [
        ("99", "unknown-policy", &["99", "1, 2"][..]),
        ("8", "already-active", &["8"]),
    ] {
        let ended = host.refused(&["rollback", number], code, names);
        snapshot.ended(&format!("rollback {number}"), &ended, None);
    }
    snapshot.check(&expect_file!["snapshots/rollback.txt"]);

    // The configuration file is suppressed until it changes.
    host.kill()?;
    host.start(&[])?;
    assert_eq!(host.active_state()?, first);
    host.done(&["reload"]);
    assert_eq!(host.testbed.json("status")?["default"], "drop");
    host.done(&["rollback"]);
    assert_eq!(host.active_state()?, first);
    host.write(&format!("# repaired\ndefault = 'drop'\n{CONFIG}"))?;
    host.kill()?;
    host.start(&[])?;
    assert_eq!(host.testbed.json("status")?["default"], "drop");
    Ok(())
}

/// A policy whose mode was set by command is restored with this mode, also over a configuration with another mode.
#[test]
fn a_rollback_restores_the_mode_that_was_set_by_command() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    host.done(&["mode", "observe"]); // 2
    let second = host.active_state()?;
    host.write(&format!("mode = 'observe'\n{CONFIG}"))?;
    host.done(&["reload"]); // 3
    host.done(&["mode", "enforce"]); // 4
    let fourth = host.active_state()?;
    host.done(&["rollback", "2"]);
    assert_eq!(host.active_state()?, second);
    host.done(&["rollback", "4"]);
    assert_eq!(host.active_state()?, fourth);
    Ok(())
}

#[test]
fn the_last_twenty_policies_are_kept() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    for number in 1..=25 {
        host.done(&["add", &format!("192.0.2.{number}"), "--service", "web"]);
    }
    let document: Value = serde_json::from_str(&host.done(&["rollback", "--list", "--json"]))?;
    let policies = document["policies"].as_array().context("an array")?;
    assert!(policies.len() >= 20, "{document}");
    let oldest = policies.last().context("no policy")?["policy"]
        .as_u64()
        .context("a number")?;
    host.done(&["rollback", &oldest.to_string()]);
    assert_eq!(added(&host)?.len() as u64, oldest - 1);
    host.refused(&["rollback", "1"], "unknown-policy", &["1"]);
    Ok(())
}

/// `changes` is the difference of the effective states: configuration, added prefixes and mode. It is empty where only
/// comments differ.
#[test]
fn answers_state_what_changed() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let changes = |arguments: &[&str]| -> anyhow::Result<Value> {
        let text = host.done(&[arguments, &["--json"]].concat());
        Ok(serde_json::from_str::<Value>(&text)?["changes"].clone())
    };
    let config = format!("mode = 'observe'\n{CONFIG}");
    host.write(&config)?;
    for (arguments, expected) in [
        (&["reload"][..], json!(["mode: enforce -> observe"])),
        (&["reload"], json!([])),
        (&["mode", "enforce"], json!(["mode: observe -> enforce"])),
        (&["mode", "enforce"], json!([])),
        (&["rollback"], json!(["mode: enforce -> observe"])),
        (
            &["add", "192.0.2.77", "--service", "ssh"],
            json!(["added 192.0.2.77/32 to ssh"]),
        ),
        (&["add", "192.0.2.77", "--service", "ssh"], json!([])),
        (&["rollback"], json!(["removed 192.0.2.77/32 from ssh"])),
        (&["rollback"], json!(["added 192.0.2.77/32 to ssh"])),
        (
            &["mode", "enforce", "--confirm-within", "24h"],
            json!(["mode: observe -> enforce"]),
        ),
        (&["confirm"], json!([])),
        (
            &["remove", "192.0.2.77", "--confirm-within", "24h"],
            json!(["removed 192.0.2.77/32 from ssh"]),
        ),
        (&["rollback"], json!(["added 192.0.2.77/32 to ssh"])),
        (
            &["rollback", "1"],
            json!([
                // Data of the API, as scripts compare it.
                "mode: enforce by command -> enforce by the configuration",
                "removed 192.0.2.77/32 from ssh"
            ]),
        ),
    ] {
        assert_eq!(changes(arguments)?, expected, "{arguments:?}");
    }
    host.write(&format!("# words\n{CONFIG}"))?;
    assert_eq!(changes(&["reload"])?, json!([]));
    assert_eq!(changes(&["rollback"])?, json!([]));
    host.write(
        &CONFIG
            .replace("[services.web]", "default = 'drop'\n[services.web]")
            .replace("203.0.113.0/24", "198.18.0.0/24"),
    )?;
    assert_eq!(
        changes(&["reload"])?,
        json!([
            "default: pass -> drop",
            "sources.friends: added 198.18.0.0/24",
            "sources.friends: removed 203.0.113.0/24"
        ])
    );
    Ok(())
}

/// `status` states a mode set by command that differs from the file, with the command to return.
#[test]
fn a_mode_by_command_is_reported() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::by(&format!("mode = 'observe'\n{CONFIG}"))?;
    let status = host.run(&["status"])?;
    assert_eq!(status.code, Some(0), "configured observe mode: {status:?}");
    let required = host.run(&["status", "--require", "enforce"])?;
    assert_eq!(required.code, Some(3), "{required:?}");
    assert_eq!(host.testbed.json("status")?["warnings"], json!([]));
    host.done(&["mode", "enforce"]);
    host.done(&["status", "--require", "enforce"]);
    let is_stated = |text: &str| text.contains("by command") && text.contains("mode observe`");
    let reloaded = host.run(&["reload"])?;
    assert!(is_stated(&reloaded.stderr), "{reloaded:?}");
    let mut snapshot = Snapshot::new();
    snapshot.ended("reload", &reloaded, Some(&host.testbed.scratch));
    for runs in [true, false] {
        if !runs {
            host.kill()?;
        }
        let text = host.done(&["status"]);
        let first = text.lines().next().unwrap_or_default();
        assert!(
            first.contains("BY COMMAND") && first.contains("observe"),
            "{text}"
        );
        snapshot.text("status", first, Some(&host.testbed.scratch));
        let status = host.testbed.json("status")?;
        assert_eq!(
            (&status["mode"], &status["configured_mode"]),
            (&json!("enforce"), &json!("observe"))
        );
        let warning = status["warnings"][0].as_str().unwrap_or_default();
        assert!(is_stated(warning), "{status}");
        snapshot.text("warning", warning, Some(&host.testbed.scratch));
    }
    snapshot.check(&expect_file!["snapshots/mode_by_command.txt"]);
    host.start(&[])?;
    host.done(&["mode", "observe"]);
    assert_eq!(host.testbed.json("status")?["warnings"], json!([]));
    Ok(())
}
