//! Detaches the filter: from interfaces that are no longer configured, from all interfaces, or with the pins of all
//! versions.
//!
//! Invariant: pins are changed only with the lock of the pin directory held, so that a daemon that repairs its
//! interfaces and a concurrent `detach` do not undo each other's changes.

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use allowlist_common::abi::{self, Interface, MAX_INTERFACES};
use aya::maps::{Map, MapData};
use nix::net::if_::if_indextoname;

use super::attach::name_of;
use super::control_map::PublishedMap;
use super::egress_links::pinned_links;
use super::link::{filters, interface_of, take_off};
use super::pins::{EGRESS_LINK, LINK, Pins, is_pinned, other_versions, require_privileges};
use super::sys::{Access, open_pinned};
use super::tracker::detach_tracker;
use super::{Dataplane, View};
use crate::error::{Context as _, Result, bail};

impl Dataplane {
    /// Detaches the filter from all interfaces, removes all pins of this version, and returns the names of the
    /// interfaces.
    pub fn detach(&self) -> Result<Vec<String>> {
        self.detach_except(&[])
    }

    /// Detaches the filter like [`Self::detach`], except the flow trackers in the interface slots `anothers`, which
    /// belong to another version.
    pub(super) fn detach_except(&self, anothers: &[u32]) -> Result<Vec<String>> {
        self.has_detached.store(true, Ordering::Relaxed);
        detach_own(&self.pins, anothers)
    }

    /// Returns whether this process has detached the filter itself.
    ///
    /// A failed start or reload does so if no interface was filtered before.
    pub fn has_detached(&self) -> bool {
        self.has_detached.load(Ordering::Relaxed)
    }

    /// Detaches the filter from interfaces whose index is not in `keep`, and returns their names.
    ///
    /// While a change is pending, the filter stays attached to the interfaces that were filtered before, and lets every
    /// packet pass there.
    pub fn detach_others(&mut self, keep: &[u32]) -> Result<Vec<String>> {
        let _pin_lock = self.pins.lock_exclusive()?;
        let mut detached = Vec::new();
        for slot in 0..MAX_INTERFACES {
            let pin = self.pins.link(slot);
            let is_kept = |index| keep.contains(&index);
            let recorded = self.interfaces.get(slot)?;
            let interface = self.pins.interface_of(slot)?;
            if let Some(index) = interface.filter(|index| is_kept(*index))
                && filters(&pin, index)?
            {
                continue;
            }
            if !is_pinned(&pin)? {
                // A failed start may have left a tracker without a link.
                if recorded.egress != 0 && !is_kept(recorded.index) {
                    self.disable_tracking(slot)?;
                }
            } else if interface.is_some() && self.control.fallback_filters(slot) {
                if self.control.bypass(slot) {
                    detached.push(name_of(&recorded));
                }
            } else {
                take_off(&pin)?;
                self.disable_tracking(slot)?;
                self.interfaces.forget(slot)?;
                detached.push(name_of(&recorded));
            }
        }
        Ok(detached)
    }
}

/// Detaches the filter from all interfaces, removes the pins of all versions, and returns the names of the interfaces.
pub fn detach_all(pin_dir: &Path) -> Result<Vec<String>> {
    require_privileges()?;
    let others = other_versions(pin_dir, abi::VERSION)?;
    let mut detached = match Pins::open(pin_dir) {
        Ok(pins) => detach_own(&pins, &[])?,
        Err(_) if !others.is_empty() => Vec::new(),
        Err(error) => return Err(error),
    };
    for (_, folder) in &others {
        detached.extend(detach_other(folder)?);
    }
    let _ = fs::remove_dir(pin_dir); // it may hold a folder of another user
    Ok(detached)
}

/// The maximum number of waits of [`WAIT`] each for a running daemon to restore a missing pin, which takes it about a
/// second.
const ATTEMPTS: u32 = 30;
const WAIT: Duration = Duration::from_millis(100);

const STILL_ON: &str = "the filter is still attached to some interfaces (run `allowlist detach` once more), because a link could not be removed";

