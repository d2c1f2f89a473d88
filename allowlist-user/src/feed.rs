//! Bytes to prefixes: what a vendor's URL or an operator's file holds.
//!
//! Invariants: a list is taken whole or not at all; what comes back is sorted and distinct, has no
//! host bits set and is not wider than a vendor could mean. A token is judged as a whole: no address
//! is ever looked for inside other text. Knows no network, no file and no clock.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;
use thiserror::Error;

/// No vendor calls from more of the IPv4 internet than this: a wider prefix in a feed is a mistake.
const WIDEST_V4: u8 = 8;
/// The same for IPv6.
const WIDEST_V6: u8 = 16;
/// As much of a vendor's text as an error repeats.
const SHOWN_CHARS: usize = 60;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(parse: fn(&[u8]) -> Result<Vec<IpNet>, FeedError>, text: &str, expected: &str) {
        let answer = match parse(text.as_bytes()) {
            Ok(prefixes) => prefixes
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error.to_string(),
        };
        assert_eq!(answer, expected, "of {text:?}");
    }

    #[test]
    fn json_arrays() {
        let not_a_list = "must be an array of strings such as [\"192.0.2.1\", \"198.51.100.0/24\"]";
        let cases = [
            (
                r#"["198.51.100.7","192.0.2.0/24","2001:db8::/32","192.0.2.0/24"]"#,
                "192.0.2.0/24 198.51.100.7/32 2001:db8::/32",
            ),
            ("\u{feff} [\"192.0.2.1\"]\r\n", "192.0.2.1/32"),
            (r#"["10.0.0.0/8","2000::/16"]"#, "10.0.0.0/8 2000::/16"),
            (
                "",
                "is empty; a list names at least one prefix: check where it comes from",
            ),
            (
                " \r\n",
                "is empty; a list names at least one prefix: check where it comes from",
            ),
            (
                "[]",
                "names no prefix; a list names at least one: check where it comes from",
            ),
            (
                "<!DOCTYPE html>",
                "got a web page, not a list: \"<!DOCTYPE html>\"; use the address of the list \
                 itself, and open it in a browser to see what the page says",
            ),
            (
                r#"["192.0.2.1", "192.0"#,
                "breaks off after 20 bytes; the transfer was cut short: try again",
            ),
            (
                r#"{"a":1,"b":2,"c":3,"d":4}"#,
                &format!(
                    "is an object with the keys \"a\", \"b\", \"c\", …, not an array; it {not_a_list}"
                ),
            ),
            (
                "{}",
                &format!("is an object without keys, not an array; it {not_a_list}"),
            ),
            (
                "\"192.0.2.1\"",
                &format!("is the string \"192.0.2.1\", not an array; it {not_a_list}"),
            ),
            ("null", &format!("is null, not an array; it {not_a_list}")),
            (
                "192.0.2.1\n192.0.2.2\n",
                &format!(
                    "is not JSON: trailing characters at line 1 column 6: the text starts with \"192.0.2.1\\n192.0.2.2\"; it {not_a_list}"
                ),
            ),
            (
                "[\"192.0.2.1\"] x",
                &format!(
                    "is not JSON: trailing characters at line 1 column 15: the text starts with \"[\\\"192.0.2.1\\\"] x\"; it {not_a_list}"
                ),
            ),
            (
                "[\"192.0.2.1\", 7]",
                "$[1]: is the number 7, not a string; each item must be an address or a prefix",
            ),
            (
                "[[\"192.0.2.1\"]]",
                "$[0]: is an array, not a string; each item must be an address or a prefix",
            ),
            (
                r#"["192.0.2.1 "]"#,
                "$[0]: \"192.0.2.1 \" is not a prefix; write one such as \"203.0.113.0/24\", \
                 \"2001:db8::/32\" or \"203.0.113.9\"",
            ),
            (
                r#"["9.0.0.0/7", "8.0.0.0/7"]"#,
                "$[0]: \"9.0.0.0/7\" has host bits set; write \"8.0.0.0/7\" for the network or \
                 \"9.0.0.0/32\" for the one address",
            ),
            (
                r#"["8.0.0.0/7"]"#,
                "$[0]: 8.0.0.0/7 is wider than a feed may be trusted with (IPv4 /8, IPv6 /16); if it \
                 is meant, write it under `prefixes` in the configuration",
            ),
            (
                r#"["192.0.2.1", "2000::/15"]"#,
                "$[1]: 2000::/15 is wider than a feed may be trusted with (IPv4 /8, IPv6 /16); if it \
                 is meant, write it under `prefixes` in the configuration",
            ),
        ];
        for (text, expected) in cases {
            check(parse_json_array, text, expected);
        }
        assert_eq!(
            parse_json_array(b"[\"\xff\"]"),
            Err(FeedError::NotText { at: 2 })
        );
    }

    #[test]
    fn lines() {
        let cases = [
            (
                "# office\r\n\r\n  203.0.113.0/24\t# and the annex\r\n2001:db8::1\n203.0.113.0/24",
                "203.0.113.0/24 2001:db8::1/128",
            ),
            ("\u{feff}203.0.113.9", "203.0.113.9/32"),
            (
                "",
                "is empty; a list names at least one prefix: check where it comes from",
            ),
            (
                "# merged into another list\n",
                "names no prefix; a list names at least one: check where it comes from",
            ),
            (
                "203.0.113.0/24\n\n203.0.113.0/24 203.0.114.0/24\n",
                "line 3: \"203.0.113.0/24 203.0.114.0/24\" is not a prefix; write one such as \
                 \"203.0.113.0/24\", \"2001:db8::/32\" or \"203.0.113.9\"",
            ),
            (
                "192.0.2.0/24\n131.0.72.0/222400:cb00::/32\n",
                "line 2: \"131.0.72.0/222400:cb00::/32\" is not a prefix: it looks like \
                 \"131.0.72.0/22\" and \"2400:cb00::/32\" run together; separate them",
            ),
            (
                "0.0.0.0/0",
                "line 1: 0.0.0.0/0 is wider than a feed may be trusted with (IPv4 /8, IPv6 /16); if \
                 it is meant, write it under `prefixes` in the configuration",
            ),
        ];
        for (text, expected) in cases {
            check(parse_lines, text, expected);
        }
    }

    #[test]
    fn tokens() {
        let generic = |token: &str| {
            format!(
                "{token:?} is not a prefix; write one such as \"203.0.113.0/24\", \
                 \"2001:db8::/32\" or \"203.0.113.9\""
            )
        };
        let cases = [
            ("203.0.113.9", "203.0.113.9/32"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
            (
                "::ffff:0:0/95",
                "\"::ffff:0.0.0.0/95\" has host bits set; write \"::fffe:0:0/95\" for the network or \"::ffff:0.0.0.0/128\" for the one address",
            ),
            (
                "::ffff:192.0.2.1",
                "\"::ffff:192.0.2.1/128\" is IPv4 written as IPv6, which no packet carries; write \"192.0.2.1/32\"",
            ),
            (
                "::ffff:192.0.2.9/120",
                "\"::ffff:192.0.2.9/120\" is IPv4 written as IPv6, which no packet carries; write \"192.0.2.0/24\"",
            ),
            (
                "192.0.2.0/33",
                "\"192.0.2.0/33\" is not a prefix: its length is more than 32; write one from /0 to /32",
            ),
            (
                "2001:db8::/129",
                "\"2001:db8::/129\" is not a prefix: its length is more than 128; write one from /0 to /128",
            ),
            ("", &generic("")),
            ("192.0.2.0/", &generic("192.0.2.0/")),
            ("192.0.2.0/+24", &generic("192.0.2.0/+24")),
            (
                "192.0.2.0/255.255.255.0",
                "\"192.0.2.0/255.255.255.0\" is not a prefix: it has a netmask; write /24 instead",
            ),
            ("192.0.2.01", &generic("192.0.2.01")),
            ("192.0.2.256", &generic("192.0.2.256")),
            ("192.0.2.1-4", &generic("192.0.2.1-4")),
            ("fe80::1%eth0", &generic("fe80::1%eth0")),
            ("\u{1b}[2J", &generic("\u{1b}[2J")),
            (
                &"größer".repeat(20),
                &generic(&format!("{}…", "größer".repeat(10))),
            ),
        ];
        for (token, expected) in cases {
            let answer = match parse_prefix(token) {
                Ok(prefix) => prefix.to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(answer, expected, "of {token:?}");
        }
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        let address = prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
            any::<u128>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
        ];
        let narrow = |(address, length): (IpAddr, u8)| {
            let length = if address.is_ipv4() {
                8 + length % 25
            } else {
                16 + length % 113
            };
            IpNet::new_assert(address, length).trunc()
        };
        (address, any::<u8>())
            .prop_map(narrow)
            .prop_filter("not mapped", |prefix| check_prefix(*prefix).is_ok())
    }

    proptest! {
        #[test]
        fn lists_read_back(prefixes in prop::collection::vec(prefix(), 1..50)) {
            let tokens: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
            let mut expected = prefixes;
            expected.sort();
            expected.dedup();
            let json = serde_json::to_vec(&tokens).expect("strings are JSON");
            prop_assert_eq!(parse_json_array(&json), Ok(expected.clone()));
            prop_assert_eq!(parse_lines(tokens.join("\r\n").as_bytes()), Ok(expected));
        }

        #[test]
        fn bytes_never_panic(bytes: Vec<u8>, text in "[\\[\\]\"0-9a-f.:/# \n]{0,60}|\\PC{0,20}") {
            for input in [&bytes[..], text.as_bytes()] {
                let parsed = [parse_json_array(input), parse_lines(input)];
                for prefixes in parsed.into_iter().flatten() {
                    prop_assert!(prefixes.is_sorted());
                    prop_assert!(prefixes.iter().all(|prefix| check_prefix(*prefix).is_ok()));
                }
            }
        }
    }
}
