//! The machine: qemu without hardware's help, since where this runs is often a virtual machine already.
//!
//! Invariant: it ends before the time limit or is killed by then, and never outlives this value.

use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo;

/// What emulates a machine of the kind that the kernel is for.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// A machine that runs.
pub(crate) struct Machine {
    qemu: Child,
    /// What it says, in pieces.
    said: Receiver<io::Result<Vec<u8>>>,
    deadline: Instant,
}

impl Machine {
    pub(crate) fn boot(kernel: &Path, initramfs: &Path, limit: Duration) -> Result<Self> {
        let mut command = cargo::command(QEMU);
        command
            // All that an emulated processor can do: random numbers, for one, which boot waits for.
            .args(["-accel", "tcg", "-cpu", "max"])
            .args(["-m", "2048", "-smp", "2", "-nographic"])
            // Neither a network nor whatever the machine of this name may have configured.
            .args(["-nic", "none", "-no-user-config"])
            // A panic is a reboot, and a reboot is the end.
            .arg("-no-reboot")
            .args(["-append", "console=ttyS0 panic=-1 quiet"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            // Else qemu would take the terminal for the serial line, and Ctrl-C for one of its keys.
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut qemu = command
            .spawn()
            .with_context(|| format!("cannot start `{QEMU}`"))?;
        let said = listen(qemu.stdout.take().expect("stdout is a pipe"));
        Ok(Self {
            qemu,
            said,
            deadline: Instant::now() + limit,
        })
    }

    /// Gives what the machine says to `hear` until it is off; whether that was before the limit.
    pub(crate) fn run(&mut self, mut hear: impl FnMut(&[u8])) -> Result<bool> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok(piece) => hear(&piece.context("cannot read the machine's console")?),
                Err(RecvTimeoutError::Timeout) => return Ok(false),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // Who closed its console is about to end.
        let status = self.qemu.wait()?;
        if !status.success() {
            bail!("{QEMU} failed ({status}); its message is above");
        }
        Ok(true)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Neither can fail for a child that is ours, other than that it ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Reads in a thread of its own: a pipe has no time limit.
fn listen(mut stdout: ChildStdout) -> Receiver<io::Result<Vec<u8>>> {
    let (say, said) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let piece = match stdout.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(buffer[..length].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let last = piece.is_err();
            // Nobody listens any more when the limit was reached.
            if say.send(piece).is_err() || last {
                return;
            }
        }
    });
    said
}
