//! What the kernel does now, read from the pinned maps alone: works with no daemon running.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use allowlist_common::abi::{
    self, Control, Counters, Fallback, Grant, Interface, MAX_INTERFACES, ServiceTraffic, Traffic,
};
use allowlist_common::flow::{Flow, Tracked};
use allowlist_common::verdict::{Reason, Verdict};
use anyhow::{Result, bail};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use ipnet::IpNet;
use nix::net::if_::if_indextoname;
use serde::Serialize;

use super::attach::{AttachedIn, name_of};
use super::flows::ENTRIES;
use super::guard::{Pending, held, is_open, pending};
use super::pins::Pins;
use super::words::ControlWord;

/// The pinned maps, open for reading.
pub struct View {
    pub(super) pins: Pins,
}

/// An interface that the program was put on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// The interface's name.
    pub name: String,
    /// Where the program runs; `None` where the record is damaged.
    pub mode: Option<AttachedIn>,
    /// Whether the program is on it: not once the interface was removed, even if there is a new
    /// one of that name.
    pub attached: bool,
    /// The kernel's index of the interface that the program is on.
    #[serde(skip)]
    pub index: Option<u32>,
    /// Which copy of the program serves it.
    #[serde(skip)]
    pub slot: u32,
}

/// A prefix in the kernel's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where packets come from.
    pub prefix: IpNet,
    /// What they reach.
    pub grant: Grant,
}

impl View {
    /// Opens what is pinned under `pin_dir`; an error where nothing is.
    pub fn open(pin_dir: &Path) -> Result<Self> {
        Ok(Self {
            pins: Pins::open(pin_dir)?,
        })
    }

    /// The generation in force and how it is in force: what was before a change, where that was not
    /// confirmed in time.
    pub fn control(&self) -> Result<Control> {
        let (control, fallback) = self.words()?;
        Ok(held(control, &fallback))
    }

    /// The change that waits to be confirmed, or was not in time.
    pub fn pending(&self) -> Result<Option<Pending>> {
        let (control, fallback) = self.words()?;
        Ok(pending(control, &fallback))
    }

    fn words(&self) -> Result<(Control, Fallback)> {
        let control = ControlWord::map(&self.pins.open_map(abi::CONTROL)?)?;
        let fallback: Array<_, Fallback> = self.pins.open_map(abi::FALLBACK)?.try_into()?;
        // In this order: the fallback of a word that is pending is there before it.
        let control = control.load();
        Ok((control, fallback.get(&0, 0)?))
    }

    /// The interfaces that have a link, in the order in which they were attached. Without those where
    /// everything passes because of a change that waits to be confirmed, or was not.
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        let (control, fallback) = self.words()?;
        let mut linked = Vec::new();
        for mut interface in self.interfaces()? {
            let pin = self.pins.link(interface.slot);
            if pin.exists() && !is_open(control, &fallback, interface.slot) {
                interface.index = self.pins.interface_of(interface.slot)?;
                interface.attached = interface.index.is_some();
                if let Some(Ok(name)) = interface.index.map(if_indextoname) {
                    interface.name = name.to_string_lossy().into_owned(); // it may have been renamed
                }
                linked.push(interface);
            }
        }
        Ok(linked)
    }

    /// Packets by verdict and reason since the maps were made, by interface.
    pub fn counters(&self) -> Result<BTreeMap<String, Counters>> {
        self.interfaces()?
            .into_iter()
            .map(|interface| Ok((interface.name, self.counters_of(interface.slot)?)))
            .collect()
    }

    /// The same for one interface slot.
    pub fn counters_of(&self, slot: u32) -> Result<Counters> {
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

    /// What passed under match ids 0 to `ids`, exclusive.
    pub fn traffic(&self, ids: usize) -> Result<Vec<Traffic>> {
        let matches: PerCpuArray<_, Traffic> = self.pins.open_map(abi::MATCHES)?.try_into()?;
        sums(&matches, ids, abi::MAX_MATCHES, Traffic::plus)
    }

    /// What became of packets under service count ids 0 to `ids`, exclusive.
    pub fn service_traffic(&self, ids: usize) -> Result<Vec<ServiceTraffic>> {
        let counts: PerCpuArray<_, ServiceTraffic> =
            self.pins.open_map(abi::SERVICE_COUNTS)?.try_into()?;
        sums(&counts, ids, abi::MAX_SERVICE_COUNTS, ServiceTraffic::plus)
    }

    /// Whether the maps are still pinned: not once somebody took the filter off.
    pub fn is_in_force(&self) -> bool {
        self.pins.are_whole()
    }

    /// How many flows of this host can be tracked at once, and how many are alive.
    pub fn flows(&self) -> Result<(u32, usize)> {
        let map = self.pins.open_map(abi::FLOWS)?;
        let Map::LruHashMap(data) = &map else {
            bail!("{} is no table of flows", abi::FLOWS);
        };
        let room = data.info()?.max_entries() / ENTRIES;
        let flows: HashMap<_, Flow, Tracked> = map.try_into()?;
        let now = clock().as_secs() as u32;
        let alive = flows
            .iter()
            .flatten()
            .filter(|(flow, tracked)| !flow.is_peer() && tracked.is_alive(now));
        Ok((room, alive.count()))
    }

    /// What is recorded of an interface slot.
    pub(super) fn recorded(&self, slot: u32) -> Result<Interface> {
        let interfaces: Array<_, Interface> = self.pins.open_map(abi::INTERFACES)?.try_into()?;
        Ok(interfaces.get(&slot, 0)?)
    }

    /// Every prefix of the generation in force, IPv4 first, in order.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        if self.control()?.open {
            return Ok(Vec::new());
        }
        Ok(self.lookup()?.entries().to_vec())
    }

    fn interfaces(&self) -> Result<Vec<Attachment>> {
        let interfaces: Array<_, Interface> = self.pins.open_map(abi::INTERFACES)?.try_into()?;
        let mut found = Vec::new();
        for slot in 0..MAX_INTERFACES {
            let interface = interfaces.get(&slot, 0)?;
            if interface.index != 0 {
                found.push(Attachment {
                    name: name_of(&interface),
                    mode: AttachedIn::from_number(interface.attach_mode),
                    attached: false,
                    index: None,
                    slot,
                });
            }
        }
        Ok(found)
    }
}

/// The kernel's monotonic clock.
pub fn clock() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has this clock");
    Duration::from(now)
}

/// The entries 0 to `ids`, exclusive, each summed over all CPUs.
fn sums<T: aya::Pod + Default>(
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
