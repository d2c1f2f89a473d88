//! Drivers and kernels that refuse the program: the reason is in the error, and `check` predicts the refusal.

use std::os::fd::AsFd as _;

use allowlist_dataplane::AttachModeRequest;
use allowlist_dataplane::interface::{InterfaceInfo, look_up};
use allowlist_dataplane::netlink::{Netlink, XdpPlace, index_of};
use allowlist_dataplane::{Dataplane, Hook};
use allowlist_policy::compile::{IdTable, compile};
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::{self as policy, Mode, Policy, Rules, Verdict};
use allowlist_tests::lab::{
    Ended, ForeignProgram, Snapshot, add_ingress, load_foreign, move_to, remove, set_channels,
    veth_with_queues,
};
use allowlist_tests::skip;
use anyhow::ensure;
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use expect_test::{expect, expect_file};

use super::lifecycle::xdp_program;
use super::*;

/// The verdict of a foreign program: `XDP_PASS`.
const PASS: i32 = 2;
/// The kernel's message for a veth whose peer has more transmit queues than it has receive queues.
const FEW_QUEUES: &str = "XDP expects number of rx queues not less than peer tx queues";

fn on(interface: &'static str) -> [&'static str; INLINE_OPTIONS.len()] {
    let mut arguments = INLINE_OPTIONS;
    arguments[1] = interface;
    arguments
}

/// A start that fails; its message is printed on standard error.
fn refused(testbed: &Testbed, interface: &'static str, mode: &str) -> anyhow::Result<Ended> {
    let mode = ["--attach-mode", mode];
    let ended = testbed.run(&[&["run"], &on(interface)[..], &mode].concat())?;
    ensure!(ended.code == Some(1), "{ended:?}");
    ensure!(xdp_program(testbed, interface)?.is_none(), "{ended:?}");
    Ok(ended)
}

/// Runs `check` for one interface, and returns the predicted attachment and the warnings.
fn predicted(testbed: &Testbed, interface: &str, mode: &str) -> anyhow::Result<(Value, String)> {
    let config = testbed.scratch.write(
        "check.toml",
        format!(
            "interfaces = ['{interface}']\nattach_mode = '{mode}'\n[services.web]\nports = ['tcp/22']\nallow = ['office']\n\
             [sources.office]\nprefixes = ['203.0.113.0/24']\n"
        ),
    )?;
    let ended = testbed.run(&["check", "--json", "--config", &config.display().to_string()])?;
    ensure!(ended.code == Some(0), "{ended:?}");
    let document: Value = serde_json::from_str(&ended.stdout)?;
    Ok((
        document["attach"][0].clone(),
        document["warnings"].to_string(),
    ))
}

/// Attaches a program of another process by netlink, which lasts as long as the interface.
fn attach_foreign(testbed: &Testbed, interface: &str, place: XdpPlace) -> anyhow::Result<()> {
    let program = load_foreign(ForeignProgram::Xdp, PASS)?;
    testbed.host.run(|| {
        let index = index_of(interface).context("no such interface")?;
        Ok(Netlink::open()?.attach_xdp(index, program.as_fd(), place)?)
    })
}

