//! A frame where the kernel has it, and what is parsed from it.
//!
//! Mostly it lies in one piece, and headers are read where they are. A jumbo frame can be in several: then
//! its first piece is shorter than the packet, which looks malformed; the start of such a frame is copied
//! into one piece, and parsed once more.
//!
//! VERIFIER: it walks every path through a program, and what one path knows of a number keeps it apart
//! from all others. So each half of parsing leaves what it found in a map's memory: of that the verifier
//! knows nothing, and walks what follows once. What is hardly ever done is a function of its own. What is
//! done for every packet is none, since a call costs as much as the work.

use allowlist_common::flow::Flow;
use allowlist_common::frame::Frame;
use allowlist_common::packet::{
    self, Address, Addresses, Contents, Malformed, PackedMeta, PackedPacket, Packet, Quote,
    parse_network, parse_transport,
};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::generated::{bpf_skb_pull_data, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::{TcContext, XdpContext};

/// What `v4` or `v6` make of a frame that is a plain packet, and of its length in bytes; `None` for others.
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

/// Any frame. `None` is for a map that is missing, which none ever is.
#[inline(always)]
pub(crate) fn parse<Context: Buffer>(ctx: &Context) -> Option<ParsedScratch> {
    let scratch = PARSED.get_ptr_mut(0)?;
    store_parsed(ctx, scratch);
    let parsed = ParsedScratch(scratch);
    if parsed.meta().is_malformed() {
        // Perhaps not all of its headers are in the first piece.
        ctx.parse_beyond_linear_part(scratch.cast());
    }
    Some(parsed)
}

/// What [`parsed`] found last on this CPU.
#[inline(always)]
pub(crate) fn last_parsed() -> Option<ParsedScratch> {
    PARSED.get_ptr(0).map(ParsedScratch)
}

/// What parsing left in the map's memory.
pub(crate) struct ParsedScratch(*const PackedWords);

impl ParsedScratch {
    /// What the frame carries.
    ///
    /// VERIFIER: to be taken apart at once. Kept, it would have fields that only some kinds of packets set, and
    /// the compiler would copy for the others whatever happens to be in a register.
    #[inline(always)]
    pub(crate) fn contents(&self) -> Result<Contents, Malformed> {
        load_packed(self.0).unpack()
    }

    /// The frame's bytes, all pieces together.
    #[inline(always)]
    pub(crate) fn length(&self) -> u32 {
        self.meta().length()
    }

    /// Why the frame is malformed; `None` where it is not.
    #[inline(always)]
    pub(crate) fn cause(&self) -> Option<Malformed> {
        self.meta().cause()
    }

    #[inline(always)]
    fn meta(&self) -> PackedMeta {
        // SAFETY: inside what it has place for.
        load_meta(unsafe { &raw const (*self.0.cast::<PackedPacket>()).meta })
    }
}

/// The flow that an ICMP error from `source` is about, by what the received frame quotes.
#[inline(always)]
pub(crate) fn quoted_flow(ctx: &XdpContext, quote: Quote, source: Address) -> Option<Flow> {
    let scratch = QUOTED.get_ptr_mut(0)?;
    let at = quote.encode(source);
    if quoted_in_linear_part(ctx, at, scratch.cast()) == 0
        && quoted_in_linearized(ctx, at, scratch.cast()) == 0
    {
        return None;
    }
    // SAFETY: just written, by the one that says so.
    Some(unsafe { *scratch.cast() })
}

/// The addresses in the first piece of a malformed frame, or in its start where it is in several.
#[inline(always)]
pub(crate) fn addresses(ctx: &XdpContext) -> Option<Addresses> {
    packet::read_addresses(&LinearPart::of(ctx))
        .or_else(|| LinearizedFrame::copy(ctx).and_then(|copy| packet::read_addresses(&copy)))
}

// In words, since BTF could not describe the values.
type PackedWords = [u64; size_of::<PackedPacket>() / 8];
#[btf_map]
static PARSED: PerCpuArray<PackedWords, 1> = PerCpuArray::new();
#[btf_map]
static QUOTED: PerCpuArray<[u64; size_of::<Flow>() / 8], 1> = PerCpuArray::new();

/// Leaves what is parsed from a frame's first piece for [`ParsedScratch`].
#[inline(always)]
fn store_parsed<Context: Buffer>(ctx: &Context, scratch: *mut PackedWords) {
    store_network(&LinearPart::of(ctx), scratch.cast());
    store_transport(&LinearPart::of(ctx), scratch.cast());
}

#[inline(always)]
fn store_network<F: Frame>(frame: &F, scratch: *mut u64) {
    let found = parse_network(frame);
    let flat = PackedPacket::from_network(&found, frame.length() as u32);
    // SAFETY: `scratch` has place for it, and is this CPU's own.
    unsafe { scratch.cast::<PackedPacket>().write(flat) };
}

#[inline(always)]
fn store_transport<F: Frame>(frame: &F, scratch: *mut u64) {
    // SAFETY: inside what `scratch` has place for.
    let meta = unsafe { &raw mut (*scratch.cast::<PackedPacket>()).meta };
    let found = load_meta(meta);
    if let Some((family, protocol, header)) = found.unparsed_transport() {
        let found = found.with_parsed_transport(parse_transport(frame, family, protocol, header));
        // SAFETY: as above.
        unsafe { meta.write(found) };
    }
}

/// What was left of the network layer, but for the addresses: as [`load_packed`].
#[inline(always)]
fn load_meta(scratch: *const PackedMeta) -> PackedMeta {
    let mut words = [0_u64; size_of::<PackedMeta>() / 8];
    for (at, word) in words.iter_mut().enumerate() {
        // SAFETY: this CPU's own, and inside the value, by the loop's bound.
        *word = unsafe { scratch.cast::<u64>().add(at).read_volatile() };
    }
    // SAFETY: as large, and integers only, so any bits are one.
    unsafe { core::mem::transmute::<[u64; size_of::<PackedMeta>() / 8], PackedMeta>(words) }
}

/// What was left.
///
/// VERIFIER: every word is loaded, and at once. Else the compiler loads what one kind of packet has on
/// that kind's path alone, and computes with what happens to be in the register on the others.
#[inline(always)]
fn load_packed(scratch: *const PackedWords) -> PackedPacket {
    let mut words: PackedWords = [0; _];
    for (at, word) in words.iter_mut().enumerate() {
        // SAFETY: this CPU's own, and inside the array, by the loop's bound.
        *word = unsafe { scratch.cast::<u64>().add(at).read_volatile() };
    }
    // SAFETY: as large, and integers only, so any bits are one.
    unsafe { core::mem::transmute::<PackedWords, PackedPacket>(words) }
}

/// Parses the copied start of a frame in pieces; leaves a frame in one piece as it was parsed.
#[inline(never)]
fn parse_linearized(ctx: &XdpContext, scratch: *mut u64) {
    if let Some(copy) = LinearizedFrame::copy(ctx) {
        store_linearized_network(copy.copy, copy.length, scratch);
        store_linearized_transport(copy.copy, scratch);
    }
}

/// Parses a sent frame whose headers are not all in the first piece, with them moved there. Hardly ever
/// done: it makes the kernel copy the piece.
#[inline(never)]
fn parse_pulled(ctx: &TcContext, scratch: *mut u64) {
    let headers = HEADER_BYTES.min(ctx.length());
    // SAFETY: the context is this program's own; its pointers are read anew. On failure the frame is as it
    // was, and so is what is parsed.
    unsafe { bpf_skb_pull_data(ctx.as_ptr().cast(), headers as u32) };
    store_parsed(ctx, scratch.cast());
}

#[inline(never)]
fn store_linearized_network(copy: *const u64, length: usize, scratch: *mut u64) {
    store_network(&LinearizedFrame { copy, length }, scratch);
}

#[inline(never)]
fn store_linearized_transport(copy: *const u64, scratch: *mut u64) {
    let length = 0; // the network layer was compared with it
    store_transport(&LinearizedFrame { copy, length }, scratch);
}

#[inline(never)]
fn quoted_in_linear_part(ctx: &XdpContext, at: u64, scratch: *mut u64) -> u32 {
    store_quoted_flow(&LinearPart::of(ctx), at, scratch)
}

#[inline(never)]
fn quoted_in_linearized(ctx: &XdpContext, at: u64, scratch: *mut u64) -> u32 {
    match LinearizedFrame::copy(ctx) {
        Some(copy) => store_quoted_flow(&copy, at, scratch),
        None => 0,
    }
}

/// # Returns
/// 1 if there is a flow.
#[inline(always)]
fn store_quoted_flow<F: Frame>(frame: &F, at: u64, scratch: *mut u64) -> u32 {
    let Some(flow) = Quote::flow_encoded(at, frame) else {
        return 0;
    };
    // SAFETY: `scratch` has place for it, and is this CPU's own.
    unsafe { scratch.cast::<Flow>().write(flow) };
    1
}

/// Where a frame comes from.
pub(crate) trait Buffer {
    /// Where its first piece starts and ends.
    ///
    /// VERIFIER: loaded anew for each use. What was read through a pointer keeps apart all paths on which
    /// it is still known.
    fn bounds(&self) -> (usize, usize);
    /// Bytes of all its pieces, where that costs no call; else of the first.
    fn length(&self) -> usize;
    /// Leaves what is parsed from all that can be reached of it.
    fn parse_beyond_linear_part(&self, scratch: *mut u64);
}

impl Buffer for XdpContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the context is this program's own.
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

/// The first piece of a frame, which mostly is the only one.
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
        // VERIFIER: an offset into a packet must have a known bound below 64 KiB before it is added. The
        // mask changes nothing: eight extension headers of 2 KiB do not reach so far.
        const MAX_OFFSET: usize = 0x7fff;
        let at = self.start + (offset & MAX_OFFSET);
        if at + N > self.end {
            return None;
        }
        // SAFETY: `at` is inside the packet's memory, and so are the N - 1 bytes behind it: just
        // compared with its end. An array of bytes has no alignment to keep.
        Some(read(unsafe { &*(at as *const [u8; N]) }))
    }
}

