//! The memory of an array map, shared with the kernel programs and with processes that read.
//!
//! `store` and `store_half` compile to one aligned store with release ordering: a kernel program sees the old value or
//! the new one, and with the new one every store before it. `write` is a copy in any order, for memory that no program
//! reads yet. [`allowlist_common::volatile`] has the other side of the protocol.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::MapData;
use memmap2::{MmapOptions, MmapRaw};

use crate::error::{Context as _, Result};

/// An array map, mapped into memory or copied, as words of 8 bytes.
pub(super) struct Memory {
    map: MapData,
    backing: Backing,
    words: usize,
}

enum Backing {
    /// The memory of the map, shared with the kernel.
    Mapped(MmapRaw),
    /// A copy of the map's words at one time.
    Copied(Vec<AtomicU64>),
}

impl Memory {
    /// Maps the first `words` words of an array map into memory.
    pub(super) fn map(map: MapData, words: usize) -> Result<Self> {
        let mapped = MmapOptions::new()
            .len(words * size_of::<u64>())
            .map_raw(map.fd().as_fd().as_raw_fd())
            .context("cannot map a kernel table into memory")?;
        Ok(Self {
            map,
            backing: Backing::Mapped(mapped),
            words,
        })
    }

    /// Returns a copy of a map's words as memory that must not be written.
    ///
    /// For maps that are open for reading only, which the kernel does not map into memory.
    pub(super) fn copied(map: MapData, words: Vec<u64>) -> Self {
        Self {
            map,
            words: words.len(),
            backing: Backing::Copied(words.into_iter().map(AtomicU64::new).collect()),
        }
    }

    pub(super) const fn words(&self) -> usize {
        self.words
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }

    pub(super) fn pin(&self, path: &Path) -> Result<()> {
        self.map
            .pin(path)
            .with_context(|| format!("cannot pin the map at {}", path.display()))
    }

    /// Returns `words` words from the index `from` on.
    pub(super) fn part(&self, from: usize, words: usize) -> Part<'_> {
        assert!(
            from + words <= self.words,
            "the map has {} words",
            self.words
        );
        Part {
            memory: self,
            from,
            words,
        }
    }

    /// Returns all words of the map.
    pub(super) fn all(&self) -> Part<'_> {
        self.part(0, self.words)
    }

    /// Returns a pointer to the first word, which is aligned for words.
    fn start(&self) -> *mut u64 {
        match &self.backing {
            Backing::Mapped(mapped) => mapped.as_mut_ptr().cast(),
            Backing::Copied(words) => words.as_ptr().cast_mut().cast(),
        }
    }
}

/// A range of a map's words. Indices count from the first word of the range.
#[derive(Clone, Copy)]
pub(super) struct Part<'m> {
    memory: &'m Memory,
    from: usize,
    words: usize,
}

impl Part<'_> {
    pub(super) const fn words(&self) -> usize {
        self.words
    }

    pub(super) fn load(&self, place: usize) -> u64 {
        self.word(place).load(Ordering::Acquire)
    }

    pub(super) fn store(&self, place: usize, value: u64) {
        self.word(place).store(value, Ordering::Release);
    }

    /// Loads 4 bytes; `place` is an index in units of 4 bytes.
    pub(super) fn load_half(&self, place: usize) -> u32 {
        self.half(place).load(Ordering::Acquire)
    }

    /// Sets 4 bytes to the maximum of their value and `value`, atomically; `place` is an index in units of 4 bytes.
    pub(super) fn raise_half(&self, place: usize, value: u32) {
        self.half(place).fetch_max(value, Ordering::AcqRel);
    }

    /// Stores 4 bytes; `place` is an index in units of 4 bytes.
    pub(super) fn store_half(&self, place: usize, value: u32) {
        self.half(place).store(value, Ordering::Release);
    }

    /// Writes words from the index `place` on, not atomically: no other thread or program may read them at the same
    /// time.
    #[expect(unsafe_code, reason = "memory shared with the kernel")]
    pub(super) fn write(&self, place: usize, words: &[u64]) {
        assert!(
            place + words.len() <= self.words,
            "there are {} words",
            self.words
        );
        // SAFETY: inside the mapping, as just compared, which is aligned for words. The callers ensure that no program
        // uses this memory, and nothing else in this process reads it.
        unsafe {
            let to = self.memory.start().add(self.from + place);
            to.copy_from_nonoverlapping(words.as_ptr(), words.len());
        }
    }

    /// Returns a copy of `words` words from the index `from` on. Each word is loaded atomically, but not all of them
    /// together.
    pub(super) fn read(&self, from: usize, words: usize) -> Vec<u64> {
        (from..from + words).map(|place| self.load(place)).collect()
    }

    /// Copies the words of `other`, up to the smaller size of both. No other thread or program may read this range at
    /// the same time.
    pub(super) fn copy_from(&self, other: &Self) {
        self.write(0, &other.read(0, self.words.min(other.words)));
    }

    #[expect(unsafe_code, reason = "an atomic in memory shared with the kernel")]
    fn word(&self, place: usize) -> &AtomicU64 {
        assert!(place < self.words, "there are {} words", self.words);
        // SAFETY: the mapping or the copy is aligned for words, has room for all words of the part, and lives as long as
        // `self`. Every access from here is atomic, and kernel programs access each number by single loads and stores.
        unsafe { AtomicU64::from_ptr(self.memory.start().add(self.from + place)) }
    }

    #[expect(unsafe_code, reason = "an atomic in memory shared with the kernel")]
    fn half(&self, place: usize) -> &AtomicU32 {
        assert!(place < self.words * 2, "there are {} words", self.words);
        // SAFETY: as above. No caller stores whole words to memory whose halves are stored to.
        unsafe {
            let start = self.memory.start().add(self.from);
            AtomicU32::from_ptr(start.cast::<u32>().add(place))
        }
    }
}
