//! Starts over the pins of another ABI version: no packet is unfiltered, also after a kill at any moment.
//!
//! The pins of an older version are made from those of this version, by renaming their directory.

use std::fs::{self, File};
use std::path::PathBuf;

use allowlist_common::abi::{
    CONTROL, FALLBACK, GENERATIONS, PREFIXES, TRIES_V4, TRIES_V6, VERSION,
};
use anyhow::ensure;
use aya::maps::MapInfo;

use super::lifecycle::xdp_program;
use super::*;

fn folder(testbed: &Testbed, version: u32) -> PathBuf {
    testbed.scratch.pin_dir().join(format!("v{version}"))
}

/// Turns the pins into those of another version.
fn set_version(testbed: &Testbed, version: u32) -> anyhow::Result<()> {
    fs::rename(folder(testbed, VERSION), folder(testbed, version))?;
    Ok(())
}

/// Requires that only this version's directory is left, and that its program filters.
fn check_whole(testbed: &Testbed) -> anyhow::Result<()> {
    let folders: Vec<_> = fs::read_dir(testbed.scratch.pin_dir())?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<anyhow::Result<_>>()?;
    ensure!(folders == [format!("v{VERSION}")], "{folders:?}");
    let status = testbed.json("status")?;
    ensure!(status["filtering"] == true, "{status}");
    ensure!(!gets_through(testbed, STRANGERS[0])? && gets_through(testbed, FRIENDS[0])?);
    Ok(())
}

fn upgrade(testbed: &Testbed, filter: &mut Program, version: u32) -> anyhow::Result<()> {
    filter.stop(Signal::SIGTERM, SOON)?;
    set_version(testbed, version)?;
    *filter = testbed.filter(&INLINE_OPTIONS)?;
    Ok(())
}

/// Upgrades twice, so that adopted maps are adopted again. Also from the previous version, with which the maps that decide
/// packets are not shared.
#[test]
fn counters_survive_an_upgrade() -> anyhow::Result<()> {
    require_root!();
    for version in [2, VERSION - 1] {
        let testbed = Testbed::new()?;
        let mut filter = testbed.filter(&INLINE_OPTIONS)?;
        let sources = [FRIENDS, STRANGERS].concat();
        let streamed = Streamed::during(&testbed, &sources, || {
            upgrade(&testbed, &mut filter, version)?;
            let judges = [CONTROL, FALLBACK, GENERATIONS, PREFIXES, TRIES_V4, TRIES_V6];
            let id = |name| {
                Some(
                    MapInfo::from_pin(folder(&testbed, VERSION).join(name))
                        .ok()?
                        .id(),
                )
            };
            let ids = || judges.map(id);
            let before = ids();
            upgrade(&testbed, &mut filter, version)?;
            for ((name, before), after) in judges.iter().zip(before).zip(ids()) {
                ensure!(
                    before.is_some() && before != after,
                    "v{version} shares {name}"
                );
            }
            Ok(())
        })?;
        streamed.check(&FRIENDS, &STRANGERS);
        check_passed(&testbed, &streamed).with_context(|| format!("over v{version}"))?;
        check_whole(&testbed)?;
    }
    Ok(())
}

/// Requires that the counters of sources continue across versions. Counters by reason are new in version 8, and start
/// at 0 there.
fn check_passed(testbed: &Testbed, streamed: &Streamed) -> anyhow::Result<()> {
    let passed = || -> anyhow::Result<Value> {
        Ok(testbed.json("status")?["sources"]["cli"]["passed_packets"].clone())
    };
    eventually(|| Ok(passed()? == streamed.rounds * 2)).with_context(|| {
        let passed = passed();
        format!("{passed:?} packets of {} rounds", streamed.rounds)
    })
}

/// The counters of version 1 and of newer versions have other meanings.
#[test]
fn incompatible_counters_are_reset() -> anyhow::Result<()> {
    require_root!();
    for version in [1, VERSION + 1] {
        let testbed = Testbed::new()?;
        let mut filter = testbed.filter(&INLINE_OPTIONS)?;
        let sources = [FRIENDS, STRANGERS].concat();
        let streamed = Streamed::during(&testbed, &sources, || {
            upgrade(&testbed, &mut filter, version)
        })?;
        streamed.check(&FRIENDS, &STRANGERS);
        let status = testbed.json("status")?;
        let passed = status["sources"]["cli"]["passed_packets"].as_u64();
        let passed = passed.context("a number")?;
        assert!(
            passed > 0 && passed < streamed.rounds * 2,
            "{passed} over v{version}"
        );
        assert_eq!(status["generation"], 1);
        check_whole(&testbed)?;
    }
    Ok(())
}

/// A start that fails before it has replaced a program leaves the other version's filter unchanged.
#[test]
fn a_failed_start_keeps_the_other_version() -> anyhow::Result<()> {
    require_root!();
    for version in [1, 2] {
        let testbed = Testbed::new()?;
        testbed
            .filter(&INLINE_OPTIONS)?
            .stop(Signal::SIGTERM, SOON)?;
        set_version(&testbed, version)?;
        let program = xdp_program(&testbed, "eth0")?;
        bridge(&testbed.host, "br0", &[])?;
        let sources = [FRIENDS, STRANGERS].concat();
        let streamed = Streamed::during(&testbed, &sources, || {
            // A bridge has no native mode, and is attached before `eth0`.
            let on_bridge = ["--iface", "br0", "--attach-mode", "native"];
            let failed = testbed.run(&[&["run"], &INLINE_OPTIONS[..], &on_bridge].concat())?;
            ensure!(failed.code == Some(1), "{failed:?}");
            for part in ["error[attach-failed]: ", "br0"] {
                ensure!(failed.stderr.contains(part), "{failed:?}");
            }
            ensure!(xdp_program(&testbed, "eth0")? == program, "v{version}");
            ensure!(!folder(&testbed, VERSION).exists(), "v{version}");
            Ok(())
        })?;
        streamed.check(&FRIENDS, &STRANGERS);
        let _filter = testbed.filter(&INLINE_OPTIONS)?;
        check_whole(&testbed)?;
    }
    Ok(())
}

