//! Tables of outbound packets with their flows, and of inbound packets with the flows that they answer.

mod track;

use super::*;
use crate::packet::tcp_flag::{ACK, FIN, RST, SYN};

const HOST: Address = Address::V4(0xc633_6401);
const REMOTE: Address = Address::V4(0x0a00_0001);
const HOST6: Address = Address::V6([1, 2]);
const REMOTE6: Address = Address::V6([3, 4]);

const fn ports(source: u16, destination: u16, flags: u8) -> Transport {
    Transport::Ports {
        source,
        destination,
        flags,
    }
}

const fn icmp(kind: u8, identifier: u16) -> Transport {
    Transport::Icmp { kind, identifier }
}

fn packet(source: Address, destination: Address, protocol: u8, transport: Transport) -> Packet {
    Packet {
        vlan: 0,
        source,
        destination,
        hops: 64,
        protocol,
        transport,
    }
}

fn outbound(protocol: u8, transport: Transport) -> Packet {
    packet(HOST, REMOTE, protocol, transport)
}

fn outbound6(protocol: u8, transport: Transport) -> Packet {
    packet(HOST6, REMOTE6, protocol, transport)
}

fn inbound(protocol: u8, transport: Transport) -> Packet {
    packet(REMOTE, HOST, protocol, transport)
}

fn inbound6(protocol: u8, transport: Transport) -> Packet {
    packet(REMOTE6, HOST6, protocol, transport)
}

fn flow(protocol: u8, local_port: u16, remote_port: u16) -> Flow {
    Flow {
        local: [0xc633_6401 << 32, 0],
        remote: [0x0a00_0001 << 32, 0],
        local_port,
        remote_port,
        protocol,
        family: 4,
        peer: 0,
    }
}

fn flow6(protocol: u8, local_port: u16, remote_port: u16) -> Flow {
    Flow {
        local: [1, 2],
        remote: [3, 4],
        family: 6,
        ..flow(protocol, local_port, remote_port)
    }
}

const SCTP: u8 = crate::packet::SCTP;
const GRE: u8 = 47;

#[test]
fn outbound_packets_have_flows() {
    let table = [
        (
            "TCP",
            outbound(TCP, ports(1000, 443, SYN)),
            Some((flow(TCP, 1000, 443), SYN)),
        ),
        (
            "UDP",
            outbound(UDP, ports(1000, 53, 0)),
            Some((flow(UDP, 1000, 53), 0)),
        ),
        (
            "UDP over IPv6",
            outbound6(UDP, ports(1000, 53, 0)),
            Some((flow6(UDP, 1000, 53), 0)),
        ),
        (
            "ping",
            outbound(ICMP, icmp(8, 77)),
            Some((flow(ICMP, 77, 0), 0)),
        ),
        (
            "ping over IPv6",
            outbound6(ICMPV6, icmp(128, 77)),
            Some((flow6(ICMPV6, 77, 0), 0)),
        ),
        ("echo reply", outbound(ICMP, icmp(0, 77)), None),
        (
            "echo reply over IPv6",
            outbound6(ICMPV6, icmp(129, 77)),
            None,
        ),
        ("timestamp request", outbound(ICMP, icmp(13, 77)), None),
        (
            "IPv6's ping over IPv4",
            outbound(ICMPV6, icmp(128, 77)),
            None,
        ),
        ("IPv4's ping over IPv6", outbound6(ICMP, icmp(8, 77)), None),
        ("SCTP", outbound(SCTP, ports(1000, 443, 0)), None),
        ("GRE", outbound(GRE, Transport::Other), None),
        (
            "a later fragment",
            outbound(UDP, Transport::LaterFragment),
            None,
        ),
    ];
    for (what, packet, expected) in table {
        let sent = OutboundPacket::from_packet(&packet).map(|sent| (sent.flow, sent.flags));
        assert_eq!(sent, expected, "{what}");
    }
}

