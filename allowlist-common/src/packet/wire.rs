//! The numbers of the wire formats: sizes, field positions, types, protocols and ports, each with its standard.
//!
//! The parsers, the decisions and the flow tracker take these numbers only from here. Names that end
//! in `_AT` are positions in bytes from the start of the header. Sizes are in bytes.

/// Ethernet II (IEEE 802.3, clause 3) and its VLAN tags (IEEE 802.1Q, clause 9). Types are assigned by the IEEE.
pub mod ethernet {
    /// The size in bytes of an Ethernet header without VLAN tags: two addresses and the type.
    pub const HEADER: usize = 14;
    /// The position of the type in an Ethernet header, in bytes.
    pub const TYPE_AT: usize = 12;

    /// The Ethernet type of IPv4 (RFC 894).
    pub const IPV4: u16 = 0x0800;
    /// The Ethernet type of ARP (RFC 826).
    pub const ARP: u16 = 0x0806;
    /// The Ethernet type of IPv6 (RFC 2464, 3).
    pub const IPV6: u16 = 0x86dd;
    /// The Ethernet type of a customer VLAN tag (802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// The Ethernet type of a service VLAN tag (802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8;

    /// The size in bytes of a VLAN tag after its type: the tag control information, and the next type.
    pub const TAG: usize = 4;
    /// The position of the tag control information, in bytes after the type of a VLAN tag.
    pub const TAG_CONTROL_AT: usize = 0;
    /// The position of the next Ethernet type, in bytes after the type of a VLAN tag.
    pub const TAG_TYPE_AT: usize = 2;
    /// The mask of the VLAN id in the tag control information, below the priority and the drop bit.
    pub const VLAN_ID: u16 = 0x0fff;
}

/// IPv4 (RFC 791, 3.1).
pub mod ipv4 {
    /// The version number in an IPv4 header.
    pub const VERSION: u8 = 4;
    /// The size in bytes of an IPv4 header without options.
    pub const HEADER: usize = 20;
    /// The unit of the header length field of IPv4, in bytes.
    pub const HEADER_LENGTH_UNIT: usize = 4;
    /// The mask of the header length in the first byte of an IPv4 header; the version is above.
    pub const HEADER_LENGTH: u8 = 0x0f;
    /// The first byte of an IPv4 header without options: version 4, and 5 units of length.
    pub const VERSION_AND_MIN_LENGTH: u8 =
        VERSION << super::ip::VERSION_SHIFT | (HEADER / HEADER_LENGTH_UNIT) as u8;

    /// The position of the total length in an IPv4 header, in bytes.
    pub const TOTAL_LENGTH_AT: usize = 2;
    /// The position of the flags and the fragment offset in an IPv4 header, in bytes.
    pub const FRAGMENT_AT: usize = 6;
    /// The position of the time to live in an IPv4 header, in bytes.
    pub const TTL_AT: usize = 8;
    /// The position of the protocol in an IPv4 header, in bytes.
    pub const PROTOCOL_AT: usize = 9;
    /// The position of the source address in an IPv4 header, in bytes.
    pub const SOURCE_AT: usize = 12;
    /// The position of the destination address in an IPv4 header, in bytes.
    pub const DESTINATION_AT: usize = 16;

    /// The mask of the fragment offset in the 16-bit field at [`FRAGMENT_AT`] of an IPv4 header.
    pub const FRAGMENT_OFFSET: u16 = 0x1fff;
    /// The flag for more fragments in the 16-bit field at [`FRAGMENT_AT`] of an IPv4 header.
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    /// The unit of the fragment offset of IPv4, in bytes.
    pub const FRAGMENT_UNIT: usize = 8;

    /// The first byte of the loopback addresses, `127.0.0.0/8` (RFC 1122, 3.2.1.3).
    pub const LOOPBACK: u8 = 127;
    /// The first 4 bits of the multicast addresses, `224.0.0.0/4` (RFC 5771).
    pub const MULTICAST: u8 = 0xe;
}

/// IPv6 (RFC 8200, 3).
pub mod ipv6 {
    /// The version number in an IPv6 header.
    pub const VERSION: u8 = 6;
    /// The size in bytes of the IPv6 fixed header.
    pub const HEADER: usize = 40;
    /// The size in bytes of the fields before the addresses in the IPv6 fixed header.
    pub const FIELDS: usize = 8;

