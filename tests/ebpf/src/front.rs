//! Programs that stand before the one that is measured: they write the next source of the array into the frame
//! and hand it on, so that one burst of `BPF_PROG_TEST_RUN` meets many sources in a program that reads its frames.

use aya_ebpf::bindings::xdp_action::XDP_ABORTED;
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::frame;
use crate::maps::{self, Tally};

/// What is measured.
#[btf_map]
static SUBJECT: ProgramArray<1> = ProgramArray::new();
/// Where a frame has its source: behind a VLAN tag, further back.
#[btf_map]
static SOURCE_AT: Array<u32, 1> = Array::new();

/// VERIFIER: gives the offset a bound; no frame has its source behind it.
const MAX_OFFSET: u32 = 63;

#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[xdp(frags)]
pub fn front4(ctx: XdpContext) -> u32 {
    hand_on(&ctx, |tally| Some(maps::next_v4(tally)?.to_be_bytes()))
}

#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[xdp(frags)]
pub fn front6(ctx: XdpContext) -> u32 {
    hand_on(&ctx, |tally| Some(maps::next_v6(tally)?.map(u64::to_be)))
}

#[inline(always)]
fn hand_on<T>(ctx: &XdpContext, source: impl FnOnce(&mut Tally) -> Option<T>) -> u32 {
    let (Some(tally), Some(at)) = (Tally::here(), SOURCE_AT.get(0)) else {
        return XDP_ABORTED;
    };
    let (Some(room), Some(source)) = (
        frame::at::<T>(ctx, (*at & MAX_OFFSET) as usize),
        source(tally),
    ) else {
        return XDP_ABORTED;
    };
    // SAFETY: in the frame, by `at`; the loader's machine has no alignment to keep.
    unsafe { room.write_unaligned(source) };
    // SAFETY: nothing is left to be done here.
    unsafe { SUBJECT.tail_call(ctx, 0) };
    XDP_ABORTED // there was none
}
