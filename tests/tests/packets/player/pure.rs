//! The shipped packet logic over maps of the standard library, with faults that a test can plant.

use std::collections::HashMap;

use allowlist_common::flow::{
    Flow, FlowEntry, ForeignPort, Origins, OutboundPacket, Table, UDP_IDLE,
};
use allowlist_common::packet::{Address, ICMP, ICMPV6, TCP, UDP};

use super::{ACK, Ends, FRIEND, PORTS, Packet, Policy, RST, SYN, Subject};

/// A fault that the filter could have. The player has to find each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// An RST extends a flow, as an ACK does.
    RstExtends,
    /// A segment without SYN creates a flow.
    AckCreates,
    /// A segment that accepts a connection creates a flow.
    SynAckCreates,
    /// Segments of a closed socket extend a closing flow.
    ClosedSocketExtends,
    /// An inbound packet extends a flow.
    ReceiveExtends,
    /// An echo reply creates a flow.
    EchoReplyCreates,
    /// Marks are ignored.
    ReplyCreates,
    /// No flow is marked in observe mode.
    NoMarks,
    /// Packets to ephemeral ports that a service allows are not marked.
    NoMarksOfAllowed,
    /// A mark is for only one address of the host.
    MarksByAddress,
    /// A mark is not extended while the flow continues.
    MarksEndEarly,
    /// Marks are removed when drops are enforced.
    ModeForgetsMarks,
    /// Marks are removed when tracking ends and starts again.
    TrackingForgetsMarks,
    /// Strangers' packets to the ports of a service are not marked.
    NoMarksOfService,
    /// A flow whose mark was evicted is trusted.
    EvictedIsTrusted,
    /// The ports of sockets from before the start are trusted.
    OldSocketsAreTrusted,
    /// Ports from which flows were not tracked, because a service had them, are trusted.
    NewlyRecordedIsTrusted,
    /// Flows from before a period without tracking are kept.
    OldFlowsAreKept,
}

impl Fault {
    /// Faults that random sequences show.
    pub(super) const ALL: [Self; 16] = [
        Self::RstExtends,
        Self::AckCreates,
        Self::SynAckCreates,
        Self::ClosedSocketExtends,
        Self::ReceiveExtends,
        Self::EchoReplyCreates,
        Self::ReplyCreates,
        Self::NoMarks,
        Self::NoMarksOfAllowed,
        Self::MarksByAddress,
        Self::MarksEndEarly,
        Self::ModeForgetsMarks,
        Self::EvictedIsTrusted,
        Self::OldSocketsAreTrusted,
        Self::NewlyRecordedIsTrusted,
        Self::OldFlowsAreKept,
    ];

    /// Faults that few random sequences show.
    pub(super) const RARE: [Self; 2] = [Self::TrackingForgetsMarks, Self::NoMarksOfService];
}

pub(super) struct Pure {
    fault: Option<Fault>,
    now: u32,
    policy: Policy,
    observes: bool,
    own: HashMap<Flow, FlowEntry>,
    foreign: HashMap<Flow, FlowEntry>,
    ports: HashMap<u16, ForeignPort>,
    crowded_until: u32,
}

/// Returns the flow with these endpoints.
pub(super) fn flow(ends: Ends) -> Flow {
    let (local, remote) = ends.addresses();
    let protocol = if remote.is_ipv6() && ends.protocol == ICMP {
        ICMPV6
    } else {
        ends.protocol
    };
    Flow::between(
        Address::from(local),
        Address::from(remote),
        protocol,
        (ends.local_port, ends.remote_port),
    )
}

