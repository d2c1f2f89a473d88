//! Root, for the programs that need it. What builds stays with the caller's own rights.

use std::convert::Infallible;
use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use crate::cargo;

/// A variable for the environment of a program.
pub(crate) type Variable = (&'static str, String);

/// A way for programs to run as root.
pub(crate) struct Root {
    /// Whether the caller is not root already.
    sudo: bool,
}

impl Root {
    /// Says why it is needed where it is not at hand. Ask before the building, which takes long.
    pub(crate) fn reach(what: &str) -> Result<Self> {
        if geteuid().is_root() {
            return Ok(Self { sudo: false });
        }
        let why = format!(
            "{what} loads eBPF programs and makes network namespaces, which takes root (CAP_BPF, \
             CAP_NET_ADMIN, CAP_SYS_ADMIN)"
        );
        if !cargo::is_on_path("sudo") {
            bail!("{why}, and there is no sudo: run this command as root");
        }
        eprintln!("xtask: {why}: that alone will use sudo");
        Ok(Self { sudo: true })
    }

    /// The words to put before a program for it to be root and see these variables; none when the
    /// caller is root, whose programs get them as any program does.
    ///
    /// sudo clears the environment, and may forbid `NAME=VALUE` on its own command line: so `env`
    /// sets the variables on the far side, and what a person sets to debug.
    pub(crate) fn wrapper(&self, environment: &[Variable]) -> Vec<String> {
        if !self.sudo {
            return Vec::new();
        }
        let debugging = ["RUST_BACKTRACE", "RUST_LOG"]
            .into_iter()
            .filter_map(|name| Some((name, env::var(name).ok()?)));
        let variables = environment.iter().cloned().chain(debugging);
        let assignments = variables.map(|(name, value)| format!("{name}={value}"));
        ["sudo", "env"]
            .map(str::to_owned)
            .into_iter()
            .chain(assignments)
            .collect()
    }

    /// Becomes `program` as root; returns only to say why it could not.
    pub(crate) fn exec(
        &self,
        environment: &[Variable],
        program: &str,
        args: impl Iterator<Item = OsString>,
    ) -> Result<Infallible> {
        let mut words = self.wrapper(environment);
        words.push(program.to_owned());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(args)
            .envs(environment.iter().cloned());
        Err(command.exec()).with_context(|| format!("cannot start {}", words[0]))
    }
}
