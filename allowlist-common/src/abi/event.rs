//! Drop events: the description of a packet that was dropped, or would have been dropped in enforce mode.

use crate::packet::{Addresses, Packet, Transport};

/// The maximum number of events that a CPU emits in one [`window`]; further events are only counted.
pub const EVENTS_PER_WINDOW: u64 = 128;

/// Returns the number of the window at a time of the monotonic clock. A window lasts 2^27 ns, about 1/8 s.
#[inline(always)]
pub const fn window(nanoseconds: u64) -> u64 {
    nanoseconds >> 27
}

/// One CPU's number of events in the current window.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EventBudget {
    /// The number of the current window.
    pub window: u64,
    /// The number of events emitted in this window.
    pub emitted: u64,
    /// The number of events that were not emitted since the map was created, because the budget was exhausted or the
    /// ring buffer was full.
    pub suppressed: u64,
}

/// An entry of the ring buffer. Addresses have the format of [`crate::packet::Address::padded`].
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// The time of the event, in nanoseconds of the monotonic clock.
    pub time: u64,
    /// The interface slot.
    pub interface: u32,
    /// The frame's size in bytes.
    pub length: u32,
    /// The source address; zeros if unreadable.
    pub source: [u64; 2],
    /// The destination address; zeros if unreadable.
    pub destination: [u64; 2],
    /// The source port; 0 if the packet has none.
    pub source_port: u16,
    /// The destination port; 0 if the packet has none.
    pub destination_port: u16,
    /// The outermost VLAN id; 0 for none.
    pub vlan: u16,
    /// The IP version, 4 or 6; 0 without a readable IP header.
    pub family: u8,
    /// The transport protocol, after all extension headers. For a malformed packet, the protocol field of the IPv4
    /// header or the next header field of the fixed IPv6 header; 0 if unreadable.
    pub protocol: u8,
    /// The TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
    /// The ICMP type; 0 for other protocols.
    pub icmp_type: u8,
    /// 1 for a fragment without ports, else 0.
    pub later_fragment: u8,
    /// The number of the [`crate::verdict::Reason`].
    pub reason: u8,
    /// The number of the [`crate::packet::Malformed`]; 0 for a well-formed packet.
    pub cause: u8,
    /// Padding to a multiple of 8 bytes, the alignment of the ring buffer.
    pub unused: [u8; 3],
}

impl Event {
    /// An event with all fields 0.
    pub const EMPTY: Self = Self {
        time: 0,
        interface: 0,
        length: 0,
        source: [0; 2],
        destination: [0; 2],
        source_port: 0,
        destination_port: 0,
        vlan: 0,
        family: 0,
        protocol: 0,
        tcp_flags: 0,
        icmp_type: 0,
        later_fragment: 0,
        reason: 0,
        cause: 0,
        unused: [0; 3],
    };

    /// Sets the fields that are readable in a malformed packet, in place: addresses, VLAN id and protocol.
    #[inline(always)]
    pub const fn set_addresses(&mut self, read: &Addresses) {
        self.family = read.source.family();
        self.source = read.source.padded();
        self.destination = read.destination.padded();
        self.vlan = read.vlan;
        self.protocol = read.protocol;
    }

    /// Sets the fields that describe a packet, in place.
    #[inline(always)]
    pub fn describe(&mut self, packet: &Packet) {
        self.family = packet.source.family();
        self.source = packet.source.padded();
        self.destination = packet.destination.padded();
        self.vlan = packet.vlan;
        self.protocol = packet.protocol;
        match packet.transport {
            Transport::Ports {
                source,
                destination,
                flags,
            } => {
                self.source_port = source;
                self.destination_port = destination;
                self.tcp_flags = flags;
            }
            Transport::Icmp { kind, .. } | Transport::IcmpError { kind, .. } => {
                self.icmp_type = kind;
            }
            Transport::LaterFragment => self.later_fragment = 1,
            Transport::Other => {}
        }
    }
}
