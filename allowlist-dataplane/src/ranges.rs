//! The range table in the kernel's memory: writes a whole table into an idle slot, or changes one prefix of the active
//! one.
//!
//! A change in place appends a new chunk after the used part of the pool, whose contents no packet uses, and then
//! replaces one root entry by one store with release ordering. A packet that loads the new entry therefore finds the
//! whole chunk and the grant of its match id. The old chunk is kept, so the old root entry reverts the change. Each table
//! has spare room for such changes; if it is used up, the next change publishes a whole table.
//!
//! The prefixes of each table are stored in a list of their own, for reports: the sorted prefixes of the published
//! table (the *base*), then the later changes in place, in order of time.

use std::sync::atomic::{Ordering, fence};

use allowlist_common::abi::{self, GenerationTables, Grant, MIN_POOL_WORDS, ServiceTable};
use allowlist_common::packet::Address;
use allowlist_common::ranges::{MatchId, v4, v6};
use allowlist_policy::compile::{RangeTable, Words, part_v4, part_v6};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::memory::Part;
use super::pins::Pins;
use super::slots::Slots;
use super::view::Entry;
use crate::error::{Error, Result, bail, ensure};

/// The size of the generation tables before the pool, in words of 8 bytes.
pub(super) const FIXED: usize = size_of::<GenerationTables>() / size_of::<u64>();
const REACH: usize = std::mem::offset_of!(GenerationTables, reach) / size_of::<u64>();
const ROOT_V4: usize = std::mem::offset_of!(GenerationTables, v4) / size_of::<u32>();
const ROOT_V6: usize = std::mem::offset_of!(GenerationTables, v6) / size_of::<u32>();

const _: () = assert!(
    FIXED.is_multiple_of(v6::BLOCK_WORDS),
    "blocks are where cache lines are"
);

/// Returns the size of a new table in words of 8 bytes, for `pool` words of chunks.
///
/// Adds a quarter and a constant as spare room for changes in place and later generations. Rounds up to whole pages,
/// because the tables are adjacent in one map, and their blocks must be aligned to cache lines.
pub(super) const fn wanted(pool: usize) -> usize {
    const PAGE: usize = 4096 / size_of::<u64>();
    (FIXED + pool + pool / 4 + MIN_POOL_WORDS as usize).next_multiple_of(PAGE)
}

/// The IPv4 and the IPv6 prefixes of a table, each sorted, with their grants.
type Prefixes<'p> = (&'p [(Ipv4Net, Grant)], &'p [(Ipv6Net, Grant)]);

/// The state of a range table that was written into a slot.
pub(super) struct Ranges {
    slot: u32,
    /// The number of used words of 8 bytes in the pool; the next chunk is appended after them.
    used: usize,
    /// The size of the header and the base (the prefixes at the publish) in the list of prefixes, in words of 8 bytes.
    base: usize,
    /// The number of changes in place that the list of prefixes has after its base.
    changes: usize,
}

/// Writes a range table into a slot that no program uses, without a list of its prefixes.
pub(super) fn write_table(memory: &Part<'_>, table: &RangeTable) -> Result<()> {
    ensure!(
        FIXED + table.pool.len() <= memory.words(),
        "the range table is larger than its slot in the kernel"
    );
    memory.write(REACH, &*table.reach);
    memory.write(ROOT_V4 / 2, &paired(&*table.v4));
    memory.write(ROOT_V6 / 2, &paired(&*table.v6));
    memory.write(FIXED, &table.pool);
    Ok(())
}

/// Writes the list of the prefixes of a table that is not changed in place.
pub(super) fn write_prefixes(
    prefixes: &mut Slots,
    pins: &Pins,
    slot: u32,
    (v4, v6): Prefixes<'_>,
) -> Result<()> {
    let list = prefixes.room(pins, slot, LIST + v4.len() + v6.len() * CHANGE)?;
    write_list(&list.all(), v4, v6);
    Ok(())
}

/// The entry of a root before a change in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RootUndo {
    /// The index of the root entry in the table, in units of 4 bytes.
    place: usize,
    /// The previous value of the root entry.
    root: u32,
}

impl Ranges {
    /// Writes a range table, and the list of its prefixes, into a slot that no packet uses.
    pub(super) fn write(
        memory: &Part<'_>,
        prefixes: &mut Slots,
        pins: &Pins,
        slot: u32,
        table: &RangeTable,
        (v4, v6): Prefixes<'_>,
    ) -> Result<Self> {
        write_table(memory, table)?;
        let base = LIST + v4.len() + v6.len() * 3;
        let list = prefixes.room(pins, slot, base + base / 8 + LIST_LEAST)?;
        write_list(&list.all(), v4, v6);
        Ok(Self {
            slot,
            used: table.pool.len(),
            base,
            changes: 0,
        })
    }

