//! `explain` as a process: what it says of a filter that is on, and what it exits with. That it says what the
//! kernel does is `packets`'s.

use allowlist_tests::lab::{FrameSender, frame};

use super::*;

/// A closed host: the vendor's and the office's addresses reach the web, the office's alone the rest.
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
[sources.office]
prefixes = ["203.0.113.0/24", "203.0.113.8/29", "2001:db8:7::/48"]
"#;

/// Of Workato in the US.
const VENDOR: &str = "52.5.142.59";
const OFFICE: &str = "203.0.113.9";
const STRANGER: &str = "192.0.2.66";

fn filter(site: &Testbed, policy: &str) -> anyhow::Result<Program> {
    let config = site.scratch.write("allowlist.toml", policy)?;
    let config = config.display().to_string();
    site.filter(&["--config", &config])
}

fn explain(site: &Testbed, arguments: &[&str]) -> anyhow::Result<Ended> {
    site.run(&[&["explain"], arguments].concat())
}

#[test]
fn explain_tells_why_and_exits_by_it() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let mut filter = filter(&site, POLICY)?;
    let rows: [(&[&str], i32, &[&str]); 9] = [
        (
            &[VENDOR, "--port", "tcp/443"],
            0,
            &[
                "52.5.142.59 to tcp/443 on eth0 passes; generation 1\n",
                "pass allowed: step 4: web covers it and allows vendor, which lists 52.5.142.59\n",
                "\n52.5.142.59/32 web vendor -\n",
                " US the list compiled in, as published on ",
            ],
        ),
        (
            &[VENDOR, "--port", "tcp/22", "--iface", "eth0"],
            3,
            &[
                "52.5.142.59 to tcp/22 on eth0 is dropped;",
                "drop not-allowed: step 4: ssh covers it, and allows no source that lists 52.5.142.59\n",
            ],
        ),
        (
            &[STRANGER, "--port", "udp/5005"],
            3,
            &[
                "step 4: web covers it, and no source lists 192.0.2.66\n",
                "no active prefix contains 192.0.2.66",
            ],
        ),
        (
            &[OFFICE, "--port", "sctp/22"],
            3,
            &["drop default: step 6: no service covers it, and default = \"drop\"\n"],
        ),
        (
            &["2001:db8:7::1", "--port", "icmp"],
            0,
            &["pass allowed: step 4: ssh "],
        ),
        (
            &["2001:db8:8::1", "--port", "icmp"],
            3,
            &["drop not-allowed: step 4: ssh "],
        ),
        (
            &["::ffff:203.0.113.9", "--port", "tcp/22"],
            0,
            &["203.0.113.9 to tcp/22 on eth0 passes;"],
        ),
        (
            &[OFFICE],
            3,
            &[
                "services that 203.0.113.9 reaches; generation 1\n\non eth0\n",
                "pass allowed web tcp/443 udp/5000-5010 step 4: ",
                "pass allowed ssh tcp/22 icmp step 4: ",
                "drop default - everything else step 6: ",
                // The longest first.
                "\n203.0.113.8/29 ssh web office -\n203.0.113.0/24 ssh web office -\n",
            ],
        ),
        (&[VENDOR, "--port", "other"], 3, &["drop default: step 6: "]),
    ];
    for is_daemon_gone in [false, true] {
        if is_daemon_gone {
            filter.stop(Signal::SIGKILL, SOON)?;
        }
        for (arguments, code, expected) in rows {
            let ended = explain(&site, arguments)?;
            assert_eq!(ended.code, Some(code), "{ended:?}");
            let text = unpadded(&ended.stdout) + "\n";
            for expected in expected {
                assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
            }
        }
    }
    for (arguments, code, expected) in [
        (
            &[VENDOR, "--iface", "eth7"][..],
            1,
            "eth7 is not filtered, so every packet that it receives passes; the filter is on eth0",
        ),
        (&["fe80::1%eth7"], 1, "eth7 is not filtered"),
        (
            &["203.0.113.0/24"],
            2,
            "is a prefix; use one address, such as \"203.0.113.0\"",
        ),
        (
            &[VENDOR, "--port", "tcp/1-2"],
            2,
            "is a range; use one port, such as \"tcp/1\"",
        ),
        (&[VENDOR, "--port", "any"], 2, "\"any\" is not one port"),
    ] {
        check_error(&explain(&site, arguments)?, code, &[expected]);
    }
    Ok(())
}

