//! Compiles prefixes to a range table: the roots and the pool in which the kernel program looks up source addresses.
//! Pure.
//!
//! `allowlist_common::ranges` defines the encoding. Invariant: the id of an address is that of the longest prefix that
//! contains it, or 0 if none does. Prefixes must be sorted by (address, length), as compiled.

#[cfg(test)]
mod tests;
mod v4;
mod v6;

use allowlist_common::abi::{Grant, MAX_MATCHES, Root};
use allowlist_common::ranges::v4::root as root_v4;
use allowlist_common::ranges::v6::{Block, root as root_v6};
use allowlist_common::ranges::{MatchId, Pool, ROOT_BITS};
use allowlist_common::volatile::VolatileRef;
use ipnet::{Ipv4Net, Ipv6Net};

use self::v4::ChunksV4;
use self::v6::ChunksV6;

/// The lookup table of a generation: finds the match id of a source address.
pub struct RangeTable {
    /// The kernel services that the sources of each match id may reach, as bits; indexed by match id.
    pub reach: Box<[u64; MAX_MATCHES as usize]>,
    /// The root for IPv4, indexed by the first 16 bits of an address.
    pub v4: Box<Root>,
    /// The root for IPv6, indexed by the first 16 bits of an address.
    pub v6: Box<Root>,
    /// The pool of chunks that the roots refer to, in 64-bit words. For IPv4, a word contains two 32-bit numbers, the
    /// first in its lower half.
    pub pool: Vec<u64>,
}

impl RangeTable {
    /// Returns the table for the sorted prefixes `v4` and `v6`.
    pub fn of(v4: &[(Ipv4Net, Grant)], v6: &[(Ipv6Net, Grant)]) -> Self {
        let mut table = Self {
            reach: boxed(0),
            v4: boxed(0),
            v6: boxed(0),
            pool: Vec::new(),
        };
        let grants = v4.iter().map(|entry| entry.1);
        for grant in grants.chain(v6.iter().map(|entry| entry.1)) {
            table.reach[grant.match_id as usize] = grant.services();
        }
        let chunks = ChunksV4::default();
        let chunks = build(0, &mut *table.v4, chunks, v4.iter().map(Range::of));
        let chunks = ChunksV6::with_pool(chunks.words());
        let chunks = build(0, &mut *table.v6, chunks, v6.iter().map(Range::of));
        table.pool = chunks.words();
        table
    }
}

/// The words of a pool in this process's memory, with which the host runs the same lookup as the kernel program.
#[derive(Clone, Copy)]
pub struct Words<'w>(pub &'w [u64]);

impl<'w> Words<'w> {
    /// Returns the words as 32-bit halves, the lower half of each word first.
    pub fn halves(self) -> &'w [u32] {
        // The order of halves is little-endian, as in the kernel program.
        bytemuck::cast_slice(self.0)
    }
}

impl Pool for Words<'_> {
    fn u64_at(&self, place: u32) -> Option<u64> {
        self.0.get(place as usize).copied()
    }

    fn u32_at(&self, place: u32) -> Option<u32> {
        self.halves().get(place as usize).copied()
    }

    fn u64x4_at(&self, place: u32) -> Option<VolatileRef<'_, [u64; 4]>> {
        let chunks = self.0.as_chunks().0;
        chunks.get(place as usize).map(VolatileRef::from_ref)
    }

    fn cache_line_at(&self, place: u32) -> Option<VolatileRef<'_, Block>> {
        let lines = self.0.as_chunks().0;
        lines.get(place as usize).map(VolatileRef::from_ref)
    }

    fn prefetch(&self, _place: u32) {}
}

/// The part of a range table below one entry of a root: the value of the entry, and the words to append to the pool.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// The value of the root's entry.
    pub root: u32,
    /// The words to append to the pool.
    pub words: Vec<u64>,
}

/// Returns the part of the table for all IPv4 addresses that have the same first 16 bits as `address`.
///
/// `words` is the length of the pool to which the caller appends the part, in 64-bit words.
pub fn part_v4(prefixes: &[(Ipv4Net, Grant)], address: u32, words: usize) -> Part {
    let first = address & !(u32::MAX >> ROOT_BITS);
    let mut root = [0];
    let chunks = ChunksV4::appended_to(words);
    let chunks = build(root_v4(address), &mut root, chunks, within(prefixes, first));
    Part {
        root: root[0],
        words: chunks.words(),
    }
}

/// Returns the part of the table for all IPv6 addresses that have the same first 16 bits as `address`.
///
/// `words` is the length of the pool to which the caller appends the part, in 64-bit words.
pub fn part_v6(prefixes: &[(Ipv6Net, Grant)], address: u128, words: usize) -> Part {
    let first = address & !(u128::MAX >> ROOT_BITS);
    let place = root_v6((address >> 64) as u64);
    let mut root = [0];
    let chunks = ChunksV6::appended_to(words);
    let chunks = build(place, &mut root, chunks, within(prefixes, first));
    Part {
        root: root[0],
        words: chunks.words(),
    }
}

/// Returns the ranges of the sorted `prefixes`, cut to the addresses of the root entry that begins at the address
/// `first`.
fn within<P: Prefix>(
    prefixes: &[(P, Grant)],
    first: P::Address,
) -> impl Iterator<Item = Range<P::Address>> {
    let whole = P::new(first, ROOT_BITS as u8);
    let around = (0..ROOT_BITS as u8).filter_map(move |length| {
        let wider = P::new(first, length);
        let place = prefixes.binary_search_by(|(prefix, _)| prefix.cmp(&wider));
        Some(Range {
            first,
            last: whole.last(),
            id: prefixes[place.ok()?].1.match_id as MatchId,
        })
    });
    let from = prefixes.partition_point(|(prefix, _)| *prefix < whole);
    let inside = prefixes[from..].iter();
    around.chain(
        inside
            .take_while(move |(prefix, _)| prefix.first() <= whole.last())
            .map(Range::of),
    )
}

