//! The tables of the generations, and their memory: one map with a value for each slot, written where it lies.
//!
//! All slots are as large, and a map stays as large as it was made: larger tables are another map, and other programs
//! look into it. Until they all do, the old map stays pinned aside.
//!
//! Knows neither the contents nor when a slot may be written to: no packet may use it then.

use std::os::fd::AsFd as _;

use crate::error::{Context as _, Error, Result};
use allowlist_common::abi::{GENERATIONS, SLOTS};
use aya::maps::MapData;

use super::memory::{Memory, Part};
use super::pins::{Pins, is_pinned};
use super::sys::{NewMap, bpf_map_create, read_value};

/// See the module.
pub(super) struct Generations {
    memory: Memory,
    /// Of each slot.
    words: usize,
}

impl Generations {
    /// Opens the pinned map.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        let map = pins.open_data(GENERATIONS)?;
        let words = map.info()?.value_size() as usize / size_of::<u64>();
        Self::of(map, words)
    }

    fn of(map: MapData, words: usize) -> Result<Self> {
        let memory = Memory::map(map, words * SLOTS as usize)?;
        Ok(Self { memory, words })
    }

    /// Words of each slot.
    pub(super) const fn words(&self) -> usize {
        self.words
    }

    /// Returns the memory of a slot.
    pub(super) fn get(&self, slot: u32) -> Part<'_> {
        self.memory.part(slot as usize * self.words, self.words)
    }

    /// Replaces the map by one with `words` words for each slot, and copies every slot but `idle`.
    pub(super) fn resize(&mut self, pins: &Pins, words: usize, idle: u32) -> Result<()> {
        let grown = make(words)?;
        for slot in (0..SLOTS).filter(|slot| *slot != idle) {
            grown.get(slot).copy_from(&self.get(slot));
        }
        pins.back_up(GENERATIONS)?;
        if let Err(error) = grown.memory.pin(&pins.map(GENERATIONS)) {
            pins.restore_backup(GENERATIONS)?;
            return Err(error);
        }
        *self = grown;
        Ok(())
    }

    /// Whether programs may still use the tables from before [`Self::resize`].
    pub(super) fn resize_pending(pins: &Pins) -> Result<bool> {
        is_pinned(&pins.backup_path(GENERATIONS))
    }

    /// Removes the tables from before [`Self::resize`], which no program uses any more.
    pub(super) fn finish_resize(pins: &Pins) -> Result<()> {
        pins.unpin_backup(GENERATIONS)
    }
}

/// The table in a slot as it is pinned now, for a process that only reads.
pub(super) fn read(pins: &Pins, slot: u32) -> Result<Memory> {
    let map = pins.open_data(GENERATIONS)?;
    let words = map.info()?.value_size() as usize / size_of::<u64>();
    let words = read_value(map.fd().as_fd(), slot, words)
        .with_context(|| format!("cannot read the map {GENERATIONS}"))?;
    Ok(Memory::copied(map, words))
}

fn make(words: usize) -> Result<Generations> {
    let slots = NewMap::Values {
        words,
        entries: SLOTS,
    };
    let map = bpf_map_create(slots).map_err(|error| {
        let bytes = words * size_of::<u64>();
        let is_too_large = error.raw_os_error() == Some(libc::E2BIG);
        let error = Error::from(error);
        if is_too_large {
            error.context(format!(
                "this kernel allows no map value of {} MiB (Linux 6.10 does); set lookup = \"lpm-trie\"",
                bytes >> 20
            ))
        } else {
            error.context(format!(
                "cannot create {SLOTS} tables of {} KiB in the kernel",
                bytes >> 10
            ))
        }
    })?;
    Generations::of(MapData::from_fd(map)?, words)
}
