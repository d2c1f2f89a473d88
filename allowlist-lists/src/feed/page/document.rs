//! A page as a browser shows it: lines of text, each with its surrounding elements.
//!
//! Invariants: no line has text that a browser does not show, unless it is marked as hidden; text of two
//! blocks is never in one line; and text of one block is never split, so that two addresses without a space between
//! them stay one invalid word. The walk over the elements does not recurse. Does not know which part of the page is
//! selected.

use std::rc::Rc;

use scraper::node::Element;
use scraper::{Html, Node};

use super::buffer::{Buffer, Mark};
use super::elements::{
    is_block, is_hidden, is_left_out, is_preformatted, is_raised, is_reordered, is_struck_out,
};
use super::labels::{Group, Kind, Labels, Scope};
use super::pairs;
use super::table::{Cell, CellId, Row, Table};
use super::words::{self, Found, NotRead};

#[derive(Debug, Default)]
pub(super) struct Document {
    pub lines: Vec<Line>,
    pub tables: Vec<Table>,
    pub containers: Vec<Container>,
    /// The texts of all headings of the page, in the order of the page.
    pub headings: Vec<Rc<str>>,
}

/// A line of a page: the text between two places where an element begins or ends a line.
#[derive(Debug)]
pub(super) struct Line {
    /// The text of the line, with each run of white space as one space and none at its ends.
    pub text: String,
    pub found: Vec<Found>,
    /// The texts in the line that look like addresses and are something else, such as version numbers.
    pub not_read: Vec<NotRead>,
    /// The headings above the line, outermost first.
    pub section: Rc<[Rc<str>]>,
    pub labels: Rc<Labels>,
    /// The index in [`Document::containers`] of the list item, cell or paragraph that contains the line; `None` if none
    /// contains it, or if the line is hidden.
    pub container: Option<usize>,
    pub is_directly_in_cell: bool,
    pub is_code: bool,
    pub is_hidden: bool,
}

/// An element of a page whose lines belong together: a list item, a definition, a table cell, or another paragraph.
#[derive(Debug, Default)]
pub(super) struct Container {
    pub lines: Vec<usize>,
    /// The index in [`Document::containers`] of the container around this one within the same cell. `None` for a cell
    /// itself, to which the texts of its row apply instead, and for a container outside of all others.
    pub outer: Option<usize>,
    pub cell: Option<CellId>,
    is_paragraph: bool,
}

impl Document {
    pub(super) fn read(html: &Html) -> Self {
        let mut walk = Walk::new();
        // Depth first, by the links between nodes.
        let mut next = Some(html.tree.root());
        while let Some(node) = next {
            if walk.open(node.value())
                && let Some(child) = node.first_child()
            {
                next = Some(child);
                continue;
            }
            let mut closing = node;
            next = loop {
                walk.close(closing.value());
                if let Some(sibling) = closing.next_sibling() {
                    break Some(sibling);
                }
                match closing.parent() {
                    Some(parent) => closing = parent,
                    None => break None,
                }
            };
        }
        walk.finish()
    }

    pub(super) fn cell(&self, id: CellId) -> (&Row, &Cell) {
        let row = &self.tables[id.table].rows[id.row];
        (row, &row.cells[id.cell])
    }
}

struct Walk {
    document: Document,
    buffer: Buffer,
    /// The unfinished lines around the hidden elements whose end has not been read yet, outermost first. A line
    /// continues at the end of its hidden element.
    interrupted: Vec<Buffer>,
    headings: Vec<(u8, Rc<str>)>,
    section: Rc<[Rc<str>]>,
    scopes: Vec<Scope>,
    containers: Vec<usize>,
    /// The ids ([`Group::id`]) of the lists whose end has not been read yet, outermost first.
    lists: Vec<usize>,
    tables: Vec<usize>,
    last_id: usize,
    code: usize,
    struck_out: usize,
    /// The number of terms, summaries and captions whose end has not been read yet; text in such an element is a label
    /// even if it is long.
    terms: usize,
    is_in_head: bool,
    is_heading: bool,
}

impl Walk {
    fn new() -> Self {
        let page = Group {
            id: 0,
            kind: Kind::Above,
        };
        Self {
            document: Document::default(),
            buffer: Buffer::default(),
            interrupted: Vec::new(),
            headings: Vec::new(),
            section: Rc::new([]),
            scopes: vec![Scope::new(page, None, None)],
            containers: Vec::new(),
            lists: Vec::new(),
            tables: Vec::new(),
            last_id: 0,
            code: 0,
            struck_out: 0,
            terms: 0,
            is_in_head: false,
            is_heading: false,
        }
    }

