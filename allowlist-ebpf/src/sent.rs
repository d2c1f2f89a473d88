//! Notes the flows that this host sends on an interface, so that their answers can be told.
//!
//! Invariants: no packet is held up or changed, whatever happens here; only the map's entries tell of
//! it. Flows from a port that a service covers are not noted: what comes to such a port is the
//! service's to judge, and a busy service would push this host's own flows out of the map.
//!
//! It notes whatever the control word says, since it is there only where that is wanted: from a little
//! before the first packet is judged by it.

use allowlist_common::abi::Word;
use allowlist_common::flow::{Flow, Sent, Tracked, longest, port_table};
use allowlist_common::packet::{Contents, TCP, UDP};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

use crate::maps::{FLOWS, PORTS, Told, in_force, service_of_port};
use crate::{clock, frames};

/// To the next program on this interface (`TCX_NEXT`, `TC_ACT_UNSPEC`).
const NEXT: i32 = -1;
/// An entry that lives at least so close to its age is not written again: seconds.
const FRESH: u32 = 1;

/// The entry point for frames that are sent.
#[expect(clippy::needless_pass_by_value, reason = "the macro passes it so")]
#[classifier]
pub fn allowlist_sent(ctx: TcContext) -> i32 {
    if let Some(told) = Told::here()
        && let word = in_force(told.word())
        && !word.is_open()
        && let Some(parsed) = frames::parsed(&ctx)
        && let Ok(Contents::Ip(packet)) = parsed.contents()
        && let Some(sent) = Sent::of(&packet)
    {
        note(word, &sent);
    }
    NEXT
}

#[inline(always)]
fn note(word: Word, sent: &Sent) {
    let flow = &sent.flow;
    if matches!(flow.protocol, TCP | UDP)
        && service_of_port(word, flow.protocol, flow.local_port) != 0
    {
        return;
    }
    let now = clock::seconds();
    match prolong(sent, now) {
        Some(entry) if !entry.is_foreign() => {}
        _ => return, // nobody's, or the peer and the ports were noted less than a second ago
    }
    let peer = Sent {
        flow: flow.peer(),
        flags: 0,
    };
    prolong(&peer, now);
    if let Some(ports) = PORTS.get_ptr_mut(0) {
        let until = now + longest(flow.protocol);
        let table = port_table(flow.protocol);
        // SAFETY: the map's one element. Another CPU may store a second more or less meanwhile.
        unsafe {
            (*ports).until[table][flow.local_port as usize] = until;
            (*ports).until[table][0] = until;
        }
    }
}

/// Writes the entry of a flow, unless it says the same already.
///
/// # Returns
/// What was written.
#[inline(always)]
fn prolong(sent: &Sent, now: u32) -> Option<Tracked> {
    // VERIFIER: both fields have a value on every path, which an `Option`'s would not.
    let before = find(&sent.flow).map_or(Tracked::NONE, |entry| entry);
    let after = Tracked::after(before, sent, now);
    if before != Tracked::NONE
        && before.closing == after.closing
        && before.expires <= after.expires
        && after.expires - before.expires < FRESH
    {
        return None;
    }
    // Fails when the map is busy; the next packet tries again.
    FLOWS.insert(sent.flow, after, 0).ok().map(|()| after)
}

/// VERIFIER: a key as large as a flow takes much of the stack, at each place that looks for one.
#[btf_map]
static KEY: PerCpuArray<Flow, 1> = PerCpuArray::new();

/// The entry of a flow.
#[inline(always)]
pub(crate) fn find(flow: &Flow) -> Option<Tracked> {
    let key = KEY.get_ptr_mut(0)?;
    // SAFETY: this CPU's own, and no other program runs on this CPU meanwhile.
    let key = unsafe {
        key.write(*flow);
        &*key
    };
    let entry = FLOWS.get_ptr(key)?;
    // SAFETY: an entry is written whole before it is found. One that is evicted meanwhile may hold
    // another flow's times, which at worst ends or prolongs this one by those.
    Some(unsafe { *entry })
}
