//! The tables of the slots: writes all tables of a generation into an idle slot, or changes one prefix of the active
//! tables in place.
//!
//! Invariant: a slot is written only after every packet that may look into it has been judged.
//!
//! Knows neither the control word nor which slot is idle: the caller does.

use std::collections::VecDeque;

use allowlist_common::abi::{self, Grant, ServiceTable};
use allowlist_policy::Engine;
use allowlist_policy::compile::{IdTable, RangeTable, Tables};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use log::debug;

use super::generations::Generations;
use super::metadata::Metadata;
use super::pins::Pins;
use super::ranges::{self, Copied, Ranges};
use super::rcu::GracePeriod;
use super::slots::Slots;
use super::tries::{TrieSlots, Tries};
use crate::error::{Context as _, Result, bail};

/// The maps with a value for each slot.
pub(super) struct SlotTables {
    pub(super) generations: Generations,
    pub(super) prefixes: Slots,
    pub(super) tries: TrieSlots,
    pub(super) metadata: Metadata,
    pub(super) rcu: GracePeriod,
    /// A copy of the active tables; `None` unless this process published them.
    pub(super) published: Option<Published>,
}

/// The tables that this process published last, and the changes that it made in place since.
pub(super) struct Published {
    services: Box<ServiceTable>,
    v4: Vec<(Ipv4Net, Grant)>,
    v6: Vec<(Ipv6Net, Grant)>,
    /// The names of sources and services by their ids, as the metadata in the kernel has them.
    ids: IdTable,
    backend: LookupBackend,
    /// The changes in place that can be reverted, the oldest first: the generation of each, and the previous state of
    /// the changed prefix.
    undo: VecDeque<(u32, InPlaceUndo)>,
    /// The last generation whose change in place was dropped from `undo`, so that no earlier generation can be
    /// restored; 0 if none was dropped.
    forgotten: u32,
}

/// The data structure in which source addresses are looked up, in the published tables.
enum LookupBackend {
    Ranges(Ranges),
    Tries(Box<Tries>),
}

/// The maximum number of changes in place that can be reverted; a further change makes the oldest one permanent.
const REMEMBERED: usize = 256;

/// A prefix and its grant; the grant is `None` if the table does not contain the prefix.
type PrefixGrant = (IpNet, Option<Grant>);

/// The previous state of a prefix that was changed in place, from which the change can be reverted.
struct InPlaceUndo {
    one: PrefixGrant,
    /// The previous value of the prefix's root entry; `None` if the lookup uses tries.
    before: Option<ranges::RootUndo>,
}

/// The lookup structure of a generation that is not written yet.
pub(super) enum Prepared {
    Ranges(RangeTable),
    Tries(Box<Tries>),
}

impl Prepared {
    /// Makes the lookup structure of `tables`.
    pub(super) fn new(tables: &Tables, lookup: Engine) -> Result<Self> {
        Ok(match lookup {
            Engine::RangeTable => Self::Ranges(RangeTable::of(&tables.v4, &tables.v6)),
            Engine::LpmTrie => Self::Tries(Box::new(Tries::of(&tables.v4, &tables.v6)?)),
        })
    }

    /// Returns the size that a slot must have, in words of 8 bytes, if a slot of `words` words is too small; `None` if
    /// it is large enough, as it always is for tries.
    pub(super) fn larger_than(&self, words: usize) -> Option<usize> {
        match self {
            Self::Ranges(table) if ranges::FIXED + table.pool.len() > words => {
                Some(ranges::wanted(table.pool.len()))
            }
            _ => None,
        }
    }
}

impl SlotTables {
    /// Returns the size of each slot's tables in words of 8 bytes.
    pub(super) const fn words(&self) -> usize {
        self.generations.words()
    }

    /// Returns a copy of the services in a slot.
    pub(super) fn services(&self, slot: u32) -> Result<Copied> {
        Copied::of(&self.generations.get(slot % abi::SLOTS))
    }

