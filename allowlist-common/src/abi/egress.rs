//! The maps of the egress policy. They exist only while a policy has `[egress]`: the programs and their maps are an
//! object of their own, which shares the control word and the fallback with the XDP program.
//!
//! The tables of a generation are [`GenerationTables`](super::GenerationTables) as for packets, in which a rule takes
//! the place of a service, and a unit that of an interface.

use super::names::{
    ANSWER_COUNTERS, ASKERS, LEARNED, LEARNED_BELOW, LISTED_NAMES, NAME_CALLS, NAME_GRANTS,
    NAME_STATES, QUERIES,
};
use super::seen::{ANSWERED, SEEN};
use super::{EGRESS_BUDGET, EGRESS_EVENTS, EGRESS_LEASE};
use crate::egress::{Call, EgressReason};
use crate::verdict::Verdict;
use crate::volatile::{VolatileRef, field};

/// The programs that judge calls, by their names in the object file and in the kernel. Each is attached to the cgroup
/// hook that the end of its name states, such as `connect4`.
pub const CONNECT_PROGRAMS: [&str; 4] = [
    "allow_connect4",
    "allow_connect6",
    "allow_sendmsg4",
    "allow_sendmsg6",
];
/// The program that records from whom a UDP socket has received, at the hook for packets to a cgroup's sockets.
pub const RECEIVE_PROGRAM: &str = "allow_received";

/// The program that returns the id of the process that runs it, in the initial PID namespace; it is in an object of its
/// own, and attached to nothing.
pub const PROCESS_ID_PROGRAM: &str = "allow_process";

/// The programs that follow the cgroups of units, by their names in the object file and in the kernel, each with the
/// raw tracepoint to which it is attached.
pub const UNIT_PROGRAMS: [(&str, &str); 2] = [
    ("allow_mkdir", "cgroup_mkdir"),
    ("allow_rmdir", "cgroup_rmdir"),
];
/// Load-time constants of [`UNIT_PROGRAMS`], `u32`: the offsets in bytes of fields in structs of the running kernel.
/// Each has the name of the constant, the struct and the field.
pub const UNIT_OFFSETS: [(&str, &str, &str); 4] = [
    ("CGROUP_NODE", "cgroup", "kn"),
    ("CGROUP_ROOT", "cgroup", "root"),
    ("NODE_ID", "kernfs_node", "id"),
    ("ROOT_HIERARCHY", "cgroup_root", "hierarchy_id"),
];

/// Array of [`GenerationTables`](super::GenerationTables) by slot; each value ends with the slot's pool, the chunks of
/// its range table ([`crate::ranges`]).
pub const EGRESS_TABLES: &str = "EGRESS_TABLES";
/// Array of maps by slot: the prefixes of the slot's tables, which only reports read.
pub const EGRESS_PREFIXES: &str = "EGRESS_PREFIXES";
/// Array of [`EgressSettings`] by slot.
pub const EGRESS_SETTINGS: &str = "EGRESS_SETTINGS";
/// Per-CPU array of one [`EgressCounters`]: calls by kind, verdict and reason.
pub const EGRESS_COUNTERS: &str = "EGRESS_COUNTERS";
/// Per-CPU array of [`Calls`], by match id ([`MAX_MATCHES`](super::MAX_MATCHES)): the calls to allowed destinations.
pub const EGRESS_MATCHES: &str = "EGRESS_MATCHES";
/// Per-CPU array of [`RuleCalls`], by the counter id of the set of rules that cover a port
/// ([`MAX_SERVICE_COUNTS`](super::MAX_SERVICE_COUNTS)).
pub const EGRESS_RULES: &str = "EGRESS_RULES";
/// Hash from an address ([`crate::egress::address_key`]) to `u8`: the addresses of this host's interfaces; the value
/// has no meaning.
pub const OWN_ADDRESSES: &str = "OWN_ADDRESSES";
/// Array of one [`DaemonProcess`].
pub const PROCESS: &str = "PROCESS";
/// LRU hash from [`Received`] to `u8`: the endpoints from which unconnected UDP sockets have received a datagram; the
/// value has no meaning.
pub const RECEIVED: &str = "RECEIVED";
/// Hash from [`UnitKey`] to a [`UnitRow`], as `u32`: the cgroups of units that exist.
pub const UNITS: &str = "UNITS";
/// Hash from [`UnitText`] to a [`UnitRow`], as `u32`: the units that the rules of a slot name.
pub const UNIT_TEXTS: &str = "UNIT_TEXTS";

