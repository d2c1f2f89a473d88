//! Parses the bytes of a list into prefixes.
//!
//! Invariants: a list is parsed as a whole or fails; the prefixes are sorted and distinct, and have no host bits set.
//! A token is parsed as a whole: no address is searched for inside other text. The configuration states the format,
//! which is never guessed. Knows no network, no file and no clock, and not whether a prefix is plausible (`gate`).

use allowlist_policy::{Format, Lines};
use ipnet::IpNet;
use jiff::civil::Date;

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

/// A parsed list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// The prefixes, sorted and distinct.
    pub prefixes: Vec<IpNet>,
    /// Notes for the operator, such as rows that are about to expire.
    pub notes: Vec<String>,
    /// The last day on which the same bytes have all these prefixes, if a row expires.
    pub good_until: Option<Date>,
}

/// Parses a list with at least one prefix. `today` decides about rows with an expiry date.
///
/// # Errors
/// The bytes are not a list of this format, or an empty one.
pub fn parse(format: &Format, bytes: &[u8], today: Date) -> Result<List, FeedError> {
    parse_part(format, bytes, today, false)
}

/// Parses a list, or a part of one, which may have no prefix if `may_be_empty`.
///
/// # Errors
/// The bytes are not a list of this format, or an empty one without `may_be_empty`.
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
        // An empty list in these formats has no lines; a document or a page is never blank.
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

/// The most prefixes of a list. No vendor has a tenth of this, but a short range can be hundreds.
pub(crate) const MOST_PREFIXES: usize = 4_000_000;

/// Parses one token of a list.
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

/// The most characters of a vendor's text that a message quotes.
const SHOWN_CHARS: usize = 60;

/// Returns the start of a vendor's text, for a message.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Returns the first of the texts, quoted, with "…" if there are more.
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
