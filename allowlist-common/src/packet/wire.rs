//! The numbers of the wire formats: sizes, field positions, types, protocols and ports, each with its standard.
//!
//! The parsers, the decisions and the flow tracker take these numbers only from here. Names that end
//! in `_AT` are positions in bytes from the start of the header. Sizes are in bytes.

/// Ethernet II (IEEE 802.3, clause 3) and its VLAN tags (IEEE 802.1Q, clause 9). Types are assigned by the IEEE.
pub mod ethernet {
    /// The size of a header without tags: two addresses and the type.
    pub const HEADER: usize = 14;
    /// The position of the type.
    pub const TYPE_AT: usize = 12;

    /// The type of IPv4 (RFC 894).
    pub const IPV4: u16 = 0x0800;
    /// The type of ARP (RFC 826).
    pub const ARP: u16 = 0x0806;
    /// The type of IPv6 (RFC 2464, 3).
    pub const IPV6: u16 = 0x86dd;
    /// The type of a customer VLAN tag (802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// The type of a service VLAN tag (802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8;

    /// The size of a tag after its type: the tag control information, and the next type.
    pub const TAG: usize = 4;
    /// The position of the tag control information in a tag.
    pub const TAG_CONTROL_AT: usize = 0;
    /// The position of the next type in a tag.
    pub const TAG_TYPE_AT: usize = 2;
    /// The VLAN id in the tag control information, below the priority and the drop bit.
    pub const VLAN_ID: u16 = 0x0fff;
}

/// IPv4 (RFC 791, 3.1).
pub mod ipv4 {
    /// The version number.
    pub const VERSION: u8 = 4;
    /// The size of a header without options.
    pub const HEADER: usize = 20;
    /// The unit of the header length field.
    pub const HEADER_LENGTH_UNIT: usize = 4;
    /// The header length in the first byte; the version is above.
    pub const HEADER_LENGTH: u8 = 0x0f;
    /// The first byte of a header without options: version 4, and 5 units of length.
    pub const VERSION_AND_MIN_LENGTH: u8 =
        VERSION << super::ip::VERSION_SHIFT | (HEADER / HEADER_LENGTH_UNIT) as u8;

    /// The position of the total length.
    pub const TOTAL_LENGTH_AT: usize = 2;
    /// The position of the flags and the fragment offset.
    pub const FRAGMENT_AT: usize = 6;
    /// The position of the time to live.
    pub const TTL_AT: usize = 8;
    /// The position of the protocol.
    pub const PROTOCOL_AT: usize = 9;
    /// The position of the source address.
    pub const SOURCE_AT: usize = 12;
    /// The position of the destination address.
    pub const DESTINATION_AT: usize = 16;

    /// The fragment offset in the word with the flags.
    pub const FRAGMENT_OFFSET: u16 = 0x1fff;
    /// The flag for more fragments in that word.
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    /// The unit of the fragment offset.
    pub const FRAGMENT_UNIT: usize = 8;
}

/// IPv6 (RFC 8200, 3).
pub mod ipv6 {
    /// The version number.
    pub const VERSION: u8 = 6;
    /// The size of the fixed header.
    pub const HEADER: usize = 40;
    /// The size of the fields before the addresses.
    pub const FIELDS: usize = 8;

    /// The position of the payload length.
    pub const PAYLOAD_LENGTH_AT: usize = 4;
    /// The position of the next header field.
    pub const NEXT_HEADER_AT: usize = 6;
    /// The position of the hop limit.
    pub const HOP_LIMIT_AT: usize = 7;
    /// The position of the source address.
    pub const SOURCE_AT: usize = 8;
    /// The position of the destination address.
    pub const DESTINATION_AT: usize = 24;

    /// The prefix of link-local addresses, `fe80::/10` (RFC 4291, 2.5.6), in the lowest bits.
    pub const LINK_LOCAL: u64 = 0xfe80 >> (16 - LINK_LOCAL_LENGTH);
    /// The length of that prefix in bits.
    pub const LINK_LOCAL_LENGTH: u32 = 10;
}

/// The part that IPv4 and IPv6 have in common.
pub mod ip {
    /// The position of the version in the first byte of a header.
    pub const VERSION_SHIFT: u32 = 4;
    /// The maximum value of the 16-bit length field.
    pub const MAX_LENGTH_FIELD: usize = u16::MAX as usize;
}

/// IPv6 extension headers (RFC 8200, 4). The numbers are values of the next header field.
pub mod extension {
    /// Hop-by-hop options (RFC 8200, 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// A routing header (RFC 8200, 4.4).
    pub const ROUTING: u8 = 43;
    /// A fragment header (RFC 8200, 4.5).
    pub const FRAGMENT: u8 = 44;
    /// An authentication header (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// Destination options (RFC 8200, 4.6).
    pub const DESTINATION: u8 = 60;

    /// The size of the fields that are read from a header.
    pub const FIELDS: usize = 4;
    /// The position of the next header field.
    pub const NEXT_HEADER_AT: usize = 0;
    /// The position of the length, which does not count the first unit.
    pub const LENGTH_AT: usize = 1;
    /// The unit of the length.
    pub const LENGTH_UNIT: usize = 8;
    /// The unit of the length of an authentication header, which does not count the first two (RFC 4302, 2.2).
    pub const AUTHENTICATION_UNIT: usize = 4;

