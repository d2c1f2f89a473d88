//! Empty programs at the hooks of the egress policy: they measure the kernel's own cost per call and packet.

use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};

/// The return value that lets a call or packet continue.
const PASS: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn empty_connect4(_ctx: SockAddrContext) -> i32 {
    PASS
}

#[cgroup_skb]
pub fn empty_sent(_ctx: SkBuffContext) -> i32 {
    PASS
}

#[cgroup_skb]
pub fn empty_received(_ctx: SkBuffContext) -> i32 {
    PASS
}
