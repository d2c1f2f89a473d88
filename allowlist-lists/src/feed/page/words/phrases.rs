//! Several words that together are one range, one prefix (an address and its length) or one version number.
//!
//! Invariant: the two ends of a range are never read as two addresses, nor an address without the length
//! that stands beside it. Where words could mean a range or a change, they are unclear. English only.

use std::ops::Range;

use super::super::super::error::Unclear;
use super::super::super::token::DASHES;
use super::chars::{is_between, is_bracket};
use super::shape::{self, Shape, What};
use super::{Reading, is_code};

/// Words that stand between the two addresses of a range.
const RANGE_WORDS: [&str; 6] = ["to", "through", "thru", "until", "till", "upto"];
/// Characters that stand between the two addresses of a range.
const RANGE_SIGNS: &str = "-–—―‒−‐‑－～〜~.…⋯";
/// Words beside a range of addresses that do not change its meaning.
const FILLERS: [&str; 14] = [
    "from",
    "between",
    "and",
    "or",
    "the",
    "range",
    "ranges",
    "ip",
    "ips",
    "ipv4",
    "ipv6",
    "address",
    "addresses",
    "inclusive",
];
/// Signs that separate the addresses of a list within a line.
const LIST_SIGNS: [&str; 6] = ["/", "&", "+", "•", "·", "*"];
/// Words that show that the number after them is a version number.
const VERSIONS: [&str; 19] = [
    "version",
    "versions",
    "ver",
    "vers",
    "v",
    "build",
    "builds",
    "release",
    "releases",
    "revision",
    "rev",
    "firmware",
    "fw",
    "hotfix",
    "patch",
    "patchlevel",
    "least",
    "≥",
    "≤",
];
/// Words that show that the number after them is that of a part of a document.
const SECTIONS: [&str; 12] = [
    "section",
    "sections",
    "chapter",
    "figure",
    "fig",
    "table",
    "appendix",
    "step",
    "clause",
    "paragraph",
    "§",
    "§§",
];
/// Words that may stand between a word such as "version" or "section" and its number.
const BEFORE_NUMBER: [&str; 10] = [
    "no", "nr", "number", "is", "=", "than", "newer", "later", "higher", "older",
];
/// Words that show, after "or" or "and", that the number before is a version number: "2.4.1.3 or later".
const NEWER: [&str; 10] = [
    "newer", "later", "higher", "above", "greater", "up", "upwards", "earlier", "older", "onwards",
];
/// The greatest number in a dotted section number (such as 2.4.1.30) of a heading; four numbers with a greater one are
/// an address.
const LAST_SECTION: u8 = 30;
/// The greatest number in a dotted section number (such as 2.4.1.20) of a line that is not a heading; four numbers with
/// a greater one are an address.
const LAST_SECTION_IN_TEXT: u8 = 20;
/// The maximum number of bytes between two words that can belong to one phrase, such as a range.
const NEAR: usize = 6;

/// A line of a page, divided into words, with the class of each word.
pub(super) struct Line<'t> {
    text: &'t str,
    pub(super) words: Vec<Range<usize>>,
    pub(super) shapes: Vec<Shape>,
}

/// The meaning of four numbers with dots between them that may be no IPv4 address.
pub(super) enum Number {
    /// The number of a version or of a part of a document, and the byte range in the line of the number and the words
    /// that show its meaning.
    Of(What, Range<usize>),
    /// The number is that of a section, or is an address with a name after it.
    Unclear,
}

/// The sign or word that connects two addresses of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// A hyphen or an en dash with white space around it.
    Dash,
    /// A word or a sign that means a range if the line contains nothing else.
    Range,
    /// A sign whose meaning between two addresses is not known.
    Sign,
}

impl<'t> Line<'t> {
    pub(super) fn new(text: &'t str, words: Vec<Range<usize>>) -> Self {
        let shapes = words.iter().map(|word| shape::of(&text[word.clone()]));
        Self {
            text,
            shapes: shapes.collect(),
            words,
        }
    }

