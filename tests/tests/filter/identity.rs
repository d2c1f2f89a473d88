//! The identity of interfaces: an index is unique only in a network namespace, and a name can move to another card.

use allowlist_common::abi::VERSION;
use allowlist_tests::lab::{Ended, Namespace, Snapshot, move_to, rename};
use expect_test::expect_file;
use nix::net::if_::if_nametoindex;

use super::lifecycle::xdp_program;
use super::*;

/// `web` is limited to one interface name; its port is open on other interfaces.
const LIMITED: &str = r#"
    interfaces = ["vi", "vj"]
    [services.web]
    ports = ["udp/443"]
    interfaces = ["vi"]
    allow = ["friends"]
    [sources.friends]
    prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
"#;

fn start(testbed: &Testbed, config: &str) -> anyhow::Result<Program> {
    let config = testbed.scratch.write("identity.toml", config)?;
    testbed.filter(&["--config", &config.display().to_string()])
}

fn ip_link(namespace: &Namespace, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = namespace.command("ip")?;
    command.arg("link").args(arguments);
    let ended = Ended::of(command)?;
    anyhow::ensure!(ended.code == Some(0), "{arguments:?}: {ended:?}");
    Ok(())
}

/// Two links, whose ends at the peer have the same names as at the host: `vi` and `vj`.
fn two_links() -> anyhow::Result<Testbed> {
    let testbed = Testbed::new()?;
    for (number, name) in [(3, "vi"), (4, "vj")] {
        link(&testbed, number, name)?;
    }
    Ok(testbed)
}

fn link(testbed: &Testbed, number: u8, name: &str) -> anyhow::Result<()> {
    let v4 = |end| format!("198.51.10{number}.{end}/24");
    let v6 = |end| format!("2001:db8:{number}::{end}/64");
    testbed.link(name, [&v4(1), &v6(1)], [&v4(2), &v6(2)])
}

/// Reports whether a stranger's packet to `web` over the peer's interface of this name is dropped.
fn stranger_is_dropped(testbed: &Testbed, peers: &str) -> anyhow::Result<bool> {
    let dropped = || -> anyhow::Result<u64> {
        let status = testbed.json("status")?;
        let services = &status["services"]["web"]["dropped_packets"];
        services.as_u64().context("a number")
    };
    let total = || -> anyhow::Result<u64> {
        let status = testbed.json("status")?;
        let counters = status["counters"].as_object().context("an object")?;
        let passed = counters
            .values()
            .map(|of| of["pass"]["default"].as_u64().unwrap_or(0));
        Ok(passed.sum::<u64>() + dropped()?)
    };
    let (before, sum) = (dropped()?, total()?);
    let sender = FrameSender::new(&testbed.peer, peers)?;
    sender.send(&datagram(ip(STRANGERS[0]), PROTECTED, b"hello"))?;
    eventually(|| Ok(total()? > sum))?;
    Ok(dropped()? > before)
}

fn wait_for_filter(testbed: &Testbed, filter: &Program, names: &[&str]) -> anyhow::Result<()> {
    eventually(|| {
        let status = testbed.json("status")?;
        let interfaces = status["interfaces"].as_array().context("an array")?;
        let attached = interfaces.iter().filter(|one| one["attached"] == true);
        let mut found: Vec<&str> = attached.filter_map(|one| one["name"].as_str()).collect();
        found.sort_unstable();
        Ok(found == names)
    })
    .with_context(|| filter.output())
}

