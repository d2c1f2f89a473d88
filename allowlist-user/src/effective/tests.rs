//! Differences of effective states, compared with the output of reports for both states.

use std::path::Path;

use allowlist_lists::states::SourceStates;
use allowlist_policy::{Feed, Origin, Snapshot};
use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::additions::{Edit, source_name, tests::edit};
use crate::generation_meta::GenerationMeta;
use crate::report::Plan;
use crate::time::Now;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

const OLD: &str = "interfaces = ['eth0']\n[services.web]\nports = ['tcp/443']\nallow = ['a']\n\
                   [services.ssh]\nports = ['tcp/22']\nallow = ['a']\n[sources.a]\nprefixes = ['192.0.2.0/24']\n";

fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("x")).expect("a configuration")
}

/// Returns the effective state of a configuration with its static lists.
fn state(config: &Config, mode: Mode, additions: &Additions) -> EffectiveState {
    EffectiveState::new(
        Arc::new(config.clone()),
        Arc::new(ConfigText::new(None, String::new(), Vec::new())),
        mode,
        Arc::new(additions.clone()),
        SourceStates::new(own_lists(config)),
    )
}

/// Returns the static lists of a configuration.
fn own_lists(config: &Config) -> Snapshot {
    let used = config.policy.used_sources();
    used.filter_map(|source| match &source.origin {
        Origin::Prefixes(prefixes) => {
            let feed = Feed::new(prefixes.clone(), NOW);
            Some((source.name.clone(), feed.into()))
        }
        _ => None,
    })
    .collect()
}

#[track_caller]
fn check(old: &str, new: &str, expected: &Expect) {
    let (old, new) = (parse(old), parse(new));
    let [old, new] = [old, new].map(|config| state(&config, config.mode, &Additions::default()));
    let found = difference(&old, &new, NOW);
    expected.assert_eq(&found.join("\n"));
}

