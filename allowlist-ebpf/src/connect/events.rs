//! Events of judged calls: emitted to a ring buffer while the lease of a reader includes them, up to a budget per CPU
//! and window.
//!
//! Invariant: without a reader, a call costs one additional load and one comparison.

use allowlist_common::abi::{
    EVENTS_PER_WINDOW, EgressEvent, EventBudget, PackedCall, window as window_of,
};
use allowlist_ebpf::clock;
use allowlist_ebpf::control::volatile;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
    bpf_get_current_uid_gid,
};

use crate::count::increment;
use crate::maps::{EGRESS_BUDGET, EGRESS_EVENTS, EGRESS_LEASE};

/// Emits an event for a judged call, if a reader wants one.
#[inline(always)]
pub(crate) fn emit(call: &PackedCall) {
    let Some(lease) = EGRESS_LEASE.get_ptr(0).map(volatile) else {
        return; // never: the kernel does not load a program with a missing map
    };
    let until = lease.until(call.verdict());
    if until != 0 {
        let [high, low] = call.destination;
        emit_before(until, high, low, call.properties, call.ids);
    }
}

/// VERIFIER: a separate function with numbers as arguments, because it is a cold path, and so that the path without a
/// reader stores nothing to the stack.
#[inline(never)]
fn emit_before(until: u64, high: u64, low: u64, properties: u64, ids: u64) {
    let now = clock::nanoseconds();
    if now >= until {
        return; // the reader is gone and did not reset the lease
    }
    let Some(budget) = EGRESS_BUDGET.get_ptr_mut(0) else {
        return;
    };
    if !is_within(budget, window_of(now)) {
        return suppress(budget);
    }
    let Some(mut entry) = EGRESS_EVENTS.reserve(0) else {
        return suppress(budget);
    };
    let event = entry.write(EgressEvent::EMPTY);
    event.time = now;
    PackedCall {
        destination: [high, low],
        properties,
        ids,
    }
    .describe(event);
    // SAFETY: none of the helpers has pointer arguments.
    let (process, user) = unsafe {
        event.cgroup = bpf_get_current_cgroup_id();
        (bpf_get_current_pid_tgid(), bpf_get_current_uid_gid())
    };
    event.process = (process >> 32) as u32;
    event.user = user as u32;
    // SAFETY: the helper writes at most the size of the array to it, with a zero at the end. If it fails, it writes
    // zeros.
    unsafe {
        let command = &raw mut event.command;
        bpf_get_current_comm(command.cast(), size_of_val(&event.command) as u32);
    }
    entry.submit(0);
}

/// Takes one event from this CPU's budget for a window; returns false if the budget is exhausted.
///
/// A program of a cgroup can be preempted by another one on the same CPU, which changes the same budget. Then an
/// increment may be lost, and a few more events are emitted than the budget permits, which is harmless: the memory of
/// the ring buffer is the limit.
#[inline(always)]
fn is_within(budget: *mut EventBudget, window: u64) -> bool {
    // SAFETY: the map lookup returned the pointer. No reference is created, since another program may change the value.
    unsafe {
        let emitted = &raw mut (*budget).emitted;
        let present = &raw mut (*budget).window;
        if present.read_volatile() != window {
            present.write_volatile(window);
            emitted.write_volatile(0);
        }
        let count = emitted.read_volatile();
        if count >= EVENTS_PER_WINDOW {
            return false;
        }
        emitted.write_volatile(count + 1);
    }
    true
}

/// Counts an event that is not emitted. Exact, so that a reader can report all calls.
#[inline(always)]
fn suppress(budget: *mut EventBudget) {
    // SAFETY: the map lookup returned the pointer; every program changes the counter by atomic additions only.
    increment(unsafe { &mut (*budget).suppressed });
}
