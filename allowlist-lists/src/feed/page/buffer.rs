//! The text of the line that is being read, and the places in it that are not plain text.
//!
//! Invariants: blanks are single, and none are at the ends; invisible characters are not in the text, but
//! marked. A mark is kept only where it could change an address, so that marks are few.

use std::ops::Range;

use super::words::chars::{is_invisible, is_override};

/// The reason why the characters on both sides of a place may not belong together, in ascending strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    /// An element, a comment or a picture begins or ends between two hexadecimal digits.
    Markup,
    /// There is an invisible character.
    Invisible,
    /// Raised or lowered text begins or ends; a blank was put there.
    Raised,
}

/// Properties of a line besides its text.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// The byte offsets in the text, ascending. The offset of raised text is that of its blank.
    pub places: Vec<(usize, Mark)>,
    /// The struck-out ranges, ascending.
    pub struck_out: Vec<Range<usize>>,
    /// Whether a part is shown in another order than it is written.
    pub is_reordered: bool,
}

#[derive(Debug, Default)]
pub(super) struct Buffer {
    text: String,
    marks: Marks,
    pending: Option<Mark>,
    /// The start of the struck-out range that is still open.
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

    /// Marks the place before the next character.
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

    /// Returns the line's text and marks. Struck-out text continues in the next line.
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
