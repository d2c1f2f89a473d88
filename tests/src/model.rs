//! The model: the specification of the filter as slow and simple code. It compares a packet with each service, each
//! source, each prefix and each packet that the host has sent, one after the other.
//!
//! Shares no code with `compile` or the kernel program. Has no clock: flows never expire.
//!
//! - `dissect` parses frames, as simply
//! - `host` runs the shipped packet logic over compiled tables; it is not a model
//! - `policy_strategies` generates random policies, and `traffic` random frames

pub mod dissect;
pub mod host;
pub mod policy_strategies;
pub mod traffic;

use std::net::IpAddr;

use allowlist_common::packet::{ICMP, ICMPV6, IGMP, SCTP, TCP, UDP, tcp_flag};
use allowlist_common::verdict::{Reason, Verdict};
use allowlist_policy::{
    Feed, Mode, Origin, Policy, Ports, ReturnTraffic, Rules, Service, Snapshot,
};
use dissect::ParsedFrame;

/// All decisions that a packet can get. Random traffic has to produce all decisions.
pub const DECISIONS: [(Verdict, Reason); 16] = [
    (Verdict::Pass, Reason::NotIp),
    (Verdict::Drop, Reason::NotIp),
    (Verdict::Pass, Reason::Arp),
    (Verdict::Drop, Reason::Arp),
    (Verdict::Drop, Reason::Malformed),
    (Verdict::Pass, Reason::NeighbourDiscovery),
    (Verdict::Pass, Reason::IcmpError),
    (Verdict::Drop, Reason::IcmpError),
    (Verdict::Pass, Reason::Dhcp),
    (Verdict::Pass, Reason::Multicast),
    (Verdict::Pass, Reason::Allowed),
    (Verdict::Pass, Reason::Answer),
    (Verdict::Drop, Reason::NotAllowed),
    (Verdict::Drop, Reason::Fragment),
    (Verdict::Pass, Reason::Default),
    (Verdict::Drop, Reason::Default),
];

/// A parsed packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The time to live, or hop limit.
    pub hops: u8,
    /// The protocol after all extension headers.
    pub protocol: u8,
    /// The content after the IP headers.
    pub content: Content,
}

/// The content of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// TCP, UDP or SCTP.
    Ports {
        /// The source port.
        source: u16,
        /// The destination port.
        destination: u16,
        /// The TCP flags; 0 for other protocols.
        flags: u8,
    },
    /// An ICMP message of either family, over either family, except errors.
    Icmp {
        /// The type of the message.
        kind: u8,
        /// Bytes 4 and 5 of the message.
        identifier: u16,
    },
    /// An ICMP error with the quoted packet, if that can be parsed.
    IcmpError(Option<Box<Packet>>),
    /// A fragment that is not the first.
    LaterFragment,
    /// Another protocol.
    Other,
}

/// The model of a filter, with its state.
pub struct Model<'a> {
    policy: &'a Policy,
    snapshot: &'a Snapshot,
    rules: &'a Rules,
    observes: bool,
    /// The packets of flows that this host initiated.
    sent: Vec<Packet>,
    /// The packets of `sent`, and those that were removed from `sent` because this host has accepted a connection
    /// between the same endpoints. Later fragments, which have no ports, are compared with these.
    peers: Vec<Packet>,
    /// The remote address, the remote port and the host's port of datagrams that passed and are no answers to the host.
    received: Vec<(IpAddr, u16, u16)>,
}

impl<'a> Model<'a> {
    /// Creates a filter in enforce mode that has seen no packet.
    pub const fn new(policy: &'a Policy, snapshot: &'a Snapshot, rules: &'a Rules) -> Self {
        Self {
            policy,
            snapshot,
            rules,
            observes: false,
            sent: Vec::new(),
            peers: Vec::new(),
            received: Vec::new(),
        }
    }

    /// Sets the mode: enforce or observe.
    #[must_use]
    pub fn in_mode(mut self, mode: Mode) -> Self {
        self.observes = mode == Mode::Observe;
        self
    }

