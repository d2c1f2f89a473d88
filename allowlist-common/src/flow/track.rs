//! Which flows are this host's own: what an outbound packet changes in the flow tables, and what marks a
//! flow as foreign.
//!
//! - A TCP flow is created by a SYN of this host, an echo flow by an echo request, a UDP flow by a datagram
//!   to a peer that did not send first.
//! - Answers to stray segments extend nothing: an RST shortens a flow, and a closing flow is extended
//!   only while its socket is open.
//! - A foreign flow is one that the other side initiated, or whose origin is unknown. It answers nothing.
//!
//! Invariant: the marks of UDP flows that are evicted under a flood are not lost: [`ForeignPort`] has a
//! time for each local port, which counts while [`Crowding`] reports that marks may have been evicted.

use crate::packet::{TCP, UDP, tcp_flag};

use super::{Flow, FlowEntry, OutboundPacket, TCP_PARTIAL, UDP_IDLE, max_lifetime};

/// The most foreign flows that are kept.
pub const FOREIGN_FLOWS: u32 = 1 << 14;

/// By local UDP port: until when a datagram that this host sends from it may be a reply without a mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ForeignPort {
    /// The second until which a datagram from this port may be a reply to one that was received. Written by
    /// the receive path.
    pub received: u32,
    /// The second until which the origin of flows from this port is unknown: a socket had it before packets
    /// were marked, or a service covered it. Written by userspace.
    pub unknown: u32,
}

/// One CPU's count of new marks, to find out whether marks of foreign flows may have been evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Crowding {
    /// The second in which the counting began.
    pub since: u32,
    /// New marks since then.
    pub marks: u32,
}

/// The state of the marks of all interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Marking {
    /// The interface slots on which foreign flows are marked and the ports of older sockets are known, a bit
    /// each: there the flow tracker may create flows of UDP. Written by userspace.
    pub armed: u64,
    /// The second until which a mark may be missing, since it was evicted. Written by the programs.
    pub crowded_until: u64,
}

/// The evidence about a flow's origin besides the flow tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origins {
    /// Whether the receive path marks foreign flows, and the ports of older sockets are known.
    pub is_armed: bool,
    /// Of the local port.
    pub port: ForeignPort,
    /// The second until which a mark may be missing.
    pub crowded_until: u32,
}

/// Which table an outbound packet changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Neither.
    None,
    /// The table of own flows.
    Own,
    /// The table of foreign flows; an own entry of the same flow is removed.
    Foreign,
    /// Not known by the own entry alone: see [`OutboundPacket::decide`].
    Undecided,
}

/// What an outbound packet changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// Where.
    pub table: Table,
    /// The new entry.
    pub entry: FlowEntry,
}

impl Update {
    const NONE: Self = Self::to(Table::None, FlowEntry::NONE);
    const UNDECIDED: Self = Self::to(Table::Undecided, FlowEntry::NONE);

    const fn to(table: Table, entry: FlowEntry) -> Self {
        Self { table, entry }
    }
}

impl FlowEntry {
    /// No entry.
    pub const NONE: Self = Self {
        expires: 0,
        closing: 0,
    };

    #[inline(always)]
    const fn until(now: u32, age: u32, closing: u32) -> Self {
        Self {
            expires: now.saturating_add(age),
            closing,
        }
    }

    /// The entry of a flow that this host initiated, by a packet that neither opens nor closes it.
    #[inline(always)]
    pub const fn open(protocol: u8, now: u32) -> Self {
        Self::until(now, max_lifetime(protocol), 0)
    }

    /// The entry of a TCP flow that is being opened or closed by this host.
    #[inline(always)]
    pub const fn partial(now: u32, is_closing: bool) -> Self {
        Self::until(now, TCP_PARTIAL, is_closing as u32)
    }

    /// The mark of a flow whose packet was received while everything passes.
    #[inline(always)]
    pub const fn foreign(protocol: u8, now: u32) -> Self {
        let age = if protocol == TCP {
            TCP_PARTIAL
        } else {
            max_lifetime(protocol)
        };
        Self::until(now, age, 0)
    }

    /// Whether the entry has not expired at second `now`: an own flow can be answered then.
    #[inline(always)]
    pub const fn is_alive(self, now: u32) -> bool {
        now < self.expires
    }

    /// Whether there is an entry, expired or not.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.expires != 0
    }

    /// Whether `after` differs so little that it need not be written: less than a second.
    #[inline(always)]
    pub const fn is_equivalent_to(self, after: Self) -> bool {
        self.is_some() && self.closing == after.closing && self.expires == after.expires
    }
}

