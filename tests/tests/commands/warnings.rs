//! The warnings and notes of `check` that depend on the host or on the lists.

use allowlist_tests::lab::{bridge, normalized};

use super::*;

/// Returns the number of warnings and notes of a successful `check`, without the one that the interface is missing.
#[track_caller]
fn warnings(ended: &Ended) -> usize {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let is_warning = |line: &&str| line.starts_with("warning: ") || line.starts_with("note: ");
    let is_missing = |line: &&str| line.starts_with("warning: ") && line.contains(MISSING);
    let lines = ended.stdout.lines().filter(is_warning);
    lines.filter(|line| !is_missing(line)).count()
}

/// An interface that no machine has.
const MISSING: &str = "no-such";
const WEB: &str = "[services.web]\nports = ['tcp/443']\nallow = ['office']\n[sources.office]\nprefixes = ['203.0.113.0/24']\n";

#[test]
fn check_reports_who_reaches_ssh() -> anyhow::Result<()> {
    let home = Home::new()?;
    let mut snapshot = Snapshot::new();
    for (title, keys) in [
        ("default = pass", ""),
        ("default = drop", "default = 'drop'"),
    ] {
        home.write(
            "allowlist.toml",
            &format!("interfaces = ['{MISSING}']\n{keys}\n{WEB}"),
        )?;
        let ended = home.run(&["check", "--config", "allowlist.toml"])?;
        assert_eq!(warnings(&ended), 1, "{title}: {ended:?}");
        snapshot.ended(title, &ended, None);
        let ended = home.run(&["check", "--json", "--config", "allowlist.toml"])?;
        parsed(&ended);
        snapshot.text(
            &format!("{title}: warnings beside JSON"),
            &ended.stderr,
            None,
        );
        let ssh = WEB.replace("'tcp/443'", "'tcp/443', 'tcp/22'");
        home.write(
            "allowlist.toml",
            &format!("interfaces = ['{MISSING}']\n{keys}\n{ssh}"),
        )?;
        let ended = home.run(&["check", "--config", "allowlist.toml"])?;
        assert_eq!(warnings(&ended), 0, "{title}: {ended:?}");
    }
    // A policy from options is a trial, without warnings about SSH.
    let ended = home.run(&[&["check", "--iface", MISSING], &SMALL[..]].concat())?;
    assert_eq!(warnings(&ended), 0, "{ended:?}");
    snapshot.check(&expect_file!["snapshots/check_ssh.txt"]);
    Ok(())
}

#[test]
fn check_warns_of_lists_that_allow_every_address() -> anyhow::Result<()> {
    let home = Home::new()?;
    home.write("all.txt", "0.0.0.0/1\n128.0.0.0/1\n")?;
    home.write(
        "allowlist.toml",
        &format!("interfaces = ['{MISSING}']\n[services.web]\nports = ['tcp/22']\nallow = ['all']\n[sources.all]\nfile = 'all.txt'\nmin_prefix_len = {{ v4 = 0, v6 = 0 }}\n"),
    )?;
    let ended = home.run(&["check", "--config", "allowlist.toml"])?;
    assert_eq!(warnings(&ended), 1, "{ended:?}");
    let mut snapshot = Snapshot::new();
    snapshot.ended("two halves of the IPv4 addresses", &ended, None);
    snapshot.check(&expect_file!["snapshots/check_every_address.txt"]);
    Ok(())
}

/// Unit tests check members of a bond, since not every kernel that runs the tests has bonds.
#[test]
fn check_reports_bridges_and_their_ports() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    bridge(&site.host, "br0", &["eth0"])?;
    let mut snapshot = Snapshot::new();
    for interface in ["eth0", "br0"] {
        let ssh = WEB.replace("443", "22");
        let config = format!("interfaces = ['{interface}']\n{ssh}");
        let config = site.scratch.write("allowlist.toml", config)?;
        let ended = site.run(&["check", "--config", &config.display().to_string()])?;
        assert_eq!(warnings(&ended), 1, "{interface}: {ended:?}");
        snapshot.ended(interface, &ended, Some(&site.scratch));
    }
    snapshot.check(&expect_file!["snapshots/check_bridge.txt"]);
    Ok(())
}

#[test]
fn check_notes_fragments_that_services_drop() -> anyhow::Result<()> {
    let home = Home::new()?;
    let mut snapshot = Snapshot::new();
    for (ports, noted) in [("'tcp/22', 'udp/53'", 1), ("'tcp/22', 'gre'", 0)] {
        let web = WEB.replace("'tcp/443'", ports);
        home.write(
            "allowlist.toml",
            &format!("interfaces = ['{MISSING}']\n{web}"),
        )?;
        let ended = home.run(&["check", "--config", "allowlist.toml"])?;
        assert_eq!(warnings(&ended), noted, "{ports}: {ended:?}");
        let notes = ended
            .stdout
            .lines()
            .filter(|line| line.starts_with("note: "));
        assert_eq!(notes.count(), noted, "{ports}: {ended:?}");
        snapshot.ended(ports, &ended, None);
    }
    snapshot.check(&expect_file!["snapshots/check_fragments.txt"]);
    Ok(())
}