#[test]
fn inbound_packets_answer_flows() {
    let table = [
        (
            "SYN ACK",
            inbound(TCP, ports(443, 1000, SYN | ACK)),
            Some(flow(TCP, 1000, 443)),
        ),
        (
            "ACK",
            inbound(TCP, ports(443, 1000, ACK)),
            Some(flow(TCP, 1000, 443)),
        ),
        (
            "RST",
            inbound(TCP, ports(443, 1000, RST)),
            Some(flow(TCP, 1000, 443)),
        ),
        ("SYN", inbound(TCP, ports(443, 1000, SYN)), None),
        ("FIN alone", inbound(TCP, ports(443, 1000, FIN)), None),
        ("no flags", inbound(TCP, ports(443, 1000, 0)), None),
        (
            "UDP",
            inbound(UDP, ports(53, 1000, 0)),
            Some(flow(UDP, 1000, 53)),
        ),
        (
            "UDP over IPv6",
            inbound6(UDP, ports(53, 1000, 0)),
            Some(flow6(UDP, 1000, 53)),
        ),
        (
            "UDP port 0 is not a peer",
            inbound(UDP, ports(0, 0, 0)),
            Some(flow(UDP, 0, 0)),
        ),
        (
            "echo reply",
            inbound(ICMP, icmp(0, 77)),
            Some(flow(ICMP, 77, 0)),
        ),
        (
            "echo reply over IPv6",
            inbound6(ICMPV6, icmp(129, 77)),
            Some(flow6(ICMPV6, 77, 0)),
        ),
        ("a ping", inbound(ICMP, icmp(8, 77)), None),
        ("a ping over IPv6", inbound6(ICMPV6, icmp(128, 77)), None),
        (
            "IPv6's echo reply over IPv4",
            inbound(ICMPV6, icmp(129, 77)),
            None,
        ),
        (
            "IPv4's echo reply over IPv6",
            inbound6(ICMP, icmp(0, 77)),
            None,
        ),
        (
            "a later fragment",
            inbound(TCP, Transport::LaterFragment),
            Some(flow(TCP, 0, 0).peer()),
        ),
        (
            "a later fragment of ICMPv6",
            inbound6(ICMPV6, Transport::LaterFragment),
            Some(flow6(ICMPV6, 0, 0).peer()),
        ),
        (
            "a later fragment of SCTP",
            inbound(SCTP, Transport::LaterFragment),
            None,
        ),
        (
            "a later fragment after an extension header",
            inbound6(60, Transport::LaterFragment),
            None,
        ),
        ("SCTP", inbound(SCTP, ports(443, 1000, 0)), None),
        ("GRE", inbound(GRE, Transport::Other), None),
    ];
    for (what, packet, expected) in table {
        assert_eq!(Flow::answered_by(&packet), expected, "{what}");
    }
}

/// A packet with source and destination exchanged answers the flow, and so does a later fragment of it.
#[test]
fn answers_have_the_flow_of_the_outbound_packet() {
    let table = [
        (
            outbound(TCP, ports(1000, 443, SYN)),
            inbound(TCP, ports(443, 1000, SYN | ACK)),
        ),
        (
            outbound6(UDP, ports(1000, 53, 0)),
            inbound6(UDP, ports(53, 1000, 0)),
        ),
        (outbound(ICMP, icmp(8, 77)), inbound(ICMP, icmp(0, 77))),
        (
            outbound6(ICMPV6, icmp(128, 77)),
            inbound6(ICMPV6, icmp(129, 77)),
        ),
    ];
    for (sent, answer) in table {
        let sent = OutboundPacket::from_packet(&sent).expect("tracked").flow;
        assert_eq!(Flow::answered_by(&answer), Some(sent));
        let fragment = Packet {
            transport: Transport::LaterFragment,
            ..answer
        };
        assert_eq!(Flow::answered_by(&fragment), Some(sent.peer()));
    }
}

/// Flows that differ in one field only, including flows of port 0 and their peers.
#[test]
fn flows_are_distinct() {
    let padded = Address::V6(HOST.padded());
    let flows = [
        flow(TCP, 0, 0),
        flow(TCP, 0, 0).peer(),
        flow(TCP, 0, 1),
        flow(TCP, 1, 0),
        flow(UDP, 0, 0),
        Flow::between(padded, Address::V6(REMOTE.padded()), TCP, (0, 0)),
        Flow::between(REMOTE, HOST, TCP, (0, 0)),
    ];
    for (index, flow) in flows.iter().enumerate() {
        assert!(!flows[..index].contains(flow), "{flow:?}");
    }
}

#[test]
fn protocols_have_separate_port_tables() {
    assert_eq!([TCP, UDP, ICMP, ICMPV6].map(port_table), [0, 1, 2, 2]);
}
