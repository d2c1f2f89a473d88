//! `cargo xtask bench`: runs the selected measures, prints their results and writes them to `target/bench`.
//!
//! - `lookup`: the cost of an address lookup, by engine, family and number of prefixes
//! - `filter`: the cost of a packet in the XDP program, under random traffic
//! - `packets`: the cost of a packet in the XDP program, by kind of packet and by setting
//! - `interface`: the rate at which a flood through an interface is dropped, by firewall
//! - `publishes`: the time to compile and publish a list, and the number of wrong verdicts during publishes
//! - `changes`: the latency of a change by command, from the request to the response
//! - `egress`: the cost of a call, a query, an answer and a packet in the programs of the egress policy
//! - `against`: the cost of a packet in this kernel program and in an older one, with `--against OBJECT`
//!
//! Subjects take turns within a run, and a result is the median of the rounds. Results of different runs are not
//! comparable.

mod against;
mod changes;
mod egress;
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

use crate::record::{Record, TableSpec, thousands};

/// Measure the cost of lookups, packets, floods, publishes and changes
#[derive(Parser)]
struct Args {
    /// Measures to run [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Measure>,
    /// Compare with the kernel program in this older object file; without --only, no other measure runs
    #[arg(long, value_name = "OBJECT")]
    against: Option<PathBuf>,
    /// Use fewer rounds, fewer lists and smaller lists: half a minute in all
    #[arg(long)]
    quick: bool,
    /// Print all samples and summaries as JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Number of rounds [default: 9, or 3 with --quick]
    #[arg(long)]
    rounds: Option<usize>,
    /// Packets per subject and round
    #[arg(long, default_value_t = 200_000)]
    burst: u32,
    /// Directory for samples and plots
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// The cost of an address lookup
    Lookup,
    /// The cost of a packet in the whole filter, under random traffic
    Filter,
    /// The cost of a packet, by kind and by setting
    Packets,
    /// The drop rate of a flood through an interface, by firewall
    Interface,
    /// The time to compile and publish a list
    Publishes,
    /// The latency of a change by command
    Changes,
    /// The cost of the egress policy's programs
    Egress,
}

/// The extent of the measurements: the number of rounds, the number of packets per burst (one subject in one round),
/// and whether to use fewer and smaller lists.
struct Effort {
    rounds: usize,
    burst: u32,
    is_quick: bool,
}

impl Effort {
    /// Prints the name of the next measure to standard error.
    fn announce(&self, measure: &str) {
        eprintln!("bench: {measure}, {} rounds", self.rounds);
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
    // A concurrent build doubles the cost of a packet.
    let load = record::load();
    if load > record::float(record::cpus() as u64) / 4.0 {
        record.note(format!(
            "the machine was busy when the benchmark started (load {load}), so costs and their spread are too high; measure again on an idle machine"
        ));
    }
    let mut finished = Vec::new();
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
            Measure::Interface => finished.push(interface::run(&mut record, &effort)?),
            Measure::Publishes => publishes::run(&mut record, &effort)?,
            Measure::Changes => changes::run(&mut record, &effort)?,
            Measure::Egress => egress::run(&mut record, &effort)?,
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
    let table = |heading: &str, spec: TableSpec<'_>| {
        let table = record.table(spec);
        if table.row_count() > 0 {
            println!("{heading}\n\n{table}\n");
        }
    };
    show_lookup(&table);
    table(
        "Whole filter, ns a packet: median [quartiles], ratio to a program that drops everything",
        TableSpec {
            measure: filter::MEASURE,
            unit: filter::UNIT,
            cases: "traffic",
            against: Some(filter::BARE),
        },
    );
    table(
        "Packets, ns: median [quartiles], ratio to the first setting",
        TableSpec {
            measure: packets::MEASURE,
            unit: packets::UNIT,
            cases: "packet",
            against: Some(packets::SETTINGS[0].0),
        },
    );
    show_against(&table);
    for prefixes in interface::PREFIXES {
        let units = [interface::RATE, interface::COST];
        let table = record.comparison(interface::MEASURE, prefixes, units, interface::OURS);
        if table.row_count() > 0 {
            let prefixes = thousands(prefixes);
            println!("Flood through an interface, {prefixes} prefixes, dropped\n\n{table}\n");
        }
    }
    table(
        "Publishes, ms: median [quartiles]",
        TableSpec {
            measure: publishes::MEASURE,
            unit: publishes::UNIT,
            cases: "case",
            against: None,
        },
    );
    for unit in [publishes::WRONG, publishes::JUDGED] {
        table(
            &format!("Publishes under load, {unit}"),
            TableSpec {
                measure: publishes::MEASURE,
                unit,
                cases: "case",
                against: None,
            },
        );
    }
    table(
        "Changes by command, ms: median [quartiles]",
        TableSpec {
            measure: changes::MEASURE,
            unit: changes::UNIT,
            cases: "case",
            against: None,
        },
    );
    show_egress(&table);
    for note in record.notes() {
        println!("note: {note}");
    }
}

/// Prints the tables of lookups.
fn show_lookup(table: &dyn Fn(&str, TableSpec<'_>)) {
    let lookup = TableSpec {
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
        TableSpec {
            unit: lookup::NET,
            against: Some(lookup::TRIE),
            ..lookup
        },
    );
    for unit in [
        lookup::CODE,
        lookup::INSTRUCTIONS,
        lookup::VERIFIED,
        lookup::MEMORY,
    ] {
        let heading = format!("Lookup, {unit}");
        table(
            &heading,
            TableSpec {
                unit,
                cases: "family",
                against: None,
                ..lookup
            },
        );
    }
}

/// Prints the tables of the egress policy.
fn show_egress(table: &dyn Fn(&str, TableSpec<'_>)) {
    for (unit, heading) in [
        (
            egress::GROSS,
            "Egress policy, ns a run, with the kernel's reading of the clock: median [quartiles]",
        ),
        (
            egress::NET,
            "Egress policy, ns above an empty program: median [quartiles]",
        ),
    ] {
        table(
            heading,
            TableSpec {
                measure: egress::MEASURE,
                unit,
                cases: "call or packet",
                against: None,
            },
        );
    }
}

/// Prints the tables of `--against`.
fn show_against(table: &dyn Fn(&str, TableSpec<'_>)) {
    let against = TableSpec {
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
            "Against the older object, ratio within a round: median [quartiles]; the ratio of the older object to itself is the noise floor",
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
            against::VERIFIED,
            "Against the older object, instructions processed by the verifier",
        ),
    ] {
        table(
            heading,
            TableSpec {
                unit,
                against: None,
                ..against
            },
        );
    }
}

/// Draws the plots of the recorded measures, and returns the paths of the files.
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
            title: &format!("Lookup of a random {name} source"),
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
            title: "Drop rate of a flood, with sender and receiver on one CPU",
            value: "dropped packets per second",
        };
        plot::bars(&path, &axes, &rates)
            .with_context(|| format!("cannot draw {}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}
