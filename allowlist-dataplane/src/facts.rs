//! Reads both sides of a self-check through a [`View`]: the kernel's current state, and the state that the filter
//! published, as its maps record it.

use allowlist_common::abi::{self, Identity, MAX_INTERFACES};
use allowlist_policy::error_code::bail_with;
use nix::errno::Errno;
use std::path::Path;

use aya::maps::Array;

use super::attach::{name_of, program_name};
use super::commit_confirm::is_open;
use super::control_map::{ControlMap, PublishedMap};
use super::link::state;
use super::pins::{Pins, is_pinned};
use super::selfcheck::{self, Device, Difference, Kernel, LinkFact, Published, Slot, SlotFacts};
use super::sys::{Access, tcx_egress_chain};
use super::tracker::BY_TCX;
use super::view::View;
use crate::error::{Error, Result};
use crate::netlink::{Namespace, Netlink};

/// The number of comparisons that must find a difference before it is reported, because another process may be changing
/// the state.
const LOOKS: usize = 5;
/// The time between two comparisons.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(60);

impl View {
    /// Compares the kernel's state with the published state, and returns the differences.
    ///
    /// Repeats the comparison, and omits differences that disappear: another process was making a change.
    pub fn self_check(&self) -> Result<Vec<Difference>> {
        let mut differences = self.self_check_now()?;
        for _ in 1..LOOKS {
            if differences.is_empty() {
                break;
            }
            std::thread::sleep(PAUSE);
            let again = self.self_check_now()?;
            differences.retain(|difference| again.contains(difference));
        }
        Ok(differences)
    }

    /// Compares the kernel's state with the published state once, without the repetitions of [`Self::self_check`].
    ///
    /// Sufficient for the process that publishes, because no other process changes the state meanwhile.
    pub fn self_check_now(&self) -> Result<Vec<Difference>> {
        let published = self.published()?;
        let kernel = self.kernel(&published)?;
        let mut differences = selfcheck::compare(&kernel, &published);
        for difference in &mut differences {
            difference.name_programs(program_name);
        }
        Ok(differences)
    }

    /// Returns the map with the published control word and the mark of a detached filter; `None` if the map is not
    /// pinned.
    pub(super) fn published_word(&self) -> Result<Option<PublishedMap>> {
        if !is_pinned(&self.pins.map(abi::PUBLISHED))? {
            return Ok(None);
        }
        let map = self.pins.open_map(abi::PUBLISHED)?;
        PublishedMap::map(&map, Access::ReadOnly).map(Some)
    }

    /// Returns the recorded identity of a slot's interface and its attached objects; an empty one if the map is not
    /// pinned.
    pub(super) fn identity(&self, slot: u32) -> Result<Identity> {
        if !is_pinned(&self.pins.map(abi::IDENTITIES))? {
            return Ok(Identity::default());
        }
        let identities: Array<_, Identity> = self.pins.open_map(abi::IDENTITIES)?.try_into()?;
        Ok(identities.get(&slot, 0)?)
    }

    fn published(&self) -> Result<Published> {
        let mut slots = Vec::new();
        let is_known = is_pinned(&self.pins.map(abi::INTERFACES))?
            && is_pinned(&self.pins.map(abi::IDENTITIES))?;
        if is_known {
            let interfaces: Array<_, abi::Interface> =
                self.pins.open_map(abi::INTERFACES)?.try_into()?;
            let identities: Array<_, Identity> = self.pins.open_map(abi::IDENTITIES)?.try_into()?;
            let words = self.words().ok();
            for slot in 0..MAX_INTERFACES {
                let identity = identities.get(&slot, 0)?;
                if identity.program == 0 {
                    continue;
                }
                let recorded = interfaces.get(&slot, 0)?;
                slots.push(Slot {
                    number: slot,
                    name: name_of(&recorded),
                    index: recorded.index,
                    is_tracked_by_tcx: recorded.egress == BY_TCX,
                    is_bypassed: words
                        .as_ref()
                        .is_some_and(|(control, fallback)| is_open(*control, fallback, slot)),
                    identity,
                });
            }
        }
        let word = self.published_word()?.map_or(0, |word| word.raw());
        Ok(Published { word, slots })
    }

    fn kernel(&self, published: &Published) -> Result<Kernel> {
        let netlink = Netlink::open()?;
        let mut maps = Vec::new();
        for (name, _) in abi::PINNED {
            let id = if is_pinned(&self.pins.map(name))? {
                Some(self.pins.open_data(name)?.info()?.id())
            } else {
                None
            };
            maps.push((name, id));
        }
        let word = if is_pinned(&self.pins.map(abi::CONTROL))? {
            let control = self.pins.open_map(abi::CONTROL)?;
            Some(ControlMap::map(&control, Access::ReadOnly)?.raw())
        } else {
            None
        };
        let mut slots = Vec::new();
        for one in &published.slots {
            let link = link_fact(&self.pins.link(one.number))?;
            let tracker = link_fact(&self.pins.egress(one.number))?;
            let index = match link {
                LinkFact::Pinned(link) => link.interface.unwrap_or(one.index),
                _ => one.index,
            };
            let device = netlink.by_index(index)?;
            let chain = match &device {
                Some(_) if one.is_tracked_by_tcx => tcx_egress_chain(index).unwrap_or_default(),
                _ => Vec::new(),
            };
            slots.push(SlotFacts {
                link,
                tracker,
                device: device.map(|device| Device {
                    chain,
                    ..device.into()
                }),
            });
        }
        Ok(Kernel {
            namespace: Namespace::current()?.cookie,
            word,
            maps,
            slots,
        })
    }
}

/// Reads the state of the link at a pin; [`LinkFact::Unreadable`] if the BPF file system is mounted read-only.
pub(super) fn link_fact(pin: &Path) -> Result<LinkFact> {
    match state(pin) {
        Ok(Some(link)) => Ok(LinkFact::Pinned(link)),
        Ok(None) => Ok(LinkFact::Missing),
        Err(error) if is_read_only(&error) => Ok(LinkFact::Unreadable),
        Err(error) => Err(error),
    }
}

fn is_read_only(error: &Error) -> bool {
    error.errno() == Some(Errno::EROFS)
}

/// Requires that the filter pinned under `pin_dir` is on no interface of another network namespace, where an index
/// means another interface.
///
/// # Errors
/// Fails with the other network namespace and the names of the interfaces there.
pub fn require_namespace(pin_dir: &Path) -> Result<()> {
    let Ok(pins) = Pins::open(pin_dir) else {
        return Ok(()); // the caller opens it next, and reports why
    };
    let view = View { pins };
    let here = Namespace::current()?;
    let mut inodes = Vec::new();
    let mut names = Vec::new();
    for slot in view.published()?.slots {
        let is_on = view.pins.interface_of(slot.number)?.is_some();
        if is_on && !matches!(slot.identity.namespace, 0) && slot.identity.namespace != here.cookie
        {
            inodes.push(format!("net:[{}]", slot.identity.namespace_inode));
            names.push(slot.name);
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    inodes.dedup();
    bail_with!(
        OtherNamespace,
        "the filter pinned under {} filters {} in another network namespace, {} (this one is net:[{}]; `lsns -t net` lists them)",
        pin_dir.display(),
        names.join(", "),
        inodes.join(", "),
        here.inode
    )
}
