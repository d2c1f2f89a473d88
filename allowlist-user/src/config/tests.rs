//! Tests of reading configurations. The texts of all errors and warnings are in the snapshots.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use allowlist_policy::{Engine, Format, Http, Keep};
use expect_test::{ExpectFile, expect, expect_file};
use proptest::prelude::*;

use super::*;

/// A valid configuration, to which each test case adds its own text.
const VALID: &str = r#"
[services.web]
ports = ["tcp/443"]
allow = ["office"]
[sources.office]
prefixes = ["203.0.113.0/24"]
"#;

mod catalogue;
mod egress;
mod mistakes;
mod sources;

fn url(text: &str) -> url::Url {
    text.parse().expect("a URL")
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/allowlist/a.toml"))
}

fn parse_right(text: &str) -> Config {
    parse(text).unwrap_or_else(|error| panic!("{error}"))
}

/// Returns the error of an invalid configuration, without the folder of the file.
#[track_caller]
fn error_of(text: &str) -> String {
    let error = parse(text).expect_err("must be refused").to_string();
    error.replace("/etc/allowlist/", "")
}

/// Compares the errors of invalid configurations with a snapshot, where each follows its indented configuration.
#[track_caller]
fn check_mistakes(texts: impl IntoIterator<Item = String>, snapshot: &ExpectFile) {
    let mut found = String::new();
    for text in texts {
        for line in text.lines() {
            writeln!(found, "    {line}").expect("a string takes any text");
        }
        writeln!(found, "{}\n", error_of(&text)).expect("a string takes any text");
    }
    snapshot.assert_eq(&found);
}

#[test]
fn reads_every_key() {
    let config = parse_right(
        r#"
        interfaces = ["eth0", "eth1"]
        mode = "observe"
        default = "drop"
        return_traffic = "established"
        attach_mode = "generic"
        lookup = "lpm-trie"
        max_prefixes = 1_000_000
        max_flows = 2048

        [keep]
        dhcp = false
        arp = true

        [services.webhooks]
        ports = ["tcp/443", "udp/5000-5010", "sctp/3868", "icmp", "any"]
        interfaces = ["eth1"]
        allow = ["pagerduty", "workato", "mirror", "list", "office"]

        [sources.pagerduty]
        provider = "pagerduty-webhooks-eu"
        every = "15m"

        [sources.workato]
        provider = "workato"
        regions = ["EU", "kr"]

        [sources.mirror]
        provider = "pagerduty-webhooks-legacy"
        url = "http://localhost:8080/webhook_ips"

        [sources.list]
        url = "https://me:secret@example.com/list?all"
        format = "json"
        every = "1day"
        timeout = "5s"
        max_size = "512KiB"
        ca_file = "ca.pem"

        [sources.office]
        file = "/srv/office.txt"
        "#,
    );
    assert_eq!(config.interfaces, ["eth0", "eth1"]);
    assert_eq!(config.mode, Mode::Observe);
    assert_eq!(
        config.rules,
        Rules {
            default: Verdict::Drop,
            return_traffic: ReturnTraffic::Established,
            keep: Keep {
                dhcp: false,
                ..Keep::ALL
            },
            lookup: Engine::LpmTrie,
        }
    );
    assert_eq!(config.attach, AttachModeRequest::Generic);
    assert_eq!((config.max_prefixes, config.max_flows), (1_000_000, 2048));

    let [service] = &config.policy.services[..] else {
        panic!("{:?}", config.policy)
    };
    assert_eq!(service.name, "webhooks");
    assert_eq!(
        service.ports,
        [
            Ports::Tcp(443..=443),
            Ports::Udp(5000..=5010),
            Ports::Sctp(3868..=3868),
            Ports::Icmp,
            Ports::Any
        ]
    );
    assert_eq!(service.interfaces, ["eth1"]);
    assert_eq!(
        service.allow,
        ["pagerduty", "workato", "mirror", "list", "office"]
    );

    check_sources(&config.policy.sources);
}

