//! The emulated machine: qemu without hardware virtualisation, because the host is often a virtual machine itself.
//!
//! Invariant: qemu exits or is killed by the deadline, and never outlives its [`Machine`].

use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo;

/// The emulator for the kernel's architecture.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// A running virtual machine.
pub(crate) struct Machine {
    qemu: Child,
    /// The machine's serial output, in chunks.
    output: Receiver<io::Result<Vec<u8>>>,
    deadline: Instant,
}

impl Machine {
    pub(crate) fn boot(kernel: &Path, initramfs: &Path, limit: Duration) -> Result<Self> {
        let mut command = cargo::command(QEMU);
        command
            // All emulated CPU features: boot waits for random numbers, which RDRAND provides.
            .args(["-accel", "tcg", "-cpu", "max"])
            .args(["-m", "2048", "-smp", "2", "-nographic"])
            // No network, and no configuration of the user's.
            .args(["-nic", "none", "-no-user-config"])
            // A panic reboots (`panic=-1`), and qemu exits instead of rebooting.
            .arg("-no-reboot")
            .args(["-append", "console=ttyS0 panic=-1 quiet"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            // Otherwise qemu puts the terminal into raw mode, and Ctrl-C goes to the machine.
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut qemu = command
            .spawn()
            .with_context(|| format!("cannot start `{QEMU}`"))?;
        let output = spawn_reader(qemu.stdout.take().expect("stdout is a pipe"));
        Ok(Self {
            qemu,
            output,
            deadline: Instant::now() + limit,
        })
    }

    /// Passes the machine's serial output to `consume` until qemu exits. Returns false if the deadline passes first.
    pub(crate) fn run(&mut self, mut consume: impl FnMut(&[u8])) -> Result<bool> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(chunk) => {
                    consume(&chunk.context("cannot read the console of the virtual machine")?);
                }
                Err(RecvTimeoutError::Timeout) => return Ok(false),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // qemu closes its output only when it exits.
        let status = self
            .qemu
            .wait()
            .with_context(|| format!("cannot read the exit status of `{QEMU}`"))?;
        if !status.success() {
            bail!("{QEMU} failed ({status}); see its message above");
        }
        Ok(true)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both calls fail only if qemu has exited already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Reads `stdout` in a separate thread, because reading a pipe has no timeout.
fn spawn_reader(mut stdout: ChildStdout) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let chunk = match stdout.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(buffer[..length].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let is_last = chunk.is_err();
            // Fails if the receiver is gone because the deadline has passed.
            if sender.send(chunk).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}
