//! `cargo xtask bench`: what is asked for is measured, shown, and written under `target/bench`.
//!
//! - `lookup`: an address among many prefixes, by ways to look it up
//! - `filter`: a packet in the filter's program, under random traffic
//! - `packets`: a packet in the filter's program, by kind and by setting
//! - `interface`: a flood through an interface, by what filters it
//! - `publishes`: a whole list compiled and put in force, and packets misjudged meanwhile
//! - `changes`: a change by command, from the request to the answer
//! - `against`: a packet in the kernel program beside an older one, with `--against OBJECT`
//!
//! Subjects take turns within a run, and a value is a median of rounds: only values of one run can be compared.

mod against;
mod changes;
mod filter;
mod interface;
mod lookup;
mod packets;
mod plot;
mod programs;
mod publishes;
mod record;
mod traffic;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

use crate::record::{Record, Shown, thousands};

/// Measure what a lookup, a packet and a change cost
#[derive(Parser)]
struct Args {
    /// What to measure; all of it, if not said
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Measure>,
    /// Compare with an older kernel program, by its object file; without --only it is the only measure
    #[arg(long, value_name = "OBJECT")]
    against: Option<PathBuf>,
    /// Less of it, in half a minute: fewer rounds, and fewer and smaller lists
    #[arg(long)]
    quick: bool,
    /// Print all values as JSON, instead of tables
    #[arg(long)]
    json: bool,
    /// Rounds, of which the median is shown; 9, or 3 with --quick
    #[arg(long)]
    rounds: Option<usize>,
    /// Packets of a round, for each subject
    #[arg(long, default_value_t = 200_000)]
    burst: u32,
    /// Where to write values and plots
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// An address among many prefixes
    Lookup,
    /// A packet in the whole filter, under random traffic
    Filter,
    /// A packet, by kind and by setting
    Packets,
    /// A flood through an interface, by what filters it
    Interface,
    /// A whole list compiled and put in force
    Publishes,
    /// A change by command
    Changes,
}

/// How much is measured.
struct Effort {
    rounds: usize,
    burst: u32,
    is_quick: bool,
}

impl Effort {
    /// Says on standard error what comes next.
    fn say(&self, what: &str) {
        eprintln!("bench: {what}, {} rounds", self.rounds);
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let effort = Effort {
        rounds: args.rounds.unwrap_or(if args.quick { 3 } else { 9 }),
        burst: args.burst,
        is_quick: args.quick,
    };
    let mut record = Record::default();
    // A build beside it doubles what a packet takes.
    let load = record::load();
    if load > record::float(record::cpus() as u64) / 4.0 {
        record.note(format!(
            "something else kept this machine busy (load {load}): costs are too high, and their spread too"
        ));
    }
    let mut remains = Vec::new();
    if let Some(object) = &args.against {
        against::run(&mut record, &effort, object)?;
    }
    let wants_all = args.only.is_empty() && args.against.is_none();
    for measure in Measure::value_variants() {
        if !wants_all && !args.only.contains(measure) {
            continue;
        }
        match measure {
            Measure::Lookup => lookup::run(&mut record, &effort)?,
            Measure::Filter => filter::run(&mut record, &effort)?,
            Measure::Packets => packets::run(&mut record, &effort)?,
            Measure::Interface => remains.push(interface::run(&mut record, &effort)?),
            Measure::Publishes => publishes::run(&mut record, &effort)?,
            Measure::Changes => changes::run(&mut record, &effort)?,
        }
    }
    let mut written = record.write(&args.out)?;
    written.extend(draw(&record, &args.out)?);
    if args.json {
        print!("{}", record.json()?);
    } else {
        show(&record);
    }
    for path in written {
        eprintln!("bench: wrote {}", path.display());
    }
    Ok(())
}

fn show(record: &Record) {
    let table = |heading: &str, shown: Shown<'_>| {
        let table = record.table(shown);
        if table.row_count() > 0 {
            println!("{heading}\n\n{table}\n");
        }
    };
    let lookup = Shown {
        measure: lookup::MEASURE,
        unit: lookup::GROSS,
        cases: "traffic",
        against: Some(lookup::FLOOR),
    };
    table(
        "Lookup, ns a packet: median [quartiles], ratio to the floor",
        lookup,
    );
    table(
        "Lookup, ns above the floor: median [quartiles], ratio to the trie",
        Shown {
            unit: lookup::NET,
            against: Some(lookup::TRIE),
            ..lookup
        },
    );
    for unit in [
        lookup::CODE,
        lookup::INSTRUCTIONS,
        lookup::WALKED,
        lookup::MEMORY,
    ] {
        let heading = format!("Lookup, {unit}");
        table(
            &heading,
            Shown {
                unit,
                cases: "family",
                against: None,
                ..lookup
            },
        );
    }
    table(
        "The whole filter, ns: median [quartiles], ratio to a program that drops everything",
        Shown {
            measure: filter::MEASURE,
            unit: filter::UNIT,
            cases: "traffic",
            against: Some(filter::BARE),
        },
    );
    table(
        "Packets, ns: median [quartiles], ratio to the first",
        Shown {
            measure: packets::MEASURE,
            unit: packets::UNIT,
            cases: "packet",
            against: Some(packets::SETTINGS[0].0),
        },
    );
    show_against(&table);
    for prefixes in interface::PREFIXES {
        let units = [interface::RATE, interface::COST];
        let table = record.standing(interface::MEASURE, prefixes, units, interface::OURS);
        if table.row_count() > 0 {
            let prefixes = thousands(prefixes);
            println!("Flood through an interface, {prefixes} prefixes, dropped\n\n{table}\n");
        }
    }
    table(
        "Whole lists, ms: median [quartiles]",
        Shown {
            measure: publishes::MEASURE,
            unit: publishes::UNIT,
            cases: "case",
            against: None,
        },
    );
    for unit in [publishes::MISJUDGED, publishes::JUDGED] {
        table(
            &format!("Whole lists under load, {unit}"),
            Shown {
                measure: publishes::MEASURE,
                unit,
                cases: "case",
                against: None,
            },
        );
    }
    table(
        "Changes by command, ms: median [quartiles]",
        Shown {
            measure: changes::MEASURE,
            unit: changes::UNIT,
            cases: "case",
            against: None,
        },
    );
    for note in record.notes() {
        println!("note: {note}");
    }
}

