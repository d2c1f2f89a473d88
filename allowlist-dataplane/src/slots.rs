//! Arrays of maps with one inner map for each slot, for data that only userspace reads. The size of each inner map is
//! independent of the others.
//!
//! An inner map stays in its slot and is rewritten for each generation. Every inner map is pinned, so that later
//! processes can open it without `CAP_SYS_ADMIN`. The name of its pin contains the id of the array, which distinguishes
//! valid pins from leftover ones.
//!
//! Knows nothing of the contents.

use std::fs;
use std::os::fd::AsFd as _;

use allowlist_common::abi::SLOTS;
use aya::maps::MapData;

use super::memory::Memory;
use super::pins::{Pins, is_pinned};
use super::sys::{
    NewMap, bpf_map_create, clear_inner_map, inner_map_id, read_words, set_inner_map,
};
use crate::error::{Context as _, Result};

/// An array of maps, and the memory of the map in each slot.
pub(super) struct Slots {
    name: &'static str,
    array: MapData,
    id: u32,
    /// The memory of each slot's map; `None` for an empty slot. Boxed, because the owner is moved.
    memories: [Option<Box<Memory>>; SLOTS as usize],
}

impl Slots {
    /// Opens the array of maps that is pinned under a name, and the maps in its slots.
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self> {
        let array = pins.open_data(name)?;
        let mut slots = Self {
            name,
            id: array.info()?.id(),
            array,
            memories: [const { None }; SLOTS as usize],
        };
        for slot in 0..SLOTS {
            slots.memories[slot as usize] = slots.found(pins, slot)?.map(Box::new);
        }
        Ok(slots)
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Memory> {
        self.memories[slot as usize].as_deref()
    }

    /// Returns the memory of a slot with at least this number of words of 8 bytes.
    ///
    /// If the slot's map is smaller, replaces it by a new map, without its contents.
    pub(super) fn room(&mut self, pins: &Pins, slot: u32, words: usize) -> Result<&Memory> {
        let fits = self.get(slot).is_some_and(|known| known.words() >= words);
        if !fits {
            let new = Self::make(words)?;
            let name = self.pin_name(slot);
            pins.unpin(&name)?;
            new.pin(&pins.map(&name))?;
            set_inner_map(self.array.fd().as_fd(), slot, new.fd()).with_context(|| {
                format!("cannot store a new inner map in the map {}", self.name)
            })?;
            self.memories[slot as usize] = Some(Box::new(new));
        }
        Ok(self.get(slot).expect("it was just made"))
    }

    /// Removes the map from a slot, and its pin, which frees its memory.
    pub(super) fn empty(&mut self, pins: &Pins, slot: u32) -> Result<()> {
        clear_inner_map(self.array.fd().as_fd(), slot)
            .with_context(|| format!("cannot empty slot {slot} of the map {}", self.name))?;
        self.memories[slot as usize] = None;
        pins.unpin(&self.pin_name(slot))
    }

    /// Restores missing pins of the maps in the slots.
    pub(super) fn pin_again(&self, pins: &Pins) -> Result<()> {
        for (slot, memory) in (0..).zip(&self.memories) {
            let name = self.pin_name(slot);
            if let Some(memory) = memory
                && !is_pinned(&pins.map(&name))?
            {
                pins.pin_again(memory.fd(), &name)?;
            }
        }
        Ok(())
    }

    fn make(words: usize) -> Result<Memory> {
        let map = bpf_map_create(NewMap::Words { words }).with_context(|| {
            let bytes = words * size_of::<u64>();
            format!(
                "cannot create a kernel map of {} KiB for the list of prefixes",
                bytes >> 10
            )
        })?;
        Memory::map(MapData::from_fd(map)?, words)
    }

    /// Returns the memory of the map in a slot; `None` if the slot is empty or its map is not pinned.
    fn found(&self, pins: &Pins, slot: u32) -> Result<Option<Memory>> {
        let Some(map) = found(pins, &self.array, &self.pin_name(slot), slot)? else {
            return Ok(None);
        };
        let words = words_of(&map)?;
        Ok(Some(Memory::map(map, words)?))
    }

    fn pin_name(&self, slot: u32) -> String {
        pin_name(self.name, self.id, slot)
    }
}

fn pin_name(name: &str, id: u32, slot: u32) -> String {
    format!("{name}_{id}_{slot}")
}

/// Opens the map in a slot of an array by its pin `name`; `None` if the slot is empty, or its map is not pinned there.
fn found(pins: &Pins, array: &MapData, name: &str, slot: u32) -> Result<Option<MapData>> {
    let Some(id) = inner_map_id(array.fd().as_fd(), slot)? else {
        return Ok(None);
    };
    if !is_pinned(&pins.map(name))? {
        return Ok(None);
    }
    let map = pins.open_data(name)?;
    let is_same = map.info()?.id() == id; // else a process ended between the two
    Ok(is_same.then_some(map))
}

fn words_of(map: &MapData) -> Result<usize> {
    let info = map.info()?;
    let bytes = info.value_size() as usize * info.max_entries() as usize;
    Ok(bytes / size_of::<u64>())
}

/// Returns a copy of the map in a slot of the array pinned as `name`, for a process that only reads; `None` if the slot
/// is empty.
pub(super) fn memory(pins: &Pins, name: &'static str, slot: u32) -> Result<Option<Memory>> {
    let array = pins.open_data(name)?;
    let pin = pin_name(name, array.info()?.id(), slot);
    let Some(map) = found(pins, &array, &pin, slot)? else {
        return Ok(None);
    };
    let words = read_words(map.fd().as_fd(), words_of(&map)?)
        .with_context(|| format!("cannot read the map {pin}"))?;
    Ok(Some(Memory::copied(map, words)))
}

/// Removes the pins of the inner maps of the array with this name.
pub(super) fn remove_all(pins: &Pins, name: &str) -> Result<()> {
    let prefix = format!("{name}_");
    let entries = fs::read_dir(pins.folder())
        .with_context(|| format!("cannot list the pin directory {}", pins.folder().display()))?;
    for entry in entries.flatten() {
        let pin = entry.file_name();
        let pin = pin.to_string_lossy();
        if pin.starts_with(&prefix) {
            pins.unpin(&pin)?;
        }
    }
    Ok(())
}