#[test]
fn configurations() {
    check(OLD, OLD, &expect![[""]]);
    check(OLD, &format!("# a comment\n{OLD}"), &expect![[""]]);
    check(
        OLD,
        &OLD.replace("'eth0'", "'eth1', 'eth0'"),
        &expect!["interfaces: eth0 -> eth0 eth1"],
    );
    check(
        OLD,
        &format!(
            "mode = 'observe'\ndefault = 'drop'\nat_start = 'drop'\nhistory_size = '1MiB'\n{OLD}[keep]\narp = false\n"
        ),
        &expect![[r#"
            mode: enforce -> observe
            default: pass -> drop
            keep.arp: true -> false
            history_size: 8MiB -> 1MiB
            at_start: wait -> drop"#]],
    );
    check(
        OLD,
        &OLD.replace("services.ssh", "services.shell"),
        &expect![[r#"
            services.shell: added, tcp/22 for a
            services.ssh: removed"#]],
    );
    check(
        OLD,
        &OLD.replace("tcp/443", "tcp/8443").replace("/24", "/25"),
        &expect![[r#"
            services.web.ports: tcp/443 -> tcp/8443
            sources.a: added 192.0.2.0/25
            sources.a: removed 192.0.2.0/24"#]],
    );
    check(
        OLD,
        &OLD.replace("allow = ['a']", "allow = ['a', 'b']").replace(
            "[sources.a]",
            "[sources.b]\nprefixes = ['192.0.2.7', '192.0.2.9']\n[sources.a]",
        ),
        &expect![[r#"
            services.ssh.allow: a -> a b
            services.web.allow: a -> a b
            sources.b: added, the configuration, 2 prefixes"#]],
    );
}

#[test]
fn settings_of_a_source() {
    let source = "[services.web]\nports = ['tcp/443']\nallow = ['a']\n[sources.a]\nurl = 'https://a.example/x?key=1'\nformat = 'text'\n";
    check(
        source,
        &source.replace("'text'", "'csv'\ncolumn = 1\nevery = '2h'\nmin = 3"),
        &expect![[r#"
            sources.a.every: 1h -> 2h
            sources.a.min: 1 -> 3
            sources.a.format: text -> csv 1"#]],
    );
    check(
        source,
        &format!("{source}max_growth = 2.0\ngrowth_window = '14d'\nmax_addresses = 1000\n"),
        &expect![[r#"
            sources.a.max_growth: 1 -> 2
            sources.a.growth_window: 7days -> 14days
            sources.a.max_addresses (IPv4): 85899345 -> 1000
            sources.a.max_addresses (IPv6): 5192296858534827628530496329220096 -> 1000"#]],
    );
    // A value that may be secret is not shown.
    check(
        source,
        &source.replace("key=1", "key=2"),
        &expect!["sources.a.url: changed"],
    );
    check(
        source,
        &format!("{source}headers = {{ x-key = 'secret' }}\n"),
        &expect!["sources.a.headers: none -> x-key"],
    );
    check(
        source,
        &format!("{source}[on_change]\nwebhook = 'https://hooks.example/secret'\n"),
        &expect!["on_change.webhook: none -> https://hooks.example/"],
    );
}

#[test]
fn modes_and_added_prefixes() {
    let config = parse(OLD);
    let book = |edits: &[(&str, &str, Option<i64>)]| {
        let mut book = Additions::default();
        for (prefix, service, until) in edits {
            let time = |second| Timestamp::from_second(second).expect("a time");
            book.apply(&[Edit::Add(Addition {
                prefix: prefix.parse().expect("a prefix"),
                service: (*service).to_owned(),
                until: until.map(time),
                until_uptime: None,
                note: None,
                added: NOW,
                by: "root".to_owned(),
            })]);
        }
        book
    };
    let check = |old: (Mode, &Additions), new: (Mode, &Additions), expected: &Expect| {
        let [old, new] = [old, new].map(|(mode, book)| state(&config, mode, book));
        expected.assert_eq(&difference(&old, &new, NOW).join("\n"));
    };
    let none = Additions::default();
    check(
        (Mode::Observe, &none),
        (Mode::Enforce, &none),
        &expect!["mode: observe -> enforce"],
    );
    let one = book(&[("192.0.2.77/32", "ssh", None)]);
    check(
        (Mode::Enforce, &one),
        (Mode::Enforce, &none),
        &expect!["removed 192.0.2.77/32 from ssh"],
    );
    let until = book(&[("192.0.2.77/32", "ssh", Some(60))]);
    check(
        (Mode::Enforce, &none),
        (Mode::Enforce, &until),
        &expect!["added 192.0.2.77/32 to ssh until 1970-01-01 00:01:00Z"],
    );
    check(
        (Mode::Enforce, &one),
        (Mode::Enforce, &until),
        &expect!["192.0.2.77/32 to ssh: no end -> until 1970-01-01 00:01:00Z"],
    );
    // Expired prefixes and those of removed services are ignored.
    let over = book(&[
        ("192.0.2.7/32", "ssh", Some(0)),
        ("192.0.2.7/32", "gone", None),
    ]);
    check(
        (Mode::Enforce, &none),
        (Mode::Enforce, &over),
        &expect![[""]],
    );
    // The same mode, set by command before and by the configuration now.
    let observing = parse(&format!("mode = 'observe'\n{OLD}"));
    let [old, new] = [&observing, &config].map(|config| state(config, Mode::Enforce, &none));
    expect!["mode: enforce by command -> enforce by the configuration"]
        .assert_eq(&difference(&old, &new, NOW).join("\n"));
    // Long lists are truncated.
    let many: Vec<_> = (0..50).map(|host| format!("192.0.2.{host}/32")).collect();
    let many: Vec<_> = many.iter().map(|prefix| (&**prefix, "web", None)).collect();
    let [old, new] = [none, book(&many)].map(|book| state(&config, Mode::Enforce, &book));
    let lines = difference(&old, &new, NOW);
    assert_eq!(lines.len(), 21);
    expect![[r#"
        added 192.0.2.19/32 to web
        added 30 more prefixes to web"#]]
    .assert_eq(&lines[19..].join("\n"));
}

/// The inputs of an effective state: a configuration, the mode and the added prefixes.
#[derive(Clone, Debug)]
struct World {
    text: String,
    mode: Mode,
    additions: Additions,
}

/// The alternatives of each part of a configuration.
const PARTS: [&[&str]; 11] = [
    &["", "mode = 'enforce'\n", "mode = 'observe'\n"],
    &["", "default = 'pass'\n", "default = 'drop'\n"],
    &["'eth0'", "'eth0', 'eth1'"],
    &[
        "",
        "# a comment\n",
        "[keep]\narp = true\n",
        "[keep]\narp = false\n",
    ],
    &["'tcp/443'", "'tcp/8443'"],
    &["'a'", "'a', 'b'"],
    &["", "interfaces = ['eth0']\n"],
    &["s1", "s2"],
    &["'192.0.2.0/24'", "'192.0.2.0/25', '198.51.100.7'"],
    &["'203.0.113.0/24'", "'203.0.113.0/24', '203.0.113.0/25'"],
    &[
        "",
        "[egress]\ndefault = 'refuse'\n[egress.rules.r]\nto = ['a']\nports = ['tcp/443']\n",
        "[egress]\ndefault = 'refuse'\nmode = 'observe'\n[egress.rules.r]\nto = ['a']\nports = ['tcp/443']\n",
        "[egress]\ndefault = 'pass'\nerrno = 'EACCES'\nresolvers = ['192.0.2.53']\n[egress.rules.r]\nto = ['b']\nports = ['tcp/443']\n",
        "[egress]\ndefault = 'refuse'\n[egress.rules.r]\nto = ['a', 'b']\nports = ['tcp/80', 'tcp/443']\nunits = ['a.slice']\n[egress.rules.s]\nto = ['b']\nports = ['icmp']\n",
    ],
];

/// Generates two worlds with few or no differences.
fn worlds() -> impl Strategy<Value = (World, World)> {
    let parts = || PARTS.map(|words| 0..words.len());
    let command = || prop::sample::select(vec![None, Some(Mode::Enforce), Some(Mode::Observe)]);
    let edits = || prop::collection::vec(edit(), 0..4);
    let one = || (parts(), command(), edits());
    let is_other = prop::collection::vec(prop::bool::weighted(0.1), PARTS.len() + 2);
    (one(), one(), is_other).prop_map(|(old, other, is_other)| {
        let mut new = old.clone();
        for place in (0..PARTS.len()).filter(|place| is_other[*place]) {
            new.0[place] = other.0[place];
        }
        if is_other[PARTS.len()] {
            new.1 = other.1;
        }
        if is_other[PARTS.len() + 1] {
            new.2 = other.2;
        }
        (world(old), world(new))
    })
}

fn world((parts, command, edits): ([usize; 11], Option<Mode>, Vec<Edit>)) -> World {
    let mut place = 0;
    let [
        mode,
        default,
        interfaces,
        keep,
        covered,
        allow,
        on,
        second,
        a,
        b,
        egress,
    ] = parts.map(|word| {
        place += 1;
        PARTS[place - 1][word]
    });
    let text = format!(
        "{mode}{default}interfaces = [{interfaces}]\n{keep}[services.s0]\nports = [{covered}]\nallow = [{allow}]\n{on}\
         [services.{second}]\nports = ['udp/53']\nallow = ['b']\n\
         [sources.a]\nprefixes = [{a}]\n[sources.b]\nprefixes = [{b}]\n{egress}"
    );
    let mut additions = Additions::default();
    additions.apply(&edits);
    World {
        mode: command.unwrap_or(parse(&text).mode),
        text,
        additions,
    }
}

/// The data behind `status`, `list` and `explain`, without counters and times.
fn answers(world: &World) -> serde_json::Value {
    let config = parse(&world.text);
    let mut additions = world.additions.clone();
    additions.expire(&Now::by_wall(NOW));
    let mut with = config.clone();
    with.policy = additions.with(&config.policy);
    let mut feeds = own_lists(&config);
    for service in with.policy.services.iter().map(|service| &service.name) {
        let feed = additions.feed(service);
        feeds.extend(feed.map(|feed| (source_name(service), feed.into())));
    }
    let tables = compile(&with.policy, &feeds, 1000, &IdTable::default()).expect("they fit");
    let ids = KnownIds {
        packets: tables.ids.clone(),
        egress: IdTable::default(),
    };
    let meta = GenerationMeta::new(&ids, &with.policy, &SourceStates::new(feeds), None);
    let plan = Plan {
        config: &with,
        meta: &meta,
        tables: &tables,
        warnings: &[],
        notes: &[],
        attach: &[],
        failures: &[],
        now: NOW,
    };
    let reaches = |one: &&Addition| {
        let mut services = config.policy.services.iter();
        services.any(|service| service.name == one.service)
    };
    let added: Vec<_> = additions.all().filter(reaches).cloned().collect();
    serde_json::json!([
        plan.json(),
        world.mode,
        world.mode != config.mode, // status states it
        added,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// The difference is empty if and only if all reports are equal.
    #[test]
    fn difference_is_empty_if_reports_are_equal((old, new) in worlds()) {
        let [before, after] =
            [&old, &new].map(|world| state(&parse(&world.text), world.mode, &world.additions));
        let lines = difference(&before, &after, NOW);
        let mut answers = [answers(&old), answers(&new)];
        for answer in &mut answers {
            // Reports show the effective mode besides the configured one.
            answer[0]["mode"] = serde_json::Value::Null;
        }
        prop_assert_eq!(lines.is_empty(), answers[0] == answers[1], "{:?}", lines);
    }

    /// A plan writes to the kernel exactly what differs: nothing, the mode, or a generation.
    #[test]
    fn plans_write_what_differs((old, new) in worlds()) {
        let [old, new] =
            [&old, &new].map(|world| state(&parse(&world.text), world.mode, &world.additions));
        let ids = KnownIds::default();
        let [before, after] = [&old, &new].map(|state| {
            let compiled = state.compile(&ids, |_| None).expect("they fit");
            let word = state.config().rules.control(Mode::Enforce);
            let contents = |tables: &Tables| {
                let (services, interfaces) = (tables.services.clone(), tables.interfaces.clone());
                (services, interfaces, tables.v4.clone(), tables.v6.clone())
            };
            let egress = state.policy().egress.as_ref();
            let settings = egress.map(|egress| egress.control(Mode::Enforce));
            (contents(&compiled.tables), compiled.egress.as_deref().map(contents), word, settings)
        });
        let plan = plan(&old, &new, false, &ids, |_| None, NOW).expect("they fit");
        let is_attached_alike = old.config().interfaces == new.config().interfaces
            && old.config().attach == new.config().attach
            && tracking(old.config()) == tracking(new.config());
        match plan.writes {
            KernelWrites::Nothing | KernelWrites::Mode => {
                prop_assert!(before == after && is_attached_alike);
                let is_mode = matches!(plan.writes, KernelWrites::Mode);
                let is_other = old.mode() != new.mode() || old.egress_mode() != new.egress_mode();
                prop_assert_eq!(is_mode, is_other);
            }
            KernelWrites::Generation { ref compiled, scope } => {
                prop_assert_eq!(scope == Scope::Tables, is_attached_alike);
                let tables = &compiled.tables;
                prop_assert!(tables.v4 == after.0.2 && tables.v6 == after.0.3);
                // The policy differs, though rarely in a way that leaves all tables alike.
                prop_assert!(before != after || !is_attached_alike || old.policy() != new.policy());
            }
        }
        // Whoever sees no change has no write, unless the text of the policy has changed.
        if old.policy() == new.policy() && old.additions() == new.additions() && plan.changes.is_empty() {
            prop_assert!(matches!(plan.writes, KernelWrites::Nothing));
        }
    }
}
