//! The small filter that somebody would write with the kernel's trie, for the flood through an interface: the
//! frame's own source, one lookup, one count.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::frame::{self, ETHERNET, SOURCE};
use crate::maps::Tally;
use crate::trie;

#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[xdp(frags)]
pub fn drop_trie(ctx: XdpContext) -> u32 {
    if !frame::is_ipv4(&ctx) {
        return XDP_PASS;
    }
    let source = frame::at::<[u8; 4]>(&ctx, ETHERNET + SOURCE);
    let (Some(source), Some(tally)) = (source, Tally::here()) else {
        return XDP_DROP;
    };
    // SAFETY: in the frame, by `at`, and bytes need no alignment.
    let source = unsafe { *source };
    if trie::find4(u32::from_be_bytes(source)) == 0 {
        tally.drop();
        XDP_DROP
    } else {
        tally.pass();
        XDP_PASS
    }
}

/// What an interface itself takes for a packet: dropped and counted without a look at it.
#[xdp]
pub fn drop_all(_ctx: XdpContext) -> u32 {
    if let Some(tally) = Tally::here() {
        tally.drop();
    }
    XDP_DROP
}