/// Detaches all links of this version, removes its pins, and returns the names of the interfaces.
///
/// In the interface slots `anothers`, a flow tracker without a pin of this version belongs to another version and
/// stays.
pub(super) fn detach_own(pins: &Pins, anothers: &[u32]) -> Result<Vec<String>> {
    let _pin_lock = mark_detached(pins)?;
    // Names are optional: a folder without some maps still has links to detach.
    let view = View::open(pins.root());
    let names = view.as_ref().map(View::attachments);
    let recorded: Vec<Interface> = (0..MAX_INTERFACES)
        .map(|slot| {
            let is_own = !anothers.contains(&slot);
            is_own.then(|| view.as_ref().ok()?.recorded(slot).ok())?
        })
        .map(Option::unwrap_or_default)
        .collect();
    // An older daemon ends when this pin is gone.
    pins.unpin(abi::CONTROL)?;
    let mut detached = Vec::new();
    for (slot, recorded) in (0..).zip(&recorded) {
        let pin = pins.link(slot);
        if is_pinned(&pin)? {
            take_off(&pin).context(STILL_ON)?;
            let mut known = names.iter().flatten().flatten();
            detached.push(
                known
                    .find(|attachment| attachment.slot == slot)
                    .map_or_else(|| format!("slot {slot}"), |one| one.name.clone()),
            );
        }
        // After the XDP link, which uses its flows.
        detach_tracker(pins, slot, recorded)?;
    }
    pins.remove()?;
    Ok(detached)
}

/// Marks the filter as detached on purpose, and returns the lock of the pin directory.
///
/// A running daemon has the map with this mark open, and does not restore the pins once it is set.
fn mark_detached(pins: &Pins) -> Result<File> {
    for attempt in 0.. {
        let changing = pins.lock_exclusive()?;
        if is_pinned(&pins.map(abi::PUBLISHED))? {
            let path = pins.map(abi::PUBLISHED);
            let map = open_pinned(&path, Access::ReadWrite)
                .with_context(|| format!("cannot open the map {}", path.display()))?;
            let map = Map::from_map_data(MapData::from_fd(map)?)?;
            PublishedMap::map(&map, Access::ReadWrite)?.mark_detached();
            return Ok(changing);
        }
        if !pins.is_published_into()? {
            return Ok(changing); // no daemon runs that would pin it again
        }
        if attempt == ATTEMPTS {
            break;
        }
        drop(changing);
        thread::sleep(WAIT);
    }
    bail!(
        "cannot detach: the pin of the map {} is missing, and the running daemon does not restore it, so the daemon would attach the filter again; stop the daemon, then run `allowlist detach` once more",
        abi::PUBLISHED
    )
}

/// Detaches all links in the pin directory of another version, removes its pins, and returns the names of the
/// interfaces.
///
/// The contents of its maps are unknown, except that a daemon of any version ends when its control map is unpinned.
pub(super) fn detach_other(folder: &Path) -> Result<Vec<String>> {
    let _ = fs::remove_file(folder.join(abi::CONTROL));
    for (_, link) in pinned_links(folder)? {
        take_off(&link).context(STILL_ON)?;
    }
    let mut detached = Vec::new();
    let what = || format!("cannot list the pin directory {}", folder.display());
    let pinned = fs::read_dir(folder).with_context(what)?;
    for entry in pinned {
        let pin = entry.with_context(what)?.path();
        let name = pin.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(LINK) {
            if let Some(Ok(interface)) = interface_of(&pin)?.map(if_indextoname) {
                detached.push(interface.to_string_lossy().into_owned());
            }
            take_off(&pin).context(STILL_ON)?;
        } else if name.starts_with(EGRESS_LINK) {
            take_off(&pin).context(STILL_ON)?;
        } else if pin.is_dir() {
            let _ = fs::remove_dir(&pin);
        } else {
            fs::remove_file(&pin)
                .with_context(|| format!("cannot remove the pin {}", pin.display()))?;
        }
    }
    fs::remove_dir(folder)
        .with_context(|| format!("cannot remove the pin directory {}", folder.display()))?;
    Ok(detached)
}
