//! The other lookup: a source in the kernel's longest-prefix-match tries.

use allowlist_common::abi::Grant;
use allowlist_common::packet::Address;
use aya_ebpf::btf_maps::LpmTrie;
use aya_ebpf::macros::btf_map;

use crate::key::AlignedKey;
use crate::maps::Slots;

/// VERIFIER: values of maps in slots must not be structs to BTF. Linux 5.15 to 6.1 compares what it
/// knows of a timer in them (`bpf_map_meta_equal`), which differs between a map made from BTF and one
/// made without, as the loader makes them, and refuses to put the one in the other's place.
type GrantWords = [u32; size_of::<Grant>() / 4];
type Trie<K> = LpmTrie<K, GrantWords, 1>;

#[btf_map]
static TRIES_V4: Slots<Trie<[u8; 4]>> = Slots::new();
#[btf_map]
static TRIES_V6: Slots<Trie<[u8; 16]>> = Slots::new();

/// What a source may reach, by the tries in a slot.
#[inline(always)]
pub(crate) fn grant(slot: u32, source: &Address) -> Option<Grant> {
    match *source {
        Address::V4(address) => {
            let key = AlignedKey::new(32, address.to_be_bytes());
            TRIES_V4.get(slot)?.get(&key.key).map(grant_of)
        }
        Address::V6([network, host]) => {
            let number = u128::from(network) << 64 | u128::from(host);
            let key = AlignedKey::new(128, number.to_be_bytes());
            TRIES_V6.get(slot)?.get(&key.key).map(grant_of)
        }
    }
}

#[inline(always)]
const fn grant_of(words: &GrantWords) -> Grant {
    // SAFETY: the loader wrote a grant there, which is as large, and any bits are one.
    unsafe { core::mem::transmute(*words) }
}
