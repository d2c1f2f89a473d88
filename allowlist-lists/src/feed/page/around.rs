//! The announcements in the text around a line, such as "deprecated", for the addresses in the line.
//!
//! The text of a line with addresses applies to that line. The text of another line applies to the whole list item,
//! definition, cell or paragraph, and in a cell to the whole row. Labels apply to their addresses. Invariant: each text
//! is parsed once, however many lines are beside it.

use allowlist_policy::Pattern;

use super::deprecation::{Fate, fate, fate_of_cell, names_end};
use super::document::{Container, Document, Line};
use super::labels::{OfLabels, OfTexts};
use super::table::{CellId, Row};
use super::words::LONGEST_LABEL;

/// The maximum number of headers above a cell that are searched for a word such as "Deprecated"; further ones are
/// ignored. Tables have one or two.
const MOST_HEADERS: usize = 3;

/// An announcement about addresses, such as that they were removed, with the text that makes it. Of several texts, the
/// worst announcement is used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Said<'d> {
    pub fate: Fate,
    pub text: &'d str,
}

impl<'d> Said<'d> {
    pub(super) fn of(text: &'d str) -> Self {
        Self {
            fate: fate(text),
            text,
        }
    }

    pub(super) fn or(self, other: Self) -> Self {
        if self.fate.and(other.fate) == self.fate {
            self
        } else {
            other
        }
    }
}

pub(super) struct Around<'d> {
    document: &'d Document,
    /// The announcements in each [`Container`] (list item, cell or paragraph) of the document, by its index, together
    /// with those in its outer containers.
    containers: Vec<Judged<'d>>,
    /// The announcements in each table row, by the index of the table and of the row.
    rows: Vec<Vec<Judged<'d>>>,
    labels: OfLabels<Labelled<'d>>,
    fates: OfTexts<Fate>,
    pattern: Option<&'d Pattern>,
}

#[derive(Clone, Copy, Default)]
struct Judged<'d> {
    said: Said<'d>,
    /// The text that matches `exclude_row` of the configuration; `None` if no text does.
    excluded: Option<&'d str>,
}

impl Judged<'_> {
    fn or(self, other: Self) -> Self {
        Self {
            said: self.said.or(other.said),
            excluded: self.excluded.or(other.excluded),
        }
    }
}

/// The worst announcement in the labels that apply to a line of a page, with the innermost table cell to which one of
/// these labels belongs.
#[derive(Clone, Copy, Default)]
struct Labelled<'d> {
    said: Said<'d>,
    cell: Option<CellId>,
}

impl<'d> Around<'d> {
    pub(super) fn of(document: &'d Document, pattern: Option<&'d Pattern>) -> Self {
        let is_excluded = |text: &str| pattern.is_some_and(|pattern| pattern.is_match(text));
        let container = |container: &Container| {
            let lines = || container.lines.iter().map(|&at| &document.lines[at]);
            let notes = lines().filter(|line| line.found.is_empty());
            Judged {
                said: worst(notes.map(|line| Said::of(&line.text))),
                excluded: lines()
                    .map(|line| line.text.as_str())
                    .find(|text| is_excluded(text)),
            }
        };
        let mut containers: Vec<Judged> = Vec::with_capacity(document.containers.len());
        for inner in &document.containers {
            // An outer element has a smaller index than its children.
            let outer = inner.outer.map(|at| containers[at]);
            containers.push(container(inner).or(outer.unwrap_or_default()));
        }
        let tables = document.tables.iter();
        let mut known = OfTexts::default();
        Self {
            document,
            containers,
            rows: tables
                .map(|table| {
                    let rows = table.rows.iter();
                    rows.map(|row| Judged {
                        said: Said {
                            fate: fate(&row.note).and(below_headers(document, row, &mut known)),
                            text: &row.text,
                        },
                        excluded: Some(row.text.as_str()).filter(|text| is_excluded(text)),
                    })
                    .collect()
                })
                .collect(),
            labels: OfLabels::default(),
            fates: OfTexts::default(),
            pattern,
        }
    }

    /// Returns the worst announcement about the addresses in `line`, and the text by which `exclude_row` of the
    /// configuration excludes them, if any.
    pub(super) fn judge(&mut self, line: &'d Line) -> (Said<'d>, Option<&'d str>) {
        let labelled = self.labelled(line);
        let container = line.container.map(|at| self.containers[at]);
        let row = labelled.cell.map(|id| self.rows[id.table][id.row]);
        let text = line.text.as_str();
        let is_excluded = self.pattern.is_some_and(|pattern| pattern.is_match(text));
        let all = Judged {
            said: Said::of(text),
            excluded: is_excluded.then_some(text),
        };
        let all = all.or(container.unwrap_or_default());
        let all = all.or(row.unwrap_or_default());
        let headings = line.section.iter().map(|text| Said {
            fate: self.fates.get(text, fate),
            text,
        });
        (all.said.or(labelled.said).or(worst(headings)), all.excluded)
    }

    fn labelled(&mut self, line: &'d Line) -> Labelled<'d> {
        let Self {
            document,
            labels,
            fates,
            ..
        } = self;
        labels.get(&line.labels, |labels, outer| {
            let headers = labels.cell.map(|id| &*document.cell(id).1.headers);
            let texts = labels.texts.iter().chain(headers.into_iter().flatten());
            let own = worst(texts.map(|text| Said {
                fate: fates.get(text, fate),
                text,
            }));
            Labelled {
                said: own.or(outer.said),
                cell: labels.cell.or(outer.cell),
            }
        })
    }
}

/// Returns the announcement about a table row's addresses in the row's cells below headers such as "Deprecated".
fn below_headers(document: &Document, row: &Row, known: &mut OfTexts<bool>) -> Fate {
    let mut fate = Fate::Stays;
    for cell in &row.cells {
        let [line] = cell.lines[..] else { continue };
        let line = &document.lines[line];
        if !line.found.is_empty() || line.text.len() > LONGEST_LABEL {
            continue;
        }
        let mut headers = cell.headers.iter().take(MOST_HEADERS);
        if headers.any(|header| known.get(header, names_end)) {
            fate = fate.and(fate_of_cell(&line.text));
        }
    }
    fate
}

fn worst<'d>(said: impl Iterator<Item = Said<'d>>) -> Said<'d> {
    said.fold(Said::default(), Said::or)
}
