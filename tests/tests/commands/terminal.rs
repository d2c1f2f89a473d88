//! Output fits the width of a terminal, and is not shortened in a pipe.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use nix::pty::{Winsize, openpty};

use super::*;

/// Runs a command whose standard output is a terminal with this number of columns, and returns the output.
fn on_terminal(mut command: Command, columns: u16) -> anyhow::Result<String> {
    let size = Winsize {
        ws_row: 50,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = openpty(&size, None)?;
    let mut child = command
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .stdout(Stdio::from(terminal.slave))
        .stderr(Stdio::null())
        .spawn()?;
    drop(command); // it holds the slave open
    let output = read_to_end(terminal.master);
    child.wait()?;
    Ok(output.replace("\r\n", "\n"))
}

fn read_to_end(master: OwnedFd) -> String {
    let mut bytes = Vec::new();
    // A closed slave is the error EIO, not the end of the file.
    let _ = fs::File::from(master).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[track_caller]
fn check_fits(what: &str, text: &str, columns: usize) {
    assert!(text.trim() != "", "{what}");
    for line in text.lines() {
        let length = line.chars().count();
        assert!(length <= columns, "{what}: {length} columns: {line}");
        assert_eq!(line.trim_end(), line, "{what}");
    }
}

#[test]
fn reports_fit_a_terminal() -> anyhow::Result<()> {
    let home = Home::new()?;
    let names: Vec<_> = (0..9)
        .map(|n| format!("a-source-with-a-long-name-{n}"))
        .collect();
    let sources: Vec<_> = names
        .iter()
        .map(|name| format!("[sources.{name}]\nprefixes = ['203.0.113.0/24']\n"))
        .collect();
    let sources = sources.concat();
    home.write(
        "allowlist.toml",
        &format!("interfaces = ['no-such']\n[services.web]\nports = ['tcp/443']\nallow = {names:?}\n{sources}"),
    )?;
    for arguments in [
        &["providers"][..],
        &["check", "--config", "allowlist.toml"],
        &["--help"],
    ] {
        let command = || -> anyhow::Result<Command> {
            let mut command = Command::new(allowlist()?);
            command.args(arguments).current_dir(home.folder.path());
            Ok(command)
        };
        for columns in [80, 120] {
            let text = on_terminal(command()?, columns)?;
            if arguments != ["--help"] {
                check_fits(&arguments.join(" "), &text, columns.into());
            }
        }
        // COLUMNS does not shorten the output in a pipe.
        let mut narrow = command()?;
        narrow.env("COLUMNS", "60");
        let piped = Ended::of(narrow)?.stdout;
        assert!(!piped.contains('…'), "{piped}");
        for name in names.iter().filter(|_| arguments[0] == "check") {
            assert!(piped.contains(name.as_str()), "{piped}");
        }
        assert!(piped.lines().all(|line| line.trim_end() == line), "{piped}");
    }
    Ok(())
}

#[test]
fn a_status_fits_a_terminal() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let config = site.scratch.write(
        "allowlist.toml",
        "interfaces = ['eth0', 'a-missing-one']\nmode = 'observe'\n[services.a-service-with-a-long-name]\nports = ['tcp/443', 'udp/5000-5010', 'icmp']\n\
         allow = ['an-office-with-a-long-name', 'another-office-with-a-long-name']\n\
         [sources.an-office-with-a-long-name]\nprefixes = ['203.0.113.0/24']\n\
         [sources.another-office-with-a-long-name]\nprefixes = ['203.0.113.0/24', '2001:db8:7::/48']\n",
    )?;
    let _filter = site.filter(&["--config", &config.display().to_string()])?;
    for arguments in [
        &["status"][..],
        &["sources"],
        &["list"],
        &["explain", "203.0.113.7"],
        &["rollback", "--list"],
        &["log"],
    ] {
        for columns in [80, 120] {
            let text = on_terminal(site.command(arguments)?, columns)?;
            check_fits(&arguments.join(" "), &text, columns.into());
        }
        let piped = site.run(arguments)?.stdout;
        assert!(!piped.contains('…'), "{piped}");
    }
    Ok(())
}

/// The filters are a source, an address or prefix, and a service.
#[test]
fn list_prints_the_prefixes_of_a_filter() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let config = site.scratch.write(
        "allowlist.toml",
        "interfaces = ['eth0']\n[services.web]\nports = ['tcp/443']\nallow = ['office', 'lab']\n\
         [services.ssh]\nports = ['tcp/22']\nallow = ['office']\n\
         [sources.office]\nprefixes = ['203.0.113.0/24', '2001:db8:7::/48']\n\
         [sources.lab]\nprefixes = ['198.51.100.2', '203.0.113.9']\n",
    )?;
    let _filter = site.filter(&["--config", &config.display().to_string()])?;
    let all = [
        "198.51.100.2/32",
        "203.0.113.0/24",
        "203.0.113.9/32",
        "2001:db8:7::/48",
    ];
    for (filters, expected) in [
        (&[][..], &all[..]),
        (&["lab"], &["198.51.100.2/32", "203.0.113.9/32"]),
        (&["203.0.113.9"], &all[1..3]),
        (&["203.0.0.0/16"], &all[1..3]),
        (&["2001:db8:7::1"], &all[3..]),
        (&["--service", "ssh"], &all[1..]),
        (&["lab", "--service", "ssh"], &all[2..3]),
        (&["192.0.2.1"], &[]),
    ] {
        let document = parsed(&site.run(&[&["list", "--json"], filters].concat())?);
        let rows = document["prefixes"].as_array().context("an array")?;
        let found: Vec<_> = rows
            .iter()
            .filter_map(|row| row["prefix"].as_str())
            .collect();
        assert_eq!(found, expected, "{filters:?}");
        let text = site.run(&[&["list"], filters].concat())?.stdout;
        assert_eq!(text.lines().count(), expected.len() + 2, "{text}");
    }
    let mut snapshot = Snapshot::new();
    for (filters, code) in [
        (&["ofice"][..], "unknown-source"),
        (&["--service", "wev"], "unknown-service"),
    ] {
        let ended = site.run(&[&["list"], filters].concat())?;
        check_error(&ended, code);
        snapshot.ended(&filters.join(" "), &ended, Some(&site.scratch));
    }
    let ended = site.run(&["list", "203.0.113.9/24"])?;
    check_usage_error(&ended);
    snapshot.ended("203.0.113.9/24", &ended, None);
    snapshot.check(&expect_file!["snapshots/list_unknown.txt"]);
    Ok(())
}

