//! A change that the kernel takes back by itself unless it is confirmed in time, whatever becomes of this
//! process: a dead man's switch.
//!
//! Invariants: while a change is pending its fallback's slot is not written to, and what the fallback needs stays:
//! the links of the interfaces that were filtered, and the notes of what is sent. What waits is in the maps alone,
//! so any later process finds it.

use crate::error_code::bail_with;
use std::time::Duration;

use allowlist_common::abi::{Control, Fallback, MAX_INTERFACES, ReturnTraffic};
use anyhow::Result;

use super::Dataplane;
use super::clock::kernel_clock_coarse;
use super::link::take_off;
use super::pins::is_pinned;
use super::tries::TrieSlots;

/// A change that waits to be confirmed, or that was not in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingConfirm {
    /// How long it still waits; nothing once the time is over.
    pub left: Duration,
    /// Whether the time is over: the kernel judges by what was before.
    pub fell_back: bool,
    /// What was before.
    pub back_to: Control,
}

/// What waits, by what the maps hold.
pub(super) fn pending(control: Control, fallback: &Fallback) -> Option<PendingConfirm> {
    let now = kernel_clock_coarse();
    control.pending.then(|| PendingConfirm {
        left: Duration::from_nanos(fallback.until.saturating_sub(now)),
        fell_back: fallback.is_expired(now),
        back_to: fallback.rollback_target(),
    })
}

/// What packets are judged by, on interfaces that were filtered before.
pub(super) fn effective(control: Control, fallback: &Fallback) -> Control {
    match pending(control, fallback) {
        Some(pending) if pending.fell_back => pending.back_to,
        _ => control,
    }
}

/// Whether everything passes in a slot, though the program is there: the change leaves it out, or added it and
/// was not confirmed.
pub(super) fn is_open(control: Control, fallback: &Fallback, slot: u32) -> bool {
    Control::decode(fallback.effective(control.encode(), slot, kernel_clock_coarse())).open
}

impl Dataplane {
    /// From now on, unless [`Self::confirm`] follows within this time, the kernel goes back to what is in force
    /// at this moment: generation, mode and interfaces. Where nothing is, everything passes then. Call it
    /// before the change. It survives this process.
    ///
    /// A change that was not confirmed in time is taken back for good first; one that still waits is an error.
    pub fn arm_rollback(&mut self, within: Duration) -> Result<()> {
        match self.pending() {
            Some(pending) if pending.fell_back => self.fall_back()?,
            Some(pending) => bail_with!(
                ChangePending,
                "another change is pending for {} s; confirm it with `allowlist confirm`, or let it expire",
                pending.left.as_secs()
            ),
            None => {}
        }
        let current = self.control.load();
        let mut interfaces = 0;
        for slot in 0..MAX_INTERFACES {
            if self.pins.interface_of(slot)?.is_some() {
                interfaces |= Fallback::bit(slot);
            }
        }
        // Some packet may still be judged by a word that was pending, and so by the last fallback.
        self.rcu.synchronize()?;
        let within = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
        self.fallback.store(&Fallback {
            until: kernel_clock_coarse().saturating_add(within),
            word: current.encode(),
            interfaces,
            bypassed: 0,
        });
        // Whoever sees the bit below sees all of the above.
        self.rcu.synchronize()?;
        self.control.store(Control {
            pending: true,
            ..current
        });
        Ok(())
    }

    /// The change that waits, by whichever process it was made.
    pub fn pending(&self) -> Option<PendingConfirm> {
        pending(self.control.load(), &self.fallback.load())
    }

    /// Makes the change that waits stay. Where nothing waits nothing happens; too late is an error.
    pub fn confirm(&mut self) -> Result<()> {
        let control = self.control.load();
        let Some(pending) = self.pending() else {
            return Ok(());
        };
        if pending.fell_back {
            bail_with!(
                NotConfirmed,
                "too late: the change was rolled back, since it was not confirmed in time"
            );
        }
        let fallback = self.fallback.load();
        let _pin_lock = self.pins.lock_exclusive()?;
        // While they are still spared: a plain word would judge what they receive.
        for slot in (0..MAX_INTERFACES).filter(|&slot| fallback.bypassed & Fallback::bit(slot) != 0)
        {
            self.detach_slot(slot)?;
        }
        self.control.store(Control {
            pending: false,
            ..control
        });
        if !self.tracks {
            self.disable_all_tracking()?;
        }
        self.free(pending.back_to)
    }

    /// Makes what was before the change what is in force, for good, whether the time is over or not. If
    /// nothing was, everything passes until the interfaces are detached.
    pub fn fall_back(&mut self) -> Result<()> {
        let control = self.control.load();
        if !control.pending {
            bail_with!(
                NothingPending,
                "no change is pending, so there is nothing to roll back"
            );
        }
        // From here on the kernel judges by it, whatever becomes of this process.
        self.fallback.end();
        let fallback = self.fallback.load();
        let back_to = fallback.rollback_target();
        let _pin_lock = self.pins.lock_exclusive()?;
        if !back_to.open {
            // While everything passes there: a plain word would judge what they receive.
            for slot in 0..MAX_INTERFACES {
                if fallback.interfaces & Fallback::bit(slot) == 0 {
                    self.detach_slot(slot)?;
                }
            }
        }
        self.flip(Control {
            generation: self.next_generation(),
            ..back_to
        });
        self.published = None; // that was of the other slot
        self.tracks = back_to.return_traffic == ReturnTraffic::Track;
        if !self.tracks {
            self.disable_all_tracking()?;
        }
        self.free(control)
    }

    /// What packets are judged by now.
    pub(super) fn effective(&self) -> Control {
        effective(self.control.load(), &self.fallback.load())
    }

    /// Whether a fallback needs to know what this host sends.
    pub(super) fn fallback_tracks(&self) -> bool {
        self.pending()
            .is_some_and(|pending| pending.back_to.return_traffic == ReturnTraffic::Track)
    }

    /// Whether the fallback filters what is in a slot.
    pub(super) fn fallback_filters(&self, slot: u32) -> bool {
        self.control.load().pending && self.fallback.load().interfaces & Fallback::bit(slot) != 0
    }

    /// Lets everything pass in a slot that the fallback filters, until the change is confirmed or its time is over.
    ///
    /// # Returns
    /// Whether it did not pass before.
    pub(super) fn bypass(&self, slot: u32) -> bool {
        let (control, fallback) = (self.control.load(), self.fallback.load());
        let is_news = pending(control, &fallback).is_some_and(|pending| !pending.fell_back)
            && !is_open(control, &fallback, slot);
        self.fallback.set_bypassed(slot, true);
        is_news
    }

    /// Takes the program off what is in a slot, if anything is.
    fn detach_slot(&mut self, slot: u32) -> Result<()> {
        let pin = self.pins.link(slot);
        if is_pinned(&pin)? {
            take_off(&pin)?;
            self.disable_tracking(slot)?;
            self.forget(slot)?;
        }
        Ok(())
    }

    fn disable_all_tracking(&mut self) -> Result<()> {
        for slot in 0..MAX_INTERFACES {
            if self.interfaces.get(&slot, 0)?.egress != 0 {
                self.disable_tracking(slot)?;
            }
        }
        Ok(())
    }

    /// Frees the memory of a generation that is not in force any more.
    fn free(&mut self, old: Control) -> Result<()> {
        if old.open || old.generation == 0 || old.slot == self.control.load().slot {
            return Ok(());
        }
        self.rcu.synchronize()?;
        self.prefixes.empty(&self.pins, old.slot)?;
        TrieSlots::empty(&self.pins, old.slot)
    }
}
