//! Which addresses of a page are meant, and which of those are still good.
//!
//! Invariants: a pattern that matches nothing on the page fails it, as the page has changed then; each
//! address that is meant and left out is told of. Only what is meant is judged: a wrong word in another
//! section is not this list's.

use std::collections::HashSet;
use std::rc::Rc;

use jiff::civil::Date;

use super::around::{Around, Said};
use super::document::{Document, Line};
use super::labels::{Group, Kind, Labels};
use super::notes::{Notes, Why};
use crate::feed::token::parse_token;
use crate::feed::{FeedError, List, Place, shown, some_of};
use crate::policy::{Page, Pattern};

/// How many headings, columns or labels an error shows.
const SHOWN_NAMES: usize = 10;
/// How many labels the lines of a page may have, each counted for itself. Those that people made have a few
/// each; a short page can have thousands of lines with hundreds.
const MOST_LABELS: usize = 2_000_000;

pub(super) fn select(document: &Document, page: &Page, today: Date) -> Result<List, FeedError> {
    let lines = in_section(document, page)?;
    if labels(document, &lines) > MOST_LABELS {
        return Err(FeedError::TooMany);
    }
    let lines = in_column(document, lines, page)?;
    let region = Region::find(document, &lines, page)?;
    let around = Around::of(document, page.exclude_row.as_ref());
    let mut prefixes = Vec::new();
    let mut notes = Notes::default();
    for line in lines {
        let said = around.said(document, line);
        let excluded = around.excluded(document, line);
        for found in &line.found {
            let label = found.label.clone().map(|range| &line.text[range]);
            if !region.is_meant(document, line, label) {
                continue;
            }
            let start = prefixes.len();
            parse_token(&line.text[found.token.clone()], &mut prefixes)
                .map_err(|error| FeedError::prefix(place(line), error))?;
            let said = label.map_or(said, |label| said.or(Said::of(label)));
            let (why, text) = if let Some(text) = excluded {
                (Why::Excluded, text)
            } else if line.is_struck_out {
                (Why::StruckOut, line.text.as_str())
            } else if let Some(why) = Why::of(said.fate, today) {
                (why, said.text)
            } else {
                continue;
            };
            if why.leaves_out() {
                notes.add(why, text, prefixes.drain(start..));
            } else {
                notes.add(why, text, prefixes[start..].iter().copied());
            }
        }
    }
    prefixes.sort_unstable();
    prefixes.dedup();
    let notes = notes.finish(&prefixes);
    match notes.first() {
        Some(note) if prefixes.is_empty() => Err(FeedError::AllLeftOut { note: note.clone() }),
        _ => Ok(List { prefixes, notes }),
    }
}

fn in_section<'d>(document: &'d Document, page: &Page) -> Result<Vec<&'d Line>, FeedError> {
    let is_meant = |heading: &Rc<str>| {
        let section = page.section.as_ref();
        section.is_none_or(|section| section.is_match(heading))
    };
    if let Some(section) = &page.section
        && !document.headings.iter().any(is_meant)
    {
        let headings = document.headings.iter().map(|heading| &**heading);
        return Err(no_match("section", section, "headings", headings));
    }
    let is_in = |line: &&Line| page.section.is_none() || line.section.iter().any(is_meant);
    let is_code = |line: &&Line| page.exclude_code && line.is_code;
    Ok(document
        .lines
        .iter()
        .filter(|line| !line.found.is_empty() && is_in(line) && !is_code(line))
        .collect())
}

/// What all that is said of these lines comes to: the most that is to be looked at for a pattern.
fn labels(document: &Document, lines: &[&Line]) -> usize {
    let of_one = |labels: &Labels| {
        let headers = labels
            .cell
            .map_or(0, |id| document.cell(id).1.headers.len());
        1 + labels.texts.len() + headers
    };
    let of_line = |line: &&Line| chain(&line.labels).map(of_one).sum::<usize>();
    lines.iter().map(of_line).sum()
}

