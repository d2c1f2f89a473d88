//! Searches all output of a daemon for secrets and for unescaped text: the state directory, the API, the log and the
//! hook's environment.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;

use allowlist_policy::text::is_deceptive;

use super::api::{Answer, ask};
use super::*;

/// A part of every secret below, in several encodings.
const TRACES: [&str; 4] = ["hush", "aHVza", "68757368", "%68%75"];
/// All reports of the API, and one that does not exist.
const REPORTS: [&str; 10] = [
    "status",
    "live",
    "sources",
    "list",
    "added",
    "log",
    "policies",
    "rejected",
    "explain?address=203.0.113.9",
    "nothing",
];

/// Returns the files of a directory and its subdirectories, with their contents.
fn files(folder: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else if entry.file_type()?.is_file() {
            let name = entry.path().display().to_string();
            found.push((name, fs::read(entry.path())?));
        }
    }
    Ok(found)
}

#[track_caller]
fn check_no_secret(place: &str, text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    for trace in TRACES {
        assert!(!text.contains(trace), "{place} has a secret:\n{text}");
    }
}

/// Requires that no report of the API has a secret.
fn check_reports(host: &Host) -> anyhow::Result<()> {
    for report in REPORTS {
        for accept in ["application/json", "text/plain"] {
            let headers = format!("accept: {accept}\r\n");
            let Answer { headers, body, .. } =
                ask(host, "GET", &format!("/v1/{report}"), &headers, "")?;
            check_no_secret(report, format!("{headers}\n{body}").as_bytes());
        }
    }
    Ok(())
}

#[test]
fn no_output_has_a_secret() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::down("")?;
    let folder = host.testbed.scratch.file("elsewhere");
    fs::create_dir(&folder)?;
    let environment = host.testbed.scratch.file("environment");
    let program = host.testbed.scratch.write(
        "hook",
        format!(
            "#!/bin/sh\nenv >{}.new\nmv {0}.new {0}\n",
            environment.display()
        ),
    )?;
    Command::new("chmod").arg("755").arg(&program).status()?;
    let token = folder.join("token");
    fs::write(&token, "hush-token")?;
    // Port 9 of loopback refuses connections, so that errors may quote the request.
    let config = |key: &str| {
        format!(
            r#"{CONFIG}
# the former token: hush-comment
[sources.paid]
url = "http://me:hush-password@127.0.0.1:9/list?token=hush-query#hush-fragment"
format = "text"
bearer_file = "{token}"
headers = {{ X-Api-Key = "hush-{key}" }}
[on_change]
command = ["{program}", "--token", "hush-argument"]
webhook = "http://127.0.0.1:9/hush-path"
"#,
            token = token.display(),
            program = program.display(),
        )
        .replace("[\"friends\"]", "[\"friends\", \"paid\"]")
    };
    let path = folder.join("allowlist.toml");
    fs::write(&path, format!("at_start = \"drop\"\n{}", config("first")))?;
    host.config = path.display().to_string();
    let start = |host: &mut Host| -> anyhow::Result<()> {
        let mut command = host.testbed.command(&["run", "--config", &host.config])?;
        command.env("HTTPS_PROXY", "http://me:hush-proxy@127.0.0.1:9");
        command.env("ALLOWLIST_TEST_SECRET", "hush-environment");
        let daemon = Program::start(command)?;
        daemon.wait_for_line("ready", SOON)?;
        host.daemon = Some(daemon);
        Ok(())
    };
    start(&mut host)?;
    let mut output = Vec::new();
    let mut run = |host: &Host, arguments: &[&str]| -> anyhow::Result<()> {
        let ended = host.run(arguments)?;
        output.push((format!("{arguments:?}"), ended.stdout + &ended.stderr));
        Ok(())
    };
    run(&host, &["refresh", "paid"])?;
    run(&host, &["add", STRANGERS[0], "--service", "web"])?;
    fs::write(&path, config("second"))?;
    run(&host, &["reload"])?;
    run(&host, &["rollback", "1"])?;
    run(&host, &["rollback"])?;
    // A restart reads tags from the disk, not secrets.
    host.daemon().stop(Signal::SIGTERM, SOON)?;
    check_no_secret(
        "the first daemon's output",
        host.daemon().output().as_bytes(),
    );
    start(&mut host)?;
    run(&host, &["rollback", "1"])?;
    let config = host.config.clone();
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["sources"],
        &["list"],
        &["log", "--json"],
        &["rollback", "--list"],
        &["rollback", "--list", "--json"],
        &["history"],
        &["check", "--config", &config],
        &["fetch", "paid", "--config", &config],
        &["diff", "paid", "--config", &config],
        &["explain", FRIENDS[0]],
    ] {
        run(&host, arguments)?;
    }
    eventually(|| Ok(environment.exists()))?;
    for (arguments, text) in output {
        check_no_secret(&arguments, text.as_bytes());
    }
    check_reports(&host)?;
    check_no_secret("the daemon's output", host.daemon().output().as_bytes());
    let state = host.testbed.scratch.file("state");
    let kept = files(&state)?;
    assert!(
        kept.iter()
            .any(|(name, _)| name.ends_with("journal.v2.jsonl")),
        "{kept:?}"
    );
    for (name, contents) in &kept {
        check_no_secret(name, contents);
    }
    check_no_secret("the hook's environment", &fs::read(&environment)?);
    Ok(())
}

