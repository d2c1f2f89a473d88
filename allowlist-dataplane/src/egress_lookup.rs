//! Reads the tables of the active egress policy for decisions on hypothetical calls, from the pinned maps and without a
//! daemon. Read-only.
//!
//! Invariant: all tables of one [`EgressLookup`] are of one generation, even if another is published during the read.
//! Addresses of names and of this host have no generation: they are those of one moment.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use allowlist_common::abi::{
    self, Control, ControlBits, EGRESS_PREFIXES, EGRESS_SETTINGS, EGRESS_TABLES, EgressSettings,
    Grant, ListedName, NameGrant, OWN_ADDRESSES,
};
use allowlist_common::egress::{address_key, embedded, learned, unmapped};
use allowlist_common::packet::Address;
use allowlist_policy::UnitPlace;
use allowlist_policy::explain::{CallTables, CallerRows, LearnedIds, UnitRowsByText};
use aya::maps::HashMap;

use super::View;
use super::cgroup::{Cgroup, mount_point};
use super::egress_links::attached_cgroups;
use super::egress_maps::SETTINGS_WORDS;
use super::egress_units::{path_of_unit, rows_of_units};
use super::generations;
use super::lookup::ATTEMPTS;
use super::name_maps::{NamesByAddress, address_of, grants, learned_names, listed_name};
use super::ranges::{self, Copied};
use super::seen::answered_addresses;
use super::sys::read_value;
use super::view::Entry;
use crate::error::{Context as _, Result, bail};

/// The tables of the active egress policy, which a later publish does not change.
pub struct EgressLookup {
    control: Control,
    metadata: Option<Vec<u8>>,
    copied: Copied,
    /// The prefixes of the tables, IPv4 first, sorted.
    entries: Vec<Entry>,
    settings: EgressSettings,
    names: Vec<NameGrant>,
    units: UnitRowsByText,
    own: BTreeSet<[u64; 2]>,
    /// The names for which each address was answered, each with the time until which it is valid.
    learned: NamesByAddress,
    ids: LearnedIds,
    /// The requested name, as the rules list it; `None` without a name, or if no rule lists it.
    listed: Option<ListedName>,
    /// The addresses that were answered for the requested name, if no rule lists it.
    unlisted: Vec<IpAddr>,
    /// The ids of the cgroups to which the programs are attached.
    attached: BTreeSet<u64>,
}

/// A calling program, as far as rules distinguish programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallingUnit {
    /// The rows of the program's units.
    pub rows: CallerRows,
    /// The path of the program's cgroup below the root of cgroup v2; `None` if it is not known.
    pub path: Option<String>,
    /// Whether calls of the program are judged: the policy is attached to its cgroup, or to one around it. True if the
    /// path is not known.
    pub is_judged: bool,
}

impl View {
    /// Reads the tables of the active egress policy; `None` if no egress policy is active. `name` is the name whose
    /// addresses are requested, in lower case.
    pub fn egress_lookup(&self, name: Option<&str>) -> Result<Option<EgressLookup>> {
        for _ in 0..ATTEMPTS {
            let control = self.control()?;
            let mut is_active = control.egress.is_some() && !control.open;
            for name in abi::EGRESS_PINNED {
                is_active = is_active && self.has(name)?;
            }
            if !is_active {
                return Ok(None);
            }
            let lookup = self.read_egress(control, name)?;
            // Else a publish may have changed the slot while it was read.
            if self.control()? == control {
                return Ok(Some(lookup));
            }
        }
        bail!(
            "cannot read the tables of the egress policy, because each attempt was interrupted by a publish; try again"
        )
    }

    fn read_egress(&self, control: Control, name: Option<&str>) -> Result<EgressLookup> {
        let (pins, slot) = (&self.pins, control.slot % abi::SLOTS);
        let memory = generations::read(pins, EGRESS_TABLES, slot)?;
        let copied = Copied::of(&memory.all())?;
        let entries = ranges::entries_in(pins, EGRESS_PREFIXES, slot, &copied)?;
        let settings = pins.open_data(EGRESS_SETTINGS)?;
        let settings = read_value(settings.fd().as_fd(), slot, SETTINGS_WORDS)
            .with_context(|| format!("cannot read the map {EGRESS_SETTINGS}"))?;
        let own: HashMap<_, [u64; 2], u8> = pins.open_map(OWN_ADDRESSES)?.try_into()?;
        let own = own.keys().collect::<Result<_, _>>();
        let learned = learned_names(pins)?;
        let ids = learned.iter().map(|(key, names)| {
            let ids = names.iter().map(|(id, _)| *id);
            (*key, ids.collect())
        });
        let listed = name.map(|name| listed_name(pins, slot, name)).transpose()?;
        let listed = listed.flatten();
        let unlisted = match (name, listed) {
            (Some(name), None) => answered_addresses(pins, name)?,
            _ => Vec::new(),
        };
        let attached = attached_cgroups(pins.folder())?;
        Ok(EgressLookup {
            control,
            metadata: self.metadata()?,
            entries,
            copied,
            settings: bytemuck::pod_read_unaligned(bytemuck::cast_slice(&settings)),
            names: grants(pins, slot)?,
            units: rows_of_units(pins, slot)?,
            own: own.with_context(|| format!("cannot read the map {OWN_ADDRESSES}"))?,
            ids: ids.collect(),
            learned,
            listed,
            unlisted,
            attached: attached.into_iter().map(|(_, cgroup)| cgroup).collect(),
        })
    }
}