fn boxed<T: Copy, const N: usize>(value: T) -> Box<[T; N]> {
    let slice = vec![value; N].into_boxed_slice();
    slice.try_into().ok().expect("the length is N")
}

/// An IP address as an integer.
trait Number: Copy + Ord {
    const ZERO: Self;
    /// Returns the next address, or `None` after the last address of the family.
    fn next(self) -> Option<Self>;
}

impl Number for u32 {
    const ZERO: Self = 0;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Number for u128 {
    const ZERO: Self = 0;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// A prefix of either address family.
trait Prefix: Copy + Ord {
    type Address: Number;
    /// Returns the prefix with the length `length` that contains `address`.
    fn new(address: Self::Address, length: u8) -> Self;
    fn first(&self) -> Self::Address;
    fn last(&self) -> Self::Address;
}

impl Prefix for Ipv4Net {
    type Address = u32;
    fn new(address: u32, length: u8) -> Self {
        Self::new_assert(address.into(), length).trunc()
    }
    fn first(&self) -> u32 {
        self.network().into()
    }
    fn last(&self) -> u32 {
        self.broadcast().into()
    }
}

impl Prefix for Ipv6Net {
    type Address = u128;
    fn new(address: u128, length: u8) -> Self {
        Self::new_assert(address.into(), length).trunc()
    }
    fn first(&self) -> u128 {
        self.network().into()
    }
    fn last(&self) -> u128 {
        self.broadcast().into()
    }
}

/// A prefix as a range of addresses, first and last included, with its match id.
#[derive(Clone, Copy)]
struct Range<N> {
    first: N,
    last: N,
    id: MatchId,
}

impl<N: Number> Range<N> {
    fn of<P: Prefix<Address = N>>((prefix, grant): &(P, Grant)) -> Self {
        Self {
            first: prefix.first(),
            last: prefix.last(),
            id: grant.match_id as MatchId,
        }
    }
}

/// Calls `emit` for each address at which the match id changes, with the new id, in ascending order. The id before the
/// first change is 0.
///
/// `ranges` must be sorted. Prefixes are disjoint or nested, so the prefixes that contain an address form a stack with
/// the longest on top.
fn sweep<N: Number>(ranges: impl Iterator<Item = Range<N>>, emit: impl FnMut(N, MatchId)) {
    let mut changes = Changes {
        next: (N::ZERO, 0),
        emitted: 0,
        emit,
    };
    let mut open: Vec<Range<N>> = Vec::new();
    for range in ranges {
        while let Some(closed) = open.pop_if(|around| around.last < range.first) {
            changes.end(closed.last, open.last());
        }
        changes.put(range.first, range.id);
        open.push(range);
    }
    while let Some(closed) = open.pop() {
        changes.end(closed.last, open.last());
    }
    changes.flush();
}

/// Collects the changes of the match id, and drops those without effect: several at one address, or a change to the
/// same id.
struct Changes<N, Emit> {
    next: (N, MatchId),
    emitted: MatchId,
    emit: Emit,
}

impl<N: Number, Emit: FnMut(N, MatchId)> Changes<N, Emit> {
    fn put(&mut self, first: N, id: MatchId) {
        if first != self.next.0 {
            self.flush();
        }
        self.next = (first, id);
    }

    /// Ends the prefix whose last address is `last`; the id of the surrounding prefix `around`, or else 0, follows.
    fn end(&mut self, last: N, around: Option<&Range<N>>) {
        if let Some(next) = last.next() {
            self.put(next, around.map_or(0, |around| around.id));
        }
    }

    fn flush(&mut self) {
        let (first, id) = self.next;
        if id != self.emitted {
            (self.emit)(first, id);
            self.emitted = id;
        }
    }
}

/// Builds the chunks of one address family. A chunk has the encoded ranges below one entry of the root.
trait Chunks<N> {
    /// Returns the index of `address` in the root.
    fn place(address: N) -> usize;
    /// Adds a range to the current chunk: at the address `first`, the id changes from `before` to `id`.
    fn add(&mut self, first: N, before: MatchId, id: MatchId);
    /// Ends the current chunk and returns the value of its root entry.
    ///
    /// `first` is the id of the chunk's first address unless a range begins there; `last` is the id of its last
    /// address.
    fn end(&mut self, first: MatchId, last: MatchId) -> u32;
}

/// Fills `root` with the chunks for `ranges`, and returns `chunks`. The first element of `root` has the index `from`.
fn build<N: Number, C: Chunks<N>>(
    from: usize,
    root: &mut [u32],
    mut chunks: C,
    ranges: impl Iterator<Item = Range<N>>,
) -> C {
    // The ids of the first address of the current chunk and of its last address so far.
    let (mut first, mut last) = (0, 0);
    let mut place = 0;
    sweep(ranges, |address, id| {
        let places = &mut root[place..C::place(address) - from];
        place += places.len();
        for entry in places {
            *entry = chunks.end(first, last);
            first = last;
        }
        chunks.add(address, last, id);
        last = id;
    });
    for entry in &mut root[place..] {
        *entry = chunks.end(first, last);
        first = last;
    }
    chunks
}
