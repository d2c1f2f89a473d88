//! Decides on a connection or datagram that a program of this host requests: the order of decisions of the egress
//! policy, in one place.
//!
//! The first applicable rule wins, in this order: destinations on this host and its link, the daemon itself, resolvers
//! and other essential endpoints, replies of a local UDP server, allowed destinations, the default verdict;
//! `docs/egress.md` describes them. The verdict [`Verdict::Drop`] refuses the call: the program gets an error at once,
//! and no packet is sent.
//!
//! A rule of the egress policy is compiled like a service: it covers destination ports, is limited to units as a service
//! is limited to interfaces, and allows the destinations that its sources list. Knows neither system calls nor maps, and
//! does not count: the caller does, once per call.

use crate::abi::{ControlBits, Exemptions, Grant, ServiceId, service_set};
use crate::packet::wire::{ipv4, ipv6, port};
use crate::packet::{Address, SCTP, TCP, UDP};
use crate::verdict::Verdict;

/// The protocol number of UDP-Lite (RFC 3828), whose ports are covered as those of UDP.
pub const UDP_LITE: u32 = 136;
/// The protocol number of a Multipath TCP socket in Linux (`IPPROTO_MPTCP`), which is TCP on the wire.
pub const MPTCP: u32 = 262;

/// The system call by which a program requests a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Call {
    /// `connect` of a socket that exchanges packets for it, such as TCP.
    Connect = 0,
    /// `connect` of a datagram socket, which sends nothing. The resolver library connects a socket to each address of a
    /// name to sort them (RFC 6724), so a refusal is not evidence of a refused connection.
    Probe = 1,
    /// A datagram with a destination: `sendto` or `sendmsg` on a socket that is not connected.
    Send = 2,
}

impl Call {
    /// All calls, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Connect, Self::Probe, Self::Send];

    /// Returns the name of the call, as in reports and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Probe => "probe",
            Self::Send => "send",
        }
    }
}

/// The reason for a verdict of the egress policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EgressReason {
    /// The destination is this host, a neighbour by link-local address, or a multicast group that `[keep]` exempts.
    Local = 0,
    /// The daemon itself makes the call.
    Daemon = 1,
    /// The destination is a configured resolver, on its port.
    Resolver = 2,
    /// The call is essential to the host: DHCP, or a configured time server.
    Essential = 3,
    /// The datagram replies to one that the socket received from this address and port.
    Reply = 4,
    /// A rule allows the destination by a prefix.
    Allowed = 5,
    /// A rule allows the destination by a name, for which a resolver answered it.
    AllowedName = 6,
    /// The destination is in a closed range (private and special-use addresses), and no rule allows it by a prefix.
    ClosedRange = 7,
    /// No rule allows the destination: the default verdict applies.
    Default = 8,
    /// The program did not find its own tables. Does not occur in an intact installation.
    InternalError = 9,
}

impl EgressReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Local,
        Self::Daemon,
        Self::Resolver,
        Self::Essential,
        Self::Reply,
        Self::Allowed,
        Self::AllowedName,
        Self::ClosedRange,
        Self::Default,
        Self::InternalError,
    ];

    /// Returns the name of the reason, as in reports and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Daemon => "daemon",
            Self::Resolver => "resolver",
            Self::Essential => "essential",
            Self::Reply => "reply",
            Self::Allowed => "allowed",
            Self::AllowedName => "allowed-name",
            Self::ClosedRange => "closed-range",
            Self::Default => "default",
            Self::InternalError => "internal-error",
        }
    }
}

/// A destination that a program requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The system call.
    pub call: Call,
    /// The destination address, as the program gave it.
    pub destination: Address,
    /// The IP protocol of the socket, as the kernel numbers it: above 255 for [`MPTCP`].
    pub protocol: u32,
    /// The destination port; ignored for a protocol without ports.
    pub port: u16,
    /// The local port that the socket is bound to; 0 if it is not bound.
    pub local_port: u16,
}

/// The rules that cover a port or protocol for one calling program: the union of at most two sets of rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoveringRules {
    /// The set of rules for all programs and for the caller's slices and cgroups by path, as the number of a kernel
    /// service; 0 if none covers the port.
    pub by_path: ServiceId,
    /// The set of rules for the caller's service, or another unit that is named without its path, as the number of a
    /// kernel service; 0 if none covers the port.
    pub by_name: ServiceId,
}

impl CoveringRules {
    /// Returns the union as a set of kernel services.
    #[inline(always)]
    pub const fn services(self) -> u64 {
        service_set(self.by_path) | service_set(self.by_name)
    }
}