impl EgressLookup {
    /// Returns the control word of the generation.
    pub const fn control(&self) -> Control {
        self.control
    }

    /// Returns the metadata of the generation; `None` if it has none.
    pub fn metadata(&self) -> Option<&[u8]> {
        self.metadata.as_deref()
    }

    /// Returns the tables for a calling program.
    pub fn tables(&self, rows: CallerRows) -> CallTables<'_, impl Fn(&Address) -> Option<Grant>> {
        CallTables {
            control: ControlBits(self.control.encode()),
            services: self.copied.services(),
            rows,
            settings: &self.settings,
            names: &self.names,
            learned: &self.ids,
            own: &self.own,
            grant: |address: &Address| self.copied.grant(address),
        }
    }

    /// Returns all prefixes of the tables, IPv4 first, sorted.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the prefixes that contain an address, or the IPv4 address that is translated or mapped to it, the longest
    /// first.
    pub fn containing(&self, address: IpAddr) -> Vec<Entry> {
        let outer = unmapped(address.into());
        let forms = [Some(outer), embedded(outer)].map(|form| form.map(IpAddr::from));
        let contains = |entry: &&Entry| {
            let mut forms = forms.iter().flatten();
            forms.any(|form| entry.prefix.contains(form))
        };
        let mut entries: Vec<Entry> = self.entries.iter().filter(contains).copied().collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.prefix.prefix_len()));
        entries
    }

    /// Returns the rules that allow every IPv4 address by a prefix; `None` if there is no such prefix.
    pub fn everything(&self) -> Option<Grant> {
        let mut all = self.entries.iter();
        all.find(|entry| entry.prefix.addr().is_ipv4() && entry.prefix.prefix_len() == 0)
            .map(|entry| entry.grant)
    }

    /// Returns the ids of the names for which resolvers answered an address, each with the time until which it is valid,
    /// since the start of the system; in the order of the kernel's lookup.
    pub fn names_of(&self, address: IpAddr) -> &[(u32, Duration)] {
        let key = address_key(learned(address.into()));
        self.learned.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Returns the addresses that resolvers answered for the names with these ids, sorted.
    pub fn answered_for(&self, ids: &BTreeSet<u32>) -> Vec<IpAddr> {
        let all = self.learned.iter();
        let of_names = all.filter(|(_, names)| names.iter().any(|(id, _)| ids.contains(id)));
        of_names.map(|(key, _)| address_of(*key)).collect()
    }

    /// Returns the id under which answers for the requested name are stored; 0 if no rule lists the name.
    pub fn listed(&self) -> u32 {
        self.listed.map_or(0, |listed| listed.id)
    }

    /// Returns the addresses that were answered for the requested name, if no rule lists it; such answers are
    /// recorded in observe mode and with the default verdict pass only.
    pub fn unlisted(&self) -> &[IpAddr] {
        &self.unlisted
    }

    /// Returns a program in no unit that a rule names.
    pub fn any_program(&self) -> CallingUnit {
        CallingUnit {
            is_judged: !self.attached.is_empty(),
            ..CallingUnit::default()
        }
    }

    /// Returns a program in a unit, or in a cgroup given by its path. A unit that is given by its name is searched among
    /// the cgroups that exist; if it has none, the slices around it are not known.
    pub fn program_of(&self, unit: &str) -> Result<CallingUnit> {
        let place = UnitPlace::of(unit);
        let path = if place.is_path() {
            Some(place.text().to_owned())
        } else {
            path_of_unit(place.text())?
        };
        Ok(match path {
            Some(path) => CallingUnit {
                rows: CallerRows::of_path(&path, &self.units),
                is_judged: self.is_judged(&path)?,
                path: Some(path),
            },
            None => CallingUnit {
                rows: CallerRows::of_name(place.text(), &self.units),
                ..self.any_program()
            },
        })
    }

    /// Returns a program in a unit that a rule names, and in no other one.
    pub fn program_of_rule(&self, unit: &str) -> CallingUnit {
        let place = UnitPlace::of(unit);
        let rows = if place.is_path() {
            CallerRows::of_path(place.text(), &self.units)
        } else {
            CallerRows::of_name(place.text(), &self.units)
        };
        CallingUnit {
            rows,
            ..self.any_program()
        }
    }

    /// Returns whether the policy is attached to a cgroup, or to one around it, as far as those exist.
    fn is_judged(&self, path: &str) -> Result<bool> {
        let root = mount_point()?;
        let below: PathBuf = root.join(path.trim_start_matches('/'));
        let mut ancestors = below.ancestors().take_while(|one| one.starts_with(&root));
        let is_attached = |directory: &Path| {
            let id = Cgroup::id_of(directory).ok().flatten();
            id.is_some_and(|id| self.attached.contains(&id))
        };
        Ok(ancestors.any(is_attached))
    }
}
