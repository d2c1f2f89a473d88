//! The model: for each flow the side that sent first, and the time at which this host initiated it. Shares no code with the logic that
//! ships, and has one clock.

use std::collections::HashMap;

use allowlist_common::flow::{ECHO_IDLE, TCP_OPEN, TCP_PARTIAL, UDP_IDLE};
use allowlist_common::packet::{TCP, UDP};

use super::{ACK, Ends, FIN, PORTS, Packet, Policy, RST, SERVED, SYN};

/// Near the end of a time the kernel's clock may differ by as much as the test takes.
const UNSURE: u32 = 15;

/// An exchange of datagrams, which ends by a pause.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    /// Whether the first one came from outside.
    is_foreign: bool,
    /// Whether this host sent the first one, and then one came from outside to another address of this host: a mark is
    /// about all addresses, so nothing is certain about flows that begin now.
    is_mixed: bool,
    /// Whether the filter saw that; else it can only know that the port is one that strangers may have sent to, and
    /// only for as long as a flow lives.
    is_seen: bool,
    last: u32,
    /// Until when the filter may hold its origin for unknown, since this host sent while marks may have been evicted.
    unknown_until: u32,
    /// When a datagram came from outside last.
    heard: u32,
}

/// A connection, or echo requests, of this host.
#[derive(Clone, Copy, Debug)]
struct Initiated {
    /// When it ends if this host sends nothing.
    until: u32,
    /// Whether this host has ended it.
    is_closing: bool,
    /// Whether the other side sent after it had expired.
    is_unsure: bool,
}

pub(super) struct Expected {
    pub(super) policy: Policy,
    pub(super) observes: bool,
    now: u32,
    /// Of UDP, by both ends without this host's address.
    exchanges: HashMap<Ends, Exchange>,
    /// Of TCP and ICMP.
    initiated: HashMap<Ends, Initiated>,
    /// Flows of UDP that this host certainly initiated, and until when they live.
    own: HashMap<Ends, u32>,
    /// Until when the origin of datagrams from a port may be unknown.
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

    /// Whether the flow tracker records packets of this host between these ends.
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
        if self.own.get(&ends).is_some_and(|until| now < *until) {
            return; // an answer
        }
        let is_seen = self.records(ends);
        let exchange = self.exchanges.entry(key(ends)).or_insert(Exchange {
            is_foreign: true,
            is_mixed: false,
            is_seen,
            last: now,
            unknown_until: 0,
            heard: now,
        });
        if now - exchange.last >= UDP_IDLE {
            exchange.is_foreign = true;
        }
        *exchange = Exchange {
            is_mixed: !exchange.is_foreign,
            is_seen,
            last: now,
            heard: now,
            ..*exchange
        };
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
        let exchange = self.exchanges.entry(key(ends)).or_insert(Exchange {
            is_foreign: false,
            is_mixed: false,
            is_seen: true,
            last: now,
            unknown_until: 0,
            heard: 0,
        });
        if now - exchange.last >= UDP_IDLE {
            exchange.is_foreign = false;
            exchange.is_mixed = false;
        }
        if !exchange.is_foreign || exchange.is_seen || !records {
            exchange.last = now;
        }
        let is_crowded = now <= self.crowded_until + UNSURE;
        if is_crowded {
            exchange.unknown_until = now + UDP_IDLE;
        }
        let may_be_foreign =
            exchange.is_foreign || exchange.is_mixed || now < exchange.unknown_until + UNSURE;
        let is_alive = self
            .own
            .get(&ends)
            .is_some_and(|until| now + UNSURE < *until);
        let is_unknown = self
            .unknown
            .get(&ends.local_port)
            .is_some_and(|until| now < until + UNSURE);
        let is_certain = !may_be_foreign && !is_unknown;
        if records && (is_alive || is_certain) {
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

    /// No segment comes from an open socket, so none extends a flow that this host has ended.
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

    /// The filter has lost its state.
    pub(super) fn restart(&mut self) {
        for exchange in self.exchanges.values_mut() {
            exchange.is_seen = false;
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

    /// Nothing is known of where the exchanges of a port began.
    fn distrust(&mut self, port: u16) {
        let now = self.now;
        for (ends, exchange) in &mut self.exchanges {
            let is_alive = now - exchange.last < UDP_IDLE;
            if ends.local_port == port && !exchange.is_seen && is_alive {
                exchange.last = now;
            }
        }
        self.unknown.insert(port, now + UDP_IDLE);
    }

    pub(super) fn pass(&mut self, seconds: u32) {
        self.now += seconds;
    }

    /// All marks are evicted: from here on only the ports are evidence.
    pub(super) fn flood(&mut self) {
        self.crowded_until = self.now + UDP_IDLE;
        for exchange in self
            .exchanges
            .values_mut()
            .filter(|exchange| exchange.is_seen)
        {
            exchange.is_seen = false;
            if exchange.is_foreign {
                exchange.last = exchange.heard;
            }
        }
    }

    /// The violated invariant, if any, of a flow that is alive as this host's own, or is not.
    pub(super) fn wrong(&self, ends: Ends, is_own: bool) -> Option<&'static str> {
        let now = self.now;
        if !self.policy.tracks() {
            return None; // every packet passes, and the state is dropped before that changes
        }
        if ends.protocol == UDP {
            let certain = self.own.get(&ends).copied().unwrap_or(0);
            let is_foreign = self.exchanges.get(&key(ends)).is_none_or(|exchange| {
                exchange.is_foreign && now < exchange.last + UDP_IDLE - UNSURE
            });
            return if is_own && is_foreign && certain + UNSURE < now {
                Some("its first packet came from outside")
            } else if !is_own && now + UNSURE < certain {
                Some("this host's own flow is lost")
            } else {
                None
            };
        }
        match (is_own, self.initiated.get(&ends)) {
            (true, None) => Some("this host initiated nothing"),
            (true, Some(flow)) if flow.until + UNSURE < now => {
                Some("this host has not extended it")
            }
            (false, Some(flow)) if !flow.is_unsure && now + UNSURE < flow.until => {
                Some("this host's own flow is lost")
            }
            _ => None,
        }
    }
}
