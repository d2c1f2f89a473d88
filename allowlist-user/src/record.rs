//! What the numbers of the generation in force mean, on disk beside last-good: written by the
//! daemon, read by any command, also when the daemon is gone and the kernel filters on.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use log::warn;
use serde::{Deserialize, Serialize};

use crate::bounded::{Open, PATIENCE, within};
use crate::compile::Names;
use crate::error_code::ErrorCode;
use crate::lists::{SourceHealth, SourceStates};
use crate::policy::{Feed, Held, Policy};
use crate::state::StateDir;

/// No source's file can have this name, since a source's name has no dot.
const FILE: &str = "record.v2.json";
/// The largest record, in bytes: it names each prefix that is held.
const MAX_BYTES: u64 = 64 << 20;

/// A generation in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The generation.
    pub generation: u32,
    /// Since when packets are filtered without a gap.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// What its numbers mean.
    pub names: Names,
    /// What told the names from others that were in force before: they may still be.
    #[serde(default)]
    pub before: u64,
    /// By name: what each service covers, and whom it allows.
    pub services: BTreeMap<String, ServiceRecord>,
    /// By name: the sources that are in use.
    pub sources: BTreeMap<String, SourceRecord>,
}

/// A service in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// As configured.
    pub ports: Vec<String>,
    /// Names of the interfaces that it is limited to; empty is all of them.
    pub interfaces: Vec<String>,
    /// Names of sources.
    pub allow: Vec<String>,
}

/// A source at the time of the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Where it comes from, in words.
    pub origin: String,
    /// The provider's regions, as configured; empty is the usual ones, or that there are none.
    #[serde(default)]
    pub regions: Vec<String>,
    /// How many prefixes of it are in force.
    pub prefixes: usize,
    /// How many of them it does not list any more, and are in their grace period.
    #[serde(default)]
    pub held: usize,
    /// Those, and until when.
    #[serde(default)]
    pub holds: Vec<Held>,
    /// When they were got; none as long as there is no list.
    pub fetched: Option<Timestamp>,
    /// Why the last attempt to get them anew failed, if it did: these are the last good ones.
    pub failure: Option<String>,
    /// The code of that reason.
    #[serde(default)]
    pub failure_code: Option<ErrorCode>,
    /// The age at which the list is stale; none if it cannot be.
    #[serde(default)]
    pub max_age_seconds: Option<u64>,
    /// Whether a list waits that the gate refused and the operator may accept.
    #[serde(default)]
    pub refused: bool,
    /// What the operator should know of the list.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl SourceRecord {
    /// The one word that matters most.
    pub fn state(&self, now: Timestamp) -> &'static str {
        if self.refused {
            "refused"
        } else if self.fetched.is_none() {
            "waiting"
        } else if self.is_stale(now) {
            "stale"
        } else if self.failure.is_some() {
            "failing"
        } else {
            "ok"
        }
    }

    /// Whether its list is older than it should be.
    pub fn is_stale(&self, now: Timestamp) -> bool {
        let age = self.fetched.map(|fetched| now.duration_since(fetched));
        self.max_age_seconds
            .zip(age)
            .is_some_and(|(most, age)| age.as_secs() > most.cast_signed())
    }
}

impl Record {
    /// Describes a generation.
    pub fn of(
        generation: u32,
        names: &Names,
        policy: &Policy,
        lists: &SourceStates,
        since: Option<Timestamp>,
    ) -> Self {
        Self {
            generation,
            since,
            before: 0,
            names: names.clone(),
            services: policy
                .services
                .iter()
                .map(|service| {
                    let record = ServiceRecord {
                        ports: service.ports.iter().map(ToString::to_string).collect(),
                        interfaces: service.interfaces.clone(),
                        allow: service.allow.clone(),
                    };
                    (service.name.clone(), record)
                })
                .collect(),
            sources: policy
                .sources
                .iter()
                .filter(|source| policy.user_of(source).is_some())
                .map(|source| {
                    let feed = lists.feed(&source.name);
                    let health = lists.health(&source.name);
                    let record = SourceRecord {
                        origin: source.origin.to_string(),
                        regions: source.regions.clone(),
                        prefixes: feed.map_or(0, Feed::len),
                        held: feed.map_or(0, |feed| feed.held.len()),
                        holds: feed.map_or_else(Vec::new, |feed| feed.held.clone()),
                        fetched: feed.map(|feed| feed.fetched),
                        max_age_seconds: source.can_age().then_some(source.max_age.as_secs()),
                        failure: health.and_then(|health| health.failure.clone()),
                        failure_code: health.and_then(|health| health.failure_code),
                        refused: health.is_some_and(SourceHealth::has_acceptable_list),
                        notes: feed.map_or_else(Vec::new, |feed| feed.notes.clone()),
                    };
                    (source.name.clone(), record)
                })
                .collect(),
        }
    }

    /// Whether the kernel's ids have these names; `named` is what the kernel says of them.
    pub fn is_of(&self, named: u64) -> bool {
        named == self.names.checksum() || named == self.before
    }

    /// The services that any of these sources may reach, in order of name.
    pub fn services_of(&self, sources: &[String]) -> Vec<String> {
        self.services
            .iter()
            .filter(|(_, service)| service.allow.iter().any(|name| sources.contains(name)))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Puts it on disk, whole or not at all.
    pub fn store(&self, state: &StateDir) -> Result<()> {
        let bytes = serde_json::to_vec(self).context("cannot write the record")?;
        Ok(state.write(FILE, bytes)?)
    }

    /// Reads it; `None` where there is none, or none that can be read, which is logged: it holds
    /// only words, and what the kernel does is true without them.
    pub fn load(state_dir: &Path) -> Option<Self> {
        let path = state_dir.join(FILE);
        let bytes = match Open::state(MAX_BYTES).read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => return None,
            Err(error) => {
                warn!(
                    "cannot read {}, so sources are not named: {error}",
                    path.display()
                );
                return None;
            }
        };
        serde_json::from_slice(&bytes)
            .inspect_err(|error| {
                warn!(
                    "{} is damaged, so sources are not named: {error}",
                    path.display()
                );
            })
            .ok()
    }

    /// Removes it. Not being there is fine.
    pub fn remove(state_dir: &Path) -> Result<()> {
        let path = state_dir.join(FILE);
        let file = path.clone();
        let removed = within(&path, PATIENCE, move || fs::remove_file(&file), drop);
        match removed.flatten() {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}