impl Pure {
    pub(super) fn new(fault: Option<Fault>) -> Self {
        Self {
            fault,
            now: 10_000,
            policy: Policy::Open,
            observes: false,
            own: HashMap::new(),
            foreign: HashMap::new(),
            ports: HashMap::new(),
            crowded_until: 0,
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn key(&self, flow: Flow) -> Flow {
        if self.has(Fault::MarksByAddress) {
            flow
        } else {
            flow.foreign()
        }
    }

    fn own(&self, flow: &Flow) -> FlowEntry {
        self.own.get(flow).copied().unwrap_or(FlowEntry::NONE)
    }

    fn mark(&mut self, flow: Flow) {
        let mark = FlowEntry::foreign(flow.protocol, self.now);
        self.foreign.insert(self.key(flow), mark);
        if flow.protocol == UDP {
            self.ports.entry(flow.local_port).or_default().received = self.now + UDP_IDLE;
        }
    }

    fn distrust(&mut self, ports: &[u16]) {
        for port in ports {
            self.ports.entry(*port).or_default().unknown = self.now + UDP_IDLE;
        }
    }

    /// The packet as the flow tracker parses it; `None` for an echo reply.
    fn parsed(&self, packet: &Packet) -> Option<OutboundPacket> {
        let flow = flow(packet.ends);
        let mut flags = if flow.protocol == TCP {
            packet.flags
        } else {
            0
        };
        let is_echo_reply = !matches!(flow.protocol, TCP | UDP) && packet.flags == 0;
        if is_echo_reply && !self.has(Fault::EchoReplyCreates) {
            return None;
        }
        let is_new = !self.own(&flow).is_alive(self.now);
        flags = match flags {
            RST if self.has(Fault::RstExtends) => ACK,
            ACK if self.has(Fault::AckCreates) && is_new => SYN,
            both if both == SYN | ACK && self.has(Fault::SynAckCreates) => SYN,
            flags => flags,
        };
        Some(OutboundPacket { flow, flags })
    }
}

impl Subject for Pure {
    fn receive(&mut self, packet: &Packet) -> bool {
        let ends = packet.ends;
        let flow = flow(ends);
        let own = self.own(&flow);
        if !self.policy.tracks() {
            return true;
        }
        let opens = match ends.protocol {
            TCP => packet.flags & (ACK | RST) == 0,
            UDP => false,
            _ => packet.flags == 1,
        };
        if self.policy.covers(ends) && ends.remote == FRIEND {
            let is_shared = self.policy == Policy::Shared && !self.has(Fault::NoMarksOfAllowed);
            if ends.protocol == UDP && is_shared && !own.is_alive(self.now) {
                self.mark(flow);
            }
            return true;
        }
        let may_answer = !self.policy.covers(ends) || self.policy == Policy::Shared;
        if may_answer && !opens && own.is_alive(self.now) {
            if self.has(Fault::ReceiveExtends) {
                self.own
                    .insert(flow, FlowEntry::open(flow.protocol, self.now));
            }
            return true;
        }
        let is_faulty = self.has(Fault::NoMarks)
            || self.has(Fault::NoMarksOfService) && self.policy.is_served(ends);
        if self.observes && !own.is_alive(self.now) && !is_faulty {
            self.mark(flow);
        }
        self.observes
    }

    fn send(&mut self, packet: &Packet) {
        if !self.policy.tracks() || self.policy.is_served(packet.ends) {
            return;
        }
        let Some(sent) = self.parsed(packet) else {
            return;
        };
        let own = self.own(&sent.flow);
        let has_socket = self.has(Fault::ClosedSocketExtends);
        let mut update = sent.update(own, has_socket, self.now);
        let key = self.key(sent.flow);
        if update.table == Table::Undecided {
            let mark = match self.foreign.get(&key) {
                Some(mark) if !self.has(Fault::ReplyCreates) => *mark,
                _ => FlowEntry::NONE,
            };
            let port = self.ports.get(&sent.flow.local_port).copied();
            let origins = Origins {
                is_armed: true,
                port: port.unwrap_or_default(),
                crowded_until: self.crowded_until,
            };
            update = sent.decide(own, mark, &origins, self.now);
            if update.table == Table::Foreign && mark.is_some() && self.has(Fault::MarksEndEarly) {
                return;
            }
        }
        match update.table {
            Table::Own => {
                self.own.insert(sent.flow, update.entry);
            }
            Table::Foreign => {
                self.own.remove(&sent.flow);
                self.foreign.insert(key, update.entry);
            }
            Table::None => {}
            Table::Undecided => panic!("the origin of {sent:?} is undecided"),
        }
    }

    fn set(&mut self, policy: Policy, observes: bool) {
        if self.observes && !observes && self.has(Fault::ModeForgetsMarks) {
            self.foreign.clear();
        }
        if policy.tracks() && !self.policy.tracks() {
            if !self.has(Fault::OldFlowsAreKept) {
                self.own.clear();
            }
            if self.has(Fault::TrackingForgetsMarks) {
                self.foreign.clear();
            }
            if !self.has(Fault::OldSocketsAreTrusted) {
                self.distrust(&PORTS);
            }
        }
        if !self.has(Fault::NewlyRecordedIsTrusted) {
            let is_newly_recorded = |port: &u16| {
                let ends = Ends {
                    protocol: UDP,
                    local: 0,
                    local_port: *port,
                    remote: 0,
                    remote_port: 0,
                };
                self.policy.is_served(ends) && !policy.is_served(ends)
            };
            let ports: Vec<u16> = PORTS.into_iter().filter(is_newly_recorded).collect();
            self.distrust(&ports);
        }
        self.policy = policy;
        self.observes = observes;
    }

    fn restart(&mut self) {
        self.own.clear();
        self.foreign.clear();
        self.ports.clear();
        if !self.has(Fault::OldSocketsAreTrusted) {
            self.distrust(&PORTS);
        }
    }

    fn pass(&mut self, seconds: u32) {
        self.now += seconds;
    }

    fn flood(&mut self) {
        self.foreign.clear();
        if !self.has(Fault::EvictedIsTrusted) {
            self.crowded_until = self.now + UDP_IDLE;
        }
    }

    fn is_own(&mut self, ends: Ends) -> bool {
        self.policy.tracks() && self.own(&flow(ends)).is_alive(self.now)
    }
}
