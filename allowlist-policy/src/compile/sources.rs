//! Compiles prefixes to grants: the services that their sources reach, and the match id.
//!
//! Invariant: a prefix grants the services of all sources that list it or a wider prefix. There are few distinct sets
//! of sources and many prefixes, so a prefix stores only the id of its set.

use std::collections::{BTreeMap, HashMap};

use allowlist_common::abi::{Grant, MAX_MATCHES, ServiceId, service_set};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::CompileError;
use super::services::ServiceSet;
use crate::policy::{Policy, Snapshot};

/// A set of sources, as their indexes in the policy; sorted and distinct.
type SourceSet = Vec<u32>;

/// The id of a set of sources: its index in [`Sets`].
pub(super) type SetId = u32;

/// The sets of sources that occur together, with their ids and the unions computed so far.
pub(super) struct Sets {
    all: Vec<SourceSet>,
    ids: HashMap<SourceSet, SetId>,
    unions: HashMap<(SetId, SetId), SetId>,
}

impl Sets {
    /// Returns the sets with one source each; the id of a set is the index of its source in `policy`.
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

/// Prefixes with the ids of their source sets. Sorted by (address, length), so that a wider prefix precedes those
/// inside it.
pub(super) type Listed<K> = Vec<(K, SetId)>;

/// A prefix as integers, which can be sorted fast.
pub(super) trait Key: Copy + Ord {
    /// The prefix type that this key represents.
    type Net;

    fn of(prefix: Self::Net) -> Self;
    fn net(self) -> Self::Net;
    /// Returns whether this prefix contains or equals the prefix `other`.
    fn covers(self, other: Self) -> bool;
}

/// An IPv4 prefix: its address, followed by its length in the lowest 8 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyV4(u64);

impl Key for KeyV4 {
    type Net = Ipv4Net;

    fn of(prefix: Ipv4Net) -> Self {
        Self(u64::from(u32::from(prefix.network())) << 8 | u64::from(prefix.prefix_len()))
    }

    fn net(self) -> Ipv4Net {
        let address = ((self.0 >> 8) as u32).into();
        Ipv4Net::new(address, self.0 as u8).expect("the length is valid")
    }

    fn covers(self, other: Self) -> bool {
        // Shifts out the byte of the length and the host bits; the rest of a difference is in the network.
        (self.0 ^ other.0) >> (8 + 32 - (self.0 as u8)) == 0
    }
}

/// An IPv6 prefix: its address and its length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyV6(u128, u8);

impl Key for KeyV6 {
    type Net = Ipv6Net;

    fn of(prefix: Ipv6Net) -> Self {
        Self(prefix.network().into(), prefix.prefix_len())
    }

    fn net(self) -> Ipv6Net {
        Ipv6Net::new(self.0.into(), self.1).expect("the length is valid")
    }

    fn covers(self, other: Self) -> bool {
        let difference = self.0 ^ other.0;
        difference.checked_shr(128 - u32::from(self.1)).unwrap_or(0) == 0
    }
}

/// Returns all prefixes of sources that a service allows, each with the set of sources that list exactly this prefix.
pub(super) fn listed_prefixes(
    policy: &Policy,
    snapshot: &Snapshot,
    max_prefixes: u32,
) -> Result<(Sets, Listed<KeyV4>, Listed<KeyV6>), CompileError> {
    let mut sets = Sets::of(policy);
    let (mut v4, mut v6) = (Listed::new(), Listed::new());
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
        for prefix in feed.active() {
            match prefix {
                IpNet::V4(prefix) => v4.push((KeyV4::of(prefix), place as SetId)),
                IpNet::V6(prefix) => v6.push((KeyV6::of(prefix), place as SetId)),
            }
        }
    }
    merge(&mut v4, &mut sets);
    merge(&mut v6, &mut sets);
    let prefixes = v4.len() + v6.len();
    if prefixes > max_prefixes as usize {
        return Err(CompileError::TooManyPrefixes {
            prefixes,
            limit: max_prefixes,
            largest: largest.1.to_owned(),
            count: largest.0,
        });
    }
    Ok((sets, v4, v6))
}

