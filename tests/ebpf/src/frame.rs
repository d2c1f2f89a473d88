//! Minimal parsing for the benchmark programs: an Ethernet header without VLAN tags, and the IP header after it.

use aya_ebpf::programs::XdpContext;

/// The size of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// The size of an IPv4 header without options.
pub(crate) const IPV4: usize = 20;
/// The size of an IPv6 header.
const IPV6: usize = 40;
/// The offset of the Ethernet type in a frame.
const TYPE: usize = 12;
/// The offset of the source address in an IPv4 header.
pub(crate) const SOURCE: usize = 12;

/// Reports whether the frame has a complete IPv4 header.
#[inline(always)]
pub(crate) fn is_ipv4(ctx: &XdpContext) -> bool {
    is(ctx, [0x08, 0x00], IPV4)
}

/// Reports whether the frame has a complete IPv6 header.
#[inline(always)]
pub(crate) fn is_ipv6(ctx: &XdpContext) -> bool {
    is(ctx, [0x86, 0xdd], IPV6)
}

/// Returns a pointer to a value at `offset`; `None` if the frame ends before it.
#[inline(always)]
pub(crate) fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}

#[inline(always)]
fn is(ctx: &XdpContext, kind: [u8; 2], header: usize) -> bool {
    if ctx.data() + ETHERNET + header > ctx.data_end() {
        return false;
    }
    at::<[u8; 2]>(ctx, TYPE).is_some_and(|found| {
        // SAFETY: `at` has compared the pointer with the frame's end, and bytes have no alignment.
        unsafe { *found == kind }
    })
}
