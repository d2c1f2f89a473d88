//! The maps of names of the egress policy: which names to recognise, which rules allow their addresses, and the addresses
//! that were learnt from answers.
//!
//! Invariant: the names and grants of a slot are written only while no control word names it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::Duration;

use allowlist_common::abi::{
    LEARNED, LEARNED_BELOW, LISTED_NAMES, Learned, LearnedNames, ListedName, MAX_NAMES,
    NAME_GRANTS, NAME_STATES, NameGrant, NameState, SLOTS,
};
use allowlist_common::dns::{NameKey, WildcardKey};
use allowlist_common::egress::{address_key, learned};
use allowlist_policy::compile::{ListedPattern, NameTable};
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, MapData, MapError};

use super::clock::kernel_clock;
use super::hash_maps::{clear, entries};
use super::memory::Memory;
use super::pins::Pins;
use super::sys::read_value;
use crate::error::{Context as _, Result};

/// The number of words of a slot's grants.
const GRANT_WORDS: usize = MAX_NAMES * size_of::<NameGrant>() / size_of::<u64>();

/// The number of words of a name's state.
const STATE_WORDS: usize = size_of::<NameState>() / size_of::<u64>();

/// The open maps of names.
pub(super) struct NameMaps {
    names: LpmTrie<MapData, [u8; 256], ListedName>,
    grants: Memory,
    states: Memory,
}

/// An address that resolvers answered for a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LearnedAddress {
    /// The id of the name, an index into the names of [`allowlist_policy::compile::IdTable`].
    pub name: u32,
    /// The address.
    pub address: IpAddr,
    /// The time after which the address is no longer allowed for the name, since the start of the system.
    pub until: Duration,
}

impl NameMaps {
    /// Opens the pinned maps.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            names: pins.open_map(LISTED_NAMES)?.try_into()?,
            states: Memory::map(pins.open_data(NAME_STATES)?, STATE_WORDS * MAX_NAMES)?,
            grants: Memory::map(pins.open_data(NAME_GRANTS)?, GRANT_WORDS * SLOTS as usize)?,
        })
    }

    /// Writes the names and grants of a generation into a slot that no program uses.
    pub(super) fn write(&mut self, slot: u32, table: &NameTable) -> Result<()> {
        let mut grants = vec![0; GRANT_WORDS];
        let words: &[u64] = bytemuck::cast_slice(&table.grants);
        grants[..words.len()].copy_from_slice(words);
        self.grants
            .part(slot as usize * GRANT_WORDS, GRANT_WORDS)
            .write(0, &grants);
        self.set_names(slot, &table.listed)
    }

    /// Returns the ids of the names for which a truncated answer was received after `since`, on the kernel's clock.
    pub(super) fn truncated(&self, since: Duration) -> Vec<u32> {
        let since = since.as_nanos() as u64;
        let last = |id: usize| self.states.all().load(id * STATE_WORDS + 2);
        (0..MAX_NAMES)
            .filter(|id| last(*id) > since)
            .map(|id| id as u32)
            .collect()
    }

    /// Sets the names of a slot, and removes its other names.
    fn set_names(&mut self, slot: u32, listed: &[ListedPattern]) -> Result<()> {
        let what = || format!("cannot update the map {LISTED_NAMES}");
        let mut wanted: BTreeMap<NameKey, ListedName> = BTreeMap::new();
        for pattern in listed {
            let kind = if pattern.is_wildcard {
                WildcardKey::Below
            } else {
                WildcardKey::Exact
            };
            // A wildcard below the longest possible name covers none, and has no key.
            if let Some(key) = NameKey::new(slot as u8, &pattern.name, kind) {
                let mut flags = 0;
                if pattern.is_wildcard {
                    flags |= ListedName::BELOW;
                }
                if pattern.is_special {
                    flags |= ListedName::SPECIAL;
                }
                let id = pattern.id;
                wanted.insert(key, ListedName { id, kind: flags });
            }
        }
        let mut known = Vec::new();
        for key in self.names.keys() {
            let key = key.with_context(what)?;
            let key = NameKey {
                bits: key.prefix_len(),
                data: key.data(),
            };
            if u32::from(key.slot()) == slot {
                known.push(key);
            }
        }
        for key in known.iter().filter(|key| !wanted.contains_key(key)) {
            self.names.remove(&trie_key(key)).with_context(what)?;
        }
        for (key, listed) in wanted {
            self.names
                .insert(&trie_key(&key), listed, 0)
                .with_context(what)?;
        }
        Ok(())
    }
}

fn trie_key(key: &NameKey) -> Key<[u8; 256]> {
    Key::new(key.bits, key.data)
}

