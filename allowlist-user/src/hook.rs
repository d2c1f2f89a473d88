//! Passes events of lists to `[on_change]`: as JSON on the standard input of a command, and as the body of a POST.
//!
//! Invariants: one event at a time, in order, within its timeout and number of tries; a hook delays neither a fetch nor
//! a publish, and its failures are only logged; the URL of a webhook, which may contain a secret, is never logged.

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use allowlist_files::trust;
use allowlist_lists::event::Event;
use allowlist_lists::source::post;
use allowlist_policy::{Format, Http};
use anyhow::{Context as _, Result, bail};
use log::warn;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use url::Url;

/// The maximum number of events in the queue; further events are dropped with a warning.
const QUEUE_LENGTH: usize = 64;
/// The maximum number of tries of a webhook request, after which the event is not delivered to it.
const TRIES: u32 = 4;
/// The delay between the first two tries of a webhook request; doubles with each further try.
const FIRST_RETRY: Duration = Duration::from_secs(2);

/// The receivers of events, from the table `[on_change]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The program to run for each event, with its arguments; empty for none.
    pub command: Vec<String>,
    /// The URL of the webhook, to which each event is sent; `None` without a webhook.
    pub webhook: Option<Url>,
    /// The time limit for a run of the program, and for each try of the webhook.
    pub timeout: Duration,
    /// A file of PEM certificates that the webhook's connection trusts besides the system's; `None` for no file.
    pub ca_file: Option<PathBuf>,
    /// Whether the certificates of `ca_file` are trusted instead of the system's.
    pub ca_only: bool,
}

impl Hook {
    /// The default time limit of the program and the webhook.
    pub const TIMEOUT: Duration = Duration::from_secs(30);

    /// Returns whether neither a command nor a webhook is configured.
    pub fn is_empty(&self) -> bool {
        self.command.is_empty() && self.webhook.is_none()
    }
}

impl Default for Hook {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            webhook: None,
            timeout: Self::TIMEOUT,
            ca_file: None,
            ca_only: false,
        }
    }
}

/// The queue of events for a hook; a background task delivers them.
pub struct HookQueue {
    queue: Option<mpsc::Sender<Event>>,
    /// The number of events that are not delivered yet.
    queued: Arc<AtomicUsize>,
}

impl HookQueue {
    /// Starts the task that delivers events to `hook`, on the current runtime.
    pub fn start(hook: Hook) -> Self {
        let queued = Arc::new(AtomicUsize::new(0));
        if hook.is_empty() {
            return Self {
                queue: None,
                queued,
            };
        }
        let (queue, mut rx) = mpsc::channel(QUEUE_LENGTH);
        let left = Arc::clone(&queued);
        tokio::spawn(async move {
            while let Some(event) = rx.recv().await {
                hook.deliver(&event).await;
                left.fetch_sub(1, Ordering::Relaxed);
            }
        });
        Self {
            queue: Some(queue),
            queued,
        }
    }

    /// Adds an event to the queue, without waiting. If the queue is full, drops the event with a warning.
    pub fn enqueue(&self, event: &Event) {
        let Some(queue) = &self.queue else { return };
        self.queued.fetch_add(1, Ordering::Relaxed);
        if queue.try_send(event.clone()).is_err() {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            warn!(
                "on_change: dropped an event of source {}, since {QUEUE_LENGTH} events wait for the command or webhook; `allowlist history` has it",
                event.source
            );
        }
    }
}

impl Drop for HookQueue {
    fn drop(&mut self) {
        let queued = self.queued.load(Ordering::Relaxed);
        if queued > 0 {
            warn!(
                "on_change: {queued} events were not delivered before the stop; `allowlist history` has them"
            );
        }
    }
}

impl Hook {
    /// Delivers an event to the command and the webhook. Failures are logged.
    async fn deliver(&self, event: &Event) {
        let body = serde_json::to_vec(event).expect("strings and numbers are JSON");
        if let Some((program, arguments)) = self.command.split_first()
            && let Err(error) = self.run(program, arguments, &body, event).await
        {
            warn!(
                target: "allowlist::hook-failed",
                "on_change: an event of source {}: {program}: {error:#}; `allowlist history` has the event", event.source
            );
        }
        if let Some(url) = &self.webhook
            && let Err(error) = self.post(url, &body).await
        {
            // The path of a webhook may be a secret.
            let host = url.host_str().unwrap_or_default();
            warn!(
                target: "allowlist::hook-failed",
                "on_change: an event of source {}: webhook at {host}: {error:#}; the event is not sent again; `allowlist history` has it",
                event.source,
            );
        }
    }

