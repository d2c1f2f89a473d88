//! Notes for the operator about a page: addresses that are left out, and addresses that will be left out.
//!
//! Invariant: notes are few and short, however long the page is.

use std::collections::HashMap;

use ipnet::IpNet;
use jiff::civil::Date;

use super::deprecation::Fate;
use super::words::What;
use crate::feed::shown;

/// The maximum number of notes about one page; one more note states the number of those that are left out.
const MOST: usize = 20;
/// The maximum number of prefixes that one note names; the note only counts the others.
const MOST_PREFIXES: usize = 3;

/// The reason for a note to the operator about a prefix on a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Why {
    /// The page states that the prefix is valid up to and on this day, which has not passed.
    Until(Date),
    /// The page states that the prefix will be removed, on a day that is not known.
    Sometime,
    /// The page states that the prefix was valid up to this day, which has passed.
    Over(Date),
    /// The page states that the prefix is deprecated or was removed.
    Gone,
    /// The prefix is crossed out on the page.
    StruckOut,
    /// The key `exclude_row` of the configuration excludes the prefix.
    Excluded,
    /// The prefix is in an element that the page does not show.
    Hidden,
    /// The page may state that the prefix was removed.
    Unclear,
    /// The text looks like an address and is something else, so it is not read as a prefix.
    NotRead(What),
}

impl Why {
    pub(super) fn of(fate: Fate, today: Date) -> Option<Self> {
        match fate {
            Fate::Stays => None,
            Fate::Sometime => Some(Self::Sometime),
            Fate::Until(day) if today > day => Some(Self::Over(day)),
            Fate::Until(day) => Some(Self::Until(day)),
            Fate::Gone => Some(Self::Gone),
            Fate::Unclear => Some(Self::Unclear),
        }
    }

    pub(super) fn leaves_out(self) -> bool {
        !matches!(self, Self::Until(_) | Self::Sometime | Self::Unclear)
    }
}

/// The notes for the operator about a page, in the page's order; prefixes with the same reason and text share a note.
#[derive(Default)]
pub(super) struct Notes {
    notes: Vec<(Why, String, Vec<IpNet>)>,
    places: HashMap<(Why, String), usize>,
}

impl Notes {
    pub(super) fn add(&mut self, why: Why, text: &str, prefixes: impl Iterator<Item = IpNet>) {
        let text = shown(text);
        let place = *self.places.entry((why, text.clone())).or_insert_with(|| {
            self.notes.push((why, text, Vec::new()));
            self.notes.len() - 1
        });
        self.notes[place].2.extend(prefixes);
    }

    /// Returns the notes as messages. `list` contains the prefixes that are kept, sorted, since a page may name a
    /// prefix a second time where it stays valid.
    pub(super) fn finish(self, list: &[IpNet]) -> Vec<String> {
        let mut notes = Vec::new();
        for (why, text, prefixes) in self.notes {
            if let Why::NotRead(what) = why {
                notes.push(not_read(what, &text));
                continue;
            }
            if why == Why::Hidden && prefixes.is_empty() {
                notes.push(format!("left out a text that the page hides: {text:?}"));
                continue;
            }
            let is_listed = |prefix: &IpNet| list.binary_search(prefix).is_ok();
            let (listed, left_out): (Vec<_>, Vec<_>) = prefixes.into_iter().partition(is_listed);
            if !why.leaves_out() {
                notes.push(describe(why, &listed, &text));
                continue;
            }
            if !left_out.is_empty() {
                notes.push(describe(why, &left_out, &text));
            }
            if !listed.is_empty() {
                let listed = some(&listed);
                notes.push(format!(
                    "kept {listed} in spite of {text:?}, since the page lists it elsewhere too"
                ));
            }
        }
        let more = notes.len().saturating_sub(MOST);
        if more > 0 {
            notes.truncate(MOST);
            notes.push(format!("{more} more notes are not shown"));
        }
        notes
    }
}

fn describe(why: Why, prefixes: &[IpNet], text: &str) -> String {
    let prefixes = some(prefixes);
    match why {
        Why::Until(day) => format!("{prefixes} will be deprecated on {day}: {text:?}"),
        Why::Sometime => {
            format!("{prefixes} will be deprecated on a date that cannot be read: {text:?}")
        }
        Why::Over(day) => format!("left out {prefixes}, deprecated on {day}: {text:?}"),
        Why::Gone => format!("left out {prefixes}, deprecated: {text:?}"),
        Why::StruckOut => format!("left out {prefixes}, struck out: {text:?}"),
        Why::Excluded => format!("left out {prefixes}, whose row matches `exclude_row`: {text:?}"),
        Why::Hidden => {
            format!("left out {prefixes}, hidden on the page: {text:?}")
        }
        Why::Unclear => format!("kept {prefixes}, which may be deprecated: {text:?}"),
        Why::NotRead(what) => not_read(what, text),
    }
}

fn not_read(what: What, text: &str) -> String {
    let what = match what {
        What::Version => "a version number",
        What::HostName => "a host name",
        What::Path => "a path or a port",
        What::Section => "the number of a section",
        What::Pattern => "a pattern or a version",
    };
    format!("read as {what}, not as an address: {text:?}")
}

fn some(prefixes: &[IpNet]) -> String {
    let named: Vec<String> = prefixes
        .iter()
        .take(MOST_PREFIXES)
        .map(ToString::to_string)
        .collect();
    let more = prefixes.len() - named.len();
    let named = named.join(", ");
    match more {
        0 => named,
        _ => format!("{named} and {more} more"),
    }
}
