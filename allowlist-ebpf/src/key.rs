//! The lookup key of a longest-prefix-match trie.

use aya_ebpf::btf_maps::lpm_trie::Key;

/// A key of a longest-prefix-match trie, with its address at a multiple of 8 bytes.
///
/// VERIFIER: an 8-byte store to the stack must be aligned, and a trie's key has 4 bytes before the address.
#[repr(C, align(8))]
pub(crate) struct AlignedKey<K> {
    unused: u32,
    pub(crate) key: Key<K>,
}

impl<K> AlignedKey<K> {
    #[inline(always)]
    pub(crate) const fn new(length: u32, address: K) -> Self {
        Self {
            unused: 0,
            key: Key::new(length, address),
        }
    }
}