    /// The position of the payload length in the IPv6 fixed header, in bytes.
    pub const PAYLOAD_LENGTH_AT: usize = 4;
    /// The position of the next header field in the IPv6 fixed header, in bytes.
    pub const NEXT_HEADER_AT: usize = 6;
    /// The position of the hop limit in the IPv6 fixed header, in bytes.
    pub const HOP_LIMIT_AT: usize = 7;
    /// The position of the source address in the IPv6 fixed header, in bytes.
    pub const SOURCE_AT: usize = 8;
    /// The position of the destination address in the IPv6 fixed header, in bytes.
    pub const DESTINATION_AT: usize = 24;

    /// The prefix of IPv6 link-local addresses, `fe80::/10` (RFC 4291, 2.5.6), in the lowest bits.
    pub const LINK_LOCAL: u64 = 0xfe80 >> (16 - LINK_LOCAL_LENGTH);
    /// The length in bits of [`LINK_LOCAL`], the prefix of IPv6 link-local addresses.
    pub const LINK_LOCAL_LENGTH: u32 = 10;
    /// The first byte of the multicast addresses, `ff00::/8` (RFC 4291, 2.7).
    pub const MULTICAST: u64 = 0xff;
}

/// The part that IPv4 and IPv6 have in common.
pub mod ip {
    /// The position of the version in the first byte of an IPv4 or IPv6 header, in bits from the lowest.
    pub const VERSION_SHIFT: u32 = 4;
    /// The maximum value of the 16-bit length field of an IPv4 or IPv6 header.
    pub const MAX_LENGTH_FIELD: usize = u16::MAX as usize;
}

/// IPv6 extension headers (RFC 8200, 4). The numbers are values of the next header field.
pub mod extension {
    /// The next header value of IPv6 hop-by-hop options (RFC 8200, 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// The next header value of an IPv6 routing header (RFC 8200, 4.4).
    pub const ROUTING: u8 = 43;
    /// The next header value of an IPv6 fragment header (RFC 8200, 4.5).
    pub const FRAGMENT: u8 = 44;
    /// The next header value of an authentication header (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// The next header value of IPv6 destination options (RFC 8200, 4.6).
    pub const DESTINATION: u8 = 60;

    /// The size in bytes of the fields that are read from an IPv6 extension header.
    pub const FIELDS: usize = 4;
    /// The position of the next header field in an IPv6 extension header, in bytes.
    pub const NEXT_HEADER_AT: usize = 0;
    /// The position of the length in an IPv6 extension header, in bytes. The length does not count the first unit.
    pub const LENGTH_AT: usize = 1;
    /// The unit of the length of an IPv6 extension header, in bytes.
    pub const LENGTH_UNIT: usize = 8;
    /// The unit in bytes of the length of an authentication header, which does not count the first two (RFC 4302, 2.2).
    pub const AUTHENTICATION_UNIT: usize = 4;

    /// The size in bytes of an IPv6 fragment header.
    pub const FRAGMENT_HEADER: usize = 8;
    /// The position of the fragment offset and the flags in an IPv6 fragment header, in bytes.
    pub const FRAGMENT_AT: usize = 2;
    /// The mask of the fragment offset in the 16-bit field at [`FRAGMENT_AT`] of an IPv6 fragment header.
    ///
    /// The masked value is the offset in bytes, because the unit is 8 and the offset is above the lowest 3 bits.
    pub const FRAGMENT_OFFSET: u16 = 0xfff8;

    /// The type and length bytes of the IPv6 jumbo payload option (RFC 2675, 2).
    pub const JUMBO_PAYLOAD: u16 = 0xc204;
    /// The size in bytes of an IPv6 hop-by-hop header with only the jumbo payload option.
    pub const JUMBO_HEADER: usize = 8;
    /// The position of the first option in an IPv6 hop-by-hop header, in bytes.
    pub const FIRST_OPTION_AT: usize = 2;
    /// The position of the jumbo payload length in an IPv6 hop-by-hop header, in bytes, if that option is the first.
    pub const JUMBO_LENGTH_AT: usize = 4;
}

/// Protocol numbers: the protocol field of IPv4, and the next header field of IPv6. Assigned by IANA.
pub mod protocol {
    /// The protocol number of ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// The protocol number of IGMP, group membership for IPv4 (RFC 3376).
    pub const IGMP: u8 = 2;
    /// The protocol number of TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// The protocol number of UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// The protocol number of ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// The protocol number of SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
}

