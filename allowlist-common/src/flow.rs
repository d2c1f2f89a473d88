//! Flows that this host sends, and which packets answer them: what return traffic is judged by.
//!
//! The flow tracker records outbound packets ([`OutboundPacket::from_packet`], [`OutboundPacket::update`]); the receive path looks up
//! inbound ones ([`Flow::answered_by`]). Only this host creates or extends an own flow: see
//! `track`. Knows no map and no clock: time is a number of seconds.
//!
//! A packet of either side may have no ports to see (a later fragment). So each flow has a *peer*
//! beside it, the same without ports: fragments from a peer are let in, and are of use only where
//! their first fragment, which has the ports, is let in as well.

mod track;

#[cfg(test)]
mod tests;

pub use track::{Crowding, FOREIGN_FLOWS, ForeignPort, Marking, Origins, Table, Update};

use crate::packet::{Address, ICMP, ICMPV6, Packet, TCP, Transport, UDP, tcp_flag};

/// A flow as this host sees it: the key of the map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Flow {
    /// This host's address, as [`Address::padded`] has it.
    pub local: [u64; 2],
    /// The other side's.
    pub remote: [u64; 2],
    /// This host's port, or the identifier of its echo requests; 0 for a peer.
    pub local_port: u16,
    /// The other side's port; 0 for echo requests and for a peer.
    pub remote_port: u16,
    /// TCP, UDP, or the ICMP of the family; others are never tracked.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// 1 for a peer, else 0: ports of 0 alone do not tell, since a packet may have such.
    pub peer: u16,
}

/// What a flow's entry holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowEntry {
    /// The second, by the kernel's monotonic clock, at which the entry expires.
    pub expires: u32,
    /// Of an own flow: 1 once this host has sent a FIN or RST. Of a foreign one: 1 if its origin is unknown, so
    /// that packets of this host do not extend it.
    pub closing: u32,
}

/// By [`port_table`] and local port: the second from which on nothing was sent from it for so long
/// that nothing can answer. 0 where nothing ever was, which costs no look at the clock.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct PortsInUse {
    /// For TCP, UDP, and echo identifiers.
    pub until: [[u32; 1 << 16]; 3],
}

/// Seconds that a TCP connection may idle; RFC 5382 asks a NAT for no less.
pub const TCP_OPEN: u32 = 2 * 3600 + 4 * 60;
/// Seconds that a connection may take to be opened or closed; RFC 5382 asks for 4 minutes.
pub const TCP_PARTIAL: u32 = 4 * 60;
/// Seconds in which a datagram may be answered; RFC 4787 recommends 5 minutes.
pub const UDP_IDLE: u32 = 5 * 60;
/// Seconds in which an echo request may be answered; RFC 5508 asks for no less than a minute.
pub const ECHO_IDLE: u32 = 60;

const ICMP_ECHO: u8 = 8;
const ICMP_ECHO_REPLY: u8 = 0;
const ICMPV6_ECHO: u8 = 128;
const ICMPV6_ECHO_REPLY: u8 = 129;

/// Which of [`PortsInUse`]'s tables a protocol has.
#[inline(always)]
pub const fn port_table(protocol: u8) -> usize {
    match protocol {
        TCP => 0,
        UDP => 1,
        _ => 2,
    }
}

/// The longest that an entry of a protocol lives, in seconds.
#[inline(always)]
pub const fn max_lifetime(protocol: u8) -> u32 {
    match protocol {
        TCP => TCP_OPEN,
        UDP => UDP_IDLE,
        _ => ECHO_IDLE,
    }
}

/// A packet of this host that can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundPacket {
    /// The flow that it belongs to.
    pub flow: Flow,
    /// TCP's flags; 0 for other protocols.
    pub flags: u8,
}

impl OutboundPacket {
    /// The flow of an outbound packet; `None` for what is not tracked.
    #[inline(always)]
    pub fn from_packet(packet: &Packet) -> Option<Self> {
        let flow = |local_port, remote_port| {
            Flow::between(
                packet.source,
                packet.destination,
                packet.protocol,
                (local_port, remote_port),
            )
        };
        match (packet.protocol, packet.transport) {
            (
                TCP | UDP,
                Transport::Ports {
                    source,
                    destination,
                    flags,
                },
            ) => Some(Self {
                flow: flow(source, destination),
                flags,
            }),
            (ICMP | ICMPV6, Transport::Icmp { kind, identifier })
                if is_echo(packet, kind, ICMP_ECHO, ICMPV6_ECHO) =>
            {
                Some(Self {
                    flow: flow(identifier, 0),
                    flags: 0,
                })
            }
            _ => None,
        }
    }
}

