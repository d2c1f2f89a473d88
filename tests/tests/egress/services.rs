//! Rules that name services, whose cgroups are new with each start: the first call of a start is judged by them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use allowlist_common::abi::{UNITS, UnitKey, VERSION};
use allowlist_tests::lab::{Cgroup, Testbed, eventually};
use allowlist_tests::require_root;
use aya::maps::{HashMap, Map, MapData};
use nix::sys::signal::Signal;

use super::*;

/// Returns the name of a service that exists in no other test: the kernel programs see the cgroups of the whole machine.
pub(super) fn service_name(slice: &Cgroup) -> String {
    let slice = slice.below_root().display().to_string();
    format!("{}.service", slice.trim_start_matches('/'))
}

/// Returns a rule for the units on one port to the peer's IPv4 address, for `[egress]`.
fn rule(name: &str, port: u16, units: &[&str]) -> String {
    let units = if units.is_empty() {
        String::new()
    } else {
        format!("units = {units:?}\n")
    };
    format!(
        "\n[egress.rules.{name}]\nto = [\"partner\"]\nports = [\"udp/{port}\", \"tcp/{port}\"]\n{units}"
    )
}

const SOURCE: &str = "\n[sources.partner]\nprefixes = [\"198.51.100.2/32\"]\n";

/// Returns the ports, of 53, 80 and 443, on which a program in the cgroup reaches the peer.
fn open_ports(testbed: &Testbed, cgroup: &Cgroup) -> anyhow::Result<Vec<u16>> {
    let ports = [53, 80, 443];
    let calls = ports.map(|port| ("udp_send", "198.51.100.2", port));
    let results = call(&testbed.host, cgroup, &calls)?;
    let open = ports.into_iter().zip(results);
    open.filter_map(|(port, result)| match &*result {
        "ok" => Some(Ok(port)),
        "EPERM" => None,
        other => Some(Err(anyhow::anyhow!("{other}"))),
    })
    .collect()
}

/// Starts a unit in `slice` again and again, and returns the number of starts by the result of their first call.
fn starts(
    testbed: &Testbed,
    slice: &Cgroup,
    name: &str,
    port: u16,
    count: usize,
) -> anyhow::Result<BTreeMap<String, usize>> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/egress/starts.py");
    let mut command = testbed.host.command("python3")?;
    command.arg(script).arg(slice.path().join(name));
    command.args(["198.51.100.2", &port.to_string(), &count.to_string()]);
    let ended = Ended::of(command)?;
    ensure!(ended.code == Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))
}

/// Returns the open map of the rows of cgroups.
fn rows(testbed: &Testbed) -> anyhow::Result<HashMap<MapData, UnitKey, u32>> {
    let folder = testbed.scratch.pin_dir().join(format!("v{VERSION}"));
    let map = MapData::from_pin(folder.join(UNITS))?;
    Ok(Map::from_map_data(map)?.try_into()?)
}

/// Returns the cgroups that have a row.
fn recorded(testbed: &Testbed) -> anyhow::Result<Vec<u64>> {
    let keys = rows(testbed)?.keys().collect::<Result<Vec<_>, _>>()?;
    Ok(keys.into_iter().map(|key| key.cgroup).collect())
}

