//! Reads the filter's state from the pinned maps and links, without a daemon.

use std::collections::BTreeMap;
use std::path::Path;

use allowlist_common::abi::{
    self, Control, Counters, Fallback, Grant, Interface, MAX_INTERFACES, ServiceTraffic, Traffic,
};
use allowlist_common::verdict::{Reason, Verdict};
use aya::maps::{Array, MapData, PerCpuArray};
use ipnet::IpNet;
use serde::Serialize;

use super::attach::{XdpMode, name_of, unpadded};
use super::commit_confirm::{PendingConfirm, described, effective, is_open, pending};
use super::control_map::ControlMap;
use super::facts::link_fact;
use super::lookup::ATTEMPTS;
use super::metadata;
use super::pins::{Pins, is_pinned};
use super::selfcheck::LinkFact;
use super::sys::Access;
use crate::error::{Result, bail};
use crate::netlink::{Namespace, Netlink};

/// Access to the pinned maps and links of the filter, from any process.
pub struct View {
    pub(super) pins: Pins,
}

/// An interface to which the XDP program was attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// The current name of the interface, or the recorded one if the interface is gone.
    pub name: String,
    /// The mode in which the program runs; `None` if its record in the map is missing or damaged.
    pub mode: Option<XdpMode>,
    /// Whether the kernel reports the link's program on an interface of this network namespace.
    ///
    /// False once the interface was removed or moved to another namespace, even if another interface has its name or
    /// index now.
    pub attached: bool,
    /// The inode number of the interface's network namespace, if it is not the namespace of this process; `None` if it
    /// is, or if it is not known, such as after a move of the interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<u32>,
    /// Whether the interface is in another network namespace than this process.
    #[serde(skip)]
    pub is_elsewhere: bool,
    /// The index of the interface in its network namespace; `None` once the interface is gone.
    #[serde(skip)]
    pub index: Option<u32>,
    /// The interface slot, under which the program counts.
    #[serde(skip)]
    pub slot: u32,
}

/// The counters of one interface slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The current name of the interface, or its last name if it is gone.
    pub name: String,
    /// The former names of the interface, the newest first.
    pub former_names: Vec<String>,
    /// The number of packets by verdict and reason.
    pub counters: Counters,
}

/// A prefix of source addresses in the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The source addresses as a prefix.
    pub prefix: IpNet,
    /// The services that addresses in the prefix may reach, and the match id under which their packets are counted.
    pub grant: Grant,
}

impl View {
    /// Opens the pin directory of this version under `pin_dir`, for reading.
    ///
    /// # Errors
    /// Fails if no filter is pinned there, or if this user may not read it.
    pub fn open(pin_dir: &Path) -> Result<Self> {
        Ok(Self {
            pins: Pins::open(pin_dir)?,
        })
    }

    /// Opens the pin directory of this version under `pin_dir`, for reading and for [`Self::cut`], which writes.
    ///
    /// # Errors
    /// Fails if no filter is pinned there, or if this user may not write to it.
    pub fn open_for_writing(pin_dir: &Path) -> Result<Self> {
        Ok(Self {
            pins: Pins::open_for(pin_dir, Access::ReadWrite)?,
        })
    }

    /// Returns the effective control word: the stored one, or the fallback's if a pending change was not confirmed in
    /// time.
    pub fn control(&self) -> Result<Control> {
        let (control, fallback) = self.words()?;
        Ok(effective(control, &fallback))
    }

    /// Returns the metadata of the generation that [`Self::control`] names, or of the rolled-back one if every packet
    /// passes after a rollback; `None` if the generation has no metadata.
    pub fn metadata(&self) -> Result<Option<Vec<u8>>> {
        let slot = || -> Result<u32> {
            let (control, fallback) = self.words()?;
            Ok(described(control, &fallback).slot % abi::SLOTS)
        };
        for _ in 0..ATTEMPTS {
            let active = slot()?;
            let metadata = metadata::read(&self.pins, active)?;
            // Else the slot may be that of the next generation.
            if slot()? == active {
                return Ok(metadata);
            }
        }
        bail!(
            "cannot read the names of the active generation, because each attempt was interrupted by a publish; try again"
        )
    }

