//! Escapes foreign text (of vendors, users, peers, the kernel's names) where a line leaves this program. Pure.
//!
//! Two levels. A field that is inserted into a line goes through [`on_one_line`], which also escapes line
//! breaks, so that no field can forge a line. Everything that is printed or logged goes through [`printable`]
//! or [`printable_json`] at the one place where it is written, so that a call site that forgot to escape a
//! field can neither move the cursor of a terminal nor reorder the characters of a line.
//!
//! The escaped set: control characters (C0, DEL, C1), line and paragraph separators (U+2028, U+2029), the
//! bidirectional controls of Unicode Standard Annex 9, and characters without any appearance, which could make
//! two names look alike (zero-width characters, variation tags, interlinear annotation, the byte order mark).

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns whether `character` is invisible, or could change how the line around it is displayed.
pub const fn is_deceptive(character: char) -> bool {
    matches!(
        character,
        '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{ad}' // soft hyphen
            | '\u{61c}' // Arabic letter mark
            | '\u{180e}' // Mongolian vowel separator
            | '\u{200b}'..='\u{200f}' // zero-width characters, left-to-right and right-to-left marks
            | '\u{2028}'..='\u{202e}' // line and paragraph separators, embeddings and overrides
            | '\u{2060}'..='\u{206f}' // word joiner, invisible operators, isolates
            | '\u{feff}' // byte order mark
            | '\u{fff9}'..='\u{fffb}' // interlinear annotation
            | '\u{e0000}'..='\u{e007f}' // tags
    )
}

/// Returns `text` on one line: line breaks and other deceptive characters are escaped, as `\n`, `\t` or `\u{202e}`.
pub fn on_one_line(text: &str) -> Cow<'_, str> {
    escape(text, is_deceptive, |character, out| {
        out.extend(character.escape_default());
    })
}

/// Returns `text`, which may have several lines, with every deceptive character but `\n` escaped as in [`on_one_line`].
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(
        text,
        |character| character != '\n' && is_deceptive(character),
        |character, out| out.extend(character.escape_default()),
    )
}

/// Returns the JSON text `document` with every deceptive character but `\n` as a JSON escape, such as `\u202e`.
///
/// The result has the same meaning: outside of strings, line breaks are the only deceptive characters in JSON.
pub fn printable_json(document: &str) -> Cow<'_, str> {
    escape(
        document,
        |character| character != '\n' && is_deceptive(character),
        |character, out| {
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").expect("a string takes any text");
            }
        },
    )
}

/// Returns `text` as one log record: each line escaped as in [`on_one_line`], and all but the first indented, so that
/// none looks like the next record.
pub fn indented(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(on_one_line).collect();
    lines.join("\n    ")
}

/// Returns `text` with each character for which `needs_escape` is true replaced by what `write_escape` writes for it.
fn escape(
    text: &str,
    needs_escape: impl Fn(char) -> bool,
    write_escape: impl Fn(char, &mut String),
) -> Cow<'_, str> {
    if !text.contains(&needs_escape) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if needs_escape(character) {
            write_escape(character, &mut out);
        } else {
            out.push(character);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind that a vendor, a note or an interface's name could hold.
    const HOSTILE: &str = "a\nb\r\t\x1b[31m\u{85}\u{9b}\u{7f}\u{ad}\u{61c}\u{200b}\u{200e}\u{2028}\u{2029}\u{202e}\u{2066}\u{2069}\u{feff}\u{e0041}ä";

    #[test]
    fn a_field_stays_in_its_line() {
        assert_eq!(
            on_one_line(HOSTILE),
            r"a\nb\r\t\u{1b}[31m\u{85}\u{9b}\u{7f}\u{ad}\u{61c}\u{200b}\u{200e}\u{2028}\u{2029}\u{202e}\u{2066}\u{2069}\u{feff}\u{e0041}ä"
        );
        assert!(matches!(on_one_line("plain ä"), Cow::Borrowed("plain ä")));
    }

    #[test]
    fn output_keeps_its_lines_and_nothing_else_of_the_kind() {
        assert_eq!(
            printable("a\n\x1b[2J\u{202e}b\n"),
            "a\n\\u{1b}[2J\\u{202e}b\n"
        );
        for character in ('\0'..=char::MAX).filter(|&character| is_deceptive(character)) {
            let text = character.to_string();
            assert!(!on_one_line(&text).contains(character));
            assert_eq!(printable(&text).contains(character), character == '\n');
        }
    }

    #[test]
    fn escaped_json_means_the_same() {
        let value = serde_json::json!({ "note": HOSTILE, "\u{202e}": [1] });
        let document = format!("{value:#}\n");
        let escaped = printable_json(&document);
        let read: serde_json::Value = serde_json::from_str(&escaped).expect("is JSON");
        assert_eq!(read, value);
        assert!(!escaped.contains(|c| c != '\n' && is_deceptive(c)));
    }

    #[test]
    fn only_the_first_line_of_a_record_begins_at_the_margin() {
        assert_eq!(
            indented("one\n2026-11-29  root\r\nlast\x07"),
            "one\n    2026-11-29  root\n    last\\u{7}"
        );
    }
}