    /// Sets the grant of one prefix in place, or removes the prefix if `grant` is `None`, and returns the previous root
    /// entry. The last argument has all prefixes after the change.
    ///
    /// Returns `None`, and changes nothing that a packet uses, if the prefix cannot be changed in place.
    pub(super) fn change(
        &mut self,
        memory: &Part<'_>,
        list: &Part<'_>,
        prefix: IpNet,
        grant: Option<Grant>,
        (v4, v6): Prefixes<'_>,
    ) -> Option<RootUndo> {
        if prefix.prefix_len() < ROOT_LENGTH || !self.has_list_room(list) {
            return None; // covered by several root entries
        }
        let place = match prefix {
            IpNet::V4(prefix) => ROOT_V4 + v4::root(prefix.network().into()),
            IpNet::V6(prefix) => ROOT_V6 + v6::root((u128::from(prefix.network()) >> 64) as u64),
        };
        let part = match prefix {
            IpNet::V4(prefix) => part_v4(v4, prefix.network().into(), self.used),
            IpNet::V6(prefix) => part_v6(v6, prefix.network().into(), self.used),
        };
        let from = FIXED + self.used;
        if from + part.words.len() > memory.words() {
            return None;
        }
        if let Some(grant) = grant {
            let reach = memory.load(REACH + grant.match_id as usize);
            if reach != grant.services() && reach != 0 {
                return None; // a packet may be using the id with its previous grant
            }
            memory.store(REACH + grant.match_id as usize, grant.services());
        }
        memory.write(from, &part.words);
        let before = RootUndo {
            place,
            root: memory.load_half(place),
        };
        self.used += part.words.len();
        self.list(list, prefix, grant);
        // Last: packets find the chunk and `reach` only by this entry.
        memory.store_half(place, part.root);
        Some(before)
    }

    /// Restores a root entry that [`Self::change`] returned, and lists `prefix` with `grant`, its state before the
    /// change.
    pub(super) fn revert(
        &mut self,
        memory: &Part<'_>,
        list: &Part<'_>,
        before: RootUndo,
        prefix: IpNet,
        grant: Option<Grant>,
    ) {
        memory.store_half(before.place, before.root);
        // `has_list_room` leaves room in the list to revert every change.
        self.list(list, prefix, grant);
    }

    pub(super) const fn slot(&self) -> u32 {
        self.slot
    }

    /// Returns whether the list has room for one more change, and for reverting every change.
    fn has_list_room(&self, list: &Part<'_>) -> bool {
        self.base + (self.changes + 1) * 2 * CHANGE <= list.words()
    }

    fn list(&mut self, list: &Part<'_>, prefix: IpNet, grant: Option<Grant>) {
        let from = self.base + self.changes * CHANGE;
        if from + CHANGE > list.words() {
            return;
        }
        let id = grant.map_or(0, |grant| grant.match_id);
        list.write(from, &record(prefix, id));
        self.changes += 1;
        // Last: readers ignore records beyond this number.
        list.store(1, self.changes as u64);
    }
}

/// Writes the services of a generation into a slot that no packet uses.
pub(super) fn write_services(memory: &Part<'_>, services: &ServiceTable) {
    memory.write(0, words_of(services));
}

/// The minimum length of a prefix that is covered by one root entry, and so can be changed in place.
const ROOT_LENGTH: u8 = allowlist_common::ranges::ROOT_BITS as u8;

/// The size of the list's header in words: the number of IPv4 prefixes (lower half) and IPv6 prefixes, then the number
/// of changes.
const LIST: usize = 2;
/// The size of a changed prefix in the list, in words: two of address, and one of length and match id.
const CHANGE: usize = 3;
/// The minimum room for changes in place in a new list of prefixes, in words of 8 bytes.
const LIST_LEAST: usize = 1 << 12;

fn write_list(list: &Part<'_>, v4: &[(Ipv4Net, Grant)], v6: &[(Ipv6Net, Grant)]) {
    list.store(0, v4.len() as u64 | (v6.len() as u64) << 32);
    list.store(1, 0);
    let v4 = v4.iter().map(|(prefix, grant)| {
        let address = u32::from(prefix.network());
        u64::from(address) << 24 | length_and_id(prefix.prefix_len(), grant.match_id)
    });
    let v6 = v6
        .iter()
        .flat_map(|(prefix, grant)| record((*prefix).into(), grant.match_id));
    list.write(LIST, &v4.chain(v6).collect::<Vec<_>>());
}

fn length_and_id(length: u8, id: u32) -> u64 {
    u64::from(length) << 16 | u64::from(id as MatchId)
}

/// Encodes a prefix of either family with its match id, as three words of the list; the bit [`IS_V6`] states the
/// family.
fn record(prefix: IpNet, id: u32) -> [u64; CHANGE] {
    let last = length_and_id(prefix.prefix_len(), id);
    match prefix {
        IpNet::V4(prefix) => [0, u32::from(prefix.network()).into(), last],
        IpNet::V6(prefix) => {
            let address = u128::from(prefix.network());
            [(address >> 64) as u64, address as u64, last | IS_V6]
        }
    }
}

const IS_V6: u64 = 1 << 32;

