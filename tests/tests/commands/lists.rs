//! Commands that read lists, without a daemon and without an attached filter.

use std::collections::BTreeMap;

use allowlist_lists::state::StateDir;
use allowlist_policy::Feed;
use allowlist_user::config::Config;

use super::*;

/// Returns a folder with a configuration, and the vendor from which it fetches.
fn home(list: &str) -> anyhow::Result<(Home, Vendor)> {
    let vendor = Vendor::start([("/list", Answer::json(list))])?;
    let home = Home::new()?;
    let config = format!(
        "interfaces = ['eth0']\n[services.web]\nports = ['tcp/443']\nallow = ['vendor', 'office']\n\
         [sources.vendor]\nurl = '{}'\nformat = 'json'\nallow_special_use = true\n\
         [sources.office]\nprefixes = ['203.0.113.0/24', '2001:db8:7::/48']\n",
        vendor.url("/list")
    );
    home.write("allowlist.toml", &config)?;
    Ok((home, vendor))
}

/// Runs a command with the configuration and the state directory of the folder.
fn run(home: &Home, arguments: &[&str]) -> anyhow::Result<Ended> {
    let paths = ["--config", "allowlist.toml", "--state-dir", "state"];
    home.run(&[arguments, &paths].concat())
}

/// Stores prefixes as the last-good list of the vendor, as a daemon does.
fn store(home: &Home, prefixes: &[&str]) -> anyhow::Result<()> {
    let config = Config::load(&home.folder.path().join("allowlist.toml"))?;
    let source = config.policy.source("vendor").context("it is configured")?;
    let prefixes = prefixes
        .iter()
        .map(|prefix| Ok(prefix.parse()?))
        .collect::<anyhow::Result<_>>()?;
    let state = StateDir::open(&home.folder.path().join("state"))?;
    Ok(state.store(source, &Feed::new(prefixes, jiff::Timestamp::now()))?)
}

