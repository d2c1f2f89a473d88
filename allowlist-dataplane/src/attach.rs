//! The program on an interface, by a pinned link: attached, or replaced in place.
//!
//! Invariant: this process keeps no link open. Only the pin holds it, so the filter stays when this process ends, and is
//! detached when any process removes the pin.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use crate::error::{Context as _, Result, bail};
use allowlist_common::abi::{self, Identity, Interface, MAX_INTERFACES};
use allowlist_policy::error_code::bail_with;
use aya::Ebpf;
use aya::programs::links::{self, FdLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{Xdp, loaded_programs};
use nix::net::if_::if_indextoname;
use serde::Serialize;

use super::facts::link_fact;
use super::link::{filters, take_off, take_off_if_pinned};
use super::new_link::new_link;
use super::selfcheck::LinkFact;
use super::sys::program_maps;
use super::{Dataplane, Hook};
use crate::attach_mode::AttachModeRequest;
use crate::interface::InterfaceInfo;
use crate::netlink::{Namespace, Netlink, index_of};

/// Where in the kernel the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver, before anything is allocated.
    Native,
    /// In the network stack: works everywhere, slower.
    Generic,
    /// On the card.
    Offload,
}

impl XdpMode {
    const ALL: [Self; 3] = [Self::Native, Self::Generic, Self::Offload];

    /// Returns the configured mode that requires this one.
    pub(super) const fn wanted(self) -> AttachModeRequest {
        match self {
            Self::Native => AttachModeRequest::Native,
            Self::Generic => AttachModeRequest::Generic,
            Self::Offload => AttachModeRequest::Offload,
        }
    }

    /// The number in the interface map.
    const fn number(self) -> u32 {
        self as u32 + 1
    }

    pub(super) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.number() == number)
    }

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
        }
    }
}

/// A program that was attached.
pub struct Attached {
    /// Where it runs.
    pub mode: XdpMode,
    /// The reason for another mode than native, if none was configured.
    pub warning: Option<String>,
    /// The loaded object, for its log; only with a trace.
    pub object: Option<Ebpf>,
}

impl Dataplane {
    /// Attaches the program to an interface, or replaces the one that is there by this one without
    /// a gap, also where that is another version's. Call it after a publish: from here on packets are judged.
    pub fn attach(
        &mut self,
        facts: &InterfaceInfo,
        wanted: AttachModeRequest,
        trace: bool,
    ) -> Result<Attached> {
        let _pin_lock = self.pins.lock_exclusive()?;
        if self.is_detached() {
            bail!("{}: not attached: the filter was detached", facts.name);
        }
        self.pin_maps_again()?;
        let slot = self.slot_of(&facts.name, facts.index)?;
        let anothers = self.previous_link(facts.index)?;
        let on = self.mode_on(slot, facts)?;
        if on.is_none()
            && anothers.is_none()
            && let Some(id) = facts.xdp_program
        {
            bail_with!(InterfaceInUse, "{}", other_program(facts, id));
        }
        if on.is_none() && anothers.is_none() {
            self.disarm(slot); // of an interface from before
        }
        // The programs of this slot that are loaded already are as good, and ready at once.
        let mut object = match self.programs.remove(&slot).filter(|_| !trace) {
            Some(object) => object,
            None => self.load_program(slot, trace)?,
        };
        let loaded = self.loaded(&object)?;
        // First, so that flows are recorded before their answers arrive.
        self.attach_tracker(&mut object, slot, facts, Hook::Best)?;
        let program: &mut Xdp = object
            .program_mut(abi::PROGRAM)
            .expect("load_program loaded it")
            .try_into()?;
        let on = match (anothers, on) {
            (Some(link), _) => Some(self.adopt_link((program, &loaded), &link, slot, facts)?),
            (None, Some(mode)) if wanted.fits(mode) => {
                replace(program, &self.pins.link(slot))
                    .with_context(|| format!("cannot replace the program on {}", facts.name))?;
                Some(mode)
            }
            (None, on) => on,
        };
        let (mode, warning) = match on {
            Some(mode) if wanted.fits(mode) => {
                self.record(slot, facts, mode, &loaded)?; // it may have been renamed
                (mode, None)
            }
            Some(old) => {
                self.disarm(slot);
                self.change_mode((program, &loaded), slot, facts, (old, wanted))?
            }
            None => match self.attach_anew((program, &loaded), slot, facts, wanted) {
                Ok(attached) => attached,
                Err(error) => {
                    self.disable_tracking(slot)?; // its flows are not used
                    return Err(error);
                }
            },
        };
        self.fallback.set_bypassed(slot, false);
        let object = if trace {
            Some(object)
        } else {
            self.keep_programs(slot, object);
            None
        };
        self.arm()?;
        Ok(Attached {
            mode,
            warning,
            object,
        })
    }

