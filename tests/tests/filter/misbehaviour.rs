//! Vendors and name servers that fail in every way that real ones did, while the filter runs: the table stays
//! what it was, and what is said tells what to do.

use allowlist_tests::lab::WallClock;
use allowlist_tests::name_server::{NameServer, Reply};

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

fn prefixes(site: &Site) -> anyhow::Result<Vec<String>> {
    let list = site.json("list")?;
    let entries = list["prefixes"]
        .as_array()
        .context("prefixes is an array")?;
    let prefixes = entries.iter().filter_map(|entry| entry["prefix"].as_str());
    Ok(prefixes.map(str::to_owned).collect())
}

/// Waits until status gives this as the reason why the source has no newer list.
fn fails_with(site: &Site, expected: &str) -> anyhow::Result<()> {
    let mut last = Value::Null;
    eventually(|| {
        last = site.json("status")?["sources"]["vendor"]["failure"].clone();
        Ok(last
            .as_str()
            .is_some_and(|failure| failure.contains(expected)))
    })
    .with_context(|| format!("{expected:?}, not {last}"))
}

/// What the vendor answers now, what is said of it (which names the case), and what to do.
#[expect(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<(Answer, &'static str, &'static str)> {
    let utf_16: Vec<u8> = "\u{feff}[\"198.18.0.1\"]"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let plain = |text: &str| Answer::Body("text/plain", text.as_bytes().to_vec());
    let status = |status| Answer::Full(status, Vec::new(), b"<html>no</html>".to_vec());
    vec![
        (
            Answer::html("<!DOCTYPE html><title>Just a moment...</title>"),
            "got a web page, not a list",
            "use the address of the list itself",
        ),
        (plain(""), "is empty", "check where it comes from"),
        (
            plain("# merged into another list\n"),
            "is not JSON",
            "the text starts with",
        ),
        (
            Answer::json("[]"),
            "names no prefix",
            "check where it comes from",
        ),
        (
            Answer::json(r#"{"Temporarily": "Broken"}"#),
            "$.Temporarily: \"Broken\" is not a prefix",
            "write one such as",
        ),
        (
            Answer::json(r#"["131.0.72.0/222400:cb00::/32"]"#),
            "run together",
            "separate them",
        ),
        (
            Answer::json(r#"["198.18.0.9/24"]"#),
            "has host bits set",
            "write \"198.18.0.0/24\" for the network",
        ),
        (
            Answer::json(r#"["198.18.0.01"]"#),
            "$[0]: \"198.18.0.01\" is not a prefix",
            "write one such as",
        ),
        (
            Answer::json(r#"["198.18.0.1", "198.18."#),
            "breaks off after 23 bytes",
            "try again",
        ),
        (
            Answer::Body("text/plain", utf_16),
            "is not text",
            "it has to be plain UTF-8",
        ),
        (
            Answer::Body("text/plain", b"[\"caf\xe9\"]".to_vec()),
            "it is not UTF-8",
            "it has to be plain UTF-8",
        ),
        (
            Answer::Truncated(br#"["198.18.0.1""#.to_vec()),
            "the answer broke off after",
            "nothing of it is used: try again",
        ),
        (
            Answer::CutChunks(br#"["198.18.0.1"]"#.to_vec()),
            "nothing of it is used",
            "try again",
        ),
        (
            Answer::CutGzip(br#"["198.18.0.1"]"#.repeat(99)),
            "nothing of it is used",
            "try again",
        ),
        (
            Answer::Endless,
            "is larger than 65536 bytes",
            "raise `max_size`",
        ),
        (
            Answer::Gzip(vec![b' '; 4 << 20]),
            "is larger than 65536 bytes",
            "raise `max_size`",
        ),
        (
            Answer::Silence,
            "no complete answer within 700ms",
            "raise `timeout`",
        ),
        (
            Answer::Drip,
            "no complete answer within 700ms",
            "raise `timeout`",
        ),
        (
            Answer::Noise,
            "invalid HTTP version parsed",
            "check the URL",
        ),
        (
            Answer::Redirect("/list".to_owned()),
            "redirects more than 5 times",
            "configure the final address",
        ),
        (
            Answer::Redirect("http://lists.example.com/".to_owned()),
            "which is not https",
            "configure the https address",
        ),
        (status(401), "401", "set `bearer_file`"),
        (status(403), "403", "and whether the vendor blocks"),
        (status(404), "404 Not Found", "look for its new address"),
        (status(410), "410 Gone", "look for its new address"),
        (status(429), "429", "raise `every`"),
        (status(500), "500", "try again later"),
        (status(204), "204", "check the URL"),
        (status(206), "206", "check the URL"),
        // What is a list, and still is not taken.
        (
            list(&GOOD[..2]),
            "6 prefixes less, and with them 71 % of the IPv4 addresses",
            "`allowlist accept vendor` lets it in",
        ),
        (
            list(&["9.9.9.9"]),
            "has 1 prefixes, and at least 2 are expected",
            "lower `min`",
        ),
        (
            list(&[&GOOD[..], &["8.0.0.0/7"]].concat()),
            "has 8.0.0.0/7, which is wider than /8",
            "set `min_prefix_len`",
        ),
        (
            list(&GOOD[1..]),
            "does not cover 198.18.0.1/32, as `must_cover` demands",
            "change `must_cover`",
        ),
    ]
}

#[test]
fn no_answer_of_a_vendor_makes_the_table_worse() -> anyhow::Result<()> {
    require_root!();
    let cases = cases();
    assert!(cases.len() >= 25);
    // Each case waits for the vendor to be asked twice: four hosts wait at once.
    thread::scope(|scope| {
        let hosts: Vec<_> = cases
            .chunks(cases.len().div_ceil(4))
            .map(|cases| scope.spawn(|| play(cases)))
            .collect();
        for host in hosts {
            match host.join() {
                Ok(played) => played?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
}

/// On a host of its own.
fn play(cases: &[(Answer, &str, &str)]) -> anyhow::Result<()> {
    let site = Site::new()?;
    let vendor = site.host.run(|| Vendor::start([("/list", list(&GOOD))]))?;
    let config = format!(
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['vendor']\n\
         [sources.vendor]\nurl = '{}'\nformat = 'json'\nevery = '1s'\ngrace = '0s'\ntimeout = '700ms'\n\
         max_size = '64KiB'\nmin = 2\nmust_cover = ['198.18.0.1']\nallow_special_use = true\n",
        vendor.url("/list")
    );
    let config = site.scratch.write("allowlist.toml", config)?;
    let config = config.display().to_string();
    let mut filter = site.filter(&["--config", &config])?;
    for (answer, said, remedy) in cases {
        vendor.answer("/list", answer.clone());
        fails_with(&site, said)?;
        fails_with(&site, remedy)?;
        assert_eq!(prefixes(&site)?, GOOD, "{said}");
        // And the next case is told from this one.
        vendor.answer("/list", list(&GOOD));
        eventually(|| Ok(site.json("status")?["sources"]["vendor"]["failure"].is_null()))?;
    }
    assert!(gets_through(&site, "198.18.0.7")?);
    assert!(!gets_through(&site, STRANGERS[0])?);
    // Nor does a start while the vendor is gone.
    drop(vendor);
    filter.stop(Signal::SIGKILL, SOON)?;
    let _filter = site.filter(&["--config", &config])?;
    assert_eq!(prefixes(&site)?, GOOD);
    assert_eq!(
        site.json("status")?["generation"],
        2,
        "nothing but the two starts was published"
    );
    Ok(())
}

#[test]
fn a_vendor_is_asked_only_for_what_is_new() -> anyhow::Result<()> {
    require_root!();
    let site = Site::new()?;
    let body = json!(GOOD).to_string().into_bytes();
    let version = |etag, body: &[u8]| Answer::Version(Some(etag), None, body.to_vec());
    let vendor = site
        .host
        .run(|| Vendor::start([("/list", version("\"1\"", &body))]))?;
    let config = format!(
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['vendor']\n\
         [sources.vendor]\nurl = '{}'\nformat = 'json'\nevery = '1s'\nallow_special_use = true\n",
        vendor.url("/list")
    );
    let config = site
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
    let filter = site.filter(&["--config", &config])?;
    eventually(|| Ok(asked("\"1\"") >= 2))?;
    assert!(site.json("status")?["sources"]["vendor"]["failure"].is_null());
    // A list that is refused is asked for as a whole again.
    vendor.answer("/list", version("\"2\"", br#"["198.18.0.1"]"#));
    fails_with(&site, "7 prefixes less")?;
    assert_eq!(asked("\"2\""), 0);
    drop(filter);
    // Another start goes on where the last one was.
    vendor.answer("/list", version("\"1\"", &body));
    let before = asked("\"1\"");
    let _filter = site.filter(&["--config", &config])?;
    eventually(|| Ok(asked("\"1\"") > before))?;
    assert_eq!(prefixes(&site)?, GOOD);
    Ok(())
}

#[test]
fn names_that_fail_keep_their_addresses() -> anyhow::Result<()> {
    require_root!();
    let site = Site::new()?;
    let name = "hooks.vendor.example";
    let good = Reply::records([
        "hooks.vendor.example 1 CNAME lb.vendor.example",
        "lb.vendor.example 1 A 198.18.0.1",
        "lb.vendor.example 1 AAAA 2001:db8:18::1",
    ]);
    let server = site
        .host
        .run(|| NameServer::start([(name, good.clone())]))?;
    let config = format!(
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['vendor']\n\
         [sources.vendor]\nnames = ['{name}']\nresolvers = ['{}']\nevery = '1s'\nttl_floor = '1s'\n\
         timeout = '700ms'\ngrace = '1h'\nallow_special_use = true\n",
        server.address()
    );
    let config = site
        .scratch
        .write("allowlist.toml", config)?
        .display()
        .to_string();
    let filter = site.filter(&["--config", &config])?;
    let both = ["198.18.0.1/32", "2001:db8:18::1/128"];
    assert_eq!(prefixes(&site)?, both);
    for (reply, said) in [
        (Reply::NoSuchName, "does not exist; check its spelling"),
        (Reply::ServerFailure, "hooks.vendor.example"),
        (Reply::Silence, "no answer for its"),
        (Reply::Garbage, "no answer for its"),
        (
            Reply::records(["hooks.vendor.example 1 CNAME hooks.vendor.example"]),
            "hooks.vendor.example",
        ),
    ] {
        server.reply(name, reply);
        fails_with(&site, said)?;
        assert_eq!(prefixes(&site)?, both, "{said}");
        server.reply(name, good.clone());
        eventually(|| Ok(site.json("status")?["sources"]["vendor"]["failure"].is_null()))?;
    }
    // Answers that take turns are all active, for longer than they are away.
    let turn = |host: u8| vec![format!("{name} 1 A 198.18.1.{host}")];
    server.reply(name, Reply::Rotating(vec![turn(1), turn(2), turn(3)]));
    let turns = [
        both[0],
        "198.18.1.1/32",
        "198.18.1.2/32",
        "198.18.1.3/32",
        both[1],
    ];
    eventually(|| Ok(prefixes(&site)? == turns))?;
    let generation = site.json("status")?["generation"].clone();
    let fetched = || anyhow::Ok(site.json("status")?["sources"]["vendor"]["fetched"].clone());
    for _ in 0..3 {
        let before = fetched()?;
        eventually(|| Ok(fetched()? != before))?;
    }
    assert_eq!(prefixes(&site)?, turns);
    assert_eq!(
        site.json("status")?["generation"],
        generation,
        "nothing flaps"
    );
    assert!(gets_through(&site, "198.18.1.2")?);
    drop(filter);
    Ok(())
}

#[test]
fn a_clock_that_is_set_lets_nothing_go() -> anyhow::Result<()> {
    require_root!();
    let site = Site::new()?;
    let vendor = site
        .host
        .run(|| Vendor::start([("/list", list(&GOOD[..3]))]))?;
    let config = format!(
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['vendor']\n\
         [sources.vendor]\nurl = '{}'\nformat = 'json'\nevery = '1s'\ngrace = '1h'\nmax_age = '1day'\n\
         allow_special_use = true\n",
        vendor.url("/list")
    );
    let config = site.scratch.write("allowlist.toml", config)?;
    let clock = WallClock::new(&site.scratch)?;
    let mut command = site.command(&["run", "--config", &config.display().to_string()])?;
    clock.show(&mut command);
    let filter = Program::start(command)?;
    filter.wait_for_line("ready", SOON)?;
    vendor.answer("/list", list(&GOOD[..2]));
    filter.wait_for_line("(1 more until their grace period is over)", SOON)?;
    let days = 400 * 86_400;
    for (offset, said) in [
        (days, "the clock was set by 345"),
        (-days, "the clock was set by -691"),
    ] {
        clock.set(offset)?;
        filter.wait_for_line(said, SOON)?;
        // Long enough for a look at what is held, and for another fetch.
        thread::sleep(Duration::from_secs(3));
        assert_eq!(prefixes(&site)?, GOOD[..3], "{offset}");
        let output = filter.output();
        assert!(!output.contains("its list is of"), "{offset}: {output}");
    }
    // And a list that changes now is held for an hour of this clock.
    vendor.answer("/list", list(&GOOD[1..2]));
    filter.wait_for_line("(2 more until their grace period is over)", SOON)?;
    assert_eq!(prefixes(&site)?, GOOD[..3]);
    Ok(())
}
