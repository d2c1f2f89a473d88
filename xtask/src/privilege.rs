//! Runs programs as root. Builds run with the caller's own privileges.

use std::convert::Infallible;
use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use crate::cargo;

/// An environment variable for a program.
pub(crate) type Variable = (&'static str, String);

/// Runs programs as root, through sudo if necessary.
pub(crate) struct Root {
    /// Whether programs are started through sudo: the caller is not root.
    sudo: bool,
}

impl Root {
    /// Checks that root privileges are available for `what`, and announces the use of sudo.
    ///
    /// Called before the build, which takes minutes.
    ///
    /// # Errors
    /// Fails if the caller is not root and there is no sudo.
    pub(crate) fn reach(what: &str) -> Result<Self> {
        if geteuid().is_root() {
            return Ok(Self { sudo: false });
        }
        let why = format!(
            "{what} needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN) to load eBPF programs and \
             to create network namespaces"
        );
        if !cargo::is_on_path("sudo") {
            bail!("{why}, and there is no sudo: run this command as root");
        }
        eprintln!("xtask: {why}: only this step uses sudo");
        Ok(Self { sudo: true })
    }

    /// Returns the command prefix that runs a program as root with `environment`; empty if the caller is root.
    ///
    /// sudo clears the environment and may forbid `NAME=VALUE` arguments, so the prefix runs `env` under sudo. It also
    /// passes on the caller's `RUST_BACKTRACE` and `RUST_LOG`.
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

    /// Replaces this process by `program`, run as root; returns only on failure.
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
