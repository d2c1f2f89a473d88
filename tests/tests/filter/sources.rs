//! Lists that change, fail, and survive a reboot, while the filter runs.

use allowlist_tests::lab::normalized;
use expect_test::expect;

use super::*;

/// Writes a configuration: `sources.vendor` is fetched every second, `sources.office` has static prefixes.
fn with_vendor(testbed: &Testbed, list: &str) -> anyhow::Result<(Vendor, String)> {
    let vendor = testbed
        .host
        .run(|| Vendor::start([("/list", Answer::json(list))]))?;
    let config = format!(
        r#"
        interfaces = ["eth0"]
        [services.web]
        ports = ["udp/443"]
        allow = ["vendor", "office"]
        [sources.vendor]
        url = "{}"
        format = "json"
        every = "1s"
        grace = "0s"
        allow_special_use = true
        [sources.office]
        prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
        "#,
        vendor.url("/list")
    );
    let config = testbed.scratch.write("allowlist.toml", config)?;
    Ok((vendor, config.display().to_string()))
}

fn prefixes_of(testbed: &Testbed, source: &str) -> anyhow::Result<Vec<String>> {
    let list = testbed.json("list")?;
    let entries = list["prefixes"]
        .as_array()
        .context("prefixes is an array")?;
    let of_source = entries
        .iter()
        .filter(|entry| entry["sources"] == json!([source]));
    Ok(of_source
        .filter_map(|entry| Some(entry["prefix"].as_str()?.to_owned()))
        .collect())
}

#[test]
fn a_vendors_change_takes_effect() -> anyhow::Result<()> {
    require_root!();
    let (old, new) = ("198.18.0.1", "2001:db8:18::1");
    let testbed = Testbed::new()?;
    let (vendor, config) = with_vendor(&testbed, &json!([old]).to_string())?;
    let filter = testbed.filter(&["--config", &config])?;
    let sources = [&FRIENDS[..], &STRANGERS, &[old, new]].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        vendor.answer("/list", Answer::json(json!([new]).to_string()));
        let line = filter.wait_for_line("generation 2", SOON)?;
        expect!["<time> [list-changed]: vendor: changed from 1 to 1 prefix; generation 2"]
            .assert_eq(&normalized(&line, None));
        thread::sleep(NEVER);
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    assert_eq!(prefixes_of(&testbed, "vendor")?, [format!("{new}/128")]);
    // Each packet is decided by the old or the new policy, so there is one number at which the policy changed.
    let before = streamed.from(old).len() as u64;
    assert!(streamed.from(old).iter().copied().eq(0..before));
    assert!(
        0 < before && before < streamed.rounds,
        "{before} of {}",
        streamed.rounds
    );
    let first = *streamed
        .from(new)
        .first()
        .context("the new prefix was not admitted")?;
    assert!(
        streamed
            .from(new)
            .iter()
            .copied()
            .eq(first..streamed.rounds)
    );
    assert!(first == before || first + 1 == before, "{before} {first}");
    Ok(())
}

