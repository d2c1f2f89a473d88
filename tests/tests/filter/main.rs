//! The running filter: datagrams, connections and frames over a link, and the program's reports about them.
//!
//! A silent link carries only the test's packets, so counts are exact.

mod big_tcp;
mod changes;
mod commit_confirm;
mod drivers;
mod identity;
mod interfaces;
mod lifecycle;
mod links;
mod migration;
mod misbehaviour;
mod modes;
mod names;
mod sources;
mod stream;
mod tampering;
mod upgrade;
mod watch;

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use allowlist_common::packet::ICMPV6;
use allowlist_tests::lab::stream::*;
use allowlist_tests::lab::{
    FrameSender, Program, Testbed, add_addresses, bridge, eventually, frame,
};
use allowlist_tests::require_root;
use allowlist_tests::vendor::{Answer, Vendor};
use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::{Value, json};

/// The arguments of a filter without a configuration file that allows `FRIENDS` to reach `PROTECTED`.
const INLINE_OPTIONS: [&str; 11] = [
    "--iface",
    "eth0",
    "--allow",
    "203.0.113.0/24",
    "--allow",
    "2001:db8:7::/48",
    "--port",
    "tcp/443",
    "--port",
    "udp/443",
    "--enforce",
];

/// Reports whether a connection from `source`, an address of the peer, is established in time.
fn connects(
    testbed: &Testbed,
    source: IpAddr,
    port: u16,
    timeout: Duration,
) -> anyhow::Result<bool> {
    let timeout = TimeVal::new(
        timeout.as_secs().cast_signed(),
        timeout.subsec_micros().into(),
    );
    testbed.peer.run(|| {
        let family = match source {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        let client = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // Also the timeout of `connect`.
        setsockopt(&client, sockopt::SendTimeout, &timeout)?;
        bind(
            client.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(source, 0)),
        )?;
        match connect(
            client.as_raw_fd(),
            &SockaddrStorage::from(host(source, port)),
        ) {
            Ok(()) => Ok(true),
            Err(Errno::EINPROGRESS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    })
}

/// Waits until the counters have these values.
fn check_counted(testbed: &Testbed, interface: &str, expected: &Value) -> anyhow::Result<()> {
    testbed.check_counted(interface, expected)
}

/// Checks packets of each kind of sender to each kind of port, by TCP and UDP.
#[track_caller]
fn check_verdicts(attach_mode: &str, mode: &str) {
    verdicts(attach_mode, mode).unwrap_or_else(|error| panic!("{attach_mode}, {mode}: {error:?}"));
}

fn verdicts(attach_mode: &str, mode: &str) -> anyhow::Result<()> {
    let testbed = Testbed::new()?;
    let config = testbed.scratch.write(
        "allowlist.toml",
        format!(
            r#"
            interfaces = ["eth0"]
            mode = "{mode}"
            [services.web]
            ports = ["tcp/443", "udp/443"]
            allow = ["friends"]
            [sources.friends]
            prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
            "#
        ),
    )?;
    let config = config.display().to_string();
    let _filter = testbed.filter(&["--config", &config, "--attach-mode", attach_mode])?;
    let status = testbed.json("status")?;
    assert_eq!(
        status["interfaces"],
        json!([{"name": "eth0", "mode": attach_mode, "attached": true}])
    );
    assert_eq!(
        (&status["mode"], &status["filtering"]),
        (&json!(mode), &json!(mode == "enforce"))
    );

    let senders: Vec<IpAddr> = FRIENDS
        .iter()
        .chain(&STRANGERS)
        .map(|text| ip(text))
        .collect();
    let passes = |source: IpAddr, port| {
        mode == "observe" || port == UNPROTECTED || FRIENDS.map(ip).contains(&source)
    };

    // Datagrams first, because connections cause further packets.
    let sender = FrameSender::new(&testbed.peer, "eth0")?;
    for port in [PROTECTED, UNPROTECTED] {
        let inbox = inbox(&testbed, port)?;
        for &source in &senders {
            sender.send(&datagram(source, port, b"hello"))?;
        }
        let received: Vec<IpAddr> = drain(&inbox)?.into_keys().collect();
        let mut expected = senders.clone();
        expected.retain(|&source| passes(source, port));
        expected.sort_unstable();
        assert_eq!(received, expected, "udp/{port}");
    }
    let expected = json!({"pass allowed": 2, "drop not-allowed": 2, "pass default": 4});
    check_counted(&testbed, "eth0", &expected)?;

    add_addresses(&testbed.peer, "eth0", &senders)?;
    for port in [PROTECTED, UNPROTECTED] {
        let _listener = testbed
            .host
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
        for &source in &senders {
            let expected = passes(source, port);
            let timeout = if expected { SOON } else { NEVER };
            let connects = connects(&testbed, source, port, timeout)?;
            assert_eq!(connects, expected, "{source} to tcp/{port}");
        }
    }
    Ok(())
}

#[test]
fn verdicts_in_native_mode() {
    require_root!();
    check_verdicts("native", "enforce");
}

#[test]
fn verdicts_in_generic_mode() {
    require_root!();
    check_verdicts("generic", "enforce");
}

/// A bridge's driver has no native mode.
#[test]
fn generic_mode_is_the_fallback_and_is_logged() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    bridge(&testbed.host, "br0", &[])?;
    let mut on_bridge = INLINE_OPTIONS;
    on_bridge[1] = "br0";
    let filter = testbed.filter(&on_bridge)?;
    assert_eq!(
        testbed.json("status")?["interfaces"],
        json!([{"name": "br0", "mode": "generic", "attached": true}])
    );
    let warning = "warning[attach-mode]: br0 ";
    assert!(filter.stderr().contains(warning), "{}", filter.output());
    Ok(())
}

#[test]
fn observe_mode_counts_drops() {
    require_root!();
    check_verdicts("native", "observe");
}

#[test]
fn essential_traffic_passes() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let _filter = testbed.filter(&[
        "--iface",
        "eth0",
        "--allow",
        "203.0.113.0/24",
        "--port",
        "any",
        "--enforce",
    ])?;
    let sender = FrameSender::new(&testbed.peer, "eth0")?;
    sender.send(&frame::ethernet(0x0806, &[0; 28]))?;
    let stranger = ip(STRANGERS[1]);
    let mut solicitation = frame::packet(stranger, host(stranger, 0).ip(), ICMPV6, &[135; 24]);
    solicitation[14 + 7] = 255; // the hop limit of packets from the same link
    sender.send(&solicitation)?;
    sender.send(&datagram(stranger, UNPROTECTED, b"hello"))?;
    let expected = json!({"pass arp": 1, "pass neighbour-discovery": 1, "drop not-allowed": 1});
    check_counted(&testbed, "eth0", &expected)?;
    Ok(())
}

