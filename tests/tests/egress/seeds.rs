//! The destinations of the vendors' documents, by name: PagerDuty's Events API, REST API and application, and Workato's
//! on-premise gateways, as the catalogue has them.

use allowlist_tests::lab::{Cgroup, Testbed, eventually};
use allowlist_tests::require_root;
use serde_json::{Value, json};

use super::names::{SERVERS, resolve, resolvers, serve, start_unpolled};
use super::*;

/// The sources, each with the rule that uses it; names are not resolved by polling in time.
const SOURCES: [(&str, &str); 5] = [
    ("events", "provider = \"pagerduty-events-hosts\""),
    ("rest", "provider = \"pagerduty-rest-api-hosts\""),
    ("app", "provider = \"pagerduty-app-hosts\""),
    (
        "gateways",
        "provider = \"workato-gateways\"\nregions = [\"US\"]",
    ),
    // The names of agents before version 2.11.
    (
        "older-gateways",
        "names = [\"sg.workato.com\", \"sg1.workato.com\", \"sg2.workato.com\"]",
    ),
];

/// The names of the documents, and an address for each in the tests.
const NAMES: [(&str, &str); 8] = [
    ("events.pagerduty.com", "192.0.2.1"),
    ("api.pagerduty.com", "192.0.2.2"),
    ("app.pagerduty.com", "192.0.2.3"),
    ("sg3.workato.com", "192.0.2.4"),
    ("sg4.workato.com", "192.0.2.5"),
    ("sg.workato.com", "192.0.2.6"),
    ("sg1.workato.com", "192.0.2.7"),
    ("sg2.workato.com", "192.0.2.8"),
];

/// Returns the rules for the sources.
fn rules() -> String {
    let rules = SOURCES.map(|(name, origin)| {
        format!(
            "
[egress.rules.{name}]
to = [\"{name}\"]
ports = [\"tcp/443\", \"udp/443\"]

[sources.{name}]
{origin}
resolvers = [\"127.0.0.1:9\"]
timeout = \"200ms\"
"
        )
    });
    rules.concat()
}

/// Returns the answers of a name server: each name with the last byte of its address increased by `by`.
fn table(by: u8) -> Value {
    let mut table = json!({ "telemetry.example.com": { "records": [["A", 1, "192.0.2.250"]] } });
    for (name, address) in NAMES {
        let [a, b, c, d] = address
            .parse::<std::net::Ipv4Addr>()
            .expect("it is one")
            .octets();
        let address = std::net::Ipv4Addr::new(a, b, c, d + by);
        table[name] = json!({ "records": [["A", 1, address]] });
    }
    table
}

#[test]
fn vendors_are_reached_by_name_and_their_former_addresses_are_not() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let settings = format!("linger = \"1s\"\n{}{}", resolvers(), rules());
    let _daemon = start_unpolled(&testbed, &cgroup, &settings)?;
    let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
    let before = serve(&testbed.peer, SERVERS[0], &table(0))?;
    let results = resolve(&testbed.host, &cgroup, SERVERS[0], &names)?;
    assert_eq!(results, json!(vec![["ok"]; NAMES.len()]));
    let other = ["telemetry.example.com"];
    let results = resolve(&testbed.host, &cgroup, SERVERS[0], &other)?;
    assert_eq!(results, json!([["EPERM"]]));

    // The vendors move.
    drop(before);
    let _after = serve(&testbed.peer, SERVERS[0], &table(100))?;
    let results = resolve(&testbed.host, &cgroup, SERVERS[0], &names)?;
    assert_eq!(results, json!(vec![["ok"]; NAMES.len()]));
    let former: Vec<_> = NAMES
        .iter()
        .map(|(_, address)| ("udp_connect", *address, 443))
        .collect();
    eventually(|| Ok(call(&testbed.host, &cgroup, &former)? == vec!["EPERM"; NAMES.len()]))
}
