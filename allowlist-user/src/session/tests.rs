//! Evidence of a session, the order in which it is used, and the changes that would cut the session.

use std::fmt::Write as _;
use std::fs::{create_dir_all, write};
use std::os::unix::fs::symlink;
use std::path::Path;

use allowlist_policy::compile::{IdTable, Tables, compile};
use allowlist_policy::lockout::HostInterface;
use allowlist_policy::{Feed, Mode, Origin, Snapshot};
use expect_test::{expect, expect_file};

use super::*;
use crate::config::Config;

#[track_caller]
fn check_connection(text: &str, expected: Option<(&str, &str, Option<&str>)>) {
    let found = login_sources::connection(text);
    let expected = expected.map(|(peer, local, interface)| {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address and a port");
        (address(peer), address(local), interface.map(str::to_owned))
    });
    assert_eq!(found, expected, "{text:?}");
}

#[test]
fn connections() {
    check_connection(
        "203.0.113.9 40000 198.51.100.1 22",
        Some(("203.0.113.9:40000", "198.51.100.1:22", None)),
    );
    check_connection(
        "2001:db8::9 40000 2001:db8::1 2222",
        Some(("[2001:db8::9]:40000", "[2001:db8::1]:2222", None)),
    );
    check_connection(
        "fe80::9%eth1 40000 fe80::1%eth1 22",
        Some(("[fe80::9]:40000", "[fe80::1]:22", Some("eth1"))),
    );
    check_connection(
        "::ffff:203.0.113.9 40000 ::ffff:198.51.100.1 22",
        Some(("203.0.113.9:40000", "198.51.100.1:22", None)),
    );
    for nothing in [
        "",
        "UNKNOWN 65535 UNKNOWN 65535",
        "203.0.113.9 40000 198.51.100.1",
        "203.0.113.9 40000 198.51.100.1 22 more",
        "203.0.113.9 70000 198.51.100.1 22",
        "203.0.113.9 40000 2001:db8::1 22",
        "example.com 40000 198.51.100.1 22",
    ] {
        check_connection(nothing, None);
    }
}

#[test]
fn variables() {
    for (environment, expected) in [
        (&b"A=1\0SSH_CONNECTION=a b\0B=2\0"[..], Some("a b")),
        (b"SSH_CONNECTION=", Some("")),
        (b"XSSH_CONNECTION=a\0SSH_CONNECTION_X=b\0", None),
        (b"", None),
    ] {
        let found = login_sources::variable(environment, SSH_CONNECTION);
        assert_eq!(found.as_deref(), expected);
    }
}

#[test]
fn parents_and_terminals() {
    let status = "Name:\tsh\nPid:\t7\nPPid:\t5\nTracerPid:\t0\n";
    assert_eq!(login_sources::parent(status), Some(5));
    assert_eq!(login_sources::parent("Name:\tPPid: 5\n"), None);
    for (file, expected) in [
        ("/dev/pts/3", Some("pts/3")),
        ("/dev/tty1", Some("tty1")),
        ("/dev/null", None),
        ("pipe:[4711]", None),
    ] {
        assert_eq!(login_sources::line(file).as_deref(), expected, "{file}");
    }
}

/// A directory in the format of `/proc`, and a file in the format of `utmp`.
struct FakeHost {
    folder: tempfile::TempDir,
}

impl FakeHost {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder }
    }

    fn host(&self) -> Host {
        Host {
            processes: self.folder.path().to_owned(),
            logins: self.folder.path().join("utmp"),
        }
    }

    fn process(&self, number: u32, parent: u32, environment: &str, terminal: &str) {
        let folder = self.folder.path().join(number.to_string());
        create_dir_all(folder.join("fd")).expect("a folder");
        write(folder.join("status"), format!("PPid:\t{parent}\n")).expect("a file");
        write(folder.join("environ"), environment).expect("a file");
        symlink(terminal, folder.join("fd/0")).expect("a link");
    }

    /// One login, as glibc writes it on this architecture.
    fn login(&self, line: &str, host: &str) {
        const USER_PROCESS: u8 = 7;
        let mut record = vec![0; 384];
        record[0] = USER_PROCESS;
        record[8..][..line.len()].copy_from_slice(line.as_bytes());
        record[76..][..host.len()].copy_from_slice(host.as_bytes());
        write(self.folder.path().join("utmp"), record).expect("a file");
    }
}