    /// Records a frame that the host sends on an interface.
    pub fn send(&mut self, interface: &str, facts: ParsedFrame) {
        let ParsedFrame::Ip(packet) = facts else {
            return;
        };
        match (packet.protocol, &packet.content) {
            // Packets to the port of a service are decided by the service, and are no answers.
            (TCP | UDP, Content::Ports { source, .. })
                if self.is_served(interface, packet.protocol, *source) => {}
            (TCP, Content::Ports { flags, .. }) => self.send_segment(*flags, packet),
            (
                UDP,
                Content::Ports {
                    source,
                    destination,
                    ..
                },
            ) => {
                let foreign = (packet.destination, *destination, *source);
                if self.sent.iter().any(|sent| has_same_ends(&packet, sent))
                    || !self.received.contains(&foreign)
                {
                    self.initiate(packet);
                }
            }
            (_, Content::Icmp { kind, .. }) if is_echo_request(&packet, *kind) => {
                self.initiate(packet);
            }
            _ => {}
        }
    }

    /// Records a sent TCP segment: a SYN makes the connection the host's own, until a SYN ACK accepts a connection
    /// between the same endpoints.
    fn send_segment(&mut self, flags: u8, packet: Packet) {
        use tcp_flag::{ACK, RST, SYN};

        match flags & (SYN | ACK | RST) {
            SYN => self.initiate(packet),
            both if both == SYN | ACK => self.sent.retain(|sent| !has_same_ends(&packet, sent)),
            _ => {}
        }
    }

    fn initiate(&mut self, packet: Packet) {
        self.peers.push(packet.clone());
        self.sent.push(packet);
    }

    /// Returns the sent packets that decide whether the host initiated the flow of a packet.
    fn known_for(&self, content: &Content) -> &[Packet] {
        if *content == Content::LaterFragment {
            &self.peers
        } else {
            &self.sent
        }
    }

    /// Reports whether services alone decide packets to a port: a service covers it, and no ephemeral port of the host
    /// is covered by the same services (see [`Self::is_shared`]).
    fn is_served(&self, interface: &str, protocol: u8, port: u16) -> bool {
        let covering = self.names_covering(interface, protocol, port);
        !covering.is_empty() && !self.is_shared(interface, &covering)
    }

    /// Reports whether exactly the services `covering` cover an ephemeral port of the host too. False if flows are not
    /// tracked.
    fn is_shared(&self, interface: &str, covering: &[&str]) -> bool {
        let own = host::own_ports();
        // The set of covering services changes only at these ports.
        let services = self.services_on(interface);
        let ranges = services
            .flat_map(|service| &service.ports)
            .filter_map(|ports| match ports {
                Ports::Tcp(range) | Ports::Udp(range) => Some(range),
                _ => None,
            });
        let changes = ranges.flat_map(|range| [*range.start(), range.end().saturating_add(1)]);
        let mut ports: Vec<u16> = changes.filter(|port| own.contains(port)).collect();
        ports.push(*own.start());
        self.tracks()
            && ports.into_iter().any(|port| {
                [TCP, UDP]
                    .into_iter()
                    .any(|protocol| self.names_covering(interface, protocol, port) == covering)
            })
    }

