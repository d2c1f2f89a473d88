//! The reasons why a frame is malformed.
//!
//! The numbers are part of the ABI, because drop events contain them; 0 stands for no cause.

/// The first error that the parser found in a frame: inconsistent or truncated headers, or too many of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Malformed {
    /// The frame ends inside its Ethernet header or inside a VLAN tag.
    EthernetHeader = 1,
    /// There are more than two VLAN tags.
    VlanDepth = 2,
    /// The frame ends inside the fixed part of the IP header.
    IpHeader = 3,
    /// The version in the IP header differs from the Ethernet type.
    IpVersion = 4,
    /// The header length field in the IPv4 header states less than 20 bytes.
    HeaderLength = 5,
    /// The packet length in the IP header, or in a jumbo payload option, is smaller than the header or larger than the
    /// frame.
    PacketLength = 6,
    /// An IPv6 extension header is truncated, or exceeds the packet.
    ExtensionHeader = 7,
    /// There are more than eight IPv6 extension headers.
    ExtensionDepth = 8,
    /// The packet ends inside the transport header.
    TransportHeader = 9,
    /// A later fragment begins inside the transport header of the first one.
    FragmentOverlap = 10,
}

impl Malformed {
    /// All causes of malformed frames, in the order of their numbers.
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

    /// Returns the name of the cause, as in reports and in JSON.
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

    /// Returns the cause for its number in drop events; `None` for an invalid number.
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
    fn numbers_round_trip() {
        for (number, cause) in (1..).zip(Malformed::ALL) {
            assert_eq!(cause as u8, number, "{}", cause.name());
            assert_eq!(Malformed::from_number(number), Some(cause));
        }
        for number in [0, 11, u8::MAX] {
            assert_eq!(Malformed::from_number(number), None);
        }
    }
}
