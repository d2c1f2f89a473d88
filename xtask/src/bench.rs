//! `cargo xtask bench`: builds what is measured as it is released, and measures it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

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
  cargo xtask bench --only lookup,filter
  cargo xtask bench --only interface --json > interface.json
  cargo xtask bench --changes
  cargo xtask bench --against older-allowlist-ebpf
  cargo xtask bench -- --rounds 51")]
pub(crate) struct Args {
    /// What to measure: of lookup, filter, packets, interface, publishes and changes; all of it, if not said
    ///
    /// `cargo xtask bench -- --help` says what each is.
    #[arg(long, value_delimiter = ',', value_name = "MEASURE")]
    only: Vec<String>,

    /// How long a change by command takes: the same as `--only changes`
    #[arg(long, conflicts_with = "only")]
    changes: bool,

    /// Compare with an older kernel program, by its object file, such as the `allowlist-ebpf` of an older build
    ///
    /// Each is loaded five times, since where code is placed alone moves its cost, and the older one is compared with
    /// itself in the same run. Without `--only` it is the only measure.
    #[arg(long, value_name = "OBJECT")]
    against: Option<PathBuf>,

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

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = Root::reach("the benchmark")?;
    setup::run()?;
    // Each alone, so that the program has what it is released with, and nothing that a test asks for.
    let starts_program = |measure: &String| ["interface", "changes"].contains(&measure.as_str());
    let measures_all = args.only.is_empty() && args.against.is_none();
    if measures_all || args.changes || args.only.iter().any(starts_program) {
        cargo::build(&["--release", "--package=allowlist-user", "--bin=allowlist"])?;
    }
    let bench = [
        "--release",
        "--package=allowlist-tests",
        "--bin=allowlist-bench",
    ];
    let built = cargo::build(&bench)?;

    // Which measures there are is the benchmark's to know.
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
    words.extend(args.of_bench.iter().cloned());
    match root.exec(&[], built.executable("allowlist-bench")?, words.into_iter())? {}
}
