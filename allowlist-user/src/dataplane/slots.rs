//! Maps in slots, and their memory: what a generation is looked up in is written where it lies.
//!
//! Each slot of an array of maps holds one map, which stays there and is written again and again: to put another
//! into its place would wait for packets each time. Every map in a slot is pinned, so that any later process can reach
//! its memory without being all-powerful; the pin has the array's id in its name, so a pin that is left over is told
//! from one that counts.
//!
//! Knows nothing of what is written, and not when it may be: no packet may look into a slot that is.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use allowlist_common::abi::SLOTS;
use anyhow::{Context as _, Result};
use aya::maps::MapData;

use super::calls::{NewMap, empty_place, make_map, place_of, store_map};
use super::memory::Memory;
use super::pins::Pins;

/// What the maps in an array are like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// One value of as many words as the array was made for, which the kernel's programs read.
    Tables,
    /// As many words as each one needs.
    Words,
}

/// An array of maps, and the maps.
pub(super) struct Slots {
    name: &'static str,
    kind: Kind,
    array: MapData,
    id: u32,
    /// By slot. Boxed, since whatever holds them is moved about.
    memories: [Option<Box<Memory>>; SLOTS as usize],
}

impl Slots {
    /// What is pinned under a name, with the maps that are in its slots.
    pub(super) fn open(pins: &Pins, name: &'static str, kind: Kind) -> Result<Self> {
        let array = MapData::from_pin(pins.map(name))
            .with_context(|| format!("cannot open the map {name}"))?;
        let mut slots = Self {
            name,
            kind,
            id: array.info()?.id(),
            array,
            memories: [const { None }; SLOTS as usize],
        };
        for slot in 0..SLOTS {
            slots.memories[slot as usize] = slots.found(pins, slot)?.map(Box::new);
        }
        Ok(slots)
    }

