//! A start before there are lists: `at_start`; and a start from the lists on disk, without any network.

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

/// What passes before there is a list: a source's own, and whoever else.
#[track_caller]
fn check(at_start: &str, own: bool, others: bool) {
    let run = || -> anyhow::Result<()> {
        let site = Testbed::new()?;
        // The server is there, and has nothing yet.
        let vendor = site
            .host
            .run(|| Vendor::start([("/list", Answer::html("<!DOCTYPE html>"))]))?;
        let path = site
            .scratch
            .write("allowlist.toml", config(at_start, &vendor.url("/list")))?;
        let path = path.display().to_string();
        let mut filter = Program::start(site.command(&["run", "--config", &path])?)?;
        let sign = if at_start == "wait" {
            "warning[missing-list]: vendor"
        } else {
            "ready"
        };
        filter.wait_for_line(sign, SOON)?;
        eventually(|| Ok(site.run(&["status"])?.stdout.contains("vendor")))?;
        ensure!(gets_through(&site, "198.18.0.1")? == own, "its own");
        ensure!(gets_through(&site, STRANGERS[0])? == others, "others");
        let sources = site.run(&["sources"])?.stdout;
        ensure!(
            at_start == "wait" || sources.contains("waiting"),
            "{sources}"
        );
        let is_open = || anyhow::Ok(site.json("status")?["daemon"]["is_open"] == true);
        ensure!(is_open()? == (at_start == "pass"), "status");
        let text = site.run(&["status"])?.stdout;
        ensure!(text.contains("OPEN: ") == (at_start == "pass"), "{text}");
        vendor.answer("/list", Answer::json(format!(r#"["{}"]"#, FRIENDS[0])));
        filter.wait_for_line("ready", SOON)?;
        eventually(|| Ok(gets_through(&site, FRIENDS[0])? && !gets_through(&site, STRANGERS[0])?))?;
        ensure!(gets_through(&site, "198.18.0.1")?, "its own, afterwards");
        ensure!(!is_open()?, "status, afterwards");
        // From now on the list is on disk, and a boot needs no network.
        drop(vendor);
        filter.stop(Signal::SIGTERM, SOON)?;
        done(&site, &["detach"]);
        ensure!(gets_through(&site, STRANGERS[0])?, "it is off");
        let _filter = start(&site, &path)?;
        ensure!(
            gets_through(&site, FRIENDS[0])? && !gets_through(&site, STRANGERS[0])?,
            "after a boot"
        );
        Ok(())
    };
    run().unwrap_or_else(|error| panic!("{at_start}: {error:?}"));
}

#[test]
fn waiting_leaves_all_as_it_is() {
    require_root!();
    check("wait", true, true);
}

#[test]
fn passing_filters_without_the_list() {
    require_root!();
    check("pass", true, true);
}

#[test]
fn dropping_filters_without_the_list() {
    require_root!();
    check("drop", true, false);
}

/// A start that waits leaves in force what is in force, and can be mended.
#[test]
fn a_restart_that_waits_keeps_the_filter() -> anyhow::Result<()> {
    require_root!();
    let (site, path) = prepared()?;
    start(&site, &path)?.stop(Signal::SIGTERM, SOON)?;
    std::fs::write(&path, config("wait", "http://127.0.0.1:9/"))?;
    let mut filter = Program::start(site.command(&["run", "--config", &path])?)?;
    filter.wait_for_line("warning[missing-list]: vendor", SOON)?;
    assert!(gets_through(&site, FRIENDS[0])? && !gets_through(&site, STRANGERS[0])?);
    let refused = site.run(&["add", "198.18.0.9", "--service", "web"])?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("error[missing-lists]: ") && refused.stderr.contains("vendor"),
        "{refused:?}"
    );
    expect![[r#"
        error[missing-lists]: nothing is in force yet, since there is no list of vendor; mend the configuration and `allowlist reload`, or set at_start
    "#]].assert_eq(&refused.stderr);
    // Mended, it is in force at once.
    std::fs::write(&path, CONFIG)?;
    done(&site, &["reload"]);
    filter.wait_for_line("ready", SOON)?;
    assert!(gets_through(&site, FRIENDS[0])? && !gets_through(&site, STRANGERS[0])?);
    done(&site, &["add", "198.18.0.9", "--service", "web"]);
    // Ctrl-C in a start that waits changes nothing either.
    filter.stop(Signal::SIGTERM, SOON)?;
    std::fs::write(&path, config("wait", "http://127.0.0.1:9/"))?;
    let mut filter = Program::start(site.command(&["run", "--config", &path])?)?;
    filter.wait_for_line("warning[missing-list]: vendor", SOON)?;
    filter.stop(Signal::SIGINT, SOON)?;
    assert!(gets_through(&site, FRIENDS[0])? && !gets_through(&site, STRANGERS[0])?);
    Ok(())
}