/// Checks the sources of the configuration in `reads_every_key`.
fn check_sources(sources: &[Source]) {
    let names: Vec<_> = sources.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, ["list", "mirror", "office", "pagerduty", "workato"]);
    let [list, mirror, office, pagerduty, workato] = sources else {
        panic!("{names:?}")
    };
    assert_eq!(list.every, Duration::from_hours(24));
    assert_eq!(
        list.origin,
        Origin::Http(Http {
            ca_file: Some("/etc/allowlist/ca.pem".into()),
            timeout: Duration::from_secs(5),
            max_bytes: 512 << 10,
            ..Http::new(
                vec![url("https://me:secret@example.com/list?all")],
                Format::json_array()
            )
        })
    );
    assert_eq!(
        mirror.origin,
        Origin::Http(Http::new(
            vec![url("http://localhost:8080/webhook_ips")],
            Format::json_array()
        ))
    );
    assert!(mirror.warning.is_some());
    let path = "/srv/office.txt".into();
    let format = Format::Text;
    assert_eq!(office.origin, Origin::File { path, format });
    assert_eq!(pagerduty.provider.as_deref(), Some("pagerduty-webhooks-eu"));
    assert_eq!(pagerduty.every, Duration::from_mins(15));
    let Origin::BuiltIn { prefixes, .. } = &workato.origin else {
        panic!("{workato:?}")
    };
    assert_eq!(prefixes.len(), 6);
}

#[test]
fn defaults() {
    let config = parse_right(VALID);
    assert_eq!(config.interfaces, [""; 0]);
    assert_eq!(
        (config.mode, config.rules),
        (
            Mode::Enforce,
            Rules {
                default: Verdict::Pass,
                return_traffic: ReturnTraffic::Track,
                keep: Keep::ALL,
                lookup: Engine::RangeTable,
            }
        )
    );
    assert_eq!(
        (config.attach, config.max_prefixes, config.max_flows),
        (AttachModeRequest::Auto, 250_000, 65_536)
    );
    assert_eq!(config.policy.sources[0].every, Duration::from_hours(1));
    assert_eq!(parse_right("").policy, Policy::default());
}

#[test]
fn static_prefixes_may_be_addresses_wide_or_repeated() {
    let config = parse_right(
        r#"
        [sources.office]
        prefixes = ["::/0", "203.0.113.9", "2001:db8::1", "0.0.0.0/0", "203.0.113.9/32"]
        "#,
    );
    let Origin::Prefixes(prefixes) = &config.policy.sources[0].origin else {
        panic!("{config:?}")
    };
    let prefixes: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(
        prefixes,
        ["0.0.0.0/0", "203.0.113.9/32", "::/0", "2001:db8::1/128"]
    );
}

#[test]
fn invalid_names() {
    let long = "x".repeat(64);
    let names = ["Office", "\"the office\"", "\"../../etc\"", "\"\"", &long];
    check_mistakes(
        names.map(|name| format!("[sources.{name}]\nprefixes = [\"192.0.2.1\"]")),
        &expect_file!["tests/snapshots/mistakes-names.txt"],
    );
}

#[test]
fn reports_every_mistake_in_the_order_of_the_text() {
    let text = "mode = \"off\"\n# größer\n[services.ssh]\nallow = [\"vpn\"]\n[sources.a]\nprefixes = [ \"x\", \"y\" ]\n";
    check_mistakes(
        [text.to_owned()],
        &expect_file!["tests/snapshots/mistakes-order.txt"],
    );
}

#[test]
fn columns_count_characters() {
    let error = error_of("sources.a = { file = \"größer\", mode = 1 }");
    assert!(
        error.starts_with("a.toml:1:32: sources.a.mode: "),
        "{error}"
    );
    check_mistakes(
        ["sources.a = { file = \"größer\", mode = 1 }".to_owned()],
        &expect_file!["tests/snapshots/mistakes-columns.txt"],
    );
}

