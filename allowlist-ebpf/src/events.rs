//! Drop events: emitted to a ring buffer while a reader has set a deadline, up to a budget per CPU and window.
//!
//! Invariant: without a reader, a drop costs one additional load and one comparison.

use allowlist_common::abi::{EVENTS_PER_WINDOW, Event, EventBudget, window};
use allowlist_common::packet::Contents;
use allowlist_common::verdict::Reason;
use aya_ebpf::programs::XdpContext;

use crate::maps::{ControlRef, EVENT_BUDGET, EVENTS, INTERFACE};
use allowlist_ebpf::clock;

use crate::frames;

/// Emits an event for the packet that was parsed last on this CPU, if there is a reader.
#[inline(always)]
pub(crate) fn emit(ctx: &XdpContext, control: ControlRef, reason: Reason) {
    let until = control.events_until();
    if until != 0 {
        emit_before(ctx, reason as u32, until);
    }
}

/// VERIFIER: a separate function, so that the verifier forgets the state that led to the drop.
#[inline(never)]
fn emit_before(ctx: &XdpContext, reason: u32, until: u64) {
    let now = clock::nanoseconds();
    if now >= until {
        return; // the reader is gone and did not reset the deadline
    }
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's copy, and no other program runs on this CPU at the same time.
    let budget = unsafe { &mut *budget };
    if !is_within(budget, window(now)) {
        budget.suppressed += 1;
        return;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        budget.suppressed += 1;
        return;
    };
    // Written in place, because an event does not fit on the stack.
    let event = entry.write(Event::EMPTY);
    event.time = now;
    event.interface = INTERFACE.load();
    event.reason = reason as u8;
    if let Some(parsed) = frames::last_parsed() {
        event.length = parsed.length();
        if let Some(cause) = parsed.cause() {
            event.cause = cause as u8;
            if let Some(addresses) = frames::addresses(ctx) {
                event.set_addresses(&addresses);
            }
        } else if let Ok(Contents::Ip(packet)) = parsed.contents() {
            event.describe(&packet);
        }
    }
    entry.submit(0);
}

/// Takes one event from this CPU's budget for a window; returns false if the budget is exhausted.
#[inline(always)]
const fn is_within(budget: &mut EventBudget, window: u64) -> bool {
    if budget.window != window {
        budget.window = window;
        budget.emitted = 0;
    }
    if budget.emitted >= EVENTS_PER_WINDOW {
        return false;
    }
    budget.emitted += 1;
    true
}
