//! `explain --to`: its verdicts are those that programs get, for each destination and unit; and its output.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use allowlist_tests::lab::{Cgroup, Snapshot, Testbed};
use allowlist_tests::name_server::{NameServer, Reply};
use allowlist_tests::require_root;
use expect_test::expect_file;
use nix::sys::signal::Signal;
use regex::Regex;
use serde_json::json;

use super::names::{SERVERS, SOON, records, resolve, resolvers, rule, serve, start_unpolled};
use super::services::service_name;
use super::*;

/// Each destination with a protocol, a port, and the reason for the verdict in the service and elsewhere.
const DESTINATIONS: [(&str, &str, u16, &str, &str); 22] = [
    ("127.0.0.1", "udp", 443, "local", "local"),
    ("::1", "udp", 443, "local", "local"),
    ("198.51.100.1", "udp", 9, "local", "local"),
    ("2001:db8:1::1", "udp", 9, "local", "local"),
    ("198.51.100.2", "udp", 5300, "resolver", "resolver"),
    ("2001:db8:1::2", "udp", 5300, "resolver", "resolver"),
    ("198.51.100.2", "udp", 443, "allowed", "allowed"),
    ("2001:db8:1::2", "udp", 443, "allowed", "allowed"),
    ("::ffff:198.51.100.2", "udp", 443, "allowed", "allowed"),
    ("64:ff9b::198.51.100.2", "udp", 443, "allowed", "allowed"),
    ("198.51.100.2", "udp", 80, "default", "default"),
    ("2001:db8:1::2", "udp", 80, "default", "default"),
    ("192.0.2.77", "udp", 443, "allowed-name", "default"),
    ("2001:db8:bad::77", "udp", 443, "allowed-name", "default"),
    ("::ffff:192.0.2.77", "udp", 443, "allowed-name", "default"),
    ("192.0.2.81", "udp", 443, "allowed-name", "default"),
    ("10.9.9.9", "udp", 443, "closed-range", "closed-range"),
    ("fd00::9", "udp", 443, "closed-range", "closed-range"),
    (
        "::ffff:10.9.9.9",
        "udp",
        443,
        "closed-range",
        "closed-range",
    ),
    ("192.0.2.99", "udp", 443, "default", "default"),
    ("2001:db8:bad::99", "udp", 443, "default", "default"),
    ("192.0.2.99", "icmp", 0, "default", "default"),
];

/// The names that the service may reach, on UDP and TCP port 443.
const NAMES: [&str; 2] = ["events.example.com", "*.wild.example.net"];

/// A policy with rules for every program and for a service, after a resolver has answered names. The fields are dropped in
/// this order: a cgroup cannot be removed before those in it.
struct Scene {
    _server: Program,
    daemon: Program,
    /// The name of the service, and its cgroup in `root`.
    service: (String, Cgroup),
    other: Cgroup,
    root: Cgroup,
    testbed: Testbed,
}

