//! Compiles a policy and a snapshot to the contents of the kernel's maps. Pure: no I/O, no clock.
//!
//! Three steps spare the kernel work per packet:
//! - A port can belong to several services, but the kernel loads one number for it. Each distinct set of services that
//!   cover a port becomes one *kernel service*. The *grant* of a source is the set of kernel services with at least one
//!   service that allows the source.
//! - A service can be limited to interfaces. Each interface has a row that maps each kernel service to the kernel
//!   service of those members that apply to the interface, or to none.
//! - A longest-prefix match finds one prefix, but an address has the grants of all prefixes that cover it. So the grant
//!   of a prefix includes the grants of the wider prefixes around it.
//!
//! Invariant: the result does not depend on the order of services, sources and prefixes.

mod names;
mod ranges;
mod room;
mod services;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use allowlist_common::abi::{
    Grant, InterfaceServices, MAX_MATCHES, MAX_NAMES, MAX_SERVICE_COUNTS, MAX_SERVICES,
    ServiceTable,
};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use self::names::{ListedPattern, NameTable};
pub use self::ranges::{Part, RangeTable, Words, part_v4, part_v6};
pub use self::room::require_room;
use self::services::{Covers, KernelServices};
use self::sources::{Matches, add_wider, listed_prefixes};
use crate::error_code::ErrorCode;
use crate::policy::{Policy, Snapshot};

/// A compiled generation: the contents of the kernel's maps.
#[derive(Clone)]
pub struct Tables {
    /// The kernel service (the set of services that cover it) of each port and protocol. All its interface rows are
    /// those of an interface that no service names.
    pub services: Box<ServiceTable>,
    /// The rows of the interfaces that a service names, by interface name: for each kernel service, the one with only
    /// those of its services that apply to the interface.
    pub interfaces: BTreeMap<String, Box<InterfaceServices>>,
    /// The IPv4 prefixes with their grants (the kernel services that they reach, and the match id), sorted.
    pub v4: Vec<(Ipv4Net, Grant)>,
    /// The IPv6 prefixes with their grants (the kernel services that they reach, and the match id), sorted.
    pub v6: Vec<(Ipv6Net, Grant)>,
    /// The names of the sources and services behind the ids in these tables.
    pub ids: IdTable,
    /// The names whose addresses are learnt from answers, and the rules that allow them; empty for tables of packets.
    pub names: NameTable,
}

impl Tables {
    /// Returns the table of ports and services with a row for each interface that a service names, in the order of
    /// their names, after row 0 for all others: as the egress policy numbers its units.
    pub fn services_of_units(&self) -> Box<ServiceTable> {
        let mut services = self.services.clone();
        let rows = services.interfaces[1..].iter_mut();
        for (row, unit) in rows.zip(self.interfaces.values()) {
            *row = **unit;
        }
        services
    }
}

/// The names of the sources and services behind the ids in the kernel's tables, for reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdTable {
    /// The names of the sources, indexed by match id (the id of a set of sources): those that list the matching prefix
    /// or a wider one. Id 0 stands for no match, and has no names.
    pub matches: Vec<Vec<String>>,
    /// The names of the services, indexed by service counter id: those that cover the packet's port or protocol. Id 0
    /// stands for no service, and has no names.
    pub services: Vec<Vec<String>>,
    /// The listed names of the egress policy, indexed by their ids; wildcards as `*.example.net`. Id 0 stands for no
    /// name, and is empty.
    #[serde(default)]
    pub names: Vec<String>,
}

impl IdTable {
    /// Returns a checksum of the names, by which another copy of the table can be recognised as equal.
    pub fn checksum(&self) -> u64 {
        let mut hasher = crc32fast::Hasher::new();
        for sets in [&self.matches, &self.services] {
            for set in sets {
                for name in set {
                    hasher.update(name.as_bytes());
                    hasher.update(b" ");
                }
                hasher.update(b"\n");
            }
            hasher.update(b"\n");
        }
        for name in &self.names {
            hasher.update(name.as_bytes());
            hasher.update(b"\n");
        }
        let length = self.matches.len() + self.services.len() + self.names.len();
        (length as u64) << 32 | u64::from(hasher.finalize())
    }

    /// Returns whether each id of `other` has the same names in this table.
    pub fn extends(&self, other: &Self) -> bool {
        self.matches.starts_with(&other.matches)
            && self.services.starts_with(&other.services)
            && self.names.starts_with(&other.names)
    }

    /// Returns the names of the sources behind the match id `matched`; empty for an unknown id.
    pub fn sources_of(&self, matched: u32) -> Vec<String> {
        self.matches
            .get(matched as usize)
            .cloned()
            .unwrap_or_default()
    }
}

