//! Rules by name: a program may connect to the addresses that a resolver answered for a listed name, at once, and to no
//! address that a stranger or a liar answers.

use std::process::Stdio;
use std::time::Duration;

use allowlist_tests::lab::{Cgroup, Ended, Namespace, Program, Testbed};
use allowlist_tests::name_server::{NameServer, Reply};
use allowlist_tests::require_root;
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::*;

/// The peer's addresses, at which its name server listens.
pub(super) const SERVERS: [&str; 2] = ["198.51.100.2", "2001:db8:1::2"];
pub(super) const SOON: Duration = Duration::from_mins(3);

/// The rule for names, which cannot be resolved by polling.
pub(super) fn rule(names: &[&str]) -> String {
    rule_polled(names, "127.0.0.1:9")
}

/// The rule for names that the daemon resolves by the server `polled`.
fn rule_polled(names: &[&str], polled: &str) -> String {
    format!(
        "
[egress.rules.named]
to = [\"named\"]
ports = [\"udp/443\", \"tcp/443\"]

[sources.named]
names = {names:?}
resolvers = [\"{polled}\"]
every = \"24h\"
timeout = \"200ms\"
"
    )
}

/// The lines of `[egress]` with both of the peer's name servers as resolvers, on port 5300.
pub(super) fn resolvers() -> String {
    let servers =
        SERVERS.map(|one| std::net::SocketAddr::new(one.parse().expect("it is one"), 5300));
    format!("resolvers = [\"{}\", \"{}\"]\n", servers[0], servers[1])
}

/// Starts the daemon with the rule, although no name can be resolved by polling.
pub(super) fn start_with(
    testbed: &Testbed,
    cgroup: &Cgroup,
    settings: &str,
    names: &[&str],
) -> anyhow::Result<Program> {
    let settings = format!("{}{settings}{}", resolvers(), rule(names));
    start_unpolled(testbed, cgroup, &settings)
}

/// Starts the daemon with these lines of `[egress]` and other tables, although none of their names can be
/// resolved by polling.
pub(super) fn start_unpolled(
    testbed: &Testbed,
    cgroup: &Cgroup,
    settings: &str,
) -> anyhow::Result<Program> {
    let text = format!("at_start = \"drop\"\n{}", super::config(cgroup, settings));
    let config = testbed.scratch.write("allowlist.toml", text)?;
    testbed.filter(&["--config".as_ref(), config.as_os_str()])
}

/// Starts the name server in a namespace, on port 5300.
pub(super) fn serve(
    namespace: &Namespace,
    address: &str,
    table: &Value,
) -> anyhow::Result<Program> {
    serve_on(namespace, address, 5300, table)
}

/// Starts the name server in a namespace, on a port and the one after it.
pub(super) fn serve_on(
    namespace: &Namespace,
    address: &str,
    port: u16,
    table: &Value,
) -> anyhow::Result<Program> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/egress/name_server.py");
    let mut command = namespace.command("python3")?;
    command
        .arg(script)
        .args([address, &port.to_string(), &table.to_string()])
        .stdout(Stdio::piped());
    let server = Program::start(command)?;
    server.wait_for_line("listening", SOON)?;
    Ok(server)
}

/// Asks for names in the cgroup, and connects: see `resolve.py`.
pub(super) fn resolve(
    namespace: &Namespace,
    cgroup: &Cgroup,
    server: &str,
    questions: &[&str],
) -> anyhow::Result<Value> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/egress/resolve.py");
    let mut command = namespace.command("python3")?;
    command.arg(script).args([server, "5300"]).args(questions);
    cgroup.hold(&mut command)?;
    let ended = Ended::of(command)?;
    ensure!(ended.code == Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))
}

/// Returns a count of answers from `allowlist status --json`.
pub(super) fn answers(testbed: &Testbed, kind: &str) -> anyhow::Result<u64> {
    let status = testbed.json("status")?;
    let count: &Value = &status["egress"]["answers"][kind];
    count.as_u64().with_context(|| status.to_string())
}

