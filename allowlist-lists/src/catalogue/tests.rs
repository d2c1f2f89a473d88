//! The rules that all providers of the catalogue follow.
//!
//! `replaced` tests placeholders and invalid values; `tests/tests/catalogue.rs` tests the providers against lists of the
//! vendors' shapes.

use std::collections::{BTreeMap, BTreeSet};

use allowlist_policy::{Origin, Source};
use regex::Regex;
use serde_json_path::JsonPath;
use toml::Value;
use url::Url;

use super::*;
use crate::gate::judge;

mod replaced;

fn provider(name: &str) -> &'static Provider {
    find(name).unwrap_or_else(|| panic!("{name} is in the catalogue"))
}

fn chosen(provider: &'static Provider, codes: &[&str]) -> Vec<&'static Region> {
    let region = |code: &&str| provider.region(code).expect("is a region");
    codes.iter().map(region).collect()
}

/// Returns the parameters that an operator must set for a provider.
fn required(provider: &Provider) -> BTreeMap<String, String> {
    let required = provider.parameters.iter().filter(|p| p.default.is_none());
    required
        .map(|p| {
            let value = p.values.first().map_or("example", String::as_str);
            (p.name.clone(), value.to_owned())
        })
        .collect()
}

/// Collects all strings of a value.
fn strings(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Table(table) => table.values().for_each(|value| strings(value, found)),
        _ => {}
    }
}

/// Returns the names in braces, without the counts of regular expressions.
fn placeholders(text: &str) -> Vec<String> {
    let placeholder = Regex::new(r"\{([a-z_]+)\}").expect("is a regular expression");
    let found = placeholder.captures_iter(text);
    found.map(|captures| captures[1].to_owned()).collect()
}

fn list_of(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(text)) => vec![text.as_str()],
        _ => Vec::new(),
    }
}

#[test]
fn providers_are_sorted_in_the_file() {
    let headings = written::TEXT.lines().filter_map(|line| {
        let name = line.strip_prefix('[')?.strip_suffix(']')?;
        (!name.contains(['.', '['])).then_some(name)
    });
    let names: Vec<_> = all()
        .iter()
        .map(|provider| provider.name.as_str())
        .collect();
    assert_eq!(headings.collect::<Vec<_>>(), names);
    assert!(names.len() >= 100, "{} entries", names.len());
}

#[test]
fn providers_are_documented() {
    for provider in all() {
        let name = &provider.name;
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(name.chars().all(is_name), "{name}");
        for text in [&provider.title, &provider.about, &provider.expected] {
            assert!(!text.is_empty() && !text.ends_with('.'), "{name}: {text:?}");
        }
        let documented = provider.documented.parse::<Url>();
        assert!(
            documented.is_ok_and(|url| url.scheme() == "https"),
            "{name}"
        );
        let codes = provider.regions().iter();
        let codes: Vec<_> = codes
            .flat_map(|region| region.aliases.iter().chain([&region.code]))
            .map(|code| code.to_lowercase())
            .collect();
        let distinct: BTreeSet<_> = codes.iter().collect();
        assert_eq!(distinct.len(), codes.len(), "{name}: {codes:?}");
        for parameter in provider.parameters() {
            // `{region}` is reserved for regions.
            assert_ne!(parameter.name, "region", "{name}");
            assert!(!parameter.about.is_empty(), "{name}");
            if let (Some(default), false) = (&parameter.default, parameter.values.is_empty()) {
                assert!(parameter.values.contains(default), "{name}: {default}");
            }
        }
    }
}

#[test]
fn lists_of_rentable_addresses_have_a_warning() {
    for name in [
        "akamai",
        "aws",
        "aws-cloudfront",
        "azure",
        "cloudflare",
        "cloudflare-jdcloud",
        "digitalocean",
        "exoscale",
        "fastly",
        "gcore-cdn",
        "gcore-cloud",
        "google",
        "google-cloud",
        "imperva",
        "linode",
        "oracle-cloud",
        "vultr",
        "zscaler",
    ] {
        let warning = provider(name).warning.as_deref().unwrap_or_default();
        assert!(warning.contains("other"), "{name}: {warning}");
    }
}

#[test]
fn fetched_providers_are_valid() {
    for provider in all() {
        let List::Fetched(source) = &provider.list else {
            continue;
        };
        let name = &provider.name;
        for key in source.keys() {
            assert!(
                KEYS.concat().contains(&key.as_str()),
                "{name}: there is no key {key:?}"
            );
        }
        assert!(provider.prefixes(&[]).is_empty(), "{name} is one of both");
        check_placeholders(provider, source);
        let table = provider
            .table(&[], &required(provider))
            .unwrap_or_else(|error| panic!("{error}"));
        let mut left = Vec::new();
        strings(&Value::Table(table.clone()), &mut left);
        for text in &left {
            assert_eq!(placeholders(text), [""; 0], "{name}: {text}");
        }
        check_source(name, &table);
    }
}

