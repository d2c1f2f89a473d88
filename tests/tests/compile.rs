//! Compiled tables against the linear model: the longest-prefix match over the tables gives the union of all matching
//! prefixes.

use std::net::{IpAddr, SocketAddr};

use allowlist_common::verdict::{Reason, Verdict};
use allowlist_policy::Rules;
use allowlist_policy::compile::{CompileError, IdTable, compile};
use allowlist_tests::lab::frame;
use allowlist_tests::model::dissect::dissect;
use allowlist_tests::model::host::Host;
use allowlist_tests::model::policy_strategies::{INTERFACES, scenarios};
use allowlist_tests::model::{Model, static_snapshot};
use allowlist_user::config::Config;
use expect_test::expect;
use proptest::prelude::*;

proptest! {
    // Each case compiles full port tables, so the number of cases is limited.
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn agrees_with_the_model(scenario in scenarios(64)) {
        let tables = compile(&scenario.policy, &scenario.snapshot, 1000, &IdTable::default()).expect("a small policy");
        let mut host = Host::new(&tables, &scenario.rules, &INTERFACES).in_mode(scenario.mode);
        let mut model = Model::new(&scenario.policy, &scenario.snapshot, &scenario.rules).in_mode(scenario.mode);
        for moment in &scenario.traffic {
            let facts = dissect(&moment.frame);
            if moment.is_sent {
                host.send(moment.interface, &moment.frame);
                model.send(moment.interface, facts);
                continue;
            }
            let decision = host.receive(moment.interface, &moment.frame);
            let expected = model.receive(moment.interface, &facts);
            prop_assert_eq!((decision.verdict, decision.reason), expected, "{:?}, {:?}", moment, facts);
            prop_assert_eq!(decision.match_id != 0, expected == (Verdict::Pass, Reason::Allowed));
        }
    }

    /// The order of configuration and fetching does not affect the result.
    #[test]
    fn order_does_not_matter(scenario in scenarios(1)) {
        let mut turned = scenario.snapshot.clone();
        for feed in turned.values_mut().map(std::sync::Arc::make_mut) {
            feed.prefixes.reverse();
        }
        let compiled = |snapshot| compile(&scenario.policy, snapshot, 1000, &IdTable::default()).expect("a small policy");
        let (a, b) = (compiled(&scenario.snapshot), compiled(&turned));
        prop_assert_eq!(a.v4, b.v4);
        prop_assert_eq!(a.v6, b.v6);
        prop_assert_eq!(a.ids, b.ids);
    }

    /// The next generation keeps the meaning of match ids.
    #[test]
    fn match_ids_are_stable(scenario in scenarios(1), next in scenarios(1)) {
        let first = compile(&scenario.policy, &scenario.snapshot, 1000, &IdTable::default()).expect("a small policy");
        let second = compile(&next.policy, &next.snapshot, 1000, &first.ids).expect("a small policy");
        let known = first.ids.matches.len();
        prop_assert_eq!(&second.ids.matches[..known], &first.ids.matches[..]);
        let known = first.ids.services.len();
        prop_assert_eq!(&second.ids.services[..known], &first.ids.services[..]);
    }
}

fn from(source: IpAddr) -> SocketAddr {
    SocketAddr::new(source, 40_000)
}

/// Returns the address of the host in the same family.
fn to(source: IpAddr, port: u16) -> SocketAddr {
    let host = if source.is_ipv4() {
        "198.51.100.1"
    } else {
        "2001:db8:ffff::1"
    };
    SocketAddr::new(host.parse().expect("an address"), port)
}

/// Checks which services each address reaches under a configuration.
fn check(config: &str, expected: &[(&str, &[&str])]) {
    let config = Config::parse(config, "test.toml".as_ref()).expect("a configuration");
    let snapshot = static_snapshot(&config.policy);
    let tables = compile(&config.policy, &snapshot, 1000, &IdTable::default()).expect("tables");
    let closed = Rules {
        default: Verdict::Drop,
        ..Rules::default()
    };
    let host = Host::new(&tables, &closed, &["eth0"]);
    for (source, reached) in expected {
        let mut passing = Vec::new();
        let source: IpAddr = source.parse().expect("an address");
        for (name, frame) in [
            ("ssh", frame::tcp_syn(from(source), to(source, 22))),
            ("https", frame::tcp_syn(from(source), to(source, 443))),
            ("dns", frame::udp(from(source), to(source, 53), &[])),
            (
                "gre",
                frame::packet(source, to(source, 0).ip(), 47, &[0; 8]),
            ),
        ] {
            if host.receive("eth0", &frame).verdict == Verdict::Pass {
                passing.push(name);
            }
        }
        assert_eq!(passing, *reached, "{source}");
    }
}

