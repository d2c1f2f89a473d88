//! Each command as a process: its output as text and as JSON, its exit code, and the files and pins that it leaves.
//!
//! Snapshots hold the output; assertions check codes and data. The tests in `filter` check packets.

mod explain;
mod help;
mod lists;
mod refusals;
mod reports;
mod terminal;
mod warnings;

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use allowlist_dataplane::interface;
use allowlist_tests::lab::{Ended, Program, Scratch, Snapshot, Testbed, allowlist};
use allowlist_tests::require_root;
use allowlist_tests::vendor::{Answer, Vendor};
use anyhow::{Context, ensure};
use expect_test::expect_file;
use nix::sys::signal::Signal;
use regex::Regex;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Long enough for a machine that is busy building.
const SOON: Duration = Duration::from_mins(3);
const NOBODY: u32 = 65_534;

/// A policy without a file: these options and an interface.
const SMALL: [&str; 5] = [
    "--allow",
    "203.0.113.0/24",
    "--port",
    "tcp/443",
    "--enforce",
];

/// A folder that every user may enter, as the working directory of commands.
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

    /// Runs the program in the folder, as the user that runs the tests.
    fn run(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        let mut command = Command::new(allowlist()?);
        command.args(arguments).current_dir(self.folder.path());
        Ended::of(command)
    }

    /// Runs the program in the folder, as a user without privileges. Needs root.
    fn run_as_nobody(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        // A copy, since other users may lack access to the build directory.
        let program = self.folder.path().join("allowlist");
        if !program.exists() {
            // `cp` writes the file: a descriptor of this process could be inherited by a child of another test, and
            // the kernel does not start a program that is open for writing.
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

#[track_caller]
fn parsed(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// Requires exit code 1, this error code on standard error, and an empty standard output.
#[track_caller]
fn check_error(ended: &Ended, code: &str) {
    check_failed(ended, 1, &format!("error[{code}]: "));
}

/// Replaces ages in tables and the padding of columns: both depend on the time of the run.
fn without_ages(mut ended: Ended) -> Ended {
    let padding = Regex::new(r"(\S) {2,}").expect("a regular expression");
    let age = Regex::new(r"  \d+[smhd]\b").expect("a regular expression");
    let text = padding.replace_all(&ended.stdout, "$1  ");
    ended.stdout = age.replace_all(&text, "  <age>").into_owned();
    ended
}

/// Requires the exit code of a usage error, and an empty standard output.
#[track_caller]
fn check_usage_error(ended: &Ended) {
    check_failed(ended, 2, "error: ");
}

#[track_caller]
fn check_failed(ended: &Ended, code: i32, prefix: &str) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
    let has_prefix = ended.stderr.lines().any(|line| line.starts_with(prefix));
    assert!(has_prefix, "no line starts with {prefix:?}: {ended:?}");
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

#[test]
fn check_prints_the_policy_of_a_start() -> anyhow::Result<()> {
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
    let mut snapshot = Snapshot::new();

    let text = home.run(&["check", "--config", "allowlist.toml"])?;
    assert_eq!((text.code, text.stderr.as_str()), (Some(0), ""), "{text:?}");
    snapshot.ended("check", &text, None);

    let ended = home.run(&["check", "--json", "--config", "allowlist.toml"])?;
    let document = parsed(&ended);
    let everyone = &["everyone", "office"][..];
    let entry = |prefix, services: &[&str], sources: &[&str]| json!({"prefix": prefix, "services": services, "sources": sources});
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
    snapshot.ended("check --json", &ended, None);
    snapshot.check(&expect_file!["snapshots/check.txt"]);
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
    let mut snapshot = Snapshot::new();
    snapshot.ended("check --iface no-such", &ended, None);
    snapshot.check(&expect_file!["snapshots/check_options.txt"]);
    Ok(())
}

#[test]
fn check_accepts_ten_thousand_prefixes() -> anyhow::Result<()> {
    let home = Home::new()?;
    // Every other address, so that no two prefixes can be merged.
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
    let mut snapshot = Snapshot::new();

    let text = fetch(&["vendor"])?;
    assert_eq!(
        (text.code, text.stdout.as_str()),
        (Some(0), "198.18.0.1/32\n2001:db8:18::/48\n")
    );
    let ended = fetch(&["vendor", "--json"])?;
    let document = parsed(&ended);
    assert_eq!(document["origin"], vendor.url("/list"));
    assert_eq!(
        document["prefixes"],
        json!(["198.18.0.1/32", "2001:db8:18::/48"])
    );
    snapshot.ended("fetch vendor --json", &ended, None);

    // No configuration has to name the provider.
    let document = parsed(&fetch(&["workato", "--json"])?);
    assert_eq!(document["provider"], "workato");
    let prefixes = document["prefixes"]
        .as_array()
        .context("prefixes is an array")?;
    assert!(prefixes.contains(&json!("52.5.142.59/32")), "{document}");

    let unknown = fetch(&["absent"])?;
    check_error(&unknown, "unknown-source");
    snapshot.ended("fetch absent", &unknown, None);
    drop(vendor);
    let unreachable = fetch(&["vendor"])?;
    check_error(&unreachable, "unreachable");
    snapshot.ended("fetch vendor, whose server is down", &unreachable, None);
    snapshot.check(&expect_file!["snapshots/fetch.txt"]);
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
    let mut snapshot = Snapshot::new();
    for arguments in [
        &["providers", "gitlab-com"][..],
        &["providers", "gitlab-com", "--json"],
    ] {
        snapshot.ended(&arguments.join(" "), &home.run(arguments)?, None);
    }
    let unknown = home.run(&["providers", "acme"])?;
    check_error(&unknown, "unknown-provider");
    snapshot.ended("providers acme", &unknown, None);
    snapshot.check(&expect_file!["snapshots/providers.txt"]);
    Ok(())
}

#[test]
fn commands_report_that_no_filter_is_attached() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let mut snapshot = Snapshot::new();
    let status = site.run(&["status"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    snapshot.ended("status", &status, Some(&site.scratch));
    let status = site.run(&["status", "--json"])?;
    assert_eq!(status.code, Some(3), "{status:?}");
    snapshot.ended("status --json", &status, Some(&site.scratch));
    let status: Value = serde_json::from_str(&status.stdout)?;
    assert_eq!(status["filtering"], false);
    for command in [&["list"][..], &["detach"], &["explain", "192.0.2.1"]] {
        for options in [&[][..], &["--json"]] {
            let arguments = [command, options].concat();
            let ended = site.run(&arguments)?;
            check_error(&ended, "nothing-attached");
            snapshot.ended(&arguments.join(" "), &ended, Some(&site.scratch));
        }
    }
    snapshot.check(&expect_file!["snapshots/no_filter.txt"]);
    Ok(())
}

/// Damaged names, and then none: the tables are in other maps.
#[test]
fn status_and_list_survive_damaged_names() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    drop(site.filter(&[&["--iface", "eth0"], &SMALL[..]].concat())?);
    let check = || -> anyhow::Result<()> {
        let status = site.json("status")?;
        assert_eq!(status["filtering"], true);
        assert_eq!(status["sources"], serde_json::json!({}));
        let list = site.json("list")?;
        assert_eq!(list["prefixes"][0]["prefix"], "203.0.113.0/24");
        assert_eq!(list["prefixes"][0]["sources"], serde_json::json!([]));
        Ok(())
    };
    let pins = site.scratch.pin_dir();
    allowlist_dataplane::Dataplane::open(pins, None)?.set_metadata(b"{")?;
    check()?;
    for pin in fs::read_dir(pins.join(format!("v{}", allowlist_common::abi::VERSION)))? {
        let pin = pin?;
        if pin.file_name().to_string_lossy().starts_with("METADATA_") {
            fs::remove_file(pin.path())?;
        }
    }
    check()
}

#[test]
fn usage_errors_exit_with_2() -> anyhow::Result<()> {
    let home = Home::new()?;
    let mut snapshot = Snapshot::new();
    for arguments in [
        &["walk"][..],
        &["fetch"],
        &["status", "--xml"],
        &["run", "--attach-mode", "fast"],
        &["run", "--allow", "203.0.113.9/24"],
        &["run", "--allow", "example.com"],
        &["run", "--port", "https"],
    ] {
        let ended = home.run(arguments)?;
        check_usage_error(&ended);
        snapshot.ended(&arguments.join(" "), &ended, None);
    }
    snapshot.check(&expect_file!["snapshots/usage.txt"]);

    // Without a command, the help is the error.
    let ended = home.run(&[])?;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    assert_eq!(ended.stderr, home.run(&["-h"])?.stdout);
    Ok(())
}
