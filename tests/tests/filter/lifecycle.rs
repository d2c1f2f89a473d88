//! The life of the filter: signals, removed and renamed interfaces, failed starts, minimal privileges, and a detach while a
//! daemon runs. Afterwards the filter is either attached or detached, and reports which.

use allowlist_common::abi::VERSION;
use allowlist_tests::lab::{normalized, rename};
use expect_test::expect;

use super::*;

/// Returns the filtered interfaces and their modes.
fn interfaces(testbed: &Testbed) -> anyhow::Result<Value> {
    Ok(testbed.json("status")?["interfaces"].clone())
}

/// A failed start keeps the active generation and the links.
#[test]
fn a_failed_start_keeps_the_filter() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut filter =
        testbed.filter(&[&INLINE_OPTIONS[..], &["--keep", "--attach-mode", "generic"]].concat())?;
    filter.stop(Signal::SIGINT, SOON)?;
    bridge(&testbed.host, "br0", &[])?; // a bridge has no native mode
    let before = (testbed.json("list")?, interfaces(&testbed)?);
    for options in [
        &["--attach-mode", "offload"][..],
        &["--iface", "br0", "--attach-mode", "native"],
    ] {
        let failed = testbed.run(
            &[
                &["run", "--allow", "198.18.0.0/16"],
                &INLINE_OPTIONS[..],
                options,
            ]
            .concat(),
        )?;
        assert_eq!(failed.code, Some(1), "{failed:?}");
        assert!(
            !gets_through(&testbed, STRANGERS[0])?,
            "{options:?}: {failed:?}"
        );
        let after = (testbed.json("list")?, interfaces(&testbed)?);
        assert_eq!(after, before, "{options:?}: {failed:?}");
    }
    Ok(())
}

/// A new interface with the former name is filtered too.
#[test]
fn a_renamed_interface_hides_no_other() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let _filter = testbed.filter(&INLINE_OPTIONS)?;
    rename(&testbed.host, "eth0", "wan")?;
    rename(&testbed.peer, "eth0", "wan")?;
    testbed.link(
        "eth0",
        ["198.51.102.1/24", "2001:db8:3::1/64"],
        ["198.51.102.2/24", "2001:db8:3::2/64"],
    )?;
    let both =
        ["wan", "eth0"].map(|name| json!({"name": name, "mode": "native", "attached": true}));
    eventually(|| Ok(interfaces(&testbed)? == json!(both)))?;
    assert!(gets_through(&testbed, FRIENDS[0])?);
    assert!(!gets_through(&testbed, STRANGERS[0])?);
    Ok(())
}

/// A detach is complete, independent of the daemon's concurrent self-check.
#[test]
fn detach_during_a_self_check_is_complete() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let names: Vec<String> = (1..=12).map(|number| format!("veth{number}")).collect();
    let mut arguments = INLINE_OPTIONS.map(str::to_owned).to_vec();
    for (number, name) in (1..).zip(&names) {
        let network = |end| {
            [
                format!("10.0.{number}.{end}/24"),
                format!("2001:db8:1:{number}::{end}/64"),
            ]
        };
        let (host, peer) = (network(1), network(2));
        testbed.link(
            name,
            [host[0].as_str(), host[1].as_str()],
            [peer[0].as_str(), peer[1].as_str()],
        )?;
        arguments.extend(["--iface".to_owned(), name.clone()]);
    }
    for round in 0..4 {
        let mut filter = testbed.filter(&arguments)?;
        // The self-check runs once a second, so the detach is tried at several times of that second.
        thread::sleep(Duration::from_millis(850 + 60 * round));
        testbed.json("detach")?;
        assert!(filter.wait(SOON)?.success(), "{}", filter.output());
        assert!(
            !testbed
                .scratch
                .pin_dir()
                .join(format!("v{VERSION}"))
                .exists()
        );
        for name in names.iter().map(String::as_str).chain(["eth0"]) {
            assert_eq!(xdp_program(&testbed, name)?, None, "{name}, round {round}");
        }
    }
    Ok(())
}

pub(crate) fn xdp_program(testbed: &Testbed, name: &str) -> anyhow::Result<Option<u32>> {
    let runtime = tokio::runtime::Runtime::new()?;
    testbed.host.run(|| {
        let facts = runtime.block_on(allowlist_dataplane::interface::look_up(name))?;
        Ok(facts.xdp_program)
    })
}

