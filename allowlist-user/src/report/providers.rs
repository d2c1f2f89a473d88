//! The catalogue: as a table, one entry in full, and as JSON.
//!
//! Invariants: in a pipe, no line of the table is longer than a hundred characters; the JSON has every field of an
//! entry; the text of one entry is TOML.

use allowlist_lists::catalogue::{Evidence, List, Parameter, Provider, Region, comment};
use allowlist_policy::Direction;
use serde_json::{Value, json};

use super::table;

/// The maximum width of the region codes in a row, in columns; the codes that do not fit are counted.
const REGIONS_WIDTH: usize = 11;
/// The mark of a catalogue entry with a warning.
const MARK: &str = "!";

/// Returns these catalogue entries as a table.
pub fn providers_text(providers: &[&Provider]) -> String {
    let mut table = table(&["provider", "direction", "regions", "list", "title"], &[]);
    for provider in providers {
        let mark = provider.warning.as_ref().map_or("", |_| MARK);
        table.add_row([
            format!("{} {mark}", provider.name).trim_end().to_owned(),
            direction(provider.direction).to_owned(),
            regions(provider.regions()),
            list(provider).to_owned(),
            provider.title.clone(),
        ]);
    }
    let mut text = format!("{table}\n");
    if providers.iter().any(|provider| provider.warning.is_some()) {
        text +=
            &format!("{MARK} the provider has a warning: see `allowlist providers show NAME`\n");
    }
    text
}

/// Returns a catalogue entry as a configuration to copy, with comments.
pub fn provider_text(provider: &Provider) -> String {
    let mut text = comment(&format!("{}: {}", provider.name, provider.title));
    text += &comment(&provider.about);
    let towards = match provider.direction {
        Direction::Inbound => "inbound, they connect to this host",
        Direction::Outbound => "outbound, this host connects to them",
        Direction::Any => "any, either end may connect to the other",
    };
    text += &comment(&format!("Direction: {towards}"));
    text += &comment(&format!("Expected: {}", provider.expected));
    text += &comment(&format!("Evidence: {}", evidence(provider.evidence)));
    text + &provider.configuration()
}

/// Returns these catalogue entries as JSON.
pub fn providers_json(providers: &[&Provider]) -> Value {
    let entries: Vec<_> = providers.iter().map(|p| provider_json(p)).collect();
    json!({ "providers": entries })
}

/// Returns a catalogue entry as JSON.
pub fn provider_json(provider: &Provider) -> Value {
    let (source, prefixes) = match &provider.list {
        List::Fetched(source) => (Some(source), None),
        List::BuiltIn => (None, Some(provider.prefixes(&[]))),
    };
    json!({
        "name": provider.name,
        "title": provider.title,
        "about": provider.about,
        "direction": provider.direction,
        "list": list(provider),
        "source": source,
        "prefixes": prefixes,
        "regions": provider.regions().iter().map(region_json).collect::<Vec<_>>(),
        "parameters": provider.parameters().iter().map(parameter_json).collect::<Vec<_>>(),
        "documented": provider.documented,
        "checked": provider.checked,
        "expected": provider.expected,
        "evidence": provider.evidence,
        "warning": provider.warning,
    })
}

fn region_json(region: &Region) -> Value {
    json!({
        "code": region.code,
        "aliases": region.aliases,
        "only_if_named": region.only_if_named,
        "value": region.value,
        "prefixes": region.prefixes,
    })
}

fn parameter_json(parameter: &Parameter) -> Value {
    json!({
        "name": parameter.name,
        "about": parameter.about,
        "default": parameter.default,
        "values": parameter.values,
    })
}

fn regions(regions: &[Region]) -> String {
    let codes: Vec<_> = regions.iter().map(|region| region.code.as_str()).collect();
    let codes = codes.join(" ");
    if codes.len() <= REGIONS_WIDTH {
        codes
    } else {
        format!("{} regions", regions.len())
    }
}

/// Returns the kind of list that the provider publishes, for display.
fn list(provider: &Provider) -> &'static str {
    match &provider.list {
        List::Fetched(source) if source.contains_key("names") => "names",
        List::Fetched(_) => "fetched",
        List::BuiltIn => "compiled in",
    }
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
        Direction::Any => "any",
    }
}

fn evidence(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Payload => "a list that the vendor served was parsed",
        Evidence::Documentation => "the vendor's own text was read",
        Evidence::Headers => "the vendor's answer is on record, without its content",
        Evidence::ThirdParties => "public programs that use the list were read",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use allowlist_lists::catalogue;

    #[test]
    fn the_whole_catalogue_fits_a_hundred_columns() {
        let every: Vec<_> = catalogue::all().iter().collect();
        let text = providers_text(&every);
        // A header, a line for each and the footer: no title is broken in two.
        assert_eq!(text.lines().count(), every.len() + 2, "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }

    #[test]
    fn a_warning_is_marked_in_the_table_and_told_when_shown() {
        let legacy = catalogue::find("pagerduty-webhooks-legacy").expect("is in the catalogue");
        let us = catalogue::find("pagerduty-webhooks-us").expect("is in the catalogue");
        let text = providers_text(&[legacy, us]);
        let names: Vec<_> = text
            .lines()
            .map(|line| line.get(..27).unwrap_or(line))
            .collect();
        assert_eq!(names[1], "pagerduty-webhooks-legacy !");
        assert_eq!(names[2].trim_end(), "pagerduty-webhooks-us");
        assert!(providers_text(&[legacy]).contains("! the provider has a warning"));
        assert!(!providers_text(&[us]).contains('!'));
        assert!(provider_text(legacy).contains("has not updated this list since 2022-05-05"));
    }

    #[test]
    fn what_is_shown_has_every_fact_and_is_toml() {
        for provider in catalogue::all() {
            let text = provider_text(provider);
            let name = &provider.name;
            text.parse::<toml::Table>()
                .unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
            let unwrapped = text.replace("\n# ", " ");
            let facts = [
                &provider.title,
                &provider.about,
                &provider.documented,
                &provider.expected,
                &provider.checked.to_string(),
            ];
            for fact in facts.into_iter().chain(&provider.warning) {
                assert!(unwrapped.contains(fact.as_str()), "{name}: {fact}\n{text}");
            }
        }
    }

    #[test]
    fn the_json_has_every_field() {
        let svix = catalogue::find("svix").expect("is in the catalogue");
        let json = provider_json(svix);
        let keys = json.as_object().expect("is an object").keys();
        assert_eq!(
            keys.collect::<Vec<_>>(),
            [
                "about",
                "checked",
                "direction",
                "documented",
                "evidence",
                "expected",
                "list",
                "name",
                "parameters",
                "prefixes",
                "regions",
                "source",
                "title",
                "warning"
            ]
        );
        assert_eq!(json["source"]["select"][0], "$['{region}'][*]");
        assert_eq!(json["regions"][0]["value"], "us");
        assert_eq!(json["checked"], "2026-11-22");
        let square = provider_json(catalogue::find("square").expect("is in the catalogue"));
        assert_eq!(square["prefixes"].as_array().map(Vec::len), Some(2));
        assert_eq!(square["regions"][1]["only_if_named"], true);
    }
}
