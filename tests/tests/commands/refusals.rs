//! What is refused: each with a message that names the thing and what to do, and nothing left behind.

use allowlist_common::abi::VERSION;
use allowlist_tests::lab::Tun;

use super::*;

/// A `run` that fails says why, with what to do, and leaves nothing behind.
#[track_caller]
fn check_failed_run(site: &Testbed, arguments: &[&str], expected: &[&str]) {
    let ended = site
        .run(&[&["run"], arguments].concat())
        .expect("it can be started");
    check_error(&ended, 1, expected);
    for left in [
        site.scratch.pin_dir().join(format!("v{VERSION}")),
        site.scratch.file("socket"),
    ] {
        assert!(!left.exists(), "{} is left: {ended:?}", left.display());
    }
    assert_eq!(xdp_program(site), None, "left on eth0: {ended:?}");
}

/// The id of the program on the host's interface.
fn xdp_program(site: &Testbed) -> Option<u32> {
    site.host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let facts = runtime
            .expect("a runtime")
            .block_on(interface::look_up("eth0"));
        facts.expect("the interface is there").xdp_program
    })
}

#[test]
fn a_wrong_configuration_is_refused() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let service = "[services.web]\nports = ['tcp/443']\nallow = ['office']\n";
    // What is in the file, and what is said of it behind its name.
    let cases = [
        ("interfaces = [", ":1:", &["is not TOML"][..]),
        (
            "interface = ['eth0']\n",
            ":1:1: ",
            &["interface: ", "did you mean `interfaces`?"],
        ),
        (
            &format!("{service}[sources.ofice]\nprefixes = ['192.0.2.1']\n"),
            ":3:10: ",
            &["services.web.allow[0]: ", "did you mean \"ofice\"?"],
        ),
        (
            &format!(
                "{service}[sources.office]\nprefixes = [\n  '192.0.2.1',\n  '203.0.113.9/24',\n]\n"
            ),
            ":7:3: ",
            &[
                "sources.office.prefixes[1]: ",
                "write \"203.0.113.0/24\" for the network",
            ],
        ),
        (
            &format!("{service}[sources.office]\nprovider = 'workatoo'\n"),
            ":5:12: ",
            &["sources.office.provider: ", "did you mean \"workato\"?"],
        ),
        (
            &format!("{service}[sources.office]\nurl = 'http://example.com/'\nformat = 'json'\n"),
            ":5:7: ",
            &["sources.office.url: ", "use https://"],
        ),
        (
            &format!("{service}[sources.office]\nprefixes = []\n"),
            ":5:12: ",
            &["sources.office.prefixes: is empty"],
        ),
        (
            "[services.web]\nports = ['tcp/443']\nallow = []\n",
            ":3:9: ",
            &["services.web.allow: is empty"],
        ),
        (
            "[services.web]\nports = ['tcp/70000']\nallow = []\n",
            ":2:10: ",
            &["services.web.ports[0]: "],
        ),
        (
            "max_prefixes = 0\n",
            ":1:16: ",
            &["max_prefixes: is out of range"],
        ),
    ];
    for (config, place, expected) in cases {
        let path = site
            .scratch
            .write("allowlist.toml", config)?
            .display()
            .to_string();
        let place = format!("error[config-invalid]: {path}{place}");
        let expected: Vec<&str> = [place.as_str()]
            .into_iter()
            .chain(expected.iter().copied())
            .collect();
        check_failed_run(&site, &["--iface", "eth0", "--config", &path], &expected);
    }
    Ok(())
}

/// A `run` whose list cannot be had says why, attaches nothing, and leaves nothing behind when it ends.
#[track_caller]
fn check_waiting_run(site: &Testbed, arguments: &[&str], expected: &str) {
    let arguments = [&["run"], arguments].concat();
    let mut run = Program::start(site.command(&arguments).expect("a command")).expect("it starts");
    let said = run.wait_for_line(expected, SOON);
    said.unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(xdp_program(site), None, "attached: {}", run.output());
    let status = site.run(&["status"]).expect("it runs");
    assert_eq!(status.code, Some(3), "{status:?}");
    let waits = "WAITING for lists of vendor: the configuration is inactive until they are fetched (at_start)";
    assert!(status.stdout.contains(waits), "{status:?}");
    let ended = run.stop(Signal::SIGTERM, SOON).expect("it ends");
    assert!(ended.success(), "{}", run.output());
    for left in [
        site.scratch.pin_dir().join(format!("v{VERSION}")),
        site.scratch.file("socket"),
    ] {
        assert!(
            !left.exists(),
            "{} is left: {}",
            left.display(),
            run.output()
        );
    }
}

