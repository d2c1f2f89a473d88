//! The cgroups of units: writes which units the rules of a slot name, attaches the programs that follow the creation and
//! the removal of cgroups, and finds the cgroups that exist.
//!
//! Invariant: a unit's cgroup has a row in every slot that names the unit, before a process in the cgroup is judged by
//! the slot. The names of a slot are written first, then the programs are attached, and then the existing cgroups are
//! searched: so a cgroup that is created during these steps is found by the program or by the search. The refresh each
//! second repairs the rows of cgroups that a program missed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirEntryExt as _;
use std::path::Path;

use allowlist_common::abi::{
    self, SLOTS, UNIT_OFFSETS, UNIT_PROGRAMS, UNIT_TEXTS, UNITS, UnitKey, UnitRow, UnitText,
};
use allowlist_policy::UnitPlace;
use allowlist_policy::error_code::{CodedError, ErrorCode};
use allowlist_policy::explain::UnitRowsByText;
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::RawTracePoint;
use aya::programs::links::FdLink;

use super::cgroup::{Cgroup, mount_point};
use super::kernel_types::KernelTypes;
use super::pins::{Pins, is_pinned};
use super::rcu::GracePeriod;
use crate::error::{Context as _, Error, Result};

/// The end of the name of a slice's cgroup.
const SLICE: &str = ".slice";
/// The end of the name of a new link's pin, before it replaces the previous link's.
const NEW: &str = "_new";

/// The rows of units by name or path, as the rules of one slot name them.
type Texts = BTreeMap<String, u32>;

/// The open maps with the units of all slots and their cgroups.
pub(super) struct UnitMaps {
    texts: HashMap<MapData, UnitText, u32>,
    cgroups: HashMap<MapData, UnitKey, u32>,
    /// The rows whose cgroup the last search did not find. A cgroup that is being created has a row before it is
    /// visible, so a row is removed only if the next search does not find its cgroup either.
    missing: BTreeSet<UnitKey>,
}

impl UnitMaps {
    /// Opens the pinned maps.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            texts: pins.open_map(UNIT_TEXTS)?.try_into()?,
            cgroups: pins.open_map(UNITS)?.try_into()?,
            missing: BTreeSet::new(),
        })
    }

    /// Sets the units of a slot that no control word names: the first has row 1 of the slot's tables, and so on. If they
    /// change, removes all rows of the slot.
    pub(super) fn set_texts(&mut self, slot: u32, units: &[UnitPlace]) -> Result<()> {
        let what = || format!("cannot update the map {UNIT_TEXTS}");
        let wanted: Texts = (1..)
            .zip(units)
            .map(|(row, unit)| {
                let row = if unit.is_path() {
                    UnitRow::by_path(row)
                } else {
                    UnitRow::by_name(row)
                };
                (unit.text().to_owned(), row.0)
            })
            .collect();
        let known = self.texts()?.remove(&slot).unwrap_or_default();
        if known == wanted {
            return Ok(());
        }
        let key = |text: &str| {
            UnitText::new(slot, text).ok_or_else(|| {
                Error::message(format!(
                    "the path of the unit {text:?} is longer than {} bytes; name a slice around it",
                    abi::MAX_UNIT_TEXT - 1
                ))
            })
        };
        for text in known.keys() {
            self.texts.remove(&key(text)?).with_context(what)?;
        }
        // A program that runs now may still store a row of a removed text.
        if !known.is_empty() {
            GracePeriod::new()?.synchronize()?;
        }
        for cgroup in self.cgroups()?.into_keys() {
            if cgroup.slot == u64::from(slot) {
                self.remove(&cgroup)?;
            }
        }
        for (text, row) in &wanted {
            self.texts.insert(key(text)?, row, 0).with_context(what)?;
        }
        Ok(())
    }

    /// Returns whether no slot names a unit.
    pub(super) fn is_empty(&self) -> Result<bool> {
        Ok(self.texts()?.is_empty())
    }

    /// Searches the cgroups of all units: adds the rows that are missing, and removes those whose cgroup was not found
    /// twice.
    pub(super) fn refresh(&mut self) -> Result<()> {
        let what = || format!("cannot update the map {UNITS}");
        let known = self.cgroups()?;
        let mut found = BTreeMap::new();
        let texts = self.texts()?;
        if !texts.is_empty() {
            search(&texts, &mut found)?;
        }
        for (key, row) in &found {
            if known.get(key) != Some(row) {
                self.cgroups.insert(key, row, 0).with_context(what)?;
            }
        }
        let missing: BTreeSet<UnitKey> = known
            .into_keys()
            .filter(|key| !found.contains_key(key))
            .collect();
        for key in missing.intersection(&self.missing.clone()) {
            self.remove(key)?;
        }
        self.missing = missing;
        Ok(())
    }

    /// Returns the units of each slot that names any.
    fn texts(&self) -> Result<BTreeMap<u32, Texts>> {
        texts_in(&self.texts)
    }

    /// Returns the rows of cgroups. Rows that a program removes during the iteration may be left out.
    fn cgroups(&self) -> Result<BTreeMap<UnitKey, u32>> {
        // A program may remove the key whose successor is requested. The iteration then starts again, so it is bounded.
        const MAX_KEYS: usize = 1 << 14;
        let keys: BTreeSet<UnitKey> = self
            .cgroups
            .keys()
            .take(MAX_KEYS)
            .collect::<Result<_, _>>()
            .with_context(|| format!("cannot read the map {UNITS}"))?;
        let row = |key: UnitKey| Some((key, self.cgroups.get(&key, 0).ok()?));
        Ok(keys.into_iter().filter_map(row).collect())
    }

    /// Removes a row, which a program may remove at the same time.
    fn remove(&mut self, key: &UnitKey) -> Result<()> {
        let removed = self.cgroups.remove(key);
        if self.cgroups.get(key, 0).is_ok() {
            removed.with_context(|| format!("cannot update the map {UNITS}"))?;
        }
        Ok(())
    }
}

