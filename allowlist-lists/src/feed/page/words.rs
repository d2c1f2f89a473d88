//! Splits a line into words and finds the addresses.
//!
//! - `chars`: separators, invisible characters, look-alikes of digits
//! - `parts`: a line to words
//! - `shape`: the classification of one word
//! - `phrases`: several words that are one range, one prefix, or a version number
//!
//! Invariant: a word is an address as a whole or not at all. A word that only looks like an address is found too, so
//! that the parser refuses it and fails the page; so is an address with other text attached, which would otherwise be
//! lost. Where a human reader could not be sure either, the reading is [`Reading::Unclear`].

use std::ops::Range;

use super::super::error::Unclear;
use super::super::token::{PrefixError, parse_token};
use super::buffer::{Mark, Marks};
use phrases::{Line, Number};
use shape::Shape;

pub(super) mod chars;
mod parts;
mod phrases;
mod shape;

pub(super) use phrases::{
    End, end, is_length_label, is_link, is_netmask, is_range_word, is_version_label, length,
};
pub(super) use shape::What;

/// The maximum length of a label, in characters. A longer text is treated as a sentence.
pub(super) const LONGEST_LABEL: usize = 80;
/// The maximum length in bytes of a text that is examined for two addresses without a space between them, or for one
/// address that raised text divides. A longer text is not divided or joined.
const LONGEST_PAIR: usize = 120;

/// A text of a line that is to be parsed as an address, a prefix or a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The byte range of the text in the line.
    pub token: Range<usize>,
    /// The byte range in the line of the label that stands before the address; `None` if it has none.
    pub label: Option<Range<usize>>,
    pub reading: Reading,
    pub is_struck_out: bool,
}

/// How a text that looks like an address is read: as written, joined with another text, or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    AsWritten,
    /// Several words of the page are one prefix or range, which is written as this text.
    Joined(Box<str>),
    /// The meaning of the text is not certain, for this reason, and the page is refused.
    Unclear(Unclear),
}

/// A text of a line that looks like an address and is something else, such as a version number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotRead {
    /// The byte range of the text in the line.
    pub text: Range<usize>,
    pub what: What,
}

/// The addresses of a line, and the texts of the line that look like addresses and are something else.
#[derive(Debug, Default)]
pub(super) struct Words {
    pub found: Vec<Found>,
    pub not_read: Vec<NotRead>,
}

/// Finds the addresses of a line, and the texts of the line that look like addresses and are something else, in their
/// order.
pub(super) fn find(text: &str, marks: &Marks, is_heading: bool) -> Words {
    let line = Line::new(text, divide(text, parts::words(text), marks));
    let mut words = Words::default();
    let mut label = None;
    // The place behind the last version number.
    let mut version = 0;
    let mut at = 0;
    while at < line.words.len() {
        match line.shapes[at] {
            Shape::Prose => {
                at += 1;
                continue;
            }
            Shape::NotRead(what) => {
                words.not_read.push(NotRead {
                    text: line.words[at].clone(),
                    what,
                });
                at += 1;
                continue;
            }
            Shape::Address => {}
        }
        let number = line.number(at, is_heading);
        if let Some(Number::Of(what, text)) = number {
            words.not_read.push(NotRead { text, what });
            at += 1;
            version = at;
            continue;
        }
        let start = line.words[at].start;
        if let Some(code) = at
            .checked_sub(1)
            .filter(|at| is_code(&text[line.words[*at].clone()]))
        {
            label = Some(line.words[code].clone());
        } else if words.found.is_empty() {
            label = beginning(&text[..start]);
        }
        let (next, mut reading) = line.phrase(at);
        if number.is_some() {
            reading = Reading::Unclear(Unclear::Section);
        } else if at > 0 && version == at {
            reading = Reading::Unclear(Unclear::Version);
        }
        let token = start..line.words[next - 1].end;
        let (is_struck_out, doubt) = doubt(&token, marks);
        // For two addresses that run together, the parser's error is more precise.
        let doubt = doubt.filter(|doubt| {
            let parsed = parse_token(&text[token.clone()], &mut Vec::new());
            *doubt != Unclear::Markup || !matches!(parsed, Err(PrefixError::Glued { .. }))
        });
        words.found.push(Found {
            token,
            label: label.clone(),
            reading: doubt.map_or(reading, Reading::Unclear),
            is_struck_out,
        });
        at = next;
    }
    words.found.extend(raised(text, marks));
    words
}

