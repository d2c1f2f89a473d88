//! Another root process tampers with the filter's objects: `status` and the daemon detect it, the filter's own objects
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

fn pins(testbed: &Testbed) -> PathBuf {
    testbed.scratch.pin_dir().join(format!("v{VERSION}"))
}

fn closed(testbed: &Testbed) -> anyhow::Result<Program> {
    let config = testbed.scratch.write("closed.toml", CLOSED)?;
    testbed.filter(&["--config", &config.display().to_string()])
}

/// Returns the kinds of the differences in `status`, in order.
fn differences(testbed: &Testbed) -> anyhow::Result<Vec<String>> {
    let status = testbed.json("status")?;
    let differences = status["differences"].as_array().context("an array")?;
    let kinds = differences.iter().filter_map(|one| one["kind"].as_str());
    let mut kinds: Vec<String> = kinds.map(str::to_owned).collect();
    kinds.dedup();
    Ok(kinds)
}

/// Requires that `status` reports these differences, and exits with 3.
fn check_found(testbed: &Testbed, expected: &[&str]) -> anyhow::Result<()> {
    let found = differences(testbed)?;
    anyhow::ensure!(found == expected, "{found:?}, not {expected:?}");
    let ended = testbed.run(&["status"])?;
    anyhow::ensure!(ended.code == Some(3), "{expected:?}: {ended:?}");
    anyhow::ensure!(
        ended.stdout.contains("self-check: "),
        "{expected:?}: {ended:?}"
    );
    Ok(())
}

fn zero_control(testbed: &Testbed) -> anyhow::Result<()> {
    let map = Map::from_map_data(MapData::from_pin(pins(testbed).join(CONTROL))?)?;
    let mut control: Array<_, [u64; 2]> = map.try_into()?;
    Ok(control.set(0, [0, 0], 0)?)
}

fn replace(testbed: &Testbed, pin: &str, kind: ForeignProgram, verdict: i32) -> anyhow::Result<()> {
    let program = load_foreign(kind, verdict)?;
    Ok(replace_program(&pins(testbed).join(pin), program.as_fd())?)
}

fn chain(testbed: &Testbed) -> anyhow::Result<Vec<String>> {
    let query = || SchedClassifier::query_tcx("eth0", TcAttachType::Egress);
    let (_, programs) = testbed.host.run(query)?;
    let names = programs.iter().filter_map(|one| one.name_as_str());
    Ok(names.map(str::to_owned).collect())
}

type Tamper = fn(&Testbed) -> anyhow::Result<()>;

/// Without a daemon, `status` reports each change, and the next start repairs it.
#[test]
fn status_reports_tampering_and_a_start_repairs_it() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let cases: [(Tamper, &[&str]); 8] = [
        (
            |testbed| Ok(fs::remove_file(pins(testbed).join(FLOWS))?),
            &["map-pin-missing"],
        ),
        (
            |testbed| {
                for (name, _) in PINNED
                    .iter()
                    .filter(|(name, _)| !name.starts_with('I') && *name != "PUBLISHED")
                {
                    fs::remove_file(pins(testbed).join(name))?;
                }
                Ok(())
            },
            &["map-pin-missing"],
        ),
        (zero_control, &["control-word"]),
        (
            |testbed| replace(testbed, "link_0", ForeignProgram::Xdp, XDP_PASS),
            &["program-replaced"],
        ),
        (
            |testbed| replace(testbed, "egress_0", ForeignProgram::Classifier, TCX_PASS),
            &["tracker-replaced"],
        ),
        (
            |testbed| Ok(fs::remove_file(pins(testbed).join("link_0"))?),
            &["link-pin-missing"],
        ),
        (
            |testbed| Ok(fs::remove_file(pins(testbed).join("egress_0"))?),
            &["tracker-pin-missing"],
        ),
        (
            |testbed| Ok(detach_link(&pins(testbed).join("link_0"))?),
            &["link-detached"],
        ),
    ];
    let mut filter = closed(&testbed)?;
    for (tamper, expected) in cases {
        filter.stop(Signal::SIGTERM, SOON)?;
        assert_eq!(differences(&testbed)?, [""; 0], "before {expected:?}");
        tamper(&testbed)?;
        check_found(&testbed, expected)?;
        filter = closed(&testbed)?;
        assert_eq!(
            differences(&testbed)?,
            [""; 0],
            "{expected:?}: {}",
            filter.output()
        );
        assert!(
            !gets_through(&testbed, STRANGERS[0])? && gets_through(&testbed, FRIENDS[0])?,
            "{expected:?}: {}",
            filter.output()
        );
    }
    // Also if the pins of all maps are missing, and those of the links exist.
    filter.stop(Signal::SIGTERM, SOON)?;
    for (name, _) in PINNED {
        fs::remove_file(pins(&testbed).join(name))?;
    }
    check_found(&testbed, &["map-pin-missing"])?;
    let _filter = closed(&testbed)?;
    assert_eq!(differences(&testbed)?, [""; 0]);
    assert!(!gets_through(&testbed, STRANGERS[0])? && gets_through(&testbed, FRIENDS[0])?);
    Ok(())
}

