//! The words of a line, and which of them are addresses.
//!
//! Invariant: a word is an address as a whole or not at all. What only looks like one is found too, so
//! that its reader refuses it, and so is an address that letters are glued to: it would be lost. Dates,
//! versions, times, URLs, host names and the addresses of network cards do not look like one.

use std::ops::Range;

use super::super::text::is_zero_width;
use super::super::token::{DASHES, parse_prefix};

/// As long as a label may be. What is longer is a sentence.
pub(super) const LONGEST_LABEL: usize = 80;

/// What is to be read as an address, a prefix or a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Where it stands in the line.
    pub token: Range<usize>,
    /// Where the words stand that say whose it is.
    pub label: Option<Range<usize>>,
}

/// All of a line, in their order.
pub(super) fn find(line: &str) -> Vec<Found> {
    let words = words(line);
    let is_address = |at: usize| {
        words
            .get(at)
            .map(|word| &line[word.clone()])
            .is_some_and(|word| is_like_an_address(word) || is_glued(word))
    };
    let is_single = |at: usize| is_address(at) && !line[words[at].clone()].contains('/');
    let is_dash = |at: usize| {
        words
            .get(at)
            .is_some_and(|word| line[word.clone()].trim_matches(DASHES).is_empty())
    };
    let mut found = Vec::new();
    let mut label = None;
    let mut at = 0;
    while at < words.len() {
        if !is_address(at) {
            at += 1;
            continue;
        }
        let before = &line[..words[at].start];
        if let Some(code) = at
            .checked_sub(1)
            .filter(|at| is_code(&line[words[*at].clone()]))
        {
            label = Some(words[code].clone());
        } else if found.is_empty() {
            label = beginning(before);
        }
        let start = words[at].start;
        // All of a chain, which its reader then refuses: who wrote it knows what it means.
        while is_single(at) && is_dash(at + 1) && is_single(at + 2) && is_near(&words, at) {
            at += 2;
        }
        found.push(Found {
            token: start..words[at].end,
            label: label.clone(),
        });
        at += 1;
    }
    found
}

/// Blanks, list punctuation and what copying leaves.
fn is_between(c: char) -> bool {
    c.is_whitespace() || is_zero_width(c) || matches!(c, ',' | ';' | '|')
}

/// Where the words stand, without what is around them. Some are empty.
fn words(line: &str) -> Vec<Range<usize>> {
    let mut start = 0;
    line.split_inclusive(is_between)
        .flat_map(|piece| {
            let raw = piece.strip_suffix(is_between).unwrap_or(piece);
            let offset = start;
            start += piece.len();
            // Each lies in `raw`, which starts where `piece` does.
            parts(unwrapped(raw)).into_iter().map(move |word| {
                let offset = offset + (word.as_ptr() as usize - raw.as_ptr() as usize);
                offset..offset + word.len()
            })
        })
        .filter(|word| !word.is_empty())
        .collect()
}

/// `US:192.0.2.1(old)` is three words, as far as there is an address among them.
fn parts(word: &str) -> Vec<&str> {
    if is_elsewhere(word) {
        return vec![word];
    }
    let mut parts = Vec::new();
    for part in word.split(is_bracket).map(unwrapped) {
        match labelled(part) {
            Some((label, rest)) => parts.extend([label, rest]),
            None => parts.push(part),
        }
    }
    let is_address = |part: &&str| quads(part).next().is_some() || is_ipv6(part);
    if parts.len() == 1 || !parts.iter().any(is_address) {
        return vec![word];
    }
    // What is behind an address says nothing of the next.
    let first = parts.iter().position(is_address);
    let mut at = 0;
    parts.retain(|part| {
        at += 1;
        first.is_none_or(|first| at <= first) || !is_code(part)
    });
    parts
}

/// The words before a colon that is no address's own.
fn labelled(word: &str) -> Option<(&str, &str)> {
    let (label, rest) = word.split_once([':', '：'])?;
    let is_word = label
        .chars()
        .all(|c| c.is_alphanumeric() || "-_".contains(c))
        && label.contains(char::is_alphabetic);
    let is_one_colon =
        !rest.contains(':') && quads(rest).next().is_some_and(|quad| quad.start == 0);
    let is_no_group = label.contains(|c: char| !c.is_ascii_hexdigit());
    (is_word && (is_one_colon || (is_no_group && is_ipv6(rest)))).then_some((label, rest))
}