    /// Processes the start of a node of the HTML tree, and returns whether to visit the node's children.
    fn open(&mut self, node: &Node) -> bool {
        let element = match node {
            Node::Text(text) => {
                self.take(text);
                return false;
            }
            Node::Element(element) => element,
            Node::Comment(_) => {
                self.buffer.mark(Mark::Markup);
                return false;
            }
            _ => return true,
        };
        let name = element.name();
        if is_block(name) {
            self.end_line();
        }
        self.buffer.mark(Mark::Markup);
        if is_left_out(name) {
            return false;
        }
        if is_hidden(element) {
            self.interrupted.push(std::mem::take(&mut self.buffer));
        }
        if is_raised(name) {
            self.buffer.mark(Mark::Raised);
        }
        if is_preformatted(name) {
            self.code += 1;
        }
        if !self.interrupted.is_empty() {
            // Hidden labels and tables have no effect on visible addresses.
            return true;
        }
        if is_reordered(name) {
            self.buffer.reorder();
        }
        if is_struck_out(element) {
            self.struck_out += 1;
            if self.struck_out == 1 {
                self.buffer.begin_strike();
            }
        }
        match name {
            "ul" | "ol" | "dl" | "menu" | "dir" => {
                self.last_id += 1;
                self.lists.push(self.last_id);
                if name == "dl" {
                    self.open_scope(self.last_id, Kind::Above, None);
                }
            }
            "li" | "dd" => {
                let list = self.lists.last().copied();
                let id = list.unwrap_or_else(|| self.group().id);
                self.open_scope(id, Kind::Above, None);
                self.open_container(None);
            }
            "p" if self.containers.is_empty() => {
                self.open_container(None);
                self.document
                    .containers
                    .last_mut()
                    .expect("it was opened")
                    .is_paragraph = true;
            }
            "details" => self.open_scope(self.group().id, Kind::Folded, None),
            "dt" | "summary" | "caption" => self.terms += 1,
            "table" => self.open_table(),
            "thead" => self.is_in_head = true,
            "tr" => self.open_row(),
            "td" | "th" => self.open_cell(element),
            _ => {}
        }
        true
    }

    fn close(&mut self, node: &Node) {
        let Node::Element(element) = node else { return };
        let name = element.name();
        if is_left_out(name) {
            return;
        }
        let is_in_hidden = !self.interrupted.is_empty();
        if let Some(level) = level(name).filter(|_| !is_in_hidden) {
            self.end_heading(level);
        }
        if is_block(name) || is_hidden(element) {
            self.end_line();
        }
        if is_hidden(element)
            && let Some(buffer) = self.interrupted.pop()
        {
            self.buffer = buffer;
        }
        self.buffer.mark(if is_raised(name) {
            Mark::Raised
        } else {
            Mark::Markup
        });
        if is_preformatted(name) {
            self.code -= 1;
        }
        if is_in_hidden {
            return;
        }
        if is_struck_out(element) {
            self.struck_out -= 1;
            if self.struck_out == 0 {
                self.buffer.end_strike();
            }
        }
        match name {
            "ul" | "ol" | "dl" | "menu" | "dir" => {
                self.lists.pop();
                if name == "dl" {
                    self.close_scope();
                }
            }
            "li" | "dd" | "td" | "th" => {
                self.close_scope();
                self.containers.pop();
            }
            "p" if self.is_in_paragraph() => {
                self.containers.pop();
            }
            "details" => self.close_scope(),
            "dt" | "summary" | "caption" => self.terms -= 1,
            "table" => {
                self.close_scope();
                self.tables.pop();
            }
            "thead" => self.is_in_head = false,
            _ => {}
        }
    }

    fn take(&mut self, text: &str) {
        for c in text.chars() {
            if c == '\n' && self.code > 0 {
                self.end_line();
            } else {
                self.buffer.push(c);
            }
        }
    }

    fn end_heading(&mut self, level: u8) {
        let text: Rc<str> = self.buffer.text().into();
        self.headings.retain(|(above, _)| *above < level);
        if !text.is_empty() {
            self.headings.push((level, text.clone()));
            self.document.headings.push(text);
        }
        self.section = self.headings.iter().map(|(_, text)| text.clone()).collect();
        self.is_heading = true;
        self.end_line();
        self.is_heading = false;
        self.last_id += 1;
        let id = self.last_id;
        self.scope().clear(id);
    }

