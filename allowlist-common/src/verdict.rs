//! The [`Verdict`] on a packet and its [`Reason`].
//!
//! Invariant: every packet is counted under exactly one pair of verdict and reason. The numbers are part of the ABI:
//! they index the counters. Does not know packets.

/// The verdict on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Deserialize, serde::Serialize),
    serde(rename_all = "lowercase")
)]
#[repr(u32)]
pub enum Verdict {
    /// The packet continues to the host's network stack.
    Pass = 0,
    /// The packet is discarded; in observe mode it is only counted as dropped.
    Drop = 1,
}

/// The reason for a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// The frame is neither IP nor ARP, such as LLDP.
    NotIp = 0,
    /// The frame is an ARP message.
    Arp = 1,
    /// The headers contradict each other or the frame's length, or are too many: see [`crate::packet::Malformed`].
    Malformed = 2,
    /// The packet is IPv6 neighbour discovery from the same link.
    NeighbourDiscovery = 3,
    /// The packet is an ICMP or ICMPv6 error, including those of path MTU discovery.
    IcmpError = 4,
    /// The packet is a response of a DHCP or DHCPv6 server.
    Dhcp = 5,
    /// The packet is about group membership: IGMP or MLD.
    Multicast = 6,
    /// The source address may reach the service.
    Allowed = 7,
    /// The packet is an answer to this host: of a tracked flow, or with `return_traffic = "established"` any TCP
    /// segment with ACK or RST.
    Answer = 8,
    /// The source address may not reach the service.
    NotAllowed = 9,
    /// No service covers the packet, so the default verdict applies; or all packets pass
    /// ([`Control::open`](crate::abi::Control::open)).
    Default = 10,
    /// The program did not find its own tables. Does not occur in an intact installation.
    InternalError = 11,
    /// The packet is a later fragment, which has no ports: services cover its protocol, and none of these allows the
    /// source address.
    Fragment = 12,
}

impl Verdict {
    /// Both verdicts, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Pass, Self::Drop];

    /// Returns the name of the verdict, as in reports and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }
}

impl Reason {
    /// All reasons, in the order of their numbers.
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

    /// Returns the name of the reason, as in reports and in JSON.
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

    /// The numbers index the counters, so each must be its variant's index in `ALL`.
    #[test]
    fn numbers_are_indices() {
        for (index, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict as usize, index);
        }
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{}", reason.name());
        }
    }
}
