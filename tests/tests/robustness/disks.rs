//! A state directory that is full, read-only, damaged or removed: packets are not affected, and changes that cannot be
//! stored are refused.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use allowlist_dataplane::netlink::{Netlink, XdpPlace, index_of};
use allowlist_tests::lab::{ForeignProgram, load_foreign};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;

/// A small file system at the state directory.
struct Disk<'p> {
    path: &'p Path,
}

impl<'p> Disk<'p> {
    fn mount(path: &'p Path) -> anyhow::Result<Self> {
        fs::create_dir_all(path)?;
        let none = MsFlags::empty();
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            none,
            Some("size=256k,mode=0700"),
        )?;
        Ok(Self { path })
    }

    fn read_only(&self, is: bool) -> anyhow::Result<()> {
        let flags = if is {
            MsFlags::MS_RDONLY
        } else {
            MsFlags::empty()
        };
        Ok(mount(
            None::<&str>,
            self.path,
            None::<&str>,
            MsFlags::MS_REMOUNT | flags,
            None::<&str>,
        )?)
    }

    fn fill(&self) -> anyhow::Result<()> {
        let filler = fs::File::create(self.path.join("filler"))?;
        let mut filler = std::io::BufWriter::with_capacity(1, filler);
        while std::io::Write::write_all(&mut filler, &[0; 512]).is_ok() {}
        Ok(())
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.path, MntFlags::MNT_DETACH);
    }
}

/// Checks a running and a starting daemon with a failing disk.
fn check(
    name: &str,
    spoil: impl Fn(&Disk) -> anyhow::Result<()>,
    mend: impl Fn(&Disk) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (testbed, config) = prepared()?;
    let state = testbed.scratch.file("state");
    let disk = Disk::mount(&state)?;
    let mut filter = start(&testbed, &config)?;
    done(&testbed, &["add", "198.18.0.1", "--service", "web"]);
    let mut acknowledged = BTreeSet::from(["198.18.0.1/32".to_owned()]);
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        spoil(&disk)?;
        for round in 0..2 {
            // An allocated block may have space for more lines.
            let mut refused = false;
            for number in 0..100 {
                let prefix = format!("198.18.{round}.{}/32", number + 2);
                let ended = testbed.run(&["add", &prefix, "--service", "web"])?;
                match ended.code {
                    Some(0) => acknowledged.insert(prefix),
                    Some(1) => {
                        ensure!(
                            ended.stderr.contains("error[disk-failed]: "),
                            "{name}: {ended:?}"
                        );
                        refused = true;
                        break;
                    }
                    _ => anyhow::bail!("{name}: {ended:?}"),
                };
            }
            ensure!(refused, "{name}: nothing was refused");
            let found = added_in_kernel(&testbed)?;
            ensure!(
                found == acknowledged,
                "{name}, round {round}: {found:?}, not {acknowledged:?}"
            );
            // A changed list becomes active nevertheless.
            testbed
                .scratch
                .write("list.txt", friends_and("198.19.0.1"))?;
            eventually(|| reaches(&testbed, "198.19.0.1"))?;
            testbed.scratch.write("list.txt", friends_and(""))?;
            eventually(|| Ok(!reaches(&testbed, "198.19.0.1")?))?;
            ensure!(testbed.json("status")?["filtering"] == true, "{name}");
            filter.stop(Signal::SIGKILL, SOON)?;
            filter = start(&testbed, &config)?;
            ensure!(
                reaches(&testbed, "198.18.0.1")?,
                "{name}: {}",
                filter.output()
            );
        }
        mend(&disk)?;
        done(&testbed, &["add", "198.18.9.9", "--service", "web"]);
        acknowledged.insert("198.18.9.9/32".to_owned());
        filter.stop(Signal::SIGKILL, SOON)?;
        filter = start(&testbed, &config)?;
        ensure!(added_in_kernel(&testbed)? == acknowledged, "{name}");
        Ok(())
    });
    let streamed = streamed.with_context(|| name.to_owned())?;
    ensure!(streamed.rounds > 100, "{name}: too few rounds");
    for friend in FRIENDS {
        ensure!(
            streamed.from(friend).len() as u64 >= streamed.rounds,
            "{name}: {friend} lost some"
        );
    }
    for stranger in STRANGERS {
        ensure!(
            streamed.from(stranger).is_empty(),
            "{name}: {stranger} got through"
        );
    }
    Ok(())
}

#[test]
fn a_full_disk_affects_no_packet() -> anyhow::Result<()> {
    require_root!();
    let mend = |disk: &Disk| Ok(fs::remove_file(disk.path.join("filler"))?);
    check("full", |disk: &Disk| disk.fill(), mend)
}

#[test]
fn a_read_only_disk_affects_no_packet() -> anyhow::Result<()> {
    require_root!();
    check(
        "read-only",
        |disk| disk.read_only(true),
        |disk| disk.read_only(false),
    )
}