    /// Writes a generation into a slot that no new packet uses: its services, its lookup structure and its metadata.
    /// Returns the copy of the tables for [`Self::published`], once the slot is active.
    pub(super) fn write(
        &mut self,
        pins: &Pins,
        slot: u32,
        services: Box<ServiceTable>,
        prepared: Prepared,
        tables: &Tables,
        metadata: &[u8],
    ) -> Result<Published> {
        // A packet that read the control word before the last flip may still be looking into the slot.
        self.rcu.join()?;
        let backend = match prepared {
            Prepared::Ranges(table) => {
                TrieSlots::empty(pins, slot)?; // of before the lookup changed
                let memory = self.generations.get(slot);
                ranges::write_services(&memory, &services);
                let lists = (&*tables.v4, &*tables.v6);
                let ranges = Ranges::write(&memory, &mut self.prefixes, pins, slot, &table, lists)?;
                LookupBackend::Ranges(ranges)
            }
            Prepared::Tries(tries) => {
                ranges::write_services(&self.generations.get(slot), &services);
                self.tries.set(slot, &tries)?;
                LookupBackend::Tries(tries)
            }
        };
        if metadata.is_empty() {
            self.metadata.remove(pins, slot)?;
        } else {
            self.metadata.store(pins, slot, metadata)?;
        }
        Ok(Published {
            services,
            v4: tables.v4.clone(),
            v6: tables.v6.clone(),
            ids: tables.ids.clone(),
            backend,
            undo: VecDeque::new(),
            forgotten: 0,
        })
    }

    /// Changes the published tables in `slot` to `tables` in place, if the services are equal and at most one prefix
    /// differs.
    ///
    /// Returns whether the published tables are equal to `tables` now. `generation` is the number under which the
    /// change can be reverted, `metadata` names the ids of `tables`.
    pub(super) fn change_in_place(
        &mut self,
        pins: &Pins,
        slot: u32,
        services: &ServiceTable,
        tables: &Tables,
        generation: u32,
        metadata: &[u8],
    ) -> bool {
        let Some(mut published) = self.published.take() else {
            return false;
        };
        let is_changed = *published.services == *services
            && self.change_one(pins, slot, &mut published, tables, generation, metadata);
        self.published = Some(published);
        is_changed
    }

    /// Changes the published tables to `tables` in place, if they differ in at most one prefix.
    ///
    /// Returns whether the published tables are equal to `tables` now. `generation` is the number under which the
    /// change can be reverted, `metadata` names the ids of `tables`.
    fn change_one(
        &mut self,
        pins: &Pins,
        slot: u32,
        published: &mut Published,
        tables: &Tables,
        generation: u32,
        metadata: &[u8],
    ) -> bool {
        let (prefix, grant): PrefixGrant = match (
            difference(&published.v4, &tables.v4),
            difference(&published.v6, &tables.v6),
        ) {
            (Difference::None, Difference::None) => return true,
            (Difference::One(prefix, grant), Difference::None) => (prefix.into(), grant),
            (Difference::None, Difference::One(prefix, grant)) => (prefix.into(), grant),
            _ => return false,
        };
        if published.ids != tables.ids {
            // Before a packet is counted under a new id.
            let is_named = metadata.is_empty()
                || (tables.ids.extends(&published.ids)
                    && self.metadata.store(pins, slot, metadata).is_ok());
            if !is_named {
                return false;
            }
            published.ids.clone_from(&tables.ids);
        }
        let before = match &mut published.backend {
            LookupBackend::Ranges(ranges) => {
                let memory = self.generations.get(ranges.slot());
                let Some(list) = self.prefixes.get(ranges.slot()) else {
                    return false;
                };
                let lists = (&*tables.v4, &*tables.v6);
                let Some(before) = ranges.change(&memory, &list.all(), prefix, grant, lists) else {
                    return false; // a new one is made to measure
                };
                Some(before)
            }
            LookupBackend::Tries(tries) => {
                if let Err(error) = tries.store(prefix, grant) {
                    // Such as a table that is full.
                    debug!(
                        "cannot change the prefix {prefix} in place, so a whole generation is published: {error}"
                    );
                    return false;
                }
                None
            }
        };
        let one = published.put((prefix, grant));
        published.remember(generation, InPlaceUndo { one, before });
        true
    }

    /// Reverts the changes in place that were made in `slot` after the generation `before`.
    ///
    /// Call it while a generation that this value published in `slot` is active.
    pub(super) fn undo_in_place(&mut self, slot: u32, before: u32) -> Result<()> {
        let Some(published) = self.published.as_mut() else {
            return Ok(());
        };
        if published.forgotten > before {
            bail!(
                "cannot restore generation {before} of the tables: more than {REMEMBERED} prefixes have changed since"
            );
        }
        while let Some((changed, undo)) = published.undo.pop_back() {
            if changed <= before {
                break;
            }
            let (prefix, grant) = undo.one;
            match (&mut published.backend, undo.before) {
                (LookupBackend::Ranges(ranges), Some(before)) => {
                    let memory = self.generations.get(slot);
                    let list = self.prefixes.get(slot).context(
                        "cannot revert the change of a prefix: the list of prefixes is missing",
                    )?;
                    ranges.revert(&memory, &list.all(), before, prefix, grant);
                }
                (LookupBackend::Tries(tries), _) => tries
                    .store(prefix, grant)
                    .context("cannot revert the change of a prefix")?,
                (LookupBackend::Ranges(_), None) => {}
            }
            published.put((prefix, grant));
        }
        Ok(())
    }

