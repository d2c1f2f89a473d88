//! `cargo xtask test`: runs all tests, the kernel tests as root, and reports the skipped ones.
//!
//! A test that cannot run records a skip in the file `$ALLOWLIST_SKIPS`, which `skip` parses. Knows no test by name.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::privilege::{Root, Variable};
use crate::skip::{self, Skip};
use crate::{cargo, setup};

/// The environment variable for the number of tests that libtest runs in parallel.
const THREADS: &str = "RUST_TEST_THREADS";
/// The minimum number of parallel kernel tests: they spend most time waiting for processes and timers, so four use two
/// cores.
const MIN_THREADS: usize = 4;

/// Run all tests; the kernel tests run as root
///
/// Prints each skipped test with its reason at the end.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask test
  cargo xtask test compile              only tests with `compile` in their name
  cargo xtask test --long               also tests that take minutes
  cargo xtask test veth -- --nocapture")]
pub(crate) struct Args {
    /// Also run the tests that take minutes
    #[arg(long)]
    long: bool,

    #[command(flatten)]
    skips: skip::Policy,

    /// Run only tests whose names contain FILTER
    filter: Option<String>,

    /// Arguments for the test programs
    #[arg(last = true, value_name = "ARGS")]
    libtest: Vec<String>,
}

impl Args {
    fn cargo_test(&self, config: Option<String>, packages: &[&str]) -> Command {
        let mut command = cargo::command("cargo");
        command.args(["test", "--no-fail-fast"]);
        if let Some(config) = config {
            command.args(["--config", &config]);
        }
        for package in packages {
            command.args(["--package", package]);
        }
        command.args(&self.filter).arg("--").args(&self.libtest);
        command
    }

    /// Returns the tests' environment: the program to start, the file for skips, and whether to run long tests.
    fn environment(&self, allowlist: &str, skips: &Path) -> Vec<Variable> {
        let mut environment = vec![
            ("ALLOWLIST_BIN", allowlist.to_owned()),
            ("ALLOWLIST_SKIPS", skips.display().to_string()),
        ];
        if self.long {
            environment.push(("ALLOWLIST_LONG", "1".to_owned()));
        }
        environment
    }
}

/// The packages whose tests need no root.
const HOST_PACKAGES: [&str; 7] = [
    "allowlist-common",
    "allowlist-dataplane",
    "allowlist-files",
    "allowlist-lists",
    "allowlist-policy",
    "allowlist-user",
    "xtask",
];

/// The packages whose tests run as root: allowlist-tests, and those that depend on it, so that one run builds it once.
const KERNEL_PACKAGES: [&str; 3] = ["allowlist-tests", "allowlist-bench", "allowlist-fuzz"];

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let start = Instant::now();
    let root = Root::reach("running the kernel tests")?;
    let compiler = setup::run()?;
    let built = cargo::build(&["--package=allowlist-user", "--bin=allowlist"])?;
    let skips = cargo::target_dir()?.join("skips.txt");
    fs::write(&skips, "").with_context(|| format!("cannot write {}", skips.display()))?;
    let environment = args.environment(built.executable("allowlist")?, &skips);

    let mut host = args.cargo_test(None, &HOST_PACKAGES);
    let mut kernel_environment = environment.clone();
    if std::env::var_os(THREADS).is_none() {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        kernel_environment.push((THREADS, cores.max(MIN_THREADS).to_string()));
    }
    let wrapper = root.wrapper(&kernel_environment);
    let runner = if wrapper.is_empty() {
        None
    } else {
        // A TOML array, because cargo splits the equivalent environment variable at spaces.
        Some(format!("target.{}.runner={wrapper:?}", compiler.host()?))
    };
    let mut kernel = args.cargo_test(runner, &KERNEL_PACKAGES);

    let mut tally = Tally::default();
    let host = cargo::each_line(host.envs(environment), |line| tally.read(line))?;
    let kernel = cargo::each_line(kernel.envs(kernel_environment), |line| tally.read(line))?;

    let skips =
        fs::read_to_string(&skips).with_context(|| format!("cannot read {}", skips.display()))?;
    let skips = Skip::parse(&skips, skip::EXPECTED);
    for skip in &skips {
        eprintln!("{skip}");
    }
    let unexpected = skip::unexpected(&skips);
    let skips_fail = args.skips.fail(&skips);

    let tests = |count: usize| match count {
        1 => "1 test".to_owned(),
        count => format!("{count} tests"),
    };
    let word = |failed| if failed { "FAILED" } else { "passed" };
    eprintln!(
        "xtask test: the userspace tests {}, the kernel tests {}; {} skipped, {unexpected} of them unexpectedly{}; the run took {} s",
        word(!host.success()),
        word(!kernel.success()),
        tests(skips.len()),
        if skips_fail {
            ", so the run FAILED"
        } else {
            ""
        },
        start.elapsed().as_secs(),
    );
    println!(
        "xtask test: {} passed, {} failed, {} skipped",
        tests(tally.passed.saturating_sub(skips.len())),
        tally.failed,
        skips.len()
    );
    Ok(
        match [host, kernel].iter().find(|status| !status.success()) {
            Some(failed) => exit_code(*failed),
            None if skips_fail => ExitCode::FAILURE,
            None => ExitCode::SUCCESS,
        },
    )
}

/// The numbers of passed and failed tests of all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Tally {
    /// Adds the counts of one line of output, such as `test result: ok. 2 passed; 0 failed; …`; ignores other lines.
    pub(crate) fn read(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let mut words = result.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let count = word.parse().unwrap_or(0);
            match words.peek() {
                Some(&"passed;") => self.passed += count,
                Some(&"failed;") => self.failed += count,
                _ => {}
            }
        }
    }
}

/// Returns cargo's exit code, or 1 if a signal terminated it.
fn exit_code(status: ExitStatus) -> ExitCode {
    status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.1s",
            "test result: FAILED. 12 passed; 1 failed; 4 ignored; 0 measured; 0 filtered out",
            "1 passed; 1 failed;",
        ] {
            tally.read(line);
        }
        assert_eq!(
            tally,
            Tally {
                passed: 15,
                failed: 1
            }
        );
    }
}
