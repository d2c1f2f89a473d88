//! Decides on a parsed packet: the order of decisions, in one place.
//!
//! The first applicable rule wins, in this order: malformed frames, essential traffic, allowed sources, answers to
//! this host, services that do not allow the source, the default verdict; `docs/packets.md` describes them. Knows
//! neither bytes nor maps, and does not count packets: the caller does, once per packet.

use crate::abi::{ControlBits, Exemptions, Grant, ServiceId, service_set};
use crate::flow::Flow;
use crate::packet::wire::{hops, icmpv6, port};
use crate::packet::{
    Address, Contents, ICMPV6, IGMP, Malformed, Packet, Quote, SCTP, TCP, Transport, UDP,
    hides_protocol, tcp_flag,
};
use crate::verdict::{Reason, Verdict};

/// The tables of one generation on one interface, and the flow table.
pub trait Tables {
    /// Returns the effective control word.
    fn control(&self) -> ControlBits;
    /// Returns the service for a destination port of TCP, UDP or SCTP, or 0 if none covers it.
    fn service_of_port(&self, protocol: u8, port: u16) -> ServiceId;
    /// Returns the service for a protocol without ports, or 0 if none covers it.
    fn service_of_protocol(&self, protocol: u8) -> ServiceId;
    /// Returns the set of services that cover any part of a protocol, for later fragments of an IP `family`.
    fn services_of_protocol(&self, family: u8, protocol: u8) -> u64;
    /// Reports whether this host also connects from ports of a service in the set. Called only if
    /// [`ControlBits::shares_ports`].
    fn is_shared(&self, services: u64) -> bool;
    /// Returns the id under which packets to a service are counted: an index into [`crate::abi::SERVICE_COUNTS`].
    fn service_counter_id(&self, service: ServiceId) -> u32;
    /// Returns the services that a source address may reach; `None` or a grant without services if no prefix contains
    /// it.
    fn grant(&self, source: &Address) -> Option<Grant>;
    /// Reports whether a local port may have live flows: a cheap test that avoids most calls of [`Tables::has_flow`].
    ///
    /// For echo messages, `port` is their identifier; for later fragments, it is 0, and the result is about all ports.
    fn port_has_flows(&self, protocol: u8, port: u16) -> bool;
    /// Reports whether the flow table has a live entry for a flow.
    fn has_flow(&self, flow: &Flow) -> bool;
    /// Returns the flow of the packet that an ICMP error from `source` quotes; `None` if the quote does not identify a
    /// flow.
    fn flow_quoted_by(&self, quote: Quote, source: Address) -> Option<Flow>;
}

/// The verdict on a packet, with its reason and counter ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The verdict.
    pub verdict: Verdict,
    /// The reason for the verdict.
    pub reason: Reason,
    /// The match id of the source address (an index into [`crate::abi::MATCHES`]), if the packet passes because of its
    /// source address; else 0.
    pub match_id: u32,
    /// The counter id of the service (an index into [`crate::abi::SERVICE_COUNTS`]); 0 if no service covers the packet,
    /// or if it has no ports to find the service by.
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

    /// The decision of a program that cannot find its own tables.
    pub const INTERNAL_ERROR: Self = Self::new(Verdict::Drop, Reason::InternalError);

    /// The decision while all packets pass ([`ControlBits::is_open`]).
    pub const OPEN: Self = Self::new(Verdict::Pass, Reason::Default);

    /// Reports whether to mark the packet's flow as foreign, so that this host's replies do not make it an own flow.
    ///
    /// This concerns packets that pass, if only because of observe mode, and are not answers. `control` is the
    /// effective control word; `is_pending_or_open` states whether the stored word, for which a fallback may be
    /// effective, is pending or open. While the default verdict is to pass, flows are not tracked, so marks are only
    /// needed for a policy that tracks flows and becomes active by a rollback.
    #[inline(always)]
    pub const fn marks_foreign(&self, control: ControlBits, is_pending_or_open: bool) -> bool {
        match (self.verdict, self.reason) {
            (Verdict::Drop, Reason::Default | Reason::NotAllowed) => {
                control.observes() && (control.tracks() || is_pending_or_open)
            }
            (Verdict::Pass, Reason::Default) => is_pending_or_open,
            // This host may send a first datagram of its own from the same port.
            (Verdict::Pass, Reason::Allowed) => control.shares_ports() || is_pending_or_open,
            _ => false,
        }
    }
}

