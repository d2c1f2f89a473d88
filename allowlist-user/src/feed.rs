//! Bytes to prefixes: what a vendor's URL or an operator's file holds.
//!
//! Invariants: a list is taken whole or not at all; what comes back is sorted and distinct, and has no
//! host bits set. A token is judged as a whole: no address is ever looked for inside other text. How the
//! bytes are read is said by the configuration, and never guessed. Knows no network, no file and no
//! clock, and not whether a prefix is one that a vendor could mean.

use ipnet::IpNet;
use jiff::civil::Date;

use crate::policy::{Format, Lines};

mod csv;
mod error;
mod item;
mod json;
mod page;
mod text;
mod token;
mod xml;

pub use error::{FeedError, Place, Unclear};
pub use page::{Link, find_link, find_list};
pub use token::{PrefixError, check_prefix, parse_ends, parse_prefix, parse_with_length};

/// What bytes hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Sorted, distinct.
    pub prefixes: Vec<IpNet>,
    /// What the operator should know of it, such as rows that are about to go.
    pub notes: Vec<String>,
    /// The last day of those that go first: afterwards, the same bytes hold less.
    pub good_until: Option<Date>,
}

/// Reads a list, which has at least one prefix. `today` decides about rows that state until when they are good.
///
/// # Errors
/// The bytes are no such list, or an empty one.
pub fn parse(format: &Format, bytes: &[u8], today: Date) -> Result<List, FeedError> {
    parse_part(format, bytes, today, false)
}

/// Reads a list, or a part of one, that may have no prefix if `may_be_empty`.
///
/// # Errors
/// The bytes are no such list, or an empty one that may not be.
pub fn parse_part(
    format: &Format,
    bytes: &[u8],
    today: Date,
    may_be_empty: bool,
) -> Result<List, FeedError> {
    let list = match format {
        Format::Text => text::parse(&Lines::default(), bytes, may_be_empty).map(List::from),
        Format::Lines(rules) => text::parse(rules, bytes, may_be_empty).map(List::from),
        Format::Json(rules) => json::parse(rules, bytes),
        Format::JsonLines(rules) => json::parse_lines(rules, bytes, may_be_empty),
        Format::Csv(rules) => csv::parse(rules, bytes, may_be_empty).map(List::from),
        Format::Xml(rules) => xml::parse(rules, bytes, may_be_empty).map(List::from),
        Format::Html(rules) => page::parse_html(rules, bytes, today),
        Format::Markdown(rules) => page::parse_markdown(rules, bytes, today),
    };
    let mut list = match list {
        // Of these, no line is an empty list; a document or a page is never blank.
        Err(FeedError::Empty) if may_be_empty && is_lines(format) => List::default(),
        list => list?,
    };
    if list.prefixes.is_empty() && !may_be_empty {
        return Err(FeedError::NoPrefixes);
    }
    list.prefixes.sort_unstable();
    list.prefixes.dedup();
    Ok(list)
}

fn is_lines(format: &Format) -> bool {
    matches!(
        format,
        Format::Text | Format::Lines(_) | Format::JsonLines(_) | Format::Csv(_)
    )
}

impl From<Vec<IpNet>> for List {
    fn from(prefixes: Vec<IpNet>) -> Self {
        Self {
            prefixes,
            ..Self::default()
        }
    }
}

/// As many prefixes as a list may have. No vendor has a tenth of this; but a short range can be hundreds.
pub(crate) const MOST_PREFIXES: usize = 4_000_000;

/// Reads one token of a list.
fn take(
    token: &str,
    prefixes: &mut Vec<IpNet>,
    place: impl FnOnce() -> Place,
) -> Result<(), FeedError> {
    token::parse_token(token, prefixes).map_err(|error| FeedError::Prefix {
        place: place(),
        error: Box::new(error),
    })?;
    if prefixes.len() > MOST_PREFIXES {
        return Err(FeedError::TooManyPrefixes);
    }
    Ok(())
}

/// As much of a vendor's text as a message repeats.
const SHOWN_CHARS: usize = 60;

/// The start of what a vendor wrote.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Some of them, quoted, and whether there are more.
pub(crate) fn some_of<'t>(texts: impl IntoIterator<Item = &'t str>, most: usize) -> String {
    let mut texts = texts.into_iter();
    let mut quoted: Vec<String> = texts
        .by_ref()
        .take(most)
        .map(|text| format!("{:?}", shown(text)))
        .collect();
    if texts.next().is_some() {
        quoted.push("…".to_owned());
    }
    quoted.join(", ")
}

#[cfg(test)]
pub(crate) mod tests;
