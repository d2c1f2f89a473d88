//! A policy and a snapshot to what the kernel's maps hold. Pure: no input, no output, no clock.
//!
//! Two things are worked out here so that the kernel need not:
//! - A port can belong to several services, but the kernel loads one number for it. So each distinct
//!   set of services that covers some port becomes one *kernel service*, and a source's grant lists
//!   the kernel services that share a service with it.
//! - A longest-prefix match finds one prefix, but the answer is the union of all that cover an
//!   address. So each prefix carries what its wider neighbours grant as well.
//!
//! Invariant: whatever the order of services, sources and prefixes, the result is the same.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use allowlist_common::abi::{
    Grant, MAX_MATCHES, MAX_SERVICES, ServiceId, ServiceTable, service_set,
};
use allowlist_common::packet::{ICMP, ICMPV6, TCP, UDP};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::policy::{Policy, Ports, Snapshot};

/// One generation, ready to be published.
#[derive(Clone)]
pub struct Tables {
    /// What each port belongs to.
    pub services: Box<ServiceTable>,
    /// What each IPv4 prefix grants, in order.
    pub v4: Vec<(Ipv4Net, Grant)>,
    /// What each IPv6 prefix grants, in order.
    pub v6: Vec<(Ipv6Net, Grant)>,
    /// What the numbers in the tables mean.
    pub names: Names,
}

/// What the numbers in the kernel's tables mean.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// By match id: the sources that list the matching prefix or a wider one. Id 0 is nobody's.
    pub matches: Vec<Vec<String>>,
}

impl Names {
    /// The sources behind a match id; none for an id that is not known.
    pub fn sources_of(&self, matched: u32) -> Vec<String> {
        self.matches
            .get(matched as usize)
            .cloned()
            .unwrap_or_default()
    }
}

/// Why a policy does not fit the kernel's tables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// More prefixes than the maps were made for.
    #[error(
        "{prefixes} prefixes do not fit max_prefixes = {limit}; nothing was changed; raise max_prefixes, or drop a source (the largest is {largest:?} with {count})"
    )]
    TooManyPrefixes {
        /// What is wanted.
        prefixes: usize,
        /// What fits.
        limit: u32,
        /// The source with the most.
        largest: String,
        /// How many it has.
        count: usize,
    },
    /// More combinations of overlapping services than a grant has bits.
    #[error(
        "services overlap in {combinations} combinations of ports, and {MAX_SERVICES} fit; nothing was changed; give services that share ports the same ports, or merge them"
    )]
    TooManyServices {
        /// What is wanted.
        combinations: usize,
    },
    /// More combinations of overlapping sources than can be counted apart.
    #[error(
        "sources overlap in more than {} combinations, so passes could not be counted by source; nothing was changed; merge sources that overlap", MAX_MATCHES - 1
    )]
    TooManyMatches,
    /// A source that a service names has no prefixes in the snapshot.
    #[error("source {source_name:?}, which service {service:?} allows, has no prefixes yet")]
    MissingSource {
        /// The source.
        source_name: String,
        /// Who needs it.
        service: String,
    },
}

/// Compiles one generation. `previous` keeps match ids what they were, so that counts go on.
pub fn compile(
    policy: &Policy,
    snapshot: &Snapshot,
    max_prefixes: u32,
    previous: &Names,
) -> Result<Tables, CompileError> {
    let covers = Covers::of(policy);
    let kernel = covers.kernel_services()?;
    let listed = listed_prefixes(policy, snapshot, max_prefixes)?;
    let mut names = previous.clone();
    if names.matches.is_empty() {
        names.matches.push(Vec::new());
    }
    let mut matches = Matches::new(policy, &kernel, &mut names.matches);
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    for (prefix, sources) in with_wider(listed) {
        let grant = matches.grant(&sources)?;
        match prefix {
            IpNet::V4(prefix) => v4.push((prefix, grant)),
            IpNet::V6(prefix) => v6.push((prefix, grant)),
        }
    }
    Ok(Tables {
        services: covers.table(&kernel),
        v4,
        v6,
        names,
    })
}

