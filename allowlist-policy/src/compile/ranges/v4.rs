//! Builds the IPv4 chunks that `allowlist_common::ranges::v4` searches. Does not know the meaning of ids.

use std::collections::HashMap;

use allowlist_common::ranges::v4::{
    ID_BITS, LANE_BITS, LARGE_CHUNK, ROOT_SHIFT, SMALL_CHUNK_RANGES, SmallChunk, root,
};
use allowlist_common::ranges::{MatchId, ROOT_BITS};

use super::Chunks;

/// The size of a small chunk, in 32-bit halves of a word.
const SMALL_CHUNK_U32S: usize = size_of::<SmallChunk>() / size_of::<u32>();

/// Builds the IPv4 chunks: the current chunk, and the pool of finished chunks.
#[derive(Default)]
pub(super) struct ChunksV4 {
    /// The index in the whole pool, in 32-bit halves of words, of the first element of `halves`.
    base: u32,
    halves: Vec<u32>,
    /// The ranges of the current chunk, each as one number with the start and the id.
    numbers: Vec<u32>,
    /// The indexes of the chunks whose addresses all have one match id, by this id; in units of small chunks.
    uniform: HashMap<MatchId, u32>,
}

impl ChunksV4 {
    /// Returns a builder of chunks that the caller appends to a pool of `words` 64-bit words.
    pub(super) fn appended_to(words: usize) -> Self {
        Self {
            base: u32::try_from(words * 2).expect("indexes have 32 bits"),
            ..Self::default()
        }
    }

    /// Returns the finished chunks as words of two 32-bit halves.
    pub(super) fn words(&self) -> Vec<u64> {
        let pairs = self.halves.chunks(2);
        pairs
            .map(|pair| u64::from(pair[0]) | u64::from(*pair.get(1).unwrap_or(&0)) << 32)
            .collect()
    }

    /// Returns the index in the whole pool of the next 32-bit half.
    fn here(&self) -> u32 {
        self.base + u32::try_from(self.halves.len()).expect("indexes have 32 bits")
    }

    /// Returns the index, in units of small chunks, of the chunk whose addresses all have the match id `id`; each id
    /// has one such chunk.
    fn uniform(&mut self, id: MatchId) -> u32 {
        if let Some(place) = self.uniform.get(&id) {
            return *place;
        }
        let place = self.small_chunk(id, &[]);
        self.uniform.insert(id, place);
        place
    }

    /// Adds a small chunk with the ranges `numbers` to the pool, and returns its index in units of small chunks.
    /// `first` is the match id of its first address.
    fn small_chunk(&mut self, first: MatchId, numbers: &[u32]) -> u32 {
        while !self.here().is_multiple_of(SMALL_CHUNK_U32S as u32) {
            self.halves.push(0);
        }
        let place = self.here() / SMALL_CHUNK_U32S as u32;
        // Unused ranges come first.
        let unused = SMALL_CHUNK_RANGES - numbers.len();
        let mut chunk = SmallChunk {
            starts: [0; 2],
            ids: [first; 8],
        };
        for (place, number) in (unused..).zip(numbers) {
            chunk.starts[place / 3] |=
                u64::from(number >> ID_BITS) << (place as u32 % 3 * LANE_BITS);
            chunk.ids[place + 1] = *number as MatchId;
        }
        let ids = chunk.ids.as_chunks().0;
        let ids = ids
            .iter()
            .map(|[low, high]| u32::from(*low) | u32::from(*high) << 16);
        let starts = chunk
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
            self.uniform(first) << ROOT_SHIFT
        } else if numbers.len() <= SMALL_CHUNK_RANGES {
            self.small_chunk(first, numbers) << ROOT_SHIFT
        } else {
            let place = self.here();
            self.halves
                .push((numbers.len() as u32) << ID_BITS | u32::from(first));
            self.halves.extend(numbers);
            place << ROOT_SHIFT | LARGE_CHUNK
        }
    }
}