/// The pinned maps of the egress policy, in addition to [`PINNED`](super::PINNED).
pub const EGRESS_PINNED: [&str; 25] = [
    EGRESS_TABLES,
    EGRESS_PREFIXES,
    EGRESS_SETTINGS,
    EGRESS_COUNTERS,
    EGRESS_MATCHES,
    EGRESS_RULES,
    OWN_ADDRESSES,
    PROCESS,
    RECEIVED,
    UNITS,
    UNIT_TEXTS,
    EGRESS_LEASE,
    EGRESS_EVENTS,
    EGRESS_BUDGET,
    LISTED_NAMES,
    NAME_GRANTS,
    NAME_STATES,
    NAME_CALLS,
    ASKERS,
    QUERIES,
    LEARNED,
    LEARNED_BELOW,
    ANSWER_COUNTERS,
    SEEN,
    ANSWERED,
];

/// The maximum number of exempt endpoints, such as resolvers; the daemon exempts only the first of more.
pub const MAX_ENDPOINTS: usize = 16;

/// An exempt endpoint: calls to it pass without a rule, such as those to a resolver.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// The address, as [`crate::egress::address_key`] returns it.
    pub address: [u64; 2],
    /// The protocol in bits 24 to 31, the number of the [`EgressReason`] in bits 16 to 23, and the port; 0 for an unused
    /// entry. One word, so that a comparison needs one load.
    pub rest: u64,
}

impl Endpoint {
    /// Returns an exempt endpoint, whose calls are counted under `reason`.
    pub const fn new(address: [u64; 2], protocol: u8, port: u16, reason: EgressReason) -> Self {
        Self {
            address,
            rest: (protocol as u64) << 24 | (reason as u64) << 16 | port as u64,
        }
    }
}

/// The settings of the egress policy in a generation, apart from its tables.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EgressSettings {
    /// The exempt endpoints; the used entries come first.
    pub endpoints: [Endpoint; MAX_ENDPOINTS],
    /// The number of used entries in [`Self::endpoints`].
    pub count: u32,
    /// 1 if a rule is limited to units, so that the caller's cgroups are looked up in [`UNITS`]; else 0.
    pub has_units: u32,
    /// The time for which a learnt address is valid at least, in nanoseconds; 0 if no rule lists a name, so that answers
    /// are not read.
    pub linger: u64,
    /// The ports of the resolvers: bit `port % 64` is set for each, so that most packets need no comparison with the
    /// endpoints.
    pub resolver_ports: u64,
    /// The kernel's cookie of the network namespace whose sockets' answers are believed: that of the daemon. The root
    /// user of another namespace could give itself answers with the address of a resolver.
    pub namespace: u64,
}

impl EgressSettings {
    /// Adds an exempt endpoint; returns whether there was room for it.
    #[must_use]
    pub fn exempt(&mut self, endpoint: Endpoint) -> bool {
        let place = self.count as usize;
        if place == MAX_ENDPOINTS {
            return false;
        }
        self.endpoints[place] = endpoint;
        self.count += 1;
        if endpoint.rest >> 16 & 0xff == EgressReason::Resolver as u64 {
            self.resolver_ports |= port_bit(endpoint.rest as u16);
        }
        true
    }
}

/// Returns the bit of a port in [`EgressSettings::resolver_ports`].
#[inline(always)]
const fn port_bit(port: u16) -> u64 {
    1 << (port % u64::BITS as u16)
}

