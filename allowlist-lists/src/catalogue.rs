//! The catalogue of providers: vendors' lists that a configuration refers to by name.
//!
//! Invariants: names are unique and sorted; each provider states the vendor's documentation, the day of the last check, its
//! evidence and its direction; configuration can change a provider only through its parameters and regions. Providers are
//! data, tables in `catalogue/providers.toml`. Fetches nothing: a provider expands to a source table of a configuration.

mod configuration;
mod expand;
mod written;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use allowlist_policy::Direction;
use ipnet::IpNet;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use toml::Table;

pub use configuration::comment;

/// The keys of a source that describe the format of its list, in display order.
pub const FORMAT_KEYS: &[&str] = &[
    "format",
    "select",
    "column",
    "range",
    "prefix",
    "separator",
    "keys",
    "where",
    "delimiter",
    "skip",
    "element",
    "attribute",
    "comments",
    "keyword",
    "page",
];

/// The keys that a `source` of the catalogue may have, in display order.
const KEYS: [&[&str]; 3] = [
    &[
        "url",
        "discover",
        "newest",
        "unzip",
        "headers",
        "bearer_file",
    ],
    FORMAT_KEYS,
    &[
        "names",
        "families",
        "every",
        "timeout",
        "max_size",
        "min",
        "max",
        "must_cover",
        "min_prefix_len",
        "allow_special_use",
        "max_addresses",
        "max_shrink",
        "max_growth",
        "grace",
        "max_age",
        "ttl_floor",
    ],
];

/// A source of the catalogue, complete except for its parameters and regions.
#[derive(Clone, Debug)]
pub struct Provider {
    /// The value of `provider = "…"`.
    pub name: String,
    /// The vendor's name of the list.
    pub title: String,
    /// A description: which side connects, and the purpose.
    pub about: String,
    /// The direction of the connections.
    pub direction: Direction,
    /// The origin of the prefixes.
    pub list: List,
    /// The URL of the vendor's documentation, or of the list if there is none.
    pub documented: String,
    /// The day on which the provider was last compared with its evidence.
    pub checked: Date,
    /// The number of prefixes that were observed, and the date.
    pub expected: String,
    /// The evidence for the provider.
    pub evidence: Evidence,
    /// A warning for the operator whenever the provider is used.
    pub warning: Option<String>,
    regions: Vec<Region>,
    /// The parameters that a source may set.
    pub parameters: Vec<Parameter>,
    /// The built-in prefixes of all regions, or of a provider without regions.
    common: Vec<IpNet>,
}

/// The evidence for a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// A list served by the vendor was parsed.
    Payload,
    /// The vendor's documentation was read.
    Documentation,
    /// A third party's record of the response headers was read, without the body.
    Headers,
    /// The evidence is public programs that use the list.
    #[serde(rename = "third parties")]
    ThirdParties,
}

/// The origin of a provider's prefixes.
#[derive(Clone, Debug)]
pub enum List {
    /// The list is fetched from the vendor: a source table with placeholders.
    Fetched(Table),
    /// The list is built into this program, as published on the day of the last check.
    BuiltIn,
}

/// A selectable part of a provider: a region, a data centre.
#[derive(Clone, Debug)]
pub struct Region {
    /// The value in `regions = ["…"]`.
    pub code: String,
    /// The other names of the region in the vendor's documents.
    pub aliases: Vec<String>,
    /// Whether the region is used only if the configuration names it.
    pub only_if_named: bool,
    /// The value of `{region}` in the source table.
    pub value: String,
    /// The built-in prefixes of the region.
    pub prefixes: Vec<IpNet>,
}

/// A parameter of a provider: the value of `{name}` in its source table.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The name of the parameter.
    pub name: String,
    /// The description.
    pub about: String,
    /// The default; if `None`, the configuration must set the parameter.
    pub default: Option<String>,
    /// The allowed values; empty for any value that cannot change the structure of a URL or a path.
    pub values: Vec<String>,
}

/// Returns all providers, sorted by name.
pub fn all() -> &'static [Provider] {
    static PROVIDERS: LazyLock<Vec<Provider>> =
        LazyLock::new(|| written::parse(written::TEXT).expect("a test parses the catalogue"));
    &PROVIDERS
}

/// Returns the provider with this name.
pub fn find(name: &str) -> Option<&'static Provider> {
    all().iter().find(|provider| provider.name == name)
}

impl Provider {
    /// Returns the regions; empty if the provider has none.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Returns the region with this code or alias, ignoring case.
    pub fn region(&self, code: &str) -> Option<&Region> {
        let is_named = |name: &str| name.eq_ignore_ascii_case(code);
        self.regions
            .iter()
            .find(|region| is_named(&region.code) || region.aliases.iter().any(|a| is_named(a)))
    }

