//! The page parser: generated pages of text and markup, compared with a model of the visible text.
//!
//! An input has two bytes per piece: the number of a text, and the number of the markup around it. The model is slow and
//! knows no HTML: it has the visible characters of each line, and the positions between them with markup or invisible
//! characters. It checks each accepted list:
//!
//! - every prefix of the list is a whole word of a line, or the range or network that words of one line form;
//! - every address in a line is in the list or in a note;
//! - a page that has only addresses, blanks and commas is accepted, with any markup around its words.

use std::net::IpAddr;

use allowlist_lists::feed::{self, List, parse_ends, parse_prefix, parse_with_length};
use allowlist_policy::{Format, Page};
use ipnet::IpNet;
use jiff::civil::{Date, date};

const TODAY: Date = date(2026, 11, 24);
/// The maximum number of pieces: low enough that notes can list all addresses.
const MAX_PIECES: usize = 16;

/// The maximum length in bytes of a text that is too ambiguous to be required in the list, such as `a::`.
const AMBIGUOUS_LENGTH: usize = 6;

/// Texts as displayed, without HTML syntax. The first [`ADDRESSES`] are addresses.
pub(crate) const TEXTS: [&str; 32] = [
    "52.1.1.1",
    "45.11.36.9",
    "45.11.36.0/24",
    "2a00:1::9",
    "2a00:1::/48",
    "45.11.36.1",
    " ",
    ", ",
    "2",
    "9",
    "a",
    ".",
    ":",
    "/24",
    "45.11",
    "36.9",
    "2a00:1:",
    "-",
    " - ",
    " to ",
    "—",
    "†",
    "²",
    "，",
    "=",
    "x",
    "US",
    "(",
    ")",
    " version ",
    " removed ",
    "https://a.example/",
];
const ADDRESSES: usize = 6;
const SEPARATORS: [usize; 2] = [6, 7];

/// The markup around a text.
pub(crate) const MARKUP: [(&str, &str, Effect); 16] = [
    ("", "", Effect::None),
    ("", "", Effect::None),
    ("<b>", "</b>", Effect::Inline),
    ("<span class=x>", "</span>", Effect::Inline),
    ("<a href='#n'>", "</a>", Effect::Inline),
    ("<ins>", "</ins>", Effect::Inline),
    ("<!-- x -->", "", Effect::Inline),
    ("<wbr>", "", Effect::Inline),
    ("<span hidden>45.11.36.77</span>", "", Effect::Inline),
    ("<sup>", "</sup>", Effect::Raised),
    ("<sub>", "</sub>", Effect::Raised),
    ("<del>", "</del>", Effect::StruckOut),
    ("&#8203;", "", Effect::Invisible),
    ("&shy;", "", Effect::Invisible),
    ("</p><p>", "", Effect::Line),
    ("<br>", "", Effect::Line),
];

/// The effect of markup on the text in it and beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    Inline,
    Raised,
    StruckOut,
    Invisible,
    Line,
}

/// A visible character, and the effect of the markup before it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    c: char,
    before: Effect,
    is_struck_out: bool,
}

/// A page, and its visible text.
#[derive(Debug, Default)]
struct Model {
    html: String,
    lines: Vec<Vec<Seen>>,
    /// Whether the page has only complete and separated addresses.
    is_simple: bool,
}

/// A word of a line.
#[derive(Debug)]
struct Word {
    text: String,
    is_struck_out: bool,
    /// Whether the word is part of a URL, which ends with a blank or a comma.
    is_in_url: bool,
    /// Whether no markup or invisible character makes the word ambiguous.
    is_whole: bool,
}

/// Parses the page that an input describes.
///
/// # Panics
/// If an accepted list has an invisible address, or if a visible address is neither in the list nor in a note.
pub fn run(input: &[u8]) {
    let model = Model::of(input);
    let format = Format::Html(Page::default());
    match feed::parse(&format, model.html.as_bytes(), TODAY) {
        Ok(list) => model.check(&list),
        Err(error) => assert!(!model.is_simple, "refused: {error}\npage: {}", model.html),
    }
}

impl Model {
    fn of(input: &[u8]) -> Self {
        let mut model = Self {
            html: "<p>".to_owned(),
            lines: vec![Vec::new()],
            is_simple: input.len() > 1,
        };
        let mut pending = Effect::None;
        let mut last = None;
        for pair in input.chunks_exact(2).take(MAX_PIECES) {
            let number = usize::from(pair[0]) % TEXTS.len();
            let (open, close, effect) = MARKUP[usize::from(pair[1]) % MARKUP.len()];
            let text = TEXTS[number];
            model.html.extend([open, text, close]);
            if effect == Effect::Line {
                model.lines.push(Vec::new());
                pending = Effect::None;
                last = None;
            }
            pending = strongest(pending, effect);
            for c in text.chars() {
                let line = model.lines.last_mut().expect("there is a line");
                line.push(Seen {
                    c,
                    before: std::mem::replace(&mut pending, Effect::None),
                    is_struck_out: effect == Effect::StruckOut,
                });
            }
            // Markup without a closing tag affects one position.
            pending = if close.is_empty() {
                Effect::None
            } else {
                effect
            };
            let is_separated =
                last.is_none_or(|last| SEPARATORS.contains(&last)) || SEPARATORS.contains(&number);
            let is_text = number < ADDRESSES || SEPARATORS.contains(&number);
            model.is_simple &= is_text && is_separated && effect != Effect::StruckOut;
            last = Some(number);
        }
        let mut texts = input.chunks_exact(2).take(MAX_PIECES);
        model.is_simple &= texts.any(|pair| usize::from(pair[0]) % TEXTS.len() < ADDRESSES);
        model
    }

