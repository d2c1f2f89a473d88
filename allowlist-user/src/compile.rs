//! A policy and a snapshot to what the kernel's maps hold. Pure: no input, no output, no clock.
//!
//! Three things are worked out here so that the kernel need not:
//! - A port can belong to several services, but the kernel loads one number for it. So each distinct
//!   set of services that covers some port becomes one *kernel service*, and a source's grant lists
//!   the kernel services that share a service with it.
//! - A service can be limited to interfaces. So each interface has a row that says what is left of
//!   each kernel service there: another kernel service, or none.
//! - A longest-prefix match finds one prefix, but the answer is the union of all that cover an
//!   address. So each prefix carries what its wider neighbours grant as well.
//!
//! Invariant: whatever the order of services, sources and prefixes, the result is the same.

mod ranges;
mod room;
mod services;
mod sources;

use std::collections::BTreeMap;

use allowlist_common::abi::{
    Grant, InterfaceServices, MAX_MATCHES, MAX_SERVICE_COUNTS, MAX_SERVICES, ServiceTable,
};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use self::ranges::{Part, RangeTable, Words, part_v4, part_v6};
pub use self::room::require_room;
use self::services::{Covers, KernelServices};
use self::sources::{Matches, add_wider, listed_prefixes};
use crate::error_code::ErrorCode;
use crate::policy::{Policy, Snapshot};

/// One generation, ready to be published.
#[derive(Clone)]
pub struct Tables {
    /// What each port belongs to; on each interface what is left of services that are not limited.
    pub services: Box<ServiceTable>,
    /// By name of interface: what services are there, if other than that.
    pub interfaces: BTreeMap<String, Box<InterfaceServices>>,
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
    /// By service count id: the services that cover the port. Id 0 is no service's.
    pub services: Vec<Vec<String>>,
}

impl Names {
    /// What tells these names from others.
    pub fn checksum(&self) -> u64 {
        let mut hasher = crc32fast::Hasher::new();
        for names in [&self.matches, &self.services] {
            for set in names {
                for name in set {
                    hasher.update(name.as_bytes());
                    hasher.update(b" ");
                }
                hasher.update(b"\n");
            }
            hasher.update(b"\n");
        }
        let length = self.matches.len() + self.services.len();
        (length as u64) << 32 | u64::from(hasher.finalize())
    }

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
    /// The same for services.
    #[error(
        "services overlap in more than {} combinations, so packets could not be counted by service; nothing was changed; give services that share ports the same ports, or merge them", MAX_SERVICE_COUNTS - 1
    )]
    TooManyServiceCounts,
    /// A source that a service names has no prefixes in the snapshot.
    #[error("source {source_name:?}, which service {service:?} allows, has no prefixes yet")]
    MissingSource {
        /// The source.
        source_name: String,
        /// Who needs it.
        service: String,
    },
}

impl CompileError {
    /// Returns the code of the error.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooManyPrefixes { .. } => ErrorCode::TooManyPrefixes,
            Self::MissingSource { .. } => ErrorCode::MissingLists,
            Self::TooManyServices { .. } | Self::TooManyMatches | Self::TooManyServiceCounts => {
                ErrorCode::TooManyCombinations
            }
        }
    }
}

/// Compiles one generation. `previous` keeps match ids what they were, so that counts go on.
pub fn compile(
    policy: &Policy,
    snapshot: &Snapshot,
    max_prefixes: u32,
    previous: &Names,
) -> Result<Tables, CompileError> {
    let covers = Covers::of(policy);
    let kernel = KernelServices::new(policy, &covers)?;
    let (mut sets, mut v4, mut v6) = listed_prefixes(policy, snapshot, max_prefixes)?;
    add_wider(&mut v4, &mut sets);
    add_wider(&mut v6, &mut sets);
    let mut names = previous.clone();
    for of_id_0 in [&mut names.matches, &mut names.services] {
        if of_id_0.is_empty() {
            of_id_0.push(Vec::new());
        }
    }
    let mut services = covers.table(&kernel);
    kernel.number_counts(policy, &mut names.services, &mut services.counter_ids)?;
    let mut matches = Matches::new(policy, &kernel.sets, sets, &mut names.matches);
    let v4 = matches.grants(&v4)?;
    let v6 = matches.grants(&v6)?;
    Ok(Tables {
        services,
        interfaces: kernel.limited,
        v4,
        v6,
        names,
    })
}
