//! Measure 2: the cost of a packet in the XDP program, by kind of packet and by setting, in nanoseconds of
//! `BPF_PROG_TEST_RUN` on one CPU.
//!
//! The settings take turns in each round, so that other load of the machine affects all settings. Each frame runs in
//! bursts, so caches and branch predictors are warm: this compares the paths through the program. The cost of memory
//! under random traffic is measured by `lookup` and `filter`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use allowlist_common::abi::{PROGRAM, TRACKER_PROGRAM};
use allowlist_common::packet::tcp_flag;
use allowlist_dataplane::{Dataplane, Watch};
use allowlist_policy::compile::{IdTable, compile};
use allowlist_tests::lab::{Scratch, frame};
use allowlist_tests::model::static_snapshot;
use allowlist_user::config::Config;
use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};

use crate::Effort;
use crate::programs;
use crate::record::{Record, Sample, float};

pub(crate) const MEASURE: &str = "packets";
pub(crate) const UNIT: &str = "ns/packet";

/// The policy of a host with `default = "drop"` and one service. The keys of a setting are written before this text.
const POLICY: &str = r#"
    default = "drop"
    [services.web]
    ports = ["tcp/443"]
    allow = ["office"]
    [sources.office]
    prefixes = ["203.0.113.0/24"]
"#;
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
/// The remote end of the host's flows to a name server.
const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)), 53);
/// The remote end of the host's flows to a web server.
const MIRROR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 443);
/// A local port of the host that has flows.
const USED: u16 = 40_000;
/// A local port of the host that has no flows.
const UNUSED: u16 = 50_000;
/// The number of different frames of each kind of packet.
const FRAMES: u16 = 8;

/// The names and keys of the settings; the first is the baseline. In the last one, a reader such as `allowlist watch`
/// receives drop events.
pub(crate) const SETTINGS: [(&str, &str); 4] = [
    ("off", "return_traffic = \"off\""),
    ("established", "return_traffic = \"established\""),
    ("track", "return_traffic = \"track\""),
    ("track, watched", "return_traffic = \"track\""),
];

pub(crate) fn run(record: &mut Record, effort: &Effort) -> Result<()> {
    // `Watch` requires a runtime.
    let runtime = tokio::runtime::Runtime::new()?;
    let _inside = runtime.enter();
    effort.announce("packets: by kind and by setting");
    let frames = if effort.is_quick { 2 } else { FRAMES };
    let kinds = kinds(frames);
    let mut subjects = Vec::new();
    for (name, keys) in SETTINGS {
        subjects.push(Subject::new(keys, name.ends_with("watched")).context(name)?);
    }
    for round in 0..effort.rounds {
        for (kind, frames) in &kinds {
            for ((name, _), subject) in SETTINGS.iter().zip(&mut subjects) {
                record.add(Sample {
                    measure: MEASURE,
                    subject: (*name).to_owned(),
                    case: (*kind).to_owned(),
                    prefixes: 1,
                    round,
                    value: subject.cost(frames, effort.burst / 10)?,
                    unit: UNIT,
                });
            }
        }
    }
    Ok(())
}

/// Returns the kinds of packets: first those of a flood, whose cost should not depend on the setting.
fn kinds(frames: u16) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let each = |make: &dyn Fn(u16) -> Vec<u8>| (0..frames).map(make).collect::<Vec<_>>();
    let stranger = |n: u16| {
        let [high, low] = n.wrapping_mul(40_503).to_be_bytes();
        SocketAddr::new(Ipv4Addr::new(100, 64, high, low).into(), 1024 + n)
    };
    let host = |port| SocketAddr::new(HOST, port);
    let syn = |from, to| tcp(from, to, tcp_flag::SYN);
    let ack = |from, to| tcp(from, to, tcp_flag::ACK);
    vec![
        (
            "SYN to an unused port",
            each(&|n| syn(stranger(n), host(UNUSED + n))),
        ),
        (
            "SYN to a port in use",
            each(&|n| syn(stranger(n), host(USED))),
        ),
        ("SYN to the service", each(&|n| syn(stranger(n), host(443)))),
        (
            "ACK to an unused port",
            each(&|n| ack(stranger(n), host(UNUSED + n))),
        ),
        (
            "UDP to an unused port",
            each(&|n| frame::udp(stranger(n), host(UNUSED + n), b"flood")),
        ),
        (
            "UDP to a port in use",
            each(&|n| frame::udp(stranger(n), host(USED), b"flood")),
        ),
        (
            "ACK to a port in use",
            each(&|n| ack(stranger(n), host(USED))),
        ),
        (
            "answer by UDP",
            vec![frame::udp(RESOLVER, host(USED), b"answer")],
        ),
        ("answer by TCP", vec![ack(MIRROR, host(USED))]),
        (
            "allowed to the service",
            vec![syn(
                SocketAddr::new(Ipv4Addr::new(203, 0, 113, 9).into(), 5000),
                host(443),
            )],
        ),
    ]
}

fn tcp(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    const FLAGS: usize = 14 + 20 + 13;
    let mut frame = frame::tcp_syn(from, to);
    frame[FLAGS] = flags;
    frame
}

/// The filter's programs, loaded with one setting of the configuration.
struct Subject {
    object: Ebpf,
    watch: Option<Watch>,
    _dataplane: Dataplane,
    _scratch: Scratch,
}

impl Subject {
    fn new(keys: &str, is_watched: bool) -> Result<Self> {
        let scratch = Scratch::new()?;
        let config = Config::parse(&format!("{keys}\n{POLICY}"), Path::new("bench.toml"))?;
        let snapshot = static_snapshot(&config.policy);
        let tables = compile(
            &config.policy,
            &snapshot,
            config.max_prefixes,
            &IdTable::default(),
        )?;
        let max_flows = config.rules.tracks().then_some(config.max_flows);
        let mut dataplane = Dataplane::open(scratch.pin_dir(), max_flows)?;
        dataplane.publish(&tables, config.mode, &config.rules, &[], &[])?;
        let mut object = dataplane.load_program(0, false)?;
        let egress: &mut SchedClassifier = object
            .program_mut(TRACKER_PROGRAM)
            .context("the filter's eBPF object has no flow tracker program")?
            .try_into()?;
        egress.load()?;
        for to in [RESOLVER, MIRROR] {
            let from = SocketAddr::new(HOST, USED);
            for sent in [
                frame::udp(from, to, b"question"),
                tcp(from, to, tcp_flag::ACK),
            ] {
                let options = TestRunOptions {
                    data_in: Some(&sent),
                    ..TestRunOptions::default()
                };
                egress.test_run(options)?;
            }
        }
        let watch = is_watched
            .then(|| Watch::open(scratch.pin_dir()))
            .transpose()?;
        Ok(Self {
            object,
            watch,
            _dataplane: dataplane,
            _scratch: scratch,
        })
    }

    /// Measures the mean cost of the frames of a kind, in nanoseconds per packet.
    fn cost(&mut self, frames: &[Vec<u8>], burst: u32) -> Result<f64> {
        let program: &Xdp = self
            .object
            .program(PROGRAM)
            .with_context(|| format!("the filter's eBPF object has no program {PROGRAM}"))?
            .try_into()?;
        let mut sum = 0.0;
        for frame in frames {
            if let Some(watch) = &mut self.watch {
                watch.keep_watching();
            }
            sum += programs::cost(program, frame, burst)?;
        }
        Ok(sum / float(frames.len() as u64))
    }
}
