//! Bytes to prefixes: what a vendor's URL or an operator's file holds.
//!
//! Invariants: a list is taken whole or not at all; what comes back is sorted and distinct, has no
//! host bits set and is not wider than a vendor could mean. A token is judged as a whole: no address
//! is ever looked for inside other text. Knows no network, no file and no clock.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use jiff::civil::Date;
use scraper::{Html, Selector};
use serde_json::Value;
use thiserror::Error;

use crate::policy::{Format, Pattern};

/// No vendor calls from more of the IPv4 internet than this: a wider prefix in a feed is a mistake.
const WIDEST_V4: u8 = 8;
/// The same for IPv6.
const WIDEST_V6: u8 = 16;
/// As much of a vendor's text as an error repeats.
const SHOWN_CHARS: usize = 60;

/// What bytes hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Sorted, distinct.
    pub prefixes: Vec<IpNet>,
    /// What the operator should know of it, such as rows that are about to go.
    pub notes: Vec<String>,
}

/// Reads a list. `today` decides about rows that say until when they are good.
pub fn parse(format: &Format, bytes: &[u8], today: Date) -> Result<List, FeedError> {
    let _ = today;
    let prefixes = match format {
        Format::Text => parse_lines(bytes)?,
        _ => parse_json_array(bytes)?,
    };
    Ok(List {
        prefixes,
        notes: Vec::new(),
    })
}

/// A JSON array of strings, each of which is an address or a prefix.
pub fn parse_json_array(bytes: &[u8]) -> Result<Vec<IpNet>, FeedError> {
    let text = list_text(bytes)?;
    let items = match serde_json::from_str(text).map_err(|error| json_error(text, &error))? {
        Value::Array(items) => items,
        other => {
            return Err(FeedError::NotAnArray {
                found: describe(&other),
            });
        }
    };
    let tokens = items.iter().enumerate().map(|(index, item)| {
        let place = Place::Item(index);
        match item {
            Value::String(token) => Ok((place, token.as_str())),
            other => Err(FeedError::NotAString {
                place,
                found: describe(other),
            }),
        }
    });
    collect(tokens)
}

/// An address or a prefix a line; `#` starts a comment.
pub fn parse_lines(bytes: &[u8]) -> Result<Vec<IpNet>, FeedError> {
    let text = list_text(bytes)?;
    let tokens = text.lines().enumerate().filter_map(|(index, line)| {
        let (line, _comment) = line.split_once('#').unwrap_or((line, ""));
        let token = line.trim();
        (!token.is_empty()).then_some(Ok((Place::Line(index + 1), token)))
    });
    collect(tokens)
}

/// One address (`203.0.113.9` is `203.0.113.9/32`) or prefix, and nothing around it.
pub fn parse_prefix(token: &str) -> Result<IpNet, PrefixError> {
    let (address, length) = match token.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (token, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(not_a_prefix(token));
    };
    let max = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => max,
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            match digits.parse::<u8>() {
                Ok(length) if length <= max => length,
                _ if glued(token).is_some() => return Err(not_a_prefix(token)),
                _ => {
                    return Err(PrefixError::TooLong {
                        token: shown(token),
                        max,
                    });
                }
            }
        }
        Some(mask) => match mask.parse().map(ipnet::ipv4_mask_to_prefix) {
            Ok(Ok(length)) => {
                return Err(PrefixError::Netmask {
                    token: shown(token),
                    length,
                });
            }
            _ => return Err(not_a_prefix(token)),
        },
    };
    check_prefix(IpNet::new_assert(address, length))
}

/// What `parse_prefix` asks of a prefix beyond its spelling.
pub fn check_prefix(prefix: IpNet) -> Result<IpNet, PrefixError> {
    if let IpNet::V6(v6) = prefix
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(length) = v6.prefix_len().checked_sub(96)
    {
        let meant = Ipv4Net::new_assert(v4, length).trunc();
        return Err(PrefixError::Mapped { prefix, meant });
    }
    if prefix != prefix.trunc() {
        return Err(PrefixError::HostBits {
            prefix,
            network: prefix.trunc(),
            address: prefix.addr().into(),
        });
    }
    Ok(prefix)
}

