//! Tables: the headers above each cell, and the labels of its row.
//!
//! A header row has no addresses, and is in the table's head, or has header cells only, or, in a table
//! that has no such row, is the first. A row of one cell over several columns is called a divider here, and
//! names the rows below it. Knows no HTML.
//!
//! Invariant: time and memory grow linearly with the length of a table, so headers are few, and shared.

use std::collections::HashMap;
use std::rc::Rc;

use super::document::Line;

/// The maximum number of columns of a table that are distinguished; all further columns are treated as one.
pub(super) const MOST_COLUMNS: usize = 200;
/// The maximum length of a label of a row or a column, in bytes; a longer text is not used as a label.
const LONGEST_LABEL: usize = 200;
/// The maximum number of headers of one column, counted from the top; further ones are ignored. Tables have one or two.
const MOST_HEADERS: usize = 8;
/// The maximum number of headers of a cell that spans several columns; further ones are ignored.
const MOST_HEADERS_OVER: usize = 64;

/// The indices that identify a table cell of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CellId {
    pub table: usize,
    pub row: usize,
    pub cell: usize,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// The number of the group of labels that belong to the table.
    pub id: usize,
    pub rows: Vec<Row>,
}

#[derive(Debug, Default)]
pub(super) struct Row {
    pub is_head: bool,
    pub cells: Vec<Cell>,
    /// The labels of the row: the text of its first cell without addresses, and the divider row above, if there are
    /// such.
    pub labels: Vec<Rc<str>>,
    /// The text of all cells of the row, separated by ` | `.
    pub text: String,
    /// The text about the addresses of the row: that of cells without addresses, and of lines without addresses in
    /// other cells.
    pub note: String,
}

#[derive(Debug)]
pub(super) struct Cell {
    pub is_header: bool,
    pub width: usize,
    pub height: usize,
    /// The index of the first column of the cell; columns beyond `MOST_COLUMNS` have the same index.
    pub column: usize,
    /// The indices in the document of the lines in the cell.
    pub lines: Vec<usize>,
    /// The headers of the columns that the cell spans.
    pub headers: Rc<[Rc<str>]>,
}

impl Cell {
    pub(super) fn new(is_header: bool, width: usize, height: usize) -> Self {
        Self {
            is_header,
            width: width.clamp(1, MOST_COLUMNS),
            height,
            column: 0,
            lines: Vec::new(),
            headers: Rc::new([]),
        }
    }
}

/// The cell that covers one column in the current row, with the number of rows that it still covers and its text if
/// that is a label.
#[derive(Clone, Default)]
struct Reaching {
    rows: usize,
    text: Option<Rc<str>>,
}

/// The headers, dividers and spanning cells that apply to the next row of a table.
#[derive(Default)]
struct State {
    reaching: Vec<Reaching>,
    headers: Vec<Vec<Rc<str>>>,
    /// The headers above each range of columns (start, end), cached until the headers change.
    over: HashMap<(usize, usize), Rc<[Rc<str>]>>,
    divider: Option<Rc<str>>,
    has_headers: bool,
    /// Whether a row that is not a header followed the headers, so that a new header row replaces them.
    is_in_body: bool,
}

impl Table {
    /// Computes the columns, headers, labels and texts of all rows and cells once the whole table has been read.
    pub(super) fn finish(&mut self, lines: &[Line]) {
        let has_addresses = |cell: &Cell| cell.lines.iter().any(|&at| !lines[at].found.is_empty());
        let mut state = State::default();
        let declared = self
            .rows
            .iter()
            .any(|row| !row.cells.iter().any(has_addresses) && row.is_declared_header());
        for row in &mut self.rows {
            let texts: Vec<Rc<str>> = row
                .cells
                .iter()
                .map(|cell| cell.text(lines).into())
                .collect();
            let addresses: Vec<bool> = row.cells.iter().map(has_addresses).collect();
            row.text = joined(texts.iter().map(|text| &**text));
            row.note = joined(row.cells.iter().zip(&addresses).flat_map(|(cell, has)| {
                cell.lines
                    .iter()
                    .map(|&at| &lines[at])
                    .filter(move |line| !has || (line.found.is_empty() && line.is_directly_in_cell))
                    .map(|line| line.text.as_str())
            }));
            let columns = state.place(&row.cells, &texts, &addresses);
            let is_empty = row.text.is_empty();
            let has_any = addresses.contains(&true);
            if let ([cell], false, false) = (&row.cells[..], has_any, is_empty)
                && cell.width > 1
            {
                state.divider = texts.first().cloned();
            } else if !has_any
                && !is_empty
                && (row.is_declared_header()
                    || (!declared
                        && !state.is_in_body
                        && !state.has_headers
                        && row.cells.len() > 1))
            {
                state.head(&columns, &row.cells, &texts);
            } else {
                state.is_in_body = true;
            }
            row.labels = state.labels();
            for (cell, &column) in row.cells.iter_mut().zip(&columns) {
                cell.column = column;
                cell.headers = state.over(column, cell.width);
            }
            state.next_row();
        }
    }
}

