//! Reads the applied state before a change, and restores it if the change fails.

use allowlist_common::abi::{Control, ReturnTraffic};
use allowlist_policy::Mode;

use super::{Attachment, Dataplane, View};
use crate::error::Result;
use crate::interface::InterfaceInfo;

/// The control word, and the attached interfaces with their XDP modes, as they were before a change.
pub struct AppliedState {
    control: Control,
    attachments: Vec<Attachment>,
}

impl AppliedState {
    /// Returns the mode (observe or enforce) of the state; `None` if no interface was filtered.
    pub fn mode(&self) -> Option<Mode> {
        let is_filtering =
            self.control.generation != 0 && !self.control.open && !self.attachments.is_empty();
        is_filtering.then_some(if self.control.observe {
            Mode::Observe
        } else {
            Mode::Enforce
        })
    }
}

impl Dataplane {
    /// Returns whether every map is still pinned at its path.
    pub fn has_all_pins(&self) -> bool {
        self.pins.is_complete()
    }

    /// Returns whether the filter was detached on purpose, by this or another process.
    pub fn is_detached(&self) -> bool {
        self.control.is_detached()
    }

    /// Reads the applied state, for [`Self::restore`].
    pub fn applied_state(&self) -> Result<AppliedState> {
        Ok(AppliedState {
            control: self.control.effective(),
            attachments: View::open(self.pins.root())?.attachments()?,
        })
    }

    /// Restores a state that at most one publish has replaced: generation, interfaces and their XDP modes.
    ///
    /// Detaches the filter from all interfaces if the state has no generation.
    pub fn restore(&mut self, before: &AppliedState) -> Result<()> {
        if before.control.generation == 0 && !before.control.open {
            if self.abort_migration()? {
                return Ok(());
            }
            return self.detach().map(drop);
        }
        self.restore_tables(before.control)?;
        let indices: Vec<u32> = before
            .attachments
            .iter()
            .filter_map(|one| one.index)
            .collect();
        self.detach_others(&indices)?;
        if self.is_patched {
            return self.finish_flow_migration(); // the attached programs still use the maps from before the start
        }
        for attachment in &before.attachments {
            let (Some(index), Some(mode), true) =
                (attachment.index, attachment.mode, attachment.attached)
            else {
                continue;
            };
            let facts = InterfaceInfo {
                name: attachment.name.clone(),
                index,
                xdp_program: None,
                xdp_mode: None,
            };
            self.attach(&facts, mode.wanted(), false)?;
        }
        self.finish_flow_migration()
    }

    /// Restores the generation of a control word that at most one publish has replaced. Links stay as they are.
    pub(super) fn restore_tables(&mut self, before: Control) -> Result<()> {
        // A whole publish fills another slot and leaves this one as it was.
        let slot = self.control.load().slot;
        if before.slot == slot {
            self.tables.undo_in_place(slot, before.generation)?;
        }
        // This rolls back a change that has become pending since, so nothing is left to confirm.
        let pending = before.pending && self.control.load().pending;
        self.flip(Control { pending, ..before });
        self.egress.forget_published();
        self.tables.published = None; // it may describe the other slot
        self.tracking.is_on = before.return_traffic == ReturnTraffic::Track;
        Ok(())
    }
}
