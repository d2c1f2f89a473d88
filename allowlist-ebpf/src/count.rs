//! Counting a packet's end: by interface, by the sources that let it in, by its service.
//!
//! Invariant: every counter is this CPU's own copy, so nothing is lost, whatever the others do.

use allowlist_common::abi::Traffic;
use allowlist_common::judge::Decision;
use allowlist_common::verdict::Verdict;

use crate::clock;
use crate::maps::{COUNTERS, INTERFACE, MATCHES, SERVICE_COUNTS};

/// Counts a packet that passes: once under its interface and reason, once under what let it in, and once under its
/// service.
#[inline(always)]
pub(crate) fn passed(decision: &Decision, bytes: u64) {
    end(Verdict::Pass, decision);
    if decision.match_id == 0 {
        return;
    }
    let now = clock::nanoseconds();
    if let Some(traffic) = MATCHES.get_ptr_mut(decision.match_id) {
        // SAFETY: this CPU's own copy, and no other program runs on this CPU meanwhile.
        add(unsafe { &mut *traffic }, bytes, now);
    }
    if decision.service != 0
        && let Some(traffic) = SERVICE_COUNTS.get_ptr_mut(decision.service)
    {
        // SAFETY: as above.
        add(unsafe { &mut (*traffic).passed }, bytes, now);
    }
}

/// Counts a packet that is dropped, or would be: once under its interface and reason, and once under its service.
#[inline(always)]
pub(crate) fn dropped(decision: &Decision, bytes: u64) {
    end(Verdict::Drop, decision);
    if decision.service != 0
        && let Some(traffic) = SERVICE_COUNTS.get_ptr_mut(decision.service)
    {
        // SAFETY: this CPU's own copy, and no other program runs on this CPU meanwhile.
        unsafe {
            (*traffic).dropped_packets += 1;
            (*traffic).dropped_bytes += bytes;
        }
    }
}

/// The verdict is a constant wherever this is called, which spares a multiplication.
#[inline(always)]
fn end(verdict: Verdict, decision: &Decision) {
    if let Some(counters) = COUNTERS.get_ptr_mut(INTERFACE.load()) {
        // SAFETY: as above.
        unsafe { *(*counters).cell(verdict, decision.reason) += 1 };
    }
}

#[inline(always)]
const fn add(traffic: &mut Traffic, bytes: u64, now: u64) {
    traffic.packets += 1;
    traffic.bytes += bytes;
    traffic.last = now;
}
