//! Expands the placeholders of a source table.
//!
//! Invariants: `{name}` becomes the value of this name, and other text in braces (`{8}` of a regular expression) stays;
//! expanded values are not expanded again. `{region}` in an array, in `url`, and in `page` if regions are named, expands to
//! a string for each region; elsewhere it becomes an alternation of a regular expression, `(?:A|B)`. Does not know
//! providers: the caller validates the values.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::Region;

/// The name of the placeholder (`{region}`) that the chosen regions replace.
const REGION: &str = "region";

/// Returns the source table `source` with `{region}` replaced by the values of `regions`, and each other placeholder by
/// its value in `values`. A placeholder without a value stays.
pub(super) fn table(source: &Table, regions: &[&Region], values: &BTreeMap<&str, &str>) -> Table {
    let fill = |text: &str| fill_each(text, regions, values);
    let entry = |(key, value): (&String, &Value)| {
        let value = match value {
            // One URL per region; the source merges their lists.
            Value::String(url) if key == "url" && has_region(url, regions) => {
                Value::Array(fill(url).into_iter().map(Value::String).collect())
            }
            Value::String(text) => Value::String(fill_choice(text, regions, values)),
            Value::Array(items) => Value::Array(
                items
                    .iter()
                    .flat_map(|item| match item {
                        Value::String(text) => fill(text).into_iter().map(Value::String).collect(),
                        other => vec![other.clone()],
                    })
                    .collect(),
            ),
            Value::Table(inner) => Value::Table(table(inner, regions, values)),
            other => other.clone(),
        };
        (key.clone(), value)
    };
    source.iter().map(entry).collect()
}

/// Replaces each regular expression with `{region}` under `page` by one expression for each of several `regions`, so
/// that a region that is missing on the page is an error. `exclude_row` stays.
///
/// `source` is the source table with its placeholders, `expanded` the result of [`table`], which is changed.
pub(super) fn split_page(
    expanded: &mut Table,
    source: &Table,
    regions: &[&Region],
    values: &BTreeMap<&str, &str>,
) {
    let (Some(Value::Table(page)), Some(Value::Table(source))) =
        (expanded.get_mut("page"), source.get("page"))
    else {
        return;
    };
    for (key, value) in source {
        if let Value::String(text) = value
            && key != "exclude_row"
            && regions.len() > 1
            && has_region(text, regions)
        {
            let patterns = fill_each(text, regions, values);
            let patterns = patterns.into_iter().map(Value::String).collect();
            page.insert(key.clone(), Value::Array(patterns));
        }
    }
}

/// Returns `text` with its placeholders replaced: one text for each region, or one text in all if `text` does not
/// contain `{region}`.
fn fill_each(text: &str, regions: &[&Region], values: &BTreeMap<&str, &str>) -> Vec<String> {
    if !has_region(text, regions) {
        return vec![fill(text, |name| values.get(name).copied())];
    }
    let for_region = |region: &&Region| {
        fill(text, |name| match name {
            REGION => Some(region.value.as_str()),
            name => values.get(name).copied(),
        })
    };
    regions.iter().map(for_region).collect()
}

/// Returns `text` with `{region}` replaced by a regular expression that matches any of `regions`, and the other
/// placeholders by their values.
fn fill_choice(text: &str, regions: &[&Region], values: &BTreeMap<&str, &str>) -> String {
    let choices: Vec<_> = regions.iter().map(|region| region.value.as_str()).collect();
    let choice = format!("(?:{})", choices.join("|"));
    fill(text, |name| match name {
        REGION if !regions.is_empty() => Some(choice.as_str()),
        name => values.get(name).copied(),
    })
}

fn has_region(text: &str, regions: &[&Region]) -> bool {
    !regions.is_empty() && text.contains("{region}")
}

fn fill<'v>(text: &str, value_of: impl Fn(&str) -> Option<&'v str>) -> String {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        filled += before;
        let named = after.split_once('}');
        if let Some((value, after)) = named.and_then(|(name, rest)| Some((value_of(name)?, rest))) {
            filled += value;
            rest = after;
        } else {
            filled.push('{');
            rest = after;
        }
    }
    filled + rest
}
