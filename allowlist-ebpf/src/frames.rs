//! Parses frames in the kernel's packet memory.
//!
//! Most frames are in one buffer, and headers are read in place. A jumbo frame can have several buffers (fragments of
//! an `xdp_buff` or skb): its first one, the *linear part*, is shorter than the packet, which makes the packet look
//! malformed. For such a frame, the first bytes are copied to a contiguous buffer and parsed again.
//!
//! VERIFIER: the verifier walks every path, and paths with different knowledge about a register do not merge. Each
//! parsing step therefore stores its result in map memory, about which the verifier knows nothing, and the code after
//! it is walked once. Cold paths are BPF-to-BPF calls; the hot path is fully inlined, because a call costs as much as
//! the work.

use allowlist_common::flow::Flow;
use allowlist_common::frame::Frame;
use allowlist_common::packet::wire::ipv4;
use allowlist_common::packet::{
    self, Address, Addresses, Contents, Malformed, PackedMeta, PackedPacket, Packet, Quote,
    parse_network, parse_transport,
};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::generated::{bpf_skb_pull_data, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::{TcContext, XdpContext};

/// Parses a frame with the fast path's parser, and returns the result of `v4` or `v6` for the packet and the frame's
/// size in bytes; `None` for a frame that needs [`parse`].
#[inline(always)]
pub(crate) fn parse_fast<T>(
    ctx: &XdpContext,
    v4: impl FnOnce(Packet, u64) -> Option<T>,
    v6: impl FnOnce(Packet, u64) -> Option<T>,
) -> Option<T> {
    let (start, end) = ctx.bounds();
    let length = end - start;
    let frame = LinearPart { start, end, length };
    let length = length as u64;
    packet::parse_fast(
        &frame,
        |packet| v4(packet, length),
        |packet| v6(packet, length),
    )
}

/// Parses any frame, and stores the result in this CPU's scratch memory.
///
/// Never `None` in practice: the kernel does not load a program with a missing map.
#[inline(always)]
pub(crate) fn parse<Context: Buffer>(ctx: &Context) -> Option<ParsedScratch> {
    let scratch = PARSED.get_ptr_mut(0)?;
    store_parsed(ctx, scratch);
    let parsed = ParsedScratch(scratch);
    if parsed.meta().is_malformed() {
        // The headers may continue after the linear part.
        ctx.parse_beyond_linear_part(scratch.cast());
    }
    Some(parsed)
}

/// Returns the result of the last [`parse`] on this CPU.
#[inline(always)]
pub(crate) fn last_parsed() -> Option<ParsedScratch> {
    PARSED.get_ptr(0).map(ParsedScratch)
}

/// The result of parsing, in map memory.
pub(crate) struct ParsedScratch(*const PackedWords);

impl ParsedScratch {
    /// Returns the contents of the frame.
    ///
    /// VERIFIER: match on the result at once. If it is kept, the compiler copies registers for fields that only some
    /// variants initialize, which the verifier refuses for the other variants.
    #[inline(always)]
    pub(crate) fn contents(&self) -> Result<Contents, Malformed> {
        load_packed(self.0).unpack()
    }

    /// Returns the frame's size in bytes.
    #[inline(always)]
    pub(crate) fn length(&self) -> u32 {
        self.meta().length()
    }

    /// Returns the reason why the parsed frame is malformed; `None` for a well-formed frame.
    #[inline(always)]
    pub(crate) fn cause(&self) -> Option<Malformed> {
        self.meta().cause()
    }

    #[inline(always)]
    fn meta(&self) -> PackedMeta {
        // SAFETY: the pointer is to a map value of the packed packet's size.
        load_meta(unsafe { &raw const (*self.0.cast::<PackedPacket>()).meta })
    }
}

/// Returns the flow of the packet that an ICMP error from `source` quotes; `None` if the quote does not identify one.
#[inline(always)]
pub(crate) fn quoted_flow(ctx: &XdpContext, quote: Quote, source: Address) -> Option<Flow> {
    let scratch = QUOTED.get_ptr_mut(0)?;
    let at = quote.encode(source);
    if quoted_in_linear_part(ctx, at, scratch.cast()) == 0
        && quoted_in_linearized(ctx, at, scratch.cast()) == 0
    {
        return None;
    }
    // SAFETY: one of the functions has written the flow, as its result states.
    Some(unsafe { *scratch.cast() })
}

/// Returns the addresses of a malformed frame, from its linear part or else from a copy of its first bytes; `None` if
/// they cannot be read from either.
#[inline(always)]
pub(crate) fn addresses(ctx: &XdpContext) -> Option<Addresses> {
    packet::read_addresses(&LinearPart::of(ctx))
        .or_else(|| LinearizedFrame::copy(ctx).and_then(|copy| packet::read_addresses(&copy)))
}

// Words, because the BTF of the value's own type is not supported.
type PackedWords = [u64; size_of::<PackedPacket>() / 8];
#[btf_map]
static PARSED: PerCpuArray<PackedWords, 1> = PerCpuArray::new();
#[btf_map]
static QUOTED: PerCpuArray<[u64; size_of::<Flow>() / 8], 1> = PerCpuArray::new();

/// Parses the linear part of a frame, and stores the result in `scratch`.
#[inline(always)]
fn store_parsed<Context: Buffer>(ctx: &Context, scratch: *mut PackedWords) {
    store_network(&LinearPart::of(ctx), scratch.cast());
    store_transport(&LinearPart::of(ctx), scratch.cast());
}

#[inline(always)]
fn store_network<F: Frame>(frame: &F, scratch: *mut u64) {
    let found = parse_network(frame);
    let packed = PackedPacket::from_network(&found, frame.length() as u32);
    // SAFETY: `scratch` has the size of a packed packet, and is this CPU's copy.
    unsafe { scratch.cast::<PackedPacket>().write(packed) };
}

#[inline(always)]
fn store_transport<F: Frame>(frame: &F, scratch: *mut u64) {
    // SAFETY: `scratch` has the size of a packed packet.
    let meta = unsafe { &raw mut (*scratch.cast::<PackedPacket>()).meta };
    let found = load_meta(meta);
    if let Some((family, protocol, header)) = found.unparsed_transport() {
        let found = found.with_parsed_transport(parse_transport(frame, family, protocol, header));
        // SAFETY: as above.
        unsafe { meta.write(found) };
    }
}

/// Loads all fields but the addresses, one word at a time as in [`load_packed`].
#[inline(always)]
fn load_meta(scratch: *const PackedMeta) -> PackedMeta {
    let mut words = [0_u64; size_of::<PackedMeta>() / 8];
    for (at, word) in words.iter_mut().enumerate() {
        // SAFETY: this CPU's copy, and inside the value by the loop's bound.
        *word = unsafe { scratch.cast::<u64>().add(at).read_volatile() };
    }
    // SAFETY: same size, and integers only, so every bit pattern is valid.
    unsafe { core::mem::transmute::<[u64; size_of::<PackedMeta>() / 8], PackedMeta>(words) }
}

/// Loads a packed packet from map memory.
///
/// VERIFIER: loads all words at once. Otherwise the compiler loads some words only on the paths that need them, and
/// computes with uninitialized registers on the others.
#[inline(always)]
fn load_packed(scratch: *const PackedWords) -> PackedPacket {
    let mut words: PackedWords = [0; _];
    for (at, word) in words.iter_mut().enumerate() {
        // SAFETY: this CPU's copy, and inside the array by the loop's bound.
        *word = unsafe { scratch.cast::<u64>().add(at).read_volatile() };
    }
    // SAFETY: same size, and integers only, so every bit pattern is valid.
    unsafe { core::mem::transmute::<PackedWords, PackedPacket>(words) }
}

/// Copies and parses the first bytes of a frame in several buffers; changes nothing for a frame in one buffer.
#[inline(never)]
fn parse_linearized(ctx: &XdpContext, scratch: *mut u64) {
    if let Some(frame) = LinearizedFrame::copy(ctx) {
        store_linearized_network(frame.buf, frame.length, scratch);
        store_linearized_transport(frame.buf, scratch);
    }
}

/// Parses an outbound frame whose headers continue after the linear part, after pulling them into it. Rare, and slow:
/// the kernel copies the linear part.
#[inline(never)]
fn parse_pulled(ctx: &TcContext, scratch: *mut u64) {
    let headers = HEADER_BYTES.min(ctx.length());
    // SAFETY: the context is this program's, and its pointers are loaded again afterwards. On failure, the frame and
    // the result are unchanged.
    unsafe { bpf_skb_pull_data(ctx.as_ptr().cast(), headers as u32) };
    store_parsed(ctx, scratch.cast());
}

#[inline(never)]
fn store_linearized_network(buf: *const u64, length: usize, scratch: *mut u64) {
    store_network(&LinearizedFrame { buf, length }, scratch);
}

#[inline(never)]
fn store_linearized_transport(buf: *const u64, scratch: *mut u64) {
    let length = 0; // not used: parsing the network header has checked the length
    store_transport(&LinearizedFrame { buf, length }, scratch);
}

#[inline(never)]
fn quoted_in_linear_part(ctx: &XdpContext, at: u64, scratch: *mut u64) -> u32 {
    store_quoted_flow(&LinearPart::of(ctx), at, scratch)
}

#[inline(never)]
fn quoted_in_linearized(ctx: &XdpContext, at: u64, scratch: *mut u64) -> u32 {
    match LinearizedFrame::copy(ctx) {
        Some(frame) => store_quoted_flow(&frame, at, scratch),
        None => 0,
    }
}

/// Stores the flow of the quoted packet in `scratch`; returns 1 on success, else 0.
#[inline(always)]
fn store_quoted_flow<F: Frame>(frame: &F, at: u64, scratch: *mut u64) -> u32 {
    let Some(flow) = Quote::flow_encoded(at, frame) else {
        return 0;
    };
    // SAFETY: `scratch` has the size of a flow, and is this CPU's copy.
    unsafe { scratch.cast::<Flow>().write(flow) };
    1
}

/// The context of a kernel program, through which the frame is read.
pub(crate) trait Buffer {
    /// Returns the start and the end of the linear part.
    ///
    /// VERIFIER: loaded again for each use. Knowledge about data that was read through a pointer keeps paths apart for
    /// as long as the pointer is live.
    fn bounds(&self) -> (usize, usize);
    /// Returns the frame's size in bytes if that needs no call, else the size of the linear part.
    fn length(&self) -> usize;
    /// Parses the frame again with bytes after the linear part, and stores the result in `scratch`.
    fn parse_beyond_linear_part(&self, scratch: *mut u64);
}

impl Buffer for XdpContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the context is this program's.
        unsafe {
            (
                (&raw const (*self.ctx).data).read_volatile() as usize,
                (&raw const (*self.ctx).data_end).read_volatile() as usize,
            )
        }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        let (start, end) = self.bounds();
        end - start
    }

    #[inline(always)]
    fn parse_beyond_linear_part(&self, scratch: *mut u64) {
        parse_linearized(self, scratch);
    }
}

