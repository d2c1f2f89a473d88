//! Measure 1: the cost of an address lookup, by the number of prefixes, under random traffic.
//!
//! Each program reads the next of a million addresses, which were drawn before, and looks it up; the floor only reads it.
//! So the cost of a subject above the floor of the same round is the lookup with all its cache misses. Subjects take
//! turns, one burst each. The sizes of programs and tables are recorded too.
//!
//! A new subject is an entry in [`SUBJECTS`], with its own programs and maps in `tests/ebpf`.

use std::mem;

use allowlist_tests::lab::frame;
use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::programs::Xdp;

use crate::Effort;
use crate::programs::{self, ADDRESSES, RangeTable};
use crate::record::{Record, Sample, float};
use crate::traffic::{Family, List, Traffic};

pub(crate) const MEASURE: &str = "lookup";
/// The unit of the whole cost of a packet.
pub(crate) const GROSS: &str = "ns/packet";
/// The unit of the cost of a packet minus that of the baseline in the same round.
pub(crate) const NET: &str = "ns/packet over floor";
pub(crate) const CODE: &str = "bytes of machine code";
pub(crate) const INSTRUCTIONS: &str = "instructions";
pub(crate) const VERIFIED: &str = "instructions verified";
pub(crate) const MEMORY: &str = "bytes/prefix";

/// The name of the subject that is the baseline of the others: a program without a lookup.
pub(crate) const FLOOR: &str = "floor";
pub(crate) const TRIE: &str = "trie";
pub(crate) const OURS: &str = "range table";

const SEED: u64 = 20_260_101;
const PREFIXES: [usize; 6] = [0, 28, 1_000, 10_000, 100_000, 1_000_000];
const QUICK_PREFIXES: [usize; 4] = [0, 28, 10_000, 100_000];
const QUICK_TRAFFIC: [Traffic; 2] = [Traffic::Miss, Traffic::Zipf];

