//! Describes the nodes of a document for messages: their place, and their kind.

use serde_json::Value;

use super::super::{shown, some_of};

/// The maximum number of an object's keys that an error shows.
pub(super) const SHOWN_KEYS: usize = 8;

/// Returns the `JSONPath` of a node of `document`, such as `$.hooks[3]`. Computed only for an error, since the paths of
/// all nodes that `$..*` visits can be hundreds of times as large as the document.
pub(super) fn path(document: &Value, node: &Value) -> String {
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

/// Returns the `JSONPath` segment that selects the object member `name`: `.name`, or `['na me']` if the name is not a
/// word.
pub(super) fn member(name: &str) -> String {
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

/// Returns a description of a JSON value for a message: its kind, and its text or the keys of an object.
pub(super) fn describe(value: &Value) -> String {
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