    /// Words of each map in a slot, or of the smallest that there will be.
    pub(super) fn words(&self, least: usize) -> usize {
        let mut known = self.memories.iter().flatten();
        known.next().map_or(least, |memory| memory.words())
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Memory> {
        self.memories[slot as usize].as_deref()
    }

    /// The memory of a slot that no packet is looked up in, with room for so many words: the one that is there
    /// if it has it, else that of a new map.
    pub(super) fn room(&mut self, pins: &Pins, slot: u32, words: usize) -> Result<&Memory> {
        let fits = self.get(slot).is_some_and(|known| known.words() >= words);
        if !fits {
            let new = self.make(words)?;
            let pin = self.pin(pins, slot);
            remove(&pin)?;
            new.pin(&pin)?;
            store_map(self.array.fd().as_fd(), slot, new.fd())
                .with_context(|| format!("cannot put a map into {}", self.name))?;
            self.memories[slot as usize] = Some(Box::new(new));
        }
        Ok(self.get(slot).expect("it was just made"))
    }

    /// Frees the memory of a slot that no packet is looked up in. The last one stays: what is made later has to be as
    /// large, and it alone tells how large that is.
    pub(super) fn empty(&mut self, pins: &Pins, slot: u32) -> Result<()> {
        if self.memories.iter().flatten().count() < 2 {
            return Ok(());
        }
        empty_place(self.array.fd().as_fd(), slot)
            .with_context(|| format!("cannot empty slot {slot} of {}", self.name))?;
        self.memories[slot as usize] = None;
        remove(&self.pin(pins, slot))
    }

    /// The same array anew, of maps of so many words, with what is in each slot; the one in `idle` is there
    /// in any case. The old one stays pinned aside, for programs that look into it, until [`Self::settle`].
    pub(super) fn grow(&mut self, pins: &Pins, words: usize, idle: u32) -> Result<()> {
        let template = self.make(words)?;
        let array = make_map(NewMap::ArrayOf {
            inner: template.fd(),
            entries: SLOTS,
        })
        .with_context(|| format!("cannot make {} anew", self.name))?;
        let array = MapData::from_fd(array)?;
        let mut grown = Self {
            name: self.name,
            kind: self.kind,
            id: array.info()?.id(),
            array,
            memories: [const { None }; SLOTS as usize],
        };
        drop(template);
        for slot in 0..SLOTS {
            let known = self.get(slot).filter(|_| slot != idle);
            if known.is_some() || slot == idle {
                let copy = grown.room(pins, slot, words)?;
                if let Some(known) = known {
                    copy.copy_from(known);
                }
            }
        }
        let aside = aside(pins, self.name);
        remove(&aside)?;
        fs::rename(pins.map(self.name), aside)
            .with_context(|| format!("cannot move {} aside", self.name))?;
        let pinned = grown.array.pin(pins.map(self.name));
        if let Err(error) = pinned {
            put_back(pins, self.name)?;
            return Err(error).with_context(|| format!("cannot pin {}", self.name));
        }
        *self = grown;
        Ok(())
    }

    /// Whether some program may still look into what was there before [`Self::grow`].
    pub(super) fn is_settled(&self, pins: &Pins) -> bool {
        !aside(pins, self.name).exists()
    }

    /// Removes what was there before [`Self::grow`]: no program looks into it any more.
    pub(super) fn settle(&self, pins: &Pins) -> Result<()> {
        remove(&aside(pins, self.name))?;
        let current = [0, 1, 2].map(|slot| self.pin(pins, slot));
        for pin in slot_pins(pins, self.name)? {
            if !current.contains(&pin) {
                remove(&pin)?;
            }
        }
        Ok(())
    }

    fn make(&self, words: usize) -> Result<Memory> {
        let made = make_map(match self.kind {
            Kind::Tables => NewMap::Value { words },
            Kind::Words => NewMap::Words { words },
        });
        let map = made.map_err(|error| {
            let bytes = words * size_of::<u64>();
            let too_large = error.raw_os_error() == Some(libc::E2BIG);
            let error = anyhow::Error::new(error);
            if too_large {
                error.context(format!(
                    "this kernel takes no table of {} MiB in one piece (Linux 6.10 does); set lookup = \"lpm-trie\"",
                    bytes >> 20
                ))
            } else {
                error.context(format!("cannot make a table of {} KiB in the kernel", bytes >> 10))
            }
        })?;
        Memory::map(MapData::from_fd(map)?, words)
    }

    /// The memory of the map that is in a slot, if its pin says so.
    fn found(&self, pins: &Pins, slot: u32) -> Result<Option<Memory>> {
        let pin = self.pin(pins, slot);
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

    fn pin(&self, pins: &Pins, slot: u32) -> PathBuf {
        pins.map(&format!("{}_{}_{slot}", self.name, self.id))
    }
}

/// The maps of one slot as they are pinned now, for a process that only reads.
pub(super) fn memory(
    pins: &Pins,
    name: &'static str,
    kind: Kind,
    slot: u32,
) -> Result<Option<Memory>> {
    let mut slots = Slots::open(pins, name, kind)?;
    Ok(slots.memories[slot as usize].take().map(|memory| *memory))
}

/// Where the array is pinned that programs may still look into.
fn aside(pins: &Pins, name: &str) -> PathBuf {
    pins.map(&format!("{name}_aside"))
}

/// Puts an array back that was moved aside, if no new one was pinned.
pub(super) fn put_back(pins: &Pins, name: &str) -> Result<()> {
    let (pin, aside) = (pins.map(name), aside(pins, name));
    if aside.exists() && !pin.exists() {
        fs::rename(aside, pin).with_context(|| format!("cannot put {name} back"))?;
    }
    Ok(())
}

/// Unpins all maps in slots of an array, and one that was moved aside.
pub(super) fn remove_all(pins: &Pins, name: &str) -> Result<()> {
    remove(&aside(pins, name))?;
    for pin in slot_pins(pins, name)? {
        remove(&pin)?;
    }
    Ok(())
}

fn slot_pins(pins: &Pins, name: &str) -> Result<Vec<PathBuf>> {
    let prefix = format!("{name}_");
    let entries = fs::read_dir(pins.folder()).context("cannot list the pin folder")?;
    let is_slot = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        file.starts_with(&prefix)
    };
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(is_slot).collect())
}

fn remove(pin: &std::path::Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot unpin {}", pin.display()))
        }
        _ => Ok(()),
    }
}
