//! The commands about lists, as whoever keeps a policy uses them: no filter is in force.

use std::collections::BTreeMap;

use allowlist_user::config::Config;
use allowlist_user::policy::Feed;
use allowlist_user::state::StateDir;

use super::*;

/// A vendor, and a configuration that fetches from it, in a folder.
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

/// Runs a command with the folder's configuration and state.
fn run(home: &Home, arguments: &[&str]) -> anyhow::Result<Ended> {
    let paths = ["--config", "allowlist.toml", "--state-dir", "state"];
    home.run(&[arguments, &paths].concat())
}

/// What a daemon would have left there.
fn keep(home: &Home, prefixes: &[&str]) -> anyhow::Result<()> {
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
fn diff_shows_what_a_refresh_would_change() -> anyhow::Result<()> {
    let (home, vendor) = home(r#"["198.18.0.1", "198.18.0.3"]"#)?;
    let text = run(&home, &["diff"])?;
    let expected = "vendor: 2 prefixes, 2 more, 0 less\n  + 198.18.0.1/32\n  + 198.18.0.3/32\n";
    assert_eq!(
        (text.code, text.stdout.as_str()),
        (Some(0), expected),
        "{text:?}"
    );

    keep(&home, &["198.18.0.1/32", "198.18.0.2/32"])?;
    let text = run(&home, &["diff", "vendor"])?;
    let expected = "vendor: 2 prefixes, 1 more, 1 less, which stay for 1day\n  + 198.18.0.3/32\n  - 198.18.0.2/32\n";
    assert_eq!(
        (text.code, text.stdout.as_str()),
        (Some(0), expected),
        "{text:?}"
    );
    let document = parsed(&run(&home, &["diff", "--json"])?);
    let vendors = &document["sources"]["vendor"];
    assert_eq!(vendors["outcome"], "changed");
    assert_eq!(vendors["added"], json!(["198.18.0.3/32"]));
    assert_eq!(vendors["removed"], json!(["198.18.0.2/32"]));
    assert_eq!(vendors["grace_seconds"], 86_400);

    vendor.answer("/list", Answer::json(r#"["198.18.0.1", "198.18.0.2"]"#));
    let text = run(&home, &["diff"])?;
    assert_eq!(text.stdout, "vendor: nothing new, 2 prefixes\n");
    let config = fs::read_to_string(home.folder.path().join("allowlist.toml"))?;
    home.write("allowlist.toml", &format!("max_prefixes = 3\n{config}"))?;
    let text = run(&home, &["diff"])?;
    let expected = "max_prefixes = 3";
    assert!(text.stderr.contains(expected), "{text:?}");
    vendor.answer("/list", Answer::json(r#"["198.0.0.0/7"]"#));
    let text = run(&home, &["diff"])?;
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(
        text.stdout.starts_with(
            "vendor: the gate would reject this list: has 198.0.0.0/7, which is wider"
        ),
        "{text:?}"
    );
    vendor.answer("/list", Answer::Status(503));
    let text = run(&home, &["diff"])?;
    assert_eq!(text.code, Some(1));
    assert!(
        text.stdout.contains("vendor: cannot be had: ") && text.stdout.contains("503"),
        "{text:?}"
    );
    // It looked, and that is all.
    let names: Vec<_> = fs::read_dir(home.folder.path().join("state"))?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<anyhow::Result<_>>()?;
    assert_eq!(names, ["vendor.json"]);
    check_error(
        &run(&home, &["diff", "nobody"])?,
        1,
        &["there is no source \"nobody\"; the configuration has office, vendor"],
    );
    Ok(())
}

#[test]
fn export_takes_what_is_on_disk_and_fetches_the_rest() -> anyhow::Result<()> {
    let (home, vendor) = home(r#"["198.18.0.9"]"#)?;
    keep(&home, &["198.18.0.1/32", "198.18.0.2/32"])?;
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
    // Nothing is printed that is not whole.
    vendor.answer("/list", Answer::Status(404));
    check_error(
        &run(&home, &["export", "--format", "nft"])?,
        1,
        &["the list has moved", "1 sources failed to fetch"],
    );
    check_error(
        &run(&home, &["export", "--format", "pf"])?,
        2,
        &["possible values: plain, json, nft"],
    );
    let named = run(
        &home,
        &["export", "--format", "nft", "office", "--name", "of fice"],
    )?;
    check_error(&named, 1, &["of fice"]);
    Ok(())
}

#[test]
fn history_needs_nothing_but_the_state() -> anyhow::Result<()> {
    let (home, _vendor) = home("[]")?;
    let ended = run(&home, &["history"])?;
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(0), ""),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("has no changes"), "{ended:?}");
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
    let mut lines = ended.stdout.lines();
    let first = "2026-11-24 10:00:02Z  b: changed: 30 more, 1 less (active until 2026-11-25 10:00:00Z); generation 3";
    assert_eq!(
        (lines.next(), lines.next()),
        (Some(first), Some("  + 198.18.0.0/32"))
    );
    assert!(
        ended
            .stdout
            .ends_with("  + and 10 more; --json shows them\n  - 198.19.0.0/16\n"),
        "{}",
        ended.stdout
    );
    assert!(
        ended.stderr.contains("1 events in state are damaged"),
        "{ended:?}"
    );
    let document = parsed(&run(&home, &["history", "--json", "--count", "2"])?);
    let sources: Vec<_> = document["events"]
        .as_array()
        .context("an array")?
        .iter()
        .map(|e| &e["source"])
        .collect();
    assert_eq!(sources, ["b", "a"]);
    Ok(())
}

#[test]
fn what_only_root_may_see_says_so() -> anyhow::Result<()> {
    require_root!();
    let (home, _vendor) = home(r#"["198.18.0.9"]"#)?;
    keep(&home, &["198.18.0.1/32"])?;
    for arguments in [
        &["diff"][..],
        &["history"],
        &["export", "--format", "plain"],
    ] {
        let paths = ["--config", "allowlist.toml", "--state-dir", "state"];
        let ended = home.run_as_nobody(&[arguments, &paths].concat())?;
        assert_eq!(ended.code, Some(1), "{arguments:?} {ended:?}");
        assert!(
            ended.stderr.contains("Permission denied") || ended.stderr.contains("try sudo"),
            "{ended:?}"
        );
    }
    let ended = run(&home, &["accept", "vendor", "--socket", "none"])?;
    check_error(&ended, 1, &["no daemon answers on none"]);
    Ok(())
}

#[test]
fn a_provider_is_shown_as_configuration_that_works() -> anyhow::Result<()> {
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
    let document = parsed(&home.run(&["providers", "show", "github", "--json"])?);
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
    check_error(
        &home.run(&["providers", "show", "githup"])?,
        1,
        &["no provider is named \"githup\"", "allowlist providers"],
    );
    // Without a service nobody can allow what is connected to.
    let text = "interfaces = ['eth0']\n[services.web]\nports = ['tcp/443']\nallow = ['events']\n\
                [sources.events]\nprovider = 'pagerduty-events-hosts'\n";
    home.write("allowlist.toml", text)?;
    check_error(
        &home.run(&["check", "--config", "allowlist.toml"])?,
        1,
        &[
            "allowlist.toml:4:10: services.web.allow[0]: \"events\" ",
            "direction = \"any\"",
        ],
    );
    Ok(())
}

#[test]
fn an_address_is_found_in_compiled_in_and_last_good_lists() -> anyhow::Result<()> {
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
    // The rest has to be fetched, which is only done on request.
    let skipped = found["not_searched"].as_array().context("an array")?;
    assert!(skipped.len() > 70 && skipped.iter().all(|one| one["provider"] != "github"));
    let text = run(&home, &["providers", "--address", "192.0.2.1"])?;
    assert!(
        text.stdout
            .starts_with("no searched entry contains 192.0.2.1\nnot searched: "),
        "{text:?}"
    );
    check_error(&run(&home, &["providers", "--fetch"])?, 2, &["--address"]);
    Ok(())
}

/// Read, judged and compiled. How long that takes is in docs/performance.md.
#[test]
fn a_list_of_a_million_lines_takes_little_memory() -> anyhow::Result<()> {
    const LIMIT: u64 = 300 << 20;
    let home = Home::new()?;
    // All over the internet, none beside another, and nothing that is special.
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
    let expected =
        "ok: 1000000 IPv4 and 0 IPv6 prefixes of 1000000 allowed; mode enforce, default pass";
    assert_eq!(result, Some(expected));
    Ok(())
}