/// Checks that all placeholders are parameters or the region, and that all parameters and regions are used.
fn check_placeholders(provider: &Provider, source: &Table) {
    let name = &provider.name;
    let mut texts = Vec::new();
    strings(&Value::Table(source.clone()), &mut texts);
    let used: BTreeSet<_> = texts.iter().flat_map(|text| placeholders(text)).collect();
    let parameters = provider.parameters().iter().map(|p| p.name.clone());
    let has_regions = !provider.regions().is_empty();
    let regions = has_regions.then(|| "region".to_owned());
    assert_eq!(used, parameters.chain(regions).collect(), "{name}");
}

fn check_source(name: &str, table: &Table) {
    let urls = list_of(table.get("url"));
    let names = list_of(table.get("names"));
    assert!(
        urls.is_empty() != names.is_empty(),
        "{name}: either url or names"
    );
    for url in &urls {
        let parsed = Url::parse(url).unwrap_or_else(|error| panic!("{name}: {url}: {error}"));
        assert_eq!(parsed.scheme(), "https", "{name}");
    }
    for host in &names {
        let parsed = Url::parse(&format!("https://{host}/"));
        let parsed = parsed.unwrap_or_else(|error| panic!("{name}: {host}: {error}"));
        assert_eq!(parsed.host_str(), Some(*host), "{name}");
    }
    let format = table.get("format").and_then(Value::as_str);
    assert_eq!(
        format.is_some(),
        !urls.is_empty(),
        "{name}: a url has a format"
    );
    let goes_with = |key: &str, formats: &[&str]| {
        let fits = format.is_some_and(|format| formats.contains(&format));
        assert!(
            !table.contains_key(key) || fits,
            "{name}: {key} with {format:?}"
        );
    };
    let formats = ["text", "json", "jsonl", "csv", "html", "markdown"];
    assert!(
        format.is_none_or(|format| formats.contains(&format)),
        "{name}"
    );
    goes_with("select", &["json", "jsonl"]);
    goes_with("column", &["csv"]);
    goes_with("page", &["html", "markdown"]);
    for path in list_of(table.get("select")) {
        JsonPath::parse(path).unwrap_or_else(|error| panic!("{name}: {path}: {error}"));
    }
    for key in ["discover", "unzip"] {
        for regex in list_of(table.get(key)) {
            Regex::new(regex).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    if let Some(page) = table.get("page").and_then(Value::as_table) {
        for (key, value) in page {
            match key.as_str() {
                "section" | "region" | "column" | "exclude_row" => {
                    for regex in list_of(Some(value)) {
                        Regex::new(regex).unwrap_or_else(|error| panic!("{name}: {error}"));
                    }
                }
                "exclude_code" => assert!(value.is_bool(), "{name}"),
                _ => panic!("{name}: a page has no key {key:?}"),
            }
        }
    }
    for key in ["every", "timeout", "grace", "max_age", "ttl_floor"] {
        for duration in list_of(table.get(key)) {
            assert!(humantime::parse_duration(duration).is_ok(), "{name}: {key}");
        }
    }
    if !urls.is_empty() {
        let number = |key: &str| table.get(key).and_then(Value::as_integer);
        let (min, max) = (number("min"), number("max"));
        assert!(min >= Some(1) && min < max, "{name}: {min:?} {max:?}");
    }
    for key in ["min_prefix_len", "max_addresses"] {
        let families = table.get(key).and_then(Value::as_table);
        let states = |family: &str| families.is_some_and(|table| table.contains_key(family));
        assert!(states("v4") && states("v6"), "{name}: {key}");
    }
}

/// Only the largest cloud has a limit as large as the largest cloud.
#[test]
fn built_in_providers_are_valid() {
    for provider in all() {
        let name = &provider.name;
        let is_built_in = matches!(provider.list, List::BuiltIn);
        let every: Vec<_> = provider.regions().iter().collect();
        let prefixes = provider.prefixes(&every);
        assert_eq!(is_built_in, !prefixes.is_empty(), "{name}");
        assert_eq!(
            is_built_in,
            provider.table(&[], &required(provider)).is_err(),
            "{name}"
        );
        if is_built_in {
            let origin = Origin::BuiltIn {
                prefixes: prefixes.clone(),
                checked: provider.checked,
            };
            let judged = judge(&Source::new(name, origin), None, &prefixes, false);
            assert_eq!(judged, Ok(()), "{name}");
        }
    }
}

#[test]
fn built_in_regions_match_the_vendors_pages() {
    let cases: [(&str, &[&str], usize); 21] = [
        ("freshchat", &[], 43),
        ("freshchat", &["US"], 14),
        ("freshchat", &["EU"], 10),
        ("freshchat", &["euc"], 10),
        ("freshchat", &["IN"], 9),
        ("freshchat", &["IN", "IND"], 9),
        ("freshchat", &["AU"], 10),
        ("freshservice", &[], 43),
        ("freshservice", &["US"], 12),
        ("freshservice", &["EUN"], 6),
        ("freshservice", &["EUC"], 6),
        ("freshservice", &["ind"], 6),
        ("freshservice", &["AU"], 7),
        ("freshservice", &["MEC"], 6),
        ("gitlab-com", &[], 2),
        ("square", &[], 2),
        ("square", &["PRODUCTION", "SANDBOX"], 4),
        ("workato", &[], 8 * 3),
        ("workato", &["SANDBOX"], 3),
        ("workato", &["KR"], 3),
        (
            "workato",
            &["US", "EU", "JP", "SG", "AU", "IL", "CN", "SANDBOX"],
            8 * 3,
        ),
    ];
    for (name, regions, expected) in cases {
        let provider = provider(name);
        let prefixes = provider.prefixes(&chosen(provider, regions));
        assert!(
            prefixes.is_sorted_by(|a, b| a < b),
            "{name}: sorted and distinct"
        );
        assert_eq!(prefixes.len(), expected, "{name} {regions:?}");
    }
}

#[test]
fn configurations_of_providers_are_valid() {
    for provider in all() {
        let name = &provider.name;
        let text = provider.configuration();
        let document = text
            .parse::<Table>()
            .unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
        let source = &document["sources"][name.as_str()];
        assert_eq!(source["provider"].as_str(), Some(name.as_str()));
        let allow = list_of(document["services"]["webhooks"].get("allow"));
        assert_eq!(allow, [name.as_str()]);
        let is_outbound = provider.direction == Direction::Outbound;
        assert_eq!(source.get("direction").is_some(), is_outbound, "{name}");
        // Required parameters have valid examples.
        let given = source.get("parameters").and_then(Value::as_table);
        let given = given.into_iter().flatten();
        let given: BTreeMap<_, _> = given
            .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect();
        if matches!(provider.list, List::Fetched(_)) {
            provider
                .table(&[], &given)
                .unwrap_or_else(|error| panic!("{error}\n{text}"));
        }
    }
    assert!(!provider("aws").configuration().contains("\".*\" unless"));
    let text = provider("workato-page").configuration();
    for expected in [
        "# Documented at https://docs.workato.com/en/security/ip-allowlists\n",
        "# Checked on 2026-11-22\n",
        "# Warning: the page's markup is not confirmed",
        "# regions = [\"US\"]\n",
        "#     format = \"html\"\n",
        "SANDBOX (if named)",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn first_providers_exist() {
    let cases: [(&str, Direction, &str); 13] = [
        ("freshchat", Direction::Inbound, "US EU IN AU"),
        ("freshservice", Direction::Inbound, "US EUN EU IN AU ME"),
        (
            "freshservice-page",
            Direction::Inbound,
            "US EUN EU IN AU ME",
        ),
        ("pagerduty-app-hosts", Direction::Outbound, "US EU"),
        ("pagerduty-events-hosts", Direction::Outbound, "US EU"),
        ("pagerduty-rest-api", Direction::Outbound, "US EU"),
        ("pagerduty-rest-api-hosts", Direction::Outbound, "US EU"),
        ("pagerduty-webhooks-eu", Direction::Inbound, ""),
        ("pagerduty-webhooks-legacy", Direction::Inbound, "US EU"),
        ("pagerduty-webhooks-us", Direction::Inbound, ""),
        (
            "workato",
            Direction::Inbound,
            "US EU JP SG AU IL CN KR SANDBOX",
        ),
        ("workato-gateways", Direction::Outbound, "US EU"),
        (
            "workato-page",
            Direction::Inbound,
            "US EU JP SG AU IL CN KR SANDBOX",
        ),
    ];
    for (name, direction, regions) in cases {
        let provider = provider(name);
        assert_eq!(provider.direction, direction, "{name}");
        assert_eq!(provider.codes().replace(", ", " "), regions, "{name}");
    }
    for (word, expected) in [
        ("pagerduty", 7),
        ("WORKATO", 3),
        ("freddy", 1),
        ("recipes", 2),
    ] {
        let found = all().iter().filter(|provider| provider.matches(word));
        assert_eq!(found.count(), expected, "{word}");
    }
}
