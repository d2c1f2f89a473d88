//! The metadata of a generation: the names of the kernel's ids, the services and the sources, for reports.
//!
//! The daemon stores it in the kernel with the generation's tables. Commands read it there, also while no daemon runs.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use allowlist_dataplane::{Dataplane, View};
use allowlist_files::bounded::{Open, PATIENCE, within};
use allowlist_lists::states::{SourceHealth, SourceStates};
use allowlist_policy::compile::IdTable;
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::{Feed, GracePrefix, Origin, Policy};
use anyhow::{Context as _, Result};
use jiff::Timestamp;
use log::warn;
use serde::{Deserialize, Serialize};

use crate::effective::KnownIds;

/// The maximum size of the metadata in the kernel, in bytes. If the grace prefixes make it larger, they are omitted.
const MAX_BYTES: usize = 16 << 20;
/// The file in which earlier versions stored the metadata.
const OLDER_FILE: &str = "record.v2.json";
/// The maximum size of [`OLDER_FILE`], in bytes.
const MAX_OLDER_BYTES: u64 = 64 << 20;

/// The names and the sources of a generation, for reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationMeta {
    /// The time since which packets have been filtered without interruption; `None` if it is unknown.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// The names of the sources and services behind the ids in the kernel's maps.
    #[serde(rename = "names")]
    pub ids: IdTable,
    /// The names of the sources and rules behind the ids in the maps of the egress policy.
    #[serde(default)]
    pub egress_ids: IdTable,
    /// The rules of the egress policy, by name.
    #[serde(default)]
    pub egress_rules: BTreeMap<String, RuleMeta>,
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

/// A rule of the egress policy as the metadata describes it for reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleMeta {
    /// The names of the sources that list the destinations.
    pub to: Vec<String>,
    /// The ports of the rule, as configured.
    pub ports: Vec<String>,
    /// The units that the rule is limited to; empty for all programs.
    pub units: Vec<String>,
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
    /// The number of grace prefixes among the active prefixes. Metadata of earlier builds has it as `held`.
    #[serde(default, alias = "held")]
    pub grace: usize,
    /// The grace prefixes, each with the end of its grace period. Metadata of earlier builds has them as `holds`.
    #[serde(default, alias = "holds")]
    pub grace_prefixes: Vec<GracePrefix>,
    /// The time of the last successful fetch; `None` if the source has no list.
    pub fetched: Option<Timestamp>,
    /// The reason why the last fetch failed or its list was rejected; `None` after a success.
    pub failure: Option<String>,
    /// The code of the failure's reason; `None` after a success.
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
    /// The names whose addresses the list has; `None` for a source of another kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<NamesMeta>,
}

/// The names of a source as the metadata describes them for reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesMeta {
    /// The names and the wildcards as configured.
    pub patterns: Vec<String>,
    /// Whether the egress policy allows the addresses that resolvers answer to programs.
    pub believes_answers: bool,
    /// Whether these may be in closed ranges.
    pub allow_special_use: bool,
}

impl NamesMeta {
    /// Returns the pattern that covers a name or wildcard: the name itself, or the narrowest wildcard.
    pub fn covering(&self, name: &str) -> Option<&str> {
        let all = self.patterns.iter().map(String::as_str);
        all.filter(|pattern| covers(pattern, name))
            .max_by_key(|pattern| (*pattern == name, pattern.len()))
    }
}

