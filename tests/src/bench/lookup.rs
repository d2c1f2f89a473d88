//! Measure 1: what it costs to look an address up, by the number of prefixes, under random traffic.
//!
//! Each program takes the next of a million addresses, which were drawn before, and looks it up; the floor
//! takes it and looks nothing up. So what a subject costs above the floor of the same round is the lookup
//! with all its cache misses. Subjects take turns, a burst each. Programs, memory and prefixes are compared
//! beside it.
//!
//! Another subject is another entry of [`SUBJECTS`], with programs and maps of its own in `tests/ebpf`.

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
/// What a packet costs, all in all.
pub(crate) const GROSS: &str = "ns/packet";
/// The same without what the floor costs in the same round.
pub(crate) const NET: &str = "ns/packet over floor";
pub(crate) const CODE: &str = "bytes of machine code";
pub(crate) const INSTRUCTIONS: &str = "instructions";
pub(crate) const WALKED: &str = "instructions verified";
pub(crate) const MEMORY: &str = "bytes/prefix";

/// The subject that the others are compared with.
pub(crate) const FLOOR: &str = "floor";
pub(crate) const TRIE: &str = "trie";
pub(crate) const OURS: &str = "range table";

const SEED: u64 = 20_260_101;
const PREFIXES: [usize; 6] = [0, 28, 1_000, 10_000, 100_000, 1_000_000];
const QUICK_PREFIXES: [usize; 4] = [0, 28, 10_000, 100_000];
const QUICK_TRAFFIC: [Traffic; 2] = [Traffic::Miss, Traffic::Zipf];

/// A way to look an address up.
struct Subject {
    name: &'static str,
    /// For IPv4 and for IPv6.
    programs: [&'static str; 2],
    /// The maps whose size goes by the list, and their entries for it.
    room: fn(&List) -> Vec<(&'static str, u32)>,
    /// Puts a list into its maps. Returns the bytes that they take, where it has any.
    fill: fn(&mut Ebpf, &List, &RangeTable) -> Result<Option<u64>>,
    /// Whether it looks anything up, so that what it finds is checked.
    looks_up: bool,
}

const SUBJECTS: [Subject; 4] = [
    Subject {
        name: "bare",
        programs: ["bare", "bare"],
        room: |_| Vec::new(),
        fill: |_, _, _| Ok(None),
        looks_up: false,
    },
    Subject {
        name: FLOOR,
        programs: ["floor4", "floor6"],
        room: |_| Vec::new(),
        fill: |_, _, _| Ok(None),
        looks_up: false,
    },
    Subject {
        name: TRIE,
        programs: ["trie4", "trie6"],
        room: |list| vec![programs::trie_room(list)],
        fill: |object, list, _| programs::fill_trie(object, list).map(Some),
        looks_up: true,
    },
    Subject {
        name: OURS,
        programs: ["ranges4", "ranges6"],
        room: |_| Vec::new(),
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
        for (place, &count) in prefixes.iter().enumerate() {
            effort.say(&format!("lookup: {family}, {count} prefixes"));
            let list = List::new(family, count, SEED + place as u64);
            measure(record, effort, &list)
                .with_context(|| format!("{family}, {count} prefixes"))?;
        }
    }
    Ok(())
}

fn measure(record: &mut Record, effort: &Effort, list: &List) -> Result<()> {
    let room: Vec<_> = SUBJECTS.iter().flat_map(|one| (one.room)(list)).collect();
    let table = RangeTable::of(list)?;
    let mut object = programs::load_with(&room, Some(&table))?;
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
    // Freeing a million prefixes takes a CPU for seconds, beside what is measured next: the kernel does it
    // when this process is gone.
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
        let program = program.as_ref().ok().context("no program")?;
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
        let floor = costs[floor.context("there is a floor")?];
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

/// That a program finds what the traffic is named for; half of a mix, give or take.
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
    let is_right = match traffic {
        Traffic::Miss => found == 0,
        Traffic::Hit | Traffic::Zipf => found == runs,
        Traffic::Mix => (runs * 2 / 5..=runs * 3 / 5).contains(&found),
    };
    ensure!(
        is_right,
        "{} found {found} of {runs} addresses of {traffic}",
        subject.name
    );
    Ok(())
}

/// What a subject takes that no round changes.
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
        (WALKED, size.walked),
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

/// One of the family; its addresses are not looked at.
fn frame(family: Family) -> Vec<u8> {
    let (from, to) = family.ends(9);
    frame::udp(from, to, b"bench")
}
