//! The maps with the control word and its fallback, which all programs share, and references to map values.

use allowlist_common::abi::{ControlValue, Fallback, GenerationTables, MIN_POOL_WORDS};
use allowlist_common::volatile::VolatileRef;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;

#[btf_map]
static CONTROL: Array<ControlValue, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
/// The fallback of a pending change.
#[btf_map]
pub static FALLBACK: Array<Fallback, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// The tables of one generation with the smallest pool. A map with a larger pool may replace this one.
#[repr(C)]
pub struct Generation {
    tables: GenerationTables,
    pool: [u64; MIN_POOL_WORDS as usize],
}

/// A reference to the value of the map CONTROL.
pub type ControlRef = VolatileRef<'static, ControlValue>;

/// Returns the reference to the control word. Never `None` in practice: the kernel does not load a program with a
/// missing map.
#[inline(always)]
pub fn control() -> Option<ControlRef> {
    CONTROL.get_ptr(0).map(volatile)
}

/// Returns a reference to a value that the kernel has looked up in a map that is not per CPU.
#[inline(always)]
#[expect(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "the programs pass only pointers that a map lookup returned"
)]
pub const fn volatile<T>(value: *const T) -> VolatileRef<'static, T> {
    // SAFETY: the kernel returned the pointer, and keeps the value until the program ends. The value has the type in the
    // map's definition, and is aligned for it.
    unsafe { VolatileRef::new(value) }
}
