//! Tables and text, fitted to the width of the terminal.
//!
//! Invariants: no line ends with spaces; on a terminal, the longest cells of a table are shortened in the middle until
//! it fits, numbers excepted; elsewhere nothing is shortened or wrapped.

use std::env;
use std::fmt;
use std::io::{IsTerminal as _, stdout};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// The number of blanks between two columns.
const GAP: usize = 2;
/// The width in columns below which no text column is narrowed.
const NARROWEST: usize = 8;
/// The width in columns of a terminal that does not report its width, such as a serial console.
const COMMON: usize = 80;
/// The minimum width in columns to which reports are fitted; a smaller width of a terminal counts as unknown.
const LEAST: usize = 40;

/// The width in columns to which reports are fitted; 0 for no limit. A daemon never sets it, since other processes
/// print its reports.
static WIDTH: AtomicUsize = AtomicUsize::new(0);

/// Makes all reports of this process fit the width of standard output, if that is a terminal.
pub fn fit_to_terminal() {
    if stdout().is_terminal() {
        let width = terminal_width(&stdout()).unwrap_or(COMMON);
        WIDTH.store(width, Ordering::Relaxed);
    }
}

/// Returns the number of columns, from the variable `COLUMNS` if it is set, otherwise from `terminal`. Returns `None`
/// if `terminal` is no terminal, or if the number is less than 40.
pub fn terminal_width(terminal: &impl AsFd) -> Option<usize> {
    let set = env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let said = || terminal_size::terminal_size_of(terminal).map(|(width, _)| width.0.into());
    set.or_else(said).filter(|width| *width >= LEAST)
}

pub(super) fn width() -> Option<usize> {
    match WIDTH.load(Ordering::Relaxed) {
        0 => None,
        width => Some(width),
    }
}

/// A table of text: a header and rows of cells in aligned columns, without lines.
pub(super) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    /// The indices of the columns that are aligned to the right, which hold numbers.
    right: Vec<usize>,
}

/// Returns a table without rows; the columns with these indices are aligned to the right.
pub(super) fn table(header: &[&str], right: &[usize]) -> Table {
    Table {
        header: header.iter().map(|&name| name.to_owned()).collect(),
        rows: Vec::new(),
        right: right.to_vec(),
    }
}

impl Table {
    /// Adds a row to the table, with as many cells as the header.
    pub(super) fn add_row<T: ToString>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows
            .push(cells.into_iter().map(|cell| cell.to_string()).collect());
    }

    fn fitted(&self, room: Option<usize>) -> String {
        let rows = || std::iter::once(&self.header).chain(&self.rows);
        let mut widths = vec![0; self.header.len()];
        for row in rows() {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        if let Some(room) = room {
            self.narrow(&mut widths, room);
        }
        let mut lines = Vec::with_capacity(self.rows.len() + 1);
        for row in rows() {
            let mut line = String::new();
            for (place, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let cell = shortened(cell, *width);
                let blanks = " ".repeat(width - cell.width().min(*width));
                if self.right.contains(&place) {
                    line += &(blanks + &cell);
                } else {
                    line += &(cell + &blanks);
                }
                line += &" ".repeat(GAP);
            }
            lines.push(line.trim_end().to_owned());
        }
        lines.join("\n")
    }

    /// Narrows the widest text columns until the table fits into `room` columns, or none of them can be narrowed
    /// further.
    fn narrow(&self, widths: &mut [usize], room: usize) {
        let gaps = GAP * widths.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > room {
            let can_shrink = |place: &usize| {
                let least = self.header[*place].width().max(NARROWEST);
                !self.right.contains(place) && widths[*place] > least
            };
            let places = (0..widths.len()).filter(can_shrink);
            let Some(widest) = places.max_by_key(|place| widths[*place]) else {
                return;
            };
            widths[widest] -= 1;
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.fitted(width()))
    }
}

