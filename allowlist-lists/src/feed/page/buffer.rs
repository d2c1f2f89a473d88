//! The text of the line that is being read, and the places in it that are not plain text.
//!
//! Invariants: each run of white space is one space, and none is at the ends; invisible characters are not in the text,
//! but marked. A mark is kept only where it could change an address, so that marks are few.

use std::ops::Range;

use super::words::chars::{is_invisible, is_override};

/// The reason why the characters before and after a place in a line of a page may not belong to one word, in ascending
/// order of strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    /// An element, a comment or a picture begins or ends at the place, between two hexadecimal digits.
    Markup,
    /// An invisible character stands at the place; it is not in the text of the line.
    Invisible,
    /// Superscript or subscript text begins or ends at the place; a space was inserted there.
    Raised,
}

/// The places and ranges of a page's line whose text a reader sees differently than it is written, such as crossed-out
/// text.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// The marked places as byte offsets in the line's text, ascending. The offset for superscript or subscript text is
    /// that of the inserted space.
    pub places: Vec<(usize, Mark)>,
    /// The crossed-out byte ranges of the line's text, ascending.
    pub struck_out: Vec<Range<usize>>,
    /// Whether a part of the line is shown in another order than it is written.
    pub is_reordered: bool,
}

#[derive(Debug, Default)]
pub(super) struct Buffer {
    text: String,
    marks: Marks,
    pending: Option<Mark>,
    /// The byte offset in the line at which the current crossed-out text begins; `None` outside of such text.
    strike: Option<usize>,
}

impl Buffer {
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(super) fn text(&self) -> &str {
        self.text.trim_end()
    }

    pub(super) fn push(&mut self, c: char) {
        if c.is_whitespace() {
            if !self.text.is_empty() && !self.text.ends_with(' ') {
                self.text.push(' ');
            }
            self.pending = None;
            return;
        }
        if is_invisible(c) {
            self.marks.is_reordered |= is_override(c);
            self.mark(Mark::Invisible);
            return;
        }
        if let (Some(mark), Some(before)) = (self.pending.take(), self.text.chars().next_back()) {
            let place = self.text.len();
            match mark {
                _ if before == ' ' => {}
                Mark::Raised => {
                    self.text.push(' ');
                    self.marks.places.push((place, mark));
                }
                Mark::Invisible => self.marks.places.push((place, mark)),
                Mark::Markup => {
                    if before.is_ascii_hexdigit() && c.is_ascii_hexdigit() {
                        self.marks.places.push((place, mark));
                    }
                }
            }
        }
        self.text.push(c);
    }

    /// Marks the place before the next character; if several marks apply, the strongest one is kept.
    pub(super) fn mark(&mut self, mark: Mark) {
        self.pending = self.pending.max(Some(mark));
    }

    pub(super) fn reorder(&mut self) {
        self.marks.is_reordered = true;
    }

    pub(super) fn begin_strike(&mut self) {
        self.mark(Mark::Markup);
        self.strike = Some(self.text.len());
    }

    pub(super) fn end_strike(&mut self) {
        self.mark(Mark::Markup);
        if let Some(start) = self.strike.take()
            && start < self.text.len()
        {
            self.marks.struck_out.push(start..self.text.len());
        }
    }

    /// Returns the text and the marks of the line, and begins a new one. Crossed-out text continues in the new line.
    pub(super) fn take(&mut self) -> (String, Marks) {
        let is_struck_out = self.strike.is_some();
        self.end_strike();
        self.pending = None;
        self.strike = is_struck_out.then_some(0);
        self.text.truncate(self.text.trim_end().len());
        (
            std::mem::take(&mut self.text),
            std::mem::take(&mut self.marks),
        )
    }
}
