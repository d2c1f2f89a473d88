//! The gate: whether a feed that was received may become its source's prefixes.
//!
//! A vendor's list is trusted to change, but not to shrink to nothing, to open the host to half of the
//! internet, or to turn into another list. Pure: knows no network, no disk and no clock. Whether the bytes
//! were a list at all was decided before, by `source` and `feed`; whether the tables have room for it is
//! decided after, by `compile`.

mod size;
mod special;

use std::fmt;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;

pub use self::size::{Amount, Family, notes, without_notes};

use crate::difference::{covers, lost};
use crate::error_code::ErrorCode;
use crate::policy::{Gate, PerFamily, Source};

/// A loss of no more prefixes than this is never too great where the list is small: small lists lose great
/// parts.
const FEW: usize = 5;
/// A list of no more prefixes than this is small.
const SMALL: usize = 50;

/// Why a feed was refused. Its source's last good prefixes stay.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Rejection {
    /// Fewer than `min`.
    #[error("has {found} prefixes, and at least {min} are expected; lower `min` if that is right")]
    TooFew {
        /// What it has.
        found: usize,
        /// What it should have.
        min: usize,
    },
    /// More than `max`.
    #[error("has {found} prefixes, and at most {max} are expected; raise `max` if that is right")]
    TooMany {
        /// What it has.
        found: usize,
        /// What it may have.
        max: usize,
    },
    /// Something that must be in it is not.
    #[error(
        "does not cover {missing}, as `must_cover` demands; change `must_cover` if it need not"
    )]
    NotCovered {
        /// What is missing.
        missing: IpNet,
    },
    /// Much of what it covered is gone.
    #[error(
        "lists {removed} prefixes less, and with them {lost_percent} % of the {family} addresses that it covered; more than {max_percent} % {within} is not believed; raise `max_shrink` if it is right"
    )]
    Shrunk {
        /// How many prefixes it does not list any more.
        removed: usize,
        /// What part of the addresses of a family that is.
        lost_percent: u128,
        /// The family.
        family: Family,
        /// `max_shrink`.
        max_percent: u16,
        /// Since which list.
        within: Within,
    },
    /// It covers much that it did not cover.
    #[error(
        "covers {grown} that it did not cover, in addition to {before}; more than {limit} {within} is not accepted; raise `max_growth` if it is right"
    )]
    Grown {
        /// The addresses that are new.
        grown: Amount,
        /// The addresses that the list before covered.
        before: Amount,
        /// The most that may be new.
        limit: Amount,
        /// Since which list.
        within: Within,
    },
    /// More addresses would be active than the fewest of the growth window allow.
    #[error(
        "brings the active addresses, with the grace prefixes, to {next}; the fewest within {} were {fewest}, and more than {limit} in addition are not accepted; raise `max_growth` if it is right",
        humantime::format_duration(*window)
    )]
    Regrown {
        /// The addresses that would be active with the list.
        next: Amount,
        /// The fewest addresses that were active within the window.
        fewest: Amount,
        /// The most that may come in addition.
        limit: Amount,
        /// `growth_window`.
        window: Duration,
    },
    /// It covers a great part of a family.
    #[error(
        "covers {covered}, and at most {max} are expected; raise `max_addresses` if that is right"
    )]
    TooManyAddresses {
        /// The addresses of the list and of the prefixes in their grace period.
        covered: Amount,
        /// `max_addresses`.
        max: Amount,
    },
    /// A prefix that would open the door to much of the internet.
    #[error(
        "has {prefix}, which is wider than /{widest}, as wide as a list is trusted with; if it is meant, set `min_prefix_len`"
    )]
    TooWide {
        /// The prefix.
        prefix: IpNet,
        /// The shortest length allowed.
        widest: u8,
    },
    /// A prefix from which nobody on the internet calls.
    #[error(
        "has {prefix}, of which {special} is {what} (RFC 6890), where no vendor calls from; if it is meant, set `allow_special_use = true`"
    )]
    SpecialUse {
        /// The prefix.
        prefix: IpNet,
        /// The block of the registry.
        special: IpNet,
        /// What it is for.
        what: &'static str,
    },
    /// An IPv6 prefix outside of the addresses that are allocated on the internet.
    #[error(
        "has {prefix}, which is not in 2000::/3, where all IPv6 addresses of the internet are; if it is meant, set `allow_special_use = true`"
    )]
    NotGlobal {
        /// The prefix.
        prefix: IpNet,
    },
}

