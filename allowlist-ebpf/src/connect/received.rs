//! Records from whom unconnected UDP sockets have received, so that their replies pass: the egress policy concerns what
//! this host's programs initiate.
//!
//! Runs for every packet to a socket of the cgroup. Packets to other sockets end at a test of the socket's state.

use allowlist_common::abi::Received;
use allowlist_common::egress::address_key;
use allowlist_common::packet::wire::{extension, ipv4, ipv6};
use allowlist_common::packet::{Address, UDP};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_TCP_CLOSE;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;

use allowlist_ebpf::control::control;

use crate::maps::RECEIVED;

/// The return value that lets a packet continue. This program drops no packet.
const PASS: i32 = 1;
/// The maximum number of headers after the fixed IPv6 header, including the UDP header. The sender of a packet with
/// more is not recorded.
const MAX_EXTENSIONS: usize = 6;

#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro passes the context by value"
)]
#[cgroup_skb]
pub fn allow_received(ctx: SkBuffContext) -> i32 {
    if is_unconnected(&ctx) && control().is_some_and(|control| control.bits().has_egress()) {
        let _ = record(&ctx);
    }
    PASS
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

/// Records the sender of a UDP packet; returns `None` for a packet that is not UDP or cannot be parsed.
#[inline(always)]
fn record(ctx: &SkBuffContext) -> Option<()> {
    let first: u8 = ctx.load(0).ok()?;
    let (address, header) = match first >> 4 {
        4 => sender_v4(ctx, first)?,
        6 => sender_v6(ctx)?,
        _ => return None,
    };
    let port = u16::from_be(ctx.load(header).ok()?);
    let key = Received {
        // SAFETY: the context is this program's.
        socket: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        address: address_key(address),
        port: port.into(),
    };
    // A lookup marks the entry as recently used, and is cheaper than an insertion.
    if RECEIVED.get_ptr(key).is_none() {
        let _ = RECEIVED.insert(key, 1, 0); // fails under contention; the next packet tries again
    }
    Some(())
}

#[inline(always)]
fn sender_v4(ctx: &SkBuffContext, first: u8) -> Option<(Address, usize)> {
    let protocol: u8 = ctx.load(ipv4::PROTOCOL_AT).ok()?;
    if protocol != UDP {
        return None;
    }
    let source: u32 = ctx.load(ipv4::SOURCE_AT).ok()?;
    let header = usize::from(first & ipv4::HEADER_LENGTH) * ipv4::HEADER_LENGTH_UNIT;
    Some((Address::V4(u32::from_be(source)), header))
}

#[inline(always)]
fn sender_v6(ctx: &SkBuffContext) -> Option<(Address, usize)> {
    let mut next: u8 = ctx.load(ipv6::NEXT_HEADER_AT).ok()?;
    let mut header = ipv6::HEADER;
    for _ in 0..=MAX_EXTENSIONS {
        match next {
            UDP => {
                let network: u64 = ctx.load(ipv6::SOURCE_AT).ok()?;
                let host: u64 = ctx.load(ipv6::SOURCE_AT + 8).ok()?;
                return Some((
                    Address::V6([u64::from_be(network), u64::from_be(host)]),
                    header,
                ));
            }
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {
                next = ctx.load(header).ok()?;
                let units: u8 = ctx.load(header + 1).ok()?;
                header += (usize::from(units) + 1) * 8;
            }
            extension::FRAGMENT => {
                next = ctx.load(header).ok()?;
                header += 8;
            }
            _ => return None,
        }
    }
    None
}
