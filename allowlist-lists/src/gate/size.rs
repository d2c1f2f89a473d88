//! Limits the number of addresses that a list covers, and that it adds: for each family separately, with overlaps
//! counted once.
//!
//! Prefixes in their grace period count as well, so a source that lists different prefixes at each fetch is limited in
//! all its active prefixes.

use std::borrow::Cow;
use std::fmt;

use allowlist_policy::difference::{self, is_v4, is_v6, lost};
use allowlist_policy::{Origin, PerFamily, Source};
use ipnet::IpNet;

use super::{Before, Rejection, Within};

/// The number of addresses by which a list may always grow, independent of `max_growth`: those of an IPv4 /20 and an
/// IPv6 /28.
///
/// A small gain is already a large percentage of a small list, so `max_growth` alone would reject it.
const FREE_GROWTH: PerFamily = PerFamily {
    v4: 1 << 12,
    v6: 1 << 100,
};
/// The number of addresses by which a list in a local file may always grow, independent of `max_growth`: those of an
/// IPv4 /16 and an IPv6 /20. It is larger than for other lists, since the operator edits the file.
const FREE_GROWTH_OF_FILES: PerFamily = PerFamily {
    v4: 1 << 16,
    v6: 1 << 108,
};

/// The start of every note about the size of a list, by which [`without_notes`] recognises the notes of [`notes`].
const NOTE: &str = "covers ";

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Returns a function that returns whether a prefix belongs to this family.
    pub(super) fn is_family(self) -> fn(&IpNet) -> bool {
        match self {
            Self::V4 => is_v4,
            Self::V6 => is_v6,
        }
    }

    /// Returns the one of the two `numbers` that is for this family.
    fn of(self, numbers: PerFamily) -> u128 {
        match self {
            Self::V4 => numbers.v4,
            Self::V6 => numbers.v6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A number of addresses of one family, with its display form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// The address family of the counted addresses.
    pub family: Family,
    /// The number of addresses.
    pub addresses: u128,
}

impl fmt::Display for Amount {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = self.family;
        match (family, self.addresses) {
            (Family::V6, many) if many >= 1 << 80 => write!(out, "{} IPv6 /48s", many >> 80)?,
            (Family::V6, many) if many >= 1 << 64 => write!(out, "{} IPv6 /64s", many >> 64)?,
            (_, few) => write!(out, "{few} {family} addresses")?,
        }
        // In hundredths of a percent.
        let share = self.addresses / (family.of(PerFamily::ALL) / 10_000);
        if share > 0 {
            write!(out, " ({}.{:02} % of {family})", share / 100, share % 100)?;
        }
        Ok(())
    }
}

/// Rejects the list `new` if it covers more addresses than `max_addresses`, grace prefixes included.
///
/// A list that adds no address is not rejected for this, since the previous list covers as much.
pub(super) fn check_addresses(
    source: &Source,
    before: Option<Before<'_>>,
    new: &[IpNet],
) -> Result<(), Rejection> {
    let (active, next) = activities(source, before.unwrap_or_default(), new);
    for family in Family::BOTH {
        let max = family.of(source.gate.max_addresses);
        let addresses = covered(&next, family);
        if addresses > max && added(&active, new, family) > 0 {
            return Err(Rejection::TooManyAddresses {
                covered: Amount { family, addresses },
                max: Amount {
                    family,
                    addresses: max,
                },
            });
        }
    }
    Ok(())
}

