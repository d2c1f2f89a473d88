//! The hook of the flow tracker: tcx or clsact, changes from one to the other, and removal when tracking is not needed.

use allowlist_common::abi::{TRACKER_PROGRAM, VERSION};
use allowlist_dataplane::AttachModeRequest;
use allowlist_dataplane::interface::look_up;
use allowlist_dataplane::{Dataplane, Hook};
use allowlist_policy::compile::{IdTable, compile};
use allowlist_policy::{Mode, Policy, Rules, Snapshot, Verdict};
use allowlist_tests::lab::egress_filters;
use allowlist_tests::{require_root, skip};
use anyhow::ensure;
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use nix::sys::signal::Signal;

use super::conversations::{Server, client_socket};
use super::*;

/// The programs on an interface's egress hooks.
#[derive(Debug, PartialEq, Eq)]
struct EgressHooks {
    /// The names of the tcx programs.
    tcx: Vec<String>,
    /// The kinds of the clsact filters.
    clsact: Vec<String>,
    /// The names of the pins of the flow tracker.
    pins: Vec<String>,
}

impl EgressHooks {
    fn of(testbed: &Testbed) -> anyhow::Result<Self> {
        Self::on(testbed, "eth0")
    }

    fn on(testbed: &Testbed, interface: &str) -> anyhow::Result<Self> {
        let tcx = testbed
            .host
            .run(|| SchedClassifier::query_tcx(interface, TcAttachType::Egress))?
            .1;
        let folder = testbed.scratch.pin_dir().join(format!("v{VERSION}"));
        let pins = folder.read_dir().into_iter().flatten().flatten();
        let pins = pins.map(|pin| pin.file_name().to_string_lossy().into_owned());
        Ok(Self {
            tcx: tcx
                .iter()
                .filter_map(|program| Some(program.name_as_str()?.to_owned()))
                .collect(),
            clsact: egress_filters(&testbed.host, interface)?,
            pins: pins.filter(|name| name.starts_with("egress")).collect(),
        })
    }

    fn none() -> Self {
        Self {
            tcx: Vec::new(),
            clsact: Vec::new(),
            pins: Vec::new(),
        }
    }

    fn by_tcx() -> Self {
        Self {
            tcx: vec![TRACKER_PROGRAM.to_owned()],
            clsact: Vec::new(),
            pins: vec!["egress_0".to_owned()],
        }
    }

    fn by_clsact() -> Self {
        Self {
            tcx: Vec::new(),
            clsact: vec!["bpf".to_owned()],
            pins: Vec::new(),
        }
    }
}

/// Closes the host as on a kernel without tcx. No process of the filter remains.
fn close_by_clsact(testbed: &Testbed) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    testbed.host.run(|| {
        let mut dataplane = Dataplane::open(testbed.scratch.pin_dir(), Some(2048))?;
        let tables = compile(&Policy::default(), &Snapshot::new(), 1, &IdTable::default())?;
        let rules = Rules {
            default: Verdict::Drop,
            ..Rules::default()
        };
        dataplane.publish(&tables, Mode::Enforce, &rules, &[], &[])?;
        let facts = runtime.block_on(look_up("eth0"))?;
        dataplane.attach(&facts, AttachModeRequest::Auto, false)?;
        // The second filter replaces the first one, as at a restart.
        for _ in 0..2 {
            let mut object = dataplane.load_program(0, false)?;
            dataplane.attach_tracker(&mut object, 0, &facts, Hook::Clsact)?;
        }
        Ok(())
    })
}

fn has_tcx(testbed: &Testbed) -> bool {
    testbed
        .host
        .run(|| SchedClassifier::query_tcx("eth0", TcAttachType::Egress))
        .is_ok()
}

