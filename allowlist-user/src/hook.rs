//! Tells others what happened to a list: a command gets the event as JSON on its standard input, a webhook as
//! the body of a POST.
//!
//! Invariants: one event at a time, in order, each for no longer than its timeout and tries; what is told
//! slows down no fetch and no publish, and that nobody listens is a warning. Where a webhook is, is told to
//! nobody but it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use log::warn;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use url::Url;

use crate::event::Event;
use crate::policy::{Format, Http};
use crate::source::post;

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
        }
    }
}

/// Hands events to a hook, from a task of its own.
pub struct Teller(Option<mpsc::Sender<Event>>);

impl Teller {
    /// Needs a runtime.
    pub fn start(hook: Hook) -> Self {
        if hook.is_empty() {
            return Self(None);
        }
        let (tell, mut told) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            while let Some(event) = told.recv().await {
                hook.tell(&event).await;
            }
        });
        Self(Some(tell))
    }

    /// Returns at once.
    pub fn tell(&self, event: &Event) {
        if let Some(tell) = &self.0
            && tell.try_send(event.clone()).is_err()
        {
            warn!(
                "on_change: {}: an event is not told, since {WAITING} others wait for the hook",
                event.source
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
            warn!("on_change: {}: {program}: {error:#}", event.source);
        }
        if let Some(url) = &self.webhook
            && let Err(error) = self.post(url, &body).await
        {
            // The path of a webhook is often its password.
            let host = url.host_str().unwrap_or_default();
            warn!(
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
        let mut child = Command::new(program)
            .args(arguments)
            .env("ALLOWLIST_SOURCE", &event.source)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot be started; check `command` and its permissions")?;
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
                if !status.success() {
                    bail!("it ended with {status}");
                }
                Ok(())
            }
            Err(_) => bail!(
                "it took longer than {}, and was stopped; make it faster, or raise `timeout`",
                humantime::format_duration(self.timeout)
            ),
        }
    }

    async fn post(&self, url: &Url, body: &[u8]) -> Result<()> {
        let http = Http {
            ca_file: self.ca_file.clone(),
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
