//! The grammar of a prefix, an address and a range: one token, and nothing around it.
//!
//! Invariants: a token is valid or invalid as a whole; a range becomes the fewest prefixes that cover exactly its
//! addresses. Errors suggest the valid form. Knows no lists.

use std::net::IpAddr;

use ipnet::{IpNet, IpSubnets, Ipv4Net, Ipv4Subnets, Ipv6Subnets};
use thiserror::Error;

use super::shown;

/// The characters that may stand between the two addresses of a range: a hyphen or an en dash.
pub(super) const DASHES: [char; 2] = ['-', '–'];

/// Parses an address, a prefix or a range (`a-b`, or `203.0.113.232-239` within the last octet) and appends its
/// prefixes to `prefixes`.
pub(super) fn parse_token(token: &str, prefixes: &mut Vec<IpNet>) -> Result<(), PrefixError> {
    match token.split_once(DASHES) {
        None => prefixes.push(parse_prefix(token)?),
        Some((first, last)) => {
            for prefix in parse_range(token, first.trim_end(), last.trim_start())? {
                prefixes.push(check_prefix(prefix)?);
            }
        }
    }
    Ok(())
}

/// Parses a prefix, or an address as the prefix of that one address (`203.0.113.9` is `203.0.113.9/32`), without
/// surrounding text.
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

/// Parses a range whose first and last address are in two texts, such as two CSV columns, into the prefixes that cover
/// it.
///
/// Both texts must be whole addresses of one family: `203.0.113.1` and `9` is not a range for this function.
///
/// # Errors
/// A text is not an address, the families differ, or `last` is lower than `first`.
pub fn parse_ends(first: &str, last: &str) -> Result<Vec<IpNet>, PrefixError> {
    let token = || format!("{first}-{last}");
    if !last.contains(['.', ':']) {
        return Err(not_a_prefix(&token()));
    }
    parse_range(&token(), first, last)?
        .map(check_prefix)
        .collect()
}

/// Parses a prefix whose address and length are in two texts, such as two CSV columns.
///
/// The length is a number, with or without a slash before it, or a netmask: `24`, `/24` and
/// `255.255.255.0` are the same.
///
/// # Errors
/// The address or the length is invalid, or the address has host bits set.
pub fn parse_with_length(address: &str, length: &str) -> Result<IpNet, PrefixError> {
    let digits = length.strip_prefix('/').unwrap_or(length).trim_start();
    let token = format!("{address}/{digits}");
    if address.contains('/') || digits.is_empty() {
        return Err(not_a_prefix(&token));
    }
    match parse_prefix(&token) {
        Err(PrefixError::Netmask { length, .. }) if address.contains('.') => {
            parse_prefix(&format!("{address}/{length}"))
        }
        other => other,
    }
}

/// Checks that a prefix has no host bits set and is not an IPv4-mapped IPv6 prefix, and returns it unchanged.
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

fn parse_range(token: &str, first: &str, last: &str) -> Result<IpSubnets, PrefixError> {
    let (Ok(start), Some(end)) = (first.parse::<IpAddr>(), parse_end(first, last)) else {
        return Err(not_a_prefix(token));
    };
    for address in [start, end] {
        check_prefix(address.into())?;
    }
    let backwards = || PrefixError::Backwards {
        token: shown(token),
        first: end,
        last: start,
    };
    match (start, end) {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) if end < start => {
            Err(backwards())
        }
        (IpAddr::V4(start), IpAddr::V4(end)) => Ok(Ipv4Subnets::new(start, end, 0).into()),
        (IpAddr::V6(start), IpAddr::V6(end)) => Ok(Ipv6Subnets::new(start, end, 0).into()),
        _ => Err(not_a_prefix(token)),
    }
}