fn run_done(testbed: &Testbed, command: &str) -> anyhow::Result<()> {
    let ended = testbed.run(&[command])?;
    ensure!(ended.code == Some(0), "{ended:?}");
    Ok(())
}

pub(super) fn records(lines: &[(&str, &str)]) -> Value {
    let records: Vec<_> = lines
        .iter()
        .map(|(kind, data)| json!([kind, 60, data]))
        .collect();
    json!({ "records": records })
}

fn in_mode(mode: &str, address: &str) -> Value {
    json!({ "records": [["A", 60, address]], "mode": mode })
}

#[test]
fn what_is_answered_may_be_connected_to_at_once() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let many: Vec<_> = (1..=32)
        .map(|n| json!(["A", 60, format!("192.0.2.{n}")]))
        .collect();
    let chain: Vec<_> = (1..=16)
        .map(|n| json!(["CNAME", 60, format!("alias{n}.example.org")]))
        .chain([
            json!(["A", 60, "192.0.2.116"]),
            json!(["AAAA", 60, "2001:db8:bad::116"]),
        ])
        .collect();
    let table = json!({
        "events.example.com": records(&[("A", "192.0.2.77"), ("AAAA", "2001:db8:bad::77")]),
        "many.example.com": { "records": many },
        "chain.example.com": { "records": chain },
        "plain.example.com": { "records": chain, "mode": "plain" },
        "case.example.com": in_mode("case", "192.0.2.78"),
        "mixed.example.com": records(&[("TXT", "192.0.2.99"), ("A", "192.0.2.79")]),
        "other.example.com": records(&[("A", "192.0.2.80")]),
        "a.b.wild.example.net": records(&[("A", "192.0.2.81")]),
        "wild.example.net": records(&[("A", "192.0.2.82")]),
        "notwild.example.net": records(&[("A", "192.0.2.83")]),
    });
    let names = [
        "events.example.com",
        "many.example.com",
        "chain.example.com",
        "plain.example.com",
        "case.example.com",
        "mixed.example.com",
        "*.wild.example.net",
    ];
    let _daemon = start_with(&testbed, &cgroup, "", &names)?;
    for server in SERVERS {
        let _server = serve(&testbed.peer, server, &table)?;
        let questions = [
            "events.example.com",
            "unconnected",
            "events.example.com/AAAA",
            "EVENTS.Example.com",
            "many.example.com",
            "chain.example.com",
            "chain.example.com/AAAA",
            "unconnected",
            "plain.example.com",
            "case.example.com",
            "mixed.example.com",
            "other.example.com",
            "a.b.wild.example.net",
            "wild.example.net",
            "notwild.example.net",
        ];
        let results = resolve(&testbed.host, &cgroup, server, &questions)?;
        let expected = json!([
            ["ok"],
            ["ok"],
            ["ok"],
            vec!["ok"; 32],
            ["ok"],
            ["ok"],
            ["ok"],
            ["ok"],
            ["ok"],
            ["EPERM"],
            ["ok"],
            ["EPERM"],
            ["EPERM"]
        ]);
        assert_eq!(results, expected, "by {server}");
    }
    assert_eq!(answers(&testbed, "malformed")?, 0);
    Ok(())
}

#[test]
fn lies_open_nothing() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let modes = [
        "wrong-id",
        "wrong-name",
        "wrong-type",
        "two-questions",
        "error",
        "port",
        "truncated",
    ];
    let mut table = json!({});
    let mut names = Vec::new();
    let mut questions = Vec::new();
    for (number, mode) in modes.iter().enumerate() {
        let (name, address) = (format!("{mode}.example.com"), format!("192.0.2.{number}"));
        table[&name] = in_mode(mode, &address);
        questions.push(format!("{name}={address}"));
        names.push(name);
    }
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let questions: Vec<&str> = questions.iter().map(|one| &**one).collect();
    let _daemon = start_with(&testbed, &cgroup, "", &names)?;
    let _server = serve(&testbed.peer, SERVERS[0], &table)?;
    let results = resolve(&testbed.host, &cgroup, SERVERS[0], &questions)?;
    assert_eq!(results, json!(vec![["EPERM"]; modes.len()]));
    assert_eq!(answers(&testbed, "truncated")?, 1);
    assert_eq!(answers(&testbed, "addresses")?, 0);

    // A server that is no configured resolver, with the same answer that is believed from a resolver.
    let table = json!({ "error.example.com": records(&[("A", "192.0.2.100")]) });
    let stranger = "2001:db8:1::3";
    allowlist_tests::lab::add_addresses(&testbed.peer, "eth0", &[stranger.parse()?])?;
    let _strange = serve(&testbed.peer, stranger, &table)?;
    let results = resolve(
        &testbed.host,
        &cgroup,
        stranger,
        &["error.example.com=192.0.2.100"],
    );
    // The policy refuses the query itself: the stranger gets none.
    assert!(results.is_err(), "{results:?}");
    Ok(())
}

