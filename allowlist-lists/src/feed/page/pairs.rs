//! Two cells or lines of a page that together are one range (first and last address) or one prefix (address and
//! length).
//!
//! Invariant: the two addresses of a pair have the same reading afterwards, or both are unclear, so it does not matter
//! which of the two the configuration selects. Time grows linearly with the length of the page.

use std::collections::HashMap;
use std::rc::Rc;

use super::document::{Document, Line};
use super::labels::chain;
use super::table::{CellId, MOST_COLUMNS};
use super::words::{
    End, NotRead, Reading, What, end, is_length_label, is_link, is_netmask, is_range_word,
    is_version_label, length,
};
use crate::feed::error::Unclear;

/// The maximum number of lines of a table cell that is read as a cell of prefix lengths; a longer cell is not joined
/// with addresses.
const MOST_LENGTHS: usize = 100;
/// The maximum number of cells of prefix lengths in a table row; the lengths in further cells are not joined with
/// addresses.
const MOST_LENGTH_COLUMNS: usize = 8;
/// The maximum number of lists and cells around an address whose labels are searched for a name such as "First
/// address".
const MOST_OUTER: usize = 3;
/// The maximum length in bytes of a text that names an end of a range, such as "First address"; a longer text names
/// none.
const LONGEST_NAME: usize = 80;

/// The place of an address: the index of its line in the document, and its index among the addresses of the line.
type At = (usize, usize);

/// Joins addresses of a page with the prefix length or the other end of a range beside them, or marks them as unclear.
pub(super) fn join(document: &mut Document) {
    for table in 0..document.tables.len() {
        join_rows(document, table);
    }
    join_named(document);
    join_lines(document);
}

/// The meaning of the cells in a table column, by its headers: ends of ranges, prefix lengths, or versions.
#[derive(Clone, Copy, Default)]
struct Column {
    end: Option<End>,
    is_length: bool,
    is_version: bool,
    is_range: bool,
}

impl Column {
    fn of(headers: &[Rc<str>]) -> Self {
        let mut column = Self::default();
        for header in headers {
            column.end = column.end.or_else(|| end(header));
            column.is_length |= is_length_label(header);
            column.is_version |= is_version_label(header);
            column.is_range |= header.to_lowercase().contains("range");
        }
        column
    }
}

/// A cell of the current table row, or a cell of a row above that spans the current row.
#[derive(Clone, Copy)]
struct Beside {
    id: CellId,
    column: Column,
    /// The place of the first address in the cell; `None` if the cell has no address.
    first: Option<At>,
    /// The number of rows that the cell spans, counted from the current row.
    rows: usize,
}

fn join_rows(document: &mut Document, table: usize) {
    let mut known: HashMap<*const [Rc<str>], Column> = HashMap::new();
    // By their first column.
    let mut reaching: Vec<Option<Beside>> = vec![None; MOST_COLUMNS];
    for row in 0..document.tables[table].rows.len() {
        for (cell, of_cell) in document.tables[table].rows[row].cells.iter().enumerate() {
            let id = CellId { table, row, cell };
            if let Some(place) = reaching.get_mut(of_cell.column) {
                *place = Some(Beside {
                    id,
                    column: Column::default(),
                    first: first_found(document, id),
                    rows: of_cell.height,
                });
            }
        }
        let mut cells: Vec<Beside> = reaching.iter().flatten().copied().collect();
        for place in &mut reaching {
            *place = place.and_then(|cell| {
                let rows = cell.rows.checked_sub(1).filter(|rows| *rows > 0)?;
                Some(Beside { rows, ..cell })
            });
        }
        if cells.iter().all(|cell| cell.first.is_none()) {
            continue;
        }
        for cell in &mut cells {
            let headers = &document.cell(cell.id).1.headers;
            let column = known.entry(Rc::as_ptr(headers));
            cell.column = *column.or_insert_with(|| Column::of(headers));
        }
        join_row(document, row, &cells);
    }
}

