//! A start over the pins of another ABI version: without a gap, also after a kill at any moment.
//!
//! An older version's pins are made of this one's, by giving their folder another name.

use std::fs::{self, File};
use std::path::PathBuf;

use allowlist_common::abi::{
    CONTROL, FALLBACK, GENERATIONS, PREFIXES, TRIES_V4, TRIES_V6, VERSION,
};
use anyhow::ensure;
use aya::maps::MapInfo;

use super::lifecycle::xdp_program;
use super::*;

fn folder(site: &Testbed, version: u32) -> PathBuf {
    site.scratch.pin_dir().join(format!("v{version}"))
}

/// Makes the pins look like those of another version.
fn age(site: &Testbed, version: u32) -> anyhow::Result<()> {
    fs::rename(folder(site, VERSION), folder(site, version))?;
    Ok(())
}

/// Requires that only this version's directory is left, and that its program filters.
fn check_whole(site: &Testbed) -> anyhow::Result<()> {
    let folders: Vec<_> = fs::read_dir(site.scratch.pin_dir())?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<anyhow::Result<_>>()?;
    ensure!(folders == [format!("v{VERSION}")], "{folders:?}");
    let status = site.json("status")?;
    ensure!(status["filtering"] == true, "{status}");
    ensure!(!gets_through(site, STRANGERS[0])? && gets_through(site, FRIENDS[0])?);
    Ok(())
}

fn upgrade(site: &Testbed, filter: &mut Program, version: u32) -> anyhow::Result<()> {
    filter.stop(Signal::SIGTERM, SOON)?;
    age(site, version)?;
    *filter = site.filter(&SMALL)?;
    Ok(())
}

/// Twice, so that adopted maps are adopted again. Also from the version before: the maps that decide about packets are
/// never shared.
#[test]
fn counters_survive_an_upgrade() -> anyhow::Result<()> {
    require_root!();
    for version in [2, VERSION - 1] {
        let site = Testbed::new()?;
        let mut filter = site.filter(&SMALL)?;
        let sources = [FRIENDS, STRANGERS].concat();
        let streamed = Streamed::during(&site, &sources, || {
            upgrade(&site, &mut filter, version)?;
            let judges = [CONTROL, FALLBACK, GENERATIONS, PREFIXES, TRIES_V4, TRIES_V6];
            let id = |name| {
                Some(
                    MapInfo::from_pin(folder(&site, VERSION).join(name))
                        .ok()?
                        .id(),
                )
            };
            let ids = || judges.map(id);
            let before = ids();
            upgrade(&site, &mut filter, version)?;
            for ((name, before), after) in judges.iter().zip(before).zip(ids()) {
                ensure!(
                    before.is_some() && before != after,
                    "v{version} shares {name}"
                );
            }
            Ok(())
        })?;
        streamed.check(&FRIENDS, &STRANGERS);
        check_passed(&site, &streamed).with_context(|| format!("over v{version}"))?;
        check_whole(&site)?;
    }
    Ok(())
}

/// Requires that what passed is counted by source across versions. Counters by reason are new in version 8, and start
/// at 0 there.
fn check_passed(site: &Testbed, streamed: &Streamed) -> anyhow::Result<()> {
    let passed = || -> anyhow::Result<Value> {
        Ok(site.json("status")?["sources"]["cli"]["passed_packets"].clone())
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
        let site = Testbed::new()?;
        let mut filter = site.filter(&SMALL)?;
        let sources = [FRIENDS, STRANGERS].concat();
        let streamed = Streamed::during(&site, &sources, || upgrade(&site, &mut filter, version))?;
        streamed.check(&FRIENDS, &STRANGERS);
        let status = site.json("status")?;
        let passed = status["sources"]["cli"]["passed_packets"].as_u64();
        let passed = passed.context("a number")?;
        assert!(
            passed > 0 && passed < streamed.rounds * 2,
            "{passed} over v{version}"
        );
        assert_eq!(status["generation"], 1);
        check_whole(&site)?;
    }
    Ok(())
}

/// Till the first program is replaced, a start can fail and the other version's filter is as it was.
#[test]
fn a_failed_start_keeps_the_other_version() -> anyhow::Result<()> {
    require_root!();
    for version in [1, 2] {
        let site = Testbed::new()?;
        site.filter(&SMALL)?.stop(Signal::SIGTERM, SOON)?;
        age(&site, version)?;
        let program = xdp_program(&site, "eth0")?;
        bridge(&site.host, "br0", &[])?;
        let sources = [FRIENDS, STRANGERS].concat();
        let streamed = Streamed::during(&site, &sources, || {
            // It has no native mode, and comes before `eth0`.
            let on_bridge = ["--iface", "br0", "--attach-mode", "native"];
            let failed = site.run(&[&["run"], &SMALL[..], &on_bridge].concat())?;
            ensure!(failed.code == Some(1), "{failed:?}");
            for part in ["error[attach-failed]: ", "br0"] {
                ensure!(failed.stderr.contains(part), "{failed:?}");
            }
            ensure!(xdp_program(&site, "eth0")? == program, "v{version}");
            ensure!(!folder(&site, VERSION).exists(), "v{version}");
            Ok(())
        })?;
        streamed.check(&FRIENDS, &STRANGERS);
        let _filter = site.filter(&SMALL)?;
        check_whole(&site)?;
    }
    Ok(())
}