    fn names_covering(&self, interface: &str, protocol: u8, port: u16) -> Vec<&'a str> {
        let services = self.covering(interface, protocol, port);
        services.map(|service| &*service.name).collect()
    }

    /// Decides a frame that an interface receives.
    pub fn receive(&mut self, interface: &str, facts: &ParsedFrame) -> (Verdict, Reason) {
        let end = self.end(interface, facts);
        if let ParsedFrame::Ip(packet) = facts
            && let Content::Ports {
                source,
                destination,
                ..
            } = packet.content
            && packet.protocol == UDP
            && self.tracks()
        {
            let passes_as_foreign = match end {
                (Verdict::Drop, Reason::Default | Reason::NotAllowed) => self.observes,
                (Verdict::Pass, Reason::Allowed) => !self.is_served(interface, UDP, destination),
                _ => false,
            };
            if passes_as_foreign && !self.is_answer(packet) {
                self.received.push((packet.source, source, destination));
            }
        }
        end
    }

    fn end(&self, interface: &str, facts: &ParsedFrame) -> (Verdict, Reason) {
        let keep = &self.rules.keep;
        match facts {
            ParsedFrame::Malformed(_) => (Verdict::Drop, Reason::Malformed),
            ParsedFrame::Arp => (pass_if(keep.arp), Reason::Arp),
            ParsedFrame::NotIp => (pass_if(keep.not_ip), Reason::NotIp),
            ParsedFrame::Ip(packet) => self.judge(interface, packet),
        }
    }

    fn judge(&self, interface: &str, packet: &Packet) -> (Verdict, Reason) {
        let keep = &self.rules.keep;
        if keep.neighbour_discovery && is_neighbour_discovery(packet) {
            return (Verdict::Pass, Reason::NeighbourDiscovery);
        }
        if keep.icmp_errors
            && let Content::IcmpError(quoted) = &packet.content
        {
            let is_wanted =
                !self.tracks() || self.quotes_own_packet(interface, packet, quoted.as_deref());
            return (pass_if(is_wanted), Reason::IcmpError);
        }
        if keep.dhcp && is_dhcp_answer(packet) {
            return (Verdict::Pass, Reason::Dhcp);
        }
        if keep.multicast && is_group_membership(packet) {
            return (Verdict::Pass, Reason::Multicast);
        }
        let services: Vec<&Service> = match packet.content {
            Content::Ports { destination, .. } => self
                .covering(interface, packet.protocol, destination)
                .collect(),
            Content::LaterFragment => self.covering_any_of(interface, packet).collect(),
            _ => self.covering(interface, packet.protocol, 0).collect(),
        };
        if services
            .iter()
            .any(|service| self.allows(service, packet.source))
        {
            return (Verdict::Pass, Reason::Allowed);
        }
        let may_answer = match packet.content {
            Content::Ports { destination, .. } => {
                services.is_empty() || !self.is_served(interface, packet.protocol, destination)
            }
            _ => true,
        };
        if may_answer && self.is_answer(packet) {
            return (Verdict::Pass, Reason::Answer);
        }
        if !services.is_empty() {
            let reason = match packet.content {
                Content::LaterFragment => Reason::Fragment,
                _ => Reason::NotAllowed,
            };
            return (Verdict::Drop, reason);
        }
        let passes = self.rules.default == Verdict::Pass;
        (pass_if(passes), Reason::Default)
    }

    /// Reports whether flows are tracked.
    fn tracks(&self) -> bool {
        self.rules.default == Verdict::Drop && self.rules.return_traffic == ReturnTraffic::Track
    }

    fn is_answer(&self, packet: &Packet) -> bool {
        if self.rules.default == Verdict::Pass {
            return false; // the default verdict is the same
        }
        match self.rules.return_traffic {
            ReturnTraffic::Off => false,
            ReturnTraffic::Established => opens_no_connection(packet),
            ReturnTraffic::Track => {
                let known = self.known_for(&packet.content);
                known.iter().any(|sent| answers(packet, sent))
            }
        }
    }

    /// Reports whether an ICMP error quotes a packet of this host: one of a tracked flow, or one of a service to a peer
    /// that the service allows.
    fn quotes_own_packet(&self, interface: &str, error: &Packet, quoted: Option<&Packet>) -> bool {
        let Some(quoted) = quoted else {
            return false;
        };
        if quoted.source != error.destination {
            return false;
        }
        let services: Vec<&Service> = match quoted.content {
            Content::Ports { source, .. } => {
                self.covering(interface, quoted.protocol, source).collect()
            }
            Content::LaterFragment => self.covering_any_of(interface, quoted).collect(),
            _ => self.covering(interface, quoted.protocol, 0).collect(),
        };
        services
            .iter()
            .any(|service| self.allows(service, quoted.destination))
            || self
                .known_for(&quoted.content)
                .iter()
                .any(|sent| is_of_the_same_flow(quoted, sent))
    }

    /// Returns the services that cover a protocol and port. The port has no meaning for protocols without ports.
    fn covering(
        &self,
        interface: &str,
        protocol: u8,
        port: u16,
    ) -> impl Iterator<Item = &'a Service> {
        self.services_on(interface).filter(move |service| {
            service.ports.iter().any(|ports| match ports {
                Ports::Tcp(range) => protocol == TCP && range.contains(&port),
                Ports::Udp(range) => protocol == UDP && range.contains(&port),
                Ports::Sctp(range) => protocol == SCTP && range.contains(&port),
                Ports::Icmp => protocol == ICMP || protocol == ICMPV6,
                Ports::Protocol(number) => protocol == *number,
                Ports::Any => true,
            })
        })
    }

    /// Returns the services that cover the protocol of a later fragment on any port: all services, if an IPv6 extension
    /// header hides the protocol.
    fn covering_any_of(
        &self,
        interface: &str,
        fragment: &Packet,
    ) -> impl Iterator<Item = &'a Service> {
        let protocol = fragment.protocol;
        let is_hidden = is_hidden(fragment);
        self.services_on(interface).filter(move |service| {
            service.ports.iter().any(|ports| match ports {
                Ports::Tcp(_) => is_hidden || protocol == TCP,
                Ports::Udp(_) => is_hidden || protocol == UDP,
                Ports::Sctp(_) => is_hidden || protocol == SCTP,
                Ports::Icmp => is_hidden || protocol == ICMP || protocol == ICMPV6,
                Ports::Protocol(number) => is_hidden || protocol == *number,
                Ports::Any => true,
            })
        })
    }

    fn services_on(&self, interface: &str) -> impl Iterator<Item = &'a Service> {
        self.policy.services.iter().filter(move |service| {
            service.interfaces.is_empty() || service.interfaces.iter().any(|name| name == interface)
        })
    }

    fn allows(&self, service: &Service, address: IpAddr) -> bool {
        service.allow.iter().any(|source| {
            let prefixes = &self.snapshot[source].prefixes;
            prefixes.iter().any(|prefix| prefix.contains(&address))
        })
    }
}

