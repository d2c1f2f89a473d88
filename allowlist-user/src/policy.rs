//! Who may reach which service: the validated words that the rest of the program speaks.
//!
//! Invariants: a `Policy` made by `config` names only sources that exist, its names are unique and
//! in order, and no prefix has host bits set. Knows no file, no network, no clock and no kernel.

mod feed;
mod format;
mod protocol;
mod source;

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use allowlist_common::packet::{ICMP, ICMPV6, SCTP, TCP, UDP};
use ipnet::IpNet;
use serde::Serialize;

pub use feed::{Answer, Feed, Fetched, Held, PastChange, Snapshot, Validator};
pub use format::{Column, Condition, Csv, Format, Item, Json, Lines, Page, Pattern, Select, Xml};
pub use source::{
    Direction, Family, Gate, Http, Lookup, Origin, PerFamily, Secret, Source, is_loopback,
    public_url,
};

/// The longest name of a source or a service, in bytes.
pub const MAX_NAME_BYTES: usize = 63;

/// Whether a text can be the name of a source or a service: `a-z`, `0-9`, `-` and `_`, up to
/// [`MAX_NAME_BYTES`]. A name is also a file name, a metric's label and part of a line of the log.
pub fn is_name(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && text.bytes().all(is_plain)
}

/// Services and the sources that they name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// In order of name.
    pub services: Vec<Service>,
    /// In order of name.
    pub sources: Vec<Source>,
}

/// Ports that are protected, and the sources that reach them. All others are dropped there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The key under `[services]`.
    pub name: String,
    /// What it covers.
    pub ports: Vec<Ports>,
    /// Names of the interfaces that it is limited to; empty is all of them.
    pub interfaces: Vec<String>,
    /// Names of sources, as configured.
    pub allow: Vec<String>,
}

/// One entry of a service's `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// `"tcp/443"` or `"tcp/8443-8450"`.
    Tcp(RangeInclusive<u16>),
    /// `"udp/53"` or `"udp/5000-5010"`.
    Udp(RangeInclusive<u16>),
    /// `"sctp/3868"`.
    Sctp(RangeInclusive<u16>),
    /// `"icmp"`: queries of both families' ICMP, such as echo; errors are not a service.
    Icmp,
    /// `"ip/112"` or `"ip/vrrp"`: an IP protocol by number, with all its ports if it has any.
    Protocol(u8),
    /// `"any"`: every protocol and every port.
    Any,
}

/// Whether a verdict is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Drops are dropped.
    #[default]
    Enforce,
    /// Everything passes; decisions are counted as if they were carried out.
    Observe,
}

/// What a start does about sources of which there is no list yet: `at_start = "…"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AtStart {
    /// It filters when there is a list of each, and leaves all as it is till then.
    #[default]
    Wait,
    /// It filters at once; who is allowed by such a source is everybody till then.
    Pass,
    /// It filters at once; who is allowed by such a source is nobody till then.
    Drop,
}

/// What happens to traffic that no service covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultVerdict {
    /// It passes.
    #[default]
    Pass,
    /// It is dropped: a closed host.
    Drop,
}

/// What is let in besides the services, and how sources are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rules {
    /// For traffic that no service covers.
    pub default: DefaultVerdict,
    /// Which answers to this host pass where the default is to drop.
    pub return_traffic: ReturnTraffic,
    /// What keeps a host on its network.
    pub keep: Keep,
    /// What the kernel looks sources up in.
    pub lookup: Engine,
}

/// What the kernel looks sources up in. Verdicts are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// A table of address ranges: what random sources cannot slow down.
    #[default]
    RangeTable,
    /// The kernel's own longest-prefix-match tries: the reference, and for kernels that do not take the other.
    LpmTrie,
}

/// Which answers to this host's own traffic pass with `default = "drop"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReturnTraffic {
    /// Those to flows that this host was seen to send.
    #[default]
    Track,
    /// TCP segments that do not open a connection, whoever sends them.
    Established,
    /// None.
    Off,
}

/// `[keep]`: what passes whatever the policy says. What is off is judged like anything else; frames
/// without IP are dropped then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the file")]
pub struct Keep {
    /// ARP.
    pub arp: bool,
    /// IPv6 neighbour and router discovery, from the same link.
    pub neighbour_discovery: bool,
    /// ICMP and ICMPv6 errors, path MTU included.
    pub icmp_errors: bool,
    /// Answers of DHCP and DHCPv6 servers.
    pub dhcp: bool,
    /// IGMP and MLD.
    pub multicast: bool,
    /// All other frames without IP, such as LLDP.
    pub not_ip: bool,
}

impl Mode {
    /// The word of the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }
}

impl AtStart {
    /// The prefixes that stand in for a list that is missing.
    pub fn stand_in(self) -> Vec<IpNet> {
        match self {
            Self::Pass => ["0.0.0.0/0", "::/0"]
                .map(|prefix| prefix.parse().expect("it is a prefix"))
                .to_vec(),
            Self::Wait | Self::Drop => Vec::new(),
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            default: DefaultVerdict::default(),
            return_traffic: ReturnTraffic::default(),
            keep: Keep::ALL,
            lookup: Engine::default(),
        }
    }
}

impl Rules {
    /// Whether what this host sends has to be noted.
    pub fn tracks(&self) -> bool {
        self.default == DefaultVerdict::Drop && self.return_traffic == ReturnTraffic::Track
    }
}

impl Keep {
    /// The default.
    pub const ALL: Self = Self {
        arp: true,
        neighbour_discovery: true,
        icmp_errors: true,
        dhcp: true,
        multicast: true,
        not_ip: true,
    };
}

impl Service {
    /// Whether it protects its ports on that interface.
    pub fn is_on(&self, interface: &str) -> bool {
        self.interfaces.is_empty() || self.interfaces.iter().any(|name| name == interface)
    }
}

impl Policy {
    /// The source of that name.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.name == name)
    }

    /// The first service that allows a source, in order of name.
    pub fn user_of(&self, source: &Source) -> Option<&Service> {
        self.services
            .iter()
            .find(|service| service.allow.contains(&source.name))
    }

    /// The sources that some service allows: the others are not fetched.
    pub fn used_sources(&self) -> impl Iterator<Item = &Source> {
        self.sources
            .iter()
            .filter(|source| self.user_of(source).is_some())
    }

    /// The policy with each service's interfaces under the names by which they are filtered: an interface can have
    /// several names, and two names are the same interface if they have the same index.
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
    /// Whether it covers any port in a range of TCP or UDP (`protocol`).
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

    /// The IP protocol; `None` for ICMP of both families and for `any`.
    pub const fn protocol(&self) -> Option<u8> {
        match self {
            Self::Tcp(_) => Some(TCP),
            Self::Udp(_) => Some(UDP),
            Self::Sctp(_) => Some(SCTP),
            Self::Protocol(number) => Some(*number),
            Self::Icmp | Self::Any => None,
        }
    }

    /// Whether it covers an IP protocol, at least in part.
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

    /// Errors say what would be right.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "icmp" => return Ok(Self::Icmp),
            "any" => return Ok(Self::Any),
            // Either one port or the whole protocol could be meant.
            "tcp" | "udp" | "sctp" => {
                return Err(format!(
                    "{text:?} is not a port; write one such as \"{text}/443\", or \"ip/{text}\" for every port"
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
                        "{text:?} is not a port; write \"tcp/443\", \"udp/5000-5010\", \"sctp/3868\", \"icmp\", \"ip/112\" (an IP protocol) or \"any\""
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
                "{text:?} runs backwards; write \"{protocol}/{last}-{first}\""
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
