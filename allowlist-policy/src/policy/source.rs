//! A source: the origin of its prefixes, the options of fetching, and the requirements of the gate.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::format::{Format, Pattern};

/// A named origin of prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The key under `[sources]`.
    pub name: String,
    /// The origin of the prefixes.
    pub origin: Origin,
    /// The provider of the catalogue that defines the source, if any.
    pub provider: Option<String>,
    /// The codes of the configured regions of the provider; empty for the default regions.
    pub regions: Vec<String>,
    /// The direction of the connections that the list documents.
    pub direction: Direction,
    /// The interval of fetching.
    pub every: Duration,
    /// The requirements for a list to be accepted.
    pub gate: Gate,
    /// The grace period of prefixes that leave the list.
    pub grace: Duration,
    /// The age at which a list is stale. A stale list stays active.
    pub max_age: Duration,
    /// A warning for the operator whenever the source is used.
    pub warning: Option<String>,
}

/// The direction of the connections that a list documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The addresses connect to this host.
    #[default]
    Inbound,
    /// This host connects to the addresses.
    Outbound,
    /// The list is for both directions, or the operator accepts either.
    Any,
}

/// The origin of a source's prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The prefixes in the configuration: `prefixes = […]`.
    Prefixes(Vec<IpNet>),
    /// A file: `file = "…"`.
    File {
        /// The path of the file.
        path: PathBuf,
        /// The format of the file.
        format: Format,
    },
    /// One or several URLs: `url = "…"`.
    Http(Http),
    /// DNS names: `names = […]`.
    Names(Lookup),
    /// Prefixes added by command; see `additions`.
    Added,
    /// A built-in list, from the vendor's page of the day `checked`.
    BuiltIn {
        /// The prefixes of the list.
        prefixes: Vec<IpNet>,
        /// The day on which the list was last compared with the vendor's page.
        checked: Date,
    },
}

/// The options of fetching a feed over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a key of the configuration"
)]
pub struct Http {
    /// The URLs whose lists are merged; at least one. https, or http to loopback, unless `allow_plain_http`.
    pub urls: Vec<Url>,
    /// The format of the bodies.
    pub format: Format,
    /// The pattern of the link to each list; `None` if the URLs are those of the lists and not of pages.
    pub discover: Option<Pattern>,
    /// Whether to follow the link with the latest date if several links match.
    pub newest: bool,
    /// Patterns that select files of a ZIP archive by name; each must select one. Empty if the list is no archive.
    pub unzip: Vec<Pattern>,
    /// The headers of each request. Values may be secret.
    pub headers: Vec<(String, Secret)>,
    /// The file with the token for `Authorization: Bearer …`.
    pub bearer_file: Option<PathBuf>,
    /// Whether plain HTTP to other hosts is allowed.
    pub allow_plain_http: bool,
    /// A file with PEM certificates to trust in addition to those of the system.
    pub ca_file: Option<PathBuf>,
    /// Whether only the certificates of `ca_file` are trusted.
    pub ca_only: bool,
    /// Whether a public URL may redirect or resolve to a private address.
    pub allow_private: bool,
    /// The timeout of a request, from connect to the last byte.
    pub timeout: Duration,
    /// The maximum size of a body after decompression.
    pub max_bytes: u64,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 (A records).
    V4,
    /// IPv6 (AAAA records).
    V6,
}

/// The options of resolving names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The fully qualified names; at least one.
    pub names: Vec<String>,
    /// The families to resolve; at least one, in the order IPv4, IPv6.
    pub families: Vec<Family>,
    /// The name servers to query; empty for those of this host.
    pub resolvers: Vec<SocketAddr>,
    /// The minimum interval of queries, for records with a shorter time to live.
    pub ttl_floor: Duration,
    /// The timeout of all queries together.
    pub timeout: Duration,
}

/// A string that must not appear in output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

/// The requirements for a list to be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The minimum number of prefixes.
    pub min: usize,
    /// The maximum number of prefixes.
    pub max: Option<usize>,
    /// The prefixes that the list must cover.
    pub must_cover: Vec<IpNet>,
    /// The minimum length of IPv4 prefixes.
    pub min_prefix_len_v4: u8,
    /// The minimum length of IPv6 prefixes.
    pub min_prefix_len_v6: u8,
    /// Whether private, documentation and other special-use addresses are allowed.
    pub allow_special_use: bool,
    /// The maximum loss of covered addresses, in thousandths.
    pub max_shrink: u16,
    /// The maximum gain of covered addresses, in thousandths: 1000 doubles a list.
    pub max_growth: u32,
    /// The age of the older list that `max_shrink` and `max_growth` compare with, besides the last list. `max_growth`
    /// also compares with the smallest number of addresses that were active in this time.
    pub growth_window: Duration,
    /// The maximum number of addresses that the list may cover.
    pub max_addresses: PerFamily,
    /// A list that covers at least this many addresses gets a note.
    pub notable_addresses: PerFamily,
}

/// A number of addresses for each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerFamily {
    /// The number for IPv4.
    pub v4: u128,
    /// The number for IPv6.
    pub v6: u128,
}

impl PerFamily {
    /// The size of each family: all of IPv4, and the part of IPv6 that is assigned for global unicast, `2000::/3`.
    pub const ALL: Self = Self {
        v4: 1 << 32,
        v6: 1 << 125,
    };

    /// Returns the smaller number of each family.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self {
            v4: self.v4.min(other.v4),
            v6: self.v6.min(other.v6),
        }
    }
}

