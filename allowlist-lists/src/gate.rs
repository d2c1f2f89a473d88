//! The gate: accepts or rejects a list before it becomes active.
//!
//! A vendor's list may change, but must not shrink to nothing, open the host to half of the internet, or turn into
//! another list. Pure: knows no network, no disk and no clock. Before the gate, `source` and `feed` check whether the
//! bytes are a list; after it, `compile` checks whether the tables have room for the list.

mod size;
mod special;

use std::fmt;
use std::time::Duration;

use allowlist_policy::difference::{covers, lost};
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::hints::counted;
use allowlist_policy::{Gate, PerFamily, Source};
use ipnet::IpNet;
use thiserror::Error;

pub use self::size::{Amount, Family, notes, without_notes};

/// The number of prefixes that a small list ([`SMALL`]) may lose without a check of `max_shrink`, unless it loses a
/// whole address family. Even a few are a large percentage of a small list.
const FEW: usize = 5;
/// The most prefixes with which a list counts as small.
const SMALL: usize = 50;

/// The reason why the gate rejects a list. The last-good list then stays active.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Rejection {
    /// The list has fewer prefixes than `min`.
    #[error(
        "the list has {}, fewer than min = {min}; lower `min` if such a list is expected",
        counted(*found, "prefix")
    )]
    TooFew {
        /// The number of prefixes in the list.
        found: usize,
        /// The configured `min`.
        min: usize,
    },
    /// The list has more prefixes than `max`.
    #[error(
        "the list has {found} prefixes, more than max = {max}; raise `max` if such a list is expected"
    )]
    TooMany {
        /// The number of prefixes in the list.
        found: usize,
        /// The configured `max`.
        max: usize,
    },
    /// The list does not cover a prefix of `must_cover`.
    #[error(
        "the list does not cover {missing}, which `must_cover` requires; correct `must_cover` if such a list is expected"
    )]
    NotCovered {
        /// The prefix of `must_cover` that the list does not cover.
        missing: IpNet,
    },
    /// The list lost a larger part of its addresses than `max_shrink` allows.
    #[error(
        "the list has lost {}, and with them {lost} of its {family} addresses; the limit is {max} {within}: raise `max_shrink` if such a loss is expected",
        counted(*removed, "prefix")
    )]
    Shrunk {
        /// The number of prefixes that the list lost.
        removed: usize,
        /// The part of the family's addresses that the list lost.
        lost: Permille,
        /// The address family in which the list lost addresses.
        family: Family,
        /// The configured `max_shrink`.
        max: Permille,
        /// The earlier list with which the new list is compared.
        within: Within,
    },
    /// The list gained more addresses than `max_growth` allows.
    #[error(
        "the list adds {grown} to {before}; the limit is {limit} {within}: raise `max_growth` if such growth is expected"
    )]
    Grown {
        /// The number of addresses that the list adds.
        grown: Amount,
        /// The number of addresses that the earlier list covers.
        before: Amount,
        /// The most addresses that the list may add.
        limit: Amount,
        /// The earlier list with which the new list is compared.
        within: Within,
    },
    /// With the list, the number of active addresses would exceed the smallest number within the growth window by more
    /// than `max_growth` allows.
    #[error(
        "with the list, {next} would be active, grace prefixes included; the fewest within {} were {fewest}, and the limit is {limit} more: raise `max_growth` if such growth is expected",
        humantime::format_duration(*window)
    )]
    Regrown {
        /// The number of addresses that would be active with the list, grace prefixes included.
        next: Amount,
        /// The smallest number of addresses that were active at one time within the growth window.
        fewest: Amount,
        /// The most addresses by which `next` may exceed `fewest`.
        limit: Amount,
        /// The configured `growth_window`.
        window: Duration,
    },
    /// The list and the grace prefixes cover more addresses of one family than `max_addresses`.
    #[error(
        "the list and its grace prefixes cover {covered}; the maximum is {max}: raise `max_addresses` if such a list is expected"
    )]
    TooManyAddresses {
        /// The number of addresses that the list and the grace prefixes cover.
        covered: Amount,
        /// The configured `max_addresses`.
        max: Amount,
    },
    /// A prefix of the list is shorter than `min_prefix_len`.
    #[error(
        "the list has {prefix}, which is wider than /{widest}, the widest allowed; lower `min_prefix_len` if such a prefix is expected"
    )]
    TooWide {
        /// The prefix that is too short.
        prefix: IpNet,
        /// The configured `min_prefix_len` for the prefix's family.
        widest: u8,
    },
    /// A prefix of the list overlaps a special-purpose block, which is not used on the internet.
    #[error(
        "the list has {prefix}, which overlaps {special} ({what}, RFC 6890), a block that is not used on the internet; set `allow_special_use = true` if such a prefix is expected"
    )]
    SpecialUse {
        /// The prefix of the list that overlaps the block.
        prefix: IpNet,
        /// The special-purpose block of IANA's registry.
        special: IpNet,
        /// The purpose of the block, such as "private".
        what: &'static str,
    },
    /// An IPv6 prefix of the list lies outside of `2000::/3`, the block for global unicast.
    #[error(
        "the list has {prefix}, which is outside of 2000::/3, the IPv6 addresses of the internet; set `allow_special_use = true` if such a prefix is expected"
    )]
    NotGlobal {
        /// The prefix that lies outside of the block.
        prefix: IpNet,
    },
}

