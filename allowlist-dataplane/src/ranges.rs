//! The range table in the kernel's memory: a generation written whole into an idle slot, or one prefix changed in
//! the one that is in force.
//!
//! What one place of a root leads to is replaced by one store: its new chunk is put behind all that the pool holds,
//! where no packet looks, and then the root's number changes. The old chunk stays as it is, so a change is taken back by
//! the old number. Room for that is left in every table; where it is used up, the next change is a whole table.
//!
//! The prefixes that a table was made from are in memory of their own, for those who list them: a base in order,
//! and behind it what changed in place since, in the order of time.

use std::sync::atomic::{Ordering, fence};

use crate::error::{Error, Result, bail, ensure};
use allowlist_common::abi::{self, GenerationTables, Grant, MIN_POOL_WORDS, ServiceTable};
use allowlist_common::packet::Address;
use allowlist_common::ranges::{MatchId, v4, v6};
use allowlist_policy::compile::{RangeTable, Words, part_v4, part_v6};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::memory::Part;
use super::pins::Pins;
use super::slots::Slots;
use super::view::Entry;

/// Words before the pool.
pub(super) const FIXED: usize = size_of::<GenerationTables>() / size_of::<u64>();
const REACH: usize = std::mem::offset_of!(GenerationTables, reach) / size_of::<u64>();
const ROOT_V4: usize = std::mem::offset_of!(GenerationTables, v4) / size_of::<u32>();
const ROOT_V6: usize = std::mem::offset_of!(GenerationTables, v6) / size_of::<u32>();

const _: () = assert!(
    FIXED.is_multiple_of(v6::BLOCK_WORDS),
    "blocks are where cache lines are"
);

/// Words of a table with so many in its pool: a quarter more, and some, for what is changed in place and for the
/// next generations. Whole pages, since tables are in a row in one map, and blocks are to be where cache lines are.
pub(super) const fn wanted(pool: usize) -> usize {
    const PAGE: usize = 4096 / size_of::<u64>();
    (FIXED + pool + pool / 4 + MIN_POOL_WORDS as usize).next_multiple_of(PAGE)
}

/// The prefixes of both families, each in order.
type Prefixes<'p> = (&'p [(Ipv4Net, Grant)], &'p [(Ipv6Net, Grant)]);

/// A table that is in a slot.
pub(super) struct Ranges {
    slot: u32,
    /// Words of the pool that are in use.
    used: usize,
    /// Words of the prefixes' base, and changes behind it.
    base: usize,
    changes: usize,
}

/// The entry of a root before a change in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RootUndo {
    /// The place of a root, in halves of words, and what it held.
    place: usize,
    root: u32,
}

impl Ranges {
    /// Writes a table and the prefixes that it is of into a slot that no packet is looked up in.
    pub(super) fn write(
        memory: &Part<'_>,
        prefixes: &mut Slots,
        pins: &Pins,
        slot: u32,
        table: &RangeTable,
        (v4, v6): Prefixes<'_>,
    ) -> Result<Self> {
        memory.write(REACH, &*table.reach);
        memory.write(ROOT_V4 / 2, &paired(&*table.v4));
        memory.write(ROOT_V6 / 2, &paired(&*table.v6));
        ensure!(
            FIXED + table.pool.len() <= memory.words(),
            "the table does not fit"
        );
        memory.write(FIXED, &table.pool);
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

    /// Changes one prefix, of tables that are `v4` and `v6` with it.
    ///
    /// # Returns
    /// What takes it back; `None` where it cannot be changed in place, and then nothing has changed.
    pub(super) fn change(
        &mut self,
        memory: &Part<'_>,
        list: &Part<'_>,
        prefix: IpNet,
        grant: Option<Grant>,
        (v4, v6): Prefixes<'_>,
    ) -> Option<RootUndo> {
        if prefix.prefix_len() < ROOT_LENGTH || !self.has_list_room(list) {
            return None; // of several places of the root
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
                return None; // the id has meant something else, and some packet may know it
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
        memory.store_half(place, part.root); // after all that it leads to
        Some(before)
    }

    /// Restores an entry of a root from before the change of `prefix` to `grant`.
    pub(super) fn revert(
        &mut self,
        memory: &Part<'_>,
        list: &Part<'_>,
        before: RootUndo,
        prefix: IpNet,
        grant: Option<Grant>,
    ) {
        memory.store_half(before.place, before.root);
        // As many as there is room to change can be taken back: see `has_list_room`.
        self.list(list, prefix, grant);
    }

    pub(super) const fn slot(&self) -> u32 {
        self.slot
    }

    /// Whether the list has room for a change and for taking every change back.
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
        list.store(1, self.changes as u64);
    }
}

/// The services of a generation, into a slot that no packet is looked up in.
pub(super) fn write_services(memory: &Part<'_>, services: &ServiceTable) {
    memory.write(0, words_of(services));
}

/// A prefix must be at least as long for one place of a root to be all that it changes.
const ROOT_LENGTH: u8 = allowlist_common::ranges::ROOT_BITS as u8;

/// Words before the base of the list: how many prefixes of IPv4 (low half) and IPv6 it has, and how many changes.
const LIST: usize = 2;
/// Words of a prefix in the changes: its address, then length and id.
const CHANGE: usize = 3;
/// Words for changes, at least.
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

/// Any prefix in three words; the bit is the family.
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
    let prefix =
        prefix.map_err(|_| Error::message("a prefix in the range table has an invalid length"))?;
    Ok((prefix, last as MatchId))
}

/// A copy of a table, for a process that only reads.
pub(super) struct Copied {
    words: Vec<u64>,
}

impl Copied {
    /// Copies the table of a slot. The copy is consistent if the control word is the same before and after.
    pub(super) fn of(memory: &Part<'_>) -> Result<Self> {
        if memory.words() < FIXED {
            bail!("the kernel's table is too short");
        }
        // The roots before their chunks, which are not written to again.
        let words = memory.read(0, memory.words());
        fence(Ordering::Acquire);
        Ok(Self { words })
    }

    /// Returns the table of ports and services.
    pub(super) fn services(&self) -> &ServiceTable {
        bytemuck::from_bytes(&bytemuck::cast_slice(&self.words)[..size_of::<ServiceTable>()])
    }

    /// Returns the grant of a source.
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

    /// What an id reaches.
    fn grant_of(&self, id: MatchId) -> Grant {
        let id = u32::from(id) % abi::MAX_MATCHES;
        Grant::new(self.words[REACH + id as usize], id)
    }

    /// The prefixes that the table was made from, in order.
    pub(super) fn entries(&self, list: &Part<'_>) -> Result<Vec<Entry>> {
        let (counts, changes) = (list.load(0), list.load(1) as usize);
        let (v4, v6) = (counts as u32 as usize, (counts >> 32) as usize);
        let base = LIST + v4 + v6 * CHANGE;
        ensure!(
            base + changes * CHANGE <= list.words(),
            "the list of prefixes in the kernel is damaged; the next publish rewrites it"
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

/// The list of a slot, and its table.
pub(super) fn entries_in(pins: &Pins, slot: u32, table: &Copied) -> Result<Vec<Entry>> {
    match super::slots::memory(pins, abi::PREFIXES, slot)? {
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

/// Returns a table as the words that the kernel's memory is written in.
fn words_of(services: &ServiceTable) -> &[u64] {
    bytemuck::cast_slice(std::slice::from_ref(services))
}
