//! Selects the addresses of a page by the configured patterns, and leaves out the expired ones.
//!
//! Invariants: a pattern that matches nothing on the page fails it, since the page has changed then; each selected
//! address that is left out has a note. Only the selected part can fail the page: an invalid word in another section
//! does not.

use std::collections::HashSet;
use std::rc::Rc;

use allowlist_policy::{Page, Pattern};
use ipnet::IpNet;
use jiff::civil::Date;

use super::around::Around;
use super::document::{Document, Line};
use super::labels::{Group, Kind, Labels, OfLabels, OfTexts, chain};
use super::notes::{Notes, Why};
use super::words::{Found, Reading};
use crate::feed::{FeedError, List, MOST_PREFIXES, Place, shown, some_of, take};

/// The maximum number of headings, columns or labels of a page that an error shows.
const SHOWN_NAMES: usize = 10;
/// The maximum number of labels of a page, each counted once for every line to which it applies. A page with more fails
/// with [`FeedError::TooMany`]: a line usually has a few labels, but a hostile short page can have thousands of lines
/// with hundreds of labels each.
const MOST_LABELS: usize = 2_000_000;

pub(super) fn select(document: &Document, page: &Page, today: Date) -> Result<List, FeedError> {
    let lines = in_section(document, page)?;
    if labels(document, &lines) > MOST_LABELS {
        return Err(FeedError::TooMany);
    }
    let lines = in_column(document, lines, page)?;
    let mut region = Region::find(document, &lines, page)?;
    let mut around = Around::of(document, page.exclude_row.as_ref());
    let mut prefixes = Vec::new();
    let mut notes = Notes::default();
    let mut left_out = 0;
    let mut good_until = None;
    for line in lines {
        let (said, excluded) = around.judge(line);
        for not_read in &line.not_read {
            if region.is_meant(line, None) {
                notes.add(
                    Why::NotRead(not_read.what),
                    &line.text[not_read.text.clone()],
                    std::iter::empty(),
                );
            }
        }
        for found in &line.found {
            let label = found.label.clone().map(|range| &line.text[range]);
            if !region.is_meant(line, label) {
                continue;
            }
            let start = prefixes.len();
            if line.is_hidden {
                // A mistake in a hidden text does not fail the page.
                if read(line, found, &mut prefixes).is_err() {
                    prefixes.truncate(start);
                }
                notes.add(Why::Hidden, &line.text, prefixes.drain(start..));
                continue;
            }
            read(line, found, &mut prefixes)?;
            let (why, text) = if let Some(text) = excluded {
                (Why::Excluded, text)
            } else if found.is_struck_out {
                (Why::StruckOut, &line.text[found.token.clone()])
            } else if let Some(why) = Why::of(said.fate, today) {
                (why, said.text)
            } else {
                continue;
            };
            if let Why::Until(day) = why {
                good_until = Some(good_until.map_or(day, |other| day.min(other)));
            }
            if why.leaves_out() {
                left_out += prefixes.len() - start;
                if left_out > MOST_PREFIXES {
                    return Err(FeedError::TooManyPrefixes);
                }
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
        _ => Ok(List {
            prefixes,
            notes,
            good_until,
        }),
    }
}

/// Parses a text of a line that looks like an address, and appends its prefixes to `prefixes`. A text whose meaning is
/// unclear is an error.
fn read(line: &Line, found: &Found, prefixes: &mut Vec<IpNet>) -> Result<(), FeedError> {
    let text = &line.text[found.token.clone()];
    match &found.reading {
        Reading::AsWritten => take(text, prefixes, || place(line)),
        Reading::Joined(token) => take(token, prefixes, || place(line)),
        Reading::Unclear(problem) => Err(FeedError::Unclear {
            place: place(line),
            text: shown(text),
            problem: *problem,
        }),
    }
}

fn in_section<'d>(document: &'d Document, page: &Page) -> Result<Vec<&'d Line>, FeedError> {
    // By heading: a long one may be above many lines.
    let mut matches = OfTexts::default();
    let mut is_meant = |heading: &Rc<str>| {
        let section = page.section.as_ref();
        section.is_none_or(|section| matches.get(heading, |text| section.is_match(text)))
    };
    if let Some(section) = &page.section
        && !document.headings.iter().any(&mut is_meant)
    {
        let headings = document.headings.iter().map(|heading| &**heading);
        return Err(no_match("section", section, "headings", headings));
    }
    let mut is_in = |line: &&Line| page.section.is_none() || line.section.iter().any(&mut is_meant);
    let is_code = |line: &&Line| page.exclude_code && line.is_code;
    Ok(document
        .lines
        .iter()
        .filter(|line| {
            let is_empty = line.found.is_empty() && line.not_read.is_empty();
            !is_empty && is_in(line) && !is_code(line)
        })
        .collect())
}