#[test]
fn prints_at_most_20_mistakes() {
    let bad = vec!["\"x\""; 1000].join(",");
    let error = parse(&format!("[sources.a]\nprefixes = [{bad}]")).expect_err("must be refused");
    let ConfigError::Invalid(problems) = &error else {
        panic!("{error}")
    };
    assert_eq!(problems.len(), 1000);
    assert_eq!(error.to_string().lines().count(), 21);
    assert!(error.to_string().ends_with("\nand 980 more mistakes"));
}

#[test]
fn accepts_up_to_64_services() {
    let services = |count| {
        (0..count).fold(VALID.to_owned(), |text, n| {
            format!(
                "{text}\n[services.s{n:02}]\nports = [\"tcp/{}\"]\nallow = [\"office\"]",
                n + 1
            )
        })
    };
    assert_eq!(parse_right(&services(63)).policy.services.len(), 64);
    expect!["a.toml:2:11: services.web: is one service too many: the maximum is 64; merge services that allow the same sources"].assert_eq(&error_of(&services(64)));
}

#[test]
fn error_names_an_unreadable_file() {
    let error = Config::load(Path::new("/nowhere/a.toml")).expect_err("must be refused");
    assert_eq!(error.code(), ErrorCode::ConfigUnreadable);
    expect!["/nowhere/a.toml: the file cannot be read: No such file or directory (os error 2); check the path and its permissions"].assert_eq(&error.to_string());
}