/// Whether it is an address for certain, and not two names of a program: `a::b`.
fn is_ipv6(word: &str) -> bool {
    (word.matches(':').count() > 2 || word.contains('/')) && parse_prefix(word).is_ok()
}

/// Brackets and quotes, which are part of no address.
fn is_bracket(c: char) -> bool {
    "()[]{}<>（）【】\"'`“”‘’«»".contains(c)
}

/// A URL, a user at a host: what it names is elsewhere.
fn is_elsewhere(word: &str) -> bool {
    word.contains("://") || word.contains('@')
}

/// Whether letters are glued to an IPv4 address. Not those of a host name, of a path, of a version.
fn is_glued(word: &str) -> bool {
    const VERSIONS: [&str; 6] = ["v", "ver", "version", "r", "rev", "release"];
    let path = word.find('/').unwrap_or(word.len());
    !is_elsewhere(word)
        && quads(word).any(|quad| {
            let (before, after) = (&word[..quad.start], &word[quad.end..]);
            let length = after.strip_prefix('/').unwrap_or_default();
            let behind = length.trim_start_matches(|c: char| c.is_ascii_digit());
            let after = if behind.len() < length.len() {
                behind
            } else {
                after
            };
            let name = &before[before.trim_end_matches(char::is_alphabetic).len()..];
            let is_version = VERSIONS.iter().any(|word| word.eq_ignore_ascii_case(name));
            quad.start < path
                && !is_version
                && (!name.is_empty() || after.starts_with(char::is_alphabetic))
        })
}

/// Four numbers from 0 to 255 with dots between them and none around them.
fn quads(word: &str) -> impl Iterator<Item = Range<usize>> {
    let is_of_one = |c: char| c.is_ascii_digit() || c == '.';
    let mut end = 0;
    word.split_inclusive(move |c| !is_of_one(c))
        .filter_map(move |run| {
            let start = end;
            end += run.len();
            let run = run.strip_suffix(|c| !is_of_one(c)).unwrap_or(run);
            let is_octet = |octet: &str| octet.parse::<u8>().is_ok();
            (run.split('.').count() == 4 && run.split('.').all(is_octet))
                .then(|| start..start + run.len())
        })
}

/// Without the brackets, quotes and emphasis around it and the punctuation behind it.
fn unwrapped(word: &str) -> &str {
    const WRAPPING: [char; 20] = [
        '(', ')', '[', ']', '{', '}', '"', '\'', '`', '“', '”', '‘', '’', '<', '>', '*', '_', '•',
        '«', '»',
    ];
    let mut word = word.trim_matches(WRAPPING);
    loop {
        let shorter = word
            .trim_end_matches(['.', '!', '?'])
            .trim_matches(WRAPPING);
        // The end of `2001:db8::` belongs to it.
        let shorter = match shorter.strip_suffix(':') {
            Some(bare) if !bare.ends_with(':') => bare,
            _ => shorter,
        };
        if shorter == word {
            return word;
        }
        word = shorter;
    }
}

fn is_like_an_address(word: &str) -> bool {
    let is_of_one = |c: char| c.is_ascii_hexdigit() || ".:/".contains(c) || DASHES.contains(&c);
    let octets = || word.split('.').filter(|octet| !octet.is_empty()).count();
    let colons = || word.matches(':').count();
    word.chars().all(is_of_one)
        && word.contains(|c: char| c.is_ascii_hexdigit())
        && ((octets() >= 4 && word.contains(|c: char| c.is_ascii_digit()))
            || word.contains("::")
            || colons() >= 6)
}

/// Whether a dash stands between these alone, with blanks around it.
fn is_near(words: &[Range<usize>], at: usize) -> bool {
    let [first, dash, last] = [&words[at], &words[at + 1], &words[at + 2]];
    dash.start - first.end <= 2 && last.start - dash.end <= 2
}

/// Two capitals that name a region. Where a page was flattened, they are all that is left of a table.
fn is_code(word: &str) -> bool {
    word.len() == 2 && word.bytes().all(|byte| byte.is_ascii_uppercase()) && word != "IP"
}

/// What stands before the first address, if it is short: `US data center: 192.0.2.1`.
fn beginning(before: &str) -> Option<Range<usize>> {
    let is_edge = |c: char| !c.is_alphanumeric();
    let start = before.len() - before.trim_start_matches(is_edge).len();
    let label = before.trim_matches(is_edge);
    (!label.is_empty() && label.chars().count() <= LONGEST_LABEL)
        .then(|| start..start + label.len())
}