impl Buffer for TcContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let skb = self.skb.skb;
        // SAFETY: as above.
        unsafe {
            (
                (&raw const (*skb).data).read_volatile() as usize,
                (&raw const (*skb).data_end).read_volatile() as usize,
            )
        }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.len() as usize
    }

    #[inline(always)]
    fn parse_beyond_linear_part(&self, scratch: *mut u64) {
        parse_pulled(self, scratch);
    }
}

/// The linear part of a frame: its first buffer, and in most cases the only one.
struct LinearPart {
    start: usize,
    end: usize,
    length: usize,
}

impl LinearPart {
    #[inline(always)]
    fn of<Context: Buffer>(ctx: &Context) -> Self {
        let (start, end) = ctx.bounds();
        let length = ctx.length();
        Self { start, end, length }
    }
}

impl Frame for LinearPart {
    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn read<const N: usize, T>(
        &self,
        offset: usize,
        read: impl FnOnce(&[u8; N]) -> T,
    ) -> Option<T> {
        // VERIFIER: an offset into a packet needs a known bound below 64 KiB. The mask never changes the value: eight
        // extension headers of 2 KiB are shorter.
        const MAX_OFFSET: usize = 0x7fff;
        let at = self.start + (offset & MAX_OFFSET);
        if at + N > self.end {
            return None;
        }
        // SAFETY: the N bytes at `at` are inside the packet's memory: compared with its end above. An array of bytes
        // has no alignment.
        Some(read(unsafe { &*(at as *const [u8; N]) }))
    }
}