impl VolatileRef<'_, EgressSettings> {
    /// Returns false if no resolver has this port. A resolver need not have it if the result is true.
    #[inline(always)]
    pub fn may_be_resolver_port(self, port: u16) -> bool {
        field!(self, resolver_ports).load() & port_bit(port) != 0
    }

    /// Returns the reason why calls to an endpoint pass without a rule; `None` if the endpoint is not exempt.
    #[inline(always)]
    pub fn exempt_endpoint(
        self,
        address: [u64; 2],
        protocol: u8,
        port: u16,
    ) -> Option<EgressReason> {
        let count = field!(self, count).load() as usize;
        let wanted = u64::from(protocol) << 24 | u64::from(port);
        // VERIFIER: a bound that is a constant, and an end by the data.
        for place in 0..MAX_ENDPOINTS {
            if place >= count {
                break;
            }
            let endpoint = field!(self, endpoints).at(place);
            let rest = field!(endpoint, rest).load();
            if rest & !(0xff << 16) == wanted
                && field!(endpoint, address).at(0).load() == address[0]
                && field!(endpoint, address).at(1).load() == address[1]
            {
                return Some(if rest >> 16 & 0xff == EgressReason::Resolver as u64 {
                    EgressReason::Resolver
                } else {
                    EgressReason::Essential
                });
            }
        }
        None
    }

    /// Returns the time for which a learnt address is valid at least, in nanoseconds; 0 if answers are not read.
    #[inline(always)]
    pub fn linger(self) -> u64 {
        field!(self, linger).load()
    }

    /// Reports whether a network namespace is the one whose sockets' answers are believed.
    #[inline(always)]
    pub fn believes(self, namespace: u64) -> bool {
        field!(self, namespace).load() == namespace
    }

    /// Returns 1 if a rule is limited to units; else 0.
    #[inline(always)]
    pub fn has_units(self) -> u32 {
        field!(self, has_units).load()
    }
}

/// The number of calls by kind of call, verdict and reason.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EgressCounters {
    calls: [[[u64; EgressReason::ALL.len()]; Verdict::ALL.len()]; Call::ALL.len()],
}

impl EgressCounters {
    /// The counters of a new map: all are 0.
    pub const ZERO: Self = Self {
        calls: [[[0; EgressReason::ALL.len()]; Verdict::ALL.len()]; Call::ALL.len()],
    };

    /// Returns the number of calls of a kind with a verdict and a reason.
    pub const fn get(&self, call: Call, verdict: Verdict, reason: EgressReason) -> u64 {
        self.calls[call as usize][verdict as usize][reason as usize]
    }

    /// Returns the counter for a kind of call, a verdict and a reason.
    #[inline(always)]
    pub const fn cell(&mut self, call: Call, verdict: Verdict, reason: EgressReason) -> &mut u64 {
        &mut self.calls[call as usize][verdict as usize][reason as usize]
    }
}

/// The number and last time of calls, such as those to the destinations of one match id.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Calls {
    /// The number of calls.
    pub count: u64,
    /// The time of the last call, in nanoseconds of the monotonic clock; 0 before the first.
    pub last: u64,
}

impl Calls {
    /// Returns the sum of two counts, with the later of their times.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            last: self.last.max(other.last),
        }
    }
}

/// The calls to ports that one set of rules covers.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RuleCalls {
    /// Calls to destinations that a rule of the set allows.
    pub passed: Calls,
    /// Calls that are refused, or would be in enforce mode.
    pub refused: Calls,
}

impl RuleCalls {
    /// Returns the sum of two sets of counters.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed.plus(other.passed),
            refused: self.refused.plus(other.refused),
        }
    }
}

/// The daemon's process, whose own calls pass.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DaemonProcess {
    /// The process id in the initial PID namespace.
    pub id: u64,
    /// The time until which the entry is valid, in nanoseconds of the monotonic clock. The daemon extends it, so that
    /// after its death another process that gets its id is exempt only until this time.
    pub until: u64,
}

