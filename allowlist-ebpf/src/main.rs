//! The XDP program: one verdict for every frame that an interface receives.
//!
//! Everything that decides is `allowlist_common`'s; this file gives it the frame's bytes and the
//! maps, counts what it says, and carries it out. One copy is loaded for each interface, with the
//! interface's slot as a constant, so counting by interface costs no lookup.
//!
//! Invariants: one control word is read once a packet; every packet is counted exactly once;
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

mod maps;
mod trace;

use allowlist_common::frame::Frame;
use allowlist_common::judge::{Decision, judge};
use allowlist_common::packet::parse;
use allowlist_common::verdict::Verdict;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::maps::Generation;

/// The entry point.
#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[xdp]
pub fn allowlist(ctx: XdpContext) -> u32 {
    let frame = PacketMemory {
        start: ctx.data(),
        end: ctx.data_end(),
    };
    let control = maps::control();
    let decision = match control.and_then(Generation::of) {
        Some(generation) => decide(&ctx, &frame, &generation),
        None => Decision::INTERNAL_ERROR,
    };
    maps::count(&decision, frame.length() as u64);
    let observe = control.is_some_and(|control| control.observe);
    if observe || decision.verdict == Verdict::Pass {
        XDP_PASS
    } else {
        XDP_DROP
    }
}

#[inline(always)]
fn decide(ctx: &XdpContext, frame: &PacketMemory, generation: &Generation) -> Decision {
    let parsed = parse(frame);
    let decision = judge(&parsed, generation);
    if trace::is_on() {
        trace::log(ctx, &parsed, &decision);
    }
    decision
}

/// The frame where the driver left it.
struct PacketMemory {
    start: usize,
    end: usize,
}

impl Frame for PacketMemory {
    #[inline(always)]
    fn length(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // VERIFIER: an offset into a packet must have a known bound below 64 KiB before it is added.
        const MAX_OFFSET: usize = 0x7fff;
        if offset > MAX_OFFSET {
            return None;
        }
        let at = self.start + offset;
        if at + N > self.end {
            return None;
        }
        // SAFETY: `at` is inside the packet's memory, and so are the N - 1 bytes behind it: just
        // compared with its end. An array of bytes has no alignment to keep.
        Some(unsafe { *(at as *const [u8; N]) })
    }
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
