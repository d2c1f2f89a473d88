//! `cargo xtask vm`: runs the packet tables on an older kernel in an emulated machine.
//!
//! `kernel` downloads the kernel, `initramfs` packs the tests, `machine` boots both, and `console` parses the serial
//! output; the machine's init process is `tests/src/vm_init.rs`. Needs neither root nor hardware virtualisation. A
//! missing prerequisite is reported as a skip.

mod console;
mod initramfs;
mod kernel;
mod machine;

use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::skip::{self, Skip};
use crate::{cargo, setup};

use console::{Console, End};
use initramfs::Archive;
use machine::{Machine, QEMU};

/// Tests, each as a part of its name, that do not run in the emulated machine, with the reason.
const EXCLUDED: [(&str, &str); 7] = [
    ("a_million_prefixes_fit", "needs gigabytes of memory"),
    (
        "the_kernel_decides_each_row_in_two_buffers",
        "needs a kernel that splits test frames at a given length (6.18)",
    ),
    ("oracle::", "needs `nft`, which the machine does not have"),
    ("under_load::", "needs processors that are not emulated"),
    ("by_the_logic_alone", "needs no kernel"),
    ("with_a_long_history", "needs no kernel"),
    ("each_planted_fault_is_found", "needs no kernel"),
];

/// The time limit for the machine, which also ends one that hangs.
const LIMIT: Duration = Duration::from_mins(15);

/// Run the packet tables on Linux 6.1 in an emulated machine
///
/// Verifies that the kernel program loads on a kernel older than this machine's, with the same verdicts. Needs qemu,
/// and for the first run apt with Debian 12's packages.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask vm
  cargo xtask vm the_kernel_decides    only tests with `the_kernel_decides` in their name")]
pub(crate) struct Args {
    #[command(flatten)]
    skips: skip::Policy,

    /// Run only tests whose names contain FILTER
    filter: Option<String>,

    /// Arguments for the test program
    #[arg(last = true, value_name = "ARGS")]
    libtest: Vec<String>,
}

impl Args {
    /// Returns the test program's arguments, one per line.
    fn test_arguments(&self) -> String {
        let excluded = EXCLUDED.iter().flat_map(|(test, _)| ["--skip", test]);
        let given = self.filter.iter().chain(&self.libtest);
        let arguments: Vec<_> = excluded.chain(given.map(String::as_str)).collect();
        arguments.join("\n")
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match boot(args) {
        Err(error) => match error.downcast::<Missing>() {
            Ok(missing) => {
                let report = format!("vm: {missing}");
                let skips = Skip::parse(&report, skip::EXPECTED);
                for skip in &skips {
                    println!("{skip}");
                }
                Ok(exit_code(!args.skips.fail(&skips)))
            }
            Err(error) => Err(error),
        },
        ran => ran,
    }
}

/// A missing prerequisite, with the command that installs it.
#[derive(Debug)]
struct Missing(String);

impl Display for Missing {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

fn boot(args: &Args) -> Result<ExitCode> {
    if !cfg!(target_arch = "x86_64") {
        bail!(Missing(
            "`cargo xtask vm` needs an x86_64 machine, because the kernel that it boots is built for x86_64".into()
        ));
    }
    if !cargo::is_on_path(QEMU) {
        bail!(Missing(format!(
            "there is no `{QEMU}`: run `apt-get install qemu-system-x86`"
        )));
    }
    let folder = cargo::target_dir()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // A concurrent `xtask vm` waits here, because both write to the same files.
    let lock = File::create(folder.join(".lock"))
        .with_context(|| format!("cannot create a lock file in {}", folder.display()))?;
    lock.lock().context("cannot lock target/vm")?;

    let kernel = kernel::ensure(&folder)?;
    setup::run()?;
    let initramfs = pack(args, &folder)?;
    for (test, why) in EXCLUDED {
        eprintln!("xtask vm: excluded {test}: {why}");
    }

    let start = Instant::now();
    let mut console = Console::default();
    let in_time = Machine::boot(&kernel, &initramfs, LIMIT)?.run(|chunk| {
        console.feed(chunk, |line| {
            // The tests continue after a reader such as `head` has closed the pipe.
            let _ = writeln!(io::stdout(), "{line}");
        });
    })?;
    eprintln!(
        "xtask vm: the virtual machine ran for {} s",
        start.elapsed().as_secs()
    );
    report(args, &console, in_time)
}

/// Builds the tests, packs them into an initramfs, and returns the path of the initramfs.
fn pack(args: &Args, folder: &Path) -> Result<PathBuf> {
    let built = cargo::build(&[
        "--package=allowlist-tests",
        "--test=packets",
        "--bin=allowlist-vm-init",
    ])?;
    let mut archive = Archive::default();
    archive.program("/init", built.executable("allowlist-vm-init")?.as_ref())?;
    archive.program("/tests", built.test("packets")?.as_ref())?;
    archive.file("/arguments".as_ref(), args.test_arguments().as_bytes())?;
    let path = folder.join("initramfs.cpio");
    fs::write(&path, archive.finish()?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Prints the result of the run, and returns the exit code.
fn report(args: &Args, console: &Console, in_time: bool) -> Result<ExitCode> {
    let Some(kernel) = &console.kernel else {
        let what = if in_time {
            "ended before its init process started"
        } else {
            "did not boot within the time limit"
        };
        bail!(
            "the virtual machine {what}; its last output:{}",
            console.last()
        );
    };
    let skips = Skip::parse(&console.skips, skip::EXPECTED);
    for skip in &skips {
        eprintln!("{skip}");
    }
    let passed = match &console.end {
        Some(End::Tests(status)) => status == "exit status: 0",
        Some(End::Error(error)) => {
            bail!("the virtual machine with kernel {kernel} cannot run the tests: {error}")
        }
        None if in_time => bail!(
            "the virtual machine with kernel {kernel} ended before the tests did; its last output:{}",
            console.last()
        ),
        None => bail!(
            "the virtual machine with kernel {kernel} did not end within {} s, and was killed; its last output:{}",
            LIMIT.as_secs(),
            console.last()
        ),
    };
    println!(
        "vm: kernel {kernel}: {} passed, {} failed, {} skipped",
        console.tally.passed.saturating_sub(skips.len()),
        console.tally.failed,
        skips.len()
    );
    Ok(exit_code(passed && !args.skips.fail(&skips)))
}

fn exit_code(success: bool) -> ExitCode {
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
