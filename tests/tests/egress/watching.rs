//! `allowlist watch --egress`: its text and JSON for judged calls, the sums of equal calls, and the lease of the reader.

use std::time::Duration;

use allowlist_common::abi::{CONTROL, EGRESS_EVENTS, EGRESS_LEASE, EgressLease, VERSION};
use allowlist_tests::lab::{Cgroup, Testbed, eventually};
use allowlist_tests::require_root;
use aya::maps::{Array, Map, MapData};
use expect_test::{Expect, expect};
use nix::sys::signal::Signal;

use super::*;

const SOON: Duration = Duration::from_mins(3);
/// Addresses that no rule allows.
const OTHERS: [&str; 2] = ["192.0.2.77", "2001:db8:bad::77"];

fn map<V: aya::Pod>(testbed: &Testbed, name: &str) -> anyhow::Result<Array<MapData, V>> {
    let path = testbed.scratch.pin_dir().join(format!("v{VERSION}/{name}"));
    Ok(Map::from_map_data(MapData::from_pin(path)?)?.try_into()?)
}

fn lease(testbed: &Testbed) -> anyhow::Result<EgressLease> {
    Ok(map(testbed, EGRESS_LEASE)?.get(&0, 0)?)
}

/// Starts `allowlist watch --egress`, and returns when the kernel emits events.
fn watch(testbed: &Testbed, options: &[&str]) -> anyhow::Result<Program> {
    let before = lease(testbed)?;
    let arguments = [&["watch", "--egress"], options].concat();
    let watch = Program::start(testbed.command(&arguments)?)?;
    eventually(|| Ok(lease(testbed)?.refused > before.refused)).with_context(|| watch.output())?;
    Ok(watch)
}

/// Makes calls while a watch is stopped, so that it reads all of them at the same time.
fn call_while_stopped(
    testbed: &Testbed,
    watch: &mut Program,
    calls: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    watch.signal(Signal::SIGSTOP)?;
    // The stopped reader does not renew its lease.
    let forever = EgressLease {
        passed: 0,
        refused: u64::MAX,
    };
    map(testbed, EGRESS_LEASE)?.set(0, forever, 0)?;
    calls()?;
    watch.signal(Signal::SIGCONT)
}

/// Waits until a watch has ended without a signal, and returns its output.
fn ended(mut watch: Program) -> anyhow::Result<String> {
    ensure!(watch.wait(SOON)?.success(), "{}", watch.output());
    Ok(watch.stdout())
}

/// Returns lines of text with times, process ids and the test's cgroup replaced.
fn normalised(text: &str, cgroup: &Cgroup) -> anyhow::Result<String> {
    let unit = cgroup.below_root().to_string_lossy();
    let mut lines = String::new();
    for line in text.lines() {
        let (time, rest) = line.split_once(' ').context("a line has a time")?;
        let _: jiff::Timestamp = time.parse()?;
        let mut rest = rest.replace(unit.trim_start_matches('/'), "UNIT");
        if let Some((before, after)) = rest.split_once('[')
            && let Some((process, after)) = after.split_once(']')
            && process.parse::<u32>().is_ok()
        {
            rest = format!("{before}[PID]{after}");
        }
        lines += &format!("TIME {rest}\n");
    }
    Ok(lines)
}

#[track_caller]
fn check_text(watch: Program, cgroup: &Cgroup, expected: &Expect) {
    let text = ended(watch).and_then(|text| normalised(&text, cgroup));
    expected.assert_eq(&text.expect("the watch ends"));
}