/// Returns whether the text at the range `token` is crossed out, and the reason why it is not certain that the text is
/// an address, if any.
fn doubt(token: &Range<usize>, marks: &Marks) -> (bool, Option<Unclear>) {
    if marks.is_reordered {
        return (false, Some(Unclear::Reordered));
    }
    let first = marks
        .places
        .partition_point(|(place, _)| *place <= token.start);
    let mut inside = marks.places[first..]
        .iter()
        .take_while(|(place, _)| *place < token.end);
    let doubt = inside.find_map(|(_, mark)| match mark {
        Mark::Markup => Some(Unclear::Markup),
        Mark::Invisible => Some(Unclear::Invisible),
        // It divides words, which are judged by themselves.
        Mark::Raised => None,
    });
    let struck = &marks.struck_out;
    let at = struck.partition_point(|range| range.end <= token.start);
    match struck.get(at) {
        Some(range) if range.start <= token.start && token.end <= range.end => (true, doubt),
        Some(range) if range.start < token.end => (false, Some(Unclear::StruckOut)),
        _ => (false, doubt),
    }
}

/// Returns the addresses of a line that are complete only together with superscript or subscript text, with an unclear
/// reading.
fn raised(text: &str, marks: &Marks) -> Vec<Found> {
    let is_of_one = |c: char| c.is_ascii_hexdigit() || ".:/".contains(c);
    let is_whole = |text: &str| !text.ends_with(':') && parse_token(text, &mut Vec::new()).is_ok();
    let raised = marks
        .places
        .iter()
        .filter(|(_, mark)| *mark == Mark::Raised);
    raised
        .filter_map(|&(blank, _)| {
            let (before, after) = (&text[..blank], &text[blank + 1..]);
            let left = &before[before.trim_end_matches(is_of_one).len()..];
            let right = &after[..after.len() - after.trim_start_matches(is_of_one).len()];
            let is_divided = left.len() + right.len() <= LONGEST_PAIR
                && !left.is_empty()
                && !right.is_empty()
                && !is_whole(left)
                && !is_whole(right)
                && is_whole(&format!("{left}{right}"));
            is_divided.then(|| Found {
                token: blank - left.len()..blank + 1 + right.len(),
                label: None,
                reading: Reading::Unclear(Unclear::Raised),
                is_struck_out: false,
            })
        })
        .collect()
}

/// Divides the words of a line at the ends of crossed-out text, since two addresses may meet there without a space
/// between them.
fn divide(text: &str, words: Vec<Range<usize>>, marks: &Marks) -> Vec<Range<usize>> {
    if marks.struck_out.is_empty() {
        return words;
    }
    let edges: Vec<usize> = marks
        .struck_out
        .iter()
        .flat_map(|range| [range.start, range.end])
        .collect();
    let is_whole = |range: Range<usize>| parse_token(&text[range], &mut Vec::new()).is_ok();
    let mut divided = Vec::with_capacity(words.len());
    for mut word in words {
        let first = edges.partition_point(|edge| *edge <= word.start);
        for &edge in edges[first..].iter().take_while(|edge| **edge < word.end) {
            if word.len() <= LONGEST_PAIR && is_whole(word.start..edge) && is_whole(edge..word.end)
            {
                divided.push(word.start..edge);
                word.start = edge;
            }
        }
        divided.push(word);
    }
    divided
}

/// Returns whether a word consists of two capital letters, other than "IP", and so may be the code of a region. If a
/// page loses its table, such codes are all that separates the columns.
fn is_code(word: &str) -> bool {
    word.len() == 2 && word.bytes().all(|byte| byte.is_ascii_uppercase()) && word != "IP"
}

/// Returns the byte range of the label in the text before the first address, such as `US data center` in `US data
/// center: 192.0.2.1`; `None` if that text is empty or longer than a label.
fn beginning(before: &str) -> Option<Range<usize>> {
    let is_edge = |c: char| !c.is_alphanumeric();
    let start = before.len() - before.trim_start_matches(is_edge).len();
    let label = before.trim_matches(is_edge);
    (!label.is_empty() && label.chars().count() <= LONGEST_LABEL)
        .then(|| start..start + label.len())
}