/// The filter starts with each file of the state damaged in each way.
#[test]
fn damaged_files_are_ignored() -> anyhow::Result<()> {
    require_root!();
    let (testbed, config) = prepared()?;
    let state = testbed.scratch.file("state");
    let mut filter = start(&testbed, &config)?;
    done(&testbed, &["add", "198.18.0.1", "--service", "web"]);
    filter.stop(Signal::SIGTERM, SOON)?;
    let files: Vec<_> = fs::read_dir(&state)?.collect::<Result<_, _>>()?;
    let names: BTreeSet<String> = files
        .iter()
        .map(|file| file.file_name().to_string_lossy().into_owned())
        .collect();
    for expected in ["journal.v2.jsonl", "list.json", "events.v1.jsonl"] {
        ensure!(names.contains(expected), "{names:?}");
    }
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        for name in &names {
            let path = state.join(name);
            let whole = fs::read(&path)?;
            let garbage = [&b"\0\xff{"[..], &whole[..whole.len() / 2], b"\n\0\n"].concat();
            for (how, bytes) in [
                ("empty", &[][..]),
                ("half", &whole[..whole.len() / 2]),
                ("garbage", &garbage),
            ] {
                fs::write(&path, bytes)?;
                let mut filter =
                    start(&testbed, &config).with_context(|| format!("{name} {how}"))?;
                ensure!(reaches(&testbed, FRIENDS[0])?, "{name} {how}");
                ensure!(testbed.json("status")?["filtering"] == true, "{name} {how}");
                // The damaged file is replaced.
                done(&testbed, &["add", "198.18.0.9", "--service", "web"]);
                done(&testbed, &["remove", "198.18.0.9"]);
                filter.stop(Signal::SIGKILL, SOON)?;
                fs::write(&path, &whole)?;
            }
        }
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    let _filter = start(&testbed, &config)?;
    assert!(gets_through(&testbed, "198.18.0.1")?);
    Ok(())
}

/// The added prefixes are lost with the journal, and everything else continues.
#[test]
fn a_removed_state_directory_is_created_again() -> anyhow::Result<()> {
    require_root!();
    let (testbed, config) = prepared()?;
    let state = testbed.scratch.file("state");
    let mut filter = start(&testbed, &config)?;
    fs::remove_dir_all(&state)?;
    let refused = testbed.run(&["add", "198.18.0.1", "--service", "web"])?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(gets_through(&testbed, FRIENDS[0])?);
    filter.stop(Signal::SIGTERM, SOON)?;
    let _filter = start(&testbed, &config)?;
    done(&testbed, &["add", "198.18.0.1", "--service", "web"]);
    assert!(gets_through(&testbed, "198.18.0.1")?);
    Ok(())
}

/// Changes of the mode and a rollback take effect without the disk, and are written later.
#[test]
fn the_mode_and_a_rollback_need_no_disk() -> anyhow::Result<()> {
    require_root!();
    let (testbed, config) = prepared()?;
    let state = testbed.scratch.file("state");
    let disk = Disk::mount(&state)?;
    let mut filter = start(&testbed, &config)?;
    done(&testbed, &["add", "198.18.0.1", "--service", "web"]);
    disk.read_only(true)?;
    let refused = testbed.run(&["add", "198.18.0.2", "--service", "web"])?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let observed = testbed.run(&["mode", "observe", "--json"])?;
    assert_eq!(observed.code, Some(0), "{observed:?}");
    let answer: Value = serde_json::from_str(&observed.stdout)?;
    // The mode is not on disk, and differs from the file.
    assert_eq!(answer["warnings"].as_array().map(Vec::len), Some(2));
    assert!(gets_through(&testbed, STRANGERS[0])?);
    done(&testbed, &["mode", "enforce"]);
    assert!(!gets_through(&testbed, STRANGERS[0])?);
    done(&testbed, &["rollback", "1"]);
    assert!(!gets_through(&testbed, "198.18.0.1")?);
    assert!(gets_through(&testbed, FRIENDS[0])?);
    // A change that is refused undoes no earlier one.
    let refused = testbed.run(&["add", "198.18.0.2", "--service", "web"])?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    disk.read_only(false)?;
    eventually(|| Ok(added(&testbed)?.is_empty())).with_context(|| filter.output())?;
    filter.stop(Signal::SIGKILL, SOON)?;
    let _filter = start(&testbed, &config)?;
    assert!(!gets_through(&testbed, "198.18.0.1")? && !gets_through(&testbed, STRANGERS[0])?);
    Ok(())
}

/// The warning that a change is not on disk is logged once the change is active, and not if the kernel refuses it.
#[test]
fn a_refused_rollback_is_not_logged_as_effective() -> anyhow::Result<()> {
    require_root!();
    let (testbed, config) = prepared()?;
    testbed.second_link()?;
    let state = testbed.scratch.file("state");
    let disk = Disk::mount(&state)?;
    let both = CONFIG.replace("['eth0']", "['eth0', 'eth1']");
    testbed.scratch.write("allowlist.toml", both)?;
    let filter = start(&testbed, &config)?;
    testbed.scratch.write("allowlist.toml", CONFIG)?;
    done(&testbed, &["reload"]);
    // Another program is on the interface to which the rollback attaches the filter.
    let foreign = load_foreign(ForeignProgram::Xdp, 2)?;
    testbed.host.run(|| {
        let index = index_of("eth1").context("no such interface")?;
        Ok::<_, anyhow::Error>(Netlink::open()?.attach_xdp(
            index,
            foreign.as_fd(),
            XdpPlace::Driver,
        )?)
    })?;
    disk.read_only(true)?;
    let refused = testbed.run(&["rollback", "1"])?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("eth1"), "{refused:?}");
    let warning = "the change takes effect anyway";
    let output = filter.stderr();
    assert!(!output.contains(warning), "{output}");
    done(&testbed, &["mode", "observe"]);
    let output = filter.stderr();
    assert_eq!(output.matches(warning).count(), 1, "{output}");
    Ok(())
}
