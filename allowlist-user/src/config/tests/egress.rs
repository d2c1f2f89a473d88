//! The egress policy: every key, its defaults, its mistakes and its warnings.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use allowlist_policy::{Egress, Mode, Snapshot, Source};
use expect_test::{expect, expect_file};

use super::{Config, check_mistakes, error_of, parse_right};

/// A valid source, to which each test case adds its own tables.
const SOURCES: &str = "\
[sources.api]
names = [\"events.example.com\"]
[sources.hooks]
provider = \"pagerduty-webhooks-us\"
[sources.inbound]
prefixes = [\"192.0.2.0/24\"]
direction = \"inbound\"
[sources.both]
provider = \"pagerduty-webhooks-eu\"
direction = \"any\"
[sources.gateways]
provider = \"workato-gateways\"
";

fn egress(text: &str) -> Egress {
    let config = parse_right(text);
    config.policy.egress.expect("an egress policy")
}

#[test]
fn reads_every_key_of_egress() {
    let config = parse_right(&format!(
        r#"
        [egress]
        mode = "observe"
        default = "refuse"
        errno = "ECONNREFUSED"
        resolvers = ["192.0.2.53", "192.0.2.53:5353", "[2001:db8::53]:53", "2001:db8::54", "127.0.0.53"]
        time_servers = ["192.0.2.123", "2001:db8::123"]
        linger = "90m"
        cgroups = ["/system.slice", "/machine.slice/agent 1"]

        [egress.rules.workato]
        to = ["gateways", "both"]
        ports = ["tcp/443", "udp/5000-5010", "icmp", "any"]
        units = [
            "batch.slice", 'system-app\x2d1.slice', "/machine/agent", "alertd.service", "worker@1.service",
            "run-1.scope", "/system.slice/alertd.service", "alertd.socket", "srv.mount", "dev-sda1.swap",
        ]

        [egress.rules.alerts]
        to = ["api"]
        ports = ["tcp/443"]
        {SOURCES}"#
    ));
    assert_eq!(config.egress_mode(), Mode::Observe);
    expect![[r#"
        Egress {
            mode: Observe,
            default: Drop,
            errno: ConnectionRefused,
            resolvers: [
                192.0.2.53:53,
                192.0.2.53:5353,
                [2001:db8::53]:53,
                [2001:db8::54]:53,
                127.0.0.53:53,
            ],
            time_servers: [
                192.0.2.123,
                2001:db8::123,
            ],
            linger: 5400s,
            cgroups: [
                "/system.slice",
                "/machine.slice/agent 1",
            ],
            rules: [
                EgressRule {
                    name: "alerts",
                    to: [
                        "api",
                    ],
                    ports: [
                        Tcp(
                            443..=443,
                        ),
                    ],
                    units: [],
                },
                EgressRule {
                    name: "workato",
                    to: [
                        "gateways",
                        "both",
                    ],
                    ports: [
                        Tcp(
                            443..=443,
                        ),
                        Udp(
                            5000..=5010,
                        ),
                        Icmp,
                        Any,
                    ],
                    units: [
                        "batch.slice",
                        "system-app\\x2d1.slice",
                        "/machine/agent",
                        "alertd.service",
                        "worker@1.service",
                        "run-1.scope",
                        "/system.slice/alertd.service",
                        "alertd.socket",
                        "srv.mount",
                        "dev-sda1.swap",
                    ],
                },
            ],
        }"#]]
    .assert_eq(&format!(
        "{:#?}",
        config.policy.egress.expect("an egress policy")
    ));
}

#[test]
fn without_egress_every_call_passes() {
    let config = parse_right(SOURCES);
    assert_eq!(config.policy.egress, None);
    assert_eq!(config.egress_mode(), Mode::Enforce);
}

#[test]
fn defaults_of_egress() {
    assert_eq!(egress("[egress]"), Egress::default());
    assert_eq!(
        egress("[egress]\nmode = 'enforce'\ndefault = 'pass'\nerrno = 'EPERM'\n[egress.rules]"),
        Egress::default()
    );
}

/// The mode of the egress policy and that for packets are independent.
#[test]
fn modes_are_independent() {
    let config = parse_right("mode = 'observe'\n[egress]");
    assert_eq!(
        (config.mode, config.egress_mode()),
        (Mode::Observe, Mode::Enforce)
    );
    let config = parse_right("[egress]\nmode = 'observe'");
    assert_eq!(
        (config.mode, config.egress_mode()),
        (Mode::Enforce, Mode::Observe)
    );
}

#[test]
fn mistakes_in_egress() {
    let cases = [
        "egress = true",
        "[egress]\nmode = 'monitor'",
        "[egress]\ndefault = 'drop'",
        "[egress]\nerrno = 'EHOSTUNREACH'",
        "[egress]\nresolver = ['192.0.2.53']",
        "[egress]\nraw = 'refuse'",
        "[egress]\nrules = []",
        "[egress]\nresolvers = []",
        "[egress]\nresolvers = ['dns.example', '192.0.2.53:0', '::ffff:192.0.2.53', '0.0.0.0', '[fe80::1%2]:53']",
        "[egress]\nresolvers = ['192.0.2.53', '192.0.2.53:53']",
        "[egress]\ntime_servers = []",
        "[egress]\ntime_servers = ['ntp.example', '192.0.2.123:123', '224.0.1.1', '::ffff:192.0.2.1']",
        "[egress]\ntime_servers = ['2001:db8::1', '2001:DB8:0::1']",
        "[egress]\nlinger = 60",
        "[egress]\nlinger = '999ms'",
        "[egress]\nlinger = '7days 1s'",
    ];
    check_mistakes(
        cases.map(str::to_owned),
        &expect_file!["snapshots/mistakes-egress.txt"],
    );
}

#[test]
fn mistakes_in_cgroups_and_units() {
    let cgroups = [
        "",
        "'system.slice'",
        "'/'",
        "'/sys/fs/cgroup'",
        "'/sys/fs/cgroup/system.slice'",
        "'/sys/fs/cgroup/unified/system.slice'",
        "'/system.slice/'",
        "'//system.slice'",
        "'/system.slice/../user.slice'",
        "\"/system.slice\\n\"",
        "'/system.slice', '/system.slice'",
        "'/system.slice', '/system.slice/a.service'",
        "'/system.slice/a.service', '/system.slice'",
    ];
    let units = [
        "",
        "'alertd'",
        "'alertd.servce'",
        "'alertd.timer'",
        "'agent@.slice'",
        "'worker@.service'",
        "'.slice'",
        "'a b.service'",
        "'system.slice/alertd.service'",
        "'../alertd.service'",
        "'/system.slice/../alertd.service'",
        "'/'",
        "'batch.slice', 'batch.slice'",
        // The path of each slice contains those of the slices around it.
        "'abcdefgh-abcdefgh-abcdefgh-abcdefgh-abcdefgh-abcdefgh-abcdefgh-abcdefgh-abcdefgh-abcdefgh.slice'",
    ];
    let cgroups = cgroups.map(|cgroups| format!("[egress]\ncgroups = [{cgroups}]"));
    let units = units.map(|units| {
        format!(
            "[egress.rules.a]\nto = ['api']\nports = ['tcp/443']\nunits = [{units}]\n[sources.api]\nprefixes = ['192.0.2.1']"
        )
    });
    check_mistakes(
        cgroups.into_iter().chain(units),
        &expect_file!["snapshots/mistakes-units.txt"],
    );
}

#[test]
fn mistakes_in_an_egress_rule() {
    let cases = [
        "[egress.rules.a]\nports = ['tcp/443']",
        "[egress.rules.a]\nto = []\nports = ['tcp/443']",
        "[egress.rules.a]\nto = ['apj', 'vpn', 'api', 'api']\nports = ['tcp/443']",
        "[egress.rules.a]\nto = ['workato-gateways']\nports = ['tcp/443']",
        "[egress.rules.a]\nto = ['hooks', 'inbound']\nports = ['tcp/443']",
        "[egress.rules.a]\nto = ['api']",
        "[egress.rules.a]\nto = ['api']\nports = []",
        "[egress.rules.a]\nto = ['api']\nports = ['443', 'tcp/443', 'tcp/443']",
        "[egress.rules.a]\nto = ['api']\nports = ['tcp/443']\nunit = ['alertd.service']",
        "[egress.rules.a]\nallow = ['api']",
        "[egress.rules.A]\nto = ['api']\nports = ['tcp/443']",
        "[egress]\nrules.a = 'api'",
    ];
    check_mistakes(
        cases.map(|text| format!("{text}\n{SOURCES}")),
        &expect_file!["snapshots/mistakes-egress-rules.txt"],
    );
}

#[test]
fn all_mistakes_of_egress_are_reported_at_once() {
    let text = "[egress]\ndefault = 'drop'\nresolvers = ['x']\ncgroups = ['a']\n[egress.rules.a]\nto = ['b']\nports = ['x']\nunits = ['c']\n";
    assert_eq!(error_of(text).lines().count(), 6);
}

/// An operator's own list has no stated direction, so services and egress rules may both use it.
#[test]
fn own_lists_may_be_used_in_both_directions() {
    let config = parse_right(
        "[services.web]\nports = ['tcp/443']\nallow = ['own']\n[sources.own]\nprefixes = ['192.0.2.0/24']\n\
         [egress.rules.a]\nto = ['own']\nports = ['tcp/443']",
    );
    assert!(
        config
            .policy
            .egress
            .is_some_and(|egress| egress.rules.len() == 1)
    );
}

#[test]
fn accepts_up_to_16_endpoints() {
    let text = |resolvers: usize, time_servers: usize| {
        let addresses = |count, third| {
            let all = (1..=count).map(|n| format!("'192.0.{third}.{n}'"));
            all.collect::<Vec<_>>().join(", ")
        };
        format!(
            "[egress]\nresolvers = [{}]\ntime_servers = [{}]",
            addresses(resolvers, 1),
            addresses(time_servers, 2)
        )
    };
    for (resolvers, time_servers) in [(7, 2), (1, 14)] {
        assert_eq!(
            egress(&text(resolvers, time_servers)).resolvers.len(),
            resolvers
        );
    }
    expect!["a.toml:1:1: egress: `resolvers` and `time_servers` have 17 endpoints, but the maximum is 16 (a resolver counts twice, for UDP and TCP); remove some"].assert_eq(&error_of(&text(8, 1)));
}

#[test]
fn accepts_up_to_64_rules() {
    let rules = |count| {
        (0..count).fold(String::new(), |text, n| {
            format!("{text}[egress.rules.r{n:02}]\nto = ['api']\nports = ['tcp/443']\n")
        })
    };
    let text = |count| format!("{}{SOURCES}", rules(count));
    assert_eq!(egress(&text(64)).rules.len(), 64);
    expect!["a.toml:193:15: egress.rules.r64: is one rule too many: the maximum is 64; merge rules that have the same destinations"].assert_eq(&error_of(&text(65)));
}

#[test]
fn accepts_up_to_63_units() {
    // Each rule repeats a unit of the rule before, which counts once.
    let text = |count: usize| {
        let mut text = SOURCES.to_owned();
        for first in (0..count).step_by(9) {
            let units =
                (first.saturating_sub(1)..count.min(first + 9)).map(|n| format!("'u{n}.slice'"));
            let units = units.collect::<Vec<_>>().join(", ");
            write!(
                text,
                "[egress.rules.r{first:02}]\nto = ['api']\nports = ['tcp/443']\nunits = [{units}]\n"
            )
            .expect("a string takes any text");
        }
        text
    };
    let rules = egress(&text(63)).rules;
    let units: BTreeSet<&String> = rules.iter().flat_map(|rule| &rule.units).collect();
    assert_eq!(units.len(), 63);
    // Of two superfluous units, the first is reported.
    expect![[r#"a.toml:44:23: egress.rules.r63.units[1]: "u63.slice" is one unit too many: the maximum is 63 in all rules; name a slice that contains several units"#]].assert_eq(&error_of(&text(65)));
}

#[test]
fn warns_of_an_egress_policy_without_effect() {
    let rule = "[egress.rules.a]\nto = ['own']\nports = ['tcp/443']\n";
    let cases = [
        format!("[egress]\ndefault = 'refuse'\n{rule}[sources.own]\nprefixes = ['192.0.2.1']"),
        format!("[egress]\n{rule}[sources.own]\nprefixes = ['192.0.2.1']"),
        "[egress]\ndefault = 'refuse'".to_owned(),
        format!(
            "[egress]\ndefault = 'refuse'\n{rule}[sources.own]\nprefixes = ['192.0.2.1', '::/0']"
        ),
        format!(
            "[egress]\ndefault = 'refuse'\n{rule}[sources.own]\nprovider = 'workato-gateways'\n[sources.spare]\nfile = 'a'"
        ),
    ];
    let mut found = String::new();
    for text in cases {
        let config = parse_right(&format!("interfaces = ['eth0']\n{text}"));
        writeln!(found, "    {}", text.replace('\n', "\n    ")).expect("a string takes any text");
        for warning in config.warnings() {
            writeln!(found, "{warning}").expect("a string takes any text");
        }
        found.push('\n');
    }
    expect_file!["snapshots/warnings-egress.txt"].assert_eq(&found);
}

/// A source of names that only rules use keeps the addresses that it polled as long as those that are learnt.
#[test]
fn grace_of_names_in_rules_is_linger() {
    let names = "names = ['a.example.com']";
    let rule = "[egress.rules.a]\nto = ['x']\nports = ['tcp/443']\n";
    let service = "[services.web]\nports = ['tcp/443']\nallow = ['x']\n";
    let hours = Duration::from_hours;
    let own = hours(24);
    let cases = [
        // The default of `linger`, and configured ones.
        (format!("[egress]\n{rule}[sources.x]\n{names}"), hours(1)),
        (
            format!("[egress]\nlinger = '7days'\n{rule}[sources.x]\n{names}"),
            hours(24 * 7),
        ),
        (
            format!("[egress]\nlinger = '1s'\n{rule}[sources.x]\n{names}"),
            Duration::from_secs(1),
        ),
        (
            format!("[egress]\nlinger = '2h'\n{rule}[sources.x]\nnames = ['*.example.com']"),
            hours(2),
        ),
        (
            format!("[egress]\nlinger = '2h'\n{rule}[sources.x]\n{names}\nanswers = 'poll'"),
            hours(2),
        ),
        // `grace` is configured.
        (
            format!("[egress]\nlinger = '2h'\n{rule}[sources.x]\n{names}\ngrace = '0s'"),
            Duration::ZERO,
        ),
        (
            format!("[egress]\nlinger = '2h'\n{rule}[sources.x]\n{names}\ngrace = '24h'"),
            own,
        ),
        // A service uses the source, or no rule does.
        (
            format!("{service}[egress]\nlinger = '2h'\n{rule}[sources.x]\n{names}"),
            own,
        ),
        (format!("{service}[sources.x]\n{names}"), own),
        (
            format!("[egress]\nlinger = '2h'\n[sources.x]\n{names}"),
            own,
        ),
        (format!("[sources.x]\n{names}"), own),
        // Lists that are no names.
        (
            format!(
                "[egress]\nlinger = '2h'\n{rule}[sources.x]\nurl = 'https://example.com/'\nformat = 'text'"
            ),
            own,
        ),
    ];
    assert_eq!(Source::GRACE, own);
    for (text, expected) in cases {
        let config = parse_right(&text);
        let [source] = &config.policy.sources[..] else {
            panic!("{config:?}")
        };
        assert_eq!(source.grace, expected, "{text}");
    }
}

/// The names below a wildcard are known only from the answers to this host's programs, so services cannot use it.
#[test]
fn wildcards_are_for_rules() {
    let text =
        |user: &str| format!("{user}[sources.x]\nnames = ['b.example.com', '*.Example.com']");
    let rule = "[egress.rules.a]\nto = ['x']\nports = ['tcp/443']\n";
    let service = "[services.web]\nports = ['tcp/443']\nallow = ['x']\n";
    parse_right(&text(rule));
    parse_right(&text(""));
    check_mistakes(
        [text(service), text(&format!("{service}{rule}"))],
        &expect_file!["snapshots/mistakes-wildcards.txt"],
    );
}

/// A list that only egress rules use opens no service, and the reverse.
#[test]
fn warnings_of_lists_name_their_user() {
    let config = Config::parse(
        "[services.web]\nports = ['tcp/443']\nallow = ['in']\n[egress]\ndefault = 'refuse'\n\
         [egress.rules.a]\nto = ['out']\nports = ['tcp/443']\n[sources.in]\nfile = 'in'\n[sources.out]\nfile = 'out'",
        std::path::Path::new("a.toml"),
    );
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    let lists = |open: &str| -> Snapshot {
        let list = |name: &str| {
            if name == open {
                "0.0.0.0/0"
            } else {
                "192.0.2.0/24"
            }
        };
        let feed = |name: &str| {
            let prefix = list(name).parse().expect("a prefix");
            allowlist_policy::Feed::new(vec![prefix], jiff::Timestamp::UNIX_EPOCH).into()
        };
        ["in", "out"]
            .map(|name| (name.to_owned(), feed(name)))
            .into()
    };
    let found = ["in", "out"].map(|open| config.everyone_warnings(&lists(open)).join("\n"));
    expect![[r#"
        services.web is open to everyone: the list of sources.in covers 0.0.0.0/0
        egress.rules.a allows every destination: the list of sources.out covers 0.0.0.0/0"#]]
    .assert_eq(&found.join("\n"));
}
