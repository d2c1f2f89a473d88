//! The words that the kernel program reads, mapped into memory: the one store that must be atomic is a
//! plain store, not a copy by a system call.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Context as _, Result, bail};
use allowlist_common::abi::{Control, Fallback};
use aya::maps::Map;
use memmap2::{MmapOptions, MmapRaw};

use super::sys::{Access, read_value};

/// The control word, and the deadline of the reader of events.
pub(super) struct ControlMap(Words<2>);

impl ControlMap {
    pub(super) fn map(map: &Map, access: Access) -> Result<Self> {
        Ok(Self(Words::map(map, access)?))
    }

    pub(super) fn load(&self) -> Control {
        Control::decode(self.raw())
    }

    /// The word as the kernel has it.
    pub(super) fn raw(&self) -> u64 {
        self.0.word(0).load(Ordering::Acquire)
    }

    /// Stores the deadline of the reader of events; 0 if there is none.
    pub(super) fn watch_until(&self, nanoseconds: u64) {
        self.0.word(1).store(nanoseconds, Ordering::Release);
    }

    fn store_raw(&self, word: u64) {
        self.0.word(0).store(word, Ordering::Release);
    }
}

/// A copy of the control word that was stored last, and whether the filter is being detached on purpose. It is what
/// processes share that only read.
pub(super) struct PublishedMap(Words<2>);

impl PublishedMap {
    pub(super) fn map(map: &Map, access: Access) -> Result<Self> {
        Ok(Self(Words::map(map, access)?))
    }

    /// The control word that was stored last; 0 before the first.
    pub(super) fn raw(&self) -> u64 {
        self.0.word(0).load(Ordering::Acquire)
    }

    /// Whether a `detach` has begun.
    pub(super) fn is_detached(&self) -> bool {
        self.0.word(1).load(Ordering::Acquire) != 0
    }

    /// States to every process that has this map open that the filter is being detached on purpose.
    pub(super) fn mark_detached(&self) {
        self.0.word(1).store(1, Ordering::Release);
    }
}

/// The control word with its copy: the one place that stores either.
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

    /// Stores the word again that was stored last, where another process has stored something else.
    ///
    /// # Returns
    /// Whether there was one.
    pub(super) fn restore(&self) -> bool {
        let published = self.published.raw();
        let is_other = published != 0 && published != self.control.raw();
        if is_other {
            self.control.store_raw(published);
        }
        is_other
    }

    /// Whether a `detach` has begun.
    pub(super) fn is_detached(&self) -> bool {
        self.published.is_detached()
    }
}

/// The fallback of a pending change.
pub(super) struct FallbackMap(Words<4>);

impl FallbackMap {
    pub(super) fn map(map: &Map, access: Access) -> Result<Self> {
        Ok(Self(Words::map(map, access)?))
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

    /// Stores the whole fallback. Call it while no packet can use a pending word.
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

    /// Ends the time to confirm: the fallback is active from here on.
    pub(super) fn end(&self) {
        self.0.word(0).store(0, Ordering::Release);
    }

    /// Whether the change filters what is in a slot, which was filtered before.
    pub(super) fn set_bypassed(&self, slot: u32, is_spared: bool) {
        let bit = Fallback::bit(slot);
        if is_spared {
            self.0.word(3).fetch_or(bit, Ordering::AcqRel);
        } else {
            self.0.word(3).fetch_and(!bit, Ordering::AcqRel);
        }
    }
}

/// The first words of a map: its own memory, or for those who only read, a copy.
struct Words<const N: usize> {
    backing: Backing<N>,
}

enum Backing<const N: usize> {
    Mapped(MmapRaw),
    /// The kernel maps nothing into memory that is open for reading alone.
    Copied([AtomicU64; N]),
}

impl<const N: usize> Words<N> {
    fn map(map: &Map, access: Access) -> Result<Self> {
        let Map::Array(array) = map else {
            bail!("the control map has an unexpected type (expected BPF_MAP_TYPE_ARRAY)");
        };
        let fd = array.fd().as_fd();
        let backing = match access {
            Access::ReadWrite => Backing::Mapped(
                MmapOptions::new()
                    .len(N * size_of::<u64>())
                    .map_raw(fd.as_raw_fd())
                    .context("cannot map the control map into memory")?,
            ),
            Access::ReadOnly => {
                let words = array.info()?.value_size() as usize / size_of::<u64>();
                let value = read_value(fd, 0, words).context("cannot read the control map")?;
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
