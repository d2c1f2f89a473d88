//! Taking over from a program of another ABI version, without a gap.
//!
//! This version has maps of its own, in a folder of its own. Once they hold a generation, the program in each of
//! the other version's links is replaced, which the kernel does at once, and the link's pin moves over. What
//! notes outbound packets is put beside the other version's, since to note a packet twice harms nothing.
//!
//! Invariants: until the first link is replaced, the other version's filter is as it was, and its maps hold
//! what it knows; a process that ends at any moment leaves each link pinned in one of the folders, and the next
//! start goes on from there.

use std::fs::File;
use std::path::{Path, PathBuf};

use allowlist_common::abi::{self, MAX_INTERFACES};
use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData};
use log::{info, warn};

use super::Dataplane;
use super::control_map::ControlMap;
use super::detach::detach_other;
use super::link::{filters, interface_of};
use super::pins::{EGRESS_LINK, LINK, Pins, is_pinned, lock, other_versions};
use super::sys::{Access, open_pinned};

/// What a program of another version pinned.
pub(super) struct PreviousVersion {
    version: u32,
    folder: PathBuf,
    /// The generation that its counts are of, if they were taken over; else 0.
    pub(super) counted: u32,
    /// Whether its interfaces have the same slots here.
    shares_slots: bool,
    /// Whether what it notes is noted here.
    shares_flows: bool,
    /// So that no daemon of that version goes on.
    _lock: File,
}

impl PreviousVersion {
    /// What there is; an error where a daemon still writes to it.
    pub(super) fn find(root: &Path) -> Result<Vec<Self>> {
        let mut others = Vec::new();
        for (version, folder) in other_versions(root)? {
            others.push(Self {
                version,
                counted: 0,
                shares_slots: false,
                shares_flows: false,
                _lock: lock(&folder, root)?,
                folder,
            });
        }
        others.sort_by_key(|other| std::cmp::Reverse(other.version));
        Ok(others)
    }

    /// Where its link on an interface is pinned.
    fn link_on(&self, index: u32) -> Result<Option<PathBuf>> {
        for slot in 0..MAX_INTERFACES {
            let link = self.link(slot);
            if filters(&link, index)? {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    fn interface_of(&self, slot: u32) -> Result<Option<u32>> {
        interface_of(&self.link(slot))
    }

    fn link(&self, slot: u32) -> PathBuf {
        self.folder.join(format!("{LINK}{slot}"))
    }

    fn shares(&self, pins: &Pins, name: &str) -> Result<bool> {
        let id = |path: PathBuf| -> Result<Option<u32>> {
            Ok(if is_pinned(&path)? {
                Some(open_data(&path)?.info()?.id())
            } else {
                None
            })
        };
        let own = id(pins.map(name))?;
        Ok(own.is_some() && own == id(self.folder.join(name))?)
    }

    /// The upper half of a control word, whatever the version.
    fn generation(&self) -> Result<u32> {
        let control = open_data(&self.folder.join(abi::CONTROL))?;
        let control = ControlMap::map(&Map::from_map_data(control)?, Access::ReadWrite)?;
        Ok(control.load().generation)
    }
}

/// Pins the maps of an older version that mean the same here, where there are none yet.
pub(super) fn adopt_maps(pins: &Pins, others: &[PreviousVersion]) -> Result<()> {
    for (name, since) in abi::PINNED {
        let path = pins.map(name);
        if is_pinned(&path)? {
            continue;
        }
        for older in others
            .iter()
            .filter(|other| (since..abi::VERSION).contains(&other.version))
        {
            let pin = older.folder.join(name);
            if is_pinned(&pin)? {
                let what = || format!("cannot adopt map {name} of ABI v{}", older.version);
                let map = open_data(&pin).with_context(what)?;
                map.pin(&path).with_context(what)?;
                break;
            }
        }
    }
    Ok(())
}

fn open_data(pin: &Path) -> Result<MapData> {
    let what = || format!("cannot open the map {}", pin.display());
    let map = open_pinned(pin, Access::ReadWrite).with_context(what)?;
    MapData::from_fd(map).with_context(what)
}

/// Finds out what was taken over, now or by a start before.
pub(super) fn detect_shared_maps(pins: &Pins, others: &mut [PreviousVersion]) -> Result<()> {
    for other in others {
        other.shares_slots = other.shares(pins, abi::INTERFACES)?;
        other.shares_flows = other.shares(pins, abi::FLOWS)? && other.shares(pins, abi::PORTS)?;
        if other.shares(pins, abi::MATCHES)? {
            // A folder that lacks its control word was on its way out: then nobody knows what is counted.
            other.counted = other.generation().unwrap_or(0);
        }
    }
    Ok(())
}

impl Dataplane {
    /// Whether the program of another version is on an interface: attach to such a one last, since what is
    /// replaced is not put back.
    pub fn has_previous_link(&self, index: u32) -> Result<bool> {
        Ok(self.previous_link(index)?.is_some())
    }

    /// Where another version's link on an interface is pinned.
    pub(super) fn previous_link(&self, index: u32) -> Result<Option<PathBuf>> {
        for other in &self.others {
            if let Some(link) = other.link_on(index)? {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    /// The interface in a slot by another version's link, if slots are the same.
    pub(super) fn previous_interface(&self, slot: u32) -> Result<Option<u32>> {
        for other in self.others.iter().filter(|other| other.shares_slots) {
            if let Some(index) = other.interface_of(slot)? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Whether another version's program notes what is sent from a slot, where this one's will look.
    pub(super) fn previous_tracks(&self, slot: u32, by_filter: bool) -> Result<bool> {
        for other in &self.others {
            let is_on = |prefix: &str| is_pinned(&other.folder.join(format!("{prefix}{slot}")));
            if other.shares_slots
                && other.shares_flows
                && is_on(LINK)?
                && (by_filter || is_on(EGRESS_LINK)?)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes back what a start did beside another version's filter, which is as it was unless some of its links
    /// have this version's program already: then all stays as it is, and the next start goes on.
    ///
    /// # Returns
    /// Whether there is another version's filter.
    pub(super) fn abort_migration(&mut self) -> Result<bool> {
        if self.others.is_empty() {
            return Ok(false);
        }
        if self.has_replaced {
            warn!(
                "the migration is incomplete: some interfaces have the program of this version, others that of another; the next start continues"
            );
            return Ok(true);
        }
        let mut slots = Vec::new();
        for slot in 0..MAX_INTERFACES {
            if self.previous_interface(slot)?.is_some() {
                slots.push(slot);
            }
        }
        self.detach_except(&slots)?;
        Ok(true)
    }

    /// Takes off what is left of other versions, once this one's program is on every interface.
    ///
    /// # Returns
    /// The names of interfaces that had another version's program, and have none now.
    pub fn remove_previous(&mut self) -> Result<Vec<String>> {
        let mut detached = Vec::new();
        while let Some(other) = self.others.last() {
            let _pin_lock = self.pins.lock_exclusive()?;
            detached.extend(detach_other(&other.folder)?);
            info!(
                "migrated maps from ABI v{} to v{}",
                other.version,
                abi::VERSION
            );
            self.others.pop();
        }
        Ok(detached)
    }
}
