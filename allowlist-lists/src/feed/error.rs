//! The errors of lists: the finding, its place, and the remedy.

use std::fmt;

use allowlist_policy::error_code::ErrorCode;
use thiserror::Error;

use super::MOST_PREFIXES;
use super::json::MOST_BYTES;
use super::token::PrefixError;

impl FeedError {
    /// Returns the stable error code of the error's kind.
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

/// The reason why a list is invalid. The invalid list is discarded as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FeedError {
    /// The text of the list is empty or consists of white space.
    #[error("the list is empty; check its URL or path")]
    Empty,
    /// The text is a web page where a list is expected: an error, a login, a challenge, or a description of the list.
    #[error(
        "the answer is a web page instead of a list: {start:?}; open it in a browser, and configure the URL of the list itself"
    )]
    WebPage {
        /// The first characters of the page, for the message.
        start: String,
    },
    /// The text is not a web page, though the configured format is HTML.
    #[error(
        "the answer is not a web page, since it has no element: it starts with {start:?}; check `format` and the URL or path"
    )]
    NotAPage {
        /// The first characters of the text, for the message.
        start: String,
    },
    /// The data is binary, or text in an encoding other than UTF-8.
    #[error(
        "the list is not UTF-8 text from byte {at} on: {problem}; check its URL or path, or convert it to UTF-8"
    )]
    NotText {
        /// The byte offset of the first byte that is not text.
        at: usize,
        /// The likely kind of the data, as a clause of the message.
        problem: &'static str,
    },
    /// The JSON or XML document stops before its end.
    #[error("the list is truncated after {length} bytes; try again")]
    Truncated {
        /// The length of the truncated text, in bytes.
        length: usize,
    },
    /// The text is not a JSON document.
    #[error(
        "the list is not JSON: {problem}; it starts with {start:?}: check `format` and the URL or path"
    )]
    NotJson {
        /// The JSON parser's reason, with line and column.
        problem: String,
        /// The first characters of the text, for the message.
        start: String,
    },
    /// The JSON document, XML document or page is nested deeper than the parser's limit, which no vendor's list
    /// reaches.
    #[error("the list is nested too deeply; check its URL or path")]
    TooDeep,
    /// The page has more elements, attributes or labels than the limit.
    #[error("the page has too many elements, attributes or labels; check its URL or path")]
    TooMany,
    /// The JSON document would take more memory than the limit for one list.
    #[error(
        "the list needs more than {} MiB of memory to parse, the limit for one list; use a shorter list, or one in JSON lines, CSV or text",
        MOST_BYTES >> 20
    )]
    TooMuchMemory,
    /// A selector (`select`) matches nothing in a well-formed JSON document.
    #[error(
        "nothing in the list matches {selects}; it has {found}: correct `select` if the vendor has changed the structure of the list"
    )]
    NothingSelected {
        /// The selectors that match nothing, quoted; all selectors if none matches.
        selects: String,
        /// A description of the document, of the first one if there are several: its kind and its keys.
        found: String,
    },
    /// Nothing in the list matches a configured filter, keyword or element.
    #[error(
        "nothing in the list has {what}; correct `{key}` if the vendor has changed the structure of the list"
    )]
    Unmatched {
        /// The configuration key whose value matches nothing.
        key: &'static str,
        /// A description of the filter, keyword or element that does not occur in the list.
        what: String,
    },
    /// A JSON object has two members with the same key.
    #[error(
        "line {line}: {place} has the key {key:?} twice, which is ambiguous; report it to the vendor"
    )]
    DuplicateKey {
        /// The place of the object with the duplicate key.
        place: Place,
        /// The number of the line of the second member with the key, from 1.
        line: usize,
        /// The key that occurs twice.
        key: String,
    },
    /// The text is one JSON document over several lines, though the format is one document per line.
    #[error(
        "the list is one JSON document over several lines, not one document per line; set format = \"json\""
    )]
    OneDocument,
    /// A selected JSON node is not an object, though the configuration names its fields or keys.
    #[error(
        "{place}: the selected node is {found}, not an object; correct `select` so that it selects the objects that have the fields"
    )]
    NotAnObject {
        /// The place of the node that is not an object.
        place: Place,
        /// A description of the node that was found instead of an object.
        found: String,
    },
    /// An item of a list (a JSON object or an XML element) lacks a configured field.
    #[error(
        "{place}: the item has no field {name:?}; it has {found}: correct the name in the configuration"
    )]
    NoMember {
        /// The place in the list of the item with the error.
        place: Place,
        /// The configured name of the field.
        name: Box<str>,
        /// The names of the fields that the item has, quoted.
        found: Box<str>,
    },
    /// An item of a list has a configured field more than once.
    #[error(
        "{place}: the item has {name:?} more than once; set `element` to that name to read all of them"
    )]
    ManyMembers {
        /// The place in the list of the item with the error.
        place: Place,
        /// The configured name of the field.
        name: String,
    },
    /// A selected XML element contains elements instead of text.
    #[error(
        "{place}: the element contains other elements instead of a prefix: {found}; set `element` or `attribute` to one of these names"
    )]
    NotAText {
        /// The place of the selected element.
        place: Place,
        /// The names of the attributes and child elements of the element, quoted.
        found: String,
    },
    /// The text is not well-formed XML.
    #[error(
        "the list is not valid XML, line {line}: {problem}; it starts with {start:?}: check `format` and the URL or path"
    )]
    NotXml {
        /// The line, from 1, in which the XML parser failed.
        line: usize,
        /// The parser's reason, as a clause of the message.
        problem: String,
        /// The first characters of the text, for the message.
        start: String,
    },
    /// The header line of a CSV list has the configured column name more than once.
    #[error(
        "line {line}: several columns have the name {column:?}; set `column` to the number of the column, counted from 0"
    )]
    ManyHeaders {
        /// The line number of the header line, from 1.
        line: usize,
        /// The column name that occurs more than once.
        column: String,
    },
    /// A selected JSON value is not a string, though prefixes are strings.
    #[error("{place}: the selected value is {found}, not a string; {remedy}")]
    NotAString {
        /// The place in the list of the item with the error.
        place: Place,
        /// A description of the value that was found instead of a string.
        found: String,
        /// The change of the configuration that the message proposes.
        remedy: String,
    },
    /// The header line of a CSV list does not have the configured column name.
    #[error(
        "line {line}: no column has the name {column:?}; the header line has {found}: correct `column`"
    )]
    NoHeader {
        /// The line number of the header line, from 1.
        line: usize,
        /// The configured column name.
        column: String,
        /// The column names in the header line, quoted.
        found: String,
    },
    /// A CSV record has too few columns for the configured column number.
    #[error(
        "line {line}: the row has {fields} columns, and no column {column} (counted from 0); correct `column` or the row"
    )]
    NoColumn {
        /// The number of the first line of the record, from 1.
        line: usize,
        /// The index of the configured column, from 0.
        column: usize,
        /// The number of columns that the record has.
        fields: usize,
    },
    /// A quoted CSV field does not end in the line in which it starts.
    #[error(
        "line {line}: a quoted field does not end in its line; close its quotes, or report it to the vendor"
    )]
    OpenQuotes {
        /// The number of the line in which the field starts, from 1.
        line: usize,
    },
    /// No heading, label or column on the page matches a regular expression of the configuration.
    #[error(
        "nothing on the page matches {key} = {pattern:?}; {found}: correct `{key}` if the page has changed"
    )]
    NoMatch {
        /// The configuration key whose value matches nothing.
        key: &'static str,
        /// The configured regular expression, which selects text on the page.
        pattern: String,
        /// A clause of the message about the headings, labels, columns or links that the page has.
        found: String,
    },
    /// A block of `ReadMe`'s Markdown dialect (`[block:…]`) cannot be parsed.
    #[error(
        "line {line}: the block [block:{kind}] of the page is invalid: {problem}; report it to the vendor"
    )]
    Block {
        /// The number of the first line of the block, from 1.
        line: usize,
        /// The kind that the block's first line states, such as `code`.
        kind: String,
        /// The parser's reason, as a clause of the message.
        problem: String,
    },
    /// No link on the page matches the regular expression of `discover`.
    #[error(
        "no link on the page matches discover = {pattern:?}; {found}: correct `discover` if the page has changed"
    )]
    NoLink {
        /// The configured regular expression, which selects text on the page.
        pattern: String,
        /// A clause of the message about the headings, labels, columns or links that the page has.
        found: String,
    },
    /// Several links on the page match the regular expression of `discover`, and none is preferred.
    #[error(
        "{count} links on the page match discover = {pattern:?}: {found}; correct `discover` so that it matches only one"
    )]
    ManyLinks {
        /// The configured regular expression, which selects text on the page.
        pattern: String,
        /// The number of links that match.
        count: usize,
        /// The first of the matching links, quoted.
        found: String,
    },
    /// The list is well-formed and contains no prefix.
    #[error("the list contains no prefix; check its URL or path")]
    NoPrefixes,
    /// The page has no valid prefix: each one is marked as deprecated or expired, or is left out for another reason.
    #[error(
        "the page contains no prefix that is still valid: {note}; correct `page`, or look for the vendor's new list"
    )]
    AllLeftOut {
        /// The note for the operator about the first prefix that was left out.
        note: String,
    },
    /// The list has more prefixes than the limit for one list.
    #[error(
        "the list has more than {MOST_PREFIXES} prefixes; write networks instead of ranges, which can be hundreds of prefixes each, or split the list into several sources"
    )]
    TooManyPrefixes,
    /// An item of the list is not a valid prefix.
    #[error("{place}: {error}")]
    Prefix {
        /// The place in the list of the item with the error.
        place: Place,
        /// The reason why the item is not a prefix. It is boxed since it is larger than the other fields.
        error: Box<PrefixError>,
    },
    /// A text on a page may or may not be an address, so the page is refused.
    #[error("{place}: {text:?}: {problem}")]
    Unclear {
        /// The place of the doubtful text on the page.
        place: Place,
        /// The doubtful text as the page shows it, shortened.
        text: String,
        /// The reason why it is not certain that the text is an address.
        problem: Unclear,
    },
    /// One of the documents in a list with one JSON document per line is invalid.
    #[error("line {line}: {error}")]
    Line {
        /// The number of the line of the invalid document, from 1.
        line: usize,
        /// The reason why the document is invalid.
        error: Box<FeedError>,
    },
}