/// Reports whether a later fragment hides its transport protocol: its next header is an IPv6 extension header, which
/// only the first fragment contains.
fn is_hidden(fragment: &Packet) -> bool {
    fragment.source.is_ipv6() && dissect::EXTENSIONS.contains(&fragment.protocol)
}

const fn pass_if(passes: bool) -> Verdict {
    if passes { Verdict::Pass } else { Verdict::Drop }
}

/// Reports whether a packet is neighbour discovery (RFC 4861) from the same link: router or neighbour solicitation or
/// advertisement, or redirect.
fn is_neighbour_discovery(packet: &Packet) -> bool {
    packet.source.is_ipv6()
        && packet.protocol == ICMPV6
        && packet.hops == 255
        && matches!(packet.content, Content::Icmp { kind, .. } if (133..=137).contains(&kind))
}

/// Reports whether a packet is an answer of a DHCP server or relay, or a DHCPv6 answer to a link-local address.
fn is_dhcp_answer(packet: &Packet) -> bool {
    let (server, client, is_for_the_link) = match packet.destination {
        IpAddr::V4(_) => (67, 68, true),
        IpAddr::V6(destination) => (547, 546, destination.is_unicast_link_local()),
    };
    packet.protocol == UDP
        && is_for_the_link
        && matches!(packet.content, Content::Ports { source, destination, .. }
            if source == server && destination == client)
}

/// Reports whether a packet is IGMP or multicast listener discovery (query, report, done, version 2 report) from this link.
fn is_group_membership(packet: &Packet) -> bool {
    if packet.hops != 1 {
        return false;
    }
    match packet.source {
        IpAddr::V4(_) => packet.protocol == IGMP && packet.content == Content::Other,
        IpAddr::V6(source) => {
            packet.protocol == ICMPV6
                && (source.is_unicast_link_local() || source.is_unspecified())
                && matches!(packet.content, Content::Icmp { kind, .. } if [130, 131, 132, 143].contains(&kind))
        }
    }
}

