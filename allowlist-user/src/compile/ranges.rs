//! Prefixes to a range table: the roots and the pool that the kernel program looks sources up in. Pure.
//!
//! What the numbers mean is `allowlist_common::ranges`'. Invariant: an address's id is that of the longest prefix
//! that holds it, and 0 where none does; the order of prefixes is (address, length), as compiled.

#[cfg(test)]
mod tests;

use allowlist_common::abi::{Grant, MAX_MATCHES, Root};
use allowlist_common::ranges::{
    BLOCK, CHUNK, ID_BITS, IS_QUAD, LEVELS_SHIFT, MatchId, Pool, QUAD, ROOT_BITS, ROOT_SHIFT,
    deep_ids, root_v4, root_v6,
};
use ipnet::{Ipv4Net, Ipv6Net};

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
            table.reach[grant.matched as usize] = grant.services();
        }
        let chunks = ChunksV4::default();
        let chunks = build(0, &mut *table.v4, chunks, v4.iter().map(Range::of));
        let chunks = ChunksV6 {
            pool: chunks.words(),
            ..ChunksV6::default()
        };
        let chunks = build(0, &mut *table.v6, chunks, v6.iter().map(Range::of));
        table.pool = chunks.pool;
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
    fn word(&self, place: u32) -> Option<u64> {
        self.0.get(place as usize).copied()
    }

    fn half(&self, place: u32) -> Option<u32> {
        self.halves().get(place as usize).copied()
    }

    fn quad(&self, place: u32) -> Option<&[u32; QUAD]> {
        self.halves().as_chunks().0.get(place as usize)
    }

    fn block(&self, place: u32) -> Option<&[u64; BLOCK]> {
        self.0.as_chunks().0.get(place as usize)
    }
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
    let chunks = ChunksV4 {
        base: u32::try_from(words * 2).expect("a pool's places are numbers of 32 bits"),
        ..ChunksV4::default()
    };
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
    // Blocks are where cache lines are, so the first may come after some words of nothing.
    let base = words - words % BLOCK;
    let chunks = ChunksV6 {
        base: u32::try_from(base).expect("a pool's places are numbers of 32 bits"),
        pool: vec![0; words % BLOCK],
        ..ChunksV6::default()
    };
    let mut chunks = build(place, &mut root, chunks, within(prefixes, first));
    Part {
        root: root[0],
        words: chunks.pool.split_off(words % BLOCK),
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
            id: prefixes[place.ok()?].1.matched as MatchId,
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
            id: grant.matched as MatchId,
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

#[derive(Default)]
struct ChunksV4 {
    /// The place of the first half.
    base: u32,
    halves: Vec<u32>,
    /// The numbers of the chunk that is being made.
    numbers: Vec<u32>,
}

impl ChunksV4 {
    /// The place of what is put into the pool next.
    fn here(&self) -> u32 {
        self.base + u32::try_from(self.halves.len()).expect("places are numbers of 32 bits")
    }

    /// All of them, two to a word.
    fn words(&self) -> Vec<u64> {
        let pairs = self.halves.chunks(2);
        pairs
            .map(|pair| u64::from(pair[0]) | u64::from(*pair.get(1).unwrap_or(&0)) << 32)
            .collect()
    }
}

impl Chunks<u32> for ChunksV4 {
    fn place(address: u32) -> usize {
        root_v4(address)
    }

    fn add(&mut self, first: u32, _before: MatchId, id: MatchId) {
        self.numbers.push(first << ROOT_BITS | u32::from(id));
    }

    fn end(&mut self, first: MatchId, _last: MatchId) -> u32 {
        let mut numbers = &*self.numbers;
        let mut first = u32::from(first);
        if let [number, rest @ ..] = numbers
            && number >> ID_BITS == 0
        {
            (first, numbers) = (*number, rest);
        }
        let mut root = first << ROOT_SHIFT;
        if (1..QUAD).contains(&numbers.len()) {
            while !self.here().is_multiple_of(QUAD as u32) {
                self.halves.push(0);
            }
            root = CHUNK | IS_QUAD | (self.here() / QUAD as u32) << ROOT_SHIFT;
            // Filled up with the first one: of those that begin at the same place the last is found.
            let filled = QUAD - numbers.len();
            self.halves.extend(std::iter::repeat_n(first, filled));
            self.halves.extend(numbers);
        } else if !numbers.is_empty() {
            root = CHUNK | self.here() << ROOT_SHIFT;
            self.halves.push((numbers.len() as u32) << ID_BITS | first);
            self.halves.extend(numbers);
        }
        self.numbers.clear();
        root
    }
}

#[derive(Default)]
struct ChunksV6 {
    /// The place of the first word.
    base: u32,
    pool: Vec<u64>,
    /// The numbers of the chunk that is being made.
    numbers: Vec<u64>,
    /// The network that ranges begin inside of, if the last one did.
    deep: Option<Deep>,
}

/// A network whose hosts have different ids.
struct Deep {
    network: u64,
    /// The id of its first host.
    first: MatchId,
    /// Where ranges begin.
    hosts: Vec<u64>,
    ids: Vec<MatchId>,
}

impl ChunksV6 {
    /// The place of what is put into the pool next.
    fn here(&self) -> u32 {
        self.base + u32::try_from(self.pool.len()).expect("a pool's places are numbers of 32 bits")
    }

    /// Ends the deep network, if there is one; behind it the id is `after`, unless a range begins right there, in
    /// network `next`.
    fn leave(&mut self, next: Option<u64>, after: MatchId) {
        let Some(deep) = self.deep.take() else {
            return;
        };
        let (first, second) = deep_ids(self.here());
        self.pool
            .push((deep.hosts.len() as u64) << ID_BITS | u64::from(deep.first));
        self.pool.extend(&deep.hosts);
        self.pool.extend(deep.ids.chunks(4).map(|ids| {
            let placed = ids.iter().zip(0..);
            placed.fold(0, |word, (id, place)| {
                word | u64::from(*id) << (place * ID_BITS)
            })
        }));
        self.number(deep.network, first);
        self.number(deep.network, second);
        let behind = deep.network.wrapping_add(1);
        let is_in_chunk = behind << ROOT_BITS != 0;
        if is_in_chunk && next != Some(behind) {
            self.number(behind, after);
        }
    }

    fn number(&mut self, network: u64, id: MatchId) {
        self.numbers.push(network << ROOT_BITS | u64::from(id));
    }
}

impl Chunks<u128> for ChunksV6 {
    fn place(address: u128) -> usize {
        root_v6((address >> 64) as u64)
    }

    fn add(&mut self, first: u128, before: MatchId, id: MatchId) {
        let (network, host) = ((first >> 64) as u64, first as u64);
        if self
            .deep
            .as_ref()
            .is_some_and(|deep| deep.network != network)
        {
            self.leave(Some(network), before);
        }
        if host == 0 {
            self.number(network, id);
            return;
        }
        let numbers = &mut self.numbers;
        let deep = self.deep.get_or_insert_with(|| {
            // Its first range may begin with it.
            let begins = network << ROOT_BITS;
            numbers.pop_if(|number| *number & !u64::from(MatchId::MAX) == begins);
            Deep {
                network,
                first: before,
                hosts: Vec::new(),
                ids: Vec::new(),
            }
        });
        deep.hosts.push(host);
        deep.ids.push(id);
    }

    fn end(&mut self, first: MatchId, last: MatchId) -> u32 {
        self.leave(None, last);
        let begins_with_it = |number: &u64| *number >> ID_BITS == 0;
        if self.numbers.is_empty() || (self.numbers.len() == 1 && begins_with_it(&self.numbers[0]))
        {
            let alone = self.numbers.pop();
            let id = alone.map_or(first, |number| number as MatchId);
            return u32::from(id) << ROOT_SHIFT;
        }
        if !begins_with_it(&self.numbers[0]) {
            self.numbers.insert(0, u64::from(first));
        }
        let numbers = std::mem::take(&mut self.numbers);
        CHUNK | self.tree(numbers) << ROOT_SHIFT
    }
}

impl ChunksV6 {
    /// Puts the tree of a chunk's numbers into the pool, the lowest level first.
    ///
    /// # Returns
    /// The place of its uppermost block, and how many levels are below.
    fn tree(&mut self, numbers: Vec<u64>) -> u32 {
        let mut level = self.blocks(numbers);
        let mut levels = 0;
        while level.len() > 1 {
            // Those above tell where each of these begins; all of them are in a row.
            let first = level[0].0;
            let starts = level.iter().map(|(_, start)| *start).collect();
            let above = self.blocks(starts);
            for (number, &(place, _)) in above.iter().enumerate() {
                // Without what the uppermost block is filled up with, which leads nowhere.
                let filled = above.len() * BLOCK - level.len();
                let child = (first + (number * BLOCK) as u32).wrapping_sub(filled as u32);
                let block = (place - self.base / BLOCK as u32) as usize * BLOCK;
                self.pool[block] |= u64::from(child & 0xffff);
                self.pool[block + 1] |= u64::from(child >> 16);
            }
            level = above;
            levels += 1;
        }
        levels << LEVELS_SHIFT | level[0].0
    }

    /// Puts numbers into the pool in blocks. What the first of them lacks is filled up with the first number: of those
    /// that begin at the same place the last is found.
    ///
    /// # Returns
    /// Of each block its place, and where it begins, as a number without an id.
    fn blocks(&mut self, numbers: Vec<u64>) -> Vec<(u32, u64)> {
        let count = numbers.len().div_ceil(BLOCK);
        let filled = count * BLOCK - numbers.len();
        while !self.here().is_multiple_of(BLOCK as u32) {
            self.pool.push(0);
        }
        let first = self.here() / BLOCK as u32;
        self.pool.extend(std::iter::repeat_n(numbers[0], filled));
        self.pool.extend(numbers);
        let from = self.pool.len() - count * BLOCK;
        let blocks = self.pool[from..].chunks(BLOCK).zip(first..);
        blocks
            .map(|(block, place)| (place, block[0] & !u64::from(MatchId::MAX)))
            .collect()
    }
}