#[test]
fn no_start_is_refused() -> anyhow::Result<()> {
    require_root!();
    let is_long = std::env::var_os("ALLOWLIST_LONG").is_some();
    let count = if is_long { 10_000 } else { 300 };
    let (testbed, slice) = (Testbed::new()?, Cgroup::slice()?);
    let name = &*service_name(&slice);
    let by_path = slice.below_root().join("by-path.service");
    let rules = [
        rule("name", 443, &[name]),
        rule("path", 80, &[by_path.to_str().context("a path in UTF-8")?]),
    ];
    let mut daemon = start(&testbed, &slice, &(rules.concat() + SOURCE))?;
    let expect = |unit, port, count, result: &str| -> anyhow::Result<()> {
        let results = starts(&testbed, &slice, unit, port, count)?;
        assert_eq!(
            results,
            [(result.to_owned(), count)].into(),
            "{unit} {port}"
        );
        Ok(())
    };
    expect(name, 443, count, "ok")?;
    expect("by-path.service", 80, count, "ok")?;
    expect(name, 80, 10, "EPERM")?;
    expect("by-path.service", 443, 10, "EPERM")?;
    expect("other.service", 443, 10, "EPERM")?;
    // The kernel removes the row with the cgroup, so rows cannot accumulate while there is no daemon.
    daemon.stop(Signal::SIGKILL, Duration::from_mins(3))?;
    // The daemon may have found a cgroup just before it was removed.
    let before = recorded(&testbed)?;
    assert!(before.len() <= 2, "{before:?}");
    expect(name, 443, count, "ok")?;
    assert_eq!(recorded(&testbed)?, before);
    // A new daemon replaces the programs.
    let daemon = testbed.filter(&[
        "--config".as_ref(),
        testbed.scratch.file("allowlist.toml").as_os_str(),
    ])?;
    expect(name, 443, 10, "ok")?;
    drop(daemon);
    let ended = testbed.run(&["detach"])?;
    ensure!(ended.code == Some(0), "{ended:?}");
    expect("other.service", 443, 1, "ok")
}

#[test]
fn services_that_run_already_are_found() -> anyhow::Result<()> {
    require_root!();
    let (testbed, slice) = (Testbed::new()?, Cgroup::slice()?);
    let name = &*service_name(&slice);
    let inner = slice.child("inner.slice")?;
    let service = inner.child(name)?;
    let below = service.child("below")?;
    let _daemon = start(&testbed, &slice, &(rule("name", 443, &[name]) + SOURCE))?;
    for cgroup in [&service, &below] {
        assert_eq!(open_ports(&testbed, cgroup)?, [443]);
    }
    assert!(open_ports(&testbed, &inner)?.is_empty());
    Ok(())
}

/// A user may create cgroups with any name in the cgroup of the user's own service manager.
#[test]
fn a_name_counts_only_in_slices() -> anyhow::Result<()> {
    require_root!();
    let (testbed, slice) = (Testbed::new()?, Cgroup::slice()?);
    let name = &*service_name(&slice);
    let manager = slice.child("user@1000.service")?;
    let app = manager.child("app.slice")?;
    let before = manager.child(name)?;
    let _daemon = start(&testbed, &slice, &(rule("name", 443, &[name]) + SOURCE))?;
    let after = app.child(name)?;
    let longer = slice.child(&format!("{name}x"))?;
    let real = slice.child(name)?;
    for cgroup in [&before, &after, &longer, &manager] {
        let path = cgroup.below_root().display().to_string();
        assert!(open_ports(&testbed, cgroup)?.is_empty(), "{path}");
    }
    assert_eq!(open_ports(&testbed, &real)?, [443]);
    assert_eq!(recorded(&testbed)?, [id(&real)?]);
    Ok(())
}

/// The slice of a service that is named without its path is known at run time only.
#[test]
fn rules_for_a_slice_and_for_a_service_in_it_are_joined() -> anyhow::Result<()> {
    require_root!();
    let (testbed, slice) = (Testbed::new()?, Cgroup::slice()?);
    let name = &*service_name(&slice);
    let (named, other) = (slice.child("named.slice")?, slice.child("other.slice")?);
    let path = named.below_root().to_str().context("a path in UTF-8")?;
    let rules = [
        rule("slice", 443, &[path]),
        rule("service", 53, &[name]),
        rule("all", 80, &[]),
    ];
    let _daemon = start(&testbed, &slice, &(rules.concat() + SOURCE))?;
    let service = named.child(name)?;
    assert_eq!(open_ports(&testbed, &service)?, [53, 80, 443]);
    assert_eq!(
        open_ports(&testbed, &service.child("below")?)?,
        [53, 80, 443]
    );
    assert_eq!(open_ports(&testbed, &named.child("x.service")?)?, [80, 443]);
    assert_eq!(open_ports(&testbed, &other.child("x.service")?)?, [80]);
    drop(service);
    assert_eq!(open_ports(&testbed, &other.child(name)?)?, [53, 80]);
    let status = testbed.json("status")?;
    let passed = ["slice", "service", "all"].map(|rule| &status["egress"]["rules"][rule]["passed"]);
    assert_eq!(passed, [3, 3, 5]);
    Ok(())
}