#[test]
fn refused_calls_are_shown_and_probes_counted() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    let below = cgroup.child("below")?;
    let calls = [
        ("udp_connect", OTHERS[0], 443),
        ("tcp", "127.0.0.1", 1),
        ("udp_send", "198.51.100.2", 443),
        ("tcp", OTHERS[0], 443),
        ("tcp", OTHERS[1], 8443),
        ("mapped_tcp", "10.0.0.1", 443),
        ("mptcp", OTHERS[1], 443),
        ("udp_send", OTHERS[0], 53),
        ("udplite_send", OTHERS[1], 443),
    ];
    let text = watch(&testbed, &["--count", "6"])?;
    call(&testbed.host, &below, &calls)?;
    let note = text.wait_for_line("--probes shows them", SOON);
    check_text(
        text,
        &cgroup,
        &expect![[r#"
            TIME refused python3[PID] UNIT/below user root -> 192.0.2.77 tcp/443: rule partner does not list the address
            TIME refused python3[PID] UNIT/below user root -> 2001:db8:bad::77 tcp/8443: no rule covers the port
            TIME refused python3[PID] UNIT/below user root -> 10.0.0.1 tcp/443: rule partner does not list the address (closed range)
            TIME refused python3[PID] UNIT/below user root -> 2001:db8:bad::77 tcp/443: rule partner does not list the address
            TIME refused python3[PID] UNIT/below user root -> 192.0.2.77 udp/53: no rule covers the port
            TIME refused python3[PID] UNIT/below user root -> 2001:db8:bad::77 udp/443: rule partner does not list the address
        "#]],
    );
    note?;
    assert_eq!(counter(&testbed, "probe", "refuse", "default")?, 1);

    let text = watch(&testbed, &["--probes", "--count", "2"])?;
    let probes = [53, 80].map(|port| ("udp_connect", OTHERS[0], port));
    call(&testbed.host, &cgroup, &probes)?;
    check_text(
        text,
        &cgroup,
        &expect![[r#"
            TIME refused python3[PID] UNIT user root -> 192.0.2.77 udp/53 (probe): no rule covers the port
            TIME refused python3[PID] UNIT user root -> 192.0.2.77 udp/80 (probe): no rule covers the port
        "#]],
    );
    Ok(())
}

#[test]
fn equal_calls_are_summed_in_text_only() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    let again = ("tcp", OTHERS[1], 443);
    let calls = [again, ("tcp", OTHERS[0], 443), again, again, again];
    let mut text = watch(&testbed, &["--count", "10"])?;
    call_while_stopped(&testbed, &mut text, || {
        for _ in 0..2 {
            call(&testbed.host, &cgroup, &calls)?; // another process
        }
        Ok(())
    })?;
    check_text(
        text,
        &cgroup,
        &expect![[r#"
            TIME refused python3[PID] UNIT user root -> 2001:db8:bad::77 tcp/443: rule partner does not list the address
            TIME refused python3[PID] UNIT user root -> 192.0.2.77 tcp/443: rule partner does not list the address
            TIME refused python3 UNIT user root -> 192.0.2.77 tcp/443: 1 more
            TIME refused python3 UNIT user root -> 2001:db8:bad::77 tcp/443: 7 more
        "#]],
    );
    let json = watch(&testbed, &["--json", "--count", "5"])?;
    call(&testbed.host, &cgroup, &calls)?;
    assert_eq!(ended(json)?.lines().count(), 5);
    Ok(())
}

#[test]
fn json_has_one_object_per_call() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    let watch = watch(&testbed, &["--json", "--all", "--probes", "--count", "4"])?;
    let calls = [
        ("tcp", OTHERS[0], 443),
        ("udp_send", OTHERS[1], 53),
        ("udp_connect", "169.254.169.254", 80),
        ("udp_send", "198.51.100.2", 443),
    ];
    call(&testbed.host, &cgroup, &calls)?;
    let mut lines = String::new();
    for line in ended(watch)?.lines() {
        let mut event: Value = serde_json::from_str(line)?;
        let unit = cgroup.below_root().to_string_lossy();
        assert_eq!(event["unit"], unit.trim_start_matches('/'));
        for (key, name) in [("process", "PID"), ("cgroup", "ID")] {
            assert!(event[key].as_u64().is_some_and(|id| id > 1), "{event}");
            event[key] = name.into();
        }
        let time = event["time"].as_str().context("a time")?;
        let age = jiff::Timestamp::now().duration_since(time.parse()?);
        assert!(age.abs() < jiff::SignedDuration::from_mins(10), "{event}");
        event["time"] = "TIME".into();
        event["unit"] = "UNIT".into();
        lines += &format!("{event}\n");
    }
    expect![[r#"
        {"call":"connect","cgroup":"ID","destination":"192.0.2.77","destination_port":443,"mode":"enforce","process":"PID","program":"python3","protocol":"tcp","reason":"default","rules":["partner"],"sources":[],"time":"TIME","unit":"UNIT","user":"root","user_id":0,"verdict":"refuse"}
        {"call":"send","cgroup":"ID","destination":"2001:db8:bad::77","destination_port":53,"mode":"enforce","process":"PID","program":"python3","protocol":"udp","reason":"default","rules":[],"sources":[],"time":"TIME","unit":"UNIT","user":"root","user_id":0,"verdict":"refuse"}
        {"call":"probe","cgroup":"ID","destination":"169.254.169.254","destination_port":80,"mode":"enforce","process":"PID","program":"python3","protocol":"udp","reason":"closed-range","rules":[],"sources":[],"time":"TIME","unit":"UNIT","user":"root","user_id":0,"verdict":"refuse"}
        {"call":"send","cgroup":"ID","destination":"198.51.100.2","destination_port":443,"mode":"enforce","process":"PID","program":"python3","protocol":"udp","reason":"allowed","rules":["partner"],"sources":["partner"],"time":"TIME","unit":"UNIT","user":"root","user_id":0,"verdict":"pass"}
    "#]]
    .assert_eq(&lines);
    Ok(())
}

#[test]
fn observe_mode_shows_what_would_be_refused() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let _daemon = start(&testbed, &cgroup, &format!("mode = \"observe\"\n{PARTNER}"))?;
    let calls = [("udp_send", OTHERS[0], 443), ("udp_send", OTHERS[1], 80)];
    let text = watch(&testbed, &["--count", "2"])?;
    assert_eq!(call(&testbed.host, &cgroup, &calls)?, ["ok", "ok"]);
    check_text(
        text,
        &cgroup,
        &expect![[r#"
            TIME would refuse python3[PID] UNIT user root -> 192.0.2.77 udp/443: rule partner does not list the address
            TIME would refuse python3[PID] UNIT user root -> 2001:db8:bad::77 udp/80: no rule covers the port
        "#]],
    );
    Ok(())
}

/// Passed calls are events only for a reader with `--all`.
#[test]
fn passed_calls_are_shown_on_request() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    let calls = [
        ("udp_send", "127.0.0.1", 9),
        ("udp_send", "198.51.100.2", 443),
        ("udp_send", OTHERS[0], 443),
    ];
    let text = watch(&testbed, &["--count", "1"])?;
    assert_eq!(lease(&testbed)?.passed, 0);
    call(&testbed.host, &cgroup, &calls)?;
    assert!(ended(text)?.contains(OTHERS[0]));
    let text = watch(&testbed, &["--all", "--count", "3"])?;
    call(&testbed.host, &cgroup, &calls)?;
    check_text(
        text,
        &cgroup,
        &expect![[r#"
            TIME passed python3[PID] UNIT user root -> 127.0.0.1 udp/9: local
            TIME passed python3[PID] UNIT user root -> 198.51.100.2 udp/443: allowed by source partner
            TIME refused python3[PID] UNIT user root -> 192.0.2.77 udp/443: rule partner does not list the address
        "#]],
    );
    assert_eq!(lease(&testbed)?, EgressLease::default());
    Ok(())
}

/// The cgroup of a program may be gone when its call is read.
#[test]
fn a_removed_cgroup_is_shown_by_its_id() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    let mut watch = watch(&testbed, &["--json", "--count", "1"])?;
    call_while_stopped(&testbed, &mut watch, || {
        let below = cgroup.child("below")?;
        call(&testbed.host, &below, &[("tcp", OTHERS[0], 443)])?;
        drop(below);
        Ok(())
    })?;
    let event: Value = serde_json::from_str(&ended(watch)?)?;
    assert!(event["unit"].is_null(), "{event}");
    assert!(event["cgroup"].as_u64().is_some(), "{event}");
    Ok(())
}

#[test]
fn one_reader_at_a_time_beside_one_of_packets() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    let control =
        || -> anyhow::Result<u64> { Ok(map::<[u64; 2]>(&testbed, CONTROL)?.get(&0, 0)?[1]) };
    // The leases are separate: a reader of packets does not make the programs of the egress policy emit events.
    let mut packets = Program::start(testbed.command(&["watch"])?)?;
    eventually(|| Ok(control()? > 0))?;
    assert_eq!(lease(&testbed)?, EgressLease::default());
    assert_eq!(packets.stop(Signal::SIGINT, SOON)?.code(), Some(0));
    assert_eq!(control()?, 0);
    let mut calls = watch(&testbed, &[])?;
    assert_eq!(control()?, 0);
    let second = testbed.run(&["watch", "--egress"])?;
    assert_eq!(second.code, Some(1), "{second:?}");
    expect![[r#"
        error[busy]: another `allowlist watch --egress` is running, and only one at a time can read the judged calls; end that one first
    "#]].assert_eq(&second.stderr);
    let mut packets = Program::start(testbed.command(&["watch"])?)?;
    eventually(|| Ok(control()? > 0))?;
    assert_eq!(calls.stop(Signal::SIGINT, SOON)?.code(), Some(0));
    assert_eq!(lease(&testbed)?, EgressLease::default());
    assert_eq!(packets.stop(Signal::SIGINT, SOON)?.code(), Some(0));
    Ok(())
}

#[test]
fn a_policy_is_required_and_its_end_is_reported() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let code = |code: &str| -> anyhow::Result<()> {
        let ended = testbed.run(&["watch", "--egress"])?;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(
            ended.stderr.starts_with(&format!("error[{code}]: ")),
            "{ended:?}"
        );
        Ok(())
    };
    code("nothing-attached")?;
    let open = "interfaces = [\"eth0\"]\n";
    let path = testbed.scratch.write("allowlist.toml", open)?;
    let mut daemon = testbed.filter(&["--config".as_ref(), path.as_os_str()])?;
    code("no-egress-policy")?;
    let reload = |text: &str| -> anyhow::Result<()> {
        testbed.scratch.write("allowlist.toml", text)?;
        testbed.json("reload").map(drop)
    };
    reload(&config(&cgroup, PARTNER))?;
    let removed = watch(&testbed, &["--json"])?;
    reload(open)?;
    assert_eq!(ended(removed)?, "{\"detached\":true}\n");
    code("no-egress-policy")?;
    reload(&config(&cgroup, PARTNER))?;
    daemon.stop(Signal::SIGTERM, SOON)?;
    // Without a daemon.
    let detached = watch(&testbed, &[])?;
    call(&testbed.host, &cgroup, &[("tcp", OTHERS[0], 443)])?;
    detached.wait_for_line(OTHERS[0], SOON)?;
    testbed.json("detach")?;
    assert_eq!(
        ended(detached)?.lines().last(),
        Some(
            "the egress policy was removed or detached; if it is attached again, start `allowlist watch --egress` again"
        )
    );
    Ok(())
}

/// The daemon replaces a map whose pin was removed; a reader of the map that was replaced would get no more events.
#[test]
fn replaced_maps_end_a_watch() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    let generation =
        || -> anyhow::Result<Option<u64>> { Ok(testbed.json("status")?["generation"].as_u64()) };
    for name in [EGRESS_EVENTS, EGRESS_LEASE] {
        let before = generation()?;
        let watch = watch(&testbed, &["--json"])?;
        let pin = testbed.scratch.pin_dir().join(format!("v{VERSION}/{name}"));
        std::fs::remove_file(&pin)?;
        assert_eq!(ended(watch)?, "{\"detached\":true}\n", "{name}");
        // The programs in the links use the new map from the next generation on.
        eventually(|| Ok(pin.exists() && generation()? > before))?;
    }
    let watch = watch(&testbed, &["--count", "1"])?;
    // The maps are pinned before the programs that use them are attached.
    eventually(|| {
        call(&testbed.host, &cgroup, &[("tcp", OTHERS[0], 443)])?;
        Ok(watch.stdout().contains(OTHERS[0]))
    })?;
    ended(watch).map(drop)
}

/// A part of many calls is shown, and the rest is counted: the sum has all calls.
#[test]
fn many_calls_are_sampled_and_the_rest_counted() -> anyhow::Result<()> {
    const CALLS: u64 = 20_000;
    const SCRIPT: &str = "
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[2])):
    try:
        s.sendto(b'x', (sys.argv[1], 443))
    except PermissionError:
        pass
";
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    let watch = watch(&testbed, &["--json"])?;
    let mut command = testbed.host.command("python3")?;
    command.args(["-c", SCRIPT, OTHERS[0], &CALLS.to_string()]);
    cgroup.hold(&mut command)?;
    let ended = Ended::of(command)?;
    ensure!(ended.code == Some(0), "{ended:?}");
    assert_eq!(counter(&testbed, "send", "refuse", "default")?, CALLS);
    let sums = || -> anyhow::Result<(u64, u64)> {
        let (mut shown, mut suppressed) = (0, 0);
        for line in watch.stdout().lines() {
            let line: Value = serde_json::from_str(line)?;
            match line["suppressed"].as_u64() {
                Some(more) => suppressed += more,
                None => shown += 1,
            }
        }
        ensure!(shown + suppressed <= CALLS, "{shown} and {suppressed}");
        Ok((shown, suppressed))
    };
    eventually(|| sums().map(|(shown, suppressed)| shown + suppressed == CALLS))
        .with_context(|| format!("shown and suppressed: {:?}", sums()))?;
    let (shown, suppressed) = sums()?;
    ensure!(shown > 0 && suppressed > shown, "{shown} and {suppressed}");
    Ok(())
}
