//! `allowlist detach`: takes the filter off and waits for the end of its daemon, so that a start can follow at once.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use log::warn;

use super::{print, print_json};
use crate::cli::{Detach, Paths};
use crate::dataplane;
use crate::state::StateDir;

/// The time that a daemon has to end; it looks for its pins every second.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time between two looks at the lock of the state directory.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) fn run(paths: &Paths, options: &Detach) -> Result<()> {
    let output = options.output;
    if !options.force {
        dataplane::require_namespace(&paths.pin_dir).context(
            "not detached; detach there (`nsenter --net=/proc/PID/ns/net`), or give --force to detach from here",
        )?;
    }
    let interfaces = dataplane::detach_all(&paths.pin_dir)?;
    if let Some(daemon) = wait_for_daemon(&paths.state_dir) {
        warn!(
            "{daemon} has not ended in {} s and still holds {}; `allowlist run` fails until it has ended",
            PATIENCE.as_secs(),
            paths.state_dir.display()
        );
    }
    if output.json {
        return print_json(&serde_json::json!({ "detached": interfaces }));
    }
    if interfaces.is_empty() {
        print("no interface was filtered; what was left of a filter is removed\n")
    } else {
        print(&format!(
            "detached from {}: everything passes\n",
            interfaces.join(", ")
        ))
    }
}

/// Waits until no process holds the state directory.
///
/// # Returns
/// The process that still holds it when the time is over.
fn wait_for_daemon(state_dir: &Path) -> Option<String> {
    let state = StateDir::find(state_dir).ok()??;
    let start = Instant::now();
    loop {
        let holder = state.holder()?;
        if start.elapsed() >= PATIENCE {
            return Some(holder);
        }
        thread::sleep(PAUSE);
    }
}