/// A late answer to a query that was tracked at one hook passes after a change to the other hook.
#[test]
fn flows_survive_a_change_of_the_hook() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    if !has_tcx(&testbed) {
        skip!("this kernel has no tcx (added in 6.6)");
    }
    let server = Server::start(&testbed)?;
    for family in FAMILIES {
        close_by_clsact(&testbed)?;
        assert_eq!(EgressHooks::of(&testbed)?, EgressHooks::by_clsact());
        let client = client_socket(&testbed, family)?;
        ensure!(server.answers_to(&client, 8, SOON)?, "{}", family.peer);
        ensure!(server.accepts(&testbed, family, SOON)?, "{}", family.peer);

        let mut filter = close(&testbed, "max_flows = 4096", &[])?;
        assert_eq!(EgressHooks::of(&testbed)?, EgressHooks::by_tcx());
        let late = client.local_addr()?;
        server.udp.send_to(b"late", late)?;
        ensure!(receive(&client, SOON)?.is_some(), "{}", family.peer);
        ensure!(server.answers_to(&client, 8, SOON)?, "{}", family.peer);
        filter.stop(Signal::SIGTERM, SOON)?;
        assert_eq!(EgressHooks::of(&testbed)?, EgressHooks::by_tcx());
    }
    Ok(())
}

#[test]
fn detach_removes_the_hook() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    if !has_tcx(&testbed) {
        skip!("this kernel has no tcx (added in 6.6)");
    }
    let open = [
        "--iface",
        "eth0",
        "--allow",
        "203.0.113.0/24",
        "--port",
        "tcp/443",
        "--enforce",
    ];
    let by_tcx = || close(&testbed, "", &[]).map(drop);
    let by_clsact = || close_by_clsact(&testbed);
    let ways: [(&dyn Fn() -> anyhow::Result<()>, _); 2] = [
        (&by_tcx, EgressHooks::by_tcx()),
        (&by_clsact, EgressHooks::by_clsact()),
    ];
    for (close, hooks) in &ways {
        close()?;
        assert_eq!(EgressHooks::of(&testbed)?, *hooks);
        testbed.json("detach")?;
        assert_eq!(EgressHooks::of(&testbed)?, EgressHooks::none());
        assert!(
            !testbed
                .scratch
                .pin_dir()
                .join(format!("v{VERSION}"))
                .exists()
        );

        close()?;
        assert_eq!(EgressHooks::of(&testbed)?, *hooks);
        drop(testbed.filter(&open)?); // passes by default, so no flows are tracked
        assert_eq!(EgressHooks::of(&testbed)?, EgressHooks::none(), "{hooks:?}");
        testbed.json("detach")?;
    }
    Ok(())
}

#[test]
fn an_unconfigured_interface_is_detached() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    if !has_tcx(&testbed) {
        skip!("this kernel has no tcx (added in 6.6)");
    }
    testbed.second_link()?;
    let names = |hooks: EgressHooks| (hooks.tcx, hooks.pins);
    let program = || vec![TRACKER_PROGRAM.to_owned()];
    let mut filter = close(&testbed, "", &["--iface", "eth0", "--iface", "eth1"])?;
    for interface in ["eth0", "eth1"] {
        let (tcx, pins) = names(EgressHooks::on(&testbed, interface)?);
        assert_eq!((tcx, pins.len()), (program(), 2), "{interface}");
    }
    filter.stop(Signal::SIGTERM, SOON)?;
    let _filter = close(&testbed, "", &["--iface", "eth0"])?;
    for (interface, tcx) in [("eth0", program()), ("eth1", Vec::new())] {
        let pins = vec!["egress_0".to_owned()];
        assert_eq!(names(EgressHooks::on(&testbed, interface)?), (tcx, pins));
    }
    Ok(())
}

/// No record of a filter remains after a failed start, so the next start replaces the filter.
#[test]
fn a_leftover_filter_is_replaced() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let runtime = tokio::runtime::Runtime::new()?;
    testbed.host.run(|| -> anyhow::Result<()> {
        for _ in 0..2 {
            let mut dataplane = Dataplane::open(testbed.scratch.pin_dir(), Some(2048))?;
            let facts = runtime.block_on(look_up("eth0"))?;
            let mut object = dataplane.load_program(0, false)?;
            dataplane.attach_tracker(&mut object, 0, &facts, Hook::Clsact)?;
            // As after SIGKILL and manual removal of the pins.
            drop(dataplane);
            std::fs::remove_dir_all(testbed.scratch.pin_dir().join(format!("v{VERSION}")))?;
        }
        Ok(())
    })?;
    assert_eq!(egress_filters(&testbed.host, "eth0")?.len(), 1);
    Ok(())
}