#[test]
fn narrow_prefixes_include_grants_of_wider_ones() {
    check(
        r#"
        [services.ssh]
        ports = ["tcp/22"]
        allow = ["wide"]
        [services.https]
        ports = ["tcp/443"]
        allow = ["narrow"]
        [services.dns]
        ports = ["udp/53"]
        allow = ["host"]
        [sources.wide]
        prefixes = ["10.0.0.0/8", "2001:db8::/32"]
        [sources.narrow]
        prefixes = ["10.1.0.0/16", "2001:db8:1::/48"]
        [sources.host]
        prefixes = ["10.1.2.3/32", "2001:db8:1::1/128"]
        "#,
        &[
            ("10.0.0.1", &["ssh"]),
            ("10.1.0.1", &["ssh", "https"]),
            ("10.1.2.2", &["ssh", "https"]),
            ("10.1.2.3", &["ssh", "https", "dns"]),
            ("10.1.2.4", &["ssh", "https"]),
            ("10.2.0.0", &["ssh"]),
            ("9.255.255.255", &[]),
            ("11.0.0.0", &[]),
            ("2001:db8::1", &["ssh"]),
            ("2001:db8:1::", &["ssh", "https"]),
            ("2001:db8:1::1", &["ssh", "https", "dns"]),
            ("2001:db8:2::", &["ssh"]),
            ("2001:db9::", &[]),
        ],
    );
}

#[test]
fn equal_prefixes_of_two_sources_reach_both_services() {
    check(
        r#"
        [services.ssh]
        ports = ["tcp/22"]
        allow = ["a"]
        [services.https]
        ports = ["tcp/443"]
        allow = ["b"]
        [sources.a]
        prefixes = ["192.0.2.0/24"]
        [sources.b]
        prefixes = ["192.0.2.0/24"]
        "#,
        &[("192.0.2.1", &["ssh", "https"]), ("192.0.3.1", &[])],
    );
}

#[test]
fn services_that_share_a_port_allow_the_sources_of_both() {
    check(
        r#"
        [services.admin]
        ports = ["any"]
        allow = ["office"]
        [services.web]
        ports = ["tcp/443"]
        allow = ["vendor"]
        [sources.office]
        prefixes = ["192.0.2.1"]
        [sources.vendor]
        prefixes = ["192.0.2.2"]
        "#,
        &[
            ("192.0.2.1", &["ssh", "https", "dns", "gre"]),
            ("192.0.2.2", &["https"]),
            ("192.0.2.3", &[]),
        ],
    );
}

#[test]
fn too_many_prefixes_are_an_error() {
    let config = Config::parse(
        r#"
        [services.web]
        ports = ["tcp/443"]
        allow = ["a", "b"]
        [sources.a]
        prefixes = ["192.0.2.1", "192.0.2.2"]
        [sources.b]
        prefixes = ["192.0.2.2", "192.0.2.3"]
        "#,
        "test.toml".as_ref(),
    )
    .expect("a configuration");
    let compiled = |limit| {
        compile(
            &config.policy,
            &static_snapshot(&config.policy),
            limit,
            &IdTable::default(),
        )
    };
    assert!(compiled(3).is_ok(), "three distinct prefixes fit three");
    let Err(error) = compiled(2) else {
        panic!("three prefixes fit two");
    };
    assert!(matches!(
        error,
        CompileError::TooManyPrefixes {
            prefixes: 3,
            limit: 2,
            ..
        }
    ));
    expect![[r#"the lists have 3 prefixes, more than max_prefixes = 2; nothing was changed; raise max_prefixes, or remove a source (the largest is "b" with 2)"#]]
        .assert_eq(&error.to_string());
}

#[test]
fn more_than_64_combinations_of_services_are_an_error() {
    // Each range overlaps the next one, so n services make 2n - 1 combinations.
    let config = |services: u16| {
        let service = |place: u16| {
            let first = 1000 + 10 * place;
            let last = first + 14;
            format!("[services.s{place}]\nports = [\"tcp/{first}-{last}\"]\nallow = [\"a\"]\n")
        };
        let text: String = (0..services).map(service).collect();
        let text = text + "[sources.a]\nprefixes = [\"192.0.2.1\"]\n";
        Config::parse(&text, "test.toml".as_ref()).expect("a configuration")
    };
    let compiled = |services| {
        let config = config(services);
        compile(
            &config.policy,
            &static_snapshot(&config.policy),
            10,
            &IdTable::default(),
        )
        .map(drop)
    };
    assert_eq!(compiled(32), Ok(()));
    assert_eq!(
        compiled(33),
        Err(CompileError::TooManyServices { combinations: 65 })
    );
}
