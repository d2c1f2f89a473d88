//! Minimal filters for the flood through an interface. `drop_trie` looks up the frame's source in the kernel's trie and
//! counts the verdict.

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
    let (Some(source), Some(tally)) = (source, Tally::get()) else {
        return XDP_DROP;
    };
    // SAFETY: `at` has compared the pointer with the frame's end, and bytes have no alignment.
    let source = unsafe { *source };
    if trie::find4(u32::from_be_bytes(source)) == 0 {
        tally.drop();
        XDP_DROP
    } else {
        tally.pass();
        XDP_PASS
    }
}

/// Drops and counts each packet without reading it: measures the interface's own cost per packet.
#[xdp]
pub fn drop_all(_ctx: XdpContext) -> u32 {
    if let Some(tally) = Tally::get() {
        tally.drop();
    }
    XDP_DROP
}