    /// Keeps the programs of a slot, for the next interface of its name. Their maps are kept elsewhere, so that an
    /// interface takes few descriptors.
    fn keep_programs(&mut self, slot: u32, mut object: Ebpf) {
        for (name, _) in abi::PINNED {
            drop(object.take_map(name));
        }
        self.programs.insert(slot, object);
    }

    /// Puts programs of this object, with the maps that are pinned now, into every link of this version.
    pub(super) fn replace_programs(&mut self) -> Result<()> {
        for slot in 0..MAX_INTERFACES {
            let _pin_lock = self.pins.lock_exclusive()?;
            let pin = self.pins.link(slot);
            let Some(index) = self.pins.interface_of(slot)? else {
                continue;
            };
            let mut object = self.load_program(slot, false)?;
            let loaded = self.loaded(&object)?;
            let recorded = self.interfaces.get(&slot, 0)?;
            if recorded.egress != 0 {
                let name = if_indextoname(index).map_or_else(
                    |_| name_of(&recorded),
                    |name| name.to_string_lossy().into_owned(),
                );
                let facts = InterfaceInfo {
                    name,
                    index,
                    xdp_program: None,
                    xdp_mode: None,
                };
                self.replace_tracker(&mut object, slot, &facts)?;
            }
            let program: &mut Xdp = object
                .program_mut(abi::PROGRAM)
                .expect("load_program loaded it")
                .try_into()?;
            replace(program, &pin)
                .with_context(|| format!("cannot replace the program on {}", name_of(&recorded)))?;
            let identity = self.identities.get(&slot, 0)?;
            self.identities.set(slot, loaded.of(identity), 0)?;
            self.keep_programs(slot, object);
        }
        Ok(())
    }

    /// Reads the kernel's id of the XDP program of an object, and which of the pinned maps it uses.
    fn loaded(&self, object: &Ebpf) -> Result<Loaded> {
        let program: &Xdp = object
            .program(abi::PROGRAM)
            .expect("load_program loaded it")
            .try_into()?;
        let (program, used) =
            program_maps(program.fd()?.as_fd()).context("cannot read the info of the program")?;
        let mut maps = [0; abi::MAPS_OF_PROGRAM];
        for (id, map) in self.open_maps.ids().zip(&mut maps) {
            *map = if used.contains(&id) { id } else { 0 };
        }
        Ok(Loaded { program, maps })
    }

    /// Puts the program into another version's link, and the link's pin among this version's.
    fn adopt_link(
        &mut self,
        (program, loaded): (&mut Xdp, &Loaded),
        link: &Path,
        slot: u32,
        facts: &InterfaceInfo,
    ) -> Result<XdpMode> {
        let mode = facts.xdp_mode.with_context(|| {
            format!(
                "{} has a link of another version, and no program",
                facts.name
            )
        })?;
        let pin = self.pins.link(slot);
        take_off_if_pinned(&pin)?; // of an interface that is gone
        self.has_replaced = true;
        replace(program, link).with_context(|| {
            format!("cannot replace another version's program on {}", facts.name)
        })?;
        self.record(slot, facts, mode, loaded)?;
        fs::rename(link, &pin)
            .with_context(|| format!("cannot move the pin {}", link.display()))?;
        Ok(mode)
    }

    /// To an interface that does not have the filter.
    fn attach_anew(
        &mut self,
        (program, loaded): (&mut Xdp, &Loaded),
        slot: u32,
        facts: &InterfaceInfo,
        wanted: AttachModeRequest,
    ) -> Result<(XdpMode, Option<String>)> {
        take_off_if_pinned(&self.pins.link(slot))?; // of an interface that is gone
        let (link, mode, warning) = new_link(program, facts, wanted)?;
        self.pin(slot, facts, (mode, loaded), link)?;
        Ok((mode, warning))
    }