#[test]
fn what_cannot_be_had_is_waited_for() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let vendor = site.host.run(|| {
        Vendor::start([
            (
                "/page",
                Answer::html("<!DOCTYPE html><title>Just a moment…</title>"),
            ),
            ("/nobody", Answer::json("[]")),
            ("/empty", Answer::json("")),
            (
                "/truncated",
                Answer::Truncated(br#"["198.18.0.1""#.to_vec()),
            ),
            (
                "/away",
                Answer::Redirect("http://lists.example.com/".to_owned()),
            ),
            (
                "/many",
                Answer::json(r#"["198.18.0.1", "198.18.0.2", "198.18.0.3"]"#),
            ),
        ])
    })?;
    let closed = site.host.run(|| anyhow::Ok(Vendor::start([])?.url("/")))?;
    let missing = site.scratch.file("missing.txt").display().to_string();
    let url = |path| {
        format!(
            "url = '{}'\nformat = 'json'\nallow_special_use = true",
            vendor.url(path)
        )
    };
    let file = |name: &str| format!("file = '{name}'");
    for (source, expected) in [
        (
            url("/page"),
            "got a web page, not a list: \"<!DOCTYPE html>",
        ),
        (url("/nobody"), "names no prefix"),
        (url("/empty"), "is empty"),
        (url("/truncated"), "the answer was cut off after"),
        (
            url("/gone"),
            "the server answered 404 Not Found; the list has moved",
        ),
        (
            url("/away"),
            "redirects to http://lists.example.com/, which is not https",
        ),
        (
            url("/many"),
            "3 prefixes do not fit max_prefixes = 2; nothing was changed; raise max_prefixes",
        ),
        (
            format!("url = '{closed}'\nformat = 'json'"),
            "cannot be reached: tcp connect error: Connection refused",
        ),
        (
            file(&missing),
            "missing.txt: cannot be read: No such file or directory",
        ),
        (
            file("/dev/zero"),
            "/dev/zero: cannot be read as a file: it is a device",
        ),
    ] {
        let config = format!(
            "interfaces = ['eth0']\nmax_prefixes = 2\n[services.web]\nports = ['tcp/443']\n\
             allow = ['vendor']\n[sources.vendor]\n{source}\n"
        );
        let config = site
            .scratch
            .write("allowlist.toml", config)?
            .display()
            .to_string();
        check_waiting_run(&site, &["--config", &config], expected);
        // What came too long is not what the next start begins with either.
        let _ = fs::remove_dir_all(site.scratch.file("state"));
    }
    Ok(())
}

#[test]
fn what_stands_in_the_way_is_named() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let ordinary = site.scratch.file("ordinary").display().to_string();
    let precious = site
        .scratch
        .write("precious", "not a socket")?
        .display()
        .to_string();
    let too_long = site.scratch.file(&"x".repeat(120)).display().to_string();
    let config = site
        .scratch
        .write("allowlist.toml", "")?
        .display()
        .to_string();
    let _tunnel = Tun::new(&site.host, "tun0")?;
    let on_eth0 = |options: &[&'static str]| [&["--iface", "eth0"], &SMALL[..], options].concat();
    for (arguments, expected) in [
        (
            [&["--iface", "eth7"], &SMALL[..]].concat(),
            &["there is no interface \"eth7\"; there are eth0, lo, tun0"][..],
        ),
        (
            [&["--iface", "tun0"], &SMALL[..]].concat(),
            &[
                "tun0 carries no Ethernet frames",
                "filter the interface below it",
            ],
        ),
        (
            SMALL.to_vec(),
            &["no interface is configured", "use --iface"],
        ),
        (vec!["--iface", "eth0", "--port", "tcp/443"], &["--allow: "]),
        (
            vec!["--iface", "eth0", "--allow", "203.0.113.0/24"],
            &["--port: "],
        ),
        (
            on_eth0(&["--provider", "acme"]),
            &["--provider: there is no provider \"acme\"; `allowlist providers` lists"],
        ),
        (
            on_eth0(&["--attach-mode", "offload"]),
            &["cannot attach to eth0: offload mode is refused"],
        ),
        (
            [&on_eth0(&[])[..], &["--config", &config]].concat(),
            &["define a configuration", "use either"],
        ),
        (
            [&on_eth0(&[])[..], &["--pin-dir", &ordinary]].concat(),
            &[
                "/ordinary is not on a BPF file system",
                "choose a --pin-dir under /sys/fs/bpf",
            ],
        ),
        (
            [&on_eth0(&[])[..], &["--pin-dir", "/sys/fs/bpf/a.b"]].concat(),
            &["/sys/fs/bpf/a.b", "no dot in a name"],
        ),
        (
            [&on_eth0(&[])[..], &["--socket", &too_long]].concat(),
            &["xxxxxxxx", "longer than 107 bytes"],
        ),
        (
            [&on_eth0(&[])[..], &["--socket", &precious]].concat(),
            &["/precious", "not a socket"],
        ),
    ] {
        check_failed_run(&site, &arguments, expected);
    }
    assert_eq!(fs::read_to_string(precious)?, "not a socket");
    assert!(!Path::new(&ordinary).exists());
    Ok(())
}

/// Each thing that two instances cannot share.
#[test]
fn a_second_instance_is_refused() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let mut filter = site.filter(&[&["--iface", "eth0", "--keep"], &SMALL[..]].concat())?;
    let program = xdp_program(&site).context("the filter is on eth0")?;
    let before = site.json("list")?;
    let process = format!("in use by process {} (allowlist); ", filter.id());
    let pins = format!(
        "another daemon, process {} (allowlist), uses {}; ",
        filter.id(),
        site.scratch.pin_dir().display()
    );
    let another = format!("eth0 has another XDP program, id {program} (allowlist)");
    let cases = [
        ("--state-dir", process.as_str()),
        ("--socket", "another daemon answers on "),
        ("none", &another),
        ("--pin-dir", &pins),
    ];
    for (shared, expected) in cases {
        let other = Scratch::new()?;
        let mut arguments = vec!["run".into(), "--iface".into(), "eth0".into()];
        arguments.extend(["--allow", "198.18.0.0/15", "--port", "tcp/443"].map(Into::into));
        let own = site.scratch.arguments();
        for (own, other) in own.chunks(2).zip(other.arguments().chunks(2)) {
            arguments.extend_from_slice(if own[0] == shared { own } else { other });
        }
        // Would it start, it must not run for ever.
        let mut second = Program::start(site.command(&arguments)?)?;
        let status = second.wait(SOON);
        let status = status.with_context(|| format!("a second one with the same {shared}"))?;
        let ended = Ended {
            code: status.code(),
            stdout: second.stdout(),
            stderr: second.stderr(),
        };
        check_error(&ended, 1, &[expected]);
        assert!(
            !other.pin_dir().join(format!("v{VERSION}")).exists(),
            "{shared}"
        );
    }
    assert_eq!(site.json("list")?, before);
    let ended = filter.stop(Signal::SIGINT, SOON)?;
    assert!(ended.success(), "{}", filter.output());
    Ok(())
}

#[test]
fn without_privileges_it_says_so() -> anyhow::Result<()> {
    require_root!();
    let home = Home::new()?;
    let run = [&["run", "--iface", "eth0"], &SMALL[..]].concat();
    let own = ["--state-dir", "state", "--socket", "socket"];
    for arguments in [&[&run[..], &own].concat()[..], &["detach"], &run] {
        let ended = home.run_as_nobody(arguments)?;
        check_error(&ended, 1, &["no privileges", "try sudo"]);
    }
    Ok(())
}
