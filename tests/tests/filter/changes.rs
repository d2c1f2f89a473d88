//! Changes of a list while the filter runs: rejection and acceptance, grace periods, hooks and history.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use allowlist_lists::state::StateDir;
use allowlist_tests::lab::{Snapshot, normalized};
use allowlist_user::config::Config;
use expect_test::{expect, expect_file};

use super::*;

/// A host with one source; `options` are added to `sources.vendor`, and `more` to the file.
struct Setup {
    testbed: Testbed,
    vendor: Vendor,
    config: String,
}

impl Setup {
    fn new(list: &[&str], options: &str, more: &str) -> anyhow::Result<Self> {
        let testbed = Testbed::new()?;
        let vendor = testbed
            .host
            .run(|| Vendor::start([("/list", answer(list))]))?;
        let setup = Self {
            config: testbed.scratch.file("allowlist.toml").display().to_string(),
            testbed,
            vendor,
        };
        setup.configure(options, more)?;
        Ok(setup)
    }

    fn configure(&self, options: &str, more: &str) -> anyhow::Result<()> {
        let text = format!(
            "interfaces = ['eth0']\n{more}\n[sources.vendor]\nurl = '{}'\nformat = 'json'\nevery = '1s'\n\
             allow_special_use = true\n{options}\n",
            self.vendor.url("/list")
        );
        self.testbed.scratch.write("allowlist.toml", text)?;
        Ok(())
    }

    /// Ends the grace periods in the state of a daemon that does not run.
    fn end_grace_periods(&self) -> anyhow::Result<()> {
        let config = Config::load(self.config.as_ref())?;
        let state = StateDir::open(&self.testbed.scratch.file("state"))?;
        let source = config.policy.source("vendor").context("no such source")?;
        let mut feed = state.load_readonly(source)?.context("no stored list")?;
        for grace in &mut feed.grace {
            grace.until = jiff::Timestamp::UNIX_EPOCH;
        }
        Ok(state.store(source, &feed)?)
    }

    fn start(&self) -> anyhow::Result<Program> {
        self.testbed.filter(&["--config", &self.config])
    }

    fn prefixes(&self) -> anyhow::Result<Vec<String>> {
        let list = self.testbed.json("list")?;
        let entries = list["prefixes"]
            .as_array()
            .context("prefixes is an array")?;
        let prefixes = entries.iter().filter_map(|entry| entry["prefix"].as_str());
        Ok(prefixes.map(str::to_owned).collect())
    }

    fn events(&self) -> anyhow::Result<Vec<Value>> {
        let history = self.testbed.json("history")?;
        Ok(history["events"]
            .as_array()
            .context("events is an array")?
            .clone())
    }

    /// Returns the kinds of the events of the source, in order.
    fn event_kinds(&self) -> anyhow::Result<Vec<String>> {
        let events = self.events()?;
        let words = events.iter().filter_map(|event| event["event"].as_str());
        Ok(words.map(str::to_owned).collect())
    }
}

const WEB: &str = "[services.web]\nports = ['udp/443']\nallow = ['vendor']";

fn answer(list: &[&str]) -> Answer {
    Answer::json(json!(list).to_string())
}

fn addresses(count: u8) -> Vec<String> {
    (1..=count).map(|host| format!("198.18.0.{host}")).collect()
}

/// Waits for a rejected list with an id other than `before`, and returns its id.
fn rejected_id(testbed: &Testbed, config: &str, before: &str) -> anyhow::Result<String> {
    let mut id = String::new();
    eventually(|| {
        let diff = testbed.run(&["diff", "vendor", "--json", "--config", config])?;
        let diff: Value = serde_json::from_str(&diff.stdout)?;
        let found = diff["rejected"]["vendor"]["id"].as_str();
        found.unwrap_or_default().clone_into(&mut id);
        Ok(!id.is_empty() && id != before)
    })?;
    Ok(id)
}

