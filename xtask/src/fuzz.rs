//! `cargo xtask fuzz`: coverage-guided fuzzing with libFuzzer.
//!
//! The crate `libfuzzer-sys` compiles libFuzzer from source, and the pinned compiler instruments the code, so neither
//! a nightly compiler nor cargo-fuzz is needed. The crate `allowlist-fuzz` defines the targets; this file does not
//! know what their inputs mean.
//!
//! A target's inputs are in `target/fuzz-data/TARGET`: `corpus` grows from run to run, each run writes `seeds`, and
//! `found` holds failing inputs, which the next run executes first.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{cargo, setup};

/// Fuzz the packet logic, the reader of DNS messages, the configuration parser and the list parsers
///
/// Needs no root. The first build needs a C++ compiler. Stops at the first failing input and prints its path.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask fuzz                                a minute for each target
  cargo xtask fuzz judge --seconds 3600
  cargo xtask fuzz judge --input FILE             run one input again
  cargo xtask fuzz judge -- -jobs=4 -workers=2    libFuzzer's own options")]
pub(crate) struct Args {
    /// Target to fuzz [default: all, one after the other]
    target: Option<Target>,

    /// Seconds per target
    #[arg(long, default_value_t = 60)]
    seconds: u32,

    /// Run only this input
    #[arg(
        long,
        value_name = "FILE",
        requires = "target",
        conflicts_with = "seconds"
    )]
    input: Option<PathBuf>,

    /// Arguments for libFuzzer
    #[arg(last = true, value_name = "ARGS")]
    forwarded: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Target {
    /// Frames: parsing and verdicts compared with the model
    Judge,
    /// Configuration files
    Config,
    /// DNS messages: the reader compared with another one
    Dns,
    /// Response bodies of providers
    Feed,
    /// Web pages: the parsed list compared with the visible text
    Pages,
    /// HTTP transfers: complete, truncated, compressed
    Transfer,
}

impl Target {
    const fn name(self) -> &'static str {
        match self {
            Self::Judge => "judge",
            Self::Config => "config",
            Self::Dns => "dns",
            Self::Feed => "feed",
            Self::Pages => "pages",
            Self::Transfer => "transfer",
        }
    }

    fn program(self) -> String {
        format!("allowlist-fuzz-{}", self.name())
    }
}

/// Compiler flags for coverage counters and comparison tracing.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if !cargo::is_on_path("c++") {
        bail!("libFuzzer needs a C++ compiler, and there is no `c++`: run `apt-get install g++`");
    }
    let targets = args
        .target
        .as_ref()
        .map_or(Target::value_variants(), std::slice::from_ref);
    let compiler = setup::run()?;
    let built = build(targets, compiler.host()?)?;
    for target in targets {
        let program = built.executable(&target.program())?;
        let passed = match &args.input {
            Some(input) => run_input(program, input, &args.forwarded)?,
            None => fuzz(*target, program, args)?,
        };
        if !passed {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn build(targets: &[Target], host: &str) -> Result<cargo::Built> {
    let programs: Vec<String> = targets
        .iter()
        .map(|target| format!("--bin={}", target.program()))
        .collect();
    let mut args = vec![
        "--package=allowlist-fuzz",
        "--features=libfuzzer",
        "--profile=fuzz",
        // With an explicit target, cargo builds build scripts and proc macros without the flags.
        "--target",
        host,
    ];
    args.extend(programs.iter().map(String::as_str));
    // Takes precedence over RUSTFLAGS and over the flags in cargo's configuration.
    cargo::build_with(
        &args,
        &[("CARGO_ENCODED_RUSTFLAGS", &COVERAGE.join("\x1f"))],
    )
}

/// Runs one input, and returns whether it passed.
fn run_input(program: &str, input: &Path, forwarded: &[OsString]) -> Result<bool> {
    // libFuzzer treats a folder as a corpus.
    if !input.is_file() {
        bail!(
            "{} is not a file; --input takes one input file",
            input.display()
        );
    }
    // In the caller's folder, because the path may be relative.
    let mut command = Command::new(program);
    Ok(cargo::status(command.args(forwarded).arg(input))?.success())
}

/// Fuzzes one target, and returns whether no input failed.
fn fuzz(target: Target, program: &str, args: &Args) -> Result<bool> {
    let name = target.name();
    let data = cargo::target_dir()?.join("fuzz-data").join(name);
    let folders = ["corpus", "seeds", "found"].map(|folder| data.join(folder));
    for folder in &folders {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let [corpus, seeds, found] = folders;
    let start = SystemTime::now();
    eprintln!(
        "xtask fuzz: {name} for {} s, in {}",
        args.seconds,
        data.display()
    );
    let mut command = cargo::command(program);
    command
        // `-jobs` writes its logs to the current folder.
        .current_dir(&data)
        .env("ALLOWLIST_FUZZ_SEEDS", &seeds)
        .arg(format!("-max_total_time={}", args.seconds))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args([
            "-print_final_stats=1",
            "-timeout=10",
            "-use_value_profile=1",
        ])
        .args(&args.forwarded)
        // libFuzzer writes new inputs to the first folder and only reads the others.
        .args([&corpus, &seeds, &found]);
    let status = cargo::status(&mut command)?;
    if status.success() {
        eprintln!("xtask fuzz: {name}: no failing input found");
        return Ok(true);
    }
    let input = newest(&found, start)?.with_context(|| {
        format!("the fuzzer failed ({status}) without a failing input; see its output above")
    })?;
    eprintln!(
        "xtask fuzz: {name}: failing input: {0} (see the error above)\nto reproduce: cargo xtask fuzz {name} --input {0}",
        input.display()
    );
    Ok(false)
}

/// Returns the most recently written file in `folder`, or `None` if no file was written after `start`.
fn newest(folder: &Path, start: SystemTime) -> Result<Option<PathBuf>> {
    let mut newest = None;
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let written = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .with_context(|| format!("cannot read the time of {}", entry.path().display()))?;
        if written >= start {
            newest = newest.max(Some((written, entry.path())));
        }
    }
    Ok(newest.map(|(_, path)| path))
}
