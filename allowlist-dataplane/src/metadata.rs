//! The metadata of each slot's generation, such as the names of match ids: bytes in the kernel that only userspace reads.
//!
//! An array of maps has an inner map for each slot. An inner map is written before it is stored in the array, and never
//! changed: new metadata for a slot is another inner map, which replaces the present one by one store. Every inner map
//! is pinned, so that later processes can open it without `CAP_SYS_ADMIN`. The name of its pin contains its id, so the
//! array states which pin is valid.
//!
//! Invariant: a reader gets the metadata that one call has written, or none.
//!
//! Knows nothing of the contents.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd as _;

use allowlist_common::abi::{METADATA, SLOTS};
use allowlist_files::checksum;
use aya::maps::MapData;
use log::warn;

use super::Dataplane;
use super::commit_confirm::described;
use super::memory::Memory;
use super::pins::{Pins, is_pinned};
use super::sys::{
    NewMap, bpf_map_create, clear_inner_map, inner_map_id, open_pinned, pin, read_words,
    set_inner_map,
};
use crate::error::{Context as _, Result};

/// The number of attempts to open the map in a slot while another process replaces it.
const ATTEMPTS: usize = 10;

/// The metadata of a generation.
type Bytes = Vec<u8>;

/// The array of maps, and the map in each slot.
pub(super) struct Metadata {
    array: MapData,
    /// The map of each slot; `None` for an empty slot. Boxed, because the owner is moved.
    slots: [Option<Box<Stored>>; SLOTS as usize],
}

/// The map in a slot, which is never changed.
struct Stored {
    id: u32,
    memory: Memory,
}

impl Metadata {
    /// Opens the pinned array and the maps in its slots, or creates and pins an empty array.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        if !is_pinned(&pins.map(METADATA))? {
            create(pins)?;
        }
        let array = pins.open_data(METADATA)?;
        let mut slots = [const { None }; SLOTS as usize];
        for (slot, stored) in (0..).zip(&mut slots) {
            *stored = found(pins, &array, slot)?.map(Box::new);
        }
        let metadata = Self { array, slots };
        metadata.remove_unused(pins)?;
        Ok(metadata)
    }

    /// Replaces the metadata of a slot by one store. Does nothing if the slot has the same metadata.
    ///
    /// On an error, the slot keeps its previous metadata.
    pub(super) fn store(&mut self, pins: &Pins, slot: u32, bytes: &[u8]) -> Result<()> {
        let words = encoded(bytes);
        let present = self.slots[slot as usize].as_ref();
        if present.is_some_and(|stored| stored.memory.all().read(0, stored.memory.words()) == words)
        {
            return Ok(());
        }
        let map = bpf_map_create(NewMap::Words { words: words.len() }).with_context(|| {
            let kibibytes = bytes.len() >> 10;
            format!("cannot create a kernel map of {kibibytes} KiB for the names of sources and services")
        })?;
        let map = MapData::from_fd(map)?;
        let new = Stored {
            id: map.info()?.id(),
            memory: Memory::map(map, words.len())?,
        };
        new.memory.all().write(0, &words);
        // If the directory was removed, `Dataplane::restore_folder` pins it.
        if pins.is_current() {
            new.memory.pin(&pins.map(&pin_name(new.id)))?;
        }
        if let Err(error) = set_inner_map(self.array.fd().as_fd(), slot, new.memory.fd()) {
            pins.unpin(&pin_name(new.id))?;
            return Err(error)
                .with_context(|| format!("cannot store a new inner map in the map {METADATA}"));
        }
        match self.slots[slot as usize].replace(Box::new(new)) {
            Some(old) => pins.unpin(&pin_name(old.id)),
            None => Ok(()),
        }
    }

    /// Removes the metadata of a slot, which frees its memory.
    pub(super) fn remove(&mut self, pins: &Pins, slot: u32) -> Result<()> {
        if self.slots[slot as usize].is_none() {
            return Ok(());
        }
        clear_inner_map(self.array.fd().as_fd(), slot)
            .with_context(|| format!("cannot empty slot {slot} of the map {METADATA}"))?;
        match self.slots[slot as usize].take() {
            Some(old) => pins.unpin(&pin_name(old.id)),
            None => Ok(()),
        }
    }

    /// Restores missing pins of the maps in the slots.
    pub(super) fn pin_again(&self, pins: &Pins) -> Result<()> {
        for stored in self.slots.iter().flatten() {
            let name = pin_name(stored.id);
            if !is_pinned(&pins.map(&name))? {
                pins.pin_again(stored.memory.fd(), &name)?;
            }
        }
        Ok(())
    }

    fn get(&self, slot: u32) -> Option<Vec<u8>> {
        let stored = self.slots[slot as usize].as_ref()?;
        decoded(&stored.memory.all().read(0, stored.memory.words()))
    }

    /// Removes pins of maps in no slot, which a process leaves if it ends between a pin and a store.
    fn remove_unused(&self, pins: &Pins) -> Result<()> {
        let used: Vec<String> = self
            .slots
            .iter()
            .flatten()
            .map(|stored| pin_name(stored.id))
            .collect();
        let entries = fs::read_dir(pins.folder()).with_context(|| {
            format!("cannot list the pin directory {}", pins.folder().display())
        })?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&pin_name("")) && !used.iter().any(|used| *used == name) {
                pins.unpin(&name)?;
            }
        }
        Ok(())
    }
}

