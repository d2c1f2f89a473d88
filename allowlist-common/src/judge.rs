//! A packet and the tables to a verdict and its reason: the order of decisions, in one place.
//!
//! The order is the one that ARCHITECTURE.md lists; what comes first wins. Knows neither bytes nor
//! maps, and does not count: its caller does, once a packet.

use crate::abi::{Grant, ServiceId, service_set};
use crate::packet::{Address, ICMP, ICMPV6, IGMP, Malformed, Packet, Transport, UDP};
use crate::verdict::{Reason, Verdict};

/// What a packet's facts are looked up in: one generation of a policy.
pub trait Tables {
    /// The service that covers a TCP or UDP (`protocol`) destination port; 0 is none.
    fn service_of_port(&self, protocol: u8, port: u16) -> ServiceId;
    /// The service that covers a protocol without ports; 0 is none.
    fn service_of_protocol(&self, protocol: u8) -> ServiceId;
    /// The set of all services that cover any part of a protocol.
    fn services_of_protocol(&self, protocol: u8) -> u64;
    /// What a source may reach.
    fn grant(&self, source: &Address) -> Option<Grant>;
    /// For what no service covers.
    fn default_verdict(&self) -> Verdict;
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Pass or drop.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The id of what let it in; 0 where nothing did.
    pub matched: u32,
}

impl Decision {
    #[inline(always)]
    const fn new(verdict: Verdict, reason: Reason) -> Self {
        Self {
            verdict,
            reason,
            matched: 0,
        }
    }

    /// For a program that cannot find its own tables: nobody can be let in, and it is counted.
    pub const INTERNAL_ERROR: Self = Self::new(Verdict::Drop, Reason::InternalError);
}

/// Decides what becomes of what was parsed.
#[inline(always)]
pub fn judge<T: Tables>(parsed: &Result<Option<Packet>, Malformed>, tables: &T) -> Decision {
    let packet = match parsed {
        Ok(Some(packet)) => packet,
        Ok(None) => return Decision::new(Verdict::Pass, Reason::NotIp),
        Err(Malformed) => return Decision::new(Verdict::Drop, Reason::Malformed),
    };
    if let Some(reason) = keeps_host_alive(packet) {
        return Decision::new(Verdict::Pass, reason);
    }
    let covering = match packet.transport {
        Transport::Ports { destination, .. } => {
            service_set(tables.service_of_port(packet.protocol, destination))
        }
        Transport::LaterFragment => tables.services_of_protocol(packet.protocol),
        Transport::Icmp(_) | Transport::Other => {
            service_set(tables.service_of_protocol(packet.protocol))
        }
    };
    if covering == 0 {
        return Decision::new(tables.default_verdict(), Reason::Default);
    }
    match tables.grant(&packet.source) {
        Some(grant) if grant.services() & covering != 0 => Decision {
            verdict: Verdict::Pass,
            reason: Reason::Allowed,
            matched: grant.matched,
        },
        _ => Decision::new(Verdict::Drop, Reason::NotAllowed),
    }
}

/// What passes whatever the policy says, since a host that does not get it falls off its network.
///
/// Redirects are left out on purpose for IPv4: a host that must listen to them can allow `icmp`.
#[inline(always)]
fn keeps_host_alive(packet: &Packet) -> Option<Reason> {
    // From another link a neighbour discovery message arrives with fewer hops left (RFC 4861, 11.2).
    const SAME_LINK: u8 = 255;
    match (packet.source, packet.protocol, packet.transport) {
        (Address::V6(_), ICMPV6, Transport::Icmp(133..=137)) if packet.hops == SAME_LINK => {
            Some(Reason::NeighbourDiscovery)
        }
        (Address::V6(_), ICMPV6, Transport::Icmp(1..=4))
        | (Address::V4(_), ICMP, Transport::Icmp(3 | 11 | 12)) => Some(Reason::IcmpError),
        (Address::V6(_), ICMPV6, Transport::Icmp(130..=132 | 143))
        | (Address::V4(_), IGMP, Transport::Other) => Some(Reason::Multicast),
        (
            Address::V4(_),
            UDP,
            Transport::Ports {
                source: 67,
                destination: 68,
            },
        )
        | (
            Address::V6(_),
            UDP,
            Transport::Ports {
                source: 547,
                destination: 546,
            },
        ) => Some(Reason::Dhcp),
        _ => None,
    }
}
