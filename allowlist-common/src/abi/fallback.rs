//! What the kernel goes back to by itself when nobody confirms a change in time: a dead man's switch.
//!
//! Looked at only where a control word is provisional. Invariant: it is changed as a whole only while no
//! packet is judged by a word that is pending; while one is, a part of it at a time is stored.

use super::Control;

/// What holds from a moment on, and on which interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fallback {
    /// When the time to confirm is over, in nanoseconds of the monotonic clock.
    pub until: u64,
    /// The control word that holds from then on; without a generation, everything passes.
    pub word: u64,
    /// The interface slots that were filtered before, a bit each. On others everything passes from then on.
    pub interfaces: u64,
    /// Of those, the slots that the change does not filter: everything passes there until then.
    pub bypassed: u64,
}

/// Everything passes.
const OPEN: u64 = Control {
    open: true,
    ..Control::NONE
}
.encode();

impl Fallback {
    /// Whether the time to confirm is over.
    #[inline(always)]
    pub const fn is_expired(&self, now: u64) -> bool {
        now >= self.until
    }

    /// The bit of an interface slot.
    #[inline(always)]
    pub const fn bit(slot: u32) -> u64 {
        1 << (slot % u64::BITS)
    }

    /// The word that packets of an interface slot are judged by, where CONTROL holds `word`.
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

    /// What holds once the time is over, on the interfaces that were filtered.
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
    fn until_the_time_is_over_the_change_holds() {
        for slot in [0, 2, 62, 63] {
            check(BEFORE, CHANGE, slot, 999, CHANGE);
        }
    }

    #[test]
    fn from_then_on_what_was_before() {
        for now in [1000, 1001, u64::MAX] {
            for slot in [0, 1, 63] {
                check(BEFORE, CHANGE, slot, now, BEFORE);
            }
        }
    }

    #[test]
    fn everything_passes_where_nothing_was_filtered() {
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
    fn a_word_that_waits_for_nobody_holds() {
        let plain = Control {
            pending: false,
            ..CHANGE
        };
        for slot in [0, 1, 2] {
            check(BEFORE, plain, slot, 2000, plain);
            let open = Control {
                open: true,
                ..plain
            };
            check(BEFORE, open, slot, 2000, open);
        }
    }
}
