//! Robustness under a stream of datagrams: kills, full disks, floods, hanging files and lost interfaces. No friend is
//! dropped, no stranger passes, and no acknowledged change is lost.

mod at_start;
mod disks;
mod floods;
mod interfaces;
mod kills;
mod starts;
mod storms;

use std::collections::BTreeSet;
use std::time::Duration;

use allowlist_tests::lab::stream::{FRIENDS, SOON, STRANGERS, Streamed, gets_through};
use allowlist_tests::lab::{Ended, Program, Testbed, eventually};
use allowlist_tests::require_root;
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A configuration whose list is in a file that a test can change.
const CONFIG: &str = "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['list']\n\
                      [sources.list]\nfile = 'list.txt'\nevery = '1s'\n";

fn friends_and(more: &str) -> String {
    format!("{}\n{}\n{more}\n", FRIENDS[0], FRIENDS[1])
}

/// Returns a testbed with a configuration and a list, without a daemon.
fn prepared() -> anyhow::Result<(Testbed, String)> {
    let testbed = Testbed::new()?;
    testbed.scratch.write("list.txt", friends_and(""))?;
    let config = testbed.scratch.write("allowlist.toml", CONFIG)?;
    let config = config.display().to_string();
    Ok((testbed, config))
}

fn start(testbed: &Testbed, config: &str) -> anyhow::Result<Program> {
    testbed.filter(&["--config", config])
}

/// Runs a command that must succeed, and returns its standard output.
#[track_caller]
fn done(testbed: &Testbed, arguments: &[&str]) -> String {
    let ended = testbed.run(arguments).expect("the command runs");
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    ended.stdout
}

/// Returns the added prefixes on disk.
fn added(testbed: &Testbed) -> anyhow::Result<BTreeSet<String>> {
    let ended = testbed.run(&["list", "--added", "--json"])?;
    let document: Value =
        serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))?;
    let rows = document["added"].as_array().context("an array")?;
    let prefix = |row: &Value| row["prefix"].as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().map(prefix).collect())
}

/// Returns the added prefixes in the kernel.
fn added_in_kernel(testbed: &Testbed) -> anyhow::Result<BTreeSet<String>> {
    let list = testbed.json("list")?;
    let rows = list["prefixes"].as_array().context("an array")?;
    let is_added = |row: &&Value| row["sources"].to_string().contains("added.web");
    let prefix = |row: &Value| row["prefix"].as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().filter(is_added).map(prefix).collect())
}

/// Returns whether packets of an address pass, by the kernel's tables. Usable while a stream occupies the port.
fn reaches(testbed: &Testbed, address: &str) -> anyhow::Result<bool> {
    let ended = testbed.run(&["explain", address, "--port", "udp/443"])?;
    match ended.code {
        Some(0) => Ok(true),
        Some(3) => Ok(false),
        _ => anyhow::bail!("{ended:?}"),
    }
}
