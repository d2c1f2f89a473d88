//! The flow tracker: records the flows that this host initiates on an interface, so that their answers pass.
//!
//! Invariants: packets are neither dropped nor changed. Flows from a port that a service covers are not recorded, unless
//! this host also connects from that service's ports: the service's policy decides on packets to such a port, and a busy
//! service would evict this host's own flows.
//!
//! Records flows under every control word that is not open: the program is attached only where flows are tracked, and
//! before the first packet is judged.

use allowlist_common::abi::ControlBits;
use allowlist_common::flow::{
    Flow, FlowEntry, ForeignPort, Origins, OutboundPacket, Table, Update, max_lifetime, port_table,
};
use allowlist_common::packet::{Contents, TCP, UDP};
use aya_ebpf::bindings::{
    BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING, BPF_TCP_ESTABLISHED, BPF_TCP_FIN_WAIT1, BPF_TCP_FIN_WAIT2,
    BPF_TCP_LAST_ACK, BPF_TCP_SYN_SENT,
};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

use crate::maps::{
    FLOWS, FOREIGN, FOREIGN_PORTS, FlowTable, PEERS, PORTS, control, effective_control, is_served,
    marking, volatile,
};
use allowlist_ebpf::clock;

use crate::{foreign, frames};

/// The action that continues with the next program on this interface (`TCX_NEXT`, `TC_ACT_UNSPEC`).
const NEXT: i32 = -1;

/// Records the flow of an outbound frame, and returns `NEXT`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro passes the context by value"
)]
#[classifier]
pub fn allowlist_track(ctx: TcContext) -> i32 {
    if let Some(control) = control()
        && let word = effective_control(control.bits())
        && !word.is_open()
        && let Some(parsed) = frames::parse(&ctx)
        && let Ok(Contents::Ip(packet)) = parsed.contents()
        && let Some(sent) = OutboundPacket::from_packet(&packet)
    {
        record(&ctx, word, &sent);
    }
    NEXT
}

#[inline(always)]
fn record(ctx: &TcContext, word: ControlBits, sent: &OutboundPacket) {
    let flow = &sent.flow;
    if matches!(flow.protocol, TCP | UDP) && is_served(word, flow.protocol, flow.local_port) {
        return;
    }
    let now = clock::seconds();
    // VERIFIER: initializes both fields on every path; with an `Option` they would be uninitialized for `None`.
    let before = lookup(&FLOWS, flow).map_or(FlowEntry::NONE, |entry| entry);
    let has_socket = before.closing != 0 && has_open_socket(ctx);
    let mut update = sent.update(before, has_socket, now);
    if matches!(update.table, Table::Undecided) {
        update = decide(sent, before, now);
    }
    match update.table {
        Table::Own => refresh_entry(sent, before, update.entry, now),
        Table::Foreign => {
            if before.is_some() {
                let _ = FLOWS.remove(flow); // fails if the entry has just been evicted
            }
            foreign::mark(&flow.foreign(), update.entry, now);
        }
        Table::None | Table::Undecided => {}
    }
}

/// Returns how to update the flow tables for a packet whose own flow entry does not decide it: by the mark of its flow
/// as foreign, and by the times recorded for its local port.
#[inline(always)]
fn decide(sent: &OutboundPacket, before: FlowEntry, now: u32) -> Update {
    let flow = &sent.flow;
    let mark = lookup(&FOREIGN, &flow.foreign()).map_or(FlowEntry::NONE, |entry| entry);
    let port = match FOREIGN_PORTS.get_ptr(flow.local_port.into()) {
        Some(port) if flow.has_foreign_port() => volatile(port).load_fields(),
        _ => ForeignPort {
            received: 0,
            unknown: 0,
        },
    };
    let (is_armed, crowded_until) = marking();
    let origins = Origins {
        is_armed,
        port,
        crowded_until,
    };
    sent.decide(before, mark, &origins, now)
}

/// Writes the entry `after` of an own flow, unless the entry `before` is up to date. An update that extends the flow
/// also extends its peer and its port.
#[inline(always)]
fn refresh_entry(sent: &OutboundPacket, before: FlowEntry, after: FlowEntry, now: u32) {
    let flow = &sent.flow;
    if before.is_equivalent_to(after) {
        return;
    }
    // Fails under contention; the flow's next packet tries again.
    if FLOWS.insert(flow, after, 0).is_err() || after.expires <= before.expires {
        return;
    }
    let _ = PEERS.insert(flow.peer(), sent.peer_entry(now), 0);
    if let Some(ports) = PORTS.get_ptr_mut(0) {
        let until = now + max_lifetime(flow.protocol);
        let table = port_table(flow.protocol);
        // SAFETY: aligned 4-byte stores to the map's only element. Other CPUs may store a time that differs by one
        // second.
        unsafe {
            let table = &raw mut (*ports).until[table];
            (&raw mut (*table)[flow.local_port as usize]).write_volatile(until);
            (&raw mut (*table)[0]).write_volatile(until);
        }
    }
}

/// Reports whether a packet comes from an open socket: neither closed nor in TIME-WAIT.
#[inline(always)]
fn has_open_socket(ctx: &TcContext) -> bool {
    /// The open states: ESTABLISHED, SYN-SENT, FIN-WAIT-1, FIN-WAIT-2, CLOSE-WAIT, LAST-ACK and CLOSING.
    const OPEN: u32 = 1 << BPF_TCP_ESTABLISHED
        | 1 << BPF_TCP_SYN_SENT
        | 1 << BPF_TCP_FIN_WAIT1
        | 1 << BPF_TCP_FIN_WAIT2
        | 1 << BPF_TCP_CLOSE_WAIT
        | 1 << BPF_TCP_LAST_ACK
        | 1 << BPF_TCP_CLOSING;
    // SAFETY: the context is this program's; the packet's socket is valid while the program runs.
    let state = unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return false;
        }
        (&raw const (*socket).state).read_volatile()
    };
    OPEN >> (state % 32) & 1 != 0
}

/// Scratch memory for the key of a lookup.
///
/// VERIFIER: on the stack, each lookup would need its own 40 bytes of the 512.
#[btf_map]
static KEY: PerCpuArray<Flow, 1> = PerCpuArray::new();

/// Returns the entry of a flow in a table.
#[inline(always)]
pub(crate) fn lookup<const ENTRIES: usize>(
    table: &FlowTable<ENTRIES>,
    flow: &Flow,
) -> Option<FlowEntry> {
    let key = KEY.get_ptr_mut(0)?;
    // SAFETY: this CPU's copy, and no other program runs on this CPU at the same time.
    let key = unsafe {
        key.write(*flow);
        &*key
    };
    let entry = table.get_ptr(key)?;
    // The kernel writes an entry before it becomes visible. If it is evicted and reused during the load, the result may
    // have another flow's times, which at worst shortens or extends this flow's.
    Some(volatile(entry).load_fields())
}
