//! The text of explanations in states that the kernel tests do not reach, and hints about names.

use allowlist_common::abi::Refusal;
use allowlist_policy::GracePrefix;
use expect_test::expect;

use super::*;
use crate::generation_meta::RuleMeta;
use crate::report::Report as _;

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn source(patterns: &[&str]) -> SourceMeta {
    SourceMeta {
        origin: "the addresses of names".to_owned(),
        regions: Vec::new(),
        prefixes: 1,
        grace: 0,
        grace_prefixes: Vec::new(),
        fetched: Some(time("2026-01-01T00:00:00Z")),
        failure: None,
        failure_code: None,
        max_age_seconds: None,
        refused: false,
        notes: Vec::new(),
        names: Some(NamesMeta {
            patterns: texts(patterns),
            believes_answers: true,
            allow_special_use: false,
        }),
    }
}

/// The metadata of a policy with one rule for each source of names.
fn meta(sources: &[(&str, &[&str])]) -> GenerationMeta {
    let rule = |source: &str| RuleMeta {
        to: texts(&[source]),
        ports: texts(&["tcp/443"]),
        units: Vec::new(),
    };
    let rules = sources
        .iter()
        .map(|(name, _)| (format!("to-{name}"), rule(name)));
    let sources = sources.iter();
    GenerationMeta {
        egress_rules: rules.collect(),
        sources: sources
            .map(|(name, patterns)| ((*name).to_owned(), source(patterns)))
            .collect(),
        ..GenerationMeta::default()
    }
}

fn decision(verdict: Verdict, reason: EgressReason) -> ReachedCall {
    let decision = EgressDecision {
        verdict,
        reason,
        ..EgressDecision::INTERNAL_ERROR
    };
    ReachedCall {
        row: Row {
            decision,
            ports: texts(&["tcp/443"]),
        },
        covering: Vec::new(),
        rules: Vec::new(),
        sources: Vec::new(),
        prefix: None,
        name: None,
    }
}

fn known(address: &str, reached: ReachedCall) -> KnownAddress {
    KnownAddress {
        address: address.parse().expect("an address"),
        prefixes: Vec::new(),
        answered: Vec::new(),
        polled: Vec::new(),
        is_unlisted: false,
        reached: vec![reached],
    }
}

/// The question about `tcp/443` of a destination, half an hour after the lists of its sources were fetched.
fn explanation(to: &str, meta: &GenerationMeta) -> CallExplanation {
    let to: Destination = to.parse().expect("a destination");
    let listings = to.name().map(|name| listings(name, meta));
    let now = time("2026-01-01T00:30:00Z");
    CallExplanation {
        question: CallQuestion::new(to, "tcp/443".parse().ok(), None).expect("a question"),
        control: Control {
            generation: 3,
            ..Control::NONE
        },
        egress: EgressControl {
            observe: false,
            default_verdict: Verdict::Drop,
            refusal: Refusal::NotPermitted,
        },
        caller: CallingUnit {
            is_judged: true,
            ..CallingUnit::default()
        },
        listings: listings.unwrap_or_default(),
        hint: None,
        addresses: Vec::new(),
        next: Vec::new(),
        is_learnt: true,
        failing_open: Vec::new(),
        units: BTreeMap::new(),
        sources: meta.sources.clone(),
        next_fetch: BTreeMap::new(),
        has_meta: true,
        now,
        uptime: Duration::from_secs(100),
        epoch: Epoch::new(now, Duration::from_secs(100)),
    }
}

