//! A packet that takes its time, for the test that whoever writes to a table waits for packets: no packet of the
//! filter's takes as long as a publish.

use core::ffi::c_void;

use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::bpf_loop;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

/// [`HERE`], and so on.
#[btf_map]
static LINGERS: Array<u64, 1> = Array::new();
/// The packet is there.
const HERE: u64 = 1;
/// Userspace lets it go.
const GO: u64 = 2;
/// It is gone.
const GONE: u64 = 3;

/// As many as the kernel takes at once; each is a few nanoseconds.
const TURNS: u32 = 1 << 23;
/// So that it ends before the kernel complains, after some seconds.
const MOST: u32 = 200;

#[xdp]
pub fn linger(_ctx: XdpContext) -> u32 {
    set(HERE);
    // SAFETY: the functions take what the helper gives them, and read nothing of it.
    unsafe { bpf_loop(MOST, turns as *mut c_void, core::ptr::null_mut(), 0) };
    set(GONE);
    XDP_DROP
}

/// 0 is for more of them.
extern "C" fn turns(_number: u32, _context: *mut c_void) -> i64 {
    // SAFETY: as above.
    unsafe { bpf_loop(TURNS, turn as *mut c_void, core::ptr::null_mut(), 0) };
    i64::from(is(GO))
}

/// 0 is for another one.
extern "C" fn turn(_number: u32, _context: *mut c_void) -> i64 {
    i64::from(is(GO))
}

#[inline(always)]
fn is(wanted: u64) -> bool {
    // SAFETY: the map's one element, which is loaded whole.
    LINGERS
        .get_ptr(0)
        .is_some_and(|state| unsafe { state.read_volatile() } == wanted)
}

#[inline(always)]
fn set(now: u64) {
    if let Some(state) = LINGERS.get_ptr_mut(0) {
        // SAFETY: the map's one element, which is stored whole.
        unsafe { state.write_volatile(now) };
    }
}
