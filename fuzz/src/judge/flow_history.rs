//! Compares each flow's entry, which the product updates incrementally, with the entry that follows from all packets
//! ever sent in the flow.

use std::collections::HashMap;

use allowlist_common::flow::{
    ECHO_IDLE, Flow, FlowEntry, ForeignPort, Origins, OutboundPacket, TCP_OPEN, TCP_PARTIAL, Table,
    UDP_IDLE, max_lifetime,
};
use allowlist_common::packet::{TCP, UDP, tcp_flag};

/// The flow tracker's entry of each flow, and the times and flags of all its packets.
#[derive(Default)]
pub(super) struct FlowHistory {
    now: u32,
    flows: HashMap<Flow, (FlowEntry, Vec<(u32, u8)>)>,
}

/// The [`Origins`] of a host on which no remote host has initiated a flow: complete evidence that contains no such
/// flow.
const NO_FOREIGN: Origins = Origins {
    is_armed: true,
    port: ForeignPort {
        received: 0,
        unknown: 0,
    },
    crowded_until: 0,
};

impl FlowHistory {
    /// Advances the clock.
    pub(super) const fn advance(&mut self, seconds: u32) {
        self.now += seconds;
    }

    /// Records a packet, and checks the entry of its flow.
    pub(super) fn record(&mut self, sent: &OutboundPacket) {
        let now = self.now;
        let (entry, history) = self.flows.entry(sent.flow).or_default();
        let mut update = sent.update(*entry, true, now);
        if update.table == Table::Undecided {
            update = sent.decide(*entry, FlowEntry::NONE, &NO_FOREIGN, now);
        }
        match update.table {
            Table::Own => *entry = update.entry,
            Table::Foreign => *entry = FlowEntry::NONE,
            Table::None | Table::Undecided => {}
        }
        history.push((now, sent.flags));
        let expected = expected(&sent.flow, history, now);
        assert_eq!(
            entry.is_alive(now).then_some(*entry),
            expected,
            "{sent:?} after {history:x?}"
        );
        let age = entry.expires.saturating_sub(now);
        assert!(age <= max_lifetime(sent.flow.protocol));
        assert!(age == 0 || entry.is_alive(now + age - 1) && !entry.is_alive(now + age));
    }
}

/// Returns the expected entry of a flow after all its packets; `None` if the flow must have no unexpired entry.
fn expected(flow: &Flow, history: &[(u32, u8)], now: u32) -> Option<FlowEntry> {
    let open = |age| {
        Some(FlowEntry {
            expires: now + age,
            closing: 0,
        })
    };
    match flow.protocol {
        TCP => connection(history, now),
        UDP => open(UDP_IDLE),
        _ => open(ECHO_IDLE),
    }
}

/// Returns the expected entry of a TCP flow: it begins with the last SYN without ACK, unless this host has accepted a
/// connection since.
fn connection(history: &[(u32, u8)], now: u32) -> Option<FlowEntry> {
    const OPENS: u8 = tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST;
    let opens = |(_, flags): &(u32, u8)| flags & OPENS == tcp_flag::SYN;
    let accepts = |(_, flags): &(u32, u8)| flags & OPENS == tcp_flag::SYN | tcp_flag::ACK;
    let opened = history.iter().rposition(opens)?;
    let mut entry = FlowEntry::NONE;
    for (at, flags) in &history[opened..] {
        let dies = at + TCP_PARTIAL;
        let is_alive = *at < entry.expires;
        if accepts(&(*at, *flags)) {
            return None;
        } else if opens(&(*at, *flags)) {
            let closing = u32::from(flags & tcp_flag::FIN != 0);
            entry = FlowEntry {
                expires: dies,
                closing,
            };
        } else if flags & tcp_flag::RST != 0 {
            if is_alive {
                entry = FlowEntry {
                    expires: entry.expires.min(dies),
                    closing: 1,
                };
            }
        } else if entry.closing != 0 {
            if is_alive {
                entry.expires = dies;
            }
        } else if flags & tcp_flag::FIN != 0 {
            entry = FlowEntry {
                expires: dies,
                closing: 1,
            };
        } else {
            entry.expires = at + TCP_OPEN;
        }
    }
    (now < entry.expires).then_some(entry)
}
