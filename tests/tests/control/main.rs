//! Requests to a daemon, by the command line and by HTTP: changes, refusals, rollbacks and access. Packets show whether
//! a change is active.

mod added;
mod api;
mod capacity;
mod clocks;
mod confirm;
mod lockout;
mod log;
mod paths;
mod privileges;
mod reload;
mod rollback;
mod sequences;
mod sweep;
mod tables;

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use allowlist_tests::lab::stream::{FRIENDS, SOON, STRANGERS, gets_through};
use allowlist_tests::lab::{Ended, Program, Snapshot, Testbed, eventually};
use allowlist_tests::require_root;
use anyhow::{Context as _, ensure};
use expect_test::{expect, expect_file};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// `web` allows `friends`; `ssh` allows the testbed's peer, from which the user is logged in.
const CONFIG: &str = r#"
interfaces = ["eth0"]
[services.web]
ports = ["udp/443"]
allow = ["friends"]
[services.ssh]
ports = ["tcp/22"]
allow = ["peer"]
[sources.friends]
prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
[sources.peer]
prefixes = ["198.51.100.2"]
"#;

/// A testbed with a daemon whose configuration a test can change.
struct Host {
    testbed: Testbed,
    /// The configuration's path.
    config: String,
    daemon: Option<Program>,
}

impl Host {
    /// Starts a daemon with `CONFIG`.
    fn new() -> anyhow::Result<Self> {
        Self::by(CONFIG)
    }

    fn by(config: &str) -> anyhow::Result<Self> {
        let mut host = Self::down(config)?;
        host.start(&[])?;
        Ok(host)
    }

    /// Returns a host without a daemon.
    fn down(config: &str) -> anyhow::Result<Self> {
        let testbed = Testbed::new()?;
        let config = testbed.scratch.write("allowlist.toml", config)?;
        Ok(Self {
            config: config.display().to_string(),
            testbed,
            daemon: None,
        })
    }

    fn start(&mut self, options: &[&str]) -> anyhow::Result<()> {
        let daemon = self
            .testbed
            .filter(&[&["--config", &self.config], options].concat())?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn daemon(&mut self) -> &mut Program {
        self.daemon.as_mut().expect("the daemon runs")
    }

    /// Kills the daemon with SIGKILL.
    fn kill(&mut self) -> anyhow::Result<()> {
        self.daemon().stop(Signal::SIGKILL, SOON)?;
        self.daemon = None;
        Ok(())
    }

    fn write(&self, config: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(&self.config, config)?)
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        self.testbed.run(arguments)
    }

    /// Runs a command that must succeed, and returns its standard output.
    #[track_caller]
    fn done(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments).expect("the command runs");
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        ended.stdout
    }

    /// Runs a command that must fail with this error code, and with these names in its message.
    #[track_caller]
    fn refused(&self, arguments: &[&str], code: &str, names: &[&str]) -> Ended {
        let ended = self.run(arguments).expect("the command runs");
        require_error(&ended, code, names);
        ended
    }

    /// Runs a command with this standard input.
    fn run_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<Ended> {
        let mut command = self.testbed.command(arguments)?;
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("standard input")?;
        // The program may close its input early.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output()?;
        Ok(Ended {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn passes(&self, source: &str) -> bool {
        gets_through(&self.testbed, source).expect("a packet is sent")
    }

    /// Returns all state that a change could affect: the list, the interfaces, the added prefixes, and the mode.
    fn active_state(&self) -> anyhow::Result<Value> {
        let status = self.testbed.json("status")?;
        let mut list = self.testbed.json("list")?;
        list["generation"] = Value::Null;
        let added = self.run(&["list", "--added", "--json"])?;
        let added: Value = serde_json::from_str(&added.stdout)?;
        Ok(json!([
            list,
            status["interfaces"],
            status["mode"],
            status["default"],
            added
        ]))
    }
}

/// Requires that a command failed with this error code, and with these names in its message.
#[track_caller]
fn require_error(ended: &Ended, code: &str, names: &[&str]) {
    let exit = if code == "lockout" { 4 } else { 1 };
    assert_eq!(ended.code, Some(exit), "{ended:?}");
    assert!(
        ended.stderr.contains(&format!("error[{code}]: ")),
        "{code}: {ended:?}"
    );
    for name in names {
        assert!(ended.stderr.contains(name), "{name}: {ended:?}");
    }
}

/// Returns the actions in the log, oldest first; refused ones are marked.
fn log(host: &Host) -> anyhow::Result<Vec<String>> {
    let document: Value = serde_json::from_str(&host.done(&["log", "--json"]))?;
    let entries = document["entries"].as_array().context("an array")?;
    Ok(entries
        .iter()
        .map(|entry| {
            let refused = entry["refused"].as_str().map_or("", |_| " refused");
            format!("{}{refused}", entry["action"].as_str().unwrap_or_default())
        })
        .collect())
}

/// Returns the added prefixes.
fn added(host: &Host) -> anyhow::Result<Vec<String>> {
    let ended = host.run(&["list", "--added", "--json"])?;
    let document: Value =
        serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))?;
    let rows = document["added"].as_array().context("an array")?;
    let prefix = |row: &Value| row["prefix"].as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().map(prefix).collect())
}