fn prefix_of(address: [u64; 2], last: u64) -> Result<(IpNet, MatchId)> {
    let length = (last >> 16) as u8;
    let prefix = if last & IS_V6 == 0 {
        IpNet::new(
            std::net::IpAddr::from((address[1] as u32).to_be_bytes()),
            length,
        )
    } else {
        let address = u128::from(address[0]) << 64 | u128::from(address[1]);
        IpNet::new(std::net::IpAddr::from(address.to_be_bytes()), length)
    };
    let prefix = prefix.map_err(|_| {
        Error::message("the list of prefixes in the kernel has a prefix with an invalid length; the next publish rewrites the list")
    })?;
    Ok((prefix, last as MatchId))
}

/// A copy of one generation's tables, for a process that only reads.
pub(super) struct Copied {
    words: Vec<u64>,
}

impl Copied {
    /// Copies the tables of a slot. The copy is consistent if the control word is the same before and after.
    pub(super) fn of(memory: &Part<'_>) -> Result<Self> {
        if memory.words() < FIXED {
            bail!(
                "the generation tables in the kernel are smaller than this version requires; run `allowlist detach`, then start the daemon again"
            );
        }
        // The roots before their chunks, which are not written again while the slot is active.
        let words = memory.read(0, memory.words());
        fence(Ordering::Acquire);
        Ok(Self { words })
    }

    /// Returns the table of ports and services.
    pub(super) fn services(&self) -> &ServiceTable {
        bytemuck::from_bytes(&bytemuck::cast_slice(&self.words)[..size_of::<ServiceTable>()])
    }

    /// Returns the [`Grant`] of a source address; `None` if no prefix contains the address.
    pub(super) fn grant(&self, source: &Address) -> Option<Grant> {
        let pool = Words(&self.words[FIXED..]);
        let id = match *source {
            Address::V4(address) => {
                let root = self.half(ROOT_V4 + v4::root(address))?;
                v4::find(root, address, &pool)
            }
            Address::V6(address) => {
                let root = self.half(ROOT_V6 + v6::root(address[0]))?;
                v6::find(root, address, &pool)
            }
        };
        (id != 0).then(|| self.grant_of(id))
    }

    /// Returns the [`Grant`] for a match id: the id, and the services that its addresses may reach.
    fn grant_of(&self, id: MatchId) -> Grant {
        let id = u32::from(id) % abi::MAX_MATCHES;
        Grant::new(self.words[REACH + id as usize], id)
    }

    /// Returns the prefixes of the table, sorted, from the slot's `list` of prefixes.
    ///
    /// # Errors
    /// Fails if the list is damaged.
    pub(super) fn entries(&self, list: &Part<'_>) -> Result<Vec<Entry>> {
        let (counts, changes) = (list.load(0), list.load(1) as usize);
        let (v4, v6) = (counts as u32 as usize, (counts >> 32) as usize);
        let base = LIST + v4 + v6 * CHANGE;
        ensure!(
            base + changes * CHANGE <= list.words(),
            "the list of prefixes in the kernel is damaged; the next publish rewrites the list"
        );
        let mut entries = Vec::with_capacity(v4 + v6);
        for place in LIST..LIST + v4 {
            let packed = list.load(place);
            entries.push(prefix_of([0, packed >> 24], packed & 0xff_ffff)?);
        }
        let read = |from: usize, count: usize| {
            (0..count).map(move |number| {
                let word = |part| list.load(from + number * CHANGE + part);
                prefix_of([word(0), word(1)], word(2))
            })
        };
        for listed in read(LIST + v4, v6) {
            entries.push(listed?);
        }
        for change in read(base, changes) {
            let (prefix, id) = change?;
            match (
                entries.binary_search_by(|(known, _)| known.cmp(&prefix)),
                id,
            ) {
                (Ok(place), 0) => drop(entries.remove(place)),
                (Ok(place), id) => entries[place].1 = id,
                (Err(_), 0) => {}
                (Err(place), id) => entries.insert(place, (prefix, id)),
            }
        }
        let granted = entries.into_iter().map(|(prefix, id)| Entry {
            prefix,
            grant: self.grant_of(id),
        });
        Ok(granted.collect())
    }

    fn half(&self, place: usize) -> Option<u32> {
        Words(&self.words).halves().get(place).copied()
    }
}

/// Returns the prefixes of a slot, from its list in the pinned map `name` and a copy of its tables; empty if no list is
/// pinned.
pub(super) fn entries_in(
    pins: &Pins,
    name: &'static str,
    slot: u32,
    table: &Copied,
) -> Result<Vec<Entry>> {
    match super::slots::memory(pins, name, slot)? {
        Some(list) => table.entries(&list.all()),
        None => Ok(Vec::new()),
    }
}

fn paired(halves: &[u32]) -> Vec<u64> {
    let pairs = halves.chunks_exact(2);
    pairs
        .map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32)
        .collect()
}

/// Returns the service table as words, to write it into the map.
fn words_of(services: &ServiceTable) -> &[u64] {
    bytemuck::cast_slice(std::slice::from_ref(services))
}
