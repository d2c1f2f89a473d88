//! Records the flows that this host initiates on an interface, so that their answers pass.
//!
//! Invariants: no packet is delayed or changed; only the maps' entries are.
//! Flows from a port that a service covers are not recorded, unless this host connects from that service's ports
//! as well: packets to such a port are the service's to judge, and a busy service would evict this host's own flows.
//!
//! Flows are recorded under every control word, since the program is attached only where that is needed: from
//! a little before the first packet is judged.

use allowlist_common::abi::ControlBits;
use allowlist_common::flow::{
    Flow, FlowEntry, ForeignPort, Origins, OutboundPacket, Table, Update, max_lifetime, port_table,
};
use allowlist_common::packet::{Contents, TCP, UDP};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

use crate::maps::{
    ControlRef, FLOWS, FOREIGN, FOREIGN_PORTS, FlowTable, PEERS, PORTS, effective_control,
    is_served, marking,
};
use crate::{clock, foreign, frames};

/// To the next program on this interface (`TCX_NEXT`, `TC_ACT_UNSPEC`).
const NEXT: i32 = -1;
/// The entry point for frames that are sent.
#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[classifier]
pub fn allowlist_track(ctx: TcContext) -> i32 {
    if let Some(control) = ControlRef::get()
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
    // VERIFIER: both fields have a value on every path, which an `Option`'s would not.
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
                let _ = FLOWS.remove(flow); // fails if it was just evicted
            }
            foreign::mark(&flow.foreign(), update.entry, now);
        }
        Table::None | Table::Undecided => {}
    }
}

/// The update of a packet that its own entry leaves undecided: by its mark, and by its port where it has none.
#[inline(always)]
fn decide(sent: &OutboundPacket, before: FlowEntry, now: u32) -> Update {
    let flow = &sent.flow;
    let mark = lookup(&FOREIGN, &flow.foreign()).map_or(FlowEntry::NONE, |entry| entry);
    let port = match FOREIGN_PORTS.get(flow.local_port.into()) {
        Some(port) if flow.has_foreign_port() => *port,
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

/// Writes the entry of an own flow, unless it has it already; what extends the flow extends its peer and port.
#[inline(always)]
fn refresh_entry(sent: &OutboundPacket, before: FlowEntry, after: FlowEntry, now: u32) {
    let flow = &sent.flow;
    if before.is_equivalent_to(after) {
        return;
    }
    // Fails when the map is busy; the next packet tries again.
    if FLOWS.insert(flow, after, 0).is_err() || after.expires <= before.expires {
        return;
    }
    let _ = PEERS.insert(flow.peer(), sent.peer_entry(now), 0);
    if let Some(ports) = PORTS.get_ptr_mut(0) {
        let until = now + max_lifetime(flow.protocol);
        let table = port_table(flow.protocol);
        // SAFETY: the map's one element. Another CPU may store a second more or less meanwhile.
        unsafe {
            (*ports).until[table][flow.local_port as usize] = until;
            (*ports).until[table][0] = until;
        }
    }
}

/// Whether a packet comes from a socket that is neither closed nor waits for stray segments only.
#[inline(always)]
fn has_open_socket(ctx: &TcContext) -> bool {
    /// By the kernel's number of a TCP state: all but closed, listening, waiting and opened by the other side.
    const OPEN: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
    // SAFETY: the context is this program's own; the socket is the packet's for as long as it is seen here.
    let state = unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return false;
        }
        (&raw const (*socket).state).read_volatile()
    };
    OPEN >> (state % 32) & 1 != 0
}

/// VERIFIER: a key as large as a flow takes much of the stack, at each place that looks for one.
#[btf_map]
static KEY: PerCpuArray<Flow, 1> = PerCpuArray::new();

/// The entry of a flow in a table.
#[inline(always)]
pub(crate) fn lookup<const ROOM: usize>(table: &FlowTable<ROOM>, flow: &Flow) -> Option<FlowEntry> {
    let key = KEY.get_ptr_mut(0)?;
    // SAFETY: this CPU's own, and no other program runs on this CPU meanwhile.
    let key = unsafe {
        key.write(*flow);
        &*key
    };
    let entry = table.get_ptr(key)?;
    // SAFETY: an entry is written whole before it is found. One that is evicted meanwhile may hold
    // another flow's times, which at worst ends or prolongs this one by those.
    Some(unsafe { *entry })
}
