//! `allowlist learn`: what programs did in observe mode becomes rules that permit exactly that in enforce mode.

use allowlist_tests::lab::{Cgroup, Testbed, eventually};
use allowlist_tests::require_root;
use anyhow::{Context as _, ensure};
use expect_test::expect;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::names::{SERVERS, SOON, records, resolve, resolvers, serve};
use super::services::service_name;
use super::*;

/// The answers of the name server: two names share an address.
fn table() -> Value {
    json!({
        "events.example.com": records(&[("A", "192.0.2.77"), ("AAAA", "2001:db8:bad::77")]),
        "shared.example.com": records(&[("A", "192.0.2.77")]),
        "internal.example.com": records(&[("A", "10.0.0.5")]),
        "once.example.com": records(&[("A", "192.0.2.80")]),
        "unused.example.com": records(&[("A", "192.0.2.81")]),
    })
}

/// Returns the output of `allowlist learn` with times and the test's cgroup replaced.
fn learn(testbed: &Testbed, cgroup: &Cgroup, options: &[&str]) -> anyhow::Result<String> {
    let ended = testbed.run(&[&["learn"], options].concat())?;
    ensure!(ended.code == Some(0), "{ended:?}");
    let unit = cgroup.below_root().to_string_lossy();
    let text = ended.stdout.replace(unit.trim_start_matches('/'), "UNIT");
    let mut lines = String::new();
    for line in text.lines() {
        assert!(line.len() <= 80, "{line}");
        let age = line
            .strip_suffix(" ago")
            .and_then(|line| line.rsplit_once(' '));
        lines += &match age {
            Some((before, _)) => format!("{before} AGE ago\n"),
            None => format!("{line}\n"),
        };
    }
    Ok(lines)
}

/// Resolves names and sends to their addresses, in two units, of which one has a service that ends.
fn use_names(testbed: &Testbed, batch: &Cgroup, web: &Cgroup) -> anyhow::Result<()> {
    let host = &testbed.host;
    let questions = [
        "events.example.com",
        "events.example.com/AAAA",
        "unused.example.com",
    ];
    resolve(host, batch, SERVERS[0], &questions)?;
    let twice = |calls: &[(&'static str, &'static str, u16)]| calls.repeat(2);
    call(
        host,
        batch,
        &twice(&[
            ("udp_send", "192.0.2.77", 443),
            ("udp_send", "2001:db8:bad::77", 443),
            ("udp_send", "203.0.113.9", 514),
            ("udp_send", "169.254.169.254", 80),
            ("tcp", SERVERS[0], 444),
            ("udp_connect", "203.0.113.10", 443),
        ]),
    )?;
    let service = web.child("web.service")?;
    let questions = ["shared.example.com", "internal.example.com"];
    resolve(host, &service, SERVERS[0], &questions)?;
    let calls = [
        ("udp_send", "192.0.2.77", 443),
        ("udp_send", "10.0.0.5", 443),
    ];
    call(host, &service, &twice(&calls))?;
    drop(service);
    resolve(host, web, SERVERS[0], &["once.example.com"])?;
    call(host, web, &[("udp_send", "192.0.2.80", 443)]).map(drop)
}

