//! The text of explanations in states that the kernel tests do not reach.

use allowlist_common::abi::Exemptions;
use allowlist_common::judge::Decision;
use allowlist_common::verdict::Reason;
use allowlist_policy::GracePrefix;
use allowlist_policy::compile::IdTable;
use expect_test::expect;
use serde_json::json;

use super::*;
use crate::generation_meta::ServiceMeta;
use crate::report::Report as _;

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn meta() -> GenerationMeta {
    let service = |allow: &[&str]| ServiceMeta {
        ports: vec!["tcp/443".to_owned()],
        interfaces: Vec::new(),
        allow: allow.iter().map(|&name| name.to_owned()).collect(),
    };
    let source = |grace_prefixes: Vec<GracePrefix>| SourceMeta {
        origin: "https://vendor.example/".to_owned(),
        regions: vec!["EU".to_owned(), "US".to_owned()],
        prefixes: 2,
        grace: grace_prefixes.len(),
        grace_prefixes,
        fetched: Some(time("2026-01-01T00:00:00Z")),
        failure: Some("cannot be reached".to_owned()),
        failure_code: Some(allowlist_policy::error_code::ErrorCode::Unreachable),
        max_age_seconds: None,
        refused: false,
        notes: Vec::new(),
        names: None,
    };
    let grace = GracePrefix {
        prefix: "192.0.2.0/24".parse().expect("a prefix"),
        until: time("2026-01-02T12:00:00Z"),
        seconds: 0,
    };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    GenerationMeta {
        since: None,
        ids: IdTable {
            matches: vec![words(&[]), words(&["office", "vendor"])],
            services: vec![words(&[]), words(&["web"])],
            names: Vec::new(),
        },
        egress_ids: IdTable::default(),
        egress_rules: std::collections::BTreeMap::new(),
        services: [("web", service(&["vendor"])), ("ssh", service(&["office"]))]
            .map(|(name, service)| (name.to_owned(), service))
            .into(),
        sources: [
            ("office", source(Vec::new())),
            ("vendor", source(vec![grace])),
        ]
        .map(|(name, source)| (name.to_owned(), source))
        .into(),
    }
}

/// `192.0.2.9` to `tcp/443` on `eth0`, half an hour after its lists were fetched.
fn explanation(decision: Decision, meta: Option<&GenerationMeta>) -> Explanation {
    let known = meta.cloned().unwrap_or_default();
    let row = Row {
        decision,
        ports: vec!["tcp/443".to_owned()],
    };
    let matching = Matching::new("192.0.2.0/24".parse().expect("a prefix"), 1, &known);
    let now = time("2026-01-01T00:30:00Z");
    let behind = matching.sources.iter().map(|name| {
        let behind = Behind {
            meta: known.sources.get(name).cloned(),
            traffic: Traffic::default(),
        };
        (name.clone(), behind)
    });
    Explanation {
        question: Question {
            address: "192.0.2.9".parse().expect("an address"),
            target: Some(Target::Tcp(443)),
            interface: None,
        },
        control: Control {
            generation: 3,
            default_verdict: Verdict::Drop,
            exemptions: Exemptions::ALL,
            ..Control::NONE
        },
        interfaces: vec![(vec!["eth0".to_owned()], vec![Reached::new(row, &known)])],
        sources: behind.collect(),
        prefixes: vec![matching],
        flows: None,
        has_meta: meta.is_some(),
        now,
        epoch: Epoch::new(now, std::time::Duration::ZERO),
    }
}

const ALLOWED: Decision = Decision {
    verdict: Verdict::Pass,
    reason: Reason::Allowed,
    match_id: 1,
    service: 1,
};