    fn end_line(&mut self) {
        if self.buffer.is_empty() {
            // Marks end with their line.
            self.buffer.take();
            return;
        }
        let (text, marks) = self.buffer.take();
        let words = words::find(&text, &marks, self.is_heading);
        if !self.interrupted.is_empty() {
            if !words.found.is_empty() {
                self.hide_line(text, words.found);
            }
            return;
        }
        let is_label = self.terms > 0;
        if words.found.is_empty() {
            self.scope().line(&text, is_label);
        } else {
            self.scope().used();
        }
        let at = self.document.lines.len();
        let container = self.containers.last().copied();
        let mut is_directly_in_cell = false;
        if let Some(container) = container {
            let container = &mut self.document.containers[container];
            container.lines.push(at);
            is_directly_in_cell = container.cell.is_some();
        }
        if let Some(cell) = self.innermost_cell() {
            let row = &mut self.document.tables[cell.table].rows[cell.row];
            row.cells[cell.cell].lines.push(at);
        }
        let labels = self.scope().labels.clone();
        self.document.lines.push(Line {
            text,
            found: words.found,
            not_read: words.not_read,
            section: self.section.clone(),
            labels,
            container,
            is_directly_in_cell,
            is_code: self.code > 0,
            is_hidden: false,
        });
    }

    /// Adds the text of a hidden element, with the addresses `found` in it, as a line that does not affect other lines.
    fn hide_line(&mut self, text: String, found: Vec<Found>) {
        let labels = self.scope().labels.clone();
        self.document.lines.push(Line {
            text,
            found,
            not_read: Vec::new(),
            section: self.section.clone(),
            labels,
            container: None,
            is_directly_in_cell: false,
            is_code: self.code > 0,
            is_hidden: true,
        });
    }

    fn innermost_cell(&self) -> Option<CellId> {
        let mut container = self.containers.last().copied();
        while let Some(at) = container {
            let inner = &self.document.containers[at];
            if inner.cell.is_some() {
                return inner.cell;
            }
            container = inner.outer;
        }
        None
    }

    fn is_in_paragraph(&self) -> bool {
        let last = self.containers.last();
        last.is_some_and(|&at| self.document.containers[at].is_paragraph)
    }

    fn open_container(&mut self, cell: Option<CellId>) {
        let outer = match cell {
            Some(_) => None,
            None => self.containers.last().copied(),
        };
        self.containers.push(self.document.containers.len());
        self.document.containers.push(Container {
            outer,
            cell,
            ..Container::default()
        });
    }

    fn scope(&mut self) -> &mut Scope {
        self.scopes.last_mut().expect("the page itself is one")
    }

    fn group(&self) -> Group {
        self.scopes
            .last()
            .expect("the page itself is one")
            .labels
            .group
    }

    fn open_scope(&mut self, id: usize, kind: Kind, cell: Option<CellId>) {
        let outer = self.scope().labels.clone();
        self.scopes
            .push(Scope::new(Group { id, kind }, cell, Some(outer)));
    }

    fn close_scope(&mut self) {
        let inner = self.scopes.pop();
        if inner.is_some_and(|scope| scope.is_used()) {
            self.scope().used();
        }
    }

    fn open_table(&mut self) {
        self.last_id += 1;
        self.tables.push(self.document.tables.len());
        self.document.tables.push(Table {
            id: self.last_id,
            rows: Vec::new(),
        });
        // For its caption.
        self.open_scope(self.last_id, Kind::Folded, None);
    }

    fn open_row(&mut self) {
        let is_head = self.is_in_head;
        if let Some(&table) = self.tables.last() {
            self.document.tables[table].rows.push(Row {
                is_head,
                ..Row::default()
            });
        }
    }

    fn open_cell(&mut self, element: &Element) {
        let span = |name| -> usize {
            let span = element.attr(name).and_then(|text| text.trim().parse().ok());
            span.unwrap_or(1)
        };
        let height = match span("rowspan") {
            // The rest of the table.
            0 => usize::MAX,
            rows => rows,
        };
        let cell = Cell::new(element.name() == "th", span("colspan"), height);
        let id = self.tables.last().and_then(|&table| {
            let rows = &mut self.document.tables[table].rows;
            let row = rows.len().checked_sub(1)?;
            rows[row].cells.push(cell);
            let cell = rows[row].cells.len() - 1;
            Some(CellId { table, row, cell })
        });
        let list = match id {
            Some(id) => self.document.tables[id.table].id,
            None => self.group().id,
        };
        self.open_scope(list, Kind::Above, id);
        self.open_container(id);
    }

    fn finish(mut self) -> Document {
        self.end_line();
        for table in &mut self.document.tables {
            table.finish(&self.document.lines);
        }
        pairs::join(&mut self.document);
        self.document
    }
}

fn level(name: &str) -> Option<u8> {
    match name.as_bytes() {
        [b'h', level @ b'1'..=b'6'] => Some(level - b'0'),
        _ => None,
    }
}
