//! What can be asked, and how what is decided is told.

use allowlist_common::judge::Decision;
use allowlist_common::verdict::{Reason, Verdict};

use super::*;

#[track_caller]
fn check_target(text: &str, expected: Result<Target, &str>) {
    let found = text.parse::<Target>();
    match expected {
        Ok(target) => {
            assert_eq!(found, Ok(target), "{text}");
            assert_eq!(target.to_string(), text);
        }
        Err(part) => {
            let error = found.expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

#[test]
fn targets() {
    check_target("tcp/443", Ok(Target::Tcp(443)));
    check_target("udp/53", Ok(Target::Udp(53)));
    check_target("sctp/3868", Ok(Target::Sctp(3868)));
    check_target("icmp", Ok(Target::Icmp));
    check_target("other", Ok(Target::Other));
    check_target("udp/5000-5010", Err("write such as \"udp/5000\""));
    check_target("any", Err("\"any\" is every port"));
    check_target("443", Err("is not a port; write \"tcp/443\""));
    check_target("tcp/0", Err("from 1 to 65535"));
}

#[track_caller]
fn check_address(text: &str, expected: Result<(&str, Option<&str>), &str>) {
    let found = text.parse::<Typed>();
    match expected {
        Ok((address, zone)) => {
            let typed = found.unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(typed.address.to_string(), address, "{text}");
            assert_eq!(typed.zone.as_deref(), zone, "{text}");
            assert_eq!(
                typed.instead_of.is_some(),
                text.contains("::ffff:"),
                "{text}"
            );
        }
        Err(part) => {
            let error = found.expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

#[test]
fn addresses() {
    check_address("203.0.113.9", Ok(("203.0.113.9", None)));
    check_address("2001:DB8::9", Ok(("2001:db8::9", None)));
    check_address("[2001:db8::9]", Ok(("2001:db8::9", None)));
    check_address("::ffff:203.0.113.9", Ok(("203.0.113.9", None)));
    check_address("fe80::1%eth0", Ok(("fe80::1", Some("eth0"))));
    check_address("203.0.113.9%eth0", Err("has no zone"));
    check_address("203.0.113.0/24", Err("is a prefix, and one address"));
    check_address("203.0.113.9:443", Err("has a port; write \"203.0.113.9\""));
    check_address(
        "[2001:db8::9]:443",
        Err("has a port; write \"2001:db8::9\""),
    );
    check_address("example.com", Err("is not an address"));
    check_address("203.0.113.256", Err("is not an address"));
    check_address("", Err("is not an address"));
}

const NOT_COVERED: Decision = Decision {
    verdict: Verdict::Pass,
    reason: Reason::Default,
    matched: 0,
    service: 0,
};

fn dropped_by(service: u32) -> Decision {
    Decision {
        verdict: Verdict::Drop,
        reason: Reason::NotAllowed,
        matched: 0,
        service,
    }
}

#[track_caller]
fn check_rows(decide: impl Fn(Target) -> Decision, expected: &[(Decision, &[&str])]) {
    let found = rows(Target::all().map(|target| (target, decide(target))));
    let expected: Vec<Row> = expected
        .iter()
        .map(|(decision, ports)| Row {
            decision: *decision,
            ports: ports.iter().map(|&text| text.to_owned()).collect(),
        })
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn what_is_decided_alike_is_one_row() {
    check_rows(|_| NOT_COVERED, &[(NOT_COVERED, &["any"])]);
    check_rows(
        |target| match target {
            Target::Tcp(443 | 8443..=8450) | Target::Udp(u16::MAX) | Target::Icmp => dropped_by(2),
            Target::Tcp(0) | Target::Sctp(0) => dropped_by(1),
            _ => NOT_COVERED,
        },
        &[
            (dropped_by(1), &["tcp/0", "sctp/0"]),
            (
                dropped_by(2),
                &["tcp/443", "tcp/8443-8450", "udp/65535", "icmp"],
            ),
            (
                NOT_COVERED,
                &[
                    "tcp/1-442",
                    "tcp/444-8442",
                    "tcp/8451-65535",
                    "udp/0-65534",
                    "sctp/1-65535",
                    "other",
                ],
            ),
        ],
    );
}

#[test]
fn a_question_survives_being_sent() {
    let question = Question {
        address: "2001:db8::9".parse().expect("an address"),
        target: Some(Target::Tcp(443)),
        interface: None,
    };
    let text = serde_json::to_string(&question).expect("no map has other keys than strings");
    assert_eq!(
        text,
        r#"{"address":"2001:db8::9","target":"tcp/443","interface":null}"#
    );
    assert_eq!(serde_json::from_str::<Question>(&text).ok(), Some(question));
}