/// Reports whether a message is an echo request in the ICMP of its family. Hosts ignore the ICMP of the other family.
fn is_echo_request(packet: &Packet, kind: u8) -> bool {
    matches!(
        (packet.source, packet.protocol, kind),
        (IpAddr::V4(_), ICMP, 8) | (IpAddr::V6(_), ICMPV6, 128)
    )
}

fn is_echo_reply(packet: &Packet, kind: u8) -> bool {
    matches!(
        (packet.source, packet.protocol, kind),
        (IpAddr::V4(_), ICMP, 0) | (IpAddr::V6(_), ICMPV6, 129)
    )
}

fn opens_no_connection(packet: &Packet) -> bool {
    packet.protocol == TCP
        && matches!(packet.content, Content::Ports { flags, .. }
            if flags & (tcp_flag::ACK | tcp_flag::RST) != 0)
}

/// Reports whether two sent packets have the same addresses and ports.
fn has_same_ends(packet: &Packet, sent: &Packet) -> bool {
    let ports = |packet: &Packet| match packet.content {
        Content::Ports {
            source,
            destination,
            ..
        } => Some((source, destination)),
        _ => None,
    };
    let ends = |packet: &Packet| {
        (
            packet.protocol,
            packet.source,
            packet.destination,
            ports(packet),
        )
    };
    ends(packet) == ends(sent)
}

/// Reports whether a packet can be an answer to a sent packet.
fn answers(packet: &Packet, sent: &Packet) -> bool {
    if packet.protocol != sent.protocol
        || packet.source != sent.destination
        || packet.destination != sent.source
    {
        return false;
    }
    match (&packet.content, &sent.content) {
        // The first fragment has the ports; a later fragment is useless without it.
        (Content::LaterFragment, _) => true,
        (
            Content::Ports {
                source,
                destination,
                ..
            },
            Content::Ports {
                source: sent_from,
                destination: sent_to,
                ..
            },
        ) => {
            let may_answer = packet.protocol != TCP || opens_no_connection(packet);
            may_answer && (source, destination) == (sent_to, sent_from)
        }
        (
            Content::Icmp { kind, identifier },
            Content::Icmp {
                identifier: sent_identifier,
                ..
            },
        ) => is_echo_reply(packet, *kind) && identifier == sent_identifier,
        _ => false,
    }
}

/// Reports whether a quoted packet belongs to the flow of a sent packet. A hidden protocol of a later fragment matches
/// every protocol.
fn is_of_the_same_flow(quoted: &Packet, sent: &Packet) -> bool {
    let is_later = quoted.content == Content::LaterFragment;
    if quoted.protocol != sent.protocol && !(is_later && is_hidden(quoted))
        || quoted.source != sent.source
        || quoted.destination != sent.destination
    {
        return false;
    }
    match (&quoted.content, &sent.content) {
        (Content::LaterFragment, _) => true,
        (
            Content::Ports {
                source,
                destination,
                ..
            },
            Content::Ports {
                source: sent_from,
                destination: sent_to,
                ..
            },
        ) => (source, destination) == (sent_from, sent_to),
        (
            Content::Icmp { identifier, .. },
            Content::Icmp {
                identifier: sent_identifier,
                ..
            },
        ) => identifier == sent_identifier,
        _ => false,
    }
}

/// Returns the snapshot of a policy whose sources all have static prefixes, or names, which have no address yet.
pub fn static_snapshot(policy: &Policy) -> Snapshot {
    policy
        .sources
        .iter()
        .map(|source| {
            let prefixes = match &source.origin {
                Origin::Prefixes(prefixes) => prefixes.clone(),
                Origin::Names(_) => Vec::new(),
                _ => panic!("the source {} has no static prefixes", source.name),
            };
            let feed = Feed::new(prefixes, jiff::Timestamp::UNIX_EPOCH);
            (source.name.clone(), feed.into())
        })
        .collect()
}