#[test]
#[expect(clippy::too_many_lines, reason = "most lines are the expected output")]
fn what_was_seen_becomes_rules_that_permit_it() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let (batch, web) = (cgroup.child("batch")?, cgroup.child("web")?);
    let observe = config(&cgroup, &format!("mode = \"observe\"\n{}", resolvers()));
    let path = testbed.scratch.write("allowlist.toml", observe)?;
    let mut daemon = testbed.filter(&["--config".as_ref(), path.as_os_str()])?;
    let _server = serve(&testbed.peer, SERVERS[0], &table())?;
    use_names(&testbed, &batch, &web)?;
    let text = learn(&testbed, &cgroup, &[])?;
    expect![[r##"
        # Destinations that programs used and that no rule allows, as rules for the end
        # of the configuration. Read each line, and remove what should stay refused.

        # Programs in /UNIT/batch.
        [egress.rules.batch-tcp-444]
        to = ["batch-tcp-444-addresses"]
        ports = ["tcp/444"]
        units = ["/UNIT/batch"]

        # Addresses for which no program asked by a name, or whose name was forgotten;
        # they may change.
        [sources.batch-tcp-444-addresses]
        prefixes = [
          "198.51.100.2/32", # 2 calls, last AGE ago
        ]

        [egress.rules.batch-udp-443]
        to = ["batch-udp-443"]
        ports = ["udp/443"]
        units = ["/UNIT/batch"]

        [sources.batch-udp-443]
        names = [
          "events.example.com", # 4 calls, last AGE ago
        ]

        [egress.rules.batch-udp-514]
        to = ["batch-udp-514-addresses"]
        ports = ["udp/514"]
        units = ["/UNIT/batch"]

        # Addresses for which no program asked by a name, or whose name was forgotten;
        # they may change.
        [sources.batch-udp-514-addresses]
        prefixes = [
          "203.0.113.9/32", # 2 calls, last AGE ago
        ]

        [egress.rules.batch-udp-80]
        to = ["batch-udp-80-private-addresses"]
        ports = ["udp/80"]
        units = ["/UNIT/batch"]

        # Addresses in closed ranges, such as private networks or cloud metadata.
        [sources.batch-udp-80-private-addresses]
        prefixes = [
          "169.254.169.254/32", # 2 calls, last AGE ago
        ]

        # Programs in /UNIT/web.
        [egress.rules.web]
        to = ["web", "web-private"]
        ports = ["udp/443"]
        units = ["/UNIT/web"]

        [sources.web]
        names = [
          "shared.example.com", # 2 calls, last AGE ago
        ]

        # Names with addresses in closed ranges, such as private networks: whoever
        # answers for these names can direct the programs to your network.
        [sources.web-private]
        allow_special_use = true
        names = [
          "internal.example.com", # 2 calls, last AGE ago
        ]

        # Called once, so perhaps not meant. To allow one, add it to a source above.
        #   "once.example.com" udp/443, /UNIT/web, 1 call, AGE ago

        # UDP sockets were connected to 2 more destinations. Most programs do so only to
        # sort the addresses of a name; --probes includes them.
    "##]]
    .assert_eq(&text);

    // Calls to pasted destinations pass in enforce mode, and those in comments are refused.
    let pasted = text
        .replace(
            "UNIT",
            cgroup
                .below_root()
                .to_string_lossy()
                .trim_start_matches('/'),
        )
        .replace("names = [", &format!("{}names = [", resolvers()));
    let enforce = config(&cgroup, &format!("{}\n{pasted}", resolvers()));
    let path = testbed
        .scratch
        .write("allowlist.toml", format!("at_start = \"drop\"\n{enforce}"))?;
    let checked = testbed.run(&["check", "--offline", "--config", &path.to_string_lossy()])?;
    assert!(!checked.stderr.contains("error"), "{checked:?}");
    // A start does not wait for names that cannot be polled, and a reload does.
    daemon.stop(Signal::SIGTERM, SOON)?;
    let _daemon = testbed.filter(&["--config".as_ref(), path.as_os_str()])?;
    let host = &testbed.host;
    let questions = [
        "events.example.com",
        "events.example.com/AAAA",
        "unused.example.com",
    ];
    let results = resolve(host, &batch, SERVERS[0], &questions)?;
    // A connect of a UDP socket is judged like a datagram.
    assert_eq!(results, json!([["ok"], ["ok"], ["EPERM"]]));
    let calls = [
        ("udp_send", "203.0.113.9", 514),
        ("udp_send", "169.254.169.254", 80),
        ("tcp", SERVERS[0], 444),
        ("udp_send", "203.0.113.9", 443),
        ("udp_send", "203.0.113.10", 443),
    ];
    let results = call(host, &batch, &calls)?;
    assert_eq!(results, ["ok", "ok", "ECONNREFUSED", "EPERM", "EPERM"]);
    let questions = [
        "shared.example.com",
        "internal.example.com",
        "once.example.com",
    ];
    let results = resolve(host, &web, SERVERS[0], &questions)?;
    assert_eq!(results, json!([["ok"], ["ok"], ["EPERM"]]));
    Ok(())
}

#[test]
fn json_and_options() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let (batch, web) = (cgroup.child("batch")?, cgroup.child("web")?);
    let _daemon = start(
        &testbed,
        &cgroup,
        &format!("mode = \"observe\"\n{}", resolvers()),
    )?;
    let _server = serve(&testbed.peer, SERVERS[0], &table())?;
    use_names(&testbed, &batch, &web)?;
    let json = |options: &[&str]| -> anyhow::Result<Value> {
        let ended = testbed.run(&[&["learn", "--json"], options].concat())?;
        ensure!(ended.code == Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))
    };
    let found = json(&[])?;
    assert_eq!(found["mode"], "observe");
    let all = found["destinations"].as_array().context("a list")?.len();
    let unit = batch.below_root().to_string_lossy().into_owned();
    let of_unit = json(&["--unit", &unit])?;
    let mut first = of_unit["destinations"][0].clone();
    for time in ["first", "last"] {
        let _: jiff::Timestamp = first[time].as_str().context("a time")?.parse()?;
        first[time] = "TIME".into();
    }
    let expected = json!({
        "unit": unit,
        "gone": false,
        "cgroups": [unit.trim_start_matches('/')],
        "name": "events.example.com",
        "prefix": null,
        "closed_range": false,
        "ports": ["udp/443"],
        "calls": 4,
        "probes": 2,
        "first": "TIME",
        "last": "TIME",
    });
    assert_eq!(first, expected);
    assert!(of_unit["destinations"].as_array().context("a list")?.len() < all);
    assert_eq!(json(&["--unit", "/other"])?["destinations"], json!([]));
    assert_eq!(
        json(&["--since", "1d"])?["destinations"]
            .as_array()
            .map(Vec::len),
        Some(all)
    );
    let probed = |found: &Value| found["only_probed"].as_u64();
    assert!(probed(&found) > Some(0), "{found}");
    let with_probes = json(&["--probes"])?;
    assert_eq!(probed(&with_probes), Some(0));
    assert!(with_probes.to_string().contains("unused.example.com"));

    // Later calls are seen again.
    let forgotten = testbed.run(&["learn", "--forget"])?;
    assert_eq!(forgotten.code, Some(0), "{forgotten:?}");
    assert_eq!(json(&[])?["destinations"], json!([]));
    call(&testbed.host, &web, &[("udp_send", "192.0.2.77", 443)])?;
    assert_eq!(json(&[])?["destinations"][0]["prefix"], "192.0.2.77/32");

    // Without the cgroup and those around it, the unit is not known, and no rule is proposed.
    call(&testbed.host, &web, &[("udp_send", "192.0.2.77", 443)])?;
    drop((batch, web));
    let path = cgroup.below_root().to_string_lossy().into_owned();
    assert_eq!(json(&["--unit", &path])?["destinations"][0]["gone"], false);
    drop(cgroup);
    assert_eq!(json(&[])?["destinations"][0]["gone"], true);
    let text = testbed.run(&["learn"])?;
    assert!(text.stdout.contains("192.0.2.77/32"), "{text:?}");
    assert!(!text.stdout.contains("[egress"), "{text:?}");
    Ok(())
}