    async fn run(
        &self,
        program: &str,
        arguments: &[String],
        body: &[u8],
        event: &Event,
    ) -> Result<()> {
        // Only some variables: HTTPS_PROXY may contain a password, and others identify the daemon to the service manager.
        let kept = env::vars_os().filter(|(name, _)| is_passed_on(name));
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(kept)
            .env("ALLOWLIST_SOURCE", &event.source)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // A process group, so that its children can be killed with it.
            .process_group(0)
            .kill_on_drop(true);
        // Not on a thread of the runtime, since the program may be on a file system that hangs. The path is checked again,
        // since it may have changed.
        let path = PathBuf::from(program);
        let start = move || {
            trust::require(&path)?;
            command.spawn()
        };
        let started = timeout(self.timeout, spawn_blocking(start)).await;
        let Ok(started) = started else {
            bail!(
                "the command did not start within {}; check its file system",
                humantime::format_duration(self.timeout)
            );
        };
        let mut child = started?.context("cannot start; check `command` and its permissions")?;
        // Declared after `child` and so dropped before it, while the process id cannot be reused.
        let mut group = Group::of(&child);
        let mut input = child.stdin.take().expect("it is piped");
        let done = async {
            // The program may ignore its input.
            let _ = input.write_all(body).await;
            drop(input);
            child.wait().await
        };
        match timeout(self.timeout, done).await {
            Ok(status) => {
                let status = status.context("cannot read the exit status of the command")?;
                group.leave();
                if !status.success() {
                    bail!("the command ended with {status}");
                }
                Ok(())
            }
            Err(_) => {
                bail!(
                    "the command was killed after {}; make the command faster, or raise `timeout`",
                    humantime::format_duration(self.timeout)
                )
            }
        }
    }

    async fn post(&self, url: &Url, body: &[u8]) -> Result<()> {
        let http = Http {
            ca_file: self.ca_file.clone(),
            ca_only: self.ca_only,
            timeout: self.timeout,
            ..Http::new(vec![url.clone()], Format::Text)
        };
        let mut wait = FIRST_RETRY;
        for tries_left in (0..TRIES).rev() {
            let problem = match post(&http, body.to_vec()).await {
                Ok(200..300) => return Ok(()),
                Ok(status @ (429 | 500..)) => format!("the server answered {status}"),
                // Other errors are permanent.
                Ok(status) => bail!("the server answered {status}; check `webhook`"),
                Err(error) => error.to_string(),
            };
            if tries_left == 0 {
                bail!("{problem}");
            }
            sleep(wait).await;
            wait *= 2;
        }
        Ok(())
    }
}

/// Returns whether the hook's command receives the environment variable `name` of the daemon.
fn is_passed_on(name: &OsStr) -> bool {
    const NAMES: [&str; 8] = [
        "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER",
    ];
    name.to_str()
        .is_some_and(|name| NAMES.contains(&name) || name.starts_with("LC_"))
}

/// The process group of a hook's command, killed by SIGKILL when dropped; `None` if there is nothing to kill.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.map(Pid::from_raw))
    }

    /// Releases the process group, so that it is not killed when dropped.
    fn leave(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use expect_test::expect;
    use jiff::Timestamp;

    use super::*;
    use allowlist_lists::event::EventKind;

    fn run(hook: &Hook) -> String {
        let event = Event {
            time: Timestamp::UNIX_EPOCH,
            source: "vendor".to_owned(),
            kind: EventKind::Recovered,
        };
        let (program, arguments) = hook.command.split_first().expect("a program");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let done = runtime.block_on(hook.run(program, arguments, b"{}", &event));
        format!("{:#}", done.expect_err("it fails"))
    }

    /// The owner and mode of the program's path are checked at each run.
    #[test]
    fn untrusted_programs_are_not_started() {
        use std::os::unix::fs::PermissionsExt as _;

        let folder = tempfile::tempdir().expect("a folder");
        let (program, made) = (folder.path().join("hook"), folder.path().join("made"));
        fs::write(&program, format!("#!/bin/sh\ntouch {}\n", made.display())).expect("is written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).expect("is its owner");
        let hook = Hook {
            command: vec![program.display().to_string()],
            ..Hook::default()
        };
        let error = run(&hook);
        let error = error.replace(&folder.path().display().to_string(), "/folder");
        expect!["cannot start; check `command` and its permissions: users other than root could change /folder/hook: /folder/hook is writable by every user; `chmod o-w /folder/hook`"].assert_eq(&error);
        assert!(!made.exists());
    }

    #[test]
    fn children_of_a_hook_are_killed_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        let hook = Hook {
            command: ["sh", "-c", &script].map(str::to_owned).to_vec(),
            timeout: Duration::from_secs(1),
            ..Hook::default()
        };
        let error = run(&hook);
        expect!["the command was killed after 1s; make the command faster, or raise `timeout`"]
            .assert_eq(&error);
        let pid = fs::read_to_string(&file).expect("it was started");
        let status = Path::new("/proc").join(pid.trim()).join("status");
        for _ in 0..100 {
            // Gone, or a zombie.
            match fs::read_to_string(&status) {
                Ok(text) if !text.contains("State:\tZ") => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                _ => return,
            }
        }
        panic!("it runs on");
    }
}
