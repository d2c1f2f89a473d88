//! Refused commands: the error names the object and the remedy, and the command leaves nothing behind.

use allowlist_common::abi::VERSION;
use allowlist_tests::lab::{Tun, eventually, normalized};

use super::*;

/// Requires that `run` fails with an error code, and that it leaves nothing behind.
#[track_caller]
fn check_failed_run(site: &Testbed, arguments: &[&str], code: &str) -> Ended {
    let ended = site
        .run(&[&["run"], arguments].concat())
        .expect("the program starts");
    check_error(&ended, code);
    check_nothing_left(site, &format!("{ended:?}"));
    ended
}

/// Requires that there are no pins, no socket and no XDP program.
#[track_caller]
fn check_nothing_left(site: &Testbed, output: &str) {
    for path in [
        site.scratch.pin_dir().join(format!("v{VERSION}")),
        site.scratch.file("socket"),
    ] {
        assert!(!path.exists(), "{} is left: {output}", path.display());
    }
    assert_eq!(xdp_program(site), None, "left on eth0: {output}");
}

/// Returns the id of the XDP program on the host's interface.
fn xdp_program(site: &Testbed) -> Option<u32> {
    site.host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let info = runtime
            .expect("a runtime")
            .block_on(interface::look_up("eth0"));
        info.expect("the interface exists").xdp_program
    })
}

#[test]
fn run_refuses_an_invalid_configuration() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let service = "[services.web]\nports = ['tcp/443']\nallow = ['office']\n";
    let mut snapshot = Snapshot::new();
    for (title, config) in [
        ("not TOML", "interfaces = ["),
        ("an unknown key", "interface = ['eth0']\n"),
        (
            "an unknown source",
            &format!("{service}[sources.ofice]\nprefixes = ['192.0.2.1']\n"),
        ),
        (
            "host bits",
            &format!(
                "{service}[sources.office]\nprefixes = [\n  '192.0.2.1',\n  '203.0.113.9/24',\n]\n"
            ),
        ),
        (
            "an unknown provider",
            &format!("{service}[sources.office]\nprovider = 'workatoo'\n"),
        ),
        (
            "http",
            &format!("{service}[sources.office]\nurl = 'http://example.com/'\nformat = 'json'\n"),
        ),
        (
            "no prefixes",
            &format!("{service}[sources.office]\nprefixes = []\n"),
        ),
        (
            "no sources",
            "[services.web]\nports = ['tcp/443']\nallow = []\n",
        ),
        (
            "not a port",
            "[services.web]\nports = ['tcp/70000']\nallow = []\n",
        ),
        ("max_prefixes = 0", "max_prefixes = 0\n"),
    ] {
        let path = site
            .scratch
            .write("allowlist.toml", config)?
            .display()
            .to_string();
        let arguments = ["--iface", "eth0", "--config", &path];
        let ended = check_failed_run(&site, &arguments, "config-invalid");
        snapshot.ended(title, &ended, Some(&site.scratch));
    }
    snapshot.check(&expect_file!["snapshots/refused_configurations.txt"]);
    Ok(())
}

/// Requires that `run` waits for the list of `vendor` and attaches nothing, and that it leaves nothing behind when it
/// ends.
///
/// Returns the record of the log, and the lines of `status` about the source.
#[track_caller]
fn check_waiting_run(site: &Testbed, arguments: &[&str], code: &str) -> String {
    let arguments = [&["run"], arguments].concat();
    let mut run = Program::start(site.command(&arguments).expect("a command")).expect("it starts");
    let warning = run.wait_for_line("source vendor: ", SOON);
    let warning = warning.unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(xdp_program(site), None, "attached: {}", run.output());
    // The failure appears in `status` after it was logged.
    let has_code = || Ok(site.json("status")?["sources"]["vendor"]["failure_code"] == code);
    eventually(has_code).unwrap_or_else(|error| panic!("{code}: {error}: {}", run.output()));
    let status = site.run(&["status"]).expect("it runs");
    assert_eq!(status.code, Some(3), "{status:?}");
    let ended = run.stop(Signal::SIGTERM, SOON).expect("it ends");
    assert!(ended.success(), "{}", run.output());
    check_nothing_left(site, &run.output());
    let lines = status
        .stdout
        .lines()
        .filter(|line| line.contains("vendor:"));
    let lines: Vec<_> = lines.collect();
    format!("{warning}\n--- status\n{}", lines.join("\n"))
}

