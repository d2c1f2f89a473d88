//! Maps in slots, and their memory: as many words for each generation as it needs, which no program reads.
//!
//! Each slot of an array of maps holds one map, which stays there and is written again and again. Every map in a slot
//! is pinned, so that any later process can reach its memory without being all-powerful; the pin has the array's id in
//! its name, so a pin that is left over is told from one that counts.
//!
//! Knows nothing of the contents.

use std::fs;
use std::os::fd::AsFd as _;

use crate::error::{Context as _, Result};
use allowlist_common::abi::SLOTS;
use aya::maps::MapData;

use super::memory::Memory;
use super::pins::{Pins, is_pinned};
use super::sys::{
    NewMap, bpf_map_create, clear_inner_map, inner_map_id, read_words, set_inner_map,
};

/// An array of maps, and the maps.
pub(super) struct Slots {
    name: &'static str,
    array: MapData,
    id: u32,
    /// By slot. Boxed, since the owner is moved.
    memories: [Option<Box<Memory>>; SLOTS as usize],
}

impl Slots {
    /// What is pinned under a name, with the maps that are in its slots.
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

    /// The memory of a slot, with room for so many words: the one that is there if it has it, else that of a new map.
    pub(super) fn room(&mut self, pins: &Pins, slot: u32, words: usize) -> Result<&Memory> {
        let fits = self.get(slot).is_some_and(|known| known.words() >= words);
        if !fits {
            let new = Self::make(words)?;
            let name = self.pin_name(slot);
            pins.unpin(&name)?;
            new.pin(&pins.map(&name))?;
            set_inner_map(self.array.fd().as_fd(), slot, new.fd())
                .with_context(|| format!("cannot store a map in {}", self.name))?;
            self.memories[slot as usize] = Some(Box::new(new));
        }
        Ok(self.get(slot).expect("it was just made"))
    }

    /// Frees the memory of a slot.
    pub(super) fn empty(&mut self, pins: &Pins, slot: u32) -> Result<()> {
        clear_inner_map(self.array.fd().as_fd(), slot)
            .with_context(|| format!("cannot empty slot {slot} of {}", self.name))?;
        self.memories[slot as usize] = None;
        pins.unpin(&self.pin_name(slot))
    }

    /// Pins the maps in the slots again whose pins are gone.
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
            format!("cannot create a list of {} KiB in the kernel", bytes >> 10)
        })?;
        Memory::map(MapData::from_fd(map)?, words)
    }

    /// Returns the memory of the map in a slot, if it is pinned.
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

/// The map that is in a slot of an array, if it is the one that is pinned under this name.
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

/// The map in one slot as it is pinned now, for a process that only reads.
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

/// Unpins all maps in slots of an array.
pub(super) fn remove_all(pins: &Pins, name: &str) -> Result<()> {
    let prefix = format!("{name}_");
    let entries = fs::read_dir(pins.folder()).context("cannot list the pin folder")?;
    for entry in entries.flatten() {
        let pin = entry.file_name();
        let pin = pin.to_string_lossy();
        if pin.starts_with(&prefix) {
            pins.unpin(&pin)?;
        }
    }
    Ok(())
}