impl OutboundPacket {
    /// The update by this packet, sent at second `now`, from the entry of its flow in the table of own flows;
    /// [`FlowEntry::NONE`] stands for no entry.
    ///
    /// `has_socket` is whether an open socket of this host sent it. It matters for a closing flow only: the
    /// segments that answer stray ones after the socket was closed do not extend the flow.
    #[inline(always)]
    pub const fn update(&self, own: FlowEntry, has_socket: bool, now: u32) -> Update {
        match self.flow.protocol {
            TCP => self.update_tcp(own, has_socket, now),
            UDP if !own.is_alive(now) => Update::UNDECIDED,
            protocol => Update::to(Table::Own, FlowEntry::open(protocol, now)),
        }
    }

    #[inline(always)]
    const fn update_tcp(&self, own: FlowEntry, has_socket: bool, now: u32) -> Update {
        if self.flags & tcp_flag::RST != 0 {
            if !own.is_some() {
                return Update::NONE;
            }
            // Also of an expired flow, which later segments would extend otherwise.
            let partial = FlowEntry::partial(now, true);
            let expires = if own.expires < partial.expires {
                own.expires
            } else {
                partial.expires
            };
            return Update::to(
                Table::Own,
                FlowEntry {
                    expires,
                    closing: 1,
                },
            );
        }
        if self.flags & tcp_flag::SYN != 0 {
            return if self.flags & tcp_flag::ACK != 0 {
                Update::to(Table::Foreign, FlowEntry::foreign(TCP, now))
            } else {
                let closes = self.flags & tcp_flag::FIN != 0;
                Update::to(Table::Own, FlowEntry::partial(now, closes))
            };
        }
        if !own.is_alive(now) {
            Update::UNDECIDED
        } else if own.closing != 0 {
            if has_socket {
                Update::to(Table::Own, FlowEntry::partial(now, true))
            } else {
                Update::NONE
            }
        } else {
            self.continue_open(now)
        }
    }

    /// The update by a segment in an open flow of this host.
    #[inline(always)]
    const fn continue_open(&self, now: u32) -> Update {
        let entry = if self.flags & tcp_flag::FIN != 0 {
            FlowEntry::partial(now, true)
        } else {
            FlowEntry::open(TCP, now)
        };
        Update::to(Table::Own, entry)
    }

    /// The update that [`Self::update`] left undecided, from the flow's mark in the table of foreign
    /// flows as well.
    #[inline(always)]
    pub const fn decide(
        &self,
        own: FlowEntry,
        foreign: FlowEntry,
        origins: &Origins,
        now: u32,
    ) -> Update {
        let protocol = self.flow.protocol;
        if foreign.is_alive(now) {
            return if foreign.closing != 0 {
                Update::NONE
            } else {
                Update::to(Table::Foreign, FlowEntry::foreign(protocol, now))
            };
        }
        if protocol == TCP {
            // Idle for long, but still known as this host's.
            return if own.is_some() && own.closing == 0 {
                self.continue_open(now)
            } else {
                Update::to(Table::Foreign, FlowEntry::partial(now, true))
            };
        }
        let until = origins.unknown_until(now);
        if now < until {
            let entry = FlowEntry {
                expires: until,
                closing: 1,
            };
            Update::to(Table::Foreign, entry)
        } else {
            Update::to(Table::Own, FlowEntry::open(protocol, now))
        }
    }

    /// The entry of the flow's peer after this packet.
    #[inline(always)]
    pub const fn peer_entry(&self, now: u32) -> FlowEntry {
        FlowEntry::open(self.flow.protocol, now)
    }
}

impl Origins {
    /// The second until which a datagram to a peer without a mark may be a reply; in the past where it
    /// cannot be one.
    #[inline(always)]
    const fn unknown_until(&self, now: u32) -> u32 {
        if !self.is_armed {
            return now.saturating_add(UDP_IDLE);
        }
        let received = if now < self.crowded_until {
            self.port.received
        } else {
            0
        };
        if received > self.port.unknown {
            received
        } else {
            self.port.unknown
        }
    }
}

impl Crowding {
    /// Counts a new mark at second `now`, on one of `cpus` CPUs.
    ///
    /// Returns whether so many are new in the last [`UDP_IDLE`] seconds that older ones may have been evicted.
    #[inline(always)]
    pub const fn count(&mut self, cpus: u32, now: u32) -> bool {
        if now.wrapping_sub(self.since) >= UDP_IDLE {
            self.since = now;
            self.marks = 0;
        }
        self.marks = self.marks.saturating_add(1);
        // Two periods fill half of the table; the kernel sets up to the other half aside for each CPU.
        self.marks.saturating_mul(cpus) >= FOREIGN_FLOWS / 4
    }
}

impl Flow {
    /// Whether [`ForeignPort`] has a time for the flow's local port.
    #[inline(always)]
    pub const fn has_foreign_port(&self) -> bool {
        self.protocol == UDP
    }
}
