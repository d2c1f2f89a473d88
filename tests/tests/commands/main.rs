//! Every command as a process: what it prints as text and as JSON, its exit code, and what it leaves
//! behind. Packets are `filter`'s.

mod explain;
mod lists;
mod refusals;
mod terminal;
mod warnings;

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use allowlist_tests::lab::{Ended, Program, Scratch, Testbed, allowlist};
use allowlist_tests::require_root;
use allowlist_tests::vendor::{Answer, Vendor};
use allowlist_user::interface;
use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Long enough for a machine that is busy building.
const SOON: Duration = Duration::from_mins(3);
const NOBODY: u32 = 65_534;

/// A policy that needs no file: these options and an interface.
const SMALL: [&str; 5] = [
    "--allow",
    "203.0.113.0/24",
    "--port",
    "tcp/443",
    "--enforce",
];

/// A folder that every user may enter, and the program in it.
struct Home {
    folder: TempDir,
}

impl Home {
    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        Ok(Self { folder })
    }

    fn write(&self, name: &str, contents: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.folder.path().join(name), contents)?)
    }

    /// Runs the program in the folder, as whoever runs the tests.
    fn run(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        let mut command = Command::new(allowlist()?);
        command.args(arguments).current_dir(self.folder.path());
        Ended::of(command)
    }

    /// Runs it as a user without any privileges. Needs root.
    fn run_as_nobody(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        // A copy, since the build may be where only its owner may look.
        let program = self.folder.path().join("allowlist");
        if !program.exists() {
            // By a process of its own: a test that forks meanwhile would hold a copy of ours open for
            // writing, and a program that somebody writes to does not start.
            let copied = Command::new("cp")
                .arg(allowlist()?)
                .arg(&program)
                .status()?;
            ensure!(copied.success(), "cannot copy the program");
        }
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder.path());
        command.uid(NOBODY).gid(NOBODY);
        Ended::of(command)
    }
}

