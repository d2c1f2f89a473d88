//! Another root process tampers with the filter's objects: `status` and the daemon find it, the filter's own objects
//! are repaired, and no others are changed.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use allowlist_common::abi::{CONTROL, FLOWS, PINNED, TRACKER_PROGRAM, VERSION};
use allowlist_tests::lab::{
    Ended, ForeignProgram, attach_first, detach_link, load_foreign, normalized, replace_program,
};
use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use expect_test::expect;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::net::if_::if_nametoindex;

use super::lifecycle::xdp_program;
use super::*;

/// Closed, so that flows of the host are tracked.
const CLOSED: &str = r#"
    interfaces = ["eth0"]
    default = "drop"
    [services.web]
    ports = ["udp/443"]
    allow = ["friends"]
    [sources.friends]
    prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
"#;

const XDP_PASS: i32 = 2;
const TCX_PASS: i32 = 0;

fn pins(site: &Testbed) -> PathBuf {
    site.scratch.pin_dir().join(format!("v{VERSION}"))
}

fn closed(site: &Testbed) -> anyhow::Result<Program> {
    let config = site.scratch.write("closed.toml", CLOSED)?;
    site.filter(&["--config", &config.display().to_string()])
}

/// The kinds of what `status` reports to differ, in order.
fn differences(site: &Testbed) -> anyhow::Result<Vec<String>> {
    let status = site.json("status")?;
    let differences = status["differences"].as_array().context("an array")?;
    let kinds = differences.iter().filter_map(|one| one["kind"].as_str());
    let mut kinds: Vec<String> = kinds.map(str::to_owned).collect();
    kinds.dedup();
    Ok(kinds)
}

/// `status` finds this where nothing repairs it; it exits with 3 and lists the differences.
fn check_found(site: &Testbed, expected: &[&str]) -> anyhow::Result<()> {
    let found = differences(site)?;
    anyhow::ensure!(found == expected, "{found:?}, not {expected:?}");
    let ended = site.run(&["status"])?;
    anyhow::ensure!(ended.code == Some(3), "{expected:?}: {ended:?}");
    anyhow::ensure!(
        ended.stdout.contains("self-check: "),
        "{expected:?}: {ended:?}"
    );
    Ok(())
}

fn zero_control(site: &Testbed) -> anyhow::Result<()> {
    let map = Map::from_map_data(MapData::from_pin(pins(site).join(CONTROL))?)?;
    let mut control: Array<_, [u64; 2]> = map.try_into()?;
    Ok(control.set(0, [0, 0], 0)?)
}

fn replace(site: &Testbed, pin: &str, what: ForeignProgram, verdict: i32) -> anyhow::Result<()> {
    let program = load_foreign(what, verdict)?;
    Ok(replace_program(&pins(site).join(pin), program.as_fd())?)
}

fn chain(site: &Testbed) -> anyhow::Result<Vec<String>> {
    let query = || SchedClassifier::query_tcx("eth0", TcAttachType::Egress);
    let (_, programs) = site.host.run(query)?;
    let names = programs.iter().filter_map(|one| one.name_as_str());
    Ok(names.map(str::to_owned).collect())
}

type Tamper = fn(&Testbed) -> anyhow::Result<()>;

/// With no daemon: `status` finds each, and the next start repairs it.
#[test]
fn status_reports_tampering_and_a_start_repairs_it() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let cases: [(Tamper, &[&str]); 8] = [
        (
            |site| Ok(fs::remove_file(pins(site).join(FLOWS))?),
            &["map-pin-missing"],
        ),
        (
            |site| {
                for (name, _) in PINNED
                    .iter()
                    .filter(|(name, _)| !name.starts_with('I') && *name != "PUBLISHED")
                {
                    fs::remove_file(pins(site).join(name))?;
                }
                Ok(())
            },
            &["map-pin-missing"],
        ),
        (zero_control, &["control-word"]),
        (
            |site| replace(site, "link_0", ForeignProgram::Xdp, XDP_PASS),
            &["program-replaced"],
        ),
        (
            |site| replace(site, "egress_0", ForeignProgram::Classifier, TCX_PASS),
            &["tracker-replaced"],
        ),
        (
            |site| Ok(fs::remove_file(pins(site).join("link_0"))?),
            &["link-pin-missing"],
        ),
        (
            |site| Ok(fs::remove_file(pins(site).join("egress_0"))?),
            &["tracker-pin-missing"],
        ),
        (
            |site| Ok(detach_link(&pins(site).join("link_0"))?),
            &["link-detached"],
        ),
    ];
    let mut filter = closed(&site)?;
    for (tamper, expected) in cases {
        filter.stop(Signal::SIGTERM, SOON)?;
        assert_eq!(differences(&site)?, [""; 0], "before {expected:?}");
        tamper(&site)?;
        check_found(&site, expected)?;
        filter = closed(&site)?;
        assert_eq!(
            differences(&site)?,
            [""; 0],
            "{expected:?}: {}",
            filter.output()
        );
        assert!(
            !gets_through(&site, STRANGERS[0])? && gets_through(&site, FRIENDS[0])?,
            "{expected:?}: {}",
            filter.output()
        );
    }
    // Also where every map's pin is gone, which leaves the links alone.
    filter.stop(Signal::SIGTERM, SOON)?;
    for (name, _) in PINNED {
        fs::remove_file(pins(&site).join(name))?;
    }
    check_found(&site, &["map-pin-missing"])?;
    let _filter = closed(&site)?;
    assert_eq!(differences(&site)?, [""; 0]);
    assert!(!gets_through(&site, STRANGERS[0])? && gets_through(&site, FRIENDS[0])?);
    Ok(())
}

