//! Sends frames over a link to a namespace with nftables, and reads the verdict of each frame.
//!
//! The number of a frame is in its Ethernet source address, which neither filter uses. Does not depend on the policy.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::process::Command;
use std::time::{Duration, Instant};

use allowlist_common::verdict::Verdict;
use allowlist_tests::lab::{self, Ended, FrameSender, LinkKind, Namespace, Scratch, VethEnd};
use anyhow::{Context as _, bail, ensure};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

use super::rules::{DROPPED, PASSED, TABLE};
use crate::kernel::INTERFACE;

/// The number of frames per reading of the verdicts; less than the length of a CPU's queue.
const BATCH: usize = 200;
/// The offset of the Ethernet source address.
const SOURCE: usize = 6;
/// The number of the last frame of a batch; its verdict shows that all frames before it have arrived.
const LAST: u16 = u16::MAX;
/// Longer than a busy machine takes for a batch.
const PATIENCE: Duration = Duration::from_mins(3);

/// A link to a namespace with nftables.
pub(super) struct Judge {
    scratch: Scratch,
    host: Namespace,
    _peer: Namespace,
    sender: FrameSender,
}

/// Reports whether `nft` is installed.
pub(super) fn is_installed() -> bool {
    match Command::new("nft").arg("--version").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        // Other errors make the tests fail later.
        _ => true,
    }
}

impl Judge {
    pub(super) fn new() -> anyhow::Result<Self> {
        // Each CPU has its own queue, so frames that one CPU sends stay in order.
        let mut one = CpuSet::new();
        one.set(sched_getcpu()?)?;
        sched_setaffinity(Pid::from_raw(0), &one).context("cannot pin the thread to a CPU")?;
        let (host, peer) = (Namespace::new()?, Namespace::new()?);
        let end = |namespace| VethEnd {
            namespace,
            name: INTERFACE,
            addresses: &[],
        };
        lab::connect(LinkKind::Silent, end(&host), end(&peer))?;
        Ok(Self {
            scratch: Scratch::new()?,
            sender: FrameSender::new(&peer, INTERFACE)?,
            host,
            _peer: peer,
        })
    }

    /// Returns the verdict of each frame under these rules. A frame that does not reach the rules counts as dropped.
    pub(super) fn verdicts(&self, rules: &str, frames: &[&[u8]]) -> anyhow::Result<Vec<Verdict>> {
        let file = self.scratch.write("rules.nft", rules)?;
        let mut verdicts = Vec::new();
        for batch in frames.chunks(BATCH) {
            self.nft(&["-f", &file.display().to_string()])
                .with_context(|| format!("nft refuses the rules\n{rules}"))?;
            for (number, frame) in (0..).zip(batch) {
                self.sender.send(&numbered(frame, number))?;
            }
            // ARP, which any rules add to one of the sets.
            let last = lab::frame::ethernet(0x0806, &[0; 28]);
            self.sender.send(&numbered(&last, LAST))?;
            let judged = self.judged()?;
            verdicts.extend(
                (0..)
                    .zip(batch)
                    .map(|(number, _)| judged.get(&number).copied().unwrap_or(Verdict::Drop)),
            );
        }
        Ok(verdicts)
    }

    /// Waits for the last frame, and returns the verdicts by frame number.
    fn judged(&self) -> anyhow::Result<BTreeMap<u16, Verdict>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut judged = BTreeMap::new();
            for (set, verdict) in [(PASSED, Verdict::Pass), (DROPPED, Verdict::Drop)] {
                for number in self.members(set)? {
                    let before = judged.insert(number, verdict);
                    ensure!(before.is_none(), "frame {number} is in both sets");
                }
            }
            if judged.remove(&LAST).is_some() {
                return Ok(judged);
            }
            if Instant::now() > deadline {
                bail!(
                    "the last frame has no verdict after {PATIENCE:?}; verdicts so far: {judged:?}"
                );
            }
        }
    }

    /// Returns the numbers of the frames in a set, each of which was added once.
    fn members(&self, set: &str) -> anyhow::Result<Vec<u16>> {
        let mut arguments = vec!["-j", "list", "set"];
        arguments.extend(TABLE.split(' '));
        arguments.push(set);
        let listed: Value = serde_json::from_str(&self.nft(&arguments)?)?;
        let objects = listed["nftables"].as_array().context("no list")?;
        let sets = objects
            .iter()
            .filter_map(|object| object["set"]["elem"].as_array());
        sets.flatten()
            .map(|entry| member(entry).with_context(|| entry.to_string()))
            .collect()
    }

    fn nft(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.host.command("nft")?;
        command.args(arguments);
        let ended = Ended::of(command)?;
        ensure!(ended.code == Some(0), "nft {arguments:?}: {}", ended.stderr);
        Ok(ended.stdout)
    }
}

/// Parses the frame number in an element such as `{"elem": {"val": "02:00:00:00:00:07", "counter": {"packets": 1}}}`.
fn member(entry: &Value) -> anyhow::Result<u16> {
    let element = &entry["elem"];
    ensure!(element["counter"]["packets"] == 1, "not added exactly once");
    let address = element["val"].as_str().context("no address")?;
    let number = address
        .get(12..)
        .context("a short address")?
        .replace(':', "");
    Ok(u16::from_str_radix(&number, 16)?)
}

fn numbered(frame: &[u8], number: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let [high, low] = number.to_be_bytes();
    frame[SOURCE..SOURCE + 6].copy_from_slice(&[2, 0, 0, 0, high, low]);
    frame
}
