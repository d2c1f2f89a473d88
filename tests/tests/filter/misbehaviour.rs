//! Vendors and name servers that fail in the ways of real ones, while the filter runs: the active prefixes
//! stay, and `status` has the failure with its remedy.

use std::panic::resume_unwind;

use allowlist_tests::lab::{Snapshot, WallClock};
use allowlist_tests::name_server::{NameServer, Reply};
use expect_test::expect_file;

use super::*;

const GOOD: [&str; 8] = [
    "198.18.0.1/32",
    "198.18.0.2/32",
    "198.18.0.3/32",
    "198.18.0.4/32",
    "198.18.0.5/32",
    "198.18.0.6/32",
    "198.18.0.7/32",
    "2001:db8:18::/48",
];

fn list(prefixes: &[&str]) -> Answer {
    Answer::json(json!(prefixes).to_string())
}

fn prefixes(testbed: &Testbed) -> anyhow::Result<Vec<String>> {
    let list = testbed.json("list")?;
    let entries = list["prefixes"]
        .as_array()
        .context("prefixes is an array")?;
    let prefixes = entries.iter().filter_map(|entry| entry["prefix"].as_str());
    Ok(prefixes.map(str::to_owned).collect())
}

/// Waits until the last fetch of `vendor` has failed with this code, and returns the whole text.
fn wait_for_failure(testbed: &Testbed, code: &str) -> anyhow::Result<String> {
    let mut source = Value::Null;
    eventually(|| {
        source = testbed.json("status")?["sources"]["vendor"].clone();
        Ok(source["failure_code"] == code)
    })
    .with_context(|| format!("{code:?}, not {source}"))?;
    let failure = source["failure"].as_str().context("a text")?;
    Ok(failure.to_owned())
}

/// Waits until this many prefixes of `vendor` are in their grace period.
fn wait_for_grace(testbed: &Testbed, count: u64) -> anyhow::Result<()> {
    eventually(|| Ok(testbed.json("status")?["sources"]["vendor"]["grace"] == count))
}

/// Waits until the last fetch of `vendor` has succeeded.
fn wait_for_success(testbed: &Testbed) -> anyhow::Result<()> {
    eventually(|| Ok(testbed.json("status")?["sources"]["vendor"]["failure"].is_null()))
}

/// A title, an answer of the vendor, and the code of the failure.
type Case = (&'static str, Answer, &'static str);