    /// Returns the pending change, or the last change if it was not confirmed in time; `None` if there is neither.
    pub fn pending(&self) -> Result<Option<PendingConfirm>> {
        let (control, fallback) = self.words()?;
        Ok(pending(control, &fallback))
    }

    /// Returns the control word and the fallback as the maps have them.
    ///
    /// If the map of the control word is not pinned, returns the word that was published last. If the map of the
    /// fallback is not pinned, the fallback is empty.
    pub(super) fn words(&self) -> Result<(Control, Fallback)> {
        let control = if self.has(abi::CONTROL)? {
            // In this order: the fallback of a word that is pending is there before it.
            ControlMap::map(&self.pins.open_map(abi::CONTROL)?, Access::ReadOnly)?.load()
        } else {
            let published = self.published_word()?;
            Control::decode(published.map_or(0, |word| word.raw()))
        };
        let fallback = if self.has(abi::FALLBACK)? {
            let fallback: Array<_, Fallback> = self.pins.open_map(abi::FALLBACK)?.try_into()?;
            fallback.get(&0, 0)?
        } else {
            Fallback::default()
        };
        Ok((control, fallback))
    }

    /// Returns the interfaces with a pinned link, in the order of their slots.
    ///
    /// Omits interfaces on which all packets pass because of a pending change or one that was not confirmed in time.
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        let (control, fallback) = self.words()?;
        let here = Namespace::current()?;
        let netlink = Netlink::open()?;
        let mut linked = Vec::new();
        for mut interface in self.interfaces()? {
            let slot = interface.slot;
            let link = link_fact(&self.pins.link(slot))?;
            if link == LinkFact::Missing || is_open(control, &fallback, slot) {
                continue;
            }
            let identity = self.identity(slot)?;
            let (program, index) = match link {
                LinkFact::Pinned(link) => (link.program, link.interface),
                _ => (identity.program, Some(self.recorded(slot)?.index)),
            };
            interface.index = index;
            let device = index.map(|index| netlink.by_index(index)).transpose()?;
            match device.flatten() {
                Some(device) if device.programs.contains(&program) => {
                    interface.attached = true;
                    if !device.is_called(&interface.name) {
                        interface.name = device.name; // it was renamed
                    }
                }
                _ if index.is_some() && !matches!(identity.namespace, 0) => {
                    interface.is_elsewhere = true;
                    if identity.namespace != here.cookie {
                        interface.namespace = Some(identity.namespace_inode);
                    }
                }
                _ => {}
            }
            linked.push(interface);
        }
        Ok(linked)
    }

    /// Returns the number of packets by verdict and reason since the maps were created, by interface name.
    ///
    /// The counters of an interface are listed under its current name, and under each former name that no other
    /// interface has now.
    pub fn counters(&self) -> Result<BTreeMap<String, Counters>> {
        Ok(by_all_names(&self.counted()?))
    }

    /// Returns the counters of each interface slot that was ever used, with the current and former names of its
    /// interface.
    pub fn counted(&self) -> Result<Vec<Counted>> {
        let attachments = self.attachments()?;
        let mut counted = Vec::new();
        for interface in self.interfaces()? {
            let slot = interface.slot;
            let mut attached = attachments.iter().filter(|one| one.slot == slot);
            let name = attached
                .next()
                .map_or(interface.name, |one| one.name.clone());
            let recorded = name_of(&self.recorded(slot)?);
            let former = unpadded(&self.identity(slot)?.former_name);
            let mut former_names = vec![recorded, former];
            former_names.retain(|former| !former.is_empty() && *former != name);
            former_names.dedup();
            counted.push(Counted {
                counters: self.counters_of(slot)?,
                name,
                former_names,
            });
        }
        Ok(counted)
    }

    /// Returns the counters of one interface slot, summed over all CPUs; zeros if the map is not pinned.
    pub fn counters_of(&self, slot: u32) -> Result<Counters> {
        if !self.has(abi::COUNTERS)? {
            return Ok(Counters::ZERO);
        }
        let counters: PerCpuArray<_, Counters> = self.pins.open_map(abi::COUNTERS)?.try_into()?;
        let mut sum = Counters::ZERO;
        for of_cpu in counters.get(&slot, 0)?.iter() {
            for verdict in Verdict::ALL {
                for reason in Reason::ALL {
                    *sum.cell(verdict, reason) += of_cpu.get(verdict, reason);
                }
            }
        }
        Ok(sum)
    }

    /// Returns the traffic that passed under each match id below `ids`; an empty list if the map is not pinned.
    pub fn traffic(&self, ids: usize) -> Result<Vec<Traffic>> {
        if !self.has(abi::MATCHES)? {
            return Ok(Vec::new());
        }
        let matches: PerCpuArray<_, Traffic> = self.pins.open_map(abi::MATCHES)?.try_into()?;
        sums(&matches, ids, abi::MAX_MATCHES, Traffic::plus)
    }

    /// Returns the traffic of each service counter id below `ids`; an empty list if the map is not pinned.
    pub fn service_traffic(&self, ids: usize) -> Result<Vec<ServiceTraffic>> {
        if !self.has(abi::SERVICE_COUNTS)? {
            return Ok(Vec::new());
        }
        let counts: PerCpuArray<_, ServiceTraffic> =
            self.pins.open_map(abi::SERVICE_COUNTS)?.try_into()?;
        sums(&counts, ids, abi::MAX_SERVICE_COUNTS, ServiceTraffic::plus)
    }

    /// Returns whether every map is pinned, and the pin directory is still the one that was opened.
    pub fn has_all_pins(&self) -> bool {
        self.pins.is_complete()
    }

    /// Returns whether the filter was detached, or its pin directory was removed or replaced.
    pub fn is_detached(&self) -> bool {
        !self.pins.is_current()
            || self
                .published_word()
                .is_ok_and(|published| published.is_some_and(|word| word.is_detached()))
    }

    /// Returns the record of an interface slot; an empty record if the map is not pinned.
    pub(super) fn recorded(&self, slot: u32) -> Result<Interface> {
        if !self.has(abi::INTERFACES)? {
            return Ok(Interface::default());
        }
        let interfaces: Array<_, Interface> = self.pins.open_map(abi::INTERFACES)?.try_into()?;
        Ok(interfaces.get(&slot, 0)?)
    }

    /// Returns every prefix of the active generation, IPv4 first, sorted; an empty list while all packets pass because
    /// of a rollback.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        if self.control()?.open {
            return Ok(Vec::new());
        }
        Ok(self.lookup()?.entries().to_vec())
    }

    /// Returns an entry for each interface slot that is or was used, with only the name, mode and slot filled in.
    fn interfaces(&self) -> Result<Vec<Attachment>> {
        let mut found = Vec::new();
        for slot in 0..MAX_INTERFACES {
            let interface = self.recorded(slot)?;
            if interface.index != 0 || is_pinned(&self.pins.link(slot))? {
                found.push(Attachment {
                    name: name_of(&interface),
                    mode: XdpMode::from_number(interface.attach_mode),
                    attached: false,
                    namespace: None,
                    is_elsewhere: false,
                    index: None,
                    slot,
                });
            }
        }
        Ok(found)
    }
}

/// Returns the counters by interface name, including former names that no other interface has now.
pub fn by_all_names(counted: &[Counted]) -> BTreeMap<String, Counters> {
    let mut by_name = BTreeMap::new();
    for one in counted {
        by_name.insert(one.name.clone(), one.counters);
    }
    for one in counted {
        for former in &one.former_names {
            by_name.entry(former.clone()).or_insert(one.counters);
        }
    }
    by_name
}

/// Returns the entries of a per-CPU array with an index below `ids`, each summed over all CPUs with `plus`.
pub(super) fn sums<T: aya::Pod + Default>(
    map: &PerCpuArray<MapData, T>,
    ids: usize,
    room: u32,
    plus: impl Fn(T, T) -> T,
) -> Result<Vec<T>> {
    (0..(ids as u32).min(room))
        .map(|id| {
            let of_cpus = map.get(&id, 0)?;
            Ok(of_cpus.iter().copied().fold(T::default(), &plus))
        })
        .collect()
}
