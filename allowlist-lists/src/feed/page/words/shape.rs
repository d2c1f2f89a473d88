//! The classification of a word: an address, a text with an address glued to it, or prose.
//!
//! Invariant: a word in which there is a dotted quad or an IPv6 address is prose only if it is a URL, a
//! host name, a version or a path. Any other such word is treated as an address, which the parser then refuses because
//! of the characters beside it.

use std::ops::Range;

use super::super::super::token::{DASHES, parse_prefix};
use super::chars::{fold, is_bracket};
use super::is_code;
use super::parts::url;

/// The class of a word of a page: prose, an address, or a text that only looks like an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The word is certainly not an address.
    Prose,
    /// The word must be an address, a prefix or a range, and the page is refused if it is not.
    Address,
    /// The word looks like an address and is something else.
    NotRead(What),
}

/// The kind of a text that looks like an address and is something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::feed::page) enum What {
    Version,
    HostName,
    Path,
    Section,
    /// The text is a pattern or a version: an address with a letter for its last number.
    Pattern,
}

/// Names that a version number follows directly: `v1.2.3.4`.
const VERSIONS: [&str; 8] = ["v", "ver", "version", "r", "rev", "release", "build", "fw"];
/// Names that only addresses have, such as `ip`, so that a number after them is an address.
const ADDRESSES: [&str; 18] = [
    "ip",
    "ips",
    "ipv4",
    "ipv6",
    "ip4",
    "ip6",
    "cidr",
    "addr",
    "address",
    "addresses",
    "host",
    "server",
    "net",
    "network",
    "subnet",
    "range",
    "tcp",
    "udp",
];
/// Words that show, after a number and a hyphen, that the number is a version: `1.2.3.4-beta`.
const PRERELEASES: [&str; 12] = [
    "alpha", "beta", "rc", "dev", "pre", "preview", "snapshot", "final", "stable", "release",
    "patch", "hotfix",
];

/// The maximum length of a host name, in bytes.
const LONGEST_NAME: usize = 253;
/// The maximum length of a pattern of addresses, such as `192.0.2.*`, in bytes; a longer text is not a pattern.
const LONGEST_PATTERN: usize = 24;

pub(super) fn of(word: &str) -> Shape {
    if word.chars().all(is_of_address) {
        return if is_like_an_address(word) || is_short(word) {
            Shape::Address
        } else {
            Shape::Prose
        };
    }
    if word.is_ascii() {
        return classify(word);
    }
    let folded = fold(word);
    // A look-alike is a digit of the address, or glued to one.
    match (classify(&folded), classify(word)) {
        (Shape::Address, _) | (_, Shape::Address) => Shape::Address,
        (Shape::Prose, shape) | (shape, _) => shape,
    }
}

/// Returns the class of a word that contains characters other than those of addresses.
fn classify(text: &str) -> Shape {
    if let Some(start) = url(text) {
        // A text directly before a URL is glued to it.
        return if has_candidate(&text[..start]) {
            Shape::Address
        } else {
            Shape::Prose
        };
    }
    let host = host(text).unwrap_or(text.len());
    let mut shape = Shape::Prose;
    for quad in runs(text).take_while(|quad| quad.start < host) {
        match excuse(text, &quad) {
            None => return Shape::Address,
            Some(Shape::NotRead(what)) => shape = Shape::NotRead(what),
            Some(_) => {}
        }
    }
    if sixes(text).any(|six| six.start < host) || is_split(text) {
        return Shape::Address;
    }
    if is_pattern(text) {
        return if text.contains('*') {
            Shape::Address
        } else {
            Shape::NotRead(What::Pattern)
        };
    }
    shape
}

/// Returns whether the text contains something that may be an address, with any characters around it.
pub(super) fn has_candidate(text: &str) -> bool {
    runs(text).next().is_some() || sixes(text).next().is_some()
}

/// Returns whether the text is certainly an IPv6 address or prefix, and not two names of a program such as `a::b`.
pub(super) fn is_ipv6(text: &str) -> bool {
    (text.matches(':').count() > 2 || text.contains('/'))
        && text.contains(':')
        && parse_prefix(text).is_ok()
}