fn in_column<'d>(
    document: &'d Document,
    lines: Vec<&'d Line>,
    page: &Page,
) -> Result<Vec<&'d Line>, FeedError> {
    let Some(column) = &page.column else {
        return Ok(lines);
    };
    let is_in = |line: &Line| headers(document, line).any(|header| column.is_match(header));
    let meant: Vec<&Line> = lines.iter().copied().filter(|line| is_in(line)).collect();
    if !meant.is_empty() {
        return Ok(meant);
    }
    let mut known: Vec<&str> = Vec::new();
    for header in lines.iter().flat_map(|line| headers(document, line)) {
        if known.len() <= SHOWN_NAMES && !known.contains(&header) {
            known.push(header);
        }
    }
    Err(no_match("column", column, "columns of addresses", known))
}

/// Of the cells that a line is in.
fn headers<'d>(document: &'d Document, line: &'d Line) -> impl Iterator<Item = &'d str> {
    chain(&line.labels)
        .filter_map(|labels| labels.cell)
        .flat_map(|id| document.cell(id).1.headers.iter().map(|header| &**header))
}

/// Whose addresses are meant.
struct Region<'p> {
    pattern: Option<&'p Pattern>,
    /// Where one label is meant.
    groups: HashSet<Group>,
}

impl<'p> Region<'p> {
    fn find(document: &Document, lines: &[&Line], page: &'p Page) -> Result<Self, FeedError> {
        let mut region = Self {
            pattern: page.region.as_ref(),
            groups: HashSet::new(),
        };
        let Some(pattern) = region.pattern else {
            return Ok(region);
        };
        let mut known: Vec<String> = Vec::new();
        for line in lines {
            for found in &line.found {
                let label = found.label.clone().map(|range| &line.text[range]);
                for (group, texts) in levels(document, line, label) {
                    if texts.iter().any(|text| pattern.is_match(text)) {
                        region.groups.insert(group);
                    }
                    if known.len() <= SHOWN_NAMES {
                        let new = texts
                            .iter()
                            .filter(|text| !known.iter().any(|old| *old == ***text));
                        let new: Vec<String> = new.map(ToString::to_string).collect();
                        known.extend(new);
                    }
                }
            }
        }
        if region.groups.is_empty() {
            let known = known.iter().map(String::as_str);
            return Err(no_match(
                "region",
                pattern,
                "addresses with the labels",
                known,
            ));
        }
        Ok(region)
    }

    /// The innermost labels among which one is meant decide.
    fn is_meant(&self, document: &Document, line: &Line, label: Option<&str>) -> bool {
        let Some(pattern) = self.pattern else {
            return true;
        };
        levels(document, line, label)
            .find(|(group, texts)| !texts.is_empty() && self.groups.contains(group))
            .is_some_and(|(_, texts)| texts.iter().any(|text| pattern.is_match(text)))
    }
}

/// What is said of whose an address is, innermost first.
fn levels(
    document: &Document,
    line: &Line,
    label: Option<&str>,
) -> impl Iterator<Item = (Group, Vec<Rc<str>>)> {
    let beginning = Group {
        kind: Kind::Beginning,
        ..line.labels.group
    };
    let around = chain(&line.labels).flat_map(|labels| {
        let table = labels.cell.map(|id| {
            let (row, cell) = document.cell(id);
            let group = Group {
                id: document.tables[id.table].id,
                kind: Kind::Table,
            };
            let texts = row.labels.iter().chain(&*cell.headers).cloned().collect();
            (group, texts)
        });
        [Some((labels.group, labels.texts.clone())), table]
            .into_iter()
            .flatten()
    });
    std::iter::once((beginning, label.into_iter().map(Rc::from).collect())).chain(around)
}

pub(super) fn chain(labels: &Rc<Labels>) -> impl Iterator<Item = &Labels> {
    std::iter::successors(Some(&**labels), |labels| labels.outer.as_deref())
}

fn no_match<'t>(
    key: &'static str,
    pattern: &Pattern,
    what: &str,
    names: impl IntoIterator<Item = &'t str>,
) -> FeedError {
    let names = some_of(names, SHOWN_NAMES);
    FeedError::NoMatch {
        key,
        pattern: pattern.as_str().to_owned(),
        found: if names.is_empty() {
            format!("it has no {what}")
        } else {
            format!("it has {what} {names}")
        },
    }
}

fn place(line: &Line) -> Place {
    Place::Text {
        section: line.section.iter().map(|heading| shown(heading)).collect(),
        text: shown(&line.text),
    }
}
