//! Detects whether a document is one page of several, by the members that state a next page.
//!
//! Knows the usual names of these members, at the top of a document and in the objects that describe it, such as
//! `meta`.

use serde_json::{Map, Value};

use super::super::shown;
use super::path::member;

/// The names of the object members that describe a document, in which the next page may be stated.
const DESCRIPTIONS: [&str; 6] = [
    "_links",
    "links",
    "meta",
    "metadata",
    "paging",
    "pagination",
];
/// The names of the members that hold the URL, the number or the token of the next page of a list.
const NEXT: [&str; 10] = [
    "next",
    "next_cursor",
    "next_page",
    "next_page_token",
    "next_token",
    "next_url",
    "nextCursor",
    "nextLink",
    "nextPageToken",
    "@odata.nextLink",
];
/// The names of the boolean members that are `true` if the list has more pages.
const MORE: [&str; 2] = ["has_more", "hasMore"];

/// Returns a note for the operator if the document states that it is one page of several, and `None` otherwise.
pub(super) fn note(document: &Value) -> Option<String> {
    let top = document.as_object()?;
    let inside = DESCRIPTIONS.iter().filter_map(|name| {
        let members = top.get(*name)?.as_object()?;
        Some((member(name), members))
    });
    let mut places = [(String::new(), top)].into_iter().chain(inside);
    places.find_map(|(place, members)| stated(&place, members))
}

fn stated(place: &str, members: &Map<String, Value>) -> Option<String> {
    let is_more = |name: &&&str| members.get(**name) == Some(&Value::Bool(true));
    let (name, value) = NEXT
        .iter()
        .find_map(|name| Some((*name, next(members.get(*name)?)?)))
        .or_else(|| Some((*MORE.iter().find(is_more)?, "true".to_owned())))?;
    Some(format!(
        "the document is one page of several ({place}{} is {value}), and the next page is not read: add its URL to `url`, or use the URL of the whole list",
        member(name).trim_start_matches(if place.is_empty() { '.' } else { ' ' })
    ))
}

/// Returns the next page that a member's value states, for a message; `None` if the value states no next page.
fn next(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(format!("{:?}", shown(text))),
        Value::Number(number) => Some(number.to_string()),
        Value::Object(members) => next(members.get("href")?),
        _ => None,
    }
}
