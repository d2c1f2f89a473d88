//! Characters: separators, invisible ones, and look-alikes of digits and dots.

use std::borrow::Cow;

/// Returns whether the character separates words: white space, or a comma, semicolon or vertical bar of any script.
pub(in crate::feed::page) fn is_between(c: char) -> bool {
    c.is_whitespace()
        || matches!(
            c,
            ',' | ';'
                | '|'
                | '\u{60c}'
                | '\u{61b}'
                | '\u{3001}'
                | '\u{fe50}'
                | '\u{fe51}'
                | '\u{fe54}'
                | '\u{ff0c}'
                | '\u{ff1b}'
                | '\u{ff5c}'
                | '\u{ff64}'
        )
}

/// Returns whether the character is not shown, but is copied along with the text around it.
pub(in crate::feed::page) fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
        || c.is_control()
}

/// Returns whether the character overrides the direction in which the text after it is shown.
pub(in crate::feed::page) fn is_override(c: char) -> bool {
    matches!(c, '\u{202d}' | '\u{202e}')
}

/// Returns whether the character is a bracket or a quote, which is never a part of an address.
pub(super) fn is_bracket(c: char) -> bool {
    "()[]{}<>（）【】「」『』［］〔〕\"'`“”‘’«»‹›".contains(c)
}

/// Returns a word with each non-ASCII character that resembles one of an address (a digit, `.`, `:` or `/`) replaced by
/// that one. The result is never used as an address.
pub(super) fn fold(word: &str) -> Cow<'_, str> {
    if word.is_ascii() {
        return Cow::Borrowed(word);
    }
    Cow::Owned(word.chars().map(folded).collect())
}

fn folded(c: char) -> char {
    match c {
        _ if c.is_ascii() => c,
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c),
        '\u{3002}' | '\u{ff61}' | '\u{2024}' | '\u{fe52}' | '\u{b7}' | '\u{2027}' | '\u{66b}'
        | '\u{22c5}' | '\u{30fb}' => '.',
        '\u{fe55}' | '\u{2236}' | '\u{a789}' | '\u{2d0}' => ':',
        '\u{2044}' | '\u{2215}' | '\u{29f8}' => '/',
        // Of other scripts, raised, in a circle: which digit it is does not matter.
        _ if c.is_numeric() => '1',
        _ => c,
    }
}
