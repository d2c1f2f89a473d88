//! Which interface is which: an index is unique in one network namespace only, and a name can move to another card.

use allowlist_common::abi::VERSION;
use allowlist_tests::lab::{Ended, Namespace, Snapshot, move_to, rename};
use expect_test::expect_file;
use nix::net::if_::if_nametoindex;

use super::lifecycle::xdp_program;
use super::*;

/// `web` is on the interface of one name alone; its port is open to all on others.
const LIMITED: &str = r#"
    interfaces = ["vi", "vj"]
    [services.web]
    ports = ["udp/443"]
    interfaces = ["vi"]
    allow = ["friends"]
    [sources.friends]
    prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
"#;

fn start(site: &Testbed, config: &str) -> anyhow::Result<Program> {
    let config = site.scratch.write("identity.toml", config)?;
    site.filter(&["--config", &config.display().to_string()])
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
    let site = Testbed::new()?;
    for (number, name) in [(3, "vi"), (4, "vj")] {
        link(&site, number, name)?;
    }
    Ok(site)
}

fn link(site: &Testbed, number: u8, name: &str) -> anyhow::Result<()> {
    let v4 = |end| format!("198.51.10{number}.{end}/24");
    let v6 = |end| format!("2001:db8:{number}::{end}/64");
    site.link(name, [&v4(1), &v6(1)], [&v4(2), &v6(2)])
}

/// How many packets a stranger to `web` gets dropped that come in by the peer's interface of this name.
fn stranger_is_dropped(site: &Testbed, peers: &str) -> anyhow::Result<bool> {
    let dropped = || -> anyhow::Result<u64> {
        let status = site.json("status")?;
        let services = &status["services"]["web"]["dropped_packets"];
        services.as_u64().context("a number")
    };
    let total = || -> anyhow::Result<u64> {
        let status = site.json("status")?;
        let counters = status["counters"].as_object().context("an object")?;
        let passed = counters
            .values()
            .map(|of| of["pass"]["default"].as_u64().unwrap_or(0));
        Ok(passed.sum::<u64>() + dropped()?)
    };
    let (before, sum) = (dropped()?, total()?);
    let sender = FrameSender::new(&site.peer, peers)?;
    sender.send(&datagram(ip(STRANGERS[0]), PROTECTED, b"hello"))?;
    eventually(|| Ok(total()? > sum))?;
    Ok(dropped()? > before)
}

fn wait_for_filter(site: &Testbed, filter: &Program, names: &[&str]) -> anyhow::Result<()> {
    eventually(|| {
        let status = site.json("status")?;
        let interfaces = status["interfaces"].as_array().context("an array")?;
        let attached = interfaces.iter().filter(|one| one["attached"] == true);
        let mut found: Vec<&str> = attached.filter_map(|one| one["name"].as_str()).collect();
        found.sort_unstable();
        Ok(found == names)
    })
    .with_context(|| filter.output())
}

/// udev does that: a service that is limited to a name follows it to the other card.
#[test]
fn limited_services_follow_swapped_names() -> anyhow::Result<()> {
    require_root!();
    let site = two_links()?;
    let mut filter = start(&site, LIMITED)?;
    // The peer's ends keep their names, and so distinguish the cards.
    assert!(stranger_is_dropped(&site, "vi")?);
    assert!(!stranger_is_dropped(&site, "vj")?);
    for (from, to) in [("vi", "tmp"), ("vj", "vi"), ("tmp", "vj")] {
        rename(&site.host, from, to)?;
    }
    eventually(|| stranger_is_dropped(&site, "vj")).with_context(|| filter.output())?;
    assert!(!stranger_is_dropped(&site, "vi")?, "{}", filter.output());
    assert_eq!(site.json("status")?["differences"], json!([]));
    filter.stop(Signal::SIGTERM, SOON)?;
    // And while no daemon runs, that is a difference, until the next start.
    for (from, to) in [("vi", "tmp"), ("vj", "vi"), ("tmp", "vj")] {
        rename(&site.host, from, to)?;
    }
    let status = site.run(&["status", "--json"])?;
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
    let _filter = start(&site, LIMITED)?;
    assert!(stranger_is_dropped(&site, "vi")? && !stranger_is_dropped(&site, "vj")?);
    assert_eq!(site.json("status")?["filtering"], true);
    Ok(())
}