    /// The size of a fragment header.
    pub const FRAGMENT_HEADER: usize = 8;
    /// The position of the fragment offset and the flags in a fragment header.
    pub const FRAGMENT_AT: usize = 2;
    /// The fragment offset in that word, in bytes: the unit is 8, and the offset is above the lowest 3 bits.
    pub const FRAGMENT_OFFSET: u16 = 0xfff8;

    /// The type and length bytes of the jumbo payload option (RFC 2675, 2).
    pub const JUMBO_PAYLOAD: u16 = 0xc204;
    /// The size of a hop-by-hop header with only that option.
    pub const JUMBO_HEADER: usize = 8;
    /// The position of the first option.
    pub const FIRST_OPTION_AT: usize = 2;
    /// The position of the jumbo payload length, if that option is the first.
    pub const JUMBO_LENGTH_AT: usize = 4;
}

/// Protocol numbers: the protocol field of IPv4, and the next header field of IPv6. Assigned by IANA.
pub mod protocol {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// IGMP, group membership for IPv4 (RFC 3376).
    pub const IGMP: u8 = 2;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
}

/// The headers of TCP (RFC 9293, 3.1), UDP (RFC 768) and SCTP (RFC 9260, 3.1), which all begin with the ports.
pub mod transport {
    /// The position of the source port.
    pub const SOURCE_PORT_AT: usize = 0;
    /// The position of the destination port.
    pub const DESTINATION_PORT_AT: usize = 2;
    /// The size of a TCP header without options.
    pub const TCP_HEADER: usize = 20;
    /// The position of the flags in a TCP header; see [`tcp_flag`](super::tcp_flag).
    pub const TCP_FLAGS_AT: usize = 13;
    /// The size of a UDP header.
    pub const UDP_HEADER: usize = 8;
    /// The size of the common header of SCTP.
    pub const SCTP_HEADER: usize = 12;
}

/// The flags of a TCP segment (RFC 9293, 3.1), as in byte 13 of the TCP header.
pub mod tcp_flag {
    /// The sender has finished sending.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 1 << 1;
    /// Resets a connection.
    pub const RST: u8 = 1 << 2;
    /// The acknowledgement number is valid: set in all segments but the first.
    pub const ACK: u8 = 1 << 4;
}

/// ICMP (RFC 792) and ICMPv6 (RFC 4443), whose headers are alike.
pub mod icmp {
    /// The size of a header: type, code, checksum, and one word that depends on the type.
    pub const HEADER: usize = 8;
    /// The position of the type, the upper half of a 16-bit number.
    pub const TYPE_AT: usize = 0;
    /// The position of the identifier in an echo message.
    pub const IDENTIFIER_AT: usize = 4;
    /// The size of what an error quotes after the IP header at least (RFC 792).
    pub const MIN_QUOTED: usize = 8;

    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable, including "fragmentation needed" (RFC 1191).
    pub const UNREACHABLE: u8 = 3;
    /// Echo request.
    pub const ECHO: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// The types of ICMPv6 messages (RFC 4443, 2.1): errors are below 128.
pub mod icmpv6 {
    /// Destination unreachable, the first of the errors.
    pub const UNREACHABLE: u8 = 1;
    /// Parameter problem, the last of the errors; packet too big and time exceeded are in between.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Multicast listener query (RFC 2710, RFC 3810), the first of the messages about group membership.
    pub const LISTENER_QUERY: u8 = 130;
    /// Multicast listener done (RFC 2710); the report is in between.
    pub const LISTENER_DONE: u8 = 132;
    /// Multicast listener report, version 2 (RFC 3810).
    pub const LISTENER_REPORT_V2: u8 = 143;
    /// Router solicitation (RFC 4861), the first of the messages of neighbour discovery.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Redirect (RFC 4861), the last of the messages of neighbour discovery.
    pub const REDIRECT: u8 = 137;
}

/// Values of the time to live or hop limit that a protocol prescribes.
pub mod hops {
    /// The hop limit of neighbour discovery: a router decrements it, so a message with this value is from the same link
    /// (RFC 4861, 11.2).
    pub const SAME_LINK: u8 = 255;
    /// The value of group membership messages, so that no router forwards them (RFC 3376, 4; RFC 3810, 5).
    pub const ONE: u8 = 1;
}

/// UDP ports (assigned by IANA).
pub mod port {
    /// A DHCP server (RFC 2131, 4.1).
    pub const DHCP_SERVER: u16 = 67;
    /// A DHCP client (RFC 2131, 4.1).
    pub const DHCP_CLIENT: u16 = 68;
    /// A DHCPv6 client (RFC 8415, 7.2).
    pub const DHCPV6_CLIENT: u16 = 546;
    /// A DHCPv6 server or relay agent (RFC 8415, 7.2).
    pub const DHCPV6_SERVER: u16 = 547;
}
