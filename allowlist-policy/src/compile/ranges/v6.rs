//! Builds the IPv6 chunks that `allowlist_common::ranges::v6` searches. Does not know the meaning of ids.

use allowlist_common::abi::MAX_MATCHES;
use allowlist_common::ranges::v6::{
    BLOCK_ENTRIES, BLOCK_WORDS, CHUNK, HOST_ID_BITS, HOST_LEVEL, ID_BITS, LARGE_HOST_CHUNK,
    MIN_NODE_SLOTS, NODE, NODE_HEAD, PLACE_SHIFT, SMALL_HOST_CHUNK_RANGES, UNTIL_NEXT, entry,
    host_level_ids, root,
};
use allowlist_common::ranges::{MatchId, ROOT_BITS};

use super::Chunks;

/// The alignment in the pool of a host chunk (the ranges in one /64 network), in 8-byte words.
const QUAD: usize = 4;

const _: () = assert!(
    MAX_MATCHES <= HOST_LEVEL as u32,
    "ids fit below the host level flag"
);

/// Builds the IPv6 chunks: the current chunk, and the pool of finished chunks.
#[derive(Default)]
pub(super) struct ChunksV6 {
    /// The index in the whole pool, in 64-bit words, of the first word of `pool`.
    base: u32,
    pool: Vec<u64>,
    /// The number of placeholder words at the start of `pool`, for words that the caller's pool has already.
    existing: usize,
    /// The ranges of the current chunk, each as one number with the start and the id.
    numbers: Vec<u64>,
    /// The /64 network in which the last range begins; `None` if that range begins at the network's first host.
    host_level: Option<HostLevel>,
}

/// A /64 network whose hosts have different match ids.
struct HostLevel {
    network: u64,
    /// The match id of the network's first host.
    first: MatchId,
    /// The hosts at which ranges begin, as the lower 64 bits of their addresses.
    hosts: Vec<u64>,
    ids: Vec<MatchId>,
}

impl Chunks<u128> for ChunksV6 {
    fn place(address: u128) -> usize {
        root((address >> 64) as u64)
    }

    fn add(&mut self, first: u128, before: MatchId, id: MatchId) {
        let (network, host) = ((first >> 64) as u64, first as u64);
        if self
            .host_level
            .as_ref()
            .is_some_and(|level| level.network != network)
        {
            self.end_host_level(Some(network), before);
        }
        if host == 0 {
            self.numbers.push(entry(network, id));
            return;
        }
        let numbers = &mut self.numbers;
        let level = self.host_level.get_or_insert_with(|| {
            // Its first range may begin at its first host.
            numbers.pop_if(|last| start(*last) == start(entry(network, 0)));
            HostLevel {
                network,
                first: before,
                hosts: Vec::new(),
                ids: Vec::new(),
            }
        });
        level.hosts.push(host);
        level.ids.push(id);
    }

    fn end(&mut self, first: MatchId, last: MatchId) -> u32 {
        self.end_host_level(None, last);
        let mut numbers = std::mem::take(&mut self.numbers);
        if numbers.first().is_none_or(|number| start(*number) != 0) {
            numbers.insert(0, entry(0, first));
        }
        if let [only] = *numbers {
            return (only as u32) << PLACE_SHIFT;
        }
        CHUNK | self.chunk(&with_reach(&numbers))
    }
}

/// Returns the start of the range that `number` encodes.
const fn start(number: u64) -> u64 {
    number >> ID_BITS
}

/// A range of /64 networks as the pool stores it.
#[derive(Clone, Copy)]
struct Begin {
    /// The start and the id of the range.
    number: u64,
    /// The binary logarithm of the length of the range in /64 networks, or [`UNTIL_NEXT`] if the next range begins at
    /// its end.
    reaches: u8,
}

impl Begin {
    const fn start(self) -> u64 {
        start(self.number)
    }
}

