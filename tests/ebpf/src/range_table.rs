//! A lookup in the product's range table: the filter's own code, in tables that the loader's own code has compiled.

use allowlist_common::abi::{GenerationTables, MIN_POOL_WORDS, SLOTS};
use allowlist_common::packet::Address;
use allowlist_common::volatile::VolatileRef;
use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::{measure4, measure6, ranges};

type TableWords = [u64; size_of::<GenerationTables>() / 8 + MIN_POOL_WORDS as usize];

/// The filter's own map, opened by its pin.
#[btf_map]
static TABLES: Array<TableWords, { SLOTS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// The active slot.
#[unsafe(no_mangle)]
static SLOT: Global<u32> = Global::new(0);

#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[xdp]
pub fn ranges4(ctx: XdpContext) -> u32 {
    measure4(&ctx, |address| find(&Address::V4(address)))
}

#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[xdp]
pub fn ranges6(ctx: XdpContext) -> u32 {
    measure6(&ctx, |address| find(&Address::V6(address)))
}

/// Looks up an address, and returns a number that depends on the result; 0 if no prefix contains it.
#[inline(always)]
fn find(address: &Address) -> u64 {
    let Some(words) = TABLES.get_ptr(SLOT.load()) else {
        return 0;
    };
    // SAFETY: the loader has written tables there, which are not larger and have no greater alignment.
    let tables = unsafe { VolatileRef::new(words.cast::<GenerationTables>()) };
    let grant = ranges::grant(tables, address);
    grant.services() + u64::from(grant.match_id)
}
