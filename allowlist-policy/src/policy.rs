//! Services, sources and rules: the validated types that the rest of the program uses.
//!
//! Invariants: a `Policy` made by `config` uses only sources that it defines, its names are unique and sorted, and
//! no prefix has host bits set. Does not know files, the network, the clock or the kernel.

mod egress;
mod feed;
mod format;
mod protocol;
mod source;

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use allowlist_common::abi::{Control, Exemptions};
pub use allowlist_common::abi::{Engine, Refusal, ReturnTraffic};
use allowlist_common::packet::{ICMP, ICMPV6, SCTP, TCP, UDP};
pub use allowlist_common::verdict::Verdict;
use ipnet::IpNet;
use serde::Serialize;

pub(crate) use egress::name_in_slices;
pub use egress::{Egress, EgressRule, STARTED_UNITS, UnitPlace};
pub use feed::{Answer, Feed, Fetched, GracePrefix, PastChange, Snapshot, Validator};
pub use format::{Column, Condition, Csv, Format, Item, Json, Lines, Page, Pattern, Select, Xml};
pub use source::{
    Direction, Family, Gate, Http, Lookup, Origin, PerFamily, Secret, Source, is_loopback,
    public_url,
};

/// The longest name of a source or a service, in bytes.
pub const MAX_NAME_BYTES: usize = 63;

/// Returns whether `text` is a valid name of a source or a service: `a-z`, `0-9`, `-` and `_`, 1 to [`MAX_NAME_BYTES`]
/// bytes.
///
/// Names are also file names, labels of metrics and parts of log lines.
pub fn is_name(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && text.bytes().all(is_plain)
}

/// The services of a configuration and the sources that they allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The services, sorted by name.
    pub services: Vec<Service>,
    /// The sources, sorted by name.
    pub sources: Vec<Source>,
    /// The egress policy; `None` if this host's programs may connect to every destination.
    pub egress: Option<Egress>,
}

/// A service: ports to protect, and the sources that may reach them. Packets to these ports from all other addresses
/// are dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The name of the service: its key under `[services]`.
    pub name: String,
    /// The ports and protocols that the service covers.
    pub ports: Vec<Ports>,
    /// The interfaces that the service applies to; empty for all.
    pub interfaces: Vec<String>,
    /// The names of the allowed sources, in the order of the configuration.
    pub allow: Vec<String>,
}

/// One entry of a service's `ports`: the ports or protocols that the service covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// A range of TCP ports: `"tcp/443"` or `"tcp/8443-8450"`.
    Tcp(RangeInclusive<u16>),
    /// A range of UDP ports: `"udp/53"` or `"udp/5000-5010"`.
    Udp(RangeInclusive<u16>),
    /// A range of SCTP ports: `"sctp/3868"`.
    Sctp(RangeInclusive<u16>),
    /// ICMP and ICMPv6 queries, such as echo: `"icmp"`. ICMP errors belong to no service.
    Icmp,
    /// An IP protocol with all its ports: `"ip/112"` or `"ip/vrrp"`.
    Protocol(u8),
    /// All protocols and ports: `"any"`.
    Any,
}

/// The mode of the filter: whether the verdicts about packets take effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Enforce mode: packets with the verdict drop are dropped.
    #[default]
    Enforce,
    /// Observe mode: all packets pass; verdicts are only counted.
    Observe,
}

/// The setting `at_start`: the behaviour of a start while a source has no list yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AtStart {
    /// Filtering starts when every source has a list; until then the start changes nothing.
    #[default]
    Wait,
    /// Filtering starts at once; a source without a list matches all addresses (fail open).
    Pass,
    /// Filtering starts at once; a source without a list matches no address (fail closed).
    Drop,
}

/// The settings of a configuration besides its services: default verdict, return traffic, exemptions and lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rules {
    /// The verdict for packets to ports that no service covers.
    pub default: Verdict,
    /// Which answers to connections of this host pass although the default verdict is drop.
    pub return_traffic: ReturnTraffic,
    /// The exemptions: traffic that passes under every policy.
    pub keep: Keep,
    /// The data structure in which the kernel program looks up a source address.
    pub lookup: Engine,
}