impl VolatileRef<'_, DaemonProcess> {
    /// Reports whether a process is the daemon at `now`.
    #[inline(always)]
    pub fn is(self, process: u32, now: u64) -> bool {
        field!(self, id).load() == u64::from(process) && now < field!(self, until).load()
    }
}

/// The key of [`UNITS`]: the cgroup of a unit, and the slot whose tables have a row for it.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct UnitKey {
    /// The id of the cgroup.
    pub cgroup: u64,
    /// The slot.
    pub slot: u64,
}

/// The number of bytes for the text of a unit, which is shorter, since a zero byte follows it.
pub const MAX_UNIT_TEXT: usize = 512;

/// The key of [`UNIT_TEXTS`]: a unit as the rules of a slot name it.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct UnitText {
    /// The slot.
    pub slot: u64,
    /// The name of a unit such as `alerts.service`, or the path of a cgroup below the root of cgroup v2, which begins
    /// with `/`. The rest is zero.
    pub text: [u8; MAX_UNIT_TEXT],
}

impl UnitText {
    /// Returns the key for a unit; `None` if the text is longer than the kernel's tables allow.
    pub fn new(slot: u32, text: &str) -> Option<Self> {
        let mut key = Self {
            slot: slot.into(),
            text: [0; MAX_UNIT_TEXT],
        };
        if text.len() >= MAX_UNIT_TEXT {
            return None;
        }
        key.text[..text.len()].copy_from_slice(text.as_bytes());
        Some(key)
    }

    /// Returns the name or path, without the zero bytes.
    pub fn text(&self) -> &[u8] {
        let end = self.text.iter().position(|byte| *byte == 0);
        &self.text[..end.unwrap_or(MAX_UNIT_TEXT)]
    }
}

/// The value of [`UNITS`] and [`UNIT_TEXTS`]: the row of a unit in the tables, an index into
/// [`ServiceTable::interfaces`](super::ServiceTable::interfaces), and whether the rules state the unit's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitRow(pub u32);

impl UnitRow {
    const BY_NAME: u32 = 1 << 16;
    /// The bits that a value may have.
    pub const BITS: u32 = Self::BY_NAME | (super::MAX_INTERFACES - 1);

    /// Returns the value for a unit whose path is known. Its row includes the rules for all programs and for the cgroups
    /// around it.
    pub const fn by_path(row: u32) -> Self {
        Self(row)
    }

    /// Returns the value for a unit of which only the name is known. Its row has the rules that name it, and applies in
    /// addition to the row of the cgroups around it.
    pub const fn by_name(row: u32) -> Self {
        Self(row | Self::BY_NAME)
    }

    /// Reports whether the row applies in addition to that of the cgroups around the unit.
    pub const fn is_by_name(self) -> bool {
        self.0 & Self::BY_NAME != 0
    }

    /// Returns the index of the row.
    pub const fn row(self) -> usize {
        (self.0 % super::MAX_INTERFACES) as usize
    }
}

/// The key of [`RECEIVED`]: a socket, and an endpoint from which it has received.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Received {
    /// The kernel's cookie of the socket, which no other socket ever gets.
    pub socket: u64,
    /// The sender's address, as [`crate::egress::address_key`] returns it.
    pub address: [u64; 2],
    /// The sender's port.
    pub port: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::UDP;

    #[test]
    fn resolver_ports_are_found_and_most_others_are_not() {
        let mut settings = EgressSettings::default();
        let endpoint = |port, reason| Endpoint::new([0, u64::from(port)], UDP, port, reason);
        for port in [53, 5353] {
            assert!(settings.exempt(endpoint(port, EgressReason::Resolver)));
        }
        assert!(settings.exempt(endpoint(123, EgressReason::Essential)));
        let view = VolatileRef::from_ref(&settings);
        assert!(view.may_be_resolver_port(53) && view.may_be_resolver_port(5353));
        assert!(!view.may_be_resolver_port(123) && !view.may_be_resolver_port(443));
        while settings.exempt(endpoint(1, EgressReason::Essential)) {}
        assert_eq!(settings.count as usize, MAX_ENDPOINTS);
    }
}
