//! Commit confirm in the kernel: the control word that replaces an unconfirmed change at its deadline.
//!
//! Read only while the control word is pending or open. Invariant: userspace rewrites all fields only while no packet
//! is judged by a pending word; while a change is pending, it stores single fields.

use super::Control;
use crate::volatile::{VolatileRef, field};

/// The fallback of a pending change: when, on which interfaces and to which control word the kernel rolls it back.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fallback {
    /// The deadline for the confirmation, in nanoseconds of the monotonic clock.
    pub until: u64,
    /// The control word that is effective after the deadline; if its generation is 0, all packets pass.
    pub word: u64,
    /// The interface slots that were filtered before the change, one bit each. After the deadline, all packets pass on
    /// other interfaces.
    pub interfaces: u64,
    /// The slots in `interfaces` that the change does not filter: all packets pass there until the deadline.
    pub bypassed: u64,
}

/// The control word with which all packets pass.
const OPEN: u64 = Control {
    open: true,
    ..Control::NONE
}
.encode();

impl Fallback {
    /// Reports whether the deadline has passed at `now`.
    #[inline(always)]
    pub const fn is_expired(&self, now: u64) -> bool {
        now >= self.until
    }

    /// Returns the bit of an interface slot.
    #[inline(always)]
    pub const fn bit(slot: u32) -> u64 {
        1 << (slot % u64::BITS)
    }

    /// Returns the effective control word of an interface slot at `now`, while the map [`CONTROL`](super::CONTROL) has
    /// `word`.
    #[inline(always)]
    pub const fn effective(&self, word: u64, slot: u32, now: u64) -> u64 {
        if !Control::decode(word).pending {
            word
        } else if self.is_expired(now) {
            if self.interfaces & Self::bit(slot) == 0 {
                OPEN
            } else {
                self.rollback_target().encode()
            }
        } else if self.bypassed & Self::bit(slot) != 0 {
            OPEN
        } else {
            word
        }
    }

    /// Returns the control word that is effective for the egress policy at `now`, while the map has `word`.
    ///
    /// The egress policy belongs to no interface, so after the deadline every call is judged by the control word from
    /// before the change.
    #[inline(always)]
    pub const fn effective_for_egress(&self, word: u64, now: u64) -> u64 {
        if Control::decode(word).pending && self.is_expired(now) {
            self.rollback_target().encode()
        } else {
            word
        }
    }

    /// Returns the control word after the deadline, on interfaces that were filtered before the change.
    #[inline(always)]
    pub const fn rollback_target(&self) -> Control {
        let control = Control::decode(self.word);
        Control {
            pending: false,
            open: control.open || control.generation == 0,
            ..control
        }
    }
}

impl VolatileRef<'_, Fallback> {
    /// Loads each field once. The result is consistent while the control word is pending.
    #[inline(always)]
    pub fn load_fields(self) -> Fallback {
        Fallback {
            until: field!(self, until).load(),
            word: field!(self, word).load(),
            interfaces: field!(self, interfaces).load(),
            bypassed: field!(self, bypassed).load(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Control = Control {
        generation: 7,
        slot: 1,
        ..Control::NONE
    };
    const CHANGE: Control = Control {
        generation: 8,
        slot: 2,
        pending: true,
        ..Control::NONE
    };

    #[track_caller]
    fn check(before: Control, word: Control, slot: u32, now: u64, expected: Control) {
        let fallback = Fallback {
            until: 1000,
            word: before.encode(),
            interfaces: Fallback::bit(0) | Fallback::bit(1) | Fallback::bit(63),
            bypassed: Fallback::bit(1),
        };
        let effective = Control::decode(fallback.effective(word.encode(), slot, now));
        assert_eq!(effective, expected, "slot {slot} at {now}");
    }

    #[test]
    fn the_change_is_effective_until_the_deadline() {
        for slot in [0, 2, 62, 63] {
            check(BEFORE, CHANGE, slot, 999, CHANGE);
        }
    }

    #[test]
    fn the_fallback_is_effective_from_the_deadline() {
        for now in [1000, 1001, u64::MAX] {
            for slot in [0, 1, 63] {
                check(BEFORE, CHANGE, slot, now, BEFORE);
            }
        }
    }

    #[test]
    fn all_packets_pass_on_unfiltered_interfaces() {
        let open = Control::decode(OPEN);
        check(BEFORE, CHANGE, 2, 1000, open);
        check(BEFORE, CHANGE, 1, 999, open);
        check(Control::NONE, CHANGE, 0, 1000, open);
        let was_open = Control {
            open: true,
            ..BEFORE
        };
        check(was_open, CHANGE, 0, 1000, was_open);
    }

    #[test]
    fn a_confirmed_word_has_no_deadline() {
        let confirmed = Control {
            pending: false,
            ..CHANGE
        };
        for slot in [0, 1, 2] {
            check(BEFORE, confirmed, slot, 2000, confirmed);
            let open = Control {
                open: true,
                ..confirmed
            };
            check(BEFORE, open, slot, 2000, open);
        }
    }
}