/// The exemptions of `[keep]`: traffic that passes under every policy.
///
/// Traffic whose exemption is off is subject to the policy; frames without IP are then dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the file")]
pub struct Keep {
    /// Whether ARP passes; if false, it is dropped.
    pub arp: bool,
    /// Whether IPv6 neighbour and router discovery from the same link passes.
    pub neighbour_discovery: bool,
    /// Whether ICMP and ICMPv6 errors pass, including those of path MTU discovery.
    pub icmp_errors: bool,
    /// Whether answers of DHCP and DHCPv6 servers pass.
    pub dhcp: bool,
    /// Whether IGMP and MLD pass.
    pub multicast: bool,
    /// Whether all frames without IP other than ARP pass, such as LLDP; if false, they are dropped.
    pub not_ip: bool,
}

impl Mode {
    /// Returns the mode as the configuration writes it: `enforce` or `observe`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }
}

impl AtStart {
    /// Returns the prefixes to use for a source without a list: all addresses for `Pass`, none for `Wait` and `Drop`.
    pub fn stand_in(self) -> Vec<IpNet> {
        match self {
            Self::Pass => ["0.0.0.0/0", "::/0"]
                .map(|prefix| prefix.parse().expect("the text is a prefix"))
                .to_vec(),
            Self::Wait | Self::Drop => Vec::new(),
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            default: Verdict::Pass,
            return_traffic: ReturnTraffic::Track,
            keep: Keep::ALL,
            lookup: Engine::RangeTable,
        }
    }
}

impl Rules {
    /// Returns whether the kernel tracks outbound flows: if the default verdict is drop and return traffic is tracked.
    pub fn tracks(&self) -> bool {
        self.default == Verdict::Drop && self.return_traffic == ReturnTraffic::Track
    }
}

impl Rules {
    /// Returns the kernel's control word for these rules and `mode`, with the fields of a generation (its number, slot
    /// and flags) and the egress policy unset.
    ///
    /// With the default verdict pass, every answer passes, so return traffic is off.
    pub const fn control(&self, mode: Mode) -> Control {
        Control {
            default_verdict: self.default,
            observe: matches!(mode, Mode::Observe),
            return_traffic: match self.default {
                Verdict::Pass => ReturnTraffic::Off,
                Verdict::Drop => self.return_traffic,
            },
            exemptions: self.keep.exemptions(),
            lookup: self.lookup,
            ..Control::NONE
        }
    }
}

impl Keep {
    /// Returns the exemptions as the bits of the kernel's control word.
    pub const fn exemptions(self) -> Exemptions {
        Exemptions::NONE
            .set(Exemptions::ARP, self.arp)
            .set(Exemptions::NEIGHBOUR_DISCOVERY, self.neighbour_discovery)
            .set(Exemptions::ICMP_ERRORS, self.icmp_errors)
            .set(Exemptions::DHCP, self.dhcp)
            .set(Exemptions::MULTICAST, self.multicast)
            .set(Exemptions::NOT_IP, self.not_ip)
    }

    /// The default of `[keep]`: every exemption is on.
    pub const ALL: Self = Self {
        arp: true,
        neighbour_discovery: true,
        icmp_errors: true,
        dhcp: true,
        multicast: true,
        not_ip: true,
    };
}

/// Stands for all interfaces that no service names, in [`Service::interfaces`]. No interface has an empty name.
pub(crate) const ELSEWHERE: &str = "";

impl Service {
    /// Returns whether the service applies to packets that arrive on `interface`.
    pub fn is_on(&self, interface: &str) -> bool {
        self.interfaces.is_empty() || self.interfaces.iter().any(|name| name == interface)
    }
}

impl Policy {
    /// Returns the source named `name`, or `None` if the policy has none.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.name == name)
    }

    /// Returns the first service, sorted by name, that allows `source`, or `None` if no service does.
    pub fn user_of(&self, source: &Source) -> Option<&Service> {
        self.services
            .iter()
            .find(|service| service.allow.contains(&source.name))
    }

    /// Returns the sources that at least one service or egress rule uses. Other sources are not fetched.
    pub fn used_sources(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter().filter(|source| self.is_used(source))
    }

    /// Returns whether a service or an egress rule uses a source.
    pub fn is_used(&self, source: &Source) -> bool {
        let egress = self.egress.as_ref();
        self.user_of(source).is_some()
            || egress.is_some_and(|egress| egress.user_of(source).is_some())
    }

    /// Returns the policy with each service's interface names replaced by those that `filtered` has for the same
    /// interfaces.
    ///
    /// An interface can have several names: two names are the same interface if `index_of` returns the same index for
    /// them. A name without a counterpart in `filtered` stays.
    pub fn on_interfaces(
        &self,
        filtered: &[String],
        index_of: impl Fn(&str) -> Option<u32>,
    ) -> Cow<'_, Self> {
        let filtered_name = |name: &String| {
            if filtered.contains(name) {
                return None;
            }
            let index = index_of(name)?;
            let mut all = filtered.iter();
            all.find(|one| index_of(one) == Some(index)).cloned()
        };
        let mut policy = Cow::Borrowed(self);
        for (place, service) in self.services.iter().enumerate() {
            for (at, name) in service.interfaces.iter().enumerate() {
                if let Some(filtered) = filtered_name(name) {
                    policy.to_mut().services[place].interfaces[at] = filtered;
                }
            }
        }
        policy
    }
}

