//! A program as a process: its output line by line, and its end.
//!
//! Invariant: the process does not outlive the value, nor the thread that started it: the kernel
//! kills it with that thread. Knows nothing of what the program prints.

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

/// How often to look whether a process has ended.
const POLL: Duration = Duration::from_millis(5);

/// Where the program under test is: `ALLOWLIST_BIN`, else the same build as this one.
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
            "there is no program {}: `cargo xtask test` builds it",
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
    /// Starts `command` with nothing to read and both outputs collected.
    #[expect(
        unsafe_code,
        reason = "the child asks for its parent's death between fork and exec"
    )]
    pub fn start(mut command: Command) -> anyhow::Result<Self> {
        let parent = getpid();
        // SAFETY: the closure makes two system calls and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                // The parent may have died before the call above; nothing would tell the child.
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
        let stdout = child.stdout.take().expect("it is piped");
        let stderr = child.stderr.take().expect("it is piped");
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

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The first line of either output that contains `text`, as soon as there is one.
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

    /// How the process ended, if it does in time.
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

    /// Sends a signal, and waits for the end that should follow.
    pub fn stop(&mut self, signal: Signal, timeout: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(signal)?;
        self.wait(timeout)
    }

    /// Sends it a signal, such as Ctrl-C's. Nothing happens when it has ended.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        // Until it is waited for, the number is not given to another process.
        if self.child.try_wait()?.is_none() {
            kill(Pid::from_raw(self.child.id().cast_signed()), signal)?;
        }
        Ok(())
    }

    /// What it printed on standard output so far.
    pub fn stdout(&self) -> String {
        self.output.lock().of(Stream::Stdout)
    }

    /// What it printed on standard error so far.
    pub fn stderr(&self) -> String {
        self.output.lock().of(Stream::Stderr)
    }

    /// All that it printed so far, in the order in which it was read.
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
        // Both fail only when it has ended and was waited for. Its pipes may live on in processes
        // of its own, so the readers are left to themselves.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process printed, and a bell that rings when there is more.
#[derive(Default)]
struct Output {
    lines: Mutex<Lines>,
    more: Condvar,
}

#[derive(Default)]
struct Lines {
    all: Vec<Line>,
    /// How many of the streams have ended.
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

/// Whatever bytes it holds: a program that prints nonsense should show it.
fn next_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    reader.read_until(b'\n', &mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok((!bytes.is_empty()).then(|| text.trim_end_matches(['\r', '\n']).to_owned()))
}