/// Sorts `listed`, and merges equal prefixes of several sources into one with the union of their sources.
fn merge<K: Key>(listed: &mut Listed<K>, sets: &mut Sets) {
    // The stable sort is fast on concatenated sorted lists.
    listed.sort();
    listed.dedup_by(|next, kept| {
        let is_same = next.0 == kept.0;
        if is_same {
            kept.1 = sets.union(kept.1, next.1);
        }
        is_same
    });
}

/// Adds to each prefix in `listed` the sources of all wider prefixes that cover it.
///
/// The prefixes that cover the current one form a stack.
pub(super) fn add_wider<K: Key>(listed: &mut Listed<K>, sets: &mut Sets) {
    let mut around: Listed<K> = Vec::new();
    for (prefix, set) in listed {
        while around
            .last()
            .is_some_and(|(wider, _)| !wider.covers(*prefix))
        {
            around.pop();
        }
        if let Some((_, wider)) = around.last() {
            *set = sets.union(*set, *wider);
        }
        around.push((*prefix, *set));
    }
}

/// Returns the kernel services that a source may reach, as bits.
pub(super) fn reach(policy: &Policy, kernel: &[ServiceSet], source: &str) -> u64 {
    let mut services: ServiceSet = 0;
    for (place, service) in policy.services.iter().enumerate() {
        if service.allow.iter().any(|name| name == source) {
            services |= 1 << place;
        }
    }
    (1..=kernel.len())
        .filter(|id| kernel[id - 1] & services != 0)
        .fold(0, |set, id| set | service_set(id as ServiceId))
}

/// Assigns a grant (the kernel services that it reaches, and a match id) to each set of sources; a set that an earlier
/// generation had keeps its match id.
pub(super) struct Matches<'a> {
    /// The kernel services that each source may reach, as bits, by the index of the source in the policy.
    reach: Vec<u64>,
    source_names: Vec<&'a str>,
    ids: BTreeMap<Vec<String>, u32>,
    sets: Sets,
    /// The grants assigned so far, by the id of the source set; `None` if the set has none yet.
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
        Self {
            reach: policy
                .sources
                .iter()
                .map(|source| reach(policy, kernel, &source.name))
                .collect(),
            source_names: policy.sources.iter().map(|source| &*source.name).collect(),
            ids: names.iter().cloned().zip(0..).skip(1).collect(),
            known: vec![None; sets.all.len()],
            sets,
            names,
        }
    }

    /// Returns the prefixes in `listed` with their grants, in the same order.
    pub(super) fn grants<K: Key>(
        &mut self,
        listed: &Listed<K>,
    ) -> Result<Vec<(K::Net, Grant)>, CompileError> {
        let granted = listed.iter();
        granted
            .map(|(prefix, set)| Ok((prefix.net(), self.grant(*set)?)))
            .collect()
    }

    fn grant(&mut self, set: SetId) -> Result<Grant, CompileError> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check<K: Key>(wider: K::Net, other: K::Net) -> bool
    where
        K::Net: Copy + PartialEq + std::fmt::Debug,
    {
        assert_eq!(K::of(wider).net(), wider);
        K::of(wider).covers(K::of(other))
    }

    proptest! {
        /// Agrees with `ipnet` on prefixes that are often nested.
        #[test]
        fn keys_cover_what_prefixes_contain(
            address in any::<u128>(),
            flips in 0_u32..129,
            lengths in (0_u8..=128, 0_u8..=128),
        ) {
            let other = address ^ 1_u128.checked_shl(flips).unwrap_or(0);
            let net = |bits: u128, length| Ipv6Net::new(bits.into(), length).expect("a length").trunc();
            let (a, b) = (net(address, lengths.0), net(other, lengths.1));
            if lengths.0 <= lengths.1 {
                prop_assert_eq!(check::<KeyV6>(a, b), a.contains(&b));
            }
            prop_assert_eq!(KeyV6::of(a).cmp(&KeyV6::of(b)), a.cmp(&b));
            let net = |bits: u128, length: u8| {
                Ipv4Net::new(((bits >> 96) as u32).into(), length / 4).expect("a length").trunc()
            };
            let (a, b) = (net(address, lengths.0), net(other, lengths.1));
            if a.prefix_len() <= b.prefix_len() {
                prop_assert_eq!(check::<KeyV4>(a, b), a.contains(&b));
            }
            prop_assert_eq!(KeyV4::of(a).cmp(&KeyV4::of(b)), a.cmp(&b));
        }
    }
}