#[test]
fn the_daemon_repairs_rows() -> anyhow::Result<()> {
    require_root!();
    let (testbed, slice) = (Testbed::new()?, Cgroup::slice()?);
    let name = &*service_name(&slice);
    let service = slice.child(name)?;
    let _daemon = start(&testbed, &slice, &(rule("name", 443, &[name]) + SOURCE))?;
    let mut map = rows(&testbed)?;
    let row = map.keys().next().context("a row")??;
    assert_eq!(row.cgroup, id(&service)?);
    // A row that is missing, and one of a cgroup that does not exist.
    let gone = UnitKey {
        cgroup: 1 << 40,
        ..row
    };
    map.insert(gone, 1, 0)?;
    map.remove(&row)?;
    eventually(|| Ok(recorded(&testbed)? == [row.cgroup]))?;
    assert_eq!(open_ports(&testbed, &service)?, [443]);
    Ok(())
}

#[test]
fn a_reload_changes_the_named_units() -> anyhow::Result<()> {
    require_root!();
    let (testbed, slice) = (Testbed::new()?, Cgroup::slice()?);
    let [first, second] = ["allowlist-test-a.service", "allowlist-test-b.service"];
    let _daemon = start(&testbed, &slice, &(rule("name", 443, &[first]) + SOURCE))?;
    let (a, b) = (slice.child(first)?, slice.child(second)?);
    let folder = testbed.scratch.pin_dir().join(format!("v{VERSION}"));
    let is_followed = || folder.join("allow_mkdir").exists();
    for (units, expected) in [
        (vec![second], (0, 1)),
        (vec![first, second], (1, 1)),
        (vec![first], (1, 0)),
    ] {
        let rules = rule("name", 443, &units) + SOURCE;
        testbed
            .scratch
            .write("allowlist.toml", config(&slice, &rules))?;
        let ended = testbed.run(&["reload"])?;
        ensure!(ended.code == Some(0), "{ended:?}");
        let open = (
            open_ports(&testbed, &a)?.len(),
            open_ports(&testbed, &b)?.len(),
        );
        assert_eq!(open, expected, "{units:?}");
    }
    assert!(is_followed());
    // The programs stay while an earlier generation, to which the kernel may return, names units.
    for port in [80, 81, 82] {
        let rules = rule("name", port, &[]) + SOURCE;
        testbed
            .scratch
            .write("allowlist.toml", config(&slice, &rules))?;
        let ended = testbed.run(&["reload"])?;
        ensure!(ended.code == Some(0), "{ended:?}");
    }
    assert!(!is_followed());
    Ok(())
}

#[test]
fn a_kernel_without_types_refuses_services_and_accepts_slices() -> anyhow::Result<()> {
    require_root!();
    let (testbed, slice) = (Testbed::new()?, Cgroup::slice()?);
    let name = &*service_name(&slice);
    let inner = slice.child("inner.slice")?;
    let run = |rules: &str| -> anyhow::Result<std::process::Command> {
        let path = testbed.scratch.write(
            "allowlist.toml",
            config(&slice, &(rules.to_owned() + SOURCE)),
        )?;
        let run = testbed.command(&["run".as_ref(), "--config".as_ref(), path.as_os_str()])?;
        let mut command = testbed.host.command("unshare")?;
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg("mount -t tmpfs none /sys/kernel/btf && exec \"$@\"");
        command
            .arg("sh")
            .arg(run.get_program())
            .args(run.get_args());
        Ok(command)
    };
    let ended = Ended::of(run(&rule("name", 443, &[name]))?)?;
    assert_ne!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("error[no-unit-starts]"), "{ended:?}");
    let path = inner.below_root().to_str().context("a path in UTF-8")?;
    let daemon = Program::start(run(&rule("slice", 443, &[path]))?)?;
    daemon.wait_for_line("ready", Duration::from_mins(3))?;
    assert_eq!(open_ports(&testbed, &inner)?, [443]);
    Ok(())
}

/// Returns the id of a cgroup.
fn id(cgroup: &Cgroup) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(Path::new(cgroup.path()).metadata()?.ino())
}
