//! Generates a flood of UDP over IPv4 from a template: writes the next source address of the array into each frame, and
//! redirects it to an interface. Run with `BPF_F_TEST_XDP_LIVE_FRAMES`.

use aya_ebpf::bindings::xdp_action::XDP_ABORTED;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::frame::{self, ETHERNET, IPV4, SOURCE};
use crate::maps::{self, Tally};

/// An IPv4 header as 16-bit words, and the indices of the words that are written.
type Header = [u16; IPV4 / 2];
const CHECKSUM: usize = 5;
const SOURCE_HIGH: usize = SOURCE / 2;

/// The index of the output interface. `XDP_TX` is no alternative: it needs an XDP program on the input interface too.
#[btf_map]
static PORT: Array<u32, 1> = Array::new();

#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    if !frame::is_ipv4(&ctx) {
        return XDP_ABORTED;
    }
    let (Some(header), Some(tally)) = (frame::at::<Header>(&ctx, ETHERNET), Tally::get()) else {
        return XDP_ABORTED;
    };
    let (Some(source), Some(port)) = (maps::next_v4(tally), PORT.get(0)) else {
        return XDP_ABORTED;
    };
    // SAFETY: `at` has compared the pointer with the frame's end; 14 bytes after a page's headroom, so aligned to 2.
    let header = unsafe { &mut *header };
    header[SOURCE_HIGH] = ((source >> 16) as u16).to_be();
    header[SOURCE_HIGH + 1] = (source as u16).to_be();
    // Pages are reused, and still have the previous checksum.
    header[CHECKSUM] = 0;
    header[CHECKSUM] = checksum(header);
    // SAFETY: the helper has no pointer arguments.
    unsafe { bpf_redirect(*port, 0).cast_unsigned() as u32 }
}

/// Returns the checksum of big-endian words, in big-endian order (RFC 1071).
#[inline(always)]
fn checksum(header: &Header) -> u16 {
    let sum: u32 = header.iter().map(|word| u32::from(*word)).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !(folded as u16)
}