/// The vendor serves a short list, the operator inspects it, and the vendor serves another one.
#[test]
fn accept_requires_the_id_of_the_current_list() -> anyhow::Result<()> {
    require_root!();
    let many = addresses(10);
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let setup = Setup::new(&many, "grace = '0s'", WEB)?;
    let (testbed, config) = (&setup.testbed, &setup.config);
    let filter = setup.start()?;
    setup.vendor.answer("/list", answer(&["198.18.0.1"]));
    filter.wait_for_line("warning[list-rejected]: source vendor", SOON)?;
    let shown = rejected_id(testbed, config, "")?;
    setup
        .vendor
        .answer("/list", answer(&["198.18.0.1", "66.0.0.0/8"]));
    let current = rejected_id(testbed, config, &shown)?;
    let ended = testbed.run(&["accept", "vendor", &shown])?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains(&current), "{ended:?}");
    assert_eq!(setup.prefixes()?.len(), 10);
    // The first list has the same id again.
    setup.vendor.answer("/list", answer(&["198.18.0.1"]));
    assert_eq!(rejected_id(testbed, config, &current)?, shown);
    let ended = testbed.run(&["accept", "vendor", &shown])?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(setup.prefixes()?, ["198.18.0.1/32"]);
    let log = testbed.json("log")?;
    let entries = log["entries"].as_array().context("entries")?;
    let ids: Vec<_> = entries
        .iter()
        .filter(|entry| entry["action"] == "accept")
        .map(|entry| entry["id"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(ids, [&shown, &shown]);
    Ok(())
}

#[test]
fn a_shrunk_list_is_rejected_until_accepted() -> anyhow::Result<()> {
    require_root!();
    let many = addresses(10);
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let setup = Setup::new(&many, "grace = '0s'", WEB)?;
    let (testbed, config) = (&setup.testbed, &setup.config);
    let scratch = Some(&testbed.scratch);
    let filter = setup.start()?;
    let ended = testbed.run(&["accept", "vendor"])?;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("error[no-rejected-list]: "),
        "{ended:?}"
    );
    let mut snapshot = Snapshot::new();
    snapshot.ended("accept without a rejected list", &ended, scratch);

    setup.vendor.answer("/list", answer(&["198.18.0.1"]));
    let line = filter.wait_for_line("warning[list-rejected]: ", SOON)?;
    snapshot.text("log of a rejected list", &line, scratch);
    eventually(|| Ok(testbed.json("status")?["sources"]["vendor"]["state"] == "refused"))?;
    assert_eq!(setup.prefixes()?.len(), 10);
    assert!(gets_through(testbed, "198.18.0.9")?);

    let diff = testbed.run(&["diff", "--config", config])?;
    assert_eq!(diff.code, Some(0), "{diff:?}");
    assert!(diff.stdout.starts_with("vendor: "), "{diff:?}");
    assert!(diff.stdout.contains("\n  - 198.18.0.9/32\n"), "{diff:?}");
    snapshot.ended("diff", &diff, scratch);

    // Without a terminal, the command prints the command to enter.
    let ended = testbed.run(&["accept", "vendor"])?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let id = rejected_id(testbed, config, "")?;
    let command = format!("allowlist accept vendor {id}");
    assert!(ended.stderr.contains(&command), "{ended:?}");
    assert!(ended.stdout.contains("\n  - 198.18.0.9/32\n"), "{ended:?}");
    assert!(diff.stdout.contains(&command), "{diff:?}");
    assert_eq!(setup.prefixes()?.len(), 10);
    snapshot.ended("accept without a terminal", &ended, scratch);

    let ended = testbed.run(&["accept", "vendor", &id])?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    snapshot.ended("accept", &ended, scratch);
    assert_eq!(setup.prefixes()?, ["198.18.0.1/32"]);
    assert!(!gets_through(testbed, "198.18.0.9")?);
    assert_eq!(testbed.json("status")?["sources"]["vendor"]["state"], "ok");
    assert_eq!(
        setup.event_kinds()?,
        ["changed", "refused", "recovered", "changed"]
    );
    let accepted = &setup.events()?[3];
    assert_eq!(
        (&accepted["accepted"], &accepted["removed_count"]),
        (&json!(true), &json!(9))
    );
    // The accepted list is the last-good list, also after a restart.
    drop(filter);
    let _filter = setup.start()?;
    assert_eq!(setup.prefixes()?, ["198.18.0.1/32"]);

    let ended = testbed.run(&["accept", "other"])?;
    assert!(
        ended.stderr.contains("error[unknown-source]: "),
        "{ended:?}"
    );
    snapshot.ended("accept of another name", &ended, scratch);
    snapshot.check(&expect_file!["snapshots/accept.txt"]);
    Ok(())
}