/// Every field of the schema that scripts may rely on.
#[test]
fn explain_as_data() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let _filter = filter(&site, POLICY)?;
    let asked = |arguments: &[&str]| -> anyhow::Result<(Option<i32>, Value)> {
        let ended = explain(&site, &[arguments, &["--json"]].concat())?;
        let document = serde_json::from_str(&ended.stdout);
        Ok((ended.code, document.with_context(|| format!("{ended:?}"))?))
    };
    let (code, mut before) = asked(&[VENDOR, "--port", "tcp/443"])?;
    assert_eq!(code, Some(0));
    let vendor = before["sources"]["vendor"].take();
    let expected = json!({
        "address": VENDOR,
        "port": "tcp/443",
        "verdict": "pass",
        "passes": true,
        "mode": "enforce",
        "generation": 1,
        "default": "drop",
        "interfaces": [{
            "name": "eth0",
            "decisions": [{
                "ports": ["tcp/443"],
                "verdict": "pass",
                "reason": "allowed",
                "step": 4,
                "why": "step 4: web covers it and allows vendor, which lists 52.5.142.59",
                "services": ["web"],
                "sources": ["vendor"],
            }],
        }],
        "prefixes": [{
            "prefix": "52.5.142.59/32",
            "services": ["web"],
            "sources": ["vendor"],
            "held_until": {},
        }],
        "sources": {"vendor": null},
        "flows": 0,
    });
    assert_eq!(before, expected);
    for (key, expected) in [
        ("regions", json!(["US"])),
        ("passed_packets", json!(0)),
        ("last_passed", json!(null)),
        ("failure", json!(null)),
    ] {
        assert_eq!(vendor[key], expected, "{key}");
    }
    assert!(
        vendor["age_seconds"].is_i64() && vendor["state"].is_string(),
        "{vendor}"
    );

    // A packet is a hit.
    let end = |address: &str, port| -> anyhow::Result<std::net::SocketAddr> {
        Ok(std::net::SocketAddr::new(address.parse()?, port))
    };
    let sender = FrameSender::new(&site.peer, "eth0")?;
    sender.send(&frame::tcp_syn(
        end(VENDOR, 40_000)?,
        end("198.51.100.1", 443)?,
    ))?;
    site.check_counted("eth0", &json!({"pass allowed": 1}))?;
    let (_, after) = asked(&[VENDOR, "--port", "tcp/443"])?;
    let vendor = &after["sources"]["vendor"];
    assert_eq!(vendor["passed_packets"], 1);
    assert!(vendor["last_passed"].is_string(), "{vendor}");

    // In observe mode the packet passes, and the verdict is what it is.
    assert_eq!(site.run(&["mode", "observe"])?.code, Some(0));
    let (code, observed) = asked(&[STRANGER, "--port", "tcp/443"])?;
    let found = (
        code,
        &observed["verdict"],
        &observed["passes"],
        &observed["mode"],
    );
    assert_eq!(
        found,
        (Some(3), &json!("drop"), &json!(true), &json!("observe"))
    );
    let text = explain(&site, &[STRANGER, "--port", "tcp/443"])?;
    for expected in ["on eth0 would be dropped;", "every packet passes"] {
        assert!(text.stdout.contains(expected), "{text:?}");
    }
    Ok(())
}

/// What is decided alike is told once, and what is not by interface.
#[test]
fn explain_tells_interfaces_apart() -> anyhow::Result<()> {
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
    let ended = explain(&site, &[OFFICE, "--port", "tcp/22"])?;
    let expected =
        "203.0.113.9 to tcp/22, by interface; generation 1\n\non eth0\ndrop default: step 6: ";
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stdout.starts_with(expected), "{}", ended.stdout);
    assert!(
        ended.stdout.contains("\non eth1\npass allowed: step 4: "),
        "{}",
        ended.stdout
    );
    let ended = explain(&site, &[OFFICE, "--port", "tcp/22", "--iface", "eth1"])?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let ended = explain(&site, &[OFFICE, "--port", "tcp/443"])?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended
            .stdout
            .starts_with("203.0.113.9 to tcp/443 on eth0, eth1 passes;"),
        "{}",
        ended.stdout
    );
    Ok(())
}
