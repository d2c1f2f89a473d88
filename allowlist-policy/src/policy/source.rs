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

/// A source: a named list of prefixes, with its origin, the options of fetching it and the requirements of the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The name of the source: its key under `[sources]`.
    pub name: String,
    /// The origin of the prefixes.
    pub origin: Origin,
    /// The provider of the catalogue that defines the source; `None` if the configuration defines it.
    pub provider: Option<String>,
    /// The codes of the provider's regions that the configuration selects; empty for the default regions.
    pub regions: Vec<String>,
    /// The direction of the connections that the vendor's list documents.
    pub direction: Direction,
    /// The interval at which the list is fetched.
    pub every: Duration,
    /// The requirements that the gate checks before it accepts a list.
    pub gate: Gate,
    /// The grace period: how long prefixes that leave the list stay active.
    pub grace: Duration,
    /// The time since the last successful fetch after which the list is stale. A stale list stays active.
    pub max_age: Duration,
    /// A warning that the operator is shown whenever the source is used; `None` if there is nothing to warn about.
    pub warning: Option<String>,
}

/// The direction of the connections that a vendor's list documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The listed addresses connect to this host.
    #[default]
    Inbound,
    /// This host connects to the listed addresses.
    Outbound,
    /// The list is for both directions, or the operator accepts either direction.
    Any,
}

/// Where the prefixes of a source come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Prefixes in the configuration itself: `prefixes = […]`.
    Prefixes(Vec<IpNet>),
    /// A local file: `file = "…"`.
    File {
        /// The path of the list's file.
        path: PathBuf,
        /// The format of the list in the file.
        format: Format,
    },
    /// Lists behind one or several URLs: `url = "…"`.
    Http(Http),
    /// The current addresses of DNS names: `names = […]`.
    Names(Lookup),
    /// Prefixes that operators add by command; the daemon stores them.
    Added,
    /// A list that is compiled into the program.
    BuiltIn {
        /// The prefixes of the built-in list.
        prefixes: Vec<IpNet>,
        /// The day on which the built-in list was last compared with the vendor's page.
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
    /// The URLs whose lists are merged; at least one. Each is https, or http to loopback, unless `allow_plain_http` is
    /// set.
    pub urls: Vec<Url>,
    /// The format of the list in each response body.
    pub format: Format,
    /// The pattern that finds the link to the list in a web page, if `urls` are such pages; `None` if `urls` are the
    /// lists themselves.
    pub discover: Option<Pattern>,
    /// Whether the link with the latest date is followed if `discover` matches several links; if false, several are an
    /// error.
    pub newest: bool,
    /// The patterns that select files of a ZIP archive by name; each must match a file. Empty if the response is no
    /// archive.
    pub unzip: Vec<Pattern>,
    /// The names and values of the additional headers of each request. Values may be secret.
    pub headers: Vec<(String, Secret)>,
    /// The path of the file with the token that is sent as `Authorization: Bearer …`; `None` to send no token.
    pub bearer_file: Option<PathBuf>,
    /// Whether plain HTTP to hosts other than loopback is allowed.
    pub allow_plain_http: bool,
    /// The path of a file with PEM certificates to trust, in addition to those of the system unless `ca_only` is set;
    /// `None` to trust only those of the system.
    pub ca_file: Option<PathBuf>,
    /// Whether only the certificates of `ca_file` are trusted, and not those of the system.
    pub ca_only: bool,
    /// Whether redirects and links of a public server may lead to a private address; if false, the fetch then fails.
    pub allow_private: bool,
    /// The timeout of one request with its redirects, from connecting to the last byte of the body.
    pub timeout: Duration,
    /// The maximum size of a response body in bytes, before and after decompression; a larger one is an error.
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

/// The options of a source that resolves DNS names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The DNS names to resolve, fully qualified, in lower case; empty only if there are wildcards.
    pub names: Vec<String>,
    /// The names below which all names are meant, as the egress policy learns them from answers: `example.net` for
    /// `*.example.net`.
    pub wildcards: Vec<String>,
    /// Whether the egress policy allows the addresses that resolvers answer to programs for these names; if false, only
    /// those that the daemon resolves.
    pub believes_answers: bool,
    /// The address families to resolve; at least one, in the order IPv4, IPv6.
    pub families: Vec<Family>,
    /// The name servers to query; empty to use those of this host.
    pub resolvers: Vec<SocketAddr>,
    /// The minimum time between two resolutions, for records with a shorter time to live.
    pub ttl_floor: Duration,
    /// The timeout of all queries together.
    pub timeout: Duration,
}

/// A string that must not appear in output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