/// One map's pin is not the filter: the daemon goes on, and pins the map again that the program uses.
#[test]
fn a_daemon_restores_missing_pins() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let mut filter = closed(&site)?;
    let pins = pins(&site);
    let names: Vec<_> = fs::read_dir(&pins)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<anyhow::Result<_>>()?;
    let names: Vec<_> = names.iter().filter(|name| *name != "watchers").collect();
    assert!(names.len() > PINNED.len() + 2, "{names:?}");
    let ids = || -> anyhow::Result<Vec<u32>> {
        let maps = PINNED.iter();
        maps.map(|(name, _)| Ok(MapInfo::from_pin(pins.join(name))?.id()))
            .collect()
    };
    let before = ids()?;
    for name in &names {
        fs::remove_file(pins.join(name))?;
    }
    eventually(|| Ok(names.iter().all(|name| pins.join(name).exists())))
        .with_context(|| filter.output())?;
    eventually(|| Ok(differences(&site)?.is_empty())).with_context(|| filter.output())?;
    assert_eq!(ids()?, before, "they are the maps that the programs use");
    assert!(!gets_through(&site, STRANGERS[0])? && gets_through(&site, FRIENDS[0])?);
    // The repair comes before its record.
    filter.wait_for_line("[map-pin-missing]: ", SOON)?;
    let detached = site.run(&["detach"])?;
    assert_eq!(detached.code, Some(0), "{detached:?}");
    assert!(filter.wait(SOON)?.success(), "{}", filter.output());
    assert!(!pins.exists());
    Ok(())
}

/// The whole folder is gone, and with it the filter: it is attached again.
#[test]
fn a_daemon_restores_its_pin_directory() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let filter = closed(&site)?;
    fs::remove_dir_all(site.scratch.pin_dir())?;
    eventually(|| Ok(pins(&site).join("link_0").exists())).with_context(|| filter.output())?;
    eventually(|| Ok(differences(&site)?.is_empty())).with_context(|| filter.output())?;
    assert!(!gets_through(&site, STRANGERS[0])? && gets_through(&site, FRIENDS[0])?);
    Ok(())
}

/// A BPF file system of its own, on which `filter` pins.
fn on_file_system(site: &Testbed) -> anyhow::Result<(PathBuf, Program)> {
    let point = site.scratch.file("bpf");
    fs::create_dir(&point)?;
    mount_bpf(&point)?;
    let pins = point.join("pins").display().to_string();
    let filter = site.filter(&[&SMALL[..], &["--pin-dir", &pins]].concat())?;
    Ok((point, filter))
}

fn mount_bpf(point: &std::path::Path) -> anyhow::Result<()> {
    let options = Some("mode=0700");
    Ok(mount(
        Some("bpf"),
        point,
        Some("bpf"),
        MsFlags::empty(),
        options,
    )?)
}

/// The daemon still has the unmounted file system open, and pins its objects again.
#[test]
fn a_new_file_system_at_the_pin_directory_gets_the_pins() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let (point, mut filter) = on_file_system(&site)?;
    let program = xdp_program(&site, "eth0")?;
    mount_bpf(&point)?;
    let link = point.join(format!("pins/v{VERSION}/link_0"));
    eventually(|| Ok(link.exists())).with_context(|| filter.output())?;
    assert_eq!(
        xdp_program(&site, "eth0")?,
        program,
        "it was on all the while"
    );
    filter.stop(Signal::SIGTERM, SOON)?;
    assert!(!gets_through(&site, STRANGERS[0])? && gets_through(&site, FRIENDS[0])?);
    Ok(())
}

/// Where nothing can be pinned any more, the daemon fails: it must not look as if it had done its work.
#[test]
fn without_a_file_system_a_daemon_fails() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let (point, mut filter) = on_file_system(&site)?;
    umount2(&point, MntFlags::MNT_DETACH)?;
    let ended = filter.wait(SOON)?;
    assert_eq!(ended.code(), Some(1), "{}", filter.output());
    let log = filter.stderr();
    let error = log.lines().find(|line| line.contains("error["));
    let error = error.with_context(|| filter.output())?;
    assert!(error.contains("error[invalid-pin-dir]: "), "{error}");
    expect!["error[invalid-pin-dir]: the pin directory was unmounted or removed, and cannot be restored; the filter ends with this process: <files>/bpf/pins is not on a BPF file system, so nothing can be pinned there; choose a --pin-dir under /sys/fs/bpf"].assert_eq(&normalized(error, Some(&site.scratch)));
    eventually(|| gets_through(&site, STRANGERS[0]))
}