#[test]
fn a_refusal_of_the_driver_keeps_its_reason() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    veth_with_queues(&testbed.host, ("vq1", 1), ("vq2", 4))?;
    let ended = refused(&testbed, "vq1", "native")?;
    for expected in ["error[attach-failed]: ", "vq1", FEW_QUEUES, "ENOSPC"] {
        assert!(ended.stderr.contains(expected), "{expected}: {ended:?}");
    }
    expect![[r#"
        error[attach-failed]: cannot attach to vq1: native mode is refused: veth: XDP expects number of rx queues not less than peer tx queues (ENOSPC); `allowlist check` lists known causes and their remedies, and attach_mode = "auto" or `--attach-mode auto` falls back to generic mode
    "#]].assert_eq(&ended.stderr);
    assert!(!ended.stderr.contains("No space left"), "{ended:?}");

    let (attach, warnings) = predicted(&testbed, "vq1", "native")?;
    assert_eq!(
        (&attach["driver"], &attach["outcome"]),
        (&json!("veth"), &json!("fails"))
    );
    expect![[r#"["vq1: the attach will fail: the peer has more transmit queues than this end has receive queues (1); `ethtool -L vq2 tx 1`; attach_mode = \"auto\" would fall back to generic mode"]"#]].assert_eq(&warnings);
    let (attach, warnings) = predicted(&testbed, "vq1", "auto")?;
    assert_eq!(attach["outcome"], "generic");
    assert_eq!(attach["remedy"], "`ethtool -L vq2 tx 1`");
    assert!(warnings.contains("ethtool -L vq2 tx 1"), "{warnings}");
    assert_eq!(
        predicted(&testbed, "vq1", "generic")?.0["outcome"],
        "generic"
    );

    let mut filter = testbed.filter(&on("vq1"))?;
    let status = testbed.json("status")?;
    assert_eq!(status["interfaces"][0]["mode"], "generic");
    assert!(filter.stderr().contains(FEW_QUEUES), "{}", filter.output());
    assert_eq!(predicted(&testbed, "vq1", "auto")?.0["attached"], true);
    filter.stop(Signal::SIGINT, SOON)?;

    // The remedy works.
    set_channels(&testbed.host, "vq2", 1)?;
    let (attach, warnings) = predicted(&testbed, "vq1", "native")?;
    assert_eq!((&attach["outcome"], &*warnings), (&json!("native"), "[]"));
    let _filter = testbed.filter(&[&on("vq1")[..], &["--attach-mode", "native"]].concat())?;
    assert_eq!(testbed.json("status")?["interfaces"][0]["mode"], "native");
    Ok(())
}

/// A reload that the driver refuses keeps the mode, and its answer has the reason.
#[test]
fn a_reload_that_the_driver_refuses_reports_the_reason() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    veth_with_queues(&testbed.host, ("vq1", 1), ("vq2", 4))?;
    let config = |mode: &str| {
        testbed.scratch.write(
            "reload.toml",
            format!(
                "interfaces = ['vq1']\nattach_mode = '{mode}'\n[services.web]\nports = ['tcp/443']\nallow = ['office']\n\
                 [sources.office]\nprefixes = ['203.0.113.0/24']\n"
            ),
        )
    };
    let path = config("auto")?.display().to_string();
    let _filter = testbed.filter(&["--config", &path])?;
    config("native")?;
    let reloaded = testbed.run(&["reload"])?;
    assert_eq!(reloaded.code, Some(1), "{reloaded:?}");
    for expected in ["vq1", FEW_QUEUES] {
        assert!(reloaded.stderr.contains(expected), "{reloaded:?}");
    }
    assert_eq!(testbed.json("status")?["interfaces"][0]["mode"], "generic");
    Ok(())
}

/// A new interface with a known name may have another driver or other settings.
#[test]
fn a_returning_interface_that_refuses_the_program_is_logged() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let filter = testbed.filter(&[&INLINE_OPTIONS[..], &["--attach-mode", "native"]].concat())?;
    remove(&testbed.host, "eth0")?;
    filter.wait_for_line("warning[missing-interface]: eth0", SOON)?;
    veth_with_queues(&testbed.host, ("eth0", 1), ("vq2", 4))?;
    filter.wait_for_line(FEW_QUEUES, SOON)?;
    set_channels(&testbed.host, "vq2", 1)?;
    eventually(|| Ok(testbed.json("status")?["interfaces"][0]["mode"] == "native"))
}

/// The peer is in another namespace, so its name is unknown.
#[test]
fn the_remedy_names_a_peer_in_another_namespace() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    assert_eq!(
        predicted(&testbed, "eth0", "native")?.0["outcome"],
        "native"
    );
    veth_with_queues(&testbed.host, ("vq1", 1), ("vq2", 4))?;
    move_to(&testbed.host, "vq2", &testbed.peer)?;
    let (attach, _) = predicted(&testbed, "vq1", "auto")?;
    assert_eq!(attach["outcome"], "generic");
    let remedy = attach["remedy"].as_str().unwrap_or_default();
    expect!["`ethtool -L PEER tx 1` in the network namespace of the peer"].assert_eq(remedy);
    Ok(())
}

#[test]
fn a_driver_without_native_mode_is_named() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    bridge(&testbed.host, "br0", &[])?;
    let ended = refused(&testbed, "br0", "native")?;
    let sentence = "Underlying driver does not support XDP in native mode";
    for expected in ["error[attach-failed]: ", "br0", sentence, "EOPNOTSUPP"] {
        assert!(ended.stderr.contains(expected), "{expected}: {ended:?}");
    }
    expect![[r#"
        error[attach-failed]: cannot attach to br0: native mode is refused: Underlying driver does not support XDP in native mode (EOPNOTSUPP); `allowlist check` lists known causes and their remedies, and attach_mode = "auto" or `--attach-mode auto` falls back to generic mode
    "#]].assert_eq(&ended.stderr);
    let (attach, _) = predicted(&testbed, "br0", "native")?;
    assert_eq!(
        (&attach["driver"], &attach["outcome"]),
        (&json!("bridge"), &json!("fails"))
    );
    let (attach, warnings) = predicted(&testbed, "br0", "auto")?;
    assert_eq!((&attach["outcome"], &*warnings), (&json!("generic"), "[]"));
    Ok(())
}

/// If native and generic mode are both refused, the error has both reasons.
#[test]
fn a_program_on_a_bridge_excludes_programs_on_its_ports() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    bridge(&testbed.host, "br0", &["eth0"])?;
    attach_foreign(&testbed, "br0", XdpPlace::Stack)?;
    let ended = refused(&testbed, "eth0", "auto")?;
    let sentence = "Cannot attach when an upper device already has a program";
    assert_eq!(ended.stderr.matches(sentence).count(), 2, "{ended:?}");
    let (attach, warnings) = predicted(&testbed, "eth0", "auto")?;
    assert_eq!(attach["outcome"], "fails");
    assert!(warnings.contains("br0"), "{warnings}");
    Ok(())
}

