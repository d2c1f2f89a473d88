//! The configured format of a list.

use std::fmt;

use regex::Regex;
use serde_json_path::JsonPath;

/// The format of a list; always configured, never detected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text with one prefix per line; `#` and `;` start comments.
    Text,
    /// Text with other comment signs, or with a keyword before each prefix.
    Lines(Lines),
    /// One JSON document.
    Json(Json),
    /// One JSON document per line.
    JsonLines(Json),
    /// Comma-separated values; `#` starts a comment line.
    Csv(Csv),
    /// One XML document.
    Xml(Xml),
    /// A web page in HTML, with the list in its tables, lists, paragraphs or code blocks.
    Html(Page),
    /// A page in Markdown, with the list in its tables, lists, paragraphs or code blocks.
    Markdown(Page),
}

/// The options of [`Format::Lines`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines {
    /// The strings that start a comment in a line.
    pub comments: Vec<String>,
    /// The first words of the lines to read, in which the prefix is the second word; empty to read all lines.
    pub keywords: Vec<String>,
}

/// The options of [`Format::Json`] and [`Format::JsonLines`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Json {
    /// The `JSONPaths` of the nodes to read; each must match a node.
    pub selects: Vec<Select>,
    /// How a selected JSON node is converted to prefixes.
    pub item: Item,
    /// The conditions on members of a document; only documents that meet every condition are read. Used for JSON lines,
    /// where each line is a document.
    pub filter: Vec<Condition>,
}

/// The options of [`Format::Csv`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csv {
    /// The columns that hold addresses or prefixes, one or several in a field; empty if `item` has the columns instead.
    pub columns: Vec<Column>,
    /// How a row is converted to prefixes.
    pub item: Item,
    /// The byte that separates the fields of a row.
    pub delimiter: u8,
    /// The number of lines to skip before the header line or the first row.
    pub skip: usize,
    /// The conditions that a row must meet to be read.
    pub filter: Vec<Condition>,
}

/// The options of [`Format::Xml`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xml {
    /// The names of the XML elements to read; each must occur.
    pub elements: Vec<String>,
    /// The attribute or child element that holds the token; `None` if the token is the text of the element.
    pub attribute: Option<Column>,
    /// How an XML element is converted to prefixes.
    pub item: Item,
    /// The conditions that an element's attributes and child elements must meet for the element to be read.
    pub filter: Vec<Condition>,
}

/// How an item of a list (a JSON node, a CSV row or an XML element) is converted to prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The item is a token, which is an address, a prefix or a range; with a separator it is several tokens.
    Token {
        /// The string between two tokens of an item; white space matches any white space. `None` if an item is one
        /// token.
        separator: Option<String>,
    },
    /// The item has the first and the last address of a range, in these two fields.
    Range([Column; 2]),
    /// The item has the address and the length of a prefix, in these two fields.
    Prefix([Column; 2]),
    /// The item is a JSON object, and each of its keys is a token.
    Keys,
}

/// A condition on one field of an item (a JSON line, a CSV row or an XML element); items that do not meet it are
/// skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The column, JSON member or XML attribute whose value is compared.
    pub field: Column,
    /// The values that the field may have; each must occur in the list.
    pub values: Vec<String>,
}

/// A field of an item: a CSV column (by number from 0, or by its name in the header line), a JSON member or an XML
/// attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// The number of a CSV column, from 0, for lists without a header line.
    Number(usize),
    /// The name of a CSV column, of a JSON member or of an XML attribute.
    Name(String),
}

/// The part of a web page or Markdown page that contains the list. An absent field does not restrict the part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The pattern of the heading above the list; `None` for any heading or none.
    pub section: Option<Pattern>,
    /// The pattern of a table row's first cell, of the label of a list item or paragraph (the text before its
    /// prefixes), or of a column header; `None` for all of them.
    pub region: Option<Pattern>,
    /// The pattern of the header of the table column to read; `None` for all columns.
    pub column: Option<Pattern>,
    /// The pattern of the table rows, list items and paragraphs to skip; `None` to skip none.
    pub exclude_row: Option<Pattern>,
    /// Whether code blocks of the page are skipped.
    pub exclude_code: bool,
    /// Further parts of the page whose prefixes are added, for lists of several regions; each must exist.
    pub and: Vec<Page>,
}

/// A compiled regular expression from the configuration.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

/// A parsed JSONPath (RFC 9535) from the configuration.
#[derive(Clone, Debug)]
pub struct Select {
    text: String,
    path: JsonPath,
}

impl Format {
    /// Returns the format of a JSON document that is an array of strings.
    pub fn json_array() -> Self {
        let select = Select::new("$[*]").expect("the text is a JSONPath");
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
    /// The default of `delimiter`.
    pub const DELIMITER: u8 = b',';

    /// Returns all columns that the options name: those of tokens, of ranges or prefixes, and of conditions.
    pub fn columns(&self) -> impl Iterator<Item = &Column> {
        let pair = match &self.item {
            Item::Range(pair) | Item::Prefix(pair) => &pair[..],
            Item::Token { .. } | Item::Keys => &[],
        };
        let filter = self.filter.iter().map(|condition| &condition.field);
        self.columns.iter().chain(pair).chain(filter)
    }

    /// Returns whether the list has a header line: if any column is configured by its name.
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
    /// Returns the pattern of the key `section`, `region` or `column`; any other key counts as `column`.
    pub fn pattern_mut(&mut self, key: &str) -> &mut Option<Pattern> {
        match key {
            "section" => &mut self.section,
            "region" => &mut self.region,
            _ => &mut self.column,
        }
    }
}

impl Column {
    /// Returns the configured name of the field, or `None` if it is a column number.
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

/// Writes the format on one line, in the terms of the configuration. Equal formats have equal texts.
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
    /// Compiles the regular expression `text`.
    ///
    /// # Errors
    /// `text` is not a regular expression, or cannot be compiled; the message states the reason.
    pub fn new(text: &str) -> Result<Self, String> {
        match Regex::new(text) {
            Ok(regex) => Ok(Self(regex)),
            Err(regex::Error::Syntax(message)) => {
                let last = message.lines().last().unwrap_or_default();
                let problem = last.strip_prefix("error: ").unwrap_or(last);
                Err(format!("{text:?} is not a regular expression: {problem}"))
            }
            Err(error) => Err(format!("{text:?} cannot be compiled: {error}")),
        }
    }

    /// Returns whether the pattern matches a part of `text`.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// Returns the part of `text` that the pattern's first group matches, or the whole match if the pattern has no
    /// group.
    ///
    /// `None` means that the pattern does not match.
    pub fn first_group<'t>(&self, text: &'t str) -> Option<&'t str> {
        let captures = self.0.captures(text)?;
        captures
            .get(1)
            .or_else(|| captures.get(0))
            .map(|found| found.as_str())
    }

    /// Returns the text of the regular expression.
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
    /// Parses the JSONPath `text`.
    ///
    /// # Errors
    /// `text` is not a JSONPath; the message states the place and the reason.
    pub fn new(text: &str) -> Result<Self, String> {
        match JsonPath::parse(text) {
            Ok(path) => Ok(Self {
                text: text.to_owned(),
                path,
            }),
            Err(error) => Err(format!(
                "{text:?} is not a JSONPath: {} at character {}; write one such as \"$[*]\" or \"$.hooks[*]\"",
                error.message(),
                error.position() + 1
            )),
        }
    }

    /// Returns the parsed JSONPath.
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