/// The next start completes a migration that was killed at any moment.
#[test]
fn killed_migrations_are_completed_by_the_next_start() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut filter = testbed.filter(&INLINE_OPTIONS)?;
    let arguments = [&["run"], &INLINE_OPTIONS[..]].concat();
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        for moment in 1..=24 {
            filter.stop(Signal::SIGTERM, SOON)?;
            set_version(&testbed, 2)?;
            let mut killed = Program::start(testbed.command(&arguments)?)?;
            thread::sleep(Duration::from_millis(15 * moment));
            killed.stop(Signal::SIGKILL, SOON)?;
            filter = testbed.filter(&INLINE_OPTIONS)?;
            let folders = fs::read_dir(testbed.scratch.pin_dir())?.count();
            ensure!(folders == 1, "killed at {moment}: {folders} directories");
        }
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    check_passed(&testbed, &streamed)?;
    check_whole(&testbed)
}

#[test]
fn unconfigured_interfaces_are_detached_and_named() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    testbed.second_link()?;
    let both = [&INLINE_OPTIONS[..], &["--iface", "eth1"]].concat();
    testbed.filter(&both)?.stop(Signal::SIGTERM, SOON)?;
    set_version(&testbed, 2)?;
    let filter = testbed.filter(&INLINE_OPTIONS)?;
    let line = "[detached]: eth1";
    assert!(filter.stderr().contains(line), "{}", filter.output());
    assert_eq!(xdp_program(&testbed, "eth1")?, None);
    check_whole(&testbed)
}

/// Also if the interface was renamed, and another one has its former name.
#[test]
fn interfaces_are_found_by_their_links() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    testbed
        .filter(&INLINE_OPTIONS)?
        .stop(Signal::SIGTERM, SOON)?;
    set_version(&testbed, 2)?;
    allowlist_tests::lab::rename(&testbed.host, "eth0", "wan")?;
    testbed.host.run(|| anyhow::Ok(()))?;
    let mut renamed = INLINE_OPTIONS;
    renamed[1] = "wan";
    let _filter = testbed.filter(&renamed)?;
    let status = testbed.json("status")?;
    assert_eq!(
        status["interfaces"],
        json!([{"name": "wan", "mode": "native", "attached": true}])
    );
    check_whole(&testbed)
}

#[test]
fn the_attach_mode_changes_across_versions() -> anyhow::Result<()> {
    require_root!();
    for version in [1, 2] {
        let testbed = Testbed::new()?;
        let generic = [&INLINE_OPTIONS[..], &["--attach-mode", "generic"]].concat();
        testbed.filter(&generic)?.stop(Signal::SIGTERM, SOON)?;
        set_version(&testbed, version)?;
        let filter = testbed.filter(&INLINE_OPTIONS)?; // in any mode
        assert_eq!(testbed.json("status")?["interfaces"][0]["mode"], "generic");
        drop(filter);
        set_version(&testbed, version)?;
        let _filter =
            testbed.filter(&[&INLINE_OPTIONS[..], &["--attach-mode", "native"]].concat())?;
        assert_eq!(testbed.json("status")?["interfaces"][0]["mode"], "native");
        check_whole(&testbed)?;
    }
    Ok(())
}

/// Daemons of two versions have different pin directories, so they need another lock.
#[test]
fn a_running_daemon_of_another_version_refuses_the_start() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    testbed
        .filter(&INLINE_OPTIONS)?
        .stop(Signal::SIGTERM, SOON)?;
    set_version(&testbed, 2)?;
    let daemon = File::open(folder(&testbed, 2))?;
    daemon.try_lock()?;
    let refused = testbed.run(&[&["run"], &INLINE_OPTIONS[..]].concat())?;
    let holder = format!("process {} (", std::process::id());
    for part in ["error[already-running]: ", &holder] {
        assert!(refused.stderr.contains(part), "{refused:?}");
    }
    assert!(!folder(&testbed, VERSION).exists());
    drop(daemon);
    let _filter = testbed.filter(&INLINE_OPTIONS)?;
    check_whole(&testbed)
}

#[test]
fn detach_removes_pins_of_another_version() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    testbed
        .filter(&INLINE_OPTIONS)?
        .stop(Signal::SIGKILL, SOON)?;
    set_version(&testbed, 1)?;
    assert!(
        !gets_through(&testbed, STRANGERS[0])?,
        "the filter is detached"
    );
    let unknown = testbed.run(&["status"])?;
    assert!(
        unknown.stderr.contains("error[other-version]: "),
        "{unknown:?}"
    );
    let detached = testbed.run(&["detach"])?;
    assert!(detached.stdout.contains("eth0"), "{detached:?}");
    assert!(gets_through(&testbed, STRANGERS[0])?);
    assert!(!folder(&testbed, 1).exists());
    let _filter = testbed.filter(&INLINE_OPTIONS)?;
    check_whole(&testbed)
}
