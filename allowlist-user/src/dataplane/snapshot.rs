//! The applied state as a whole: read before a change, and restored where the change fails.

use allowlist_common::abi::{Control, ReturnTraffic};
use anyhow::Result;

use super::{Attachment, Dataplane, View};
use crate::interface::Facts;
use crate::policy::Mode;

/// What was in force at one moment.
pub struct AppliedState {
    control: Control,
    attachments: Vec<Attachment>,
}

impl AppliedState {
    /// Whether verdicts were carried out; `None` if nothing was in force.
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
    /// Whether every map is pinned where it was.
    pub fn has_all_pins(&self) -> bool {
        self.pins.is_complete()
    }

    /// Whether the filter was detached on purpose, by this or another process.
    pub fn is_detached(&self) -> bool {
        self.control.is_detached()
    }

    /// What is in force now, to go back to.
    pub fn applied_state(&self) -> Result<AppliedState> {
        Ok(AppliedState {
            control: self.effective(),
            attachments: View::open(self.pins.root())?.attachments()?,
        })
    }

    /// Goes back to what was in force at most one publish ago: generation, interfaces and where the
    /// program runs on them. Removes everything if there was no generation.
    pub fn restore(&mut self, before: &AppliedState) -> Result<()> {
        if before.control.generation == 0 && !before.control.open {
            if self.abort_migration()? {
                return Ok(());
            }
            return self.detach().map(drop);
        }
        // A whole publish fills another slot and leaves this one as it was.
        self.undo_in_place(before.control)?;
        // What was guarded since is taken back hereby, and needs nobody to confirm it.
        let pending = before.control.pending && self.control.load().pending;
        self.flip(Control {
            pending,
            ..before.control
        });
        self.published = None; // that may be the other slot's
        self.tracks = before.control.return_traffic == ReturnTraffic::Track;
        let indices: Vec<u32> = before
            .attachments
            .iter()
            .filter_map(|one| one.index)
            .collect();
        self.detach_others(&indices)?;
        if self.is_patched {
            return self.finish_flow_migration(); // the programs that are attached are as they were, with the maps that they had
        }
        for attachment in &before.attachments {
            let (Some(index), Some(mode), true) =
                (attachment.index, attachment.mode, attachment.attached)
            else {
                continue;
            };
            let facts = Facts {
                name: attachment.name.clone(),
                index,
                xdp_program: None,
                xdp_mode: None,
            };
            self.attach(&facts, mode.wanted(), false)?;
        }
        self.finish_flow_migration()
    }
}
