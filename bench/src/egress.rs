//! Measure 6: the cost of the egress policy's kernel programs, in nanoseconds a run.
//!
//! Programs in a cgroup and a network namespace of the benchmark make real calls and exchange real packets on loopback.
//! The kernel measures the run time of each program (`BPF_STATS_RUN_TIME`), which includes its own reading of the clock.
//! So an empty program is attached to each hook too, and runs for the same calls and packets: the difference is the cost
//! of the policy.

mod load;

use std::path::Path;
use std::time::Duration;

use allowlist_common::abi::VERSION;
use allowlist_dataplane::Dataplane;
use allowlist_tests::egress;
use allowlist_tests::lab::{Cgroup, Scratch, Testbed};
use allowlist_user::config::Config;
use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSkbAttachType, Program, ProgramInfo, loaded_programs};
use aya::sys::{Stats, enable_stats};

use self::load::{LISTED, Load, NAME};
use crate::Effort;
use crate::programs;
use crate::record::{Record, Sample, float};

pub(crate) const MEASURE: &str = "egress";
pub(crate) const GROSS: &str = "ns/run";
pub(crate) const NET: &str = "ns/run above an empty program";
/// The name of the baseline subject.
const EMPTY: &str = "empty program";
const OURS: &str = "allowlist";

/// A hook of the egress policy: the policy's program, and the empty program beside it.
#[derive(Clone, Copy)]
enum Hook {
    Connect,
    Sent,
    Received,
}

impl Hook {
    const ALL: [Self; 3] = [Self::Connect, Self::Sent, Self::Received];

    const fn ours(self) -> &'static str {
        match self {
            Self::Connect => "allow_connect4",
            Self::Sent => "allow_query",
            Self::Received => "allow_received",
        }
    }

    const fn empty(self) -> &'static str {
        match self {
            Self::Connect => "empty_connect4",
            Self::Sent => "empty_sent",
            Self::Received => "empty_received",
        }
    }
}

