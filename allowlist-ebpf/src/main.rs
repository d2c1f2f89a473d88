//! The kernel programs: one verdict for every frame that an interface receives (this file), and a
//! note of what this host sends, so that answers can be told (`sent`).
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
mod frames;
mod key;
mod maps;
mod ranges;
mod sent;
mod trace;
mod tries;

use allowlist_common::abi::Control;
use allowlist_common::judge::{Decision, judge};
use allowlist_common::verdict::Verdict;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::frames::Parsed;
use crate::maps::Generation;

/// The entry point for received frames.
#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[xdp(frags)]
pub fn allowlist(ctx: XdpContext) -> u32 {
    // VERIFIER: parsed before anything else is known, since parsing is walked once for each way to it.
    let Some(parsed) = frames::parsed(&ctx) else {
        return unknown();
    };
    let Some(control) = maps::control() else {
        return unknown();
    };
    let decision = if control.open {
        Decision::OPEN
    } else {
        decide(&ctx, &parsed, control).unwrap_or(Decision::INTERNAL_ERROR)
    };
    if trace::is_on() {
        trace::log(&ctx, &decision);
    }
    count::count(&decision, parsed.length);
    if control.observe || decision.verdict == Verdict::Pass {
        XDP_PASS
    } else {
        XDP_DROP
    }
}

/// For a program that lacks one of its maps, which the kernel never lets happen.
#[inline(always)]
fn unknown() -> u32 {
    count::count(&Decision::INTERNAL_ERROR, 0);
    XDP_DROP
}

/// What becomes of a frame; `None` where tables are missing, which they never are once published.
#[inline(always)]
fn decide(ctx: &XdpContext, parsed: &Parsed, control: Control) -> Option<Decision> {
    let generation = Generation::of(control, ctx)?;
    let decision = judge(&parsed.contents, &generation);
    if decision.verdict == Verdict::Drop {
        events::tell(decision.reason);
    }
    Some(decision)
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
