//! The words, for what the tests with a kernel do not meet: what is held, what is not known, what is not there.

use allowlist_common::abi::Exemptions;
use allowlist_common::judge::Decision;
use allowlist_common::verdict::Reason;
use serde_json::json;

use super::*;
use crate::compile::Names;
use crate::policy::Held;
use crate::record::ServiceRecord;
use crate::report::Report as _;

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn record() -> Record {
    let service = |allow: &[&str]| ServiceRecord {
        ports: vec!["tcp/443".to_owned()],
        interfaces: Vec::new(),
        allow: allow.iter().map(|&name| name.to_owned()).collect(),
    };
    let source = |holds: Vec<Held>| SourceRecord {
        origin: "https://vendor.example/".to_owned(),
        regions: vec!["EU".to_owned(), "US".to_owned()],
        prefixes: 2,
        held: holds.len(),
        holds,
        fetched: Some(time("2026-01-01T00:00:00Z")),
        failure: Some("cannot be reached".to_owned()),
        failure_code: Some(crate::error_code::ErrorCode::Unreachable),
        max_age_seconds: None,
        refused: false,
        notes: Vec::new(),
    };
    let held = Held {
        prefix: "192.0.2.0/24".parse().expect("a prefix"),
        until: time("2026-01-02T12:00:00Z"),
        seconds: 0,
    };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    Record {
        before: 0,
        since: None,
        generation: 3,
        names: Names {
            matches: vec![words(&[]), words(&["office", "vendor"])],
            services: vec![words(&[]), words(&["web"])],
        },
        services: [("web", service(&["vendor"])), ("ssh", service(&["office"]))]
            .map(|(name, service)| (name.to_owned(), service))
            .into(),
        sources: [
            ("office", source(Vec::new())),
            ("vendor", source(vec![held])),
        ]
        .map(|(name, source)| (name.to_owned(), source))
        .into(),
    }
}

/// `192.0.2.9` to `tcp/443` on `eth0`, half an hour after its lists were got.
fn explanation(decision: Decision, record: Option<&Record>) -> Explanation {
    let known = record.cloned().unwrap_or_default();
    let row = Row {
        decision,
        ports: vec!["tcp/443".to_owned()],
    };
    let matching = Matching::new("192.0.2.0/24".parse().expect("a prefix"), 1, &known);
    let now = time("2026-01-01T00:30:00Z");
    let behind = matching.sources.iter().map(|name| {
        let behind = Behind {
            record: known.sources.get(name).cloned(),
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
        is_recorded: record.is_some(),
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

/// Whatever pads columns is left out.
#[track_caller]
fn check(explanation: &Explanation, expected: &[&str]) {
    let lines = explanation.text();
    let lines: Vec<String> = lines
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(lines, expected);
}

/// Of the sources that list it, only those that the service allows let it in.
#[test]
fn all_that_is_known() {
    check(
        &explanation(ALLOWED, Some(&record())),
        &[
            "192.0.2.9 to tcp/443 on eth0 passes; generation 3",
            "pass allowed: step 4: web covers it and allows vendor, which lists 192.0.2.9",
            "",
            "prefix reaches listed by held",
            "192.0.2.0/24 ssh web office vendor for vendor until 2026-01-02T12:00:00Z",
            "",
            "source state age last hit regions from",
            "office failing 30m never EU US https://vendor.example/",
            "vendor failing 30m never EU US https://vendor.example/",
        ],
    );
    let document = explanation(ALLOWED, Some(&record())).json();
    assert_eq!(
        document["prefixes"][0]["held_until"],
        json!({"vendor": "2026-01-02T12:00:00Z"})
    );
    assert_eq!(document["sources"]["vendor"]["age_seconds"], 1800);
}

/// The verdict is the kernel's, and needs no words.
#[test]
fn without_a_record() {
    check(
        &explanation(ALLOWED, None),
        &[
            "192.0.2.9 to tcp/443 on eth0 passes; generation 3",
            "pass allowed: step 4: a service that the record does not know covers it and allows a source that the record does not know, which lists 192.0.2.9",
            "",
            "prefix reaches listed by held",
            "192.0.2.0/24 -",
            "",
            "nothing is known of services and sources: no record in this state directory",
        ],
    );
}

#[test]
fn before_the_first_publish() {
    let mut explanation = explanation(Decision::INTERNAL_ERROR, None);
    explanation.prefixes.clear();
    assert!(explanation.is_dropped());
    check(
        &explanation,
        &[
            "192.0.2.9 to tcp/443 on eth0 is dropped; generation 3",
            "drop internal-error: nothing was published yet, so there is nothing that could let anybody in",
            "",
            "no prefix in force holds 192.0.2.9",
        ],
    );
}

#[test]
fn where_nothing_is_filtered() {
    let mut explanation = explanation(ALLOWED, Some(&record()));
    explanation.interfaces.clear();
    assert!(!explanation.is_dropped());
    check(
        &explanation,
        &["192.0.2.9 passes: the filter is on no interface"],
    );
}

#[test]
fn flows_are_told_beside_it() {
    let dropped = Decision {
        verdict: Verdict::Drop,
        reason: Reason::Default,
        match_id: 0,
        service: 0,
    };
    let mut explanation = explanation(dropped, Some(&record()));
    explanation.flows = Some(2);
    let text = explanation.text();
    for expected in [
        "drop default: step 6: no service covers it, and default = \"drop\"\n",
        "\nthis host has 2 flows with 192.0.2.9: what answers them passes all the same\n",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in {text}");
    }
}

#[track_caller]
fn check_asked(wanted: Option<&str>, expected: Result<&[&str], &str>) {
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
    match (asked(attachments.into(), wanted), expected) {
        (Ok(found), Ok(expected)) => {
            let names: Vec<&str> = found.iter().map(|one| &*one.name).collect();
            assert_eq!(names, expected);
        }
        (Err(error), Err(expected)) => assert_eq!(error.to_string(), expected),
        (found, _) => panic!("{wanted:?}: {found:?}"),
    }
}

#[test]
fn which_interfaces_are_asked() {
    check_asked(None, Ok(&["eth0", "eth1"]));
    check_asked(Some("eth1"), Ok(&["eth1"]));
    let of = |name| {
        format!(
            "{name} is not filtered, so what comes in there passes; the filter is on eth0, eth1"
        )
    };
    check_asked(Some("gone"), Err(&of("gone")));
    check_asked(Some("eth7"), Err(&of("eth7")));
}
