//! Placeholders and their values: tables of valid and of invalid cases.

use std::fmt::Write as _;

use expect_test::{expect, expect_file};

use super::*;

/// A parameter's name and its value.
type Given<'c> = (&'c str, &'c str);

/// A provider with regions and values, a key of its table, and the expected value of this key.
type Case<'c> = (&'c str, &'c [&'c str], &'c [Given<'c>], &'c str, &'c str);

const REPLACED: [Case; 14] = [
    // An array has a string for each region, in the given order, without duplicates.
    (
        "svix",
        &["EU", "us", "eu"],
        &[],
        "select",
        r#"["$['eu'][*]", "$['us'][*]"]"#,
    ),
    (
        "workato-gateways",
        &["EU"],
        &[],
        "names",
        r#"["sg3.eu.workato.com", "sg4.eu.workato.com"]"#,
    ),
    (
        "workato-gateways",
        &[],
        &[],
        "names",
        r#"["sg3.workato.com", "sg3.eu.workato.com", "sg4.workato.com", "sg4.eu.workato.com"]"#,
    ),
    (
        "pagerduty-events-hosts",
        &["US"],
        &[],
        "names",
        r#"["events.pagerduty.com"]"#,
    ),
    // A URL becomes an array, also for one region.
    (
        "intercom",
        &["AU"],
        &[],
        "url",
        r#"["https://static.intercomcdn.com/intercom-ips/au/intercom-ip-ranges.json"]"#,
    ),
    (
        "pagerduty-rest-api",
        &[],
        &[],
        "url",
        r#"["https://developer.pagerduty.com/ip-safelists/rest-api-us-service-region-json", "https://developer.pagerduty.com/ip-safelists/rest-api-eu-service-region-json"]"#,
    ),
    // Values without a region stay.
    (
        "svix",
        &["EU"],
        &[],
        "url",
        r#""https://docs.svix.com/webhook-ips.json""#,
    ),
    // All patterns of a page must match.
    (
        "workato-page",
        &["US", "SANDBOX"],
        &[],
        "page",
        r#"{ region = ["(?i)^US data center$", "(?i)^Developer sandbox$"] }"#,
    ),
    (
        "customer-io",
        &["EU"],
        &[],
        "page",
        r#"{ column = "(?i)^(?:EU) region$" }"#,
    ),
    // Values replace their placeholders; missing values have defaults.
    (
        "zendesk",
        &[],
        &[("subdomain", "acme")],
        "url",
        r#""https://acme.zendesk.com/ips""#,
    ),
    (
        "zendesk",
        &[],
        &[("subdomain", "acme")],
        "select",
        r#"["$.ips.egress['all'][*]"]"#,
    ),
    (
        "github",
        &[],
        &[("key", "web")],
        "select",
        r#"["$['web'][*]"]"#,
    ),
    (
        "new-relic-location",
        &[],
        &[("location", "Montreal, Québec, CA")],
        "select",
        r#"["$['Montreal, Québec, CA'][*]"]"#,
    ),
    (
        "azure",
        &[],
        &[("tag", "Storage.WestEurope")],
        "discover",
        r#""^https://download\\.microsoft\\.com/\\S+/ServiceTags_Public_[0-9]{8}\\.json$""#,
    ),
];

fn parameters(values: &[(&str, &str)]) -> BTreeMap<String, String> {
    let values = values.iter();
    values
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn regions_and_parameters_are_expanded() {
    for (name, regions, values, key, expected) in REPLACED {
        let provider = provider(name);
        let table = provider.table(&chosen(provider, regions), &parameters(values));
        let table = table.unwrap_or_else(|error| panic!("{error}"));
        let expected = format!("value = {expected}")
            .parse::<Table>()
            .expect("is TOML");
        match (&table[key], &expected["value"]) {
            (Value::Table(page), Value::Table(part)) => {
                for (key, value) in part {
                    assert_eq!(page[key], *value, "{name} {regions:?} {key}");
                }
            }
            (found, expected) => assert_eq!(found, expected, "{name} {regions:?} {key}"),
        }
    }
}

#[test]
fn invalid_parameters_are_refused() {
    let cases: [(&str, &[Given]); 16] = [
        ("zendesk", &[]),
        ("okta", &[]),
        ("zendesk", &[("subdomain", "acme.example/x?")]),
        ("zendesk", &[("subdomain", "user@host")]),
        ("zendesk", &[("subdomain", "a#")]),
        ("zendesk", &[("subdomain", "..")]),
        ("zendesk", &[("subdomain", "")]),
        ("zendesk", &[("subdomain", "{list}")]),
        ("okta", &[("cell", "x'] , $['y")]),
        ("aws", &[("service", "S3' || '1'=='1")]),
        ("aws", &[("service", "S3\n")]),
        ("aws", &[("service", "S3"), ("location", ".*")]),
        ("github", &[("key", "ssh_keys")]),
        ("new-relic-location", &[("location", "Dublin")]),
        ("github", &[("list", "hooks")]),
        ("fastly", &[("list", "all")]),
    ];
    let mut errors = String::new();
    for (name, values) in cases {
        let refused = provider(name).table(&[], &parameters(values));
        let error = refused.expect_err(name);
        writeln!(errors, "{name} {values:?}\n    {error}").expect("a string takes any text");
    }
    expect_file!["snapshots/parameters.txt"].assert_eq(&errors);
    // A value with dots and a port does not escape the domain that it is a label of.
    let table = provider("zendesk").table(&[], &parameters(&[("subdomain", "a.b:443")]));
    let table = table.expect("is plain");
    let url = table["url"].as_str().expect("is a string");
    assert!(Url::parse(url).is_err(), "{url}");
}

#[test]
fn a_built_in_list_has_no_table() {
    let refused = provider("workato").table(&[], &BTreeMap::new());
    let error = refused.expect_err("the list has no table");
    expect!["the list of workato is built in"].assert_eq(&error);
}
