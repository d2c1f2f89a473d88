//! systemd, as the first process of namespaces of its own, with the program under test installed in it.
//!
//! Invariant: it has the units that it is given and no other, and can write to nothing of the machine's own.
//! Knows nothing of what the units do. Needs root, and a machine whose kernel has control groups of version 2.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use super::{Ended, Program, Testbed, allowlist, eventually};

/// Long enough for a machine that is busy building.
const PATIENCE: Duration = Duration::from_mins(3);
const SCRIPT: &str = include_str!("manager.sh");
const PROGRAMS: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];
/// What other units are ordered by.
const TARGETS: [&str; 6] = [
    "basic",
    "default",
    "local-fs",
    "multi-user",
    "network-pre",
    "shutdown",
];

/// See the module.
pub struct Manager {
    process: Program,
    /// Its first process, in our own numbers.
    init: u32,
}

impl Manager {
    /// Where the machine has it, if it has.
    pub fn program() -> Option<&'static Path> {
        PROGRAMS.map(Path::new).into_iter().find(|p| p.exists())
    }

    /// Starts it on the site's host. The program under test is `/usr/local/sbin/allowlist` there, `units` are
    /// files by name.
    pub fn start(site: &Testbed, units: &[(&str, &str)]) -> anyhow::Result<Self> {
        let program = Self::program().context("there is no systemd on this machine")?;
        let folder = site.scratch.file("manager");
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
            fs::create_dir_all(file.parent().expect("it is in the folder"))?;
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let mut command = site.host.command("unshare")?;
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
            let children = fs::read_to_string(&children).context("it ended at once")?;
            init = children.split_whitespace().next().map(str::to_owned);
            Ok(init.is_some())
        })?;
        let init = init.context("it has a child, or it would have failed")?;
        let manager = Self {
            process,
            init: init.parse()?,
        };
        eventually(|| {
            let ended = manager.systemctl(&["is-system-running"])?;
            Ok(ended.stdout.trim() == "running")
        })
        .with_context(|| manager.process.output())?;
        Ok(manager)
    }

    /// A program inside, run to its end.
    pub fn run<A: AsRef<OsStr>>(&self, program: &str, arguments: &[A]) -> anyhow::Result<Ended> {
        let mut command = Command::new("nsenter");
        command
            .args(["--all", "--wd=/", "--target", &self.init.to_string()])
            .arg(program)
            .args(arguments);
        Ended::of(command)
    }

    /// What it is asked, and what it says.
    pub fn systemctl(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        self.run("systemctl", arguments)
    }

    /// `systemctl`, which must succeed.
    pub fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let ended = self.systemctl(arguments)?;
        ensure!(ended.code == Some(0), "systemctl {arguments:?}: {ended:?}");
        Ok(ended.stdout.trim_end().to_owned())
    }

    /// A file as those inside see it.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // Which takes its control group away too.
        let _ = self.process.stop(Signal::SIGTERM, PATIENCE);
    }
}