/// The ids of the names for which each address ([`address_key`]) was learnt, in the order of the kernel's lookup, each with
/// the time until which it is valid.
pub(super) type NamesByAddress = BTreeMap<[u64; 2], Vec<(u32, Duration)>>;

/// Returns the addresses that were learnt and are still valid, with their names.
pub(super) fn learned_names(pins: &Pins) -> Result<NamesByAddress> {
    let now = kernel_clock();
    let mut all = NamesByAddress::new();
    for name in [LEARNED, LEARNED_BELOW] {
        for (key, names) in entries::<[u64; 2], LearnedNames>(pins, name)? {
            let names = names.entries.map(|word| {
                let entry = Learned(word);
                (entry.id(), Duration::from_nanos(entry.until()))
            });
            let valid = names
                .into_iter()
                .filter(|(id, until)| *id != 0 && *until > now);
            all.entry(key).or_default().extend(valid);
        }
    }
    Ok(all)
}

/// Returns the addresses that were learnt for names and are still valid, sorted.
pub(super) fn learned_addresses(pins: &Pins) -> Result<Vec<LearnedAddress>> {
    let mut addresses: Vec<LearnedAddress> = learned_names(pins)?
        .into_iter()
        .flat_map(|(key, names)| {
            let of_name = move |(name, until)| LearnedAddress {
                name,
                address: address_of(key),
                until,
            };
            names.into_iter().map(of_name)
        })
        .collect();
    addresses.sort();
    Ok(addresses)
}

/// Returns the listed name under which answers for a name in lower case are stored in the tables of a slot, as the kernel
/// finds it; `None` if no rule lists the name.
pub(super) fn listed_name(pins: &Pins, slot: u32, name: &str) -> Result<Option<ListedName>> {
    let Some(key) = NameKey::new(slot as u8, name, WildcardKey::Exact) else {
        return Ok(None);
    };
    let names: LpmTrie<_, [u8; 256], ListedName> = pins.open_map(LISTED_NAMES)?.try_into()?;
    match names.get(&trie_key(&key), 0) {
        Ok(listed) => Ok(Some(listed)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read the map {LISTED_NAMES}")),
    }
}

/// Returns the rules that allow the addresses of each name in the tables of a slot, by the id of the name.
pub(super) fn grants(pins: &Pins, slot: u32) -> Result<Vec<NameGrant>> {
    let map = pins.open_data(NAME_GRANTS)?;
    let words = read_value(map.fd().as_fd(), slot, GRANT_WORDS)
        .with_context(|| format!("cannot read the map {NAME_GRANTS}"))?;
    Ok(bytemuck::cast_slice(&words).to_vec())
}

/// Adds addresses that were learnt earlier, for example before the system was started, unless the kernel has newer
/// entries for them. `is_wildcard` states whether the name with an id is a wildcard.
pub(super) fn restore(
    pins: &Pins,
    addresses: &[LearnedAddress],
    is_wildcard: impl Fn(u32) -> bool,
) -> Result<()> {
    let mut exact: HashMap<_, [u64; 2], LearnedNames> = pins.open_map(LEARNED)?.try_into()?;
    let mut below: HashMap<_, [u64; 2], LearnedNames> = pins.open_map(LEARNED_BELOW)?.try_into()?;
    for learnt in addresses {
        let (map, what) = if is_wildcard(learnt.name) {
            (&mut below, LEARNED_BELOW)
        } else {
            (&mut exact, LEARNED)
        };
        let key = address_key(learned(learnt.address.into()));
        let entry = Learned::new(learnt.name, learnt.until.as_nanos() as u64);
        let mut names = map.get(&key, 0).unwrap_or_default();
        if names
            .entries
            .iter()
            .any(|word| Learned(*word).id() == learnt.name)
        {
            continue;
        }
        if let Some(free) = names.entries.iter_mut().find(|word| **word == 0) {
            *free = entry.0;
            map.insert(key, names, 0)
                .with_context(|| format!("cannot update the map {what}"))?;
        }
    }
    Ok(())
}

/// Removes all addresses.
pub(super) fn forget(pins: &Pins) -> Result<()> {
    for name in [LEARNED, LEARNED_BELOW] {
        clear::<[u64; 2], LearnedNames>(pins, name)?;
    }
    Ok(())
}

/// Returns the address of a key ([`address_key`]).
pub(super) fn address_of([high, low]: [u64; 2]) -> IpAddr {
    let number = u128::from(high) << 64 | u128::from(low);
    std::net::Ipv6Addr::from(number).to_canonical()
}