/// The reason why a policy cannot be compiled: it does not fit the kernel's tables, or a list is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The lists together have more prefixes than `max_prefixes`.
    #[error(
        "the lists have {prefixes} prefixes, more than max_prefixes = {limit}; nothing was changed; raise max_prefixes, or remove a source (the largest is {largest:?} with {count})"
    )]
    TooManyPrefixes {
        /// The number of distinct prefixes.
        prefixes: usize,
        /// The configured `max_prefixes`.
        limit: u32,
        /// The name of the source with the most prefixes.
        largest: String,
        /// The number of prefixes of the largest source.
        count: usize,
    },
    /// The services overlap, so that the ports belong to more distinct sets of services than the kernel distinguishes
    /// ([`MAX_SERVICES`]).
    #[error(
        "the ports belong to {combinations} different sets of services, but the maximum is {MAX_SERVICES} sets; nothing was changed; merge services that cover the same ports, or give each port to one service only"
    )]
    TooManyServices {
        /// The number of distinct sets of services that cover a port.
        combinations: usize,
    },
    /// The lists overlap, so that the prefixes belong to more distinct sets of sources than there are match ids
    /// ([`MAX_MATCHES`]).
    #[error(
        "the prefixes belong to more than {} different sets of sources, but the kernel counts packets for that many sets at most; nothing was changed; merge sources that list the same prefixes", MAX_MATCHES - 1
    )]
    TooManyMatches,
    /// The services overlap, so that the ports belong to more distinct sets of services than there are service counters
    /// ([`MAX_SERVICE_COUNTS`]).
    #[error(
        "the ports belong to more than {} different sets of services, but the kernel counts packets for that many sets at most; nothing was changed; merge services that cover the same ports, or give each port to one service only", MAX_SERVICE_COUNTS - 1
    )]
    TooManyServiceCounts,
    /// The rules list more names, now and since the ids were assigned, than there are ids ([`MAX_NAMES`]).
    #[error(
        "the rules of the egress policy list more than {} names, counting names that were removed since the last detach; nothing was changed; remove names, or write a wildcard such as \"*.example.net\" for several of them", MAX_NAMES - 1
    )]
    TooManyNames,
    /// The snapshot has no list of a source that a service or an egress rule uses.
    #[error(
        "source {source_name:?}, which service {service:?} uses, has no list yet; `allowlist sources` shows the reason"
    )]
    MissingSource {
        /// The name of the source without a list.
        source_name: String,
        /// The name of the service that allows the source, or of the egress rule that lists it.
        service: String,
    },
}

impl CompileError {
    /// Returns the stable identifier of the error.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooManyPrefixes { .. } => ErrorCode::TooManyPrefixes,
            Self::MissingSource { .. } => ErrorCode::MissingLists,
            Self::TooManyServices { .. }
            | Self::TooManyMatches
            | Self::TooManyServiceCounts
            | Self::TooManyNames => ErrorCode::TooManyCombinations,
        }
    }
}

/// Compiles `policy` and the lists in `snapshot` to a generation. The match ids and service counter ids in `previous`
/// keep their meaning, so that the kernel's counters continue.
pub fn compile(
    policy: &Policy,
    snapshot: &Snapshot,
    max_prefixes: u32,
    previous: &IdTable,
) -> Result<Tables, CompileError> {
    compile_with(policy, snapshot, max_prefixes, previous, false)
}

/// Compiles as [`compile`]; `learns` states whether the names of sources are compiled too, for the egress policy.
fn compile_with(
    policy: &Policy,
    snapshot: &Snapshot,
    max_prefixes: u32,
    previous: &IdTable,
    learns: bool,
) -> Result<Tables, CompileError> {
    let covers = Covers::of(policy);
    let kernel = KernelServices::new(policy, &covers)?;
    let (mut sets, mut v4, mut v6) = listed_prefixes(policy, snapshot, max_prefixes)?;
    add_wider(&mut v4, &mut sets);
    add_wider(&mut v6, &mut sets);
    let mut ids = previous.clone();
    for id_0_entry in [&mut ids.matches, &mut ids.services] {
        if id_0_entry.is_empty() {
            id_0_entry.push(Vec::new());
        }
    }
    let mut services = covers.table(&kernel);
    kernel.number_counts(policy, &mut ids.services, &mut services.counter_ids)?;
    let names = if learns {
        NameTable::new(policy, &kernel.sets, &mut ids.names)?
    } else {
        NameTable::default()
    };
    let mut matches = Matches::new(policy, &kernel.sets, sets, &mut ids.matches);
    let v4 = matches.grants(&v4)?;
    let v6 = matches.grants(&v6)?;
    Ok(Tables {
        services,
        interfaces: kernel.limited,
        v4,
        v6,
        ids,
        names,
    })
}

/// Compiles the egress policy and the lists in `snapshot` to a generation, in which rules take the place of services,
/// units that of interfaces, and destinations that of sources. Ids in `previous` keep their meaning.
///
/// Returns `None` if `policy` has no egress policy.
///
/// # Errors
/// As [`compile`].
pub fn compile_egress(
    policy: &Policy,
    snapshot: &Snapshot,
    max_prefixes: u32,
    previous: &IdTable,
) -> Result<Option<Tables>, CompileError> {
    let Some(egress) = &policy.egress else {
        return Ok(None);
    };
    let rules = egress.as_services(&policy.sources);
    compile_with(&rules, snapshot, max_prefixes, previous, true).map(Some)
}