fn join_row(document: &mut Document, row: usize, cells: &[Beside]) {
    let mut of_lengths = 0;
    for (at, cell) in cells.iter().enumerate() {
        let is_own = cell.id.row == row;
        if cell.column.is_version && is_own {
            forget_versions(document, &document.cell(cell.id).1.lines.clone());
        }
        if matches!(cell.column.end, Some(End::First | End::From)) {
            let last = cells[at + 1..]
                .iter()
                .find(|cell| cell.column.end.is_some())
                .filter(|cell| matches!(cell.column.end, Some(End::Last | End::To)));
            if let Some(last) = last {
                let ends = (cell.column.end, last.column.end);
                let is_range = ends == (Some(End::First), Some(End::Last));
                join_ends(document, row, [cell, last], is_range);
            }
        } else if let Some(next) = cells.get(at + 1) {
            let is_range = cell.column.is_range
                && next.column.is_range
                && cell.id.row == next.id.row
                && is_own
                && shares_header(document, cell.id, next.id);
            if is_range_word_cell(document, next.id)
                && let Some(last) = cells.get(at + 2)
            {
                join_ends(document, row, [cell, last], false);
            } else if is_range {
                let ends = [cell, next].map(|cell| found(document, cell.id));
                if ends
                    .iter()
                    .all(|ends| ends.len() == 1 && is_single(document, ends[0]))
                {
                    join_ends(document, row, [cell, next], false);
                }
            }
        }
        if cell.column.end.is_none()
            && of_lengths < MOST_LENGTH_COLUMNS
            && let Some(lengths) = lengths(document, cell, is_own)
        {
            of_lengths += 1;
            join_lengths(document, row, cells, at, &lengths);
        }
    }
}

fn is_range_word_cell(document: &Document, id: CellId) -> bool {
    match document.cell(id).1.lines[..] {
        [line] => is_range_word(&document.lines[line].text),
        _ => false,
    }
}

fn shares_header(document: &Document, one: CellId, other: CellId) -> bool {
    let (one, other) = (
        &document.cell(one).1.headers,
        &document.cell(other).1.headers,
    );
    let last = |headers: &[Rc<str>]| headers.last().map(Rc::as_ptr);
    last(one).is_some() && last(one) == last(other)
}

/// Returns the places of the addresses in a table cell.
fn found(document: &Document, id: CellId) -> Vec<At> {
    let lines = document.cell(id).1.lines.iter();
    lines
        .flat_map(|&line| (0..document.lines[line].found.len()).map(move |at| (line, at)))
        .collect()
}

fn token(document: &Document, (line, at): At) -> &str {
    let line = &document.lines[line];
    &line.text[line.found[at].token.clone()]
}

/// Returns whether the text at a place is one address without a length that has not been joined with another text.
fn is_single(document: &Document, at: At) -> bool {
    let reading = &document.lines[at.0].found[at.1].reading;
    *reading == Reading::AsWritten && token(document, at).parse::<std::net::IpAddr>().is_ok()
}

fn set(document: &mut Document, (line, at): At, reading: Reading) {
    let found = &mut document.lines[line].found[at];
    if !matches!(found.reading, Reading::Unclear(_)) {
        found.reading = reading;
    }
}

fn is_blank(document: &Document, id: CellId) -> bool {
    let mut lines = document.cell(id).1.lines.iter();
    lines.all(|&line| !document.lines[line].text.contains(char::is_alphanumeric))
}

