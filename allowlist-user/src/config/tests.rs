//! Configurations and what is said about them.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::policy::{Engine, Format, Http, Keep};

/// A service and a source of everything right, for the case's own text to be wrong beside.
const RIGHT: &str = r#"
[services.web]
ports = ["tcp/443"]
allow = ["office"]
[sources.office]
prefixes = ["203.0.113.0/24"]
"#;

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

/// `expected` is what is printed, without the file's folder.
#[track_caller]
fn check_wrong(text: &str, expected: &str) {
    let error = parse(text).expect_err("must be refused").to_string();
    assert_eq!(
        error.replace("/etc/allowlist/", ""),
        expected,
        "\nof {text}"
    );
}

#[test]
fn reads_everything() {
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
            default: DefaultVerdict::Drop,
            return_traffic: ReturnTraffic::Established,
            keep: Keep {
                dhcp: false,
                ..Keep::ALL
            },
            lookup: Engine::LpmTrie,
        }
    );
    assert_eq!(config.attach, AttachMode::Generic);
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

/// Those of the text above.
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
    let config = parse_right(RIGHT);
    assert_eq!(config.interfaces, [""; 0]);
    assert_eq!(
        (config.mode, config.rules),
        (
            Mode::Enforce,
            Rules {
                default: DefaultVerdict::Pass,
                return_traffic: ReturnTraffic::Track,
                keep: Keep::ALL,
                lookup: Engine::RangeTable,
            }
        )
    );
    assert_eq!(
        (config.attach, config.max_prefixes, config.max_flows),
        (AttachMode::Auto, 250_000, 65_536)
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
fn names_are_plain() {
    let remedy = "is not a name; use a-z, 0-9, - and _, up to 63 characters";
    let long = "x".repeat(64);
    for (name, key) in [
        ("Office", "Office"),
        ("\"the office\"", "\"the office\""),
        ("\"../../etc\"", "\"../../etc\""),
        ("\"\"", "\"\""),
        (&long, &long),
    ] {
        let text = format!("[sources.{name}]\nprefixes = [\"192.0.2.1\"]");
        check_wrong(&text, &format!("a.toml:1:10: sources.{key}: {remedy}"));
    }
}

#[test]
fn names_every_mistake_in_the_order_of_the_text() {
    check_wrong(
        "mode = \"off\"\n# größer\n[services.ssh]\nallow = [\"vpn\"]\n[sources.a]\nprefixes = [ \"x\", \"y\" ]\n",
        "a.toml:1:8: mode: \"off\" is not known here; write \"enforce\" or \"observe\"\n\
         a.toml:3:11: services.ssh: has no `ports`: it protects nothing; write what it covers, such as ports = [\"tcp/443\"]\n\
         a.toml:4:10: services.ssh.allow[0]: there is no source \"vpn\"; add a [sources.vpn] table\n\
         a.toml:6:14: sources.a.prefixes[0]: \"x\" is not a prefix; write one such as \"203.0.113.0/24\", \"2001:db8::/32\" or \"203.0.113.9\"\n\
         a.toml:6:19: sources.a.prefixes[1]: \"y\" is not a prefix; write one such as \"203.0.113.0/24\", \"2001:db8::/32\" or \"203.0.113.9\"",
    );
}

#[test]
fn columns_count_characters() {
    check_wrong(
        "sources.a = { file = \"größer\", mode = 1 }",
        "a.toml:1:32: sources.a.mode: unknown key; the keys here are provider, regions, parameters, prefixes, file, url, names, format, select, column, range, prefix, separator, keys, where, delimiter, skip, element, attribute, comments, keyword, page, discover, newest, unzip, headers, bearer_file, allow_plain_http, allow_private, ca_file, ca_only, max_size, timeout, families, resolvers, ttl_floor, every, grace, max_age, min, max, must_cover, min_prefix_len, allow_special_use, max_shrink, max_growth, growth_window, max_addresses, direction",
    );
}

#[test]
fn prints_no_more_than_a_screenful() {
    let bad = vec!["\"x\""; 1000].join(",");
    let error = parse(&format!("[sources.a]\nprefixes = [{bad}]")).expect_err("must be refused");
    let ConfigError::Invalid(problems) = &error else {
        panic!("{error}")
    };
    assert_eq!(problems.len(), 1000);
    assert_eq!(error.to_string().lines().count(), 21);
    assert!(error.to_string().ends_with("\nand 980 more"));
}

#[test]
fn has_room_for_64_services() {
    let services = |count| {
        (0..count).fold(RIGHT.to_owned(), |text, n| {
            format!(
                "{text}\n[services.s{n:02}]\nports = [\"tcp/{}\"]\nallow = [\"office\"]",
                n + 1
            )
        })
    };
    assert_eq!(parse_right(&services(63)).policy.services.len(), 64);
    check_wrong(
        &services(64),
        "a.toml:2:11: services.web: is one service too many; 64 are possible: merge some that allow the same sources",
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Path::new("/nowhere/a.toml")).expect_err("must be refused");
    assert_eq!(
        error.to_string(),
        "/nowhere/a.toml: cannot be read: No such file or directory (os error 2); check the path and its permissions"
    );
}

#[test]
fn warns_of_what_is_legal_and_odd() {
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
    assert_eq!(
        config.warnings(),
        [
            "no interface to filter on: set `interfaces` in the configuration, or give --iface",
            "services.web is open to everyone: sources.office holds ::/0",
            "sources.old: PagerDuty has not updated this list since 2022-05-05: webhooks now come \
             from other addresses; use pagerduty-webhooks-us or pagerduty-webhooks-eu",
            "sources.spare is not used: name it in a service's `allow`, or remove it",
        ]
    );
    let right = parse_right(&format!("interfaces = [\"eth0\"]\n{RIGHT}"));
    assert_eq!(right.warnings(), [""; 0]);
}

/// Keys on top of a right configuration, and the start of the one warning that follows.
#[test]
fn warns_of_rules_that_cut_a_host_off() {
    for (keys, expected) in [
        ("default = \"drop\"", None),
        (
            "return_traffic = \"off\"",
            None, // everything passes anyway
        ),
        (
            "default = \"drop\"\nreturn_traffic = \"off\"",
            Some("return_traffic = \"off\" with default = \"drop\" drops the answers"),
        ),
        (
            "default = \"drop\"\nreturn_traffic = \"established\"",
            Some("return_traffic = \"established\" lets every TCP segment"),
        ),
        ("keep.arp = false", Some("keep.arp = false: nobody")),
        (
            "keep.neighbour_discovery = false",
            Some("keep.neighbour_discovery = false: unless"),
        ),
        (
            "keep.icmp_errors = false",
            Some("keep.icmp_errors = false: unless"),
        ),
        ("keep.multicast = false", None),
    ] {
        let config = parse_right(&format!("interfaces = [\"eth0\"]\n{keys}\n{RIGHT}"));
        let warnings = config.warnings();
        match expected {
            Some(start) => assert!(
                warnings.len() == 1 && warnings[0].starts_with(start),
                "{keys}: {warnings:?}"
            ),
            None => assert_eq!(warnings, [""; 0], "{keys}"),
        }
    }
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
    tracking.rules.default = DefaultVerdict::Drop;
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
    assert_eq!(
        config.warnings(),
        ["services.web is limited to eth9, which is not among the interfaces that are filtered"]
    );
}

#[test]
fn the_command_line_makes_a_small_one() {
    let prefix = |text| feed::parse_prefix(text).expect("a prefix");
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>()
    };
    let config = Config::small(
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

    let wrong = Config::small(
        names(&[""]),
        vec!["203.0.113.9/24".parse().expect("a prefix")],
        names(&["freshchatt"]),
        Vec::new(),
    );
    assert_eq!(
        wrong.expect_err("must be refused").to_string(),
        "--iface: is empty; write an interface's name, such as \"eth0\"\n\
         --allow: \"203.0.113.9/24\" has host bits set; write \"203.0.113.0/24\" for the network or \"203.0.113.9/32\" for the one address\n\
         --provider: there is no provider \"freshchatt\"; did you mean \"freshchat\"?\n\
         --port: nothing is protected; give --port, such as --port tcp/443"
    );
    let nobody = Config::small(Vec::new(), Vec::new(), Vec::new(), vec![Ports::Any]);
    assert_eq!(
        nobody.expect_err("must be refused").to_string(),
        "--allow: nobody is let in; give --allow PREFIX or --provider NAME"
    );
}

#[test]
fn ten_thousand_prefixes_are_read() {
    let mut text = "[sources.many]\nprefixes = [\n".to_owned();
    for n in 0..10_000 {
        writeln!(text, "  \"10.{}.{}.0/24\",", n / 256, n % 256).expect("a string takes all");
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
    fn ports_read_back(first in 1..=u16::MAX, more: u16, udp: bool) {
        let range = first..=first.saturating_add(more);
        let ports = if udp { Ports::Udp(range) } else { Ports::Tcp(range) };
        prop_assert_eq!(ports.to_string().parse::<Ports>(), Ok(ports));
    }
}
