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

/// The configuration keys of a source that describe the format of its list, in display order.
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

/// The configuration keys that a `source` table of the catalogue may have, in display order.
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

/// An entry of the built-in catalogue: a vendor's address list, complete except for the parameters and regions that a
/// source sets.
#[derive(Clone, Debug)]
pub struct Provider {
    /// The name of the provider, which a source sets as `provider = "…"`.
    pub name: String,
    /// The vendor's own name for the list.
    pub title: String,
    /// A description of the list: which side opens the connections, and their purpose.
    pub about: String,
    /// The direction of the connections between this host and the addresses of the list.
    pub direction: Direction,
    /// The origin of the provider's prefixes: fetched from the vendor, or built into this program.
    pub list: List,
    /// The URL of the vendor's documentation of the list, or of the list itself if there is no documentation.
    pub documented: String,
    /// The day on which this catalogue entry was last compared with its evidence.
    pub checked: Date,
    /// The number of prefixes that the list had when it was observed, and the date of that observation.
    pub expected: String,
    /// The kind of evidence on which this catalogue entry is based.
    pub evidence: Evidence,
    /// A warning that the operator gets whenever a source uses the provider; `None` if there is nothing to warn about.
    pub warning: Option<String>,
    regions: Vec<Region>,
    /// The parameters that a source may set for the provider, sorted by name.
    parameters: Vec<Parameter>,
    /// The built-in prefixes that do not depend on the chosen regions; for a provider without regions, all its built-in
    /// prefixes.
    common: Vec<IpNet>,
}

/// The kind of evidence on which a catalogue entry is based.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// A copy of the list that the vendor served was parsed.
    Payload,
    /// The vendor's documentation of the list was read.
    Documentation,
    /// A third party's record of the response headers of the list was read, without the body.
    Headers,
    /// The evidence is public programs of third parties that use the list.
    #[serde(rename = "third parties")]
    ThirdParties,
}

/// The origin of a provider's prefixes.
#[derive(Clone, Debug)]
pub enum List {
    /// The list is fetched from the vendor. The table is the configuration of the source, with placeholders such as
    /// `{region}`.
    Fetched(Table),
    /// The list is built into this program, as published on the day of the last check.
    BuiltIn,
}

/// A part of a provider's list that a source can select, such as a cloud region or a data centre.
#[derive(Clone, Debug)]
pub struct Region {
    /// The code with which a source selects the region, in `regions = ["…"]`.
    pub code: String,
    /// Other names of the region in the vendor's documents, which select the region as its code does.
    pub aliases: Vec<String>,
    /// Whether the region is used only if the configuration names it; if false, the region is one of the default
    /// regions.
    pub only_if_named: bool,
    /// The text that replaces `{region}` in the provider's source table.
    pub value: String,
    /// The built-in prefixes of the region.
    pub prefixes: Vec<IpNet>,
}

/// A parameter of a provider, whose value replaces `{name}` in the provider's source table.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The name of the parameter.
    pub name: String,
    /// The description of the parameter, for the operator.
    pub about: String,
    /// The value of the parameter if the configuration does not set it; if `None`, the configuration must set it.
    pub default: Option<String>,
    /// The values that the parameter may have; empty if any value is allowed that cannot change the structure of a URL
    /// or a path.
    pub values: Vec<String>,
}

/// Returns all providers of the built-in catalogue, sorted by name.
pub fn all() -> &'static [Provider] {
    static PROVIDERS: LazyLock<Vec<Provider>> =
        LazyLock::new(|| written::parse(written::TEXT).expect("a test parses the catalogue"));
    &PROVIDERS
}

/// Returns the provider with the name `name`, or `None` if the catalogue has no such provider.
pub fn find(name: &str) -> Option<&'static Provider> {
    all().iter().find(|provider| provider.name == name)
}

impl Provider {
    /// Returns the regions of the provider; empty if the provider has none.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Returns the provider's region whose code or alias is `code`, ignoring case, or `None` if the provider has no
    /// such region.
    pub fn region(&self, code: &str) -> Option<&Region> {
        let is_named = |name: &str| name.eq_ignore_ascii_case(code);
        self.regions
            .iter()
            .find(|region| is_named(&region.code) || region.aliases.iter().any(|a| is_named(a)))
    }

    /// Returns the provider's built-in prefixes that do not depend on the chosen regions.
    pub fn common_prefixes(&self) -> &[IpNet] {
        &self.common
    }

    /// Returns the parameters of the provider, sorted by name.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Returns whether the provider's name, title or description contains `word`, ignoring case.
    pub fn matches(&self, word: &str) -> bool {
        let word = word.to_lowercase();
        [&self.name, &self.title, &self.about]
            .iter()
            .any(|text| text.to_lowercase().contains(&word))
    }

    /// Returns the provider's source table, with the placeholders replaced for `regions` (the default regions if it is
    /// empty) and `parameters`.
    ///
    /// # Errors
    /// The provider's list is built in, the provider requires `regions`, or a parameter is missing, unknown or invalid.
    /// The error is a message for the operator.
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
                "provider {name} requires `regions`; set it to one or more of {}",
                self.codes()
            ));
        }
        let mut table = expand::table(source, &regions, &values);
        if are_named {
            expand::split_page(&mut table, source, &regions, &values);
        }
        Ok(table)
    }

    /// Returns the provider's built-in prefixes for `regions` (the default regions if it is empty), sorted and
    /// distinct.
    pub fn prefixes(&self, regions: &[&Region]) -> Vec<IpNet> {
        let regions = self.chosen(regions);
        let of_regions = regions.iter().flat_map(|region| &region.prefixes);
        let mut prefixes: Vec<_> = self.common.iter().chain(of_regions).copied().collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        prefixes
    }

    /// Returns the regions in `named` without duplicates, or the provider's default regions if `named` is empty.
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

    /// Returns the value of each parameter by its name: the value in `given`, or the default. The error is a message
    /// for the operator.
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
    /// Checks that `value` is allowed for this parameter; a value is inserted into a URL or a path without escaping.
    /// The error is the predicate of a message for the operator.
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

/// Returns `values` for a message, each in quotes since a value may contain commas: `"a", "b, c"`.
fn quoted(values: &[String]) -> String {
    let quoted: Vec<_> = values.iter().map(|value| format!("{value:?}")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests;