/// The tables of one generation for one calling program.
pub trait EgressTables {
    /// Returns the effective control word.
    fn control(&self) -> ControlBits;
    /// Reports whether an address belongs to an interface of this host. IPv4-mapped addresses are not given.
    fn is_own(&self, address: &Address) -> bool;
    /// Reports whether the calling process is the daemon.
    fn is_daemon(&self) -> bool;
    /// Returns the reason why the endpoint is exempt, such as a resolver; `None` if it is not.
    fn exempt_endpoint(&self, address: &Address, protocol: u8, port: u16) -> Option<EgressReason>;
    /// Reports whether the calling socket received a datagram from this address and port, and may reply to it.
    fn has_received_from(&self, address: &Address, port: u16) -> bool;
    /// Returns the rules that cover a destination port of TCP, UDP or SCTP for the calling program.
    fn rules_of_port(&self, protocol: u8, port: u16) -> CoveringRules;
    /// Returns the rules that cover a protocol without ports for the calling program.
    fn rules_of_protocol(&self, protocol: u8) -> CoveringRules;
    /// Returns the id under which calls to the ports of a set of rules are counted: an index into
    /// [`crate::abi::EGRESS_RULES`].
    fn rule_counter_id(&self, rules: ServiceId) -> u32;
    /// Returns the rules that allow a destination by a prefix; `None` or a grant without rules if none does.
    fn grant(&self, destination: &Address) -> Option<Grant>;
    /// Returns the id of a name for which a resolver answered the address, as [`learned`] returns it, a short time ago, if
    /// one of the rules in `rules`, a set of kernel services, allows that name and the range of the address; 0 if there
    /// is no such name.
    fn learned_name(&self, destination: &Address, rules: u64) -> u32;
}

/// The verdict on a request, with its reason and counter ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EgressDecision {
    /// The verdict; [`Verdict::Drop`] refuses the call.
    pub verdict: Verdict,
    /// The reason for the verdict.
    pub reason: EgressReason,
    /// The match id of the destination (an index into [`crate::abi::EGRESS_MATCHES`]), if a rule allows it; else 0.
    pub match_id: u32,
    /// The counter ids of the two sets of rules that cover the port, as in [`CoveringRules`] (indices into
    /// [`crate::abi::EGRESS_RULES`]); 0 if no rule of a set does, or if an earlier step decided. Equal ids count once.
    pub rules: [u32; 2],
    /// The id of the name by which the destination is allowed (an index into [`crate::abi::NAME_CALLS`]); else 0.
    pub name: u32,
}

impl EgressDecision {
    #[inline(always)]
    const fn new(verdict: Verdict, reason: EgressReason) -> Self {
        Self {
            verdict,
            reason,
            match_id: 0,
            rules: [0; 2],
            name: 0,
        }
    }

    /// The decision of a program that cannot find its own tables.
    pub const INTERNAL_ERROR: Self = Self::new(Verdict::Drop, EgressReason::InternalError);
}

/// Returns the decision on a request.
#[inline(always)]
pub fn decide<T: EgressTables>(request: &Request, tables: &T) -> EgressDecision {
    let control = tables.control();
    let destination = unmapped(request.destination);
    let pass = |reason| EgressDecision::new(Verdict::Pass, reason);
    if is_local(&destination, control) || tables.is_own(&destination) {
        return pass(EgressReason::Local);
    }
    if tables.is_daemon() {
        return pass(EgressReason::Daemon);
    }
    let protocol = transport(request.protocol);
    if is_dhcp(request, protocol) && control.exempts(Exemptions::DHCP) {
        return pass(EgressReason::Essential);
    }
    if let Some(reason) = tables.exempt_endpoint(&destination, protocol, request.port) {
        return pass(reason);
    }
    if matches!(request.call, Call::Send) && tables.has_received_from(&destination, request.port) {
        return pass(EgressReason::Reply);
    }
    let rules = match protocol {
        TCP | UDP | SCTP => tables.rules_of_port(protocol, request.port),
        _ => tables.rules_of_protocol(protocol),
    };
    let covering = rules.services();
    let counters = [rules.by_path, rules.by_name].map(|rules| tables.rule_counter_id(rules));
    if covering != 0 {
        // A translated address (RFC 6052) is allowed by its own prefix or by that of the IPv4 address in it.
        for address in [Some(destination), embedded(destination)] {
            if let Some(address) = address
                && let Some(grant) = tables.grant(&address)
                && grant.services() & covering != 0
            {
                return EgressDecision {
                    match_id: grant.match_id,
                    rules: counters,
                    ..pass(EgressReason::Allowed)
                };
            }
        }
        let name = tables.learned_name(&learned(destination), covering);
        if name != 0 {
            return EgressDecision {
                name,
                rules: counters,
                ..pass(EgressReason::AllowedName)
            };
        }
    }
    let verdict = control.egress_default();
    let reason = match verdict {
        Verdict::Drop if is_closed(&destination) => EgressReason::ClosedRange,
        _ => EgressReason::Default,
    };
    EgressDecision {
        rules: counters,
        ..EgressDecision::new(verdict, reason)
    }
}

/// Returns the IPv4 address that an IPv4-mapped address (`::ffff:0:0/96`, RFC 4291, 2.5.5.2) contains; any other address
/// as it is.
///
/// A socket of the family IPv6 that connects to such an address sends IPv4 packets.
#[inline(always)]
pub const fn unmapped(address: Address) -> Address {
    match address {
        Address::V6([0, host]) if host >> 32 == 0xffff => Address::V4(host as u32),
        other => other,
    }
}

