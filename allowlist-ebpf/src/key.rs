//! The key that a longest-prefix-match trie is asked by.

use aya_ebpf::btf_maps::lpm_trie::Key;

/// VERIFIER: an address on the stack, which is written 8 bytes at a time, must start at a multiple of 8,
/// and a trie's key has 4 bytes before it.
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
