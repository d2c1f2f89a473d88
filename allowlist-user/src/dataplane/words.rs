//! The words that the kernel program reads, mapped into memory: the one store that must be atomic is a
//! plain store, not a copy by a system call.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU64, Ordering};

use allowlist_common::abi::{Control, Fallback};
use anyhow::{Context as _, Result, bail};
use aya::maps::Map;
use memmap2::{MmapOptions, MmapRaw};

/// The control word, and until when somebody reads events.
pub(super) struct ControlWord(Words<2>);

impl ControlWord {
    pub(super) fn map(map: &Map) -> Result<Self> {
        Ok(Self(Words::map(map)?))
    }

    pub(super) fn load(&self) -> Control {
        Control::decode(self.0.word(0).load(Ordering::Acquire))
    }

    /// Tells the kernel until when somebody reads events; 0 is for nobody.
    pub(super) fn watch_until(&self, nanoseconds: u64) {
        self.0.word(1).store(nanoseconds, Ordering::Release);
    }

    pub(super) fn store(&self, control: Control) {
        self.0.word(0).store(control.encode(), Ordering::Release);
    }
}

/// What the kernel falls back to.
pub(super) struct FallbackWords(Words<4>);

impl FallbackWords {
    pub(super) fn map(map: &Map) -> Result<Self> {
        Ok(Self(Words::map(map)?))
    }

    pub(super) fn load(&self) -> Fallback {
        let [until, word, interfaces, spared] =
            [0, 1, 2, 3].map(|place| self.0.word(place).load(Ordering::Acquire));
        Fallback {
            until,
            word,
            interfaces,
            spared,
        }
    }

    /// All of it: not while any packet may be judged by a word that is pending.
    pub(super) fn store(&self, fallback: &Fallback) {
        let Fallback {
            until,
            word,
            interfaces,
            spared,
        } = *fallback;
        for (place, value) in [until, word, interfaces, spared].into_iter().enumerate() {
            self.0.word(place).store(value, Ordering::Release);
        }
    }

    /// Ends the time to confirm: from here on what was before is in force.
    pub(super) fn end(&self) {
        self.0.word(0).store(0, Ordering::Release);
    }

    /// Whether the change filters what is in a slot, which was filtered before.
    pub(super) fn spare(&self, slot: u32, is_spared: bool) {
        let bit = Fallback::bit(slot);
        if is_spared {
            self.0.word(3).fetch_or(bit, Ordering::AcqRel);
        } else {
            self.0.word(3).fetch_and(!bit, Ordering::AcqRel);
        }
    }
}

/// The first words of a map.
struct Words<const N: usize> {
    memory: MmapRaw,
}

impl<const N: usize> Words<N> {
    fn map(map: &Map) -> Result<Self> {
        let Map::Array(array) = map else {
            bail!("what the kernel program goes by is not in an array");
        };
        let fd = array.fd().as_fd().as_raw_fd();
        let memory = MmapOptions::new()
            .len(N * size_of::<u64>())
            .map_raw(fd)
            .context("cannot map what the kernel program goes by into memory")?;
        Ok(Self { memory })
    }

    #[expect(unsafe_code, reason = "an atomic in memory shared with the kernel")]
    #[expect(clippy::cast_ptr_alignment, reason = "the mapping is page-aligned")]
    fn word(&self, place: usize) -> &AtomicU64 {
        assert!(place < N, "the mapping has {N} words");
        // SAFETY: the mapping is page-aligned, has room for `N` words, and lives as long as `self`; the
        // kernel program only reads it, and every access from here is atomic.
        unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().cast::<u64>().add(place)) }
    }
}
