//! One log line per packet, for `--trace`. Otherwise dead code, which the verifier removes at load.

use allowlist_common::judge::Decision;
use allowlist_common::packet::{Address, Contents, Transport};
use allowlist_common::verdict::{Reason, Verdict};
use aya_ebpf::Global;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;

use crate::frames;

#[unsafe(no_mangle)]
static TRACE: Global<u8> = Global::new(0);

#[inline(always)]
pub(crate) fn is_on() -> bool {
    TRACE.load() != 0
}

/// Logs the decision on the packet that was parsed last on this CPU.
#[inline(always)]
pub(crate) fn log(ctx: &XdpContext, decision: &Decision) {
    log_decision(ctx, decision.verdict as u32, decision.reason as u32);
}

/// A separate function, which has its own stack frame. Takes numbers, because BTF cannot describe enums here.
#[inline(never)]
fn log_decision(ctx: &XdpContext, verdict: u32, reason: u32) {
    let (Some(verdict), Some(reason)) = (
        Verdict::ALL.get(verdict as usize),
        Reason::ALL.get(reason as usize),
    ) else {
        return;
    };
    let (verdict, reason) = (verdict.name(), reason.name());
    let Some(Ok(Contents::Ip(packet))) = frames::last_parsed().map(|parsed| parsed.contents())
    else {
        info!(ctx, "{} {}", verdict, reason);
        return;
    };
    // VERIFIER: one name for both numbers. A name for each, by another log call or an argument, makes the verifier
    // process half as many instructions again, 550,000 instead of 370,000.
    let port_or_type = match packet.transport {
        Transport::Ports { destination, .. } => destination,
        Transport::Icmp { kind, .. } | Transport::IcmpError { kind, .. } => u16::from(kind),
        Transport::LaterFragment | Transport::Other => 0,
    };
    match packet.source {
        Address::V4(source) => info!(
            ctx,
            "{} {} source={:i} protocol={} port-or-type={}",
            verdict,
            reason,
            source,
            packet.protocol,
            port_or_type
        ),
        Address::V6([network, host]) => info!(
            ctx,
            "{} {} source={:i} protocol={} port-or-type={}",
            verdict,
            reason,
            (u128::from(network) << 64 | u128::from(host)).to_be_bytes(),
            packet.protocol,
            port_or_type
        ),
    }
}
