//! Publishes a generation: writes all tables into an idle slot, or changes one prefix of the active tables in place.
//!
//! Invariants: a publish stores the control word last, so a publish that fails has written only to a slot that no
//! packet uses and no rollback needs. A prefix is changed in place only if nothing else changes: each packet then uses
//! the table either with or without the change.

use std::collections::VecDeque;

use allowlist_common::abi::{self, Control, GENERATIONS, Grant, ReturnTraffic, ServiceTable};
use allowlist_policy::compile::{IdTable, RangeTable, Tables};
use allowlist_policy::{Engine, Mode, Rules};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use log::{debug, info};

use super::Dataplane;
use super::generations::Generations;
use super::ranges::{self, Copied, Ranges};
use super::tries::{TrieSlots, Tries};
use crate::error::{Context as _, Result, bail};
use crate::netlink::index_of;
use crate::sockets;

/// The tables that this process published last, and the changes that it made in place since.
pub(super) struct Published {
    services: Box<ServiceTable>,
    v4: Vec<(Ipv4Net, Grant)>,
    v6: Vec<(Ipv6Net, Grant)>,
    /// The ids that the metadata in the kernel names.
    ids: IdTable,
    backend: LookupBackend,
    /// The changes in place that can be reverted, the oldest first: the generation of each, and the state of the prefix
    /// before it.
    undo: VecDeque<(u32, InPlaceUndo)>,
    /// The last generation whose change in place was dropped from `undo`, so that no earlier generation can be
    /// restored.
    forgotten: u32,
}

/// The data structure in which the sources of the published tables are looked up.
enum LookupBackend {
    Ranges(Ranges),
    Tries(Box<Tries>),
}

/// The maximum number of changes in place that can be reverted.
const REMEMBERED: usize = 256;

/// A prefix and its grant; the grant is `None` if the table does not contain the prefix.
type PrefixGrant = (IpNet, Option<Grant>);

/// The previous state of a prefix that was changed in place, from which the change can be reverted.
struct InPlaceUndo {
    one: PrefixGrant,
    /// The previous value of the prefix's root entry; `None` if the lookup uses tries.
    before: Option<ranges::RootUndo>,
}

impl Dataplane {
    /// Publishes `tables` as the next generation, for IPv4 and IPv6 and all interfaces at once, and returns its number.
    ///
    /// Fills a slot that no packet uses, and then switches to it by one atomic store. If only one prefix differs from
    /// the generation that this value published last, changes that prefix in place instead. On an error, the active
    /// generation stays active.
    ///
    /// `interfaces` are the configured names, by which a service can be limited to some interfaces. `metadata` describes
    /// the generation for reports, and becomes active with its tables. A change in place stores it only if the tables
    /// have new ids; [`Self::set_metadata`] does otherwise. If it is empty, the generation has no metadata.
    pub fn publish(
        &mut self,
        tables: &Tables,
        mode: Mode,
        rules: &Rules,
        interfaces: &[String],
        metadata: &[u8],
    ) -> Result<u32> {
        self.bring_programs_up_to_date()?;
        let own_ports = sockets::own_ports()?;
        let current = self.control.load();
        let mut services = self.service_table(tables, interfaces)?;
        let wanted = rules.control(mode);
        let shares_ports =
            wanted.return_traffic == ReturnTraffic::Track && services.update_shared(&own_ports);
        let next = Control {
            generation: self.next_generation(),
            slot: current.slot,
            pending: current.pending,
            shares_ports,
            ..wanted
        };
        if self.change_in_place(&services, tables, next, metadata) {
            return Ok(next.generation);
        }
        let slot = self.idle_slot();
        let backend = match rules.lookup {
            Engine::RangeTable => self.write_ranges(slot, &services, tables)?,
            Engine::LpmTrie => self.write_tries(slot, &services, tables)?,
        };
        if metadata.is_empty() {
            self.metadata.remove(&self.pins, slot)?;
        } else {
            self.metadata.store(&self.pins, slot, metadata)?;
        }
        self.forget_services(current, &services)?;
        self.flip(Control { slot, ..next });
        // Once more, for packets that the last generation let pass until now.
        self.forget_services(current, &services)?;
        self.published = Some(Published {
            services,
            v4: tables.v4.clone(),
            v6: tables.v6.clone(),
            ids: tables.ids.clone(),
            backend,
            undo: VecDeque::new(),
            forgotten: 0,
        });
        Ok(next.generation)
    }

    /// Marks the origin of UDP flows as unknown for ports whose flows the generation of `current` does not record, but
    /// `services` will.
    fn forget_services(&self, current: Control, services: &ServiceTable) -> Result<()> {
        if self.tracks && current.generation != 0 && !current.open {
            let copied = Copied::of(&self.generations.get(current.slot % abi::SLOTS))?;
            self.distrust_newly_recorded(copied.services(), services);
        }
        Ok(())
    }

    /// Stores a control word that may change the active slot, which makes a generation active, and starts an RCU grace
    /// period.
    pub(super) fn flip(&mut self, control: Control) {
        if control.return_traffic != ReturnTraffic::Track && !control.pending {
            self.marks.disarm_all(); // nothing is marked any more
        }
        self.control.store(control);
        self.rcu.start();
    }

