//! What is in force as a whole: looked at, gone back to, taken off.
//!
//! Invariant: every change of what is pinned is made under one lock, so that a daemon that looks
//! after its interfaces and a `detach` cannot work against each other.

use std::path::Path;

use allowlist_common::abi::{self, Control, Interface, MAX_INTERFACES, ReturnTraffic};
use anyhow::{Context as _, Result};

use super::attach::name_of;
use super::egress::stop_following;
use super::link::take_off;
use super::pins::{Pins, require_privileges};
use super::{Attachment, Dataplane, View};
use crate::interface::Facts;

/// What was in force at one moment.
pub struct InForce {
    control: Control,
    attachments: Vec<Attachment>,
}

impl Dataplane {
    /// Whether the maps are still pinned: not once somebody took the filter off.
    pub fn is_in_force(&self) -> bool {
        self.pins.are_whole()
    }

    /// What is in force now, to go back to.
    pub fn in_force(&self) -> Result<InForce> {
        Ok(InForce {
            control: self.control.load(),
            attachments: View::open(self.pins.root())?.attachments()?,
        })
    }

    /// Goes back to what was in force at most one publish ago: generation, interfaces and where the
    /// program runs on them. Removes everything if there was no generation.
    pub fn restore(&mut self, before: &InForce) -> Result<()> {
        if before.control.generation == 0 {
            return detach_all(self.pins.root()).map(drop);
        }
        // A publish fills the other slot and leaves this one as it was.
        self.control.store(before.control);
        self.active = None; // that was the other slot's
        self.tracks = before.control.return_traffic == ReturnTraffic::Track;
        let indices: Vec<u32> = before
            .attachments
            .iter()
            .filter_map(|one| one.index)
            .collect();
        self.detach_others(&indices)?;
        for attachment in &before.attachments {
            let (Some(index), Some(mode)) = (attachment.index, attachment.mode) else {
                continue;
            };
            let facts = Facts {
                name: attachment.name.clone(),
                index,
                xdp_program: None,
            };
            self.attach(&facts, mode.wanted(), false)?;
        }
        self.settle()
    }

    /// Takes the filter off interfaces whose index is not in `keep`.
    ///
    /// # Returns
    /// Their names.
    pub fn detach_others(&mut self, keep: &[u32]) -> Result<Vec<String>> {
        let _changing = self.pins.change()?;
        let mut detached = Vec::new();
        for slot in 0..MAX_INTERFACES {
            let pin = self.pins.link(slot);
            let is_kept = |index| keep.contains(&index);
            if pin.exists() && !self.pins.interface_of(slot)?.is_some_and(is_kept) {
                take_off(&pin)?;
                let recorded = self.interfaces.get(&slot, 0)?;
                stop_following(&self.pins, slot, &recorded)?;
                detached.push(name_of(&recorded));
            }
        }
        Ok(detached)
    }
}

/// Takes the filter off every interface and removes all pins.
///
/// # Returns
/// The names of the interfaces.
pub fn detach_all(pin_dir: &Path) -> Result<Vec<String>> {
    require_privileges()?;
    let pins = Pins::open(pin_dir)?;
    let _changing = pins.change()?;
    // A folder that lacks a map still has links to take off, so names are worth only a try.
    let view = View::open(pin_dir);
    let names = view.as_ref().map(View::attachments);
    let recorded: Vec<Interface> = (0..MAX_INTERFACES)
        .map(|slot| view.as_ref().ok()?.recorded(slot).ok())
        .map(Option::unwrap_or_default)
        .collect();
    // First, so that a daemon knows that this is meant.
    pins.unpin(abi::CONTROL)?;
    let mut detached = Vec::new();
    for (slot, recorded) in (0..).zip(&recorded) {
        stop_following(&pins, slot, recorded)?;
        let pin = pins.link(slot);
        if !pin.exists() {
            continue;
        }
        take_off(&pin).context("the filter is still on some interfaces; detach again")?;
        let mut known = names.iter().flatten().flatten();
        detached.push(
            known
                .find(|attachment| attachment.slot == slot)
                .map_or_else(|| format!("slot {slot}"), |one| one.name.clone()),
        );
    }
    pins.remove()?;
    Ok(detached)
}
