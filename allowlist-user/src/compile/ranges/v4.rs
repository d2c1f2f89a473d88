//! The chunks of IPv4: what `allowlist_common::ranges::v4` searches in. Knows of ids what they are, not what they mean.

use std::collections::HashMap;

use allowlist_common::ranges::v4::{
    ID_BITS, LANE_BITS, LARGE_CHUNK, ROOT_SHIFT, SMALL_CHUNK_RANGES, SmallChunk, root,
};
use allowlist_common::ranges::{MatchId, ROOT_BITS};

use super::Chunks;

/// Halves of a six.
const SMALL_CHUNK_U32S: usize = size_of::<SmallChunk>() / size_of::<u32>();

/// Chunks, and the pool that they are put into.
#[derive(Default)]
pub(super) struct ChunksV4 {
    /// The place of the first half.
    base: u32,
    halves: Vec<u32>,
    /// The numbers of the chunk that is being made.
    numbers: Vec<u32>,
    /// The places of the chunks that have an id and nothing else.
    alone: HashMap<MatchId, u32>,
}

impl ChunksV4 {
    /// To be put behind so many words of a pool.
    pub(super) fn behind(words: usize) -> Self {
        Self {
            base: u32::try_from(words * 2).expect("places are numbers of 32 bits"),
            ..Self::default()
        }
    }

    /// What is put into the pool, two halves to a word.
    pub(super) fn words(&self) -> Vec<u64> {
        let pairs = self.halves.chunks(2);
        pairs
            .map(|pair| u64::from(pair[0]) | u64::from(*pair.get(1).unwrap_or(&0)) << 32)
            .collect()
    }

    /// The place of what is put into the pool next.
    fn here(&self) -> u32 {
        self.base + u32::try_from(self.halves.len()).expect("places are numbers of 32 bits")
    }

    /// The chunk of the addresses that nothing tells apart, one for each id.
    fn alone(&mut self, id: MatchId) -> u32 {
        if let Some(place) = self.alone.get(&id) {
            return *place;
        }
        let place = self.six(id, &[]);
        self.alone.insert(id, place);
        place
    }

    /// Puts a chunk of few ranges into the pool.
    fn six(&mut self, first: MatchId, numbers: &[u32]) -> u32 {
        while !self.here().is_multiple_of(SMALL_CHUNK_U32S as u32) {
            self.halves.push(0);
        }
        let place = self.here() / SMALL_CHUNK_U32S as u32;
        // Those that are not needed come first.
        let unused = SMALL_CHUNK_RANGES - numbers.len();
        let mut six = SmallChunk {
            starts: [0; 2],
            ids: [first; 8],
        };
        for (place, number) in (unused..).zip(numbers) {
            six.starts[place / 3] |= u64::from(number >> ID_BITS) << (place as u32 % 3 * LANE_BITS);
            six.ids[place + 1] = *number as MatchId;
        }
        let ids = six.ids.as_chunks().0;
        let ids = ids
            .iter()
            .map(|[low, high]| u32::from(*low) | u32::from(*high) << 16);
        let starts = six
            .starts
            .iter()
            .flat_map(|word| [*word as u32, (*word >> 32) as u32]);
        self.halves.extend(starts.chain(ids));
        place
    }
}

impl Chunks<u32> for ChunksV4 {
    fn place(address: u32) -> usize {
        root(address)
    }

    fn add(&mut self, first: u32, _before: MatchId, id: MatchId) {
        self.numbers.push(first << ROOT_BITS | u32::from(id));
    }

    fn end(&mut self, first: MatchId, _last: MatchId) -> u32 {
        let numbers = std::mem::take(&mut self.numbers);
        let (first, numbers) = match numbers.split_first() {
            Some((number, rest)) if number >> ID_BITS == 0 => (*number as MatchId, rest),
            _ => (first, &*numbers),
        };
        if numbers.is_empty() {
            self.alone(first) << ROOT_SHIFT
        } else if numbers.len() <= SMALL_CHUNK_RANGES {
            self.six(first, numbers) << ROOT_SHIFT
        } else {
            let place = self.here();
            self.halves
                .push((numbers.len() as u32) << ID_BITS | u32::from(first));
            self.halves.extend(numbers);
            place << ROOT_SHIFT | LARGE_CHUNK
        }
    }
}