/// The requirements that the gate checks before it accepts a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The minimum number of prefixes in the list; 0 allows an empty list.
    pub min: usize,
    /// The maximum number of prefixes in the list; `None` for no maximum.
    pub max: Option<usize>,
    /// The prefixes that the list must cover; empty for no such requirement.
    pub must_cover: Vec<IpNet>,
    /// The minimum length of an IPv4 prefix; a shorter one covers more addresses and is rejected.
    pub min_prefix_len_v4: u8,
    /// The minimum length of an IPv6 prefix; a shorter one covers more addresses and is rejected.
    pub min_prefix_len_v6: u8,
    /// Whether the list may have private, documentation and other special-use addresses; if false, a list with one is
    /// rejected.
    pub allow_special_use: bool,
    /// The maximum part of the covered addresses that the list may lose, in thousandths; a larger loss is rejected,
    /// except that of few prefixes of a small list.
    pub max_shrink: u16,
    /// The maximum gain of covered addresses, in thousandths of the earlier number: 1000 allows a list to double. Small
    /// gains are always allowed.
    pub max_growth: u32,
    /// The time over which `max_shrink` and `max_growth` limit all changes together: a new list is compared with the
    /// list that was active this long ago, besides the last list. `max_growth` also compares with the smallest number
    /// of addresses that were active in this time.
    pub growth_window: Duration,
    /// The maximum number of addresses that the list and its grace prefixes may cover.
    pub max_addresses: PerFamily,
    /// The number of covered addresses from which the list gets a note for the operator.
    pub notable_addresses: PerFamily,
}

/// Two numbers of addresses, one for each address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerFamily {
    /// The number of IPv4 addresses.
    pub v4: u128,
    /// The number of IPv6 addresses.
    pub v6: u128,
}

impl PerFamily {
    /// The number of addresses in use: all of IPv4, and the IPv6 block for global unicast, `2000::/3`.
    pub const ALL: Self = Self {
        v4: 1 << 32,
        v6: 1 << 125,
    };

    /// Returns, for each family, the smaller number of `self` and `other`.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self {
            v4: self.v4.min(other.v4),
            v6: self.v6.min(other.v6),
        }
    }
}

impl Source {
    /// The default of `every`, the interval of fetching.
    pub const EVERY: Duration = Duration::from_hours(1);
    /// The default of `grace`, the grace period of removed prefixes.
    pub const GRACE: Duration = Duration::from_hours(24);
    /// The maximum of `grace` that the configuration may set.
    pub const LONGEST_GRACE: Duration = Duration::from_hours(24 * 365);
    /// The default of `max_age`, the age at which a list is stale.
    pub const MAX_AGE: Duration = Duration::from_hours(24 * 14);
    /// The default of `max_age` for built-in lists, which age until the program is upgraded.
    pub const MAX_AGE_BUILT_IN: Duration = Duration::from_hours(24 * 180);

    /// Returns a source with this name and origin, and the defaults for all other fields.
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

    /// Returns whether the source's list can become stale.
    pub fn can_age(&self) -> bool {
        !matches!(self.origin, Origin::Prefixes(_) | Origin::Added)
    }

    /// Returns whether the source's list can change without a change of the configuration or of the program.
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

/// Describes the origin for display, without credentials: a path, URLs, names, or where the list is stored.
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
            Self::Names(lookup) => write!(out, "the addresses of {}", lookup.patterns().join(", ")),
            Self::BuiltIn { checked, .. } => {
                write!(out, "the list compiled in, as published on {checked}")
            }
        }
    }
}

impl Http {
    /// The default of `timeout` of a request.
    pub const TIMEOUT: Duration = Duration::from_secs(30);
    /// The default of `max_size`, in bytes.
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

    /// Returns whether the list's format (JSON, XML, ZIP) marks its own end, so that a truncated body never parses.
    pub fn has_own_end(&self) -> bool {
        !self.unzip.is_empty() || matches!(self.format, Format::Json(_) | Format::Xml(_))
    }
}

impl Lookup {
    /// The default of `ttl_floor`, the minimum time between two resolutions.
    pub const TTL_FLOOR: Duration = Duration::from_secs(30);
    /// The default of `timeout` for all queries of one fetch.
    pub const TIMEOUT: Duration = Duration::from_secs(10);

    /// Returns the options to resolve `names`, with the defaults for all other fields.
    pub fn new(names: Vec<String>) -> Self {
        Self {
            names,
            wildcards: Vec::new(),
            believes_answers: true,
            families: Family::ALL.to_vec(),
            resolvers: Vec::new(),
            ttl_floor: Self::TTL_FLOOR,
            timeout: Self::TIMEOUT,
        }
    }
}

impl Lookup {
    /// Returns the names and the wildcards as the configuration has them.
    pub fn patterns(&self) -> Vec<String> {
        let wildcards = self.wildcards.iter().map(|name| format!("*.{name}"));
        self.names.iter().cloned().chain(wildcards).collect()
    }
}

impl Family {
    /// Both address families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the address family of `prefix`.
    pub fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// Returns the family's name for display: `IPv4` or `IPv6`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Returns the family's name in the configuration: `ipv4` or `ipv6`.
    pub fn key(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// Returns the other address family: IPv6 for IPv4, and IPv4 for IPv6.
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

/// Returns `url` for display, without the parts that may be secret: credentials, query and fragment.
pub fn public_url(url: &Url) -> String {
    let mut url = url.clone();
    // These fail for URLs that cannot have credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

/// Returns whether the host of `url` is a loopback address or `localhost`.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