    fn write_ranges(
        &mut self,
        slot: u32,
        services: &ServiceTable,
        tables: &Tables,
    ) -> Result<LookupBackend> {
        let table = RangeTable::of(&tables.v4, &tables.v6);
        let words = ranges::FIXED + table.pool.len();
        if words > self.table_words() {
            self.resize_tables(ranges::wanted(table.pool.len()), slot)?;
        }
        // A packet that read the control word before the last flip may still be looking into the slot.
        self.rcu.join()?;
        TrieSlots::empty(&self.pins, slot)?; // of before the lookup changed
        let memory = self.generations.get(slot);
        ranges::write_services(&memory, services);
        let (pins, prefixes) = (&self.pins, &mut self.prefixes);
        let lists = (&*tables.v4, &*tables.v6);
        Ranges::write(&memory, prefixes, pins, slot, &table, lists).map(LookupBackend::Ranges)
    }

    fn write_tries(
        &mut self,
        slot: u32,
        services: &ServiceTable,
        tables: &Tables,
    ) -> Result<LookupBackend> {
        let tries = Tries::of(&tables.v4, &tables.v6)?;
        self.rcu.join()?;
        ranges::write_services(&self.generations.get(slot), services);
        self.tries.set(slot, &tries)?;
        Ok(LookupBackend::Tries(Box::new(tries)))
    }

    /// Replaces the map of generation tables by one with `words` words per slot, and all programs by ones that use it.
    ///
    /// Copies every slot except `idle`. The active generation decides on packets throughout.
    fn resize_tables(&mut self, words: usize, idle: u32) -> Result<()> {
        let before = self.table_words();
        {
            let _pin_lock = self.pins.lock_exclusive()?;
            self.generations.resize(&self.pins, words, idle)?;
            self.keep_open(GENERATIONS)?;
        }
        self.bring_programs_up_to_date()?;
        if self.generation() != 0 {
            info!(
                target: "allowlist::tables-resized",
                "resized the kernel's tables of prefixes from {} to {} KiB each",
                (before * size_of::<u64>()) >> 10,
                (words * size_of::<u64>()) >> 10
            );
        }
        Ok(())
    }

    /// Replaces all attached programs if some may still use the smaller tables from before a resize.
    ///
    /// A process may have ended after it created the larger tables and before it replaced all programs.
    fn bring_programs_up_to_date(&mut self) -> Result<()> {
        if !Generations::resize_pending(&self.pins)? {
            return Ok(());
        }
        self.replace_programs()?;
        let _pin_lock = self.pins.lock_exclusive()?;
        Generations::finish_resize(&self.pins)
    }

    /// Returns the size of one generation's tables in bytes, including the pool and its spare room.
    ///
    /// If the size changes, programs that [`Self::load_program`] loaded before use the previous tables, which are no
    /// longer written.
    pub const fn table_bytes(&self) -> usize {
        self.table_words() * size_of::<u64>()
    }

    const fn table_words(&self) -> usize {
        self.generations.words()
    }

    /// Publishes `next` in place if its tables differ from the active ones in at most one prefix and nothing else
    /// changes.
    ///
    /// Returns whether it was published; if not, nothing has changed.
    fn change_in_place(
        &mut self,
        services: &ServiceTable,
        tables: &Tables,
        next: Control,
        metadata: &[u8],
    ) -> bool {
        let current = self.control.load();
        let is_kept_to_go_back_to =
            current.pending && self.fallback.load().rollback_target().slot == current.slot;
        let Some(mut published) = self.published.take() else {
            return false;
        };
        let by_the_same_word = Control {
            generation: current.generation,
            ..next
        } == current;
        let changed = !is_kept_to_go_back_to
            && by_the_same_word
            && *published.services == *services
            && self.change_one(&mut published, tables, next.generation, metadata);
        self.published = Some(published);
        if changed {
            self.control.store(next);
        }
        changed
    }

    /// Changes the published tables to `tables` in place, if they differ in at most one prefix.
    ///
    /// Returns whether the published tables are equal to `tables` now. `generation` is the number under which the
    /// change can be reverted, `metadata` names the ids of `tables`.
    fn change_one(
        &mut self,
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
                || (tables.ids.extends(&published.ids) && self.set_metadata(metadata).is_ok());
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

    /// Reverts the changes in place that were made in the active slot after the generation of `before`.
    ///
    /// Call it while a generation that this value published is active.
    pub(super) fn undo_in_place(&mut self, before: Control) -> Result<()> {
        let slot = self.control.load().slot;
        let Some(published) = self.published.as_mut().filter(|_| before.slot == slot) else {
            return Ok(());
        };
        if published.forgotten > before.generation {
            bail!(
                "generation {} cannot be restored: more than {REMEMBERED} prefixes have changed since",
                before.generation
            );
        }
        while let Some((generation, undo)) = published.undo.pop_back() {
            if generation <= before.generation {
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

    /// Returns the services of `tables`, with a row for the slot of each interface.
    fn service_table(
        &mut self,
        tables: &Tables,
        interfaces: &[String],
    ) -> Result<Box<ServiceTable>> {
        let mut table = tables.services.clone();
        self.follow_names()?;
        for name in interfaces.iter().filter(|name| index_of(name).is_some()) {
            self.reserve(name)?;
        }
        for (name, here) in &tables.interfaces {
            if interfaces.contains(name) {
                table.interfaces[self.reserve(name)? as usize] = **here;
            }
        }
        Ok(table)
    }

    /// Returns a slot that is neither active nor needed for a rollback.
    fn idle_slot(&self) -> u32 {
        let current = self.control.load();
        let kept = current
            .pending
            .then(|| self.fallback.load().rollback_target().slot);
        (0..abi::SLOTS)
            .find(|&slot| slot != current.slot && Some(slot) != kept)
            .expect("there are three, and two are in use at most")
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
