//! Starts without lists (`at_start`), and from the lists on disk without a network.

use allowlist_tests::vendor::{Answer, Vendor};
use expect_test::expect;

use super::*;

fn config(at_start: &str, url: &str) -> String {
    format!(
        "interfaces = ['eth0']\nat_start = '{at_start}'\n[services.web]\nports = ['udp/443']\nallow = ['vendor', 'own']\n\
         [sources.vendor]\nurl = '{url}'\nformat = 'json'\nallow_special_use = true\nevery = '1s'\n\
         [sources.own]\nprefixes = ['198.18.0.1']\n"
    )
}

/// Checks a start without a list: whether the addresses of another source pass, and whether others do.
#[track_caller]
fn check(at_start: &str, own: bool, others: bool) {
    let run = || -> anyhow::Result<()> {
        let testbed = Testbed::new()?;
        // The server answers without a list.
        let vendor = testbed
            .host
            .run(|| Vendor::start([("/list", Answer::html("<!DOCTYPE html>"))]))?;
        let path = testbed
            .scratch
            .write("allowlist.toml", config(at_start, &vendor.url("/list")))?;
        let path = path.display().to_string();
        let mut filter = Program::start(testbed.command(&["run", "--config", &path])?)?;
        let sign = if at_start == "wait" {
            "warning[missing-list]: vendor"
        } else {
            "ready"
        };
        filter.wait_for_line(sign, SOON)?;
        eventually(|| Ok(testbed.run(&["status"])?.stdout.contains("vendor")))?;
        ensure!(
            gets_through(&testbed, "198.18.0.1")? == own,
            "a listed source"
        );
        ensure!(
            gets_through(&testbed, STRANGERS[0])? == others,
            "other sources"
        );
        let sources = testbed.run(&["sources"])?.stdout;
        ensure!(
            at_start == "wait" || sources.contains("waiting"),
            "{sources}"
        );
        let is_open = || anyhow::Ok(testbed.json("status")?["daemon"]["failing_open"] == true);
        ensure!(is_open()? == (at_start == "pass"), "status");
        let text = testbed.run(&["status"])?.stdout;
        ensure!(text.contains("OPEN: ") == (at_start == "pass"), "{text}");
        vendor.answer("/list", Answer::json(format!(r#"["{}"]"#, FRIENDS[0])));
        filter.wait_for_line("ready", SOON)?;
        eventually(|| {
            Ok(gets_through(&testbed, FRIENDS[0])? && !gets_through(&testbed, STRANGERS[0])?)
        })?;
        ensure!(
            gets_through(&testbed, "198.18.0.1")?,
            "a listed source, afterwards"
        );
        ensure!(!is_open()?, "status, afterwards");
        // The list is on disk now, so a start needs no network.
        drop(vendor);
        filter.stop(Signal::SIGTERM, SOON)?;
        done(&testbed, &["detach"]);
        ensure!(
            gets_through(&testbed, STRANGERS[0])?,
            "the filter is detached"
        );
        let _filter = start(&testbed, &path)?;
        ensure!(
            gets_through(&testbed, FRIENDS[0])? && !gets_through(&testbed, STRANGERS[0])?,
            "after a reboot"
        );
        Ok(())
    };
    run().unwrap_or_else(|error| panic!("{at_start}: {error:?}"));
}

#[test]
fn wait_attaches_nothing() {
    require_root!();
    check("wait", true, true);
}

#[test]
fn pass_fails_open() {
    require_root!();
    check("pass", true, true);
}

#[test]
fn drop_fails_closed() {
    require_root!();
    check("drop", true, false);
}

/// A start that waits for lists keeps the attached filter, and a reload can correct it.
#[test]
fn a_restart_that_waits_keeps_the_filter() -> anyhow::Result<()> {
    require_root!();
    let (testbed, path) = prepared()?;
    start(&testbed, &path)?.stop(Signal::SIGTERM, SOON)?;
    std::fs::write(&path, config("wait", "http://127.0.0.1:9/"))?;
    let mut filter = Program::start(testbed.command(&["run", "--config", &path])?)?;
    filter.wait_for_line("warning[missing-list]: vendor", SOON)?;
    assert!(gets_through(&testbed, FRIENDS[0])? && !gets_through(&testbed, STRANGERS[0])?);
    let refused = testbed.run(&["add", "198.18.0.9", "--service", "web"])?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("error[missing-lists]: ") && refused.stderr.contains("vendor"),
        "{refused:?}"
    );
    expect![[r#"
        error[missing-lists]: the configuration is not active, since these sources have no list: vendor; change the configuration or its at_start, then run `allowlist reload`
    "#]].assert_eq(&refused.stderr);
    // The corrected configuration is active at once.
    std::fs::write(&path, CONFIG)?;
    done(&testbed, &["reload"]);
    filter.wait_for_line("ready", SOON)?;
    assert!(gets_through(&testbed, FRIENDS[0])? && !gets_through(&testbed, STRANGERS[0])?);
    done(&testbed, &["add", "198.18.0.9", "--service", "web"]);
    // Ctrl-C during the wait keeps the filter too.
    filter.stop(Signal::SIGTERM, SOON)?;
    std::fs::write(&path, config("wait", "http://127.0.0.1:9/"))?;
    let mut filter = Program::start(testbed.command(&["run", "--config", &path])?)?;
    filter.wait_for_line("warning[missing-list]: vendor", SOON)?;
    filter.stop(Signal::SIGINT, SOON)?;
    assert!(gets_through(&testbed, FRIENDS[0])? && !gets_through(&testbed, STRANGERS[0])?);
    Ok(())
}
