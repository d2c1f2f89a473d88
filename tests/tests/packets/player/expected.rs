//! The model: records for each flow which side sent first, and when the host initiated it. Shares no code with the shipped
//! packet logic, and has one clock.

use std::collections::HashMap;

use allowlist_common::flow::{ECHO_IDLE, TCP_OPEN, TCP_PARTIAL, UDP_IDLE};
use allowlist_common::packet::{TCP, UDP};

use super::{ACK, Ends, FIN, FRIEND, PORTS, Packet, Policy, RST, SERVED, SYN};

/// The tolerance for expiry in seconds: the kernel's clock runs on while the test runs.
const UNSURE: u32 = 15;

/// The side that sent the first datagram of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Host,
    Remote,
    /// It is unclear which side the filter records: the host sent first and later received a datagram on another of its
    /// addresses (a mark is for all addresses of the host), or the host sent at about the time at which the filter's record expires.
    Uncertain,
}

/// An exchange of datagrams, which a pause ends.
///
/// The filter has up to two records of an exchange that the remote side began: a mark, which each datagram of the host
/// extends, and the time of its port, which nothing extends. Either can exist without the other, and a mark outlives the
/// times in which the filter records no datagram.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    origin: Origin,
    /// The time of the last datagram in either direction.
    last: u32,
    /// The end of the mark, if the host sends no more datagrams.
    marked_until: u32,
    /// The end of the time in which the filter knows that the remote side began the exchange.
    foreign_until: u32,
    /// The time of the last datagram that the filter has marked.
    heard: u32,
    /// The end of the time in which the filter may treat the origin as unknown, because the host sent while marks may have
    /// been evicted.
    unknown_until: u32,
}

impl Exchange {
    const fn begin(origin: Origin, now: u32) -> Self {
        Self {
            origin,
            last: now,
            marked_until: 0,
            foreign_until: 0,
            heard: 0,
            unknown_until: 0,
        }
    }

    /// Reports whether a pause has ended the exchange.
    const fn is_over(&self, now: u32) -> bool {
        now - self.last >= UDP_IDLE
    }

    fn receive(&mut self, is_marked: bool, now: u32) {
        if self.is_over(now) {
            self.origin = Origin::Remote;
        } else if self.origin == Origin::Host {
            self.origin = Origin::Uncertain;
        }
        self.last = now;
        // If there is no mark, the filter distrusts the port before it records datagrams from there.
        self.foreign_until = now + UDP_IDLE;
        if is_marked {
            self.marked_until = now + UDP_IDLE;
            self.heard = now;
        }
    }

    fn send(&mut self, records: bool, now: u32) {
        if self.is_over(now) {
            self.origin = Origin::Host;
        }
        self.last = now;
        if self.origin != Origin::Remote {
            return;
        }
        let is_before = |until| now + UNSURE < until;
        if !records {
            self.foreign_until = now + UDP_IDLE;
        } else if is_before(self.marked_until) {
            self.marked_until = now + UDP_IDLE;
            self.foreign_until = now + UDP_IDLE;
        } else if now < self.marked_until {
            self.origin = Origin::Uncertain;
        } else if !is_before(self.foreign_until) {
            self.origin = if now < self.foreign_until {
                Origin::Uncertain
            } else {
                Origin::Host
            };
        }
    }
}

/// A connection or a sequence of echo requests of the host.
#[derive(Clone, Copy, Debug)]
struct Initiated {
    /// The time of expiry if the host sends no more packets.
    until: u32,
    /// Whether the host has closed the connection.
    is_closing: bool,
    /// Whether the remote end sent after the expiry.
    is_unsure: bool,
}

pub(super) struct Expected {
    pub(super) policy: Policy,
    pub(super) observes: bool,
    now: u32,
    /// UDP exchanges, by endpoints without the host's address.
    exchanges: HashMap<Ends, Exchange>,
    /// TCP connections and ICMP echo requests.
    initiated: HashMap<Ends, Initiated>,
    /// UDP flows that the host has certainly initiated, with their time of expiry.
    own: HashMap<Ends, u32>,
    /// The end of the time in which the origin of datagrams from a port may be unknown.
    unknown: HashMap<u16, u32>,
    crowded_until: u32,
}

fn key(ends: Ends) -> Ends {
    Ends { local: 0, ..ends }
}

impl Expected {
    pub(super) fn new() -> Self {
        Self {
            policy: Policy::Open,
            observes: false,
            now: 10_000,
            exchanges: HashMap::new(),
            initiated: HashMap::new(),
            own: HashMap::new(),
            unknown: HashMap::new(),
            crowded_until: 0,
        }
    }

    /// Reports whether the flow tracker records sent packets with these endpoints.
    fn records(&self, ends: Ends) -> bool {
        self.policy.tracks() && !self.policy.is_served(ends)
    }

    pub(super) fn receive(&mut self, packet: &Packet, passes: bool) {
        let (ends, now) = (packet.ends, self.now);
        if !passes {
            return;
        }
        if ends.protocol != UDP {
            if let Some(flow) = self.initiated.get_mut(&ends)
                && flow.until < now + UNSURE
            {
                flow.is_unsure = true;
            }
            return;
        }
        if self.owns(ends) {
            return; // an answer
        }
        // Allowed datagrams are not marked on ports whose flows are not recorded.
        let is_marked =
            self.policy.tracks() && !(self.policy.is_served(ends) && ends.remote == FRIEND);
        let exchange = self.exchanges.entry(key(ends));
        exchange
            .or_insert(Exchange::begin(Origin::Remote, now))
            .receive(is_marked, now);
    }

