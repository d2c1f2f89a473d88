//! What `check` warns of, that only a host or the lists can tell.

use allowlist_tests::lab::bridge;

use super::*;

#[track_caller]
fn said(ended: &Ended) -> Vec<&str> {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines = ended.stdout.lines();
    let is_said = |line: &&str| line.starts_with("warning: ") || line.starts_with("note: ");
    // Of the machine's own card, which may be there, and may have any driver.
    let is_of_here = |line: &&str| {
        let text = line.split_once(": ").map_or("", |(_, text)| text);
        text == format!("this host has no interface {HERE} now")
            || text.starts_with(&format!("{HERE}: the "))
    };
    lines
        .filter(is_said)
        .filter(|line| !is_of_here(line))
        .collect()
}

/// An interface that is there or not, on the machine that the tests run on.
const HERE: &str = "eth0";
const WEB: &str = "[services.web]\nports = ['tcp/443']\nallow = ['office']\n[sources.office]\nprefixes = ['203.0.113.0/24']\n";

#[test]
fn check_tells_who_reaches_ssh() -> anyhow::Result<()> {
    let home = Home::new()?;
    for (keys, expected) in [
        (
            "",
            "note: SSH is open to everybody: no service covers tcp/22, and default = \"pass\";",
        ),
        (
            "default = 'drop'",
            "warning: SSH is closed: default = \"drop\", and no service covers tcp/22; add [services.ssh] with",
        ),
    ] {
        home.write(
            "allowlist.toml",
            &format!("interfaces = ['{HERE}']\n{keys}\n{WEB}"),
        )?;
        let ended = home.run(&["check", "--config", "allowlist.toml"])?;
        let [line] = said(&ended)[..] else {
            panic!("{ended:?}");
        };
        assert!(line.starts_with(expected), "{line}");
        let ended = home.run(&["check", "--json", "--config", "allowlist.toml"])?;
        assert!(ended.stderr.contains(expected), "{ended:?}");
        parsed(&ended);
        let ssh = WEB.replace("'tcp/443'", "'tcp/443', 'tcp/22'");
        home.write(
            "allowlist.toml",
            &format!("interfaces = ['{HERE}']\n{keys}\n{ssh}"),
        )?;
        let ended = home.run(&["check", "--config", "allowlist.toml"])?;
        assert_eq!(said(&ended), [""; 0], "{keys}");
    }
    // Whoever types a few options for a try knows what they leave out.
    let ended = home.run(&[&["check", "--iface", HERE], &SMALL[..]].concat())?;
    assert_eq!(said(&ended), [""; 0]);
    Ok(())
}

#[test]
fn check_tells_of_lists_that_hold_everybody() -> anyhow::Result<()> {
    let home = Home::new()?;
    home.write("all.txt", "0.0.0.0/1\n128.0.0.0/1\n")?;
    home.write(
        "allowlist.toml",
        &format!("interfaces = ['{HERE}']\n[services.web]\nports = ['tcp/22']\nallow = ['all']\n[sources.all]\nfile = 'all.txt'\nmin_prefix_len = {{ v4 = 0, v6 = 0 }}\n"),
    )?;
    let ended = home.run(&["check", "--config", "allowlist.toml"])?;
    let expected =
        "warning: services.web is open to everyone: the list of sources.all covers 0.0.0.0/0";
    assert_eq!(said(&ended), [expected]);
    Ok(())
}

/// Of a bond's members the unit tests tell: not every kernel that tests run on has bonds.
#[test]
fn check_tells_of_a_port_of_a_bridge() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    bridge(&site.host, "br0", &["eth0"])?;
    for (filtered, expected) in [
        ("eth0", &["warning: eth0 is a port of the bridge br0: "][..]),
        ("br0", &["note: br0: the filter will run in generic mode"]),
    ] {
        let ssh = WEB.replace("443", "22");
        let config = format!("interfaces = ['{filtered}']\n{ssh}");
        let config = site.scratch.write("allowlist.toml", config)?;
        let ended = site.run(&["check", "--config", &config.display().to_string()])?;
        let said = said(&ended);
        assert_eq!(said.len(), expected.len(), "{filtered}: {said:?}");
        for (line, expected) in said.iter().zip(expected) {
            assert!(line.starts_with(expected), "{filtered}: {line}");
        }
    }
    Ok(())
}

#[test]
fn check_notes_which_fragments_services_drop() -> anyhow::Result<()> {
    let home = Home::new()?;
    for (ports, is_noted) in [("'tcp/22', 'udp/53'", true), ("'tcp/22', 'gre'", false)] {
        let web = WEB.replace("'tcp/443'", ports);
        home.write("allowlist.toml", &format!("interfaces = ['{HERE}']\n{web}"))?;
        let ended = home.run(&["check", "--config", "allowlist.toml"])?;
        let said = said(&ended);
        assert_eq!(said.len(), usize::from(is_noted), "{ports}: {said:?}");
        assert!(
            said.iter().all(|line| line.starts_with("note: ")),
            "{said:?}"
        );
    }
    Ok(())
}