    fn word(&self, at: usize) -> &'t str {
        self.words
            .get(at)
            .map_or("", |word| &self.text[word.clone()])
    }

    fn is_address(&self, at: usize) -> bool {
        self.shapes.get(at) == Some(&Shape::Address)
    }

    /// Returns the text between the word with the index `at` and the next word; `None` if there is no next word, or if
    /// the text is longer than [`NEAR`] bytes or has a separator such as a comma.
    fn gap(&self, at: usize) -> Option<&'t str> {
        let (one, next) = (self.words.get(at)?, self.words.get(at + 1)?);
        let gap = self.text.get(one.end..next.start)?;
        let has_separator = gap.contains(|c: char| is_between(c) && !c.is_whitespace());
        (gap.len() <= NEAR && !has_separator).then_some(gap)
    }

    /// Reads the phrase (an address, with a length or as a range) that begins with the address at word index `at`.
    /// Returns the index of the word after the phrase, and the reading.
    pub(super) fn phrase(&self, at: usize) -> (usize, Reading) {
        if self.is_in_url(at) {
            return (at + 1, Reading::Unclear(Unclear::Glued));
        }
        let (mut next, first) = self.unit(at);
        let mut is_joined = first.is_some();
        let mut links = Vec::new();
        while let Some((words, link)) = self.link(next - 1)
            && self.is_address(next + words)
        {
            let (after, unit) = self.unit(next + words);
            is_joined |= unit.is_some();
            links.push((link, next + words));
            next = after;
        }
        let is_between = at > 0 && self.word(at - 1).eq_ignore_ascii_case("between");
        if links.is_empty()
            && is_between
            && self.word(next).eq_ignore_ascii_case("and")
            && self.is_address(next + 1)
        {
            links.push((Link::Range, next + 1));
            next += 2;
        }
        if length(self.word(next), false).is_some() {
            // A second length, or one behind a separator.
            return (next, Reading::Unclear(Unclear::Length));
        }
        let reading = match links[..] {
            [] => first.map_or(Reading::AsWritten, |token| Reading::Joined(token.into())),
            // The parser refuses a chain, whose meaning is unknown.
            _ if links.iter().all(|(link, _)| *link == Link::Dash) && !is_joined => {
                Reading::AsWritten
            }
            [(Link::Range, last)] if !is_joined && self.is_alone() => {
                let (first, last) = (self.word(at), self.word(last));
                if first.contains(['/', '-', '–']) || last.contains(['/', '-', '–']) {
                    Reading::Unclear(Unclear::Range)
                } else {
                    Reading::Joined(format!("{first}-{last}").into())
                }
            }
            _ => Reading::Unclear(Unclear::Range),
        };
        (next, reading)
    }

    /// Reads the address at word index `at`, and a prefix length that follows as a word of its own. Returns the index
    /// of the word after them, and the prefix that they form; `None` if no length follows.
    fn unit(&self, at: usize) -> (usize, Option<String>) {
        let address = self.word(at);
        if self.gap(at).is_none() {
            return (at + 1, None);
        }
        if let Some(length) = self.word(at + 1).strip_prefix('/') {
            if is_number(length) {
                return (at + 2, Some(format!("{address}/{length}")));
            }
            if length.is_empty() && self.gap(at + 1).is_some() && is_number(self.word(at + 2)) {
                let length = self.word(at + 2);
                return (at + 3, Some(format!("{address}/{length}")));
            }
        }
        (at + 1, None)
    }

    /// Returns the connection that follows the word with the index `at`: the number of its words, and its kind. `None`
    /// if no connection follows.
    fn link(&self, at: usize) -> Option<(usize, Link)> {
        let (before, word) = (self.gap(at)?, self.word(at + 1));
        let after = self.gap(at + 1)?;
        let is_clean = before.trim().is_empty() && after.trim().is_empty();
        let is_one_of = |names: &[&str]| names.iter().any(|name| name.eq_ignore_ascii_case(word));
        if is_one_of(&RANGE_WORDS) {
            return Some((1, Link::Range));
        }
        if word.eq_ignore_ascii_case("up") && self.word(at + 2).eq_ignore_ascii_case("to") {
            return Some((2, Link::Range));
        }
        if word.contains(char::is_alphanumeric) || is_one_of(&LIST_SIGNS) {
            return None;
        }
        let link = if !is_clean {
            Link::Sign
        } else if word.chars().all(|c| DASHES.contains(&c)) {
            Link::Dash
        } else if word.chars().all(|c| RANGE_SIGNS.contains(c)) {
            Link::Range
        } else {
            Link::Sign
        };
        Some((1, link))
    }

    /// Returns whether the line contains only ranges and lists of addresses, apart from a label with a colon before
    /// them.
    fn is_alone(&self) -> bool {
        let first = self
            .shapes
            .iter()
            .position(|shape| *shape == Shape::Address);
        let first = first.unwrap_or_default();
        let is_labelled = self.text[..self.words[first].start]
            .trim_end()
            .ends_with([':', '：']);
        let start = if is_labelled { first } else { 0 };
        (start..self.words.len()).all(|at| {
            let word = self.word(at);
            let is_one_of =
                |names: &[&str]| names.iter().any(|name| name.eq_ignore_ascii_case(word));
            self.is_address(at)
                || is_one_of(&RANGE_WORDS)
                || is_one_of(&FILLERS)
                || word.eq_ignore_ascii_case("up")
                || !word.contains(char::is_alphabetic)
        })
    }

    /// Returns whether the word before the one with the index `at` is a URL with no white space or bracket after it.
    fn is_in_url(&self, at: usize) -> bool {
        let Some(before) = at.checked_sub(1) else {
            return false;
        };
        let gap = &self.text[self.words[before].end..self.words[at].start];
        let is_apart = gap.contains(|c: char| c.is_whitespace() || is_bracket(c));
        !is_apart && self.word(before).contains("://")
    }

    /// Returns the meaning of the address at word index `at` if it is, or may be, the number of a version or of a part
    /// of a document; `None` if it is an address.
    pub(super) fn number(&self, at: usize, is_heading: bool) -> Option<Number> {
        let numbers = octets(self.word(at))?;
        let of = |what, from: usize, to: usize| {
            Some(Number::Of(what, self.words[from].start..self.words[to].end))
        };
        let mut before = at;
        while before > 0 && at - before < 4 {
            before -= 1;
            let word = self.word(before).trim_end_matches(['.', ':', '#']);
            let word = word.to_lowercase();
            if VERSIONS.contains(&&*word) {
                return of(What::Version, before, at);
            }
            if SECTIONS.contains(&&*word) {
                return of(What::Section, before, at);
            }
            // "Versions 8.4.2.1 and 8.4.3.1".
            let is_listed = match at - before {
                1 => ["and", "or", "to", "through", "-", "–"].contains(&&*word),
                2 => octets(&word).is_some(),
                _ => false,
            };
            if !(is_listed || word.is_empty() || BEFORE_NUMBER.contains(&&*word)) {
                break;
            }
        }
        let is_newer = ["or", "and"].contains(&&*self.word(at + 1).to_lowercase())
            && NEWER.contains(&&*self.word(at + 2).to_lowercase());
        if is_newer {
            return of(What::Version, at, at + 2);
        }
        let title = self.word(at + 1);
        let is_at_most = |most: u8| numbers.iter().all(|number| *number <= most);
        if at > 0 || is_code(title) || self.gap(at) != Some(" ") {
            None
        } else if is_heading && title.starts_with(char::is_alphabetic) && is_at_most(LAST_SECTION) {
            of(What::Section, 0, 1)
        } else if title.starts_with(char::is_uppercase)
            && is_at_most(LAST_SECTION_IN_TEXT)
            && !self.shapes[1..].contains(&Shape::Address)
        {
            Some(Number::Unclear)
        } else {
            None
        }
    }
}