    /// Reports whether a UDP flow is certainly alive as the host's own.
    fn owns(&self, ends: Ends) -> bool {
        let until = self.own.get(&ends);
        until.is_some_and(|until| self.now + UNSURE < *until)
    }

    pub(super) fn send(&mut self, packet: &Packet) {
        let (ends, now) = (packet.ends, self.now);
        let records = self.records(ends);
        if ends.protocol == UDP {
            self.send_datagram(ends, records);
        } else if ends.protocol != TCP {
            if packet.flags == 1 && records {
                let until = now + ECHO_IDLE;
                self.initiate(ends, until);
            }
        } else if records {
            self.send_segment(ends, packet.flags);
        }
    }

    fn send_datagram(&mut self, ends: Ends, records: bool) {
        let now = self.now;
        let exchange = self.exchanges.entry(key(ends));
        let exchange = exchange.or_insert(Exchange::begin(Origin::Host, now));
        exchange.send(records, now);
        if now <= self.crowded_until + UNSURE {
            exchange.unknown_until = now + UDP_IDLE;
        }
        let is_own = exchange.origin == Origin::Host && now >= exchange.unknown_until + UNSURE;
        let is_unknown = self
            .unknown
            .get(&ends.local_port)
            .is_some_and(|until| now < until + UNSURE);
        if records && (self.owns(ends) || is_own && !is_unknown) {
            self.own.insert(ends, now + UDP_IDLE);
        }
    }

    fn initiate(&mut self, ends: Ends, until: u32) {
        let flow = Initiated {
            until,
            is_closing: false,
            is_unsure: false,
        };
        self.initiated.insert(ends, flow);
    }

    /// The socket is closed, so no segment extends a flow that the host has ended.
    fn send_segment(&mut self, ends: Ends, flags: u8) {
        let now = self.now;
        if flags == SYN {
            self.initiate(ends, now + TCP_PARTIAL);
        } else if flags == SYN | ACK {
            self.initiated.remove(&ends);
        } else if let Some(flow) = self.initiated.get_mut(&ends) {
            if flags & RST != 0 {
                flow.until = flow.until.min(now + TCP_PARTIAL);
                flow.is_closing = true;
            } else if !flow.is_closing {
                flow.is_closing = flags & FIN != 0;
                let age = if flow.is_closing {
                    TCP_PARTIAL
                } else {
                    TCP_OPEN
                };
                flow.until = now + age;
            } else if flow.until <= now {
                self.initiated.remove(&ends);
            }
        }
    }

    pub(super) fn reload(&mut self, policy: Policy) {
        if policy.tracks() && !self.policy.tracks() {
            self.begin();
        }
        if self.policy == Policy::Served && policy != Policy::Served {
            self.distrust(SERVED);
        }
        self.policy = policy;
    }

    /// Clears the state of the filter.
    pub(super) fn restart(&mut self) {
        for exchange in self.exchanges.values_mut() {
            exchange.marked_until = 0;
            exchange.heard = 0;
        }
        self.begin();
    }

    fn begin(&mut self) {
        self.own.clear();
        self.initiated.clear();
        for port in PORTS {
            self.distrust(port);
        }
    }

    /// Makes the origin of the exchanges of a port unknown.
    fn distrust(&mut self, port: u16) {
        let until = self.now + UDP_IDLE;
        for (ends, exchange) in &mut self.exchanges {
            if ends.local_port == port && !exchange.is_over(self.now) {
                exchange.foreign_until = until;
            }
        }
        self.unknown.insert(port, until);
    }

    pub(super) fn pass(&mut self, seconds: u32) {
        self.now += seconds;
    }

    /// Evicts all marks: from now on, only the state of ports shows the origin.
    pub(super) fn flood(&mut self) {
        self.crowded_until = self.now + UDP_IDLE;
        for (ends, exchange) in &mut self.exchanges {
            let unknown = self.unknown.get(&ends.local_port).copied().unwrap_or(0);
            exchange.marked_until = 0;
            exchange.foreign_until = unknown.max(exchange.heard + UDP_IDLE);
        }
    }

    /// Returns the violated invariant, if any, for a flow that is (`is_own`) or is not alive as the host's own.
    pub(super) fn wrong(&self, ends: Ends, is_own: bool) -> Option<&'static str> {
        let now = self.now;
        if !self.policy.tracks() {
            return None; // every packet passes, and the state is dropped before that changes
        }
        if ends.protocol == UDP {
            let certain = self.own.get(&ends).copied().unwrap_or(0);
            let is_foreign = self.exchanges.get(&key(ends)).is_none_or(|exchange| {
                exchange.origin == Origin::Remote && now + UNSURE < exchange.foreign_until
            });
            return if is_own && is_foreign && certain + UNSURE < now {
                Some("its first packet was received")
            } else if !is_own && now + UNSURE < certain {
                Some("the host's own flow is lost")
            } else {
                None
            };
        }
        match (is_own, self.initiated.get(&ends)) {
            (true, None) => Some("the host has not initiated it"),
            (true, Some(flow)) if flow.until + UNSURE < now => Some("the host has not extended it"),
            (false, Some(flow)) if !flow.is_unsure && now + UNSURE < flow.until => {
                Some("the host's own flow is lost")
            }
            _ => None,
        }
    }
}