/// A lookup engine to compare, with its programs and maps.
struct Subject {
    name: &'static str,
    /// The programs for IPv4 and for IPv6.
    programs: [&'static str; 2],
    /// The maps whose capacity depends on the list, with their capacities.
    capacities: fn(&List) -> Vec<(&'static str, u32)>,
    /// Writes a list to the maps, and returns their size in bytes; `None` for an engine without maps.
    fill: fn(&mut Ebpf, &List, &RangeTable) -> Result<Option<u64>>,
    /// Whether the programs look up addresses, so that their results can be checked.
    looks_up: bool,
}

const SUBJECTS: [Subject; 4] = [
    Subject {
        name: "bare",
        programs: ["bare", "bare"],
        capacities: |_| Vec::new(),
        fill: |_, _, _| Ok(None),
        looks_up: false,
    },
    Subject {
        name: FLOOR,
        programs: ["floor4", "floor6"],
        capacities: |_| Vec::new(),
        fill: |_, _, _| Ok(None),
        looks_up: false,
    },
    Subject {
        name: TRIE,
        programs: ["trie4", "trie6"],
        capacities: |list| vec![programs::trie_capacity(list)],
        fill: |object, list, _| programs::fill_trie(object, list).map(Some),
        looks_up: true,
    },
    Subject {
        name: OURS,
        programs: ["ranges4", "ranges6"],
        capacities: |_| Vec::new(),
        fill: |_, _, table| Ok(Some(table.bytes)),
        looks_up: true,
    },
];

pub(crate) fn run(record: &mut Record, effort: &Effort) -> Result<()> {
    for family in Family::BOTH {
        let prefixes: &[usize] = if effort.is_quick {
            &QUICK_PREFIXES
        } else {
            &PREFIXES
        };
        for (index, &count) in prefixes.iter().enumerate() {
            effort.announce(&format!("lookup: {family}, {count} prefixes"));
            let list = List::new(family, count, SEED + index as u64);
            measure(record, effort, &list)
                .with_context(|| format!("{family}, {count} prefixes"))?;
        }
    }
    Ok(())
}

fn measure(record: &mut Record, effort: &Effort, list: &List) -> Result<()> {
    let capacities: Vec<_> = SUBJECTS
        .iter()
        .flat_map(|one| (one.capacities)(list))
        .collect();
    let table = RangeTable::of(list)?;
    let mut object = programs::load_with(&capacities, Some(&table))?;
    for subject in &SUBJECTS {
        let bytes = (subject.fill)(&mut object, list, &table).context(subject.name)?;
        record_sizes(record, &object, list, subject, bytes)?;
    }
    let traffic: &[Traffic] = if effort.is_quick {
        &QUICK_TRAFFIC
    } else {
        &Traffic::ALL
    };
    for &traffic in traffic {
        if let Some(addresses) = list.addresses(traffic, ADDRESSES, SEED) {
            programs::set_addresses(&mut object, list.family, &addresses)?;
            measure_traffic(record, effort, &object, list, traffic)
                .with_context(|| traffic.to_string())?;
        }
    }
    // Freeing a million prefixes would occupy a CPU for seconds during the next measurement. The kernel frees them when
    // the process ends.
    mem::forget(object);
    Ok(())
}

fn measure_traffic(
    record: &mut Record,
    effort: &Effort,
    object: &Ebpf,
    list: &List,
    traffic: Traffic,
) -> Result<()> {
    let frame = frame(list.family);
    let programs = SUBJECTS.each_ref().map(|one| one.program(object, list));
    for (subject, program) in SUBJECTS.iter().zip(&programs) {
        let program = program.as_ref().ok().with_context(|| {
            format!(
                "the benchmark has no program for the subject {}",
                subject.name
            )
        })?;
        programs::check(program, subject.name, &frame)?;
        if subject.looks_up {
            check_found(object, subject, program, &frame, traffic)?;
        }
    }
    for round in 0..effort.rounds {
        let mut costs = Vec::new();
        for program in programs.iter().flatten() {
            costs.push(programs::cost(program, &frame, effort.burst)?);
        }
        let floor = SUBJECTS.iter().position(|one| one.name == FLOOR);
        let floor = costs[floor.context(
            "the subject that looks nothing up was not measured, so no net cost can be computed",
        )?];
        for (subject, cost) in SUBJECTS.iter().zip(costs) {
            let net = subject.looks_up.then_some((NET, cost - floor));
            for (unit, value) in [Some((GROSS, cost)), net].into_iter().flatten() {
                record.add(Sample {
                    measure: MEASURE,
                    subject: subject.name.to_owned(),
                    case: format!("{} {traffic}", list.family),
                    prefixes: list.prefixes.len(),
                    round,
                    value,
                    unit,
                });
            }
        }
    }
    Ok(())
}

/// Checks that a program finds the expected share of the addresses: all, none, or about half of a mix.
fn check_found(
    object: &Ebpf,
    subject: &Subject,
    program: &Xdp,
    frame: &[u8],
    traffic: Traffic,
) -> Result<()> {
    const RUNS: u32 = 10_000;
    let before = programs::tally(object)?.found;
    programs::cost(program, frame, RUNS)?;
    let found = programs::tally(object)?.found - before;
    let runs = u64::from(RUNS);
    let is_expected = match traffic {
        Traffic::Miss => found == 0,
        Traffic::Hit | Traffic::Zipf => found == runs,
        Traffic::Mix => (runs * 2 / 5..=runs * 3 / 5).contains(&found),
    };
    ensure!(
        is_expected,
        "{} found {found} of {runs} source addresses, which is wrong for the traffic {traffic}",
        subject.name
    );
    Ok(())
}

/// Records the sizes of a subject's programs and maps, which are the same in each round.
fn record_sizes(
    record: &mut Record,
    object: &Ebpf,
    list: &List,
    subject: &Subject,
    bytes: Option<u64>,
) -> Result<()> {
    let prefixes = list.prefixes.len();
    let size = programs::size(subject.program(object, list)?)?;
    let of_program = [
        (CODE, size.code),
        (INSTRUCTIONS, size.instructions),
        (VERIFIED, size.verified),
    ];
    // The program is the same for every list.
    let of_program = of_program
        .into_iter()
        .filter(|_| prefixes == 0)
        .map(|(unit, value)| (unit, f64::from(value)));
    let of_list = bytes
        .filter(|_| prefixes != 0)
        .map(|bytes| (MEMORY, float(bytes) / float(prefixes as u64)));
    for (unit, value) in of_program.chain(of_list) {
        record.add(Sample {
            measure: MEASURE,
            subject: subject.name.to_owned(),
            case: list.family.to_string(),
            prefixes,
            round: 0,
            value,
            unit,
        });
    }
    Ok(())
}

impl Subject {
    fn program<'a>(&self, object: &'a Ebpf, list: &List) -> Result<&'a Xdp> {
        let [v4, v6] = self.programs;
        programs::program(
            object,
            match list.family {
                Family::V4 => v4,
                Family::V6 => v6,
            },
        )
    }
}

/// Returns a frame of the family; the programs do not read its addresses.
fn frame(family: Family) -> Vec<u8> {
    let (from, to) = family.ends(9);
    frame::udp(from, to, b"bench")
}
