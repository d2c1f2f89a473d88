//! Attaches the XDP program to an interface by a pinned link, or replaces the program in the link.
//!
//! Invariant: this process keeps no link open. Only the pin holds the link, so the filter stays attached when this
//! process ends, and is detached when any process removes the pin.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

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
use crate::error::{Context as _, Result, bail};
use crate::interface::InterfaceInfo;
use crate::netlink::{Namespace, Netlink, index_of};

/// The place where an attached XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver, before the kernel allocates a socket buffer for the packet.
    Native,
    /// In the kernel's network stack: works on every interface, but is slower.
    Generic,
    /// On the network card.
    Offload,
}

impl XdpMode {
    const ALL: [Self; 3] = [Self::Native, Self::Generic, Self::Offload];

    /// Returns the value of `attach_mode` that accepts only this mode.
    pub(super) const fn wanted(self) -> AttachModeRequest {
        match self {
            Self::Native => AttachModeRequest::Native,
            Self::Generic => AttachModeRequest::Generic,
            Self::Offload => AttachModeRequest::Offload,
        }
    }

    /// Returns the number of this mode in `Interface::attach_mode`, the record in the map of interfaces.
    const fn number(self) -> u32 {
        self as u32 + 1
    }

    pub(super) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.number() == number)
    }

    /// Returns the name of the mode, as in the configuration and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
        }
    }
}

/// Returns the command that detaches an XDP program without a link from the interface `name`. Without the program's
/// `mode`, `ip` chooses the mode that the driver prefers.
pub(crate) fn off_command(name: &str, mode: Option<XdpMode>) -> String {
    let option = match mode {
        Some(XdpMode::Native) => "xdpdrv",
        Some(XdpMode::Generic) => "xdpgeneric",
        Some(XdpMode::Offload) => "xdpoffload",
        None => "xdp",
    };
    format!("`ip link set dev {name} {option} off`")
}

/// The result of attaching the XDP program to an interface.
pub struct Attached {
    /// The mode in which the program runs.
    pub mode: XdpMode,
    /// A warning for the operator: native mode was refused and generic mode is used, or a change of mode left the
    /// interface unfiltered for a moment; `None` if neither happened.
    pub warning: Option<String>,
    /// The loaded object file, from which the trace is read; `None` without a trace.
    pub object: Option<Ebpf>,
}

