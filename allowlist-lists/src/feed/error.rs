//! The errors of lists: the finding, its place, and the remedy.

use std::fmt;

use allowlist_policy::error_code::ErrorCode;
use thiserror::Error;

use super::MOST_PREFIXES;
use super::json::MOST_BYTES;
use super::token::PrefixError;

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

/// The reason why a list is invalid. The list is discarded as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FeedError {
    /// The text is empty or white space.
    #[error("is empty; a list has at least one prefix: check its origin")]
    Empty,
    /// The answer is a web page: an error, a login, a challenge, or a description of the list.
    #[error(
        "got a web page, not a list: {start:?}; open it in a browser, and configure the URL of the list itself"
    )]
    WebPage {
        /// The first characters of the page.
        start: String,
    },
    /// The text is not a web page, though the format is one.
    #[error(
        "is not a web page, since it has no element: it starts with {start:?}; check `format` and the origin"
    )]
    NotAPage {
        /// The first characters of the text.
        start: String,
    },
    /// The data is binary, or text in another encoding.
    #[error("is not UTF-8 text from byte {at} on: {problem}; it must be plain UTF-8")]
    NotText {
        /// The offset of the first byte that is not text.
        at: usize,
        /// The likely kind of the data.
        problem: &'static str,
    },
    /// The JSON stops before its end.
    #[error("is truncated after {length} bytes: try again")]
    Truncated {
        /// The length in bytes.
        length: usize,
    },
    /// The text is not JSON.
    #[error("is not JSON: {problem}; it starts with {start:?}: check `format` and the origin")]
    NotJson {
        /// The parser's reason, with line and column.
        problem: String,
        /// The first characters of the text.
        start: String,
    },
    /// The JSON document or page is nested deeper than any list.
    #[error("is nested too deeply; check its origin")]
    TooDeep,
    /// The page or document has more parts than the limit.
    #[error("has too many parts; check its origin")]
    TooMany,
    /// The JSON document takes more memory than the limit.
    #[error(
        "needs more than {} MiB of memory to parse, the limit for one list; use a shorter list, or JSON lines, CSV or text",
        MOST_BYTES >> 20
    )]
    TooMuchMemory,
    /// A selector matches nothing in a well-formed document.
    #[error(
        "contains no prefix: {selects} matches nothing in {found}; correct `select` if the list has changed its shape"
    )]
    NothingSelected {
        /// The selectors, quoted.
        selects: String,
        /// The shape of the document.
        found: String,
    },
    /// The list has no item for a configured filter, keyword or element.
    #[error("nothing in the list has {what}; correct `{key}` if the list has changed its shape")]
    Unmatched {
        /// The key of the configuration.
        key: &'static str,
        /// The value that does not occur.
        what: String,
    },
    /// An object has two members of one name.
    #[error(
        "line {line}: {place} has the key {key:?} twice, which is ambiguous; report it to the vendor"
    )]
    DuplicateKey {
        /// The place of the object.
        place: Place,
        /// The line of the second one.
        line: usize,
        /// The key.
        key: String,
    },
    /// The text is one JSON document, not one per line.
    #[error(
        "is one JSON document over several lines, not one document per line; write format = \"json\""
    )]
    OneDocument,
    /// A selected node is not an object with fields.
    #[error(
        "{place}: is {found}, not an object; correct `select` to select the objects with the fields"
    )]
    NotAnObject {
        /// The place of the node.
        place: Place,
        /// The kind of the node.
        found: String,
    },
    /// An item lacks a field.
    #[error("{place}: has no {name:?}; it has {found}: correct the name in the configuration")]
    NoMember {
        /// The place of the item.
        place: Place,
        /// The field.
        name: Box<str>,
        /// The fields of the item, quoted.
        found: Box<str>,
    },
    /// An item has a field more than once.
    #[error("{place}: has {name:?} more than once; set `element` to that name to read all of them")]
    ManyMembers {
        /// The place of the item.
        place: Place,
        /// The field.
        name: String,
    },
    /// An element contains elements instead of text.
    #[error(
        "{place}: contains elements instead of a prefix: {found}; set `element` or `attribute` to one of these names"
    )]
    NotAText {
        /// The place of the element.
        place: Place,
        /// The fields of the element, quoted.
        found: String,
    },
    /// The text is not valid XML.
    #[error(
        "is not valid XML, line {line}: {problem}; it starts with {start:?}: check `format` and the origin"
    )]
    NotXml {
        /// The line of the error.
        line: usize,
        /// The reason.
        problem: String,
        /// The first characters of the text.
        start: String,
    },
    /// The header line has the column name more than once.
    #[error(
        "line {line}: several columns have the name {column:?}; use the column's number, counted from 0"
    )]
    ManyHeaders {
        /// The number of the header line.
        line: usize,
        /// The name.
        column: String,
    },
    /// A selected value is not a string.
    #[error("{place}: is {found}, not a string; {remedy}")]
    NotAString {
        /// The place of the item.
        place: Place,
        /// The kind of the value.
        found: String,
        /// The remedy.
        remedy: String,
    },
    /// The header line does not have the column.
    #[error(
        "line {line}: no column has the name {column:?}; the header line has {found}: correct `column`"
    )]
    NoHeader {
        /// The number of the header line.
        line: usize,
        /// The configured name.
        column: String,
        /// The names in the header line, quoted.
        found: String,
    },
    /// A record has too few columns.
    #[error(
        "line {line}: has no column {column}, counted from 0; it has {fields} columns: correct `column` or the line"
    )]
    NoColumn {
        /// The first line of the record.
        line: usize,
        /// The number of the column, from 0.
        column: usize,
        /// The number of columns in the record.
        fields: usize,
    },
    /// A quoted field does not end in its line.
    #[error("line {line}: a quoted field does not end in its line; close its quotes")]
    OpenQuotes {
        /// The first line of the field.
        line: usize,
    },
    /// No such heading, label or column on a page.
    #[error(
        "nothing on the page matches {key} = {pattern:?}; {found}: correct `{key}` if the page has changed"
    )]
    NoMatch {
        /// The key of the configuration.
        key: &'static str,
        /// The regular expression.
        pattern: String,
        /// A sentence about the page's content.
        found: String,
    },
    /// A `ReadMe` block cannot be parsed.
    #[error("line {line}: invalid [block:{kind}]: {problem}; check the origin of the page")]
    Block {
        /// The first line of the block.
        line: usize,
        /// The kind that the block states.
        kind: String,
        /// The reason.
        problem: String,
    },
    /// No link on the page matches.
    #[error(
        "no link on the page matches {pattern:?}; {found}: correct `discover` if the page has changed"
    )]
    NoLink {
        /// The regular expression.
        pattern: String,
        /// A sentence about the page's content.
        found: String,
    },
    /// Several links on the page match.
    #[error("{count} links on the page match {pattern:?}: {found}; make `discover` match one")]
    ManyLinks {
        /// The regular expression.
        pattern: String,
        /// The number of links.
        count: usize,
        /// The links, quoted.
        found: String,
    },
    /// The list is well-formed and has no prefix.
    #[error("contains no prefix; a list has at least one: check its origin")]
    NoPrefixes,
    /// The page marks all its prefixes as deprecated or expired.
    #[error(
        "contains no prefix that is still valid: {note}; correct `page`, or look for the vendor's new list"
    )]
    AllLeftOut {
        /// The note about the first prefix.
        note: String,
    },
    /// The list has more prefixes than the limit.
    #[error(
        "names more than {MOST_PREFIXES} prefixes; write networks instead of ranges, which can be hundreds \
         of prefixes each, or make it several sources"
    )]
    TooManyPrefixes,
    /// An item is not a prefix.
    #[error("{place}: {error}")]
    Prefix {
        /// The place of the item.
        place: Place,
        /// The reason, boxed because it is larger than the other fields.
        error: Box<PrefixError>,
    },
    /// A text on a page may or may not be an address.
    #[error("{place}: {text:?} {problem}")]
    Unclear {
        /// The place of the text.
        place: Place,
        /// The text as shown, shortened.
        text: String,
        /// The reason for the doubt.
        problem: Unclear,
    },
    /// One of several documents is invalid.
    #[error("line {line}: {error}")]
    Line {
        /// The line of the document.
        line: usize,
        /// The reason.
        error: Box<FeedError>,
    },
}

/// The reason why a text that looks like an address is not read as one.
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
    /// The text is shown in another order than it is written.
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
    /// A prefix length stands beside the address, and may belong to another address.
    #[error(
        "may be an address or, with the length beside it, a network; choose a part of the page without \
         it, or another source"
    )]
    Length,
    /// The token follows the number of a version.
    #[error(
        "may be an address or a version number; choose a part of the page without it, or another source"
    )]
    Version,
    /// The token begins a line, as the number of a section does.
    #[error(
        "may be an address or the number of a section; choose a part of the page without it, or another source"
    )]
    Section,
    /// The token follows a URL without a blank.
    #[error(
        "may be an address or a part of the URL before it; choose a part of the page without it, or another source"
    )]
    Glued,
}

impl FeedError {
    /// Returns the line of the error, from 1, if it is known.
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

/// A place in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line, counted from 1.
    Line(usize),
    /// A `JSONPath`.
    Path(String),
    /// A text on a page.
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