/// Returns the text, shortened to `room` columns by omitting its middle.
pub(super) fn shortened(text: &str, room: usize) -> String {
    if text.width() <= room {
        return text.to_owned();
    }
    let kept = room.saturating_sub(1);
    let start = taken(text.chars(), kept.div_ceil(2));
    let end = taken(text.chars().rev(), kept / 2);
    let end: String = end.chars().rev().collect();
    format!("{start}…{end}")
}

fn taken(characters: impl Iterator<Item = char>, room: usize) -> String {
    let mut left = room;
    characters
        .take_while(|one| {
            let width = one.width().unwrap_or_default();
            let fits = width <= left;
            left = left.saturating_sub(width);
            fits
        })
        .collect()
}

/// Returns the text with long lines wrapped between words to the width of the terminal; continued lines have an indent.
pub fn wrapped(text: &str) -> String {
    match width() {
        Some(room) => wrapped_to(text, room),
        None => text.to_owned(),
    }
}

fn wrapped_to(text: &str, room: usize) -> String {
    let mut wrapped = String::with_capacity(text.len());
    for line in text.lines() {
        if line.width() <= room {
            wrapped += line;
            wrapped.push('\n');
            continue;
        }
        let further = line.len() - line.trim_start().len() + 4;
        let mut column = 0;
        let mut rest = line;
        while !rest.is_empty() {
            let blanks = rest.len() - rest.trim_start().len();
            let end = rest[blanks..]
                .find(' ')
                .map_or(rest.len(), |end| blanks + end);
            let word = &rest[blanks..end];
            if column > further && column + blanks + word.width() > room {
                wrapped.push('\n');
                wrapped += &" ".repeat(further);
                column = further;
            } else {
                wrapped += &rest[..blanks];
                column += blanks;
            }
            wrapped += word;
            column += word.width();
            rest = &rest[end..];
        }
        wrapped.push('\n');
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> Table {
        let mut table = table(&["source", "prefixes", "from"], &[1]);
        table.add_row(["github", "12", "https://api.github.example/meta"]);
        table.add_row(["a-source-with-a-long-name-of-its-own", "123456", "a"]);
        table
    }

    #[test]
    fn a_pipe_gets_all_of_it() {
        assert_eq!(
            sources().fitted(None),
            "source                                prefixes  from\n\
             github                                      12  https://api.github.example/meta\n\
             a-source-with-a-long-name-of-its-own    123456  a"
        );
    }

    #[test]
    fn a_terminal_gets_what_fits() {
        for room in 40..120 {
            let text = sources().fitted(Some(room));
            for line in text.lines() {
                assert!(line.width() <= room, "{room}: {line}");
                assert_eq!(line.trim_end(), line);
            }
            assert!(text.contains("  12  ") && text.contains("123456"), "{text}");
        }
        assert_eq!(
            sources().fitted(Some(40)),
            "source          prefixes  from\n\
             github                12  https:/…e/meta\n\
             a-sourc…ts-own    123456  a"
        );
    }

    #[test]
    fn the_middle_is_left_out() {
        for (text, room, expected) in [
            ("abcdefgh", 8, "abcdefgh"),
            ("abcdefghi", 8, "abcd…ghi"),
            ("äöüäöüäöü", 5, "äö…öü"),
            ("日本語日本語", 6, "日…語"),
        ] {
            let short = shortened(text, room);
            assert_eq!(short, expected);
            assert!(short.width() <= room);
        }
    }

    #[test]
    fn long_lines_are_broken_between_words() {
        assert_eq!(
            wrapped_to(
                "short\nwarning: one two three four five\n  + 192.0.2.1\n",
                20
            ),
            "short\nwarning: one two\n    three four five\n  + 192.0.2.1\n"
        );
        assert_eq!(
            wrapped_to("22:55  root  mode enforce  (generation 1)", 30),
            "22:55  root  mode enforce\n    (generation 1)\n"
        );
        assert_eq!(
            wrapped_to("a-word-that-is-too-long", 10),
            "a-word-that-is-too-long\n"
        );
    }
}
