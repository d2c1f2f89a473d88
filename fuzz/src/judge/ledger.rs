//! Until when a flow can be answered: by the entry that is kept of it, and by all that was ever sent in it.

use std::collections::HashMap;

use allowlist_common::flow::{
    ECHO_IDLE, Flow, Sent, TCP_OPEN, TCP_PARTIAL, Tracked, UDP_IDLE, longest,
};
use allowlist_common::packet::{TCP, UDP, tcp_flag};

/// What the egress program notes of each flow and when, beside all flags that were sent in it.
#[derive(Default)]
pub(super) struct Ledger {
    now: u32,
    flows: HashMap<Flow, (Tracked, Vec<u8>)>,
}

impl Ledger {
    /// Time goes by.
    pub(super) const fn pass(&mut self, seconds: u32) {
        self.now += seconds;
    }

    /// Notes a packet, and its peer's with it.
    pub(super) fn note(&mut self, sent: &Sent) {
        let now = self.now;
        let of_peer = Sent {
            flow: sent.flow.peer(),
            flags: 0,
        };
        for sent in [sent, &of_peer] {
            let entry = self
                .flows
                .get(&sent.flow)
                .map_or(Tracked::NONE, |(entry, _)| *entry);
            let after = Tracked::after(entry, sent, now);
            let (entry, flags) = self.flows.entry(sent.flow).or_default();
            *entry = after;
            flags.push(sent.flags);
            if is_foreign(&sent.flow, flags) {
                assert_eq!(after, Tracked::FOREIGN, "{sent:?} after {flags:x?}");
                return;
            }
            let (age, closes) = expected(&sent.flow, flags);
            assert_eq!(after.closing != 0, closes, "{sent:?} after {flags:x?}");
            assert_eq!(after.expires - now, age, "{sent:?} after {flags:x?}");
            assert!(age <= longest(sent.flow.protocol));
            assert!(after.is_alive(now + age - 1) && !after.is_alive(now + age));
        }
    }
}

/// Whether the other side opened the connection, by the flags of all packets: it begins with an
/// acceptance, and this host has opened none since.
fn is_foreign(flow: &Flow, flags: &[u8]) -> bool {
    let opens = |flags: &u8| flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN;
    let accepts = |flags: &u8| flags & tcp_flag::SYN != 0 && !opens(flags);
    flow.protocol == TCP
        && !flow.is_peer()
        && flags.first().is_some_and(accepts)
        && !flags.iter().any(opens)
}

/// The seconds that a flow lives after its last packet, and whether it is being closed, by the flags of
/// all its packets.
fn expected(flow: &Flow, flags: &[u8]) -> (u32, bool) {
    match flow.protocol {
        TCP if flow.is_peer() => return (TCP_OPEN, false),
        TCP => {}
        UDP => return (UDP_IDLE, false),
        _ => return (ECHO_IDLE, false),
    }
    let opened = flags.iter().rposition(|flags| flags & tcp_flag::SYN != 0);
    let is_closed = flags[opened.unwrap_or(0)..]
        .iter()
        .any(|flags| flags & (tcp_flag::FIN | tcp_flag::RST) != 0);
    let has_just_opened = opened == Some(flags.len() - 1);
    let age = if has_just_opened || is_closed {
        TCP_PARTIAL
    } else {
        TCP_OPEN
    };
    (age, is_closed)
}
