//! `allowlist detach`: detaches the filter and waits until its daemon has ended, so that a start can follow at once.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use allowlist_dataplane as dataplane;
use allowlist_lists::state::StateDir;
use anyhow::{Context as _, Result};
use log::warn;

use super::{print, print_json};
use crate::cli::{Detach, Paths};

/// The time for which `detach` waits until the daemon ends; the daemon checks its pins every second.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time between two checks of the lock of the state directory.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) fn run(paths: &Paths, options: &Detach) -> Result<()> {
    let output = options.output;
    if !options.force {
        dataplane::require_namespace(&paths.pin_dir).context(
            "nothing was detached (run `allowlist detach` in the network namespace of the filter, with `nsenter --net=/proc/PID/ns/net`, or use --force)",
        )?;
    }
    let interfaces = dataplane::detach_all(&paths.pin_dir)?;
    if let Some(daemon) = wait_for_daemon(&paths.state_dir) {
        warn!(
            "{daemon} has not ended within {} s and still locks {}; `allowlist run` fails until that process ends",
            PATIENCE.as_secs(),
            paths.state_dir.display()
        );
    }
    if output.json {
        return print_json(&serde_json::json!({ "detached": interfaces }));
    }
    if interfaces.is_empty() {
        print("no interface was filtered; the remaining pins are removed\n")
    } else {
        print(&format!(
            "detached from {}: every packet passes\n",
            interfaces.join(", ")
        ))
    }
}

/// Waits until no process locks the state directory. Returns the process that still locks it after [`PATIENCE`]; `None`
/// if no process does.
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