const CONNECTION: &str = "SSH_CONNECTION=203.0.113.9 40000 198.51.100.1 22";

#[test]
fn the_environment_of_the_process_is_preferred() {
    let fake = FakeHost::new();
    fake.process(7, 5, "", "/dev/null");
    fake.process(5, 1, CONNECTION, "/dev/null");
    let own = "203.0.113.8 40000 198.51.100.1 22";
    let found = fake.host().find(Some(own), 7).expect("a session");
    assert_eq!(
        (found.peer.to_string(), found.evidence),
        ("203.0.113.8:40000".to_owned(), Evidence::Environment)
    );
    let damaged = fake.host().find(Some("UNKNOWN"), 7).expect("a session");
    assert_eq!(damaged.evidence, Evidence::Ancestor(5));
}

#[test]
fn the_nearest_ancestor_is_used() {
    let fake = FakeHost::new();
    fake.process(9, 7, "A=1", "/dev/null");
    fake.process(7, 5, "A=1", "/dev/null");
    fake.process(5, 3, CONNECTION, "/dev/null");
    fake.process(
        3,
        1,
        "SSH_CONNECTION=203.0.113.1 1 198.51.100.1 22",
        "/dev/null",
    );
    let found = fake.host().find(None, 9).expect("a session");
    assert_eq!(found.evidence, Evidence::Ancestor(5));
    assert_eq!(found.peer.to_string(), "203.0.113.9:40000");
}

/// The environment of process 1 describes no login.
#[test]
fn process_1_is_not_used() {
    let fake = FakeHost::new();
    fake.process(7, 1, "", "/dev/null");
    fake.process(1, 0, CONNECTION, "/dev/null");
    assert_eq!(fake.host().find(None, 7), None);
}

