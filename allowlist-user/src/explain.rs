//! What would become of a packet that nobody sent: what can be asked, and the packets that stand for it.
//!
//! - `compiled` judges by a generation that is compiled, whether or not it is in force
//! - `reach` tells of all ports at once
//!
//! What is in force in the kernel is asked by `dataplane`'s `Lookup`, with the same packets. Both judge by
//! `allowlist-common`'s order of decisions, and neither knows a daemon. Pure.

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

pub use compiled::{Judge, OnInterface};
pub use reach::{Row, rows};

use crate::policy::Ports;

/// Would a new packet of this source pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Who sends it, as the kernel sees it.
    pub address: IpAddr,
    /// To what; none is everything.
    pub target: Option<Target>,
    /// By which interface it comes; none is each that is filtered.
    pub interface: Option<String>,
}

impl Question {
    /// As the path and query by which a daemon is asked.
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

/// What a packet is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// A TCP port; what opens a connection is meant.
    Tcp(u16),
    /// A UDP port.
    Udp(u16),
    /// An SCTP port.
    Sctp(u16),
    /// This host, by an echo request.
    Icmp,
    /// An IP protocol without ports, by number.
    Protocol(u8),
    /// Any other protocol without ports: the verdict that most such protocols get.
    Other,
}

/// An address as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Typed {
    /// As the kernel sees it in a packet.
    pub address: IpAddr,
    /// The interface that came with it, behind `%`.
    pub zone: Option<String>,
    /// What was typed, where that looks like another address.
    pub instead_of: Option<Ipv6Addr>,
}

impl Target {
    /// Everything that an address can send to.
    pub fn all(source: IpAddr) -> impl Iterator<Item = Self> {
        let ports = |target: fn(u16) -> Self| (0..=u16::MAX).map(target);
        ports(Self::Tcp)
            .chain(ports(Self::Udp))
            .chain(ports(Self::Sctp))
            .chain([Self::Icmp])
            .chain(Self::protocols(source))
    }

    /// The protocols without ports that an address can send, but for ICMP.
    pub fn protocols(source: IpAddr) -> impl Iterator<Item = Self> {
        let is_other = move |protocol: &u8| {
            let is_another = matches!(*protocol, TCP | UDP | SCTP | ICMP | ICMPV6);
            let is_header = source.is_ipv6() && is_extension(*protocol);
            !is_another && !is_header
        };
        (0..=u8::MAX).filter(is_other).map(Self::Protocol)
    }

    /// A new packet to it, which answers nothing: it comes from no port and to no address that this host
    /// sent anything from.
    pub fn packet(self, source: IpAddr) -> Packet {
        /// What any sender may use.
        const EPHEMERAL: u16 = 49_152;
        /// An encapsulation, as an example of what is left.
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
        let nobody: IpAddr = match source {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Packet {
            vlan: 0,
            source: source.into(),
            destination: nobody.into(),
            hops: 64,
            protocol,
            transport,
        }
    }
}

impl FromStr for Target {
    type Err = String;

    /// Errors say what would be right.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "other" {
            return Ok(Self::Other);
        }
        let range = |first: u16| {
            format!(
                "{text:?} is a range, and one port can be asked for; write such as \"{}/{first}\", or leave it out to see every port",
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
                    "{text:?} is a protocol with ports; write one port, such as \"{name}/443\", or leave it out to see every port"
                ))
            }
            Ports::Protocol(protocol) => Ok(Self::Protocol(protocol)),
            Ports::Any => Err(
                "\"any\" is every port; write one, such as \"tcp/443\", \"icmp\", \"ip/112\" or \"other\" (all other protocols without ports), or leave it out to see all"
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

    /// Errors say what would be right.
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
                "{text:?}: an IPv4 address has no zone; write \"{address}\", and --iface for the interface"
            ));
        }
        // What a socket for both families calls an IPv4 address. No packet has it.
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
            "{text:?} is a prefix, and one address can be asked for; write such as \"{}\"",
            prefix.addr()
        );
    }
    if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        return format!(
            "{text:?} has a port; write \"{}\", and --port for the port that it sends to",
            socket.ip()
        );
    }
    format!("{text:?} is not an address; write one such as \"203.0.113.9\" or \"2001:db8::9\"")
}