/// Of the sources that list the address, the text names those that the service allows.
#[test]
fn with_names() {
    expect![[r#"
        192.0.2.9 to tcp/443 on eth0 passes; generation 3
        pass allowed: step 4: web covers such packets and allows vendor, which lists 192.0.2.9

        prefix        reaches  listed by      grace period
        192.0.2.0/24  ssh web  office vendor  for vendor until 2026-01-02T12:00:00Z

        source  state    age  last hit  regions  from
        office  failing  30m     never  EU US    https://vendor.example/
        vendor  failing  30m     never  EU US    https://vendor.example/
    "#]]
    .assert_eq(&explanation(ALLOWED, Some(&meta())).text());
    let document = explanation(ALLOWED, Some(&meta())).json();
    assert_eq!(
        document["prefixes"][0]["grace_until"],
        json!({"vendor": "2026-01-02T12:00:00Z"})
    );
    assert_eq!(document["sources"]["vendor"]["age_seconds"], 1800);
}

/// The verdict needs no names.
#[test]
fn without_names() {
    expect![[r#"
        192.0.2.9 to tcp/443 on eth0 passes; generation 3
        pass allowed: step 4: a service whose name is unknown covers such packets and allows a source whose name is unknown, which lists 192.0.2.9

        prefix        reaches  listed by  grace period
        192.0.2.0/24                      -

        the services and sources are unknown: the kernel has no readable names for the active generation
    "#]].assert_eq(&explanation(ALLOWED, None).text());
}

#[test]
fn before_the_first_publish() {
    let mut explanation = explanation(Decision::INTERNAL_ERROR, None);
    explanation.prefixes.clear();
    assert!(explanation.is_dropped());
    expect![[r#"
        192.0.2.9 to tcp/443 on eth0 is dropped; generation 3
        drop internal-error: no generation is published yet, so no source is allowed

        no active prefix contains 192.0.2.9
    "#]]
    .assert_eq(&explanation.text());
}

#[test]
fn without_interfaces() {
    let mut explanation = explanation(ALLOWED, Some(&meta()));
    explanation.interfaces.clear();
    assert!(!explanation.is_dropped());
    expect![[r#"
        192.0.2.9 passes: the filter is attached to no interface
    "#]]
    .assert_eq(&explanation.text());
}

#[test]
fn open_flows_are_reported() {
    let dropped = Decision {
        verdict: Verdict::Drop,
        reason: Reason::Default,
        match_id: 0,
        service: 0,
    };
    let mut explanation = explanation(dropped, Some(&meta()));
    explanation.flows = Some(2);
    expect![[r#"
        192.0.2.9 to tcp/443 on eth0 is dropped; generation 3
        drop default: step 6: no service covers such packets, and default = "drop"

        this host tracks 2 flows with 192.0.2.9: answers to these flows pass

        prefix        reaches  listed by      grace period
        192.0.2.0/24  ssh web  office vendor  for vendor until 2026-01-02T12:00:00Z

        source  state    age  last hit  regions  from
        office  failing  30m     never  EU US    https://vendor.example/
        vendor  failing  30m     never  EU US    https://vendor.example/
    "#]]
    .assert_eq(&explanation.text());
}

fn asked_of(wanted: Option<&str>) -> Result<Vec<String>, String> {
    let attachment = |name: &str, attached| Attachment {
        name: name.to_owned(),
        mode: None,
        attached,
        namespace: None,
        is_elsewhere: false,
        index: None,
        slot: 0,
    };
    let attachments = ["eth0", "eth1", "gone"].map(|name| attachment(name, name != "gone"));
    let found = asked(attachments.into(), wanted).map_err(|error| error.to_string())?;
    Ok(found.into_iter().map(|one| one.name).collect())
}

#[test]
fn which_interfaces_are_queried() {
    let names = |names: &[&str]| Ok(names.iter().map(|&name| name.to_owned()).collect());
    assert_eq!(asked_of(None), names(&["eth0", "eth1"]));
    assert_eq!(asked_of(Some("eth1")), names(&["eth1"]));
    let errors = ["gone", "eth7"].map(|name| asked_of(Some(name)).expect_err(name));
    expect![[r#"
        gone is not filtered, so every packet that it receives passes; the filter is on eth0, eth1
        eth7 is not filtered, so every packet that it receives passes; the filter is on eth0, eth1"#]]
    .assert_eq(&errors.join("\n"));
}