/// Returns the decision on a parsed frame.
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
    // The destination port distinguishes requests to a service from answers to this host, unless this host connects
    // from the service's ports too. A packet without ports (a later fragment, an echo reply) may be either.
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

/// Returns the service that covers a packet, and the set of only this service; 0 and the empty set if none covers it.
///
/// For a later fragment, whose ports are not visible, returns 0 and the set of all services that may cover it.
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

/// Returns the decision on a frame without IP, which passes only if the kind `exemption` is exempt.
#[inline(always)]
fn essential_verdict<T: Tables>(tables: &T, exemption: Exemptions, reason: Reason) -> Decision {
    let verdict = if tables.control().exempts(exemption) {
        Verdict::Pass
    } else {
        Verdict::Drop
    };
    Decision::new(verdict, reason)
}

/// Returns the kind of essential traffic that a packet belongs to, and the reason to count it under; `None` for other
/// packets.
///
/// Essential traffic is what a host needs to stay on its network. ICMP redirects of IPv4 are deliberately not included:
/// a host that needs them can allow `icmp`.
#[inline(always)]
fn essential_traffic(packet: &Packet) -> Option<(Exemptions, Reason)> {
    match (packet.source, packet.protocol, packet.transport) {
        (
            Address::V6(_),
            ICMPV6,
            Transport::Icmp {
                kind: icmpv6::ROUTER_SOLICITATION..=icmpv6::REDIRECT,
                ..
            },
        ) if packet.hops == hops::SAME_LINK => {
            Some((Exemptions::NEIGHBOUR_DISCOVERY, Reason::NeighbourDiscovery))
        }
        (_, _, Transport::IcmpError { .. }) => Some((Exemptions::ICMP_ERRORS, Reason::IcmpError)),
        (
            source @ Address::V6(_),
            ICMPV6,
            Transport::Icmp {
                kind: icmpv6::LISTENER_QUERY..=icmpv6::LISTENER_DONE | icmpv6::LISTENER_REPORT_V2,
                ..
            },
        ) if packet.hops == hops::ONE && (source.is_link_local() || source.is_unspecified()) => {
            Some((Exemptions::MULTICAST, Reason::Multicast))
        }
        (Address::V4(_), IGMP, Transport::Other) if packet.hops == hops::ONE => {
            Some((Exemptions::MULTICAST, Reason::Multicast))
        }
        (
            Address::V4(_),
            UDP,
            Transport::Ports {
                source: port::DHCP_SERVER,
                destination: port::DHCP_CLIENT,
                ..
            },
        ) => Some((Exemptions::DHCP, Reason::Dhcp)),
        (
            Address::V6(_),
            UDP,
            Transport::Ports {
                source: port::DHCPV6_SERVER,
                destination: port::DHCPV6_CLIENT,
                ..
            },
        ) if packet.destination.is_link_local() => Some((Exemptions::DHCP, Reason::Dhcp)),
        _ => None,
    }
}

/// Returns the decision on an ICMP error.
///
/// With flow tracking, an error passes only if it quotes a packet of this host: of a tracked flow, or of a service's
/// flow with an address that may reach the service.
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

/// Reports whether a flow is between a service and an address that may reach it. Such flows are not tracked.
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

/// Reports whether a packet that no service allows is an answer to this host.
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
        // The fragment may belong to any tracked protocol.
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