/// The counters of a card stay visible after renames.
#[test]
fn counters_stay_visible_under_each_name() -> anyhow::Result<()> {
    require_root!();
    let site = two_links()?;
    let filter = start(&site, &LIMITED.replace(r#"["vi", "vj"]"#, r#"["vi"]"#))?;
    assert!(stranger_is_dropped(&site, "vi")?);
    rename(&site.host, "vi", "old")?;
    wait_for_filter(&site, &filter, &["old"])?;
    eventually(|| Ok(site.json("status")?["interfaces"][0]["name"] == "old"))?;
    for name in ["vi", "old"] {
        site.check_counted(name, &json!({"drop not-allowed": 1}))?;
    }
    rename(&site.host, "vj", "vi")?;
    wait_for_filter(&site, &filter, &["old", "vi"])?;
    site.check_counted("old", &json!({"drop not-allowed": 1}))?;
    site.check_counted("vi", &json!({}))?;
    assert!(stranger_is_dropped(&site, "vj")?, "{}", filter.output());
    site.check_counted("vi", &json!({"drop not-allowed": 1}))?;
    Ok(())
}

/// A card that was moved to another namespace leaves its index to the next one.
#[test]
fn an_index_in_another_namespace_is_another_interface() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let elsewhere = Namespace::new()?;
    let config = LIMITED.replace(r#"["vi", "vj"]"#, r#"["vi"]"#);
    link(&site, 3, "vi")?;
    let index = site.host.run(|| if_nametoindex("vi"))?;
    let mut filter = start(&site, &config)?;
    move_to(&site.host, "vi", &elsewhere)?;
    filter.wait_for_line("warning[missing-interface]: vi", SOON)?;
    let status = site.run(&["status", "--json"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    assert!(status.stdout.contains("interface-moved"), "{status:?}");
    ip_link(
        &site.host,
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
    wait_for_filter(&site, &filter, &["vi"])?;
    assert!(xdp_program(&site, "vi")?.is_some(), "{}", filter.output());
    assert_eq!(site.json("status")?["differences"], json!([]));
    // The one that was moved keeps its filter, and a restart knows the two apart.
    filter.stop(Signal::SIGTERM, SOON)?;
    let filter = start(&site, &config)?;
    assert!(xdp_program(&site, "vi")?.is_some(), "{}", filter.output());
    assert_eq!(site.json("status")?["filtering"], true);
    Ok(())
}

/// Two namespaces whose `eth0` has the same index, and one state folder, pin folder and socket.
#[test]
fn a_filter_of_another_namespace_is_not_adopted() -> anyhow::Result<()> {
    require_root!();
    let mut site = Testbed::new()?;
    let program = |site: &Testbed| xdp_program(site, "eth0");
    site.filter(&SMALL)?.stop(Signal::SIGTERM, SOON)?;
    let first = program(&site)?;
    assert!(first.is_some());
    let index = site.host.run(|| if_nametoindex("eth0"))?;
    let other = Namespace::new()?;
    let index = index.to_string();
    ip_link(&other, &["add", "eth0", "index", &index, "type", "bridge"])?;
    let host = std::mem::replace(&mut site.host, other);
    let run = site.run(&[&["run"], &SMALL[..]].concat())?;
    assert_eq!(run.code, Some(1), "{run:?}");
    for part in ["error[other-namespace]: ", "eth0", "net:["] {
        assert!(run.stderr.contains(part), "{part}: {run:?}");
    }
    let mut snapshot = Snapshot::new();
    snapshot.ended("run", &run, Some(&site.scratch));
    assert_eq!(program(&site)?, None, "{run:?}");
    let status = site.run(&["status", "--json"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    assert!(status.stdout.contains("other-namespace"), "{status:?}");
    let detach = site.run(&["detach"])?;
    assert_eq!(detach.code, Some(1), "{detach:?}");
    let code = "error[other-namespace]: ";
    assert!(detach.stderr.contains(code), "{detach:?}");
    snapshot.ended("detach", &detach, Some(&site.scratch));
    snapshot.check(&expect_file!["snapshots/other_namespace.txt"]);
    // Nothing was done to the other namespace's.
    let other = std::mem::replace(&mut site.host, host);
    assert_eq!(program(&site)?, first);
    assert_eq!(site.json("status")?["filtering"], true);
    assert!(!gets_through(&site, STRANGERS[0])?);
    let host = std::mem::replace(&mut site.host, other);
    let detach = site.run(&["detach", "--force"])?;
    assert_eq!(detach.code, Some(0), "{detach:?}");
    site.host = host;
    assert_eq!(program(&site)?, None);
    assert!(!site.scratch.pin_dir().join(format!("v{VERSION}")).exists());
    Ok(())
}

/// An interface has one set of services, under any of its names.
#[test]
fn two_names_of_one_interface() -> anyhow::Result<()> {
    require_root!();
    let site = two_links()?;
    ip_link(
        &site.host,
        &["property", "add", "dev", "vi", "altname", "enp0s3"],
    )?;
    // By a service it may be called as it is not called where it is configured.
    let config = LIMITED.replace(r#"interfaces = ["vi"]"#, r#"interfaces = ["enp0s3"]"#);
    let filter = start(&site, &config)?;
    assert!(stranger_is_dropped(&site, "vi")? && !stranger_is_dropped(&site, "vj")?);
    assert!(
        !filter.stderr().contains("services.web"),
        "{}",
        filter.output()
    );
    // Configured twice it is a mistake.
    let index = site.host.run(|| if_nametoindex("vi"))?;
    let both = config.replace(r#"["vi", "vj"]"#, r#"["vi", "enp0s3"]"#);
    let path = site.scratch.write("identity.toml", &both)?;
    let path = path.display().to_string();
    let reload = site.run(&["reload"])?;
    let check = site.run(&["check", "--config", &path])?;
    drop(filter);
    let run = site.run(&["run", "--config", &path])?;
    let mut snapshot = Snapshot::new();
    for (title, ended) in [("reload", reload), ("check", check), ("run", run)] {
        assert_eq!(ended.code, Some(1), "{ended:?}");
        for part in ["error", "vi", "enp0s3"] {
            assert!(ended.stderr.contains(part), "{ended:?}");
        }
        let stderr = ended
            .stderr
            .replace(&format!("index {index}"), "index <index>");
        snapshot.text(title, &stderr, Some(&site.scratch));
    }
    snapshot.check(&expect_file!["snapshots/two_names.txt"]);
    Ok(())
}
