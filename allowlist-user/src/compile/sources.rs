//! Prefixes to grants: what each source may reach, and the id that it is counted under.
//!
//! Invariant: a prefix grants what every source that lists it or a wider one may reach.

use std::collections::BTreeMap;

use allowlist_common::abi::{Grant, MAX_MATCHES, ServiceId, service_set};
use ipnet::IpNet;

use super::CompileError;
use super::services::ServiceSet;
use crate::policy::{Policy, Snapshot};

/// A set of sources, by their place in the policy; sorted, distinct.
pub(super) type SourceSet = Vec<u32>;

/// Every prefix that some service allows, with the sources that list exactly it.
pub(super) fn listed_prefixes(
    policy: &Policy,
    snapshot: &Snapshot,
    max_prefixes: u32,
) -> Result<BTreeMap<IpNet, SourceSet>, CompileError> {
    let mut listed = BTreeMap::<IpNet, SourceSet>::new();
    let mut largest = (0, "");
    for (place, source) in policy.sources.iter().enumerate() {
        let Some(user) = policy.user_of(source) else {
            continue;
        };
        let feed = snapshot
            .get(&source.name)
            .ok_or_else(|| CompileError::MissingSource {
                source_name: source.name.clone(),
                service: user.name.clone(),
            })?;
        largest = largest.max((feed.len(), &source.name));
        for prefix in feed.in_force() {
            let sources = listed.entry(prefix.trunc()).or_default();
            if sources.last() != Some(&(place as u32)) {
                sources.push(place as u32);
            }
        }
    }
    if listed.len() > max_prefixes as usize {
        return Err(CompileError::TooManyPrefixes {
            prefixes: listed.len(),
            limit: max_prefixes,
            largest: largest.1.to_owned(),
            count: largest.0,
        });
    }
    Ok(listed)
}

/// Adds to each prefix the sources of all wider prefixes that cover it.
///
/// In the map's order (family, address, length) a wider prefix comes before those inside it, so
/// the prefixes that cover the current one form a stack.
pub(super) fn with_wider(
    listed: BTreeMap<IpNet, SourceSet>,
) -> impl Iterator<Item = (IpNet, SourceSet)> {
    let mut around: Vec<(IpNet, SourceSet)> = Vec::new();
    listed.into_iter().map(move |(prefix, mut sources)| {
        while around
            .last()
            .is_some_and(|(wider, _)| !wider.contains(&prefix))
        {
            around.pop();
        }
        if let Some((_, wider)) = around.last() {
            sources.extend(wider);
            sources.sort_unstable();
            sources.dedup();
        }
        around.push((prefix, sources.clone()));
        (prefix, sources)
    })
}

/// Gives each set of sources its grant, and the same set the same match id.
pub(super) struct Matches<'a> {
    /// By place of source: the kernel services that it may reach.
    reach: Vec<u64>,
    source_names: Vec<&'a str>,
    ids: BTreeMap<Vec<String>, u32>,
    known: BTreeMap<SourceSet, Grant>,
    names: &'a mut Vec<Vec<String>>,
}

impl<'a> Matches<'a> {
    pub(super) fn new(
        policy: &'a Policy,
        kernel: &[ServiceSet],
        names: &'a mut Vec<Vec<String>>,
    ) -> Self {
        let reach = |source: &str| {
            let mut services: ServiceSet = 0;
            for (place, service) in policy.services.iter().enumerate() {
                if service.allow.iter().any(|name| name == source) {
                    services |= 1 << place;
                }
            }
            (1..=kernel.len())
                .filter(|id| kernel[id - 1] & services != 0)
                .fold(0, |set, id| set | service_set(id as ServiceId))
        };
        Self {
            reach: policy
                .sources
                .iter()
                .map(|source| reach(&source.name))
                .collect(),
            source_names: policy.sources.iter().map(|source| &*source.name).collect(),
            ids: names.iter().cloned().zip(0..).skip(1).collect(),
            known: BTreeMap::new(),
            names,
        }
    }

    pub(super) fn grant(&mut self, sources: &SourceSet) -> Result<Grant, CompileError> {
        if let Some(grant) = self.known.get(sources) {
            return Ok(*grant);
        }
        let names: Vec<String> = sources
            .iter()
            .map(|&place| self.source_names[place as usize].to_owned())
            .collect();
        let id = if let Some(id) = self.ids.get(&names) {
            *id
        } else {
            let id = self.names.len() as u32;
            if id >= MAX_MATCHES {
                return Err(CompileError::TooManyMatches);
            }
            self.names.push(names.clone());
            self.ids.insert(names, id);
            id
        };
        let services = sources
            .iter()
            .fold(0, |set, &place| set | self.reach[place as usize]);
        let grant = Grant::new(services, id);
        self.known.insert(sources.clone(), grant);
        Ok(grant)
    }
}
