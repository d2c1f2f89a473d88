//! The kernel programs: the XDP program that judges every received frame (this file), and the flow tracker, which
//! records the flows that this host initiates (`track`).
//!
//! `allowlist_common` makes the decisions; this crate gives it access to packet memory and maps, counts the decisions
//! and returns the XDP action. One copy of the program is loaded for each interface, with the interface slot as a
//! load-time constant, so counting by interface needs no lookup.
//!
//! Invariants: the control word is read once per packet; every packet is counted exactly once; the programs do not
//! block, have no unbounded loops, and do not write to frames.
#![no_std]
#![no_main]
#![allow(
    unsafe_code,
    reason = "packet memory, map values and symbols for the loader; each block has a SAFETY comment"
)]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "aya's macros generate undocumented items"
)]

mod count;
mod events;
mod foreign;
mod frames;
mod key;
mod maps;
mod trace;
mod track;
mod tries;

use allowlist_common::abi::ControlBits;
use allowlist_common::judge::{Decision, judge};
use allowlist_common::packet::{Contents, Packet};
use allowlist_common::verdict::{Reason, Verdict};
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::maps::ActiveGeneration;

/// Judges a received frame, and returns the XDP action.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro passes the context by value"
)]
#[xdp(frags)]
#[inline(always)]
pub fn allowlist(ctx: XdpContext) -> u32 {
    // Two closures, so that the code is compiled for each family.
    if let Some(verdict) = frames::parse_fast(
        &ctx,
        |packet, length| fast_path(&ctx, packet, length),
        |packet, length| fast_path(&ctx, packet, length),
    ) {
        return verdict;
    }
    // VERIFIER: parse before loading anything else, because the verifier walks the parser once per state at its entry.
    let (Some(parsed), Some(control)) = (frames::parse(&ctx), maps::control()) else {
        return internal_error();
    };
    let stored = control.bits();
    let word = maps::effective_control(stored);
    let decision = if word.is_open() {
        Decision::OPEN
    } else if let Some(generation) = ActiveGeneration::of(word, &ctx) {
        judge(&parsed.contents(), &generation)
    } else {
        Decision::INTERNAL_ERROR
    };
    if trace::is_on() {
        trace::log(&ctx, &decision);
    }
    if decision.verdict == Verdict::Drop {
        events::emit(&ctx, control, decision.reason);
    }
    if decision.marks_foreign(word, stored.is_pending_or_open()) {
        let is_allowed = decision.reason == Reason::Allowed;
        foreign::mark_inbound(word.0, u32::from(is_allowed));
    }
    record_and_return(&decision, parsed.length().into(), word)
}

/// Judges a packet that the fast path's parser accepted, and returns the XDP action; `None` for a packet that needs the
/// slow path: the trace is on, a reader waits for events, or the control word requires it.
///
/// Nearly all packets take the fast path, also in a flood. Both paths make the same decision.
#[inline(always)]
fn fast_path(ctx: &XdpContext, packet: Packet, length: u64) -> Option<u32> {
    let control = maps::control()?;
    let word = control.bits();
    if trace::is_on() || !word.allows_fast_path() || control.events_until() != 0 {
        return None;
    }
    let generation = ActiveGeneration::of(word, ctx)?;
    let decision = judge(&Ok(Contents::Ip(packet)), &generation);
    Some(record_and_return(&decision, length, word))
}

/// Counts a decision and returns its XDP action: the only exit for judged packets.
#[inline(always)]
fn record_and_return(decision: &Decision, length: u64, word: ControlBits) -> u32 {
    match decision.verdict {
        Verdict::Pass => {
            count::record_pass(decision, length);
            XDP_PASS
        }
        Verdict::Drop => {
            count::record_drop(decision, length);
            if word.observes() { XDP_PASS } else { XDP_DROP }
        }
    }
}

/// Counts an internal error, and returns the action that drops the packet. Never called in practice: a map would have
/// to be missing.
#[inline(always)]
fn internal_error() -> u32 {
    count::record_drop(&Decision::INTERNAL_ERROR, 0);
    XDP_DROP
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // VERIFIER: optimisation removes all panics; if one remained, the kernel would refuse this infinite loop at load.
    loop {}
}

/// Some helpers, including those for aya-log's ring buffer, require a GPL-compatible licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