/// Joins the addresses in two cells of a row into ranges, in pairs, or marks them as unclear if the pairs are not
/// certain.
fn join_ends(document: &mut Document, row: usize, cells: [&Beside; 2], is_range: bool) {
    if cells.iter().any(|cell| cell.id.row != row) {
        // A cell beside several rows: the pairs are unknown.
        for at in cells.iter().filter_map(|cell| cell.first) {
            set(document, at, Reading::Unclear(Unclear::Range));
        }
        return;
    }
    if cells.iter().any(|cell| is_blank(document, cell.id)) {
        return;
    }
    let [first, last] = cells.map(|cell| found(document, cell.id));
    let is_clear = is_range
        && first.len() == last.len()
        && first.iter().chain(&last).all(|at| is_single(document, *at));
    if is_clear {
        for (first, last) in first.into_iter().zip(last) {
            let range = format!("{}-{}", token(document, first), token(document, last));
            set(document, first, Reading::Joined(range.clone().into()));
            set(document, last, Reading::Joined(range.into()));
        }
        return;
    }
    for at in first.into_iter().chain(last) {
        set(document, at, Reading::Unclear(Unclear::Range));
    }
}

fn first_found(document: &Document, id: CellId) -> Option<At> {
    let lines = document.cell(id).1.lines.iter();
    let line = lines
        .copied()
        .find(|&line| !document.lines[line].found.is_empty())?;
    Some((line, 0))
}

/// Joins the prefix lengths in the cell `cells[at]` with the addresses in a cell beside it; the cell with the lengths
/// holds nothing else.
fn join_lengths(
    document: &mut Document,
    row: usize,
    cells: &[Beside],
    at: usize,
    lengths: &[String],
) {
    let id = cells[at].id;
    let before = cells[..at].iter().rev().find(|cell| cell.first.is_some());
    let behind = || cells[at + 1..].iter().find(|cell| cell.first.is_some());
    let Some(address) = before.or_else(|| behind().filter(|_| cells[at].column.is_length)) else {
        return;
    };
    if address.id.row != row {
        if let Some(at) = address.first {
            set(document, at, Reading::Unclear(Unclear::Length));
        }
        return;
    }
    let address = address.id;
    let addresses = found(document, address);
    let masks = found(document, id);
    let says_so = |at: &At, length: &str| {
        token(document, *at)
            .split_once('/')
            .is_some_and(|(_, own)| own == length)
    };
    if addresses.len() == lengths.len()
        && addresses
            .iter()
            .zip(lengths)
            .all(|(at, length)| says_so(at, length))
    {
        return;
    }
    let is_clear =
        addresses.len() == lengths.len() && addresses.iter().all(|at| is_single(document, *at));
    for (number, at) in addresses.iter().enumerate() {
        let reading = if is_clear {
            Reading::Joined(format!("{}/{}", token(document, *at), lengths[number]).into())
        } else {
            Reading::Unclear(Unclear::Length)
        };
        if let Some(mask) = masks.get(number) {
            set(document, *mask, reading.clone());
        }
        set(document, *at, reading);
    }
}

/// Returns the prefix lengths in a table cell, one per line; `None` if the cell contains anything else or too many
/// lines. `is_own` is false for a cell of a row above that spans the current row; such a cell may have one line.
fn lengths(document: &Document, cell: &Beside, is_own: bool) -> Option<Vec<String>> {
    let lines = &document.cell(cell.id).1.lines;
    let most = if is_own { MOST_LENGTHS } else { 1 };
    if lines.is_empty() || lines.len() > most {
        return None;
    }
    lines
        .iter()
        .map(|&line| {
            let text = &*document.lines[line].text;
            if is_netmask(text) {
                let length = ipnet::ipv4_mask_to_prefix(text.parse().ok()?).ok()?;
                return Some(length.to_string());
            }
            length(text, cell.column.is_length).map(str::to_owned)
        })
        .collect()
}

/// Moves version numbers from the addresses of the given lines, whose header or label names a version, to the
/// `not_read` of the same lines.
fn forget_versions(document: &mut Document, lines: &[usize]) {
    for &line in lines {
        let line = &mut document.lines[line];
        let Line {
            text,
            found,
            not_read,
            ..
        } = line;
        found.retain(|found| {
            let is_version = text[found.token.clone()]
                .parse::<std::net::Ipv4Addr>()
                .is_ok();
            if is_version {
                not_read.push(NotRead {
                    text: found.token.clone(),
                    what: What::Version,
                });
            }
            !is_version
        });
    }
}

