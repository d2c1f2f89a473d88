//! A frame to read bytes from, wherever it lies: in the kernel's packet memory or in a slice.

/// Bounds-checked access to a received frame.
pub trait Frame {
    /// Bytes in the frame.
    fn length(&self) -> usize;

    /// The `N` bytes at `offset`, or nothing where the frame ends before them.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The byte at `offset`.
    #[inline(always)]
    fn byte(&self, offset: usize) -> Option<u8> {
        self.bytes::<1>(offset).map(|[byte]| byte)
    }

    /// The 16-bit number at `offset`, in network order.
    #[inline(always)]
    fn number(&self, offset: usize) -> Option<u16> {
        self.bytes(offset).map(u16::from_be_bytes)
    }
}

/// For tests and tools on the host.
impl Frame for [u8] {
    fn length(&self) -> usize {
        self.len()
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}