#[test]
fn a_polled_address_in_its_grace_period() {
    let meta = meta(&[(
        "vendor",
        &["a.example.com", "b.example.com", "*.c.example.com"],
    )]);
    let mut explanation = explanation("a.example.com", &meta);
    let vendor = explanation
        .sources
        .get_mut("vendor")
        .expect("it is a source");
    vendor.failure = Some("source vendor: no answer".to_owned());
    let allowed = ReachedCall {
        rules: texts(&["to-vendor"]),
        sources: texts(&["vendor"]),
        prefix: "20.0.0.1/32".parse().ok(),
        ..decision(Verdict::Pass, EgressReason::Allowed)
    };
    let refused = decision(Verdict::Drop, EgressReason::ClosedRange);
    let grace = GracePrefix {
        prefix: "20.0.0.1/32".parse().expect("a prefix"),
        until: time("2026-01-01T01:00:00Z"),
        seconds: 0,
    };
    explanation.addresses = vec![
        KnownAddress {
            polled: texts(&["vendor"]),
            prefixes: vec![MatchingPrefix {
                prefix: grace.prefix,
                sources: texts(&["vendor"]),
                rules: texts(&["to-vendor"]),
                grace: vec![("vendor".to_owned(), grace.until)],
            }],
            ..known("20.0.0.1", allowed)
        },
        KnownAddress {
            answered: vec![("a.example.com".to_owned(), Duration::from_secs(160))],
            ..known("10.0.0.1", refused)
        },
    ];
    let next = time("2026-01-01T00:45:00Z");
    explanation.next_fetch = [("vendor".to_owned(), next)].into();
    assert!(explanation.is_refused());
    expect![[r#"
        a.example.com on tcp/443 is refused at 1 of its 2 addresses; generation 3
        for programs in no unit that a rule names

        rule       source  lists          ports    units
        to-vendor  vendor  a.example.com  tcp/443  all programs
        polling failed: source vendor: no answer

        20.0.0.1
            pass allowed: step 6: rule to-vendor allows source vendor, which lists 20.0.0.1/32
            polled by source vendor 30m ago, next in 15m (one list for its 2 names); not found any more, valid until 2026-01-01T01:00:00Z

        10.0.0.1
            refuse closed-range: step 7: no rule for these programs covers the port; the address is in a closed range
            answered by a resolver, valid until 2026-01-01T00:31:00Z (in 60s)
    "#]].assert_eq(&explanation.text());
    let document = explanation.json();
    let answered = &document["addresses"][1]["answered"][0];
    assert_eq!(answered["until"], "2026-01-01T00:31:00Z");
    assert_eq!(answered["seconds_left"], 60);
    let grace = &document["addresses"][0]["prefixes"][0]["grace_until"];
    assert_eq!(grace["vendor"], "2026-01-01T01:00:00Z");
}

#[test]
fn a_source_without_a_list_that_allows_everything() {
    let meta = meta(&[("vendor", &["a.example.com"])]);
    let mut explanation = explanation("a.example.com", &meta);
    explanation.failing_open = texts(&["vendor"]);
    explanation.next = vec![ReachedCall {
        rules: texts(&["to-vendor"]),
        sources: texts(&["vendor"]),
        ..decision(Verdict::Pass, EgressReason::Allowed)
    }];
    assert!(!explanation.is_refused());
    expect![[r#"
        a.example.com on tcp/443 passes; generation 3
        for programs in no unit that a rule names
        no address of a.example.com is known: no resolver's answer with one is still valid, and no polled list has one
        source vendor has no list yet, and at_start = "pass": its rules allow every address

        rule       source  lists          ports    units
        to-vendor  vendor  a.example.com  tcp/443  all programs

        every address that a resolver answers from now on
            pass allowed: step 6: rule to-vendor allows source vendor, which lists every address
    "#]].assert_eq(&explanation.text());
}

#[test]
fn many_addresses_are_counted() {
    let mut explanation = explanation("a.example.com", &meta(&[]));
    let refused = || decision(Verdict::Drop, EgressReason::Default);
    let addresses = (0..=super::words::MAX_SHOWN).map(|n| known(&format!("20.0.0.{n}"), refused()));
    explanation.addresses = addresses.collect();
    let text = explanation.text();
    assert!(!text.contains("20.0.0.20"), "{text}");
    assert!(
        text.ends_with("\n1 further address not shown; --json has all\n"),
        "{text}"
    );
    let all = explanation.json()["addresses"].as_array().map(Vec::len);
    assert_eq!(all, Some(21));
}

/// The verdict needs no names.
#[test]
fn without_names() {
    let mut explanation = explanation("20.0.0.1", &GenerationMeta::default());
    explanation.has_meta = false;
    explanation.addresses = vec![known(
        "20.0.0.1",
        decision(Verdict::Pass, EgressReason::AllowedName),
    )];
    expect![[r#"
        20.0.0.1 on tcp/443 passes; generation 3
        for programs in no unit that a rule names

        pass allowed-name: step 6: a rule whose name is unknown allows a source whose name is unknown, which lists a name that is unknown

        the names of rules and sources are unknown: the kernel has no readable names for the active generation
    "#]].assert_eq(&explanation.text());
}

#[test]
fn a_policy_that_is_attached_nowhere() {
    let mut explanation = explanation("20.0.0.1", &GenerationMeta::default());
    explanation.caller.is_judged = false;
    explanation.addresses = vec![known(
        "20.0.0.1",
        decision(Verdict::Drop, EgressReason::Default),
    )];
    assert!(!explanation.is_refused());
    expect![[r#"
        20.0.0.1 on tcp/443 passes for programs in no unit that a rule names: the egress policy is attached to no cgroup
    "#]].assert_eq(&explanation.text());
}

#[test]
fn rules_that_list_a_name() {
    let meta = meta(&[
        ("exact", &["a.example.com", "*.example.com"]),
        ("other", &["b.example.com"]),
        ("wide", &["*.com"]),
    ]);
    let found = listings("a.example.com", &meta).into_iter();
    let found: Vec<_> = found
        .map(|one| (one.rule, one.source, one.pattern))
        .collect();
    let listing = |source: &str, pattern: &str| {
        (
            format!("to-{source}"),
            source.to_owned(),
            pattern.to_owned(),
        )
    };
    assert_eq!(
        found,
        [listing("exact", "a.example.com"), listing("wide", "*.com")]
    );
}

#[test]
fn names_that_are_probably_meant() {
    let meta = meta(&[
        ("vendor", &["events.example.com", "*.example.net"]),
        ("other", &["api.other.test"]),
    ]);
    let names = [
        "example.net",
        "a.events.example.com",
        "example.com",
        "evnets.example.com",
        "something.entirely.different",
    ];
    let hints = names.map(|name| format!("{name}: {:?}\n", names::hint(name, &meta)));
    expect![[r#"
        example.net: Some("rule to-vendor lists *.example.net, which does not include example.net itself")
        a.events.example.com: Some("rule to-vendor lists events.example.com, which does not include the names below it, as *.events.example.com does")
        example.com: Some("rule to-vendor lists events.example.com, which is below it")
        evnets.example.com: Some("rule to-vendor lists events.example.com; did you mean that?")
        something.entirely.different: None
    "#]].assert_eq(&hints.concat());
}