/// Returns the byte ranges in the text of four numbers from 0 to 255 with dots between them and no dots or digits
/// around them.
pub(super) fn quads(text: &str) -> impl Iterator<Item = Range<usize>> {
    numbers(text).filter(|run| {
        let run = &text[run.clone()];
        run.split('.').count() == 4 && run.split('.').all(is_octet)
    })
}

/// Returns the byte ranges in the text of four or more numbers with dots between them.
fn runs(text: &str) -> impl Iterator<Item = Range<usize>> {
    numbers(text).filter_map(|run| {
        let dotted = &text[run.clone()];
        let start = run.start + dotted.len() - dotted.trim_start_matches('.').len();
        let dotted = dotted.trim_matches('.');
        let mut octets = dotted.split('.').filter(|octet| !octet.is_empty());
        (octets
            .by_ref()
            .take(4)
            .filter(|octet| is_octet(octet))
            .count()
            == 4
            && octets.all(is_octet))
        .then(|| start..start + dotted.len())
    })
}

fn is_octet(text: &str) -> bool {
    text.parse::<u8>().is_ok()
}

/// Returns the byte ranges of the runs of digits and dots in the text.
fn numbers(text: &str) -> impl Iterator<Item = Range<usize>> {
    let is_of_one = |c: char| c.is_ascii_digit() || c == '.';
    let mut end = 0;
    text.split_inclusive(move |c| !is_of_one(c))
        .map(move |run| {
            let start = end;
            end += run.len();
            let run = run.strip_suffix(|c| !is_of_one(c)).unwrap_or(run);
            start..start + run.len()
        })
        .filter(|run| !run.is_empty())
}

/// Returns the byte ranges in the text that may be IPv6 addresses: runs of hexadecimal digits, colons and dots that are
/// not names of a program (`AWS::S3::Bucket`), times or MAC addresses.
fn sixes(text: &str) -> impl Iterator<Item = Range<usize>> {
    let is_of_one = |c: char| c.is_ascii_hexdigit() || c == ':' || c == '.';
    let mut end = 0;
    text.split_inclusive(move |c| !is_of_one(c))
        .filter_map(move |run| {
            let start = end;
            end += run.len();
            let run = run.strip_suffix(|c| !is_of_one(c)).unwrap_or(run);
            // The colon of a label or behind the address is not its own.
            let label = usize::from(run.starts_with(':') && !run.starts_with("::"));
            let (start, run) = (start + label, &run[label..]);
            let run = match run.strip_suffix(':') {
                Some(bare) if !bare.ends_with(':') => bare,
                _ => run,
            };
            let colons = run.matches(':').count();
            let first = run.split(':').next().unwrap_or_default();
            let is_group = first.len() >= 3 && first.contains(|c: char| c.is_ascii_digit());
            let is_valid = || run.parse::<std::net::Ipv6Addr>().is_ok();
            let is_six = run.contains(|c: char| c.is_ascii_digit())
                && ((is_group && run.contains("::")) || colons >= 6 || (colons > 2 && is_valid()));
            is_six.then(|| start..start + run.len())
        })
}

/// Returns the class of the word `text` if the four numbers at `quad` are certainly no address, and `None` if they may
/// be one.
fn excuse(text: &str, quad: &Range<usize>) -> Option<Shape> {
    let (before, after) = (&text[..quad.start], &text[quad.end..]);
    let note = |what| Some(Shape::NotRead(what));
    if is_host_name(after) {
        return Some(Shape::Prose);
    }
    let name = &before[before.trim_end_matches(char::is_alphabetic).len()..];
    let is_after_word = before[..before.len() - name.len()]
        .chars()
        .next_back()
        .is_some_and(char::is_alphanumeric);
    if is_one_of(&VERSIONS, name) && !is_after_word {
        return Some(Shape::Prose);
    }
    if !name.is_empty() {
        return None;
    }
    if let Some(path) = before.strip_suffix('/') {
        let product = &path[path
            .trim_end_matches(|c: char| c.is_ascii_alphanumeric())
            .len()..];
        let is_name = product.contains(|c: char| c.is_ascii_alphabetic());
        let is_prose = before.starts_with('/') || is_name && !is_one_of(&ADDRESSES, product);
        return is_prose.then_some(Shape::Prose);
    }
    for (mark, what) in [('.', What::HostName), ('-', What::Version)] {
        if let Some(rest) = before.strip_suffix(mark) {
            let label = &rest[rest
                .trim_end_matches(|c: char| c.is_ascii_alphanumeric())
                .len()..];
            let is_name = label.contains(|c: char| c.is_ascii_alphabetic());
            return (is_name && !is_one_of(&ADDRESSES, label) && !is_code(label))
                .then_some(Shape::NotRead(what));
        }
    }
    if !before.is_empty() {
        return None;
    }
    let starts_word = |mark: char| {
        let rest = after.strip_prefix(mark)?;
        let end = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let word = &rest[..end];
        (!word.is_empty() && !is_code(word)).then_some(word)
    };
    if let Some(word) = starts_word('-') {
        return if is_one_of(&PRERELEASES, word) {
            Some(Shape::Prose)
        } else {
            note(What::Version)
        };
    }
    if starts_word('/').is_some() || starts_word(':').is_some() {
        return note(What::Path);
    }
    None
}

