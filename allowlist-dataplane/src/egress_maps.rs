//! The maps of the egress policy: the tables and settings of each slot, the counters, this host's addresses, the
//! daemon's process, and the rows of units.
//!
//! Invariant: a slot is written only while no control word names it, as the tables for packets are.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use allowlist_common::abi::{
    self, EGRESS_PREFIXES, EGRESS_SETTINGS, EGRESS_TABLES, EgressSettings, OWN_ADDRESSES, PROCESS,
    SLOTS,
};
use allowlist_common::egress::address_key;
use allowlist_policy::compile::{RangeTable, Tables};
use aya::maps::{HashMap, MapData};

use super::clock::kernel_clock;
use super::egress_units::UnitMaps;
use super::generations::Generations;
use super::memory::Memory;
use super::name_maps::NameMaps;
use super::pins::{Pins, is_pinned};
use super::ranges;
use super::slots::Slots;
use crate::error::{Context as _, Result};

pub(super) const SETTINGS_WORDS: usize = size_of::<EgressSettings>() / size_of::<u64>();

/// The time for which the daemon's process is exempt after it was last set. A killed daemon's process id may be
/// another process's after that.
pub(super) const PROCESS_LIFETIME: Duration = Duration::from_secs(10);

/// The open maps of the egress policy.
pub(super) struct EgressMaps {
    pub(super) tables: Generations,
    /// The prefixes of each slot's tables, for reports.
    prefixes: Slots,
    settings: Memory,
    process: Memory,
    addresses: HashMap<MapData, [u64; 2], u8>,
    pub(super) units: UnitMaps,
    pub(super) names: NameMaps,
}

impl EgressMaps {
    /// Returns whether the maps are pinned: a policy of this version had `[egress]` since the last detach.
    pub(super) fn are_pinned(pins: &Pins) -> Result<bool> {
        for name in abi::EGRESS_PINNED {
            if !is_pinned(&pins.map(name))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens the pinned maps.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        let memory = |name, words| Memory::map(pins.open_data(name)?, words);
        Ok(Self {
            tables: Generations::open(pins, EGRESS_TABLES)?,
            prefixes: Slots::open(pins, EGRESS_PREFIXES)?,
            settings: memory(EGRESS_SETTINGS, SETTINGS_WORDS * SLOTS as usize)?,
            process: memory(PROCESS, 2)?,
            addresses: pins.open_map(OWN_ADDRESSES)?.try_into()?,
            units: UnitMaps::open(pins)?,
            names: NameMaps::open(pins)?,
        })
    }

    /// Returns the size of the pool after the tables of each slot, in words of 8 bytes.
    pub(super) fn pool_words(&self) -> u32 {
        (self.tables.words() - ranges::FIXED) as u32
    }

    /// Writes the tables and settings of a generation into a slot that no program uses. The slot must be large enough.
    pub(super) fn write(
        &mut self,
        pins: &Pins,
        slot: u32,
        tables: &Tables,
        table: &RangeTable,
        settings: &EgressSettings,
    ) -> Result<()> {
        let memory = self.tables.get(slot);
        ranges::write_services(&memory, &tables.services_of_units());
        ranges::write_table(&memory, table)?;
        let lists = (&*tables.v4, &*tables.v6);
        ranges::write_prefixes(&mut self.prefixes, pins, slot, lists)?;
        let words: &[u64] = bytemuck::cast_slice(std::slice::from_ref(settings));
        self.settings
            .part(slot as usize * SETTINGS_WORDS, SETTINGS_WORDS)
            .write(0, words);
        self.names.write(slot, &tables.names)
    }

    /// Makes a process's calls pass for [`PROCESS_LIFETIME`] from now on; its id is that in the initial PID namespace.
    pub(super) fn exempt(&self, process: u32) {
        let until = kernel_clock() + PROCESS_LIFETIME;
        let part = self.process.all();
        part.store(1, until.as_nanos() as u64);
        part.store(0, process.into());
    }

    /// Ends the exemption of the daemon's process.
    pub(super) fn end_exemption(&self) {
        self.process.all().store(1, 0);
    }

    /// Sets the addresses of this host, calls to which pass. Adds first, so no address is missing during the update.
    pub(super) fn set_addresses(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<()> {
        let what = || format!("cannot update the map {OWN_ADDRESSES}");
        let wanted: BTreeSet<[u64; 2]> = addresses
            .iter()
            .map(|address| address_key((*address).into()))
            .collect();
        let known: BTreeSet<[u64; 2]> = self
            .addresses
            .keys()
            .collect::<Result<_, _>>()
            .with_context(what)?;
        for key in wanted.difference(&known) {
            self.addresses.insert(key, 1, 0).with_context(what)?;
        }
        for key in known.difference(&wanted) {
            self.addresses.remove(key).with_context(what)?;
        }
        Ok(())
    }
}