impl Source {
    /// The default of `every`.
    pub const EVERY: Duration = Duration::from_hours(1);
    /// The default of `grace`.
    pub const GRACE: Duration = Duration::from_hours(24);
    /// The maximum of `grace`.
    pub const LONGEST_GRACE: Duration = Duration::from_hours(24 * 365);
    /// The default of `max_age`.
    pub const MAX_AGE: Duration = Duration::from_hours(24 * 14);
    /// The default of `max_age` for built-in lists, which age with the program.
    pub const MAX_AGE_BUILT_IN: Duration = Duration::from_hours(24 * 180);

    /// Returns a source with this name and origin, and defaults for all other fields.
    pub fn new(name: &str, origin: Origin) -> Self {
        // Local lists are the operator's own, and often contain private networks.
        let is_own = matches!(
            origin,
            Origin::File { .. } | Origin::Prefixes(_) | Origin::Added
        );
        let max_age = match origin {
            Origin::BuiltIn { .. } => Self::MAX_AGE_BUILT_IN,
            _ => Self::MAX_AGE,
        };
        Self {
            name: name.to_owned(),
            provider: None,
            regions: Vec::new(),
            direction: Direction::default(),
            every: Self::EVERY,
            gate: Gate {
                allow_special_use: is_own,
                // Name servers rotate their answers: an answer may share no address with the next.
                max_shrink: match origin {
                    Origin::Names(_) => 1000,
                    _ => Gate::default().max_shrink,
                },
                ..Gate::default()
            },
            // A removed line of a local list is intended.
            grace: if is_own { Duration::ZERO } else { Self::GRACE },
            max_age,
            warning: None,
            origin,
        }
    }

    /// Returns whether the list can become stale.
    pub fn can_age(&self) -> bool {
        !matches!(self.origin, Origin::Prefixes(_) | Origin::Added)
    }

    /// Returns whether the list can change without a change of the configuration or of the program.
    pub fn can_change(&self) -> bool {
        !matches!(
            self.origin,
            Origin::Prefixes(_) | Origin::Added | Origin::BuiltIn { .. }
        )
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            min: 1,
            max: None,
            must_cover: Vec::new(),
            min_prefix_len_v4: Self::MIN_PREFIX_LEN_V4,
            min_prefix_len_v6: Self::MIN_PREFIX_LEN_V6,
            allow_special_use: false,
            max_shrink: 500,
            max_growth: 1000,
            growth_window: Self::GROWTH_WINDOW,
            max_addresses: PerFamily {
                v4: PerFamily::ALL.v4 / 50,
                v6: 1 << 112,
            },
            notable_addresses: PerFamily {
                v4: PerFamily::ALL.v4 / 100,
                v6: PerFamily::ALL.v6 / 100,
            },
        }
    }
}

impl Gate {
    /// The default of `min_prefix_len.v4`.
    pub const MIN_PREFIX_LEN_V4: u8 = 8;
    /// The default of `min_prefix_len.v6`.
    pub const MIN_PREFIX_LEN_V6: u8 = 20;
    /// The default of `growth_window`.
    pub const GROWTH_WINDOW: Duration = Duration::from_hours(24 * 7);
}

/// Describes the origin, without credentials.
impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefixes(_) => out.write_str("the configuration"),
            Self::Added => out.write_str("added by command"),
            Self::File { path, .. } => write!(out, "{}", path.display()),
            Self::Http(http) => {
                let urls: Vec<_> = http.urls.iter().map(public_url).collect();
                out.write_str(&urls.join(" and "))
            }
            Self::Names(lookup) => write!(out, "the addresses of {}", lookup.names.join(", ")),
            Self::BuiltIn { checked, .. } => {
                write!(out, "the list compiled in, as published on {checked}")
            }
        }
    }
}

impl Http {
    /// The default of `timeout`.
    pub const TIMEOUT: Duration = Duration::from_secs(30);
    /// The default of `max_size`.
    pub const MAX_BYTES: u64 = 4 << 20;

    /// Returns the options with these URLs and this format, and defaults for all other fields.
    pub fn new(urls: Vec<Url>, format: Format) -> Self {
        Self {
            urls,
            format,
            discover: None,
            newest: false,
            unzip: Vec::new(),
            headers: Vec::new(),
            bearer_file: None,
            allow_plain_http: false,
            ca_file: None,
            ca_only: false,
            allow_private: false,
            timeout: Self::TIMEOUT,
            max_bytes: Self::MAX_BYTES,
        }
    }

    /// Returns whether the format marks its end (JSON, XML, ZIP), so that a truncated body never parses.
    pub fn has_own_end(&self) -> bool {
        !self.unzip.is_empty() || matches!(self.format, Format::Json(_) | Format::Xml(_))
    }
}

impl Lookup {
    /// The default of `ttl_floor`.
    pub const TTL_FLOOR: Duration = Duration::from_secs(30);
    /// The default of `timeout`.
    pub const TIMEOUT: Duration = Duration::from_secs(10);

    /// Returns the options with these names, and defaults for all other fields.
    pub fn new(names: Vec<String>) -> Self {
        Self {
            names,
            families: Family::ALL.to_vec(),
            resolvers: Vec::new(),
            ttl_floor: Self::TTL_FLOOR,
            timeout: Self::TIMEOUT,
        }
    }
}

impl Family {
    /// Both families, in order.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of a prefix.
    pub fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// Returns the name for display.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Returns the name in the configuration.
    pub fn key(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// Returns the other family.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("(secret)")
    }
}

/// Returns the URL without its parts that may be secret (credentials, query, fragment), for display.
pub fn public_url(url: &Url) -> String {
    let mut url = url.clone();
    // These fail for URLs that cannot have credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

/// Returns whether the host of a URL is loopback.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
