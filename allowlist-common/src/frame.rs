//! A frame to read headers from, wherever it lies: in the kernel's packet memory or in a slice.

/// Bounds-checked access to a frame.
pub trait Frame {
    /// Bytes in the frame.
    fn length(&self) -> usize;

    /// What `read` makes of the `N` bytes at `offset`; nothing where the frame ends before them.
    ///
    /// A closure, so that numbers come out and not bytes: each byte that is kept costs the kernel
    /// program a register.
    fn read<const N: usize, T>(&self, offset: usize, read: impl FnOnce(&[u8; N]) -> T)
    -> Option<T>;

    /// The 16-bit number at `offset`, in network order.
    #[inline(always)]
    fn read_be_u16(&self, offset: usize) -> Option<u16> {
        self.read(offset, |bytes| u16::from_be_bytes(*bytes))
    }

    /// The 128-bit number at `offset`, in network order, as its halves.
    #[inline(always)]
    fn read_be_u128(&self, offset: usize) -> Option<[u64; 2]> {
        self.read::<16, _>(offset, |bytes| [u64_at::<0>(bytes), u64_at::<8>(bytes)])
    }
}

/// The 16-bit number at byte `AT`, in network order.
#[inline(always)]
pub(crate) fn u16_at<const AT: usize>(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(chunk::<AT, 2>(bytes))
}

/// The 32-bit number at byte `AT`, in network order.
#[inline(always)]
pub(crate) fn u32_at<const AT: usize>(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(chunk::<AT, 4>(bytes))
}

/// The 64-bit number at byte `AT`, in network order.
#[inline(always)]
pub(crate) fn u64_at<const AT: usize>(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(chunk::<AT, 8>(bytes))
}

#[inline(always)]
fn chunk<const AT: usize, const LENGTH: usize>(bytes: &[u8]) -> [u8; LENGTH] {
    // Callers have arrays that are long enough, so neither can fail, and the compiler sees it.
    *bytes[AT..]
        .first_chunk()
        .expect("a header is longer than where its fields end")
}

/// For tests and tools on the host.
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
