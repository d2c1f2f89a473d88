//! JSON: the prefixes that the configuration selects, in one document, or in one document per line.
//!
//! Invariants: a selected node has prefixes in the form that `item` describes, or is blank or null, which is how
//! vendors write an empty list; any other selected node fails the list, and so does a selector that matches nothing.

use allowlist_policy::{Item, Json};
use ipnet::IpNet;
use serde_json::{Map, Value};

use super::text::{decode, not_a_page, trim};
use super::{FeedError, List, Place, item, some_of, take};
pub(super) use document::MOST_BYTES;
use path::{SHOWN_KEYS, describe, member, path};
use probes::Probes;

mod document;
mod more;
mod path;
mod probes;

pub(super) fn parse(rules: &Json, bytes: &[u8]) -> Result<List, FeedError> {
    let document = document::parse(not_a_page(decode(bytes)?)?)?;
    let mut prefixes = Vec::new();
    let mut probes = Probes::new(&rules.selects);
    select(rules, &document, &mut prefixes)?;
    probes.look_at(&document);
    check(rules, &probes, &document)?;
    let mut list = List::from(prefixes);
    list.notes.extend(more::note(&document));
    Ok(list)
}

/// Parses a list with one JSON document per line. A document in which the selectors match nothing yields no prefix.
pub(super) fn parse_lines(
    rules: &Json,
    bytes: &[u8],
    may_be_empty: bool,
) -> Result<List, FeedError> {
    let text = not_a_page(decode(bytes)?)?;
    let mut prefixes = Vec::new();
    let mut probes = Probes::new(&rules.selects);
    let mut filter = item::Filter::new(&rules.filter);
    let mut first = None;
    for (index, line) in text.lines().enumerate() {
        if trim(line).is_empty() {
            continue;
        }
        let in_line = |error| FeedError::Line {
            line: index + 1,
            error: Box::new(error),
        };
        let document = document::parse(line).map_err(|error| match document::parse(text) {
            // A line break cuts its first line short.
            Ok(_) if first.is_none() => FeedError::OneDocument,
            _ => in_line(error),
        })?;
        let is_selected = filter.passes(|column| match (column.name(), &document) {
            (Some(name), Value::Object(members)) => members.get(name).map(text_of),
            _ => None,
        });
        if is_selected {
            select(rules, &document, &mut prefixes).map_err(in_line)?;
            probes.look_at(&document);
        }
        first.get_or_insert(document);
    }
    let Some(first) = first else {
        return Ok(List::default());
    };
    filter.check(may_be_empty)?;
    if prefixes.is_empty() && may_be_empty {
        return Ok(List::default());
    }
    check(rules, &probes, &first)?;
    Ok(prefixes.into())
}

fn select(rules: &Json, document: &Value, prefixes: &mut Vec<IpNet>) -> Result<(), FeedError> {
    for select in &rules.selects {
        for node in select.path().query(document) {
            take_node(&rules.item, document, node, prefixes)?;
        }
    }
    Ok(())
}

fn take_node(
    item: &Item,
    document: &Value,
    node: &Value,
    prefixes: &mut Vec<IpNet>,
) -> Result<(), FeedError> {
    let place = || Place::Path(path(document, node));
    match (item, node) {
        // The vendor states an empty list.
        (_, Value::Null) => Ok(()),
        (Item::Token { separator }, Value::String(text)) => {
            item::take_tokens(text, separator.as_deref(), prefixes, place)
        }
        (Item::Token { .. }, other) => Err(FeedError::NotAString {
            place: place(),
            found: describe(other),
            remedy: remedy(document, other),
        }),
        (Item::Keys, Value::Object(members)) => {
            for name in members.keys().filter(|name| !trim(name).is_empty()) {
                let at = || Place::Path(path(document, node) + &member(name));
                take(trim(name), prefixes, at)?;
            }
            Ok(())
        }
        (Item::Range(fields) | Item::Prefix(fields), Value::Object(members)) => {
            let mut texts = Vec::new();
            for field in fields {
                texts.push(member_of(members, field.name().unwrap_or_default(), place)?);
            }
            item::take_pair(item, &texts[0], &texts[1], prefixes, place)
        }
        (_, other) => Err(FeedError::NotAnObject {
            place: place(),
            found: describe(other),
        }),
    }
}

fn member_of(
    members: &Map<String, Value>,
    name: &str,
    place: impl Fn() -> Place,
) -> Result<String, FeedError> {
    members
        .get(name)
        .map(text_of)
        .ok_or_else(|| FeedError::NoMember {
            place: place(),
            name: name.into(),
            found: some_of(members.keys().map(String::as_str), SHOWN_KEYS).into(),
        })
}

/// Returns a JSON value as the text that a filter compares, or that is a part of a prefix; empty for null. The text of
/// an array or an object equals no configured value.
fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => trim(text).to_owned(),
        other => other.to_string(),
    }
}

/// Checks that each selector of `rules` has matched a node; `document` is described in the error.
///
/// # Errors
/// A selector has matched no node.
fn check(rules: &Json, probes: &Probes, document: &Value) -> Result<(), FeedError> {
    let (missing, has_others) = probes.missing();
    if missing.is_empty() {
        return Ok(());
    }
    let selects: Vec<String> = rules.selects.iter().map(ToString::to_string).collect();
    let selects = if has_others {
        some_of(missing.iter().copied(), missing.len())
    } else {
        some_of(selects.iter().map(String::as_str), selects.len())
    };
    Err(FeedError::NothingSelected {
        selects,
        found: describe(document),
    })
}

fn remedy(document: &Value, value: &Value) -> String {
    let path = path(document, value);
    match value {
        Value::Array(_) => format!("select its items: \"{path}[*]\""),
        Value::Object(members) => match members.keys().next() {
            Some(key) => format!("select its content, such as \"{path}{}\"", member(key)),
            None => "select the prefixes".to_owned(),
        },
        _ => "each item must be an address or a prefix".to_owned(),
    }
}
