//! The verdicts for hypothetical packets: the questions to `explain`, and the packets that represent them.
//!
//! - `compiled` decides by a compiled generation, which need not be active
//! - `calls` decides on calls of this host's programs, by the tables of an egress policy
//! - `reach` summarizes the decisions for all ports
//!
//! `dataplane`'s `Lookup` decides by the active generation in the kernel, with the same packets, and its `EgressLookup`
//! gives `calls` the kernel's tables. All use the decisions of `allowlist-common`, and none knows the daemon. Pure.

mod calls;
mod compiled;
mod reach;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use allowlist_common::packet::{
    ICMP, ICMPV6, Packet, SCTP, TCP, Transport, UDP, is_extension, tcp_flag,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use calls::{CallTables, CallerRows, LearnedIds, Targets, UnitRowsByText};
pub use compiled::{Judge, OnInterface};
pub use reach::{Row, is_not_covered, rows};

use crate::policy::Ports;

/// A question to `explain`: does a new packet from this source address pass?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The source address of the packet.
    pub address: IpAddr,
    /// The target of the packet; `None` for all targets.
    pub target: Option<Target>,
    /// The interface on which the packet arrives; `None` for all filtered interfaces.
    pub interface: Option<String>,
}

impl Question {
    /// Returns the path and query of the API request that sends this question to the daemon.
    pub fn query(&self) -> String {
        let mut query = format!("explain?address={}", self.address);
        if let Some(target) = self.target {
            query += &format!("&port={target}");
        }
        if let Some(interface) = &self.interface {
            query += &format!("&iface={interface}");
        }
        query
    }
}

/// The target of a packet: a port of this host, or a protocol without ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// A TCP port; the packet opens a connection to it.
    Tcp(u16),
    /// A UDP port of this host.
    Udp(u16),
    /// An SCTP port of this host.
    Sctp(u16),
    /// An ICMP echo request to this host.
    Icmp,
    /// The IP protocol with this number, which has no ports.
    Protocol(u8),
    /// The rest of the protocols without ports. In a question, GRE represents them; in a report, they are the protocols
    /// with the most frequent decision, and the others are listed by number.
    Other,
}

/// An address as a user typed it, converted to the form in which it occurs in packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Typed {
    /// The address as it occurs in packets.
    pub address: IpAddr,
    /// The interface name that the user gave after `%`; `None` if there is none.
    pub zone: Option<String>,
    /// The IPv4-mapped IPv6 address that the user gave; `None` if the user gave `address` itself.
    pub instead_of: Option<Ipv6Addr>,
}

impl Target {
    /// Returns all targets that a packet from the address `source` can have.
    pub fn all(source: IpAddr) -> impl Iterator<Item = Self> {
        let ports = |target: fn(u16) -> Self| (0..=u16::MAX).map(target);
        ports(Self::Tcp)
            .chain(ports(Self::Udp))
            .chain(ports(Self::Sctp))
            .chain([Self::Icmp])
            .chain(Self::protocols(source))
    }

    /// Returns the IP protocols without ports, except ICMP and ICMPv6, that a packet from the address `source` can
    /// have.
    pub fn protocols(source: IpAddr) -> impl Iterator<Item = Self> {
        let is_other = move |protocol: &u8| {
            let is_another = matches!(*protocol, TCP | UDP | SCTP | ICMP | ICMPV6);
            let is_header = source.is_ipv6() && is_extension(*protocol);
            !is_another && !is_header
        };
        (0..=u8::MAX).filter(is_other).map(Self::Protocol)
    }

    /// Returns a packet from the address `source` to this target that belongs to no flow of this host.
    pub fn packet(self, source: IpAddr) -> Packet {
        /// The source port of the packet, one that an ordinary client could have.
        const EPHEMERAL: u16 = 49_152;
        /// The protocol number of GRE, which represents the other protocols.
        const GRE: u8 = 47;
        const ECHO_REQUEST: u8 = 8;
        const ECHO_REQUEST_V6: u8 = 128;
        let to_port = |destination, flags| Transport::Ports {
            source: EPHEMERAL,
            destination,
            flags,
        };
        let echo = |kind| Transport::Icmp {
            kind,
            identifier: 0,
        };
        let (protocol, transport) = match (self, source) {
            (Self::Tcp(port), _) => (TCP, to_port(port, tcp_flag::SYN)),
            (Self::Udp(port), _) => (UDP, to_port(port, 0)),
            (Self::Sctp(port), _) => (SCTP, to_port(port, 0)),
            (Self::Icmp, IpAddr::V4(_)) | (Self::Protocol(ICMP), _) => (ICMP, echo(ECHO_REQUEST)),
            (Self::Icmp, IpAddr::V6(_)) | (Self::Protocol(ICMPV6), _) => {
                (ICMPV6, echo(ECHO_REQUEST_V6))
            }
            (Self::Protocol(protocol), _) => (protocol, Transport::Other),
            (Self::Other, _) => (GRE, Transport::Other),
        };
        let unspecified: IpAddr = match source {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Packet {
            vlan: 0,
            source: source.into(),
            destination: unspecified.into(),
            hops: 64,
            protocol,
            transport,
        }
    }
}

impl FromStr for Target {
    type Err = String;

