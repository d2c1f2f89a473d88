//! Source lookup in the kernel's longest-prefix-match tries: the alternative to the range table.

use allowlist_common::abi::Grant;
use allowlist_common::packet::Address;
use allowlist_common::volatile::VolatileRef;
use aya_ebpf::btf_maps::LpmTrie;
use aya_ebpf::macros::btf_map;

use crate::key::AlignedKey;
use crate::maps::{Slots, volatile};

/// A [`Grant`], as words.
///
/// VERIFIER: the value type of an inner map must not be a struct in BTF. `bpf_map_meta_equal` of Linux 5.15 to 6.1
/// compares the timer metadata of the value types, which differs between a map with BTF and one without, as the loader
/// creates them, and then refuses to replace the inner map.
type GrantWords = [u32; size_of::<Grant>() / 4];
type Trie<K> = LpmTrie<K, GrantWords, 1>;

#[btf_map]
static TRIES_V4: Slots<Trie<[u8; 4]>> = Slots::new();
#[btf_map]
static TRIES_V6: Slots<Trie<[u8; 16]>> = Slots::new();

/// Returns the services that a source address may reach, from the tries in a slot; `None` if no prefix contains the
/// address.
#[inline(always)]
pub(crate) fn grant(slot: u32, source: &Address) -> Option<Grant> {
    match *source {
        Address::V4(address) => {
            let key = AlignedKey::new(u32::BITS, address.to_be_bytes());
            let grant = TRIES_V4.get(slot)?.get(&key.key)?;
            Some(load(volatile(grant)))
        }
        Address::V6([network, host]) => {
            let number = u128::from(network) << 64 | u128::from(host);
            let key = AlignedKey::new(u128::BITS, number.to_be_bytes());
            let grant = TRIES_V6.get(slot)?.get(&key.key)?;
            Some(load(volatile(grant)))
        }
    }
}

/// Loads each word of a grant once: words of 4 bytes, because the value is not aligned to 8 bytes.
#[inline(always)]
fn load(words: VolatileRef<'_, GrantWords>) -> Grant {
    let [low, high, match_id] = [0, 1, 2].map(|index| words.at(index).load());
    Grant::new(u64::from(high) << 32 | u64::from(low), match_id)
}