fn octets(word: &str) -> Option<[u8; 4]> {
    let address: std::net::Ipv4Addr = word.parse().ok()?;
    Some(address.octets())
}

fn is_number(word: &str) -> bool {
    (1..=3).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns whether a text consists of a word or signs that connect the two addresses of a range.
pub(in crate::feed::page) fn is_link(text: &str) -> bool {
    let text = text.trim();
    is_range_word(text) || (!text.is_empty() && text.chars().all(|c| RANGE_SIGNS.contains(c)))
}

/// Returns whether a text is a word, or "up to", that can stand between the two addresses of a range.
pub(in crate::feed::page) fn is_range_word(text: &str) -> bool {
    let text = text.trim();
    RANGE_WORDS
        .iter()
        .any(|word| word.eq_ignore_ascii_case(text))
        || text.eq_ignore_ascii_case("up to")
}

/// Returns the digits of a prefix length that stands alone: `/24`, or `24` if `is_named`, as in a column of lengths.
/// `None` for another text.
pub(in crate::feed::page) fn length(text: &str, is_named: bool) -> Option<&str> {
    let digits = text.strip_prefix('/').map(str::trim_start);
    digits
        .or(is_named.then_some(text))
        .filter(|digits| is_number(digits))
}

/// Returns whether a text is an IPv4 netmask, such as 255.255.255.0.
pub(in crate::feed::page) fn is_netmask(text: &str) -> bool {
    octets(text)
        .is_some_and(|octets| octets[0] == 255 && ipnet::ipv4_mask_to_prefix(octets.into()).is_ok())
}

/// The end of an address range that a label or a column header names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::feed::page) enum End {
    First,
    Last,
    /// The label is "From": the address is the first of a range, or the old one of a change from one address to
    /// another.
    From,
    To,
}

