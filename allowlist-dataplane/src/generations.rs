//! The tables of the generations: one array map with a value for each slot, mapped into memory and written in place.
//!
//! All slots have the same size, and a map cannot grow: larger tables require another map, and programs that use it.
//! Until all programs do, the old map stays pinned under its backup name.
//!
//! Knows neither the contents nor when a slot may be written: only while no packet uses it.

use std::os::fd::AsFd as _;

use allowlist_common::abi::SLOTS;
use aya::maps::MapData;

use super::btf;
use super::memory::{Memory, Part};
use super::pins::{Pins, is_pinned};
use super::sys::{NewMap, bpf_map_create, read_value};
use crate::error::{Context as _, Error, Result};

/// The map with the generation tables of all slots.
pub(super) struct Generations {
    /// The name of the map: that of the tables for packets, or of those of the egress policy.
    name: &'static str,
    memory: Memory,
    /// The size of each slot in words of 8 bytes.
    words: usize,
}

impl Generations {
    /// Opens the pinned map of generation tables with this name.
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self> {
        let map = pins.open_data(name)?;
        let words = map.info()?.value_size() as usize / size_of::<u64>();
        Self::of(name, map, words)
    }

    fn of(name: &'static str, map: MapData, words: usize) -> Result<Self> {
        let memory = Memory::map(map, words * SLOTS as usize)?;
        Ok(Self {
            name,
            memory,
            words,
        })
    }

    /// Returns the size of each slot in words of 8 bytes.
    pub(super) const fn words(&self) -> usize {
        self.words
    }

    /// Returns the memory of a slot's tables.
    pub(super) fn get(&self, slot: u32) -> Part<'_> {
        self.memory.part(slot as usize * self.words, self.words)
    }

    /// Replaces the map by one with `words` words for each slot, and copies every slot but `idle`.
    pub(super) fn resize(&mut self, pins: &Pins, words: usize, idle: u32) -> Result<()> {
        let grown = make(self.name, words)?;
        for slot in (0..SLOTS).filter(|slot| *slot != idle) {
            grown.get(slot).copy_from(&self.get(slot));
        }
        pins.back_up(self.name)?;
        if let Err(error) = grown.memory.pin(&pins.map(self.name)) {
            pins.restore_backup(self.name)?;
            return Err(error);
        }
        *self = grown;
        Ok(())
    }

    /// Returns whether programs may still use the map from before a [`Self::resize`].
    pub(super) fn resize_pending(pins: &Pins, name: &str) -> Result<bool> {
        is_pinned(&pins.backup_path(name))
    }

    /// Removes the backup pin of the map from before a [`Self::resize`], which no program uses any more.
    pub(super) fn finish_resize(pins: &Pins, name: &str) -> Result<()> {
        pins.unpin_backup(name)
    }
}

/// Returns a copy of the tables in a slot of the pinned map, for a process that only reads.
pub(super) fn read(pins: &Pins, name: &str, slot: u32) -> Result<Memory> {
    let map = pins.open_data(name)?;
    let words = map.info()?.value_size() as usize / size_of::<u64>();
    let words = read_value(map.fd().as_fd(), slot, words)
        .with_context(|| format!("cannot read the map {name}"))?;
    Ok(Memory::copied(map, words))
}

fn make(name: &'static str, words: usize) -> Result<Generations> {
    let slots = NewMap::Values {
        words,
        entries: SLOTS,
        types: Some(&btf::generations(words)),
    };
    let map = bpf_map_create(slots).map_err(|error| {
        let bytes = words * size_of::<u64>();
        let is_too_large = error.raw_os_error() == Some(libc::E2BIG);
        let error = Error::from(error);
        if is_too_large {
            error.context(format!(
                "this kernel refuses a map with values of {} MiB, which the tables need (set lookup = \"lpm-trie\", or use Linux 6.10 or later)",
                bytes >> 20
            ))
        } else {
            error.context(format!(
                "cannot create {SLOTS} tables of {} KiB in the kernel",
                bytes >> 10
            ))
        }
    })?;
    Generations::of(name, MapData::from_fd(map)?, words)
}
