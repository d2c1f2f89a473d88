//! The egress policy in the kernel: creates its maps, attaches its programs to cgroups by pinned links, and writes its
//! tables with those of a generation.
//!
//! The programs and maps are an object of their own, which is loaded with the first policy that has an egress policy, so
//! a host without one has neither. Invariant: the tables of a slot are written before a control word names the slot and
//! has an egress policy; without such a word, every call passes, even with programs attached.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use allowlist_common::abi::{self, EGRESS_TABLES, EgressControl, EgressSettings};
use allowlist_policy::UnitPlace;
use allowlist_policy::compile::{RangeTable, Tables};
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use log::warn;

use super::Dataplane;
use super::cgroup::Cgroup;
use super::egress_links::{AttachedLink, EgressFault, attach_one, detach_from};
use super::egress_maps::EgressMaps;
use super::egress_units;
use super::generations::Generations;
use super::name_maps::{LearnedAddress, forget, learned_addresses, restore};
use super::netlink::Namespace;
use super::own_process;
use super::pins::Pins;
use super::ranges;
use crate::error::{Context as _, Result};

/// The object file of the egress policy's programs, embedded into this program.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/allowlist-connect"));

/// The root of cgroup v2, to which the programs are attached by default.
const ROOT: &str = "/";

/// The egress policy of a generation.
#[derive(Clone)]
pub struct EgressPublication {
    /// The tables of the generation, in which rules take the place of services, and destination addresses that of
    /// source addresses.
    pub tables: Arc<Tables>,
    /// The exempt endpoints, such as resolvers, and whether a rule is limited to units.
    pub settings: EgressSettings,
    /// The settings in the control word.
    pub control: EgressControl,
    /// The cgroups to attach to, as paths below the root of cgroup v2; empty for the root.
    pub cgroups: Vec<PathBuf>,
    /// The places of units in the tree of cgroups: the first is the unit with row 1 of the tables, and so on.
    pub units: Vec<UnitPlace>,
    /// The addresses of this host's interfaces, calls to which pass.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Whether the calls of the publishing process pass: see [`Dataplane::exempt_this_process`].
    pub exempts_publisher: bool,
}

/// The egress policy's maps and programs in this process.
#[derive(Default)]
pub(super) struct EgressPolicy {
    maps: Option<EgressMaps>,
    /// The loaded programs; `None` before their first use, and after a detach or a resize of the tables.
    programs: Option<Ebpf>,
    /// The links that this process attached, with their cgroups; `None` before that, and after a detach or a resize
    /// of the tables.
    attached: Option<AttachedPolicy>,
    /// How this process finds the cgroups of units that are created.
    following: Following,
    /// The id of this process in the initial PID namespace, once needed; `None` if the kernel does not report it.
    process: OnceLock<Option<u32>>,
    /// The tables and settings in the active slot; `None` if there is no egress policy, or if this process does not
    /// know which are active.
    published: Option<(Arc<Tables>, EgressSettings)>,
}

/// The loaded programs, attached to cgroups.
struct AttachedPolicy {
    /// The cgroups, as in [`EgressPublication::cgroups`].
    cgroups: Vec<PathBuf>,
    links: Vec<AttachedLink>,
}

/// How a process finds the cgroups of units that are created.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Following {
    /// Not at all: no rule names a unit, as far as this process knows.
    #[default]
    None,
    /// By programs that it attached to the kernel's tracepoints, and by a search each second.
    Programs,
    /// Only by a search each second, since the kernel cannot run the programs.
    Search,
}

