//! A TOML document whose values have positions, and the list of its mistakes.
//!
//! Invariants: a value of the wrong type or an unknown key is reported where it is read, and reading
//! continues, so that one run reports all mistakes. Does not know the meaning of keys.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, Problem, nearest};

/// Parses a TOML text. Returns `None` after a syntax error, of which the first is reported.
pub(in crate::config) fn parse<'t>(
    text: &'t str,
    problems: &mut Problems,
) -> Option<Spanned<DeTable<'t>>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let Some(error) = errors.first() else {
        return Some(document);
    };
    // Later errors usually follow from the first one.
    let at = error.span().map_or(text.len(), |span| span.start);
    let near = key_at(text, at).map_or_else(String::new, |key| format!(", at `{key}`"));
    problems.add(at, "", format!("is not TOML: {}{near}", error.message()));
    None
}

/// Returns the key of the line that starts at byte `at` of the text, for the message of a syntax error.
///
/// Returns `None` if `at` is inside of a line, or the line has no unquoted key. The message does not contain the value,
/// which may be a secret that lacks its quotes.
fn key_at(text: &str, at: usize) -> Option<&str> {
    let starts_a_line = text[..at].rsplit('\n').next()?.trim().is_empty();
    let (key, _) = text[at..].lines().next()?.split_once('=')?;
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let key = key.trim();
    (starts_a_line && !key.is_empty() && key.chars().all(is_bare)).then_some(key)
}

/// The mistakes found so far: each with its byte offset in the text, its key and the message.
#[derive(Default)]
pub(in crate::config) struct Problems(Vec<(usize, String, String)>);

impl Problems {
    pub(in crate::config) fn add(&mut self, at: usize, key: &str, message: impl Into<String>) {
        self.0.push((at, key.to_owned(), message.into()));
    }

    /// Returns `value` if no mistake was found, otherwise an error with all mistakes in the order of the text.
    pub(in crate::config) fn result<T>(
        mut self,
        value: T,
        text: &str,
        file: &Path,
    ) -> Result<T, ConfigError> {
        if self.0.is_empty() {
            return Ok(value);
        }
        self.0.sort();
        let (mut line, mut line_start, mut seen) = (1, 0, 0);
        let problems = self.0.into_iter().map(|(at, key, message)| {
            // The problems are sorted, so one pass over the text finds all lines.
            for (newline, _) in text[seen..at].match_indices('\n') {
                line += 1;
                line_start = seen + newline + 1;
            }
            seen = at;
            let column = text[line_start..at].chars().count() + 1;
            Problem {
                place: Some((file.to_owned(), line, column)),
                key,
                message,
            }
        });
        Err(ConfigError::Invalid(problems.collect()))
    }
}

/// A value of the document, with its path of keys and its byte offset in the text.
pub(in crate::config) struct Node<'d> {
    pub(in crate::config) key: String,
    pub(in crate::config) at: usize,
    value: &'d DeValue<'d>,
}

impl<'d> Node<'d> {
    /// Reports a mistake in this value, with `message` as the description.
    pub(in crate::config) fn wrong(&self, problems: &mut Problems, message: impl Into<String>) {
        problems.add(self.at, &self.key, message);
    }

