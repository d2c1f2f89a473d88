//! `allowlist-vm-init`: the first process of the machine that `cargo xtask vm` boots. Mounts what the
//! tests look for, runs the one test program, tells the console how it ended, and powers off.
//!
//! Speaks to `xtask/src/vm/console.rs` in lines that start with a mark. Knows no test. Refuses to be
//! anything but the first process: it would power off the machine of whoever tries it by hand.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::tcdrain;

/// Starts a line that is for xtask, which knows the same words.
const MARK: &str = "allowlist-vm: ";
/// What xtask put beside this program: the test program, and its arguments, one a line.
const TESTS: &str = "/tests";
const ARGUMENTS: &str = "/arguments";
/// Where the test program notes what it skipped.
const SKIPS: &str = "/tmp/skips.txt";
/// Kind and place of each file system. Nothing else in this machine mounts any.
const MOUNTS: [(&str, &str); 5] = [
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("bpf", "/sys/fs/bpf"),
    ("tmpfs", "/tmp"),
];

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("error: this is the first process of a test machine: run `cargo xtask vm`");
        return ExitCode::FAILURE;
    }
    match run() {
        Ok(ended) => tell("tests", &ended),
        Err(error) => tell("error", &format!("{error:#}")),
    }
    // A machine without power loses what the serial line has not sent yet.
    let _ = tcdrain(io::stdout());
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    // Ends the first process, so the kernel panics, which ends this machine as well.
    panic!("cannot power off: {error}");
}

/// How the test program ended.
fn run() -> anyhow::Result<String> {
    for (kind, target) in MOUNTS {
        mount_new(kind, target)?;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("no kernel release")?;
    tell("kernel", release.trim_end());
    ensure!(
        fs::exists("/sys/kernel/btf/vmlinux")?,
        "this kernel describes no types of its own (CONFIG_DEBUG_INFO_BTF)"
    );

    let arguments = fs::read_to_string(ARGUMENTS).context("no arguments for the tests")?;
    let ended = Command::new(TESTS)
        .args(arguments.lines())
        .env("ALLOWLIST_SKIPS", SKIPS)
        .status()
        .context("cannot start the tests")?;
    match fs::read_to_string(SKIPS) {
        Ok(skips) => skips.lines().for_each(|skip| tell("skip", skip)),
        // Nothing was skipped.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("cannot read what was skipped"),
    }
    Ok(ended.to_string())
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

/// One line for xtask, also when a test left a line without its end.
fn tell(word: &str, value: &str) {
    let told = io::stdout().write_all(format!("\n{MARK}{word} {value}\n").as_bytes());
    told.expect("the console takes it");
}
