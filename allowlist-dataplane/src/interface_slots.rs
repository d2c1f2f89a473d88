//! The records of the interfaces by slot: name, index and mode, and the identity of the attached programs.

use allowlist_common::abi::{Identity, Interface, MAX_INTERFACES};
use aya::maps::{Array, MapData};

use super::attach::{name_of, padded};
use crate::error::Result;

/// The maps with a record for each interface slot.
pub(super) struct InterfaceSlots {
    pub(super) interfaces: Array<MapData, Interface>,
    pub(super) identities: Array<MapData, Identity>,
}

impl InterfaceSlots {
    /// Returns the record of the interface in a slot; an empty one if the slot was never used.
    pub(super) fn get(&self, slot: u32) -> Result<Interface> {
        Ok(self.interfaces.get(&slot, 0)?)
    }

    /// Sets the record of the interface in a slot.
    pub(super) fn set(&mut self, slot: u32, interface: Interface) -> Result<()> {
        Ok(self.interfaces.set(slot, interface, 0)?)
    }

    /// Returns the identity of the programs in a slot, and of their interface.
    pub(super) fn identity(&self, slot: u32) -> Result<Identity> {
        Ok(self.identities.get(&slot, 0)?)
    }

    /// Sets the identity of the programs in a slot, and of their interface.
    pub(super) fn set_identity(&mut self, slot: u32, identity: Identity) -> Result<()> {
        Ok(self.identities.set(slot, identity, 0)?)
    }

    /// Returns the slots whose interface has a flow tracker.
    pub(super) fn tracked(&self) -> Result<Vec<u32>> {
        let mut slots = Vec::new();
        for slot in 0..MAX_INTERFACES {
            if self.get(slot)?.egress != 0 {
                slots.push(slot);
            }
        }
        Ok(slots)
    }

    /// Records a new name for the interface in a slot, and keeps the previous one as its former name.
    pub(super) fn rename(&mut self, slot: u32, name: &str) -> Result<()> {
        let mut recorded = self.get(slot)?;
        if name_of(&recorded) == name {
            return Ok(());
        }
        if recorded.index != 0 {
            let identity = Identity {
                former_name: recorded.name,
                ..self.identity(slot)?
            };
            self.set_identity(slot, identity)?;
        }
        recorded.name = padded(name);
        self.set(slot, recorded)
    }

    /// Records that the programs in a slot were detached on purpose, so that the self-check does not report them as
    /// missing.
    pub(super) fn forget(&mut self, slot: u32) -> Result<()> {
        let identity = Identity {
            program: 0,
            tracker: 0,
            ..self.identity(slot)?
        };
        self.set_identity(slot, identity)
    }
}
