//! Parses HTML into a tree of nodes of limited size.
//!
//! Invariant: time and memory grow linearly with the length of the page. The parser follows the standard, by which a
//! short page can produce a huge tree: an unclosed `<b>` is reopened in each paragraph, each tag is compared with all
//! open elements, and each attribute with all previous attributes of its tag.

use html5ever::driver::{ParseOpts, parse_document};
use html5ever::tendril::{StrTendril, TendrilSink};
use scraper::{Html, HtmlTreeSink, Node};

use crate::feed::FeedError;

/// The maximum nesting depth of elements of a page; a deeper page fails with [`FeedError::TooDeep`]. Pages that people
/// write are some dozens deep, and browsers stop at this depth too.
const DEEPEST: usize = 512;
/// The maximum number of nodes of a page; a page with more fails with [`FeedError::TooMany`]. A page of some megabytes
/// has a tenth of this.
const MOST_NODES: usize = 500_000;
/// The maximum number of attributes of one tag; a page with more fails with [`FeedError::TooMany`]. The words of a
/// comment are counted like attributes, so the limit is generous.
const MOST_ATTRIBUTES: usize = 20_000;
/// The number of bytes that are parsed between two checks of the tree. It is small, since the cost of one tag grows
/// with it.
const STEP: usize = 512;

pub(super) fn parse(text: &str) -> Result<Html, FeedError> {
    let sink = HtmlTreeSink::new(Html::new_document());
    let mut parser = parse_document(sink, ParseOpts::default());
    let mut rest = text;
    let mut size = (0, 0);
    let mut attributes = 0;
    while !rest.is_empty() {
        let (step, after) = rest.split_at(rest.ceil_char_boundary(STEP));
        parser.process(StrTendril::from_slice(step));
        rest = after;
        let html = parser.tokenizer.sink.sink.0.borrow();
        check(&html)?;
        // As long as the tree does not grow, this may all be one tag.
        let grown = size_of(&html);
        attributes = if grown == size {
            attributes + separators(step)
        } else {
            0
        };
        size = grown;
        if attributes > MOST_ATTRIBUTES {
            return Err(FeedError::TooMany);
        }
    }
    let html = parser.finish();
    check(&html)?;
    Ok(html)
}

fn check(html: &Html) -> Result<(), FeedError> {
    if html.tree.values().len() > MOST_NODES {
        return Err(FeedError::TooMany);
    }
    // The next node is about as deep as the last one.
    let last = html.tree.nodes().next_back();
    if last.is_some_and(|node| node.ancestors().nth(DEEPEST).is_some()) {
        return Err(FeedError::TooDeep);
    }
    Ok(())
}

/// Returns the number of nodes of the page so far, and the length in bytes of the last node if it is a text, otherwise
/// 0.
fn size_of(html: &Html) -> (usize, usize) {
    let text = match html.tree.values().next_back() {
        Some(Node::Text(text)) => text.len(),
        _ => 0,
    };
    (html.tree.values().len(), text)
}

/// Returns the number of places in a part of a page at which an attribute may start.
fn separators(step: &str) -> usize {
    let is_separator = |byte: u8| byte.is_ascii_whitespace() || b"/\"'".contains(&byte);
    step.as_bytes()
        .windows(2)
        .filter(|pair| is_separator(pair[0]) && !is_separator(pair[1]))
        .count()
}
