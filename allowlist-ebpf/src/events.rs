//! Drop events: control while somebody reads them, so many a CPU and window, the others counted.
//!
//! Invariant: with nobody reading, a drop costs one load and one comparison more.

use allowlist_common::abi::{EVENTS_PER_WINDOW, Event, EventBudget, window};
use allowlist_common::packet::Contents;
use allowlist_common::verdict::Reason;
use aya_ebpf::programs::XdpContext;

use crate::maps::{ControlRef, EVENT_BUDGET, EVENTS, INTERFACE};
use crate::{clock, frames};

/// Tells of the packet that was parsed last on this CPU, which is dropped, or would be.
#[inline(always)]
pub(crate) fn emit(ctx: &XdpContext, control: ControlRef, reason: Reason) {
    let until = control.events_deadline_ns();
    if until != 0 {
        emit_before(ctx, reason as u32, until);
    }
}

/// VERIFIER: a function of its own, so that what led to the drop is forgotten here.
#[inline(never)]
fn emit_before(ctx: &XdpContext, reason: u32, until: u64) {
    let now = clock::nanoseconds();
    if now >= until {
        return; // whoever read is gone, and did not say so
    }
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own copy, and no other program runs on this CPU meanwhile.
    let budget = unsafe { &mut *budget };
    if !is_within(budget, window(now)) {
        budget.suppressed += 1;
        return;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        budget.suppressed += 1;
        return;
    };
    // Filled in where it lies: the stack has no room for one.
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

/// Takes one event from the budget of its window, if there is one left.
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