/// Why a list was refused; none of it was taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FeedError {
    /// Zero bytes, or nothing but white space.
    #[error("is empty; a list names at least one prefix: check where it comes from")]
    Empty,
    /// An error page, a login page, a challenge, the human-readable page about the list.
    #[error(
        "got a web page, not a list: {start:?}; use the address of the list itself, and open it in \
         a browser to see what the page says"
    )]
    WebPage {
        /// Its first characters.
        start: String,
    },
    /// Compressed, encrypted or binary.
    #[error("is not text: byte {at} is not UTF-8; use an address that answers with plain UTF-8")]
    NotText {
        /// Offset of the first byte that is not UTF-8.
        at: usize,
    },
    /// The JSON stops before its end.
    #[error("breaks off after {length} bytes; the transfer was cut short: try again")]
    Truncated {
        /// How much there was.
        length: usize,
    },
    /// Not JSON at all.
    #[error(
        "is not JSON: {problem}: the text starts with {start:?}; it must be an array of strings \
         such as [\"192.0.2.1\", \"198.51.100.0/24\"]"
    )]
    NotJson {
        /// The parser's words, with line and column.
        problem: String,
        /// Its first characters.
        start: String,
    },
    /// JSON of another shape.
    #[error(
        "is {found}, not an array; it must be an array of strings such as \
         [\"192.0.2.1\", \"198.51.100.0/24\"]"
    )]
    NotAnArray {
        /// What it is instead.
        found: String,
    },
    /// An array with something else in it.
    #[error("{place}: is {found}, not a string; each item must be an address or a prefix")]
    NotAString {
        /// Which item.
        place: Place,
        /// What it is instead.
        found: String,
    },
    /// Well-formed, and names nobody.
    #[error("names no prefix; a list names at least one: check where it comes from")]
    NoPrefixes,
    /// An item that is not a prefix.
    #[error("{place}: {error}")]
    Prefix {
        /// Where it stands.
        place: Place,
        /// What is wrong with it.
        error: PrefixError,
    },
    /// A prefix that would open the door to much of the internet.
    #[error(
        "{place}: {prefix} is wider than a feed may be trusted with (IPv4 /{WIDEST_V4}, IPv6 \
         /{WIDEST_V6}); if it is meant, write it under `prefixes` in the configuration"
    )]
    TooWide {
        /// Where it stands.
        place: Place,
        /// The prefix.
        prefix: IpNet,
    },
    /// A page without the link that was looked for.
    #[error("has no link that {pattern:?} matches; open it in a browser, and correct `discover`")]
    NoLink {
        /// What was looked for.
        pattern: String,
    },
    /// A page with several.
    #[error(
        "has links to {first:?} and {second:?}, which {pattern:?} both matches; make `discover` match one"
    )]
    ManyLinks {
        /// What was looked for.
        pattern: String,
        /// One of them.
        first: String,
        /// Another.
        second: String,
    },
}

/// Why a token is not a prefix. Says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PrefixError {
    /// No address and no prefix.
    #[error(
        "{token:?} is not a prefix; write one such as \"203.0.113.0/24\", \"2001:db8::/32\" or \
         \"203.0.113.9\""
    )]
    NotAPrefix {
        /// What was found, shortened.
        token: String,
    },
    /// Two prefixes without a separator, as a missing newline leaves them.
    #[error(
        "{token:?} is not a prefix: it looks like {first:?} and {second:?} run together; separate them"
    )]
    Glued {
        /// What was found, shortened.
        token: String,
        /// What it starts with.
        first: String,
        /// What it ends with.
        second: String,
    },
    /// More bits than an address has.
    #[error(
        "{token:?} is not a prefix: its length is more than {max}; write one from /0 to /{max}"
    )]
    TooLong {
        /// What was found, shortened.
        token: String,
        /// Bits of an address of this family.
        max: u8,
    },
    /// `192.0.2.0/255.255.255.0`.
    #[error("{token:?} is not a prefix: it has a netmask; write /{length} instead")]
    Netmask {
        /// What was found, shortened.
        token: String,
        /// The same as a length.
        length: u8,
    },
    /// Either a network or an address was meant, and only its author knows which.
    #[error(
        "\"{prefix}\" has host bits set; write \"{network}\" for the network or \"{address}\" for the one address"
    )]
    HostBits {
        /// As written.
        prefix: IpNet,
        /// With the host bits cleared.
        network: IpNet,
        /// The address alone.
        address: IpNet,
    },
    /// `::ffff:192.0.2.1`: no packet on the wire carries such a source.
    #[error("\"{prefix}\" is IPv4 written as IPv6, which no packet carries; write \"{meant}\"")]
    Mapped {
        /// As written.
        prefix: IpNet,
        /// The IPv4 form.
        meant: Ipv4Net,
    },
}

