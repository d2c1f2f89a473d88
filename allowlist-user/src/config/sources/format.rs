//! Reads `format`, and the keys that belong to some formats only.

use allowlist_policy::{Csv, Format, Json, Lines, Page, Pattern, Select, Xml};

mod fields;

use self::fields::{read_column, read_columns, read_filter, read_item, read_texts};
use super::super::document::{Node, Problems, Table};
use super::super::read::read_filled;

/// The valid values of the key `format`.
const FORMATS: [&str; 7] = ["json", "jsonl", "text", "csv", "xml", "html", "markdown"];

/// The keys that only some formats have, each with the names of these formats.
const KEYS: [(&str, &[&str]); 14] = [
    ("select", &["json", "jsonl"]),
    ("keys", &["json", "jsonl"]),
    ("column", &["csv"]),
    ("delimiter", &["csv"]),
    ("skip", &["csv"]),
    ("element", &["xml"]),
    ("attribute", &["xml"]),
    ("range", &["json", "jsonl", "csv", "xml"]),
    ("prefix", &["json", "jsonl", "csv", "xml"]),
    ("separator", &["json", "jsonl", "csv", "xml"]),
    ("where", &["jsonl", "csv", "xml"]),
    ("comments", &["text"]),
    ("keyword", &["text"]),
    ("page", &["html", "markdown"]),
];
/// The maximum value of the key `skip`, in lines above the header line of a CSV file.
const MOST_SKIPPED: u64 = 1000;

/// Reads the keys of a source's format. Without `format`, a file has the text format, and other sources have none.
///
/// Returns `None` for a source without a format, and after a reported mistake that leaves no usable format.
pub(super) fn read_format(table: &Table, problems: &mut Problems) -> Option<Format> {
    let Some(node) = table.get("format") else {
        return read_text_keys(table, problems);
    };
    let text = node.text(problems)?;
    if !FORMATS.contains(&text) {
        let names = FORMATS.map(|name| format!("{name:?}")).join(" or ");
        let message = format!("invalid value {text:?}; use {names}");
        node.wrong(problems, message);
        return None;
    }
    for (key, formats) in KEYS {
        let Some(other) = table.get(key).filter(|_| !formats.contains(&text)) else {
            continue;
        };
        let message = match (key, text) {
            ("where", "json") => {
                "does not apply to format = \"json\"; use a filter in `select`, such as \
                 \"$.prefixes[?@.direction=='egress'].cidr\""
                    .to_owned()
            }
            _ => format!("does not apply to format = {text:?}; remove the key"),
        };
        other.wrong(problems, message);
    }
    Some(match text {
        "text" => read_lines(table, problems),
        "json" => Format::Json(read_json(table, problems)),
        "jsonl" if table.get("select").is_none() => {
            table.wrong(
                problems,
                "format \"jsonl\" requires `select`; add the member of each line, such as select = [\"$.cidr\"]",
            );
            return None;
        }
        "jsonl" => Format::JsonLines(read_json(table, problems)),
        "csv" => Format::Csv(read_csv(table, problems)),
        "xml" => Format::Xml(read_xml(table, problems)),
        "html" => Format::Html(read_page(text, table, problems)),
        _ => Format::Markdown(read_page(text, table, problems)),
    })
}

/// Reads the keys of the text format, which is the default for files; reports the keys of other formats.
fn read_text_keys(table: &Table, problems: &mut Problems) -> Option<Format> {
    for (key, formats) in KEYS {
        if let Some(other) = table.get(key)
            && (!formats.contains(&"text") || table.get("file").is_none())
        {
            let formats: Vec<_> = formats.iter().map(|name| format!("{name:?}")).collect();
            other.wrong(
                problems,
                format!("requires `format`; add format = {}", formats.join(" or ")),
            );
        }
    }
    table.get("file").map(|_| read_lines(table, problems))
}

fn read_lines(table: &Table, problems: &mut Problems) -> Format {
    let mut lines = Lines::default();
    if let Some(node) = table.get("comments") {
        lines.comments = read_texts(&node, "the start of a comment", problems);
    }
    if let Some(node) = table.get("keyword") {
        lines.keywords = read_texts(&node, "the first word of the lines", problems);
    }
    if let Some(word) = lines
        .keywords
        .iter()
        .find(|word| word.contains(char::is_whitespace))
        && let Some(node) = table.get("keyword")
    {
        node.wrong(
            problems,
            format!("{word:?} is not one word; write only the first word of the lines that have prefixes"),
        );
    }
    if lines == Lines::default() {
        Format::Text
    } else {
        Format::Lines(lines)
    }
}

fn read_json(table: &Table, problems: &mut Problems) -> Json {
    let keys = table
        .get("keys")
        .and_then(|node| node.boolean(problems))
        .unwrap_or_default();
    let selects = if table.get("select").is_some() {
        let otherwise =
            "nothing would be selected; add a JSONPath, such as select = [\"$.hooks[*]\"]";
        read_filled(table, "select", otherwise, problems, Select::new)
    } else {
        let usual = if keys { "$" } else { "$[*]" };
        vec![Select::new(usual).expect("it is a JSONPath")]
    };
    Json {
        selects,
        item: read_item(table, keys, problems),
        filter: read_filter(table, problems),
    }
}