impl EgressPolicy {
    /// Opens the maps if they are pinned.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        pins.restore_backup(EGRESS_TABLES)?;
        Ok(Self {
            maps: if EgressMaps::are_pinned(pins)? {
                Some(EgressMaps::open(pins)?)
            } else {
                None
            },
            ..Self::default()
        })
    }

    /// Returns whether the active slot has these tables and settings, and the programs are attached to these cgroups;
    /// `None` stands for no egress policy.
    pub(super) fn is_published(&self, wanted: Option<&EgressPublication>) -> bool {
        match (wanted, &self.published) {
            (None, None) => true,
            (Some(wanted), Some((tables, settings))) => {
                wanted.settings == *settings
                    && is_equal(&wanted.tables, tables)
                    && self.is_attached(wanted)
            }
            _ => false,
        }
    }

    fn is_attached(&self, wanted: &EgressPublication) -> bool {
        let attached = self.attached.as_ref();
        attached.is_some_and(|attached| attached.cgroups == wanted.cgroups)
    }

    /// Forgets which tables are active, because another slot may have become active.
    pub(super) fn forget_published(&mut self) {
        self.published = None;
    }

    /// Sets which tables are active, after a control word was stored; `None` stands for no egress policy.
    pub(super) fn set_published(&mut self, active: Option<&EgressPublication>) {
        self.published = active.map(|active| (Arc::clone(&active.tables), active.settings));
    }

    /// Writes the tables and settings into the idle `slot`, and attaches the programs that use them. Creates the maps
    /// before, or makes them large enough.
    pub(super) fn write(
        &mut self,
        pins: &Pins,
        slot: u32,
        publication: &EgressPublication,
    ) -> Result<()> {
        self.load(pins)?;
        let maps = self.maps.as_mut().expect("they were just opened");
        let table = RangeTable::of(&publication.tables.v4, &publication.tables.v6);
        if ranges::FIXED + table.pool.len() > maps.tables.words() {
            let words = ranges::wanted(table.pool.len());
            let _pin_lock = pins.lock_exclusive()?;
            maps.tables.resize(pins, words, slot)?;
            (self.programs, self.attached) = (None, None); // those use the smaller map
        }
        let maps = self.maps.as_mut().expect("they were just opened");
        maps.set_addresses(&publication.own_addresses)?;
        if publication.exempts_publisher {
            self.exempt_this_process();
        }
        let maps = self.maps.as_mut().expect("they were just opened");
        maps.units.set_texts(slot, &publication.units)?;
        let settings = EgressSettings {
            namespace: Namespace::current()?.cookie,
            ..publication.settings
        };
        maps.write(pins, slot, &publication.tables, &table, &settings)?;
        if !self.is_attached(publication) {
            self.attached = Some(AttachedPolicy {
                links: self.attach(pins, &publication.cgroups)?,
                cgroups: publication.cgroups.clone(),
            });
        }
        self.follow(pins, &publication.units)?;
        let maps = self.maps.as_mut().expect("they were just opened");
        maps.units.refresh()
    }

    /// Exempts this process for a short time: see [`Dataplane::exempt_this_process`].
    fn exempt_this_process(&self) {
        let Some(maps) = &self.maps else {
            return;
        };
        let process = self.process.get_or_init(|| match own_process::initial_id() {
            Ok(process) => Some(process),
            Err(error) => {
                warn!(
                    "the egress policy cannot exempt this process, so its own requests need rules: cannot determine its id in the initial PID namespace: {error:#}"
                );
                None
            }
        });
        if let Some(process) = process {
            maps.exempt(*process);
        }
    }

    /// Attaches the programs that follow the cgroups of `units`, or detaches them if the rules of no slot name a unit.
    ///
    /// # Errors
    /// Fails if the kernel cannot run the programs, and a unit needs them: its programs run as soon as its cgroup exists.
    fn follow(&mut self, pins: &Pins, units: &[UnitPlace]) -> Result<()> {
        let maps = self.maps.as_ref().expect("they were just opened");
        if units.is_empty() {
            if maps.units.is_empty()? {
                egress_units::detach(pins)?;
                self.following = Following::None;
            }
            return Ok(());
        }
        let needs_programs = units.iter().any(UnitPlace::is_started);
        if self.following == Following::Programs
            || self.following == Following::Search && !needs_programs
        {
            return Ok(());
        }
        let words = maps.pool_words();
        let _pin_lock = pins.lock_exclusive()?;
        let attached = egress_units::attach(pins, |offsets| open(pins, words, offsets));
        match attached {
            Ok(()) => self.following = Following::Programs,
            Err(error) if needs_programs => return Err(error),
            Err(error) => {
                warn!("the cgroups that rules name are searched only once a second: {error:#}");
                self.following = Following::Search;
            }
        }
        Ok(())
    }

    /// Loads the object, which creates and pins the maps that are missing.
    fn load(&mut self, pins: &Pins) -> Result<&mut Ebpf> {
        if self.programs.is_none() {
            let words = match &self.maps {
                Some(maps) => maps.pool_words(),
                None => abi::MIN_POOL_WORDS,
            };
            let object = load(pins, words)?;
            if self.maps.is_none() {
                self.maps = Some(EgressMaps::open(pins)?);
            }
            self.programs = Some(object);
        }
        Ok(self.programs.as_mut().expect("it was just loaded"))
    }

    /// Returns why the attached policy may refuse nothing; `None` if its maps and links are as this process left them, or
    /// if this process attached none.
    fn fault(&self, pins: &Pins) -> Result<Option<EgressFault>> {
        let Some(attached) = &self.attached else {
            return Ok(None);
        };
        if !EgressMaps::are_pinned(pins)?
            || self.following == Following::Programs && !egress_units::are_pinned(pins)?
        {
            return Ok(Some(EgressFault::Unpinned));
        }
        for link in &attached.links {
            if let Some(fault) = link.fault()? {
                return Ok(Some(fault));
            }
        }
        Ok(None)
    }

    /// Attaches the programs to the cgroups at `paths`, below the root of cgroup v2, and pins the links. Replaces the
    /// programs in links that exist, and detaches the programs from other cgroups.
    ///
    /// The program that notes queries is attached also if no rule lists a name: a change to observe mode is one store to
    /// the control word, after which it has to run.
    fn attach(&mut self, pins: &Pins, paths: &[PathBuf]) -> Result<Vec<AttachedLink>> {
        let root = [PathBuf::from(ROOT)];
        let paths = if paths.is_empty() { &root } else { paths };
        let cgroups: Vec<Cgroup> = paths
            .iter()
            .map(|path| Cgroup::open(path))
            .collect::<Result<_>>()?;
        let object = self.load(pins)?;
        let _pin_lock = pins.lock_exclusive()?;
        let mut links = Vec::new();
        for (place, cgroup) in cgroups.iter().enumerate() {
            for (name, program) in object.programs_mut() {
                if !is_of_cgroup(program) {
                    continue;
                }
                let link = attach_one(pins, place, cgroup, name, program);
                links.push(link.with_context(|| {
                    format!(
                        "cannot attach the program {name} of the egress policy to the cgroup {}",
                        cgroup.path.display()
                    )
                })?);
            }
        }
        detach_from(pins, cgroups.len())?;
        Generations::finish_resize(pins, EGRESS_TABLES)?;
        Ok(links)
    }

    /// Detaches the programs from all cgroups. The maps stay, with their counters. The caller holds the lock of the pins.
    pub(super) fn detach(&mut self, pins: &Pins) -> Result<()> {
        (self.programs, self.attached) = (None, None);
        self.following = Following::None;
        egress_units::detach(pins)?;
        detach_from(pins, 0)
    }
}