/// The number of bytes that are copied from a frame in several buffers: enough for the headers of real packets. A frame
/// with headers after these bytes is malformed.
const HEADER_BYTES: usize = 512;

/// The maximum size of one read from these bytes, rounded up to words: a fixed IPv4 header.
const LONGEST_READ: usize = ipv4::HEADER.next_multiple_of(8);

/// The first bytes of a frame, and their number.
#[repr(C)]
struct HeaderBuf {
    bytes: [u8; HEADER_BYTES],
    /// VERIFIER: never read. For the verifier, a read may start at any of `bytes`, and end here.
    longest_read: [u8; LONGEST_READ],
    copied: usize,
}

#[btf_map]
static HEADER_BUF: PerCpuArray<HeaderBuf, 1> = PerCpuArray::new();

/// A frame in several buffers, of which the first bytes are in a [`HeaderBuf`].
struct LinearizedFrame {
    /// The [`HeaderBuf`]; a pointer to words, so that BTF does not describe the type again.
    buf: *const u64,
    /// The size of the whole frame in bytes.
    length: usize,
}

impl LinearizedFrame {
    /// Copies the first bytes of a frame; returns `None` for a frame in one buffer, or if the kernel cannot copy them.
    #[inline(always)]
    fn copy(ctx: &XdpContext) -> Option<Self> {
        // SAFETY: the context is this program's.
        let length = unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) as usize };
        if ctx.length() == length {
            return None;
        }
        let buf = HEADER_BUF.get_ptr_mut(0)?;
        let copied = if length < HEADER_BYTES {
            length
        } else {
            HEADER_BYTES
        };
        // SAFETY: this CPU's copy, which has the size; no other program runs on this CPU at the same time.
        let failed = unsafe {
            (*buf).copied = copied;
            // VERIFIER: reading the number back makes it unknown, and the mask then bounds it from 1. No frame has a
            // length of 0.
            let copied =
                (&raw const (*buf).copied).read_volatile().wrapping_sub(1) & (HEADER_BYTES - 1);
            bpf_xdp_load_bytes(
                ctx.as_ptr().cast(),
                0,
                (&raw mut (*buf).bytes).cast(),
                copied as u32 + 1,
            )
        };
        (failed == 0).then_some(Self {
            buf: buf.cast(),
            length,
        })
    }
}

impl Frame for LinearizedFrame {
    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn read<const N: usize, T>(
        &self,
        offset: usize,
        read: impl FnOnce(&[u8; N]) -> T,
    ) -> Option<T> {
        const { assert!(N <= LONGEST_READ, "longer than `HeaderBuf::longest_read`") };
        // SAFETY: `buf` is this CPU's copy, and was written before.
        let copied = unsafe { (&raw const (*self.buf.cast::<HeaderBuf>()).copied).read_volatile() };
        if offset + N > copied {
            return None;
        }
        // VERIFIER: the mask is a bound; it never changes the value, because at most `HEADER_BYTES` bytes are copied.
        let at = offset & (HEADER_BYTES - 1);
        // SAFETY: the N bytes at `offset` were copied: compared above. They are not written while this frame is judged.
        Some(read(unsafe {
            &*self.buf.cast::<u8>().add(at).cast::<[u8; N]>()
        }))
    }
}
