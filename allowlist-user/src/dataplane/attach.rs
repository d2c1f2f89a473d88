//! The program on an interface, by a pinned link: put there, or replaced in place.
//!
//! Invariant: this process keeps no link open. The pin alone holds it, so the filter stays when this
//! process ends, and goes when the pin goes, whoever removes it.

use std::fs;
use std::path::Path;

use allowlist_common::abi::{self, Interface, MAX_INTERFACES};
use anyhow::{Context as _, Result, anyhow, bail};
use aya::Ebpf;
use aya::programs::links::{self, FdLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{Xdp, loaded_programs};
use nix::net::if_::{if_indextoname, if_nametoindex};
use serde::Serialize;

use super::link::take_off;
use super::{Dataplane, Hook};
use crate::config::AttachMode;
use crate::interface::Facts;

/// Where in the kernel the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachedIn {
    /// In the driver, before anything is allocated.
    Native,
    /// In the network stack: works everywhere, slower.
    Generic,
    /// On the card.
    Offload,
}

impl AttachedIn {
    const ALL: [Self; 3] = [Self::Native, Self::Generic, Self::Offload];

    const fn flags(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
            Self::Offload => XdpMode::Hardware,
        }
    }

    /// What asks for just this.
    pub(super) const fn wanted(self) -> AttachMode {
        match self {
            Self::Native => AttachMode::Native,
            Self::Generic => AttachMode::Generic,
            Self::Offload => AttachMode::Offload,
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
    pub mode: AttachedIn,
    /// Why it does not run in the driver, though nobody asked otherwise.
    pub warning: Option<String>,
    /// The loaded object, for its log.
    pub object: Ebpf,
}

impl Dataplane {
    /// Attaches the program to an interface, or replaces the one that is there by this one without
    /// a gap, also where that is another version's. Call it after a publish: from here on packets are judged.
    pub fn attach(&mut self, facts: &Facts, wanted: AttachMode, trace: bool) -> Result<Attached> {
        let _changing = self.pins.change()?;
        if !self.pins.are_whole() {
            bail!("{}: not attached: the filter was detached", facts.name);
        }
        let slot = self.slot_of(&facts.name, facts.index)?;
        let anothers = self.others_link(facts.index)?;
        let on = self.mode_on(slot, facts)?;
        if on.is_none()
            && anothers.is_none()
            && let Some(id) = facts.xdp_program
        {
            bail!(other_program(facts, id));
        }
        let mut object = self.load_program(slot, trace)?;
        // First, so that what is sent from now on is known when its answer comes.
        self.follow_sent(&mut object, slot, facts, Hook::Best)?;
        let program: &mut Xdp = object
            .program_mut(abi::PROGRAM)
            .expect("load_program loaded it")
            .try_into()?;
        let on = match (anothers, on) {
            (Some(link), _) => Some(self.take_link_over(program, &link, slot, facts)?),
            (None, Some(mode)) if wanted.fits(mode) => {
                replace(program, &self.pins.link(slot))
                    .with_context(|| format!("cannot replace the program on {}", facts.name))?;
                Some(mode)
            }
            (None, on) => on,
        };
        let (mode, warning) = match on {
            Some(mode) if wanted.fits(mode) => {
                self.record(slot, facts, mode)?; // it may have been renamed
                (mode, None)
            }
            Some(old) => self.change_mode(program, slot, facts, (old, wanted))?,
            None => match self.attach_anew(program, slot, facts, wanted) {
                Ok(attached) => attached,
                Err(error) => {
                    self.unfollow(slot)?; // nobody asks for what it notes
                    return Err(error);
                }
            },
        };
        self.fallback.spare(slot, false);
        Ok(Attached {
            mode,
            warning,
            object,
        })
    }

    /// Puts programs of this object, with the maps that are pinned now, into every link of this version.
    pub(super) fn replace_programs(&mut self) -> Result<()> {
        for slot in 0..MAX_INTERFACES {
            let _changing = self.pins.change()?;
            let pin = self.pins.link(slot);
            let Some(index) = self.pins.interface_of(slot)? else {
                continue;
            };
            let mut object = self.load_program(slot, false)?;
            let recorded = self.interfaces.get(&slot, 0)?;
            if recorded.egress != 0 {
                let name = if_indextoname(index).map_or_else(
                    |_| name_of(&recorded),
                    |name| name.to_string_lossy().into_owned(),
                );
                let facts = Facts {
                    name,
                    index,
                    xdp_program: None,
                    xdp_mode: None,
                };
                self.follow_anew(&mut object, slot, &facts)?;
            }
            let program: &mut Xdp = object
                .program_mut(abi::PROGRAM)
                .expect("load_program loaded it")
                .try_into()?;
            replace(program, &pin)
                .with_context(|| format!("cannot replace the program on {}", name_of(&recorded)))?;
        }
        Ok(())
    }

    /// Puts the program into another version's link, and the link's pin among this version's.
    fn take_link_over(
        &mut self,
        program: &mut Xdp,
        link: &Path,
        slot: u32,
        facts: &Facts,
    ) -> Result<AttachedIn> {
        let mode = facts.xdp_mode.with_context(|| {
            format!(
                "{} has a link of another version, and no program",
                facts.name
            )
        })?;
        let pin = self.pins.link(slot);
        if pin.exists() {
            take_off(&pin)?; // of an interface that is gone
        }
        self.has_replaced = true;
        replace(program, link).with_context(|| {
            format!("cannot replace another version's program on {}", facts.name)
        })?;
        self.record(slot, facts, mode)?;
        fs::rename(link, &pin)
            .with_context(|| format!("cannot move the pin {} over", link.display()))?;
        Ok(mode)
    }

    /// To an interface that does not have the filter.
    fn attach_anew(
        &mut self,
        program: &mut Xdp,
        slot: u32,
        facts: &Facts,
        wanted: AttachMode,
    ) -> Result<(AttachedIn, Option<String>)> {
        let pin = self.pins.link(slot);
        if pin.exists() {
            take_off(&pin)?; // of an interface that is gone
        }
        let (link, mode, warning) = new_link(program, facts, wanted)?;
        self.pin(slot, facts, mode, link)?;
        Ok((mode, warning))
    }

    /// The kernel takes no program in one mode beside one in another, so there is a moment without.
    fn change_mode(
        &mut self,
        program: &mut Xdp,
        slot: u32,
        facts: &Facts,
        (old, wanted): (AttachedIn, AttachMode),
    ) -> Result<(AttachedIn, Option<String>)> {
        take_off(&self.pins.link(slot))?;
        let changed = new_link(program, facts, wanted)
            .and_then(|(link, mode, _)| self.pin(slot, facts, mode, link).map(|()| mode));
        match changed {
            Ok(mode) => {
                let warning = format!(
                    "{}: changed from {} to {} mode, and unfiltered for the moment between",
                    facts.name,
                    old.name(),
                    mode.name()
                );
                Ok((mode, Some(warning)))
            }
            Err(error) => {
                let (link, ..) = new_link(program, facts, old.wanted())
                    .with_context(|| format!("{error:#}; {} is NOT filtered now", facts.name))?;
                self.pin(slot, facts, old, link)?;
                Err(error.context(format!("{} stays in {} mode", facts.name, old.name())))
            }
        }
    }

    fn pin(&mut self, slot: u32, facts: &Facts, mode: AttachedIn, link: FdLink) -> Result<()> {
        // Recorded before the pin: a pin that nobody can name would be worse than a name without one.
        self.record(slot, facts, mode)?;
        link.pin(self.pins.link(slot))
            .with_context(|| format!("{} is NOT filtered: cannot pin its link", facts.name))?;
        Ok(())
    }

    /// Where the program of this slot runs on this very interface; `None` where it does not.
    fn mode_on(&self, slot: u32, facts: &Facts) -> Result<Option<AttachedIn>> {
        if self.pins.interface_of(slot)? != Some(facts.index) {
            return Ok(None);
        }
        let recorded = self.interfaces.get(&slot, 0)?;
        Ok(AttachedIn::from_number(recorded.attach_mode))
    }

    /// Whether an interface has the filter on it.
    pub fn filters(&self, facts: &Facts) -> Result<bool> {
        let slot = self.slot_of(&facts.name, facts.index)?;
        Ok(self.mode_on(slot, facts)?.is_some())
    }

    fn record(&mut self, slot: u32, facts: &Facts, mode: AttachedIn) -> Result<()> {
        let recorded = Interface {
            index: facts.index,
            attach_mode: mode.number(),
            name: padded(&facts.name),
            ..self.interfaces.get(&slot, 0)?
        };
        Ok(self.interfaces.set(slot, recorded, 0)?)
    }

    /// The slot that an interface of this name has, or is to have once there is one.
    pub(super) fn reserve(&mut self, name: &str) -> Result<u32> {
        let slot = self.slot_of(name, if_nametoindex(name).unwrap_or(0))?;
        let mut recorded = self.interfaces.get(&slot, 0)?;
        if name_of(&recorded) != name {
            recorded.name = padded(name);
            self.interfaces.set(slot, recorded, 0)?;
        }
        Ok(slot)
    }

    /// The slot that this interface has by its link; else the one that has an interface of its name,
    /// so that counts go on; else a free one.
    pub(super) fn slot_of(&self, name: &str, index: u32) -> Result<u32> {
        let mut by_name = None;
        let mut free = None;
        for slot in 0..MAX_INTERFACES {
            let recorded = self.interfaces.get(&slot, 0)?;
            let linked = self.pins.interface_of(slot)?;
            match linked.map_or_else(|| self.others_interface(slot), |index| Ok(Some(index)))? {
                Some(found) if found == index => return Ok(slot),
                None if recorded.name[0] == 0 => free = free.or(Some(slot)),
                None if name_of(&recorded) == name => by_name = Some(slot),
                _ => {} // another interface's now, whatever that was called
            }
        }
        by_name.or(free).with_context(|| {
            format!(
                "{MAX_INTERFACES} interfaces have been filtered and no more fit; `allowlist detach` starts anew"
            )
        })
    }
}

impl AttachMode {
    /// Whether a program that runs there is what this asks for.
    fn fits(self, mode: AttachedIn) -> bool {
        match self {
            Self::Auto => true,
            Self::Native => mode == AttachedIn::Native,
            Self::Generic => mode == AttachedIn::Generic,
            Self::Offload => mode == AttachedIn::Offload,
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

fn new_link(
    program: &mut Xdp,
    facts: &Facts,
    wanted: AttachMode,
) -> Result<(FdLink, AttachedIn, Option<String>)> {
    let mut attach = |mode: AttachedIn| -> Result<FdLink> {
        let id = program
            .attach_to_if_index(facts.index, mode.flags())
            .with_context(|| {
                format!(
                    "cannot attach to {} in {} mode (`--attach-mode auto` takes what its driver offers)",
                    facts.name,
                    mode.name()
                )
            })?;
        program.take_link(id)?.try_into().map_err(|_| {
            anyhow!(
                "the kernel attaches to {} without a link, which would not outlive this process; it takes Linux 5.9",
                facts.name
            )
        })
    };
    let mode = match wanted {
        AttachMode::Native | AttachMode::Auto => AttachedIn::Native,
        AttachMode::Generic => AttachedIn::Generic,
        AttachMode::Offload => AttachedIn::Offload,
    };
    match attach(mode) {
        Ok(link) => Ok((link, mode, None)),
        Err(native) if wanted == AttachMode::Auto => {
            let warning = format!(
                "{} runs the filter in generic mode, in the network stack, which is slower: its driver took no native program ({})",
                facts.name,
                native.root_cause()
            );
            Ok((
                attach(AttachedIn::Generic)?,
                AttachedIn::Generic,
                Some(warning),
            ))
        }
        Err(error) => Err(error),
    }
}

pub(super) fn padded(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = name.len().min(bytes.len() - 1);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

pub(super) fn name_of(interface: &Interface) -> String {
    let length = interface.name.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&interface.name[..length.unwrap_or(interface.name.len())]).into_owned()
}

fn other_program(facts: &Facts, id: u32) -> String {
    let name = program_name(id);
    let remedy = if name == abi::PROGRAM {
        "another instance put it there: `allowlist detach` with that one's --pin-dir".to_owned()
    } else {
        format!(
            "`ip link set dev {} xdp off`, or stop what attached it",
            facts.name
        )
    };
    format!(
        "{} has another XDP program, id {id} ({name}), and there can be only one; take it off first: {remedy}",
        facts.name
    )
}

fn program_name(id: u32) -> String {
    loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unnamed".to_owned())
}