/// A set of configured services, by their place in the policy.
type ServiceSet = u64;

/// The services that cover each port and each protocol without ports.
struct Covers {
    tcp: Vec<ServiceSet>,
    udp: Vec<ServiceSet>,
    icmp: ServiceSet,
    other: ServiceSet,
}

impl Covers {
    fn of(policy: &Policy) -> Self {
        let mut covers = Self {
            tcp: vec![0; 1 << 16],
            udp: vec![0; 1 << 16],
            icmp: 0,
            other: 0,
        };
        let cover = |table: &mut [ServiceSet], ports: &RangeInclusive<u16>, service| {
            for set in &mut table[usize::from(*ports.start())..=usize::from(*ports.end())] {
                *set |= service;
            }
        };
        for (place, service) in policy.services.iter().enumerate() {
            let service_bit = 1 << place;
            for ports in &service.ports {
                match ports {
                    Ports::Tcp(range) => cover(&mut covers.tcp, range, service_bit),
                    Ports::Udp(range) => cover(&mut covers.udp, range, service_bit),
                    Ports::Icmp => covers.icmp |= service_bit,
                    Ports::Any => {
                        cover(&mut covers.tcp, &(0..=u16::MAX), service_bit);
                        cover(&mut covers.udp, &(0..=u16::MAX), service_bit);
                        covers.icmp |= service_bit;
                        covers.other |= service_bit;
                    }
                }
            }
        }
        covers
    }

    /// The distinct sets, in order; a set's place plus one is its kernel service id.
    fn kernel_services(&self) -> Result<Vec<ServiceSet>, CompileError> {
        let mut sets: Vec<_> = self.tcp.iter().chain(&self.udp).copied().collect();
        sets.extend([self.icmp, self.other]);
        sets.sort_unstable();
        sets.dedup();
        sets.retain(|&set| set != 0);
        if sets.len() > MAX_SERVICES {
            return Err(CompileError::TooManyServices {
                combinations: sets.len(),
            });
        }
        Ok(sets)
    }

    fn table(&self, kernel: &[ServiceSet]) -> Box<ServiceTable> {
        let id = |set: ServiceSet| match kernel.binary_search(&set) {
            Ok(place) => place as ServiceId + 1,
            Err(_) => 0, // only the empty set is missing
        };
        let mut table = Box::new(ServiceTable::EMPTY);
        for port in 0..=usize::from(u16::MAX) {
            table.tcp[port] = id(self.tcp[port]);
            table.udp[port] = id(self.udp[port]);
            table.any_of_protocol[usize::from(TCP)] |= service_set(table.tcp[port]);
            table.any_of_protocol[usize::from(UDP)] |= service_set(table.udp[port]);
        }
        for protocol in 0..=u8::MAX {
            let place = usize::from(protocol);
            table.protocol[place] = id(match protocol {
                ICMP | ICMPV6 => self.icmp,
                _ => self.other,
            });
            table.any_of_protocol[place] |= service_set(table.protocol[place]);
        }
        table
    }
}

/// A set of sources, by their place in the policy; sorted, distinct.
type SourceSet = Vec<u32>;

/// Every prefix that some service allows, with the sources that list exactly it.
fn listed_prefixes(
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
        largest = largest.max((feed.prefixes.len(), &source.name));
        for prefix in &feed.prefixes {
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
fn with_wider(listed: BTreeMap<IpNet, SourceSet>) -> impl Iterator<Item = (IpNet, SourceSet)> {
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
struct Matches<'a> {
    /// By place of source: the kernel services that it may reach.
    reach: Vec<u64>,
    source_names: Vec<&'a str>,
    ids: BTreeMap<Vec<String>, u32>,
    known: BTreeMap<SourceSet, Grant>,
    names: &'a mut Vec<Vec<String>>,
}

impl<'a> Matches<'a> {
    fn new(policy: &'a Policy, kernel: &[ServiceSet], names: &'a mut Vec<Vec<String>>) -> Self {
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

    fn grant(&mut self, sources: &SourceSet) -> Result<Grant, CompileError> {
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