impl Row {
    fn is_declared_header(&self) -> bool {
        self.is_head || (!self.cells.is_empty() && self.cells.iter().all(|cell| cell.is_header))
    }
}

impl Cell {
    fn text(&self, lines: &[Line]) -> String {
        let texts: Vec<&str> = self
            .lines
            .iter()
            .map(|&at| lines[at].text.as_str())
            .collect();
        texts.join(" ")
    }
}

impl State {
    /// Returns the index of the column in which each of the `cells` of a row starts.
    fn place(&mut self, cells: &[Cell], texts: &[Rc<str>], addresses: &[bool]) -> Vec<usize> {
        let mut column = 0;
        let mut columns = Vec::new();
        for ((cell, text), has_addresses) in cells.iter().zip(texts).zip(addresses) {
            while self.reaching.get(column).is_some_and(|cell| cell.rows > 0) {
                column += 1;
            }
            let start = column.min(MOST_COLUMNS);
            let end = (start + cell.width).min(MOST_COLUMNS + 1);
            if self.reaching.len() < end {
                self.reaching.resize(end, Reaching::default());
            }
            let is_label = !has_addresses && !text.is_empty() && text.len() <= LONGEST_LABEL;
            self.reaching[start..end].fill(Reaching {
                rows: cell.height,
                text: is_label.then(|| text.clone()),
            });
            columns.push(start);
            column = end;
        }
        columns
    }

    /// Adds the cells of a header row to the headers of their columns.
    fn head(&mut self, columns: &[usize], cells: &[Cell], texts: &[Rc<str>]) {
        if self.is_in_body {
            self.headers.clear();
            self.over.clear();
            self.divider = None;
            self.is_in_body = false;
        }
        self.has_headers = true;
        for ((&column, cell), text) in columns.iter().zip(cells).zip(texts) {
            let end = (column + cell.width).min(MOST_COLUMNS + 1);
            if self.headers.len() < end {
                self.headers.resize(end, Vec::new());
            }
            if text.is_empty() || text.len() > LONGEST_LABEL {
                continue;
            }
            for headers in &mut self.headers[column..end] {
                if headers.len() < MOST_HEADERS {
                    headers.push(text.clone());
                    self.over.clear();
                }
            }
        }
    }

    fn labels(&self) -> Vec<Rc<str>> {
        let first = self
            .reaching
            .iter()
            .filter(|cell| cell.rows > 0)
            .find_map(|cell| cell.text.clone());
        first.into_iter().chain(self.divider.clone()).collect()
    }

    fn over(&mut self, column: usize, width: usize) -> Rc<[Rc<str>]> {
        let end = (column + width).min(self.headers.len());
        let start = column.min(end);
        let over = self.over.entry((start, end)).or_insert_with(|| {
            let mut over: Vec<Rc<str>> = Vec::new();
            for header in self.headers[start..end].iter().flatten() {
                if over.len() < MOST_HEADERS_OVER && !over.contains(header) {
                    over.push(header.clone());
                }
            }
            over.into()
        });
        over.clone()
    }

    fn next_row(&mut self) {
        for cell in &mut self.reaching {
            cell.rows = cell.rows.saturating_sub(1);
        }
    }
}

/// Returns the texts of a row's cells, without empty ones, separated by ` | `.
fn joined<'t>(texts: impl Iterator<Item = &'t str>) -> String {
    let texts: Vec<&str> = texts.filter(|text| !text.is_empty()).collect();
    texts.join(" | ")
}
