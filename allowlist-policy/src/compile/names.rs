//! Compiles the names that rules of the egress policy list: which names to recognise in queries, and which rules allow the
//! addresses that are learnt for each.
//!
//! Invariant: a name has the grants of every name and wildcard in the policy that covers it, also if only an earlier
//! generation listed it. So a learnt address stays allowed exactly as long as the policy covers its name.

use std::collections::BTreeMap;

use allowlist_common::abi::{MAX_NAMES, NameGrant};

use super::CompileError;
use super::services::ServiceSet;
use super::sources::reach;
use crate::policy::{Origin, Policy};

/// A name or wildcard that rules list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPattern {
    /// The name in lower case; of a wildcard, the name below which all names are meant.
    pub name: String,
    /// Whether it is a wildcard.
    pub is_wildcard: bool,
    /// The id, an index into [`NameTable::grants`].
    pub id: u32,
    /// Whether a source that lists it permits addresses in closed ranges.
    pub is_special: bool,
}

/// The names that the egress policy learns addresses for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameTable {
    /// The listed names and wildcards, sorted by the text of their patterns.
    pub listed: Vec<ListedPattern>,
    /// The rules that allow the addresses of each name, indexed by id; of earlier names too.
    pub grants: Vec<NameGrant>,
}

impl NameTable {
    /// Compiles the names of the sources that a rule lists. `kernel` are the kernel services of the rules. A name that
    /// has an id in `ids` keeps it; others are added.
    pub(super) fn new(
        policy: &Policy,
        kernel: &[ServiceSet],
        ids: &mut Vec<String>,
    ) -> Result<Self, CompileError> {
        if ids.is_empty() {
            ids.push(String::new());
        }
        let mut patterns: BTreeMap<String, NameGrant> = BTreeMap::new();
        for source in &policy.sources {
            let Origin::Names(lookup) = &source.origin else {
                continue;
            };
            let services = reach(policy, kernel, &source.name);
            if !lookup.believes_answers || policy.user_of(source).is_none() {
                continue;
            }
            for pattern in lookup.patterns() {
                let grant = patterns.entry(pattern).or_default();
                grant.services |= services;
                if source.gate.allow_special_use {
                    grant.special |= services;
                }
            }
        }
        let mut known: BTreeMap<String, u32> = ids.iter().cloned().zip(0..).skip(1).collect();
        let mut listed = Vec::new();
        for pattern in patterns.keys() {
            let id = match known.get(pattern) {
                Some(id) => *id,
                None if ids.len() >= MAX_NAMES => return Err(CompileError::TooManyNames),
                None => {
                    let id = ids.len() as u32;
                    ids.push(pattern.clone());
                    known.insert(pattern.clone(), id);
                    id
                }
            };
            let wildcard = pattern.strip_prefix("*.");
            listed.push(ListedPattern {
                name: wildcard.unwrap_or(pattern).to_owned(),
                is_wildcard: wildcard.is_some(),
                id,
                is_special: false,
            });
        }
        let grants: Vec<NameGrant> = ids.iter().map(|name| grant(name, &patterns)).collect();
        for pattern in &mut listed {
            pattern.is_special = grants[pattern.id as usize].special != 0;
        }
        Ok(Self { listed, grants })
    }
}

/// Returns the union of the grants of all patterns that cover a name or wildcard.
fn grant(name: &str, patterns: &BTreeMap<String, NameGrant>) -> NameGrant {
    let mut union = NameGrant::default();
    let mut add = |pattern: &str| {
        if let Some(grant) = patterns.get(pattern) {
            union.services |= grant.services;
            union.special |= grant.special;
        }
    };
    add(name);
    let below = name.strip_prefix("*.").unwrap_or(name);
    for (dot, _) in below.match_indices('.') {
        add(&format!("*{}", &below[dot..]));
    }
    union
}

#[cfg(test)]
mod tests;