fn is_one_of(names: &[&str], name: &str) -> bool {
    names.iter().any(|word| word.eq_ignore_ascii_case(name))
}

/// Returns the byte offset of the `@` in `user@host`, since such a host is no address of a list; `None` if the text has
/// no such form.
pub(super) fn host(text: &str) -> Option<usize> {
    let at = text.find('@')?;
    let user = &text[..at];
    (user.contains(char::is_alphanumeric) && !has_candidate(user)).then_some(at)
}

/// Returns whether the text `after` four dotted numbers continues them as a host name, such as `.nip.io` or
/// `.in-addr.arpa`.
fn is_host_name(after: &str) -> bool {
    let Some(rest) = after.strip_prefix('.') else {
        return false;
    };
    let end = rest
        .bytes()
        .take(LONGEST_NAME)
        .take_while(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(byte))
        .count();
    let mut labels = rest[..end].trim_end_matches('.').split('.');
    let is_name = labels.clone().count() > 1 && labels.clone().all(|label| !label.is_empty());
    // The last is no number, as it would be in two addresses run together.
    let is_top = |label: &str| label.len() > 1 && label.bytes().all(|b| b.is_ascii_alphabetic());
    is_name && labels.next_back().is_some_and(is_top)
}

fn is_of_address(c: char) -> bool {
    c.is_ascii_hexdigit() || ".:/".contains(c) || DASHES.contains(&c)
}

fn is_like_an_address(word: &str) -> bool {
    let octets = || word.split('.').filter(|octet| !octet.is_empty()).count();
    let colons = || word.matches(':').count();
    word.contains(|c: char| c.is_ascii_hexdigit())
        && ((octets() >= 4 && word.contains(|c: char| c.is_ascii_digit()))
            || word.contains("::")
            || colons() >= 6)
}

/// Returns whether a word is an IPv4 prefix with only three numbers: `192.0.2/24`.
fn is_short(word: &str) -> bool {
    word.split_once('/').is_some_and(|(network, length)| {
        network.split('.').count() == 3
            && network.split('.').all(is_octet)
            && length.parse::<u8>().is_ok_and(|length| length <= 32)
    })
}

/// Returns whether the text is an IPv4 address with brackets in it: `192[.]0[.]2[.]1`.
fn is_split(text: &str) -> bool {
    text.contains(is_bracket) && !text.contains('@') && {
        let bare: String = text.chars().filter(|c| !is_bracket(*c)).collect();
        quads(&bare).any(|quad| quad.len() == bare.len())
    }
}

/// Returns whether a text is a pattern of addresses, such as `192.0.2.*` or `192.0.2.x`.
pub(super) fn is_pattern(text: &str) -> bool {
    if text.len() > LONGEST_PATTERN {
        return false;
    }
    let mut parts = text.split('.');
    let numbers = parts.by_ref().take(3).filter(|part| is_octet(part)).count();
    let last = parts.next().unwrap_or_default();
    let last = last.split('/').next().unwrap_or_default();
    numbers == 3
        && parts.next().is_none()
        && !last.is_empty()
        && last.chars().all(|c| "*xX".contains(c))
}