impl Rejection {
    /// Returns the code of the refusal.
    pub fn code(&self) -> ErrorCode {
        if self.is_acceptable() {
            ErrorCode::ListRejected
        } else {
            ErrorCode::ListForbidden
        }
    }

    /// Whether the operator may let this one list in. What no list may have is for the configuration.
    pub fn is_acceptable(&self) -> bool {
        !matches!(
            self,
            Self::TooWide { .. } | Self::SpecialUse { .. } | Self::NotGlobal { .. }
        )
    }
}

/// The lists that a new one is compared with. All are sorted and distinct.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before<'l> {
    /// The last good list.
    pub last: &'l [IpNet],
    /// The list at the start of the growth window.
    pub earliest: &'l [IpNet],
    /// The prefixes in their grace period, which stay active beside the new list.
    pub held: &'l [IpNet],
    /// Those of `held` that are no growth: dropped by a list before the growth window, or active when the operator
    /// accepted a list.
    pub settled: &'l [IpNet],
    /// The fewest addresses that were active within the growth window, grace prefixes included.
    pub fewest: PerFamily,
}

/// Since when a change is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// Since the last good list.
    Once,
    /// Since the list at the start of the growth window.
    Window(Duration),
}

impl fmt::Display for Within {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Once => out.write_str("at once"),
            Self::Window(window) => {
                write!(out, "within {}", humantime::format_duration(*window))
            }
        }
    }
}

/// Judges a list against its source's demands and, unless it is the first, against the lists `before` it.
///
/// With `accepted`, the operator has approved this list: only its prefixes are judged, not its size and changes.
pub fn judge(
    source: &Source,
    before: Option<Before<'_>>,
    new: &[IpNet],
    accepted: bool,
) -> Result<(), Rejection> {
    let gate = &source.gate;
    check_each(gate, new)?;
    if accepted {
        return Ok(());
    }
    let found = new.len();
    if found < gate.min {
        return Err(Rejection::TooFew {
            found,
            min: gate.min,
        });
    }
    if let Some(max) = gate.max.filter(|max| found > *max) {
        return Err(Rejection::TooMany { found, max });
    }
    if let Some(missing) = gate.must_cover.iter().find(|wanted| !covers(new, **wanted)) {
        return Err(Rejection::NotCovered { missing: *missing });
    }
    size::check_addresses(source, before, new)?;
    let Some(before) = before else {
        return Ok(());
    };
    check_shrink(gate, before.last, new, Within::Once)?;
    let window = Within::Window(gate.growth_window);
    check_shrink(gate, before.earliest, new, window)?;
    size::check_growth(source, before, new)
}

fn check_each(gate: &Gate, new: &[IpNet]) -> Result<(), Rejection> {
    for prefix in new {
        let widest = match prefix {
            IpNet::V4(_) => gate.min_prefix_len_v4,
            IpNet::V6(_) => gate.min_prefix_len_v6,
        };
        if prefix.prefix_len() < widest {
            return Err(Rejection::TooWide {
                prefix: *prefix,
                widest,
            });
        }
        if !gate.allow_special_use
            && let Some((special, what)) = special::special_use(*prefix)
        {
            return Err(Rejection::SpecialUse {
                prefix: *prefix,
                special,
                what,
            });
        }
        if !gate.allow_special_use && !special::is_global_unicast(*prefix) {
            return Err(Rejection::NotGlobal { prefix: *prefix });
        }
    }
    Ok(())
}

fn check_shrink(
    gate: &Gate,
    last: &[IpNet],
    new: &[IpNet],
    within: Within,
) -> Result<(), Rejection> {
    let removed = last
        .iter()
        .filter(|prefix| new.binary_search(prefix).is_err())
        .count();
    let are_few = removed <= FEW && last.len() <= SMALL;
    let has_both = Family::BOTH
        .iter()
        .all(|family| last.iter().any(family.is_family()));
    for family in Family::BOTH {
        let (covered, gone) = lost(last, new, family.is_family());
        // A family that vanishes beside the other is no small loss, however few its prefixes are.
        let is_gone = has_both && !new.iter().any(family.is_family());
        if covered == 0 || (are_few && !is_gone) {
            continue;
        }
        // Both shorter, so that a product fits; of that many addresses nobody misses the last bits.
        let shift = if covered > u128::MAX >> 16 { 16 } else { 0 };
        let (covered, gone) = (covered >> shift, gone >> shift);
        if gone * 1000 > covered * u128::from(gate.max_shrink) {
            return Err(Rejection::Shrunk {
                removed,
                lost_percent: gone * 100 / covered,
                family,
                max_percent: gate.max_shrink / 10,
                within,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