#[test]
fn options_replace_a_file() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let _filter = testbed.filter(&[&INLINE_OPTIONS[..], &["--provider", "workato"]].concat())?;
    let workato = "52.5.142.59";
    for (source, expected) in [(FRIENDS[0], true), (workato, true), (STRANGERS[0], false)] {
        assert_eq!(gets_through(&testbed, source)?, expected, "{source}");
    }
    let sources = &testbed.json("status")?["sources"];
    let passed = |name: &str| sources[name]["passed_packets"].clone();
    assert_eq!((passed("cli"), passed("workato")), (json!(1), json!(1)));
    Ok(())
}

/// Without a file, the filter drops packets only with `--enforce`.
#[test]
fn options_without_a_file_observe() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let observing = &INLINE_OPTIONS[..INLINE_OPTIONS.len() - 1];
    let filter = testbed.filter(observing)?;
    assert!(gets_through(&testbed, STRANGERS[0])?, "{}", filter.output());
    let status = testbed.json("status")?;
    assert_eq!(
        (
            &status["mode"],
            &status["as_configured"],
            &status["filtering"]
        ),
        (&json!("observe"), &json!(true), &json!(false))
    );
    assert_eq!(testbed.run(&["status"])?.code, Some(0));
    let _second = restart(&testbed, filter, &INLINE_OPTIONS)?;
    assert!(!gets_through(&testbed, STRANGERS[0])?);
    Ok(())
}