    /// Parses a target such as `tcp/443`. The error is text for the user that states the remedy.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "other" {
            return Ok(Self::Other);
        }
        let range = |first: u16| {
            format!(
                "{text:?} is a range; use one port, such as \"{}/{first}\", or omit the port to see all ports",
                text.split('/').next().unwrap_or_default()
            )
        };
        match text.parse::<Ports>()? {
            Ports::Tcp(ports) if ports.start() == ports.end() => Ok(Self::Tcp(*ports.start())),
            Ports::Udp(ports) if ports.start() == ports.end() => Ok(Self::Udp(*ports.start())),
            Ports::Sctp(ports) if ports.start() == ports.end() => Ok(Self::Sctp(*ports.start())),
            Ports::Tcp(ports) | Ports::Udp(ports) | Ports::Sctp(ports) => {
                Err(range(*ports.start()))
            }
            Ports::Icmp => Ok(Self::Icmp),
            Ports::Protocol(protocol @ (TCP | UDP | SCTP)) => {
                let name = match protocol {
                    TCP => "tcp",
                    UDP => "udp",
                    _ => "sctp",
                };
                Err(format!(
                    "{text:?} is a protocol with ports; use one port, such as \"{name}/443\", or omit the port to see all ports"
                ))
            }
            Ports::Protocol(protocol) => Ok(Self::Protocol(protocol)),
            Ports::Any => Err(
                "\"any\" is not one port; use one, such as \"tcp/443\", \"icmp\", \"ip/112\" or \"other\" (all other protocols without ports), or omit the port to see all"
                    .to_owned(),
            ),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(out, "tcp/{port}"),
            Self::Udp(port) => write!(out, "udp/{port}"),
            Self::Sctp(port) => write!(out, "sctp/{port}"),
            Self::Icmp => out.write_str("icmp"),
            Self::Protocol(protocol) => write!(out, "ip/{protocol}"),
            Self::Other => out.write_str("other"),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl FromStr for Typed {
    type Err = String;

    /// Parses an IP address, which may be in brackets, with an optional interface name after `%`: `fe80::1%eth0`.
    ///
    /// Converts an IPv4-mapped IPv6 address to IPv4. The error is text for the user that states the remedy.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, zone) = match text.split_once('%') {
            Some((address, zone)) if !zone.is_empty() => (address, Some(zone.to_owned())),
            Some((address, _)) => (address, None),
            None => (text, None),
        };
        let address = address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(address);
        let Ok(address) = address.parse::<IpAddr>() else {
            return Err(not_an_address(text));
        };
        if zone.is_some() && address.is_ipv4() {
            return Err(format!(
                "{text:?}: an IPv4 address has no zone; write \"{address}\", and use --iface for the interface"
            ));
        }
        // IPv4-mapped addresses occur in dual-stack sockets, not in packets.
        let mapped = match address {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map(|v4| (v4, v6)),
            IpAddr::V4(_) => None,
        };
        Ok(Self {
            address: mapped.map_or(address, |(v4, _)| v4.into()),
            zone,
            instead_of: mapped.map(|(_, v6)| v6),
        })
    }
}

fn not_an_address(text: &str) -> String {
    if let Ok(prefix) = text.parse::<IpNet>() {
        return format!(
            "{text:?} is a prefix; use one address, such as \"{}\"",
            prefix.addr()
        );
    }
    if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        return format!(
            "{text:?} has a port; write \"{}\", and use --port for the destination port",
            socket.ip()
        );
    }
    format!("{text:?} is not an address; write one such as \"203.0.113.9\" or \"2001:db8::9\"")
}
