//! Programs that run before the measured one: they write the next source address of the array into the frame and
//! tail-call the measured program, so that one `BPF_PROG_TEST_RUN` with many repetitions has many sources.

use aya_ebpf::bindings::xdp_action::XDP_ABORTED;
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::frame;
use crate::maps::{self, Tally};

/// The measured program.
#[btf_map]
static SUBJECT: ProgramArray<1> = ProgramArray::new();
/// The offset of the source address in the frame, which depends on the VLAN tag.
#[btf_map]
static SOURCE_AT: Array<u32, 1> = Array::new();

/// VERIFIER: a bound for the offset, which all frames of the benchmark satisfy.
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
    let (Some(tally), Some(at)) = (Tally::get(), SOURCE_AT.get(0)) else {
        return XDP_ABORTED;
    };
    let (Some(target), Some(source)) = (
        frame::at::<T>(ctx, (*at & MAX_OFFSET) as usize),
        source(tally),
    ) else {
        return XDP_ABORTED;
    };
    // SAFETY: `at` has compared the pointer with the frame's end, and the store may be unaligned.
    unsafe { target.write_unaligned(source) };
    // SAFETY: the context is this program's, and nothing has to be dropped.
    unsafe { SUBJECT.tail_call(ctx, 0) };
    XDP_ABORTED // SUBJECT has no program
}
