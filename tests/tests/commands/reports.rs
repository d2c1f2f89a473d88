//! The reports about an attached filter, as text and as JSON.

use std::net::SocketAddr;

use allowlist_tests::lab::{FrameSender, frame};

use super::*;

/// `CLOSED` stands for a URL at which no server answers.
const POLICY: &str = r#"
interfaces = ["eth0"]
default = "drop"
at_start = "drop"
[services.web]
ports = ["tcp/443", "udp/5000-5010"]
allow = ["vendor", "office", "down"]
[services.ssh]
ports = ["tcp/22"]
allow = ["office"]
[sources.vendor]
url = "VENDOR"
format = "json"
allow_special_use = true
[sources.down]
url = "CLOSED"
format = "json"
[sources.office]
prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
"#;

#[test]
fn reports_have_text_and_json() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let vendor = site
        .host
        .run(|| Vendor::start([("/list", Answer::json(r#"["198.18.0.1", "198.18.0.2"]"#))]))?;
    let closed = site.host.run(|| anyhow::Ok(Vendor::start([])?.url("/")))?;
    let policy = POLICY
        .replace("VENDOR", &vendor.url("/list"))
        .replace("CLOSED", &closed);
    let config = site.scratch.write("allowlist.toml", policy)?;
    let filter = site.filter(&["--config", &config.display().to_string()])?;
    // The first fetches are over, so that each later command has its own generation.
    for text in ["generation 2", "source down: "] {
        filter.wait_for_line(text, SOON)?;
    }
    // The reports name the user before sudo.
    let run = |arguments: &[&str]| {
        let mut command = site.command(arguments)?;
        command.env_remove("SUDO_USER");
        Ended::of(command)
    };
    let mut snapshot = Snapshot::new();
    for arguments in [
        &[
            "add",
            "192.0.2.66",
            "--service",
            "ssh",
            "--ttl",
            "2h",
            "--note",
            "on call",
        ][..],
        &["add", "192.0.2.77", "--service", "ssh", "--json"],
        &["remove", "192.0.2.77", "--json"],
    ] {
        let ended = run(arguments)?;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        snapshot.ended(&arguments.join(" "), &ended, Some(&site.scratch));
    }
    let sender = FrameSender::new(&site.peer, "eth0")?;
    let host = SocketAddr::new("198.51.100.1".parse()?, 443);
    for source in ["198.18.0.1:40000", "192.0.2.1:40000"] {
        sender.send(&frame::tcp_syn(source.parse()?, host))?;
    }
    site.check_counted("eth0", &json!({"pass allowed": 1, "drop not-allowed": 1}))?;
    vendor.answer("/list", Answer::json(r#"["198.18.0.2"]"#));
    assert_eq!(run(&["refresh", "vendor"])?.code, Some(0));
    for (command, code) in [
        (&["status"][..], 0),
        (&["sources"], 0),
        (&["list"], 0),
        (&["list", "--added"], 0),
        (&["flows", "list"], 0),
        (&["history", "vendor"], 0),
        (&["log"], 0),
        (&["rollback", "--list"], 0),
        (&["reload"], 0),
        (&["refresh", "vendor"], 0),
        (&["refresh", "down"], 1),
        (&["flows", "cut", "192.0.2.1"], 0),
    ] {
        for options in [&[][..], &["--json"]] {
            let arguments = [command, options].concat();
            let ended = run(&arguments)?;
            let ended = if options.is_empty() {
                without_ages(ended)
            } else {
                ended
            };
            assert_eq!(ended.code, Some(code), "{ended:?}");
            snapshot.ended(&arguments.join(" "), &ended, Some(&site.scratch));
        }
    }
    for arguments in [
        &["mode", "observe"][..],
        &["mode", "enforce", "--confirm-within", "10m"],
        &["confirm"],
        &["rollback", "--json"],
        &["mode", "enforce", "--json"],
    ] {
        let ended = run(arguments)?;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        snapshot.ended(&arguments.join(" "), &ended, Some(&site.scratch));
    }
    snapshot.check(&expect_file!["snapshots/reports.txt"]);
    Ok(())
}

#[test]
fn detach_prints_the_interfaces() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let mut snapshot = Snapshot::new();
    for options in [&[][..], &["--json"]] {
        let _filter = site.filter(&[&["--iface", "eth0"], &SMALL[..]].concat())?;
        let arguments = [&["detach"], options].concat();
        let ended = site.run(&arguments)?;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        snapshot.ended(&arguments.join(" "), &ended, Some(&site.scratch));
    }
    snapshot.check(&expect_file!["snapshots/detach.txt"]);
    Ok(())
}

#[test]
fn verify_prints_the_programs() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let number = Regex::new(r" *\b\d+\b")?;
    let mut snapshot = Snapshot::new();
    for arguments in [&["verify"][..], &["verify", "--json"]] {
        let mut ended = site.run(arguments)?;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        if !arguments.contains(&"--json") {
            ended = without_ages(ended);
        }
        ended.stdout = number.replace_all(&ended.stdout, " <n>").into_owned();
        snapshot.ended(&arguments.join(" "), &ended, Some(&site.scratch));
    }
    snapshot.check(&expect_file!["snapshots/verify.txt"]);
    Ok(())
}
