//! Modes, reloads, commit confirm, the end of the daemon and `detach`.

use std::os::fd::AsFd as _;
use std::time::Duration;

use allowlist_common::abi::VERSION;
use allowlist_tests::lab::{
    Cgroup, ForeignProgram, Testbed, detach_link, eventually, load_foreign, replace_program,
};
use allowlist_tests::require_root;
use nix::sys::signal::Signal;

use super::*;

const REFUSED: [(&str, &str, u16); 1] = [("udp_send", "192.0.2.77", 443)];

fn result(testbed: &Testbed, cgroup: &Cgroup) -> anyhow::Result<String> {
    Ok(call(&testbed.host, cgroup, &REFUSED)?.remove(0))
}

fn done(testbed: &Testbed, arguments: &[&str]) -> anyhow::Result<String> {
    let ended = testbed.run(arguments)?;
    ensure!(ended.code == Some(0), "{arguments:?}: {ended:?}");
    Ok(ended.stdout)
}

#[test]
fn the_mode_of_the_egress_policy_is_separate() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let daemon = start(&testbed, &cgroup, PARTNER)?;
    assert_eq!(result(&testbed, &cgroup)?, "EPERM");
    done(&testbed, &["mode", "observe", "--egress"])?;
    assert_eq!(result(&testbed, &cgroup)?, "ok");
    let status = testbed.json("status")?;
    assert_eq!(
        (&status["mode"], &status["egress"]["mode"]),
        (&"enforce".into(), &"observe".into())
    );
    assert_eq!(counter(&testbed, "send", "refuse", "default")?, 2);
    // A mode command without --egress changes the mode for packets only.
    done(&testbed, &["mode", "observe"])?;
    done(&testbed, &["mode", "enforce"])?;
    assert_eq!(result(&testbed, &cgroup)?, "ok");
    // The mode survives a restart of the daemon.
    drop(daemon);
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    assert_eq!(result(&testbed, &cgroup)?, "ok");
    done(&testbed, &["mode", "enforce", "--egress"])?;
    assert_eq!(result(&testbed, &cgroup)?, "EPERM");
    Ok(())
}

#[test]
fn a_reload_changes_the_rules_and_removes_the_policy() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    assert_eq!(result(&testbed, &cgroup)?, "EPERM");
    let wider = PARTNER.replace("198.51.100.2/32", "192.0.2.0/24");
    testbed
        .scratch
        .write("allowlist.toml", config(&cgroup, &wider))?;
    done(&testbed, &["reload"])?;
    assert_eq!(result(&testbed, &cgroup)?, "ok");
    testbed
        .scratch
        .write("allowlist.toml", config(&cgroup, PARTNER))?;
    done(&testbed, &["reload"])?;
    assert_eq!(result(&testbed, &cgroup)?, "EPERM");
    testbed
        .scratch
        .write("allowlist.toml", "interfaces = [\"eth0\"]\n")?;
    done(&testbed, &["reload"])?;
    assert_eq!(result(&testbed, &cgroup)?, "ok");
    assert!(testbed.json("status")?["egress"].is_null());
    Ok(())
}

#[test]
fn an_unconfirmed_policy_is_rolled_back_by_the_kernel() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let open = testbed
        .scratch
        .write("allowlist.toml", "interfaces = [\"eth0\"]\n")?;
    let mut daemon = testbed.filter(&["--config".as_ref(), open.as_os_str()])?;
    assert_eq!(result(&testbed, &cgroup)?, "ok");
    testbed
        .scratch
        .write("allowlist.toml", config(&cgroup, PARTNER))?;
    done(&testbed, &["reload", "--confirm-within", "5s"])?;
    // Without the daemon, the kernel keeps the deadline.
    daemon.stop(Signal::SIGKILL, Duration::from_mins(3))?;
    eventually(|| Ok(result(&testbed, &cgroup)? == "ok"))?;
    Ok(())
}