/// DNS rebinding: an allowed name that is answered with an address of a closed range opens nothing, exact or wildcard.
#[test]
fn rebinding_opens_nothing() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let v4 = ["169.254.169.254", "10.0.0.1", "192.168.1.1", "100.64.0.1"];
    let v6 = ["fd00::1", "64:ff9b::a9fe:a9fe", "::ffff:10.0.0.1"];
    let all = v4
        .map(|one| ("A", one))
        .into_iter()
        .chain(v6.map(|one| ("AAAA", one)));
    let lie = records(&all.collect::<Vec<_>>());
    let table = json!({ "bad.example.com": lie, "bad.wild.example.net": lie });
    let names = ["bad.example.com", "*.wild.example.net"];
    let _daemon = start_with(&testbed, &cgroup, "", &names)?;
    let _server = serve(&testbed.peer, SERVERS[0], &table)?;
    let questions = [
        "bad.example.com",
        "bad.example.com/AAAA",
        "bad.wild.example.net",
        "bad.wild.example.net/AAAA",
    ];
    let results = resolve(&testbed.host, &cgroup, SERVERS[0], &questions)?;
    let refused = json!([
        vec!["EPERM"; 4],
        vec!["EPERM"; 3],
        vec!["EPERM"; 4],
        vec!["EPERM"; 3]
    ]);
    assert_eq!(results, refused);
    assert_eq!(answers(&testbed, "closed-range")?, 14);
    assert_eq!(answers(&testbed, "addresses")?, 0);
    Ok(())
}

/// In a network namespace of its own a program could have the address of a resolver, and answer itself.
#[test]
fn answers_in_another_namespace_are_not_believed() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let table = json!({ "events.example.com": records(&[("A", "192.0.2.77")]) });
    let _daemon = start_with(&testbed, &cgroup, "", &["events.example.com"])?;
    // The peer's namespace has the resolver's address itself.
    let _server = serve(&testbed.peer, SERVERS[0], &table)?;
    let question = ["events.example.com"];
    let results = resolve(&testbed.peer, &cgroup, SERVERS[0], &question)?;
    assert_eq!(results, json!([["EPERM"]]));
    assert_eq!(answers(&testbed, "queries")?, 0);
    // The same answer in the daemon's namespace is believed, and then valid for programs in the other one.
    let results = resolve(&testbed.host, &cgroup, SERVERS[0], &question)?;
    assert_eq!(results, json!([["ok"]]));
    Ok(())
}

/// No program is too fast for the kernel: it reads each answer before the program can.
#[test]
fn no_connect_precedes_its_answer() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let count = if std::env::var_os("ALLOWLIST_LONG").is_some() {
        15_000
    } else {
        500
    };
    let names: Vec<String> = (0..400).map(|n| format!("r{n}.example.com")).collect();
    let mut table = json!({});
    for name in &names {
        table[name] = json!({ "records": [], "mode": "fresh" });
    }
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let _daemon = start_with(&testbed, &cgroup, "", &names)?;
    let _server = serve(&testbed.peer, SERVERS[0], &table)?;
    let races: Vec<Value> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let (testbed, cgroup) = (&testbed, &cgroup);
                let race = format!("race={count}/{}", client * 100);
                scope.spawn(move || resolve(&testbed.host, cgroup, SERVERS[0], &[&race]))
            })
            .collect();
        let ended = clients
            .into_iter()
            .map(|client| client.join().expect("it ended"));
        ended.collect::<anyhow::Result<_>>()
    })?;
    assert_eq!(races, vec![json!([[]]); 4]);
    let asked = 4 * count;
    assert_eq!(answers(&testbed, "queries")?, asked);
    assert_eq!(answers(&testbed, "answers")?, asked);
    assert_eq!(answers(&testbed, "addresses")?, asked);
    assert_eq!(counter(&testbed, "probe", "pass", "allowed-name")?, asked);
    Ok(())
}

