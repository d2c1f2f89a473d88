//! Access to the bytes of a frame, in the kernel's packet memory or in a slice.

/// Bounds-checked access to the bytes of a frame.
pub trait Frame {
    /// Returns the frame's size in bytes.
    fn length(&self) -> usize;

    /// Returns the result of `read` on the `N` bytes at `offset`, or `None` if the frame ends before them.
    ///
    /// Takes a closure, so that the kernel program keeps the decoded fields in registers and not single bytes.
    fn read<const N: usize, T>(&self, offset: usize, read: impl FnOnce(&[u8; N]) -> T)
    -> Option<T>;

    /// Returns the 16-bit big-endian number at `offset`, or `None` if the frame ends before.
    #[inline(always)]
    fn read_be_u16(&self, offset: usize) -> Option<u16> {
        self.read(offset, |bytes| u16::from_be_bytes(*bytes))
    }

    /// Returns the 128-bit big-endian number at `offset` as its upper and lower half, or `None` if the frame ends
    /// before.
    #[inline(always)]
    fn read_be_u128(&self, offset: usize) -> Option<[u64; 2]> {
        self.read::<16, _>(offset, |bytes| [u64_at::<0>(bytes), u64_at::<8>(bytes)])
    }
}

/// Returns the 16-bit big-endian number at byte `AT`.
#[inline(always)]
pub(crate) fn u16_at<const AT: usize>(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(chunk::<AT, 2>(bytes))
}

/// Returns the 32-bit big-endian number at byte `AT`.
#[inline(always)]
pub(crate) fn u32_at<const AT: usize>(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(chunk::<AT, 4>(bytes))
}

/// Returns the 64-bit big-endian number at byte `AT`.
#[inline(always)]
pub(crate) fn u64_at<const AT: usize>(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(chunk::<AT, 8>(bytes))
}

#[inline(always)]
fn chunk<const AT: usize, const LENGTH: usize>(bytes: &[u8]) -> [u8; LENGTH] {
    // Callers pass arrays that are long enough, so the compiler removes both checks.
    *bytes[AT..]
        .first_chunk()
        .expect("the field is inside the header")
}

/// Implements access to frames in memory, for userspace and tests.
impl Frame for [u8] {
    fn length(&self) -> usize {
        self.len()
    }

    fn read<const N: usize, T>(
        &self,
        offset: usize,
        read: impl FnOnce(&[u8; N]) -> T,
    ) -> Option<T> {
        self.get(offset..)?.first_chunk().map(read)
    }
}
