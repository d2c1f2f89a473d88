//! A frame where the kernel has it, and what is parsed from it.
//!
//! Mostly it lies in one piece, and headers are read where they are. A jumbo frame may be in several:
//! then its start is copied into one.
//!
//! VERIFIER: it walks every path through a program, and what one path knows of an offset keeps it apart
//! from all others. So the two halves of parsing are functions of their own, which leave what they found in
//! a map's memory: of that the verifier knows nothing, and walks what follows once. They also have stacks of
//! their own.

use allowlist_common::flow::Flow;
use allowlist_common::frame::Frame;
use allowlist_common::packet::{
    Address, Contents, Flat, Malformed, Quote, parse_network, parse_transport,
};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::generated::{bpf_skb_pull_data, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::{TcContext, XdpContext};

/// What was parsed from a frame.
#[derive(Clone, Copy)]
pub(crate) struct Parsed {
    /// What it carries.
    pub(crate) contents: Result<Contents, Malformed>,
    /// Its bytes, all pieces together.
    pub(crate) length: u32,
}

/// A received frame, of either kind.
///
/// VERIFIER: pointers are taken anew for each use, since whether a frame is whole is a comparison that the
/// compiler may make again, and then a kept pointer could be of the other kind, for all the verifier knows.
#[derive(Clone, Copy)]
pub(crate) struct Received<'a> {
    ctx: &'a XdpContext,
    /// All pieces together.
    length: usize,
    /// It is in several pieces.
    is_copied: bool,
}

impl<'a> Received<'a> {
    /// Copies the frame's start if it is in several pieces. `None` where a map is missing, which never
    /// is.
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext) -> Option<Self> {
        // SAFETY: the context is this program's own.
        let length = unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) as usize };
        let is_copied = ctx.data_end() - ctx.data() != length;
        if is_copied {
            copy(ctx, length)?;
        }
        Some(Self {
            ctx,
            length,
            is_copied,
        })
    }

    /// What it carries.
    #[inline(always)]
    pub(crate) fn parsed(&self) -> Option<Parsed> {
        let room = PARSED.get_ptr_mut(0)?;
        if self.is_copied {
            network_copied(COPY.get_ptr(0)?.cast(), self.length, room.cast());
            transport_copied(COPY.get_ptr(0)?.cast(), room.cast());
        } else {
            let (start, end) = bounds(self.ctx);
            network_whole(start, end, self.length, room.cast());
            let (start, end) = bounds(self.ctx);
            transport_whole(start, end, room.cast());
        }
        Some(taken(room))
    }

    /// The flow that an ICMP error from `source` is about.
    #[inline(always)]
    pub(crate) fn quoted(&self, quote: Quote, source: Address) -> Option<Flow> {
        let room = QUOTED.get_ptr_mut(0)?;
        let at = quote.encode(source);
        let is_told = if self.is_copied {
            quote_copied(COPY.get_ptr(0)?.cast(), at, room.cast())
        } else {
            let (start, end) = bounds(self.ctx);
            quote_whole(start, end, at, room.cast())
        };
        // SAFETY: just written, if the function says so.
        (is_told != 0).then(|| unsafe { *room.cast() })
    }
}

// In words, since BTF could not describe the values.
type FlatWords = [u64; size_of::<Flat>() / 8];
#[btf_map]
static PARSED: PerCpuArray<FlatWords, 1> = PerCpuArray::new();
#[btf_map]
static QUOTED: PerCpuArray<[u64; size_of::<Flow>() / 8], 1> = PerCpuArray::new();

/// What was parsed last on this CPU.
#[inline(always)]
pub(crate) fn parsed_last() -> Option<Parsed> {
    PARSED.get_ptr(0).map(taken)
}

#[inline(always)]
fn taken(room: *const FlatWords) -> Parsed {
    let flat = flat_in(room);
    Parsed {
        contents: flat.parsed(),
        length: flat.length(),
    }
}

/// What was parsed, from where it was left.
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

