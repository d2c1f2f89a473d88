//! JSON: the strings that the configuration selects, in one document or in one a line.
//!
//! Invariant: what is selected is a string that is a prefix, or is blank, which is how vendors say that
//! there is none of that family; anything else that is selected fails the list.

use ipnet::IpNet;
use serde_json::Value;

use super::text::{decode, not_a_page, trim};
use super::{FeedError, Place, shown, some_of, take};
use crate::policy::Select;

/// How many keys of a document an error shows.
const SHOWN_KEYS: usize = 8;
/// The most memory that a document may take while it is searched, in bytes. A small object takes a hundred times
/// its text. The largest list that a vendor is known to have takes a third of this.
pub(super) const MOST_BYTES: usize = 64 << 20;
/// An object without members, which has room for 11.
const BYTES_OF_OBJECT: usize = 640;
/// An array with up to 4 items.
const BYTES_OF_ARRAY: usize = 128;
/// One more item or member, with the spare room that comes with it.
const BYTES_OF_ITEM: usize = 64;
/// A string or a member's name, besides its text.
const BYTES_OF_STRING: usize = 16;

pub(super) fn parse(selects: &[Select], bytes: &[u8]) -> Result<Vec<IpNet>, FeedError> {
    let document = document(not_a_page(decode(bytes)?)?)?;
    let mut prefixes = Vec::new();
    if select(selects, &document, &mut prefixes)? {
        return Ok(prefixes);
    }
    Err(nothing_selected(selects, &document))
}

/// A document a line. One in which nothing is selected says something about the list.
pub(super) fn parse_lines(selects: &[Select], bytes: &[u8]) -> Result<Vec<IpNet>, FeedError> {
    let text = not_a_page(decode(bytes)?)?;
    let mut prefixes = Vec::new();
    let mut found = false;
    let mut first = None;
    for (index, line) in text.lines().enumerate() {
        if trim(line).is_empty() {
            continue;
        }
        let in_line = |error| FeedError::Line {
            line: index + 1,
            error: Box::new(error),
        };
        let document = document(line).map_err(in_line)?;
        found |= select(selects, &document, &mut prefixes).map_err(in_line)?;
        first.get_or_insert(document);
    }
    match first {
        Some(document) if !found => Err(nothing_selected(selects, &document)),
        _ => Ok(prefixes),
    }
}

fn document(text: &str) -> Result<Value, FeedError> {
    if memory(text) > MOST_BYTES {
        return Err(FeedError::TooMuchMemory);
    }
    serde_json::from_str(text).map_err(|error| {
        let problem = error.to_string();
        if error.is_eof() {
            FeedError::Truncated { length: text.len() }
        } else if problem.starts_with("recursion limit") {
            FeedError::TooDeep
        } else {
            FeedError::NotJson {
                problem,
                start: shown(trim(text)),
            }
        }
    })
}

/// An estimate of the bytes of memory that a document takes, from its text alone.
fn memory(text: &str) -> usize {
    let mut memory = text.len();
    let mut is_in_string = false;
    let mut is_escaped = false;
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_in_string => is_escaped = true,
            b'"' => {
                is_in_string = !is_in_string;
                memory += BYTES_OF_STRING / 2;
            }
            b',' if !is_in_string => memory += BYTES_OF_ITEM,
            b'[' if !is_in_string => memory += BYTES_OF_ARRAY,
            b'{' if !is_in_string => memory += BYTES_OF_OBJECT,
            _ => {}
        }
    }
    memory
}

/// Whether there was anything to select, be it blank.
fn select(
    selects: &[Select],
    document: &Value,
    prefixes: &mut Vec<IpNet>,
) -> Result<bool, FeedError> {
    let mut found = false;
    for select in selects {
        for node in select.path().query(document) {
            found = true;
            let place = || Place::Path(path(document, node));
            let Value::String(token) = node else {
                return Err(FeedError::NotAString {
                    place: place(),
                    found: describe(node),
                    remedy: remedy(document, node),
                });
            };
            let token = trim(token);
            if !token.is_empty() {
                take(token, prefixes, place)?;
            }
        }
    }
    Ok(found)
}

fn nothing_selected(selects: &[Select], document: &Value) -> FeedError {
    if document.as_array().is_some_and(Vec::is_empty) {
        return FeedError::NoPrefixes;
    }
    let selects: Vec<String> = selects.iter().map(ToString::to_string).collect();
    FeedError::NothingSelected {
        selects: some_of(selects.iter().map(String::as_str), selects.len()),
        found: describe(document),
    }
}

fn remedy(document: &Value, value: &Value) -> String {
    let path = path(document, value);
    match value {
        Value::Array(_) => format!("select its items: \"{path}[*]\""),
        Value::Object(members) => match members.keys().next() {
            Some(key) => format!("select what it holds, such as \"{path}{}\"", member(key)),
            None => "select what holds prefixes".to_owned(),
        },
        _ => "each item must be an address or a prefix".to_owned(),
    }
}

/// Where a node of a document is, as people write it: `$.hooks[3]`. It is looked for when it is told of: the
/// places of all nodes that a path like `$..*` passes can be hundreds of times as large as the document.
fn path(document: &Value, node: &Value) -> String {
    fn below(at: &Value, node: &Value) -> Option<String> {
        if std::ptr::eq(at, node) {
            return Some(String::new());
        }
        match at {
            Value::Array(items) => items
                .iter()
                .enumerate()
                .find_map(|(index, item)| Some(format!("[{index}]{}", below(item, node)?))),
            Value::Object(members) => members
                .iter()
                .find_map(|(name, value)| Some(member(name) + &below(value, node)?)),
            _ => None,
        }
    }
    format!("${}", below(document, node).unwrap_or_default())
}

fn member(name: &str) -> String {
    let is_word = |c: char| c == '_' || c.is_ascii_alphanumeric();
    if name.chars().all(is_word)
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
    {
        format!(".{name}")
    } else {
        format!("['{}']", shown(name).escape_debug())
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(value) => format!("the string {:?}", shown(value)),
        Value::Array(items) if items.is_empty() => "an array without items".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(members) if members.is_empty() => "an object without keys".to_owned(),
        Value::Object(members) => {
            let keys = some_of(members.keys().map(String::as_str), SHOWN_KEYS);
            format!("an object with the keys {keys}")
        }
    }
}
