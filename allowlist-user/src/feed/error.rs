//! Why a list was refused: what was found, where, and what to do about it.

use std::fmt;

use thiserror::Error;

use super::MOST_PREFIXES;
use super::json::MOST_BYTES;
use super::token::PrefixError;
use crate::error_code::ErrorCode;

impl FeedError {
    /// Returns the code of the error.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Empty | Self::NoPrefixes | Self::AllLeftOut { .. } => ErrorCode::ListEmpty,
            Self::WebPage { .. } => ErrorCode::ListIsWebPage,
            Self::Truncated { .. } => ErrorCode::Incomplete,
            Self::TooMuchMemory | Self::TooManyPrefixes => ErrorCode::TooLarge,
            Self::NothingSelected { .. }
            | Self::Unmatched { .. }
            | Self::NoMatch { .. }
            | Self::NoMember { .. }
            | Self::NoHeader { .. }
            | Self::NoColumn { .. }
            | Self::NoLink { .. } => ErrorCode::NothingSelected,
            _ => ErrorCode::ListMalformed,
        }
    }
}

/// Why a list was refused; none of it was taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FeedError {
    /// Zero bytes, or nothing but white space.
    #[error("is empty; a list names at least one prefix: check where it comes from")]
    Empty,
    /// An error page, a login page, a challenge, the human-readable page about the list.
    #[error(
        "got a web page, not a list: {start:?}; use the address of the list itself, and open it in \
         a browser to see what the page says"
    )]
    WebPage {
        /// Its first characters.
        start: String,
    },
    /// A list of another kind, or a few words.
    #[error(
        "is not a web page, as it has no element: it starts with {start:?}; check `format`, and where it \
         comes from"
    )]
    NotAPage {
        /// Its first characters.
        start: String,
    },
    /// Compressed, encrypted or binary, or text of another encoding.
    #[error("is not text from its byte {at} on: {problem}; it has to be plain UTF-8")]
    NotText {
        /// Offset of the first byte that is not text.
        at: usize,
        /// What it may be instead.
        problem: &'static str,
    },
    /// The JSON stops before its end.
    #[error("breaks off after {length} bytes; the transfer was cut short: try again")]
    Truncated {
        /// How much there was.
        length: usize,
    },
    /// Not JSON at all.
    #[error(
        "is not JSON: {problem}: the text starts with {start:?}; check `format`, and where it comes from"
    )]
    NotJson {
        /// The parser's words, with line and column.
        problem: String,
        /// Its first characters.
        start: String,
    },
    /// JSON or a page that is more nested than anything that holds a list.
    #[error("is nested too deep to be read; check where it comes from")]
    TooDeep,
    /// A page or a document of more parts than memory should be spent on.
    #[error("has too many parts to be read; check where it comes from")]
    TooMany,
    /// JSON that takes many times the memory of its text.
    #[error(
        "takes more than {} MiB of memory to read, the limit for one list; use a shorter list, or one as JSON lines, CSV or text",
        MOST_BYTES >> 20
    )]
    TooMuchMemory,
    /// Well-formed, and nothing is where it should be.
    #[error(
        "names no prefix: {selects} finds nothing in {found}; open it, and correct `select` if its \
         shape has changed"
    )]
    NothingSelected {
        /// What was looked for, quoted.
        selects: String,
        /// What the document is instead.
        found: String,
    },
    /// A filter, a keyword or an element that the configuration names and the list does not have.
    #[error(
        "nothing in the list has {what}; open it, and correct `{key}` if its shape has changed"
    )]
    Unmatched {
        /// The key of the configuration.
        key: &'static str,
        /// The value that does not occur.
        what: String,
    },
    /// An object with two members of one name, of which a reader takes either.
    #[error(
        "line {line}: {place} has the key {key:?} twice, and readers differ in which one they take; report it to the vendor"
    )]
    DuplicateKey {
        /// The object.
        place: Place,
        /// The line of the second one.
        line: usize,
        /// The key.
        key: String,
    },
    /// One document where each line should be one.
    #[error(
        "is one JSON document over several lines, not a document a line; write format = \"json\""
    )]
    OneDocument,
    /// A selected node that should hold fields.
    #[error(
        "{place}: is {found}, not an object; correct `select`, so that it selects the objects that have the fields"
    )]
    NotAnObject {
        /// Which node.
        place: Place,
        /// Its kind.
        found: String,
    },
    /// A field that an item does not have.
    #[error("{place}: has no {name:?}; it has {found}: correct the name in the configuration")]
    NoMember {
        /// Which item.
        place: Place,
        /// The field.
        name: Box<str>,
        /// Its fields, quoted.
        found: Box<str>,
    },
    /// A field that an item has more than once.
    #[error(
        "{place}: has {name:?} more than once; write that name as `element`, so that each counts"
    )]
    ManyMembers {
        /// Which item.
        place: Place,
        /// The field.
        name: String,
    },
    /// An element that holds elements instead of a text.
    #[error(
        "{place}: holds elements, not a prefix: it has {found}; write one of their names as `element` or `attribute`"
    )]
    NotAText {
        /// Which element.
        place: Place,
        /// Its fields, quoted.
        found: String,
    },
    /// Not XML that can be read.
    #[error(
        "is not XML that can be read, from line {line} on: {problem}: the text starts with {start:?}; check `format`, and where it comes from"
    )]
    NotXml {
        /// Where.
        line: usize,
        /// The reason.
        problem: String,
        /// Its first characters.
        start: String,
    },
    /// A column name that the header line has more than once.
    #[error(
        "line {line}: several columns are headed {column:?}; write the number of the right one, from 0"
    )]
    ManyHeaders {
        /// Of the header line.
        line: usize,
        /// The name.
        column: String,
    },
    /// What was selected is something else.
    #[error("{place}: is {found}, not a string; {remedy}")]
    NotAString {
        /// Which item.
        place: Place,
        /// What it is instead.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// No header line names the column.
    #[error(
        "line {line}: no column is headed {column:?}; the header line has {found}: correct `column`"
    )]
    NoHeader {
        /// Of the header line.
        line: usize,
        /// What was looked for.
        column: String,
        /// What there is, quoted.
        found: String,
    },
    /// A record that is too short.
    #[error(
        "line {line}: has no column {column}; it has {fields} in all, counted from 0: correct `column`, or the line"
    )]
    NoColumn {
        /// Where it starts.
        line: usize,
        /// Counted from 0.
        column: usize,
        /// How many there are.
        fields: usize,
    },
    /// A field that swallows the lines that follow it.
    #[error("line {line}: a quoted field does not end in its line; close its quotes")]
    OpenQuotes {
        /// Where it starts.
        line: usize,
    },
    /// No such heading, label or column on a page.
    #[error(
        "nothing on the page matches {key} = {pattern:?}; {found}: open it, and correct `{key}` if its shape has changed"
    )]
    NoMatch {
        /// As in the configuration.
        key: &'static str,
        /// The regular expression.
        pattern: String,
        /// What there is, in a sentence.
        found: String,
    },
    /// A block of `ReadMe`'s that cannot be read.
    #[error(
        "line {line}: this [block:{kind}] cannot be read: {problem}; check where it comes from"
    )]
    Block {
        /// Where it starts.
        line: usize,
        /// What it says of itself.
        kind: String,
        /// What is wrong.
        problem: String,
    },
    /// A page that should link to the list.
    #[error(
        "no link on the page has an address that matches {pattern:?}; {found}: open it, and correct `discover` if its shape has changed"
    )]
    NoLink {
        /// The regular expression.
        pattern: String,
        /// What there is, in a sentence.
        found: String,
    },
    /// A page that links to several.
    #[error(
        "{count} links on the page have addresses that match {pattern:?}: {found}; make `discover` match one"
    )]
    ManyLinks {
        /// The regular expression.
        pattern: String,
        /// How many.
        count: usize,
        /// Which, quoted.
        found: String,
    },
    /// Well-formed, and names nobody.
    #[error("names no prefix; a list names at least one: check where it comes from")]
    NoPrefixes,
    /// All that a page names is past.
    #[error(
        "names no prefix that is still good: {note}; open it, and correct `page`, or ask for the new list"
    )]
    AllLeftOut {
        /// What was said of the first.
        note: String,
    },
    /// More than memory should be spent on.
    #[error(
        "names more than {MOST_PREFIXES} prefixes; write networks instead of ranges, which can be hundreds \
         of prefixes each, or make it several sources"
    )]
    TooManyPrefixes,
    /// An item that is not a prefix.
    #[error("{place}: {error}")]
    Prefix {
        /// Where it stands.
        place: Place,
        /// What is wrong with it. Boxed, as it is larger than all else here.
        error: Box<PrefixError>,
    },
    /// Something on a page that may or may not be an address.
    #[error("{place}: {text:?} {problem}")]
    Unclear {
        /// Where it stands.
        place: Place,
        /// As a reader sees it, shortened.
        text: String,
        /// The reason for the doubt.
        problem: Unclear,
    },
    /// What is wrong with one of many documents.
    #[error("line {line}: {error}")]
    Line {
        /// Which.
        line: usize,
        /// What is wrong with it.
        error: Box<FeedError>,
    },
}

