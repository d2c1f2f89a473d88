//! Where the host's own packets are seen: tcx or clsact, from one to the other, and nowhere once nobody
//! asks any more.

use allowlist_common::abi::{TRACKER_PROGRAM, VERSION};
use allowlist_dataplane::AttachModeRequest;
use allowlist_dataplane::interface::look_up;
use allowlist_dataplane::{Dataplane, Hook};
use allowlist_policy::compile::{Names, compile};
use allowlist_policy::{Mode, Policy, Rules, Snapshot, Verdict};
use allowlist_tests::lab::egress_filters;
use allowlist_tests::{require_root, skip};
use anyhow::ensure;
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use nix::sys::signal::Signal;

use super::talk::{Server, ask_socket};
use super::*;

/// What sees the packets that the host sends.
#[derive(Debug, PartialEq, Eq)]
struct Seers {
    /// By tcx: the programs' names.
    tcx: Vec<String>,
    /// By clsact: the filters' kinds.
    clsact: Vec<String>,
    /// What is pinned for it.
    pins: Vec<String>,
}

impl Seers {
    fn of(site: &Testbed) -> anyhow::Result<Self> {
        Self::on(site, "eth0")
    }

    fn on(site: &Testbed, interface: &str) -> anyhow::Result<Self> {
        let tcx = site
            .host
            .run(|| SchedClassifier::query_tcx(interface, TcAttachType::Egress))?
            .1;
        let folder = site.scratch.pin_dir().join(format!("v{VERSION}"));
        let pins = folder.read_dir().into_iter().flatten().flatten();
        let pins = pins.map(|pin| pin.file_name().to_string_lossy().into_owned());
        Ok(Self {
            tcx: tcx
                .iter()
                .filter_map(|program| Some(program.name_as_str()?.to_owned()))
                .collect(),
            clsact: egress_filters(&site.host, interface)?,
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

/// Closes the host as a kernel without tcx has to. Nothing of it runs on.
fn close_by_clsact(site: &Testbed) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    site.host.run(|| {
        let mut dataplane = Dataplane::open(site.scratch.pin_dir(), Some(2048))?;
        let tables = compile(&Policy::default(), &Snapshot::new(), 1, &Names::default())?;
        let rules = Rules {
            default: Verdict::Drop,
            ..Rules::default()
        };
        dataplane.publish(&tables, Mode::Enforce, &rules, &[])?;
        let facts = runtime.block_on(look_up("eth0"))?;
        dataplane.attach(&facts, AttachModeRequest::Auto, false)?;
        // The second takes the place of the first, as at a restart.
        for _ in 0..2 {
            let mut object = dataplane.load_program(0, false)?;
            dataplane.attach_tracker(&mut object, 0, &facts, Hook::Clsact)?;
        }
        Ok(())
    })
}

fn has_tcx(site: &Testbed) -> bool {
    site.host
        .run(|| SchedClassifier::query_tcx("eth0", TcAttachType::Egress))
        .is_ok()
}

/// An answer that comes late to what was asked under one hook comes in under the other.
#[test]
fn flows_outlive_a_change_of_the_hook() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    if !has_tcx(&site) {
        skip!("this kernel has no tcx, which came with Linux 6.6");
    }
    let server = Server::start(&site)?;
    for family in FAMILIES {
        close_by_clsact(&site)?;
        assert_eq!(Seers::of(&site)?, Seers::by_clsact());
        let client = ask_socket(&site, family)?;
        ensure!(server.answers_to(&client, 8, SOON)?, "{}", family.peer);
        ensure!(server.accepts(&site, family, SOON)?, "{}", family.peer);

        let mut filter = close(&site, "max_flows = 4096", &[])?;
        assert_eq!(Seers::of(&site)?, Seers::by_tcx());
        let late = client.local_addr()?;
        server.udp.send_to(b"late", late)?;
        ensure!(receive(&client, SOON)?.is_some(), "{}", family.peer);
        ensure!(server.answers_to(&client, 8, SOON)?, "{}", family.peer);
        filter.stop(Signal::SIGTERM, SOON)?;
        assert_eq!(Seers::of(&site)?, Seers::by_tcx());
    }
    Ok(())
}

#[test]
fn no_hook_is_left_behind() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    if !has_tcx(&site) {
        skip!("this kernel has no tcx, which came with Linux 6.6");
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
    let by_tcx = || close(&site, "", &[]).map(drop);
    let by_clsact = || close_by_clsact(&site);
    let ways: [(&dyn Fn() -> anyhow::Result<()>, _); 2] =
        [(&by_tcx, Seers::by_tcx()), (&by_clsact, Seers::by_clsact())];
    for (close, seers) in &ways {
        close()?;
        assert_eq!(Seers::of(&site)?, *seers);
        site.json("detach")?;
        assert_eq!(Seers::of(&site)?, Seers::none());
        assert!(!site.scratch.pin_dir().join(format!("v{VERSION}")).exists());

        close()?;
        assert_eq!(Seers::of(&site)?, *seers);
        drop(site.filter(&open)?); // passes by default, so nobody asks
        assert_eq!(Seers::of(&site)?, Seers::none(), "{seers:?}");
        site.json("detach")?;
    }
    Ok(())
}

#[test]
fn an_unconfigured_interface_is_detached() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    if !has_tcx(&site) {
        skip!("this kernel has no tcx, which came with Linux 6.6");
    }
    site.second_link()?;
    let names = |seers: Seers| (seers.tcx, seers.pins);
    let program = || vec![TRACKER_PROGRAM.to_owned()];
    let mut filter = close(&site, "", &["--iface", "eth0", "--iface", "eth1"])?;
    for interface in ["eth0", "eth1"] {
        let (tcx, pins) = names(Seers::on(&site, interface)?);
        assert_eq!((tcx, pins.len()), (program(), 2), "{interface}");
    }
    filter.stop(Signal::SIGTERM, SOON)?;
    let _filter = close(&site, "", &["--iface", "eth0"])?;
    for (interface, tcx) in [("eth0", program()), ("eth1", Vec::new())] {
        let pins = vec!["egress_0".to_owned()];
        assert_eq!(names(Seers::on(&site, interface)?), (tcx, pins));
    }
    Ok(())
}

/// A failed start leaves nobody who would know of the filter that it added: the next one takes its place.
#[test]
fn a_leftover_filter_is_replaced() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let runtime = tokio::runtime::Runtime::new()?;
    site.host.run(|| -> anyhow::Result<()> {
        for _ in 0..2 {
            let mut dataplane = Dataplane::open(site.scratch.pin_dir(), Some(2048))?;
            let facts = runtime.block_on(look_up("eth0"))?;
            let mut object = dataplane.load_program(0, false)?;
            dataplane.attach_tracker(&mut object, 0, &facts, Hook::Clsact)?;
            // As if the process had been killed, and the pins removed by hand.
            drop(dataplane);
            std::fs::remove_dir_all(site.scratch.pin_dir().join(format!("v{VERSION}")))?;
        }
        Ok(())
    })?;
    assert_eq!(egress_filters(&site.host, "eth0")?.len(), 1);
    Ok(())
}