impl Flow {
    /// The flow between two addresses and their ports, this host's first.
    #[inline(always)]
    pub fn between(
        local: Address,
        remote: Address,
        protocol: u8,
        (local_port, remote_port): (u16, u16),
    ) -> Self {
        Self {
            local: local.padded(),
            remote: remote.padded(),
            local_port,
            remote_port,
            protocol,
            family: local.family(),
            peer: 0,
        }
    }

    /// The flow that an inbound packet would answer; `None` where its own header says that it
    /// answers nothing, such as a segment that opens a connection.
    #[inline(always)]
    pub fn answered_by(packet: &Packet) -> Option<Self> {
        let ports = match (packet.protocol, packet.transport) {
            (TCP, Transport::Ports { flags, .. })
                if flags & (tcp_flag::ACK | tcp_flag::RST) == 0 =>
            {
                return None;
            }
            (
                TCP | UDP,
                Transport::Ports {
                    source,
                    destination,
                    ..
                },
            ) => (destination, source),
            (ICMP | ICMPV6, Transport::Icmp { kind, identifier })
                if is_echo(packet, kind, ICMP_ECHO_REPLY, ICMPV6_ECHO_REPLY) =>
            {
                (identifier, 0)
            }
            (TCP | UDP | ICMP | ICMPV6, Transport::LaterFragment) => (0, 0),
            _ => return None,
        };
        let flow = Self::between(packet.destination, packet.source, packet.protocol, ports);
        Some(match packet.transport {
            Transport::LaterFragment => flow.peer(),
            _ => flow,
        })
    }

    /// The flow of an inbound packet, initiated by either side; `None` for protocols that are not tracked.
    #[inline(always)]
    pub fn from_inbound(packet: &Packet) -> Option<Self> {
        let ports = match (packet.protocol, packet.transport) {
            (
                TCP | UDP,
                Transport::Ports {
                    source,
                    destination,
                    ..
                },
            ) => (destination, source),
            (ICMP | ICMPV6, Transport::Icmp { kind, identifier })
                if is_echo(packet, kind, ICMP_ECHO, ICMPV6_ECHO)
                    || is_echo(packet, kind, ICMP_ECHO_REPLY, ICMPV6_ECHO_REPLY) =>
            {
                (identifier, 0)
            }
            _ => return None,
        };
        Some(Self::between(
            packet.destination,
            packet.source,
            packet.protocol,
            ports,
        ))
    }

    /// The key of the flow in the table of foreign flows. For UDP it is without this host's address, since a server
    /// may answer from another one than a request was sent to, such as a multicast group's.
    #[inline(always)]
    #[must_use]
    pub const fn foreign(self) -> Self {
        if self.protocol == UDP {
            Self {
                local: [0; 2],
                ..self
            }
        } else {
            self
        }
    }

    /// The same flow without ports.
    #[inline(always)]
    #[must_use]
    pub const fn peer(self) -> Self {
        Self {
            local_port: 0,
            remote_port: 0,
            peer: 1,
            ..self
        }
    }

    /// Whether it is without ports.
    #[inline(always)]
    pub const fn is_peer(&self) -> bool {
        self.peer != 0
    }

    /// The other side.
    #[inline(always)]
    pub const fn remote_address(&self) -> Address {
        Address::from_padded(self.family, self.remote)
    }

    /// This host's address; the unspecified one for a foreign UDP flow's key.
    #[inline(always)]
    pub const fn local_address(&self) -> Address {
        Address::from_padded(self.family, self.local)
    }
}

#[inline(always)]
const fn is_echo(packet: &Packet, kind: u8, v4: u8, v6: u8) -> bool {
    match packet.source {
        Address::V4(_) => packet.protocol == ICMP && kind == v4,
        Address::V6(_) => packet.protocol == ICMPV6 && kind == v6,
    }
}
