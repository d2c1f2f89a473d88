//! Marks flows that the other side initiates while everything passes, so that replies to them do not make
//! them this host's own.
//!
//! Invariant: called only for packets that pass although nothing allows them, or to a service whose ports this
//! host connects from too; never for one that is dropped. The table is bounded, and the flow tracker does
//! not depend on it alone: see `allowlist_common::flow`.

use allowlist_common::abi::ControlBits;
use allowlist_common::flow::{Flow, FlowEntry, UDP_IDLE};
use allowlist_common::packet::{Contents, UDP};
use aya_ebpf::Global;

use crate::maps::{CROWDING, FLOWS, FOREIGN, FOREIGN_PORTS, MARKING, is_served};
use crate::{clock, frames, track};

/// How many CPUs the kernel may have.
#[unsafe(no_mangle)]
static CPUS: Global<u32> = Global::new(1);

/// Marks the flow of the packet that was parsed last on this CPU, unless this host initiated it.
///
/// `is_allowed` is whether a service's source sent it: then only a flow of UDP that the flow tracker
/// could take for this host's own is marked.
///
/// VERIFIER: a function of its own, so that what led to the decision is forgotten here.
#[inline(never)]
pub(crate) fn mark_inbound(word: u64, is_allowed: u32) {
    let Some(Ok(Contents::Ip(packet))) = frames::last_parsed().map(|parsed| parsed.contents())
    else {
        return;
    };
    let Some(flow) = Flow::from_inbound(&packet) else {
        return;
    };
    if is_allowed != 0
        && (flow.protocol != UDP || is_served(ControlBits(word), flow.protocol, flow.local_port))
    {
        return;
    }
    let now = clock::seconds();
    if track::lookup(&FLOWS, &flow).is_some_and(|entry| entry.is_alive(now)) {
        return;
    }
    mark(&flow.foreign(), FlowEntry::foreign(flow.protocol, now), now);
    if flow.has_foreign_port()
        && let Some(port) = FOREIGN_PORTS.get_ptr_mut(flow.local_port.into())
    {
        let until = now + UDP_IDLE;
        // SAFETY: 4 aligned bytes in the map's element, stored at once. Other CPUs store as much or a second less.
        unsafe {
            if (*port).received != until {
                (*port).received = until;
            }
        }
    }
}

/// Writes the mark of a flow, unless it has it already.
#[inline(always)]
pub(crate) fn mark(key: &Flow, after: FlowEntry, now: u32) {
    let before = track::lookup(&FOREIGN, key).map_or(FlowEntry::NONE, |entry| entry);
    if before.is_equivalent_to(after) {
        return;
    }
    if !before.is_some() {
        count(now);
    }
    // Fails when the map is busy; the next packet tries again.
    let _ = FOREIGN.insert(key, after, 0);
}

/// Counts a new mark.
#[inline(always)]
fn count(now: u32) {
    let (Some(crowding), Some(marking)) = (CROWDING.get_ptr_mut(0), MARKING.get_ptr_mut(0)) else {
        return;
    };
    // SAFETY: this CPU's own copy, and no other program interrupts this one on it.
    if unsafe { (*crowding).count(CPUS.load(), now) } {
        // SAFETY: the map's one element; 8 aligned bytes, stored at once. Other CPUs store as much or a second less.
        unsafe { (&raw mut (*marking).crowded_until).write_volatile(u64::from(now + UDP_IDLE)) };
    }
}