/// Returns whether two generations have the same tables.
fn is_equal(a: &Arc<Tables>, b: &Arc<Tables>) -> bool {
    Arc::ptr_eq(a, b)
        || (a.services == b.services
            && a.interfaces == b.interfaces
            && a.v4 == b.v4
            && a.v6 == b.v6
            && a.ids == b.ids
            && a.names == b.names)
}

/// Loads the object with a pool of `words` words of 8 bytes after the tables of each slot, and the programs that are
/// attached to cgroups.
fn load(pins: &Pins, words: u32) -> Result<Ebpf> {
    let mut object = open(pins, words, &[])?;
    load_programs(&mut object)?;
    Ok(object)
}

/// Loads the object without its programs, with a pool of `words` words of 8 bytes after the tables of each slot and the
/// load-time constants `offsets`.
fn open(pins: &Pins, words: u32, offsets: &[(&'static str, u32)]) -> Result<Ebpf> {
    let shared = [abi::CONTROL, abi::FALLBACK];
    let paths: Vec<_> = shared
        .iter()
        .chain(&abi::EGRESS_PINNED)
        .map(|name| (*name, pins.map(name)))
        .collect();
    let mut loader = EbpfLoader::new();
    loader.override_global(abi::GLOBAL_POOL, &words, true);
    for (name, path) in &paths {
        loader.map_pin_path(name, path);
    }
    for (name, offset) in offsets {
        loader.override_global(name, offset, true);
    }
    loader
        .load(OBJECT)
        .context("cannot create or open the kernel maps of the egress policy")
}

/// Loads the programs of the object that are attached to cgroups into the kernel.
pub(super) fn load_programs(object: &mut Ebpf) -> Result<()> {
    for (name, program) in object.programs_mut() {
        let loaded = match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            _ => continue,
        };
        loaded.with_context(|| {
            format!(
                "the kernel rejected the program {name} of the egress policy, which needs Linux 6.1 or later; report this with the verifier log, which follows, if the kernel is new enough"
            )
        })?;
    }
    Ok(())
}

/// Returns whether a program is attached to cgroups; the others are attached to tracepoints.
fn is_of_cgroup(program: &Program) -> bool {
    matches!(program, Program::CgroupSockAddr(_) | Program::CgroupSkb(_))
}

/// Loads the object file with separate maps and without pins, for the kernel's verifier only.
pub(super) fn load_unpinned() -> Result<Ebpf> {
    let mut object = EbpfLoader::new()
        .load(OBJECT)
        .context("cannot create the kernel maps of the egress policy")?;
    load_programs(&mut object)?;
    egress_units::load_programs(&mut object)?;
    Ok(object)
}

/// Detaches all programs of the egress policy, and removes the pins of their links and maps.
pub(super) fn remove(pins: &Pins) -> Result<()> {
    egress_units::detach(pins)?;
    detach_from(pins, 0)?;
    for name in abi::EGRESS_PINNED {
        pins.unpin(name)?;
    }
    pins.unpin_backup(EGRESS_TABLES)
}

impl Dataplane {
    /// Returns why the egress policy may refuse nothing; `None` if its maps and links are as this process left them.
    ///
    /// After a fault, [`Self::reopen_egress`] and the next publish attach the programs again.
    pub fn egress_fault(&self) -> Result<Option<EgressFault>> {
        self.egress.fault(&self.pins)
    }

    /// Forgets the maps and programs of the egress policy, so that the next publish opens or creates them, and attaches
    /// the programs.
    pub fn reopen_egress(&mut self) -> Result<()> {
        self.egress = EgressPolicy::default();
        self.egress = EgressPolicy::open(&self.pins)?;
        Ok(())
    }

    /// Sets the addresses of this host's interfaces: calls to them pass under every egress policy.
    ///
    /// Does nothing without an egress policy.
    pub fn set_own_addresses(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<()> {
        match &mut self.egress.maps {
            Some(maps) => maps.set_addresses(addresses),
            None => Ok(()),
        }
    }

    /// Searches the cgroups of units that the kernel programs missed, and removes entries of cgroups that are gone.
    ///
    /// Does nothing without an egress policy.
    pub fn refresh_units(&mut self) -> Result<()> {
        match &mut self.egress.maps {
            Some(maps) => maps.units.refresh(),
            None => Ok(()),
        }
    }

    /// Returns the addresses that resolvers answered for listed names and that are still allowed, sorted by the id of the
    /// name; none without an egress policy.
    pub fn learned_addresses(&self) -> Result<Vec<LearnedAddress>> {
        match &self.egress.maps {
            Some(_) => learned_addresses(&self.pins),
            None => Ok(Vec::new()),
        }
    }

    /// Returns the ids of the listed names for which a resolver sent a truncated answer after `since`, on the kernel's
    /// clock; none without an egress policy.
    pub fn truncated_names(&self, since: Duration) -> Vec<u32> {
        let maps = self.egress.maps.as_ref();
        maps.map_or_else(Vec::new, |maps| maps.names.truncated(since))
    }

    /// Removes all addresses that were learnt for names.
    pub(super) fn forget_addresses(&self) -> Result<()> {
        match &self.egress.maps {
            Some(_) => forget(&self.pins),
            None => Ok(()),
        }
    }

    /// Adds addresses that were learnt earlier, for example before the system was started. `is_wildcard` states whether
    /// the name with an id is a wildcard. Does nothing without an egress policy.
    pub fn restore_addresses(
        &self,
        addresses: &[LearnedAddress],
        is_wildcard: impl Fn(u32) -> bool,
    ) -> Result<()> {
        match &self.egress.maps {
            Some(_) => restore(&self.pins, addresses, is_wildcard),
            None => Ok(()),
        }
    }

    /// Makes the calls of this process pass under every egress policy for the next 10 seconds, also if it is in a PID
    /// namespace of its own. The daemon extends this for itself.
    pub fn exempt_this_process(&self) {
        self.egress.exempt_this_process();
    }

    /// Ends the exemption of [`Self::exempt_this_process`].
    pub fn end_exemption(&self) {
        if let Some(maps) = &self.egress.maps {
            maps.end_exemption();
        }
    }
}