impl Scene {
    /// Returns the scene with further lines of `[egress]`.
    fn new(settings: &str) -> anyhow::Result<Self> {
        let (testbed, root) = (Testbed::new()?, Cgroup::slice()?);
        testbed
            .host
            .run(|| fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"))?;
        let name = service_name(&root);
        let (service, other) = (root.child(&name)?, root.child("other.service")?);
        let names = rule(&NAMES).replacen("ports", &format!("units = [\"{name}\"]\nports"), 1);
        let rules = format!("{}{settings}{PARTNER}{names}", resolvers());
        let daemon = start_unpolled(&testbed, &root, &rules)?;
        let table = json!({
            "events.example.com": records(&[("A", "192.0.2.77"), ("AAAA", "2001:db8:bad::77")]),
            "a.wild.example.net": records(&[("A", "192.0.2.81")]),
            "unlisted.example.org": records(&[("A", "192.0.2.90")]),
            "rebound.wild.example.net": records(&[("A", "10.9.9.9")]),
        });
        let server = serve(&testbed.peer, SERVERS[0], &table)?;
        let questions = [
            "events.example.com",
            "events.example.com/AAAA",
            "a.wild.example.net",
            "unlisted.example.org",
            "rebound.wild.example.net",
        ];
        resolve(&testbed.host, &service, SERVERS[0], &questions)?;
        Ok(Self {
            _server: server,
            daemon,
            service: (name, service),
            other,
            root,
            testbed,
        })
    }

    fn explain(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        self.testbed
            .run(&[&["explain", "--to"], arguments].concat())
    }

    fn document(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
        let ended = self.explain(&[arguments, &["--json"]].concat())?;
        let document = serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))?;
        Ok((ended.code, document))
    }

    /// Adds the output of a question to a snapshot, without times and the name of the test's cgroup.
    fn add(&self, snapshot: &mut Snapshot, arguments: &[&str]) -> anyhow::Result<()> {
        let mut ended = self.explain(arguments)?;
        ended.stdout = self.redacted(&ended.stdout)?;
        let title = self.redacted(&arguments.join(" "))?;
        snapshot.ended(&title, &ended, Some(&self.testbed.scratch));
        Ok(())
    }

    fn redacted(&self, text: &str) -> anyhow::Result<String> {
        let left = Regex::new(r"\bin \d+[smhd]\b")?;
        let seconds = Regex::new(r#""seconds_left": \d+"#)?;
        // The daemon may have tried again between both reports.
        let failure = Regex::new(r#"(?m)^polling failed: .*\n|^ *"failure(_code)?": .*\n"#)?;
        let padding = Regex::new(r"(\S) {2,}(\S)")?;
        let (name, path) = (
            &self.service.0,
            self.root.below_root().display().to_string(),
        );
        let text = text
            .replace(name, "alertd.service")
            .replace(&path, "/root.slice");
        let text = failure.replace_all(&text, "");
        let text = left.replace_all(&text, "in <left>");
        let text = seconds.replace_all(&text, "\"seconds_left\": <left>");
        Ok(padding.replace_all(&text, "$1  $2").into_owned())
    }
}

/// Returns the results of the calls to all destinations of programs in a cgroup: whether each passed.
fn calls(scene: &Scene, cgroup: &Cgroup) -> anyhow::Result<Vec<bool>> {
    let calls: Vec<_> = DESTINATIONS
        .iter()
        .map(|(to, protocol, port, ..)| {
            let kind = match (to.strip_prefix("::ffff:"), *protocol) {
                (Some(_), _) => "mapped_udp_connect",
                (None, "icmp") => "ping_connect",
                _ => "udp_connect",
            };
            (kind, to.trim_start_matches("::ffff:"), *port)
        })
        .collect();
    let results = call(&scene.testbed.host, cgroup, &calls)?;
    Ok(results.iter().map(|result| result != "EPERM").collect())
}

#[test]
fn verdicts_are_those_that_programs_get() -> anyhow::Result<()> {
    require_root!();
    let scene = Scene::new("")?;
    let (name, service) = &scene.service;
    let path = service.below_root().display().to_string();
    let below = format!("{path}/below");
    let other = scene.other.below_root().display().to_string();
    let (in_service, elsewhere) = (calls(&scene, service)?, calls(&scene, &scene.other)?);
    assert_eq!(calls(&scene, &scene.root)?, elsewhere);
    for (unit, passed, is_service) in [
        (Some(name), &in_service, true),
        (Some(&below), &in_service, true),
        (Some(&other), &elsewhere, false),
        (None, &elsewhere, false),
    ] {
        for ((to, protocol, port, of_service, of_others), passed) in
            DESTINATIONS.into_iter().zip(passed)
        {
            let port = match protocol {
                "icmp" => "icmp".to_owned(),
                _ => format!("{protocol}/{port}"),
            };
            let mut arguments = vec![to, "--port", &port];
            arguments.extend(unit.iter().flat_map(|unit| ["--unit", unit]));
            let (code, document) = scene.document(&arguments)?;
            let decision = &document["addresses"][0]["decisions"][0];
            let reason = if is_service { of_service } else { of_others };
            let verdict = if *passed { "pass" } else { "refuse" };
            let found = (
                code,
                &document["verdict"],
                &decision["reason"],
                &decision["verdict"],
            );
            let expected = (
                Some(if *passed { 0 } else { 3 }),
                &json!(verdict),
                &json!(reason),
                &json!(verdict),
            );
            assert_eq!(found, expected, "{arguments:?}: {document}");
        }
    }
    Ok(())
}

/// The texts, with a daemon and without one.
#[test]
fn texts_have_the_rules_and_the_addresses() -> anyhow::Result<()> {
    require_root!();
    let mut scene = Scene::new("")?;
    let name = scene.service.0.clone();
    let path = scene.service.1.below_root().display().to_string();
    let questions: [&[&str]; 17] = [
        &["events.example.com", "--port", "tcp/443", "--unit", &name],
        &["events.example.com", "--port", "tcp/443"],
        &["events.example.com", "--unit", &path],
        &["b.wild.example.net", "--port", "tcp/443", "--unit", &name],
        &["wild.example.net", "--port", "tcp/443", "--unit", &name],
        &["a.events.example.com", "--port", "tcp/443"],
        &["event.example.com", "--port", "tcp/443"],
        &["unrelated.test", "--port", "tcp/443"],
        &["192.0.2.77", "--port", "tcp/443", "--unit", &name],
        &["192.0.2.77", "--port", "tcp/443"],
        &["::ffff:192.0.2.77", "--port", "tcp/80", "--unit", &name],
        &["64:ff9b::198.51.100.2", "--port", "tcp/443"],
        &["198.51.100.2"],
        &["198.51.100.2", "--unit", "absent.service"],
        &["10.9.9.9", "--port", "icmp", "--unit", &name],
        &["127.0.0.1"],
        &["192.0.2.99", "--port", "tcp/443", "--unit", "/elsewhere"],
    ];
    let texts = |scene: &Scene| {
        let mut snapshot = Snapshot::new();
        for question in questions {
            scene.add(&mut snapshot, question)?;
        }
        anyhow::Ok(snapshot)
    };
    let file = expect_file!["snapshots/explaining.txt"];
    texts(&scene)?.check(&file);
    scene.daemon.stop(Signal::SIGKILL, SOON)?;
    texts(&scene)?.check(&file);

    let mut snapshot = Snapshot::new();
    for question in [
        &[
            "events.example.com",
            "--port",
            "tcp/443",
            "--unit",
            &name,
            "--json",
        ][..],
        &["198.51.100.2", "--json"],
    ] {
        scene.add(&mut snapshot, question)?;
    }
    for arguments in [
        &["198.51.100.2", "--port", "sctp/443"][..],
        &["198.51.100.2", "--unit", "alertd"],
        &["*.example.net"],
        &["198.51.100.2", "198.51.100.2"],
        &["198.51.100.2", "--iface", "eth0"],
    ] {
        scene.add(&mut snapshot, arguments)?;
    }
    let ended = scene
        .testbed
        .run(&["explain", "198.51.100.2", "--unit", "a.service"])?;
    snapshot.ended("a unit without --to", &ended, None);
    snapshot.check(&expect_file!["snapshots/explaining_json.txt"]);
    Ok(())
}

/// In observe mode the call passes, and names that no rule lists are known too.
#[test]
fn observe_mode_is_told() -> anyhow::Result<()> {
    require_root!();
    let scene = Scene::new("mode = \"observe\"\n")?;
    let mut snapshot = Snapshot::new();
    for question in [
        &["192.0.2.99", "--port", "tcp/443"][..],
        &["unlisted.example.org", "--port", "tcp/443"],
        &["198.51.100.2", "--port", "tcp/443"],
    ] {
        scene.add(&mut snapshot, question)?;
    }
    snapshot.check(&expect_file!["snapshots/explaining_observed.txt"]);
    let (code, document) = scene.document(&["192.0.2.99", "--port", "tcp/443"])?;
    let found = (
        code,
        &document["verdict"],
        &document["passes"],
        &document["mode"],
    );
    let expected = (Some(3), &json!("refuse"), &json!(true), &json!("observe"));
    assert_eq!(found, expected);
    Ok(())
}

/// Addresses that the daemon polls are those of the sources that list the name; one may be answered too.
#[test]
fn polled_addresses_are_listed() -> anyhow::Result<()> {
    require_root!();
    let (testbed, root) = (Testbed::new()?, Cgroup::slice()?);
    let polled = testbed.host.run(|| {
        NameServer::start([
            (
                "one.example.com",
                Reply::records(["one.example.com 3600 A 20.0.0.1"]),
            ),
            (
                "two.example.com",
                Reply::records(["two.example.com 3600 A 20.0.0.2"]),
            ),
            (
                "only.example.com",
                Reply::records(["only.example.com 3600 A 20.0.0.3"]),
            ),
        ])
    })?;
    let source = |name: &str, rest: &str| {
        format!(
            "\n[sources.{name}]\n{rest}resolvers = [\"{}\"]\nevery = \"24h\"\n",
            polled.address()
        )
    };
    let settings = [
        resolvers(),
        "\n[egress.rules.named]\nto = [\"both\", \"polled\"]\nports = [\"tcp/443\"]\n".to_owned(),
        source(
            "both",
            "names = [\"one.example.com\", \"two.example.com\"]\n",
        ),
        source(
            "polled",
            "names = [\"only.example.com\"]\nanswers = \"poll\"\n",
        ),
    ];
    let daemon = super::start(&testbed, &root, &settings.concat())?;
    let table = json!({
        "one.example.com": records(&[("A", "20.0.0.1"), ("A", "20.0.0.4")]),
        "only.example.com": records(&[("A", "20.0.0.5")]),
    });
    let server = serve(&testbed.peer, SERVERS[0], &table)?;
    let questions = ["one.example.com", "only.example.com"];
    resolve(&testbed.host, &root, SERVERS[0], &questions)?;
    let other = root.child("other.service")?;
    let scene = Scene {
        _server: server,
        daemon,
        service: ("alertd.service".to_owned(), root.child("alertd.service")?),
        other,
        root,
        testbed,
    };
    let mut snapshot = Snapshot::new();
    for name in questions {
        scene.add(&mut snapshot, &[name, "--port", "tcp/443"])?;
    }
    snapshot.check(&expect_file!["snapshots/explaining_polled.txt"]);
    let (code, document) = scene.document(&["one.example.com", "--port", "tcp/443"])?;
    assert_eq!(code, Some(0));
    assert!(
        document["sources"]["both"]["next_fetch"].is_string(),
        "{document}"
    );
    Ok(())
}

/// The daemon gives the same report to users of its socket.
#[test]
fn the_daemon_answers_the_same() -> anyhow::Result<()> {
    require_root!();
    let scene = Scene::new("")?;
    let get = |path: &str| -> anyhow::Result<(String, Value)> {
        let mut stream = UnixStream::connect(scene.testbed.scratch.file("socket"))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: allowlist\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        let status = head.lines().next().unwrap_or_default().to_owned();
        Ok((
            status,
            serde_json::from_str(body).with_context(|| body.to_owned())?,
        ))
    };
    let name = &scene.service.0;
    let (_, mut expected) = scene.document(&["192.0.2.77", "--port", "tcp/443", "--unit", name])?;
    let (status, mut found) = get(&format!(
        "/v1/explain?to=192.0.2.77&port=tcp/443&unit={name}"
    ))?;
    assert_eq!(status, "HTTP/1.1 200 OK");
    for document in [&mut expected, &mut found] {
        let answered = &mut document["addresses"][0]["answered"][0];
        answered
            .as_object_mut()
            .context("an answer")?
            .remove("seconds_left");
        answered
            .as_object_mut()
            .context("an answer")?
            .remove("until");
    }
    assert_eq!(found, expected);
    for query in [
        "to=192.0.2.77&address=192.0.2.77",
        "to=192.0.2.77&iface=eth0",
        "to=192.0.2.0/24",
        "to=192.0.2.77&port=sctp/443",
        "to=192.0.2.77&unit=alertd",
        "address=192.0.2.77&unit=alertd.service",
    ] {
        let (status, document) = get(&format!("/v1/explain?{query}"))?;
        let found = (&*status, &document["code"]);
        let expected = ("HTTP/1.1 400 Bad Request", &json!("invalid-request"));
        assert_eq!(found, expected, "{query}");
    }
    Ok(())
}

#[test]
fn without_a_policy_every_call_passes() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let config = testbed
        .scratch
        .write("allowlist.toml", "interfaces = [\"eth0\"]\n")?;
    let _daemon = testbed.filter(&["--config".as_ref(), config.as_os_str()])?;
    let ended = testbed.run(&["explain", "--to", "192.0.2.77"])?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("error[no-egress-policy]: "),
        "{ended:?}"
    );
    Ok(())
}