#[test]
fn run_waits_for_a_list_that_cannot_be_fetched() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let vendor = site.host.run(|| {
        Vendor::start([
            (
                "/page",
                Answer::html("<!DOCTYPE html><title>Just a moment…</title>"),
            ),
            ("/none", Answer::json("[]")),
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
    let mut snapshot = Snapshot::new();
    for (title, source, code) in [
        ("a web page", url("/page"), "list-is-web-page"),
        ("no prefixes", url("/none"), "list-empty"),
        ("an empty answer", url("/empty"), "list-empty"),
        ("a truncated answer", url("/truncated"), "incomplete"),
        ("status 404", url("/gone"), "http-status"),
        ("a redirect to http", url("/away"), "redirect-refused"),
        ("more prefixes than fit", url("/many"), "too-many-prefixes"),
        (
            "a closed port",
            format!("url = '{closed}'\nformat = 'json'"),
            "unreachable",
        ),
        ("a missing file", file(&missing), "file-unreadable"),
        ("a device", file("/dev/zero"), "file-unreadable"),
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
        let output = check_waiting_run(&site, &["--config", &config], code);
        snapshot.text(title, &output, Some(&site.scratch));
        // A list with too many prefixes is no last-good list of the next start either.
        let _ = fs::remove_dir_all(site.scratch.file("state"));
    }
    snapshot.check(&expect_file!["snapshots/waiting.txt"]);
    Ok(())
}

#[test]
fn run_names_the_obstacle() -> anyhow::Result<()> {
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
    let mut snapshot = Snapshot::new();
    for (arguments, code) in [
        (
            [&["--iface", "eth7"], &SMALL[..]].concat(),
            "unknown-interface",
        ),
        (
            [&["--iface", "tun0"], &SMALL[..]].concat(),
            "unsupported-interface",
        ),
        (SMALL.to_vec(), "no-interface"),
        (
            vec!["--iface", "eth0", "--port", "tcp/443"],
            "config-invalid",
        ),
        (
            vec!["--iface", "eth0", "--allow", "203.0.113.0/24"],
            "config-invalid",
        ),
        (on_eth0(&["--provider", "acme"]), "config-invalid"),
        (
            [&on_eth0(&[])[..], &["--config", &config]].concat(),
            "invalid-request",
        ),
        (
            [&on_eth0(&[])[..], &["--pin-dir", &ordinary]].concat(),
            "invalid-pin-dir",
        ),
        (
            [&on_eth0(&[])[..], &["--pin-dir", "/sys/fs/bpf/a.b"]].concat(),
            "invalid-pin-dir",
        ),
        (
            [&on_eth0(&[])[..], &["--socket", &too_long]].concat(),
            "invalid-socket",
        ),
        (
            [&on_eth0(&[])[..], &["--socket", &precious]].concat(),
            "invalid-socket",
        ),
    ] {
        let ended = check_failed_run(&site, &arguments, code);
        let title = normalized(&arguments.join(" "), Some(&site.scratch));
        snapshot.ended(&title, &ended, Some(&site.scratch));
    }
    snapshot.check(&expect_file!["snapshots/refused_runs.txt"]);
    // The kernel's reason is not a part of the snapshot.
    let offload = on_eth0(&["--attach-mode", "offload"]);
    let ended = check_failed_run(&site, &offload, "attach-failed");
    for name in ["eth0", "offload"] {
        assert!(ended.stderr.contains(name), "{ended:?}");
    }
    assert_eq!(fs::read_to_string(precious)?, "not a socket");
    assert!(!Path::new(&ordinary).exists());
    Ok(())
}

/// Two instances share one directory, the socket or the interface.
#[test]
fn a_second_instance_is_refused() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let mut filter = site.filter(&[&["--iface", "eth0", "--keep"], &SMALL[..]].concat())?;
    let program = xdp_program(&site).context("the filter is on eth0")?;
    let before = site.json("list")?;
    let process = format!("process {} (allowlist)", filter.id());
    let pins = site.scratch.pin_dir().display().to_string();
    let program = format!("id {program} (allowlist)");
    let mut snapshot = Snapshot::new();
    for (shared, code, names) in [
        ("--state-dir", "already-running", &[process.as_str()][..]),
        ("--socket", "already-running", &[]),
        ("none", "interface-in-use", &["eth0", &program]),
        ("--pin-dir", "already-running", &[&process, &pins]),
    ] {
        let other = Scratch::new()?;
        let mut arguments = vec!["run".into(), "--iface".into(), "eth0".into()];
        arguments.extend(["--allow", "198.18.0.0/15", "--port", "tcp/443"].map(Into::into));
        let own = site.scratch.arguments();
        for (own, other) in own.chunks(2).zip(other.arguments().chunks(2)) {
            arguments.extend_from_slice(if own[0] == shared { own } else { other });
        }
        // A second instance that starts nevertheless runs until the deadline.
        let mut second = Program::start(site.command(&arguments)?)?;
        let status = second.wait(SOON);
        let status = status.with_context(|| format!("a second one with the same {shared}"))?;
        let ended = Ended {
            code: status.code(),
            stdout: second.stdout(),
            stderr: second.stderr(),
        };
        check_error(&ended, code);
        for name in names {
            assert!(ended.stderr.contains(name), "{name}: {ended:?}");
        }
        snapshot.ended(&format!("shared: {shared}"), &ended, Some(&site.scratch));
        assert!(
            !other.pin_dir().join(format!("v{VERSION}")).exists(),
            "{shared}"
        );
    }
    snapshot.check(&expect_file!["snapshots/second_instance.txt"]);
    assert_eq!(site.json("list")?, before);
    let ended = filter.stop(Signal::SIGINT, SOON)?;
    assert!(ended.success(), "{}", filter.output());
    Ok(())
}

#[test]
fn run_and_detach_need_privileges() -> anyhow::Result<()> {
    require_root!();
    let home = Home::new()?;
    let run = [&["run", "--iface", "eth0"], &SMALL[..]].concat();
    let own = ["--state-dir", "state", "--socket", "socket"];
    let mut snapshot = Snapshot::new();
    for arguments in [&[&run[..], &own].concat()[..], &["detach"], &run] {
        let ended = home.run_as_nobody(arguments)?;
        check_error(&ended, "not-privileged");
        snapshot.ended(&arguments.join(" "), &ended, None);
    }
    snapshot.check(&expect_file!["snapshots/no_privileges.txt"]);
    Ok(())
}
