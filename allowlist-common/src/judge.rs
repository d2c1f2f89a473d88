//! A packet and the tables to a verdict and its reason: the order of decisions, in one place.
//!
//! The order is the one that ARCHITECTURE.md lists; what comes first wins. Knows neither bytes nor
//! maps, and does not count: its caller does, once a packet.

use crate::abi::{ControlBits, Exemptions, Grant, ServiceId, service_set};
use crate::flow::Flow;
use crate::packet::{
    Address, Contents, ICMPV6, IGMP, Malformed, Packet, Quote, SCTP, TCP, Transport, UDP,
    hides_protocol, tcp_flag,
};
use crate::verdict::{Reason, Verdict};

/// What a packet's facts are looked up in: one generation of a policy, as it is on one interface.
pub trait Tables {
    /// Under what the generation is in force.
    fn control(&self) -> ControlBits;
    /// The service that covers a destination port of TCP, UDP or SCTP (`protocol`); 0 is none.
    fn service_of_port(&self, protocol: u8, port: u16) -> ServiceId;
    /// The service that covers a protocol without ports; 0 is none.
    fn service_of_protocol(&self, protocol: u8) -> ServiceId;
    /// The set of all services that cover any part of a protocol, for later fragments of an IP `family`.
    fn services_of_protocol(&self, family: u8, protocol: u8) -> u64;
    /// Whether this host connects from ports of a service in the set as well. Looked up only where
    /// [`ControlBits::shares_ports`].
    fn is_shared(&self, services: u64) -> bool;
    /// The id that a service's packets are counted under.
    fn service_counter_id(&self, service: ServiceId) -> u32;
    /// What a source may reach.
    fn grant(&self, source: &Address) -> Option<Grant>;
    /// Whether this host sent anything lately from that port (echo identifier; 0 for peers): a
    /// cheap look that spares most of the next one.
    fn port_has_flows(&self, protocol: u8, port: u16) -> bool;
    /// Whether this host sent anything of that flow lately.
    fn has_flow(&self, flow: &Flow) -> bool;
    /// The flow that an ICMP error from `source` is about, by what it quotes.
    fn flow_quoted_by(&self, quote: Quote, source: Address) -> Option<Flow>;
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Pass or drop.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The id of the sources that let it in; 0 where none did.
    pub match_id: u32,
    /// The id of the service that covers it; 0 where none does, or where no port tells which.
    pub service: u32,
}

impl Decision {
    #[inline(always)]
    const fn new(verdict: Verdict, reason: Reason) -> Self {
        Self {
            verdict,
            reason,
            match_id: 0,
            service: 0,
        }
    }

    /// For a program that cannot find its own tables: nobody can be let in, and it is counted.
    pub const INTERNAL_ERROR: Self = Self::new(Verdict::Drop, Reason::InternalError);

    /// Where everything passes ([`ControlBits::is_open`]).
    pub const OPEN: Self = Self::new(Verdict::Pass, Reason::Default);

    /// Whether a packet with this decision passes although it answers nothing, so that its flow is to be
    /// marked as foreign. `is_pending_or_open` is about the control word before its fallback was applied.
    ///
    /// Without a fallback, nothing is tracked while the default verdict is to pass, so nothing is marked. With
    /// one, a policy may become active that tracks.
    #[inline(always)]
    pub const fn marks_foreign(&self, control: ControlBits, is_pending_or_open: bool) -> bool {
        match (self.verdict, self.reason) {
            (Verdict::Drop, Reason::Default | Reason::NotAllowed) => {
                control.observes() && (control.tracks() || is_pending_or_open)
            }
            (Verdict::Pass, Reason::Default) => is_pending_or_open,
            // From the same port this host may send a first datagram of its own.
            (Verdict::Pass, Reason::Allowed) => control.shares_ports() || is_pending_or_open,
            _ => false,
        }
    }
}

/// Decides what becomes of what was parsed.
#[inline(always)]
pub fn judge<T: Tables>(parsed: &Result<Contents, Malformed>, tables: &T) -> Decision {
    let packet = match parsed {
        Ok(Contents::Ip(packet)) => packet,
        Ok(Contents::Arp) => return essential_verdict(tables, Exemptions::ARP, Reason::Arp),
        Ok(Contents::Other) => return essential_verdict(tables, Exemptions::NOT_IP, Reason::NotIp),
        Err(_) => return Decision::new(Verdict::Drop, Reason::Malformed),
    };
    if let Some((exemption, reason)) = essential_traffic(packet)
        && tables.control().exempts(exemption)
    {
        return match packet.transport {
            Transport::IcmpError { quote, .. } => icmp_error(packet, quote, tables),
            _ => Decision::new(Verdict::Pass, reason),
        };
    }
    let (service, covering) = covering(packet, tables);
    if covering != 0
        && let Some(grant) = tables.grant(&packet.source)
        && grant.services() & covering != 0
    {
        return Decision {
            verdict: Verdict::Pass,
            reason: Reason::Allowed,
            match_id: grant.match_id,
            service: tables.service_counter_id(service),
        };
    }
    // The port of a packet distinguishes requests to a service from answers to this host, unless this host
    // connects from the service's ports as well. Without a port (a later fragment, an echo reply) it may be
    // either.
    let may_answer = covering == 0
        || !matches!(packet.transport, Transport::Ports { .. })
        || (tables.control().shares_ports() && tables.is_shared(covering));
    if may_answer && is_answer(packet, tables) {
        Decision::new(Verdict::Pass, Reason::Answer)
    } else if covering != 0 && matches!(packet.transport, Transport::LaterFragment) {
        Decision::new(Verdict::Drop, Reason::Fragment)
    } else if covering != 0 {
        Decision {
            service: tables.service_counter_id(service),
            ..Decision::new(Verdict::Drop, Reason::NotAllowed)
        }
    } else {
        Decision::new(tables.control().default_verdict(), Reason::Default)
    }
}

