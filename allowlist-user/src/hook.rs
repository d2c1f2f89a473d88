//! Tells others what happened to a list: a command gets the event as JSON on its standard input, a webhook as
//! the body of a POST.
//!
//! Invariants: one event at a time, in order, each for no longer than its timeout and tries; what is told
//! slows down no fetch and no publish, and that nobody listens is a warning. Where a webhook is, is told to
//! nobody but it.

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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

use crate::event::Event;
use crate::policy::{Format, Http};
use crate::source::post;
use crate::trust;

/// Events that wait; while a hook hangs, more are dropped with a warning.
const WAITING: usize = 64;
/// How often a webhook is tried.
const TRIES: u32 = 4;
/// How long after a first try comes the second; doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(2);

/// `[on_change]`: whom to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// A program and its arguments.
    pub command: Vec<String>,
    /// Where to POST.
    pub webhook: Option<Url>,
    /// For the program, and for each try of the webhook.
    pub timeout: Duration,
    /// PEM certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether the certificates of `ca_file` are the only ones to trust.
    pub ca_only: bool,
}

impl Hook {
    /// `timeout`, unless it is configured.
    pub const TIMEOUT: Duration = Duration::from_secs(30);

    /// Whether there is nobody to tell.
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

/// Hands events to a hook, from a task of its own.
pub struct Teller {
    tell: Option<mpsc::Sender<Event>>,
    /// How many are not told yet.
    waiting: Arc<AtomicUsize>,
}

impl Teller {
    /// Needs a runtime.
    pub fn start(hook: Hook) -> Self {
        let waiting = Arc::new(AtomicUsize::new(0));
        if hook.is_empty() {
            return Self {
                tell: None,
                waiting,
            };
        }
        let (tell, mut told) = mpsc::channel(WAITING);
        let left = Arc::clone(&waiting);
        tokio::spawn(async move {
            while let Some(event) = told.recv().await {
                hook.tell(&event).await;
                left.fetch_sub(1, Ordering::Relaxed);
            }
        });
        Self {
            tell: Some(tell),
            waiting,
        }
    }

    /// Returns at once.
    pub fn tell(&self, event: &Event) {
        let Some(tell) = &self.tell else { return };
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if tell.try_send(event.clone()).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            warn!(
                "on_change: {}: an event is not told, since {WAITING} others wait for the hook",
                event.source
            );
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let waiting = self.waiting.load(Ordering::Relaxed);
        if waiting > 0 {
            warn!(
                "on_change: {waiting} events may not have been told, since this stops; `allowlist history` has them"
            );
        }
    }
}

impl Hook {
    async fn tell(&self, event: &Event) {
        let body = serde_json::to_vec(event).expect("strings and numbers are JSON");
        if let Some((program, arguments)) = self.command.split_first()
            && let Err(error) = self.run(program, arguments, &body, event).await
        {
            warn!(
                target: "allowlist::hook-failed",
                "on_change: {}: {program}: {error:#}", event.source
            );
        }
        if let Some(url) = &self.webhook
            && let Err(error) = self.post(url, &body).await
        {
            // The path of a webhook is often its password.
            let host = url.host_str().unwrap_or_default();
            warn!(
                target: "allowlist::hook-failed",
                "on_change: {}: the webhook at {host}: {error:#}; this event is not sent again",
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
        // Not the daemon's whole environment: HTTPS_PROXY may have a password, and other variables identify the
        // daemon to the service manager.
        let kept = env::vars_os().filter(|(name, _)| is_passed_on(name));
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(kept)
            .env("ALLOWLIST_SOURCE", &event.source)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Of its own, so that what it started ends with it.
            .process_group(0)
            .kill_on_drop(true);
        // The program may be on a disk that does not answer, and no thread of the runtime may wait for that. Its path may have
        // changed since the start, or could not be examined then.
        let path = PathBuf::from(program);
        let start = move || {
            trust::require(&path)?;
            command.spawn()
        };
        let started = timeout(self.timeout, spawn_blocking(start)).await;
        let Ok(started) = started else {
            bail!(
                "it was not started within {}; check the file system that it is on",
                humantime::format_duration(self.timeout)
            );
        };
        let mut child = started?.context("was not started; check `command` and its permissions")?;
        // Behind `child`, so that it goes first: until then its number is no other's.
        let mut group = Group::of(&child);
        let mut input = child.stdin.take().expect("it is piped");
        let done = async {
            // A program that needs no details need not read them.
            let _ = input.write_all(body).await;
            drop(input);
            child.wait().await
        };
        match timeout(self.timeout, done).await {
            Ok(status) => {
                let status = status?;
                group.leave();
                if !status.success() {
                    bail!("it ended with {status}");
                }
                Ok(())
            }
            Err(_) => {
                bail!(
                    "it took longer than {}, and was stopped; make it faster, or raise `timeout`",
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
                // What is wrong with the request stays wrong.
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

/// Whether a variable of the daemon's environment is one of the hook's, too.
fn is_passed_on(name: &OsStr) -> bool {
    const NAMES: [&str; 8] = [
        "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER",
    ];
    name.to_str()
        .is_some_and(|name| NAMES.contains(&name) || name.starts_with("LC_"))
}

/// A hook and what it started; ended when this is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.map(Pid::from_raw))
    }

    /// It ended by itself, and what it left running is meant to.
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
    use crate::event::What;

    fn run(hook: &Hook) -> String {
        let event = Event {
            time: Timestamp::UNIX_EPOCH,
            source: "vendor".to_owned(),
            what: What::Recovered,
        };
        let (program, arguments) = hook.command.split_first().expect("a program");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let done = runtime.block_on(hook.run(program, arguments, b"{}", &event));
        format!("{:#}", done.expect_err("it fails"))
    }

    /// Also where its path could not be examined at the start.
    #[test]
    fn a_program_that_others_could_change_is_not_started() {
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
        expect!["was not started; check `command` and its permissions: /folder/hook could be changed by other users than root: /folder/hook is writable by every user; `chmod o-w /folder/hook`"].assert_eq(&error);
        assert!(!made.exists());
    }

    #[test]
    fn what_a_hook_started_ends_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        let hook = Hook {
            command: ["sh", "-c", &script].map(str::to_owned).to_vec(),
            timeout: Duration::from_secs(1),
            ..Hook::default()
        };
        let error = run(&hook);
        expect!["it took longer than 1s, and was stopped; make it faster, or raise `timeout`"]
            .assert_eq(&error);
        let pid = fs::read_to_string(&file).expect("it was started");
        let status = Path::new("/proc").join(pid.trim()).join("status");
        for _ in 0..100 {
            // Gone, or waiting for whoever buries it.
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