/// Returns `numbers` with the lengths of their ranges.
///
/// A number whose id is 0 only marks the end of the range before it. It is removed if that range has a power of two as
/// its length, as each prefix has; the length is stored instead.
fn with_reach(numbers: &[u64]) -> Vec<Begin> {
    let is_unmatched = |number: u64| number & ((1 << ID_BITS) - 1) == 0;
    let mut begins = Vec::with_capacity(numbers.len());
    let mut rest = numbers.iter().copied().peekable();
    while let Some(number) = rest.next() {
        let length = |end: u64| start(end) - start(number);
        let end = rest.next_if(|next| {
            is_unmatched(*next) && !is_unmatched(number) && length(*next).is_power_of_two()
        });
        let reaches = end.map_or(UNTIL_NEXT, |end| length(end).trailing_zeros() as u8);
        begins.push(Begin { number, reaches });
    }
    begins
}

impl ChunksV6 {
    /// Returns a builder that appends chunks to `pool`.
    pub(super) fn with_pool(pool: Vec<u64>) -> Self {
        Self {
            pool,
            ..Self::default()
        }
    }

    /// Returns a builder of chunks that the caller appends to a pool of `words` 64-bit words.
    pub(super) fn appended_to(words: usize) -> Self {
        let existing = words % BLOCK_WORDS; // blocks are aligned to cache lines
        Self {
            base: u32::try_from(words - existing).expect("indexes have 32 bits"),
            pool: vec![0; existing],
            existing,
            ..Self::default()
        }
    }

    /// Returns the finished chunks: the whole pool, or after [`Self::appended_to`] only the words to append.
    pub(super) fn words(mut self) -> Vec<u64> {
        self.pool.split_off(self.existing)
    }

    /// Returns the index in the whole pool of the next word.
    fn here(&self) -> u32 {
        self.base + u32::try_from(self.pool.len()).expect("indexes have 32 bits")
    }

    /// Pads the pool to a multiple of `words` words, and returns the next index in units of `words` words.
    fn align_to(&mut self, words: usize) -> u32 {
        while !self.here().is_multiple_of(words as u32) {
            self.pool.push(0);
        }
        self.here() / words as u32
    }

    /// Ends the host level, if there is one, and adds its chunk to the pool.
    ///
    /// `after` is the match id of the network that follows the level's network. It has no effect if `next`, the network
    /// in which the next range begins, is that network.
    fn end_host_level(&mut self, next: Option<u64>, after: MatchId) {
        let Some(level) = self.host_level.take() else {
            return;
        };
        let place = self.align_to(QUAD);
        let ids = host_level_ids(place).expect("the index fits");
        self.hosts(&level);
        for id in [ids.0, ids.1] {
            self.numbers.push(entry(level.network, id));
        }
        let behind = level.network.wrapping_add(1);
        let is_in_chunk = behind << ROOT_BITS != 0;
        if is_in_chunk && next != Some(behind) {
            self.numbers.push(entry(behind, after));
        }
    }

    /// Adds the chunk of the hosts of `level` to the pool.
    fn hosts(&mut self, level: &HostLevel) {
        let packed = |ids: &[MatchId]| {
            let placed = ids.iter().zip(0..);
            placed.fold(0, |word, (id, place)| {
                word | u64::from(*id) << (place * HOST_ID_BITS)
            })
        };
        if level.hosts.len() <= SMALL_HOST_CHUNK_RANGES {
            // Unused ranges come first, and begin at the first host.
            let unused = SMALL_HOST_CHUNK_RANGES - level.hosts.len();
            let mut ids = vec![level.first; unused + 1];
            ids.extend(&level.ids);
            self.pool.push(packed(&ids));
            self.pool.extend(std::iter::repeat_n(0, unused));
            self.pool.extend(&level.hosts);
            return;
        }
        let count = level.hosts.len() as u64;
        self.pool
            .push(LARGE_HOST_CHUNK | count << HOST_ID_BITS | u64::from(level.first));
        self.pool.extend(&level.hosts);
        self.pool.extend(level.ids.chunks(4).map(packed));
    }

