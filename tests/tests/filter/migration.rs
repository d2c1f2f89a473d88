//! Starts over the pins of another ABI version: no packet is unfiltered, also after a kill at any moment.
//!
//! The pins of another version are made from those of this version, by renaming their directory. A test process opens
//! the maps as the next version.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use allowlist_common::abi::{PINNED, VERSION};
use allowlist_dataplane::interface::look_up;
use allowlist_dataplane::{AttachModeRequest, Build, Dataplane, View};
use allowlist_policy::compile::compile;
use allowlist_policy::{Feed, Mode, Origin};
use allowlist_user::config::Config;
use allowlist_user::generation_meta::GenerationMeta;
use anyhow::ensure;
use aya::maps::{MapData, MapInfo};
use jiff::Timestamp;

use super::lifecycle::xdp_program;
use super::*;

fn folder(testbed: &Testbed, version: u32) -> PathBuf {
    testbed.scratch.pin_dir().join(format!("v{version}"))
}

/// A version that shares no map with this one, because no build adopts the maps of versions before 8.
const OLDER: u32 = VERSION - 1;

/// Turns the pins into those of another version.
fn set_version(testbed: &Testbed, version: u32) -> anyhow::Result<()> {
    fs::rename(folder(testbed, VERSION), folder(testbed, version))?;
    Ok(())
}

/// Turns the pins into those of an older version that shares all compatible maps with this one, as if an interrupted
/// start had adopted them.
fn set_compatible_version(testbed: &Testbed) -> anyhow::Result<()> {
    set_version(testbed, OLDER)?;
    DirBuilder::new()
        .mode(0o700)
        .create(folder(testbed, VERSION))?;
    for (name, since) in PINNED {
        if since.is_some() {
            let map = MapData::from_pin(folder(testbed, OLDER).join(name))?;
            map.pin(folder(testbed, VERSION).join(name))?;
        }
    }
    Ok(())
}

/// Returns the ids of the pinned maps of a version, in the order of [`PINNED`].
fn map_ids(testbed: &Testbed, version: u32) -> anyhow::Result<Vec<u32>> {
    let id = |(name, _)| Ok(MapInfo::from_pin(folder(testbed, version).join(name))?.id());
    PINNED.into_iter().map(id).collect()
}

/// Requires that exactly the compatible maps were adopted.
fn check_adopted(older: &[u32], newer: &[u32]) -> anyhow::Result<()> {
    for ((name, since), (older, newer)) in PINNED.into_iter().zip(older.iter().zip(newer)) {
        ensure!(
            (older == newer) == since.is_some(),
            "{name}: {older}, {newer}"
        );
    }
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

fn upgrade(
    testbed: &Testbed,
    filter: &mut Program,
    set_version: impl FnOnce(&Testbed) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    filter.stop(Signal::SIGTERM, SOON)?;
    set_version(testbed)?;
    *filter = testbed.filter(&INLINE_OPTIONS)?;
    Ok(())
}

/// Upgrades twice, so that adopted maps are adopted again.
#[test]
fn counters_survive_an_upgrade() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut filter = testbed.filter(&INLINE_OPTIONS)?;
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        for _ in 0..2 {
            let before = map_ids(&testbed, VERSION)?;
            upgrade(&testbed, &mut filter, set_compatible_version)?;
            check_adopted(&before, &map_ids(&testbed, VERSION)?)?;
        }
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    check_passed(&testbed, &streamed)?;
    check_whole(&testbed)
}

