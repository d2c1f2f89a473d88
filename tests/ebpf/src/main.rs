//! Programs for `cargo xtask bench` and for tests; they are not part of the product.
//!
//! - `bare` only drops
//! - `floor4`, `floor6` take the next address of an array, and count it (this file)
//! - `trie4`, `trie6` also look it up in the kernel's trie (`trie`)
//! - `ranges4`, `ranges6` also look it up in the product's range table (`range_table`, with the filter's own `ranges`)
//! - `drop_trie` is a minimal filter with the kernel's trie, `drop_all` the smallest possible one (`small`)
//! - `generate` generates a flood (`generate`)
//! - `front4`, `front6` write a source address into a frame and tail-call the measured filter (`front`)
//! - `empty_connect4`, `empty_sent`, `empty_received` do nothing at the hooks of the egress policy (`empty`)
//! - `linger` runs until userspace stops it, for a test (`linger`)
//!
//! Addresses come from an array that userspace has filled, not from the frame, so that one `BPF_PROG_TEST_RUN` with
//! many repetitions looks up many addresses, and caches and branch predictors behave as with real traffic. `floor4` and
//! `floor6` measure the cost of that alone.
//!
//! Invariant: the result of each lookup is added to a counter, so that the compiler cannot remove the lookup.
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

mod empty;
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

/// Measures the kernel's own cost per packet.
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

/// Looks up the next IPv4 address with `look_up`, which returns the result as a number, and counts the result.
#[inline(always)]
fn measure4(ctx: &XdpContext, look_up: impl FnOnce(u32) -> u64) -> u32 {
    if !frame::is_ipv4(ctx) {
        return XDP_ABORTED;
    }
    let Some(tally) = Tally::get() else {
        return XDP_ABORTED;
    };
    let Some(address) = maps::next_v4(tally) else {
        return XDP_ABORTED;
    };
    tally.record(u64::from(address), look_up(address));
    XDP_DROP
}

/// Looks up the next IPv6 address, as its upper and lower half, and counts the result.
#[inline(always)]
fn measure6(ctx: &XdpContext, look_up: impl FnOnce([u64; 2]) -> u64) -> u32 {
    if !frame::is_ipv6(ctx) {
        return XDP_ABORTED;
    }
    let Some(tally) = Tally::get() else {
        return XDP_ABORTED;
    };
    let Some(address) = maps::next_v6(tally) else {
        return XDP_ABORTED;
    };
    tally.record(address[0] ^ address[1], look_up(address));
    XDP_DROP
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // VERIFIER: optimisation removes all panics; if one remained, the kernel would refuse this infinite loop at load.
    loop {}
}

/// The same licence as the filter's programs.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