/// An address is refused after `linger`, by the kernel's clock: also without a daemon.
#[test]
fn addresses_are_refused_after_their_time() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let table = json!({
        "short.example.com": { "records": [["A", 1, "192.0.2.77"]] },
        "long.example.com": { "records": [["CNAME", 3600, "short.example.org"], ["A", 7200, "192.0.2.78"]] },
        "alias.example.com": { "records": [["CNAME", 1, "short.example.org"], ["A", 7200, "192.0.2.79"]] },
    });
    let names = ["short.example.com", "long.example.com", "alias.example.com"];
    let daemon = start_with(&testbed, &cgroup, "linger = \"1s\"\n", &names)?;
    let _server = serve(&testbed.peer, SERVERS[0], &table)?;
    resolve(&testbed.host, &cgroup, SERVERS[0], &names)?;
    drop(daemon);
    let connects = |address| call(&testbed.host, &cgroup, &[("udp_connect", address, 443)]);
    for address in ["192.0.2.77", "192.0.2.79"] {
        allowlist_tests::lab::eventually(|| Ok(connects(address)? == ["EPERM"]))?;
    }
    assert_eq!(connects("192.0.2.78")?, ["ok"]);
    // A new answer opens the way again, without a daemon.
    let results = resolve(&testbed.host, &cgroup, SERVERS[0], &names[..1])?;
    assert_eq!(results, json!([["ok"]]));
    Ok(())
}

/// Learnt addresses stay valid over a publish, and its rule decides at the time of the call; a daemon that starts with
/// empty maps takes the addresses from its state directory.
#[test]
fn addresses_survive_changes_and_starts() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let table = json!({
        "one.example.com": records(&[("A", "192.0.2.77")]),
        "two.example.com": records(&[("A", "192.0.2.77"), ("A", "192.0.2.78")]),
    });
    let names = ["one.example.com", "two.example.com"];
    // The daemon gets another address than the programs.
    let polled = testbed.host.run(|| {
        NameServer::start(names.map(|name| {
            let record = format!("{name} 60 A 20.0.0.200");
            (name, Reply::records([&*record]))
        }))
    })?;
    let write = |names: &[&str]| {
        let rule = rule_polled(names, &polled.address().to_string());
        let text = super::config(&cgroup, &format!("{}{rule}", resolvers()));
        testbed.scratch.write("allowlist.toml", text)
    };
    let config = write(&names)?;
    let start = || testbed.filter(&["--config".as_ref(), config.as_os_str()]);
    let mut daemon = start()?;
    let _server = serve(&testbed.peer, SERVERS[0], &table)?;
    resolve(&testbed.host, &cgroup, SERVERS[0], &names)?;
    let connects = || {
        let addresses = ["192.0.2.77", "192.0.2.78"];
        call(
            &testbed.host,
            &cgroup,
            &addresses.map(|address| ("udp_connect", address, 443)),
        )
    };
    assert_eq!(connects()?, ["ok", "ok"]);
    // The address that both names have stays allowed without the one of them.
    write(&names[..1])?;
    run_done(&testbed, "reload")?;
    assert_eq!(connects()?, ["ok", "EPERM"]);
    write(&names)?;
    run_done(&testbed, "reload")?;
    assert_eq!(connects()?, ["ok", "ok"]);
    // As after a start of the system: without pins, and with the state directory.
    daemon.stop(nix::sys::signal::Signal::SIGTERM, SOON)?;
    run_done(&testbed, "detach")?;
    let _daemon = start()?;
    assert_eq!(connects()?, ["ok", "ok"]);
    Ok(())
}