impl Dataplane {
    /// Attaches the XDP program to an interface, or atomically replaces the program of this or another version there.
    ///
    /// Call it after a publish, because the program judges packets from the attach on.
    pub fn attach(
        &mut self,
        facts: &InterfaceInfo,
        wanted: AttachModeRequest,
        trace: bool,
    ) -> Result<Attached> {
        let _pin_lock = self.pins.lock_exclusive()?;
        if self.is_detached() {
            bail!(
                "{}: not attached, because another process has detached the filter; this interface is not filtered; start the daemon again with `allowlist run`",
                facts.name
            );
        }
        self.pin_maps_again()?;
        let slot = self.slot_of(&facts.name, facts.index)?;
        let anothers = self.migration.previous_link(facts.index)?;
        let on = self.mode_on(slot, facts)?;
        if on.is_none()
            && anothers.is_none()
            && let Some(id) = facts.xdp_program
        {
            bail_with!(InterfaceInUse, "{}", other_program(facts, id));
        }
        if on.is_none() && anothers.is_none() {
            self.tracking.disarm(slot); // of an interface from before
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
                replace(program, &self.pins.link(slot)).with_context(|| {
                    format!("cannot replace the filter's program on {}", facts.name)
                })?;
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
                self.tracking.disarm(slot);
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
        self.control.set_bypassed(slot, false);
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

    /// Keeps the loaded programs of an interface slot, for the next attach to an interface of the same name.
    ///
    /// Closes the object's own descriptors of the maps, which [`OpenMaps`](super::repair::OpenMaps) has open too.
    fn keep_programs(&mut self, slot: u32, mut object: Ebpf) {
        for (name, _) in abi::PINNED {
            drop(object.take_map(name));
        }
        self.programs.insert(slot, object);
    }

    /// Replaces the program in every link of this version by a newly loaded one, because a map was replaced: the new
    /// program uses the maps that are pinned at the time of the call.
    pub(super) fn replace_programs(&mut self) -> Result<()> {
        for slot in 0..MAX_INTERFACES {
            let _pin_lock = self.pins.lock_exclusive()?;
            let pin = self.pins.link(slot);
            let Some(index) = self.pins.interface_of(slot)? else {
                continue;
            };
            let mut object = self.load_program(slot, false)?;
            let loaded = self.loaded(&object)?;
            let recorded = self.interfaces.get(slot)?;
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
            replace(program, &pin).with_context(|| {
                format!(
                    "cannot replace the filter's program on {}",
                    name_of(&recorded)
                )
            })?;
            let identity = self.interfaces.identity(slot)?;
            self.interfaces.set_identity(slot, loaded.of(identity))?;
            self.keep_programs(slot, object);
        }
        Ok(())
    }

    /// Returns the kernel's ids of an object's XDP program, and of the pinned maps that this program uses.
    fn loaded(&self, object: &Ebpf) -> Result<Loaded> {
        let program: &Xdp = object
            .program(abi::PROGRAM)
            .expect("load_program loaded it")
            .try_into()?;
        let (program, used) = program_maps(program.fd()?.as_fd())
            .context("cannot read the kernel's information about the XDP program")?;
        let mut maps = [0; abi::MAPS_OF_PROGRAM];
        for (id, map) in self.open_maps.ids().zip(&mut maps) {
            *map = if used.contains(&id) { id } else { 0 };
        }
        Ok(Loaded { program, maps })
    }

    /// Replaces the program in the link of another version, and moves the link's pin to this version's pin directory.
    ///
    /// Returns the mode in which the program runs.
    fn adopt_link(
        &mut self,
        (program, loaded): (&mut Xdp, &Loaded),
        link: &Path,
        slot: u32,
        facts: &InterfaceInfo,
    ) -> Result<XdpMode> {
        let mode = facts.xdp_mode.with_context(|| {
            format!(
                "{}: another version of allowlist has pinned its XDP link, but the kernel reports no XDP program on the interface; run `allowlist detach`, then start the daemon again",
                facts.name
            )
        })?;
        let pin = self.pins.link(slot);
        take_off_if_pinned(&pin)?; // of an interface that is gone
        self.migration.has_replaced = true;
        replace(program, link).with_context(|| {
            format!(
                "cannot replace the filter program of another version of allowlist on {}",
                facts.name
            )
        })?;
        self.record(slot, facts, mode, loaded)?;
        fs::rename(link, &pin).with_context(|| {
            format!(
                "cannot move the pin of the XDP link {} to the pin directory of this version",
                link.display()
            )
        })?;
        Ok(mode)
    }

    /// Attaches the program by a new link to an interface that has no program of any version.
    ///
    /// Returns the mode, and a warning if the mode is not the preferred one, else `None`.
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

    /// Attaches the program in another mode, and returns the new mode and a warning.
    ///
    /// The interface is unfiltered for a moment, because the kernel refuses a program in one mode while there is one in
    /// another mode. If the new mode fails, the old mode is restored, and the result is an error.
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
                    "{}: changed the XDP program from {} to {} mode; the interface was unfiltered for a moment",
                    facts.name,
                    old.name(),
                    mode.name()
                );
                Ok((mode, Some(warning)))
            }
            Err(error) => {
                let (link, ..) = new_link(program, facts, old.wanted())
                    .with_context(|| format!("{error:#}; {} is NOT filtered, because the earlier mode of the XDP program could not be restored either", facts.name))?;
                self.pin(slot, facts, (old, loaded), link)?;
                Err(error.context(format!(
                    "{}: the interface stays filtered in {} mode, because the mode of the XDP program could not be changed",
                    facts.name,
                    old.name()
                )))
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
            .with_context(|| format!("{} is NOT filtered: cannot pin its XDP link", facts.name))?;
        Ok(())
    }

    /// Returns the mode of an interface slot's program on this interface; `None` if the slot's link is on no interface
    /// or on another one.
    fn mode_on(&self, slot: u32, facts: &InterfaceInfo) -> Result<Option<XdpMode>> {
        if !filters(&self.pins.link(slot), facts.index)? {
            return Ok(None);
        }
        let recorded = self.interfaces.get(slot)?;
        // Of a record that is lost, the kernel knows it too.
        Ok(XdpMode::from_number(recorded.attach_mode).or(facts.xdp_mode))
    }

