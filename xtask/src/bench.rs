//! `cargo xtask bench`: builds the release binaries and runs the benchmark on them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::privilege::Root;
use crate::{cargo, setup};

/// Measure the cost of lookups, packets, floods and changes, and compare with the alternatives
///
/// Runs in memory (`BPF_PROG_TEST_RUN`) and in private network namespaces; attaches to no interface of this machine.
/// Prints medians and writes all samples, JSON and plots to target/bench. Compare numbers only within one run.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench
  cargo xtask bench --quick
  cargo xtask bench --only lookup,filter
  cargo xtask bench --only interface --json > interface.json
  cargo xtask bench --changes
  cargo xtask bench --against older-allowlist-ebpf
  cargo xtask bench -- --rounds 51")]
pub(crate) struct Args {
    /// Benchmarks to run: lookup, filter, packets, interface, publishes, changes, egress [default: all]
    ///
    /// `cargo xtask bench -- --help` describes each.
    #[arg(long, value_delimiter = ',', value_name = "MEASURE")]
    only: Vec<String>,

    /// Measure how long a change by command takes: same as `--only changes`
    #[arg(long, conflicts_with = "only")]
    changes: bool,

    /// Compare with an older kernel program, such as the object file `allowlist-ebpf` of an older build
    ///
    /// Loads each program five times, because code placement alone changes its cost, and also compares the older
    /// program with itself in the same run. Without `--only`, this is the only benchmark.
    #[arg(long, value_name = "OBJECT")]
    against: Option<PathBuf>,

    /// Finish in half a minute: fewer rounds, fewer and smaller lists
    #[arg(long)]
    quick: bool,

    /// Print all samples and medians as JSON instead of tables
    #[arg(long)]
    json: bool,

    /// Arguments for the benchmark
    #[arg(last = true, value_name = "ARGS")]
    forwarded: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = Root::reach("the benchmark")?;
    setup::run()?;
    // Separate builds: in one build, cargo would unify the features of the program with those of the benchmark.
    let starts_program = |measure: &String| ["interface", "changes"].contains(&measure.as_str());
    let measures_all = args.only.is_empty() && args.against.is_none();
    if measures_all || args.changes || args.only.iter().any(starts_program) {
        cargo::build(&["--release", "--package=allowlist-user", "--bin=allowlist"])?;
    }
    let bench = [
        "--release",
        "--package=allowlist-bench",
        "--bin=allowlist-bench",
    ];
    let built = cargo::build(&bench)?;

    // The benchmark validates the names.
    let only = match (args.changes, args.only.as_slice()) {
        (true, _) => vec!["--only".into(), "changes".into()],
        (false, []) => Vec::new(),
        (false, only) => vec!["--only".into(), only.join(",")],
    };
    let mut words: Vec<OsString> = only.into_iter().map(String::into).collect();
    words.extend([
        OsString::from("--out"),
        cargo::target_dir()?.join("bench").into(),
    ]);
    if let Some(object) = &args.against {
        words.extend([OsString::from("--against"), object.into()]);
    }
    words.extend(args.quick.then(|| "--quick".into()));
    words.extend(args.json.then(|| "--json".into()));
    words.extend(args.forwarded.iter().cloned());
    match root.exec(&[], built.executable("allowlist-bench")?, words.into_iter())? {}
}