fn cases() -> Vec<Case> {
    let utf_16: Vec<u8> = "\u{feff}[\"198.18.0.1\"]"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let plain = |text: &str| Answer::Body("text/plain", text.as_bytes().to_vec());
    let latin_1 = Answer::Body("text/plain", b"[\"caf\xe9\"]".to_vec());
    let challenge = Answer::html("<!DOCTYPE html><title>Just a moment...</title>");
    let redirect = |to: &str| Answer::Redirect(to.to_owned());
    let status = |status| Answer::Full(status, Vec::new(), b"<html>no</html>".to_vec());
    let one = br#"["198.18.0.1"]"#;
    vec![
        ("web page", challenge, "list-is-web-page"),
        ("no bytes", plain(""), "list-empty"),
        (
            "comment",
            plain("# merged into another list\n"),
            "list-malformed",
        ),
        ("empty array", Answer::json("[]"), "list-empty"),
        (
            "object",
            Answer::json(r#"{"Temporarily": "Broken"}"#),
            "list-malformed",
        ),
        (
            "joined prefixes",
            Answer::json(r#"["131.0.72.0/222400:cb00::/32"]"#),
            "list-malformed",
        ),
        (
            "host bits",
            Answer::json(r#"["198.18.0.9/24"]"#),
            "list-malformed",
        ),
        (
            "leading zero",
            Answer::json(r#"["198.18.0.01"]"#),
            "list-malformed",
        ),
        (
            "cut JSON",
            Answer::json(r#"["198.18.0.1", "198.18."#),
            "incomplete",
        ),
        (
            "UTF-16",
            Answer::Body("text/plain", utf_16),
            "list-malformed",
        ),
        ("Latin-1", latin_1, "list-malformed"),
        (
            "cut body",
            Answer::Truncated(br#"["198.18.0.1""#.to_vec()),
            "incomplete",
        ),
        ("cut chunks", Answer::CutChunks(one.to_vec()), "incomplete"),
        ("cut gzip", Answer::CutGzip(one.repeat(99)), "incomplete"),
        ("endless body", Answer::Endless, "too-large"),
        ("large gzip", Answer::Gzip(vec![b' '; 4 << 20]), "too-large"),
        ("silence", Answer::Silence, "timeout"),
        ("slow drip", Answer::Drip, "timeout"),
        ("noise", Answer::Noise, "unreachable"),
        ("redirect loop", redirect("/list"), "redirect-refused"),
        (
            "redirect to HTTP",
            redirect("http://lists.example.com/"),
            "redirect-refused",
        ),
        ("status 401", status(401), "http-status"),
        ("status 403", status(403), "http-status"),
        ("status 404", status(404), "http-status"),
        ("status 410", status(410), "http-status"),
        ("status 429", status(429), "http-status"),
        ("status 500", status(500), "http-status"),
        ("status 204", status(204), "http-status"),
        ("status 206", status(206), "http-status"),
        // Valid lists that the gate rejects.
        ("shrunk list", list(&GOOD[..2]), "list-rejected"),
        ("short list", list(&["9.9.9.9"]), "list-rejected"),
        (
            "wide prefix",
            list(&[&GOOD[..], &["8.0.0.0/7"]].concat()),
            "list-forbidden",
        ),
        ("missing prefix", list(&GOOD[1..]), "list-rejected"),
    ]
}

#[test]
fn failed_fetches_keep_the_active_prefixes() -> anyhow::Result<()> {
    require_root!();
    let cases = cases();
    assert!(cases.len() >= 25);
    // Each case waits for two fetches, so four hosts run at once.
    let failures: Vec<Vec<String>> = thread::scope(|scope| {
        let hosts: Vec<_> = cases
            .chunks(cases.len().div_ceil(4))
            .map(|cases| scope.spawn(|| play(cases)))
            .collect();
        let join = |host: thread::ScopedJoinHandle<'_, anyhow::Result<_>>| {
            host.join().unwrap_or_else(|panic| resume_unwind(panic))
        };
        hosts.into_iter().map(join).collect::<anyhow::Result<_>>()
    })?;
    let mut snapshot = Snapshot::new();
    for ((title, ..), failure) in cases.iter().zip(failures.iter().flatten()) {
        snapshot.text(title, failure, None);
    }
    snapshot.check(&expect_file!["snapshots/failed_fetches.txt"]);
    Ok(())
}

/// Runs the cases on a separate host, and returns the texts of the failures.
fn play(cases: &[Case]) -> anyhow::Result<Vec<String>> {
    let testbed = Testbed::new()?;
    let vendor = testbed
        .host
        .run(|| Vendor::start([("/list", list(&GOOD))]))?;
    let config = format!(
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['vendor']\n\
         [sources.vendor]\nurl = '{}'\nformat = 'json'\nevery = '1s'\ngrace = '0s'\ntimeout = '700ms'\n\
         max_size = '64KiB'\nmin = 2\nmust_cover = ['198.18.0.1']\nallow_special_use = true\n",
        vendor.url("/list")
    );
    let config = testbed.scratch.write("allowlist.toml", config)?;
    let config = config.display().to_string();
    let mut filter = testbed.filter(&["--config", &config])?;
    let mut failures = Vec::new();
    for (title, answer, code) in cases {
        vendor.answer("/list", answer.clone());
        failures.push(wait_for_failure(&testbed, code).context(*title)?);
        assert_eq!(prefixes(&testbed)?, GOOD, "{title}");
        // A success separates this failure from the next one.
        vendor.answer("/list", list(&GOOD));
        wait_for_success(&testbed)?;
    }
    assert!(gets_through(&testbed, "198.18.0.7")?);
    assert!(!gets_through(&testbed, STRANGERS[0])?);
    // The last-good list also survives a start without the vendor.
    drop(vendor);
    filter.stop(Signal::SIGKILL, SOON)?;
    let _filter = testbed.filter(&["--config", &config])?;
    assert_eq!(prefixes(&testbed)?, GOOD);
    assert_eq!(
        testbed.json("status")?["generation"],
        2,
        "only the two starts published"
    );
    Ok(failures)
}

#[test]
fn requests_are_conditional() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let body = json!(GOOD).to_string().into_bytes();
    let version = |etag, body: &[u8]| Answer::Version(Some(etag), None, body.to_vec());
    let vendor = testbed
        .host
        .run(|| Vendor::start([("/list", version("\"1\"", &body))]))?;
    let config = format!(
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['vendor']\n\
         [sources.vendor]\nurl = '{}'\nformat = 'json'\nevery = '1s'\nallow_special_use = true\n",
        vendor.url("/list")
    );
    let config = testbed
        .scratch
        .write("allowlist.toml", config)?
        .display()
        .to_string();
    let asked = |etag: &str| {
        let header = format!("if-none-match: {etag}");
        let requests = vendor.requests();
        requests
            .iter()
            .filter(|head| head.contains(&header))
            .count()
    };
    let filter = testbed.filter(&["--config", &config])?;
    eventually(|| Ok(asked("\"1\"") >= 2))?;
    assert!(testbed.json("status")?["sources"]["vendor"]["failure"].is_null());
    // A rejected list is fetched unconditionally.
    vendor.answer("/list", version("\"2\"", br#"["198.18.0.1"]"#));
    wait_for_failure(&testbed, "list-rejected")?;
    assert_eq!(asked("\"2\""), 0);
    drop(filter);
    // Another start continues with the stored list and validator.
    vendor.answer("/list", version("\"1\"", &body));
    let before = asked("\"1\"");
    let _filter = testbed.filter(&["--config", &config])?;
    eventually(|| Ok(asked("\"1\"") > before))?;
    assert_eq!(prefixes(&testbed)?, GOOD);
    Ok(())
}

#[test]
fn failed_names_keep_their_addresses() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let name = "hooks.vendor.example";
    let good = Reply::records([
        "hooks.vendor.example 1 CNAME lb.vendor.example",
        "lb.vendor.example 1 A 198.18.0.1",
        "lb.vendor.example 1 AAAA 2001:db8:18::1",
    ]);
    let server = testbed
        .host
        .run(|| NameServer::start([(name, good.clone())]))?;
    let config = format!(
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['vendor']\n\
         [sources.vendor]\nnames = ['{name}']\nresolvers = ['{}']\nevery = '1s'\nttl_floor = '1s'\n\
         timeout = '700ms'\ngrace = '1h'\nallow_special_use = true\n",
        server.address()
    );
    let config = testbed
        .scratch
        .write("allowlist.toml", config)?
        .display()
        .to_string();
    let filter = testbed.filter(&["--config", &config])?;
    let both = ["198.18.0.1/32", "2001:db8:18::1/128"];
    assert_eq!(prefixes(&testbed)?, both);
    let mut snapshot = Snapshot::new();
    for (title, reply) in [
        ("no such name", Reply::NoSuchName),
        ("server failure", Reply::ServerFailure),
        ("silence", Reply::Silence),
        ("garbage", Reply::Garbage),
        (
            "alias loop",
            Reply::records(["hooks.vendor.example 1 CNAME hooks.vendor.example"]),
        ),
    ] {
        server.reply(name, reply);
        let failure = wait_for_failure(&testbed, "name-failed").context(title)?;
        snapshot.text(title, &failure, None);
        assert_eq!(prefixes(&testbed)?, both, "{title}");
        server.reply(name, good.clone());
        wait_for_success(&testbed)?;
    }
    snapshot.check(&expect_file!["snapshots/failed_names.txt"]);
    // All rotating addresses are active, because each returns before its grace period ends.
    let turn = |host: u8| vec![format!("{name} 1 A 198.18.1.{host}")];
    server.reply(name, Reply::Rotating(vec![turn(1), turn(2), turn(3)]));
    let turns = [
        both[0],
        "198.18.1.1/32",
        "198.18.1.2/32",
        "198.18.1.3/32",
        both[1],
    ];
    eventually(|| Ok(prefixes(&testbed)? == turns))?;
    let generation = testbed.json("status")?["generation"].clone();
    let fetched = || anyhow::Ok(testbed.json("status")?["sources"]["vendor"]["fetched"].clone());
    for _ in 0..3 {
        let before = fetched()?;
        eventually(|| Ok(fetched()? != before))?;
    }
    assert_eq!(prefixes(&testbed)?, turns);
    assert_eq!(
        testbed.json("status")?["generation"],
        generation,
        "nothing flaps"
    );
    assert!(gets_through(&testbed, "198.18.1.2")?);
    drop(filter);
    Ok(())
}

#[test]
fn a_clock_step_ends_no_grace_period() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let vendor = testbed
        .host
        .run(|| Vendor::start([("/list", list(&GOOD[..3]))]))?;
    let config = format!(
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['vendor']\n\
         [sources.vendor]\nurl = '{}'\nformat = 'json'\nevery = '1s'\ngrace = '1h'\nmax_age = '1day'\n\
         allow_special_use = true\n",
        vendor.url("/list")
    );
    let config = testbed.scratch.write("allowlist.toml", config)?;
    let clock = WallClock::new(&testbed.scratch)?;
    let mut command = testbed.command(&["run", "--config", &config.display().to_string()])?;
    clock.show(&mut command);
    let filter = Program::start(command)?;
    filter.wait_for_line("ready", SOON)?;
    vendor.answer("/list", list(&GOOD[..2]));
    wait_for_grace(&testbed, 1)?;
    let days = 400 * 86_400;
    // The daemon logs the jump from the time before, in seconds.
    for (offset, jump) in [(days, "345"), (-days, "-691")] {
        clock.set(offset)?;
        eventually(|| {
            let log = filter.stderr();
            let mut lines = log.lines();
            Ok(lines.any(|line| line.contains("[clock-set]") && line.contains(jump)))
        })
        .with_context(|| filter.output())?;
        // Long enough for a check of grace periods and another fetch.
        thread::sleep(Duration::from_secs(3));
        assert_eq!(prefixes(&testbed)?, GOOD[..3], "{offset}");
        let output = filter.output();
        assert!(!output.contains("[list-stale]"), "{offset}: {output}");
    }
    // The removed prefixes of a list that changes now have a grace period of an hour by this clock.
    vendor.answer("/list", list(&GOOD[1..2]));
    wait_for_grace(&testbed, 2)?;
    assert_eq!(prefixes(&testbed)?, GOOD[..3]);
    Ok(())
}
