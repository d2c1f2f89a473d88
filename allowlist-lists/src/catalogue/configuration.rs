//! A provider as configuration to copy, with the expanded source in comments.
//!
//! Invariants: the text is valid TOML, with an example for each parameter without a default; lines of comments have up to
//! 100 characters unless a single word is longer.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::{Direction, KEYS, List, Parameter, Provider, expand};

/// The maximum width of a comment line in a generated configuration, in characters.
const WIDTH: usize = 100;
/// The example value in a generated configuration for a parameter whose value only the operator knows.
const EXAMPLE: &str = "example";

impl Provider {
    /// Returns an example configuration: a `[sources]` table with this provider and its parameters, and a service that
    /// allows it. Comments contain the vendor's page, the day of the last check, the warning and the source table that
    /// the provider stands for.
    pub fn configuration(&self) -> String {
        let mut text = String::new();
        text += &comment(&format!("Documented at {}", self.documented));
        text += &comment(&format!("Checked on {}", self.checked));
        if let Some(warning) = &self.warning {
            text += &comment(&format!("Warning: {warning}"));
        }
        text += &format!("[sources.{}]\nprovider = {:?}\n", self.name, self.name);
        if self.direction == Direction::Outbound {
            text += &comment(
                "These addresses are destinations of this host's connections. This allows inbound connections from them \
                 too:",
            );
            text += "direction = \"any\"\n";
        }
        text += &self.regions_text();
        text += &self.parameters_text();
        text += &self.expanded();
        text += "\n[services.webhooks]\nports = [\"tcp/443\"]\n";
        text += &format!("allow = [{:?}]\n", self.name);
        text
    }

    fn regions_text(&self) -> String {
        let Some(first) = self.regions().first() else {
            return String::new();
        };
        let described = self.regions().iter().map(|region| {
            let also = match region.aliases[..] {
                [] => String::new(),
                _ => format!(" (or {})", region.aliases.join(", ")),
            };
            let only = if region.only_if_named {
                " (if named)"
            } else {
                ""
            };
            format!("{}{also}{only}", region.code)
        });
        let described: Vec<_> = described.collect();
        let usual = if self.chosen(&[]).len() == self.regions().len() {
            "all"
        } else {
            "all except those marked \"if named\""
        };
        let about = format!(
            "Regions: {}; without the key, {usual}.",
            described.join(", ")
        );
        format!("{}# regions = [{:?}]\n", comment(&about), first.code)
    }

    fn parameters_text(&self) -> String {
        let mut text = String::new();
        for parameter in self.parameters() {
            let mut about = format!("`{}`: {}", parameter.name, parameter.about);
            if let Some(default) = parameter.shown_default() {
                about += &format!("; default {default:?}");
            }
            about += &parameter.choices();
            text += &comment(&about);
        }
        let shown = |required: bool| {
            let parameters = self.parameters().iter();
            parameters
                .filter(move |parameter| parameter.default.is_none() == required)
                .map(|parameter| format!("{} = {:?}", parameter.name, parameter.example()))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let (required, optional) = (shown(true), shown(false));
        if !required.is_empty() {
            text += &format!("parameters = {{ {required} }}\n");
        } else if !optional.is_empty() {
            text += &format!("# parameters = {{ {optional} }}\n");
        }
        text
    }

    /// Returns the provider's source table with the default regions and parameters as comment lines, or for a built-in
    /// list the number of its prefixes.
    fn expanded(&self) -> String {
        let List::Fetched(source) = &self.list else {
            let count = self.prefixes(&[]).len();
            let about = format!("Contains {count} built-in prefixes.");
            return comment(&about);
        };
        let defaults = self.parameters().iter();
        let defaults: BTreeMap<_, _> = defaults
            .filter_map(|parameter| Some((parameter.name.as_str(), parameter.default.as_deref()?)))
            .collect();
        let table = expand::table(source, &self.chosen(&[]), &defaults);
        let mut text = comment("Equivalent to:");
        for key in KEYS.concat() {
            if let Some(value) = table.get(key) {
                text += &key_comment(key, value);
            }
        }
        text
    }
}

impl Parameter {
    /// Returns the parameter's default, or `None` if it has none or if a configuration could not set that value: the
    /// default may be a regular expression that matches all values.
    fn shown_default(&self) -> Option<&str> {
        let default = self.default.as_deref();
        default.filter(|default| self.check(default).is_ok())
    }

    /// Returns an example value of the parameter for a generated configuration.
    fn example(&self) -> &str {
        let first = self.values.first().map(String::as_str);
        let known = self.shown_default().or(first);
        known.unwrap_or(EXAMPLE)
    }
}

/// Returns a configuration key and its value as a TOML comment; a long array has one item per line.
fn key_comment(key: &str, value: &Value) -> String {
    let line = format!("#     {key} = {}\n", inline(value));
    match value {
        Value::Array(items) if items.len() > 1 && line.len() > WIDTH => {
            let items = items
                .iter()
                .map(|item| format!("#         {},\n", inline(item)));
            format!("#     {key} = [\n{}#     ]\n", items.collect::<String>())
        }
        _ => line,
    }
}

/// Returns a TOML value as text in one line.
fn inline(value: &Value) -> String {
    match value {
        Value::Table(table) => format!("{{ {} }}", members(table)),
        other => other.to_string(),
    }
}

fn members(table: &Table) -> String {
    let members = table.iter();
    let members: Vec<_> = members
        .map(|(key, value)| format!("{key} = {}", inline(value)))
        .collect();
    members.join(", ")
}

/// Returns a text as TOML comment lines of limited width, each starting with `#`.
pub fn comment(text: &str) -> String {
    let mut lines = String::new();
    let mut line = "#".to_owned();
    for word in text.split_whitespace() {
        if line.len() > 1 && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines += &format!("{line}\n");
            "#".clone_into(&mut line);
        }
        line += &format!(" {word}");
    }
    format!("{lines}{line}\n")
}
