//! Text with one prefix per line, and the checks of any text before its format is parsed.
//!
//! Invariant: only the prefixes of a line are kept, so a million lines take little more memory than their prefixes.

use allowlist_policy::Lines;
use ipnet::IpNet;

use super::token::{PrefixError, parse_token};
use super::{FeedError, Place, shown, take};

/// Parses one address, prefix or range per line. With keywords in `rules`, only lines that start with a keyword are
/// read, and the text after the keyword is parsed.
///
/// # Errors
/// The bytes are not text, a line does not hold a prefix, or a keyword occurs in no line and `may_be_empty` is false.
pub(super) fn parse(
    rules: &Lines,
    bytes: &[u8],
    may_be_empty: bool,
) -> Result<Vec<IpNet>, FeedError> {
    let text = not_a_page(decode(bytes)?)?;
    let mut prefixes = Vec::new();
    let mut missing: Vec<&String> = rules.keywords.iter().collect();
    for (index, line) in text.lines().enumerate() {
        // A lone carriage return ends lines too; otherwise a comment before it would include the next line.
        for line in line.split('\r') {
            let starts = rules.comments.iter().filter_map(|start| line.find(start));
            let end = starts.min().unwrap_or(line.len());
            let mut token = trim(&line[..end]);
            if !rules.keywords.is_empty() {
                let (word, rest) = token.split_once(char::is_whitespace).unwrap_or((token, ""));
                if !rules.keywords.iter().any(|keyword| keyword == word) {
                    continue;
                }
                missing.retain(|keyword| *keyword != word);
                token = trim(rest);
            }
            if !token.is_empty() {
                let place = || Place::Line(index + 1);
                take(token, &mut prefixes, place)?;
                no_prefix_in_comment(&line[end..]).map_err(|error| FeedError::Prefix {
                    place: place(),
                    error: Box::new(error),
                })?;
            }
        }
    }
    match missing.first() {
        Some(keyword) if !may_be_empty => Err(FeedError::Unmatched {
            key: "keyword",
            what: format!("a line that starts with {keyword:?}"),
        }),
        _ => Ok(prefixes),
    }
}

/// Refuses a comment that starts with `;` and a prefix, since the author of `192.0.2.1;192.0.2.2` means two prefixes.
fn no_prefix_in_comment(comment: &str) -> Result<(), PrefixError> {
    let Some(words) = comment.strip_prefix(';') else {
        return Ok(());
    };
    let word = words
        .split([' ', '\t', ';', ',', '#'])
        .find(|word| !word.is_empty());
    match word.map(trim) {
        Some(word) if parse_token(word, &mut Vec::new()).is_ok() => {
            Err(PrefixError::InComment { token: shown(word) })
        }
        _ => Ok(()),
    }
}

/// Returns the bytes as UTF-8 text without a byte order mark, or an error if they are not text or only white space.
pub(super) fn decode(bytes: &[u8]) -> Result<&str, FeedError> {
    let not_text = |at| FeedError::NotText {
        at,
        problem: problem(bytes, at),
    };
    let text = str::from_utf8(bytes).map_err(|error| not_text(error.valid_up_to()))?;
    if let Some(at) = text.find('\0') {
        return Err(not_text(at));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if trim(text).is_empty() {
        return Err(FeedError::Empty);
    }
    Ok(text)
}

/// Returns the text unchanged, or an error if the text starts with `<` as a web page does.
pub(super) fn not_a_page(text: &str) -> Result<&str, FeedError> {
    if trim(text).starts_with('<') {
        return Err(FeedError::WebPage {
            start: shown(trim(text)),
        });
    }
    Ok(text)
}

/// Returns the text without white space and invisible characters at its ends.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || is_zero_width(c))
}

/// Returns whether the character is invisible and often copied along with a text, such as a zero-width space.
pub(super) fn is_zero_width(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
}

/// Returns the likely kind of data that is not UTF-8 text, by its first bytes and the invalid byte at offset `at`.
fn problem(bytes: &[u8], at: usize) -> &'static str {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "it looks like UTF-16",
        [0x1f, 0x8b, ..] => "it looks like gzip data",
        [b'P', b'K', 3, 4, ..] => "it looks like a ZIP archive; set `unzip`",
        [b'%', b'P', b'D', b'F', ..] => "it looks like a PDF document",
        _ if bytes[at] == 0 => "it has a zero byte, like UTF-16 and binary files",
        _ => "the bytes there are not valid UTF-8",
    }
}
