//! The control word and the other words that userspace changes while the kernel program reads them.
//!
//! The words are mapped into memory, so that a store is one atomic store and not a copy by a system call.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU64, Ordering};

use allowlist_common::abi::{self, Control, Fallback};
use aya::maps::Map;
use memmap2::{MmapOptions, MmapRaw};

use super::sys::{Access, read_value};
use crate::error::{Context as _, Result, bail};

/// The map [`CONTROL`](abi::CONTROL): the control word, and the time until which drop events are emitted.
pub(super) struct ControlMap(Words<2>);

impl ControlMap {
    pub(super) fn map(map: &Map, access: Access) -> Result<Self> {
        Ok(Self(Words::map(abi::CONTROL, map, access)?))
    }

    pub(super) fn load(&self) -> Control {
        Control::decode(self.raw())
    }

    /// Returns the encoded control word that the kernel program reads.
    pub(super) fn raw(&self) -> u64 {
        self.0.word(0).load(Ordering::Acquire)
    }

    /// Stores the time until which drop events are emitted, in nanoseconds of the kernel's clock; 0 stops them.
    pub(super) fn watch_until(&self, nanoseconds: u64) {
        self.0.word(1).store(nanoseconds, Ordering::Release);
    }

    fn store_raw(&self, word: u64) {
        self.0.word(0).store(word, Ordering::Release);
    }
}

/// The map [`PUBLISHED`](abi::PUBLISHED): a copy of the last stored control word, and whether the filter was detached
/// on purpose.
///
/// Other processes read both from this map.
pub(super) struct PublishedMap(Words<2>);

impl PublishedMap {
    pub(super) fn map(map: &Map, access: Access) -> Result<Self> {
        Ok(Self(Words::map(abi::PUBLISHED, map, access)?))
    }

    /// Returns the encoded control word that was stored last; 0 before the first publish.
    pub(super) fn raw(&self) -> u64 {
        self.0.word(0).load(Ordering::Acquire)
    }

    /// Returns whether the filter is being, or was, detached on purpose.
    pub(super) fn is_detached(&self) -> bool {
        self.0.word(1).load(Ordering::Acquire) != 0
    }

    /// Marks the filter as detached on purpose, for all processes that have this map open.
    pub(super) fn mark_detached(&self) {
        self.0.word(1).store(1, Ordering::Release);
    }
}

/// The control word and its published copy. Every store of the control word is made here, to both.
pub(super) struct PublishedControl {
    control: ControlMap,
    published: PublishedMap,
}

impl PublishedControl {
    pub(super) const fn new(control: ControlMap, published: PublishedMap) -> Self {
        Self { control, published }
    }

    pub(super) fn load(&self) -> Control {
        self.control.load()
    }

    pub(super) fn store(&self, control: Control) {
        let word = control.encode();
        // The copy first: a process that ends between the two leaves the word that was to be stored.
        self.published.0.word(0).store(word, Ordering::Release);
        self.control.store_raw(word);
    }

    /// Stores the published control word again if another process has changed the control word.
    ///
    /// Returns whether the control word was changed.
    pub(super) fn restore(&self) -> bool {
        let published = self.published.raw();
        let is_other = published != 0 && published != self.control.raw();
        if is_other {
            self.control.store_raw(published);
        }
        is_other
    }

    /// Returns whether the filter is being, or was, detached on purpose.
    pub(super) fn is_detached(&self) -> bool {
        self.published.is_detached()
    }
}

/// The map [`FALLBACK`](abi::FALLBACK): the fallback of a pending change.
pub(super) struct FallbackMap(Words<4>);

impl FallbackMap {
    pub(super) fn map(map: &Map, access: Access) -> Result<Self> {
        Ok(Self(Words::map(abi::FALLBACK, map, access)?))
    }

    pub(super) fn load(&self) -> Fallback {
        let [until, word, interfaces, bypassed] =
            [0, 1, 2, 3].map(|place| self.0.word(place).load(Ordering::Acquire));
        Fallback {
            until,
            word,
            interfaces,
            bypassed,
        }
    }

    /// Stores all fields of the fallback. Call it only while the control word is not pending, so that no packet uses
    /// the fallback.
    pub(super) fn store(&self, fallback: &Fallback) {
        let Fallback {
            until,
            word,
            interfaces,
            bypassed,
        } = *fallback;
        for (place, value) in [until, word, interfaces, bypassed].into_iter().enumerate() {
            self.0.word(place).store(value, Ordering::Release);
        }
    }

    /// Sets the deadline of the pending change to the past, so that the fallback is effective at once.
    pub(super) fn end(&self) {
        self.0.word(0).store(0, Ordering::Release);
    }

    /// Sets whether all packets pass, while a change is pending, in an interface slot that was filtered before the
    /// change ([`Fallback::bypassed`]).
    pub(super) fn set_bypassed(&self, slot: u32, is_spared: bool) {
        let bit = Fallback::bit(slot);
        if is_spared {
            self.0.word(3).fetch_or(bit, Ordering::AcqRel);
        } else {
            self.0.word(3).fetch_and(!bit, Ordering::AcqRel);
        }
    }
}

/// The first `N` words of an array map: mapped into memory, or copied for a process that only reads.
struct Words<const N: usize> {
    backing: Backing<N>,
}

enum Backing<const N: usize> {
    Mapped(MmapRaw),
    /// A copy of the words, because the kernel does not map a read-only map into memory.
    Copied([AtomicU64; N]),
}

impl<const N: usize> Words<N> {
    /// Maps or copies the words of `map`; `name` is the map's name, for error messages.
    fn map(name: &str, map: &Map, access: Access) -> Result<Self> {
        let Map::Array(array) = map else {
            bail!("the pinned map {name} has an unexpected type (expected BPF_MAP_TYPE_ARRAY)");
        };
        let fd = array.fd().as_fd();
        let backing = match access {
            Access::ReadWrite => Backing::Mapped(
                MmapOptions::new()
                    .len(N * size_of::<u64>())
                    .map_raw(fd.as_raw_fd())
                    .with_context(|| format!("cannot map the pinned map {name} into memory"))?,
            ),
            Access::ReadOnly => {
                let what = || format!("cannot read the pinned map {name}");
                let info = array.info().with_context(what)?;
                let words = info.value_size() as usize / size_of::<u64>();
                let value = read_value(fd, 0, words).with_context(what)?;
                let word = |place| AtomicU64::new(value.get(place).copied().unwrap_or(0));
                Backing::Copied(std::array::from_fn(word))
            }
        };
        Ok(Self { backing })
    }

    #[expect(unsafe_code, reason = "an atomic in memory shared with the kernel")]
    #[expect(clippy::cast_ptr_alignment, reason = "the mapping is page-aligned")]
    fn word(&self, place: usize) -> &AtomicU64 {
        assert!(place < N, "the mapping has {N} words");
        match &self.backing {
            // SAFETY: the mapping is page-aligned, has room for `N` words, and lives as long as `self`; the
            // kernel program only reads it, and every access from here is atomic.
            Backing::Mapped(memory) => unsafe {
                AtomicU64::from_ptr(memory.as_mut_ptr().cast::<u64>().add(place))
            },
            Backing::Copied(words) => &words[place],
        }
    }
}