#[test]
fn removed_prefixes_stay_for_their_grace_period() -> anyhow::Result<()> {
    require_root!();
    let more = "[services.web]\nports = ['udp/443']\nallow = ['vendor', 'other']\n\
                [sources.other]\nprefixes = ['198.18.0.3']";
    let list = ["198.18.0.1", "198.18.0.2", "198.18.0.3"];
    let setup = Setup::new(&list, "grace = '1h'", more)?;
    let testbed = &setup.testbed;
    let mut filter = setup.start()?;
    setup
        .vendor
        .answer("/list", answer(&["198.18.0.1", "198.18.0.4"]));
    filter.wait_for_line("generation 2", SOON)?;
    // New prefixes are active at once.
    assert_eq!(setup.prefixes()?.len(), 4);
    let changed = setup.events()?.pop().context("no event")?;
    assert_eq!(changed["added"], json!(["198.18.0.4/32"]));
    assert_eq!(
        changed["removed"],
        json!(["198.18.0.2/32", "198.18.0.3/32"])
    );
    assert!(changed["grace_until"].is_string(), "{changed}");
    assert_eq!(testbed.json("status")?["sources"]["vendor"]["grace"], 2);
    // A grace period continues over a crash, and ends while no daemon runs.
    filter.stop(Signal::SIGKILL, SOON)?;
    setup.end_grace_periods()?;
    let _filter = setup.start()?;
    eventually(|| Ok(!setup.prefixes()?.contains(&"198.18.0.2/32".to_owned())))?;
    // Another source still has the prefix.
    assert_eq!(
        setup.prefixes()?,
        ["198.18.0.1/32", "198.18.0.3/32", "198.18.0.4/32"]
    );
    assert!(!gets_through(testbed, "198.18.0.2")?);
    assert!(gets_through(testbed, "198.18.0.3")?);
    Ok(())
}

#[test]
fn a_grace_period_ends_while_the_daemon_runs() -> anyhow::Result<()> {
    require_root!();
    let list = ["198.18.0.1", "198.18.0.2"];
    let setup = Setup::new(&list, "grace = '1s'", WEB)?;
    let _filter = setup.start()?;
    setup.vendor.answer("/list", answer(&list[..1]));
    eventually(|| {
        Ok(setup
            .event_kinds()?
            .last()
            .is_some_and(|word| word == "released"))
    })?;
    assert_eq!(setup.prefixes()?, ["198.18.0.1/32"]);
    let events = setup.events()?;
    let [.., changed, released] = &events[..] else {
        panic!("{events:?}");
    };
    let time = |value: &Value| {
        value
            .as_str()
            .unwrap_or_default()
            .parse::<jiff::Timestamp>()
    };
    assert!(
        time(&changed["grace_until"])? <= time(&released["time"])?,
        "{events:?}"
    );
    Ok(())
}

#[test]
fn a_source_removed_from_the_configuration_ends_at_once() -> anyhow::Result<()> {
    require_root!();
    let setup = Setup::new(&["198.18.0.1"], "", WEB)?;
    let filter = setup.start()?;
    drop(filter);
    let other = "[services.web]\nports = ['udp/443']\nallow = ['other']\n[sources.other]\nprefixes = ['198.18.0.9']";
    setup.configure("", other)?;
    let _filter = setup.start()?;
    assert_eq!(setup.prefixes()?, ["198.18.0.9/32"]);
    Ok(())
}

