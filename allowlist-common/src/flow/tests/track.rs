//! Outbound packets that create, extend and end a flow, and foreign flows.

use super::*;

const NOW: u32 = 1000;

/// All origins are known, and no datagram was received.
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
            Table::Undecided => panic!("{sent:?} remains undecided"),
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

/// TCP segments that this host sends, one per second, and the flow's entry after the last one.
#[test]
fn tcp_segments_set_the_lifetime() {
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
            "reopened from the same port",
            &[SYN, ACK, FIN | ACK, SYN],
            TCP_PARTIAL,
            0,
        ),
        (
            "reopened and established",
            &[SYN, ACK, FIN | ACK, SYN, ACK],
            TCP_OPEN,
            0,
        ),
        (
            "opened after a connection of the other side",
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
fn only_a_syn_opens_a_tcp_flow() {
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
fn rst_ends_an_expired_flow() {
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

/// A remote host that keeps sending to a closed port makes this host reply with RST, and with ACK in TIME-WAIT. Neither
/// extends the flow.
#[test]
fn replies_to_stray_segments_extend_no_flow() {
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
    // A half-closed connection is extended as long as the socket sends acknowledgements.
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
fn packets_of_this_host_revive_an_idle_connection() {
    let tcp = flow(TCP, 40_000, 443);
    let late = NOW + 2 * TCP_OPEN;
    let mut idle = Tracker::NEW;
    idle.send(tcp, SYN, NOW);
    idle.send(tcp, ACK, NOW);
    let mut closed = idle;
    closed.send(tcp, FIN | ACK, NOW);
    let mut received = idle;
    received.receive(tcp, late);
    for (mut tracker, is_alive) in [(idle, true), (closed, false), (received, false)] {
        tracker.send(tcp, ACK, late);
        assert_eq!(tracker.own.is_alive(late), is_alive);
    }
}

#[test]
fn flows_with_an_inbound_first_datagram_are_foreign() {
    let udp = flow(UDP, 53, 1000);
    let mut tracker = Tracker::NEW;
    tracker.receive(udp, NOW);
    // Replies of this host never change the origin.
    for now in (NOW..NOW + 10 * UDP_IDLE).step_by(200) {
        tracker.send(udp, 0, now);
        assert_eq!(
            (tracker.own, tracker.foreign.expires),
            (FlowEntry::NONE, now + UDP_IDLE)
        );
    }
    // After the mark has expired, a datagram of this host creates an own flow.
    let later = NOW + 20 * UDP_IDLE;
    tracker.send(udp, 0, later);
    assert_eq!(tracker.own, own(later + UDP_IDLE, 0));
    // From then on, inbound datagrams are answers.
    tracker.receive(udp, later);
    tracker.send(udp, 0, later + 1);
    assert_eq!(tracker.own, own(later + 1 + UDP_IDLE, 0));
}

/// The origin of a datagram whose flow has no mark depends on its port.
#[test]
fn unmarked_datagrams_depend_on_their_port() {
    let port = |received, unknown| ForeignPort { received, unknown };
    let later = NOW + 7;
    let table = [
        ("no datagram was received", KNOWN, None),
        (
            "not armed",
            Origins {
                is_armed: false,
                ..KNOWN
            },
            Some(NOW + UDP_IDLE),
        ),
        (
            "an old socket's port",
            Origins {
                port: port(0, later),
                ..KNOWN
            },
            Some(later),
        ),
        (
            "an old socket's port, after the time",
            Origins {
                port: port(NOW, NOW),
                crowded_until: later,
                ..KNOWN
            },
            None,
        ),
        (
            "the port received other datagrams",
            Origins {
                port: port(later, 0),
                ..KNOWN
            },
            None,
        ),
        (
            "the port received other datagrams, and marks may be evicted",
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
        // The mark is not extended, so that the flow becomes this host's after the time.
        tracker.send(flow(UDP, 40_000, 53), 0, NOW + 1);
        assert_eq!(tracker.foreign, foreign, "{what}");
        // TCP and echo flows do not depend on the port.
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
fn udp_and_echo_flows_have_fixed_lifetimes() {
    let table = [
        ("UDP", flow(UDP, 1000, 53), UDP_IDLE),
        ("ping", flow(ICMP, 77, 0), ECHO_IDLE),
        ("ping over IPv6", flow6(ICMPV6, 77, 0), ECHO_IDLE),
    ];
    for (what, flow, age) in table {
        let mut tracker = Tracker::NEW;
        // Flags have no effect.
        for (now, flags) in [(NOW, FIN), (NOW + 1, RST)] {
            tracker.send(flow, flags, now);
            assert_eq!(tracker.own, own(now + age, 0), "{what}");
        }
        assert!(
            age <= max_lifetime(flow.protocol),
            "{what}: the port expires before the flow"
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
fn entries_expire_at_their_second() {
    let entry = own(NOW, 0);
    for (now, alive) in [(0, true), (999, true), (1000, false), (1001, false)] {
        assert_eq!(entry.is_alive(now), alive, "at second {now}");
    }
    // The lifetime saturates at the maximum time.
    assert_eq!(FlowEntry::open(UDP, u32::MAX - 1).expires, u32::MAX);
}

/// This host may answer a datagram from another address than it was sent to.
#[test]
fn foreign_udp_keys_have_no_local_address() {
    let group = Address::V4(0xe000_00fb);
    let request = packet(REMOTE, group, UDP, ports(5353, 5353, 0));
    let reply = OutboundPacket::from_packet(&outbound(UDP, ports(5353, 5353, 0)))
        .expect("a flow")
        .flow;
    let received = Flow::from_inbound(&request).expect("a flow");
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
fn new_marks_are_counted_per_period() {
    const CPUS: u32 = 4;
    const MOST: u32 = FOREIGN_FLOWS / 4 / CPUS;
    let mut crowding = Crowding::default();
    for marks in 1..=MOST {
        assert_eq!(crowding.count(CPUS, NOW), marks == MOST, "{marks}");
    }
    assert!(crowding.count(CPUS, NOW + UDP_IDLE - 1));
    assert!(!crowding.count(CPUS, NOW + UDP_IDLE));
}