impl Ports {
    /// Returns whether this entry covers at least one port of the range `ports` in `protocol`, which is TCP or UDP.
    pub fn meets(&self, protocol: u8, ports: &RangeInclusive<u16>) -> bool {
        let overlaps = |range: &RangeInclusive<u16>| {
            range.start() <= ports.end() && ports.start() <= range.end()
        };
        match self {
            Self::Tcp(range) => protocol == TCP && overlaps(range),
            Self::Udp(range) => protocol == UDP && overlaps(range),
            Self::Protocol(number) => *number == protocol,
            Self::Any => true,
            Self::Sctp(_) | Self::Icmp => false,
        }
    }

    /// Returns the entry's IP protocol number, or `None` for `icmp` (ICMP and ICMPv6) and `any`.
    pub const fn protocol(&self) -> Option<u8> {
        match self {
            Self::Tcp(_) => Some(TCP),
            Self::Udp(_) => Some(UDP),
            Self::Sctp(_) => Some(SCTP),
            Self::Protocol(number) => Some(*number),
            Self::Icmp | Self::Any => None,
        }
    }

    /// Returns whether this entry covers at least some packets of the IP protocol `protocol`.
    pub const fn is_of(&self, protocol: u8) -> bool {
        match (self, self.protocol()) {
            (_, Some(number)) => number == protocol,
            (Self::Icmp, None) => matches!(protocol, ICMP | ICMPV6),
            _ => true,
        }
    }
}

impl FromStr for Ports {
    type Err = String;

    /// Parses an entry of `ports`, such as `tcp/443`. The error is text for the user that states the remedy.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "icmp" => return Ok(Self::Icmp),
            "any" => return Ok(Self::Any),
            // Ambiguous: one port, or the whole protocol.
            "tcp" | "udp" | "sctp" => {
                return Err(format!(
                    "{text:?} has no port; write a port, such as \"{text}/443\", or \"ip/{text}\" for all ports"
                ));
            }
            _ => {}
        }
        if let Some(protocol) = text.strip_prefix("ip/") {
            return protocol::parse(protocol).map(Self::Protocol);
        }
        if let Some(number) = protocol::named(text) {
            return Ok(Self::Protocol(number));
        }
        let expected = || {
            let near = (!text.contains('/'))
                .then(|| protocol::nearest(text))
                .flatten();
            near.map_or_else(
                || {
                    format!(
                        "{text:?} is not a port; use the form \"tcp/443\", \"udp/5000-5010\", \"sctp/3868\", \"icmp\", \"ip/112\" (an IP protocol) or \"any\""
                    )
                },
                |near| format!("{text:?} is not a port; did you mean \"ip/{near}\"?"),
            )
        };
        let (protocol, range) = text.split_once('/').ok_or_else(expected)?;
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let port = |digits: &str| match digits.parse::<u16>() {
            Ok(port) if port > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(format!(
                "{digits:?} in {text:?} is not a port number; write one from 1 to 65535"
            )),
        };
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(format!(
                "the range {text:?} is reversed; write \"{protocol}/{last}-{first}\""
            ));
        }
        match protocol {
            "tcp" => Ok(Self::Tcp(first..=last)),
            "udp" => Ok(Self::Udp(first..=last)),
            "sctp" => Ok(Self::Sctp(first..=last)),
            _ => Err(expected()),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |out: &mut fmt::Formatter<'_>, protocol: &str, ports: &RangeInclusive<u16>| {
            if ports.start() == ports.end() {
                write!(out, "{protocol}/{}", ports.start())
            } else {
                write!(out, "{protocol}/{}-{}", ports.start(), ports.end())
            }
        };
        match self {
            Self::Tcp(ports) => range(out, "tcp", ports),
            Self::Udp(ports) => range(out, "udp", ports),
            Self::Sctp(ports) => range(out, "sctp", ports),
            Self::Icmp => out.write_str("icmp"),
            Self::Protocol(number) => write!(out, "ip/{number}"),
            Self::Any => out.write_str("any"),
        }
    }
}