#[test]
fn the_policy_outlives_the_daemon_until_detach() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let mut daemon = start(&testbed, &cgroup, PARTNER)?;
    daemon.stop(Signal::SIGKILL, Duration::from_mins(3))?;
    assert_eq!(result(&testbed, &cgroup)?, "EPERM");
    let mut daemon = start(&testbed, &cgroup, PARTNER)?;
    assert_eq!(result(&testbed, &cgroup)?, "EPERM");
    daemon.stop(Signal::SIGTERM, Duration::from_mins(3))?;
    assert_eq!(result(&testbed, &cgroup)?, "EPERM");
    done(&testbed, &["detach"])?;
    assert_eq!(result(&testbed, &cgroup)?, "ok");
    Ok(())
}

#[test]
fn a_policy_is_confirmed_and_rolled_back_by_command() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let open = "interfaces = [\"eth0\"]\n";
    let path = testbed.scratch.write("allowlist.toml", open)?;
    let _daemon = testbed.filter(&["--config".as_ref(), path.as_os_str()])?;
    let reload = ["reload", "--confirm-within", "1h"];
    testbed
        .scratch
        .write("allowlist.toml", config(&cgroup, PARTNER))?;
    done(&testbed, &reload)?;
    assert_eq!(result(&testbed, &cgroup)?, "EPERM");
    done(&testbed, &["rollback"])?;
    assert_eq!(result(&testbed, &cgroup)?, "ok");
    // The rolled-back text is ignored until the file changes.
    let other = format!("{}# 2\n", config(&cgroup, PARTNER));
    testbed.scratch.write("allowlist.toml", other)?;
    done(&testbed, &reload)?;
    done(&testbed, &["confirm"])?;
    assert_eq!(result(&testbed, &cgroup)?, "EPERM");
    testbed.scratch.write("allowlist.toml", open)?;
    done(&testbed, &reload)?;
    assert_eq!(result(&testbed, &cgroup)?, "ok");
    done(&testbed, &["confirm"])?;
    assert_eq!(result(&testbed, &cgroup)?, "ok");
    Ok(())
}

#[test]
fn removed_pins_are_restored() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let daemon = start(&testbed, &cgroup, PARTNER)?;
    assert_eq!(result(&testbed, &cgroup)?, "EPERM");
    // The links of the policy, and one of its maps.
    let pins: Vec<_> = walk(testbed.scratch.pin_dir())?
        .into_iter()
        .filter(|pin| pin.contains("/allow_") || pin.ends_with("EGRESS_TABLES"))
        .collect();
    ensure!(pins.len() == 7, "{pins:?}");
    for pin in pins {
        std::fs::remove_file(pin)?;
    }
    daemon.wait_for_line("egress-detached", Duration::from_mins(3))?;
    eventually(|| Ok(result(&testbed, &cgroup)? == "EPERM"))?;
    Ok(())
}

#[test]
fn changed_links_are_restored() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let daemon = start(&testbed, &cgroup, PARTNER)?;
    let folder = testbed.scratch.pin_dir().join(format!("v{VERSION}"));
    let pin = folder.join("allow_sendmsg4_0");
    let passing = load_foreign(ForeignProgram::Send, 1)?;
    let changes: [(&str, &dyn Fn() -> anyhow::Result<()>); 3] = [
        ("replaced the program", &|| {
            Ok(replace_program(&pin, passing.as_fd())?)
        }),
        ("detached the program", &|| Ok(detach_link(&pin)?)),
        ("was removed and created again", &|| {
            std::fs::remove_dir(cgroup.path())?;
            Ok(std::fs::create_dir(cgroup.path())?)
        }),
    ];
    for (expected, change) in changes {
        eventually(|| Ok(result(&testbed, &cgroup)? == "EPERM"))?;
        change()?;
        daemon.wait_for_line(expected, Duration::from_mins(3))?;
    }
    eventually(|| Ok(result(&testbed, &cgroup)? == "EPERM"))
}

/// Returns the paths of all files below a directory.
fn walk(folder: &std::path::Path) -> anyhow::Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            paths.extend(walk(&entry.path())?);
        } else {
            paths.push(entry.path().display().to_string());
        }
    }
    Ok(paths)
}