/// Wherever it is cut off, the next start goes on from there.
#[test]
fn killed_migrations_are_completed_by_the_next_start() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let mut filter = site.filter(&SMALL)?;
    let arguments = [&["run"], &SMALL[..]].concat();
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&site, &sources, || {
        for moment in 1..=24 {
            filter.stop(Signal::SIGTERM, SOON)?;
            age(&site, 2)?;
            let mut cut_off = Program::start(site.command(&arguments)?)?;
            thread::sleep(Duration::from_millis(15 * moment));
            cut_off.stop(Signal::SIGKILL, SOON)?;
            filter = site.filter(&SMALL)?;
            let folders = fs::read_dir(site.scratch.pin_dir())?.count();
            ensure!(folders == 1, "cut off at {moment}: {folders} folders");
        }
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    check_passed(&site, &streamed)?;
    check_whole(&site)
}

#[test]
fn unconfigured_interfaces_are_detached_and_named() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    site.second_link()?;
    let both = [&SMALL[..], &["--iface", "eth1"]].concat();
    site.filter(&both)?.stop(Signal::SIGTERM, SOON)?;
    age(&site, 2)?;
    let filter = site.filter(&SMALL)?;
    let line = "[detached]: eth1";
    assert!(filter.stderr().contains(line), "{}", filter.output());
    assert_eq!(xdp_program(&site, "eth1")?, None);
    check_whole(&site)
}

/// Also where the interface has another name by now, and another is called so.
#[test]
fn interfaces_are_found_by_their_links() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    site.filter(&SMALL)?.stop(Signal::SIGTERM, SOON)?;
    age(&site, 2)?;
    allowlist_tests::lab::rename(&site.host, "eth0", "wan")?;
    site.host.run(|| anyhow::Ok(()))?;
    let mut renamed = SMALL;
    renamed[1] = "wan";
    let _filter = site.filter(&renamed)?;
    let status = site.json("status")?;
    assert_eq!(
        status["interfaces"],
        json!([{"name": "wan", "mode": "native", "attached": true}])
    );
    check_whole(&site)
}

#[test]
fn the_attach_mode_changes_across_versions() -> anyhow::Result<()> {
    require_root!();
    for version in [1, 2] {
        let site = Testbed::new()?;
        let generic = [&SMALL[..], &["--attach-mode", "generic"]].concat();
        site.filter(&generic)?.stop(Signal::SIGTERM, SOON)?;
        age(&site, version)?;
        let filter = site.filter(&SMALL)?; // any will do
        assert_eq!(site.json("status")?["interfaces"][0]["mode"], "generic");
        drop(filter);
        age(&site, version)?;
        let _filter = site.filter(&[&SMALL[..], &["--attach-mode", "native"]].concat())?;
        assert_eq!(site.json("status")?["interfaces"][0]["mode"], "native");
        check_whole(&site)?;
    }
    Ok(())
}

/// Two versions' daemons cannot know of each other by their folders' names.
#[test]
fn a_running_daemon_of_another_version_refuses_the_start() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    site.filter(&SMALL)?.stop(Signal::SIGTERM, SOON)?;
    age(&site, 2)?;
    let daemon = File::open(folder(&site, 2))?;
    daemon.try_lock()?;
    let refused = site.run(&[&["run"], &SMALL[..]].concat())?;
    let holder = format!("process {} (", std::process::id());
    for part in ["error[already-running]: ", &holder] {
        assert!(refused.stderr.contains(part), "{refused:?}");
    }
    assert!(!folder(&site, VERSION).exists());
    drop(daemon);
    let _filter = site.filter(&SMALL)?;
    check_whole(&site)
}

#[test]
fn detach_removes_pins_of_another_version() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    site.filter(&SMALL)?.stop(Signal::SIGKILL, SOON)?;
    age(&site, 1)?;
    assert!(!gets_through(&site, STRANGERS[0])?, "it still filters");
    let unknown = site.run(&["status"])?;
    assert!(
        unknown.stderr.contains("error[other-version]: "),
        "{unknown:?}"
    );
    let detached = site.run(&["detach"])?;
    assert!(detached.stdout.contains("eth0"), "{detached:?}");
    assert!(gets_through(&site, STRANGERS[0])?);
    assert!(!folder(&site, 1).exists());
    let _filter = site.filter(&SMALL)?;
    check_whole(&site)
}
