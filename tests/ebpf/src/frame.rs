//! What little these programs know of a frame: an Ethernet header without tags, and the header after it.

use aya_ebpf::programs::XdpContext;

/// Of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Of an IPv4 header without options.
pub(crate) const IPV4: usize = 20;
/// Of an IPv6 header.
const IPV6: usize = 40;
/// Where a frame says what follows.
const TYPE: usize = 12;
/// Where an IPv4 header has its source.
pub(crate) const SOURCE: usize = 12;

/// Whether a whole IPv4 header follows.
#[inline(always)]
pub(crate) fn is_ipv4(ctx: &XdpContext) -> bool {
    is(ctx, [0x08, 0x00], IPV4)
}

/// Whether a whole IPv6 header follows.
#[inline(always)]
pub(crate) fn is_ipv6(ctx: &XdpContext) -> bool {
    is(ctx, [0x86, 0xdd], IPV6)
}

/// Bytes of the frame from `offset` on, if they are in it.
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
        // SAFETY: in the frame, as just compared, and bytes need no alignment.
        unsafe { *found == kind }
    })
}
