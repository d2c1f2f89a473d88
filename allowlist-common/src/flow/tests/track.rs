//! Which packets of this host create, extend and end a flow, and which flows are foreign.

use super::*;

const NOW: u32 = 1000;

/// Every origin is known, and nothing came from outside.
const KNOWN: Origins = Origins {
    is_armed: true,
    port: ForeignPort {
        received: 0,
        unknown: 0,
    },
    crowded_until: 0,
};

/// The flow tracker of one flow.
#[derive(Clone, Copy)]
struct Tracker {
    own: FlowEntry,
    foreign: FlowEntry,
    origins: Origins,
    has_socket: bool,
}

impl Tracker {
    const NEW: Self = Self {
        own: FlowEntry::NONE,
        foreign: FlowEntry::NONE,
        origins: KNOWN,
        has_socket: true,
    };

    fn send(&mut self, flow: Flow, flags: u8, now: u32) {
        let sent = OutboundPacket { flow, flags };
        let mut update = sent.update(self.own, self.has_socket, now);
        if update.table == Table::Undecided {
            update = sent.decide(self.own, self.foreign, &self.origins, now);
        }
        match update.table {
            Table::None => {}
            Table::Own => self.own = update.entry,
            Table::Foreign => {
                self.own = FlowEntry::NONE;
                self.foreign = update.entry;
            }
            Table::Undecided => panic!("{sent:?} stays undecided"),
        }
    }

    fn receive(&mut self, flow: Flow, now: u32) {
        if !self.own.is_alive(now) {
            self.foreign = FlowEntry::foreign(flow.protocol, now);
        }
    }
}

const fn own(expires: u32, closing: u32) -> FlowEntry {
    FlowEntry { expires, closing }
}

/// TCP segments that this host sends one after the other, a second apart, and what their flow's entry is then,
/// with an open socket and without.
#[test]
fn how_long_a_connection_is_kept() {
    let last = |segments: &[u8]| NOW + segments.len() as u32 - 1;
    let table: &[(&str, &[u8], u32, u32)] = &[
        ("opened", &[SYN], TCP_PARTIAL, 0),
        ("established", &[SYN, ACK], TCP_OPEN, 0),
        ("closing", &[SYN, ACK, FIN | ACK], TCP_PARTIAL, 1),
        (
            "a FIN is final",
            &[SYN, ACK, FIN | ACK, ACK],
            TCP_PARTIAL,
            1,
        ),
        ("reset", &[SYN, ACK, RST], TCP_PARTIAL, 1),
        (
            "opened again from the same port",
            &[SYN, ACK, FIN | ACK, SYN],
            TCP_PARTIAL,
            0,
        ),
        (
            "and established",
            &[SYN, ACK, FIN | ACK, SYN, ACK],
            TCP_OPEN,
            0,
        ),
        (
            "opened after the other side's",
            &[SYN | ACK, ACK, SYN],
            TCP_PARTIAL,
            0,
        ),
        (
            "closed with its first segment",
            &[SYN | FIN],
            TCP_PARTIAL,
            1,
        ),
    ];
    for (what, segments, age, closing) in table {
        let mut tracker = Tracker::NEW;
        for (now, flags) in (NOW..).zip(*segments) {
            tracker.send(flow(TCP, 40_000, 443), *flags, now);
        }
        assert_eq!(tracker.own, own(last(segments) + age, *closing), "{what}");
    }
}

#[test]
fn nothing_but_a_syn_begins_a_connection() {
    for segments in [
        &[ACK][..],
        &[RST],
        &[RST | ACK],
        &[FIN | ACK],
        &[SYN | RST],
        &[SYN | ACK],
        &[SYN | ACK, ACK, FIN | ACK],
        &[SYN, SYN | ACK, ACK],
        &[SYN, ACK, SYN | ACK],
    ] {
        let mut tracker = Tracker::NEW;
        for flags in segments {
            tracker.send(flow(TCP, 22, 1000), *flags, NOW);
        }
        assert!(!tracker.own.is_alive(NOW), "{segments:?}");
    }
}

/// An RST ends a flow that has expired as well: later segments do not revive it.
#[test]
fn a_reset_ends_an_expired_flow() {
    let tcp = flow(TCP, 40_000, 443);
    let later = NOW + TCP_PARTIAL;
    for (segments, revives) in [
        (&[ACK][..], true),
        (&[RST, ACK], false),
        (&[RST, FIN | ACK], false),
    ] {
        let mut tracker = Tracker::NEW;
        tracker.send(tcp, SYN, NOW);
        for flags in segments {
            tracker.send(tcp, *flags, later);
        }
        assert_eq!(tracker.own.is_alive(later), revives, "{segments:?}");
    }
}

