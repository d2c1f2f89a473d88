//! Reload: applied as a whole or not at all.

use std::thread;

use allowlist_tests::lab::bridge;
use allowlist_tests::lab::stream::{PROTECTED, Streamed};
use allowlist_tests::vendor::{Answer, Vendor};
use regex::Regex;

use super::*;

/// A refused configuration: title, text, error code, and names in the message.
type Refusal = (&'static str, String, &'static str, &'static [&'static str]);

/// Returns refused configurations. `page` has a source without a list, `long` an interface in use.
fn refusals(page: String, long: String) -> [Refusal; 9] {
    [
        (
            "a port that does not exist",
            CONFIG.replace("udp/443", "udp/70000"),
            "config-invalid",
            &["allowlist.toml:4:", "70000"],
        ),
        (
            "a syntax error",
            "interfaces = [".to_owned(),
            "config-invalid",
            &["allowlist.toml:1:"],
        ),
        (
            "a source without a list",
            page,
            "missing-lists",
            &["vendor"],
        ),
        (
            "more prefixes than fit",
            format!("max_prefixes = 1\n{CONFIG}"),
            "too-many-prefixes",
            &["max_prefixes = 1"],
        ),
        (
            "a group that does not exist",
            format!("control_group = 'no-such-group'\n{CONFIG}"),
            "refused",
            &["\"no-such-group\"", "groupadd"],
        ),
        ("an interface in use", long, "interface-in-use", &["eth1"]),
        (
            "an interface without native mode",
            CONFIG
                .replace("eth0", "br0")
                .replace("interfaces =", "attach_mode = 'native'\ninterfaces ="),
            "attach-failed",
            &["br0", "native", "attach_mode"],
        ),
        (
            "the loopback interface",
            CONFIG.replace("eth0", "lo"),
            "unsupported-interface",
            &["lo"],
        ),
        (
            "no interface",
            CONFIG.replace("\"eth0\"", ""),
            "no-interface",
            &["interfaces"],
        ),
    ]
}

#[test]
fn refused_reloads_change_nothing() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    host.testbed.second_link()?;
    bridge(&host.testbed.host, "br0", &[])?; // a bridge has no native mode
    // Another instance has a program on eth1.
    let other = Host {
        testbed: Testbed::new()?,
        config: host.config.clone(),
        daemon: None,
    };
    let mut anothers = host
        .testbed
        .host
        .command(allowlist_tests::lab::allowlist()?)?;
    anothers.args([
        "run",
        "--iface",
        "eth1",
        "--allow",
        "203.0.113.0/24",
        "--port",
        "udp/443",
        "--enforce",
    ]);
    anothers.args(other.testbed.scratch.arguments());
    let anothers = Program::start(anothers)?;
    anothers.wait_for_line("ready", SOON)?;
    let vendor = host
        .testbed
        .host
        .run(|| Vendor::start([("/page", Answer::html("<!DOCTYPE html>"))]))?;
    let page = format!(
        "{}[sources.vendor]\nurl = '{}'\nformat = 'json'\n",
        CONFIG.replace("allow = [\"friends\"]", "allow = [\"friends\", \"vendor\"]"),
        vendor.url("/page")
    );
    let before = host.active_state()?;
    let long = format!(
        "interfaces = [\"eth0\", \"eth1\"]{}",
        CONFIG
            .trim_start()
            .trim_start_matches("interfaces = [\"eth0\"]")
    );
    let mut snapshot = Snapshot::new();
    for (title, config, code, names) in refusals(page, long) {
        host.write(&config)?;
        let ended = host.refused(&["reload"], code, names);
        // The kernel's own reason is part of the message, and depends on its version.
        if code != "attach-failed" {
            snapshot.ended(title, &ended, Some(&host.testbed.scratch));
        }
        assert_eq!(host.active_state()?, before, "{config}");
        assert!(
            host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]),
            "{config}"
        );
    }
    std::fs::remove_file(&host.config)?;
    let ended = host.refused(&["reload"], "config-unreadable", &["allowlist.toml"]);
    snapshot.ended("no file", &ended, Some(&host.testbed.scratch));
    host.write(CONFIG)?;
    let unchanged = host.done(&["reload", "--json"]);
    let unchanged: Value = serde_json::from_str(&unchanged)?;
    assert_eq!(unchanged["changes"], json!([]), "{unchanged}");
    // The daemon may publish between two commands, so the number of the generation is not the same in each run.
    let generation = Regex::new(r"generation \d+").expect("a regular expression");
    let without_generation = |text: &str| generation.replace(text, "generation <n>").into_owned();
    let unchanged = without_generation(&host.done(&["reload"]));
    snapshot.text("an unchanged file", &unchanged, None);
    host.write(&CONFIG.replace("udp/443", "udp/9000"))?;
    let changed = host.done(&["reload"]);
    assert!(
        changed.contains("services.web.ports: udp/443 -> udp/9000"),
        "{changed}"
    );
    snapshot.text("another port", &without_generation(&changed), None);
    snapshot.check(&expect_file!["snapshots/reload.txt"]);
    assert!(host.passes(STRANGERS[0]), "its port has no service");
    Ok(())
}