    /// The kernel takes no program in one mode beside one in another, so there is a moment without.
    fn change_mode(
        &mut self,
        (program, loaded): (&mut Xdp, &Loaded),
        slot: u32,
        facts: &InterfaceInfo,
        (old, wanted): (XdpMode, AttachModeRequest),
    ) -> Result<(XdpMode, Option<String>)> {
        take_off(&self.pins.link(slot))?;
        let changed = new_link(program, facts, wanted)
            .and_then(|(link, mode, _)| self.pin(slot, facts, (mode, loaded), link).map(|()| mode));
        match changed {
            Ok(mode) => {
                let warning = format!(
                    "{}: changed from {} to {} mode; it was unfiltered for a moment",
                    facts.name,
                    old.name(),
                    mode.name()
                );
                Ok((mode, Some(warning)))
            }
            Err(error) => {
                let (link, ..) = new_link(program, facts, old.wanted())
                    .with_context(|| format!("{error:#}; {} is NOT filtered now", facts.name))?;
                self.pin(slot, facts, (old, loaded), link)?;
                Err(error.context(format!("{} stays in {} mode", facts.name, old.name())))
            }
        }
    }

    fn pin(
        &mut self,
        slot: u32,
        facts: &InterfaceInfo,
        (mode, loaded): (XdpMode, &Loaded),
        link: FdLink,
    ) -> Result<()> {
        // Recorded before the pin is made: a name without a pin is harmless, a pin without a name is not.
        self.record(slot, facts, mode, loaded)?;
        link.pin(self.pins.link(slot))
            .with_context(|| format!("{} is NOT filtered: cannot pin its link", facts.name))?;
        Ok(())
    }

    /// Where the program of this slot runs on this very interface; `None` where it does not.
    fn mode_on(&self, slot: u32, facts: &InterfaceInfo) -> Result<Option<XdpMode>> {
        if !filters(&self.pins.link(slot), facts.index)? {
            return Ok(None);
        }
        let recorded = self.interfaces.get(&slot, 0)?;
        // Of a record that is lost, the kernel knows it too.
        Ok(XdpMode::from_number(recorded.attach_mode).or(facts.xdp_mode))
    }

    /// Whether an interface has the filter on it.
    pub fn filters(&self, facts: &InterfaceInfo) -> Result<bool> {
        let slot = self.slot_of(&facts.name, facts.index)?;
        Ok(self.mode_on(slot, facts)?.is_some())
    }

    fn record(
        &mut self,
        slot: u32,
        facts: &InterfaceInfo,
        mode: XdpMode,
        loaded: &Loaded,
    ) -> Result<()> {
        let here = Namespace::current()?;
        self.rename(slot, &facts.name)?;
        let identity = Identity {
            namespace: here.cookie,
            namespace_inode: here.inode,
            ..self.identities.get(&slot, 0)?
        };
        self.identities.set(slot, loaded.of(identity), 0)?;
        let recorded = Interface {
            index: facts.index,
            attach_mode: mode.number(),
            ..self.interfaces.get(&slot, 0)?
        };
        Ok(self.interfaces.set(slot, recorded, 0)?)
    }

    /// Records the name of the interface in a slot, and which one it had before.
    pub(super) fn rename(&mut self, slot: u32, name: &str) -> Result<()> {
        let mut recorded = self.interfaces.get(&slot, 0)?;
        if name_of(&recorded) == name {
            return Ok(());
        }
        if recorded.index != 0 {
            let identity = Identity {
                former_name: recorded.name,
                ..self.identities.get(&slot, 0)?
            };
            self.identities.set(slot, identity, 0)?;
        }
        recorded.name = padded(name);
        Ok(self.interfaces.set(slot, recorded, 0)?)
    }

    /// Records the names that the interfaces in slots have now: they may have been renamed, or have swapped names.
    pub fn follow_names(&mut self) -> Result<()> {
        let netlink = Netlink::open()?;
        for slot in 0..MAX_INTERFACES {
            // One that cannot be opened, on a read-only file system, is left as it is.
            let LinkFact::Pinned(link) = link_fact(&self.pins.link(slot))? else {
                continue;
            };
            let Some(index) = link.interface else {
                continue;
            };
            let recorded = self.interfaces.get(&slot, 0)?;
            if let Some(device) = netlink.by_index(index)?
                && device.programs.contains(&link.program)
                && !device.is_called(&name_of(&recorded))
            {
                self.rename(slot, &device.name)?;
            }
        }
        Ok(())
    }

    /// Records that a slot has nothing attached any more, on purpose.
    pub(super) fn forget(&mut self, slot: u32) -> Result<()> {
        let identity = Identity {
            program: 0,
            tracker: 0,
            ..self.identities.get(&slot, 0)?
        };
        Ok(self.identities.set(slot, identity, 0)?)
    }

