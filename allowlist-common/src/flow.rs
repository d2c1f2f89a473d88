//! Outbound flows, and the packets that answer them: the basis for verdicts on return traffic.
//!
//! The flow tracker records outbound packets ([`OutboundPacket::from_packet`], [`OutboundPacket::update`]), and the
//! receive path looks up inbound packets ([`Flow::answered_by`]). Invariant: only packets of this host create or extend
//! an *own* flow, one that this host initiated; the submodule `track` has the rules. Knows no map and no clock: a time
//! is a number of seconds of the kernel's monotonic clock.
//!
//! Later fragments have no ports. Therefore each flow has a *peer*: the same flow without ports. Later fragments from a
//! peer pass; the receiver can use them only if their first fragment, which has the ports, passes too.

mod track;

#[cfg(test)]
mod tests;

pub use track::{Crowding, FOREIGN_FLOWS, ForeignPort, Marking, Origins, Table, Update};

use crate::packet::wire::{icmp, icmpv6};
use crate::packet::{Address, ICMP, ICMPV6, Packet, TCP, Transport, UDP, tcp_flag};
use crate::volatile::{VolatileRef, field};

/// A flow from this host's point of view: the key of the flow tables.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Flow {
    /// This host's address, in the format of [`Address::padded`].
    pub local: [u64; 2],
    /// The remote address, in the format of [`Address::padded`].
    pub remote: [u64; 2],
    /// This host's port, or the identifier of its echo requests; 0 for a peer (a flow without ports, for later
    /// fragments).
    pub local_port: u16,
    /// The remote port; 0 for echo requests and for a peer (a flow without ports, for later fragments).
    pub remote_port: u16,
    /// The protocol number of TCP, UDP, or the family's ICMP; other protocols are not tracked.
    pub protocol: u8,
    /// The IP version, 4 or 6.
    pub family: u8,
    /// 1 for a peer (the key without ports, which later fragments of the flow match), else 0. Ports alone do not
    /// identify a peer, because packets may have port 0.
    pub peer: u16,
}

/// The entry of a flow in a flow table.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowEntry {
    /// The time at which the entry expires, in seconds of the kernel's monotonic clock.
    pub expires: u32,
    /// In a table of own flows: 1 once this host has sent a FIN or RST, else 0. In the table of foreign flows: 1 if it is
    /// unknown which side initiated the flow, else 0; packets of this host do not extend such an entry.
    pub closing: u32,
}

/// For each local port, the time until which the port may have live flows, in seconds of the monotonic clock.
///
/// Indexed by [`port_table`] and local port. 0 for a port without flows, so that the test of such a port does not read
/// the clock.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct PortsInUse {
    /// The times for TCP ports, UDP ports, and echo identifiers.
    pub until: [[u32; 1 << 16]; 3],
}

impl VolatileRef<'_, PortsInUse> {
    /// Loads the time until which a local port may have live flows, in seconds.
    #[inline(always)]
    pub fn until(self, protocol: u8, port: u16) -> u32 {
        let ports = field!(self, until).at(port_table(protocol));
        ports.at(port as usize).load()
    }
}

impl VolatileRef<'_, FlowEntry> {
    /// Loads each field once.
    #[inline(always)]
    pub fn load_fields(self) -> FlowEntry {
        FlowEntry {
            expires: field!(self, expires).load(),
            closing: field!(self, closing).load(),
        }
    }
}

/// The idle timeout of an open TCP connection, in seconds: the minimum that RFC 5382 requires of a NAT.
pub const TCP_OPEN: u32 = 2 * 3600 + 4 * 60;
/// The idle timeout of a TCP connection that is being opened or closed, in seconds: 4 minutes by RFC 5382.
pub const TCP_PARTIAL: u32 = 4 * 60;
/// The idle timeout of a UDP flow, in seconds: RFC 4787 recommends 5 minutes.
pub const UDP_IDLE: u32 = 5 * 60;
/// The idle timeout of an echo flow, in seconds: RFC 5508 requires at least one minute.
pub const ECHO_IDLE: u32 = 60;

/// Returns the index of a protocol's table in [`PortsInUse`].
#[inline(always)]
pub const fn port_table(protocol: u8) -> usize {
    match protocol {
        TCP => 0,
        UDP => 1,
        _ => 2,
    }
}

/// Returns the maximum lifetime of a protocol's entries, in seconds.
#[inline(always)]
pub const fn max_lifetime(protocol: u8) -> u32 {
    match protocol {
        TCP => TCP_OPEN,
        UDP => UDP_IDLE,
        _ => ECHO_IDLE,
    }
}

/// An outbound packet of a tracked protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundPacket {
    /// The packet's flow.
    pub flow: Flow,
    /// The TCP flags of the packet; 0 for other protocols.
    pub flags: u8,
}

impl OutboundPacket {
    /// Returns the tracked fields of an outbound packet; `None` for an untracked protocol or ICMP type, and for a later
    /// fragment.
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
                if is_echo(packet, kind, icmp::ECHO, icmpv6::ECHO) =>
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
    /// Returns the flow between two addresses and their ports, this host's first.
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

    /// Returns the flow that an inbound packet may answer; `None` if its header shows that it is no answer, such as a
    /// TCP segment without ACK and RST.
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
                if is_echo(packet, kind, icmp::ECHO_REPLY, icmpv6::ECHO_REPLY) =>
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

    /// Returns the flow that an inbound packet belongs to, initiated by this host or by the remote side; `None` if its
    /// protocol is not tracked.
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
                if is_echo(packet, kind, icmp::ECHO, icmpv6::ECHO)
                    || is_echo(packet, kind, icmp::ECHO_REPLY, icmpv6::ECHO_REPLY) =>
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

    /// Returns the flow's key in the table of foreign flows, those that the other side initiated.
    ///
    /// The key of a UDP flow has no local address, because a server may answer from another address than the request
    /// was sent to, such as a multicast group's.
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

    /// Returns the flow's peer: the same key without ports, for later fragments.
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

    /// Reports whether this is a peer: a flow without ports, for later fragments.
    #[inline(always)]
    pub const fn is_peer(&self) -> bool {
        self.peer != 0
    }

    /// Returns the remote address.
    #[inline(always)]
    pub const fn remote_address(&self) -> Address {
        Address::from_padded(self.family, self.remote)
    }

    /// Returns this host's address; the unspecified address for the foreign key of a UDP flow.
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