/// Marks the addresses in "First address: …" and "Last address: …" as a possible range, on one line or on two. Also
/// moves version numbers in lines with a version label out of the addresses.
fn join_named(document: &mut Document) {
    let mut before: Option<(At, Option<End>)> = None;
    for line in 0..document.lines.len() {
        if document.lines[line].is_hidden {
            continue;
        }
        if name(document, line).is_some_and(is_version_label) {
            forget_versions(document, &[line]);
        }
        let mut start = 0;
        for at in 0..document.lines[line].found.len() {
            let of_line = &document.lines[line];
            let found = &of_line.found[at];
            let text = of_line
                .text
                .get(start..found.token.start)
                .unwrap_or_default();
            start = found.token.end;
            let this = if text.contains(char::is_alphanumeric) {
                (text.len() <= LONGEST_NAME).then(|| end(text)).flatten()
            } else {
                name(document, line).and_then(end)
            };
            if let Some((first, Some(End::First | End::From))) = before
                && matches!(this, Some(End::Last | End::To))
                && [first, (line, at)]
                    .iter()
                    .all(|at| document.lines[at.0].found[at.1].reading == Reading::AsWritten)
            {
                set(document, first, Reading::Unclear(Unclear::Range));
                set(document, (line, at), Reading::Unclear(Unclear::Range));
            }
            before = Some(((line, at), this));
        }
    }
}

/// Returns the innermost label of a line, or else the label of its table row; `None` if it has none or a long one.
fn name(document: &Document, line: usize) -> Option<&str> {
    let name = chain(&document.lines[line].labels)
        .take(MOST_OUTER)
        .find_map(|labels| {
            let row = || document.cell(labels.cell?).0.labels.first();
            labels.texts.last().or_else(row)
        })?;
    (name.len() <= LONGEST_NAME).then_some(name)
}

/// Marks an address at the end of a line as unclear if the next line may continue it as a range or with a prefix
/// length.
fn join_lines(document: &mut Document) {
    for line in 1..document.lines.len() {
        let beside = |one: usize, other: usize| {
            let (one, other) = (&document.lines[one], &document.lines[other]);
            one.container == other.container
                && Rc::ptr_eq(&one.section, &other.section)
                && !one.is_hidden
                && !other.is_hidden
        };
        let last = |line: usize| {
            let found = &document.lines[line].found;
            found.len().checked_sub(1).map(|at| (line, at))
        };
        let rest = |line: &Line| {
            let end = line.found.last().map_or(0, |found| found.token.end);
            line.text.get(end..).unwrap_or_default().to_owned()
        };
        let (above, this) = (&document.lines[line - 1], &document.lines[line]);
        if !beside(line - 1, line) {
            continue;
        }
        let start = this
            .found
            .first()
            .map(|found| &this.text[..found.token.start]);
        let (first, problem) = match start {
            Some("") if is_link(&rest(above)) => match last(line - 1) {
                Some(first) => (first, Unclear::Range),
                // A line of its own.
                None if line >= 2 && beside(line - 2, line - 1) => match last(line - 2) {
                    Some(first) if rest(&document.lines[line - 2]).is_empty() => {
                        (first, Unclear::Range)
                    }
                    _ => continue,
                },
                None => continue,
            },
            Some(start) if is_range_word(start) => match last(line - 1) {
                Some(first) => (first, Unclear::Range),
                None => continue,
            },
            None if rest(above).is_empty()
                && this
                    .text
                    .split(' ')
                    .next()
                    .is_some_and(|word| length(word, false).is_some()) =>
            {
                match last(line - 1) {
                    Some(first) => (first, Unclear::Length),
                    None => continue,
                }
            }
            _ => continue,
        };
        set(document, first, Reading::Unclear(problem));
    }
}
