//! The metadata of the active generation on disk: the names of the kernel's ids, the services and the sources.
//!
//! Written by the daemon, and read by commands, also while no daemon runs.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use allowlist_files::bounded::{Open, PATIENCE, within};
use allowlist_lists::state::StateDir;
use allowlist_lists::states::{SourceHealth, SourceStates};
use allowlist_policy::compile::IdTable;
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::{Feed, GracePrefix, Policy};
use anyhow::{Context as _, Result};
use jiff::Timestamp;
use log::warn;
use serde::{Deserialize, Serialize};

/// The name of the metadata file. No list of a source can have this name, since names of sources have no dot.
const FILE: &str = "record.v2.json";
/// The maximum size of the metadata file in bytes; the metadata contains every grace prefix.
const MAX_BYTES: u64 = 64 << 20;

/// The names and the sources of a generation, for reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationMeta {
    /// The number of the generation that the metadata describes.
    pub generation: u32,
    /// The time since which packets have been filtered without interruption; `None` if it is unknown.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// The names for the match ids in the kernel's maps.
    #[serde(rename = "names")]
    pub ids: IdTable,
    /// The checksum of the previous names, which the kernel uses until the generation is published.
    #[serde(default)]
    pub before: u64,
    /// The services of the generation, by name.
    pub services: BTreeMap<String, ServiceMeta>,
    /// The used sources of the generation, by name.
    pub sources: BTreeMap<String, SourceMeta>,
}

/// A service as the metadata describes it for reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceMeta {
    /// The ports of the service, as configured.
    pub ports: Vec<String>,
    /// The interfaces that the service is limited to; empty for all interfaces.
    pub interfaces: Vec<String>,
    /// The names of the sources that the service allows.
    pub allow: Vec<String>,
}

/// A source as the metadata describes it for reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceMeta {
    /// The origin of the source's list, for display.
    pub origin: String,
    /// The regions of the provider, as configured; empty for the provider's default.
    #[serde(default)]
    pub regions: Vec<String>,
    /// The number of active prefixes of the source, including grace prefixes.
    pub prefixes: usize,
    /// The number of grace prefixes among the active prefixes.
    #[serde(default, rename = "held")]
    pub grace: usize,
    /// The grace prefixes, each with the end of its grace period.
    #[serde(default, rename = "holds")]
    pub grace_prefixes: Vec<GracePrefix>,
    /// The time of the last successful fetch; `None` if the source has no list.
    pub fetched: Option<Timestamp>,
    /// The reason why the last fetch failed or its list was rejected; `None` after a success.
    pub failure: Option<String>,
    /// The code of the failure's reason.
    #[serde(default)]
    pub failure_code: Option<ErrorCode>,
    /// The age in seconds above which the list is stale; `None` if it cannot become stale.
    #[serde(default)]
    pub max_age_seconds: Option<u64>,
    /// Whether there is a rejected list that the operator can accept.
    #[serde(default)]
    pub refused: bool,
    /// Notes about the source's list, one line each.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl SourceMeta {
    /// Returns the state of the source as one word; if several states apply, the most important one.
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

    /// Returns whether the list is older than its `max_age` at the time `now`.
    pub fn is_stale(&self, now: Timestamp) -> bool {
        let age = self.fetched.map(|fetched| now.duration_since(fetched));
        self.max_age_seconds
            .zip(age)
            .is_some_and(|(most, age)| age.as_secs() > most.cast_signed())
    }
}

impl GenerationMeta {
    /// Returns the metadata of a generation with this policy and these lists; `since` is the start of uninterrupted
    /// filtering.
    pub fn new(
        generation: u32,
        ids: &IdTable,
        policy: &Policy,
        lists: &SourceStates,
        since: Option<Timestamp>,
    ) -> Self {
        Self {
            generation,
            since,
            before: 0,
            ids: ids.clone(),
            services: policy
                .services
                .iter()
                .map(|service| {
                    let meta = ServiceMeta {
                        ports: service.ports.iter().map(ToString::to_string).collect(),
                        interfaces: service.interfaces.clone(),
                        allow: service.allow.clone(),
                    };
                    (service.name.clone(), meta)
                })
                .collect(),
            sources: policy
                .sources
                .iter()
                .filter(|source| policy.user_of(source).is_some())
                .map(|source| {
                    let feed = lists.feed(&source.name);
                    let health = lists.health(&source.name);
                    let meta = SourceMeta {
                        origin: source.origin.to_string(),
                        regions: source.regions.clone(),
                        prefixes: feed.map_or(0, Feed::len),
                        grace: feed.map_or(0, |feed| feed.grace.len()),
                        grace_prefixes: feed.map_or_else(Vec::new, |feed| feed.grace.clone()),
                        fetched: feed.map(|feed| feed.fetched),
                        max_age_seconds: source.can_age().then_some(source.max_age.as_secs()),
                        failure: health.and_then(|health| health.failure.clone()),
                        failure_code: health.and_then(|health| health.failure_code),
                        refused: health.is_some_and(SourceHealth::has_acceptable_list),
                        notes: feed.map_or_else(Vec::new, |feed| feed.notes.clone()),
                    };
                    (source.name.clone(), meta)
                })
                .collect(),
        }
    }

    /// Returns whether the names of the metadata belong to the match ids of the kernel, which stores their `checksum`.
    pub fn matches_kernel(&self, checksum: u64) -> bool {
        checksum == self.ids.checksum() || checksum == self.before
    }

    /// Returns the services that allow one of these sources, sorted by name.
    pub fn services_of(&self, sources: &[String]) -> Vec<String> {
        self.services
            .iter()
            .filter(|(_, service)| service.allow.iter().any(|name| sources.contains(name)))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Stores the metadata in the state directory atomically.
    pub fn store(&self, state: &StateDir) -> Result<()> {
        let bytes =
            serde_json::to_vec(self).context("cannot encode the metadata of the generation")?;
        Ok(state.write(FILE, bytes)?)
    }

    /// Reads the metadata from a state directory. Returns `None` if it is missing, or damaged, which is logged: reports
    /// then lack names.
    pub fn load(state_dir: &Path) -> Option<Self> {
        let path = state_dir.join(FILE);
        let bytes = match Open::state(MAX_BYTES).read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => return None,
            Err(error) => {
                warn!(
                    "cannot read {}: {error}; reports lack the names of sources",
                    path.display()
                );
                return None;
            }
        };
        serde_json::from_slice(&bytes)
            .inspect_err(|error| {
                warn!(
                    "{} is damaged: {error}; reports lack the names of sources",
                    path.display()
                );
            })
            .ok()
    }

    /// Removes the metadata from a state directory; a missing file is no error.
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
