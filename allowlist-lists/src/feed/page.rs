//! HTML and Markdown pages: the addresses in the selected part.
//!
//! Invariants: a page is read as a browser shows it, so scripts, drawings and attributes yield no addresses; a text in
//! the selected part that looks like an address is one, is reported in a note (such as a version number), or fails the
//! page; and deprecated addresses are left out, with a note. Markdown is converted to HTML first.

use allowlist_policy::Page;
use jiff::civil::Date;

use super::text::{decode, trim};
use super::{FeedError, List, MOST_PREFIXES, shown};
use document::Document;
pub use links::{Link, find as find_list, find_link};

mod around;
mod buffer;
mod deprecation;
mod document;
mod elements;
mod labels;
mod links;
mod markdown;
mod notes;
mod pairs;
mod readme;
mod select;
mod table;
mod tree;
mod words;

pub(super) fn parse_html(rules: &Page, bytes: &[u8], today: Date) -> Result<List, FeedError> {
    let text = decode(bytes)?;
    if !has_element(text) {
        return Err(FeedError::NotAPage {
            start: shown(trim(text)),
        });
    }
    let html = tree::parse(text)?;
    parts(&Document::read(&html), rules, today)
}

/// Returns the prefixes and notes of all parts of the page that `rules` selects; a part that is not on the page is an
/// error.
fn parts(document: &Document, rules: &Page, today: Date) -> Result<List, FeedError> {
    let mut list = select::select(document, rules, today)?;
    for part in &rules.and {
        let more = select::select(document, part, today)?;
        if list.prefixes.len() + more.prefixes.len() > MOST_PREFIXES {
            return Err(FeedError::TooManyPrefixes);
        }
        list.prefixes.extend(more.prefixes);
        for note in more.notes {
            if !list.notes.contains(&note) {
                list.notes.push(note);
            }
        }
        list.good_until = list.good_until.into_iter().chain(more.good_until).min();
    }
    Ok(list)
}

/// Returns whether the text contains an HTML element. The HTML parser accepts any text, so its success does not show
/// this.
fn has_element(text: &str) -> bool {
    text.as_bytes()
        .windows(2)
        .any(|pair| pair[0] == b'<' && pair[1].is_ascii_alphabetic())
}

pub(super) fn parse_markdown(rules: &Page, bytes: &[u8], today: Date) -> Result<List, FeedError> {
    let text = decode(bytes)?;
    if is_html(text) {
        return Err(FeedError::WebPage {
            start: shown(trim(text)),
        });
    }
    let html = tree::parse(&markdown::to_html(text)?)?;
    parts(&Document::read(&html), rules, today)
}

/// Returns whether the text is a whole HTML page instead of Markdown. Markdown may contain HTML elements, so only the
/// start of the text counts.
fn is_html(text: &str) -> bool {
    let text = text.trim_start().as_bytes();
    ["<!doctype", "<html"].iter().any(|start| {
        text.get(..start.len())
            .is_some_and(|text| text.eq_ignore_ascii_case(start.as_bytes()))
    })
}

#[cfg(test)]
mod tests;