/// The reason why a text on a page that looks like an address is not read as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Unclear {
    /// An element or a comment begins or ends between two hexadecimal digits of the text.
    #[error(
        "the text may be an address with something behind it, since markup begins or ends between two of its digits; restrict `page` to a part without this text, or use another source"
    )]
    Markup,
    /// The text contains a soft hyphen, a zero-width space, or another character that is not shown.
    #[error(
        "the text has a character within it that browsers do not show; restrict `page` to a part without this text, or use another source"
    )]
    Invisible,
    /// A part of the text is superscript or subscript, and only together with it is the text an address.
    #[error(
        "the text is an address only together with its superscript or subscript text; restrict `page` to a part without this text, or use another source"
    )]
    Raised,
    /// A part of the text is crossed out.
    #[error(
        "the text is struck out in part, and may not be valid; restrict `page` to a part without this text, or use another source"
    )]
    StruckOut,
    /// The text is shown in another order than it is written, by an override of its direction.
    #[error(
        "the text is shown in another order than it is written, by a direction override; restrict `page` to a part without this text, or use another source"
    )]
    Reordered,
    /// The text belongs to two addresses that may be a range, a change from one to the other, or two separate
    /// addresses.
    #[error(
        "the text may be a range, a change from one address to another, or two addresses; restrict `page` to a part without this text, or use another source"
    )]
    Range,
    /// A prefix length stands beside the address, but may belong to another address.
    #[error(
        "the text may be an address or, with the length beside it, a network; restrict `page` to a part without this text, or use another source"
    )]
    Length,
    /// The text follows a version number, so it may be another version number.
    #[error(
        "the text may be an address or a version number; restrict `page` to a part without this text, or use another source"
    )]
    Version,
    /// The text begins a line, so it may be the number of a section.
    #[error(
        "the text may be an address or the number of a section; restrict `page` to a part without this text, or use another source"
    )]
    Section,
    /// The text follows a URL without white space, so it may be a part of the URL.
    #[error(
        "the text may be an address or a part of the URL before it; restrict `page` to a part without this text, or use another source"
    )]
    Glued,
}