/// The remains of a filter can always be detached.
#[test]
fn detach_works_without_maps() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    drop(testbed.filter(&INLINE_OPTIONS)?);
    std::fs::remove_file(
        testbed
            .scratch
            .pin_dir()
            .join(format!("v{VERSION}/CONTROL")),
    )?;
    assert!(
        !gets_through(&testbed, STRANGERS[0])?,
        "the link still drops packets"
    );
    testbed.json("detach")?;
    assert!(gets_through(&testbed, STRANGERS[0])?);
    assert!(
        !testbed
            .scratch
            .pin_dir()
            .join(format!("v{VERSION}"))
            .exists()
    );
    Ok(())
}

/// The documented capabilities suffice to start, to adopt maps and to publish.
#[test]
fn three_capabilities_are_enough() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let list = testbed.scratch.write("list.txt", "203.0.113.7\n")?;
    let config = testbed.scratch.write(
        "allowlist.toml",
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['list']\n\
         [sources.list]\nfile = 'list.txt'\nevery = '1s'\n",
    )?;
    for (round, addresses) in ["203.0.113.7\n198.18.0.1\n", "203.0.113.7\n"]
        .into_iter()
        .enumerate()
    {
        let mut command = testbed.host.command("setpriv")?;
        command.args(["--bounding-set", "-all,+net_admin,+bpf,+perfmon"]);
        let program = testbed.command(&["run", "--config", &config.display().to_string()])?;
        command.arg(program.get_program()).args(program.get_args());
        let mut filter = Program::start(command)?;
        filter.wait_for_line("ready", SOON)?;
        std::fs::write(&list, addresses)?;
        eventually(|| Ok(gets_through(&testbed, "198.18.0.1")? == (round == 0)))
            .with_context(|| filter.output())?;
        filter.stop(Signal::SIGKILL, SOON)?;
    }
    Ok(())
}

/// Thousands of changes of overlapping sources exhaust the match ids.
#[test]
fn exhausted_match_ids_are_reassigned() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    drop(testbed.filter(&INLINE_OPTIONS)?);
    {
        let mut dataplane = allowlist_dataplane::Dataplane::open(testbed.scratch.pin_dir(), None)?;
        let (names, _) = dataplane.metadata()?;
        let mut names: Value = serde_json::from_slice(&names.context("no names")?)?;
        let old = (1..4096).map(|number| json!([format!("old{number}")]));
        names["names"]["matches"] = std::iter::once(json!([])).chain(old).collect();
        dataplane.set_metadata(names.to_string().as_bytes())?;
    }
    let filter = testbed.filter(&INLINE_OPTIONS)?;
    assert!(
        filter.stderr().contains("warning[counters-reset]: "),
        "{}",
        filter.output()
    );
    assert!(gets_through(&testbed, FRIENDS[0])?);
    assert_eq!(
        testbed.json("status")?["sources"]["cli"]["passed_packets"],
        1
    );
    Ok(())
}

/// A fresh machine may have no BPF file system mounted.
#[test]
fn a_missing_bpf_file_system_is_mounted() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let folder = tempfile::tempdir()?;
    let mut command = testbed.host.command("unshare")?;
    // In a process namespace too, so that the daemon always ends with the shell.
    command.args(["--mount", "--propagation", "private", "--mount-proc"]);
    command.args(["--pid", "--fork", "--kill-child", "sh", "-c"]);
    command.arg(format!(
        "while umount -l /sys/fs/bpf 2>/dev/null; do :; done\n\
         \"$@\" & while kill -0 $! 2>/dev/null && ! [ -e /sys/fs/bpf/pins/v{VERSION}/link_0 ]; do sleep 0.05; done\n\
         echo $(stat --file-system --format %T /sys/fs/bpf) $(stat --format %a /sys/fs/bpf); kill -INT $!; wait $!",
    ));
    command.arg("sh").arg(allowlist_tests::lab::allowlist()?);
    command
        .arg("run")
        .args(INLINE_OPTIONS)
        .args(["--pin-dir", "/sys/fs/bpf/pins"]);
    command.arg("--state-dir").arg(folder.path().join("state"));
    command.arg("--socket").arg(folder.path().join("socket"));
    let ended = allowlist_tests::lab::Ended::of(command)?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    // The output may contain other lines of the program.
    assert!(ended.stdout.contains("bpf_fs 1700\n"), "{ended:?}");
    Ok(())
}