/// The headers of TCP (RFC 9293, 3.1), UDP (RFC 768) and SCTP (RFC 9260, 3.1), which all begin with the ports.
pub mod transport {
    /// The position of the source port in a TCP, UDP or SCTP header, in bytes.
    pub const SOURCE_PORT_AT: usize = 0;
    /// The position of the destination port in a TCP, UDP or SCTP header, in bytes.
    pub const DESTINATION_PORT_AT: usize = 2;
    /// The size in bytes of a TCP header without options.
    pub const TCP_HEADER: usize = 20;
    /// The position of the flags in a TCP header, in bytes; see [`tcp_flag`](super::tcp_flag).
    pub const TCP_FLAGS_AT: usize = 13;
    /// The size in bytes of a UDP header.
    pub const UDP_HEADER: usize = 8;
    /// The size in bytes of the common header of SCTP.
    pub const SCTP_HEADER: usize = 12;
}

/// The flags of a TCP segment (RFC 9293, 3.1), as in byte 13 of the TCP header.
pub mod tcp_flag {
    /// The TCP flag FIN: the sender has finished sending.
    pub const FIN: u8 = 1;
    /// The TCP flag SYN: the segment opens a connection.
    pub const SYN: u8 = 1 << 1;
    /// The TCP flag RST: the segment resets a connection.
    pub const RST: u8 = 1 << 2;
    /// The TCP flag ACK: the acknowledgement number is valid. Set in all segments but the first.
    pub const ACK: u8 = 1 << 4;
}

/// ICMP (RFC 792) and ICMPv6 (RFC 4443), whose headers are alike.
pub mod icmp {
    /// The size in bytes of an ICMP or ICMPv6 header: type, code, checksum, and 4 bytes that depend on the type.
    pub const HEADER: usize = 8;
    /// The position in bytes of the type in an ICMP or ICMPv6 header. The type is the upper half of a 16-bit number.
    pub const TYPE_AT: usize = 0;
    /// The position of the identifier in an ICMP or ICMPv6 echo message, in bytes.
    pub const IDENTIFIER_AT: usize = 4;
    /// The minimum number of bytes that an ICMP error quotes after the IP header (RFC 792).
    pub const MIN_QUOTED: usize = 8;

    /// The ICMP type of an echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// The ICMP type of "destination unreachable", including "fragmentation needed" (RFC 1191).
    pub const UNREACHABLE: u8 = 3;
    /// The ICMP type of an echo request.
    pub const ECHO: u8 = 8;
    /// The ICMP type of "time exceeded".
    pub const TIME_EXCEEDED: u8 = 11;
    /// The ICMP type of "parameter problem".
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// The types of ICMPv6 messages (RFC 4443, 2.1): errors are below 128.
pub mod icmpv6 {
    /// The ICMPv6 type of "destination unreachable", the first of the errors.
    pub const UNREACHABLE: u8 = 1;
    /// The ICMPv6 type of "parameter problem", the last of the errors; packet too big and time exceeded are in between.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// The ICMPv6 type of an echo request.
    pub const ECHO: u8 = 128;
    /// The ICMPv6 type of an echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// The ICMPv6 type of a multicast listener query (RFC 2710, RFC 3810), the first of the group membership messages.
    pub const LISTENER_QUERY: u8 = 130;
    /// The ICMPv6 type of a multicast listener done (RFC 2710); the report is between the query and it.
    pub const LISTENER_DONE: u8 = 132;
    /// The ICMPv6 type of a multicast listener report, version 2 (RFC 3810).
    pub const LISTENER_REPORT_V2: u8 = 143;
    /// The ICMPv6 type of a router solicitation (RFC 4861), the first of the neighbour discovery messages.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// The ICMPv6 type of a redirect (RFC 4861), the last of the neighbour discovery messages.
    pub const REDIRECT: u8 = 137;
}

/// Values of the time to live or hop limit that a protocol prescribes.
pub mod hops {
    /// The hop limit of neighbour discovery: a router decrements it, so a message with this value is from the same link
    /// (RFC 4861, 11.2).
    pub const SAME_LINK: u8 = 255;
    /// The time to live or hop limit of group membership messages, so that no router forwards them (RFC 3376, 4; RFC
    /// 3810, 5).
    pub const ONE: u8 = 1;
}

/// UDP ports (assigned by IANA).
pub mod port {
    /// The UDP port of a DHCP server (RFC 2131, 4.1).
    pub const DHCP_SERVER: u16 = 67;
    /// The UDP port of a DHCP client (RFC 2131, 4.1).
    pub const DHCP_CLIENT: u16 = 68;
    /// The UDP port of a DHCPv6 client (RFC 8415, 7.2).
    pub const DHCPV6_CLIENT: u16 = 546;
    /// The UDP port of a DHCPv6 server or relay agent (RFC 8415, 7.2).
    pub const DHCPV6_SERVER: u16 = 547;
}