/// Returns whether a pattern, which is a name or a wildcard, covers a name or wildcard.
pub fn covers(pattern: &str, name: &str) -> bool {
    let below = pattern.strip_prefix('*');
    pattern == name || below.is_some_and(|below| name.ends_with(below))
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
        ids: &KnownIds,
        policy: &Policy,
        lists: &SourceStates,
        since: Option<Timestamp>,
    ) -> Self {
        Self {
            since,
            ids: ids.packets.clone(),
            egress_ids: ids.egress.clone(),
            egress_rules: policy
                .egress
                .iter()
                .flat_map(|egress| &egress.rules)
                .map(|rule| {
                    let meta = RuleMeta {
                        to: rule.to.clone(),
                        ports: rule.ports.iter().map(ToString::to_string).collect(),
                        units: rule.units.clone(),
                    };
                    (rule.name.clone(), meta)
                })
                .collect(),
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
                .filter(|source| policy.is_used(source))
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
                        names: match &source.origin {
                            Origin::Names(lookup) => Some(NamesMeta {
                                patterns: lookup.patterns(),
                                believes_answers: lookup.believes_answers,
                                allow_special_use: source.gate.allow_special_use,
                            }),
                            _ => None,
                        },
                    };
                    (source.name.clone(), meta)
                })
                .collect(),
        }
    }

    /// Returns the services that allow one of `sources`, sorted by name.
    pub fn services_of(&self, sources: &[String]) -> Vec<String> {
        self.services
            .iter()
            .filter(|(_, service)| service.allow.iter().any(|name| sources.contains(name)))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Returns the metadata as bytes for the kernel.
    pub fn encode(&self) -> Vec<u8> {
        let encode = |meta: &Self| serde_json::to_vec(meta).expect("strings and numbers are JSON");
        let bytes = encode(self);
        if bytes.len() <= MAX_BYTES {
            return bytes;
        }
        let mut shorter = self.clone();
        for source in shorter.sources.values_mut() {
            source.grace_prefixes.clear();
        }
        encode(&shorter)
    }

    /// Decodes the metadata in the kernel. Metadata that cannot be decoded is logged: reports then lack names.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let decoded = serde_json::from_slice(bytes).inspect_err(|error| {
            warn!(
                "cannot decode the names of sources that are stored in the kernel: {error}; reports lack these names"
            );
        });
        decoded.ok()
    }

    /// Reads the metadata of the active generation from the kernel; `None` if it is missing or cannot be decoded.
    pub fn read(view: &View) -> Result<Option<Self>> {
        let bytes = view.metadata()?;
        Ok(bytes.and_then(|bytes| Self::decode(&bytes)))
    }

    /// Returns the metadata with the names of the sources and services whose counters a start finds in the kernel. It
    /// is in the kernel, or in the state directory if an earlier version stored it there.
    ///
    /// Returns `None` if the names are not known, in which case the daemon resets the counters.
    pub fn of_counters(dataplane: &Dataplane, state_dir: &Path) -> Result<Option<Self>> {
        let (active, others) = dataplane.metadata()?;
        if let Some(mut meta) = active.and_then(|bytes| Self::decode(&bytes)) {
            // A change that was rolled back may have counted under more ids.
            for other in others.iter().filter_map(|bytes| Self::decode(bytes)) {
                if other.ids.extends(&meta.ids) {
                    meta.ids = other.ids;
                }
                if other.egress_ids.extends(&meta.egress_ids) {
                    meta.egress_ids = other.egress_ids;
                }
            }
            return Ok(Some(meta));
        }
        let Some(checksum) = dataplane.older_names()? else {
            return Ok(None);
        };
        Ok(OlderMeta::load(state_dir)
            .filter(|older| [older.meta.ids.checksum(), older.before].contains(&checksum))
            .map(|older| older.meta))
    }

    /// Removes the metadata that an earlier version stored in a state directory; a missing file is no error.
    pub fn remove_older(state_dir: &Path) -> Result<()> {
        let path = state_dir.join(OLDER_FILE);
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

/// The metadata as earlier versions stored it on disk.
#[derive(Deserialize)]
struct OlderMeta {
    #[serde(flatten)]
    meta: GenerationMeta,
    /// The checksum of the names that belonged to the kernel's ids before this generation was published.
    #[serde(default)]
    before: u64,
}

impl OlderMeta {
    /// Reads the metadata from a state directory. Returns `None` if it is missing, or damaged, which is logged.
    fn load(state_dir: &Path) -> Option<Self> {
        let path = state_dir.join(OLDER_FILE);
        let problem = match Open::state(MAX_OLDER_BYTES).read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(meta) => return Some(meta),
                Err(error) => error.to_string(),
            },
            Err(error) if error.is_missing() => return None,
            Err(error) => error.to_string(),
        };
        warn!(
            "cannot read {}: {problem}; the names of the sources and services that the counters belong to are unknown",
            path.display()
        );
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file was written by the program of `tests/fixtures/upgrade`.
    #[test]
    fn files_of_earlier_versions_are_read_and_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(OLDER_FILE);
        let written = include_bytes!("../../tests/fixtures/upgrade/state/record.v2.json");
        fs::write(&path, written).expect("is written");
        let OlderMeta { meta, before } = OlderMeta::load(folder.path()).expect("is readable");
        let names: Vec<&[String]> = meta.ids.matches.iter().map(Vec::as_slice).collect();
        let names: Vec<String> = names.into_iter().map(|names| names.join(" ")).collect();
        assert_eq!(names, ["", "partners", "friends", "added.web", "office"]);
        assert_eq!(before, meta.ids.checksum(), "the ids were the same");
        assert_eq!(meta.sources["partners"].grace_prefixes.len(), 7);
        assert_eq!(GenerationMeta::decode(&meta.encode()), Some(meta));
        fs::write(&path, &written[..written.len() / 2]).expect("is written");
        assert!(OlderMeta::load(folder.path()).is_none());
        for _ in 0..2 {
            GenerationMeta::remove_older(folder.path()).expect("is removed");
            assert!(!path.exists());
        }
    }

    #[test]
    fn many_grace_prefixes_are_omitted() {
        let grace = |number: u32| GracePrefix {
            prefix: std::net::IpAddr::from(number.to_be_bytes()).into(),
            until: Timestamp::UNIX_EPOCH,
            seconds: 0,
        };
        let mut meta = GenerationMeta::default();
        let source = |count| SourceMeta {
            origin: "a.txt".to_owned(),
            regions: Vec::new(),
            prefixes: count as usize,
            grace: count as usize,
            grace_prefixes: (0..count).map(grace).collect(),
            fetched: None,
            failure: None,
            failure_code: None,
            max_age_seconds: None,
            refused: false,
            notes: Vec::new(),
            names: None,
        };
        meta.sources.insert("a".to_owned(), source(100));
        assert_eq!(GenerationMeta::decode(&meta.encode()).as_ref(), Some(&meta));
        meta.sources.insert("a".to_owned(), source(300_000));
        let bytes = meta.encode();
        assert!(bytes.len() < 1000, "{} bytes", bytes.len());
        let decoded = GenerationMeta::decode(&bytes).expect("is JSON");
        assert_eq!(decoded.sources["a"].grace, 300_000);
        assert!(decoded.sources["a"].grace_prefixes.is_empty());
    }
}