fn read_csv(table: &Table, problems: &mut Problems) -> Csv {
    let is_pair = table.get("range").is_some() || table.get("prefix").is_some();
    let columns = match table.get("column") {
        Some(node) => read_columns(&node, problems),
        None if is_pair => Vec::new(),
        None => {
            let what = "write its number, from 0, or its name in the header line";
            table.wrong(
                problems,
                format!("format \"csv\" requires `column`; {what}"),
            );
            Vec::new()
        }
    };
    if let Some(node) = table.get("column").filter(|_| is_pair) {
        node.wrong(
            problems,
            "conflicts with `range` or `prefix`, which select the columns; remove one",
        );
    }
    let mut csv = Csv {
        columns,
        item: read_item(table, false, problems),
        delimiter: Csv::DELIMITER,
        skip: 0,
        filter: read_filter(table, problems),
    };
    if let Some(node) = table.get("delimiter") {
        match node.string().map(str::as_bytes) {
            Some(&[byte]) if is_delimiter(byte) => csv.delimiter = byte,
            _ => node.wrong(
                problems,
                "is not a delimiter; use one character, such as \";\", \"|\" or \"\\t\"",
            ),
        }
    }
    if let Some(node) = table.get("skip") {
        match node.integer() {
            Some(lines) if lines <= MOST_SKIPPED => csv.skip = lines as usize,
            _ => node.wrong(
                problems,
                format!("is not a number of lines from 0 to {MOST_SKIPPED}"),
            ),
        }
    }
    csv
}

/// Returns whether a character may delimit columns: it occurs in no prefix, and has no other meaning in CSV.
fn is_delimiter(byte: u8) -> bool {
    let is_shown = byte.is_ascii_graphic() || byte == b'\t' || byte == b' ';
    is_shown && !byte.is_ascii_alphanumeric() && !b"\"#.:/-".contains(&byte)
}

fn read_xml(table: &Table, problems: &mut Problems) -> Xml {
    let elements = if let Some(node) = table.get("element") {
        read_texts(&node, "the name of an element", problems)
    } else {
        let message =
            "format \"xml\" requires `element`; add the name of the elements that contain prefixes";
        table.wrong(problems, message);
        Vec::new()
    };
    let attribute = table
        .get("attribute")
        .and_then(|node| read_column(&node, problems));
    let is_pair = table.get("range").is_some() || table.get("prefix").is_some();
    if let Some(node) = table.get("attribute").filter(|_| is_pair) {
        node.wrong(
            problems,
            "conflicts with `range` or `prefix`, which select the attributes; remove one",
        );
    }
    Xml {
        elements,
        attribute,
        item: read_item(table, false, problems),
        filter: read_filter(table, problems),
    }
}

/// Reads the keys that select the items of an HTML or Markdown page. They must select a part of the page, since an
/// error page with status 200 may contain an address, such as that of the client.
fn read_page(format: &str, table: &Table, problems: &mut Problems) -> Page {
    let Some(node) = table.get("page") else {
        table.wrong(
            problems,
            format!(
                "format {format:?} requires `page`; add the part of the page that has the list, such as \
                 page = {{ section = \"(?i)webhooks\" }}"
            ),
        );
        return Page::default();
    };
    let Some(table) = node.table(problems) else {
        return Page::default();
    };
    if ["section", "region", "column"]
        .iter()
        .all(|key| table.get(key).is_none())
    {
        let message = "does not select the part of the page that has the list; add `section`, `region` or `column`";
        node.wrong(problems, message);
    }
    let keys = ["section", "region", "column", "exclude_row", "exclude_code"];
    table.only(&keys, problems);
    let mut first = Page {
        exclude_row: table
            .get("exclude_row")
            .and_then(|node| read_pattern(&node, problems)),
        exclude_code: table
            .get("exclude_code")
            .and_then(|node| node.boolean(problems))
            .unwrap_or_default(),
        ..Page::default()
    };
    // One key may have several patterns; each selects a part of the page.
    let mut parts: Option<(&str, Vec<Pattern>)> = None;
    for key in ["section", "region", "column"] {
        let Some(node) = table.get(key) else {
            continue;
        };
        if !node.is_array() {
            *first.pattern_mut(key) = read_pattern(&node, problems);
        } else if parts.is_some() {
            node.wrong(
                problems,
                "is an array of patterns, and another key has one already; write a single pattern here",
            );
        } else {
            parts = Some((key, read_patterns(&node, problems)));
        }
    }
    let Some((key, patterns)) = parts else {
        return first;
    };
    let mut pages = patterns.into_iter().map(|pattern| {
        let mut page = first.clone();
        *page.pattern_mut(key) = Some(pattern);
        page
    });
    let Some(mut page) = pages.next() else {
        return first;
    };
    page.and = pages.collect();
    page
}

/// Reads a pattern, or an array of patterns; reports invalid ones.
pub(super) fn read_patterns(node: &Node, problems: &mut Problems) -> Vec<Pattern> {
    if !node.is_array() {
        return read_pattern(node, problems).into_iter().collect();
    }
    if node.is_empty_array() {
        node.wrong(problems, "is empty; write a pattern");
    }
    let items = node.items(problems).unwrap_or_default();
    let patterns = items.iter().filter_map(|item| read_pattern(item, problems));
    patterns.collect()
}

pub(super) fn read_pattern(node: &Node, problems: &mut Problems) -> Option<Pattern> {
    let text = node.text(problems)?;
    match Pattern::new(text) {
        Ok(pattern) => Some(pattern),
        Err(message) => {
            node.wrong(problems, message);
            None
        }
    }
}