/// Creates and pins an empty array of maps.
fn create(pins: &Pins) -> Result<()> {
    let what = || format!("cannot create the map {METADATA}");
    let inner = bpf_map_create(NewMap::Words { words: 1 }).with_context(what)?;
    let array = bpf_map_create(NewMap::ArrayOf {
        inner: inner.as_fd(),
        entries: SLOTS,
    });
    let array = array.with_context(what)?;
    pin(array.as_fd(), &pins.map(METADATA)).with_context(what)
}

fn pin_name(id: impl std::fmt::Display) -> String {
    format!("{METADATA}_{id}")
}

/// Opens the map in a slot of the array by its pin; `None` if the slot is empty or its map is not pinned.
fn found(pins: &Pins, array: &MapData, slot: u32) -> Result<Option<Stored>> {
    let Some(id) = inner_map_id(array.fd().as_fd(), slot)? else {
        return Ok(None);
    };
    if !is_pinned(&pins.map(&pin_name(id)))? {
        return Ok(None);
    }
    let map = pins.open_data(&pin_name(id))?;
    let words = map.info()?.max_entries() as usize;
    let memory = Memory::map(map, words)?;
    Ok(Some(Stored { id, memory }))
}

/// Returns the metadata in a slot of the pinned array, for a process that only reads; `None` if there is none.
pub(super) fn read(pins: &Pins, slot: u32) -> Result<Option<Vec<u8>>> {
    if !is_pinned(&pins.map(METADATA))? {
        return Ok(None);
    }
    let array = pins.open_data(METADATA)?;
    for _ in 0..ATTEMPTS {
        let Some(id) = inner_map_id(array.fd().as_fd(), slot)? else {
            return Ok(None);
        };
        let path = pins.map(&pin_name(id));
        match open_pinned(&path, pins.access()) {
            Ok(map) => {
                let map = MapData::from_fd(map)?;
                let words = read_words(map.fd().as_fd(), map.info()?.max_entries() as usize);
                return Ok(decoded(&words.with_context(|| {
                    format!("cannot read the map {}", path.display())
                })?));
            }
            // The map was replaced since its id was read.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot open the map {}", path.display()));
            }
        }
    }
    Ok(None)
}

/// Returns the words of an inner map: the number of bytes, then the bytes with a checksum in front.
fn encoded(bytes: &[u8]) -> Vec<u64> {
    const WORD: usize = size_of::<u64>();
    let mut stored = checksum::prepend(bytes);
    let length = stored.len() as u64;
    stored.resize(stored.len().next_multiple_of(WORD), 0);
    let words = stored.chunks_exact(WORD);
    let words = words.map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")));
    std::iter::once(length).chain(words).collect()
}

fn decoded(words: &[u64]) -> Option<Vec<u8>> {
    let (length, words) = words.split_first()?;
    let bytes: &[u8] = bytemuck::cast_slice(words);
    let stored = bytes.get(..usize::try_from(*length).ok()?);
    let verified = stored.and_then(checksum::verify);
    if verified.is_none() {
        warn!(
            "the names of sources and services in the kernel (map {METADATA}) are damaged, so reports lack them until the next publish; filtering is not affected"
        );
    }
    Some(verified?.to_vec())
}

impl Dataplane {
    /// Replaces the metadata of the active generation, by one store. Does nothing if the generation has this metadata
    /// already.
    pub fn set_metadata(&mut self, metadata: &[u8]) -> Result<()> {
        let slot = self.control.load().slot % SLOTS;
        self.tables.metadata.store(&self.pins, slot, metadata)
    }

    /// Returns the metadata of the effective generation, and the metadata in the other slots.
    ///
    /// The first value is the same as of [`View::metadata`](super::View::metadata); before the first publish, it is the
    /// metadata of another version whose maps were adopted, if there is one. The other slots may belong to a pending or
    /// rolled-back change, or to older generations.
    pub fn metadata(&self) -> Result<(Option<Bytes>, Vec<Bytes>)> {
        let slot = described(self.control.load(), &self.control.fallback()).slot % SLOTS;
        let mut active = self.tables.metadata.get(slot);
        if self.generation() == 0 {
            for other in self
                .migration
                .others
                .iter()
                .filter(|other| other.counted != 0)
            {
                active = other.metadata(&self.pins)?;
            }
        }
        let others = (0..SLOTS).filter(|other| *other != slot);
        Ok((
            active,
            others
                .filter_map(|slot| self.tables.metadata.get(slot))
                .collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_any_length_round_trip() {
        for length in 0..40 {
            let bytes = vec![7; length];
            let mut words = encoded(&bytes);
            assert_eq!(decoded(&words), Some(bytes));
            for word in 0..words.len() {
                words[word] ^= 1;
                assert_eq!(decoded(&words), None, "word {word} of {length} bytes");
                words[word] ^= 1;
            }
        }
        assert_eq!(decoded(&[]), None);
    }
}
