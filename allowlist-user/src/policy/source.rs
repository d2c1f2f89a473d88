//! Where prefixes come from, how their bytes are read, and what is demanded of them.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::format::{Format, Pattern};

/// Where prefixes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The key under `[sources]`.
    pub name: String,
    /// How to get them.
    pub origin: Origin,
    /// The catalogue entry that filled this in, if one did.
    pub provider: Option<String>,
    /// The codes of the provider's regions that were asked for; empty is the usual ones.
    pub regions: Vec<String>,
    /// Who opens the connections that its addresses are for.
    pub direction: Direction,
    /// How long a feed is good for before it is fetched again.
    pub every: Duration,
    /// What a feed must fulfil to be taken.
    pub gate: Gate,
    /// How long a prefix that is not listed any more stays.
    pub grace: Duration,
    /// The age at which a list is called stale; nothing is dropped for it.
    pub max_age: Duration,
    /// What the operator should know about this source whenever it is used.
    pub warning: Option<String>,
}

/// Who opens the connections that a list's addresses are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// They connect to this host.
    #[default]
    Inbound,
    /// This host connects to them.
    Outbound,
    /// Both, or the operator says that it does not matter.
    Any,
}

/// How a source's prefixes are got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `prefixes = […]`.
    Prefixes(Vec<IpNet>),
    /// `file = "…"`.
    File {
        /// Where it is.
        path: PathBuf,
        /// How it is read.
        format: Format,
    },
    /// `url = "…"`.
    Http(Http),
    /// `names = […]`.
    Names(Lookup),
    /// What people let in by command; `additions` has it.
    Added,
    /// A list that is compiled in, from the vendor's page as it stood on `checked`.
    BuiltIn {
        /// The list.
        prefixes: Vec<IpNet>,
        /// The day on which somebody compared it with the vendor's page.
        checked: Date,
    },
}

/// How to fetch a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a key of the configuration"
)]
pub struct Http {
    /// At least one; the list is what all of them hold together. https, or http to loopback, unless
    /// `allow_plain_http`.
    pub urls: Vec<Url>,
    /// How what they hold is read.
    pub format: Format,
    /// The URLs are pages; the list is behind the one link on each whose address this matches.
    pub discover: Option<Pattern>,
    /// Of several such links, the one with the greatest date counts.
    pub newest: bool,
    /// Select the files of a ZIP archive by name, and each has to select one. Empty if the list is no archive.
    pub unzip: Vec<Pattern>,
    /// Sent with each request. Values may be secret.
    pub headers: Vec<(String, Secret)>,
    /// Holds a token to send as `Authorization: Bearer …`.
    pub bearer_file: Option<PathBuf>,
    /// Whether a list may come unprotected.
    pub allow_plain_http: bool,
    /// PEM certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether the certificates of `ca_file` are the only ones to trust.
    pub ca_only: bool,
    /// Whether a public server may lead to a private address.
    pub allow_private: bool,
    /// For each whole request, from connect to the last byte.
    pub timeout: Duration,
    /// A longer body (after decompression) is an error.
    pub max_bytes: u64,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4, which A records have.
    V4,
    /// IPv6, which AAAA records have.
    V6,
}

/// Which names to look up, and whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Fully qualified; at least one.
    pub names: Vec<String>,
    /// The families whose addresses count; at least one, in the order IPv4, IPv6.
    pub families: Vec<Family>,
    /// Whom to ask; empty is whom this host asks.
    pub resolvers: Vec<SocketAddr>,
    /// However short the records' time to live is, they are not asked for sooner again.
    pub ttl_floor: Duration,
    /// For all questions together.
    pub timeout: Duration,
}

/// What must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