/// The tables of `--against`.
fn show_against(table: &dyn Fn(&str, Shown<'_>)) {
    let against = Shown {
        measure: against::MEASURE,
        unit: against::UNIT,
        cases: "packet",
        against: Some(against::OLD),
    };
    table(
        "Against the older object, ns: median [quartiles], ratio to it",
        against,
    );
    for (unit, heading) in [
        (
            against::RATIO,
            "Against the older object, ratio within a round: median [quartiles]; again is the noise floor",
        ),
        (
            against::INSTRUCTIONS,
            "Against the older object, instructions",
        ),
        (
            against::CODE,
            "Against the older object, bytes of machine code",
        ),
        (
            against::WALKED,
            "Against the older object, instructions verified",
        ),
    ] {
        table(
            heading,
            Shown {
                unit,
                against: None,
                ..against
            },
        );
    }
}

/// # Returns
/// The files.
fn draw(record: &Record, folder: &Path) -> Result<Vec<PathBuf>> {
    let summaries = record.summaries();
    let mut written = Vec::new();
    for family in traffic::Family::BOTH {
        let name = family.to_string();
        let of_family: Vec<_> = summaries
            .iter()
            .filter(|one| one.measure == lookup::MEASURE && one.unit == lookup::GROSS)
            .filter(|one| one.case.starts_with(&name))
            .cloned()
            .collect();
        if of_family.is_empty() {
            continue;
        }
        let path = folder.join(format!("lookup-{}.svg", name.to_lowercase()));
        let axes = plot::Axes {
            title: &format!("Looking up a random {name} source"),
            value: "ns a packet",
        };
        plot::lines(&path, &axes, &of_family)
            .with_context(|| format!("cannot draw {}", path.display()))?;
        written.push(path);
    }
    let rates: Vec<_> = summaries
        .into_iter()
        .filter(|one| one.measure == interface::MEASURE && one.unit == interface::RATE)
        .collect();
    if !rates.is_empty() {
        let path = folder.join("interface.svg");
        let axes = plot::Axes {
            title: "A flood dropped behind an interface, on one CPU with its sender",
            value: "packets dropped a second",
        };
        plot::bars(&path, &axes, &rates)
            .with_context(|| format!("cannot draw {}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}
