//! A program that runs until userspace stops it, for the test that a writer waits for running programs: no packet in
//! the filter takes as long as a publish.

use core::ffi::c_void;

use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::bpf_loop;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

/// The state of the program: [`RUNNING`], [`STOP`] or [`DONE`].
#[btf_map]
static LINGERS: Array<u64, 1> = Array::new();
/// The program is running.
const RUNNING: u64 = 1;
/// Userspace requests the program to end.
const STOP: u64 = 2;
/// The program has ended.
const DONE: u64 = 3;

/// The kernel's maximum number of iterations of one loop; each takes a few nanoseconds.
const INNER_ITERATIONS: u32 = 1 << 23;
/// Ends the program after some seconds, before the kernel reports a stall.
const OUTER_ITERATIONS: u32 = 200;

#[xdp]
pub fn linger(_ctx: XdpContext) -> u32 {
    set_state(RUNNING);
    // SAFETY: the callback has the signature that the helper requires, and does not use its context.
    unsafe {
        bpf_loop(
            OUTER_ITERATIONS,
            outer as *mut c_void,
            core::ptr::null_mut(),
            0,
        )
    };
    set_state(DONE);
    XDP_DROP
}

/// Returns 0 to continue the loop.
extern "C" fn outer(_iteration: u32, _context: *mut c_void) -> i64 {
    // SAFETY: as above.
    unsafe {
        bpf_loop(
            INNER_ITERATIONS,
            inner as *mut c_void,
            core::ptr::null_mut(),
            0,
        )
    };
    i64::from(has_state(STOP))
}

/// Returns 0 to continue the loop.
extern "C" fn inner(_iteration: u32, _context: *mut c_void) -> i64 {
    i64::from(has_state(STOP))
}

#[inline(always)]
fn has_state(expected: u64) -> bool {
    // SAFETY: an aligned load from the map's only element.
    LINGERS
        .get_ptr(0)
        .is_some_and(|state| unsafe { state.read_volatile() } == expected)
}

#[inline(always)]
fn set_state(new: u64) {
    if let Some(state) = LINGERS.get_ptr_mut(0) {
        // SAFETY: an aligned store to the map's only element.
        unsafe { state.write_volatile(new) };
    }
}