/// Process ids are reused, so the parents that are read one after the other can form a cycle.
#[test]
fn a_cycle_of_ancestors_ends() {
    let fake = FakeHost::new();
    fake.process(7, 5, "", "/dev/null");
    fake.process(5, 7, "", "/dev/null");
    assert_eq!(fake.host().find(None, 7), None);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_login_at_the_terminal_is_the_last_resort() {
    for (line, host, expected) in [
        ("pts/3", "203.0.113.9", Some("203.0.113.9:0")),
        (
            "pts/3",
            "203.0.113.9 via mosh [4711]",
            Some("203.0.113.9:0"),
        ),
        ("pts/3", "::ffff:203.0.113.9", Some("203.0.113.9:0")),
        ("pts/3", "fe80::9%eth1", Some("[fe80::9]:0")),
        ("pts/4", "203.0.113.9", None),
        ("pts/3", "laptop.example", None),
        ("pts/3", ":0", None),
        ("pts/3", "", None),
    ] {
        let fake = FakeHost::new();
        // sudo has given the command a terminal of its own.
        fake.process(7, 5, "", "/dev/pts/9");
        fake.process(5, 1, "", "/dev/pts/3");
        fake.login(line, host);
        let found = fake.host().find(None, 7);
        let peer = found.as_ref().map(|session| session.peer.to_string());
        assert_eq!(peer.as_deref(), expected, "{line} {host:?}");
        if let Some(session) = found {
            assert!(session.local.ip().is_unspecified());
            assert_eq!(
                (session.local.port(), session.evidence),
                (22, Evidence::Login(line.to_owned()))
            );
        }
    }
}

#[test]
fn sessions_round_trip_as_json() {
    let session = session("fe80::9", "fe80::1", Some("eth1"));
    let text = serde_json::to_string(&session).expect("JSON");
    assert_eq!(serde_json::from_str::<Session>(&text).ok(), Some(session));
}

fn session(peer: &str, local: &str, interface: Option<&str>) -> Session {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    Session {
        peer: SocketAddr::new(address(peer), 40_000),
        local: SocketAddr::new(address(local), 22),
        interface: interface.map(str::to_owned),
        evidence: Evidence::Environment,
    }
}

/// A configuration and its tables; lists in files are empty.
fn compiled(text: &str) -> (Config, Tables) {
    let config = Config::parse(text, Path::new("/etc/allowlist/a.toml"))
        .unwrap_or_else(|error| panic!("{error}"));
    let lists: Snapshot = config
        .policy
        .sources
        .iter()
        .map(|source| {
            let prefixes = match &source.origin {
                Origin::Prefixes(prefixes) => prefixes.clone(),
                _ => Vec::new(),
            };
            (
                source.name.clone(),
                Feed::new(prefixes, jiff::Timestamp::UNIX_EPOCH).into(),
            )
        })
        .collect();
    let tables = compile(&config.policy, &lists, 100, &IdTable::default()).expect("a small policy");
    (config, tables)
}

/// `eth0` and `eth1`, `br0` with port `eth2`, and an address on an interface on which no packet arrives.
fn this_host() -> Vec<HostInterface> {
    let interface = |name: &str, addresses: &[&str], below: &[&str], receives| HostInterface {
        name: name.to_owned(),
        addresses: addresses
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect(),
        below: below.iter().map(|&name| name.to_owned()).collect(),
        receives,
    };
    vec![
        interface("br0", &["192.0.2.1"], &["eth2"], true),
        interface("dummy0", &["192.0.2.99"], &[], false),
        interface(
            "eth0",
            &["198.51.100.1", "2001:db8:1::1", "fe80::1"],
            &[],
            true,
        ),
        interface("eth1", &["198.51.101.1", "fe80::1"], &[], true),
        interface("eth2", &[], &[], true),
        interface("lo", &["127.0.0.1", "::1"], &[], false),
    ]
}

const OPEN: &str = "";
/// Peers in `203.0.113.0/24` and `2001:db8:9::/48` reach SSH.
const RESTRICTED: &str = "
[services.ssh]
ports = ['tcp/22']
allow = ['office']
[sources.office]
prefixes = ['203.0.113.0/24', '2001:db8:9::/48']
";

#[track_caller]
fn check_lockout(
    (peer, local, zone): (&str, &str, Option<&str>),
    before: Option<&str>,
    after: &str,
    expected: Option<&str>,
) {
    let before = before.map(compiled);
    let (config, tables) = compiled(after);
    let found = evaluate(
        &session(peer, local, zone),
        &this_host(),
        before
            .as_ref()
            .map(|(config, tables)| config.generation(config.mode, tables)),
        config.generation(config.mode, &tables),
        ChangeOrigin::Command,
    );
    let interface = found.as_ref().map(|error| &*error.interface);
    assert_eq!(interface, expected, "{peer} to {local} by {after}");
}

#[test]
fn changes_that_cut_the_session() {
    let on = |interfaces: &str, rest: &str| format!("interfaces = [{interfaces}]\n{rest}");
    let restricted = &*on("'eth0', 'eth1', 'eth2'", RESTRICTED);
    let friend = ("203.0.113.9", "198.51.100.1", None);
    let stranger = ("192.0.2.200", "198.51.100.1", None);
    check_lockout(friend, None, restricted, None);
    check_lockout(stranger, None, restricted, Some("eth0"));
    check_lockout(
        ("2001:db8:9::1", "2001:db8:1::1", None),
        None,
        restricted,
        None,
    );
    check_lockout(
        ("2001:db8:8::1", "2001:db8:1::1", None),
        None,
        restricted,
        Some("eth0"),
    );
    // The interface with the local address decides.
    check_lockout(stranger, None, &on("'eth1'", RESTRICTED), None);
    check_lockout(
        ("192.0.2.200", "198.51.101.1", None),
        None,
        restricted,
        Some("eth1"),
    );
    check_lockout(
        ("192.0.2.200", "192.0.2.1", None),
        None,
        restricted,
        Some("eth2"),
    );
    check_lockout(
        ("fe80::9", "fe80::1", Some("eth1")),
        None,
        restricted,
        Some("eth1"),
    );
    check_lockout(("fe80::9", "fe80::1", None), None, restricted, Some("eth0"));
    // All filtered interfaces if the local address is unknown.
    check_lockout(
        ("192.0.2.200", "0.0.0.0", None),
        None,
        restricted,
        Some("eth0"),
    );
    check_lockout(
        ("192.0.2.200", "192.0.2.99", None),
        None,
        &on("'eth1'", RESTRICTED),
        Some("eth1"),
    );
    check_lockout(friend, None, &on("'eth0'", OPEN), None);
    // Connections from this host itself arrive on loopback only.
    check_lockout(
        ("198.51.100.1", "198.51.100.1", None),
        None,
        restricted,
        None,
    );
    check_lockout(("127.0.0.1", "127.0.0.1", None), None, restricted, None);
    check_lockout(
        ("127.0.0.1", "127.0.0.1", None),
        None,
        &on("'lo'", RESTRICTED),
        Some("lo"),
    );
    // Connections that are dropped already are not cut by the change.
    check_lockout(stranger, Some(restricted), restricted, None);
    check_lockout(
        stranger,
        Some(&on("'eth1'", RESTRICTED)),
        restricted,
        Some("eth0"),
    );
    check_lockout(
        stranger,
        Some(&on("'eth0'", OPEN)),
        restricted,
        Some("eth0"),
    );
    // Observe mode drops nothing.
    let observing = format!("mode = 'observe'\n{restricted}");
    check_lockout(stranger, None, &observing, None);
    check_lockout(stranger, Some(&observing), restricted, Some("eth0"));
    // No service covers the port, and the default is to drop.
    let closed = on("'eth0'", "default = 'drop'\n");
    check_lockout(friend, None, &closed, Some("eth0"));
    check_lockout(friend, Some(restricted), &closed, Some("eth0"));
    let elsewhere = RESTRICTED.replace("allow", "interfaces = ['eth1']\nallow");
    let elsewhere = format!("default = 'drop'\n{}", on("'eth0', 'eth1'", &elsewhere));
    check_lockout(friend, None, &elsewhere, Some("eth0"));
    check_lockout(
        ("203.0.113.9", "198.51.101.1", None),
        None,
        &elsewhere,
        None,
    );
}

#[test]
fn refusals_name_the_reason_and_the_remedy() {
    let office = "prefixes = ['203.0.113.0/24', '2001:db8:9::/48']";
    let mut refusals = String::new();
    for (title, rest, by) in [
        ("a command", RESTRICTED.to_owned(), ChangeOrigin::Command),
        (
            "a configuration whose source has prefixes",
            RESTRICTED.to_owned(),
            ChangeOrigin::Configuration,
        ),
        (
            "a configuration whose source is a file",
            RESTRICTED.replace(office, "file = 'office.txt'"),
            ChangeOrigin::Configuration,
        ),
        (
            "a configuration whose source is a provider",
            RESTRICTED.replace(office, "provider = 'workato'"),
            ChangeOrigin::Configuration,
        ),
        (
            "no service, by a command",
            "default = 'drop'".to_owned(),
            ChangeOrigin::Command,
        ),
        (
            "no service, by a configuration",
            "default = 'drop'".to_owned(),
            ChangeOrigin::Configuration,
        ),
    ] {
        let (config, tables) = compiled(&format!("interfaces = ['eth0']\n{rest}"));
        let after = config.generation(Mode::Enforce, &tables);
        let session = session("192.0.2.200", "198.51.100.1", None);
        let error = evaluate(&session, &this_host(), None, after, by).expect("a refusal");
        writeln!(refusals, "{title}:\n{error}\n").expect("a string takes any text");
    }
    expect_file!["snapshots/refusals.txt"].assert_eq(&refusals);
}

#[test]
fn evidence_is_named() {
    let evidence = [
        Evidence::Environment,
        Evidence::Ancestor(4711),
        Evidence::Login("pts/3".to_owned()),
    ];
    let texts = evidence.map(|one| one.to_string()).join("\n");
    expect![[r#"
        SSH_CONNECTION of this process
        SSH_CONNECTION of process 4711
        the login at pts/3"#]]
    .assert_eq(&texts);
}
