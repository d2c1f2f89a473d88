//! `cargo xtask bench`: builds what is measured as it is released, and measures it.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use crate::privilege::Root;
use crate::{cargo, setup};

/// Measure what a lookup, a packet, a flood and a change cost, each beside what else there is
///
/// In memory (`BPF_PROG_TEST_RUN`) and in network namespaces of its own, attached to nothing of this machine's.
/// Prints medians, and leaves every value, JSON and plots in target/bench. The numbers of one run can be
/// compared with each other, and with nothing else.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench
  cargo xtask bench --quick
  cargo xtask bench --only lookup,packets
  cargo xtask bench --only interface --json > interface.json
  cargo xtask bench --changes
  cargo xtask bench -- --rounds 51")]
pub(crate) struct Args {
    /// What to measure; all of it, if not said
    #[arg(long, value_enum, value_delimiter = ',', value_name = "MEASURE")]
    only: Vec<Measure>,

    /// How long a change by command takes: the same as `--only changes`
    #[arg(long, conflicts_with = "only")]
    changes: bool,

    /// Less of it, in half a minute: fewer rounds, and fewer and smaller lists
    #[arg(long)]
    quick: bool,

    /// Print every value and median as JSON, instead of tables
    #[arg(long)]
    json: bool,

    /// What to give to the benchmark
    #[arg(last = true, value_name = "ARGS")]
    of_bench: Vec<OsString>,
}

/// As the benchmark knows them.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// An address looked up among many prefixes, under random traffic
    Lookup,
    /// A packet in the filter's program, by kind and by setting
    Packets,
    /// A flood through an interface, by what filters it
    Interface,
    /// A change by command, from the request to the answer
    Changes,
}

impl Measure {
    /// Whether the program itself runs, as a process.
    const fn starts_program(self) -> bool {
        matches!(self, Self::Interface | Self::Changes)
    }

    fn name(self) -> String {
        let value = self.to_possible_value().expect("none is skipped");
        value.get_name().to_owned()
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = Root::reach("the benchmark")?;
    setup::run()?;
    let measures = match (args.changes, args.only.as_slice()) {
        (true, _) => &[Measure::Changes],
        (false, []) => Measure::value_variants(),
        (false, only) => only,
    };
    // Each alone, so that the program has what it is released with, and nothing that a test asks for.
    if measures.iter().any(|measure| measure.starts_program()) {
        cargo::build(&["--release", "--package=allowlist-user", "--bin=allowlist"])?;
    }
    let bench = [
        "--release",
        "--package=allowlist-tests",
        "--bin=allowlist-bench",
    ];
    let built = cargo::build(&bench)?;

    let names: Vec<_> = measures.iter().map(|measure| measure.name()).collect();
    let mut words = vec![OsString::from("--only"), names.join(",").into()];
    words.extend([
        OsString::from("--out"),
        cargo::target_dir()?.join("bench").into(),
    ]);
    words.extend(args.quick.then(|| "--quick".into()));
    words.extend(args.json.then(|| "--json".into()));
    words.extend(args.of_bench.iter().cloned());
    match root.exec(&[], built.executable("allowlist-bench")?, words.into_iter())? {}
}
