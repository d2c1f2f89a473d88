//! A generation into the kernel: its tables whole into an idle slot, or one prefix into those in force.
//!
//! Invariants: a publish changes one word, last; what fails before touches only a slot that no packet is looked
//! up in, and that is not gone back to. One prefix changes in place only where it is all that changes: then
//! a packet sees the table with it or without it, and nothing else.

use std::collections::VecDeque;

use allowlist_common::abi::{self, Control, Grant, Keep, ReturnTraffic, ServiceTable};
use allowlist_common::verdict::Verdict;
use anyhow::{Context as _, Result, bail};
use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use ipnet::{Ipv4Net, Ipv6Net};
use log::debug;

use super::{Dataplane, Services, Trie};
use crate::compile::Tables;
use crate::policy::{self, DefaultVerdict, Mode, Rules};

/// What this process published last, and what became of it since.
pub(super) struct Published {
    services: Box<ServiceTable>,
    v4: Vec<(Ipv4Net, Grant)>,
    v6: Vec<(Ipv6Net, Grant)>,
    v4_trie: Trie<[u8; 4]>,
    v6_trie: Trie<[u8; 16]>,
    /// What changed in place: the generation, and how its prefix was before; the last one last.
    undo: VecDeque<(u32, One)>,
    /// The last generation that changed in place and is not in `undo` any more.
    forgotten: u32,
}

/// How many changes in place can be taken back.
const REMEMBERED: usize = 256;

/// One prefix of either family and what it granted; `None` where it was not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum One {
    V4(Ipv4Net, Option<Grant>),
    V6(Ipv6Net, Option<Grant>),
}

impl Dataplane {
    /// Makes `tables` the generation that every interface uses, for both families at once.
    ///
    /// New maps are filled first, then put into a slot that no packet is looked up in, and only
    /// then one store flips to it. On an error the generation in force stays in force. If but one prefix
    /// differs from what this value published last, that changes in place.
    ///
    /// Services that are limited to some of `interfaces` are so from then on.
    ///
    /// # Returns
    /// The new generation's number.
    pub fn publish(
        &mut self,
        tables: &Tables,
        mode: Mode,
        rules: &Rules,
        interfaces: &[String],
    ) -> Result<u32> {
        let current = self.control.load();
        let services = self.service_table(tables, interfaces)?;
        let next = Control {
            generation: self.next_generation(),
            slot: current.slot,
            default_verdict: match rules.default {
                DefaultVerdict::Pass => Verdict::Pass,
                DefaultVerdict::Drop => Verdict::Drop,
            },
            observe: mode == Mode::Observe,
            return_traffic: return_traffic(*rules),
            keep: keep(rules.keep),
            pending: current.pending,
            open: false,
        };
        if self.change_in_place(&services, tables, next) {
            return Ok(next.generation);
        }
        let slot = self.idle_slot();
        let mut table = Services::create(1, 0).context("cannot make a service table")?;
        table.set(0, services.as_ref(), 0)?;
        let v4_trie = trie(
            tables
                .v4
                .iter()
                .map(|(prefix, grant)| (v4_key(*prefix), *grant)),
        )?;
        let v6_trie = trie(
            tables
                .v6
                .iter()
                .map(|(prefix, grant)| (v6_key(*prefix), *grant)),
        )?;

        // A packet that read the control word before the last flip may still be looking into the slot.
        self.readers.wait()?;
        self.services.set(slot, &table, 0)?;
        self.v4.set(slot, &v4_trie, 0)?;
        self.v6.set(slot, &v6_trie, 0)?;
        self.control.store(Control { slot, ..next });
        self.published = Some(Published {
            services,
            v4: tables.v4.clone(),
            v6: tables.v6.clone(),
            v4_trie,
            v6_trie,
            undo: VecDeque::new(),
            forgotten: 0,
        });
        Ok(next.generation)
    }

    /// Changes one prefix in place, or none, if that is all that `next` changes.
    ///
    /// # Returns
    /// Whether it did; else nothing has changed.
    fn change_in_place(&mut self, services: &ServiceTable, tables: &Tables, next: Control) -> bool {
        let current = self.control.load();
        let is_kept_to_go_back_to =
            current.pending && self.fallback.load().back_to().slot == current.slot;
        let Some(published) = &mut self.published else {
            return false;
        };
        let by_the_same_word = Control {
            generation: current.generation,
            ..next
        } == current;
        if is_kept_to_go_back_to || !by_the_same_word || *published.services != *services {
            return false;
        }
        let change = match (
            difference(&published.v4, &tables.v4),
            difference(&published.v6, &tables.v6),
        ) {
            (Difference::None, Difference::None) => None,
            (Difference::One(prefix, grant), Difference::None) => Some(One::V4(prefix, grant)),
            (Difference::None, Difference::One(prefix, grant)) => Some(One::V6(prefix, grant)),
            _ => return false,
        };
        if let Some(change) = change {
            match published.set(change) {
                Ok(before) => published.remember(next.generation, before),
                Err(error) => {
                    // Such as a table that is full: a new one is made to measure.
                    debug!("{change:?} does not change in place: {error}");
                    return false;
                }
            }
        }
        self.control.store(next);
        true
    }