impl FeedError {
    /// Returns the line of the list, from 1, in which the error is; `None` if the line is not known.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::DuplicateKey { line, .. }
            | Self::NotXml { line, .. }
            | Self::ManyHeaders { line, .. }
            | Self::NoHeader { line, .. }
            | Self::NoColumn { line, .. }
            | Self::OpenQuotes { line }
            | Self::Block { line, .. }
            | Self::Line { line, .. } => Some(*line),
            Self::NotAnObject { place, .. }
            | Self::NoMember { place, .. }
            | Self::ManyMembers { place, .. }
            | Self::NotAText { place, .. }
            | Self::NotAString { place, .. }
            | Self::Prefix { place, .. }
            | Self::Unclear { place, .. } => place.line(),
            Self::Empty
            | Self::WebPage { .. }
            | Self::NotAPage { .. }
            | Self::NotText { .. }
            | Self::Truncated { .. }
            | Self::NotJson { .. }
            | Self::TooDeep
            | Self::TooMany
            | Self::TooMuchMemory
            | Self::NothingSelected { .. }
            | Self::Unmatched { .. }
            | Self::OneDocument
            | Self::NoMatch { .. }
            | Self::NoLink { .. }
            | Self::ManyLinks { .. }
            | Self::NoPrefixes
            | Self::AllLeftOut { .. }
            | Self::TooManyPrefixes => None,
        }
    }
}

