//! Marks flows that the other side initiates as foreign, so that this host's replies do not make them own flows.
//!
//! Invariant: marks the flows of packets that pass without being allowed, and of packets to services whose ports this
//! host also connects from; never the flow of a dropped packet. The table is bounded, and the flow tracker does not
//! depend on it alone: see `allowlist_common::flow`.

use allowlist_common::abi::ControlBits;
use allowlist_common::flow::{Flow, FlowEntry, UDP_IDLE};
use allowlist_common::packet::{Contents, UDP};
use aya_ebpf::Global;

use crate::maps::{CROWDING, FLOWS, FOREIGN, FOREIGN_PORTS, MARKING, is_served, volatile};
use allowlist_ebpf::clock;

use crate::{frames, track};

/// The number of possible CPUs.
#[unsafe(no_mangle)]
static CPUS: Global<u32> = Global::new(1);

/// Marks the flow of the packet that was parsed last on this CPU, unless this host initiated it.
///
/// If the packet is allowed (`is_allowed` is not 0), marks only UDP flows, and only those that the flow tracker could
/// record as own flows.
///
/// VERIFIER: a separate function, so that the verifier forgets the state that led to the decision.
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
        if volatile(port.cast_const()).load_fields().received != until {
            // SAFETY: an aligned 4-byte store to the map's element. Other CPUs store the same time or one second less.
            unsafe { (&raw mut (*port).received).write_volatile(until) };
        }
    }
}

/// Writes the mark of a flow, its entry in [`FOREIGN`], unless the mark is up to date.
#[inline(always)]
pub(crate) fn mark(key: &Flow, after: FlowEntry, now: u32) {
    let before = track::lookup(&FOREIGN, key).map_or(FlowEntry::NONE, |entry| entry);
    if before.is_equivalent_to(after) {
        return;
    }
    if !before.is_some() {
        count(now);
    }
    // Fails under contention; the flow's next packet tries again.
    let _ = FOREIGN.insert(key, after, 0);
}

/// Counts a new mark of a foreign flow. If older marks may have been evicted, extends the time in [`MARKING`] until
/// which marks may be missing.
#[inline(always)]
fn count(now: u32) {
    let (Some(crowding), Some(marking)) = (CROWDING.get_ptr_mut(0), MARKING.get_ptr_mut(0)) else {
        return;
    };
    // SAFETY: this CPU's copy, and no other program interrupts this one.
    if unsafe { (*crowding).count(CPUS.load(), now) } {
        // SAFETY: an aligned 8-byte store to the map's only element. Other CPUs store the same time or one second less.
        unsafe { (&raw mut (*marking).crowded_until).write_volatile(u64::from(now + UDP_IDLE)) };
    }
}
