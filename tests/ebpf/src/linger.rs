//! A packet that takes its time, for the test that whoever writes to a table waits for packets: no packet of the
//! filter's takes as long as a publish.

use core::ffi::c_void;

use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::bpf_loop;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

/// 1 once the packet is there, 2 once it is gone.
#[btf_map]
static LINGERS: Array<u64, 1> = Array::new();

/// As many as the kernel takes at once; each is a few nanoseconds.
const TURNS: u32 = 1 << 23;

#[xdp]
pub fn linger(_ctx: XdpContext) -> u32 {
    let Some(state) = LINGERS.get_ptr_mut(0) else {
        return XDP_DROP;
    };
    // SAFETY: the map's one element, which only one packet at a time writes to.
    unsafe { state.write_volatile(1) };
    for _ in 0..4 {
        // SAFETY: the function takes what the helper gives it, and reads nothing of it.
        unsafe { bpf_loop(TURNS, turn as *mut c_void, core::ptr::null_mut(), 0) };
    }
    // SAFETY: as above.
    unsafe { state.write_volatile(2) };
    XDP_DROP
}

/// 0 is for another turn.
extern "C" fn turn(_number: u32, _context: *mut c_void) -> i64 {
    0
}
