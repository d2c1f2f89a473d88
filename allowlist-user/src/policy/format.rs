//! The format of a list, as configured: how its bytes are read.

use std::fmt;

use regex::Regex;
use serde_json_path::JsonPath;

/// How bytes are read; always stated, never guessed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// A prefix a line; `#` and `;` start comments.
    Text,
    /// The same with other comments, or behind a word that each line has.
    Lines(Lines),
    /// One JSON document.
    Json(Json),
    /// A JSON document a line.
    JsonLines(Json),
    /// Comma-separated values; `#` starts a comment line.
    Csv(Csv),
    /// One XML document.
    Xml(Xml),
    /// A web page.
    Html(Page),
    /// The same, written in Markdown.
    Markdown(Page),
}

/// Text that is not as usual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines {
    /// What starts a comment.
    pub comments: Vec<String>,
    /// The first words of the lines that count; the prefix is the second. Empty: every line counts.
    pub keywords: Vec<String>,
}

/// What counts in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Json {
    /// Each has to find something.
    pub selects: Vec<Select>,
    /// How a selected node gives prefixes.
    pub item: Item,
    /// Of JSON lines: which lines count, by their members.
    pub filter: Vec<Condition>,
}

/// What counts in CSV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csv {
    /// The columns of tokens; empty for items of two fields.
    pub columns: Vec<Column>,
    /// How a row gives prefixes.
    pub item: Item,
    /// What separates fields.
    pub delimiter: u8,
    /// How many lines lie before the header line or the first row.
    pub skip: usize,
    /// Which rows count.
    pub filter: Vec<Condition>,
}

/// What counts in XML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xml {
    /// The names of the elements that count; each has to occur.
    pub elements: Vec<String>,
    /// The attribute, or the element within, that holds the token; without it the element's text.
    pub attribute: Option<Column>,
    /// How an element gives prefixes.
    pub item: Item,
    /// Which elements count, by their attributes and the elements within.
    pub filter: Vec<Condition>,
}

/// How an item of a list gives prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// It is a token: an address, a prefix or a range. With a separator it is several.
    Token {
        /// What lies between two tokens; white space is any white space.
        separator: Option<String>,
    },
    /// The first and the last address of a range, in two fields.
    Range([Column; 2]),
    /// The address and the length of a prefix, in two fields.
    Prefix([Column; 2]),
    /// Of JSON: each key of an object is a token.
    Keys,
}

/// The required value of a field for its item to count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The column, member or attribute.
    pub field: Column,
    /// Any of several values; each has to occur.
    pub values: Vec<String>,
}

/// A field of an item: a column of a table without (by number, from 0) or with a header line (by name), a member
/// of a JSON object, an attribute of an XML element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// There is no header line.
    Number(usize),
    /// As the header line writes it.
    Name(String),
}

/// The part of a page that holds the list. An absent field does not narrow it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Of the heading above.
    pub section: Option<Pattern>,
    /// Of a row's first cell, a list item's or paragraph's label, a column's header.
    pub region: Option<Pattern>,
    /// Of a table's column header.
    pub column: Option<Pattern>,
    /// Rows, list items and paragraphs to leave out.
    pub exclude_row: Option<Pattern>,
    /// Whether code blocks are left out.
    pub exclude_code: bool,
    /// Further parts, each of which has to be there: for a list of several regions.
    pub and: Vec<Page>,
}

/// A regular expression of the configuration.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

/// A JSONPath (RFC 9535) of the configuration.
#[derive(Clone, Debug)]
pub struct Select {
    text: String,
    path: JsonPath,
}

impl Format {
    /// A JSON array of strings, and nothing around it.
    pub fn json_array() -> Self {
        let select = Select::new("$[*]").expect("it is a JSONPath");
        Self::Json(vec![select].into())
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            comments: ["#", ";"].map(str::to_owned).to_vec(),
            keywords: Vec::new(),
        }
    }
}

impl From<Vec<Select>> for Json {
    fn from(selects: Vec<Select>) -> Self {
        Self {
            selects,
            item: Item::default(),
            filter: Vec::new(),
        }
    }
}

impl From<Column> for Csv {
    fn from(column: Column) -> Self {
        Self {
            columns: vec![column],
            item: Item::default(),
            delimiter: Self::DELIMITER,
            skip: 0,
            filter: Vec::new(),
        }
    }
}

impl Csv {
    /// `delimiter`, unless it is configured.
    pub const DELIMITER: u8 = b',';

    /// Every column that it reads.
    pub fn columns(&self) -> impl Iterator<Item = &Column> {
        let pair = match &self.item {
            Item::Range(pair) | Item::Prefix(pair) => &pair[..],
            Item::Token { .. } | Item::Keys => &[],
        };
        let filter = self.filter.iter().map(|condition| &condition.field);
        self.columns.iter().chain(pair).chain(filter)
    }

    /// Whether the first row is a header line.
    pub fn has_header(&self) -> bool {
        self.columns().any(|column| column.name().is_some())
    }
}

