//! `cargo xtask vm`: the packet tables on a second kernel, which boots in an emulated machine.
//!
//! `kernel` gets the kernel, `initramfs` packs the tests, `machine` boots both, and `console` reads
//! what comes out; the machine's first process is `tests/src/vm_init.rs`. It needs neither root nor
//! hardware virtualisation. What it needs of this machine and does not find makes it a skip.

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

/// What an emulated machine with this kernel and this much memory cannot do, and why.
const LEFT_OUT: [(&str, &str); 6] = [
    ("a_million_prefixes_fit", "takes gigabytes"),
    (
        "every_frame_ends_so_in_pieces",
        "takes a kernel that cuts test frames where it is told (6.18)",
    ),
    ("oracle::", "starts `nft`, of which that machine has none"),
    ("under_load::", "takes processors that are not emulated"),
    ("by_the_logic_alone", "needs no kernel"),
    ("each_planted_fault_is_found", "needs no kernel"),
];

/// For the machine as a whole, so that one that hangs is noticed.
const LIMIT: Duration = Duration::from_mins(15);

/// Run the packet tables on Linux 6.1, in an emulated machine
///
/// Shows that the kernel program loads and judges on an older kernel than this machine's. Needs
/// qemu, and apt with Debian 12's packages the first time.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask vm
  cargo xtask vm every_frame            only tests with `every_frame` in their name")]
pub(crate) struct Args {
    #[command(flatten)]
    skips: skip::Policy,

    /// Run only the tests whose names contain this
    filter: Option<String>,

    /// What to give to the test program
    #[arg(last = true, value_name = "ARGS")]
    libtest: Vec<String>,
}

impl Args {
    /// The test program's arguments, one a line.
    fn of_tests(&self) -> String {
        let left_out = LEFT_OUT.iter().flat_map(|(test, _)| ["--skip", test]);
        let given = self.filter.iter().chain(&self.libtest);
        let arguments: Vec<_> = left_out.chain(given.map(String::as_str)).collect();
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

/// Why no machine can be booted here, and what to do about it.
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
            "the kernel is one for x86_64, and the tests are built for this machine".into()
        ));
    }
    if !cargo::is_on_path(QEMU) {
        bail!(Missing(format!(
            "there is no `{QEMU}`: run `apt-get install qemu-system-x86`"
        )));
    }
    let folder = cargo::target_dir()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // A second `xtask vm` waits here: it would write to the same files.
    let lock = File::create(folder.join(".lock")).context("cannot make a lock file")?;
    lock.lock().context("cannot lock target/vm")?;

    let kernel = kernel::ensure(&folder)?;
    setup::run()?;
    let initramfs = pack(args, &folder)?;
    for (test, why) in LEFT_OUT {
        eprintln!("xtask vm: without {test}, which {why}");
    }

    let start = Instant::now();
    let mut console = Console::default();
    let in_time = Machine::boot(&kernel, &initramfs, LIMIT)?.run(|piece| {
        console.take(piece, |line| {
            // Whoever reads along may have seen enough; the tests go on.
            let _ = writeln!(io::stdout(), "{line}");
        });
    })?;
    eprintln!("xtask vm: {} s", start.elapsed().as_secs());
    judge(args, &console, in_time)
}

/// Everything that the machine has, as a file.
fn pack(args: &Args, folder: &Path) -> Result<PathBuf> {
    let built = cargo::build(&[
        "--package=allowlist-tests",
        "--test=packets",
        "--bin=allowlist-vm-init",
    ])?;
    let mut archive = Archive::default();
    archive.program("/init", built.executable("allowlist-vm-init")?.as_ref())?;
    archive.program("/tests", built.test("packets")?.as_ref())?;
    archive.file("/arguments".as_ref(), args.of_tests().as_bytes())?;
    let path = folder.join("initramfs.cpio");
    fs::write(&path, archive.finish()?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// What it all meant.
fn judge(args: &Args, console: &Console, in_time: bool) -> Result<ExitCode> {
    let Some(kernel) = &console.kernel else {
        let what = if in_time {
            "ended before its first process ran"
        } else {
            "did not come up"
        };
        bail!("the machine {what}; its last words:{}", console.last());
    };
    let skips = Skip::parse(&console.skips, skip::EXPECTED);
    for skip in &skips {
        eprintln!("{skip}");
    }
    let passed = match &console.end {
        Some(End::Tests(status)) => status == "exit status: 0",
        Some(End::Error(error)) => bail!("on kernel {kernel}: {error}"),
        None if in_time => bail!(
            "the machine with kernel {kernel} ended in the middle of the tests; its last words:{}",
            console.last()
        ),
        None => bail!(
            "the machine with kernel {kernel} did not end in {} s and was killed; its last words:{}",
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
