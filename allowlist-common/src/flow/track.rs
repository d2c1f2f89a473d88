//! The state machine of flows: how an outbound packet changes the tables of own and of foreign flows.
//!
//! - A TCP flow is created by a SYN of this host, an echo flow by an echo request, and a UDP flow by a datagram, unless
//!   the remote side has sent first.
//! - The kernel's replies to stray segments extend no flow: an RST shortens a flow, and packets extend a closing flow
//!   only while its socket is open.
//! - A foreign flow is one that the other side initiated, or whose origin is unknown. Its packets are not answers. The
//!   *mark* of a foreign flow is its entry in the table of foreign flows.
//!
//! Invariant: a flood that evicts marks of foreign UDP flows does not make these flows this host's own. While marks may
//! have been evicted ([`Crowding`]), the time in [`ForeignPort::received`] for a local port replaces the missing marks.

use crate::packet::{TCP, UDP, tcp_flag};
use crate::volatile::{VolatileRef, field};

use super::{Flow, FlowEntry, OutboundPacket, TCP_PARTIAL, UDP_IDLE, max_lifetime};

/// The maximum number of entries in the table of foreign flows (initiated by the other side, or of unknown origin); a
/// further one evicts the least recently used entry.
pub const FOREIGN_FLOWS: u32 = 1 << 14;

/// The times until which an outbound datagram from a local UDP port may be a reply, although its flow has no mark (no
/// entry in the table of foreign flows).
///
/// In seconds of the monotonic clock; 0 if the case has not occurred on the port.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ForeignPort {
    /// The time until which a datagram from this port may be a reply to a received one, in seconds. Written by the
    /// receive path.
    pub received: u32,
    /// The time until which the origin of this port's flows is unknown, in seconds: a socket used the port before flows
    /// were marked, or a service covered it. Written by userspace.
    pub unknown: u32,
}

impl VolatileRef<'_, ForeignPort> {
    /// Loads each field once.
    #[inline(always)]
    pub fn load_fields(self) -> ForeignPort {
        ForeignPort {
            received: field!(self, received).load(),
            unknown: field!(self, unknown).load(),
        }
    }
}

/// One CPU's count of newly marked foreign flows, from which the program detects that older marks may have been
/// evicted.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Crowding {
    /// The start of the counting period, in seconds of the monotonic clock.
    pub since: u32,
    /// The number of flows that were newly marked as foreign (initiated by the remote side) in the counting period that
    /// begins at `since`.
    pub marks: u32,
}

/// The state of marking foreign flows, those that the remote side initiated, on all interfaces.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Marking {
    /// The interface slots on which the flow tracker may create UDP flows, one bit each: foreign flows are marked there,
    /// and the ports of older sockets are known. Written by userspace.
    pub armed: u64,
    /// The time until which the mark of a foreign flow may be missing because it was evicted, in seconds of the
    /// monotonic clock. Written by the kernel programs.
    pub crowded_until: u64,
}

impl VolatileRef<'_, Marking> {
    /// Loads [`Marking::armed`].
    #[inline(always)]
    pub fn armed(self) -> u64 {
        field!(self, armed).load()
    }

    /// Loads [`Marking::crowded_until`], in seconds.
    #[inline(always)]
    pub fn crowded_until(self) -> u32 {
        field!(self, crowded_until).load() as u32
    }
}

/// Evidence of the side that initiated a flow, in addition to the entries of the flow tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origins {
    /// Whether the receive path marks foreign flows on the interface, and the ports of older sockets are known; if not,
    /// a UDP flow without an entry counts as a flow of unknown origin.
    pub is_armed: bool,
    /// The times that are recorded for the flow's local port.
    pub port: ForeignPort,
    /// The time until which the mark of a foreign flow may be missing because it was evicted, in seconds of the
    /// monotonic clock.
    pub crowded_until: u32,
}

/// The table that an outbound packet changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The packet changes no table.
    None,
    /// The packet changes the table of own flows.
    Own,
    /// The packet changes the table of foreign flows, and an own entry of the same flow is removed.
    Foreign,
    /// The table of own flows does not decide which table changes: call [`OutboundPacket::decide`].
    Undecided,
}