    fn check(&self, list: &List) {
        let lines: Vec<Vec<Word>> = self.lines.iter().map(|line| words(line)).collect();
        let visible: Vec<IpNet> = lines
            .iter()
            .flat_map(|words| visible_prefixes(words))
            .collect();
        for prefix in &list.prefixes {
            assert!(
                IpNet::aggregate(&visible)
                    .iter()
                    .any(|seen| seen.contains(prefix))
                    && visible
                        .iter()
                        .any(|seen| seen == prefix || !is_single(seen) || seen.contains(prefix)),
                "{prefix} is in the list, but not visible\npage: {}\n{list:?}",
                self.html
            );
        }
        for address in lines
            .iter()
            .flatten()
            .filter(|word| !word.is_in_url)
            .flat_map(|word| addresses(bare(&word.text)))
        {
            let is_listed = list.prefixes.iter().any(|prefix| prefix.contains(&address));
            let shown = address.to_string();
            let is_noted = list
                .notes
                .iter()
                .any(|note| note.contains(&shown) || note.contains(" more"));
            assert!(
                is_listed || is_noted,
                "{address} is visible, but neither in the list nor in a note\npage: {}\n{list:?}",
                self.html
            );
        }
        if self.is_simple {
            let missing = visible.iter().find(|seen| !list.prefixes.contains(seen));
            assert_eq!(missing, None, "page: {}\n{list:?}", self.html);
        }
    }
}