/// A peer that goes on sending to a closed port makes this host answer by RST, and by ACK while the kernel waits for
/// stray segments. Neither extends the flow.
#[test]
fn what_answers_stray_segments_extends_nothing() {
    for end in [&[FIN | ACK][..], &[RST], &[FIN | ACK, RST]] {
        let mut tracker = Tracker::NEW;
        let tcp = flow(TCP, 40_000, 443);
        tracker.send(tcp, SYN, NOW);
        tracker.send(tcp, ACK, NOW);
        for flags in end {
            tracker.send(tcp, *flags, NOW);
        }
        tracker.has_socket = false;
        for now in (NOW..NOW + 2 * TCP_PARTIAL).step_by(3) {
            tracker.send(tcp, RST, now);
            tracker.send(tcp, ACK, now);
            let is_alive = tracker.own.is_alive(now);
            assert_eq!(is_alive, now < NOW + TCP_PARTIAL, "{end:?} at {now}");
        }
    }
    // A connection that this host has half closed goes on for as long as the socket acknowledges.
    let mut tracker = Tracker::NEW;
    let tcp = flow(TCP, 40_000, 443);
    tracker.send(tcp, SYN, NOW);
    tracker.send(tcp, FIN | ACK, NOW);
    for now in (NOW..NOW + 10 * TCP_PARTIAL).step_by(60) {
        tracker.send(tcp, ACK, now);
        assert!(tracker.own.is_alive(now));
    }
}

#[test]
fn an_idle_connection_goes_on_when_this_host_speaks() {
    let tcp = flow(TCP, 40_000, 443);
    let late = NOW + 2 * TCP_OPEN;
    let mut idle = Tracker::NEW;
    idle.send(tcp, SYN, NOW);
    idle.send(tcp, ACK, NOW);
    let mut closed = idle;
    closed.send(tcp, FIN | ACK, NOW);
    let mut spoken_to = idle;
    spoken_to.receive(tcp, late);
    for (mut tracker, is_alive) in [(idle, true), (closed, false), (spoken_to, false)] {
        tracker.send(tcp, ACK, late);
        assert_eq!(tracker.own.is_alive(late), is_alive);
    }
}

#[test]
fn a_datagram_that_came_first_makes_its_flow_foreign() {
    let udp = flow(UDP, 53, 1000);
    let mut tracker = Tracker::NEW;
    tracker.receive(udp, NOW);
    // However long this host goes on.
    for now in (NOW..NOW + 10 * UDP_IDLE).step_by(200) {
        tracker.send(udp, 0, now);
        assert_eq!(
            (tracker.own, tracker.foreign.expires),
            (FlowEntry::NONE, now + UDP_IDLE)
        );
    }
    // A datagram of this host after a pause is the first of another flow.
    let later = NOW + 20 * UDP_IDLE;
    tracker.send(udp, 0, later);
    assert_eq!(tracker.own, own(later + UDP_IDLE, 0));
    // And then all inbound datagrams answer it.
    tracker.receive(udp, later);
    tracker.send(udp, 0, later + 1);
    assert_eq!(tracker.own, own(later + 1 + UDP_IDLE, 0));
}

/// Without a mark: what else is known of the port decides.
#[test]
fn datagrams_of_unknown_origin() {
    let port = |received, unknown| ForeignPort { received, unknown };
    let later = NOW + 7;
    let table = [
        ("nothing came", KNOWN, None),
        (
            "not armed",
            Origins {
                is_armed: false,
                ..KNOWN
            },
            Some(NOW + UDP_IDLE),
        ),
        (
            "an old socket's",
            Origins {
                port: port(0, later),
                ..KNOWN
            },
            Some(later),
        ),
        (
            "no more",
            Origins {
                port: port(NOW, NOW),
                crowded_until: later,
                ..KNOWN
            },
            None,
        ),
        (
            "others came to the port",
            Origins {
                port: port(later, 0),
                ..KNOWN
            },
            None,
        ),
        (
            "others came, and marks may be evicted",
            Origins {
                port: port(later, 0),
                crowded_until: NOW + 1,
                ..KNOWN
            },
            Some(later),
        ),
    ];
    for (what, origins, until) in table {
        let mut tracker = Tracker {
            origins,
            ..Tracker::NEW
        };
        tracker.send(flow(UDP, 40_000, 53), 0, NOW);
        let (own_until, foreign) = match until {
            None => (NOW + UDP_IDLE, FlowEntry::NONE),
            Some(until) => (0, own(until, 1)),
        };
        assert_eq!(
            (tracker.own.expires, tracker.foreign),
            (own_until, foreign),
            "{what}"
        );
        // It is not extended, so that it becomes this host's when nothing came for long enough.
        tracker.send(flow(UDP, 40_000, 53), 0, NOW + 1);
        assert_eq!(tracker.foreign, foreign, "{what}");
        // Neither connections nor echo requests depend on it.
        for (protocol, flags) in [(TCP, SYN), (ICMP, 0)] {
            let mut tracker = Tracker {
                origins,
                ..Tracker::NEW
            };
            tracker.send(flow(protocol, 40_000, 53), flags, NOW);
            assert!(tracker.own.is_alive(NOW), "{what}");
        }
    }
}