#[test]
fn a_service_is_proposed_by_its_name() -> anyhow::Result<()> {
    require_root!();
    let (testbed, slice) = (Testbed::new()?, Cgroup::slice()?);
    let name = service_name(&slice);
    let (service, other) = (slice.child(&name)?, slice.child(&format!("other-{name}"))?);
    let worker = service.child("worker")?;
    let _daemon = start(&testbed, &slice, "mode = \"observe\"\n")?;
    let calls = [("udp_send", "192.0.2.77", 443); 2];
    call(&testbed.host, &service, &calls)?;
    call(&testbed.host, &worker, &calls)?;
    let path = |cgroup: &Cgroup| cgroup.below_root().to_string_lossy().into_owned();
    for unit in [&name, &path(&slice), &path(&service)] {
        let ended = testbed.run(&["learn", "--json", "--unit", unit])?;
        let found: Value =
            serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))?;
        let found = &found["destinations"];
        assert_eq!(found[0]["unit"], name.as_str(), "{found}");
        let cgroups = [&service, &worker].map(|one| path(one)[1..].to_owned());
        assert_eq!(found[0]["cgroups"], json!(cgroups), "{found}");
    }
    let proposal = testbed.run(&["learn"])?.stdout;
    let enforce = config(&slice, "mode = \"enforce\"\n") + &proposal;
    testbed.scratch.write("allowlist.toml", enforce)?;
    testbed.json("reload")?;
    for (cgroup, result) in [(&service, "ok"), (&worker, "ok"), (&other, "EPERM")] {
        assert_eq!(call(&testbed.host, cgroup, &calls)?, [result; 2]);
    }
    Ok(())
}