#[test]
fn a_file_is_read_again_when_it_is_written() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let config = testbed.scratch.write(
        "allowlist.toml",
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['office']\n\
         [sources.office]\nfile = 'office.txt'\nevery = '30days'\n",
    )?;
    let path = testbed.scratch.write("office.txt", "198.18.0.1\n")?;
    let filter = testbed.filter(&["--config", &config.display().to_string()])?;
    // In place, and by a rename, as most editors do.
    fs::write(&path, "198.18.0.2\n")?;
    filter.wait_for_line("generation 2", SOON)?;
    assert!(gets_through(&testbed, "198.18.0.2")?);
    assert!(!gets_through(&testbed, "198.18.0.1")?);
    let new = testbed.scratch.write("office.txt.new", "198.18.0.3\n")?;
    fs::rename(new, &path)?;
    filter.wait_for_line("generation 3", SOON)?;
    assert!(gets_through(&testbed, "198.18.0.3")?);
    // Repeated writes delay the read, but not indefinitely.
    fs::write(&path, "198.18.0.5\n")?;
    let start = std::time::Instant::now();
    while filter
        .wait_for_line("generation 4", Duration::from_millis(100))
        .is_err()
    {
        anyhow::ensure!(start.elapsed() < SOON, "the file was not read");
        fs::File::options()
            .append(true)
            .open(&path)?
            .set_modified(std::time::SystemTime::now())?;
    }
    // A malformed list and a missing file change nothing.
    fs::write(&path, "198.18.0.4/99\n")?;
    let fails_with = |code: &str| {
        eventually(|| Ok(testbed.json("status")?["sources"]["office"]["failure_code"] == code))
    };
    fails_with("list-malformed")?;
    fs::remove_file(&path)?;
    fails_with("file-unreadable")?;
    let log = filter.stderr();
    let failures: String = log
        .lines()
        .filter(|line| line.contains("warning[fetch-failed]: "))
        .map(|line| normalized(line, Some(&testbed.scratch)) + "\n")
        .collect();
    expect![[r#"
        <time> warning[fetch-failed]: source office: <files>/office.txt: line 1: "198.18.0.4/99" is not a prefix: its prefix length is greater than 32; use /0 to /32; the last-good list stays active
        <time> warning[fetch-failed]: source office: <files>/office.txt: the file cannot be read: No such file or directory (os error); check the path and its permissions; the last-good list stays active
    "#]].assert_eq(&failures);
    assert!(gets_through(&testbed, "198.18.0.5")?);
    Ok(())
}

/// The layout of configuration management tools: the file is a link through another link, which is replaced.
#[test]
fn a_file_behind_links_is_read_again_when_they_change() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let folder = testbed.scratch.file("lists");
    for (version, prefix) in [("v1", "198.18.0.1"), ("v2", "198.18.0.2")] {
        fs::create_dir_all(folder.join(version))?;
        fs::write(folder.join(version).join("office.txt"), prefix)?;
    }
    std::os::unix::fs::symlink("v1", folder.join("now"))?;
    std::os::unix::fs::symlink("now/office.txt", folder.join("office.txt"))?;
    let config = testbed.scratch.write(
        "allowlist.toml",
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['office']\n\
         [sources.office]\nfile = 'lists/office.txt'\nevery = '30days'\n",
    )?;
    let filter = testbed.filter(&["--config", &config.display().to_string()])?;
    fs::write(folder.join("v1/office.txt"), "198.18.0.3")?;
    filter.wait_for_line("generation 2", SOON)?;
    assert!(gets_through(&testbed, "198.18.0.3")?);
    std::os::unix::fs::symlink("v2", folder.join("next"))?;
    fs::rename(folder.join("next"), folder.join("now"))?;
    filter.wait_for_line("generation 3", SOON)?;
    assert!(gets_through(&testbed, "198.18.0.2")?);
    Ok(())
}