/// Returns the IPv4 address that a translated address (`64:ff9b::/96`, RFC 6052) contains; `None` for other addresses.
#[inline(always)]
pub const fn embedded(address: Address) -> Option<Address> {
    match address {
        Address::V6([0x0064_ff9b_0000_0000, host]) if host >> 32 == 0 => {
            Some(Address::V4(host as u32))
        }
        _ => None,
    }
}

/// Returns the address under which an answer with `address` is stored: that of a translated address is the IPv4 address in
/// it, and that of an IPv4-mapped address too.
#[inline(always)]
pub const fn learned(address: Address) -> Address {
    match embedded(address) {
        Some(inner) => inner,
        None => unmapped(address),
    }
}

/// Returns an address as a key in which IPv4 and IPv6 addresses differ: IPv4 addresses in IPv4-mapped form.
#[inline(always)]
pub const fn address_key(address: Address) -> [u64; 2] {
    match address {
        Address::V4(address) => [0, 0xffff << 32 | address as u64],
        Address::V6(halves) => halves,
    }
}

/// Returns the protocol on the wire of a socket's protocol.
#[inline(always)]
pub const fn transport(protocol: u32) -> u8 {
    match protocol {
        MPTCP => TCP,
        UDP_LITE => UDP,
        other => other as u8,
    }
}

/// Reports whether a request is one of a DHCP or DHCPv6 client, from its privileged port.
#[inline(always)]
const fn is_dhcp(request: &Request, protocol: u8) -> bool {
    protocol == UDP
        && match request.destination {
            Address::V4(_) => {
                request.port == port::DHCP_SERVER && request.local_port == port::DHCP_CLIENT
            }
            Address::V6(_) => {
                request.port == port::DHCPV6_SERVER && request.local_port == port::DHCPV6_CLIENT
            }
        }
}

/// Reports whether an address is local by its range alone: loopback or unspecified, link-local in IPv6, or multicast if
/// `[keep]` exempts it.
///
/// The link-local range of IPv4, `169.254.0.0/16`, is not included: clouds answer there with credentials.
#[inline(always)]
const fn is_local(address: &Address, control: ControlBits) -> bool {
    let is_multicast = match *address {
        Address::V4(address) if address >> 24 == ipv4::LOOPBACK as u32 || address == 0 => {
            return true;
        }
        Address::V6([0, 0 | 1]) => return true,
        Address::V4(address) => address >> 28 == ipv4::MULTICAST as u32,
        Address::V6([network, _]) => {
            if address.is_link_local() {
                return true;
            }
            network >> 56 == ipv6::MULTICAST
        }
    };
    is_multicast && control.exempts(Exemptions::MULTICAST)
}

/// Reports whether an address is in a closed range: an address that no public name should have, so that an answer with
/// it may be an attempt to reach this host's private network (DNS rebinding).
///
/// These are the ranges that IANA's registries of special-purpose addresses (RFC 6890) list as not globally reachable,
/// without the ranges for documentation; translated addresses count by the IPv4 address in them.
///
/// VERIFIER: a separate function, since its paths would multiply those of each caller.
#[inline(never)]
pub const fn is_closed(address: &Address) -> bool {
    match *address {
        Address::V4(address) => is_closed_v4(address),
        Address::V6([network, host]) => {
            if let Some(Address::V4(address)) = embedded(Address::V6([network, host])) {
                return is_closed_v4(address);
            }
            network == 0 // unspecified, loopback, IPv4-compatible and IPv4-mapped
                || network >> 57 == 0xfc >> 1 // unique local
                || network >> 54 == 0xfe80 >> 6 // link-local
                || network >> 54 == 0xfec0 >> 6 // site-local, deprecated
                || network >> 56 == ipv6::MULTICAST
                || network == 0x0100_0000_0000_0000 // discard
                || network >> 16 == 0x0064_ff9b_0001 // local translation (RFC 8215)
                || network >> 48 == 0x2002 // 6to4
                || network >> 32 == 0x2001_0000 // Teredo
        }
    }
}

#[inline(always)]
const fn is_closed_v4(address: u32) -> bool {
    /// The closed ranges of IPv4: the first address, and the length of the prefix.
    const RANGES: [([u8; 4], u32); 10] = [
        ([0, 0, 0, 0], 8),
        ([10, 0, 0, 0], 8),
        ([100, 64, 0, 0], 10),
        ([127, 0, 0, 0], 8),
        ([169, 254, 0, 0], 16),
        ([172, 16, 0, 0], 12),
        ([192, 0, 0, 0], 24),
        ([192, 168, 0, 0], 16),
        ([198, 18, 0, 0], 15),
        ([224, 0, 0, 0], 3), // multicast and reserved
    ];
    let mut place = 0;
    while place < RANGES.len() {
        let (first, length) = RANGES[place];
        if (address ^ u32::from_be_bytes(first)) >> (u32::BITS - length) == 0 {
            return true;
        }
        place += 1;
    }
    false
}

pub mod units;

#[cfg(test)]
#[path = "egress/tests.rs"]
mod tests;
