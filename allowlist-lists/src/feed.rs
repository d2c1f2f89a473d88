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

/// A parsed address list of a source: its prefixes, notes for the operator, and the day until which the result is
/// valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// The prefixes of the list, sorted and distinct.
    pub prefixes: Vec<IpNet>,
    /// Notes for the operator, such as the text of a row whose addresses are about to expire.
    pub notes: Vec<String>,
    /// The last day on which parsing the same bytes yields all these prefixes; `None` if no listed prefix has an expiry
    /// date.
    pub good_until: Option<Date>,
}

/// Parses the bytes of a list, which must contain at least one prefix. On a page, rows that expired before `today` are
/// left out.
///
/// # Errors
/// The bytes are not a list in `format`, or the list is empty.
pub fn parse(format: &Format, bytes: &[u8], today: Date) -> Result<List, FeedError> {
    parse_part(format, bytes, today, false)
}

/// Parses the bytes of a list, or of one part of a list; the result may have no prefix if `may_be_empty`.
///
/// # Errors
/// The bytes are not a list in `format`, or the list is empty and `may_be_empty` is false.
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

/// The maximum number of prefixes of one list; a list with more fails with [`FeedError::TooManyPrefixes`]. No vendor
/// publishes a tenth of this, but one short range can expand to hundreds of prefixes.
pub(crate) const MOST_PREFIXES: usize = 4_000_000;

/// Parses `token`, an address, a prefix or a range of a list, and appends its prefixes to `prefixes`. `place` returns
/// the place of the token for an error message.
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

/// The maximum number of characters of a vendor's text that a message quotes.
const SHOWN_CHARS: usize = 60;

/// Returns a vendor's text for a message, cut after `SHOWN_CHARS` characters and with "…" if it is longer.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Returns the first `most` of the texts for a message: each quoted and shortened, with "…" at the end if there are
/// more.
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