/// Returns the number of labels that apply to the given lines, an upper limit for the work of matching a pattern.
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
    let mut matches = OfTexts::default();
    let mut decided = OfLabels::default();
    let mut is_in = |line: &'d Line| {
        decided.get(&line.labels, |labels, outer| {
            let is_match = |header| matches.get(header, |text| column.is_match(text));
            outer || headers(document, labels).iter().any(is_match)
        })
    };
    let meant: Vec<&Line> = lines.iter().copied().filter(|line| is_in(line)).collect();
    if meant.iter().any(|line| !line.found.is_empty()) {
        return Ok(meant);
    }
    let mut known: Vec<&str> = Vec::new();
    for labels in new_labels(&lines) {
        for header in headers(document, labels) {
            if known.len() <= SHOWN_NAMES && !known.contains(&&**header) {
                known.push(header);
            }
        }
    }
    Err(no_match("column", column, "columns of addresses", known))
}

/// Returns the headers of the table cell to which the labels belong; empty if they belong to no cell.
fn headers<'d>(document: &'d Document, labels: &Labels) -> &'d [Rc<str>] {
    labels.cell.map_or(&[], |id| &document.cell(id).1.headers)
}

/// Returns the label sets that apply to `lines`, without duplicates: line by line, and for each line from its innermost
/// section outward.
fn new_labels<'d>(lines: &[&'d Line]) -> impl Iterator<Item = &'d Labels> {
    let mut seen = HashSet::new();
    let mut labels: Vec<&Labels> = Vec::new();
    for line in lines {
        let of_line = chain(&line.labels);
        // The outer labels of a known set are known too.
        labels.extend(of_line.take_while(|labels| seen.insert(std::ptr::from_ref(*labels))));
    }
    labels.into_iter()
}

/// The addresses of a page that the configuration key `page.region` selects by their labels.
struct Region<'d> {
    document: &'d Document,
    pattern: Option<&'d Pattern>,
    /// The groups of labels in which the configured pattern matches a label.
    groups: HashSet<Group>,
    matches: OfTexts<bool>,
    decided: OfLabels<Option<bool>>,
}

impl<'d> Region<'d> {
    fn find(document: &'d Document, lines: &[&'d Line], page: &'d Page) -> Result<Self, FeedError> {
        let mut region = Self {
            document,
            pattern: page.region.as_ref(),
            groups: HashSet::new(),
            matches: OfTexts::default(),
            decided: OfLabels::default(),
        };
        let Some(pattern) = region.pattern else {
            return Ok(region);
        };
        let mut known: Vec<&str> = Vec::new();
        let mut know = |text: &'d str| {
            if known.len() <= SHOWN_NAMES && !known.contains(&text) {
                known.push(text);
            }
        };
        for line in lines {
            for found in &line.found {
                let Some(label) = found.label.clone().map(|range| &line.text[range]) else {
                    continue;
                };
                if pattern.is_match(label) {
                    region.groups.insert(beginning(line));
                }
                know(label);
            }
        }
        for labels in new_labels(lines) {
            for (group, texts) in levels(document, labels) {
                for text in texts {
                    if region.matches.get(text, |text| pattern.is_match(text)) {
                        region.groups.insert(group);
                    }
                    know(text);
                }
            }
        }
        if region.groups.is_empty() {
            return Err(no_match(
                "region",
                pattern,
                "addresses with the labels",
                known,
            ));
        }
        Ok(region)
    }

    /// Returns whether an address is selected by the labels of `line` and the address's own `label`. The innermost
    /// group in which a label matches the pattern decides.
    fn is_meant(&mut self, line: &'d Line, label: Option<&str>) -> bool {
        let Some(pattern) = self.pattern else {
            return true;
        };
        if let Some(label) = label
            && self.groups.contains(&beginning(line))
        {
            return pattern.is_match(label);
        }
        let Self {
            document,
            groups,
            matches,
            decided,
            ..
        } = self;
        let decided = decided.get(&line.labels, |labels, outer| {
            let mut is_match = |text| matches.get(text, |text| pattern.is_match(text));
            levels(document, labels)
                .find(|(group, texts)| !texts.is_empty() && groups.contains(group))
                .map(|(_, texts)| texts.into_iter().any(&mut is_match))
                .or(outer)
        });
        decided.unwrap_or_default()
    }
}

/// Returns the group of the labels that stand before the addresses within lines, for the list or cell of `line`.
fn beginning(line: &Line) -> Group {
    Group {
        kind: Kind::Beginning,
        ..line.labels.group
    }
}

/// Returns the labels of an address by group, from the innermost part of the page outward: those of its list item, cell
/// or paragraph, then those of its table row and column.
fn levels<'d>(
    document: &'d Document,
    labels: &'d Labels,
) -> impl Iterator<Item = (Group, Vec<&'d Rc<str>>)> {
    let table = labels.cell.map(|id| {
        let (row, cell) = document.cell(id);
        let group = Group {
            id: document.tables[id.table].id,
            kind: Kind::Table,
        };
        (group, row.labels.iter().chain(&*cell.headers).collect())
    });
    let own = (labels.group, labels.texts.iter().collect());
    std::iter::once(own).chain(table)
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