    /// Adds `numbers` to the pool, as a block or as a node with blocks below it, and returns the reference to them.
    /// `numbers` are all ranges of a chunk, or some of them and the range before those.
    fn chunk(&mut self, numbers: &[Begin]) -> u32 {
        if numbers.len() <= BLOCK_ENTRIES {
            return self.block(numbers);
        }
        let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
        let scale = Scale::of(&numbers[1..]);
        let last_place = scale.of_number(last);
        let mut index = Vec::new();
        // The numbers of the next block, for the slots of the index that have no block yet.
        let mut block = vec![first];
        let mut rest = &numbers[1..];
        let mut before = first;
        for place in 0..=last_place {
            let here = rest.partition_point(|begin| scale.of_number(*begin) <= place);
            let (here, after) = rest.split_at(here);
            if here.len() >= BLOCK_ENTRIES {
                self.flush_block(&mut index, &mut block, place);
                let part: Vec<Begin> = std::iter::once(before)
                    .chain(here.iter().copied())
                    .collect();
                index.push(self.chunk(&part));
            } else {
                if block.len() + here.len() > BLOCK_ENTRIES {
                    self.flush_block(&mut index, &mut block, place);
                }
                if block.is_empty() {
                    block.push(before);
                }
                block.extend(here);
            }
            before = *here.last().unwrap_or(&before);
            rest = after;
        }
        self.flush_block(&mut index, &mut block, last_place + 1);
        index.push(self.block(&[first, last]));
        self.node(&scale, &index)
    }

    /// Adds the numbers in `block` to the pool as a block.
    ///
    /// The slots of `index` before `end` that have no block yet then refer to this block.
    fn flush_block(&mut self, index: &mut Vec<u32>, block: &mut Vec<Begin>, end: u64) {
        let end = end as usize;
        if index.len() < end {
            let reference = self.block(block);
            index.resize(end, reference);
        }
        block.clear();
    }

    fn node(&mut self, scale: &Scale, index: &[u32]) -> u32 {
        let place = self.align_to(BLOCK_WORDS);
        let last = index.len() as u64 - 1;
        self.pool
            .extend([scale.first, u64::from(scale.shift) | last << 32]);
        debug_assert_eq!(NODE_HEAD, 4, "halves of these");
        self.pool.extend(
            index
                .chunks(2)
                .map(|pair| u64::from(pair[0]) | u64::from(*pair.get(1).unwrap_or(&0)) << 32),
        );
        // A lookup loads a node as a block first, so it must be at least as long.
        let length = self.pool.len().next_multiple_of(BLOCK_WORDS);
        self.pool.resize(length, 0);
        place << PLACE_SHIFT | NODE
    }

    /// Adds a block with `numbers` to the pool, and returns the reference to it. Unused entries repeat the first
    /// number: of equal starts the lookup finds the last.
    fn block(&mut self, numbers: &[Begin]) -> u32 {
        let place = self.align_to(BLOCK_WORDS);
        let filled = std::iter::repeat_n(numbers[0], BLOCK_ENTRIES - numbers.len());
        let mut reach = 0;
        for (at, begin) in filled.chain(numbers.iter().copied()).enumerate() {
            self.pool.push(begin.number);
            reach |= u64::from(begin.reaches) << (at as u32 * u8::BITS);
        }
        self.pool.push(reach);
        place << PLACE_SHIFT
    }
}

/// The mapping from the start of a range to a slot of a node's index.
struct Scale {
    /// The number of bits by which starts are shifted right.
    shift: u32,
    /// The shifted start of the first number in the node.
    first: u64,
}

impl Scale {
    /// Returns a scale for `numbers`, with 2 to 4 numbers per slot on average.
    ///
    /// With fewer, less of the index fits into caches; with more, more slots overflow a block. Measured with 100,000
    /// prefixes.
    fn of(numbers: &[Begin]) -> Self {
        let (first, last) = (numbers[0].start(), numbers[numbers.len() - 1].start());
        let most = (numbers.len() as u64 / 2)
            .next_power_of_two()
            .max(MIN_NODE_SLOTS);
        // The minimum is 1: the numbers of two networks fit into a block, also with host levels.
        let shift = (1..u64::BITS)
            .find(|shift| (last >> shift) - (first >> shift) < most)
            .unwrap_or(u64::BITS - 1);
        Self {
            shift,
            first: first >> shift,
        }
    }

    fn of_number(&self, begin: Begin) -> u64 {
        (begin.start() >> self.shift) - self.first
    }
}
