//! What the text around a line says of the addresses in it.
//!
//! A line with addresses speaks for itself alone, and one without for all of the list item, definition,
//! cell or paragraph that it is in; what a cell says so, it says of its row. Labels speak for what they
//! are of. Invariant: each text is judged once, however many lines are beside it.

use super::deprecation::{Fate, fate};
use super::document::{Container, Document, Line};
use super::select::chain;
use crate::policy::Pattern;

/// The worst that is said, and where.
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
    containers: Vec<Judged<'d>>,
    /// By table and row.
    rows: Vec<Vec<Judged<'d>>>,
    pattern: Option<&'d Pattern>,
}

struct Judged<'d> {
    said: Said<'d>,
    /// The text that the configuration leaves out.
    excluded: Option<&'d str>,
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
        let tables = document.tables.iter();
        Self {
            containers: document.containers.iter().map(container).collect(),
            rows: tables
                .map(|table| {
                    let rows = table.rows.iter();
                    rows.map(|row| Judged {
                        said: Said {
                            fate: fate(&row.note),
                            text: &row.text,
                        },
                        excluded: Some(row.text.as_str()).filter(|text| is_excluded(text)),
                    })
                    .collect()
                })
                .collect(),
            pattern,
        }
    }

    pub(super) fn said(&self, document: &'d Document, line: &'d Line) -> Said<'d> {
        let around = self.around(document, line).map(|judged| judged.said);
        let labels = chain(&line.labels).flat_map(|labels| {
            let headers = labels.cell.map(|id| &*document.cell(id).1.headers);
            labels.texts.iter().chain(headers.into_iter().flatten())
        });
        let labels = labels.map(|label| Said::of(label));
        worst(
            std::iter::once(Said::of(&line.text))
                .chain(around)
                .chain(labels),
        )
    }

    /// The text for which the configuration leaves a line out.
    pub(super) fn excluded(&self, document: &'d Document, line: &'d Line) -> Option<&'d str> {
        let is_match = self.pattern?.is_match(&line.text);
        let mut around = self.around(document, line);
        let line = is_match.then_some(line.text.as_str());
        line.or_else(|| around.find_map(|judged| judged.excluded))
    }

    /// What the line is in, up to its row.
    fn around(&self, document: &'d Document, line: &Line) -> impl Iterator<Item = &Judged<'d>> {
        let outer = |at: &usize| document.containers[*at].outer;
        let containers = std::iter::successors(line.container, outer);
        let row = chain(&line.labels).find_map(|labels| labels.cell);
        let row = row.map(|id| &self.rows[id.table][id.row]);
        containers.map(|at| &self.containers[at]).chain(row)
    }
}

fn worst<'d>(said: impl Iterator<Item = Said<'d>>) -> Said<'d> {
    said.fold(Said::default(), Said::or)
}
