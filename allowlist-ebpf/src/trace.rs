//! One log line a packet, for `--trace`. Off, it is dead code that the verifier removes at load.

use allowlist_common::judge::Decision;
use allowlist_common::packet::{Address, Malformed, Packet, Transport};
use aya_ebpf::Global;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;

#[unsafe(no_mangle)]
static TRACE: Global<u8> = Global::new(0);

#[inline(always)]
pub(crate) fn is_on() -> bool {
    TRACE.load() != 0
}

/// Inlined, since BTF cannot describe a function whose arguments are Rust enums with data.
#[inline(always)]
pub(crate) fn log(
    ctx: &XdpContext,
    parsed: &Result<Option<Packet>, Malformed>,
    decision: &Decision,
) {
    let (verdict, reason) = (decision.verdict.name(), decision.reason.name());
    let Ok(Some(packet)) = parsed else {
        info!(ctx, "{} {}", verdict, reason);
        return;
    };
    let port = match packet.transport {
        Transport::Ports { destination, .. } => destination,
        Transport::Icmp(kind) => u16::from(kind),
        Transport::LaterFragment | Transport::Other => 0,
    };
    match packet.source {
        Address::V4(source) => info!(
            ctx,
            "{} {} source={:i} protocol={} port={}", verdict, reason, source, packet.protocol, port
        ),
        Address::V6(source) => info!(
            ctx,
            "{} {} source={:i} protocol={} port={}", verdict, reason, source, packet.protocol, port
        ),
    }
}