#[test]
fn errors_suggest_similar_names() -> anyhow::Result<()> {
    let home = Home::new()?;
    let mut snapshot = Snapshot::new();
    for (arguments, code) in [
        (&["fetch", "githb"][..], "unknown-source"),
        (&["providers", "show", "githb"], "unknown-provider"),
        (&["check", "--enforce"], "invalid-request"),
    ] {
        let ended = home.run(arguments)?;
        check_error(&ended, code);
        snapshot.ended(&arguments.join(" "), &ended, None);
    }
    snapshot.check(&expect_file!["snapshots/suggestions.txt"]);
    Ok(())
}

/// Only values that are files complete to files; providers complete to names.
#[test]
fn completions_fit_the_kind_of_a_value() -> anyhow::Result<()> {
    let home = Home::new()?;
    let script = home.run(&["completions", "bash"])?.stdout;
    home.write("completions", &script)?;
    let complete = |words: &[&str]| -> anyhow::Result<Vec<String>> {
        let (last, count) = (words.last().copied().unwrap_or_default(), words.len());
        let words = words.join(" ");
        let script = format!(
            "source ./completions; COMP_WORDS=({words} ''); COMP_CWORD={count}; \
             _allowlist allowlist '' '{last}'; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let mut command = Command::new("bash");
        command
            .args(["-c", &script])
            .current_dir(home.folder.path());
        let offered = Ended::of(command)?.stdout;
        Ok(offered.split_whitespace().map(str::to_owned).collect())
    };
    let file = "completions".to_owned();
    assert!(!complete(&["allowlist", "add", "--service"])?.contains(&file));
    assert!(complete(&["allowlist", "--config"])?.contains(&file));
    let providers = complete(&["allowlist", "run", "--provider"])?;
    assert!(providers.contains(&"github".to_owned()), "{providers:?}");
    Ok(())
}