    /// The slot that an interface of this name has, or is to have once there is one.
    pub(super) fn reserve(&mut self, name: &str) -> Result<u32> {
        let slot = self.slot_of(name, index_of(name).unwrap_or(0))?;
        self.rename(slot, name)?;
        Ok(slot)
    }

    /// The slot that this interface has by its link; else the one that has an interface of its name,
    /// so that counts go on; else a free one.
    pub(super) fn slot_of(&self, name: &str, index: u32) -> Result<u32> {
        let device = match index {
            0 => None,
            index => Netlink::open()?.by_index(index)?,
        };
        let is_here = |program: u32| {
            let mut devices = device.iter();
            devices.any(|device| device.programs.contains(&program))
        };
        let mut by_name = None;
        let mut free = None;
        for slot in 0..MAX_INTERFACES {
            let recorded = self.interfaces.get(&slot, 0)?;
            let link = self.pins.link_state(slot)?;
            let linked = link.filter(|link| link.interface.is_some());
            if linked.is_some_and(|link| link.interface == Some(index) && is_here(link.program)) {
                return Ok(slot);
            }
            let anothers = match linked {
                Some(_) => None,
                None => self.previous_interface(slot)?,
            };
            if anothers == Some(index) && index != 0 {
                return Ok(slot);
            }
            if linked.is_some() || anothers.is_some() {
                continue; // it belongs to another interface now
            }
            if recorded.name[0] == 0 {
                free = free.or(Some(slot));
            } else if name_of(&recorded) == name {
                by_name = Some(slot);
            }
        }
        by_name.or(free).with_context(|| {
            format!(
                "all {MAX_INTERFACES} interface slots are in use; `allowlist detach` frees them"
            )
        })
    }
}

/// An XDP program as the kernel has it.
pub(super) struct Loaded {
    program: u32,
    maps: [u32; abi::MAPS_OF_PROGRAM],
}

impl Loaded {
    /// The identity of the interface that it is attached to.
    const fn of(&self, identity: Identity) -> Identity {
        Identity {
            program: self.program,
            maps: self.maps,
            ..identity
        }
    }
}

impl AttachModeRequest {
    /// Whether a program in this mode satisfies the configuration.
    pub(crate) fn fits(self, mode: XdpMode) -> bool {
        match self {
            Self::Auto => true,
            Self::Native => mode == XdpMode::Native,
            Self::Generic => mode == XdpMode::Generic,
            Self::Offload => mode == XdpMode::Offload,
        }
    }
}

/// Puts `program` in the place of the one that the pinned link holds: no packet is missed.
fn replace(program: &mut Xdp, pin: &Path) -> Result<()> {
    let link: FdLink = links::PinnedLink::from_pin(pin)?.into();
    let link: XdpLink = link.try_into()?;
    let id = program.attach_to_link(link)?;
    drop(program.take_link(id)?); // the pin holds it
    Ok(())
}

pub(super) fn padded(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = name.len().min(bytes.len() - 1);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

pub(super) fn name_of(interface: &Interface) -> String {
    unpadded(&interface.name)
}

pub(super) fn unpadded(name: &[u8; 16]) -> String {
    let length = name.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&name[..length.unwrap_or(name.len())]).into_owned()
}

/// The error for an interface that has another XDP program, with the remedy.
pub(super) fn other_program(facts: &InterfaceInfo, id: u32) -> String {
    let name = program_name(id);
    let remedy = if name == abi::PROGRAM {
        "another instance attached it: run `allowlist detach` with its --pin-dir".to_owned()
    } else {
        format!(
            "`ip link set dev {} xdp off`, or stop the process that attached it",
            facts.name
        )
    };
    format!(
        "{} has another XDP program, id {id} ({name}), and only one can be attached; detach it first: {remedy}",
        facts.name
    )
}

/// The name of a loaded program, "unnamed" without one.
pub(super) fn program_name(id: u32) -> String {
    name_of_program(id).unwrap_or_else(|| "unnamed".to_owned())
}

/// The name of a loaded program, "unnamed" without one; `None` where no program has this id, or this process may not read it.
pub fn name_of_program(id: u32) -> Option<String> {
    let program = loaded_programs()
        .flatten()
        .find(|program| program.id() == id)?;
    let name = program.name_as_str().filter(|name| !name.is_empty());
    Some(name.unwrap_or("unnamed").to_owned())
}