/// Characters that end a line, control a terminal or reorder text.
const HOSTILE: &str = "x\\n2026-11-29 00:00:00Z  root  mode observe\\r\\u001b[2J\\u0085\\u009b31m\\u2028\\u202e\\u2066\\ufeff";

#[track_caller]
fn check_escaped(place: &str, text: &str) {
    let found = text.chars().find(|&c| c != '\n' && is_deceptive(c));
    assert_eq!(found, None, "{place}:\n{text}");
    let forged = text
        .lines()
        .find(|line| line.starts_with("2026-11-29 00:00:00Z"));
    assert_eq!(forged, None, "{place}:\n{text}");
}

#[test]
fn foreign_text_is_escaped_in_all_output() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::down("")?;
    // The kernel allows interface names with escape sequences.
    let name = OsStr::from_bytes(b"e\x1b[31m\xe2\x80\xae");
    let mut rename = host.testbed.host.command("ip")?;
    rename.args(["link", "add", "name"]).arg(name);
    rename.args(["type", "veth", "peer", "name", "other"]);
    anyhow::ensure!(rename.status()?.success());
    // The error of a list quotes the vendor's text.
    let list = format!(
        "192.0.2.1\n{}\n",
        serde_json::from_str::<String>(&format!("\"{HOSTILE}\""))?
    );
    let file = host.testbed.scratch.write("list.txt", list)?;
    let config = format!(
        "at_start = \"drop\"\n{CONFIG}\n[sources.vendor]\nfile = \"{}\"\n",
        file.display()
    )
    .replace("[\"friends\"]", "[\"friends\", \"vendor\"]");
    host.write(&config)?;
    host.start(&[])?;
    for (path, body) in [
        ("accept", format!(r#"{{"source":"{HOSTILE}"}}"#)),
        ("refresh", format!(r#"{{"source":"{HOSTILE}"}}"#)),
        (
            "add",
            format!(r#"{{"entries":[{{"prefix":"192.0.2.1","service":"{HOSTILE}"}}]}}"#),
        ),
        (
            "add",
            format!(r#"{{"entries":[{{"prefix":"{HOSTILE}","service":"web"}}]}}"#),
        ),
        (
            "add",
            format!(
                r#"{{"entries":[{{"prefix":"192.0.2.1","service":"web","note":"{HOSTILE}"}}]}}"#
            ),
        ),
        (
            "add",
            r#"{"entries":[{"prefix":"192.0.2.1","service":"web","note":"a\u202eb"}]}"#.to_owned(),
        ),
        ("mode", format!(r#"{{"mode":"{HOSTILE}"}}"#)),
        ("refresh", "{\"source\":\"vendor\"}".to_owned()),
    ] {
        let answer = ask(&host, "POST", &format!("/v1/{path}"), "", &body)?;
        check_escaped(path, &answer.body);
        check_escaped(path, answer.json()["error"].as_str().unwrap_or_default());
        if body.contains("vendor") {
            continue;
        }
        assert_eq!(answer.status, 400, "{path} {body}: {}", answer.body);
    }
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["sources"],
        &["log"],
        &["log", "--json"],
        &["history"],
        &["list", "--added"],
        &["check", "--config", &host.config],
        &["fetch", "vendor", "--config", &host.config],
        &["diff", "vendor", "--config", &host.config],
        &[
            "run",
            "--iface",
            "e\u{1b}[31m\u{202e}",
            "--allow",
            "192.0.2.1",
            "--port",
            "tcp/1",
        ],
        &["explain", "192.0.2.1", "--iface", "e\u{1b}[31m\u{202e}"],
        &["run", "--config", "no\u{1b}[2J\nsuch"],
    ] {
        let ended = host.run(arguments)?;
        check_escaped(&format!("{arguments:?}"), &ended.stdout);
        check_escaped(&format!("{arguments:?}"), &ended.stderr);
    }
    for report in REPORTS {
        for accept in ["application/json", "text/plain"] {
            let answer = ask(
                &host,
                "GET",
                &format!("/v1/{report}"),
                &format!("accept: {accept}\r\n"),
                "",
            )?;
            check_escaped(report, &answer.body);
        }
    }
    check_escaped("the daemon's output", &host.daemon().output());
    Ok(())
}