    /// Makes the tables of the slot in force what they were in the generation `before`, if they changed in
    /// place since. Call it while what is in force is a generation of this value's.
    pub(super) fn undo_in_place(&mut self, before: Control) -> Result<()> {
        let slot = self.control.load().slot;
        let Some(published) = self.published.as_mut().filter(|_| before.slot == slot) else {
            return Ok(());
        };
        if published.forgotten > before.generation {
            bail!(
                "generation {} cannot be gone back to: too many prefixes have changed since",
                before.generation
            );
        }
        while let Some((generation, one)) = published.undo.pop_back() {
            if generation <= before.generation {
                break;
            }
            published
                .set(one)
                .context("cannot take back a prefix that was changed")?;
        }
        Ok(())
    }

    /// The table with what each interface has of its own in its row.
    fn service_table(
        &mut self,
        tables: &Tables,
        interfaces: &[String],
    ) -> Result<Box<ServiceTable>> {
        let mut table = tables.services.clone();
        for (name, here) in &tables.interfaces {
            if interfaces.contains(name) {
                table.interfaces[self.reserve(name)? as usize] = **here;
            }
        }
        Ok(table)
    }

    /// A slot that is neither in force nor gone back to.
    fn idle_slot(&self) -> u32 {
        let current = self.control.load();
        let kept = current.pending.then(|| self.fallback.load().back_to().slot);
        (0..abi::SLOTS)
            .find(|&slot| slot != current.slot && Some(slot) != kept)
            .expect("there are three, and two are in use at most")
    }
}

impl Published {
    fn remember(&mut self, generation: u32, before: One) {
        if self.undo.len() == REMEMBERED
            && let Some((forgotten, _)) = self.undo.pop_front()
        {
            self.forgotten = forgotten;
        }
        self.undo.push_back((generation, before));
    }

    /// Changes one prefix of the table in the kernel and of what is known of it.
    ///
    /// # Returns
    /// How it was before.
    fn set(&mut self, one: One) -> Result<One, MapError> {
        Ok(match one {
            One::V4(prefix, grant) => {
                store(&mut self.v4_trie, &v4_key(prefix), grant)?;
                One::V4(prefix, put(&mut self.v4, prefix, grant))
            }
            One::V6(prefix, grant) => {
                store(&mut self.v6_trie, &v6_key(prefix), grant)?;
                One::V6(prefix, put(&mut self.v6, prefix, grant))
            }
        })
    }
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

/// Sets one entry of a table that is in order.
///
/// # Returns
/// What the prefix granted before.
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

/// In how many entries two tables differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference<P> {
    None,
    /// This prefix's alone, and what it is to grant; `None` where it is to go.
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

fn v4_key(prefix: Ipv4Net) -> Key<[u8; 4]> {
    Key::new(prefix.prefix_len().into(), prefix.network().octets())
}

fn v6_key(prefix: Ipv6Net) -> Key<[u8; 16]> {
    Key::new(prefix.prefix_len().into(), prefix.network().octets())
}

/// A new trie of what goes in, with room for what is added in place. The kernel allocates nodes one by one, so
/// that room costs nothing.
fn trie<K: aya::Pod>(entries: impl ExactSizeIterator<Item = (Key<K>, Grant)>) -> Result<Trie<K>> {
    const BPF_F_NO_PREALLOC: u32 = 1;
    const SPARE: u32 = 1 << 16;
    let length = entries.len();
    let room = u32::try_from(length)?.saturating_add(SPARE);
    let mut trie = Trie::create(room, BPF_F_NO_PREALLOC)
        .context("cannot make a prefix table in the kernel")?;
    for (key, grant) in entries {
        trie.insert(&key, grant, 0).with_context(|| {
            format!("the kernel took no more prefixes than some of {length}; is memory short?")
        })?;
    }
    Ok(trie)
}

/// What counts as an answer: nothing needs to, where everything passes.
pub(crate) const fn return_traffic(rules: Rules) -> ReturnTraffic {
    match (rules.default, rules.return_traffic) {
        (DefaultVerdict::Pass, _) | (_, policy::ReturnTraffic::Off) => ReturnTraffic::Off,
        (_, policy::ReturnTraffic::Established) => ReturnTraffic::Established,
        (_, policy::ReturnTraffic::Track) => ReturnTraffic::Track,
    }
}

/// What is kept, as the kernel has it.
pub(crate) const fn keep(keep: policy::Keep) -> Keep {
    Keep::NONE
        .set(Keep::ARP, keep.arp)
        .set(Keep::NEIGHBOUR_DISCOVERY, keep.neighbour_discovery)
        .set(Keep::ICMP_ERRORS, keep.icmp_errors)
        .set(Keep::DHCP, keep.dhcp)
        .set(Keep::MULTICAST, keep.multicast)
        .set(Keep::NOT_IP, keep.not_ip)
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

    /// By looking each prefix up in the other.
    fn expected(before: &Model, after: &Model) -> Difference<u8> {
        let prefixes = (0..=u8::MAX).filter(|prefix| before.get(prefix) != after.get(prefix));
        match prefixes.collect::<Vec<_>>()[..] {
            [] => Difference::None,
            [one] => Difference::One(one, after.get(&one).map(|id| Grant::new(1, *id))),
            _ => Difference::Many,
        }
    }

    proptest! {
        /// So small that many differ in nothing or in one.
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
