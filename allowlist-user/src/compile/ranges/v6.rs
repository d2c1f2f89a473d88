//! The chunks of IPv6: what `allowlist_common::ranges::v6` searches in. Knows of ids what they are, not what they mean.

use allowlist_common::abi::MAX_MATCHES;
use allowlist_common::ranges::v6::{
    BLOCK_ENTRIES, BLOCK_WORDS, CHUNK, HOST_ID_BITS, HOST_LEVEL, ID_BITS, LARGE_HOST_CHUNK,
    MIN_NODE_SLOTS, NODE, NODE_HEAD, PLACE_SHIFT, SMALL_HOST_CHUNK_RANGES, UNTIL_NEXT, entry,
    host_level_ids, root,
};
use allowlist_common::ranges::{MatchId, ROOT_BITS};

use super::Chunks;

/// Words of a quad.
const QUAD: usize = 4;

const _: () = assert!(
    MAX_MATCHES <= HOST_LEVEL as u32,
    "an id is no part of a place"
);

/// Chunks, and the pool that they are put into.
#[derive(Default)]
pub(super) struct ChunksV6 {
    /// The place of the first word.
    base: u32,
    pool: Vec<u64>,
    /// Words at its beginning that were there before.
    there: usize,
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

impl Chunks<u128> for ChunksV6 {
    fn place(address: u128) -> usize {
        root((address >> 64) as u64)
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
            self.numbers.push(entry(network, id));
            return;
        }
        let numbers = &mut self.numbers;
        let deep = self.deep.get_or_insert_with(|| {
            // Its first range may begin with it.
            numbers.pop_if(|last| start(*last) == start(entry(network, 0)));
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
        let mut numbers = std::mem::take(&mut self.numbers);
        if numbers.first().is_none_or(|number| start(*number) != 0) {
            numbers.insert(0, entry(0, first));
        }
        if let [alone] = *numbers {
            return (alone as u32) << PLACE_SHIFT;
        }
        CHUNK | self.chunk(&reaching(&numbers))
    }
}

/// Where a number's range begins.
const fn start(number: u64) -> u64 {
    number >> ID_BITS
}

/// A number, and how far it reaches.
#[derive(Clone, Copy)]
struct Begin {
    number: u64,
    reaches: u8,
}

impl Begin {
    const fn start(self) -> u64 {
        start(self.number)
    }
}

/// Numbers without those that only say where the one before them ends, and nobody's begins: if that is 2^n networks long,
/// as a prefix is.
fn reaching(numbers: &[u64]) -> Vec<Begin> {
    let is_nobodys = |number: u64| number & ((1 << ID_BITS) - 1) == 0;
    let mut begins = Vec::with_capacity(numbers.len());
    let mut rest = numbers.iter().copied().peekable();
    while let Some(number) = rest.next() {
        let length = |end: u64| start(end) - start(number);
        let end = rest.next_if(|next| {
            is_nobodys(*next) && !is_nobodys(number) && length(*next).is_power_of_two()
        });
        let reaches = end.map_or(UNTIL_NEXT, |end| length(end).trailing_zeros() as u8);
        begins.push(Begin { number, reaches });
    }
    begins
}

impl ChunksV6 {
    /// To be put behind a pool.
    pub(super) fn after(pool: Vec<u64>) -> Self {
        Self {
            pool,
            ..Self::default()
        }
    }

    /// To be put behind so many words of a pool.
    pub(super) fn behind(words: usize) -> Self {
        let there = words % BLOCK_WORDS; // blocks are where cache lines are
        Self {
            base: u32::try_from(words - there).expect("places are numbers of 32 bits"),
            pool: vec![0; there],
            there,
            ..Self::default()
        }
    }

    /// What is put into the pool.
    pub(super) fn words(mut self) -> Vec<u64> {
        self.pool.split_off(self.there)
    }

    /// The place of what is put into the pool next.
    fn here(&self) -> u32 {
        self.base + u32::try_from(self.pool.len()).expect("a pool's places are numbers of 32 bits")
    }

    /// The same, after what makes it a multiple of so many words, in units of those.
    fn here_by(&mut self, words: usize) -> u32 {
        while !self.here().is_multiple_of(words as u32) {
            self.pool.push(0);
        }
        self.here() / words as u32
    }

    /// Ends the deep network, if there is one; behind it the id is `after`, unless a range begins right there, in
    /// network `next`.
    fn leave(&mut self, next: Option<u64>, after: MatchId) {
        let Some(deep) = self.deep.take() else {
            return;
        };
        let place = self.here_by(QUAD);
        let ids = host_level_ids(place).expect("a pool is never as large");
        self.hosts(&deep);
        for id in [ids.0, ids.1] {
            self.numbers.push(entry(deep.network, id));
        }
        let behind = deep.network.wrapping_add(1);
        let is_in_chunk = behind << ROOT_BITS != 0;
        if is_in_chunk && next != Some(behind) {
            self.numbers.push(entry(behind, after));
        }
    }