/// Rejects the list `new` if it adds more addresses than `max_growth` allows.
///
/// The growth is limited in three ways: by the number of addresses in the last list, by that in the list at the start
/// of the growth window, and by the smallest number that was active within the window.
///
/// A list that adds no address to the active ones is not rejected. An address that is active at the end of a growth
/// window was therefore active at its start, or was added by a list whose growth was limited by the fewest active
/// addresses, which are no more than those at the start.
pub(super) fn check_growth(
    source: &Source,
    before: Before<'_>,
    new: &[IpNet],
) -> Result<(), Rejection> {
    let gate = &source.gate;
    let free = match source.origin {
        Origin::File { .. } => FREE_GROWTH_OF_FILES,
        _ => FREE_GROWTH,
    };
    let (active, next) = activities(source, before, new);
    let at_start = united(before.earliest, before.settled);
    for family in Family::BOTH {
        let at_once = added(&active, new, family);
        if at_once == 0 {
            continue;
        }
        let amount = |addresses| Amount { family, addresses };
        let limit_of = |addresses| part(addresses, gate.max_growth).max(family.of(free));
        let window = Within::Window(gate.growth_window);
        let in_all = added(&at_start, &next, family);
        for (list, grown, within) in [
            (before.last, at_once, Within::Once),
            (before.earliest, in_all, window),
        ] {
            let before = covered(list, family);
            let limit = limit_of(before);
            if grown > limit {
                return Err(Rejection::Grown {
                    grown: amount(grown),
                    before: amount(before),
                    limit: amount(limit),
                    within,
                });
            }
        }
        let fewest = family.of(before.fewest);
        let limit = limit_of(fewest);
        let next = covered(&next, family);
        if next > fewest.saturating_add(limit) {
            return Err(Rejection::Regrown {
                next: amount(next),
                fewest: amount(fewest),
                limit: amount(limit),
                window: gate.growth_window,
            });
        }
    }
    Ok(())
}

/// Returns two lists of prefixes: those that are active now, and those that would be active with the list `new`.
///
/// A list that is returned unchanged is borrowed, not copied.
fn activities<'l>(
    source: &Source,
    before: Before<'l>,
    new: &'l [IpNet],
) -> (Cow<'l, [IpNet]>, Cow<'l, [IpNet]>) {
    let active = united(before.last, before.grace);
    let next = if source.grace.is_zero() {
        united(new, before.grace)
    } else if active.is_empty() {
        Cow::Borrowed(new)
    } else {
        Cow::Owned(united(new, &active).into_owned())
    };
    (active, next)
}

/// Returns the number of addresses in `family` that `list` covers.
fn covered(list: &[IpNet], family: Family) -> u128 {
    difference::covered(list, family.is_family())
}

/// Returns the number of addresses in `family` that `new` covers and `old` does not.
fn added(old: &[IpNet], new: &[IpNet], family: Family) -> u128 {
    lost(new, old, family.is_family()).1
}

/// Returns a note for the operator for each family in which `active` covers at least `notable_addresses` addresses.
///
/// `active` are the active prefixes of `source`, sorted.
pub fn notes(source: &Source, active: &[IpNet]) -> Vec<String> {
    let mut notes = Vec::new();
    for family in Family::BOTH {
        let addresses = covered(active, family);
        if addresses >= family.of(source.gate.notable_addresses) {
            notes.push(format!(
                "{NOTE}{}; check that the source is meant to allow so many",
                Amount { family, addresses }
            ));
        }
    }
    notes
}

/// Returns `notes` without those that [`notes`] wrote about the size of the list.
pub fn without_notes(notes: Vec<String>) -> Vec<String> {
    let is_other = |note: &String| !note.starts_with(NOTE);
    notes.into_iter().filter(is_other).collect()
}

/// Returns `number` times `thousandths` / 1000, without overflow for numbers as large as that of all IPv6 addresses.
fn part(number: u128, thousandths: u32) -> u128 {
    let thousandths = u128::from(thousandths);
    match number.checked_mul(thousandths) {
        Some(product) => product / 1000,
        None => (number / 1000).saturating_mul(thousandths),
    }
}

/// Returns the prefixes of both lists in one sorted list.
fn united<'l>(one: &'l [IpNet], other: &[IpNet]) -> Cow<'l, [IpNet]> {
    if other.is_empty() {
        return Cow::Borrowed(one);
    }
    let mut all = [one, other].concat();
    all.sort_unstable();
    Cow::Owned(all)
}