/// The filter works without a map's pin; the daemon pins the map of the running program again.
#[test]
fn a_daemon_restores_missing_pins() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut filter = closed(&testbed)?;
    let pins = pins(&testbed);
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
    eventually(|| Ok(differences(&testbed)?.is_empty())).with_context(|| filter.output())?;
    assert_eq!(
        ids()?,
        before,
        "the pinned maps are not those of the programs"
    );
    assert!(!gets_through(&testbed, STRANGERS[0])? && gets_through(&testbed, FRIENDS[0])?);
    // The repair precedes its log line.
    filter.wait_for_line("[map-pin-missing]: ", SOON)?;
    let detached = testbed.run(&["detach"])?;
    assert_eq!(detached.code, Some(0), "{detached:?}");
    assert!(filter.wait(SOON)?.success(), "{}", filter.output());
    assert!(!pins.exists());
    Ok(())
}

/// After the removal of the whole directory, which detaches the filter, the daemon attaches it again.
#[test]
fn a_daemon_restores_its_pin_directory() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let filter = closed(&testbed)?;
    fs::remove_dir_all(testbed.scratch.pin_dir())?;
    eventually(|| Ok(pins(&testbed).join("link_0").exists())).with_context(|| filter.output())?;
    eventually(|| Ok(differences(&testbed)?.is_empty())).with_context(|| filter.output())?;
    assert!(!gets_through(&testbed, STRANGERS[0])? && gets_through(&testbed, FRIENDS[0])?);
    Ok(())
}

/// Mounts a BPF file system, and starts a filter that pins there.
fn on_file_system(testbed: &Testbed) -> anyhow::Result<(PathBuf, Program)> {
    let point = testbed.scratch.file("bpf");
    fs::create_dir(&point)?;
    mount_bpf(&point)?;
    let pins = point.join("pins").display().to_string();
    let filter = testbed.filter(&[&INLINE_OPTIONS[..], &["--pin-dir", &pins]].concat())?;
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
    let testbed = Testbed::new()?;
    let (point, mut filter) = on_file_system(&testbed)?;
    let program = xdp_program(&testbed, "eth0")?;
    mount_bpf(&point)?;
    let link = point.join(format!("pins/v{VERSION}/link_0"));
    eventually(|| Ok(link.exists())).with_context(|| filter.output())?;
    assert_eq!(
        xdp_program(&testbed, "eth0")?,
        program,
        "the program was detached"
    );
    filter.stop(Signal::SIGTERM, SOON)?;
    assert!(!gets_through(&testbed, STRANGERS[0])? && gets_through(&testbed, FRIENDS[0])?);
    Ok(())
}

/// If pins cannot be restored, the daemon fails, so that the service manager reports an error.
#[test]
fn without_a_file_system_a_daemon_fails() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let (point, mut filter) = on_file_system(&testbed)?;
    umount2(&point, MntFlags::MNT_DETACH)?;
    let ended = filter.wait(SOON)?;
    assert_eq!(ended.code(), Some(1), "{}", filter.output());
    let log = filter.stderr();
    let error = log.lines().find(|line| line.contains("error["));
    let error = error.with_context(|| filter.output())?;
    assert!(error.contains("error[invalid-pin-dir]: "), "{error}");
    expect!["error[invalid-pin-dir]: the daemon and the filter end, because the pin directory was unmounted or removed and cannot be restored; mount the BPF file system again, then start the daemon: <files>/bpf/pins is not on a BPF file system, so nothing can be pinned there; choose a --pin-dir under /sys/fs/bpf"].assert_eq(&normalized(error, Some(&testbed.scratch)));
    eventually(|| gets_through(&testbed, STRANGERS[0]))
}