#[test]
fn a_hook_receives_changes() -> anyhow::Result<()> {
    require_root!();
    let setup = Setup::new(&["198.18.0.1"], "grace = '0s'", WEB)?;
    let output = setup.testbed.scratch.file("output");
    let text = format!(
        "#!/bin/sh\ncat >> {0}\necho \" for $ALLOWLIST_SOURCE\" >> {0}\n",
        output.display()
    );
    let script = setup.testbed.scratch.write("script", text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700))?;
    let hook = format!(
        "[on_change]\ncommand = ['{}']\nwebhook = '{}'\n{WEB}",
        script.display(),
        setup.vendor.url("/hook")
    );
    setup.configure("grace = '0s'", &hook)?;
    setup.vendor.answer("/hook", Answer::json("{}"));
    let filter = setup.start()?;
    setup.vendor.answer("/list", answer(&["198.18.0.2"]));
    filter.wait_for_line("generation 2", SOON)?;
    let mut lines = Vec::new();
    eventually(|| {
        let text = fs::read_to_string(&output).unwrap_or_default();
        lines = text.lines().map(str::to_owned).collect();
        // The script writes a line in two parts.
        Ok(lines.len() == 2 && text.ends_with('\n'))
    })?;
    let change = lines[1]
        .strip_suffix(" for vendor")
        .context("the line does not name the source")?;
    let change: Value = serde_json::from_str(change)?;
    assert_eq!(change["event"], "changed");
    assert_eq!(change["added"], json!(["198.18.0.2/32"]));
    assert_eq!(change["removed"], json!(["198.18.0.1/32"]));
    let posts = || {
        let requests = setup.vendor.requests();
        requests
            .iter()
            .filter(|head| head.starts_with("POST /hook "))
            .count()
    };
    eventually(|| Ok(posts() == 2))?;
    // A failing hook causes a warning, and the filter continues.
    fs::remove_file(&script)?;
    setup.vendor.answer("/hook", Answer::Status(400));
    setup.vendor.answer("/list", answer(&["198.18.0.3"]));
    let failures = || {
        let log = filter.stderr();
        let lines = log.lines();
        let failed = lines.filter(|line| line.contains("warning[hook-failed]: "));
        failed
            .map(|line| normalized(line, Some(&setup.testbed.scratch)) + "\n")
            .collect::<Vec<_>>()
    };
    eventually(|| Ok(failures().len() == 2)).with_context(|| filter.output())?;
    expect![[r#"
        <time> warning[hook-failed]: on_change: an event of source vendor: <files>/script: cannot start; check `command` and its permissions: No such file or directory (os error); `allowlist history` has the event
        <time> warning[hook-failed]: on_change: an event of source vendor: webhook at 127.0.0.1: the server answered 400; check `webhook`; the event is not sent again; `allowlist history` has it
    "#]].assert_eq(&failures().concat());
    assert!(gets_through(&setup.testbed, "198.18.0.3")?);
    Ok(())
}

#[test]
fn a_stale_list_stays_active() -> anyhow::Result<()> {
    require_root!();
    let setup = Setup::new(&["198.18.0.1"], "max_age = '2s'", WEB)?;
    let filter = setup.start()?;
    assert_eq!(
        setup.testbed.json("status")?["sources"]["vendor"]["state"],
        "ok"
    );
    setup.vendor.answer("/list", Answer::Status(503));
    filter.wait_for_line("warning[list-stale]: vendor", SOON)?;
    eventually(|| Ok(setup.testbed.json("status")?["sources"]["vendor"]["state"] == "stale"))?;
    let text = setup.testbed.run(&["status"])?.stdout;
    let warning = |line: &&str| line.starts_with("warning: vendor") && line.contains("2s");
    assert!(text.lines().any(|line| warning(&line)), "{text}");
    assert!(gets_through(&setup.testbed, "198.18.0.1")?);
    let words = setup.event_kinds()?;
    assert!(
        words.contains(&"stale".to_owned()) && words.contains(&"failed".to_owned()),
        "{words:?}"
    );
    setup.vendor.answer("/list", answer(&["198.18.0.1"]));
    eventually(|| Ok(setup.testbed.json("status")?["sources"]["vendor"]["state"] == "ok"))
}

#[test]
fn lists_of_special_addresses_are_rejected() -> anyhow::Result<()> {
    require_root!();
    let setup = Setup::new(&["8.8.8.8"], "grace = '0s'\nallow_special_use = false", WEB)?;
    let config = fs::read_to_string(&setup.config)?.replace("allow_special_use = true\n", "");
    setup.testbed.scratch.write("allowlist.toml", config)?;
    let filter = setup.start()?;
    let mut snapshot = Snapshot::new();
    for (title, list) in [
        ("private", &["8.8.8.8", "10.0.0.0/8"][..]),
        ("wide", &["8.0.0.0/7"]),
    ] {
        setup.vendor.answer("/list", answer(list));
        let mut source = Value::Null;
        eventually(|| {
            source = setup.testbed.json("status")?["sources"]["vendor"].clone();
            let failure = source["failure"].as_str().unwrap_or_default();
            Ok(source["failure_code"] == "list-forbidden"
                && failure.contains(list.last().expect("a prefix")))
        })
        .with_context(|| filter.output())?;
        let failure = source["failure"].as_str().unwrap_or_default();
        snapshot.text(title, failure, None);
        assert_eq!(setup.prefixes()?, ["8.8.8.8/32"]);
        let ended = setup.testbed.run(&["accept", "vendor"])?;
        assert!(
            ended.stderr.contains("error[no-rejected-list]: "),
            "{ended:?}"
        );
        snapshot.ended(&format!("accept: {title}"), &ended, None);
    }
    snapshot.check(&expect_file!["snapshots/forbidden_lists.txt"]);
    Ok(())
}