/// The change of the flow tables by an outbound packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// The table to change.
    pub table: Table,
    /// The new entry of the flow in `table`; [`FlowEntry::NONE`] if no table changes or the table is undecided.
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
    /// The value that stands for a missing entry of a flow; it counts as expired at any time.
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

    /// Returns the entry of an own flow after a packet at `now` (in seconds) that neither opens nor closes the flow.
    #[inline(always)]
    pub const fn open(protocol: u8, now: u32) -> Self {
        Self::until(now, max_lifetime(protocol), 0)
    }

    /// Returns the entry of an own TCP flow that is being opened or closed, after a packet at `now` (in seconds).
    #[inline(always)]
    pub const fn partial(now: u32, is_closing: bool) -> Self {
        Self::until(now, TCP_PARTIAL, is_closing as u32)
    }

    /// Returns the mark of a foreign flow, its entry in the table of foreign flows, after a packet of this flow at
    /// `now`, in seconds.
    #[inline(always)]
    pub const fn foreign(protocol: u8, now: u32) -> Self {
        let age = if protocol == TCP {
            TCP_PARTIAL
        } else {
            max_lifetime(protocol)
        };
        Self::until(now, age, 0)
    }

    /// Reports whether the entry has not expired at `now`, in seconds.
    #[inline(always)]
    pub const fn is_alive(self, now: u32) -> bool {
        now < self.expires
    }

    /// Reports whether there is an entry, expired or not.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.expires != 0
    }

    /// Reports whether writing `after` over this entry would change nothing.
    #[inline(always)]
    pub const fn is_equivalent_to(self, after: Self) -> bool {
        self.is_some() && self.closing == after.closing && self.expires == after.expires
    }
}

impl OutboundPacket {
    /// Returns the change of the flow tables by this packet, which is sent at `now` (in seconds).
    ///
    /// `own` is the flow's entry in the table of own flows, or [`FlowEntry::NONE`]. `has_socket` states whether an open
    /// socket sent the packet: the kernel's replies to stray segments do not extend a closing flow.
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
            // An expired flow is marked as closing too, otherwise later segments would extend it.
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

    /// Returns the change of the flow tables by a segment of an open own flow at `now`, in seconds.
    #[inline(always)]
    const fn continue_open(&self, now: u32) -> Update {
        let entry = if self.flags & tcp_flag::FIN != 0 {
            FlowEntry::partial(now, true)
        } else {
            FlowEntry::open(TCP, now)
        };
        Update::to(Table::Own, entry)
    }

    /// Returns the change of the flow tables by a packet for which [`Self::update`] returned [`Table::Undecided`].
    ///
    /// `foreign` is the flow's mark in the table of foreign flows, or [`FlowEntry::NONE`].
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
            // The flow has expired, but its entry still identifies it as this host's.
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

    /// Returns the entry of the flow's peer after this packet, which is sent at `now` (in seconds).
    #[inline(always)]
    pub const fn peer_entry(&self, now: u32) -> FlowEntry {
        FlowEntry::open(self.flow.protocol, now)
    }
}

impl Origins {
    /// Returns the time until which a datagram of a flow without a mark may be a reply, in seconds; a time in the past
    /// if it cannot be one.
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
    /// Counts a flow that was newly marked as foreign at `now` (in seconds), on one of `cpus` CPUs.
    ///
    /// Returns whether the number of new marks in the last [`UDP_IDLE`] seconds may have evicted older ones.
    #[inline(always)]
    pub const fn count(&mut self, cpus: u32, now: u32) -> bool {
        if now.wrapping_sub(self.since) >= UDP_IDLE {
            self.since = now;
            self.marks = 0;
        }
        self.marks = self.marks.saturating_add(1);
        // Two periods fill at most half of the table; the other half may be in the kernel's per-CPU free lists.
        self.marks.saturating_mul(cpus) >= FOREIGN_FLOWS / 4
    }
}

impl Flow {
    /// Reports whether the flow's local port has a [`ForeignPort`], as UDP ports do.
    #[inline(always)]
    pub const fn has_foreign_port(&self) -> bool {
        self.protocol == UDP
    }
}
