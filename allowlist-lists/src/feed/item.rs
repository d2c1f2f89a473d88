//! How one item of a list gives prefixes, and which items count: the part that JSON, CSV and XML share.
//!
//! Invariants: two fields that form one range or one prefix are parsed together, or the list fails; and each value that
//! a filter (`where`) names has to occur, unless the list may be empty.

use allowlist_policy::{Column, Condition, Item};
use ipnet::IpNet;

use super::text::trim;
use super::token::{parse_ends, parse_with_length};
use super::{FeedError, MOST_PREFIXES, Place, take};

/// Parses a text that holds one prefix, or several with `separator` between them, and appends them to `prefixes`. A
/// blank text adds nothing.
pub(super) fn take_tokens(
    text: &str,
    separator: Option<&str>,
    prefixes: &mut Vec<IpNet>,
    place: impl Fn() -> Place,
) -> Result<(), FeedError> {
    let tokens: Vec<&str> = match separator {
        Some(separator) if separator.trim().is_empty() => text.split_whitespace().collect(),
        Some(separator) => text.split(separator).collect(),
        None => vec![text],
    };
    for token in tokens
        .into_iter()
        .map(trim)
        .filter(|token| !token.is_empty())
    {
        take(token, prefixes, &place)?;
    }
    Ok(())
}

/// Parses two fields as the ends of a range or as an address and its length, depending on `item`, and appends the
/// result to `prefixes`. Two blank fields add nothing.
pub(super) fn take_pair(
    item: &Item,
    first: &str,
    second: &str,
    prefixes: &mut Vec<IpNet>,
    place: impl Fn() -> Place,
) -> Result<(), FeedError> {
    let (first, second) = (trim(first), trim(second));
    if first.is_empty() && second.is_empty() {
        return Ok(());
    }
    let found = match item {
        Item::Range(_) => parse_ends(first, second),
        _ => parse_with_length(first, second).map(|prefix| vec![prefix]),
    };
    prefixes.extend(found.map_err(|error| FeedError::Prefix {
        place: place(),
        error: Box::new(error),
    })?);
    if prefixes.len() > MOST_PREFIXES {
        return Err(FeedError::TooManyPrefixes);
    }
    Ok(())
}

/// The conditions of the configuration key `where`, and a record of which of their values have occurred in the list.
pub(super) struct Filter<'r> {
    conditions: &'r [Condition],
    has_occurred: Vec<Vec<bool>>,
}

impl<'r> Filter<'r> {
    pub(super) fn new(conditions: &'r [Condition]) -> Self {
        Self {
            conditions,
            has_occurred: conditions
                .iter()
                .map(|condition| vec![false; condition.values.len()])
                .collect(),
        }
    }

    /// Returns whether an item of the list meets every condition, and records the values that the item has. `field`
    /// returns the text of a field of the item, or `None` if the item lacks it.
    pub(super) fn passes(&mut self, field: impl Fn(&Column) -> Option<String>) -> bool {
        let mut passes = true;
        for (condition, occurred) in self.conditions.iter().zip(&mut self.has_occurred) {
            let text = field(&condition.field);
            let text = text.as_deref().map(trim);
            match condition
                .values
                .iter()
                .position(|value| Some(value.as_str()) == text)
            {
                Some(index) => occurred[index] = true,
                None => passes = false,
            }
        }
        passes
    }

    /// Checks that each value that the conditions name has occurred in the list, unless `may_be_empty`.
    ///
    /// # Errors
    /// A value has not occurred, and `may_be_empty` is false.
    pub(super) fn check(&self, may_be_empty: bool) -> Result<(), FeedError> {
        if may_be_empty {
            return Ok(());
        }
        for (condition, occurred) in self.conditions.iter().zip(&self.has_occurred) {
            if let Some(index) = occurred.iter().position(|occurred| !occurred) {
                return Err(FeedError::Unmatched {
                    key: "where",
                    what: format!("{} = {:?}", condition.field, condition.values[index]),
                });
            }
        }
        Ok(())
    }
}
