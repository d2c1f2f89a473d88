//! `explain` as a process: its output and exit code for an attached filter. The tests in `packets` compare its verdicts
//! with the kernel's.

use allowlist_tests::lab::{FrameSender, frame, normalized};

use super::*;

/// The vendor and the office reach `web`, the office alone reaches `ssh`, and all other packets are dropped.
const POLICY: &str = r#"
interfaces = ["eth0"]
default = "drop"
[services.web]
ports = ["tcp/443", "udp/5000-5010"]
allow = ["vendor", "office"]
[services.ssh]
ports = ["tcp/22", "icmp"]
allow = ["office"]
[sources.vendor]
provider = "workato"
regions = ["US"]
max_age = "3600d"
[sources.office]
prefixes = ["203.0.113.0/24", "203.0.113.8/29", "2001:db8:7::/48"]
"#;

/// An address of Workato in the US.
const VENDOR: &str = "52.5.142.59";
const OFFICE: &str = "203.0.113.9";
const STRANGER: &str = "192.0.2.66";

fn filter(site: &Testbed, policy: &str) -> anyhow::Result<Program> {
    let config = site.scratch.write("allowlist.toml", policy)?;
    let config = config.display().to_string();
    site.filter(&["--config", &config])
}

fn explain(site: &Testbed, arguments: &[&str]) -> anyhow::Result<Ended> {
    let ended = site.run(&[&["explain"], arguments].concat())?;
    let is_json = arguments.contains(&"--json");
    Ok(if is_json { ended } else { without_ages(ended) })
}

#[test]
fn explain_prints_the_reason_and_exits_with_the_verdict() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let mut filter = filter(&site, POLICY)?;
    let rows: [(&[&str], i32); 9] = [
        (&[VENDOR, "--port", "tcp/443"], 0),
        (&[VENDOR, "--port", "tcp/22", "--iface", "eth0"], 3),
        (&[STRANGER, "--port", "udp/5005"], 3),
        (&[OFFICE, "--port", "sctp/22"], 3),
        (&["2001:db8:7::1", "--port", "icmp"], 0),
        (&["2001:db8:8::1", "--port", "icmp"], 3),
        (&["::ffff:203.0.113.9", "--port", "tcp/22"], 0),
        (&[OFFICE], 3),
        (&[VENDOR, "--port", "other"], 3),
    ];
    let mut snapshot = Snapshot::new();
    let mut texts = Vec::new();
    for (arguments, code) in rows {
        let ended = explain(&site, arguments)?;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        snapshot.ended(&arguments.join(" "), &ended, Some(&site.scratch));
        texts.push(normalized(&ended.stdout, Some(&site.scratch)));
    }
    filter.stop(Signal::SIGKILL, SOON)?;
    for ((arguments, code), text) in rows.into_iter().zip(texts) {
        let ended = explain(&site, arguments)?;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        let found = normalized(&ended.stdout, Some(&site.scratch));
        assert_eq!(found, text, "without a daemon");
    }
    for arguments in [&[VENDOR, "--iface", "eth7"][..], &["fe80::1%eth7"]] {
        let ended = explain(&site, arguments)?;
        check_error(&ended, "nothing-attached");
        snapshot.ended(&arguments.join(" "), &ended, Some(&site.scratch));
    }
    for arguments in [
        &["203.0.113.0/24"][..],
        &[VENDOR, "--port", "tcp/1-2"],
        &[VENDOR, "--port", "any"],
    ] {
        let ended = explain(&site, arguments)?;
        check_usage_error(&ended);
        snapshot.ended(&arguments.join(" "), &ended, Some(&site.scratch));
    }
    snapshot.check(&expect_file!["snapshots/explain.txt"]);
    Ok(())
}

#[test]
fn explain_prints_documents() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let _filter = filter(&site, POLICY)?;
    let json = |arguments: &[&str]| -> anyhow::Result<(Ended, Value)> {
        let ended = explain(&site, &[arguments, &["--json"]].concat())?;
        let document = serde_json::from_str(&ended.stdout);
        let document = document.with_context(|| format!("{ended:?}"))?;
        Ok((ended, document))
    };
    let mut snapshot = Snapshot::new();
    let (ended, before) = json(&[VENDOR, "--port", "tcp/443"])?;
    assert_eq!(ended.code, Some(0));
    assert_eq!(before["verdict"], "pass");
    assert_eq!(before["sources"]["vendor"]["passed_packets"], 0);
    assert!(before["sources"]["vendor"]["age_seconds"].is_i64());
    snapshot.ended("an allowed address", &ended, Some(&site.scratch));

    // The counters of the source include a packet.
    let end = |address: &str, port| -> anyhow::Result<std::net::SocketAddr> {
        Ok(std::net::SocketAddr::new(address.parse()?, port))
    };
    let sender = FrameSender::new(&site.peer, "eth0")?;
    sender.send(&frame::tcp_syn(
        end(VENDOR, 40_000)?,
        end("198.51.100.1", 443)?,
    ))?;
    site.check_counted("eth0", &json!({"pass allowed": 1}))?;
    let (_, after) = json(&[VENDOR, "--port", "tcp/443"])?;
    let vendor = &after["sources"]["vendor"];
    assert_eq!(vendor["passed_packets"], 1);
    assert!(vendor["last_passed"].is_string(), "{vendor}");

    // In observe mode the packet passes, and the verdict stays a drop.
    assert_eq!(site.run(&["mode", "observe"])?.code, Some(0));
    let (ended, observed) = json(&[STRANGER, "--port", "tcp/443"])?;
    let found = (
        ended.code,
        &observed["verdict"],
        &observed["passes"],
        &observed["mode"],
    );
    assert_eq!(
        found,
        (Some(3), &json!("drop"), &json!(true), &json!("observe"))
    );
    snapshot.ended("an unknown address in observe mode", &ended, None);
    let text = explain(&site, &[STRANGER, "--port", "tcp/443"])?;
    assert_eq!(text.code, Some(3));
    snapshot.ended("the same as text", &text, None);
    snapshot.check(&expect_file!["snapshots/explain_json.txt"]);
    Ok(())
}

/// Interfaces with equal decisions share one report.
#[test]
fn explain_separates_interfaces_that_differ() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    site.second_link()?;
    let policy = POLICY
        .replace("[\"eth0\"]", "[\"eth0\", \"eth1\"]")
        .replace(
            "allow = [\"office\"]",
            "interfaces = [\"eth1\"]\nallow = [\"office\"]",
        );
    let _filter = filter(&site, &policy)?;
    let mut snapshot = Snapshot::new();
    for (arguments, code) in [
        (&[OFFICE, "--port", "tcp/22"][..], 3),
        (&[OFFICE, "--port", "tcp/22", "--iface", "eth1"], 0),
        (&[OFFICE, "--port", "tcp/443"], 0),
    ] {
        let ended = explain(&site, arguments)?;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        snapshot.ended(&arguments.join(" "), &ended, Some(&site.scratch));
    }
    snapshot.check(&expect_file!["snapshots/explain_interfaces.txt"]);
    Ok(())
}
