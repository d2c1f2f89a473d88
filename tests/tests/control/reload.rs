//! Another configuration: all of it, or none.

use allowlist_tests::lab::bridge;
use allowlist_tests::lab::stream::{PROTECTED, Streamed};
use allowlist_tests::vendor::{Answer, Vendor};

use super::*;

#[test]
fn what_cannot_be_put_in_force_changes_nothing() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    host.site.second_link()?;
    bridge(&host.site.host, "br0", &[])?; // which has no native mode
    // Somebody else's program on eth1: another instance of this one.
    let other = Host {
        site: Site::new()?,
        config: host.config.clone(),
        daemon: None,
    };
    let mut anothers = host.site.host.command(allowlist_tests::lab::allowlist()?)?;
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
    anothers.args(other.site.scratch.arguments());
    let anothers = Program::start(anothers)?;
    anothers.wait_for_line("ready", SOON)?;
    let vendor = host
        .site
        .host
        .run(|| Vendor::start([("/page", Answer::html("<!DOCTYPE html>"))]))?;
    let page = format!(
        "{}[sources.vendor]\nurl = '{}'\nformat = 'json'\n",
        CONFIG.replace("allow = [\"friends\"]", "allow = [\"friends\", \"vendor\"]"),
        vendor.url("/page")
    );
    let before = host.in_force()?;
    let long = format!(
        "interfaces = [\"eth0\", \"eth1\"]{}",
        CONFIG
            .trim_start()
            .trim_start_matches("interfaces = [\"eth0\"]")
    );
    for (config, expected) in [
        (
            CONFIG.replace("udp/443", "udp/70000"),
            &["allowlist.toml:4:", "70000"][..],
        ),
        (
            "interfaces = [".to_owned(),
            &["allowlist.toml:1:", "is not TOML"],
        ),
        (page, &["vendor has no list", "got a web page, not a list"]),
        (
            format!("max_prefixes = 1\n{CONFIG}"),
            &["do not fit max_prefixes = 1"],
        ),
        (
            format!("control_group = 'nobody-has-it'\n{CONFIG}"),
            &["there is no group \"nobody-has-it\"", "groupadd"],
        ),
        (long, &["eth1 has another XDP program"]),
        (
            CONFIG
                .replace("eth0", "br0")
                .replace("interfaces =", "attach_mode = 'native'\ninterfaces ="),
            &["cannot attach to br0: native mode is refused"],
        ),
        (
            CONFIG.replace("eth0", "lo"),
            &["lo is the loopback interface", "leave it out"],
        ),
        (
            CONFIG.replace("\"eth0\"", ""),
            &["no interface to filter on"],
        ),
    ] {
        host.write(&config)?;
        host.refused(&["reload"], 1, expected);
        assert_eq!(host.in_force()?, before, "{config}");
        assert!(
            host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]),
            "{config}"
        );
    }
    std::fs::remove_file(&host.config)?;
    host.refused(&["reload"], 1, &["cannot be read"]);
    host.write(CONFIG)?;
    assert!(
        host.done(&["reload"])
            .contains("the configuration is unchanged")
    );
    host.write(&CONFIG.replace("udp/443", "udp/9000"))?;
    assert!(
        host.done(&["reload"])
            .contains("services.web.ports: udp/443 -> udp/9000")
    );
    assert!(host.passes(STRANGERS[0]), "no service covers it any more");
    Ok(())
}

/// Whatever a reload changes, no friend's datagram is lost, and no stranger's gets through.
#[test]
fn reloads_lose_nothing_and_let_nothing_in() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    host.site.second_link()?;
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
    let streamed = Streamed::during(&host.site, &sources, || {
        for config in &configs {
            host.write(config)?;
            let ended = host.run(&["reload"])?;
            ensure!(ended.code == Some(0), "{config}: {ended:?}");
            let interfaces = host.site.json("status")?["interfaces"]
                .as_array()
                .map(Vec::len);
            let expected = 1 + usize::from(config.contains("eth1"));
            ensure!(interfaces == Some(expected), "{config}: {interfaces:?}");
        }
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    streamed.check_counted(&host.site)?;
    assert_eq!(PROTECTED, 443);
    Ok(())
}

#[test]
fn a_filter_without_a_file_has_none_to_reload() -> anyhow::Result<()> {
    require_root!();
    let site = Site::new()?;
    let filter = site.filter(&[
        "--iface",
        "eth0",
        "--allow",
        "203.0.113.0/24",
        "--port",
        "udp/443",
    ])?;
    let ended = site.run(&["reload"])?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("was started without a configuration file"),
        "{ended:?}"
    );
    filter.wait_for_line("reload: not done, and nothing was changed", SOON)?;
    Ok(())
}

/// A list that is asked for by hand, and one that cannot be had.
#[test]
fn lists_are_asked_for_now() -> anyhow::Result<()> {
    require_root!();
    let site = Site::new()?;
    let vendor = site
        .host
        .run(|| Vendor::start([("/list", Answer::json(r#"["192.0.2.66"]"#))]))?;
    let host = Host::by_site(
        site,
        &format!(
            "{}[sources.vendor]\nurl = '{}'\nformat = 'json'\nallow_special_use = true\nevery = '1h'\n\
             [sources.lab]\nfile = 'lab.txt'\n",
            CONFIG.replace(
                "allow = [\"friends\"]",
                "allow = [\"friends\", \"vendor\", \"lab\"]"
            ),
            vendor.url("/list")
        ),
    )?;
    assert!(host.passes(STRANGERS[0]));
    vendor.answer("/list", Answer::json(r#"["192.0.2.67", "192.0.2.66"]"#));
    let text = host.done(&["refresh", "vendor"]);
    assert_eq!(text, "vendor: 2 prefixes\n");
    assert!(host.passes("192.0.2.67"));
    std::fs::remove_file(host.site.scratch.file("lab.txt"))?;
    let ended = host.run(&["refresh", "--json"])?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let document: Value = serde_json::from_str(&ended.stdout)?;
    assert_eq!(
        document["sources"]["vendor"],
        json!({"ok": true, "prefixes": 2})
    );
    assert_eq!(document["sources"]["lab"]["ok"], false);
    assert_eq!(document["changes"], json!([]));
    assert!(
        ended.stderr.contains("1 of the sources brought no list"),
        "{ended:?}"
    );
    host.refused(
        &["refresh", "friends"],
        1,
        &["there is no source \"friends\" that can be fetched; there are lab, vendor"],
    );
    let sources = host.done(&["sources"]);
    assert!(
        sources.contains("failing") && sources.contains("vendor"),
        "{sources}"
    );
    Ok(())
}

impl Host {
    /// On a site that something runs on already; with a file that is a list.
    pub(super) fn by_site(site: Site, config: &str) -> anyhow::Result<Self> {
        site.scratch.write("lab.txt", "192.0.2.99\n")?;
        let config = site.scratch.write("allowlist.toml", config)?;
        let mut host = Self {
            config: config.display().to_string(),
            site,
            daemon: None,
        };
        let daemon = Program::start(host.site.command(&["run", "--config", &host.config])?)?;
        daemon.wait_for_line("ready", SOON)?;
        host.daemon = Some(daemon);
        Ok(host)
    }
}
