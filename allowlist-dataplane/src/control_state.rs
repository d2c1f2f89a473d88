//! The control word with its fallback: which generation decides about packets now, and to which one the kernel rolls
//! back.

use allowlist_common::abi::{Control, Fallback, ReturnTraffic, SLOTS};

use super::commit_confirm::{PendingConfirm, effective, is_open, pending};
use super::control_map::{FallbackMap, PublishedControl};

/// The control word and the fallback of a pending change.
pub(super) struct ControlState {
    word: PublishedControl,
    fallback: FallbackMap,
}

impl ControlState {
    pub(super) const fn new(word: PublishedControl, fallback: FallbackMap) -> Self {
        Self { word, fallback }
    }

    /// Returns the control word that was stored last.
    pub(super) fn load(&self) -> Control {
        self.word.load()
    }

    /// Stores a control word.
    pub(super) fn store(&self, control: Control) {
        self.word.store(control);
    }

    /// Stores the published control word again if another process has changed the control word. Returns whether it was
    /// changed.
    pub(super) fn restore(&self) -> bool {
        self.word.restore()
    }

    /// Returns whether the filter is being, or was, detached on purpose.
    pub(super) fn is_detached(&self) -> bool {
        self.word.is_detached()
    }

    /// Returns the fallback, which has an effect only while the control word is pending (an unconfirmed change).
    pub(super) fn fallback(&self) -> Fallback {
        self.fallback.load()
    }

    /// Stores the fallback. Call it only while the control word is not pending.
    pub(super) fn set_fallback(&self, fallback: &Fallback) {
        self.fallback.store(fallback);
    }

    /// Sets the deadline of the pending change to the past, so that the fallback is effective at once.
    pub(super) fn end_fallback(&self) {
        self.fallback.end();
    }

    /// Sets whether all packets pass, while a change is pending, in an interface slot that was filtered before the
    /// change ([`Fallback::bypassed`]).
    pub(super) fn set_bypassed(&self, slot: u32, is_bypassed: bool) {
        self.fallback.set_bypassed(slot, is_bypassed);
    }

    /// Returns the change that is pending or was not confirmed in time; `None` if there is none.
    pub(super) fn pending(&self) -> Option<PendingConfirm> {
        pending(self.load(), &self.fallback())
    }

    /// Returns a slot that is neither active nor needed for a rollback.
    pub(super) fn idle_slot(&self) -> u32 {
        let current = self.load();
        let kept = current
            .pending
            .then(|| self.fallback().rollback_target().slot);
        (0..SLOTS)
            .find(|&slot| slot != current.slot && Some(slot) != kept)
            .expect("there are three, and two are in use at most")
    }

    /// Returns the control word that decides about packets on interfaces that were filtered before a pending change.
    pub(super) fn effective(&self) -> Control {
        effective(self.load(), &self.fallback())
    }

    /// Returns whether there is an unconfirmed change, pending or past its deadline, whose fallback tracks flows.
    pub(super) fn fallback_tracks(&self) -> bool {
        self.pending()
            .is_some_and(|pending| pending.back_to.return_traffic == ReturnTraffic::Track)
    }

    /// Returns whether there is an unconfirmed change, pending or past its deadline, whose fallback filters an
    /// interface slot.
    pub(super) fn fallback_filters(&self, slot: u32) -> bool {
        self.load().pending && self.fallback().interfaces & Fallback::bit(slot) != 0
    }

    /// Lets all packets pass in an interface slot that the fallback filters, until the pending change is confirmed or
    /// rolled back.
    ///
    /// Returns whether the pending change filtered packets in the slot until now; false after the change's deadline.
    pub(super) fn bypass(&self, slot: u32) -> bool {
        let (control, fallback) = (self.load(), self.fallback());
        let is_news = pending(control, &fallback).is_some_and(|pending| !pending.fell_back)
            && !is_open(control, &fallback, slot);
        self.set_bypassed(slot, true);
        is_news
    }
}