/// Opens the maps and publishes an empty policy.
fn dataplane(testbed: &Testbed, default: Verdict) -> anyhow::Result<Dataplane> {
    let mut dataplane = Dataplane::open(testbed.scratch.pin_dir(), Some(2048))?;
    let tables = compile(
        &Policy::default(),
        &policy::Snapshot::new(),
        1,
        &IdTable::default(),
    )?;
    let rules = Rules {
        default,
        ..Rules::default()
    };
    dataplane.publish(&tables, Mode::Enforce, &rules, &[], &[])?;
    Ok(dataplane)
}

fn facts(interface: &str) -> anyhow::Result<InterfaceInfo> {
    Ok(tokio::runtime::Runtime::new()?.block_on(look_up(interface))?)
}

/// Another process attaches its program after the daemon has read the state of the interface.
#[test]
fn an_earlier_program_is_named() -> anyhow::Result<()> {
    require_root!();
    let mut snapshot = Snapshot::new();
    for place in [XdpPlace::Driver, XdpPlace::Stack] {
        let testbed = Testbed::new()?;
        let before = testbed.host.run(|| facts("eth0"))?;
        attach_foreign(&testbed, "eth0", place)?;
        let (attach, _) = predicted(&testbed, "eth0", "auto")?;
        assert_eq!(attach["outcome"], "fails");
        let id = xdp_program(&testbed, "eth0")?.context("attached")?;
        let mut dataplane = testbed.host.run(|| dataplane(&testbed, Verdict::Pass))?;
        for wanted in [
            AttachModeRequest::Native,
            AttachModeRequest::Generic,
            AttachModeRequest::Auto,
        ] {
            let attached = testbed
                .host
                .run(|| dataplane.attach(&before, wanted, false));
            let error = attached.err().context("attached")?;
            assert_eq!(error.code(), ErrorCode::InterfaceInUse, "{error:#}");
            let text = format!("{error:#}").replace(&format!("id {id} "), "id <id> ");
            snapshot.text(&format!("{wanted:?} beside {place:?}"), &text, None);
            assert_eq!(xdp_program(&testbed, "eth0")?, Some(id), "{wanted:?}");
        }
    }
    snapshot.check(&expect_file!["snapshots/interface_in_use.txt"]);
    Ok(())
}

/// The attempt that finds the reason is undone if it succeeds, and detaches no foreign program.
#[test]
fn a_netlink_program_is_detached_only_by_its_owner() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let [own, other] = [
        load_foreign(ForeignProgram::Xdp, PASS)?,
        load_foreign(ForeignProgram::Xdp, PASS)?,
    ];
    for place in [XdpPlace::Driver, XdpPlace::Stack] {
        testbed.host.run(|| -> anyhow::Result<()> {
            let netlink = Netlink::open()?;
            let index = index_of("eth0").context("no such interface")?;
            netlink.attach_xdp(index, own.as_fd(), place)?;
            let second = netlink.attach_xdp(index, other.as_fd(), place);
            let second = second.expect_err("another program is attached");
            assert_eq!(second.error.raw_os_error(), Some(Errno::EBUSY as i32));
            assert_eq!(
                second.reason.as_deref(),
                Some("XDP program already attached")
            );
            let foreign = netlink.detach_xdp(index, other.as_fd(), place);
            assert!(foreign.is_err());
            netlink.detach_xdp(index, own.as_fd(), place)?;
            Ok(())
        })?;
        assert_eq!(xdp_program(&testbed, "eth0")?, None, "{place:?}");
    }
    Ok(())
}

/// The discipline `ingress` excludes clsact, and has only filters for received packets.
#[test]
fn the_tracker_is_not_attached_to_the_ingress_discipline() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    add_ingress(&testbed.host, "eth0")?;
    // One data plane for both parts: a process that another test starts may inherit the lock of one that is dropped.
    let (mut dataplane, error) = testbed.host.run(|| -> anyhow::Result<_> {
        let mut dataplane = dataplane(&testbed, Verdict::Drop)?;
        let mut object = dataplane.load_program(0, false)?;
        let attached = dataplane.attach_tracker(&mut object, 0, &facts("eth0")?, Hook::Clsact);
        let error = attached.err().context("it is attached")?;
        Ok((dataplane, error))
    })?;
    assert_eq!(error.code(), ErrorCode::UnsupportedInterface);
    expect![[r#"cannot attach the flow tracker, which only return_traffic = "track" needs, to eth0: eth0 has the queueing discipline ingress, which excludes clsact; replace it: `tc qdisc del dev eth0 ingress`, then attach its filters to the ingress of clsact (`tc qdisc add dev eth0 clsact`)"#]].assert_eq(&format!("{error:#}"));
    let query = || SchedClassifier::query_tcx("eth0", TcAttachType::Egress);
    if testbed.host.run(query).is_err() {
        skip!("this kernel has no tcx (added in 6.6)");
    }
    // A tcx link needs no discipline.
    testbed.host.run(|| -> anyhow::Result<()> {
        let mut object = dataplane.load_program(0, false)?;
        dataplane.attach_tracker(&mut object, 0, &facts("eth0")?, Hook::Best)?;
        Ok(())
    })
}
