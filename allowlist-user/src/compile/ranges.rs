//! Prefixes to a range table: the roots and the pool that the kernel program looks sources up in. Pure.
//!
//! What the numbers mean is `allowlist_common::ranges`'. Invariant: an address's id is that of the longest prefix
//! that holds it, and 0 where none does; the order of prefixes is (address, length), as compiled.

#[cfg(test)]
mod tests;
mod v4;
mod v6;

use allowlist_common::abi::{Grant, MAX_MATCHES, Root};
use allowlist_common::ranges::v4::root as root_v4;
use allowlist_common::ranges::v6::{BLOCK_WORDS, root as root_v6};
use allowlist_common::ranges::{MatchId, Pool, ROOT_BITS};
use ipnet::{Ipv4Net, Ipv6Net};

use self::v4::ChunksV4;
use self::v6::ChunksV6;

/// What a generation's sources are looked up in.
pub struct RangeTable {
    /// By match id: the set of services that it reaches.
    pub reach: Box<[u64; MAX_MATCHES as usize]>,
    /// By the first 16 bits of an IPv4 address.
    pub v4: Box<Root>,
    /// By the first 16 bits of an IPv6 address.
    pub v6: Box<Root>,
    /// What the roots point into. Two IPv4 numbers to a word, the first in the lower half.
    pub pool: Vec<u64>,
}

impl RangeTable {
    /// The table of prefixes of both families.
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
        let chunks = ChunksV6::after(chunks.words());
        let chunks = build(0, &mut *table.v6, chunks, v6.iter().map(Range::of));
        table.pool = chunks.words();
        table
    }
}

/// Words of a pool in this process's memory, to look up in as the kernel program does.
#[derive(Clone, Copy)]
pub struct Words<'w>(pub &'w [u64]);

impl<'w> Words<'w> {
    /// The same as halves of words.
    #[expect(unsafe_code, reason = "numbers of 64 bits as twice as many of 32")]
    pub fn halves(self) -> &'w [u32] {
        // SAFETY: twice as many, less aligned, and any bits are one; little-endian, as the kernel's program reads it.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 2) }
    }
}

impl Pool for Words<'_> {
    fn u64_at(&self, place: u32) -> Option<u64> {
        self.0.get(place as usize).copied()
    }

    fn u32_at(&self, place: u32) -> Option<u32> {
        self.halves().get(place as usize).copied()
    }

    fn u64x4_at(&self, place: u32) -> Option<&[u64; 4]> {
        self.0.as_chunks().0.get(place as usize)
    }

    fn cache_line_at(&self, place: u32) -> Option<&[u64; BLOCK_WORDS]> {
        self.0.as_chunks().0.get(place as usize)
    }

    fn prefetch(&self, _place: u32) {}
}

/// What one place of a root is to hold, and what the pool is to hold more for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// In the root.
    pub root: u32,
    /// Behind what the pool holds.
    pub words: Vec<u64>,
}

/// The part of the addresses that share their first 16 bits with an IPv4 address, to be put behind so many words.
pub fn part_v4(prefixes: &[(Ipv4Net, Grant)], address: u32, words: usize) -> Part {
    let first = address & !(u32::MAX >> ROOT_BITS);
    let mut root = [0];
    let chunks = ChunksV4::behind(words);
    let chunks = build(root_v4(address), &mut root, chunks, within(prefixes, first));
    Part {
        root: root[0],
        words: chunks.words(),
    }
}

/// The same of an IPv6 address.
pub fn part_v6(prefixes: &[(Ipv6Net, Grant)], address: u128, words: usize) -> Part {
    let first = address & !(u128::MAX >> ROOT_BITS);
    let place = root_v6((address >> 64) as u64);
    let mut root = [0];
    let chunks = ChunksV6::behind(words);
    let chunks = build(place, &mut root, chunks, within(prefixes, first));
    Part {
        root: root[0],
        words: chunks.words(),
    }
}

/// What `prefixes` has for the addresses of one place of a root, which begin at `first`.
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
    slice.try_into().ok().expect("it is as long")
}

/// An address as a number.
trait Number: Copy + Ord {
    const ZERO: Self;
    /// The next one; `None` after the last.
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

/// A prefix of either family.
trait Prefix: Copy + Ord {
    type Address: Number;
    /// The prefix of that length that holds an address.
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

/// A prefix as the addresses from its first to its last.
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

/// Tells where the id changes and to what, from the first address to the last; before the first change it is 0.
///
/// Prefixes do not overlap but by one holding the other. So those that hold an address form a stack, and the uppermost
/// is the longest.
fn sweep<N: Number>(ranges: impl Iterator<Item = Range<N>>, tell: impl FnMut(N, MatchId)) {
    let mut changes = Changes {
        next: (N::ZERO, 0),
        told: 0,
        tell,
    };
    let mut open: Vec<Range<N>> = Vec::new();
    for range in ranges {
        while let Some(ended) = open.pop_if(|around| around.last < range.first) {
            changes.end(ended.last, open.last());
        }
        changes.put(range.first, range.id);
        open.push(range);
    }
    while let Some(ended) = open.pop() {
        changes.end(ended.last, open.last());
    }
    changes.flush();
}

/// Changes of the id, without those that come to nothing: several at one address, or one to the same id.
struct Changes<N, Tell> {
    next: (N, MatchId),
    told: MatchId,
    tell: Tell,
}

impl<N: Number, Tell: FnMut(N, MatchId)> Changes<N, Tell> {
    fn put(&mut self, first: N, id: MatchId) {
        if first != self.next.0 {
            self.flush();
        }
        self.next = (first, id);
    }

    /// A prefix ended; what is around it goes on.
    fn end(&mut self, last: N, around: Option<&Range<N>>) {
        if let Some(next) = last.next() {
            self.put(next, around.map_or(0, |around| around.id));
        }
    }

    fn flush(&mut self) {
        let (first, id) = self.next;
        if id != self.told {
            (self.tell)(first, id);
            self.told = id;
        }
    }
}

/// Makes the chunks of one family.
trait Chunks<N> {
    /// The place in the root of an address.
    fn place(address: N) -> usize;
    /// A range begins in the chunk that is being made, with this id; before it was `before`.
    fn add(&mut self, first: N, before: MatchId, id: MatchId);
    /// Ends a chunk: the id of its first address is `first` unless a range begins there, and of its last `last`.
    ///
    /// # Returns
    /// What the root is to hold for it.
    fn end(&mut self, first: MatchId, last: MatchId) -> u32;
}

/// Makes a root, or a part of one that begins at the place `from`.
fn build<N: Number, C: Chunks<N>>(
    from: usize,
    root: &mut [u32],
    mut chunks: C,
    ranges: impl Iterator<Item = Range<N>>,
) -> C {
    // Of the place whose chunk is being made: the id of its first address, and of its last so far.
    let (mut first, mut last) = (0, 0);
    let mut place = 0;
    sweep(ranges, |address, id| {
        let places = &mut root[place..C::place(address) - from];
        place += places.len();
        for ended in places {
            *ended = chunks.end(first, last);
            first = last;
        }
        chunks.add(address, last, id);
        last = id;
    });
    for ended in &mut root[place..] {
        *ended = chunks.end(first, last);
        first = last;
    }
    chunks
}