#[test]
fn warns_of_valid_but_suspicious_settings() {
    let config = parse_right(
        r#"
        default = "drop"
        [services.web]
        ports = ["tcp/443"]
        allow = ["office", "old"]
        [sources.office]
        prefixes = ["192.0.2.1", "::/0"]
        [sources.old]
        provider = "pagerduty-webhooks-legacy"
        [sources.spare]
        file = "spare.txt"
        "#,
    );
    expect![[r#"
        no interface to filter on: set `interfaces` in the configuration, or give --iface
        services.web is open to everyone: sources.office contains ::/0
        sources.old: PagerDuty has not updated this list since 2022-05-05: webhooks now come from other addresses; use pagerduty-webhooks-us or pagerduty-webhooks-eu
        sources.spare is not used: name it in a service's `allow`, or remove it"#]].assert_eq(&config.warnings().join("\n"));
    let right = parse_right(&format!("interfaces = [\"eth0\"]\n{VALID}"));
    assert_eq!(right.warnings(), [""; 0]);
}

#[test]
fn warns_of_rules_that_disconnect_a_host() {
    let cases = [
        ("default = \"drop\"", 0),
        ("return_traffic = \"off\"", 0), // everything passes anyway
        ("default = \"drop\"\nreturn_traffic = \"off\"", 1),
        ("default = \"drop\"\nreturn_traffic = \"established\"", 1),
        ("keep.arp = false", 1),
        ("keep.neighbour_discovery = false", 1),
        ("keep.icmp_errors = false", 1),
        ("keep.multicast = false", 0),
    ];
    let mut found = String::new();
    for (keys, count) in cases {
        let config = parse_right(&format!("interfaces = [\"eth0\"]\n{keys}\n{VALID}"));
        let warnings = config.warnings();
        assert_eq!(warnings.len(), count, "{keys}: {warnings:?}");
        for warning in warnings {
            writeln!(found, "    {}\n{warning}\n", keys.replace('\n', "\n    "))
                .expect("a string takes any text");
        }
    }
    expect_file!["tests/snapshots/warnings.txt"].assert_eq(&found);
}

#[test]
fn warns_of_a_service_on_the_ports_of_this_hosts_own_connections() {
    let config = |ports: &str| {
        parse_right(&format!(
            "[services.web]\nports = [{ports}]\nallow = [\"office\"]\n\
             [sources.office]\nprefixes = [\"203.0.113.0/24\"]\n"
        ))
    };
    for (ports, warned) in [
        ("\"tcp/443\"", false),
        ("\"tcp/30000-32767\"", false),
        ("\"tcp/30000-32768\"", true),
        ("\"udp/60999\"", true),
        ("\"udp/61000-65535\"", false),
        ("\"icmp\"", false),
        ("\"sctp/40000\"", false),
        ("\"any\"", true),
    ] {
        let warnings = config(ports).own_port_warnings(&(32_768..=60_999));
        assert_eq!(warnings.len(), usize::from(warned), "{ports}: {warnings:?}");
    }
    // Tracked answers pass there too.
    let mut tracking = config("\"any\"");
    tracking.rules.default = Verdict::Drop;
    assert!(tracking.own_port_warnings(&(32_768..=60_999)).is_empty());
}

#[test]
fn warns_of_a_service_on_an_interface_that_is_not_filtered() {
    let config = parse_right(
        r#"
        interfaces = ["eth0"]
        [services.web]
        ports = ["tcp/443"]
        interfaces = ["eth0", "eth9"]
        allow = ["office"]
        [sources.office]
        prefixes = ["203.0.113.0/24"]
        "#,
    );
    expect![
        "services.web is limited to eth9, which is not a filtered interface: add it to `interfaces`"
    ]
    .assert_eq(&config.warnings().join("\n"));
}

#[test]
fn inline_configuration_of_the_command_line() {
    let prefix = |text| feed::parse_prefix(text).expect("a prefix");
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>()
    };
    let config = Config::from_inline(
        names(&["eth0"]),
        vec![prefix("203.0.113.0/24"), prefix("2001:db8::1")],
        names(&["workato", "freshchat", "workato"]),
        vec![Ports::Tcp(443..=443)],
    );
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        config.policy.services[0].allow,
        ["cli", "freshchat", "workato"]
    );
    assert_eq!(config.policy.sources.len(), 3);
    assert_eq!(config.warnings(), [""; 0]);

    let wrong = Config::from_inline(
        names(&[""]),
        vec!["203.0.113.9/24".parse().expect("a prefix")],
        names(&["freshchatt"]),
        Vec::new(),
    );
    expect![[r#"
        --iface: is empty; write the name of an interface, such as "eth0"
        --allow: "203.0.113.9/24" has host bits set; write "203.0.113.0/24" for the network, or "203.0.113.9/32" for the address
        --provider: there is no provider "freshchatt"; did you mean "freshchat"?
        --port: no port is protected; add one, such as --port tcp/443"#]].assert_eq(&wrong.expect_err("must be refused").to_string());
    let empty = Config::from_inline(Vec::new(), Vec::new(), Vec::new(), vec![Ports::Any]);
    expect!["--allow: no source is allowed; add --allow PREFIX or --provider NAME"]
        .assert_eq(&empty.expect_err("must be refused").to_string());
}

#[test]
fn reads_ten_thousand_prefixes() {
    let mut text = "[sources.many]\nprefixes = [\n".to_owned();
    for n in 0..10_000 {
        writeln!(text, "  \"10.{}.{}.0/24\",", n / 256, n % 256).expect("a string takes any text");
    }
    text.push_str("]\n");
    let config = parse_right(&text);
    let Origin::Prefixes(prefixes) = &config.policy.sources[0].origin else {
        panic!()
    };
    assert_eq!(prefixes.len(), 10_000);
}

proptest! {
    #[test]
    fn never_panics(text in "(\\[(sources|services)\\.[a-z\"]{0,3}\\]\n|[a-z_]{1,8} ?= ?[\\[\"a-z0-9,\\]]{0,9}\n|\\PC){0,12}") {
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn ports_round_trip(first in 1..=u16::MAX, more: u16, udp: bool) {
        let range = first..=first.saturating_add(more);
        let ports = if udp { Ports::Udp(range) } else { Ports::Tcp(range) };
        prop_assert_eq!(ports.to_string().parse::<Ports>(), Ok(ports));
    }
}
