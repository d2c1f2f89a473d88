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
    check_target("ip/112", Ok(Target::Protocol(112)));
    check_target("ip/1", Ok(Target::Protocol(1)));
    check_target("ip/6", Err("is a protocol with ports"));
    check_target("ip/999", Err("is not an IP protocol"));
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
    match_id: 0,
    service: 0,
};

fn dropped_by(service: u32) -> Decision {
    Decision {
        verdict: Verdict::Drop,
        reason: Reason::NotAllowed,
        match_id: 0,
        service,
    }
}

#[track_caller]
fn check_rows(decide: impl Fn(Target) -> Decision, expected: &[(Decision, &[&str])]) {
    let source = "192.0.2.1".parse().expect("an address");
    let found = rows(Target::all(source).map(|target| (target, decide(target))));
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

/// A protocol with another decision than most is listed by number; IGMP, which passes under every policy, is not listed.
#[test]
fn protocols_are_other_but_for_those_that_a_service_names() {
    let kept = Decision {
        reason: Reason::Multicast,
        ..NOT_COVERED
    };
    check_rows(
        |target| match target {
            Target::Protocol(2) => kept,
            Target::Protocol(50 | 112) => dropped_by(1),
            _ => NOT_COVERED,
        },
        &[
            (dropped_by(1), &["ip/50", "ip/112"]),
            (
                NOT_COVERED,
                &[
                    "tcp/0-65535",
                    "udp/0-65535",
                    "sctp/0-65535",
                    "icmp",
                    "other",
                ],
            ),
        ],
    );
    check_rows(
        |target| {
            if target == Target::Protocol(2) {
                kept
            } else {
                NOT_COVERED
            }
        },
        &[(NOT_COVERED, &["any"])],
    );
    let one = rows([(Target::Protocol(112), dropped_by(1))]);
    assert_eq!(one[0].ports, ["ip/112"]);
}

/// Of the numbers of IPv6's extension headers no packet of IPv6 is.
#[test]
fn protocols_that_an_address_can_send() {
    let sends = |source: &str, protocol| {
        let source = source.parse().expect("an address");
        Target::protocols(source).any(|target| target == Target::Protocol(protocol))
    };
    for (protocol, by_v4, by_v6) in [
        (51, true, false),
        (44, true, false),
        (0, true, false),
        (47, true, true),
        (255, true, true),
        (6, false, false),
        (58, false, false),
    ] {
        assert_eq!(sends("192.0.2.1", protocol), by_v4, "{protocol}");
        assert_eq!(sends("2001:db8::1", protocol), by_v6, "{protocol}");
    }
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
