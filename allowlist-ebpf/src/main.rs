//! The kernel programs: one verdict for every frame that an interface receives (this file), and a
//! record of the flows that this host initiates, so that their answers pass (`sent`).
//!
//! Everything that decides is `allowlist_common`'s; this file gives it the frame's bytes and the
//! maps, counts what it says, and carries it out. One copy is loaded for each interface, with the
//! interface's slot as a constant, so counting by interface costs no lookup.
//!
//! Invariants: the control word is read once a packet; every packet is counted exactly once;
//! nothing here waits, loops without bound, or writes to the frame.
#![no_std]
#![no_main]
#![allow(
    unsafe_code,
    reason = "packet memory, map values and symbols for the loader: each use says why it is sound"
)]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "aya's macros add items of their own"
)]

mod clock;
mod count;
mod events;
mod foreign;
mod frames;
mod key;
mod maps;
mod ranges;
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

use crate::maps::{ControlRef, Generation};

/// The entry point for received frames.
#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[xdp(frags)]
#[inline(always)]
pub fn allowlist(ctx: XdpContext) -> u32 {
    // Two functions, so that each is compiled for its family.
    if let Some(verdict) = frames::parse_fast(
        &ctx,
        |packet, length| fast_path(&ctx, packet, length),
        |packet, length| fast_path(&ctx, packet, length),
    ) {
        return verdict;
    }
    // VERIFIER: parsed before anything else is known, since parsing is walked once for each way to it.
    let (Some(parsed), Some(control)) = (frames::parse(&ctx), ControlRef::get()) else {
        return internal_error();
    };
    let stored = control.bits();
    let word = maps::effective_control(stored);
    let decision = if word.is_open() {
        Decision::OPEN
    } else if let Some(generation) = Generation::of(word, &ctx) {
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

/// A plain packet, where nobody is control of it and the control word is plain too: what nearly all of any traffic, and
/// of any flood, comes to. The rest takes the longer way, and ends in the same decision.
#[inline(always)]
fn fast_path(ctx: &XdpContext, packet: Packet, length: u64) -> Option<u32> {
    let control = ControlRef::get()?;
    let word = control.bits();
    if trace::is_on() || !word.allows_fast_path() || control.events_deadline_ns() != 0 {
        return None;
    }
    let generation = Generation::of(word, ctx)?;
    let decision = judge(&Ok(Contents::Ip(packet)), &generation);
    Some(record_and_return(&decision, length, word))
}

/// Counts a decision, and carries it out.
#[inline(always)]
fn record_and_return(decision: &Decision, length: u64, word: ControlBits) -> u32 {
    match decision.verdict {
        Verdict::Pass => {
            count::passed(decision, length);
            XDP_PASS
        }
        Verdict::Drop => {
            count::dropped(decision, length);
            if word.observes() { XDP_PASS } else { XDP_DROP }
        }
    }
}

/// For a program that lacks one of its maps, which the kernel never lets happen.
#[inline(always)]
fn internal_error() -> u32 {
    count::dropped(&Decision::INTERNAL_ERROR, 0);
    XDP_DROP
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // VERIFIER: no panic survives optimisation; if one did, this loop would be refused at load.
    loop {}
}

/// Some helpers, and aya-log's ring buffer among them, are for GPL-compatible programs.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
