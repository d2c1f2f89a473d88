//! `--against OBJECT`: compares this build's kernel program with an older one, loaded from its object file: the costs of
//! dropped and allowed packets in each, and their ratio.
//!
//! The address at which the JIT compiler places a program changes the cost of the same code by some percent. So each
//! program is loaded five times, and the older one five more times as a subject of its own: its ratio to itself is the
//! noise floor, and smaller differences mean nothing. All loads take turns within a round, in a different order each
//! time. A value is the median of a subject's loads, and a ratio compares values of the same round.
//!
//! Both programs get the same policy, each in its own maps (`tables`).

mod tables;

use std::fs;
use std::path::Path;

use allowlist_common::abi::PROGRAM;
use allowlist_dataplane as dataplane;
use allowlist_tests::lab::frame;
use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::programs::Xdp;

use self::tables::{Layout, Policy};
use crate::Effort;
use crate::programs::{self, XDP_DROP};
use crate::record::{Record, Sample};
use crate::traffic::Family;

pub(crate) const MEASURE: &str = "against";
pub(crate) const UNIT: &str = "ns/packet";
pub(crate) const RATIO: &str = "times the older object";
pub(crate) const INSTRUCTIONS: &str = "instructions";
pub(crate) const CODE: &str = "bytes of machine code";
pub(crate) const VERIFIED: &str = "instructions verified";

const NEW: &str = "this build";
pub(crate) const OLD: &str = "older object";
const FLOOR: &str = "older object again";

/// The number of times that each subject is loaded.
const LOADS: usize = 5;
const XDP_PASS: u32 = 2;

/// A kind of packet to measure, with the verdict that every subject must give.
struct Case {
    name: &'static str,
    family: Family,
    make: fn(Family) -> Vec<u8>,
    is_allowed: bool,
}

const fn case(
    name: &'static str,
    family: Family,
    make: fn(Family) -> Vec<u8>,
    is_allowed: bool,
) -> Case {
    Case {
        name,
        family,
        make,
        is_allowed,
    }
}

const CASES: [Case; 6] = [
    case("UDP, dropped", Family::V4, udp, false),
    case("UDP, allowed", Family::V4, udp, true),
    case("TCP SYN, dropped", Family::V4, syn, false),
    case("UDP over IPv6, dropped", Family::V6, udp, false),
    case("UDP over IPv6, allowed", Family::V6, udp, true),
    case("TCP SYN over IPv6, dropped", Family::V6, syn, false),
];

/// An object file to compare, with its programs: each load is one copy of the XDP program.
struct Subject {
    name: &'static str,
    loads: Vec<Ebpf>,
}

pub(crate) fn run(record: &mut Record, effort: &Effort, file: &Path) -> Result<()> {
    effort.announce(&format!("against {}", file.display()));
    let old = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let old = old.as_slice();
    let policy = Policy::new()?;
    let mut subjects = Vec::new();
    for (name, object) in [(NEW, dataplane::object()), (OLD, old), (FLOOR, old)] {
        let what = || {
            if name == NEW {
                name.to_owned()
            } else {
                file.display().to_string()
            }
        };
        subjects.push(Subject::load(name, object, &policy).with_context(what)?);
    }
    for subject in &subjects {
        subject.record_sizes(record)?;
    }
    for case in &CASES {
        let frame = case.frame();
        for subject in &subjects {
            subject.check(case, &frame)?;
        }
        for round in 0..effort.rounds {
            measure(record, effort, case, &subjects, round)?;
        }
    }
    Ok(())
}

