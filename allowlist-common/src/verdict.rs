//! The words for what becomes of a packet: a [`Verdict`] and the [`Reason`] for it.
//!
//! Every packet ends in exactly one pair of them. The numbers are part of the ABI: they index the
//! counters. Knows nothing of packets.

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// On to the host's network stack.
    Pass = 0,
    /// Gone, as if it had never arrived.
    Drop = 1,
}

/// Why a packet got its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// Neither IP nor ARP, such as LLDP.
    NotIp = 0,
    /// ARP.
    Arp = 1,
    /// The headers contradict themselves or the frame's length.
    Malformed = 2,
    /// IPv6 neighbour discovery from the same link.
    NeighbourDiscovery = 3,
    /// An ICMP or ICMPv6 error, path MTU included.
    IcmpError = 4,
    /// An answer of a DHCP or DHCPv6 server.
    Dhcp = 5,
    /// Group membership: IGMP or MLD.
    Multicast = 6,
    /// The source may reach the service.
    Allowed = 7,
    /// An answer to something that this host sent.
    Answer = 8,
    /// The source may not reach the service.
    NotAllowed = 9,
    /// No service covers the packet: the default verdict decided.
    Default = 10,
    /// The program found its own tables missing. Never seen in a sound installation.
    InternalError = 11,
    /// A fragment without ports; services cover its protocol, and none allows the source.
    Fragment = 12,
}

impl Verdict {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Pass, Self::Drop];

    /// The name in reports and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::NotIp,
        Self::Arp,
        Self::Malformed,
        Self::NeighbourDiscovery,
        Self::IcmpError,
        Self::Dhcp,
        Self::Multicast,
        Self::Allowed,
        Self::Answer,
        Self::NotAllowed,
        Self::Default,
        Self::InternalError,
        Self::Fragment,
    ];

    /// The name in reports and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not-ip",
            Self::Arp => "arp",
            Self::Malformed => "malformed",
            Self::NeighbourDiscovery => "neighbour-discovery",
            Self::IcmpError => "icmp-error",
            Self::Dhcp => "dhcp",
            Self::Multicast => "multicast",
            Self::Allowed => "allowed",
            Self::Answer => "answer",
            Self::NotAllowed => "not-allowed",
            Self::Default => "default",
            Self::InternalError => "internal-error",
            Self::Fragment => "fragment",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Reason, Verdict};

    /// The numbers index the counters, so each one's place in `ALL` must be its number.
    #[test]
    fn numbers_are_places() {
        for (place, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict as usize, place);
        }
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place, "{}", reason.name());
        }
    }
}