/// Where in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Counted from 1, as editors do.
    Line(usize),
    /// Counted from 0, as JSON paths do.
    Item(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(out, "line {number}"),
            Self::Item(index) => write!(out, "$[{index}]"),
        }
    }
}

fn collect<'t>(
    tokens: impl Iterator<Item = Result<(Place, &'t str), FeedError>>,
) -> Result<Vec<IpNet>, FeedError> {
    let mut prefixes = tokens
        .map(|token| {
            let (place, token) = token?;
            let prefix = parse_prefix(token).map_err(|error| FeedError::Prefix { place, error })?;
            let widest = if prefix.addr().is_ipv4() {
                WIDEST_V4
            } else {
                WIDEST_V6
            };
            if prefix.prefix_len() < widest {
                return Err(FeedError::TooWide { place, prefix });
            }
            Ok(prefix)
        })
        .collect::<Result<Vec<_>, _>>()?;
    if prefixes.is_empty() {
        return Err(FeedError::NoPrefixes);
    }
    prefixes.sort_unstable();
    prefixes.dedup();
    Ok(prefixes)
}

/// What can be told before the format matters.
fn list_text(bytes: &[u8]) -> Result<&str, FeedError> {
    let text = str::from_utf8(bytes).map_err(|e| FeedError::NotText {
        at: e.valid_up_to(),
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.trim_start().chars().next() {
        None => Err(FeedError::Empty),
        Some('<') => Err(FeedError::WebPage {
            start: shown(text.trim()),
        }),
        Some(_) => Ok(text),
    }
}

fn json_error(text: &str, error: &serde_json::Error) -> FeedError {
    if error.is_eof() {
        FeedError::Truncated { length: text.len() }
    } else {
        FeedError::NotJson {
            problem: error.to_string(),
            start: shown(text.trim()),
        }
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(value) => format!("the string {:?}", shown(value)),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(members) if members.is_empty() => "an object without keys".to_owned(),
        Value::Object(members) => {
            let keys: Vec<_> = members
                .keys()
                .take(3)
                .map(|key| format!("{:?}", shown(key)))
                .collect();
            let more = if members.len() > keys.len() {
                ", …"
            } else {
                ""
            };
            format!("an object with the keys {}{more}", keys.join(", "))
        }
    }
}

fn not_a_prefix(token: &str) -> PrefixError {
    match glued(token) {
        Some((first, second)) => PrefixError::Glued {
            token: shown(token),
            first: first.to_owned(),
            second: second.to_owned(),
        },
        None => PrefixError::NotAPrefix {
            token: shown(token),
        },
    }
}

/// The halves of `131.0.72.0/222400:cb00::/32`. Only for an error's wording: neither half is used.
fn glued(token: &str) -> Option<(&str, &str)> {
    let is_prefix = |text: &str| {
        text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok_and(|p| p == p.trunc())
    };
    // Longer than any two prefixes: not worth a search that is quadratic in the length.
    (token.len() <= 100 && token.is_ascii())
        .then(|| (1..token.len()).rev().map(|at| token.split_at(at)))?
        .find(|(first, second)| is_prefix(first) && is_prefix(second))
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The one link on a page whose address matches, as it is written there.
pub fn find_link(bytes: &[u8], pattern: &Pattern) -> Result<String, FeedError> {
    let page = Html::parse_document(&String::from_utf8_lossy(bytes));
    let links = Selector::parse("a[href]").expect("it is a selector");
    let links = page
        .select(&links)
        .filter_map(|link| link.value().attr("href"))
        .map(str::trim)
        .filter(|link| pattern.is_match(link))
        .collect::<BTreeSet<_>>();
    let pattern = pattern.as_str().to_owned();
    let mut links = links.into_iter();
    match (links.next(), links.next()) {
        (Some(link), None) => Ok(link.to_owned()),
        (None, _) => Err(FeedError::NoLink { pattern }),
        (Some(first), Some(second)) => Err(FeedError::ManyLinks {
            pattern,
            first: shown(first),
            second: shown(second),
        }),
    }
}

#[cfg(test)]
mod tests;