fn texts_in(map: &HashMap<MapData, UnitText, u32>) -> Result<BTreeMap<u32, Texts>> {
    let mut all: BTreeMap<u32, Texts> = BTreeMap::new();
    for entry in map {
        let (key, row) = entry.with_context(|| format!("cannot read the map {UNIT_TEXTS}"))?;
        let text = String::from_utf8_lossy(key.text()).into_owned();
        let slot = (key.slot % u64::from(SLOTS)) as u32;
        all.entry(slot).or_default().insert(text, row);
    }
    Ok(all)
}

/// Returns the rows of the units that the rules of a slot name, for a process that only reads.
pub(super) fn rows_of_units(pins: &Pins, slot: u32) -> Result<UnitRowsByText> {
    let texts = texts_in(&pins.open_map(UNIT_TEXTS)?.try_into()?)?.remove(&slot);
    let texts = texts.unwrap_or_default().into_iter();
    Ok(texts.map(|(text, row)| (text, UnitRow(row))).collect())
}

/// Adds the rows of the cgroups that exist to `found`. Cgroups that are removed during the search may be left out.
fn search(texts: &BTreeMap<u32, Texts>, found: &mut BTreeMap<UnitKey, u32>) -> Result<()> {
    let mut add = |text: &str, cgroup: u64| {
        for (&slot, units) in texts {
            if let Some(row) = units.get(text) {
                let slot = slot.into();
                found.insert(UnitKey { cgroup, slot }, *row);
            }
        }
    };
    let all: BTreeSet<&String> = texts.values().flat_map(BTreeMap::keys).collect();
    let (paths, names): (Vec<&String>, Vec<&String>) =
        all.into_iter().partition(|text| text.starts_with('/'));
    if !names.is_empty() {
        for_each_in_slices(|name, entry| add(name, entry.ino()))?;
    }
    // Last, as the row of a path includes that of the name.
    for path in paths {
        if let Ok(cgroup) = Cgroup::open(Path::new(path)) {
            add(path, cgroup.id);
        }
    }
    Ok(())
}