fn is_single(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

fn strongest(one: Effect, other: Effect) -> Effect {
    let order = [
        Effect::None,
        Effect::Line,
        Effect::Inline,
        Effect::StruckOut,
        Effect::Invisible,
        Effect::Raised,
    ];
    let rank = |effect| order.iter().position(|other| *other == effect);
    if rank(one) > rank(other) { one } else { other }
}

/// Splits a line into words at blanks, commas, brackets and the edges of raised text.
fn words(line: &[Seen]) -> Vec<Word> {
    let is_separator = |c: char| c.is_whitespace() || ",，()".contains(c);
    let mut words = Vec::new();
    let mut start = 0;
    // The first word since the last blank or comma.
    let mut url = 0;
    for end in 0..=line.len() {
        let is_end = end == line.len() || is_separator(line[end].c);
        let is_raised = end < line.len() && line[end].before == Effect::Raised;
        if !is_end && !is_raised {
            continue;
        }
        let mut seen = &line[start..end.max(start)];
        // Two adjacent addresses, of which one is struck out, are two words.
        while let Some(edge) = struck_edge(seen) {
            words.push(word(&seen[..edge]));
            seen = &seen[edge..];
        }
        if !seen.is_empty() {
            words.push(word(seen));
        }
        if words[url..].iter().any(|word| word.text.contains("://"))
            && let Some(word) = words.last_mut()
        {
            word.is_in_url = true;
        }
        if is_end && end < line.len() && !"()".contains(line[end].c) {
            url = words.len();
        }
        start = if is_end { end + 1 } else { end };
    }
    words
}

fn struck_edge(seen: &[Seen]) -> Option<usize> {
    let is_whole = |seen: &[Seen]| {
        let text: String = seen.iter().map(|seen| seen.c).collect();
        parse_prefix(bare(&text)).is_ok()
    };
    (1..seen.len()).find(|&at| {
        seen[at - 1].is_struck_out != seen[at].is_struck_out
            && is_whole(&seen[..at])
            && is_whole(&seen[at..])
    })
}

fn word(seen: &[Seen]) -> Word {
    let is_digit = |c: char| c.is_ascii_hexdigit();
    let text: String = seen.iter().map(|seen| seen.c).collect();
    // A label before the word and the end of a sentence are not part of the word.
    let bare = bare(&text);
    let start = bare.as_ptr() as usize - text.as_ptr() as usize;
    let start = text[..start].chars().count();
    let seen = match bare.chars().count() {
        0 => seen,
        length => &seen[start..start + length],
    };
    let is_doubtful = seen.windows(2).any(|pair| match pair[1].before {
        Effect::Inline | Effect::StruckOut => is_digit(pair[0].c) && is_digit(pair[1].c),
        Effect::Invisible => true,
        _ => false,
    });
    let struck = seen.iter().filter(|seen| seen.is_struck_out).count();
    Word {
        is_struck_out: struck == seen.len(),
        is_whole: !is_doubtful && (struck == 0 || struck == seen.len()),
        is_in_url: false,
        text,
    }
}

/// Returns all prefixes that the words of a line may denote.
fn visible_prefixes(words: &[Word]) -> Vec<IpNet> {
    let mut visible = Vec::new();
    let single = |word: &Word| -> Option<IpAddr> { bare(&word.text).parse().ok() };
    for (at, word) in words.iter().enumerate() {
        if word.is_struck_out || !word.is_whole {
            continue;
        }
        let text = bare(&word.text);
        visible.extend(parse_prefix(text));
        if let Some((first, last)) = text.split_once('-') {
            // The end of a range may be its last number only.
            let network = first.rsplit_once('.').map_or("", |(network, _)| network);
            let whole = format!("{network}.{last}");
            let last = if last.contains(['.', ':']) {
                last
            } else {
                &whole
            };
            visible.extend(parse_ends(first, last).unwrap_or_default());
        }
        let next = |number: usize| words.get(at + number).filter(|word| word.is_whole);
        if let Some(length) = next(1).filter(|word| word.text.starts_with('/')) {
            visible.extend(parse_with_length(text, bare(&length.text)));
        }
        if next(1).is_some_and(|word| ["-", "to", "—"].contains(&&*word.text))
            && let (Some(first), Some(last)) = (single(word), next(2).and_then(single))
        {
            visible.extend(parse_ends(&first.to_string(), &last.to_string()).unwrap_or_default());
        }
    }
    visible
}

/// Returns a word without the end of a sentence, and without a label that ends with a colon.
fn bare(text: &str) -> &str {
    let mut text = text;
    for end in ['.', ':', '.', ':'] {
        if let Some(bare) = text.strip_suffix(end).filter(|bare| !bare.ends_with(end)) {
            text = bare;
        }
    }
    let is_label = |label: &str, rest: &str| {
        let has_letter = label.contains(char::is_alphabetic);
        let is_group = rest.contains(':') && label.chars().all(|c| c.is_ascii_hexdigit());
        let may_go_on = rest.contains(':') && label.ends_with(|c: char| c.is_ascii_digit());
        has_letter && !is_group && !may_go_on
    };
    match text.split_once(':') {
        Some((label, rest)) if is_label(label, rest) => rest,
        _ => text,
    }
}

/// Returns the addresses in a text, delimited by characters that cannot be part of an address.
fn addresses(text: &str) -> Vec<IpAddr> {
    let is_address_char = |c: char| c.is_ascii_hexdigit() || ".:".contains(c);
    text.split(|c: char| !is_address_char(c))
        .map(|run| run.trim_matches('.'))
        // "::" and "a::" are ambiguous.
        .filter(|run| run.len() > AMBIGUOUS_LENGTH)
        .filter_map(|run| run.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASES: usize = 2000;

    /// A fixed sequence of pseudorandom pages; the fuzzer generates others.
    #[test]
    fn lists_match_the_visible_text() {
        let mut state = 1_u64;
        for _ in 0..CASES {
            let bytes: Vec<u8> = (0..2 * MAX_PIECES)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            for length in [4, 6, 8, 12, bytes.len()] {
                run(&bytes[..length]);
            }
        }
    }

    /// Wrong lists, which the model must reject.
    #[test]
    fn planted_faults_are_found() {
        let page = |pieces: &[(usize, usize)]| {
            let bytes = pieces
                .iter()
                .flat_map(|(text, markup)| [*text as u8, *markup as u8]);
            Model::of(&bytes.collect::<Vec<u8>>())
        };
        let of = |prefixes: &[&str]| List {
            prefixes: prefixes
                .iter()
                .map(|text| text.parse().expect("a prefix"))
                .collect(),
            ..List::default()
        };
        let faults = [
            // A footnote mark is appended to its address.
            (page(&[(1, 0), (8, 9)]), of(&["45.11.36.92/32"])),
            (page(&[(1, 0), (8, 4)]), of(&["45.11.36.92/32"])),
            // An address is missing.
            (
                page(&[(0, 0), (7, 0), (1, 0), (21, 0)]),
                of(&["52.1.1.1/32"]),
            ),
            // A range is parsed as its two ends.
            (
                page(&[(5, 0), (19, 0), (1, 0)]),
                of(&["45.11.36.5/32", "45.11.37.0/32"]),
            ),
            // A struck-out or hidden address is listed.
            (page(&[(1, 11)]), of(&["45.11.36.9/32"])),
            (page(&[(0, 8)]), of(&["45.11.36.77/32", "52.1.1.1/32"])),
        ];
        for (model, list) in faults {
            let checked = std::panic::catch_unwind(|| model.check(&list));
            assert!(checked.is_err(), "{model:?} {list:?}");
        }
    }
}