/// The counters of an interface stay if a later start does not configure it.
#[test]
fn interfaces_have_separate_counters() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    testbed.second_link()?;
    let filter = testbed.filter(&[&INLINE_OPTIONS[..], &["--iface", "eth1"]].concat())?;
    let (eth0, eth1) = (
        FrameSender::new(&testbed.peer, "eth0")?,
        FrameSender::new(&testbed.peer, "eth1")?,
    );
    for (sender, source) in [
        (&eth0, FRIENDS[0]),
        (&eth1, FRIENDS[1]),
        (&eth1, STRANGERS[0]),
        (&eth1, STRANGERS[1]),
    ] {
        sender.send(&datagram(ip(source), PROTECTED, b"hello"))?;
    }
    check_counted(&testbed, "eth0", &json!({"pass allowed": 1}))?;
    check_counted(
        &testbed,
        "eth1",
        &json!({"pass allowed": 1, "drop not-allowed": 2}),
    )?;
    let status = testbed.json("status")?;
    assert_eq!(status["sources"]["cli"]["passed_packets"], 2);

    // The next start configures one interface; the other one is detached, and keeps its counters.
    let _second = restart(&testbed, filter, &INLINE_OPTIONS)?;
    assert_eq!(
        testbed.json("status")?["interfaces"],
        json!([{"name": "eth0", "mode": "native", "attached": true}])
    );
    check_counted(
        &testbed,
        "eth1",
        &json!({"pass allowed": 1, "drop not-allowed": 2}),
    )?;
    Ok(())
}

fn restart(testbed: &Testbed, mut filter: Program, arguments: &[&str]) -> anyhow::Result<Program> {
    if !filter.stop(Signal::SIGTERM, SOON)?.success() {
        bail!("the filter failed to stop:\n{}", filter.output());
    }
    testbed.filter(arguments)
}

#[test]
fn tracing_prints_a_line_for_each_packet() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let filter = testbed.filter(&[&INLINE_OPTIONS[..], &["--trace"]].concat())?;
    let sender = FrameSender::new(&testbed.peer, "eth0")?;
    let packets = [
        (
            FRIENDS[0],
            PROTECTED,
            "pass allowed source=203.0.113.7 protocol=17 port-or-type=443",
        ),
        (
            FRIENDS[1],
            PROTECTED,
            "pass allowed source=2001:db8:7::7 protocol=17 port-or-type=443",
        ),
        (
            STRANGERS[0],
            PROTECTED,
            "drop not-allowed source=192.0.2.66 protocol=17 port-or-type=443",
        ),
        (
            STRANGERS[1],
            UNPROTECTED,
            "pass default source=2001:db8:bad::66 protocol=17 port-or-type=9000",
        ),
    ];
    for (source, port, line) in packets {
        sender.send(&datagram(ip(source), port, b"hello"))?;
        filter.wait_for_line(line, SOON)?;
    }
    let echoes = [
        (
            FRIENDS[0],
            "pass default source=203.0.113.7 protocol=1 port-or-type=8",
        ),
        (
            FRIENDS[1],
            "pass default source=2001:db8:7::7 protocol=58 port-or-type=128",
        ),
    ];
    for (source, line) in echoes {
        let destination = host(ip(source), 0).ip();
        sender.send(&frame::echo_request(ip(source), destination))?;
        filter.wait_for_line(line, SOON)?;
    }
    sender.send(&frame::ethernet(0x0806, &[0; 28]))?;
    filter.wait_for_line("pass arp", SOON)?;
    let printed = filter.stderr();
    let lines: Vec<&str> = printed
        .lines()
        .skip_while(|line| !line.contains("source="))
        // The text behind the time of the record.
        .filter_map(|line| Some(line.split_once("Z ")?.1))
        .collect();
    let expected: Vec<&str> = packets
        .iter()
        .map(|(.., line)| *line)
        .chain(echoes.map(|(_, line)| line))
        .chain(["pass arp"])
        .collect();
    assert_eq!(lines, expected);
    Ok(())
}