#[test]
fn how_long_other_flows_are_kept() {
    let table = [
        ("UDP", flow(UDP, 1000, 53), UDP_IDLE),
        ("ping", flow(ICMP, 77, 0), ECHO_IDLE),
        ("ping over IPv6", flow6(ICMPV6, 77, 0), ECHO_IDLE),
    ];
    for (what, flow, age) in table {
        let mut tracker = Tracker::NEW;
        // Flags are of no use where there is no connection.
        for (now, flags) in [(NOW, FIN), (NOW + 1, RST)] {
            tracker.send(flow, flags, now);
            assert_eq!(tracker.own, own(now + age, 0), "{what}");
        }
        assert!(
            age <= max_lifetime(flow.protocol),
            "{what}: ports are given up before"
        );
    }
    for (protocol, age) in [(TCP, TCP_OPEN), (UDP, UDP_IDLE), (ICMP, ECHO_IDLE)] {
        let sent = OutboundPacket {
            flow: flow(protocol, 1, 2),
            flags: SYN,
        };
        assert_eq!(sent.peer_entry(NOW), own(NOW + age, 0));
    }
}

#[test]
fn an_entry_ends_with_its_second() {
    let entry = own(NOW, 0);
    for (now, alive) in [(0, true), (999, true), (1000, false), (1001, false)] {
        assert_eq!(entry.is_alive(now), alive, "at second {now}");
    }
    // A clock at its end prolongs nothing past it.
    assert_eq!(FlowEntry::open(UDP, u32::MAX - 1).expires, u32::MAX);
}

/// A datagram to one address may be answered from another one.
#[test]
fn foreign_flows_are_known_without_this_host_s_address() {
    let group = Address::V4(0xe000_00fb);
    let came = packet(REMOTE, group, UDP, ports(5353, 5353, 0));
    let reply = OutboundPacket::from_packet(&outbound(UDP, ports(5353, 5353, 0)))
        .expect("a flow")
        .flow;
    let received = Flow::from_inbound(&came).expect("a flow");
    assert_ne!(received, reply);
    assert_eq!(received.foreign(), reply.foreign());
    for (packet, expected) in [
        (
            inbound(TCP, ports(443, 1000, SYN)),
            Some(flow(TCP, 1000, 443)),
        ),
        (
            inbound6(UDP, ports(53, 1000, 0)),
            Some(flow6(UDP, 1000, 53)),
        ),
        (inbound(ICMP, icmp(8, 77)), Some(flow(ICMP, 77, 0))),
        (inbound6(ICMPV6, icmp(129, 77)), Some(flow6(ICMPV6, 77, 0))),
        (inbound(ICMP, icmp(13, 77)), None),
        (inbound(UDP, Transport::LaterFragment), None),
        (inbound(SCTP, ports(443, 1000, 0)), None),
        (inbound(GRE, Transport::Other), None),
    ] {
        assert_eq!(Flow::from_inbound(&packet), expected, "{packet:?}");
    }
}

#[test]
fn marks_are_counted_in_periods() {
    const CPUS: u32 = 4;
    const MOST: u32 = FOREIGN_FLOWS / 4 / CPUS;
    let mut crowding = Crowding::default();
    for marks in 1..=MOST {
        assert_eq!(crowding.count(CPUS, NOW), marks == MOST, "{marks}");
    }
    assert!(crowding.count(CPUS, NOW + UDP_IDLE - 1));
    assert!(!crowding.count(CPUS, NOW + UDP_IDLE));
}
