//! Fetches of interactive commands: on a terminal, one line of standard error names the pending lists.
//!
//! Nothing is printed if standard error is not a terminal, or if a fetch ends within a second.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::{IsTerminal as _, Write as _, stderr};
use std::pin::pin;
use std::time::Duration;

use allowlist_lists::gather::{Fetches, Gathered};
use allowlist_policy::text::on_one_line;
use allowlist_policy::{Source, Validator};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::report::terminal_width;

/// The delay before the progress line is first printed, and the interval between its updates.
const TICK: Duration = Duration::from_secs(1);

/// Fetches these sources while a progress line is shown. Returns the outcomes in no particular order.
pub(super) async fn gather(sources: Vec<(Source, Vec<Validator>)>) -> Vec<Gathered> {
    let mut awaited: BTreeSet<String> = sources.iter().map(|one| one.0.name.clone()).collect();
    let all = awaited.len();
    let mut line = Line::new();
    let mut ticks = ticks();
    let mut fetches = Fetches::default();
    for (source, known) in sources {
        fetches.start(source, known);
    }
    let mut gathered = Vec::new();
    loop {
        tokio::select! {
            one = fetches.next() => match one {
                Some(one) => {
                    awaited.remove(&one.source.name);
                    gathered.push(one);
                }
                None => return gathered,
            },
            _ = ticks.tick() => {
                let names: Vec<&str> = awaited.iter().map(String::as_str).collect();
                line.write(&format!("fetched {} of {all} lists; waiting for {}", all - names.len(), names.join(", ")));
            }
        }
    }
}

/// Awaits the fetch of the source `name` while a progress line is shown, and returns its result.
pub(super) async fn shown<T>(name: &str, fetch: impl Future<Output = T>) -> T {
    let mut fetch = pin!(fetch);
    let mut line = Line::new();
    let mut ticks = ticks();
    loop {
        tokio::select! {
            done = &mut fetch => return done,
            _ = ticks.tick() => line.write(&format!("waiting for {name}")),
        }
    }
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval_at(Instant::now() + TICK, TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The progress line of a terminal, which is updated in place and erased when dropped.
struct Line {
    started: Instant,
    is_shown: bool,
    is_written: bool,
}

impl Line {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            is_shown: stderr().is_terminal(),
            is_written: false,
        }
    }

    fn write(&mut self, text: &str) {
        if !self.is_shown {
            return;
        }
        let text = format!(
            "{} s: {}",
            self.started.elapsed().as_secs(),
            on_one_line(text)
        );
        let width = terminal_width(&stderr()).unwrap_or(80).saturating_sub(1);
        let text: String = text.chars().take(width).collect();
        // A failure to print progress is not an error.
        let _ = write!(stderr(), "\r\x1b[K{text}");
        let _ = stderr().flush();
        self.is_written = true;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.is_written {
            let _ = write!(stderr(), "\r\x1b[K");
            let _ = stderr().flush();
        }
    }
}
