//! Names of sources in the kernel: they belong to the generation, need neither daemon nor disk, and are read whole.

use std::fs;
use std::path::PathBuf;

use allowlist_common::abi::VERSION;
use allowlist_dataplane::{Dataplane, View};
use allowlist_policy::compile::{IdTable, Tables, compile};
use allowlist_policy::{Mode, Rules};
use allowlist_tests::model::static_snapshot;
use allowlist_user::config::Config;
use anyhow::ensure;

use super::*;

/// Requires that `status`, `list` and `explain` name exactly these sources.
fn check_names(testbed: &Testbed, expected: &[&str]) -> anyhow::Result<Value> {
    let status = testbed.json("status")?;
    let sources = status["sources"].as_object().context("no sources")?;
    ensure!(sources.keys().eq(expected), "{status}");
    let services = status["services"].as_object().context("no services")?;
    for (name, service) in services {
        ensure!(service["allow"] == json!(expected), "{name}: {service}");
    }
    let list = testbed.json("list")?;
    let prefixes = list["prefixes"].as_array().context("no prefixes")?;
    ensure!(!prefixes.is_empty(), "{list}");
    for prefix in prefixes {
        let names = prefix["sources"].as_array().context("no names")?;
        let are_known = names
            .iter()
            .all(|name| expected.iter().any(|one| name == one));
        ensure!(!names.is_empty() && are_known, "{prefix}");
    }
    let explained = testbed.run(&["explain", FRIENDS[0], "--port", "udp/443"])?;
    ensure!(explained.stdout.contains(expected[0]), "{explained:?}");
    Ok(status)
}

#[test]
fn names_need_neither_daemon_nor_disk() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut filter = testbed.filter(&INLINE_OPTIONS)?;
    assert!(gets_through(&testbed, FRIENDS[0])?);
    filter.stop(Signal::SIGKILL, SOON)?;
    fs::remove_dir_all(testbed.scratch.file("state"))?;
    let status = check_names(&testbed, &["cli"])?;
    assert_eq!(status["sources"]["cli"]["passed_packets"], 1);
    assert_eq!(status["sources"]["cli"]["prefixes"], 2);
    let since = &status["since"];
    assert!(since.is_string(), "{status}");
    // The next daemon continues the counters.
    let _filter = testbed.filter(&INLINE_OPTIONS)?;
    let status = check_names(&testbed, &["cli"])?;
    assert_eq!(status["sources"]["cli"]["passed_packets"], 1);
    assert_eq!(&status["since"], since);
    assert!(!testbed.scratch.file("state/record.v2.json").exists());
    Ok(())
}

fn config(testbed: &Testbed, sources: &[&str]) -> anyhow::Result<PathBuf> {
    let mut text = format!(
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = {sources:?}\n"
    );
    for source in sources {
        text += &format!("[sources.{source}]\nprefixes = ['203.0.113.0/24', '2001:db8:7::/48']\n");
    }
    testbed.scratch.write("allowlist.toml", text)
}

/// The kernel rolls a change back while no daemon runs and the state directory is gone.
#[test]
fn a_rollback_by_the_kernel_restores_names() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let path = config(&testbed, &["friends"])?;
    let arguments = ["--config", &path.display().to_string()];
    let mut filter = testbed.filter(&arguments)?;
    config(&testbed, &["friends", "guests"])?;
    let reloaded = testbed.run(&["reload", "--confirm-within", "24h"])?;
    ensure!(reloaded.code == Some(0), "{reloaded:?}");
    check_names(&testbed, &["friends", "guests"])?;
    // Counted under an id that only the pending generation has.
    assert!(gets_through(&testbed, FRIENDS[0])?);
    filter.stop(Signal::SIGKILL, SOON)?;
    fs::remove_dir_all(testbed.scratch.file("state"))?;
    check_names(&testbed, &["friends", "guests"])?;
    testbed.end_time_to_confirm()?;
    let status = check_names(&testbed, &["friends"])?;
    assert_eq!(status["sources"]["friends"]["passed_packets"], 0);
    // A new id is not one that has counted before: no packet of the next sources is counted twice.
    config(&testbed, &["friends", "others"])?;
    let _filter = testbed.filter(&arguments)?;
    let status = check_names(&testbed, &["friends", "others"])?;
    assert_eq!(status["sources"]["others"]["passed_packets"], 0);
    Ok(())
}

/// While the names are replaced, alone and with the tables, a reader gets one of the versions.
#[test]
fn readers_get_whole_names() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    drop(testbed.filter(&INLINE_OPTIONS)?);
    let mut dataplane = Dataplane::open(testbed.scratch.pin_dir(), None)?;
    let versions = [(b'a', 1), (b'b', 5000), (b'c', 200_001), (b'd', 70)];
    let versions = versions.map(|(letter, length)| vec![letter; length]);
    dataplane.set_metadata(&versions[0])?;
    let is_done = AtomicBool::new(false);
    let read = || -> anyhow::Result<usize> {
        let view = View::open(testbed.scratch.pin_dir())?;
        let mut reads = 0;
        while !is_done.load(Ordering::Relaxed) {
            let names = view.metadata()?.context("no names")?;
            ensure!(versions.contains(&names), "{} bytes", names.len());
            reads += 1;
        }
        Ok(reads)
    };
    thread::scope(|scope| {
        let readers = [scope.spawn(read), scope.spawn(read)];
        let mut write = || -> anyhow::Result<()> {
            for names in versions.iter().cycle().take(60) {
                dataplane.set_metadata(names)?;
            }
            for (round, names) in versions.iter().cycle().take(20).enumerate() {
                let tables = tables(round)?;
                dataplane.publish(&tables, Mode::Enforce, &Rules::default(), &[], names)?;
                ensure!(View::open(testbed.scratch.pin_dir())?.metadata()?.as_ref() == Some(names));
            }
            Ok(())
        };
        let written = write();
        is_done.store(true, Ordering::Relaxed);
        for reader in readers {
            let reads = reader.join().expect("no panic")?;
            ensure!(reads > 0, "nothing was read");
        }
        written
    })?;
    let maps = fs::read_dir(testbed.scratch.pin_dir().join(format!("v{VERSION}")))?;
    let maps = maps.map(|pin| Ok(pin?.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = maps.collect::<anyhow::Result<_>>()?;
    names.retain(|name| name.starts_with("METADATA_"));
    assert!(names.len() <= 3, "one for each slot at most: {names:?}");
    Ok(())
}

/// Returns tables that differ from those of other rounds in more than one prefix.
fn tables(round: usize) -> anyhow::Result<Tables> {
    let text = format!(
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['a']\n\
         [sources.a]\nprefixes = ['192.0.2.{round}', '198.51.100.{round}']\n"
    );
    let config = Config::parse(&text, "test.toml".as_ref())?;
    let lists = static_snapshot(&config.policy);
    Ok(compile(&config.policy, &lists, 10, &IdTable::default())?)
}