/// Measures the cost of each loaded copy of each subject once, for one kind of packet.
fn measure(
    record: &mut Record,
    effort: &Effort,
    case: &Case,
    subjects: &[Subject],
    round: usize,
) -> Result<()> {
    let frame = case.frame();
    let mut costs = vec![[0.0; LOADS]; subjects.len()];
    let turns = subjects.len() * LOADS;
    for turn in 0..turns {
        // Consecutive turns have different subjects, and each round begins with another turn.
        let turn = (turn + round) % turns;
        let (subject, load) = (turn % subjects.len(), turn / subjects.len());
        costs[subject][load] =
            programs::cost(subjects[subject].program(load)?, &frame, effort.burst)?;
    }
    let medians: Vec<f64> = costs.into_iter().map(median).collect();
    let old = subjects.iter().position(|subject| subject.name == OLD);
    let old = medians
        [old.context("the older object file was not loaded, so no ratio to it can be computed")?];
    for (subject, value) in subjects.iter().zip(medians) {
        let mut add = |unit, value| {
            record.add(Sample {
                measure: MEASURE,
                subject: subject.name.to_owned(),
                case: case.name.to_owned(),
                prefixes: tables::PREFIXES,
                round,
                value,
                unit,
            });
        };
        add(UNIT, value);
        if subject.name != OLD {
            add(RATIO, value / old);
        }
    }
    Ok(())
}

fn median(mut values: [f64; LOADS]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[LOADS / 2]
}

impl Subject {
    fn load(name: &'static str, object: &[u8], policy: &Policy) -> Result<Self> {
        let loads = (0..LOADS).map(|_| {
            let mut loaded = tables::load(object)?;
            Layout::of(&loaded)?.fill(&mut loaded, policy)?;
            let program: &mut Xdp = loaded
                .program_mut(PROGRAM)
                .with_context(|| {
                    format!("the object file has no program {PROGRAM}; use an object of allowlist")
                })?
                .try_into()?;
            program
                .load()
                .context("the kernel's verifier rejects the XDP program of the object file")?;
            Ok(loaded)
        });
        Ok(Self {
            name,
            loads: loads.collect::<Result<_>>()?,
        })
    }

    fn program(&self, load: usize) -> Result<&Xdp> {
        let program = self.loads[load]
            .program(PROGRAM)
            .with_context(|| format!("the object file has no program {PROGRAM}"))?;
        Ok(program.try_into()?)
    }

    /// Checks that the subject's programs give the expected verdict, so that their tables hold the policy.
    fn check(&self, case: &Case, frame: &[u8]) -> Result<()> {
        let wanted = if case.is_allowed { XDP_PASS } else { XDP_DROP };
        for load in 0..LOADS {
            let found = programs::verdict(self.program(load)?, frame)?;
            ensure!(
                found == wanted,
                "{}, packet {}: the verdict is {found}, not {wanted} (1 is drop, 2 is pass), so this object file reads the benchmark's policy differently; compare with an object of a nearer version",
                self.name,
                case.name
            );
        }
        Ok(())
    }

    /// Records the sizes of the subject's program, which are the same for each loaded copy.
    fn record_sizes(&self, record: &mut Record) -> Result<()> {
        let size = programs::size(self.program(0)?)?;
        for (unit, value) in [
            (INSTRUCTIONS, size.instructions),
            (CODE, size.code),
            (VERIFIED, size.verified),
        ] {
            record.add(Sample {
                measure: MEASURE,
                subject: self.name.to_owned(),
                case: PROGRAM.to_owned(),
                prefixes: 0,
                round: 0,
                value: value.into(),
                unit,
            });
        }
        Ok(())
    }
}

impl Case {
    /// Returns a frame of this kind. If the frame is to be allowed, its source address is in the policy's list.
    fn frame(&self) -> Vec<u8> {
        let mut frame = (self.make)(self.family);
        let at = match self.family {
            Family::V4 => 14 + 12,
            Family::V6 => 14 + 8,
        };
        if self.is_allowed {
            let source = tables::listed(self.family);
            frame[at..at + source.len()].copy_from_slice(&source);
        }
        frame
    }
}

fn udp(family: Family) -> Vec<u8> {
    let (from, to) = family.ends(tables::PORT);
    frame::udp(from, to, b"bench")
}

fn syn(family: Family) -> Vec<u8> {
    let (from, to) = family.ends(tables::PORT);
    frame::tcp_syn(from, to)
}