/// The test process is the next version. Afterwards its pins are renamed, so that this version reads the counters.
#[test]
fn the_next_version_adopts_the_maps_of_version_8() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let config = testbed.scratch.write(
        "allowlist.toml",
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['cli']\n\
         [sources.cli]\nprefixes = ['203.0.113.0/24', '2001:db8:7::/48']\n",
    )?;
    let mut filter = testbed.filter(&["--config", &config.display().to_string()])?;
    let older = map_ids(&testbed, VERSION)?;
    let program = xdp_program(&testbed, "eth0")?;
    let config = Config::load(&config)?;
    let lists = config.policy.sources.iter().filter_map(|source| {
        let Origin::Prefixes(prefixes) = &source.origin else {
            return None;
        };
        let feed = Feed::new(prefixes.clone(), Timestamp::now());
        Some((source.name.clone(), feed.into()))
    });
    let view = View::open(testbed.scratch.pin_dir())?;
    let meta = GenerationMeta::read(&view)?.context("no names")?;
    let tables = compile(&config.policy, &lists.collect(), 10, &meta.ids)?;
    let next = Build {
        version: VERSION + 1,
        ..Build::CURRENT
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        filter.stop(Signal::SIGTERM, SOON)?;
        testbed.host.run(|| {
            let mut dataplane = Dataplane::open_build(next, testbed.scratch.pin_dir(), None)?;
            check_adopted(&older, &map_ids(&testbed, next.version)?)?;
            ensure!(dataplane.counted_generation() == 1);
            let (names, _) = dataplane.metadata()?;
            let names = names.and_then(|names| GenerationMeta::decode(&names));
            ensure!(names.is_some_and(|names| names.ids == meta.ids));
            let generation = dataplane.publish(
                &tables,
                Mode::Enforce,
                &config.rules,
                &config.interfaces,
                &meta.encode(),
            )?;
            ensure!(generation == 2, "{generation}");
            let facts = runtime.block_on(look_up("eth0"))?;
            ensure!(facts.xdp_program == program, "attached before the publish");
            dataplane.attach(&facts, AttachModeRequest::Native, false)?;
            ensure!(dataplane.remove_previous()?.is_empty());
            ensure!(!folder(&testbed, VERSION).exists());
            Ok(())
        })
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    ensure!(xdp_program(&testbed, "eth0")? != program);
    fs::rename(folder(&testbed, next.version), folder(&testbed, VERSION))?;
    check_passed(&testbed, &streamed)?;
    check_whole(&testbed)
}

/// Requires that the counters of sources continue across versions.
fn check_passed(testbed: &Testbed, streamed: &Streamed) -> anyhow::Result<()> {
    let passed = || -> anyhow::Result<Value> {
        Ok(testbed.json("status")?["sources"]["cli"]["passed_packets"].clone())
    };
    eventually(|| Ok(passed()? == streamed.rounds * 2)).with_context(|| {
        let passed = passed();
        format!("{passed:?} packets of {} rounds", streamed.rounds)
    })
}

/// The counters of versions before 8 and of newer versions have other meanings.
#[test]
fn incompatible_counters_are_reset() -> anyhow::Result<()> {
    require_root!();
    for version in [OLDER, VERSION + 1] {
        let testbed = Testbed::new()?;
        let mut filter = testbed.filter(&INLINE_OPTIONS)?;
        let sources = [FRIENDS, STRANGERS].concat();
        let streamed = Streamed::during(&testbed, &sources, || {
            upgrade(&testbed, &mut filter, |testbed| {
                set_version(testbed, version)
            })
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
    for is_compatible in [false, true] {
        let testbed = Testbed::new()?;
        testbed
            .filter(&INLINE_OPTIONS)?
            .stop(Signal::SIGTERM, SOON)?;
        if is_compatible {
            set_compatible_version(&testbed)?;
        } else {
            set_version(&testbed, OLDER)?;
        }
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
            ensure!(xdp_program(&testbed, "eth0")? == program, "{is_compatible}");
            ensure!(!folder(&testbed, VERSION).exists(), "{is_compatible}");
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
            set_compatible_version(&testbed)?;
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
    set_compatible_version(&testbed)?;
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
    set_compatible_version(&testbed)?;
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
    let versions: [fn(&Testbed) -> anyhow::Result<()>; 2] = [
        |testbed| set_version(testbed, OLDER),
        set_compatible_version,
    ];
    for set_version in versions {
        let testbed = Testbed::new()?;
        let generic = [&INLINE_OPTIONS[..], &["--attach-mode", "generic"]].concat();
        testbed.filter(&generic)?.stop(Signal::SIGTERM, SOON)?;
        set_version(&testbed)?;
        let filter = testbed.filter(&INLINE_OPTIONS)?; // in any mode
        assert_eq!(testbed.json("status")?["interfaces"][0]["mode"], "generic");
        drop(filter);
        set_version(&testbed)?;
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
    set_version(&testbed, OLDER)?;
    let daemon = File::open(folder(&testbed, OLDER))?;
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
    set_version(&testbed, OLDER)?;
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
    assert!(!folder(&testbed, OLDER).exists());
    let _filter = testbed.filter(&INLINE_OPTIONS)?;
    check_whole(&testbed)
}
