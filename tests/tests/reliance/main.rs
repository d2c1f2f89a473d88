//! A daemon to rely on: killed, starved, flooded and confused, with datagrams running all the while. A friend is
//! never refused, a stranger never admitted, and nothing is lost that somebody was told is done.

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

/// Friends by a file, which a test may write to.
const CONFIG: &str = "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['list']\n\
                      [sources.list]\nfile = 'list.txt'\nevery = '1s'\n";

fn friends_and(more: &str) -> String {
    format!("{}\n{}\n{more}\n", FRIENDS[0], FRIENDS[1])
}

/// A site with a configuration and a list, and nothing that runs.
fn prepared() -> anyhow::Result<(Testbed, String)> {
    let site = Testbed::new()?;
    site.scratch.write("list.txt", friends_and(""))?;
    let config = site.scratch.write("allowlist.toml", CONFIG)?;
    let config = config.display().to_string();
    Ok((site, config))
}

fn start(site: &Testbed, config: &str) -> anyhow::Result<Program> {
    site.filter(&["--config", config])
}

/// A command that must do what it is asked.
#[track_caller]
fn done(site: &Testbed, arguments: &[&str]) -> String {
    let ended = site.run(arguments).expect("it runs");
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    ended.stdout
}

/// What is added by command, as the disk has it.
fn added(site: &Testbed) -> anyhow::Result<BTreeSet<String>> {
    let ended = site.run(&["list", "--added", "--json"])?;
    let document: Value =
        serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))?;
    let rows = document["added"].as_array().context("an array")?;
    let prefix = |row: &Value| row["prefix"].as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().map(prefix).collect())
}

/// What is added by command, as the kernel has it.
fn added_in_force(site: &Testbed) -> anyhow::Result<BTreeSet<String>> {
    let list = site.json("list")?;
    let rows = list["prefixes"].as_array().context("an array")?;
    let is_added = |row: &&Value| row["sources"].to_string().contains("added.web");
    let prefix = |row: &Value| row["prefix"].as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().filter(is_added).map(prefix).collect())
}

/// Whether packets of an address pass, as the kernel's own tables say. While a stream runs its port is taken,
/// so nothing else can listen there.
fn reaches(site: &Testbed, address: &str) -> anyhow::Result<bool> {
    let ended = site.run(&["explain", address, "--port", "udp/443"])?;
    match ended.code {
        Some(0) => Ok(true),
        Some(3) => Ok(false),
        _ => anyhow::bail!("{ended:?}"),
    }
}