#[test]
fn a_daemon_repairs_replaced_objects() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let filter = closed(&site)?;
    let mut cases: Vec<(Tamper, &str)> = vec![
        (zero_control, "warning[control-word]: "),
        (
            |site| Ok(detach_link(&pins(site).join("link_0"))?),
            "warning[link-detached]: ",
        ),
        (
            |site| replace(site, "egress_0", ForeignProgram::Classifier, TCX_PASS),
            "warning[tracker-replaced]: ",
        ),
    ];
    let replaced: Tamper = |site| replace(site, "link_0", ForeignProgram::Xdp, XDP_PASS);
    cases.extend([(replaced, "warning[program-replaced]: "); 3]);
    for (number, (tamper, line)) in cases.into_iter().enumerate() {
        let said = filter.stderr().matches(line).count();
        tamper(&site)?;
        eventually(|| Ok(filter.stderr().matches(line).count() > said))
            .with_context(|| format!("{line}: {}", filter.output()))?;
        eventually(|| Ok(differences(&site)?.is_empty()))
            .with_context(|| format!("{line}, number {number}: {}", filter.output()))?;
        assert!(!gets_through(&site, STRANGERS[0])? && gets_through(&site, FRIENDS[0])?);
        let lines = filter.stderr();
        assert_eq!(
            lines.matches(line).count(),
            said + 1,
            "one line each: {lines}"
        );
    }
    // After three repairs the other process wins for now, and that is logged.
    replaced(&site)?;
    filter.wait_for_line("warning[repairs-exhausted]: ", SOON)?;
    check_found(&site, &["program-replaced"])?;
    Ok(())
}

/// Another program before ours can end the chain: that is reported, and its place stays.
#[test]
fn the_order_of_other_programs_is_reported_and_not_changed() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let filter = closed(&site)?;
    let index = site.host.run(|| if_nametoindex("eth0"))?;
    let program = load_foreign(ForeignProgram::Classifier, TCX_PASS)?;
    let link = site.host.run(|| attach_first(program.as_fd(), index))?;
    filter.wait_for_line("warning[tracker-order]: ", SOON)?;
    check_found(&site, &["tracker-order"])?;
    let status = site.json("status")?;
    let text = status["differences"][0]["text"]
        .as_str()
        .unwrap_or_default();
    assert!(text.contains("(foreign)"), "{text}");
    assert_eq!(chain(&site)?, ["foreign", TRACKER_PROGRAM]);
    drop(link);
    filter.wait_for_line("[repaired]: ", SOON)?;
    assert_eq!(filter.stderr().matches("[tracker-order]: ").count(), 1);
    assert_eq!(site.json("status")?["filtering"], true);
    Ok(())
}

/// Reports need no write access.
#[test]
fn reports_work_on_a_read_only_file_system() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let filter = closed(&site)?;
    let none = None::<&str>;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, "/sys/fs/bpf", none, read_only, none)?;
    for command in [
        &["status"][..],
        &["list"],
        &["sources"],
        &["explain", FRIENDS[0], "--port", "udp/443"],
    ] {
        let ended: Ended = site.run(command)?;
        assert_eq!(ended.code, Some(0), "{command:?}: {ended:?}");
    }
    assert_eq!(differences(&site)?, [""; 0], "{}", filter.output());
    assert!(!gets_through(&site, STRANGERS[0])?);
    // Nothing differs, so nothing is logged.
    assert!(
        !filter.stderr().contains("self-check"),
        "{}",
        filter.output()
    );
    mount(none, "/sys/fs/bpf", none, MsFlags::MS_REMOUNT, none)?;
    Ok(())
}

/// A daemon that has no descriptor left reports that error, once.
#[test]
fn exhausted_descriptors_are_reported_once() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let filter = closed(&site)?;
    let process = filter.id();
    let limit = |soft: u64| {
        let mut command = std::process::Command::new("prlimit");
        command
            .arg(format!("--pid={process}"))
            .arg(format!("--nofile={soft}:4096"));
        Ended::of(command)
    };
    anyhow::ensure!(limit(4)?.code == Some(0));
    // Not the first line with that error: others than the self-check open files too.
    filter.wait_for_line("warning[self-check-failed]: ", SOON)?;
    anyhow::ensure!(limit(1024)?.code == Some(0));
    filter.wait_for_line("[self-check-works]: ", SOON)?;
    let lines = filter.stderr();
    assert!(lines.contains(Errno::EMFILE.desc()), "{lines}");
    assert!(!lines.contains("pin-missing"), "{lines}");
    assert!(xdp_program(&site, "eth0")?.is_some());
    Ok(())
}
