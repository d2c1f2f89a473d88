//! Interfaces that appear, vanish and return are filtered at once, without an effect on others.

use std::time::Instant;

use allowlist_tests::lab::stream::{PROTECTED, datagram, ip};
use allowlist_tests::lab::{FrameSender, Namespace, normalized};
use expect_test::expect;
use serde_json::json;

use super::*;

fn attached(testbed: &Testbed) -> anyhow::Result<Vec<String>> {
    let status = testbed.json("status")?;
    let interfaces = status["interfaces"].as_array().context("an array")?;
    let on = interfaces.iter().filter(|one| one["attached"] == true);
    Ok(on
        .map(|one| one["name"].as_str().unwrap_or_default().to_owned())
        .collect())
}

#[test]
fn an_interface_that_appears_is_filtered() -> anyhow::Result<()> {
    require_root!();
    let (testbed, config) = prepared()?;
    std::fs::write(&config, CONFIG.replace("['eth0']", "['eth0', 'eth1']"))?;
    let mut filter = start(&testbed, &config)?;
    assert_eq!(attached(&testbed)?, ["eth0"]);
    let said = filter.stderr();
    let mut lines = said.lines();
    let warning = lines.find(|line| line.contains("warning[missing-interface]: "));
    let warning = warning.with_context(|| said.clone())?;
    expect!["<time> warning[missing-interface]: interface eth1 does not exist (there are eth0, lo); the filter is attached when it appears"].assert_eq(&normalized(warning, Some(&testbed.scratch)));
    let ready = filter.wait_for_line("ready: ", SOON)?;
    expect!["ready: filtering eth0 (missing: eth1), 2 prefixes from 1 source, generation 1"]
        .assert_eq(&ready);
    let status = testbed.json("status")?;
    assert_eq!(
        status["daemon"]["missing_interfaces"],
        json!(["eth1"]),
        "{status}"
    );
    let status = testbed.run(&["status"])?.stdout;
    assert!(status.contains("interface eth1"), "{status}");
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        for round in 0..4 {
            testbed.second_link()?;
            let start = Instant::now();
            eventually(|| Ok(attached(&testbed)? == ["eth0", "eth1"]))?;
            println!("round {round}: attached after {:?}", start.elapsed());
            // Deleting one end of a pair deletes both.
            let deleted = Ended::of({
                let mut command = testbed.host.command("ip")?;
                command.args(["link", "delete", "eth1"]);
                command
            })?;
            ensure!(deleted.code == Some(0), "{deleted:?}");
            eventually(|| Ok(attached(&testbed)? == ["eth0"]))?;
        }
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    testbed.second_link()?;
    eventually(|| Ok(attached(&testbed)? == ["eth0", "eth1"]))?;
    let sender = FrameSender::new(&testbed.peer, "eth1")?;
    sender.send(&datagram(ip(STRANGERS[0]), PROTECTED, b"hello"))?;
    testbed.check_counted("eth1", &json!({"drop not-allowed": 1}))?;
    // The daemon ends normally.
    filter.stop(Signal::SIGTERM, SOON)?;
    Ok(())
}

/// The only interface vanishes and returns, with the filter as before.
#[test]
fn the_only_interface_may_vanish() -> anyhow::Result<()> {
    require_root!();
    let (mut testbed, config) = prepared()?;
    let filter = start(&testbed, &config)?;
    done(&testbed, &["add", "198.18.0.1", "--service", "web"]);
    testbed.peer = Namespace::new()?; // dropping the old namespace removes the link
    eventually(|| Ok(attached(&testbed)?.is_empty()))?;
    assert_eq!(testbed.run(&["status"])?.code, Some(3));
    done(&testbed, &["add", "198.18.0.2", "--service", "web"]);
    testbed.link(
        "eth0",
        ["198.51.100.1/24", "2001:db8:1::1/64"],
        ["198.51.100.2/24", "2001:db8:1::2/64"],
    )?;
    eventually(|| Ok(attached(&testbed)? == ["eth0"]))?;
    for (source, passes) in [
        (FRIENDS[0], true),
        ("198.18.0.1", true),
        ("198.18.0.2", true),
        (STRANGERS[0], false),
    ] {
        assert_eq!(
            gets_through(&testbed, source)?,
            passes,
            "{source}: {}",
            filter.output()
        );
    }
    Ok(())
}
