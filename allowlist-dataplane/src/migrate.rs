//! Migration from a program of another ABI version, without a gap.
//!
//! Each version has maps and a pin directory of its own. Once the maps of this version hold a generation, the program in
//! each link of the other version is replaced atomically, and the pin of the link is moved. The flow tracker is attached
//! beside the one of the other version, since recording a packet twice is harmless.
//!
//! Invariants: until the first link is replaced, the filter of the other version and its maps are unchanged. A process
//! that ends at any moment leaves each link pinned in one of the directories, and the next start continues.

use std::fs::File;
use std::path::{Path, PathBuf};

use allowlist_common::abi::{self, Control, MAX_INTERFACES};
use aya::maps::{Array, Map, MapData};
use log::{info, warn};

use super::Dataplane;
use super::control_map::ControlMap;
use super::detach::detach_other;
use super::link::{filters, interface_of};
use super::metadata;
use super::pins::{EGRESS_LINK, LINK, Pins, is_pinned, lock, other_versions};
use super::sys::{Access, open_pinned};
use crate::error::{Context as _, Result};

/// The name of a map that older builds, without [`abi::METADATA`], have pinned.
///
/// It has a checksum of the names of ids, which those builds stored on disk.
pub(super) const OLDER_NAMES: &str = "NAMES";

/// The pin directory of another ABI version's filter, locked.
pub(super) struct PreviousVersion {
    version: u32,
    folder: PathBuf,
    /// The generation to which that version's counters belong, if this version adopted them; else 0.
    pub(super) counted: u32,
    /// Whether both versions use the same map of interfaces, so that an interface has the same slot in both.
    shares_slots: bool,
    /// Whether both versions use the same map of flows.
    shares_flows: bool,
    /// The lock of the directory, which prevents a daemon of that version from starting.
    _lock: File,
}

impl PreviousVersion {
    /// Finds and locks the pin directories of all other versions under the root of `pins`.
    ///
    /// # Errors
    /// Fails if a daemon of another version uses its directory.
    pub(super) fn find(pins: &Pins) -> Result<Vec<Self>> {
        let mut others = Vec::new();
        for (version, folder) in other_versions(pins.root(), pins.version())? {
            others.push(Self {
                version,
                counted: 0,
                shares_slots: false,
                shares_flows: false,
                _lock: lock(&folder, pins.root())?,
                folder,
            });
        }
        others.sort_by_key(|other| std::cmp::Reverse(other.version));
        Ok(others)
    }

    /// Returns the pin of the other version's XDP link on the interface with this index; `None` if there is none.
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

    /// Returns the control word of the other version.
    ///
    /// In the control word of every version, the upper half is the number of the active generation.
    fn control(&self) -> Result<Control> {
        let control = open_data(&self.folder.join(abi::CONTROL))?;
        let control = ControlMap::map(&Map::from_map_data(control)?, Access::ReadWrite)?;
        Ok(control.load())
    }

    /// Returns the metadata of the other version's active generation; `None` if there is none.
    pub(super) fn metadata(&self, own: &Pins) -> Result<Option<Vec<u8>>> {
        let slot = self.control()?.slot % abi::SLOTS;
        metadata::read(&own.of_version(self.version), slot)
    }
}

