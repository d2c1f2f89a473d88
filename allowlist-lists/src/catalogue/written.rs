//! Parses the file of the catalogue.
//!
//! Invariants: unknown keys, values of the wrong type and invalid prefixes are errors. Tests check the meaning of the
//! entries; a start of the program does not.

use std::collections::BTreeMap;

use ipnet::IpNet;
use jiff::civil::Date;
use serde::Deserialize;
use toml::Table;

use super::{Direction, Evidence, List, Parameter, Provider, Region};
use crate::feed;

/// The text of the catalogue file, `providers.toml`.
pub(super) const TEXT: &str = include_str!("providers.toml");

/// Parses the text of the catalogue file into providers, sorted by name. The error is a message with the reason.
pub(super) fn parse(text: &str) -> Result<Vec<Provider>, String> {
    let entries: BTreeMap<String, Entry> =
        toml::from_str(text).map_err(|error| error.to_string())?;
    let provider = |(name, entry): (String, Entry)| {
        let regions = entry.regions.into_iter().map(|region| {
            Ok(Region {
                value: region.value.unwrap_or_else(|| region.code.clone()),
                prefixes: parse_prefixes(&region.prefixes)?,
                code: region.code,
                aliases: region.aliases,
                only_if_named: region.only_if_named,
            })
        });
        let parameters = entry.parameters.into_iter();
        Ok(Provider {
            regions: regions
                .collect::<Result<_, String>>()
                .map_err(|error| format!("{name}: {error}"))?,
            common: parse_prefixes(&entry.prefixes).map_err(|error| format!("{name}: {error}"))?,
            parameters: parameters
                .map(|(name, parameter)| Parameter {
                    name,
                    about: parameter.about,
                    default: parameter.default,
                    values: parameter.values,
                })
                .collect(),
            name,
            title: entry.title,
            about: entry.about,
            direction: entry.direction,
            list: entry.source.map_or(List::BuiltIn, List::Fetched),
            documented: entry.documented,
            checked: entry.checked,
            expected: entry.expected,
            evidence: entry.evidence,
            warning: entry.warning,
        })
    };
    entries.into_iter().map(provider).collect()
}

fn parse_prefixes(tokens: &[String]) -> Result<Vec<IpNet>, String> {
    let prefixes = tokens.iter().map(|token| feed::parse_prefix(token));
    prefixes
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

/// A provider as it is written in the catalogue file; its name is the key of its table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    title: String,
    about: String,
    direction: Direction,
    documented: String,
    checked: Date,
    expected: String,
    evidence: Evidence,
    warning: Option<String>,
    source: Option<Table>,
    #[serde(default)]
    prefixes: Vec<String>,
    #[serde(default)]
    regions: Vec<RegionEntry>,
    #[serde(default)]
    parameters: BTreeMap<String, ParameterEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegionEntry {
    code: String,
    #[serde(default)]
    aliases: Vec<String>,
    #[serde(default)]
    only_if_named: bool,
    value: Option<String>,
    #[serde(default)]
    prefixes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ParameterEntry {
    about: String,
    default: Option<String>,
    #[serde(default)]
    values: Vec<String>,
}