    /// Puts a host chunk into the pool.
    fn hosts(&mut self, deep: &Deep) {
        let packed = |ids: &[MatchId]| {
            let placed = ids.iter().zip(0..);
            placed.fold(0, |word, (id, place)| {
                word | u64::from(*id) << (place * HOST_ID_BITS)
            })
        };
        if deep.hosts.len() <= SMALL_HOST_CHUNK_RANGES {
            // Those that are not needed come first, and begin with the network.
            let unused = SMALL_HOST_CHUNK_RANGES - deep.hosts.len();
            let mut ids = vec![deep.first; unused + 1];
            ids.extend(&deep.ids);
            self.pool.push(packed(&ids));
            self.pool.extend(std::iter::repeat_n(0, unused));
            self.pool.extend(&deep.hosts);
            return;
        }
        let count = deep.hosts.len() as u64;
        self.pool
            .push(LARGE_HOST_CHUNK | count << HOST_ID_BITS | u64::from(deep.first));
        self.pool.extend(&deep.hosts);
        self.pool.extend(deep.ids.chunks(4).map(packed));
    }

    /// Puts a chunk's numbers into the pool, or a part of them with the number before it.
    ///
    /// # Returns
    /// What leads to them.
    fn chunk(&mut self, numbers: &[Begin]) -> u32 {
        if numbers.len() <= BLOCK_ENTRIES {
            return self.block(numbers);
        }
        let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
        let scale = Scale::of(&numbers[1..]);
        let last_place = scale.of_number(last);
        let mut index = Vec::new();
        // What is put into one block, for the places of the index from `from` on.
        let mut block = vec![first];
        let mut rest = &numbers[1..];
        let mut before = first;
        for place in 0..=last_place {
            let here = rest.partition_point(|begin| scale.of_number(*begin) <= place);
            let (here, after) = rest.split_at(here);
            if here.len() >= BLOCK_ENTRIES {
                self.lead(&mut index, &mut block, place);
                let part: Vec<Begin> = std::iter::once(before)
                    .chain(here.iter().copied())
                    .collect();
                index.push(self.chunk(&part));
            } else {
                if block.len() + here.len() > BLOCK_ENTRIES {
                    self.lead(&mut index, &mut block, place);
                }
                if block.is_empty() {
                    block.push(before);
                }
                block.extend(here);
            }
            before = *here.last().unwrap_or(&before);
            rest = after;
        }
        self.lead(&mut index, &mut block, last_place + 1);
        index.push(self.block(&[first, last]));
        self.node(&scale, &index)
    }

    /// Puts what is to be in one block into the pool, for the places of an index that are not in it yet, up to `end`.
    fn lead(&mut self, index: &mut Vec<u32>, block: &mut Vec<Begin>, end: u64) {
        let end = end as usize;
        if index.len() < end {
            let leads = self.block(block);
            index.resize(end, leads);
        }
        block.clear();
    }

    fn node(&mut self, scale: &Scale, index: &[u32]) -> u32 {
        let place = self.here_by(BLOCK_WORDS);
        let last = index.len() as u64 - 1;
        self.pool
            .extend([scale.first, u64::from(scale.shift) | last << 32]);
        debug_assert_eq!(NODE_HEAD, 4, "halves of these");
        self.pool.extend(
            index
                .chunks(2)
                .map(|pair| u64::from(pair[0]) | u64::from(*pair.get(1).unwrap_or(&0)) << 32),
        );
        // A node is looked at as a block first, so it must not end before one would.
        let length = self.pool.len().next_multiple_of(BLOCK_WORDS);
        self.pool.resize(length, 0);
        place << PLACE_SHIFT | NODE
    }

    /// Puts numbers into the pool as a block. What it lacks is filled up with the first number: of those that begin at the
    /// same place the last is found.
    fn block(&mut self, numbers: &[Begin]) -> u32 {
        let place = self.here_by(BLOCK_WORDS);
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

/// What an index is by.
struct Scale {
    /// How far starts are shifted.
    shift: u32,
    /// The place of the first one by this scale.
    first: u64,
}

impl Scale {
    /// So that a place has 2 to 4 numbers on average: with fewer, less of the index is in a cache; with more, more places have more
    /// than a block holds. Measured at 100,000 prefixes.
    fn of(numbers: &[Begin]) -> Self {
        let (first, last) = (numbers[0].start(), numbers[numbers.len() - 1].start());
        let most = (numbers.len() as u64 / 2)
            .next_power_of_two()
            .max(MIN_NODE_SLOTS);
        // A shift by one at least: two networks have no more numbers than there is room for in a block, deep or not.
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