/// Parses the last address of a range, which may be written as its last octet only; the other octets are then those of
/// `first`. Returns `None` if `last` is neither.
fn parse_end(first: &str, last: &str) -> Option<IpAddr> {
    if last.contains(['.', ':']) {
        return last.parse().ok();
    }
    let (network, _) = first.rsplit_once('.')?;
    // The address parser refuses invalid octets, such as 256 and 07.
    format!("{network}.{last}").parse().ok()
}

/// The reason why a text is not a valid prefix, with a valid form of it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PrefixError {
    /// The text is not an address or a prefix.
    #[error(
        "{token:?} is not a prefix; write one such as \"203.0.113.0/24\", \"2001:db8::/32\" or \
         \"203.0.113.9\""
    )]
    NotAPrefix {
        /// The invalid text, shortened for the message.
        token: String,
    },
    /// The text is two prefixes without a separator between them, as a missing newline leaves them.
    #[error(
        "{token:?} is not a prefix: it looks like {first:?} and {second:?} without a separator; separate them, or report it to the vendor"
    )]
    Glued {
        /// The invalid text, shortened for the message.
        token: String,
        /// The first of the two prefixes.
        first: String,
        /// The second of the two prefixes.
        second: String,
    },
    /// The prefix length is greater than the number of bits of an address.
    #[error("{token:?} is not a prefix: its prefix length is greater than {max}; use /0 to /{max}")]
    TooLong {
        /// The invalid text, shortened for the message.
        token: String,
        /// The number of bits of an address of this family: 32 or 128.
        max: u8,
    },
    /// The text is a prefix with a netmask instead of a length: `192.0.2.0/255.255.255.0`.
    #[error("{token:?} is not a prefix: it has a netmask; write /{length} instead")]
    Netmask {
        /// The invalid text, shortened for the message.
        token: String,
        /// The prefix length, in bits, that the netmask stands for.
        length: u8,
    },
    /// The prefix has host bits set, so its author meant either the network or the one address.
    #[error(
        "\"{prefix}\" has host bits set; write \"{network}\" for the network, or \"{address}\" for the address"
    )]
    HostBits {
        /// The prefix as written.
        prefix: IpNet,
        /// The written prefix with its host bits cleared.
        network: IpNet,
        /// The written address as a prefix of full length.
        address: IpNet,
    },
    /// The prefix is IPv4-mapped (`::ffff:192.0.2.1`), and no packet on the wire has such a source address.
    #[error("\"{prefix}\" is IPv4 written as IPv6, which no packet carries; write \"{meant}\"")]
    Mapped {
        /// The prefix as written.
        prefix: IpNet,
        /// The IPv4 prefix that the IPv4-mapped prefix stands for.
        meant: Ipv4Net,
    },
    /// A prefix directly follows the `;` that starts a comment: `192.0.2.1;192.0.2.2` in a text list.
    #[error("{token:?} follows a semicolon, which starts a comment; write one prefix per line")]
    InComment {
        /// The prefix in the comment, shortened for the message.
        token: String,
    },
    /// The text is a range whose first address is greater than its last: `192.0.2.9-192.0.2.1`.
    #[error(
        "{token:?} is a range that ends before it starts; write \"{first}-{last}\" if that is intended"
    )]
    Backwards {
        /// The invalid text, shortened for the message.
        token: String,
        /// The lower of the two addresses of the range.
        first: IpAddr,
        /// The higher of the two addresses of the range.
        last: IpAddr,
    },
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

/// Splits two prefixes that run together, such as `131.0.72.0/222400:cb00::/32`, for an error message only. Returns
/// `None` if there is no such split.
fn glued(token: &str) -> Option<(&str, &str)> {
    let is_prefix = |text: &str| {
        text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok_and(|p| p == p.trunc())
    };
    // Longer than any two prefixes: not worth a search that is quadratic in the length.
    (token.len() <= 100 && token.is_ascii())
        .then(|| (1..token.len()).rev().map(|at| token.split_at(at)))?
        .find(|(first, second)| is_prefix(first) && is_prefix(second))
}
