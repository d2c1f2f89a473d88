//! Follows the cgroups of units: records the row of a unit's new cgroup before a process can be in it, and removes the
//! row with the cgroup.
//!
//! The programs are attached to raw tracepoints. The kernel runs them in the system call that creates or removes the
//! cgroup, under the lock of all cgroups and with interrupts disabled. A new directory is visible only after the program
//! has ended, so the first call of the first process in it is judged with the row.

use allowlist_common::abi::{MAX_INTERFACES, MAX_UNIT_TEXT, SLOTS, UnitKey, UnitText};
use allowlist_common::egress::units::name_offset;
use allowlist_ebpf::control::volatile;
use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{HashMap, PerCpuArray};
use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};
use aya_ebpf::macros::{btf_map, raw_tracepoint};
use aya_ebpf::programs::RawTracePointContext;

use crate::maps::UNITS;

/// The maximum number of units in all slots together.
const MAX_TEXTS: usize = (MAX_INTERFACES * SLOTS) as usize;

#[btf_map]
static UNIT_TEXTS: HashMap<UnitText, u32, MAX_TEXTS, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
static UNIT_SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// The buffers that are too large for the stack.
#[repr(C)]
struct Scratch {
    /// The key of a lookup.
    key: UnitText,
    /// Zero bytes, which no program changes.
    zeros: [u8; MAX_UNIT_TEXT],
}

#[unsafe(no_mangle)]
static CGROUP_NODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CGROUP_ROOT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NODE_ID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static ROOT_HIERARCHY: Global<u32> = Global::new(0);

#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro passes the context by value"
)]
#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn allow_mkdir(ctx: RawTracePointContext) -> i32 {
    let _ = record(&ctx);
    0
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro passes the context by value"
)]
#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
pub fn allow_rmdir(ctx: RawTracePointContext) -> i32 {
    if let Some(cgroup) = cgroup_id(&ctx) {
        for slot in 0..SLOTS {
            let _ = UNITS.remove(key(cgroup, slot)); // most cgroups are those of no unit
        }
    }
    0
}

/// Records the rows of a new cgroup in the tables of every slot; returns `None` if the cgroup is not one of version 2,
/// or has too long a path. The daemon finds a cgroup whose row cannot be stored.
#[inline(always)]
fn record(ctx: &RawTracePointContext) -> Option<()> {
    let cgroup = cgroup_id(ctx)?;
    let path: *const u8 = ctx.arg(1);
    let scratch = UNIT_SCRATCH.get_ptr_mut(0)?;
    read(scratch, path)?;
    // SAFETY: this CPU's value of the map, and offsets below its length.
    let byte = |place: usize| unsafe { (&raw const (*scratch).key.text[place]).read_volatile() };
    if let Some(offset) = name_offset(byte) {
        read(scratch, path.wrapping_add(offset))?;
        record_text(scratch, cgroup);
        read(scratch, path)?;
    }
    // Last, as the row of a path includes that of the name.
    record_text(scratch, cgroup);
    Some(())
}

/// Records the rows of a cgroup with the name or path in `scratch`.
#[inline(always)]
fn record_text(scratch: *mut Scratch, cgroup: u64) {
    for slot in 0..SLOTS {
        // SAFETY: this CPU's value of the map, which no other program changes while this one runs.
        let text = unsafe {
            (&raw mut (*scratch).key.slot).write_volatile(slot.into());
            &(*scratch).key
        };
        if let Some(row) = UNIT_TEXTS.get_ptr(text) {
            let _ = UNITS.insert(key(cgroup, slot), volatile(row).load(), 0);
        }
    }
}

/// Reads a string of the kernel to the text in `scratch`, followed by zero bytes. Returns `None` if it is too long.
#[inline(always)]
fn read(scratch: *mut Scratch, from: *const u8) -> Option<()> {
    const LENGTH: u32 = MAX_UNIT_TEXT as u32;
    // VERIFIER: a helper sets the zero bytes, since the verifier would follow a loop for each length of a name.
    // SAFETY: the helpers write `LENGTH` bytes at most, to a field of this size, and check the addresses that they read.
    let length = unsafe {
        let text = (&raw mut (*scratch).key.text).cast();
        let zeros = (&raw const (*scratch).zeros).cast();
        if generated::bpf_probe_read_kernel(text, LENGTH, zeros) != 0 {
            return None;
        }
        generated::bpf_probe_read_kernel_str(text, LENGTH, from.cast())
    };
    // The length includes the zero byte, also of a string that was cut.
    (0 < length && length < LENGTH.into()).then_some(())
}

/// Returns the id of the cgroup that a tracepoint of cgroups has as its first argument; `None` for one of another
/// hierarchy than cgroup v2.
#[inline(always)]
fn cgroup_id(ctx: &RawTracePointContext) -> Option<u64> {
    let cgroup: *const u8 = ctx.arg(0);
    let root: *const u8 = field(cgroup, &CGROUP_ROOT)?;
    let hierarchy: u32 = field(root, &ROOT_HIERARCHY)?;
    if hierarchy != 0 {
        return None;
    }
    let node: *const u8 = field(cgroup, &CGROUP_NODE)?;
    field(node, &NODE_ID)
}

/// Reads a field of a kernel struct, at an offset that userspace has read from the kernel's type information.
#[inline(always)]
fn field<T>(of: *const u8, offset: &Global<u32>) -> Option<T> {
    let address = of.wrapping_add(offset.load() as usize);
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address.cast()) }.ok()
}

/// Returns the key of a cgroup in a slot.
#[inline(always)]
fn key(cgroup: u64, slot: u32) -> UnitKey {
    UnitKey {
        cgroup,
        slot: slot.into(),
    }
}