/// Pins those maps of an older version whose contents are compatible with this version, unless a map is pinned already.
pub(super) fn adopt_maps(pins: &Pins, others: &[PreviousVersion]) -> Result<()> {
    for (name, since) in abi::PINNED {
        let path = pins.map(name);
        let Some(since) = since else { continue };
        if is_pinned(&path)? {
            continue;
        }
        for older in others
            .iter()
            .filter(|other| (since..pins.version()).contains(&other.version))
        {
            let pin = older.folder.join(name);
            if is_pinned(&pin)? {
                let what = || {
                    format!(
                        "cannot use the map {name} of another version of allowlist (ABI v{})",
                        older.version
                    )
                };
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

/// Detects which maps this version shares with others, because this or an earlier start adopted them.
pub(super) fn detect_shared_maps(pins: &Pins, others: &mut [PreviousVersion]) -> Result<()> {
    for other in others {
        other.shares_slots = other.shares(pins, abi::INTERFACES)?;
        other.shares_flows = other.shares(pins, abi::FLOWS)? && other.shares(pins, abi::PORTS)?;
        if other.shares(pins, abi::MATCHES)? {
            // Without its control map the directory was being removed: the meaning of its counters is unknown.
            other.counted = other.control().map_or(0, |control| control.generation);
        }
    }
    Ok(())
}

/// The filters of other ABI versions that this version replaces.
pub(super) struct Migration {
    /// The locked pin directories of other ABI versions.
    pub(super) others: Vec<PreviousVersion>,
    /// Whether the program in a link of another version has been replaced by this version's program.
    pub(super) has_replaced: bool,
}

impl Migration {
    pub(super) const fn new(others: Vec<PreviousVersion>) -> Self {
        Self {
            others,
            has_replaced: false,
        }
    }

    /// Returns the newest generation to which adopted counters belong; 0 if no counters were adopted.
    pub(super) fn counted(&self) -> u32 {
        let counted = self.others.iter().map(|other| other.counted);
        counted.max().unwrap_or(0)
    }

    /// Returns the pin of another version's XDP link on the interface with this index; `None` if there is none.
    pub(super) fn previous_link(&self, index: u32) -> Result<Option<PathBuf>> {
        for other in &self.others {
            if let Some(link) = other.link_on(index)? {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    /// Returns the index of the interface on which another version has a link in an interface slot; `None` if there is
    /// none, or if the versions use different slots.
    pub(super) fn previous_interface(&self, slot: u32) -> Result<Option<u32>> {
        for other in self.others.iter().filter(|other| other.shares_slots) {
            if let Some(index) = other.interface_of(slot)? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Returns whether another version's flow tracker records the flows of an interface slot in the flow table of this
    /// version.
    ///
    /// `by_filter` is true for a flow tracker in a clsact filter, which has no pin, and false for one in a tcx link.
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
}

impl Dataplane {
    /// Returns whether the program of another version is attached to the interface with this index.
    ///
    /// Attach to such interfaces last, because a replaced program is not restored if a later attach fails.
    pub fn has_previous_link(&self, index: u32) -> Result<bool> {
        Ok(self.migration.previous_link(index)?.is_some())
    }

    /// Undoes the changes of a failed start, and returns whether there is a filter of another version.
    ///
    /// Changes nothing if this version's program has replaced that version's in some links: the next start continues
    /// the migration.
    pub(super) fn abort_migration(&mut self) -> Result<bool> {
        if self.migration.others.is_empty() {
            return Ok(false);
        }
        if self.migration.has_replaced {
            warn!(
                "the migration from another version of allowlist is incomplete: some interfaces have this version's program, others the other version's; the next `allowlist run` continues the migration"
            );
            return Ok(true);
        }
        let mut slots = Vec::new();
        for slot in 0..MAX_INTERFACES {
            if self.migration.previous_interface(slot)?.is_some() {
                slots.push(slot);
            }
        }
        self.detach_except(&slots)?;
        Ok(true)
    }

    /// Returns the checksum of the names that a build without [`abi::METADATA`] stored on disk; `None` if there was none.
    pub fn older_names(&self) -> Result<Option<u64>> {
        if !is_pinned(&self.pins.map(OLDER_NAMES))? {
            return Ok(None);
        }
        let names: Array<_, u64> = self.pins.open_map(OLDER_NAMES)?.try_into()?;
        Ok(Some(names.get(&0, 0)?))
    }

    /// Removes the pins of other versions once this version's program is attached to every interface.
    ///
    /// Returns the names of interfaces that had another version's program, and have none now.
    pub fn remove_previous(&mut self) -> Result<Vec<String>> {
        let mut detached = Vec::new();
        self.pins.unpin(OLDER_NAMES)?;
        while let Some(other) = self.migration.others.last() {
            let _pin_lock = self.pins.lock_exclusive()?;
            detached.extend(detach_other(&other.folder)?);
            info!(
                "migrated the filter's kernel maps from ABI v{} to v{}",
                other.version,
                self.pins.version()
            );
            self.migration.others.pop();
        }
        Ok(detached)
    }
}
