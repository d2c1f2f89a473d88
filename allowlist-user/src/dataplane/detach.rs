//! Detaching: one interface, all that are not configured, or everything that any version pinned.
//!
//! Invariant: every change of pins is made under one lock, so that a daemon that checks its interfaces and a `detach`
//! cannot work against each other.

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use allowlist_common::abi::{self, Interface, MAX_INTERFACES};
use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData};
use nix::net::if_::if_indextoname;

use super::attach::name_of;
use super::control_map::PublishedMap;
use super::egress::detach_tracker;
use super::link::{filters, interface_of, take_off};
use super::pins::{EGRESS_LINK, LINK, Pins, is_pinned, other_versions, require_privileges};
use super::sys::{Access, open_pinned};
use super::{Dataplane, View};

impl Dataplane {
    /// Takes the filter off every interface and removes all pins of this version.
    ///
    /// # Returns
    /// The names of the interfaces.
    pub fn detach(&self) -> Result<Vec<String>> {
        self.detach_except(&[])
    }

    /// The same, without the flow trackers in the slots `anothers`, which are another version's.
    pub(super) fn detach_except(&self, anothers: &[u32]) -> Result<Vec<String>> {
        self.has_detached.store(true, Ordering::Relaxed);
        detach_own(&self.pins, anothers)
    }

    /// Whether this process has detached the filter itself, as a start or a reload that fails does where nothing was
    /// filtered before.
    pub fn has_detached(&self) -> bool {
        self.has_detached.load(Ordering::Relaxed)
    }

    /// Takes the filter off interfaces whose index is not in `keep`. While a change waits to be confirmed, it
    /// stays on those that were filtered before, and lets everything pass there.
    ///
    /// # Returns
    /// Their names.
    pub fn detach_others(&mut self, keep: &[u32]) -> Result<Vec<String>> {
        let _pin_lock = self.pins.lock_exclusive()?;
        let mut detached = Vec::new();
        for slot in 0..MAX_INTERFACES {
            let pin = self.pins.link(slot);
            let is_kept = |index| keep.contains(&index);
            let recorded = self.interfaces.get(&slot, 0)?;
            let interface = self.pins.interface_of(slot)?;
            if let Some(index) = interface.filter(|index| is_kept(*index))
                && filters(&pin, index)?
            {
                continue;
            }
            if !is_pinned(&pin)? {
                // A start that failed may have got as far as that.
                if recorded.egress != 0 && !is_kept(recorded.index) {
                    self.disable_tracking(slot)?;
                }
            } else if interface.is_some() && self.fallback_filters(slot) {
                if self.bypass(slot) {
                    detached.push(name_of(&recorded));
                }
            } else {
                take_off(&pin)?;
                self.disable_tracking(slot)?;
                self.forget(slot)?;
                detached.push(name_of(&recorded));
            }
        }
        Ok(detached)
    }
}

/// Takes the filter off every interface and removes all pins, also those of other versions of the maps,
/// which an older or newer program left.
///
/// # Returns
/// The names of the interfaces.
pub fn detach_all(pin_dir: &Path) -> Result<Vec<String>> {
    require_privileges()?;
    let others = other_versions(pin_dir)?;
    let mut detached = match Pins::open(pin_dir) {
        Ok(pins) => detach_own(&pins, &[])?,
        Err(_) if !others.is_empty() => Vec::new(),
        Err(error) => return Err(error),
    };
    for (_, folder) in &others {
        detached.extend(detach_other(folder)?);
    }
    let _ = fs::remove_dir(pin_dir); // somebody's own folder may be in it
    Ok(detached)
}

/// How often, and how far apart, a pin is looked for that a running daemon makes again within a second.
const ATTEMPTS: u32 = 30;
const WAIT: Duration = Duration::from_millis(100);

const STILL_ON: &str = "the filter is still on some interfaces; detach again";

/// Takes off what this version has pinned. In the slots `anothers` what notes outbound packets is another
/// version's, but for what is pinned here.
pub(super) fn detach_own(pins: &Pins, anothers: &[u32]) -> Result<Vec<String>> {
    let _pin_lock = mark_detached(pins)?;
    // A folder that lacks a map still has links to take off, so names are worth only a try.
    let view = View::open(pins.root());
    let names = view.as_ref().map(View::attachments);
    let recorded: Vec<Interface> = (0..MAX_INTERFACES)
        .map(|slot| {
            let is_own = !anothers.contains(&slot);
            is_own.then(|| view.as_ref().ok()?.recorded(slot).ok())?
        })
        .map(Option::unwrap_or_default)
        .collect();
    // An older daemon knows by this that it is meant.
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
        // After what lets answers in.
        detach_tracker(pins, slot, recorded)?;
    }
    pins.remove()?;
    Ok(detached)
}

/// States to a daemon that the filter is being detached on purpose: it holds the map open in which that is written,
/// and must not treat the missing pins as an accident.
///
/// # Returns
/// The lock of the pin folder.
fn mark_detached(pins: &Pins) -> Result<File> {
    for attempt in 0.. {
        let changing = pins.lock_exclusive()?;
        if is_pinned(&pins.map(abi::PUBLISHED))? {
            let map = open_pinned(&pins.map(abi::PUBLISHED), Access::ReadWrite)
                .with_context(|| format!("cannot open the map {}", abi::PUBLISHED))?;
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
        "the pin of {} is missing, and the running daemon does not restore it, so the daemon would attach the filter again; stop the daemon, then detach again",
        abi::PUBLISHED
    )
}

/// What another version pinned: of its maps nothing is known but that a daemon of any version ends when
/// its control word is unpinned.
pub(super) fn detach_other(folder: &Path) -> Result<Vec<String>> {
    let _ = fs::remove_file(folder.join(abi::CONTROL));
    let mut detached = Vec::new();
    let pinned =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in pinned {
        let pin = entry?.path();
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
            fs::remove_file(&pin).with_context(|| format!("cannot unpin {}", pin.display()))?;
        }
    }
    fs::remove_dir(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    Ok(detached)
}
