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
    self, Address, Addresses, Contents, Flat, Malformed, Packet, Quote, Rest, parse_network,
    parse_transport,
};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::generated::{bpf_skb_pull_data, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::{TcContext, XdpContext};

/// What `v4` or `v6` make of a frame that is a plain packet, and of its length in bytes; `None` for others.
#[inline(always)]
pub(crate) fn plain<T>(
    ctx: &XdpContext,
    v4: impl FnOnce(Packet, u64) -> Option<T>,
    v6: impl FnOnce(Packet, u64) -> Option<T>,
) -> Option<T> {
    let (start, end) = ctx.bounds();
    let length = end - start;
    let frame = First { start, end, length };
    let length = length as u64;
    packet::plain(
        &frame,
        |packet| v4(packet, length),
        |packet| v6(packet, length),
    )
}

/// Any frame. `None` is for a map that is missing, which none ever is.
#[inline(always)]
pub(crate) fn parsed<Context: Buffer>(ctx: &Context) -> Option<Left> {
    let room = PARSED.get_ptr_mut(0)?;
    leave(ctx, room);
    let left = Left(room);
    if left.rest().is_malformed() {
        // Perhaps not all of its headers are in the first piece.
        ctx.parse_again(room.cast());
    }
    Some(left)
}

/// What [`parsed`] found last on this CPU.
#[inline(always)]
pub(crate) fn parsed_last() -> Option<Left> {
    PARSED.get_ptr(0).map(Left)
}

/// What parsing left in the map's memory.
pub(crate) struct Left(*const FlatWords);

impl Left {
    /// What the frame carries.
    ///
    /// VERIFIER: to be taken apart at once. Kept, it would have fields that only some kinds of packets set, and
    /// the compiler would copy for the others whatever happens to be in a register.
    #[inline(always)]
    pub(crate) fn contents(&self) -> Result<Contents, Malformed> {
        flat_in(self.0).parsed()
    }

    /// The frame's bytes, all pieces together.
    #[inline(always)]
    pub(crate) fn length(&self) -> u32 {
        self.rest().length()
    }

    /// Why the frame is malformed; `None` where it is not.
    #[inline(always)]
    pub(crate) fn cause(&self) -> Option<Malformed> {
        self.rest().cause()
    }

    #[inline(always)]
    fn rest(&self) -> Rest {
        // SAFETY: inside what it has place for.
        rest_in(unsafe { &raw const (*self.0.cast::<Flat>()).rest })
    }
}

/// The flow that an ICMP error from `source` is about, by what the received frame quotes.
#[inline(always)]
pub(crate) fn quoted(ctx: &XdpContext, quote: Quote, source: Address) -> Option<Flow> {
    let room = QUOTED.get_ptr_mut(0)?;
    let at = quote.encode(source);
    if quote_whole(ctx, at, room.cast()) == 0 && quote_copied(ctx, at, room.cast()) == 0 {
        return None;
    }
    // SAFETY: just written, by the one that says so.
    Some(unsafe { *room.cast() })
}

/// The addresses in the first piece of a malformed frame, or in its start where it is in several.
#[inline(always)]
pub(crate) fn addresses(ctx: &XdpContext) -> Option<Addresses> {
    packet::addresses(&First::piece(ctx))
        .or_else(|| Copied::start(ctx).and_then(|copy| packet::addresses(&copy)))
}

// In words, since BTF could not describe the values.
type FlatWords = [u64; size_of::<Flat>() / 8];
#[btf_map]
static PARSED: PerCpuArray<FlatWords, 1> = PerCpuArray::new();
#[btf_map]
static QUOTED: PerCpuArray<[u64; size_of::<Flow>() / 8], 1> = PerCpuArray::new();

/// Leaves what is parsed from a frame's first piece for [`Left`].
#[inline(always)]
fn leave<Context: Buffer>(ctx: &Context, room: *mut FlatWords) {
    leave_network(&First::piece(ctx), room.cast());
    leave_transport(&First::piece(ctx), room.cast());
}

#[inline(always)]
fn leave_network<F: Frame>(frame: &F, room: *mut u64) {
    let found = parse_network(frame);
    let flat = Flat::of_network(&found, frame.length() as u32);
    // SAFETY: `room` has place for it, and is this CPU's own.
    unsafe { room.cast::<Flat>().write(flat) };
}

#[inline(always)]
fn leave_transport<F: Frame>(frame: &F, room: *mut u64) {
    // SAFETY: inside what `room` has place for.
    let rest = unsafe { &raw mut (*room.cast::<Flat>()).rest };
    let found = rest_in(rest);
    if let Some((family, protocol, header)) = found.unread() {
        let found = found.with(parse_transport(frame, family, protocol, header));
        // SAFETY: as above.
        unsafe { rest.write(found) };
    }
}

/// What was left of the network layer, but for the addresses: as [`flat_in`].
#[inline(always)]
fn rest_in(room: *const Rest) -> Rest {
    let mut words = [0_u64; size_of::<Rest>() / 8];
    for (at, word) in words.iter_mut().enumerate() {
        // SAFETY: this CPU's own, and inside the value, by the loop's bound.
        *word = unsafe { room.cast::<u64>().add(at).read_volatile() };
    }
    // SAFETY: as large, and integers only, so any bits are one.
    unsafe { core::mem::transmute::<[u64; size_of::<Rest>() / 8], Rest>(words) }
}

/// What was left.
///
/// VERIFIER: every word is loaded, and at once. Else the compiler loads what one kind of packet has on
/// that kind's path alone, and computes with what happens to be in the register on the others.
#[inline(always)]
fn flat_in(room: *const FlatWords) -> Flat {
    let mut words: FlatWords = [0; _];
    for (at, word) in words.iter_mut().enumerate() {
        // SAFETY: this CPU's own, and inside the array, by the loop's bound.
        *word = unsafe { room.cast::<u64>().add(at).read_volatile() };
    }
    // SAFETY: as large, and integers only, so any bits are one.
    unsafe { core::mem::transmute::<FlatWords, Flat>(words) }
}

/// Parses the copied start of a frame in pieces; leaves a frame in one piece as it was parsed.
#[inline(never)]
fn parse_copied(ctx: &XdpContext, room: *mut u64) {
    if let Some(copy) = Copied::start(ctx) {
        network_copied(copy.copy, copy.length, room);
        transport_copied(copy.copy, room);
    }
}

/// Parses a sent frame whose headers are not all in the first piece, with them moved there. Hardly ever
/// done: it makes the kernel copy the piece.
#[inline(never)]
fn parse_pulled(ctx: &TcContext, room: *mut u64) {
    let headers = COPIED.min(ctx.length());
    // SAFETY: the context is this program's own; its pointers are read anew. On failure the frame is as it
    // was, and so is what is parsed.
    unsafe { bpf_skb_pull_data(ctx.as_ptr().cast(), headers as u32) };
    leave(ctx, room.cast());
}

#[inline(never)]
fn network_copied(copy: *const u64, length: usize, room: *mut u64) {
    leave_network(&Copied { copy, length }, room);
}

#[inline(never)]
fn transport_copied(copy: *const u64, room: *mut u64) {
    let length = 0; // the network layer was compared with it
    leave_transport(&Copied { copy, length }, room);
}

#[inline(never)]
fn quote_whole(ctx: &XdpContext, at: u64, room: *mut u64) -> u32 {
    leave_quoted(&First::piece(ctx), at, room)
}

#[inline(never)]
fn quote_copied(ctx: &XdpContext, at: u64, room: *mut u64) -> u32 {
    match Copied::start(ctx) {
        Some(copy) => leave_quoted(&copy, at, room),
        None => 0,
    }
}

/// # Returns
/// 1 if there is a flow.
#[inline(always)]
fn leave_quoted<F: Frame>(frame: &F, at: u64, room: *mut u64) -> u32 {
    let Some(flow) = Quote::flow_at(at, frame) else {
        return 0;
    };
    // SAFETY: `room` has place for it, and is this CPU's own.
    unsafe { room.cast::<Flow>().write(flow) };
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
    fn parse_again(&self, room: *mut u64);
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
    fn parse_again(&self, room: *mut u64) {
        parse_copied(self, room);
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
    fn parse_again(&self, room: *mut u64) {
        parse_pulled(self, room);
    }
}

/// The first piece of a frame, which mostly is the only one.
struct First {
    start: usize,
    end: usize,
    length: usize,
}

impl First {
    #[inline(always)]
    fn piece<Context: Buffer>(ctx: &Context) -> Self {
        let (start, end) = ctx.bounds();
        let length = ctx.length();
        Self { start, end, length }
    }
}

impl Frame for First {
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
const COPIED: usize = 512;

/// The copied start of a frame, and how much of it there is.
#[repr(C)]
struct Copy {
    bytes: [u8; COPIED],
    /// VERIFIER: never used. A read begins at any of `bytes`, for all that is known of it, and ends here.
    longest_read: [u8; 24],
    held: usize,
}

#[btf_map]
static COPY: PerCpuArray<Copy, 1> = PerCpuArray::new();

/// A frame in pieces, by a copy of its start.
struct Copied {
    /// A [`Copy`]; so that BTF need not describe it once more.
    copy: *const u64,
    /// Of all pieces.
    length: usize,
}

impl Copied {
    /// Copies the start of a frame; `None` for a frame in one piece.
    #[inline(always)]
    fn start(ctx: &XdpContext) -> Option<Self> {
        // SAFETY: the context is this program's own.
        let length = unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) as usize };
        if ctx.length() == length {
            return None;
        }
        let copy = COPY.get_ptr_mut(0)?;
        let held = if length < COPIED { length } else { COPIED };
        // SAFETY: this CPU's own, with room for as much; no other program runs on this CPU meanwhile.
        let failed = unsafe {
            (*copy).held = held;
            // VERIFIER: what was stored is not known any more, and the mask gives it bounds from 1 on. No
            // frame has a length of 0.
            let held = (&raw const (*copy).held).read_volatile().wrapping_sub(1) & (COPIED - 1);
            bpf_xdp_load_bytes(
                ctx.as_ptr().cast(),
                0,
                (&raw mut (*copy).bytes).cast(),
                held as u32 + 1,
            )
        };
        (failed == 0).then_some(Self {
            copy: copy.cast(),
            length,
        })
    }
}

impl Frame for Copied {
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
        const { assert!(N <= 24, "longer than `Copy` has room for") };
        // SAFETY: `copy` is this CPU's own, and written before.
        let held = unsafe { (&raw const (*self.copy.cast::<Copy>()).held).read_volatile() };
        if offset + N > held {
            return None;
        }
        // VERIFIER: the mask gives a bound; it changes nothing, since less than `COPIED` is held.
        let at = offset & (COPIED - 1);
        // SAFETY: the N bytes at `offset` were copied: just compared. Nothing writes to them while this
        // frame is judged.
        Some(read(unsafe {
            &*self.copy.cast::<u8>().add(at).cast::<[u8; N]>()
        }))
    }
}