#[test]
fn diff_prints_the_changes_of_a_refresh() -> anyhow::Result<()> {
    let (home, vendor) = home(r#"["198.18.0.1", "198.18.0.3"]"#)?;
    let mut snapshot = Snapshot::new();
    let mut diff = |title: &str, code, arguments: &[&str]| -> anyhow::Result<Ended> {
        let ended = run(&home, &[&["diff"], arguments].concat())?;
        assert_eq!(ended.code, Some(code), "{title}: {ended:?}");
        snapshot.ended(title, &ended, None);
        Ok(ended)
    };
    diff("no last-good list", 0, &[])?;

    store(&home, &["198.18.0.1/32", "198.18.0.2/32"])?;
    diff("one prefix more, one less", 0, &["vendor"])?;
    let document = parsed(&diff("the same as JSON", 0, &["--json"])?);
    let changes = &document["sources"]["vendor"];
    assert_eq!(changes["outcome"], "changed");
    assert_eq!(changes["added"], json!(["198.18.0.3/32"]));
    assert_eq!(changes["removed"], json!(["198.18.0.2/32"]));
    assert_eq!(changes["grace_seconds"], 86_400);

    vendor.answer("/list", Answer::json(r#"["198.18.0.1", "198.18.0.2"]"#));
    diff("an unchanged list", 0, &[])?;
    let config = fs::read_to_string(home.folder.path().join("allowlist.toml"))?;
    home.write("allowlist.toml", &format!("max_prefixes = 3\n{config}"))?;
    let ended = diff("more prefixes than fit", 0, &[])?;
    assert!(ended.stderr.contains("max_prefixes"), "{ended:?}");
    vendor.answer("/list", Answer::json(r#"["198.0.0.0/7"]"#));
    diff("a list that the gate rejects", 0, &[])?;
    vendor.answer("/list", Answer::Status(503));
    let ended = diff("status 503", 1, &[])?;
    assert!(ended.stdout.contains("503"), "{ended:?}");
    // The command changes no file.
    let names: Vec<_> = fs::read_dir(home.folder.path().join("state"))?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<anyhow::Result<_>>()?;
    assert_eq!(names, ["vendor.json"]);
    check_error(
        &diff("an unknown source", 1, &["absent"])?,
        "unknown-source",
    );
    snapshot.check(&expect_file!["snapshots/diff.txt"]);
    Ok(())
}

#[test]
fn export_reads_last_good_lists_and_fetches_the_others() -> anyhow::Result<()> {
    let (home, vendor) = home(r#"["198.18.0.9"]"#)?;
    store(&home, &["198.18.0.1/32", "198.18.0.2/32"])?;
    let plain = |arguments: &[&str]| -> anyhow::Result<Vec<String>> {
        let ended = run(
            &home,
            &[&["export", "--format", "plain"], arguments].concat(),
        )?;
        ensure!(ended.code == Some(0), "{ended:?}");
        let lines = ended.stdout.lines().filter(|line| !line.starts_with('#'));
        Ok(lines.map(str::to_owned).collect())
    };
    let office = ["203.0.113.0/24", "2001:db8:7::/48"];
    assert_eq!(
        plain(&[])?,
        [&["198.18.0.1/32", "198.18.0.2/32"], &office[..]].concat()
    );
    assert_eq!(
        plain(&["--fetch"])?,
        [&["198.18.0.9/32"], &office[..]].concat()
    );
    assert_eq!(plain(&["office"])?, office);
    fs::remove_dir_all(home.folder.path().join("state"))?;
    assert_eq!(plain(&["vendor"])?, ["198.18.0.9/32"]);
    // Without the list of each source there is no output.
    vendor.answer("/list", Answer::Status(404));
    let mut snapshot = Snapshot::new();
    let ended = run(&home, &["export", "--format", "nft"])?;
    check_error(&ended, "missing-lists");
    snapshot.ended("status 404", &ended, None);
    let ended = run(&home, &["export", "--format", "pf"])?;
    check_usage_error(&ended);
    snapshot.ended("an unknown format", &ended, None);
    let ended = run(
        &home,
        &["export", "--format", "nft", "office", "--name", "of fice"],
    )?;
    check_error(&ended, "invalid-request");
    snapshot.ended("a name with a space", &ended, None);
    snapshot.check(&expect_file!["snapshots/export.txt"]);
    Ok(())
}

#[test]
fn history_reads_the_state_directory() -> anyhow::Result<()> {
    let (home, _vendor) = home("[]")?;
    let mut snapshot = Snapshot::new();
    let ended = run(&home, &["history"])?;
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(0), ""),
        "{ended:?}"
    );
    snapshot.ended("no state directory", &ended, None);
    let state = home.folder.path().join("state");
    fs::create_dir(&state)?;
    let line = |second, source| {
        json!({
            "time": format!("2026-11-24T10:00:{second:02}Z"), "source": source, "event": "changed",
            "generation": 3, "added_count": 30, "removed_count": 1,
            "added": (0..30).map(|n| format!("198.18.0.{n}/32")).collect::<Vec<_>>(),
            "removed": ["198.19.0.0/16"],
            "held_until": "2026-11-25T10:00:00Z",
        })
        .to_string()
    };
    let text = [line(1, "a"), "{".to_owned(), line(2, "b"), line(3, "a")].join("\n");
    fs::write(state.join("history.v1.jsonl"), text)?;
    let ended = run(&home, &["history", "b"])?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stdout.starts_with("2026-11-24 10:00:02Z  b: ")
            && ended.stdout.contains("2026-11-25 10:00:00Z"),
        "{ended:?}"
    );
    snapshot.ended("history b, with a damaged line", &ended, None);
    let ended = run(&home, &["history", "--json", "--count", "2"])?;
    let document = parsed(&ended);
    let sources: Vec<_> = document["events"]
        .as_array()
        .context("an array")?
        .iter()
        .map(|event| &event["source"])
        .collect();
    assert_eq!(sources, ["b", "a"]);
    let ended = run(&home, &["history", "--json", "--count", "1"])?;
    snapshot.ended("history --json --count 1", &ended, None);
    snapshot.check(&expect_file!["snapshots/history.txt"]);
    Ok(())
}

#[test]
fn reading_the_state_directory_needs_privileges() -> anyhow::Result<()> {
    require_root!();
    let (home, _vendor) = home(r#"["198.18.0.9"]"#)?;
    store(&home, &["198.18.0.1/32"])?;
    let mut snapshot = Snapshot::new();
    for arguments in [
        &["diff"][..],
        &["history"],
        &["export", "--format", "plain"],
    ] {
        let paths = ["--config", "allowlist.toml", "--state-dir", "state"];
        let ended = home.run_as_nobody(&[arguments, &paths].concat())?;
        check_error(&ended, "forbidden");
        snapshot.ended(&arguments.join(" "), &ended, None);
    }
    let ended = run(&home, &["accept", "vendor", "--socket", "none"])?;
    check_error(&ended, "no-daemon");
    snapshot.ended("accept vendor, without a daemon", &ended, None);
    snapshot.check(&expect_file!["snapshots/unprivileged.txt"]);
    Ok(())
}

#[test]
fn providers_show_prints_a_valid_configuration() -> anyhow::Result<()> {
    let home = Home::new()?;
    for name in ["workato", "freshchat", "gitlab-com", "square"] {
        let shown = home.run(&["providers", "show", name])?;
        assert_eq!(shown.code, Some(0), "{shown:?}");
        home.write(
            "allowlist.toml",
            &format!("interfaces = ['eth0']\n{}", shown.stdout),
        )?;
        let checked = home.run(&["check", "--config", "allowlist.toml"])?;
        assert_eq!(checked.code, Some(0), "{name}: {checked:?}");
    }
    let mut snapshot = Snapshot::new();
    let shown = home.run(&["providers", "show", "gitlab-com"])?;
    snapshot.ended("providers show gitlab-com", &shown, None);
    let shown = home.run(&["providers", "show", "github", "--json"])?;
    let document = parsed(&shown);
    snapshot.ended("providers show github --json", &shown, None);
    assert_eq!(document["name"], "github");
    let keys: BTreeMap<String, Value> = serde_json::from_value(document)?;
    for key in [
        "title",
        "about",
        "direction",
        "documented",
        "checked",
        "expected",
        "evidence",
        "warning",
    ] {
        assert!(keys.contains_key(key), "{key}");
    }
    let ended = home.run(&["providers", "show", "githup"])?;
    check_error(&ended, "unknown-provider");
    snapshot.ended("providers show githup", &ended, None);
    // An outbound provider without the key `direction`.
    let text = "interfaces = ['eth0']\n[services.web]\nports = ['tcp/443']\nallow = ['events']\n\
                [sources.events]\nprovider = 'pagerduty-events-hosts'\n";
    home.write("allowlist.toml", text)?;
    let ended = home.run(&["check", "--config", "allowlist.toml"])?;
    check_error(&ended, "config-invalid");
    snapshot.ended("check of an outbound provider", &ended, None);
    snapshot.check(&expect_file!["snapshots/providers_show.txt"]);
    Ok(())
}

#[test]
fn providers_finds_an_address_in_compiled_in_and_last_good_lists() -> anyhow::Result<()> {
    let home = Home::new()?;
    let holders = |arguments: &[&str]| -> anyhow::Result<Value> {
        let ended = run(
            &home,
            &[&["providers", "--json", "--address"], arguments].concat(),
        )?;
        ensure!(ended.code == Some(0), "{ended:?}");
        Ok(serde_json::from_str(&ended.stdout)?)
    };
    home.write(
        "allowlist.toml",
        "interfaces = ['lo']\n[services.web]\nports = ['tcp/443']\nallow = ['gh']\n\
         [sources.gh]\nprovider = 'github'\n",
    )?;
    let found = holders(&["::ffff:52.5.142.59"])?;
    assert_eq!(found["address"], "52.5.142.59");
    let entry = json!({
        "provider": "workato", "region": "US", "prefix": "52.5.142.59/32", "from": "compiled-in",
        "source": null, "at": "2026-11-22",
    });
    assert_eq!(found["holders"], json!([entry]));
    assert_eq!(holders(&["140.82.112.9"])?["holders"], json!([]));

    let config = Config::load(&home.folder.path().join("allowlist.toml"))?;
    let source = config.policy.source("gh").context("it is configured")?;
    let prefixes = vec!["140.82.112.0/20".parse()?];
    let state = StateDir::open(&home.folder.path().join("state"))?;
    state.store(source, &Feed::new(prefixes, jiff::Timestamp::now()))?;
    let found = holders(&["140.82.112.9"])?;
    let holder = &found["holders"][0];
    assert_eq!(
        (&holder["provider"], &holder["source"], &holder["from"]),
        (&json!("github"), &json!("gh"), &json!("last-good"))
    );
    // The other lists are fetched on request only.
    let skipped = found["not_searched"].as_array().context("an array")?;
    assert!(skipped.len() > 70 && skipped.iter().all(|one| one["provider"] != "github"));
    let mut snapshot = Snapshot::new();
    for arguments in [
        &["crawler", "--address", "192.0.2.1"][..],
        &["workato", "--address", "52.5.142.59"],
    ] {
        let ended = run(&home, &[&["providers"], arguments].concat())?;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        snapshot.ended(&arguments.join(" "), &ended, None);
    }
    let ended = run(&home, &["providers", "--fetch"])?;
    check_usage_error(&ended);
    snapshot.ended("--fetch", &ended, None);
    snapshot.check(&expect_file!["snapshots/providers_address.txt"]);
    Ok(())
}

/// The list is read, checked by the gate and compiled. docs/performance.md has the time that this takes.
#[test]
fn a_million_prefixes_need_less_than_300_mib() -> anyhow::Result<()> {
    const LIMIT: u64 = 300 << 20;
    let home = Home::new()?;
    // No two addresses are adjacent, and none is for special use.
    let lines = (0..1_000_000u32).map(|n| {
        let [a, b, c] = [n % 80, n / 80 % 250, n / 20_000 % 250];
        format!("{}.{b}.{c}.{}\n", 11 + a, n % 2 * 2 + 1 + n / 500_000 * 4)
    });
    home.write("million.txt", &lines.collect::<String>())?;
    home.write(
        "allowlist.toml",
        "interfaces = ['eth0']\nmax_prefixes = 1_000_000\n[services.web]\nports = ['tcp/443']\n\
         allow = ['million']\n[sources.million]\nfile = 'million.txt'\n",
    )?;
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--data={LIMIT}"))
        .arg(allowlist()?)
        .args(["check", "--config", "allowlist.toml"])
        .current_dir(home.folder.path());
    let ended = Ended::of(command)?;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let result = ended.stdout.lines().last();
    assert!(
        result.is_some_and(|line| line.starts_with("ok: 1000000 ")),
        "{result:?}"
    );
    Ok(())
}
