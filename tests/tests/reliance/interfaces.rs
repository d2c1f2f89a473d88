//! Interfaces that appear, vanish and return are filtered at once, without an effect on others.

use std::time::Instant;

use allowlist_tests::lab::stream::{PROTECTED, datagram, ip};
use allowlist_tests::lab::{FrameSender, Namespace, normalized};
use expect_test::expect;
use serde_json::json;

use super::*;

fn attached(site: &Testbed) -> anyhow::Result<Vec<String>> {
    let status = site.json("status")?;
    let interfaces = status["interfaces"].as_array().context("an array")?;
    let on = interfaces.iter().filter(|one| one["attached"] == true);
    Ok(on
        .map(|one| one["name"].as_str().unwrap_or_default().to_owned())
        .collect())
}

#[test]
fn an_interface_that_appears_is_filtered() -> anyhow::Result<()> {
    require_root!();
    let (site, config) = prepared()?;
    std::fs::write(&config, CONFIG.replace("['eth0']", "['eth0', 'eth1']"))?;
    let mut filter = start(&site, &config)?;
    assert_eq!(attached(&site)?, ["eth0"]);
    let said = filter.stderr();
    let mut lines = said.lines();
    let warning = lines.find(|line| line.contains("warning[missing-interface]: "));
    let warning = warning.with_context(|| said.clone())?;
    expect!["<time> warning[missing-interface]: interface eth1 does not exist (there are eth0, lo); the filter is attached when it appears"].assert_eq(&normalized(warning, Some(&site.scratch)));
    let ready = filter.wait_for_line("ready: ", SOON)?;
    expect!["ready: filtering eth0 (missing: eth1), 2 prefixes from 1 sources, generation 1"]
        .assert_eq(&ready);
    let status = site.json("status")?;
    assert_eq!(
        status["daemon"]["missing_interfaces"],
        json!(["eth1"]),
        "{status}"
    );
    let status = site.run(&["status"])?.stdout;
    assert!(status.contains("interface eth1"), "{status}");
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&site, &sources, || {
        for round in 0..4 {
            site.second_link()?;
            let start = Instant::now();
            eventually(|| Ok(attached(&site)? == ["eth0", "eth1"]))?;
            println!("round {round}: attached after {:?}", start.elapsed());
            // Deleting one end of a pair deletes both.
            let deleted = Ended::of({
                let mut command = site.host.command("ip")?;
                command.args(["link", "delete", "eth1"]);
                command
            })?;
            ensure!(deleted.code == Some(0), "{deleted:?}");
            eventually(|| Ok(attached(&site)? == ["eth0"]))?;
        }
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    site.second_link()?;
    eventually(|| Ok(attached(&site)? == ["eth0", "eth1"]))?;
    let sender = FrameSender::new(&site.peer, "eth1")?;
    sender.send(&datagram(ip(STRANGERS[0]), PROTECTED, b"hello"))?;
    site.check_counted("eth1", &json!({"drop not-allowed": 1}))?;
    // The daemon ends normally.
    filter.stop(Signal::SIGTERM, SOON)?;
    Ok(())
}

/// The only interface vanishes and returns, with the filter as before.
#[test]
fn the_only_one_may_vanish() -> anyhow::Result<()> {
    require_root!();
    let (mut site, config) = prepared()?;
    let filter = start(&site, &config)?;
    done(&site, &["add", "198.18.0.1", "--service", "web"]);
    site.peer = Namespace::new()?; // and the link goes with the old one
    eventually(|| Ok(attached(&site)?.is_empty()))?;
    assert_eq!(site.run(&["status"])?.code, Some(3));
    done(&site, &["add", "198.18.0.2", "--service", "web"]);
    site.link(
        "eth0",
        ["198.51.100.1/24", "2001:db8:1::1/64"],
        ["198.51.100.2/24", "2001:db8:1::2/64"],
    )?;
    eventually(|| Ok(attached(&site)? == ["eth0"]))?;
    for (source, passes) in [
        (FRIENDS[0], true),
        ("198.18.0.1", true),
        ("198.18.0.2", true),
        (STRANGERS[0], false),
    ] {
        assert_eq!(
            gets_through(&site, source)?,
            passes,
            "{source}: {}",
            filter.output()
        );
    }
    Ok(())
}
