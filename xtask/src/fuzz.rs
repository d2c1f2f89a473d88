//! `cargo xtask fuzz`: looks for inputs that break the logic, guided by what each input makes it run.
//!
//! The fuzzer is LLVM's (libFuzzer), which a crate brings as source; the pinned compiler can count what
//! code runs, so neither another compiler nor cargo-fuzz is needed. What the inputs mean is the crate
//! allowlist-fuzz's to know.
//!
//! A target's inputs are in `target/fuzz-data/TARGET`: `corpus` grows from run to run, `seeds` are written by
//! each, and `found` holds what failed, with which the next run begins.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{cargo, setup};

/// Look for inputs that break the packet logic, the configuration and the lists
///
/// Needs no root, and a C++ compiler once. Ends at the first input that fails, and names it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask fuzz                                a minute for each target
  cargo xtask fuzz judge --seconds 3600
  cargo xtask fuzz judge --input FILE             run one input again
  cargo xtask fuzz judge -- -jobs=4 -workers=2    libFuzzer's own options")]
pub(crate) struct Args {
    /// What to fuzz [default: each in turn]
    target: Option<Target>,

    /// How long, for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,

    /// Run this one input, and nothing else
    #[arg(
        long,
        value_name = "FILE",
        requires = "target",
        conflicts_with = "seconds"
    )]
    input: Option<PathBuf>,

    /// What to give to libFuzzer
    #[arg(last = true, value_name = "ARGS")]
    of_fuzzer: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Target {
    /// Frames: the logic that ships against the model
    Judge,
    /// Configurations
    Config,
    /// What vendors' addresses answer
    Feed,
    /// Pages: the list against the visible text
    Pages,
    /// How their answers are sent: whole, cut, compressed
    Transfer,
}

impl Target {
    const fn name(self) -> &'static str {
        match self {
            Self::Judge => "judge",
            Self::Config => "config",
            Self::Feed => "feed",
            Self::Pages => "pages",
            Self::Transfer => "transfer",
        }
    }

    fn program(self) -> String {
        format!("allowlist-fuzz-{}", self.name())
    }
}

/// What tells the fuzzer which code an input runs, and what it is compared with there.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if !cargo::is_on_path("c++") {
        bail!("there is no C++ compiler (`c++`), which libFuzzer needs: run `apt-get install g++`");
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
            Some(input) => repeat(program, input, &args.of_fuzzer)?,
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
        // Named, so that build scripts and macros are built without the flags: they link no fuzzer.
        "--target",
        host,
    ];
    args.extend(programs.iter().map(String::as_str));
    // Over any flags of the caller's, which would else replace these.
    cargo::build_with(
        &args,
        &[("CARGO_ENCODED_RUSTFLAGS", &COVERAGE.join("\x1f"))],
    )
}

/// Runs one input.
///
/// # Returns
/// Whether it passed.
fn repeat(program: &str, input: &Path, of_fuzzer: &[OsString]) -> Result<bool> {
    // A folder would be taken for a corpus.
    if !input.is_file() {
        bail!("{} is no file; give one input", input.display());
    }
    // Where the caller stands, as the path is meant from there.
    let mut command = Command::new(program);
    Ok(cargo::status(command.args(of_fuzzer).arg(input))?.success())
}

/// Looks for inputs that fail.
///
/// # Returns
/// Whether there was none.
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
        // Where `-jobs` leaves its logs.
        .current_dir(&data)
        .env("ALLOWLIST_FUZZ_SEEDS", &seeds)
        .arg(format!("-max_total_time={}", args.seconds))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args([
            "-print_final_stats=1",
            "-timeout=10",
            "-use_value_profile=1",
        ])
        .args(&args.of_fuzzer)
        // New inputs go to the first; the others are read.
        .args([&corpus, &seeds, &found]);
    let status = cargo::status(&mut command)?;
    if status.success() {
        eprintln!("xtask fuzz: {name}: nothing found");
        return Ok(true);
    }
    let input = newest(&found, start)?.with_context(|| {
        format!("the fuzzer failed ({status}) and left no input; its last words are above")
    })?;
    eprintln!(
        "xtask fuzz: {name}: this input fails, and why is above: {0}\nrun it again: cargo xtask fuzz {name} --input {0}",
        input.display()
    );
    Ok(false)
}

/// The file in `folder` that was written last, if that was after `start`.
fn newest(folder: &Path, start: SystemTime) -> Result<Option<PathBuf>> {
    let mut newest = None;
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let written = entry.metadata()?.modified()?;
        if written >= start {
            newest = newest.max(Some((written, entry.path())));
        }
    }
    Ok(newest.map(|(_, path)| path))
}
