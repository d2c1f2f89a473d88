//! `cargo xtask bench`: what a packet costs in the kernel program, by kind of packet and by setting.

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
  cargo xtask bench -- --rounds 51")]
pub(crate) struct Args {
    /// What to give to the benchmark
    #[arg(last = true, value_name = "ARGS")]
    of_bench: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = Root::reach("the benchmark")?;
    setup::run()?;
    let built = cargo::build(&["--package=allowlist-tests", "--bin=allowlist-bench"])?;
    let bench = built.executable("allowlist-bench")?;
    match root.exec(&[], bench, args.of_bench.iter().cloned())? {}
}