/// udev may swap names: a service that is limited to a name applies to the card that has the name.
#[test]
fn limited_services_follow_swapped_names() -> anyhow::Result<()> {
    require_root!();
    let testbed = two_links()?;
    let mut filter = start(&testbed, LIMITED)?;
    // The peer's ends keep their names, and so distinguish the cards.
    assert!(stranger_is_dropped(&testbed, "vi")?);
    assert!(!stranger_is_dropped(&testbed, "vj")?);
    for (from, to) in [("vi", "tmp"), ("vj", "vi"), ("tmp", "vj")] {
        rename(&testbed.host, from, to)?;
    }
    eventually(|| stranger_is_dropped(&testbed, "vj")).with_context(|| filter.output())?;
    assert!(!stranger_is_dropped(&testbed, "vi")?, "{}", filter.output());
    assert_eq!(testbed.json("status")?["differences"], json!([]));
    filter.stop(Signal::SIGTERM, SOON)?;
    // Without a daemon, `status` reports a difference until the next start.
    for (from, to) in [("vi", "tmp"), ("vj", "vi"), ("tmp", "vj")] {
        rename(&testbed.host, from, to)?;
    }
    let status = testbed.run(&["status", "--json"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    let status: Value = serde_json::from_str(&status.stdout)?;
    let kinds = ["interface-renamed"; 2];
    for (difference, kind) in status["differences"]
        .as_array()
        .context("an array")?
        .iter()
        .zip(kinds)
    {
        assert_eq!(difference["kind"], kind, "{status}");
    }
    let _filter = start(&testbed, LIMITED)?;
    assert!(stranger_is_dropped(&testbed, "vi")? && !stranger_is_dropped(&testbed, "vj")?);
    assert_eq!(testbed.json("status")?["filtering"], true);
    Ok(())
}

/// The counters of a card stay visible after renames.
#[test]
fn counters_stay_visible_under_each_name() -> anyhow::Result<()> {
    require_root!();
    let testbed = two_links()?;
    let filter = start(&testbed, &LIMITED.replace(r#"["vi", "vj"]"#, r#"["vi"]"#))?;
    assert!(stranger_is_dropped(&testbed, "vi")?);
    rename(&testbed.host, "vi", "old")?;
    wait_for_filter(&testbed, &filter, &["old"])?;
    eventually(|| Ok(testbed.json("status")?["interfaces"][0]["name"] == "old"))?;
    for name in ["vi", "old"] {
        testbed.check_counted(name, &json!({"drop not-allowed": 1}))?;
    }
    rename(&testbed.host, "vj", "vi")?;
    wait_for_filter(&testbed, &filter, &["old", "vi"])?;
    testbed.check_counted("old", &json!({"drop not-allowed": 1}))?;
    testbed.check_counted("vi", &json!({}))?;
    assert!(stranger_is_dropped(&testbed, "vj")?, "{}", filter.output());
    testbed.check_counted("vi", &json!({"drop not-allowed": 1}))?;
    Ok(())
}

/// The index of a card that was moved to another namespace is reused.
#[test]
fn an_index_in_another_namespace_is_another_interface() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let elsewhere = Namespace::new()?;
    let config = LIMITED.replace(r#"["vi", "vj"]"#, r#"["vi"]"#);
    link(&testbed, 3, "vi")?;
    let index = testbed.host.run(|| if_nametoindex("vi"))?;
    let mut filter = start(&testbed, &config)?;
    move_to(&testbed.host, "vi", &elsewhere)?;
    filter.wait_for_line("warning[missing-interface]: vi", SOON)?;
    let status = testbed.run(&["status", "--json"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    assert!(status.stdout.contains("interface-moved"), "{status:?}");
    ip_link(
        &testbed.host,
        &[
            "add",
            "vi",
            "index",
            &index.to_string(),
            "type",
            "veth",
            "peer",
            "name",
            "pi",
        ],
    )?;
    wait_for_filter(&testbed, &filter, &["vi"])?;
    assert!(
        xdp_program(&testbed, "vi")?.is_some(),
        "{}",
        filter.output()
    );
    assert_eq!(testbed.json("status")?["differences"], json!([]));
    // The moved card keeps its filter, and a restart distinguishes both cards.
    filter.stop(Signal::SIGTERM, SOON)?;
    let filter = start(&testbed, &config)?;
    assert!(
        xdp_program(&testbed, "vi")?.is_some(),
        "{}",
        filter.output()
    );
    assert_eq!(testbed.json("status")?["filtering"], true);
    Ok(())
}

/// Two namespaces whose `eth0` has the same index share a state directory, pin directory and socket.
#[test]
fn a_filter_of_another_namespace_is_not_adopted() -> anyhow::Result<()> {
    require_root!();
    let mut testbed = Testbed::new()?;
    let program = |testbed: &Testbed| xdp_program(testbed, "eth0");
    testbed
        .filter(&INLINE_OPTIONS)?
        .stop(Signal::SIGTERM, SOON)?;
    let first = program(&testbed)?;
    assert!(first.is_some());
    let index = testbed.host.run(|| if_nametoindex("eth0"))?;
    let other = Namespace::new()?;
    let index = index.to_string();
    ip_link(&other, &["add", "eth0", "index", &index, "type", "bridge"])?;
    let host = std::mem::replace(&mut testbed.host, other);
    let run = testbed.run(&[&["run"], &INLINE_OPTIONS[..]].concat())?;
    assert_eq!(run.code, Some(1), "{run:?}");
    for part in ["error[other-namespace]: ", "eth0", "net:["] {
        assert!(run.stderr.contains(part), "{part}: {run:?}");
    }
    let mut snapshot = Snapshot::new();
    snapshot.ended("run", &run, Some(&testbed.scratch));
    assert_eq!(program(&testbed)?, None, "{run:?}");
    let status = testbed.run(&["status", "--json"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    assert!(status.stdout.contains("other-namespace"), "{status:?}");
    let detach = testbed.run(&["detach"])?;
    assert_eq!(detach.code, Some(1), "{detach:?}");
    let code = "error[other-namespace]: ";
    assert!(detach.stderr.contains(code), "{detach:?}");
    snapshot.ended("detach", &detach, Some(&testbed.scratch));
    snapshot.check(&expect_file!["snapshots/other_namespace.txt"]);
    // The filter of the other namespace is unchanged.
    let other = std::mem::replace(&mut testbed.host, host);
    assert_eq!(program(&testbed)?, first);
    assert_eq!(testbed.json("status")?["filtering"], true);
    assert!(!gets_through(&testbed, STRANGERS[0])?);
    let host = std::mem::replace(&mut testbed.host, other);
    let detach = testbed.run(&["detach", "--force"])?;
    assert_eq!(detach.code, Some(0), "{detach:?}");
    testbed.host = host;
    assert_eq!(program(&testbed)?, None);
    assert!(
        !testbed
            .scratch
            .pin_dir()
            .join(format!("v{VERSION}"))
            .exists()
    );
    Ok(())
}

/// An interface has one set of services, under any of its names.
#[test]
fn an_interface_may_be_configured_under_one_name_only() -> anyhow::Result<()> {
    require_root!();
    let testbed = two_links()?;
    ip_link(
        &testbed.host,
        &["property", "add", "dev", "vi", "altname", "enp0s3"],
    )?;
    // A service may use another name of the interface than the top-level key.
    let config = LIMITED.replace(r#"interfaces = ["vi"]"#, r#"interfaces = ["enp0s3"]"#);
    let filter = start(&testbed, &config)?;
    assert!(stranger_is_dropped(&testbed, "vi")? && !stranger_is_dropped(&testbed, "vj")?);
    assert!(
        !filter.stderr().contains("services.web"),
        "{}",
        filter.output()
    );
    // Both names in the top-level key are an error.
    let index = testbed.host.run(|| if_nametoindex("vi"))?;
    let both = config.replace(r#"["vi", "vj"]"#, r#"["vi", "enp0s3"]"#);
    let path = testbed.scratch.write("identity.toml", &both)?;
    let path = path.display().to_string();
    let reload = testbed.run(&["reload"])?;
    let check = testbed.run(&["check", "--config", &path])?;
    drop(filter);
    let run = testbed.run(&["run", "--config", &path])?;
    let mut snapshot = Snapshot::new();
    for (title, ended) in [("reload", reload), ("check", check), ("run", run)] {
        assert_eq!(ended.code, Some(1), "{ended:?}");
        for part in ["error", "vi", "enp0s3"] {
            assert!(ended.stderr.contains(part), "{ended:?}");
        }
        let stderr = ended
            .stderr
            .replace(&format!("index {index}"), "index <index>");
        snapshot.text(title, &stderr, Some(&testbed.scratch));
    }
    snapshot.check(&expect_file!["snapshots/two_names.txt"]);
    Ok(())
}