/// A change of the mode by command is one store to the control word, and names are noted from then on.
#[test]
fn names_are_noted_after_a_change_to_observe_mode_only() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let mut daemon = start(&testbed, &cgroup, &resolvers())?;
    let _server = serve(&testbed.peer, SERVERS[0], &table())?;
    let seen = || -> anyhow::Result<String> {
        resolve(&testbed.host, &cgroup, SERVERS[0], &["events.example.com"])?;
        call(&testbed.host, &cgroup, &[("udp_send", "192.0.2.77", 443)])?;
        learn(&testbed, &cgroup, &["--probes"])
    };
    let text = seen()?;
    assert!(text.contains("\"192.0.2.77/32\", # 2 calls"), "{text}");
    assert!(text.contains("enforce mode"), "{text}");
    let ended = testbed.run(&["mode", "observe", "--egress"])?;
    ensure!(ended.code == Some(0), "{ended:?}");
    daemon.stop(Signal::SIGTERM, SOON)?;
    let text = seen()?;
    assert!(text.contains("\"events.example.com\", # 4 calls"), "{text}");
    Ok(())
}

#[test]
fn without_a_policy_or_without_calls() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let code = |code: &str| -> anyhow::Result<()> {
        let ended = testbed.run(&["learn"])?;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let expected = format!("error[{code}]: ");
        assert!(ended.stderr.starts_with(&expected), "{ended:?}");
        Ok(())
    };
    code("nothing-attached")?;
    let path = testbed
        .scratch
        .write("allowlist.toml", "interfaces = [\"eth0\"]\n")?;
    let _daemon = testbed.filter(&["--config".as_ref(), path.as_os_str()])?;
    code("no-egress-policy")?;
    let observe = config(&cgroup, "mode = \"observe\"\n");
    testbed.scratch.write("allowlist.toml", observe)?;
    testbed.json("reload")?;
    expect![[r#"
        # No destination to propose a rule for.

        # No call without a rule was seen since the policy was attached, or in the
        # selected time and unit. Let the programs run for some days, which should
        # include updates, backups and log-ins, and run `allowlist learn` again.
    "#]]
    .assert_eq(&learn(&testbed, &cgroup, &[])?);
    // With the default verdict pass, calls that no rule allows are seen as well.
    let pass = config(&cgroup, "").replace("\"refuse\"", "\"pass\"");
    testbed.scratch.write("allowlist.toml", pass)?;
    testbed.json("reload")?;
    let calls = [("udp_send", "192.0.2.77", 443); 2];
    assert_eq!(call(&testbed.host, &cgroup, &calls)?, ["ok", "ok"]);
    eventually(|| Ok(learn(&testbed, &cgroup, &[])?.contains("\"192.0.2.77/32\", # 2 calls")))
}
