//! Targets and addresses of questions, and the rows of answers for all ports.

use allowlist_common::judge::Decision;
use allowlist_common::verdict::{Reason, Verdict};
use expect_test::expect;

use super::*;

#[track_caller]
fn check_target(text: &str, target: Target) {
    assert_eq!(text.parse(), Ok(target), "{text}");
    assert_eq!(target.to_string(), text);
}

/// Returns the errors of texts that are not a `T`, a line each.
#[track_caller]
fn errors<T: FromStr<Err = String> + fmt::Debug, const N: usize>(texts: [&str; N]) -> String {
    let errors = texts.map(|text| text.parse::<T>().expect_err(text));
    errors.join("\n")
}

#[test]
fn targets() {
    check_target("tcp/443", Target::Tcp(443));
    check_target("udp/53", Target::Udp(53));
    check_target("sctp/3868", Target::Sctp(3868));
    check_target("icmp", Target::Icmp);
    check_target("ip/112", Target::Protocol(112));
    check_target("ip/1", Target::Protocol(1));
    check_target("other", Target::Other);
    let invalid = ["ip/6", "ip/999", "udp/5000-5010", "any", "443", "tcp/0"];
    expect![[r#"
        "ip/6" is a protocol with ports; use one port, such as "tcp/443", or omit the port to see all ports
        "999" is not an IP protocol; write its number from 0 to 255, such as "ip/112", or its name, such as "ip/vrrp"
        "udp/5000-5010" is a range; use one port, such as "udp/5000", or omit the port to see all ports
        "any" is not one port; use one, such as "tcp/443", "icmp", "ip/112" or "other" (all other protocols without ports), or omit the port to see all
        "443" is not a port; use the form "tcp/443", "udp/5000-5010", "sctp/3868", "icmp", "ip/112" (an IP protocol) or "any"
        "0" in "tcp/0" is not a port number; write one from 1 to 65535"#]].assert_eq(&errors::<Target, _>(invalid));
}

#[track_caller]
fn check_address(text: &str, address: &str, zone: Option<&str>) {
    let typed: Typed = text
        .parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(typed.address.to_string(), address, "{text}");
    assert_eq!(typed.zone.as_deref(), zone, "{text}");
    assert_eq!(
        typed.instead_of.is_some(),
        text.contains("::ffff:"),
        "{text}"
    );
}

#[test]
fn addresses() {
    check_address("203.0.113.9", "203.0.113.9", None);
    check_address("2001:DB8::9", "2001:db8::9", None);
    check_address("[2001:db8::9]", "2001:db8::9", None);
    check_address("::ffff:203.0.113.9", "203.0.113.9", None);
    check_address("fe80::1%eth0", "fe80::1", Some("eth0"));
    let invalid = [
        "203.0.113.9%eth0",
        "203.0.113.0/24",
        "203.0.113.9:443",
        "[2001:db8::9]:443",
        "example.com",
        "203.0.113.256",
        "",
    ];
    expect![[r#"
        "203.0.113.9%eth0": an IPv4 address has no zone; write "203.0.113.9", and use --iface for the interface
        "203.0.113.0/24" is a prefix; use one address, such as "203.0.113.0"
        "203.0.113.9:443" has a port; write "203.0.113.9", and use --port for the destination port
        "[2001:db8::9]:443" has a port; write "2001:db8::9", and use --port for the destination port
        "example.com" is not an address; write one such as "203.0.113.9" or "2001:db8::9"
        "203.0.113.256" is not an address; write one such as "203.0.113.9" or "2001:db8::9"
        "" is not an address; write one such as "203.0.113.9" or "2001:db8::9""#]].assert_eq(&errors::<Typed, _>(invalid));
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
fn equal_decisions_share_a_row() {
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

/// A protocol with another decision than most is listed by number; IGMP, which passes under every policy, is not
/// listed.
#[test]
fn protocols_with_the_common_decision_are_other() {
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

/// An IPv6 packet cannot have the number of an extension header as its protocol.
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
fn questions_round_trip_as_json() {
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