    /// Returns the built-in prefixes that belong to no region.
    pub fn common_prefixes(&self) -> &[IpNet] {
        &self.common
    }

    /// Returns the parameters, sorted by name.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Returns whether the name, the title or the description contains a word, ignoring case.
    pub fn matches(&self, word: &str) -> bool {
        let word = word.to_lowercase();
        [&self.name, &self.title, &self.about]
            .iter()
            .any(|text| text.to_lowercase().contains(&word))
    }

    /// Returns the source table for these regions, or for the default regions if none are given.
    ///
    /// # Errors
    /// A parameter is missing, unknown or invalid; the message contains the remedy.
    pub fn table(
        &self,
        regions: &[&Region],
        parameters: &BTreeMap<String, String>,
    ) -> Result<Table, String> {
        let List::Fetched(source) = &self.list else {
            return Err(format!("the list of {} is built in", self.name));
        };
        let values = self.values(parameters)?;
        let are_named = !regions.is_empty();
        let regions = self.chosen(regions);
        if regions.is_empty() && !self.regions.is_empty() {
            let name = &self.name;
            return Err(format!(
                "{name} requires `regions`; it has {}",
                self.codes()
            ));
        }
        let mut table = expand::table(source, &regions, &values);
        if are_named {
            expand::split_page(&mut table, source, &regions, &values);
        }
        Ok(table)
    }

    /// Returns the built-in prefixes of these regions, or of the default regions if none are given. Sorted and distinct.
    pub fn prefixes(&self, regions: &[&Region]) -> Vec<IpNet> {
        let regions = self.chosen(regions);
        let of_regions = regions.iter().flat_map(|region| &region.prefixes);
        let mut prefixes: Vec<_> = self.common.iter().chain(of_regions).copied().collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        prefixes
    }

    /// Returns the given regions without duplicates, or the default regions if none are given.
    fn chosen<'p>(&'p self, named: &[&'p Region]) -> Vec<&'p Region> {
        if named.is_empty() {
            let usual = self.regions.iter().filter(|region| !region.only_if_named);
            return usual.collect();
        }
        let mut chosen: Vec<&Region> = Vec::new();
        for region in named {
            if chosen.iter().all(|known| known.code != region.code) {
                chosen.push(region);
            }
        }
        chosen
    }

    /// Returns the values of all parameters.
    fn values<'v>(
        &'v self,
        given: &'v BTreeMap<String, String>,
    ) -> Result<BTreeMap<&'v str, &'v str>, String> {
        if let Some(unknown) = given.keys().find(|name| self.parameter(name).is_none()) {
            let names: Vec<_> = self.parameters.iter().map(|p| p.name.as_str()).collect();
            let there_are = match names[..] {
                [] => "it has none".to_owned(),
                _ => format!("it has {}", names.join(", ")),
            };
            let name = &self.name;
            return Err(format!("{name} has no parameter {unknown:?}; {there_are}"));
        }
        let value_of = |parameter: &'v Parameter| {
            let value = match given.get(&parameter.name) {
                Some(value) => parameter.check(value).map(|()| value.as_str()),
                None => parameter.default.as_deref().ok_or_else(|| {
                    format!("is missing: {}{}", parameter.about, parameter.choices())
                }),
            };
            let value = value.map_err(|wrong| {
                format!("parameter {:?} of {} {wrong}", parameter.name, self.name)
            });
            Ok((parameter.name.as_str(), value?))
        };
        self.parameters.iter().map(value_of).collect()
    }

    fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.parameters
            .iter()
            .find(|parameter| parameter.name == name)
    }

    fn codes(&self) -> String {
        let codes: Vec<_> = self
            .regions
            .iter()
            .map(|region| region.code.as_str())
            .collect();
        codes.join(", ")
    }
}

impl Parameter {
    /// Checks a value, which becomes a part of a URL or a path without escaping.
    fn check(&self, value: &str) -> Result<(), String> {
        if !self.values.is_empty() {
            if self.values.iter().any(|known| known == value) {
                return Ok(());
            }
            return Err(format!("has the invalid value {value:?}{}", self.choices()));
        }
        let is_plain = value.starts_with(|c: char| c.is_ascii_alphanumeric())
            && value
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-'));
        if is_plain {
            return Ok(());
        }
        Err(format!(
            "has the invalid value {value:?}; use letters, digits, `.`, `_`, `:` and `-`, and start with a \
             letter or a digit"
        ))
    }

    fn choices(&self) -> String {
        match self.values[..] {
            [] => String::new(),
            _ => format!("; use one of {}", quoted(&self.values)),
        }
    }
}

/// Returns quoted values, such as `"a", "b, c"`, since values may contain commas.
fn quoted(values: &[String]) -> String {
    let quoted: Vec<_> = values.iter().map(|value| format!("{value:?}")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests;