/// Checks the text of `status`, without its white space.
fn check_status_text(testbed: &Testbed, process: u32) -> anyhow::Result<()> {
    let text = testbed.run(&["status"])?.stdout;
    let words: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let process = process.to_string();
    for expected in [
        &[
            "filtering",
            "eth0",
            "(native),",
            "generation",
            "1;",
            "default",
            "pass",
        ][..],
        &["daemon:", "running,", "process", &process],
        &["eth0", "pass", "allowed", "4"],
        &["eth0", "drop", "not-allowed", "1"],
    ] {
        assert!(
            words.iter().any(|line| line == expected),
            "no {expected:?}:\n{text}"
        );
    }
    Ok(())
}

#[test]
fn reports_agree_with_the_sent_packets() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let config = testbed.scratch.write(
        "allowlist.toml",
        r#"
        interfaces = ["eth0"]
        [services.web]
        ports = ["udp/443"]
        allow = ["vendor", "office"]
        [services.ssh]
        ports = ["udp/22"]
        allow = ["office"]
        [sources.vendor]
        prefixes = ["198.18.0.0/15", "2001:db8:18::/48"]
        [sources.office]
        prefixes = ["198.18.7.0/24"]
        "#,
    )?;
    let filter = testbed.filter(&["--config", &config.display().to_string()])?;
    let sender = FrameSender::new(&testbed.peer, "eth0")?;
    let mut bytes = 0;
    for (source, port) in [
        ("198.18.0.1", 443),
        ("2001:db8:18::1", 443),
        ("198.18.7.1", 443), // in both sources, and counted for both
        ("198.18.7.1", 22),
        ("198.18.0.1", 22), // dropped, and counted for no source
    ] {
        let frame = datagram(ip(source), port, b"hello");
        bytes += frame.len();
        sender.send(&frame)?;
    }
    bytes -= datagram(ip("198.18.0.1"), 22, b"hello").len();

    let entry = |prefix, services: &[&str], sources: &[&str]| json!({"prefix": prefix, "services": services, "sources": sources});
    let expected = json!({"generation": 1, "prefixes": [
        entry("198.18.0.0/15", &["web"], &["vendor"]),
        entry("198.18.7.0/24", &["ssh", "web"], &["office", "vendor"]),
        entry("2001:db8:18::/48", &["web"], &["vendor"]),
    ]});
    assert_eq!(testbed.json("list")?, expected);
    check_counted(
        &testbed,
        "eth0",
        &json!({"pass allowed": 4, "drop not-allowed": 1}),
    )?;
    let status = testbed.json("status")?;
    let passed = |name: &str, what: &str| status["sources"][name][what].clone();
    assert_eq!(
        (
            passed("vendor", "passed_packets"),
            passed("office", "passed_packets")
        ),
        (json!(4), json!(2))
    );
    assert_eq!(passed("vendor", "passed_bytes"), bytes);
    let ssh = &status["services"]["ssh"];
    assert_eq!(
        (&ssh["ports"], &ssh["allow"]),
        (&json!(["udp/22"]), &json!(["office"]))
    );
    let counted = |name: &str| {
        let service = &status["services"][name];
        ["passed_packets", "dropped_packets"].map(|what| service[what].clone())
    };
    assert_eq!(counted("ssh"), [1, 1]);
    assert_eq!(counted("web"), [3, 0]);
    for last in [
        &ssh["last_passed"],
        &status["sources"]["office"]["last_passed"],
    ] {
        assert!(last.is_string(), "{status}");
    }
    assert_eq!(
        (&status["generation"], &status["default"]),
        (&json!(1), &json!("pass"))
    );

    check_status_text(&testbed, filter.id())?;
    let list = testbed.run(&["list"])?.stdout;
    assert!(list.ends_with("\n3 prefixes, generation 1\n"), "{list}");
    Ok(())
}
