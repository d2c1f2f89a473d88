//! Providers: vendors whose addresses are known here, so that a configuration needs only a name.
//!
//! Invariants: names are unique and in order; every entry says where its vendor documents it, on
//! which day somebody last looked, what that rests on, and who calls whom; nothing that an operator
//! writes can change what an entry does but by the values that the entry asks for. The entries are data,
//! in `catalogue/providers.toml`: a vendor is a table there and no code. Fetches nothing and knows no
//! feed: an entry is turned into the source table that a configuration would have held.

mod configuration;
mod expand;
mod written;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use ipnet::IpNet;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::policy::Direction;

pub(crate) use configuration::comment;

/// The keys of a source that state how its list is read, in the order in which they are shown.
pub(crate) const FORMAT_KEYS: &[&str] = &[
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

/// The keys that a `source` of the catalogue may have, in the order in which they are shown.
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

/// A catalogued source with everything filled in but its parameters and regions.
#[derive(Clone, Debug)]
pub struct Provider {
    /// What `provider = "…"` says.
    pub name: String,
    /// The vendor's own name for the thing.
    pub title: String,
    /// Who calls whom, and what for.
    pub about: String,
    /// Whether the addresses call this host or are called by it.
    pub direction: Direction,
    /// Where the prefixes come from.
    pub list: List,
    /// The vendor's page about the list, or the list itself where no page is known.
    pub documented: String,
    /// The day on which this entry was last compared with what it rests on.
    pub checked: Date,
    /// How many prefixes were seen, and when.
    pub expected: String,
    /// What the entry rests on.
    pub evidence: Evidence,
    /// What the operator should know whenever this is used.
    pub warning: Option<String>,
    regions: Vec<Region>,
    parameters: Vec<Parameter>,
    /// What is compiled in for every region, or without any.
    common: Vec<IpNet>,
}

/// How sure an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// A list that the vendor served was parsed.
    Payload,
    /// The vendor's own text was read.
    Documentation,
    /// Somebody else's record of the vendor's answer was read, without its content.
    Headers,
    /// Public programs that use the list were read.
    #[serde(rename = "third parties")]
    ThirdParties,
}

/// Where a provider's prefixes come from.
#[derive(Clone, Debug)]
pub enum List {
    /// From the vendor: a source table of the configuration, with placeholders.
    Fetched(Table),
    /// From this program: what the vendor said on the day it was checked.
    BuiltIn,
}

/// A part of a provider that can be chosen by itself: a region, a data centre.
#[derive(Clone, Debug)]
pub struct Region {
    /// What `regions = ["…"]` says.
    pub code: String,
    /// What the same vendor calls it elsewhere.
    pub aliases: Vec<String>,
    /// Whether it is left out unless it is named.
    pub only_if_named: bool,
    /// What replaces `{region}` in the source table.
    pub value: String,
    /// Its prefixes, if they are compiled in.
    pub prefixes: Vec<IpNet>,
}

/// A value that an entry asks for: `{name}` in its source table stands for it.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its key.
    pub name: String,
    /// What it means.
    pub about: String,
    /// What it is unless the configuration says so; without one, the configuration must.
    pub default: Option<String>,
    /// What it may be; empty is anything that cannot change the meaning of a URL or a path.
    pub values: Vec<String>,
}

/// Every provider, in order of name.
pub fn all() -> &'static [Provider] {
    static PROVIDERS: LazyLock<Vec<Provider>> =
        LazyLock::new(|| written::parse(written::TEXT).expect("a test reads the catalogue"));
    &PROVIDERS
}

/// The provider of that name.
pub fn find(name: &str) -> Option<&'static Provider> {
    all().iter().find(|provider| provider.name == name)
}

impl Provider {
    /// Its regions; none if it cannot be divided.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The region of that code or alias, in capitals or not.
    pub fn region(&self, code: &str) -> Option<&Region> {
        let is_named = |name: &str| name.eq_ignore_ascii_case(code);
        self.regions
            .iter()
            .find(|region| is_named(&region.code) || region.aliases.iter().any(|a| is_named(a)))
    }

    /// The compiled-in prefixes that belong to no region.
    pub fn common_prefixes(&self) -> &[IpNet] {
        &self.common
    }

    /// What it asks for, in order of name.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Whether the word is in its name, its title or what is said about it, in capitals or not.
    pub fn matches(&self, word: &str) -> bool {
        let word = word.to_lowercase();
        [&self.name, &self.title, &self.about]
            .iter()
            .any(|text| text.to_lowercase().contains(&word))
    }

    /// The source table with everything replaced: for these regions, or for all those that need not
    /// be named. Errors say what is missing or wrong and what would be right.
    pub fn table(
        &self,
        regions: &[&Region],
        parameters: &BTreeMap<String, String>,
    ) -> Result<Table, String> {
        let List::Fetched(source) = &self.list else {
            return Err(format!("the list of {} is compiled in", self.name));
        };
        let values = self.values(parameters)?;
        let are_named = !regions.is_empty();
        let regions = self.chosen(regions);
        if regions.is_empty() && !self.regions.is_empty() {
            let name = &self.name;
            return Err(format!("{name} needs `regions`; it has {}", self.codes()));
        }
        let mut table = expand::table(source, &regions, &values);
        if are_named {
            expand::split_page(&mut table, source, &regions, &values);
        }
        Ok(table)
    }

    /// What is compiled in for these regions, or for all those that need not be named. Sorted and
    /// distinct.
    pub fn prefixes(&self, regions: &[&Region]) -> Vec<IpNet> {
        let regions = self.chosen(regions);
        let of_regions = regions.iter().flat_map(|region| &region.prefixes);
        let mut prefixes: Vec<_> = self.common.iter().chain(of_regions).copied().collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        prefixes
    }

    /// The regions that are meant, each once, as they come.
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

    /// Each parameter with what stands for it.
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
                format!(
                    "the parameter {:?} of {} {wrong}",
                    parameter.name, self.name
                )
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
    /// Whether an operator may give it that value, which goes into a URL or a path as it is.
    fn check(&self, value: &str) -> Result<(), String> {
        if !self.values.is_empty() {
            if self.values.iter().any(|known| known == value) {
                return Ok(());
            }
            return Err(format!("cannot be {value:?}{}", self.choices()));
        }
        let is_plain = value.starts_with(|c: char| c.is_ascii_alphanumeric())
            && value
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-'));
        if is_plain {
            return Ok(());
        }
        Err(format!(
            "cannot be {value:?}: write letters, digits, `.`, `_`, `:` and `-`, and begin with a \
             letter or a digit"
        ))
    }

    fn choices(&self) -> String {
        match self.values[..] {
            [] => String::new(),
            _ => format!("; write one of {}", quoted(&self.values)),
        }
    }
}

/// `"a", "b, c"`: values may hold commas.
fn quoted(values: &[String]) -> String {
    let quoted: Vec<_> = values.iter().map(|value| format!("{value:?}")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests;
