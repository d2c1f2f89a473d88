//! Records whether each selector matches: one that matches nothing shows that the vendor has changed the structure of
//! the list.
//!
//! Invariants: a selector that ends at an empty array counts as matched; each part of a union, such as the names in
//! `$['ipv4','ipv6'][*]` and `$.prefixes[*]['ipv4','ipv6']`, has to match as a selector of its own; a match in one item
//! of an array, or in one document of several, is enough.

use allowlist_policy::Select;
use serde_json::Value;
use serde_json_path::JsonPath;

/// The `JSONPath` selectors of a list, with each alternative of their unions (`['a','b']`) as a selector of its own.
/// Each has to match a node in at least one document of the list.
pub(super) struct Probes(Vec<Probe>);

struct Probe {
    text: String,
    path: Option<JsonPath>,
    /// The segments of the path, which are used to find out whether the path ends in an empty array.
    segments: Vec<Segment>,
    is_matched: bool,
}

/// One segment of a `JSONPath`, such as `.name` or `['a','b']`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    text: String,
    /// Whether the `JSONPath` segment begins with `..`, so that it selects at any depth.
    is_descendant: bool,
    /// The selectors in the segment: several if its brackets hold a union (`['a','b']`), otherwise one.
    selectors: Vec<String>,
}

impl Probes {
    pub(super) fn new(selects: &[Select]) -> Self {
        let mut probes = Vec::new();
        for select in selects {
            let text = select.to_string();
            let segments = segments(&text).unwrap_or_default();
            probes.push(Probe::new(text, segments.clone()));
            for (index, segment) in segments.iter().enumerate() {
                if segment.selectors.len() < 2 {
                    continue;
                }
                for selector in &segment.selectors {
                    // The items that a filter elsewhere selects may have one of two families alone.
                    let mut one: Vec<_> = segments.iter().map(Segment::without_filters).collect();
                    one[index] = segment.only(selector);
                    probes.push(Probe::new(joined(&one), one));
                }
            }
        }
        Self(probes)
    }

    /// Records the selectors that match a node in `document`, one of the documents of the list.
    pub(super) fn look_at(&mut self, document: &Value) {
        for probe in self.0.iter_mut().filter(|probe| !probe.is_matched) {
            probe.is_matched = probe.matches(document);
        }
    }

    /// Returns the selectors that have matched in no document, and whether any other selector has matched.
    pub(super) fn missing(&self) -> (Vec<&str>, bool) {
        let missing = self.0.iter().filter(|probe| !probe.is_matched);
        let missing: Vec<_> = missing.map(|probe| probe.text.as_str()).collect();
        let has_others = missing.len() < self.0.len();
        (missing, has_others)
    }
}

impl Probe {
    fn new(text: String, segments: Vec<Segment>) -> Self {
        Self {
            path: JsonPath::parse(&text).ok(),
            text,
            segments,
            is_matched: false,
        }
    }

    fn matches(&self, document: &Value) -> bool {
        // A path that was taken apart wrongly proves nothing.
        let Some(path) = &self.path else {
            return true;
        };
        !path.query(document).is_empty() || self.ends_in_nothing(document)
    }

    /// Returns whether the path ends at an empty array in `document`: the longest beginning of the path that matches
    /// anything matches an empty array, and the segment after it selects array items.
    fn ends_in_nothing(&self, document: &Value) -> bool {
        for (index, segment) in self.segments.iter().enumerate().rev() {
            let Ok(path) = JsonPath::parse(&joined(&self.segments[..index])) else {
                return false;
            };
            let found = path.query(document);
            if found.is_empty() {
                continue;
            }
            return segment.takes_items()
                && found
                    .iter()
                    .any(|node| node.as_array().is_some_and(Vec::is_empty));
        }
        false
    }
}

impl Segment {
    /// Returns a copy of the segment that selects all items if the segment has a filter (`?…`), and an equal copy
    /// otherwise.
    fn without_filters(&self) -> Self {
        if self.selectors.iter().any(|text| text.starts_with('?')) {
            self.only("*")
        } else {
            self.clone()
        }
    }

    fn only(&self, selector: &str) -> Self {
        let dots = if self.is_descendant { ".." } else { "" };
        Self {
            text: format!("{dots}[{selector}]"),
            is_descendant: self.is_descendant,
            selectors: vec![selector.to_owned()],
        }
    }

    /// Returns whether the `JSONPath` segment selects array items by index or by a filter, and therefore matches
    /// nothing in an empty array.
    fn takes_items(&self) -> bool {
        !self.is_descendant
            && self.selectors.iter().all(|text| {
                text.starts_with(['*', '?', '-', ':'])
                    || text.starts_with(|c: char| c.is_ascii_digit())
            })
    }
}

fn joined(segments: &[Segment]) -> String {
    let texts = segments.iter().map(|segment| segment.text.as_str());
    ["$"].into_iter().chain(texts).collect()
}

/// Splits a valid `JSONPath` into its segments; returns `None` if a segment is not understood.
fn segments(path: &str) -> Option<Vec<Segment>> {
    let mut rest = path.trim().strip_prefix('$')?.trim_start();
    let mut segments = Vec::new();
    while !rest.is_empty() {
        let dots = rest.len() - rest.trim_start_matches('.').len();
        let inside = &rest[dots..];
        let (length, selectors) = if inside.starts_with('[') {
            let (end, selectors) = brackets(inside)?;
            (dots + end, selectors)
        } else {
            let is_end = |c: char| c == '.' || c == '[' || c.is_whitespace();
            let end = inside.find(is_end).unwrap_or(inside.len());
            let name = &inside[..end];
            let selector = if name == "*" {
                name.to_owned()
            } else {
                format!("'{name}'")
            };
            if dots == 0 || name.is_empty() {
                return None;
            }
            (dots + end, vec![selector])
        };
        segments.push(Segment {
            text: rest[..length].to_owned(),
            is_descendant: dots == 2,
            selectors,
        });
        rest = rest[length..].trim_start();
    }
    Some(segments)
}

/// Returns the byte offset after the closing bracket of the `[…]` that `text` starts with, and the selectors in the
/// brackets; `None` if the brackets are not closed.
fn brackets(text: &str) -> Option<(usize, Vec<String>)> {
    let mut selectors = Vec::new();
    let mut start = 1;
    let mut depth = 0;
    let mut quote = None;
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if is_escaped => is_escaped = false,
            (Some(_), '\\') => is_escaped = true,
            (Some(open), c) if open == c => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '[' | '(') => depth += 1,
            (None, ',') if depth == 1 => {
                selectors.push(text[start..at].trim().to_owned());
                start = at + 1;
            }
            (None, ']' | ')') => {
                depth -= 1;
                if depth == 0 {
                    selectors.push(text[start..at].trim().to_owned());
                    return Some((at + 1, selectors));
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        let table = [
            ("$", ""),
            ("$.a.b", "'a' | 'b'"),
            ("$..cidr", "'cidr'"),
            ("$ .a [*]", "'a' | *"),
            ("$['a','b'][*]", "'a' + 'b' | *"),
            (
                "$.x[?@.a=='],[' && (@.b[0]>1)]['v4', \"v6\"]",
                "'x' | ?@.a=='],[' && (@.b[0]>1) | 'v4' + \"v6\"",
            ),
            ("$.*[1:3,'it\\'s']", "* | 1:3 + 'it\\'s'"),
        ];
        for (path, expected) in table {
            let parts: Vec<String> = segments(path)
                .expect(path)
                .iter()
                .map(|segment| segment.selectors.join(" + "))
                .collect();
            assert_eq!(parts.join(" | "), expected, "{path}");
        }
    }
}