/// Calls `each` with the name and directory of every cgroup that has only slices around it.
fn for_each_in_slices(mut each: impl FnMut(&str, &fs::DirEntry)) -> Result<()> {
    let mut slices = vec![mount_point()?];
    while let Some(slice) = slices.pop() {
        for entry in fs::read_dir(slice).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir())
                && let Some(name) = entry.file_name().to_str()
            {
                each(name, &entry);
                if name.ends_with(SLICE) {
                    slices.push(entry.path());
                }
            }
        }
    }
    Ok(())
}

/// Returns the path below the root of cgroup v2 of the cgroup of a unit, by the name of the cgroup; `None` if the unit has
/// no cgroup now.
pub(super) fn path_of_unit(name: &str) -> Result<Option<String>> {
    let root = mount_point()?;
    let mut found = None;
    for_each_in_slices(|known, entry| {
        if known == name {
            let path = entry.path();
            found = path
                .strip_prefix(&root)
                .ok()
                .map(|below| format!("/{}", below.display()));
        }
    })?;
    Ok(found)
}

/// Loads the programs that follow cgroups into the kernel.
pub(super) fn load_programs(object: &mut Ebpf) -> Result<()> {
    for (name, _) in UNIT_PROGRAMS {
        program(object, name)?.load()?;
    }
    Ok(())
}

fn program<'o>(object: &'o mut Ebpf, name: &str) -> Result<&'o mut RawTracePoint> {
    let program = object.program_mut(name).ok_or_else(|| {
        Error::message(format!(
            "the object file has no program {name}; reinstall allowlist"
        ))
    })?;
    Ok(program.try_into()?)
}

/// Attaches the programs that follow cgroups, and pins their links in place of an earlier process's links. `load` loads
/// the object with load-time constants, and does not load its programs.
///
/// # Errors
/// Fails with the reason and the remedy if the kernel cannot run the programs.
pub(super) fn attach(
    pins: &Pins,
    load: impl FnOnce(&[(&'static str, u32)]) -> Result<Ebpf>,
) -> Result<()> {
    let attach = || {
        let mut object = load(&offsets()?)?;
        load_programs(&mut object)?;
        for (name, tracepoint) in UNIT_PROGRAMS {
            let program = program(&mut object, name)?;
            let link = program.attach(tracepoint)?;
            let link: FdLink = program.take_link(link)?.into();
            // Both links are attached for a moment, so no cgroup is missed.
            let (new, pin) = (pins.map(&format!("{name}{NEW}")), pins.map(name));
            remove_pin(&new)?;
            link.pin(&new)
                .with_context(|| format!("cannot pin the link at {}", new.display()))?;
            fs::rename(&new, &pin)
                .with_context(|| format!("cannot pin the link at {}", pin.display()))?;
        }
        Ok(())
    };
    attach().map_err(|error: Error| {
        let text = format!(
            "this kernel cannot report the starts of units to the egress policy: {error:#}; name slices in the rules instead of services, and set Slice= in the units"
        );
        CodedError::new(ErrorCode::NoUnitStarts, text).into()
    })
}

/// Returns whether the links of the programs that follow cgroups are pinned.
pub(super) fn are_pinned(pins: &Pins) -> Result<bool> {
    for (name, _) in UNIT_PROGRAMS {
        if !is_pinned(&pins.map(name))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes the pins of the links, and so detaches the programs that follow cgroups: the kernel has no other way for
/// these links.
pub(super) fn detach(pins: &Pins) -> Result<()> {
    for (name, _) in UNIT_PROGRAMS {
        remove_pin(&pins.map(&format!("{name}{NEW}")))?;
        remove_pin(&pins.map(name))?;
    }
    Ok(())
}

fn remove_pin(pin: &Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("cannot remove the pin {}", pin.display())),
    }
}

/// Returns the load-time constants of the programs that follow cgroups.
///
/// # Errors
/// The kernel has no type information.
fn offsets() -> Result<Vec<(&'static str, u32)>> {
    let types = KernelTypes::read()?;
    let offset = |(constant, structure, field)| {
        let offset = types.offset(structure, field).ok_or_else(|| {
            Error::message(format!(
                "the running kernel's struct {structure} has no field {field}"
            ))
        })?;
        Ok((constant, offset))
    };
    UNIT_OFFSETS.into_iter().map(offset).collect()
}