#[test]
fn a_daemon_repairs_replaced_objects() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let filter = closed(&testbed)?;
    let mut cases: Vec<(Tamper, &str)> = vec![
        (zero_control, "warning[control-word]: "),
        (
            |testbed| Ok(detach_link(&pins(testbed).join("link_0"))?),
            "warning[link-detached]: ",
        ),
        (
            |testbed| replace(testbed, "egress_0", ForeignProgram::Classifier, TCX_PASS),
            "warning[tracker-replaced]: ",
        ),
    ];
    let replaced: Tamper = |testbed| replace(testbed, "link_0", ForeignProgram::Xdp, XDP_PASS);
    cases.extend([(replaced, "warning[program-replaced]: "); 3]);
    for (number, (tamper, line)) in cases.into_iter().enumerate() {
        let said = filter.stderr().matches(line).count();
        tamper(&testbed)?;
        eventually(|| Ok(filter.stderr().matches(line).count() > said))
            .with_context(|| format!("{line}: {}", filter.output()))?;
        eventually(|| Ok(differences(&testbed)?.is_empty()))
            .with_context(|| format!("{line}, number {number}: {}", filter.output()))?;
        assert!(!gets_through(&testbed, STRANGERS[0])? && gets_through(&testbed, FRIENDS[0])?);
        let lines = filter.stderr();
        assert_eq!(
            lines.matches(line).count(),
            said + 1,
            "one line each: {lines}"
        );
    }
    // After three repairs the daemon stops repairing for a time, and logs that.
    replaced(&testbed)?;
    filter.wait_for_line("warning[repairs-exhausted]: ", SOON)?;
    check_found(&testbed, &["program-replaced"])?;
    Ok(())
}

/// A foreign program that runs first can end the chain: this is reported, and the order is not changed.
#[test]
fn the_order_of_other_programs_is_reported_and_not_changed() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let filter = closed(&testbed)?;
    let index = testbed.host.run(|| if_nametoindex("eth0"))?;
    let program = load_foreign(ForeignProgram::Classifier, TCX_PASS)?;
    let link = testbed.host.run(|| attach_first(program.as_fd(), index))?;
    filter.wait_for_line("warning[tracker-order]: ", SOON)?;
    check_found(&testbed, &["tracker-order"])?;
    let status = testbed.json("status")?;
    let text = status["differences"][0]["text"]
        .as_str()
        .unwrap_or_default();
    assert!(text.contains("(foreign)"), "{text}");
    assert_eq!(chain(&testbed)?, ["foreign", TRACKER_PROGRAM]);
    drop(link);
    filter.wait_for_line("[repaired]: ", SOON)?;
    assert_eq!(filter.stderr().matches("[tracker-order]: ").count(), 1);
    assert_eq!(testbed.json("status")?["filtering"], true);
    Ok(())
}

/// Reports do not need write access.
#[test]
fn reports_work_on_a_read_only_file_system() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let filter = closed(&testbed)?;
    let none = None::<&str>;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, "/sys/fs/bpf", none, read_only, none)?;
    for command in [
        &["status"][..],
        &["list"],
        &["sources"],
        &["explain", FRIENDS[0], "--port", "udp/443"],
    ] {
        let ended: Ended = testbed.run(command)?;
        assert_eq!(ended.code, Some(0), "{command:?}: {ended:?}");
    }
    assert_eq!(differences(&testbed)?, [""; 0], "{}", filter.output());
    assert!(!gets_through(&testbed, STRANGERS[0])?);
    // Without differences, nothing is logged.
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
    let testbed = Testbed::new()?;
    let filter = closed(&testbed)?;
    let process = filter.id();
    let limit = |soft: u64| {
        let mut command = std::process::Command::new("prlimit");
        command
            .arg(format!("--pid={process}"))
            .arg(format!("--nofile={soft}:4096"));
        Ended::of(command)
    };
    anyhow::ensure!(limit(4)?.code == Some(0));
    // Other code than the self-check may log the same error before.
    filter.wait_for_line("warning[self-check-failed]: ", SOON)?;
    anyhow::ensure!(limit(1024)?.code == Some(0));
    filter.wait_for_line("[self-check-works]: ", SOON)?;
    let lines = filter.stderr();
    assert!(lines.contains(Errno::EMFILE.desc()), "{lines}");
    assert!(!lines.contains("pin-missing"), "{lines}");
    assert!(xdp_program(&testbed, "eth0")?.is_some());
    Ok(())
}