/// Both commands refuse it, in the file and as an option.
#[test]
fn loopback_is_refused() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let named = format!("interfaces = ['eth0', 'lo']\n{WEB}");
    let named = site.scratch.write("named.toml", named)?;
    let named = named.display().to_string();
    let open = site.scratch.write("open.toml", WEB)?.display().to_string();
    let mut snapshot = Snapshot::new();
    for arguments in [
        &["--config", &*named][..],
        &["--config", &*open, "--iface", "lo"],
        &[&["--iface", "lo"], &SMALL[..]].concat(),
    ] {
        for command in ["check", "run"] {
            let ended = site.run(&[&[command], arguments].concat())?;
            assert_eq!(ended.code, Some(1), "{ended:?}");
            if command == "run" {
                check_error(&ended, "unsupported-interface");
            }
            let error = "error[unsupported-interface]: ";
            assert!(ended.stderr.starts_with(error), "{ended:?}");
            let title = [&[command], arguments].concat().join(" ");
            let title = normalized(&title, Some(&site.scratch));
            snapshot.ended(&title, &ended, Some(&site.scratch));
        }
    }
    snapshot.check(&expect_file!["snapshots/loopback.txt"]);
    Ok(())
}

/// A source without a list is a row of the report.
#[test]
fn check_reports_a_source_that_fails() -> anyhow::Result<()> {
    let vendor = Vendor::start([("/list", Answer::json(r#"["198.18.0.9"]"#))])?;
    let home = Home::new()?;
    let config = |keys: &str| {
        format!(
            "interfaces = ['{MISSING}']\ndefault = 'drop'\n{keys}\n[services.web]\nports = ['tcp/443']\nallow = ['vendor', 'office']\n\
             [sources.office]\nprefixes = ['203.0.113.0/24']\n\
             [sources.vendor]\nurl = '{}'\nformat = 'json'\nallow_special_use = true\n",
            vendor.url("/list")
        )
    };
    let arguments = [
        "check",
        "--config",
        "allowlist.toml",
        "--state-dir",
        "state",
    ];
    let check = |options: &[&str]| home.run(&[&arguments[..], options].concat());
    let document = |options: &[&str]| -> anyhow::Result<(Option<i32>, Value)> {
        let ended = check(&[options, &["--json"]].concat())?;
        Ok((ended.code, serde_json::from_str(&ended.stdout)?))
    };
    home.write("allowlist.toml", &config(""))?;
    vendor.answer("/list", Answer::Status(503));
    let ended = check(&[])?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let mut snapshot = Snapshot::new();
    snapshot.ended("no list", &ended, None);
    let (code, failed) = document(&[])?;
    assert_eq!((code, &failed["ok"]), (Some(1), &json!(false)));
    assert!(
        failed["sources"]["vendor"]["failure"].is_string(),
        "{failed}"
    );
    assert_eq!(failed["sources"]["office"]["prefixes"], 1);
    // With `at_start = "drop"`, a start filters without the list.
    home.write("allowlist.toml", &config("at_start = 'drop'"))?;
    let (code, dropping) = document(&[])?;
    assert_eq!(
        (code, &dropping["ok"]),
        (Some(0), &json!(true)),
        "{dropping}"
    );

    // A start with a last-good list filters too.
    home.write("allowlist.toml", &config(""))?;
    let parsed = allowlist_user::config::Config::load(&home.folder.path().join("allowlist.toml"))?;
    let source = parsed.policy.source("vendor").context("it is configured")?;
    let state = allowlist_lists::state::StateDir::open(&home.folder.path().join("state"))?;
    let kept = vec!["198.18.0.1/32".parse()?, "198.18.0.2/32".parse()?];
    state.store(
        source,
        &allowlist_policy::Feed::new(kept, jiff::Timestamp::now()),
    )?;
    let (code, last_good) = document(&[])?;
    assert_eq!(
        (code, &last_good["ok"]),
        (Some(0), &json!(true)),
        "{last_good}"
    );
    assert_eq!(last_good["sources"]["vendor"]["prefixes"], 2);
    assert!(last_good["sources"]["vendor"]["failure"].is_string());
    snapshot.ended("a last-good list", &without_ages(check(&[])?), None);
    // With --offline there is no fetch, so there is no failure.
    vendor.answer("/list", Answer::json(r#"["198.18.0.9"]"#));
    let (code, offline) = document(&["--offline"])?;
    assert_eq!((code, &offline["ok"]), (Some(0), &json!(true)), "{offline}");
    assert_eq!(offline["sources"]["vendor"]["prefixes"], 2);
    assert!(offline["sources"]["vendor"]["failure"].is_null());
    let (_, fetched) = document(&[])?;
    assert_eq!(fetched["sources"]["vendor"]["prefixes"], 1);
    // A start with too many prefixes fails; the report is still printed.
    home.write("allowlist.toml", &config("max_prefixes = 1"))?;
    let ended = check(&[])?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    snapshot.ended("more prefixes than fit", &ended, None);
    snapshot.check(&expect_file!["snapshots/check_failures.txt"]);
    Ok(())
}

/// The warning about an invalid name suggests a valid one.
#[test]
fn check_suggests_names_of_interfaces() -> anyhow::Result<()> {
    let home = Home::new()?;
    let mut snapshot = Snapshot::new();
    let ssh = WEB.replace("443", "22");
    for interfaces in [
        "interfaces = ['lo@if2']",
        "interfaces = ['lo*']",
        "interfaces = ['all']",
        "",
    ] {
        home.write("allowlist.toml", &format!("{interfaces}\n{ssh}"))?;
        let ended = home.run(&["check", "--config", "allowlist.toml"])?;
        assert_eq!(warnings(&ended), 1, "{interfaces}: {ended:?}");
        snapshot.ended(interfaces, &ended, None);
    }
    snapshot.check(&expect_file!["snapshots/check_interface_names.txt"]);
    Ok(())
}