/// Why a text of a page, which looks like an address, is not read as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Unclear {
    /// An element or a comment begins or ends between two digits.
    #[error(
        "may be an address with something behind it: markup begins or ends between two of its digits; \
         choose a part of the page without it, or another source"
    )]
    Markup,
    /// A soft hyphen, a blank without width, or another character that is not shown.
    #[error(
        "has a character within it that is not shown; choose a part of the page without it, or another source"
    )]
    Invisible,
    /// A part is superscript or subscript.
    #[error(
        "is an address only together with its superscript or subscript text; choose a part of the page \
         without it, or another source"
    )]
    Raised,
    /// A part is crossed out.
    #[error("is struck out in part; choose a part of the page without it, or another source")]
    StruckOut,
    /// It is shown in another order than it is written.
    #[error(
        "is shown in another order than it is written, by an override of its direction; choose a part of \
         the page without it, or another source"
    )]
    Reordered,
    /// Two addresses may be a range, a change, or two addresses.
    #[error(
        "may be a range, a change from one to the other, or two addresses; choose a part of the page \
         without it, or another source"
    )]
    Range,
    /// A prefix length stands beside it, and may belong to another address.
    #[error(
        "may be an address or, with the length beside it, a network; choose a part of the page without \
         it, or another source"
    )]
    Length,
    /// It follows the number of a version.
    #[error(
        "may be an address or a version number; choose a part of the page without it, or another source"
    )]
    Version,
    /// It begins a line as the number of a section does.
    #[error(
        "may be an address or the number of a section; choose a part of the page without it, or another source"
    )]
    Section,
    /// It is glued to a URL.
    #[error(
        "may be an address or a part of the URL before it; choose a part of the page without it, or another source"
    )]
    Glued,
}

impl FeedError {
    /// Returns the line of the text that was refused, counted from 1, where one is known.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::NoHeader { line, .. }
            | Self::NoColumn { line, .. }
            | Self::OpenQuotes { line }
            | Self::Block { line, .. }
            | Self::Line { line, .. }
            | Self::NotAString {
                place: Place::Line(line),
                ..
            }
            | Self::Prefix {
                place: Place::Line(line),
                ..
            } => Some(*line),
            _ => None,
        }
    }
}

/// Where in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Counted from 1, as editors do.
    Line(usize),
    /// A `JSONPath`.
    Path(String),
    /// On a page.
    Text {
        /// The headings above, outermost first.
        section: Vec<String>,
        /// The row, list item, paragraph or line, shortened.
        text: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(out, "line {number}"),
            Self::Path(path) => out.write_str(path),
            Self::Text { section, text } if section.is_empty() => write!(out, "in {text:?}"),
            Self::Text { section, text } => {
                write!(out, "below {:?}, in {text:?}", section.join(" > "))
            }
        }
    }
}