/// No reload drops a friend's datagram or passes a stranger's.
#[test]
fn reloads_have_no_gap() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    host.testbed.second_link()?;
    let with = |head: &str| {
        format!(
            "{head}\n{}",
            CONFIG
                .trim_start()
                .trim_start_matches("interfaces = [\"eth0\"]")
        )
    };
    let one = "interfaces = [\"eth0\"]";
    let both = "interfaces = [\"eth0\", \"eth1\"]";
    let configs = [
        with(both),
        with(one),
        with(&format!("{one}\ndefault = 'drop'")),
        with(&format!("{both}\ndefault = 'drop'\nmax_flows = 2048")),
        with(&format!(
            "{one}\ndefault = 'drop'\nreturn_traffic = 'established'"
        )),
        with(&format!("{one}\n[keep]\ndhcp = false")),
        with(one).replace("services.ssh", "services.shell"),
        with(one).replace("udp/443", "udp/440-450").replace(
            "[sources.friends]",
            "[sources.more]\nprefixes = ['192.0.2.200']\n[sources.friends]",
        ),
        with(one),
    ];
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&host.testbed, &sources, || {
        for config in &configs {
            host.write(config)?;
            let ended = host.run(&["reload"])?;
            ensure!(ended.code == Some(0), "{config}: {ended:?}");
            let interfaces = host.testbed.json("status")?["interfaces"]
                .as_array()
                .map(Vec::len);
            let expected = 1 + usize::from(config.contains("eth1"));
            ensure!(interfaces == Some(expected), "{config}: {interfaces:?}");
        }
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    streamed.check_counted(&host.testbed)?;
    assert_eq!(PROTECTED, 443);
    Ok(())
}

