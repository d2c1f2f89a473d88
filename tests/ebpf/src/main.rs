//! Programs that exist to be measured by `cargo xtask bench`; nothing of them ships.
//!
//! - `bare` drops, and does nothing else
//! - `floor4`, `floor6` take the next address of an array, and count (this file)
//! - `trie4`, `trie6` look it up in the kernel's trie besides (`trie`)
//! - `ranges4`, `ranges6` look it up in the range table that ships (`range_table`, with the filter's own `ranges`)
//! - `drop_trie` is the small filter that somebody would write with that trie, `drop_all` the smallest (`small`)
//! - `generate` makes a flood (`generate`)
//! - `front4`, `front6` give a frame its source and hand it to the filter that ships, or to another (`front`)
//! - `linger` takes its time, for a test (`linger`)
//!
//! Addresses come from an array that userspace filled, and not from the frame, so that one burst of
//! `BPF_PROG_TEST_RUN` meets many: then caches and branch predictors see the traffic of a network. What
//! that costs is the floor, which is measured beside what is looked up.
//!
//! Invariant: what a lookup finds ends in a counter, so that no compiler leaves it out.
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

mod frame;
mod front;
mod generate;
#[path = "../../../allowlist-ebpf/src/key.rs"]
mod key;
mod linger;
mod maps;
mod range_table;
#[path = "../../../allowlist-ebpf/src/ranges.rs"]
mod ranges;
mod small;
mod trie;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::maps::Tally;

/// What the kernel itself takes for a packet.
#[xdp(frags)]
pub fn bare(_ctx: XdpContext) -> u32 {
    XDP_DROP
}

#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[xdp]
pub fn floor4(ctx: XdpContext) -> u32 {
    measure4(&ctx, |_| 0)
}

#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[xdp]
pub fn floor6(ctx: XdpContext) -> u32 {
    measure6(&ctx, |_| 0)
}

/// What every program does that is measured with IPv4 addresses; `look_up` gets one as a number, and says
/// what it found.
#[inline(always)]
fn measure4(ctx: &XdpContext, look_up: impl FnOnce(u32) -> u64) -> u32 {
    if !frame::is_ipv4(ctx) {
        return XDP_ABORTED;
    }
    let Some(tally) = Tally::here() else {
        return XDP_ABORTED;
    };
    let Some(address) = maps::next_v4(tally) else {
        return XDP_ABORTED;
    };
    tally.looked_up(u64::from(address), look_up(address));
    XDP_DROP
}

/// The same for IPv6: the halves of an address, the network first.
#[inline(always)]
fn measure6(ctx: &XdpContext, look_up: impl FnOnce([u64; 2]) -> u64) -> u32 {
    if !frame::is_ipv6(ctx) {
        return XDP_ABORTED;
    }
    let Some(tally) = Tally::here() else {
        return XDP_ABORTED;
    };
    let Some(address) = maps::next_v6(tally) else {
        return XDP_ABORTED;
    };
    tally.looked_up(address[0] ^ address[1], look_up(address));
    XDP_DROP
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // VERIFIER: no panic survives optimisation; if one did, this loop would be refused at load.
    loop {}
}

/// As the filter's own program has it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
