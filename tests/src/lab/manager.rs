//! systemd as the first process of its own namespaces, with the program under test installed.
//!
//! Invariant: systemd has only the units of the test, and the machine's file systems are read-only for it. Does not depend
//! on the units. Needs root and cgroup v2.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use super::{Ended, Program, Testbed, allowlist, eventually};

/// The time to wait for systemd to start or to end, long enough for a machine that is busy building.
const PATIENCE: Duration = Duration::from_mins(3);
const SCRIPT: &str = include_str!("manager.sh");
const PROGRAMS: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];
/// The targets that units refer to.
const TARGETS: [&str; 6] = [
    "basic",
    "default",
    "local-fs",
    "multi-user",
    "network-pre",
    "shutdown",
];

/// A running systemd.
pub struct Manager {
    process: Program,
    /// The process id of systemd in the namespace of the tests.
    init: u32,
}

impl Manager {
    /// Returns the path of systemd, if the machine has it.
    pub fn program() -> Option<&'static Path> {
        PROGRAMS.map(Path::new).into_iter().find(|p| p.exists())
    }

    /// Starts systemd on the host of a testbed. The program under test is `/usr/local/sbin/allowlist` there; `units` are the
    /// names and contents of unit files.
    pub fn start(testbed: &Testbed, units: &[(&str, &str)]) -> anyhow::Result<Self> {
        let program = Self::program().context("there is no systemd on this machine")?;
        let folder = testbed.scratch.file("manager");
        fs::create_dir(&folder)?;
        fs::create_dir(folder.join("units"))?;
        fs::copy(allowlist()?, folder.join("allowlist"))?;
        let targets = TARGETS.map(|name| {
            let text = "[Unit]\nDefaultDependencies=no\nDescription=A target\n";
            (format!("{name}.target"), text)
        });
        let targets = targets.iter().map(|(name, text)| (name.as_str(), *text));
        for (name, text) in units.iter().copied().chain(targets) {
            let file = folder.join("units").join(name);
            fs::create_dir_all(file.parent().expect("the path has a parent"))?;
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let mut command = testbed.host.command("unshare")?;
        command
            .args(["--mount", "sh", "-euc", SCRIPT, "manager"])
            .arg(&folder)
            .env("SELF", SCRIPT)
            .env("PROGRAM", program);
        let process = Program::start(command)?;
        let line = process.wait_for_line("manager ", PATIENCE)?;
        let parent = line.trim_start_matches("manager ");
        let mut init = None;
        let children = PathBuf::from(format!("/proc/{parent}/task/{parent}/children"));
        eventually(|| {
            let children = fs::read_to_string(&children).context("systemd ended at its start")?;
            init = children.split_whitespace().next().map(str::to_owned);
            Ok(init.is_some())
        })?;
        let init = init.context("systemd has no child process")?;
        let manager = Self {
            process,
            init: init.parse()?,
        };
        eventually(|| {
            let ended = manager.systemctl(&["is-system-running"])?;
            Ok(ended.stdout.trim() == "running")
        })
        .with_context(|| {
            format!(
                "systemd does not run; it printed:\n{}",
                manager.process.output()
            )
        })?;
        Ok(manager)
    }

    /// Runs a program inside the namespaces to its end.
    pub fn run<A: AsRef<OsStr>>(&self, program: &str, arguments: &[A]) -> anyhow::Result<Ended> {
        let mut command = Command::new("nsenter");
        command
            .args(["--all", "--wd=/", "--target", &self.init.to_string()])
            .arg(program)
            .args(arguments);
        Ended::of(command)
    }

    /// Runs `systemctl`, which may fail.
    pub fn systemctl(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        self.run("systemctl", arguments)
    }

    /// Runs `systemctl`, which must succeed, and returns its output.
    pub fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let ended = self.systemctl(arguments)?;
        ensure!(
            ended.code == Some(0),
            "systemctl {arguments:?} failed: {ended:?}"
        );
        Ok(ended.stdout.trim_end().to_owned())
    }

    /// Returns the path of a file inside the namespaces, as seen from outside.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // The script removes the control group too.
        let _ = self.process.stop(Signal::SIGTERM, PATIENCE);
    }
}