    /// Returns whether this version's program is attached to an interface by a pinned link.
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
        self.interfaces.rename(slot, &facts.name)?;
        let identity = Identity {
            namespace: here.cookie,
            namespace_inode: here.inode,
            ..self.interfaces.identity(slot)?
        };
        self.interfaces.set_identity(slot, loaded.of(identity))?;
        let recorded = Interface {
            index: facts.index,
            attach_mode: mode.number(),
            ..self.interfaces.get(slot)?
        };
        self.interfaces.set(slot, recorded)
    }

    /// Updates the recorded names of the attached interfaces, which may have been renamed or have swapped names.
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
            let recorded = self.interfaces.get(slot)?;
            if let Some(device) = netlink.by_index(index)?
                && device.programs.contains(&link.program)
                && !device.is_called(&name_of(&recorded))
            {
                self.interfaces.rename(slot, &device.name)?;
            }
        }
        Ok(())
    }

    /// Reserves an interface slot for the interface with this name, which need not exist yet, and returns the slot.
    pub(super) fn reserve(&mut self, name: &str) -> Result<u32> {
        let slot = self.slot_of(name, index_of(name).unwrap_or(0))?;
        self.interfaces.rename(slot, name)?;
        Ok(slot)
    }

    /// Returns the interface slot for this name and interface index; the index is 0 if the interface does not exist.
    ///
    /// Prefers the slot whose link is on the interface, then the slot that was last used under this name, so that its
    /// counters continue, and then a free slot.
    ///
    /// # Errors
    /// Fails if all slots are in use.
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
            let recorded = self.interfaces.get(slot)?;
            let link = self.pins.link_state(slot)?;
            let linked = link.filter(|link| link.interface.is_some());
            if linked.is_some_and(|link| link.interface == Some(index) && is_here(link.program)) {
                return Ok(slot);
            }
            let anothers = match linked {
                Some(_) => None,
                None => self.migration.previous_interface(slot)?,
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
                "cannot filter {name}: all {MAX_INTERFACES} interface slots are in use; `allowlist detach` frees them, and ends filtering on all interfaces"
            )
        })
    }
}

/// The kernel's ids of a loaded XDP program and of the pinned maps that it uses.
pub(super) struct Loaded {
    program: u32,
    maps: [u32; abi::MAPS_OF_PROGRAM],
}

impl Loaded {
    /// Returns a copy of an interface slot's [`Identity`] in which the ids are those of this program and its maps.
    const fn of(&self, identity: Identity) -> Identity {
        Identity {
            program: self.program,
            maps: self.maps,
            ..identity
        }
    }
}

impl AttachModeRequest {
    /// Returns whether a program in `mode` satisfies this configured mode.
    pub(crate) fn fits(self, mode: XdpMode) -> bool {
        match self {
            Self::Auto => true,
            Self::Native => mode == XdpMode::Native,
            Self::Generic => mode == XdpMode::Generic,
            Self::Offload => mode == XdpMode::Offload,
        }
    }
}

/// Replaces the program in the link pinned at `pin` by `program`, atomically, so that every packet is judged by one of
/// them.
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

/// Returns the error message for an interface to which another XDP program is attached, with the remedy.
pub(super) fn other_program(facts: &InterfaceInfo, id: u32) -> String {
    let name = program_name(id);
    let remedy = if name == abi::PROGRAM {
        "run `allowlist detach` with the --pin-dir of the instance that attached it".to_owned()
    } else {
        format!(
            "{}, or stop the process that attached it",
            off_command(&facts.name, facts.xdp_mode)
        )
    };
    format!(
        "{} has another XDP program, id {id} ({name}), and only one can be attached; detach it first: {remedy}",
        facts.name
    )
}

/// Returns the name of the loaded program with this id; "unnamed" if it has no name or the name cannot be read.
pub(super) fn program_name(id: u32) -> String {
    name_of_program(id).unwrap_or_else(|| "unnamed".to_owned())
}

/// Returns the name of the loaded program with this id, or "unnamed" if it has no name.
///
/// Returns `None` if no program has this id, or this process may not read it.
pub fn name_of_program(id: u32) -> Option<String> {
    let program = loaded_programs()
        .flatten()
        .find(|program| program.id() == id)?;
    let name = program.name_as_str().filter(|name| !name.is_empty());
    Some(name.unwrap_or("unnamed").to_owned())
}
