//! A drop event: what is told of a packet that was dropped, or would have been.

use crate::packet::{Addresses, Packet, Transport};

/// How many events a CPU may send in one [`window`]; the others are only counted.
pub const EVENTS_PER_WINDOW: u64 = 128;

/// The number of the window that a moment is in: 2^27 ns, about an eighth of a second.
#[inline(always)]
pub const fn window(nanoseconds: u64) -> u64 {
    nanoseconds >> 27
}

/// One CPU's account of the events of one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EventBudget {
    /// The window that `emitted` is about.
    pub window: u64,
    /// How many were sent in it.
    pub emitted: u64,
    /// How many were not told of since the maps were made: over the budget, or the ring was full.
    pub suppressed: u64,
}

/// An entry of the ring buffer. Addresses are as [`crate::packet::Address::padded`] has
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// When, by the monotonic clock, in nanoseconds.
    pub time: u64,
    /// The slot of the interface.
    pub interface: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// Who sent it; zeros where that could not be read.
    pub source: [u64; 2],
    /// To whom.
    pub destination: [u64; 2],
    /// 0 where there is none to see.
    pub source_port: u16,
    /// 0 where there is none to see.
    pub destination_port: u16,
    /// The outermost VLAN id; 0 is none.
    pub vlan: u16,
    /// 4 or 6; 0 where there was no IP header to read.
    pub family: u8,
    /// Of the IP header, after extension headers.
    pub protocol: u8,
    /// TCP's flags.
    pub tcp_flags: u8,
    /// ICMP's type.
    pub icmp_type: u8,
    /// Whether it is a fragment without ports: 1 or 0.
    pub later_fragment: u8,
    /// A [`crate::verdict::Reason`], by number.
    pub reason: u8,
    /// A [`crate::packet::Malformed`], by number; 0 where it is not malformed.
    pub cause: u8,
    /// A multiple of 8 bytes, as the ring buffer has it.
    pub unused: [u8; 3],
}

impl Event {
    /// Nothing known.
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

    /// Fills in the addresses of a malformed packet, in the event's own memory.
    #[inline(always)]
    pub const fn set_addresses(&mut self, read: &Addresses) {
        self.family = read.source.family();
        self.source = read.source.padded();
        self.destination = read.destination.padded();
        self.vlan = read.vlan;
        self.protocol = read.protocol;
    }

    /// Fills in what is known of a packet, where the event lies.
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