/// The measured cases: the hook, the name, and the calls or packets of a round.
type Case = (Hook, &'static str, fn(&Load, u32) -> std::io::Result<()>);
const CASES: [Case; 10] = [
    (
        Hook::Connect,
        "connect, listed prefix",
        Load::connect_listed,
    ),
    (
        Hook::Connect,
        "connect, answered address",
        Load::connect_answered,
    ),
    (Hook::Connect, "connect, refused", Load::connect_refused),
    (Hook::Sent, "query for a listed name", Load::resolve),
    (
        Hook::Received,
        "answer with an alias and an address",
        Load::resolve,
    ),
    (Hook::Sent, "TCP packet sent", Load::exchange_by_tcp),
    (Hook::Received, "TCP packet received", Load::exchange_by_tcp),
    (Hook::Sent, "UDP packet sent", Load::exchange_by_udp),
    (Hook::Received, "UDP packet received", Load::exchange_by_udp),
    (
        Hook::Received,
        "UDP packet received, socket not connected",
        Load::receive_unconnected,
    ),
];

pub(crate) fn run(record: &mut Record, effort: &Effort) -> Result<()> {
    effort.announce("egress: calls, queries and packets");
    let testbed = Testbed::new()?;
    testbed.host.run(|| measure(record, effort))
}

/// Measures all cases, in the network namespace of the benchmark.
fn measure(record: &mut Record, effort: &Effort) -> Result<()> {
    let scratch = Scratch::new()?;
    let cgroup = Cgroup::new()?;
    let load = Load::new(&cgroup).context("cannot open the sockets of the benchmark")?;
    let _dataplane = publish(scratch.pin_dir(), &cgroup, &load)?;
    let empty = attach_empty(&cgroup)?;
    let subjects: Vec<_> = Hook::ALL
        .into_iter()
        .map(|hook| Subject::new(scratch.pin_dir(), &empty, hook))
        .collect::<Result<_>>()?;
    let _stats = enable_stats(Stats::RunTime)?;
    load.resolve(1)?;
    let runs = effort.burst / 20;
    for round in 0..effort.rounds {
        for (hook, case, exchange) in CASES {
            let subject = &subjects[hook as usize];
            let before = subject.counts();
            exchange(&load, runs).with_context(|| format!("the case {case:?} failed"))?;
            let after = subject.counts();
            let [ours, empty] = [0, 1].map(|which| after[which].since(before[which]));
            let (ours, empty) = (ours.cost(runs)?, empty.cost(runs)?);
            for (subject, value, unit) in [
                (EMPTY, empty, GROSS),
                (OURS, ours, GROSS),
                (OURS, ours - empty, NET),
            ] {
                record.add(Sample {
                    measure: MEASURE,
                    subject: subject.to_owned(),
                    case: case.to_owned(),
                    prefixes: 0,
                    round,
                    value,
                    unit,
                });
            }
        }
    }
    Ok(())
}

/// The ids of the two programs at a hook: the policy's, and the empty one.
struct Subject {
    ids: [u32; 2],
}

impl Subject {
    fn new(pins: &Path, empty: &Ebpf, hook: Hook) -> Result<Self> {
        let pin = pins.join(format!("v{VERSION}/{}_0", hook.ours()));
        let link = PinnedLink::from_pin(&pin)
            .with_context(|| format!("cannot open the link {}", pin.display()))?;
        let ours = FdLink::from(link).info()?.program_id();
        let program = empty
            .program(hook.empty())
            .with_context(|| format!("the benchmark's eBPF object has no {}", hook.empty()))?;
        Ok(Self {
            ids: [ours, program.info()?.id()],
        })
    }

    /// Returns the run time of both programs until now.
    fn counts(&self) -> [Count; 2] {
        let mut counts = [Count::default(); 2];
        for program in loaded_programs() {
            // Another process can remove a program during the iteration.
            let Ok(program) = program else { continue };
            if let Some(place) = self.ids.iter().position(|id| *id == program.id()) {
                counts[place] = Count::of(&program);
            }
        }
        counts
    }
}

/// How often a program ran, and for how long.
#[derive(Clone, Copy, Default)]
struct Count {
    runs: u64,
    time: Duration,
}

impl Count {
    fn of(program: &ProgramInfo) -> Self {
        Self {
            runs: program.run_count(),
            time: program.run_time(),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            runs: self.runs - before.runs,
            time: self.time.saturating_sub(before.time),
        }
    }

    /// Returns the mean time of a run in nanoseconds; fails if the program ran less often than `expected`.
    fn cost(self, expected: u32) -> Result<f64> {
        ensure!(
            self.runs >= u64::from(expected),
            "a program ran {} times, and not at least {expected} times, so its cost is invalid",
            self.runs
        );
        Ok(float(self.time.as_nanos() as u64) / float(self.runs))
    }
}

/// Attaches an empty program to each hook of the cgroup.
fn attach_empty(cgroup: &Cgroup) -> Result<Ebpf> {
    let directory = std::fs::File::open(cgroup.path())?;
    let mut object = programs::load(&[])?;
    for hook in Hook::ALL {
        let program = object
            .program_mut(hook.empty())
            .with_context(|| format!("the benchmark's eBPF object has no {}", hook.empty()))?;
        // Links to cgroups always permit other programs; the kernel refuses flags (aya#1078).
        let mode = CgroupAttachMode::Single;
        match (program, hook) {
            (Program::CgroupSockAddr(program), _) => {
                program.attach(&directory, mode)?;
            }
            (Program::CgroupSkb(program), Hook::Received) => {
                program.attach(&directory, CgroupSkbAttachType::Ingress, mode)?;
            }
            (Program::CgroupSkb(program), _) => {
                program.attach(&directory, CgroupSkbAttachType::Egress, mode)?;
            }
            _ => unreachable!("the object has no other programs with these names"),
        }
    }
    Ok(object)
}

/// Publishes a policy that allows [`LISTED`] and the answers for [`NAME`], attached to the cgroup.
fn publish(pins: &Path, cgroup: &Cgroup, load: &Load) -> Result<Dataplane> {
    let text = format!(
        "[egress]\ndefault = \"refuse\"\n\n\
         [egress.rules.partner]\nto = [\"partner\", \"named\"]\nports = [\"udp/443\"]\n\n\
         [sources.partner]\nprefixes = [\"{LISTED}/32\"]\n\n\
         [sources.named]\nnames = [\"{NAME}\"]\n"
    );
    let config = Config::parse(&text, Path::new("bench.toml"))?;
    egress::publish(
        pins,
        &config,
        load.resolver(),
        vec![cgroup.below_root().to_owned()],
    )
}