/// Leaves the network layer of a frame for [`leave_transport`].
#[inline(always)]
fn leave_network<F: Frame>(frame: &F, room: *mut u64) {
    let flat = Flat::of_network(&parse_network(frame), frame.length() as u32);
    // SAFETY: `room` has place for it, and is this CPU's own.
    unsafe { room.cast::<Flat>().write(flat) };
}

/// Leaves the whole frame for [`taken`].
#[inline(always)]
fn leave_transport<F: Frame>(frame: &F, room: *mut u64) {
    let flat = flat_in(room.cast());
    if let Some((family, protocol, header)) = flat.unread() {
        let flat = flat.with(parse_transport(frame, family, protocol, header));
        // SAFETY: as above.
        unsafe { room.cast::<Flat>().write(flat) };
    }
}

#[inline(never)]
fn network_whole(start: usize, end: usize, length: usize, room: *mut u64) {
    leave_network(&Whole { start, end, length }, room);
}

#[inline(never)]
fn network_copied(copy: *const u64, length: usize, room: *mut u64) {
    leave_network(&Copied { copy, length }, room);
}

#[inline(never)]
fn transport_whole(start: usize, end: usize, room: *mut u64) {
    let length = 0; // the network layer was compared with it
    leave_transport(&Whole { start, end, length }, room);
}

#[inline(never)]
fn transport_copied(copy: *const u64, room: *mut u64) {
    let length = 0;
    leave_transport(&Copied { copy, length }, room);
}

#[inline(never)]
fn quote_whole(start: usize, end: usize, at: u64, room: *mut u64) -> u32 {
    let length = 0; // a quote has an end of its own
    quoted(&Whole { start, end, length }, at, room)
}

#[inline(never)]
fn quote_copied(copy: *const u64, at: u64, room: *mut u64) -> u32 {
    let length = 0;
    quoted(&Copied { copy, length }, at, room)
}

#[inline(always)]
fn quoted<F: Frame>(frame: &F, at: u64, room: *mut u64) -> u32 {
    let Some(flow) = Quote::flow_at(at, frame) else {
        return 0;
    };
    // SAFETY: as above.
    unsafe { room.cast::<Flow>().write(flow) };
    1
}

/// A frame whose headers are in its first piece.
pub(crate) struct Whole {
    start: usize,
    end: usize,
    length: usize,
}

impl Whole {
    /// A frame that this host sends: its headers are moved to the first piece if they are not there.
    #[inline(always)]
    pub(crate) fn sent(ctx: &TcContext) -> Self {
        let length = ctx.len() as usize;
        if ctx.data_end() - ctx.data() < COPIED.min(length) {
            // SAFETY: the context is this program's own; its pointers are read below, anew. On failure
            // the frame is as it was, and is parsed as far as it goes.
            unsafe { bpf_skb_pull_data(ctx.as_ptr().cast(), COPIED.min(length) as u32) };
        }
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
            length,
        }
    }

    /// What it carries; `None` where a map is missing, which never is.
    #[inline(always)]
    pub(crate) fn parsed(self) -> Option<Parsed> {
        let room = PARSED.get_ptr_mut(0)?;
        network_whole(self.start, self.end, self.length, room.cast());
        transport_whole(self.start, self.end, room.cast());
        Some(taken(room))
    }
}

impl Frame for Whole {
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

/// Where a frame's first piece starts and ends.
///
/// VERIFIER: loaded anew for each use. What was read through a pointer keeps apart all paths on which it
/// is still known.
#[inline(always)]
fn bounds(ctx: &XdpContext) -> (usize, usize) {
    // SAFETY: the context is this program's own.
    unsafe {
        (
            (&raw const (*ctx.ctx).data).read_volatile() as usize,
            (&raw const (*ctx.ctx).data_end).read_volatile() as usize,
        )
    }
}

/// Copies the start of a frame of `length` bytes.
#[inline(always)]
fn copy(ctx: &XdpContext, length: usize) -> Option<()> {
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
    (failed == 0).then_some(())
}

/// A frame in pieces.
struct Copied {
    /// A [`Copy`]; so that BTF need not describe it once more.
    copy: *const u64,
    length: usize,
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
