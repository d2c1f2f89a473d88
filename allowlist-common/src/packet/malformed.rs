//! Why a frame is malformed: the first thing that parsing found wrong with it.
//!
//! The numbers are part of the ABI, since drop events carry them; 0 is no cause.

/// The reason why a frame is malformed: its headers contradict themselves or its length, or are deeper than is looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Malformed {
    /// The frame ends inside its Ethernet header or inside a VLAN tag.
    EthernetHeader = 1,
    /// There are more VLAN tags than are looked through.
    VlanDepth = 2,
    /// The frame ends inside the fixed part of the IP header.
    IpHeader = 3,
    /// The version in the IP header is not the one of the Ethernet type.
    IpVersion = 4,
    /// The header length of IPv4 is below 20 bytes.
    HeaderLength = 5,
    /// The length in the IP header, or in a jumbogram's option, is below the header or past the frame.
    PacketLength = 6,
    /// An IPv6 extension header is cut short or reaches past the packet.
    ExtensionHeader = 7,
    /// There are more IPv6 extension headers than are looked through.
    ExtensionDepth = 8,
    /// The transport header does not fit into the packet.
    TransportHeader = 9,
    /// A later fragment begins inside the transport header of the first one.
    FragmentOverlap = 10,
}

impl Malformed {
    /// All causes, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::EthernetHeader,
        Self::VlanDepth,
        Self::IpHeader,
        Self::IpVersion,
        Self::HeaderLength,
        Self::PacketLength,
        Self::ExtensionHeader,
        Self::ExtensionDepth,
        Self::TransportHeader,
        Self::FragmentOverlap,
    ];

    /// The name in reports and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EthernetHeader => "ethernet-header",
            Self::VlanDepth => "vlan-depth",
            Self::IpHeader => "ip-header",
            Self::IpVersion => "ip-version",
            Self::HeaderLength => "header-length",
            Self::PacketLength => "packet-length",
            Self::ExtensionHeader => "extension-header",
            Self::ExtensionDepth => "extension-depth",
            Self::TransportHeader => "transport-header",
            Self::FragmentOverlap => "fragment-overlap",
        }
    }

    /// The cause with that number, if there is one.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::EthernetHeader,
            2 => Self::VlanDepth,
            3 => Self::IpHeader,
            4 => Self::IpVersion,
            5 => Self::HeaderLength,
            6 => Self::PacketLength,
            7 => Self::ExtensionHeader,
            8 => Self::ExtensionDepth,
            9 => Self::TransportHeader,
            10 => Self::FragmentOverlap,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Malformed;

    #[test]
    fn numbers_are_those_of_events() {
        for (place, cause) in (1..).zip(Malformed::ALL) {
            assert_eq!(cause as u8, place, "{}", cause.name());
            assert_eq!(Malformed::from_number(place), Some(cause));
        }
        for number in [0, 11, u8::MAX] {
            assert_eq!(Malformed::from_number(number), None);
        }
    }
}
