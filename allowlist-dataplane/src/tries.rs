//! The kernel's longest-prefix-match tries: creates the tries of a generation, or changes one prefix of the active
//! ones.

use std::net::IpAddr;
use std::os::fd::AsFd as _;

use allowlist_common::abi::{self, Grant};
use allowlist_common::packet::Address;
use aya::maps::lpm_trie::Key;
use aya::maps::{ArrayOfMaps, LpmTrie, MapData, MapError};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::pins::Pins;
use super::sys::{clear_inner_map, inner_map_id};
use super::view::Entry;
use crate::error::{Context as _, Error, Result};

pub(super) type Trie<K> = LpmTrie<MapData, K, Grant>;

/// The IPv4 and the IPv6 trie of one generation.
pub(super) struct Tries {
    v4: Trie<[u8; 4]>,
    v6: Trie<[u8; 16]>,
}

/// The two arrays of maps with the tries of each slot.
pub(super) struct TrieSlots {
    pub(super) v4: ArrayOfMaps<MapData, Trie<[u8; 4]>>,
    pub(super) v6: ArrayOfMaps<MapData, Trie<[u8; 16]>>,
}

impl TrieSlots {
    /// Stores the tries of a generation in a slot that no packet uses.
    pub(super) fn set(&mut self, slot: u32, tries: &Tries) -> Result<()> {
        self.v4.set(slot, &tries.v4, 0)?;
        self.v6.set(slot, &tries.v6, 0)?;
        Ok(())
    }

    /// Removes the tries, if there are any, from a slot that no packet uses.
    pub(super) fn empty(pins: &Pins, slot: u32) -> Result<()> {
        for name in [abi::TRIES_V4, abi::TRIES_V6] {
            let map = pins.open_data(name)?;
            if inner_map_id(map.fd().as_fd(), slot)?.is_some() {
                clear_inner_map(map.fd().as_fd(), slot).with_context(|| {
                    format!("cannot remove the map in slot {slot} of the map {name}")
                })?;
            }
        }
        Ok(())
    }
}

impl Tries {
    /// Creates tries with these prefixes and grants.
    pub(super) fn of(v4: &[(Ipv4Net, Grant)], v6: &[(Ipv6Net, Grant)]) -> Result<Self> {
        let v4 = v4.iter().map(|(prefix, grant)| (v4_key(*prefix), *grant));
        let v6 = v6.iter().map(|(prefix, grant)| (v6_key(*prefix), *grant));
        Ok(Self {
            v4: trie(v4)?,
            v6: trie(v6)?,
        })
    }

    /// Opens the tries in a slot, for a process that only reads. They stay valid when other tries are stored in the
    /// slot.
    pub(super) fn open(pins: &Pins, slot: u32) -> Result<Self> {
        let v4: ArrayOfMaps<_, Trie<[u8; 4]>> = pins.open_map(abi::TRIES_V4)?.try_into()?;
        let v6: ArrayOfMaps<_, Trie<[u8; 16]>> = pins.open_map(abi::TRIES_V6)?.try_into()?;
        Ok(Self {
            v4: v4.get(&slot, 0)?,
            v6: v6.get(&slot, 0)?,
        })
    }

    /// Sets the grant of a prefix, or removes the prefix if the grant is `None`.
    pub(super) fn store(&mut self, prefix: IpNet, grant: Option<Grant>) -> Result<(), MapError> {
        match prefix {
            IpNet::V4(prefix) => store(&mut self.v4, &v4_key(prefix), grant),
            IpNet::V6(prefix) => store(&mut self.v6, &v6_key(prefix), grant),
        }
    }

    /// Returns the [`Grant`] of a source address; `None` if no prefix contains the address.
    pub(super) fn grant(&self, source: &Address) -> Result<Option<Grant>, MapError> {
        let found = match IpAddr::from(*source) {
            IpAddr::V4(address) => self.v4.get(&Key::new(32, address.octets()), 0),
            IpAddr::V6(address) => self.v6.get(&Key::new(128, address.octets()), 0),
        };
        match found {
            Err(MapError::KeyNotFound) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Returns all prefixes with their grants, sorted.
    pub(super) fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = entries(&self.v4)?;
        entries.extend(self::entries(&self.v6)?);
        entries.sort_unstable_by_key(|entry| entry.prefix);
        Ok(entries)
    }
}

fn entries<K: aya::Pod + Into<IpAddr>>(trie: &Trie<K>) -> Result<Vec<Entry>> {
    trie.iter()
        .map(|entry| {
            let (key, grant): (Key<K>, Grant) = entry?;
            let (address, length) = (key.data(), key.prefix_len());
            Ok(Entry {
                prefix: IpNet::new(address.into(), length as u8).map_err(|_| {
                    Error::message("the kernel's table of prefixes (an LPM trie) is damaged, since it has a prefix with an invalid length; restart the daemon, which writes the table anew")
                })?,
                grant,
            })
        })
        .collect()
}

fn store<K: aya::Pod>(
    trie: &mut Trie<K>,
    key: &Key<K>,
    grant: Option<Grant>,
) -> Result<(), MapError> {
    match grant {
        Some(grant) => trie.insert(key, grant, 0),
        None => trie.remove(key),
    }
}

fn v4_key(prefix: Ipv4Net) -> Key<[u8; 4]> {
    Key::new(prefix.prefix_len().into(), prefix.network().octets())
}

fn v6_key(prefix: Ipv6Net) -> Key<[u8; 16]> {
    Key::new(prefix.prefix_len().into(), prefix.network().octets())
}

/// Creates a trie with these entries and room for changes in place.
///
/// The kernel allocates the nodes of a trie one by one, so spare room takes no memory.
fn trie<K: aya::Pod>(entries: impl ExactSizeIterator<Item = (Key<K>, Grant)>) -> Result<Trie<K>> {
    const BPF_F_NO_PREALLOC: u32 = 1;
    const SPARE: u32 = 1 << 16;
    let length = entries.len();
    let room = u32::try_from(length)
        .unwrap_or(u32::MAX)
        .saturating_add(SPARE);
    let mut trie = Trie::create(room, BPF_F_NO_PREALLOC)
        .context("cannot create an LPM trie for the prefixes of a generation")?;
    for (key, grant) in entries {
        trie.insert(&key, grant, 0).with_context(|| {
            format!(
                "cannot store all {length} prefixes in an LPM trie (the host may be short of memory)"
            )
        })?;
    }
    Ok(trie)
}
