//! Prefixes to grants: what each source may reach, and the id that it is counted under.
//!
//! Invariant: a prefix grants what every source that lists it or a wider one may reach. There are few
//! different sets of sources and many prefixes, so a prefix has only its set's number.

use std::collections::{BTreeMap, HashMap};

use allowlist_common::abi::{Grant, MAX_MATCHES, ServiceId, service_set};
use ipnet::IpNet;

use super::CompileError;
use super::services::ServiceSet;
use crate::policy::{Policy, Snapshot};

/// A set of sources, by their place in the policy; sorted, distinct.
type SourceSet = Vec<u32>;

/// The number of a set of sources.
pub(super) type SetId = u32;

/// The sets of sources that occur, each with a number.
pub(super) struct Sets {
    all: Vec<SourceSet>,
    ids: HashMap<SourceSet, SetId>,
    unions: HashMap<(SetId, SetId), SetId>,
}

impl Sets {
    /// Each source of a policy alone, by its place.
    fn of(policy: &Policy) -> Self {
        let sets: Vec<SourceSet> = (0..policy.sources.len() as u32)
            .map(|place| vec![place])
            .collect();
        Self {
            ids: sets.iter().cloned().zip(0..).collect(),
            all: sets,
            unions: HashMap::new(),
        }
    }

    fn union(&mut self, a: SetId, b: SetId) -> SetId {
        if a == b {
            return a;
        }
        if let Some(known) = self.unions.get(&(a, b)) {
            return *known;
        }
        let mut union = [&*self.all[a as usize], &*self.all[b as usize]].concat();
        union.sort_unstable();
        union.dedup();
        let id = *self.ids.entry(union).or_insert_with_key(|union| {
            self.all.push(union.clone());
            self.all.len() as SetId - 1
        });
        self.unions.insert((a, b), id);
        id
    }
}

/// Every prefix that some service allows, in order (family, address, length), with the sources that list
/// exactly it.
pub(super) fn listed_prefixes(
    policy: &Policy,
    snapshot: &Snapshot,
    max_prefixes: u32,
) -> Result<(Sets, Vec<(IpNet, SetId)>), CompileError> {
    let mut sets = Sets::of(policy);
    let mut listed: Vec<(IpNet, SetId)> = Vec::new();
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
        listed.extend(
            feed.in_force()
                .map(|prefix| (prefix.trunc(), place as SetId)),
        );
    }
    // Lists are in order already, and this sort makes use of it.
    listed.sort();
    listed.dedup_by(|next, kept| {
        let is_same = next.0 == kept.0;
        if is_same {
            kept.1 = sets.union(kept.1, next.1);
        }
        is_same
    });
    if listed.len() > max_prefixes as usize {
        return Err(CompileError::TooManyPrefixes {
            prefixes: listed.len(),
            limit: max_prefixes,
            largest: largest.1.to_owned(),
            count: largest.0,
        });
    }
    Ok((sets, listed))
}

/// Adds to each prefix the sources of all wider prefixes that cover it.
///
/// In order a wider prefix comes before those inside it, so the prefixes that cover the current one form a
/// stack.
pub(super) fn add_wider(listed: &mut [(IpNet, SetId)], sets: &mut Sets) {
    let mut around: Vec<(IpNet, SetId)> = Vec::new();
    for (prefix, set) in listed {
        while around
            .last()
            .is_some_and(|(wider, _)| !wider.contains(&*prefix))
        {
            around.pop();
        }
        if let Some((_, wider)) = around.last() {
            *set = sets.union(*set, *wider);
        }
        around.push((*prefix, *set));
    }
}

/// Gives each set of sources its grant, and the same set the same match id.
pub(super) struct Matches<'a> {
    /// By place of source: the kernel services that it may reach.
    reach: Vec<u64>,
    source_names: Vec<&'a str>,
    ids: BTreeMap<Vec<String>, u32>,
    sets: Sets,
    /// By number of a set.
    known: Vec<Option<Grant>>,
    names: &'a mut Vec<Vec<String>>,
}

impl<'a> Matches<'a> {
    pub(super) fn new(
        policy: &'a Policy,
        kernel: &[ServiceSet],
        sets: Sets,
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
            known: vec![None; sets.all.len()],
            sets,
            names,
        }
    }

    pub(super) fn grant(&mut self, set: SetId) -> Result<Grant, CompileError> {
        if let Some(grant) = self.known[set as usize] {
            return Ok(grant);
        }
        let sources = &self.sets.all[set as usize];
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
        self.known[set as usize] = Some(grant);
        Ok(grant)
    }
}
