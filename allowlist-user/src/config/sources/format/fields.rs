//! Reads the keys that name fields of an item: columns, members, attributes.

use allowlist_policy::{Column, Condition, Item};

use super::super::super::document::{Node, Problems, Table};

/// The upper limit of column numbers: a number is from 0 to this limit, exclusive.
const MOST_COLUMNS: u64 = 1000;
const WHAT: &str = "write its number, from 0, or its name in the header line";

/// Reads the key that defines how an item yields prefixes: `range`, `prefix`, `separator` or `keys`.
///
/// A table may have one of them. `keys` is the value of the key `keys`, and `false` if the format has no such key.
pub(super) fn read_item(table: &Table, keys: bool, problems: &mut Problems) -> Item {
    let mut items = Vec::new();
    if let Some(node) = table.get("range") {
        let pair = read_pair(&node, "[\"start\", \"end\"]", problems);
        items.push((node, Item::Range(pair)));
    }
    if let Some(node) = table.get("prefix") {
        let pair = read_pair(&node, "[\"address\", \"length\"]", problems);
        items.push((node, Item::Prefix(pair)));
    }
    if let Some(node) = table.get("separator") {
        let separator = node.text(problems).map(str::to_owned);
        if separator.as_deref() == Some("") {
            node.wrong(
                problems,
                "is empty; write the separator of two addresses, such as \",\"",
            );
        }
        items.push((node, Item::Token { separator }));
    }
    if let Some(node) = table.get("keys").filter(|_| keys) {
        items.push((node, Item::Keys));
    }
    for (node, _) in items.iter().skip(1) {
        node.wrong(
            problems,
            "conflicts with another of `range`, `prefix`, `separator` and `keys`; keep one of them",
        );
    }
    items
        .into_iter()
        .next()
        .map(|(_, item)| item)
        .unwrap_or_default()
}

/// Reads an array of two fields that form a prefix or a range; `such_as` is an example for the message.
fn read_pair(node: &Node, such_as: &str, problems: &mut Problems) -> [Column; 2] {
    let columns: Vec<Column> = match node.items(problems) {
        Some(items) => items.iter().filter_map(column).collect(),
        None => return [Column::Number(0), Column::Number(0)],
    };
    <[Column; 2]>::try_from(columns).unwrap_or_else(|_: Vec<Column>| {
        node.wrong(
            problems,
            format!("does not name two fields; write two names, such as {such_as}"),
        );
        [Column::Number(0), Column::Number(0)]
    })
}

/// Reads a column, or an array of columns.
pub(super) fn read_columns(node: &Node, problems: &mut Problems) -> Vec<Column> {
    if node.string().is_some() || node.integer().is_some() || !node.is_array() {
        return read_column(node, problems).into_iter().collect();
    }
    if node.is_empty_array() {
        node.wrong(problems, format!("is empty; {WHAT}"));
    }
    let items = node.items(problems).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| read_column(item, problems))
        .collect()
}

pub(super) fn read_column(node: &Node, problems: &mut Problems) -> Option<Column> {
    let found = column(node);
    if found.is_none() {
        let most = MOST_COLUMNS - 1;
        node.wrong(
            problems,
            format!("is not a field; write the name of a column or attribute, or the number of a CSV column from 0 to {most}"),
        );
    }
    found
}

fn column(node: &Node) -> Option<Column> {
    match (node.integer(), node.string()) {
        (Some(number), _) if number < MOST_COLUMNS => Some(Column::Number(number as usize)),
        (None, Some(name)) if !name.is_empty() => Some(Column::Name(name.to_owned())),
        _ => None,
    }
}

/// Reads the conditions of `where`: for each field a value, or several values of which one must match.
pub(super) fn read_filter(table: &Table, problems: &mut Problems) -> Vec<Condition> {
    let Some(fields) = table.get("where").and_then(|node| node.table(problems)) else {
        return Vec::new();
    };
    let has_numbers = table
        .get("format")
        .is_some_and(|node| node.string() == Some("csv"));
    let mut conditions = Vec::new();
    for (name, _) in fields.entries() {
        let Some(node) = fields.get(name) else {
            continue;
        };
        let field = match name.parse() {
            Ok(number) if has_numbers => Column::Number(number),
            _ => Column::Name(name.to_owned()),
        };
        let values = read_texts(&node, "a value", problems);
        conditions.push(Condition { field, values });
    }
    conditions
}

/// Reads a text, or an array of texts, and reports empty ones; `what` describes the text in messages.
pub(super) fn read_texts(node: &Node, what: &str, problems: &mut Problems) -> Vec<String> {
    let items = if node.is_array() {
        node.items(problems).unwrap_or_default()
    } else {
        return text(node, what, problems).into_iter().collect();
    };
    if items.is_empty() {
        node.wrong(problems, format!("is empty; write {what}"));
    }
    items
        .iter()
        .filter_map(|item| text(item, what, problems))
        .collect()
}

/// Reads a string, or a number as text. Returns `None` after a reported mistake; `what` describes the value in it.
fn text(node: &Node, what: &str, problems: &mut Problems) -> Option<String> {
    if let Some(number) = node.integer() {
        return Some(number.to_string());
    }
    let text = node.text(problems)?.trim();
    if text.is_empty() {
        node.wrong(problems, format!("is empty; write {what}"));
        return None;
    }
    Some(text.to_owned())
}
