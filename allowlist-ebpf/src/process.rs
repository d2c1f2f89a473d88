//! The kernel program that returns the id of the process that runs it, as the programs of the egress policy see it: in the
//! initial PID namespace.
//!
//! It is attached to nothing: the daemon runs it by `BPF_PROG_TEST_RUN`, which the kernel executes in the calling process
//! (Linux 5.10). It has no maps.
#![no_std]
#![no_main]
#![allow(
    unsafe_code,
    reason = "symbols for the loader, and a helper without arguments; each block has a SAFETY comment"
)]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "symbols for the loader, as those that aya's macros generate"
)]

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;

/// Returns the id of the calling process. aya's macro for this type of program would return 0.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub extern "C" fn allow_process(_ctx: *mut c_void) -> u32 {
    // SAFETY: has no arguments.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // VERIFIER: optimisation removes all panics; if one remained, the kernel would refuse this infinite loop at load.
    loop {}
}
