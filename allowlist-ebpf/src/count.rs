//! Counting a packet's end: by interface, by the sources that let it in, by its service.
//!
//! Invariant: every counter is this CPU's own copy, so nothing is lost, whatever the others do.

use allowlist_common::abi::Traffic;
use allowlist_common::judge::Decision;
use allowlist_common::verdict::Verdict;

use crate::clock;
use crate::maps::{COUNTERS, INTERFACE, MATCHES, SERVICE_COUNTS};

/// Counts one packet: once under its interface, verdict and reason, once under what let it in, and
/// once under its service.
#[inline(always)]
pub(crate) fn count(decision: &Decision, bytes: u32) {
    let Decision {
        verdict,
        reason,
        matched,
        service,
    } = *decision;
    let bytes = u64::from(bytes);
    if let Some(counters) = COUNTERS.get_ptr_mut(INTERFACE.load()) {
        // SAFETY: this CPU's own copy, and no other program runs on this CPU meanwhile.
        unsafe { *(*counters).cell(verdict, reason) += 1 };
    }
    if matched != 0 {
        let now = clock::nanoseconds();
        if let Some(traffic) = MATCHES.get_ptr_mut(matched) {
            // SAFETY: as above.
            add(unsafe { &mut *traffic }, bytes, now);
        }
        if service != 0
            && let Some(traffic) = SERVICE_COUNTS.get_ptr_mut(service)
        {
            // SAFETY: as above.
            add(unsafe { &mut (*traffic).passed }, bytes, now);
        }
    } else if service != 0
        && verdict == Verdict::Drop
        && let Some(traffic) = SERVICE_COUNTS.get_ptr_mut(service)
    {
        // SAFETY: as above.
        unsafe {
            (*traffic).dropped_packets += 1;
            (*traffic).dropped_bytes += bytes;
        }
    }
}

#[inline(always)]
const fn add(traffic: &mut Traffic, bytes: u64, now: u64) {
    traffic.packets += 1;
    traffic.bytes += bytes;
    traffic.last = now;
}