/// The service that covers a packet, and it as a set; for a packet whose port cannot be seen 0, and
/// the set of those that could.
#[inline(always)]
fn covering<T: Tables>(packet: &Packet, tables: &T) -> (ServiceId, u64) {
    let service = match packet.transport {
        Transport::Ports { destination, .. } => {
            tables.service_of_port(packet.protocol, destination)
        }
        Transport::LaterFragment => {
            let family = packet.source.family();
            return (0, tables.services_of_protocol(family, packet.protocol));
        }
        Transport::Icmp { .. } | Transport::IcmpError { .. } | Transport::Other => {
            tables.service_of_protocol(packet.protocol)
        }
    };
    (service, service_set(service))
}

/// A frame without IP: it passes, or nothing else could let it in.
#[inline(always)]
fn essential_verdict<T: Tables>(tables: &T, exemption: Exemptions, reason: Reason) -> Decision {
    let verdict = if tables.control().exempts(exemption) {
        Verdict::Pass
    } else {
        Verdict::Drop
    };
    Decision::new(verdict, reason)
}

/// What passes whatever the policy says, since a host that does not get it falls off its network.
///
/// Redirects are left out on purpose for IPv4: a host that must listen to them can allow `icmp`.
#[inline(always)]
fn essential_traffic(packet: &Packet) -> Option<(Exemptions, Reason)> {
    // From another link a neighbour discovery message arrives with fewer hops left (RFC 4861, 11.2).
    const SAME_LINK: u8 = 255;
    // Group membership is sent with one hop left, so that no router forwards it (RFC 3376, 4; RFC 3810, 5).
    const ONE_HOP: u8 = 1;
    match (packet.source, packet.protocol, packet.transport) {
        (
            Address::V6(_),
            ICMPV6,
            Transport::Icmp {
                kind: 133..=137, ..
            },
        ) if packet.hops == SAME_LINK => {
            Some((Exemptions::NEIGHBOUR_DISCOVERY, Reason::NeighbourDiscovery))
        }
        (_, _, Transport::IcmpError { .. }) => Some((Exemptions::ICMP_ERRORS, Reason::IcmpError)),
        (
            source @ Address::V6(_),
            ICMPV6,
            Transport::Icmp {
                kind: 130..=132 | 143,
                ..
            },
        ) if packet.hops == ONE_HOP && (source.is_link_local() || source.is_unspecified()) => {
            Some((Exemptions::MULTICAST, Reason::Multicast))
        }
        (Address::V4(_), IGMP, Transport::Other) if packet.hops == ONE_HOP => {
            Some((Exemptions::MULTICAST, Reason::Multicast))
        }
        (
            Address::V4(_),
            UDP,
            Transport::Ports {
                source: 67,
                destination: 68,
                ..
            },
        ) => Some((Exemptions::DHCP, Reason::Dhcp)),
        (
            Address::V6(_),
            UDP,
            Transport::Ports {
                source: 547,
                destination: 546,
                ..
            },
        ) if packet.destination.is_link_local() => Some((Exemptions::DHCP, Reason::Dhcp)),
        _ => None,
    }
}

/// With tracking on, an error is let in only for something that this host sent: for a flow that is
/// tracked, or for a service's answer to somebody who may reach that service.
#[inline(always)]
fn icmp_error<T: Tables>(packet: &Packet, quote: Quote, tables: &T) -> Decision {
    let is_expected = !tables.control().tracks()
        || tables
            .flow_quoted_by(quote, packet.source)
            .is_some_and(|flow| {
                flow.local == packet.destination.padded()
                    && (is_served(&flow, tables) || is_tracked(&flow, tables))
            });
    let verdict = if is_expected {
        Verdict::Pass
    } else {
        Verdict::Drop
    };
    Decision::new(verdict, Reason::IcmpError)
}

/// Whether a flow is a service's with a source that it allows. Such flows are not tracked.
#[inline(always)]
fn is_served<T: Tables>(flow: &Flow, tables: &T) -> bool {
    let covering = if flow.is_peer() {
        tables.services_of_protocol(flow.family, flow.protocol)
    } else {
        service_set(match flow.protocol {
            TCP | UDP | SCTP => tables.service_of_port(flow.protocol, flow.local_port),
            protocol => tables.service_of_protocol(protocol),
        })
    };
    covering != 0
        && tables
            .grant(&flow.remote_address())
            .is_some_and(|grant| grant.services() & covering != 0)
}

/// Whether a packet that no service lets in answers something that this host sent.
#[inline(always)]
fn is_answer<T: Tables>(packet: &Packet, tables: &T) -> bool {
    let control = tables.control();
    if control.tracks() {
        return Flow::answered_by(packet).is_some_and(|flow| is_tracked(&flow, tables));
    }
    control.passes_established()
        && packet.protocol == TCP
        && matches!(packet.transport, Transport::Ports { flags, .. }
            if flags & (tcp_flag::ACK | tcp_flag::RST) != 0)
}

#[inline(always)]
fn is_tracked<T: Tables>(flow: &Flow, tables: &T) -> bool {
    if flow.is_peer() && hides_protocol(flow.family, flow.protocol) {
        // It could be of any protocol that is tracked.
        return [TCP, UDP, ICMPV6]
            .iter()
            .any(|&protocol| has_live_flow(&Flow { protocol, ..*flow }, tables));
    }
    has_live_flow(flow, tables)
}

#[inline(always)]
fn has_live_flow<T: Tables>(flow: &Flow, tables: &T) -> bool {
    tables.port_has_flows(flow.protocol, flow.local_port) && tables.has_flow(flow)
}