/// Returns the end of an address range that a label names, such as "First address"; `None` if the label names none, or
/// anything else as well.
pub(in crate::feed::page) fn end(label: &str) -> Option<End> {
    let mut end = None;
    for word in label
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        let this = match &*word.to_lowercase() {
            "start" | "starting" | "begin" | "beginning" | "first" | "lower" | "lowest" | "low"
            | "min" | "minimum" => End::First,
            "end" | "ending" | "last" | "upper" | "highest" | "high" | "max" | "maximum" => {
                End::Last
            }
            "from" => End::From,
            "to" | "through" => End::To,
            "ip" | "ips" | "ipv4" | "ipv6" | "address" | "addresses" | "range" | "ranges"
            | "of" | "the" | "network" | "block" | "in" | "cidr" => continue,
            _ => return None,
        };
        if end.replace(this).is_some() {
            return None;
        }
    }
    end
}

/// Returns whether a label is about lengths of prefixes, such as "Prefix", "Netmask" or "Prefix length".
pub(in crate::feed::page) fn is_length_label(label: &str) -> bool {
    let mut names_it = false;
    label
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .all(|word| match &*word.to_lowercase() {
            "prefix" | "length" | "mask" | "netmask" | "cidr" | "bits" | "prefixlen"
            | "masklen" | "subnet" => {
                names_it = true;
                true
            }
            "size" | "network" | "ip" | "ipv4" | "ipv6" | "len" | "in" | "the" | "of" => true,
            _ => false,
        })
        && names_it
}

/// Returns whether a label is about version numbers and not about addresses, such as "Minimum version".
pub(in crate::feed::page) fn is_version_label(label: &str) -> bool {
    let words: Vec<String> = label
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let is_address = |word: &String| {
        [
            "ip",
            "ips",
            "ipv4",
            "ipv6",
            "address",
            "addresses",
            "cidr",
            "network",
            "prefix",
            "range",
        ]
        .contains(&&**word)
    };
    let last = words
        .iter()
        .rev()
        .find(|word| !["number", "no", "required", "supported", "min", "max"].contains(&&***word));
    words.len() <= 5
        && !words.iter().any(is_address)
        && last.is_some_and(|word| {
            [
                "version", "versions", "build", "release", "firmware", "revision",
            ]
            .contains(&&**word)
        })
}