impl Rejection {
    /// Returns the stable identifier of the rejection.
    pub fn code(&self) -> ErrorCode {
        if self.is_acceptable() {
            ErrorCode::ListRejected
        } else {
            ErrorCode::ListForbidden
        }
    }

    /// Returns whether the operator may accept the rejected list by command.
    ///
    /// A list with a forbidden prefix needs a change of the configuration instead.
    pub fn is_acceptable(&self) -> bool {
        !matches!(
            self,
            Self::TooWide { .. } | Self::SpecialUse { .. } | Self::NotGlobal { .. }
        )
    }
}

/// The earlier lists of a source with which the gate compares a new one. All are sorted and distinct.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before<'l> {
    /// The prefixes of the last-good list.
    pub last: &'l [IpNet],
    /// The prefixes of the list that was active at the start of the growth window, which is the time that
    /// `growth_window` sets (7 days by default); those of the first list if the source is younger.
    pub earliest: &'l [IpNet],
    /// The grace prefixes, which stay active beside the new list.
    pub grace: &'l [IpNet],
    /// The prefixes of `grace` that do not count as growth: those that left the list before the growth window, or were
    /// active when the operator accepted a list.
    pub settled: &'l [IpNet],
    /// The smallest number of addresses that were active at one time within the growth window, grace prefixes included.
    pub fewest: PerFamily,
}

/// A part of a whole in thousandths. Displayed in percent, with the tenth unless it is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permille(pub u16);

impl fmt::Display for Permille {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 10, self.0 % 10) {
            (percent, 0) => write!(out, "{percent} %"),
            (percent, tenth) => write!(out, "{percent}.{tenth} %"),
        }
    }
}

/// The earlier list with which the gate compares a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// The last-good list.
    Once,
    /// The list at the start of the growth window, which has this length.
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

/// Checks the list `new` against the gate of `source` and against the earlier lists `before`, `None` for the first
/// list.
///
/// With `accepted`, the operator has accepted this list: only its prefixes are checked, not its size and changes.
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
        // The loss of a whole family is always checked, however few its prefixes are.
        let is_gone = has_both && !new.iter().any(family.is_family());
        if covered == 0 || (are_few && !is_gone) {
            continue;
        }
        // Shifted so that the product fits in 128 bits; the lost precision is negligible.
        let shift = if covered > u128::MAX >> 16 { 16 } else { 0 };
        let (covered, gone) = (covered >> shift, gone >> shift);
        if gone * 1000 > covered * u128::from(gate.max_shrink) {
            // Rounded up, so that the message never states the limit itself as the loss; only a whole loss is 100 %.
            let part = (gone * 1000).div_ceil(covered);
            let part = if gone < covered { part.min(999) } else { part };
            return Err(Rejection::Shrunk {
                removed,
                lost: Permille(part as u16),
                family,
                max: Permille(gate.max_shrink),
                within,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
