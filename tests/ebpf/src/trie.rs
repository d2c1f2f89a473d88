//! A lookup in the kernel's longest-prefix-match trie.

use allowlist_common::abi::Grant;
use aya_ebpf::btf_maps::LpmTrie;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::key::AlignedKey;
use crate::{measure4, measure6};

/// A value of the size of the filter's.
type Value = [u32; size_of::<Grant>() / 4];

// The loader sets the number of entries.
#[btf_map]
static TRIE_V4: LpmTrie<[u8; 4], Value, 1> = LpmTrie::new();
#[btf_map]
static TRIE_V6: LpmTrie<[u8; 16], Value, 1> = LpmTrie::new();

#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[xdp]
pub fn trie4(ctx: XdpContext) -> u32 {
    measure4(&ctx, find4)
}

#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[xdp]
pub fn trie6(ctx: XdpContext) -> u32 {
    measure6(&ctx, |[network, host]| {
        let number = u128::from(network) << 64 | u128::from(host);
        let key = AlignedKey::new(128, number.to_be_bytes());
        TRIE_V6.get(&key.key).map_or(0, sum)
    })
}

/// Looks up an IPv4 address, and returns the sum of the value's words; 0 if no prefix contains it.
#[inline(always)]
pub(crate) fn find4(address: u32) -> u64 {
    let key = AlignedKey::new(32, address.to_be_bytes());
    TRIE_V4.get(&key.key).map_or(0, sum)
}

/// Loads all words of a value, as the filter does.
#[inline(always)]
fn sum(value: &Value) -> u64 {
    value.iter().map(|word| u64::from(*word)).sum()
}