/// A place in a list, for an error message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The number of a line, from 1.
    Line(usize),
    /// The `JSONPath` of a node, such as `$.hooks[3]`.
    Path(String),
    /// A text on an HTML or Markdown page.
    Text {
        /// The headings above the text, outermost first.
        section: Vec<String>,
        /// The line that contains the doubtful text, shortened.
        text: String,
    },
}

impl Place {
    /// Returns the number of the line, from 1; `None` if the place is not given by its line.
    const fn line(&self) -> Option<usize> {
        match self {
            Self::Line(number) => Some(*number),
            Self::Path(_) | Self::Text { .. } => None,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each error whose text begins with a line returns that line, also without its text, as for private files.
    #[test]
    fn errors_know_their_line() {
        let name = || "cidr".to_owned();
        let place = || Place::Line(7);
        for error in [
            FeedError::DuplicateKey {
                place: Place::Path("$".to_owned()),
                line: 7,
                key: name(),
            },
            FeedError::NotXml {
                line: 7,
                problem: String::new(),
                start: String::new(),
            },
            FeedError::ManyHeaders {
                line: 7,
                column: name(),
            },
            FeedError::NotAnObject {
                place: place(),
                found: name(),
            },
            FeedError::NoMember {
                place: place(),
                name: name().into(),
                found: name().into(),
            },
            FeedError::ManyMembers {
                place: place(),
                name: name(),
            },
            FeedError::NotAText {
                place: place(),
                found: name(),
            },
        ] {
            assert!(error.to_string().contains("line 7"), "{error}");
            assert_eq!(error.line(), Some(7), "{error}");
        }
        let error = FeedError::NotAText {
            place: Place::Path("$.a".to_owned()),
            found: name(),
        };
        assert_eq!(error.line(), None);
    }
}
