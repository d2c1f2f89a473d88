//! Pages that people read: the addresses of the part that the configuration selects.
//!
//! Invariants: a page is read as it is shown, never as bytes, so that scripts, drawings and attributes
//! name nobody; what looks like an address in the selected part is one, or fails the page; and what the
//! page calls deprecated is left out and told of. Markdown is turned into the page that it stands for, so
//! that one walk serves both.

use jiff::civil::Date;
use scraper::Node;

use super::text::{decode, trim};
use super::{FeedError, List, shown, some_of};
use crate::policy::{Page, Pattern};
use document::Document;

mod around;
mod buffer;
mod deprecation;
mod document;
mod elements;
mod labels;
mod markdown;
mod notes;
mod pairs;
mod readme;
mod select;
mod table;
mod tree;
mod words;

/// How many links an error shows.
const SHOWN_LINKS: usize = 5;

pub(super) fn parse_html(rules: &Page, bytes: &[u8], today: Date) -> Result<List, FeedError> {
    let text = decode(bytes)?;
    if !has_element(text) {
        return Err(FeedError::NotAPage {
            start: shown(trim(text)),
        });
    }
    let html = tree::parse(text)?;
    select::select(&Document::read(&html), rules, today)
}

/// The parser makes a page of any text.
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
    select::select(&Document::read(&html), rules, today)
}

/// Whether a whole page came where Markdown, which may hold parts of pages, was meant to be.
fn is_html(text: &str) -> bool {
    let text = text.trim_start().as_bytes();
    ["<!doctype", "<html"].iter().any(|start| {
        text.get(..start.len())
            .is_some_and(|text| text.eq_ignore_ascii_case(start.as_bytes()))
    })
}

/// For pages on which the list is linked: the one address, as written, that the pattern matches.
pub fn find_link(bytes: &[u8], pattern: &Pattern) -> Result<String, FeedError> {
    let html = tree::parse(decode(bytes)?)?;
    let mut links: Vec<&str> = html
        .tree
        .nodes()
        .filter_map(|node| match node.value() {
            Node::Element(element) if element.name() == "a" => element.attr("href"),
            _ => None,
        })
        .map(str::trim)
        .collect();
    links.sort_unstable();
    links.dedup();
    let matching: Vec<&str> = links
        .iter()
        .copied()
        .filter(|link| pattern.is_match(link))
        .collect();
    match matching[..] {
        [link] => Ok(link.to_owned()),
        [] => Err(FeedError::NoLink {
            pattern: pattern.as_str().to_owned(),
            found: match links.len() {
                0 => "it has no links".to_owned(),
                _ => format!("it links to {}", some_of(links, SHOWN_LINKS)),
            },
        }),
        _ => Err(FeedError::ManyLinks {
            pattern: pattern.as_str().to_owned(),
            count: matching.len(),
            found: some_of(matching, SHOWN_LINKS),
        }),
    }
}

#[cfg(test)]
mod tests;
