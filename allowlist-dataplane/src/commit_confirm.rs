//! Commit confirm: the kernel rolls a change back unless it is confirmed in time, also if this process ends.
//!
//! Invariants: while a change is pending, the slot of its fallback is not written to, and the links and the flow
//! tables that the fallback needs stay. The maps alone hold the pending change, so any later process finds it.

use std::time::Duration;

use allowlist_common::abi::{Control, Fallback, MAX_INTERFACES, ReturnTraffic};
use allowlist_policy::error_code::bail_with;

use super::Dataplane;
use super::clock::kernel_clock_coarse;
use super::link::take_off;
use super::pins::is_pinned;
use crate::error::Result;

/// A pending change, or one that was not confirmed in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingConfirm {
    /// The time that is left to confirm the change; zero after the deadline.
    pub left: Duration,
    /// Whether the deadline has passed, so that the kernel uses the fallback.
    pub fell_back: bool,
    /// The control word to which the change is rolled back.
    pub back_to: Control,
}

/// Returns the change that is pending or was not confirmed in time, from the values of the maps; `None` if there is
/// none.
pub(super) fn pending(control: Control, fallback: &Fallback) -> Option<PendingConfirm> {
    let now = kernel_clock_coarse();
    control.pending.then(|| PendingConfirm {
        left: Duration::from_nanos(fallback.until.saturating_sub(now)),
        fell_back: fallback.is_expired(now),
        back_to: fallback.rollback_target(),
    })
}

/// Returns the control word that decides about packets on interfaces that were filtered before the change: `control`,
/// or the fallback's after the deadline.
pub(super) fn effective(control: Control, fallback: &Fallback) -> Control {
    match pending(control, fallback) {
        Some(pending) if pending.fell_back => pending.back_to,
        _ => control,
    }
}

/// Returns the control word whose metadata describes the counters: the effective word, or the word of the rolled-back
/// change if every packet passes now.
pub(super) fn described(control: Control, fallback: &Fallback) -> Control {
    let active = effective(control, fallback);
    if active.open { control } else { active }
}

/// Returns whether all packets pass in an interface slot although the program is attached there.
///
/// This is so while a pending change does not filter the slot's interface, and after the deadline of a change that
/// added the interface and was not confirmed.
pub(super) fn is_open(control: Control, fallback: &Fallback, slot: u32) -> bool {
    Control::decode(fallback.effective(control.encode(), slot, kernel_clock_coarse())).open
}

impl Dataplane {
    /// Makes the kernel roll back to the current generation, mode and interfaces, unless [`Self::confirm`] is called
    /// `within` this time.
    ///
    /// Call it before the change. The rollback does not need this process. Without a current generation, all packets
    /// pass after the rollback. A previous change whose deadline has passed is first rolled back permanently.
    ///
    /// # Errors
    /// Fails if another change is pending.
    pub fn arm_rollback(&mut self, within: Duration) -> Result<()> {
        match self.pending() {
            Some(pending) if pending.fell_back => self.fall_back()?,
            Some(pending) => bail_with!(
                ChangePending,
                "another change is pending, and is rolled back in {} s unless it is confirmed; confirm it with `allowlist confirm` or wait, then try again",
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
        // A packet may still be using an earlier pending word, and so the last fallback.
        self.tables.rcu.synchronize()?;
        let within = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
        self.control.set_fallback(&Fallback {
            until: kernel_clock_coarse().saturating_add(within),
            word: current.encode(),
            interfaces,
            bypassed: 0,
        });
        // A packet that reads the bit below must find all of the above.
        self.tables.rcu.synchronize()?;
        self.control.store(Control {
            pending: true,
            ..current
        });
        Ok(())
    }

    /// Returns the change that is pending or was not confirmed in time, made by this or another process; `None` if
    /// there is none.
    pub fn pending(&self) -> Option<PendingConfirm> {
        self.control.pending()
    }

    /// Confirms the pending change. Does nothing if none is pending.
    ///
    /// # Errors
    /// Fails if the deadline has passed, so that the change was rolled back.
    pub fn confirm(&mut self) -> Result<()> {
        let control = self.control.load();
        let Some(pending) = self.pending() else {
            return Ok(());
        };
        if pending.fell_back {
            bail_with!(
                NotConfirmed,
                "too late: the change was rolled back, since it was not confirmed in time; make the change again"
            );
        }
        let fallback = self.control.fallback();
        let _pin_lock = self.pins.lock_exclusive()?;
        // While they are still bypassed: under a word without the pending bit, their packets would be dropped.
        for slot in (0..MAX_INTERFACES).filter(|&slot| fallback.bypassed & Fallback::bit(slot) != 0)
        {
            self.detach_slot(slot)?;
        }
        self.control.store(Control {
            pending: false,
            ..control
        });
        if !self.tracking.is_on {
            self.disable_all_tracking()?;
        }
        if control.egress.is_none() {
            self.egress.detach(&self.pins)?;
        }
        self.free(pending.back_to)
    }

    /// Rolls the pending change back permanently, before or after its deadline.
    ///
    /// If there was no generation before the change, all packets pass until the interfaces are detached.
    ///
    /// # Errors
    /// Fails if there is neither a pending change nor one that was not confirmed in time.
    pub fn fall_back(&mut self) -> Result<()> {
        let control = self.control.load();
        if !control.pending {
            bail_with!(
                NothingPending,
                "no change is pending, so there is nothing to roll back"
            );
        }
        // From here on the kernel uses the fallback, also if this process ends.
        self.control.end_fallback();
        let fallback = self.control.fallback();
        let back_to = fallback.rollback_target();
        let _pin_lock = self.pins.lock_exclusive()?;
        if !back_to.open {
            // While every packet passes there: under a word without the pending bit, some would be dropped.
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
        self.egress.forget_published();
        self.tables.published = None; // that was of the other slot
        self.tracking.is_on = back_to.return_traffic == ReturnTraffic::Track;
        if !self.tracking.is_on {
            self.disable_all_tracking()?;
        }
        if back_to.egress.is_none() {
            self.egress.detach(&self.pins)?;
        }
        self.free(control)
    }

    /// Detaches the program from the interface in an interface slot, if it is attached.
    fn detach_slot(&mut self, slot: u32) -> Result<()> {
        let pin = self.pins.link(slot);
        if is_pinned(&pin)? {
            take_off(&pin)?;
            self.disable_tracking(slot)?;
            self.interfaces.forget(slot)?;
        }
        Ok(())
    }

    fn disable_all_tracking(&mut self) -> Result<()> {
        for slot in self.interfaces.tracked()? {
            self.disable_tracking(slot)?;
        }
        Ok(())
    }

    /// Frees the memory of the generation of `old`, which is no longer active.
    fn free(&mut self, old: Control) -> Result<()> {
        if old.open || old.generation == 0 || old.slot == self.control.load().slot {
            return Ok(());
        }
        self.tables.free(&self.pins, old.slot)
    }
}