/// How much of a frame in pieces is copied: all headers of any packet that somebody sends. Deeper
/// ones are malformed.
const HEADER_BYTES: usize = 512;

/// The copied start of a frame, and how much of it there is.
#[repr(C)]
struct HeaderBuf {
    bytes: [u8; HEADER_BYTES],
    /// VERIFIER: never used. A read begins at any of `bytes`, for all that is known of it, and ends here.
    longest_read: [u8; 24],
    copied: usize,
}

#[btf_map]
static HEADER_BUF: PerCpuArray<HeaderBuf, 1> = PerCpuArray::new();

/// A frame in pieces, by a copy of its start.
struct LinearizedFrame {
    /// A [`HeaderBuf`]; so that BTF need not describe it once more.
    copy: *const u64,
    /// Of all pieces.
    length: usize,
}

impl LinearizedFrame {
    /// Copies the start of a frame; `None` for a frame in one piece.
    #[inline(always)]
    fn copy(ctx: &XdpContext) -> Option<Self> {
        // SAFETY: the context is this program's own.
        let length = unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) as usize };
        if ctx.length() == length {
            return None;
        }
        let copy = HEADER_BUF.get_ptr_mut(0)?;
        let copied = if length < HEADER_BYTES {
            length
        } else {
            HEADER_BYTES
        };
        // SAFETY: this CPU's own, with scratch for as much; no other program runs on this CPU meanwhile.
        let failed = unsafe {
            (*copy).copied = copied;
            // VERIFIER: what was stored is not known any more, and the mask gives it bounds from 1 on. No
            // frame has a length of 0.
            let copied =
                (&raw const (*copy).copied).read_volatile().wrapping_sub(1) & (HEADER_BYTES - 1);
            bpf_xdp_load_bytes(
                ctx.as_ptr().cast(),
                0,
                (&raw mut (*copy).bytes).cast(),
                copied as u32 + 1,
            )
        };
        (failed == 0).then_some(Self {
            copy: copy.cast(),
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
        const { assert!(N <= 24, "longer than `HeaderBuf` has scratch for") };
        // SAFETY: `copy` is this CPU's own, and written before.
        let copied =
            unsafe { (&raw const (*self.copy.cast::<HeaderBuf>()).copied).read_volatile() };
        if offset + N > copied {
            return None;
        }
        // VERIFIER: the mask gives a bound; it changes nothing, since less than `HEADER_BYTES` is copied.
        let at = offset & (HEADER_BYTES - 1);
        // SAFETY: the N bytes at `offset` were copied: just compared. Nothing writes to them while this
        // frame is judged.
        Some(read(unsafe {
            &*self.copy.cast::<u8>().add(at).cast::<[u8; N]>()
        }))
    }
}
