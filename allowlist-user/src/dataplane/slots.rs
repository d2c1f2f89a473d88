//! Maps in slots, and their memory: as many words for each generation as it needs, which no program reads.
//!
//! Each slot of an array of maps holds one map, which stays there and is written again and again. Every map in a slot
//! is pinned, so that any later process can reach its memory without being all-powerful; the pin has the array's id in
//! its name, so a pin that is left over is told from one that counts.
//!
//! Knows nothing of what is written.

use std::fs;
use std::os::fd::AsFd as _;

use allowlist_common::abi::SLOTS;
use anyhow::{Context as _, Result};
use aya::maps::MapData;

use super::calls::{NewMap, empty_place, make_map, place_of, store_map};
use super::memory::Memory;
use super::pins::Pins;

/// An array of maps, and the maps.
pub(super) struct Slots {
    name: &'static str,
    array: MapData,
    id: u32,
    /// By slot. Boxed, since whatever holds them is moved about.
    memories: [Option<Box<Memory>>; SLOTS as usize],
}

impl Slots {
    /// What is pinned under a name, with the maps that are in its slots.
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self> {
        let array = MapData::from_pin(pins.map(name))
            .with_context(|| format!("cannot open the map {name}"))?;
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
            store_map(self.array.fd().as_fd(), slot, new.fd())
                .with_context(|| format!("cannot put a map into {}", self.name))?;
            self.memories[slot as usize] = Some(Box::new(new));
        }
        Ok(self.get(slot).expect("it was just made"))
    }

    /// Frees the memory of a slot.
    pub(super) fn empty(&mut self, pins: &Pins, slot: u32) -> Result<()> {
        empty_place(self.array.fd().as_fd(), slot)
            .with_context(|| format!("cannot empty slot {slot} of {}", self.name))?;
        self.memories[slot as usize] = None;
        pins.unpin(&self.pin_name(slot))
    }

    fn make(words: usize) -> Result<Memory> {
        let map = make_map(NewMap::Words { words }).with_context(|| {
            let bytes = words * size_of::<u64>();
            format!("cannot make a list of {} KiB in the kernel", bytes >> 10)
        })?;
        Memory::map(MapData::from_fd(map)?, words)
    }

    /// The memory of the map that is in a slot, if its pin says so.
    fn found(&self, pins: &Pins, slot: u32) -> Result<Option<Memory>> {
        let pin = pins.map(&self.pin_name(slot));
        let Some(id) = place_of(self.array.fd().as_fd(), slot)? else {
            return Ok(None);
        };
        if !pin.exists() {
            return Ok(None);
        }
        let map = MapData::from_pin(&pin)
            .with_context(|| format!("cannot open the map {}", pin.display()))?;
        let info = map.info()?;
        if info.id() != id {
            return Ok(None); // a process ended between the two
        }
        let bytes = info.value_size() as usize * info.max_entries() as usize;
        Ok(Some(Memory::map(map, bytes / size_of::<u64>())?))
    }

    fn pin_name(&self, slot: u32) -> String {
        format!("{}_{}_{slot}", self.name, self.id)
    }
}

/// The maps of one slot as they are pinned now, for a process that only reads.
pub(super) fn memory(pins: &Pins, name: &'static str, slot: u32) -> Result<Option<Memory>> {
    let mut slots = Slots::open(pins, name)?;
    Ok(slots.memories[slot as usize].take().map(|memory| *memory))
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
