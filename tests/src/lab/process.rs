//! A running program: its output line by line, and its exit status.
//!
//! Invariant: the process ends with the value, and with the thread that started it: the kernel kills it with that thread.
//! Does not depend on the content of the output.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fmt};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid};

/// The interval between checks for the end of a process.
const POLL: Duration = Duration::from_millis(5);

/// Returns the path of the program under test: `ALLOWLIST_BIN`, or the program of the same build.
pub fn allowlist() -> anyhow::Result<PathBuf> {
    let path = match env::var_os("ALLOWLIST_BIN") {
        Some(path) => PathBuf::from(path),
        None => env::current_exe()?
            .ancestors()
            .skip(1)
            .take(2) // Tests are in target/debug/deps, programs in target/debug.
            .map(|folder| folder.join("allowlist"))
            .find(|path| path.is_file())
            .context("the program allowlist is not built: `cargo xtask test` builds it")?,
    };
    let found = path.canonicalize();
    found.with_context(|| {
        format!(
            "there is no program {} (`cargo xtask test` builds it)",
            path.display()
        )
    })
}

/// A running process.
pub struct Program {
    child: Child,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
}

impl Program {
    /// Starts `command` with an empty standard input, and collects both outputs.
    #[expect(
        unsafe_code,
        reason = "the child sets its parent-death signal between fork and exec"
    )]
    pub fn start(mut command: Command) -> anyhow::Result<Self> {
        let parent = getpid();
        // SAFETY: the closure makes two system calls and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                // The signal is not sent if the parent has died before the call above.
                if getppid() == parent {
                    Ok(())
                } else {
                    Err(Errno::ESRCH.into())
                }
            });
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let output = Arc::new(Output::default());
        let stdout = child.stdout.take().expect("the output is piped");
        let stderr = child.stderr.take().expect("the output is piped");
        let readers = vec![
            collect(stdout, Stream::Stdout, Arc::clone(&output)),
            collect(stderr, Stream::Stderr, Arc::clone(&output)),
        ];
        Ok(Self {
            child,
            output,
            readers,
        })
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of either output that contains `text`, and returns the first one.
    pub fn wait_for_line(&self, text: &str, timeout: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + timeout;
        let mut lines = self.output.lock();
        loop {
            if let Some(line) = lines.all.iter().find(|line| line.text.contains(text)) {
                return Ok(line.text.clone());
            }
            if lines.closed == self.readers.len() {
                bail!("the process ended without a line with {text:?}; it printed:\n{lines}");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no line with {text:?} after {timeout:?}; the process printed:\n{lines}");
            }
            lines = self.output.wait(lines, left);
        }
    }

    /// Waits for the end of the process, and returns its exit status.
    pub fn wait(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.read_to_end();
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "the process still runs after {timeout:?}; it printed:\n{}",
                    self.output()
                );
            }
            thread::sleep(POLL);
        }
    }

    /// Sends a signal, and waits for the end of the process.
    pub fn stop(&mut self, signal: Signal, timeout: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(signal)?;
        self.wait(timeout)
    }

    /// Sends a signal. Does nothing if the process has ended.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        // The kernel does not reuse the process id before the process is waited for.
        if self.child.try_wait()?.is_none() {
            kill(Pid::from_raw(self.child.id().cast_signed()), signal)?;
        }
        Ok(())
    }

    /// Returns the standard output so far.
    pub fn stdout(&self) -> String {
        self.output.lock().of(Stream::Stdout)
    }

    /// Returns the standard error so far.
    pub fn stderr(&self) -> String {
        self.output.lock().of(Stream::Stderr)
    }

    /// Returns both outputs so far, in the order in which they were read.
    pub fn output(&self) -> String {
        self.output.lock().to_string()
    }

    fn read_to_end(&mut self) {
        for reader in self.readers.drain(..) {
            reader.join().expect("reading a pipe does not panic");
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both calls fail only if the process has ended and was waited for. Its children may keep the pipes open, so the
        // reader threads are not joined.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The output of a process, with a condition variable for new lines.
#[derive(Default)]
struct Output {
    lines: Mutex<Lines>,
    more: Condvar,
}

#[derive(Default)]
struct Lines {
    all: Vec<Line>,
    /// The number of streams (standard output and standard error) that have ended.
    closed: usize,
}

struct Line {
    stream: Stream,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, lines: MutexGuard<'a, Lines>, timeout: Duration) -> MutexGuard<'a, Lines> {
        self.more
            .wait_timeout(lines, timeout)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

impl Lines {
    fn of(&self, stream: Stream) -> String {
        let lines = self.all.iter().filter(|line| line.stream == stream);
        lines.flat_map(|line| [line.text.as_str(), "\n"]).collect()
    }
}

impl fmt::Display for Lines {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all
            .iter()
            .try_for_each(|line| writeln!(out, "    {}", line.text))
    }
}

fn collect(
    stream: impl Read + Send + 'static,
    name: Stream,
    output: Arc<Output>,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        while let Ok(Some(text)) = next_line(&mut reader) {
            output.lock().all.push(Line { stream: name, text });
            output.more.notify_all();
        }
        output.lock().closed += 1;
        output.more.notify_all();
    })
}

/// Reads a line, and replaces bytes that are not UTF-8.
fn next_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    reader.read_until(b'\n', &mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok((!bytes.is_empty()).then(|| text.trim_end_matches(['\r', '\n']).to_owned()))
}
