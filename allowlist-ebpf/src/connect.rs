//! The kernel programs of the egress policy: judge every `connect` and every datagram that a program of this host sends
//! from a socket that is not connected, record from whom such a socket has received, learn the addresses of names from the
//! answers of resolvers, and follow the cgroups of units.
//!
//! The programs are attached to a cgroup, usually the root of cgroup v2, and run in the calling process before a packet
//! is sent. `allowlist_common::egress` makes the decisions. Connections that exist and those that were accepted are
//! never judged.
//!
//! Invariants: the control word is read once per call; every judged call is counted exactly once.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    unsafe_code,
    reason = "the context, map values and symbols for the loader; each block has a SAFETY comment"
)]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "aya's macros generate undocumented items"
)]

#[path = "connect/answers.rs"]
mod answers;
#[path = "connect/count.rs"]
mod count;
#[path = "connect/events.rs"]
mod events;
#[path = "connect/maps.rs"]
mod maps;
#[path = "connect/received.rs"]
mod received;
#[path = "connect/seen.rs"]
mod seen;
#[path = "connect/udp.rs"]
mod udp;
#[path = "connect/units.rs"]
mod units;

use core::arch::asm;

use allowlist_common::abi::{ControlBits, PackedCall};
use allowlist_common::egress::{Call, EgressDecision, Request, decide};
use allowlist_common::packet::{Address, UDP};
use allowlist_common::ranges::opaque;
use allowlist_common::verdict::Verdict;
use allowlist_ebpf::clock;
use allowlist_ebpf::control::{FALLBACK, control, volatile};
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::bpf_set_retval;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::maps::Caller;

/// The return value that lets a call continue.
const PASS: i32 = 1;
/// The return value that refuses a call.
const REFUSE: i32 = 0;

#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro passes the context by value"
)]
#[cgroup_sock_addr(connect4)]
pub fn allow_connect4(ctx: SockAddrContext) -> i32 {
    judge(&ctx, address_v4(&ctx), true)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro passes the context by value"
)]
#[cgroup_sock_addr(connect6)]
pub fn allow_connect6(ctx: SockAddrContext) -> i32 {
    judge(&ctx, address_v6(&ctx), true)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro passes the context by value"
)]
#[cgroup_sock_addr(sendmsg4)]
pub fn allow_sendmsg4(ctx: SockAddrContext) -> i32 {
    judge(&ctx, address_v4(&ctx), false)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro passes the context by value"
)]
#[cgroup_sock_addr(sendmsg6)]
pub fn allow_sendmsg6(ctx: SockAddrContext) -> i32 {
    judge(&ctx, address_v6(&ctx), false)
}

/// Judges a call, counts it, and returns the program's result.
#[inline(always)]
fn judge(ctx: &SockAddrContext, destination: Address, is_connect: bool) -> i32 {
    let Some(control) = control() else {
        return PASS; // never: the kernel does not load a program with a missing map
    };
    let word = effective(control.bits());
    if !word.has_egress() || word.is_open() {
        return PASS;
    }
    let request = request(ctx, destination, is_connect);
    maps::note_asker(word, ctx, &request);
    let decision = match Caller::of(word, ctx) {
        Some(caller) => decide(&request, &caller),
        None => EgressDecision::INTERNAL_ERROR,
    };
    let now = clock::nanoseconds();
    count::record(request.call, &decision, now);
    let call = unknown(
        PackedCall::new(&request, &decision, word.egress_observes()),
        now,
    );
    seen::record(&call, now);
    events::emit(&call);
    if matches!(call.verdict(), Verdict::Pass) || word.egress_observes() {
        return PASS;
    }
    // SAFETY: has no pointer arguments; sets the error of this call.
    unsafe { bpf_set_retval(-word.refusal().errno()) };
    REFUSE
}

/// Returns `call`.
///
/// VERIFIER: makes the verifier forget the values of the call that it knows from the path that led here, so that it
/// verifies the code that follows once, and not once per path. `time` is a number that it does not know.
#[inline(always)]
fn unknown(call: PackedCall, time: u64) -> PackedCall {
    let [high, low] = call.destination;
    let word = |word: u64| {
        let mut word = word;
        // SAFETY: changes one register, twice, so that it has its value again.
        unsafe {
            asm!(
                "{word} ^= {time}",
                "{word} ^= {time}",
                word = inout(reg) word,
                time = in(reg) time,
            );
        }
        word
    };
    PackedCall {
        destination: [word(high), word(low)],
        properties: word(call.properties),
        ids: word(call.ids),
    }
}

/// Returns the control word that is effective now for the egress policy.
#[inline(always)]
fn effective(word: ControlBits) -> ControlBits {
    if !word.is_pending_or_open() {
        return word;
    }
    let Some(fallback) = FALLBACK.get_ptr(0) else {
        return word;
    };
    let fallback = volatile(fallback).load_fields();
    ControlBits(fallback.effective_for_egress(word.0, clock::nanoseconds()))
}

/// Returns a field of the context.
///
/// VERIFIER: the kernel translates loads of the context, which must have the field's width and a constant offset.
macro_rules! load {
    ($ctx:expr, $($field:tt)+) => {{
        let sock_addr: *const bpf_sock_addr = $ctx.sock_addr;
        // SAFETY: the context is this program's, and valid while the program runs.
        unsafe { (&raw const (*sock_addr).$($field)+).read_volatile() }
    }};
}

/// VERIFIER: Linux 6.1 does not know how large a number is after its bytes are swapped, and the compiler does; so
/// numbers that become an index pass through `opaque`.
#[inline(always)]
fn address_v4(ctx: &SockAddrContext) -> Address {
    Address::V4(opaque(u32::from_be(load!(ctx, user_ip4))))
}

#[inline(always)]
fn address_v6(ctx: &SockAddrContext) -> Address {
    let [a, b, c, d] = [
        load!(ctx, user_ip6[0]),
        load!(ctx, user_ip6[1]),
        load!(ctx, user_ip6[2]),
        load!(ctx, user_ip6[3]),
    ]
    .map(|word| u64::from(u32::from_be(word)));
    Address::V6([a << 32 | b, c << 32 | d])
}

/// Returns the request that the context describes.
#[inline(always)]
fn request(ctx: &SockAddrContext, destination: Address, is_connect: bool) -> Request {
    /// The socket type of streams (`SOCK_STREAM`).
    const STREAM: u32 = 1;
    let call = if !is_connect {
        Call::Send
    } else if load!(ctx, type_) == STREAM {
        Call::Connect
    } else {
        Call::Probe
    };
    let socket = load!(ctx, __bindgen_anon_1.sk);
    let local_port = if socket.is_null() || load!(ctx, protocol) != u32::from(UDP) {
        0
    } else {
        // SAFETY: the kernel checked the pointer above, and keeps the socket while the program runs.
        let port = unsafe { (&raw const (*socket).src_port).read_volatile() };
        port as u16
    };
    Request {
        call,
        destination,
        protocol: load!(ctx, protocol),
        port: opaque(u16::from_be(load!(ctx, user_port) as u16).into()) as u16,
        local_port,
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // VERIFIER: optimisation removes all panics; if one remained, the kernel would refuse this infinite loop at load.
    loop {}
}

/// Some helpers require a GPL-compatible licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
