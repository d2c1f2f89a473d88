//! `cargo xtask bench`: what a packet costs in the kernel program, by kind of packet and by setting; or how long
//! a change by command takes.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::privilege::Root;
use crate::{cargo, setup};

/// Measure what a packet costs, by kind of packet and by setting
///
/// Runs the kernel program over packets in memory (`BPF_PROG_TEST_RUN`), attached to nothing. The
/// numbers of one run can be compared with each other, and with nothing else.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench
  cargo xtask bench --changes
  cargo xtask bench -- --rounds 51")]
pub(crate) struct Args {
    /// How long a change by command takes, instead: builds what is released, and starts it as a process
    #[arg(long)]
    changes: bool,

    /// What to give to the benchmark
    #[arg(last = true, value_name = "ARGS")]
    of_bench: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = Root::reach("the benchmark")?;
    setup::run()?;
    let bench = ["--package=allowlist-tests", "--bin=allowlist-bench"];
    let built = if args.changes {
        cargo::build(&["--release", "--package=allowlist-user", "--bin=allowlist"])?;
        cargo::build(&[&["--release"], &bench[..]].concat())?
    } else {
        cargo::build(&bench)?
    };
    let bench = built.executable("allowlist-bench")?;
    let changes = args.changes.then(|| OsString::from("--changes"));
    match root.exec(
        &[],
        bench,
        changes.into_iter().chain(args.of_bench.iter().cloned()),
    )? {}
}