/// What a feed must fulfil to become a source's prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The least number of prefixes.
    pub min: usize,
    /// The greatest number of prefixes.
    pub max: Option<usize>,
    /// What must be covered.
    pub must_cover: Vec<IpNet>,
    /// No IPv4 prefix may be shorter.
    pub min_prefix_len_v4: u8,
    /// No IPv6 prefix may be shorter.
    pub min_prefix_len_v6: u8,
    /// Whether private, documentation and other addresses that nobody calls from may be in it.
    pub allow_special_use: bool,
    /// The greatest part of the covered addresses that may go, in thousandths.
    pub max_shrink: u16,
    /// The greatest part of the covered addresses that may come, in thousandths: 1000 doubles a list.
    pub max_growth: u32,
    /// `max_shrink` and `max_growth` hold against the last list, and against the list of this long ago; `max_growth`
    /// also against the fewest addresses that were active since then.
    pub growth_window: Duration,
    /// The most addresses that the list may cover.
    pub max_addresses: PerFamily,
    /// A list that covers at least this many addresses gets a note.
    pub notable_addresses: PerFamily,
}

/// A number of addresses for each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerFamily {
    /// IPv4 addresses.
    pub v4: u128,
    /// IPv6 addresses.
    pub v6: u128,
}

impl PerFamily {
    /// The size of each family: all of IPv4, and the part of IPv6 that is assigned for global unicast, `2000::/3`.
    pub const ALL: Self = Self {
        v4: 1 << 32,
        v6: 1 << 125,
    };

    /// The smaller number of each family.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self {
            v4: self.v4.min(other.v4),
            v6: self.v6.min(other.v6),
        }
    }
}

impl Source {
    /// `every`, unless it is configured.
    pub const EVERY: Duration = Duration::from_hours(1);
    /// `grace`, unless it is configured.
    pub const GRACE: Duration = Duration::from_hours(24);
    /// The longest that `grace` may be.
    pub const LONGEST_GRACE: Duration = Duration::from_hours(24 * 365);
    /// `max_age`, unless it is configured.
    pub const MAX_AGE: Duration = Duration::from_hours(24 * 14);
    /// The same for a list that is compiled in, and gets older with the program.
    pub const MAX_AGE_BUILT_IN: Duration = Duration::from_hours(24 * 180);

    /// With defaults for all but its name and origin.
    pub fn new(name: &str, origin: Origin) -> Self {
        // What lies on this host is its owner's, whose networks are often private.
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
                // Name servers' answers take turns: all of one may be gone in the next.
                max_shrink: match origin {
                    Origin::Names(_) => 1000,
                    _ => Gate::default().max_shrink,
                },
                ..Gate::default()
            },
            // An owner who removes a line means it.
            grace: if is_own { Duration::ZERO } else { Self::GRACE },
            max_age,
            warning: None,
            origin,
        }
    }

    /// Whether its list can be older than it should be.
    pub fn can_age(&self) -> bool {
        !matches!(self.origin, Origin::Prefixes(_) | Origin::Added)
    }

    /// Whether it may have other prefixes later; those of the configuration and of the program do not.
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
    /// `min_prefix_len` of IPv4, unless it is configured.
    pub const MIN_PREFIX_LEN_V4: u8 = 8;
    /// `min_prefix_len` of IPv6, unless it is configured.
    pub const MIN_PREFIX_LEN_V6: u8 = 20;
    /// `growth_window`, unless it is configured.
    pub const GROWTH_WINDOW: Duration = Duration::from_hours(24 * 7);
}

/// In words, without credentials.
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
    /// `timeout`, unless it is configured.
    pub const TIMEOUT: Duration = Duration::from_secs(30);
    /// `max_size`, unless it is configured.
    pub const MAX_BYTES: u64 = 4 << 20;

    /// With defaults for all but the URLs and the format.
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

    /// Whether the format marks its own end (JSON, XML, ZIP), so that a truncated body never parses.
    pub fn has_own_end(&self) -> bool {
        !self.unzip.is_empty() || matches!(self.format, Format::Json(_) | Format::Xml(_))
    }
}

impl Lookup {
    /// `ttl_floor`, unless it is configured.
    pub const TTL_FLOOR: Duration = Duration::from_secs(30);
    /// `timeout`, unless it is configured.
    pub const TIMEOUT: Duration = Duration::from_secs(10);

    /// With defaults for all but the names.
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
    /// Both, in their order.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of a prefix.
    pub fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// As the configuration writes it.
    pub fn key(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// The other one.
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

/// The URL without what may be secret in it: for messages, logs and reports.
pub fn public_url(url: &Url) -> String {
    let mut url = url.clone();
    // These fail for URLs that cannot hold credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

/// Whether a request to this URL stays on this host.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