#[test]
fn a_failing_vendor_changes_nothing() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let kept = ["198.18.0.1/32", "2001:db8:18::/48"];
    let (vendor, config) = with_vendor(&testbed, &json!(kept).to_string())?;
    let _filter = testbed.filter(&["--config", &config])?;
    let fails_with = |expected: &str| {
        eventually(|| {
            let status = testbed.json("status")?;
            Ok(status["sources"]["vendor"]["failure_code"] == expected)
        })
        .with_context(|| format!("{expected:?} in `status`"))?;
        assert_eq!(prefixes_of(&testbed, "vendor")?, kept, "{expected}");
        anyhow::Ok(())
    };
    for (answer, expected) in [
        (
            Answer::html("<html>Just a moment…</html>"),
            "list-is-web-page",
        ),
        (Answer::Status(404), "http-status"),
        (Answer::json("[]"), "list-empty"),
        (
            Answer::Truncated(br#"["198.18.0.2""#.to_vec()),
            "incomplete",
        ),
        (Answer::json(""), "list-empty"),
    ] {
        vendor.answer("/list", answer);
        fails_with(expected)?;
    }
    vendor.answer("/list", Answer::json(json!(kept).to_string()));
    eventually(|| Ok(testbed.json("status")?["sources"]["vendor"]["failure"].is_null()))?;
    drop(vendor);
    fails_with("unreachable")?;
    let text = testbed.run(&["status"])?.stdout;
    let warning = text
        .lines()
        .find(|line| line.starts_with("warning: vendor"));
    let warning = warning.with_context(|| text.clone())?;
    expect!["warning: vendor: the last-good list is active: source vendor: http://127.0.0.1:<port>/list: the server cannot be reached: tcp connect error: Connection refused (os error); check the URL, and this host's name resolution, route and proxy"].assert_eq(&normalized(warning, None));
    assert!(gets_through(&testbed, "198.18.0.1")?);
    Ok(())
}

#[test]
fn the_last_good_list_survives_a_reboot() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let (vendor, config) = with_vendor(&testbed, r#"["198.18.0.1"]"#)?;
    let mut filter = testbed.filter(&["--config", &config])?;
    filter.stop(Signal::SIGINT, SOON)?;
    drop(vendor);
    let _filter = testbed.filter(&["--config", &config])?;
    assert!(gets_through(&testbed, "198.18.0.1")?);
    assert!(!gets_through(&testbed, STRANGERS[0])?);
    Ok(())
}

#[test]
fn an_edited_file_is_read_at_the_next_start() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let config = testbed.scratch.write(
        "allowlist.toml",
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['office']\n\
         [sources.office]\nfile = 'office.txt'\n",
    )?;
    let config = config.display().to_string();
    for prefix in ["198.18.0.0/16", "198.19.0.0/16"] {
        testbed.scratch.write("office.txt", prefix)?;
        let mut filter = testbed.filter(&["--config", &config])?;
        assert_eq!(prefixes_of(&testbed, "office")?, [prefix]);
        filter.stop(Signal::SIGINT, SOON)?;
    }
    Ok(())
}

/// A list that does not fit is rejected, and not used by the next start either.
#[test]
fn a_list_that_outgrows_max_prefixes_changes_nothing() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let (vendor, config) = with_vendor(&testbed, r#"["198.18.0.1"]"#)?;
    let text = std::fs::read_to_string(&config)?;
    testbed
        .scratch
        .write("allowlist.toml", format!("max_prefixes = 3\n{text}"))?;
    let mut filter = testbed.filter(&["--config", &config])?;
    vendor.answer("/list", Answer::json(r#"["198.18.0.1", "198.18.0.2"]"#));
    let line = filter.wait_for_line("warning[list-rejected]: ", SOON)?;
    expect![[r#"<time> warning[list-rejected]: source vendor: the lists have 4 prefixes, more than max_prefixes = 3; nothing was changed; raise max_prefixes, or remove a source (the largest is "vendor" with 2); the last-good list stays active"#]].assert_eq(&normalized(&line, None));
    assert_eq!(prefixes_of(&testbed, "vendor")?, ["198.18.0.1/32"]);
    let events = testbed.json("history")?["events"].clone();
    let refused = events
        .as_array()
        .and_then(|events| events.last())
        .context("events")?;
    assert_eq!(refused["event"], "refused");
    assert_eq!(refused["added"], json!(["198.18.0.2/32"]));
    let code = testbed.json("status")?["sources"]["vendor"]["failure_code"].clone();
    filter.stop(Signal::SIGINT, SOON)?;
    drop(vendor);
    let _filter = testbed.filter(&["--config", &config])?;
    assert_eq!(prefixes_of(&testbed, "vendor")?, ["198.18.0.1/32"]);
    assert_eq!(code, "too-many-prefixes");
    Ok(())
}