    /// Frees the memory of a slot that is no longer active.
    pub(super) fn free(&mut self, pins: &Pins, slot: u32) -> Result<()> {
        self.rcu.synchronize()?;
        self.prefixes.empty(pins, slot)?;
        self.metadata.remove(pins, slot)?;
        TrieSlots::empty(pins, slot)
    }

    /// Restores missing pins of the maps in the slots.
    pub(super) fn pin_again(&self, pins: &Pins) -> Result<()> {
        self.prefixes.pin_again(pins)?;
        self.metadata.pin_again(pins)
    }
}

impl Published {
    fn remember(&mut self, generation: u32, undo: InPlaceUndo) {
        if self.undo.len() == REMEMBERED
            && let Some((forgotten, _)) = self.undo.pop_front()
        {
            self.forgotten = forgotten;
        }
        self.undo.push_back((generation, undo));
    }

    /// Sets the grant of a prefix in the copy of the published table, and returns the prefix with its previous grant.
    fn put(&mut self, (prefix, grant): PrefixGrant) -> PrefixGrant {
        let before = match prefix {
            IpNet::V4(prefix) => put(&mut self.v4, prefix, grant),
            IpNet::V6(prefix) => put(&mut self.v6, prefix, grant),
        };
        (prefix, before)
    }
}

/// Sets the grant of a prefix in a sorted table, or removes the prefix if the grant is `None`.
///
/// Returns the previous grant of the prefix.
fn put<P: Copy + Ord>(
    table: &mut Vec<(P, Grant)>,
    prefix: P,
    grant: Option<Grant>,
) -> Option<Grant> {
    match (table.binary_search_by_key(&prefix, |entry| entry.0), grant) {
        (Ok(place), Some(grant)) => Some(std::mem::replace(&mut table[place].1, grant)),
        (Ok(place), None) => Some(table.remove(place).1),
        (Err(place), Some(grant)) => {
            table.insert(place, (prefix, grant));
            None
        }
        (Err(_), None) => None,
    }
}

/// The difference between two sorted tables of prefixes: none, one prefix, or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference<P> {
    None,
    /// The tables differ in one prefix, which has this grant in the new table; `None` if the new table does not contain
    /// it.
    One(P, Option<Grant>),
    Many,
}

fn difference<P: Copy + Eq>(before: &[(P, Grant)], after: &[(P, Grant)]) -> Difference<P> {
    let same = before.iter().zip(after).take_while(|(a, b)| a == b).count();
    let (before, after) = (&before[same..], &after[same..]);
    match (before, after) {
        ([], []) => Difference::None,
        ([old, before @ ..], [new, after @ ..]) if old.0 == new.0 && before == after => {
            Difference::One(new.0, Some(new.1))
        }
        (before, [new, after @ ..]) if before == after => Difference::One(new.0, Some(new.1)),
        ([old, before @ ..], after) if before == after => Difference::One(old.0, None),
        _ => Difference::Many,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<u8, u32>;

    fn table(model: &Model) -> Vec<(u8, Grant)> {
        let entries = model.iter();
        entries
            .map(|(prefix, id)| (*prefix, Grant::new(1, *id)))
            .collect()
    }

    /// Computes the difference by a lookup of each prefix in the other table.
    fn expected(before: &Model, after: &Model) -> Difference<u8> {
        let prefixes = (0..=u8::MAX).filter(|prefix| before.get(prefix) != after.get(prefix));
        match prefixes.collect::<Vec<_>>()[..] {
            [] => Difference::None,
            [one] => Difference::One(one, after.get(&one).map(|id| Grant::new(1, *id))),
            _ => Difference::Many,
        }
    }

    proptest! {
        /// Generates tables that are so small that many pairs are equal or differ in one prefix.
        #[test]
        fn differences(
            before in btree_map(0..6_u8, 0..2_u32, 0..6),
            after in btree_map(0..6_u8, 0..2_u32, 0..6),
        ) {
            let found = difference(&table(&before), &table(&after));
            prop_assert_eq!(found, expected(&before, &after));
            if let Difference::One(prefix, grant) = found {
                let mut changed = table(&before);
                let old = put(&mut changed, prefix, grant);
                prop_assert_eq!(&changed, &table(&after));
                put(&mut changed, prefix, old);
                prop_assert_eq!(&changed, &table(&before));
            }
        }
    }
}
