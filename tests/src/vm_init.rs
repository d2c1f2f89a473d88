//! `allowlist-vm-init`: the first process of the virtual machine that `cargo xtask vm` boots. Mounts the file systems that
//! the tests need, runs the test program, reports its exit status on the console, and powers off.
//!
//! Reports to `xtask/src/vm/console.rs` in lines that begin with a mark. Does not depend on the tests. Refuses to run as
//! any process but the first, because it powers the machine off.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::tcdrain;

/// The start of a line for xtask, which has the same constant.
const MARK: &str = "allowlist-vm: ";
/// The files that xtask has added to the image: the test program, and its arguments, one per line.
const TESTS: &str = "/tests";
const ARGUMENTS: &str = "/arguments";
/// The file with the skips of the test program (`ALLOWLIST_SKIPS`).
const SKIPS: &str = "/tmp/skips.txt";
/// The variable by which a test knows that it may change the whole machine.
const MACHINE: &str = "ALLOWLIST_VM";
/// The type and mount point of each file system. No other program in this machine mounts any.
const MOUNTS: [(&str, &str); 6] = [
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("tmpfs", "/tmp"),
];

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!(
            "error: this program runs only as the first process of a virtual machine: run `cargo xtask vm`"
        );
        return ExitCode::FAILURE;
    }
    match run() {
        Ok(status) => report("tests", &status),
        Err(error) => report("error", &format!("{error:#}")),
    }
    // Power-off discards the output that the serial line has not sent yet.
    let _ = tcdrain(io::stdout());
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    // The end of the first process makes the kernel panic, which ends the machine too.
    panic!("cannot power off: {error}");
}

/// Runs the test program, and returns its exit status as text.
fn run() -> anyhow::Result<String> {
    for (kind, target) in MOUNTS {
        mount_new(kind, target)?;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("cannot read the kernel release in /proc/sys/kernel/osrelease")?;
    report("kernel", release.trim_end());
    ensure!(
        fs::exists("/sys/kernel/btf/vmlinux")?,
        "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
    );

    let arguments = fs::read_to_string(ARGUMENTS)
        .with_context(|| format!("cannot read the arguments of the tests in {ARGUMENTS}"))?;
    let status = Command::new(TESTS)
        .args(arguments.lines())
        .env("ALLOWLIST_SKIPS", SKIPS)
        .env(MACHINE, "1")
        .status()
        .with_context(|| format!("cannot start the test program {TESTS}"))?;
    match fs::read_to_string(SKIPS) {
        Ok(skips) => skips.lines().for_each(|skip| report("skip", skip)),
        // No test was skipped.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read the skipped tests in {SKIPS}"));
        }
    }
    Ok(status.to_string())
}

fn mount_new(kind: &str, target: &str) -> anyhow::Result<()> {
    let none = None::<&str>;
    fs::create_dir_all(target)
        .map_err(anyhow::Error::from)
        .and_then(|()| {
            Ok(mount(
                Some(kind),
                target,
                Some(kind),
                MsFlags::empty(),
                none,
            )?)
        })
        .with_context(|| format!("cannot mount a {kind} file system on {target}"))
}

/// Writes a line for xtask. Begins with a newline, because a test may have left a line without its end.
fn report(word: &str, value: &str) {
    let written = io::stdout().write_all(format!("\n{MARK}{word} {value}\n").as_bytes());
    written.expect("cannot write to the console");
}
