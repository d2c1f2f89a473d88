//! Packet counters: by interface, verdict and reason; by match id; by service.
//!
//! Invariant: every counter is per CPU, so concurrent updates are not lost.

use allowlist_common::abi::Traffic;
use allowlist_common::judge::Decision;
use allowlist_common::verdict::Verdict;

use crate::maps::{COUNTERS, INTERFACE, MATCHES, SERVICE_COUNTS};
use allowlist_ebpf::clock;

/// Counts a packet that passes: under its interface and reason, under its match id, and under its service.
#[inline(always)]
pub(crate) fn record_pass(decision: &Decision, bytes: u64) {
    record(Verdict::Pass, decision);
    if decision.match_id == 0 {
        return;
    }
    let now = clock::nanoseconds();
    if let Some(traffic) = MATCHES.get_ptr_mut(decision.match_id) {
        // SAFETY: this CPU's copy, and no other program runs on this CPU at the same time.
        add(unsafe { &mut *traffic }, bytes, now);
    }
    if decision.service != 0
        && let Some(traffic) = SERVICE_COUNTS.get_ptr_mut(decision.service)
    {
        // SAFETY: as above.
        add(unsafe { &mut (*traffic).passed }, bytes, now);
    }
}

/// Counts a packet that is dropped (or would be, in observe mode): under its interface and reason, and under its
/// service.
#[inline(always)]
pub(crate) fn record_drop(decision: &Decision, bytes: u64) {
    record(Verdict::Drop, decision);
    if decision.service != 0
        && let Some(traffic) = SERVICE_COUNTS.get_ptr_mut(decision.service)
    {
        // SAFETY: this CPU's copy, and no other program runs on this CPU at the same time.
        unsafe {
            (*traffic).dropped_packets += 1;
            (*traffic).dropped_bytes += bytes;
        }
    }
}

/// Counts a packet under its interface, verdict and reason. `verdict` is a constant at each call, which avoids a
/// multiplication.
#[inline(always)]
fn record(verdict: Verdict, decision: &Decision) {
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
