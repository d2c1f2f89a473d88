//! Splits a line into words, and a word into the address in it and its labels.
//!
//! Invariant: only separators, brackets, quotes, labels with a colon and punctuation behind the word are
//! split off, so that no two texts become one, and no part of an address is lost.

use std::ops::Range;

use super::chars::{is_between, is_bracket};
use super::is_code;
use super::shape::{has_candidate, host, is_ipv6, is_pattern, quads};

/// The maximum number of bytes of a URL in brackets in which its closing bracket is searched for. If it is not found,
/// the URL extends to the end of the text.
const LONGEST_URL: usize = 4096;
/// The maximum number of characters after a bracket in a URL that are searched for an address.
const LONGEST_ADDRESS: usize = 60;

/// Returns the byte ranges of the words in `line`, without brackets and punctuation around them.
pub(super) fn words(line: &str) -> Vec<Range<usize>> {
    let mut start = 0;
    line.split_inclusive(is_between)
        .flat_map(|piece| {
            let raw = piece.strip_suffix(is_between).unwrap_or(piece);
            let offset = start;
            start += piece.len();
            // Each lies in `raw`, which starts where `piece` does.
            parts(raw).into_iter().map(move |word| {
                let offset = offset + (word.as_ptr() as usize - raw.as_ptr() as usize);
                offset..offset + word.len()
            })
        })
        .filter(|word| !word.is_empty())
        .collect()
}

/// Splits a text without white space into its URLs and the words between them. A URL in brackets ends at the closing
/// bracket.
fn parts(raw: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = raw;
    while let Some(start) = url(rest) {
        let opening = rest[..start].chars().next_back().filter(|c| is_bracket(*c));
        // A text glued to a URL is one word with it.
        let start = if opening.is_some() { start } else { 0 };
        if start > 0 {
            parts.extend(split(unwrapped(&rest[..start])));
        }
        let url = &rest[start..];
        let near = &url[..url.floor_char_boundary(LONGEST_URL)];
        let end = opening
            .and_then(closing)
            .and_then(|closing| near.find(closing))
            .unwrap_or(url.len());
        let end = address_behind(&url[..end]).unwrap_or(end);
        parts.push(unwrapped(&url[..end]));
        rest = &url[end..];
    }
    if !rest.is_empty() {
        parts.extend(split(unwrapped(rest)));
    }
    parts
}

/// Returns the byte offset of the first opening bracket or quotation mark after `://` in `url`, if an address follows it;
/// else `None`.
fn address_behind(url: &str) -> Option<usize> {
    let path = url.find("://")? + "://".len();
    let bracket = path + url[path..].find(['(', '<', '"', '“', '（', '「'])?;
    let after: String = url[bracket..].chars().take(LONGEST_ADDRESS).collect();
    has_candidate(&after).then_some(bracket)
}

/// Returns the byte offset at which the first URL in the text begins; `None` if the text contains no URL.
pub(super) fn url(text: &str) -> Option<usize> {
    let colon = text.find("://")?;
    let is_of_scheme = |c: char| c.is_ascii_alphanumeric() || "+.-".contains(c);
    let scheme = &text[..colon];
    let start = scheme.trim_end_matches(is_of_scheme).len();
    let digits = scheme[start..].trim_start_matches(|c: char| !c.is_ascii_alphabetic());
    Some(colon - digits.len())
}

fn closing(opening: char) -> Option<char> {
    let pairs = ["()", "[]", "{}", "<>", "（）", "【】", "“”", "‘’", "«»"];
    pairs
        .iter()
        .find_map(|pair| {
            let mut pair = pair.chars();
            (pair.next() == Some(opening))
                .then(|| pair.next())
                .flatten()
        })
        .or_else(|| "\"'`".contains(opening).then_some(opening))
}

/// Splits a word that contains an address into its parts: `US:192.0.2.1(old)` is three words. Another word is returned
/// whole.
fn split(word: &str) -> Vec<&str> {
    if host(word).is_some() {
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
    // A code behind an address is not the label of the next.
    let first = parts.iter().position(is_address);
    let mut at = 0;
    parts.retain(|part| {
        at += 1;
        first.is_none_or(|first| at <= first) || !is_code(part)
    });
    parts
}

/// Splits a word at a colon that belongs to no address, into the label and the address after it; `None` if there is no
/// such colon.
fn labelled(word: &str) -> Option<(&str, &str)> {
    let (label, rest) = word.split_once([':', '：'])?;
    let is_word = label
        .chars()
        .all(|c| c.is_alphanumeric() || "-_".contains(c))
        && label.contains(char::is_alphabetic);
    let is_one_colon =
        !rest.contains(':') && quads(rest).next().is_some_and(|quad| quad.start == 0);
    // A name that ends with a digit, or with a word of hexadecimal digits, may have an address glued to it:
    // `IP2001:db8::/32`, `x-a:2001:db8::/32`.
    let name = label.trim_end_matches(|c: char| c.is_ascii_hexdigit());
    let digits = &label[name.len()..];
    let may_be_group = digits.contains(|c: char| c.is_ascii_digit())
        || (!digits.is_empty() && !name.ends_with(char::is_alphabetic));
    let is_family = ["ip6", "ipv6", "v6"]
        .iter()
        .any(|name| name.eq_ignore_ascii_case(label));
    let is_no_group =
        label.contains(|c: char| !c.is_ascii_hexdigit()) && (is_family || !may_be_group);
    (is_word && !has_candidate(label) && (is_one_colon || (is_no_group && is_ipv6(rest))))
        .then_some((label, rest))
}

/// Returns a word without the brackets, quotes and emphasis marks around it and the punctuation after it. Several dots
/// at the end are kept, since an address may be cut short there.
pub(super) fn unwrapped(word: &str) -> &str {
    let is_wrapping = |c: char| is_bracket(c) || "*_•".contains(c);
    let mut word = word.trim_matches(is_bracket);
    loop {
        if is_pattern(word) {
            return word;
        }
        let shorter = word
            .trim_end_matches(['!', '?', '。', '！', '？'])
            .trim_matches(is_wrapping);
        let shorter = match shorter.strip_suffix('.') {
            Some(bare) if !bare.ends_with('.') => bare,
            _ => shorter,
        };
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