/// A text without what pads its columns.
fn unpadded(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn parsed(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// The program ended like that, with all of these on standard error and nothing on the other.
#[track_caller]
fn check_error(ended: &Ended, code: i32, expected: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
    for expected in expected {
        assert!(
            ended.stderr.contains(expected),
            "{expected:?} is not in:\n{}",
            ended.stderr
        );
    }
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

const SERVICES: &str = r#"
interfaces = ["no-such"]
mode = "observe"

[services.webhooks]
ports = ["tcp/443", "udp/5000-5010"]
allow = ["vendor", "office"]

[services.ssh]
ports = ["tcp/22"]
allow = ["office", "everyone"]

[sources.office]
file = "office.txt"

[sources.everyone]
prefixes = ["0.0.0.0/0"]

[sources.spare]
prefixes = ["192.0.2.0/24"]
"#;

/// The note of a service that covers some UDP ports.
const FRAGMENTS: &str = "later fragments of datagrams to uncovered UDP ports carry no port, so they are dropped (reason \"fragment\") unless a service with UDP ports allows their source; to receive such datagrams, add a service that covers the ports";

#[test]
fn check_prints_what_would_be_published() -> anyhow::Result<()> {
    let vendor = Vendor::start([(
        "/list",
        Answer::json(r#"["198.18.0.1", "2001:db8:18::/48"]"#),
    )])?;
    let url = vendor.url("/list");
    let home = Home::new()?;
    home.write("office.txt", "203.0.113.0/24 # the office\n198.18.0.1\n")?;
    let config = format!(
        "{SERVICES}\n[sources.vendor]\nurl = \"{url}\"\nformat = \"json\"\nallow_special_use = true\n"
    );
    home.write("allowlist.toml", &config)?;

    let text = home.run(&["check", "--config", "allowlist.toml"])?;
    assert_eq!((text.code, text.stderr.as_str()), (Some(0), ""), "{text:?}");
    let expected = format!(
        "service ports on allows\n\
         ssh tcp/22 all office everyone\n\
         webhooks tcp/443 udp/5000-5010 all vendor office\n\
         \n\
         source prefixes from\n\
         everyone 1 the configuration\n\
         office 2 office.txt\n\
         vendor 2 {url}\n\
         \n\
         warning: services.ssh is open to everyone: sources.everyone holds 0.0.0.0/0\n\
         warning: sources.spare is not used: name it in a service's `allow`, or remove it\n\
         warning: this host has no interface no-such now\n\
         note: {FRAGMENTS}\n\
         ok: 3 IPv4 and 1 IPv6 prefixes of 250000 allowed; mode observe, default pass"
    );
    assert_eq!(unpadded(&text.stdout), expected);

    let ended = home.run(&["check", "--json", "--config", "allowlist.toml"])?;
    let document = parsed(&ended);
    assert_eq!(ended.stderr.lines().count(), 4, "{ended:?}");
    for (key, expected) in [
        ("interfaces", json!(["no-such"])),
        ("mode", json!("observe")),
        ("default", json!("pass")),
    ] {
        assert_eq!(document[key], expected, "{key}");
    }
    assert_eq!(
        document["services"]["ssh"],
        json!({"ports": ["tcp/22"], "interfaces": [], "allow": ["office", "everyone"]})
    );
    assert_eq!(document["sources"]["vendor"]["origin"], url);
    let entry = |prefix, services: &[&str], sources: &[&str]| json!({"prefix": prefix, "services": services, "sources": sources});
    let everyone = &["everyone", "office"][..];
    let expected = json!([
        entry("0.0.0.0/0", &["ssh"], &["everyone"]),
        entry(
            "198.18.0.1/32",
            &["ssh", "webhooks"],
            &["everyone", "office", "vendor"]
        ),
        entry("203.0.113.0/24", &["ssh", "webhooks"], everyone),
        entry("2001:db8:18::/48", &["webhooks"], &["vendor"]),
    ]);
    assert_eq!(document["prefixes"], expected);
    Ok(())
}

#[test]
fn check_needs_no_privileges() -> anyhow::Result<()> {
    require_root!();
    let home = Home::new()?;
    let ended = home.run_as_nobody(&[&["check", "--iface", "no-such"], &SMALL[..]].concat())?;
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{ended:?}"
    );
    let result = ended.stdout.lines().last();
    let expected = "ok: 1 IPv4 and 0 IPv6 prefixes of 250000 allowed; mode enforce, default pass";
    assert_eq!(result, Some(expected));
    Ok(())
}

#[test]
fn check_takes_ten_thousand_prefixes() -> anyhow::Result<()> {
    let home = Home::new()?;
    // Every other address, so that no two could be merged.
    let prefixes: Vec<_> = (0..10_000)
        .map(|n| Ipv4Addr::from_bits(0x0a00_0000 + 2 * n).to_string())
        .collect();
    let config = format!(
        "interfaces = ['eth0']\n[services.web]\nports = ['tcp/443']\nallow = ['many']\n\
         [sources.many]\nprefixes = {prefixes:?}\n"
    );
    home.write("allowlist.toml", &config)?;
    let ended = home.run(&["check", "--json", "--config", "allowlist.toml"])?;
    assert_eq!(
        parsed(&ended)["prefixes"].as_array().map(Vec::len),
        Some(10_000)
    );
    Ok(())
}

#[test]
fn fetch_prints_a_source() -> anyhow::Result<()> {
    let vendor = Vendor::start([(
        "/list",
        Answer::json(r#"["198.18.0.1", "2001:db8:18::/48"]"#),
    )])?;
    let home = Home::new()?;
    let config = format!(
        "[sources.vendor]\nurl = \"{}\"\nformat = \"json\"\n",
        vendor.url("/list")
    );
    home.write("allowlist.toml", &config)?;
    let fetch = |arguments: &[&str]| {
        home.run(&[&["fetch", "--config", "allowlist.toml"], arguments].concat())
    };

    let text = fetch(&["vendor"])?;
    assert_eq!(
        (text.code, text.stdout.as_str()),
        (Some(0), "198.18.0.1/32\n2001:db8:18::/48\n")
    );
    let document = parsed(&fetch(&["vendor", "--json"])?);
    assert_eq!(document["origin"], vendor.url("/list"));
    assert_eq!(
        document["prefixes"],
        json!(["198.18.0.1/32", "2001:db8:18::/48"])
    );

    // A provider needs to be in no configuration.
    let document = parsed(&fetch(&["workato", "--json"])?);
    assert_eq!(document["provider"], "workato");
    let prefixes = document["prefixes"]
        .as_array()
        .context("prefixes is an array")?;
    assert!(prefixes.contains(&json!("52.5.142.59/32")), "{document}");

    let expected = "no source or provider is named \"nobody\"; the configuration has vendor, and `allowlist providers` lists the catalogue";
    check_error(&fetch(&["nobody"])?, 1, &[expected]);
    drop(vendor);
    check_error(
        &fetch(&["vendor"])?,
        1,
        &["source vendor: http://127.0.0.1:", "cannot be reached"],
    );
    Ok(())
}

#[test]
fn providers_prints_the_catalogue() -> anyhow::Result<()> {
    let home = Home::new()?;
    for (word, expected) in [
        (
            "PagerDuty webhooks",
            &[
                "pagerduty-webhooks-eu",
                "pagerduty-webhooks-legacy",
                "pagerduty-webhooks-us",
            ][..],
        ),
        ("workato", &["workato", "workato-gateways", "workato-page"]),
        ("freddy", &["freshchat"]),
    ] {
        let arguments = ["providers", word];
        let text = home.run(&arguments)?;
        let rows = text
            .stdout
            .lines()
            .skip(1)
            .take_while(|line| !line.starts_with('!'));
        let names: Vec<_> = rows
            .clone()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(
            (text.code, names.as_slice()),
            (Some(0), expected),
            "{text:?}"
        );

        let document = parsed(&home.run(&[&arguments[..], &["--json"]].concat())?);
        let providers = document["providers"]
            .as_array()
            .context("providers is an array")?;
        let names: Vec<_> = providers
            .iter()
            .filter_map(|provider| provider["name"].as_str())
            .collect();
        assert_eq!(names, expected);
        for (provider, row) in providers.iter().zip(rows) {
            let is_marked = row.split_whitespace().nth(1) == Some("!");
            assert_eq!(provider["warning"].is_string(), is_marked, "{provider}");
        }
    }
    check_error(
        &home.run(&["providers", "acme"])?,
        1,
        &["no provider has \"acme\" in its name, title or description"],
    );
    Ok(())
}

#[test]
fn nothing_in_force_is_said() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let pins = site.scratch.pin_dir().display().to_string();
    let expected = format!(
        "error[nothing-attached]: no filter is active: nothing is pinned under {pins}; start one with `allowlist run`\n"
    );
    let status = site.run(&["status"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    assert_eq!(
        format!("error[nothing-attached]: {}", status.stdout),
        expected
    );
    let status = site.run(&["status", "--json"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    let status: Value = serde_json::from_str(&status.stdout)?;
    assert_eq!(status["filtering"], false);
    for command in [&["list"][..], &["detach"], &["explain", "192.0.2.1"]] {
        for options in [&[][..], &["--json"]] {
            let ended = site.run(&[command, options].concat())?;
            check_error(&ended, 1, &[&expected]);
        }
    }
    Ok(())
}

/// What was damaged on disk may cost words, but not the facts that the kernel knows.
#[test]
fn a_damaged_record_costs_words_only() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let _filter = site.filter(&[&["--iface", "eth0"], &SMALL[..]].concat())?;
    let record = site.scratch.file("state").join("record.v2.json");
    fs::metadata(&record)?;
    fs::write(&record, "{")?;
    assert_eq!(site.json("status")?["filtering"], true);
    assert_eq!(
        site.json("list")?["prefixes"][0]["prefix"],
        "203.0.113.0/24"
    );
    Ok(())
}

#[test]
fn wrong_usage_is_code_2() -> anyhow::Result<()> {
    let home = Home::new()?;
    for (arguments, expected) in [
        (&[][..], "Usage: allowlist"),
        (&["walk"], "unrecognized subcommand 'walk'"),
        (&["fetch"], "<NAME>"),
        (&["status", "--xml"], "unexpected argument '--xml'"),
        (
            &["run", "--attach-mode", "fast"],
            "possible values: auto, native, generic, offload",
        ),
        (
            &["run", "--allow", "203.0.113.9/24"],
            "write \"203.0.113.0/24\" for the network",
        ),
        (&["run", "--allow", "example.com"], "is not a prefix"),
        (
            &["run", "--port", "https"],
            "invalid value 'https' for '--port <PORT>'",
        ),
    ] {
        check_error(&home.run(arguments)?, 2, &[expected]);
    }
    Ok(())
}