/// In the file and by option, and in every command that takes either.
#[test]
fn loopback_is_refused() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let named = format!("interfaces = ['eth0', 'lo']\n{WEB}");
    let named = site.scratch.write("named.toml", named)?;
    let named = named.display().to_string();
    let open = site.scratch.write("open.toml", WEB)?.display().to_string();
    for arguments in [
        &["--config", &*named][..],
        &["--config", &*open, "--iface", "lo"],
        &[&["--iface", "lo"], &SMALL[..]].concat(),
    ] {
        for command in ["check", "run"] {
            let ended = site.run(&[&[command], arguments].concat())?;
            assert_eq!(ended.code, Some(1), "{ended:?}");
            for expected in ["lo is the loopback interface", "leave it out"] {
                assert!(ended.stderr.contains(expected), "{ended:?}");
            }
        }
    }
    Ok(())
}

/// The report is printed also when a source fails: a source without a list is a row.
#[test]
fn check_reports_a_source_that_fails() -> anyhow::Result<()> {
    let vendor = Vendor::start([("/list", Answer::json(r#"["198.18.0.9"]"#))])?;
    let home = Home::new()?;
    let config = |keys: &str| {
        format!(
            "interfaces = ['{HERE}']\ndefault = 'drop'\n{keys}\n[services.web]\nports = ['tcp/443']\nallow = ['vendor', 'office']\n\
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
    for expected in [
        "office",
        "failed, no list",
        "warning: SSH is closed",
        "not ok: sources.vendor has no list",
    ] {
        assert!(ended.stdout.contains(expected), "{expected}: {ended:?}");
    }
    let (code, failed) = document(&[])?;
    assert_eq!((code, &failed["ok"]), (Some(1), &json!(false)));
    assert!(
        failed["sources"]["vendor"]["failure"].is_string(),
        "{failed}"
    );
    assert_eq!(failed["sources"]["office"]["prefixes"], 1);
    // A start that does not wait for it would filter.
    home.write("allowlist.toml", &config("at_start = 'drop'"))?;
    let (code, dropping) = document(&[])?;
    assert_eq!(
        (code, &dropping["ok"]),
        (Some(0), &json!(true)),
        "{dropping}"
    );

    // So would one with a last-good list.
    home.write("allowlist.toml", &config(""))?;
    let parsed = allowlist_user::config::Config::load(&home.folder.path().join("allowlist.toml"))?;
    let source = parsed.policy.source("vendor").context("it is configured")?;
    let state = allowlist_user::state::StateDir::open(&home.folder.path().join("state"))?;
    let kept = vec!["198.18.0.1/32".parse()?, "198.18.0.2/32".parse()?];
    state.store(
        source,
        &allowlist_user::policy::Feed::new(kept, jiff::Timestamp::now()),
    )?;
    let (code, last_good) = document(&[])?;
    assert_eq!(
        (code, &last_good["ok"]),
        (Some(0), &json!(true)),
        "{last_good}"
    );
    assert_eq!(last_good["sources"]["vendor"]["prefixes"], 2);
    assert!(last_good["sources"]["vendor"]["failure"].is_string());
    // Offline, nothing is fetched, and nothing has failed.
    vendor.answer("/list", Answer::json(r#"["198.18.0.9"]"#));
    let (code, offline) = document(&["--offline"])?;
    assert_eq!((code, &offline["ok"]), (Some(0), &json!(true)), "{offline}");
    assert_eq!(offline["sources"]["vendor"]["prefixes"], 2);
    assert!(offline["sources"]["vendor"]["failure"].is_null());
    let (_, fetched) = document(&[])?;
    assert_eq!(fetched["sources"]["vendor"]["prefixes"], 1);
    // Too many prefixes are a failure of a start; the report is printed before it.
    home.write("allowlist.toml", &config("max_prefixes = 1"))?;
    let ended = check(&[])?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stdout.contains("not ok: ") && ended.stdout.contains("office"),
        "{ended:?}"
    );
    Ok(())
}

/// A name that no interface can have comes with the one to write, once.
#[test]
fn check_hints_at_names_of_interfaces() -> anyhow::Result<()> {
    let home = Home::new()?;
    for (name, expected) in [
        ("lo@if2", "write \"lo\""),
        ("lo*", "names are not patterns"),
        ("all", "write the name of each interface"),
    ] {
        let ssh = WEB.replace("443", "22");
        home.write("allowlist.toml", &format!("interfaces = ['{name}']\n{ssh}"))?;
        let ended = home.run(&["check", "--config", "allowlist.toml"])?;
        let [line] = said(&ended)[..] else {
            panic!("{ended:?}");
        };
        assert!(line.contains(expected), "{line}");
    }
    home.write("allowlist.toml", &WEB.replace("443", "22"))?;
    let ended = home.run(&["check", "--config", "allowlist.toml"])?;
    let [line] = said(&ended)[..] else {
        panic!("{ended:?}");
    };
    assert!(line.contains("no interface to filter on"), "{line}");
    Ok(())
}