#[test]
fn signals_detach_or_keep_the_filter() -> anyhow::Result<()> {
    require_root!();
    let cases: [(&[&str], Signal, Option<i32>, bool); 4] = [
        (&[], Signal::SIGINT, Some(0), false),
        (&["--keep"], Signal::SIGINT, Some(0), true),
        (&[], Signal::SIGTERM, Some(0), true),
        (&[], Signal::SIGKILL, None, true),
    ];
    for (options, signal, code, remains) in cases {
        let testbed = Testbed::new()?;
        let mut filter = testbed.filter(&[&INLINE_OPTIONS[..], options].concat())?;
        assert_eq!(testbed.json("status")?["daemon"]["pid"], filter.id());
        let ended = filter.stop(signal, SOON)?;
        assert_eq!(ended.code(), code, "{}", filter.output());
        let name = format!("{signal} {options:?}");
        assert_eq!(gets_through(&testbed, STRANGERS[0])?, !remains, "{name}");
        assert!(gets_through(&testbed, FRIENDS[0])?, "{name}");
        assert_eq!(
            testbed
                .scratch
                .pin_dir()
                .join(format!("v{VERSION}"))
                .exists(),
            remains,
            "{name}"
        );
        if remains {
            let status = testbed.json("status")?;
            assert_eq!(
                (&status["filtering"], &status["daemon"]),
                (&json!(true), &json!(null))
            );
            assert_eq!(
                testbed.json("detach")?,
                json!({"detached": ["eth0"]}),
                "{name}"
            );
            assert!(gets_through(&testbed, STRANGERS[0])?, "{name}");
        }
    }
    Ok(())
}

/// A signal during a start takes effect when the start is complete, as later.
#[test]
fn a_signal_during_the_start_detaches_or_keeps_the_filter() -> anyhow::Result<()> {
    require_root!();
    for (signal, remains) in [(Signal::SIGINT, false), (Signal::SIGTERM, true)] {
        let testbed = Testbed::new()?;
        // The filter records flows for a second before it drops packets, which is enough time for a signal.
        let config = "interfaces = ['eth0']\ndefault = 'drop'\n[services.web]\nports = ['udp/9']\nallow = ['one']\n\
                      [sources.one]\nprefixes = ['198.18.0.1']\n";
        let config = testbed.scratch.write("closed.toml", config)?;
        let config = config.to_str().expect("a path of ASCII");
        let mut filter = Program::start(testbed.command(&["run", "--config", config])?)?;
        let maps = testbed.scratch.pin_dir().join(format!("v{VERSION}"));
        eventually(|| Ok(maps.exists()))?;
        let ended = filter.stop(signal, SOON)?;
        assert_eq!(ended.code(), Some(0), "{}", filter.output());
        assert_eq!(maps.exists(), remains, "{}", filter.output());
        let code = if remains {
            "[stopped]: "
        } else {
            "[detached]: "
        };
        assert!(filter.stderr().contains(code), "{}", filter.output());
    }
    Ok(())
}

#[test]
fn detaching_ends_the_daemon() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut filter = testbed.filter(&INLINE_OPTIONS)?;
    let detached = testbed.run(&["detach"])?;
    assert_eq!(detached.code, Some(0), "{detached:?}");
    expect![[r#"
        detached from eth0: every packet passes
    "#]]
    .assert_eq(&detached.stdout);
    assert!(filter.wait(SOON)?.success(), "{}", filter.output());
    let log = filter.stderr();
    let last = log.lines().last().unwrap_or_default();
    expect!["<time> [detached]: stopped, because another process detached the filter: every packet passes"]
        .assert_eq(&normalized(last, None));
    eventually(|| gets_through(&testbed, STRANGERS[0]))?;
    assert!(!testbed.scratch.file("socket").exists());
    Ok(())
}

#[test]
fn a_start_may_follow_a_detach_at_once() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let first = testbed.filter(&INLINE_OPTIONS)?;
    testbed.json("detach")?;
    let second = testbed.filter(&INLINE_OPTIONS)?;
    assert_eq!(testbed.json("status")?["filtering"], true);
    drop((first, second));
    Ok(())
}

/// The kernel detaches the program with the interface.
#[test]
fn status_reports_a_removed_interface() -> anyhow::Result<()> {
    require_root!();
    let mut testbed = Testbed::new()?;
    let _filter = testbed.filter(&INLINE_OPTIONS)?;
    assert_eq!(testbed.json("status")?["filtering"], true);
    testbed.peer = allowlist_tests::lab::Namespace::new()?; // dropping the old namespace removes the link
    eventually(|| Ok(testbed.json("status")?["filtering"] == false))
}
