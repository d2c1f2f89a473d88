//! Reads the packets to the sockets of the cgroup: records the peers from which unconnected UDP sockets have received,
//! so that replies pass (the egress policy concerns traffic that this host's programs initiate), and reads the answers
//! of resolvers.
//!
//! Runs for every packet to a socket of the cgroup; most end at the test for UDP.

use allowlist_common::abi::Received;
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_TCP_CLOSE;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;

use allowlist_ebpf::control::control;

use crate::answers;
use crate::maps::{RECEIVED, resolvers};
use crate::udp::{self, Datagram, Remote};

/// The return value that lets a packet continue. This program drops no packet.
const PASS: i32 = 1;

#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro passes the context by value"
)]
#[cgroup_skb]
pub fn allow_received(ctx: SkBuffContext) -> i32 {
    let _ = read(&ctx);
    PASS
}

/// Reads a packet; the result has no meaning.
#[inline(always)]
fn read(ctx: &SkBuffContext) -> Option<()> {
    let datagram = udp::read(ctx, Remote::Source)?;
    let word = control()?.bits();
    if !word.has_egress() {
        return None;
    }
    if is_unconnected(ctx) {
        record(ctx, &datagram);
    }
    let resolvers = resolvers(word)?;
    if resolvers.has(&datagram) {
        answers::read(ctx, &datagram, resolvers)?;
    }
    Some(())
}

/// Reports whether the packet's socket is not connected, as that of a UDP server.
#[inline(always)]
fn is_unconnected(ctx: &SkBuffContext) -> bool {
    // SAFETY: the context is this program's; the packet's socket is valid while the program runs.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return false;
        }
        (&raw const (*socket).state).read_volatile() == BPF_TCP_CLOSE
            && (&raw const (*socket).dst_port).read_volatile() == 0
    }
}

/// Records the sender of a datagram.
#[inline(always)]
fn record(ctx: &SkBuffContext, datagram: &Datagram) {
    let key = Received {
        // SAFETY: the context is this program's.
        socket: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        address: datagram.address,
        port: datagram.port.into(),
    };
    // A lookup marks the entry as recently used, and is cheaper than an insertion.
    if RECEIVED.get_ptr(key).is_none() {
        let _ = RECEIVED.insert(key, 1, 0); // fails under contention; the next packet tries again
    }
}