#[test]
fn a_reload_needs_a_configuration_file() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let filter = testbed.filter(&[
        "--iface",
        "eth0",
        "--allow",
        "203.0.113.0/24",
        "--port",
        "udp/443",
    ])?;
    let ended = testbed.run(&["reload"])?;
    require_error(&ended, "no-config-file", &[]);
    expect![[r#"
        error[no-config-file]: the daemon was started without a configuration file, so there is nothing to reload; restart it instead
    "#]].assert_eq(&ended.stderr);
    filter.wait_for_line("warning[request-refused]: ", SOON)?;
    Ok(())
}

/// Starts a daemon with a source `vendor`, whose list has one address, and these `allow`ed sources. `rest` follows the
/// keys of `vendor`.
fn with_vendor(allow: &str, rest: &str) -> anyhow::Result<(Vendor, Host)> {
    let testbed = Testbed::new()?;
    let vendor = testbed
        .host
        .run(|| Vendor::start([("/list", Answer::json(r#"["192.0.2.66"]"#))]))?;
    let config = format!(
        "{}[sources.vendor]\nurl = '{}'\nformat = 'json'\nallow_special_use = true\nevery = '1h'\n{rest}",
        CONFIG.replace("allow = [\"friends\"]", &format!("allow = {allow}")),
        vendor.url("/list")
    );
    Ok((vendor, Host::by_testbed(testbed, &config)?))
}

/// Fetches by command, with success and with a failure.
#[test]
fn refresh_fetches_now() -> anyhow::Result<()> {
    require_root!();
    let (vendor, host) = with_vendor(
        r#"["friends", "vendor", "lab"]"#,
        "[sources.lab]\nfile = 'lab.txt'\n",
    )?;
    assert!(host.passes(STRANGERS[0]));
    vendor.answer("/list", Answer::json(r#"["192.0.2.67", "192.0.2.66"]"#));
    let text = host.done(&["refresh", "vendor"]);
    assert_eq!(text, "vendor: 2 prefixes\n");
    assert!(host.passes("192.0.2.67"));
    std::fs::remove_file(host.testbed.scratch.file("lab.txt"))?;
    let ended = host.run(&["refresh", "--json"])?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let document: Value = serde_json::from_str(&ended.stdout)?;
    assert_eq!(
        document["sources"]["vendor"],
        json!({"ok": true, "prefixes": 2})
    );
    assert_eq!(document["sources"]["lab"]["ok"], false);
    assert_eq!(document["changes"], json!([]));
    let mut snapshot = Snapshot::new();
    snapshot.ended("refresh --json", &ended, Some(&host.testbed.scratch));
    let ended = host.refused(
        &["refresh", "friends"],
        "unknown-source",
        &["\"friends\"", "lab, vendor"],
    );
    snapshot.ended("refresh friends", &ended, None);
    snapshot.check(&expect_file!["snapshots/refresh.txt"]);
    let sources = host.done(&["sources"]);
    assert!(
        sources.contains("failing") && sources.contains("vendor"),
        "{sources}"
    );
    Ok(())
}

/// A fetch that is in progress at the time of a request may have read the list before, so the request waits for the next.
#[test]
fn refresh_does_not_take_the_answer_of_an_earlier_fetch() -> anyhow::Result<()> {
    require_root!();
    let (vendor, host) = with_vendor(r#"["friends", "vendor"]"#, "timeout = '5s'\n")?;
    vendor.answer("/list", Answer::Silence);
    let before = vendor.requests().len();
    thread::scope(|scope| {
        let earlier = scope.spawn(|| host.run(&["refresh", "vendor"]));
        eventually(|| Ok(vendor.requests().len() > before))?;
        vendor.answer("/list", Answer::json(r#"["192.0.2.67", "192.0.2.66"]"#));
        // The earlier fetch ends by its timeout; it is the answer of the earlier request alone.
        assert_eq!(host.done(&["refresh", "vendor"]), "vendor: 2 prefixes\n");
        let earlier = earlier.join().expect("the command does not panic")?;
        assert_eq!(earlier.code, Some(1), "{earlier:?}");
        anyhow::Ok(())
    })
}

impl Host {
    /// Starts a daemon on a prepared testbed, with a list in `lab.txt`.
    pub(super) fn by_testbed(testbed: Testbed, config: &str) -> anyhow::Result<Self> {
        testbed.scratch.write("lab.txt", "192.0.2.99\n")?;
        let config = testbed.scratch.write("allowlist.toml", config)?;
        let mut host = Self {
            config: config.display().to_string(),
            testbed,
            daemon: None,
        };
        let daemon = Program::start(host.testbed.command(&["run", "--config", &host.config])?)?;
        daemon.wait_for_line("ready", SOON)?;
        host.daemon = Some(daemon);
        Ok(host)
    }
}