impl Default for Item {
    fn default() -> Self {
        Self::Token { separator: None }
    }
}

impl Page {
    /// The pattern of that key, which is `section`, `region` or `column`.
    pub(crate) fn pattern_mut(&mut self, key: &str) -> &mut Option<Pattern> {
        match key {
            "section" => &mut self.section,
            "region" => &mut self.region,
            _ => &mut self.column,
        }
    }
}

impl Column {
    /// Its name, if it has one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Number(_) => None,
            Self::Name(name) => Some(name),
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(out, "{number}"),
            Self::Name(name) => write!(out, "{name:?}"),
        }
    }
}

/// As the configuration would write it, in one line. Two formats that read alike are written alike.
impl fmt::Display for Format {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => out.write_str("text"),
            Self::Lines(lines) => write!(
                out,
                "text comments = {:?} keyword = {:?}",
                lines.comments, lines.keywords
            ),
            Self::Json(json) => write!(out, "json{json}"),
            Self::JsonLines(json) => write!(out, "jsonl{json}"),
            Self::Csv(csv) => write!(out, "csv{csv}"),
            Self::Xml(xml) => write!(out, "xml{xml}"),
            Self::Html(page) => write!(out, "html{page}"),
            Self::Markdown(page) => write!(out, "markdown{page}"),
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.selects
            .iter()
            .try_for_each(|one| write!(out, " {one}"))?;
        write!(out, "{}", self.item)?;
        write_filter(&self.filter, out)
    }
}

impl fmt::Display for Csv {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.columns
            .iter()
            .try_for_each(|one| write!(out, " {one}"))?;
        write!(out, "{}", self.item)?;
        if self.delimiter != Self::DELIMITER {
            write!(out, " delimiter = {:?}", char::from(self.delimiter))?;
        }
        if self.skip > 0 {
            write!(out, " skip = {}", self.skip)?;
        }
        write_filter(&self.filter, out)
    }
}

impl fmt::Display for Xml {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, " element = {:?}", self.elements)?;
        if let Some(attribute) = &self.attribute {
            write!(out, " attribute = {attribute}")?;
        }
        write!(out, "{}", self.item)?;
        write_filter(&self.filter, out)
    }
}

impl fmt::Display for Item {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token { separator: None } => Ok(()),
            Self::Token {
                separator: Some(separator),
            } => write!(out, " separator = {separator:?}"),
            Self::Range([first, last]) => write!(out, " range = [{first}, {last}]"),
            Self::Prefix([address, length]) => write!(out, " prefix = [{address}, {length}]"),
            Self::Keys => out.write_str(" keys = true"),
        }
    }
}

fn write_filter(filter: &[Condition], out: &mut fmt::Formatter<'_>) -> fmt::Result {
    filter
        .iter()
        .try_for_each(|one| write!(out, " where {} = {:?}", one.field, one.values))
}

impl fmt::Display for Page {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, pattern) in [
            ("section", &self.section),
            ("region", &self.region),
            ("column", &self.column),
            ("exclude_row", &self.exclude_row),
        ] {
            if let Some(pattern) = pattern {
                write!(out, " {key} = {:?}", pattern.as_str())?;
            }
        }
        if self.exclude_code {
            out.write_str(" exclude_code = true")?;
        }
        self.and
            .iter()
            .try_for_each(|part| write!(out, " and{part}"))
    }
}

impl Pattern {
    /// # Errors
    /// The text is not a regular expression; the message states the reason.
    pub fn new(text: &str) -> Result<Self, String> {
        match Regex::new(text) {
            Ok(regex) => Ok(Self(regex)),
            Err(regex::Error::Syntax(message)) => {
                let last = message.lines().last().unwrap_or_default();
                let problem = last.strip_prefix("error: ").unwrap_or(last);
                Err(format!("{text:?} is not a regular expression: {problem}"))
            }
            Err(error) => Err(format!("{text:?} cannot be used: {error}")),
        }
    }

    /// Whether it matches somewhere in `text`.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// The match of its first group, or the whole match if it has no group.
    pub fn first_group<'t>(&self, text: &'t str) -> Option<&'t str> {
        let captures = self.0.captures(text)?;
        captures
            .get(1)
            .or_else(|| captures.get(0))
            .map(|found| found.as_str())
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

impl Select {
    /// # Errors
    /// The text is not a JSONPath; the message states the place and the reason.
    pub fn new(text: &str) -> Result<Self, String> {
        match JsonPath::parse(text) {
            Ok(path) => Ok(Self {
                text: text.to_owned(),
                path,
            }),
            Err(error) => Err(format!(
                "{text:?} is not a JSONPath: {} at its character {}; write one such as \"$[*]\" or \"$.hooks[*]\"",
                error.message(),
                error.position() + 1
            )),
        }
    }

    /// The parsed path.
    pub fn path(&self) -> &JsonPath {
        &self.path
    }
}

impl fmt::Display for Select {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl PartialEq for Select {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Select {}
