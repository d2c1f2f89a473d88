//! Reads drop events, which the kernel programs emit while there is a reader.
//!
//! Invariants: only one process reads at a time (`event_reader`). The kernel programs stop a few seconds after the
//! reader last renewed its lease, however it ended. Needs no daemon.

use std::collections::BTreeMap;
use std::path::Path;

use allowlist_common::abi::{self, Event};

use super::View;
use super::control_map::ControlMap;
use super::event_reader::{EventReader, Kind};
use super::pins::{Pins, require_privileges};
use super::sys::Access;
use crate::error::Result;

/// The reader of drop events. The kernel programs stop emitting events when it is dropped.
pub struct Watch {
    reader: EventReader<Event>,
    control: ControlMap,
    view: View,
    names: BTreeMap<u32, String>,
}

/// An item that the reader of drop events returns.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// A packet that was dropped, or would have been in enforce mode, and the name of its interface.
    Drop(Event, String),
    /// The number of drops without an event since the last such item, because the rate limit was reached or the ring
    /// buffer was full.
    Suppressed(u64),
    /// The filter was detached. No further item follows.
    Detached,
}

impl Watch {
    /// Starts to read drop events. Earlier events are skipped.
    ///
    /// # Errors
    /// Fails if another process reads events, or if no filter is pinned under `pin_dir`.
    pub fn open(pin_dir: &Path) -> Result<Self> {
        require_privileges()?;
        let pins = Pins::open_for(pin_dir, Access::ReadWrite)?;
        let kind = Kind {
            ring: abi::EVENTS,
            budget: abi::EVENT_BUDGET,
            lock: &pins.watchers(),
            command: "allowlist watch",
            events: "drop events",
        };
        let watch = Self {
            reader: EventReader::open(&pins, &kind)?,
            control: ControlMap::map(&pins.open_map(abi::CONTROL)?, Access::ReadWrite)?,
            names: BTreeMap::new(),
            view: View::open(pin_dir)?,
        };
        watch.sign();
        Ok(watch)
    }

    /// Renews the reader's lease if it is due, so that the kernel programs continue to emit events. [`Self::next`] does
    /// this too.
    pub fn keep_watching(&mut self) {
        if self.reader.is_due() {
            self.sign();
        }
    }

    /// Waits for the next item. Cancel safe: no event is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Seen> {
        loop {
            if self.reader.is_due() {
                if self.view.is_detached() {
                    return Ok(Seen::Detached);
                }
                self.sign();
                let more = self.reader.newly_suppressed()?;
                if more > 0 {
                    return Ok(Seen::Suppressed(more));
                }
            }
            if let Some(event) = self.reader.take() {
                let name = self.name(event.interface)?;
                return Ok(Seen::Drop(event, name));
            }
            self.reader.wait().await?;
        }
    }

    /// Renews the reader's lease, the time until which the kernel programs emit events.
    fn sign(&self) {
        self.control.watch_until(self.reader.lease_end());
    }

    fn name(&mut self, slot: u32) -> Result<String> {
        if !self.names.contains_key(&slot) {
            let attachments = self.view.attachments()?.into_iter();
            self.names = attachments.map(|one| (one.slot, one.name)).collect();
        }
        let known = self.names.get(&slot);
        Ok(known.cloned().unwrap_or_else(|| format!("slot {slot}")))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.control.watch_until(0);
    }
}