    pub(in crate::config) fn text(&self, problems: &mut Problems) -> Option<&'d str> {
        match self.value {
            DeValue::String(text) => Some(text),
            _ => self.wrong_type(problems, "a string"),
        }
    }

    pub(in crate::config) fn boolean(&self, problems: &mut Problems) -> Option<bool> {
        match self.value {
            DeValue::Boolean(value) => Some(*value),
            _ => self.wrong_type(problems, "true or false"),
        }
    }

    /// Returns the value as an unsigned integer, or `None` without a report if it is no integer or does not fit.
    pub(in crate::config) fn integer(&self) -> Option<u64> {
        match self.value {
            DeValue::Integer(integer) => {
                u64::from_str_radix(integer.as_str(), integer.radix()).ok()
            }
            _ => None,
        }
    }

    /// Returns the value as a number, or `None` without a report if it is no number.
    pub(in crate::config) fn fraction(&self) -> Option<f64> {
        match self.value {
            DeValue::Float(float) => float.as_str().parse().ok(),
            DeValue::Integer(integer) => integer.as_str().parse().ok(),
            _ => None,
        }
    }

    /// Returns the value as a string, or `None` without a report if it is no string.
    pub(in crate::config) fn string(&self) -> Option<&'d str> {
        match self.value {
            DeValue::String(text) => Some(text),
            _ => None,
        }
    }

    pub(in crate::config) fn is_empty_array(&self) -> bool {
        matches!(self.value, DeValue::Array(items) if items.is_empty())
    }

    pub(in crate::config) fn is_array(&self) -> bool {
        matches!(self.value, DeValue::Array(_))
    }

    pub(in crate::config) fn items(&self, problems: &mut Problems) -> Option<Vec<Node<'d>>> {
        let DeValue::Array(items) = self.value else {
            return self.wrong_type(problems, "an array");
        };
        let item = |(index, item): (usize, &'d Spanned<DeValue<'d>>)| Node {
            key: format!("{}[{index}]", self.key),
            at: item.span().start,
            value: item.get_ref(),
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    pub(in crate::config) fn table(&self, problems: &mut Problems) -> Option<Table<'d>> {
        match self.value {
            DeValue::Table(table) => Some(Table {
                key: self.key.clone(),
                at: self.at,
                entries: table,
            }),
            _ => self.wrong_type(problems, "a table"),
        }
    }

    fn wrong_type<T>(&self, problems: &mut Problems, wanted: &str) -> Option<T> {
        let found = match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.wrong(problems, format!("is {found}; must be {wanted}"));
        None
    }
}

/// A table of the document, with its path of keys and its byte offset in the text: that of the table's name, if it has
/// one.
pub(in crate::config) struct Table<'d> {
    pub(in crate::config) key: String,
    pub(in crate::config) at: usize,
    entries: &'d DeTable<'d>,
}

impl<'d> Table<'d> {
    pub(in crate::config) fn root(document: &'d Spanned<DeTable<'d>>) -> Self {
        Self {
            key: String::new(),
            at: 0,
            entries: document.get_ref(),
        }
    }

    /// Reports each key of the table that is not in `known` as a mistake.
    pub(in crate::config) fn only(&self, known: &[&str], problems: &mut Problems) {
        for name in self.entries.keys() {
            if !known.contains(&name.get_ref().as_ref()) {
                let message = match nearest(name.get_ref(), known) {
                    Some(near) => format!("unknown key; did you mean `{near}`?"),
                    None => format!("unknown key; expected one of {}", known.join(", ")),
                };
                problems.add(name.span().start, &self.path(name.get_ref()), message);
            }
        }
    }

    pub(in crate::config) fn get(&self, name: &str) -> Option<Node<'d>> {
        let value = self.entries.get(name)?;
        Some(Node {
            key: self.path(name),
            at: value.span().start,
            value: value.get_ref(),
        })
    }

    /// Returns the entries of the table by name; the position of each entry is that of its name.
    pub(in crate::config) fn entries(&self) -> impl Iterator<Item = (&'d str, Node<'d>)> {
        self.entries.iter().map(|(name, value)| {
            let (at, name) = (name.span().start, name.get_ref().as_ref());
            (
                name,
                Node {
                    key: self.path(name),
                    at,
                    value: value.get_ref(),
                },
            )
        })
    }

    pub(in crate::config) fn wrong(&self, problems: &mut Problems, message: impl Into<String>) {
        problems.add(self.at, &self.key, message);
    }

    fn path(&self, name: &str) -> String {
        let bare = !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let name = if bare {
            name.to_owned()
        } else {
            format!("{name:?}")
        };
        if self.key.is_empty() {
            name
        } else {
            format!("{}.{name}", self.key)
        }
    }
}
