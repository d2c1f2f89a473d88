//! A host whose `eth0` is connected to a peer, with directories for one instance of the program under test.
//!
//! Depends on the program's options for paths, and on the line that `run` prints when it is ready.

use std::ffi::OsStr;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{iter, thread};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use serde_json::Value;

use super::{LinkKind, Namespace, Program, Scratch, VethEnd, allowlist, connect};

/// The time to wait for a condition or a process, long enough for a machine that is busy building.
const PATIENCE: Duration = Duration::from_mins(3);
const HOST: [&str; 2] = ["198.51.100.1/24", "2001:db8:1::1/64"];
const PEER: [&str; 2] = ["198.51.100.2/24", "2001:db8:1::2/64"];

/// A host and a peer. [`Scratch`] requires that the thread that creates it also uses it.
pub struct Testbed {
    /// The directories of the instance.
    pub scratch: Scratch,
    /// The namespace of the program: `198.51.100.1` and `2001:db8:1::1`.
    pub host: Namespace,
    /// The namespace of the peer: `198.51.100.2` and `2001:db8:1::2`.
    pub peer: Namespace,
}

/// A process that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None` if a signal ended the process.
    pub code: Option<i32>,
    /// The standard output.
    pub stdout: String,
    /// The standard error.
    pub stderr: String,
}

impl Testbed {
    /// Creates a testbed with a silent link. Starts no process.
    pub fn new() -> anyhow::Result<Self> {
        Self::on(LinkKind::Silent)
    }

    /// Creates a testbed with a link of this kind. Starts no process.
    pub fn on(kind: LinkKind) -> anyhow::Result<Self> {
        let testbed = Self {
            scratch: Scratch::new()?,
            host: Namespace::new()?,
            peer: Namespace::new()?,
        };
        testbed.connect(kind, "eth0", HOST, PEER)?;
        Ok(testbed)
    }

    /// Adds a silent link whose two ends have the same name.
    pub fn link(&self, name: &str, host: [&str; 2], peer: [&str; 2]) -> anyhow::Result<()> {
        self.connect(LinkKind::Silent, name, host, peer)
    }

    /// Adds a silent link `eth1` with addresses like those of `eth0`.
    pub fn second_link(&self) -> anyhow::Result<()> {
        self.link(
            "eth1",
            ["198.51.101.1/24", "2001:db8:2::1/64"],
            ["198.51.101.2/24", "2001:db8:2::2/64"],
        )
    }

    fn connect(
        &self,
        kind: LinkKind,
        name: &str,
        host: [&str; 2],
        peer: [&str; 2],
    ) -> anyhow::Result<()> {
        let networks = |texts: [&str; 2]| texts.map(str::parse::<IpNet>);
        let [host4, host6] = networks(host);
        let [peer4, peer6] = networks(peer);
        let end = |namespace, addresses| VethEnd {
            namespace,
            name,
            addresses,
        };
        connect(
            kind,
            end(&self.host, &[host4?, host6?]),
            end(&self.peer, &[peer4?, peer6?]),
        )
    }

    /// Returns a command that runs the program on the host. Paths that the arguments do not set are the testbed's.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> anyhow::Result<Command> {
        let mut command = self.host.command(allowlist()?)?;
        command.args(arguments);
        for option in self.scratch.arguments().chunks(2) {
            if !arguments.iter().any(|given| given.as_ref() == option[0]) {
                command.args(option);
            }
        }
        Ok(command)
    }

    /// Runs the program to its end.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> anyhow::Result<Ended> {
        Ended::of(self.command(arguments)?)
    }

    /// Starts `allowlist run`, and returns when it reports that it is ready.
    pub fn filter<A: AsRef<OsStr>>(&self, arguments: &[A]) -> anyhow::Result<Program> {
        let run = iter::once(OsStr::new("run"));
        let arguments: Vec<&OsStr> = run.chain(arguments.iter().map(AsRef::as_ref)).collect();
        let filter = Program::start(self.command(&arguments)?)?;
        filter.wait_for_line("ready", PATIENCE)?;
        Ok(filter)
    }

    /// Returns the output of a command with `--json`.
    pub fn json(&self, command: &str) -> anyhow::Result<Value> {
        let ended = self.run(&[command, "--json"])?;
        // `status` exits with 3 if the filter has a problem.
        let is_status = command == "status" && ended.code == Some(3);
        ensure!(ended.code == Some(0) || is_status, "{ended:?}");
        serde_json::from_str(&ended.stdout).with_context(|| ended.stdout)
    }

    /// Returns the nonzero counters of an interface: `{"pass allowed": 2}`.
    pub fn counted(&self, interface: &str) -> anyhow::Result<Value> {
        let status = self.json("status")?;
        let counters = &status["counters"][interface];
        let counted = ["pass", "drop"].iter().flat_map(|verdict| {
            let reasons = counters[verdict].as_object().into_iter().flatten();
            reasons
                .filter(|(_, packets)| **packets != 0)
                .map(move |(reason, packets)| (format!("{verdict} {reason}"), packets.clone()))
        });
        Ok(Value::Object(counted.collect()))
    }

    /// Waits until the counters are as expected: a busy kernel processes a packet later.
    pub fn check_counted(&self, interface: &str, expected: &Value) -> anyhow::Result<()> {
        eventually(|| Ok(self.counted(interface)? == *expected)).with_context(|| {
            let found = self.counted(interface);
            format!("{interface}: {found:?}, not {expected}")
        })
    }
}

/// Waits until the condition is true.
pub fn eventually(mut condition: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        ensure!(
            Instant::now() < deadline,
            "the condition is still false after {PATIENCE:?}"
        );
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

impl Ended {
    /// Runs a command to its end.
    pub fn of(command: Command) -> anyhow::Result<Self> {
        let mut program = Program::start(command)?;
        let status = program.wait(PATIENCE)?;
        Ok(Self {
            code: status.code(),
            stdout: program.stdout(),
            stderr: program.stderr(),
        })
    }
}
