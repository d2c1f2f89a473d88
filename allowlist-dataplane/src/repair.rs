//! Restores missing pins: in a running daemon from open descriptors, and at a start from recorded ids.
//!
//! Invariant: a restored pin refers to the map that the attached programs use. If a start cannot open that map, it
//! creates another one and replaces the programs.

use std::os::fd::AsFd as _;

use allowlist_common::abi::{self, Identity, MAX_INTERFACES};
use aya::maps::{Array, Map, MapData};
use log::{info, warn};

use super::Dataplane;
use super::pins::{Pins, is_pinned};
use super::selfcheck::{Difference, DifferenceKind};
use super::view::View;
use crate::error::{Context as _, Result, bail};

/// Open descriptors of all pinned maps, with their names and ids, in the order of [`abi::PINNED`].
pub(super) struct OpenMaps(Vec<(&'static str, u32, MapData)>);

impl OpenMaps {
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        let mut maps = Vec::new();
        for (name, _) in abi::PINNED {
            let map = pins.open_data(name)?;
            maps.push((name, map.info()?.id(), map));
        }
        Ok(Self(maps))
    }

    /// Returns the ids of the maps, in the order of [`abi::PINNED`].
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|(_, id, _)| *id)
    }

    fn get(&self, name: &str) -> Option<(u32, &MapData)> {
        let found = self.0.iter().find(|(known, ..)| *known == name)?;
        Some((found.1, &found.2))
    }
}

impl Dataplane {
    /// Opens the map that is pinned under a name now, and closes the previous map of this name.
    pub(super) fn keep_open(&mut self, name: &'static str) -> Result<()> {
        self.programs.clear(); // they use the former map
        let map = self.pins.open_data(name)?;
        let id = map.info()?.id();
        if let Some(known) = self.open_maps.0.iter_mut().find(|known| known.0 == name) {
            *known = (name, id, map);
        }
        Ok(())
    }

    /// Restores missing pins of maps. Call it with the pin directory locked.
    pub(super) fn pin_maps_again(&self) -> Result<()> {
        for (name, _, map) in &self.open_maps.0 {
            if !is_pinned(&self.pins.map(name))? {
                self.pins.pin_again(map.fd().as_fd(), name)?;
            }
        }
        self.tables.pin_again(&self.pins)
    }

    /// Restores the pin directory if it was unmounted or removed, and returns whether it was.
    ///
    /// Pins all maps, and the links that can still be opened. Call it only if [`Self::is_detached`] is false.
    ///
    /// # Errors
    /// Fails if the path is not on a BPF file system, or has the pins of another process.
    pub fn restore_folder(&mut self) -> Result<bool> {
        if self.pins.is_current() {
            return Ok(false);
        }
        let pins = Pins::create(self.pins.root(), self.pins.version())?;
        if pins.missing_maps()?.len() != abi::PINNED.len() || pins.have_links()? {
            bail!(
                "cannot restore the filter's pins under {}, because another process has pinned a filter there; stop one of the two daemons, or start one of them with another --pin-dir",
                pins.root().display()
            );
        }
        pins.take_links_of(&self.pins)?;
        self.pins = pins;
        let _pin_lock = self.pins.lock_exclusive()?;
        self.pin_maps_again()?;
        Ok(true)
    }

    /// Restores pins of maps and the control word, where `differences` report that another process changed them.
    ///
    /// [`Self::attach`] repairs links.
    pub fn repair(&mut self, differences: &[Difference]) -> Result<()> {
        let _pin_lock = self.pins.lock_exclusive()?;
        if self.is_detached() {
            bail!(
                "cannot repair the filter, because another process has detached it, so its interfaces are not filtered; start the daemon again with `allowlist run`"
            );
        }
        for difference in differences {
            match (difference.kind, &difference.object) {
                (DifferenceKind::ControlWord, _) => {
                    self.control.restore();
                }
                (DifferenceKind::MapReplaced, Some(name)) => self.pin_own(name)?,
                _ => {}
            }
        }
        self.pin_maps_again()
    }

    /// Replaces the pin under a map's name by a pin of the map that this process publishes into, if they differ.
    fn pin_own(&self, name: &str) -> Result<()> {
        let Some((own, map)) = self.open_maps.get(name) else {
            return Ok(());
        };
        if self.pins.open_data(name)?.info()?.id() != own {
            self.pins.unpin(name)?;
            self.pins.pin_again(map.fd().as_fd(), name)?;
        }
        Ok(())
    }

    /// Returns whether the attached programs use other maps than this value, because some pins were missing at the
    /// start.
    ///
    /// The programs are replaced after a publish.
    pub const fn is_patched(&self) -> bool {
        self.is_patched
    }
}

/// Restores missing pins of the maps that attached programs use. Requires `CAP_SYS_ADMIN`, to open a map by its id.
///
/// Returns whether some of these maps could not be opened by the ids that were recorded at the attach. The start then
/// creates new maps.
pub(super) fn restore_maps(pins: &Pins) -> Result<bool> {
    if !pins.have_links()? {
        return Ok(false);
    }
    let mut missing = pins.missing_maps()?;
    // No program uses that map.
    missing.retain(|name| *name != abi::METADATA);
    if missing.is_empty() {
        return Ok(false);
    }
    let identities = identities(pins)?;
    let mut lost = Vec::new();
    for name in missing {
        let place = abi::PINNED.iter().position(|(known, _)| *known == name);
        let ids = identities
            .iter()
            .filter_map(|identity| Some(identity.maps[place?]));
        let found = ids.filter(|id| *id != 0).find_map(|id| {
            let map = MapData::from_id(id).ok()?;
            let is_same = map.info().ok()?.name_as_str()? == name;
            is_same.then_some(map)
        });
        match found {
            Some(map) => {
                pins.pin_again(map.fd().as_fd(), name)?;
                info!("restored the missing pin of the kernel map {name}");
            }
            None => lost.push(name),
        }
    }
    if !lost.is_empty() {
        warn!(
            "cannot find the kernel maps whose pins are missing: {}; their contents are lost, and programs with new maps replace the attached programs",
            lost.join(", ")
        );
    }
    Ok(!lost.is_empty())
}

fn identities(pins: &Pins) -> Result<Vec<Identity>> {
    if !is_pinned(&pins.map(abi::IDENTITIES))? {
        return Ok(Vec::new());
    }
    let map: Map = pins.open_map(abi::IDENTITIES)?;
    let map: Array<_, Identity> = map
        .try_into()
        .context("map IDENTITIES has an unexpected type (expected BPF_MAP_TYPE_ARRAY)")?;
    let slots = (0..MAX_INTERFACES).map(|slot| Ok(map.get(&slot, 0)?));
    slots
        .filter(|identity: &Result<Identity>| {
            identity
                .as_ref()
                .map_or(true, |identity| identity.program != 0)
        })
        .collect()
}

impl View {
    /// Returns whether the map with this name is pinned.
    pub fn has(&self, name: &str) -> Result<bool> {
        is_pinned(&self.pins.map(name))
    }
}
