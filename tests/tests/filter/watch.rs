//! `allowlist watch`: its text and JSON for packets that are dropped, and the lease of the reader.

use allowlist_common::abi::{CONTROL, EVENTS};
use allowlist_common::packet::tcp_flag;
use allowlist_dataplane::kernel_clock;
use allowlist_tests::lab::Ended;
use anyhow::ensure;
use aya::maps::{Array, Map, MapData, RingBuf};
use expect_test::expect;
use jiff::{SignedDuration, Timestamp};

use super::*;

/// A closed host with a service, which has all reasons to drop.
const CLOSED: &str = r#"
    interfaces = ["eth0"]
    default = "drop"
    return_traffic = "off"
    keep.arp = false
    keep.not_ip = false
    [services.web]
    ports = ["tcp/443", "udp/443"]
    allow = ["friends"]
    [sources.friends]
    prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
"#;

fn closed(testbed: &Testbed, attach_mode: &str) -> anyhow::Result<Program> {
    let config = testbed.scratch.write("allowlist.toml", CLOSED)?;
    let config = config.display().to_string();
    testbed.filter(&["--config", &config, "--attach-mode", attach_mode])
}

fn map(testbed: &Testbed, name: &str) -> anyhow::Result<Map> {
    let folder = testbed.scratch.pin_dir();
    let path = folder.join(format!("v{}/{name}", allowlist_common::abi::VERSION));
    Ok(Map::from_map_data(MapData::from_pin(path)?)?)
}

/// Reads the deadline until which the kernel sends events, by its monotonic clock; 0 if it sends none.
fn lease(testbed: &Testbed) -> anyhow::Result<Duration> {
    let told: Array<_, [u64; 2]> = map(testbed, CONTROL)?.try_into()?;
    Ok(Duration::from_nanos(told.get(&0, 0)?[1]))
}

/// Starts `allowlist watch`, and returns when the kernel sends events.
fn watch(testbed: &Testbed, options: &[&str]) -> anyhow::Result<Program> {
    let before = lease(testbed)?;
    let watch = Program::start(testbed.command(&[&["watch"], options].concat())?)?;
    eventually(|| Ok(lease(testbed)? > before)).with_context(|| watch.output())?;
    Ok(watch)
}

/// Returns frames that are dropped, with the expected line behind the time, and the expected JSON.
fn dropped() -> Vec<(Vec<u8>, &'static str, Value)> {
    let [v4, v6] = STRANGERS.map(ip);
    let from = |source| SocketAddr::new(source, 40_000);
    let syn = frame::tcp(from(v4), host(v4, PROTECTED), tcp_flag::SYN);
    let reset = frame::tcp(
        from(v6),
        host(v6, UNPROTECTED),
        tcp_flag::RST | tcp_flag::ACK,
    );
    let udp = datagram(v6, PROTECTED, b"hello");
    let tags = [(0x88a8, 0x2000 | 7), (0x8100, 5)];
    vec![
        (
            syn,
            "eth0 192.0.2.66:40000 > 198.51.100.1:443 tcp SYN 54 bytes: not-allowed",
            json!({
                "interface": "eth0", "vlan": null, "source": "192.0.2.66",
                "destination": "198.51.100.1", "source_port": 40_000, "destination_port": 443,
                "protocol": "tcp", "tcp_flags": ["SYN"], "icmp_type": null, "fragment": false,
                "bytes": 54, "reason": "not-allowed",
            }),
        ),
        (
            reset,
            "eth0 [2001:db8:bad::66]:40000 > [2001:db8:1::1]:9000 tcp RST+ACK 74 bytes: default",
            json!({"source": "2001:db8:bad::66", "tcp_flags": ["RST", "ACK"], "reason": "default"}),
        ),
        (
            frame::tagged(udp, &tags),
            "eth0 vlan 7 [2001:db8:bad::66]:40000 > [2001:db8:1::1]:443 udp 75 bytes: not-allowed",
            json!({"vlan": 7, "protocol": "udp", "tcp_flags": null, "bytes": 75}),
        ),
        (
            frame::echo_request(v6, host(v6, 0).ip()),
            "eth0 2001:db8:bad::66 > 2001:db8:1::1 icmpv6 type 128 62 bytes: default",
            json!({"protocol": "icmpv6", "icmp_type": 128, "source_port": null}),
        ),
        (
            frame::later_fragment(v4, host(v4, 0).ip(), 17, &[0; 32]),
            "eth0 192.0.2.66 > 198.51.100.1 udp fragment 66 bytes: fragment",
            json!({"fragment": true, "destination_port": null, "reason": "fragment", "cause": null}),
        ),
        (
            frame::packet(v4, host(v4, 0).ip(), 47, &[0; 4]),
            "eth0 192.0.2.66 > 198.51.100.1 protocol 47 38 bytes: default",
            json!({"protocol": "protocol 47"}),
        ),
        (
            frame::ethernet(0x0800, &[0x45; 10]),
            "eth0 24 bytes: malformed (ip-header)",
            json!({"source": null, "protocol": null, "bytes": 24, "reason": "malformed", "cause": "ip-header"}),
        ),
        (
            frame::tagged(frame::packet(v4, host(v4, 0).ip(), 6, &[0; 19]), &tags),
            "eth0 vlan 7 192.0.2.66 > 198.51.100.1 tcp 61 bytes: malformed (transport-header)",
            json!({
                "vlan": 7, "source": "192.0.2.66", "destination": "198.51.100.1", "source_port": null,
                "protocol": "tcp", "tcp_flags": null, "reason": "malformed", "cause": "transport-header",
            }),
        ),
        (
            frame::packet(v6, host(v6, 0).ip(), 60, &[6, 9, 0, 0, 0, 0, 0, 0]),
            "eth0 2001:db8:bad::66 > 2001:db8:1::1 protocol 60 62 bytes: malformed (extension-header)",
            json!({"source": "2001:db8:bad::66", "protocol": "protocol 60", "cause": "extension-header"}),
        ),
        (
            frame::tagged(
                frame::ethernet(0x88cc, &[0; 46]),
                &[(0x8100, 1), (0x8100, 2), (0x8100, 3)],
            ),
            "eth0 72 bytes: malformed (vlan-depth)",
            json!({"source": null, "cause": "vlan-depth"}),
        ),
        (
            frame::ethernet(0x0806, &[0; 28]),
            "eth0 42 bytes: arp",
            json!({"source": null, "reason": "arp"}),
        ),
        (
            frame::ethernet(0x88cc, &[0; 28]),
            "eth0 42 bytes: not-ip",
            json!({"reason": "not-ip"}),
        ),
    ]
}

/// Sends a friend's datagram, which causes no event, and then the frames.
fn send_all(testbed: &Testbed, cases: &[(Vec<u8>, &str, Value)]) -> anyhow::Result<()> {
    let sender = FrameSender::new(&testbed.peer, "eth0")?;
    sender.send(&datagram(ip(FRIENDS[0]), PROTECTED, b"hello"))?;
    cases.iter().try_for_each(|(frame, ..)| sender.send(frame))
}

/// Checks that a time is close to now.
fn check_time(time: &str) -> anyhow::Result<()> {
    let age = Timestamp::now().duration_since(time.parse()?);
    let tolerance = SignedDuration::from_secs(60);
    ensure!(-tolerance < age && age < tolerance, "{time} is not now");
    Ok(())
}

#[track_caller]
fn check_events(attach_mode: &str) {
    let told = || -> anyhow::Result<()> {
        let testbed = Testbed::new()?;
        let _filter = closed(&testbed, attach_mode)?;
        let cases = dropped();
        let count = cases.len().to_string();

        let mut text = watch(&testbed, &["--count", &count])?;
        send_all(&testbed, &cases)?;
        ensure!(text.wait(SOON)?.success(), "{}", text.output());
        let lines = text.stdout();
        let lines: Vec<_> = lines
            .lines()
            .filter_map(|line| line.split_once(' '))
            .collect();
        let said: Vec<_> = lines.iter().map(|(_, said)| *said).collect();
        let expected: Vec<_> = cases.iter().map(|(_, line, _)| *line).collect();
        assert_eq!(said, expected);
        lines.iter().try_for_each(|(time, _)| check_time(time))?;

        let mut json = watch(&testbed, &["--json", "--count", &count])?;
        send_all(&testbed, &cases)?;
        ensure!(json.wait(SOON)?.success(), "{}", json.output());
        let lines = json.stdout();
        assert_eq!(lines.lines().count(), cases.len(), "{lines}");
        for (line, (_, name, expected)) in lines.lines().zip(&cases) {
            let event: Value = serde_json::from_str(line)?;
            check_time(event["time"].as_str().unwrap_or_default())?;
            for (key, value) in expected.as_object().into_iter().flatten() {
                assert_eq!(&event[key], value, "{key} of {name}: {event}");
            }
        }
        Ok(())
    };
    told().unwrap_or_else(|error| panic!("{attach_mode}: {error:?}"));
}

#[test]
fn each_drop_is_reported_in_native_mode() {
    require_root!();
    check_events("native");
}

#[test]
fn each_drop_is_reported_in_generic_mode() {
    require_root!();
    check_events("generic");
}

/// A part of a flood is shown, and the rest is counted: the sum has all drops.
#[test]
fn a_flood_is_sampled_and_the_rest_counted() -> anyhow::Result<()> {
    /// The number of packets that fit into the queue of a link.
    const BURST: u64 = 100;
    const BURSTS: u64 = 200;
    require_root!();
    let testbed = Testbed::new()?;
    let _filter = testbed.filter(&INLINE_OPTIONS)?;
    let watch = watch(&testbed, &["--json"])?;
    let sender = FrameSender::new(&testbed.peer, "eth0")?;
    let frame = datagram(ip(STRANGERS[0]), PROTECTED, b"hello");
    for _ in 0..BURSTS {
        for _ in 0..BURST {
            sender.send(&frame)?;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let sent = BURST * BURSTS;
    check_counted(&testbed, "eth0", &json!({"drop not-allowed": sent}))?;
    let sums = || -> anyhow::Result<(u64, u64)> {
        let (mut shown, mut suppressed) = (0, 0);
        for line in watch.stdout().lines() {
            let line: Value = serde_json::from_str(line)?;
            match line["suppressed"].as_u64() {
                Some(more) => suppressed += more,
                None => shown += 1,
            }
        }
        Ok((shown, suppressed))
    };
    eventually(|| {
        let (shown, suppressed) = sums()?;
        ensure!(shown + suppressed <= sent, "{shown} and {suppressed}");
        Ok(shown + suppressed == sent)
    })
    .with_context(|| format!("shown and suppressed: {:?}", sums()))?;
    let (shown, suppressed) = sums()?;
    ensure!(shown > 0 && suppressed > shown, "{shown} and {suppressed}");
    Ok(())
}

#[test]
fn a_second_watch_is_refused() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let _filter = testbed.filter(&INLINE_OPTIONS)?;
    let mut first = watch(&testbed, &[])?;
    let second = testbed.run(&["watch"])?;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("error[busy]: "), "{second:?}");
    expect![[r#"
        error[busy]: another `allowlist watch` is running, and only one at a time can read the drop events; end that one first
    "#]].assert_eq(&second.stderr);
    ensure!(
        first.stop(Signal::SIGINT, SOON)?.success(),
        "{}",
        first.output()
    );
    assert_eq!(lease(&testbed)?, Duration::ZERO);
    drop(watch(&testbed, &[])?);
    Ok(())
}

/// The kernel program stops sending events soon after the reader was killed.
#[test]
fn a_killed_watch_ends_its_lease() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let _filter = testbed.filter(&INLINE_OPTIONS)?;
    let sender = FrameSender::new(&testbed.peer, "eth0")?;
    let mut events = RingBuf::try_from(map(&testbed, EVENTS)?)?;
    let mut drop_one = |number: u64| -> anyhow::Result<bool> {
        sender.send(&datagram(ip(STRANGERS[0]), PROTECTED, b"hello"))?;
        check_counted(&testbed, "eth0", &json!({"drop not-allowed": number}))?;
        Ok(events.next().is_some())
    };
    ensure!(!drop_one(1)?, "an event without a reader");
    watch(&testbed, &[])?.stop(Signal::SIGKILL, SOON)?;
    let until = lease(&testbed)?;
    ensure!(until != Duration::ZERO, "the lease has ended");
    // The kernel program uses a coarse clock, which is behind by some milliseconds.
    eventually(|| Ok(kernel_clock() > until + NEVER))?;
    ensure!(!drop_one(2)?, "an event without a reader");
    ensure!(!drop_one(3)?, "an event without a reader");

    // The next `watch` is not affected.
    let mut next = watch(&testbed, &["--count", "1"])?;
    sender.send(&datagram(ip(STRANGERS[1]), PROTECTED, b"hello"))?;
    ensure!(next.wait(SOON)?.success(), "{}", next.output());
    ensure!(next.stdout().contains(STRANGERS[1]), "{}", next.output());
    Ok(())
}

/// `watch` works without a daemon, and ends when the filter is detached.
#[test]
fn watch_needs_no_daemon_and_ends_on_detach() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    testbed
        .filter(&INLINE_OPTIONS)?
        .stop(Signal::SIGTERM, SOON)?;
    let sender = FrameSender::new(&testbed.peer, "eth0")?;
    for (options, last) in [
        (&[][..], expect!["the filter was detached"]),
        (&["--json"], expect![[r#"{"detached":true}"#]]),
    ] {
        let mut watch = watch(&testbed, options)?;
        sender.send(&datagram(ip(STRANGERS[0]), PROTECTED, b"hello"))?;
        watch.wait_for_line(STRANGERS[0], SOON)?;
        testbed.json("detach")?;
        ensure!(watch.wait(SOON)?.success(), "{}", watch.output());
        last.assert_eq(watch.stdout().lines().last().unwrap_or_default());
        let ended: Ended = testbed.run(&["watch"])?;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(
            ended.stderr.contains("error[nothing-attached]: "),
            "{ended:?}"
        );
        testbed
            .filter(&INLINE_OPTIONS)?
            .stop(Signal::SIGTERM, SOON)?;
    }
    Ok(())
}

#[test]
fn observe_mode_reports_drops() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let config = CLOSED.replacen("interfaces", "mode = 'observe'\ninterfaces", 1);
    let config = testbed.scratch.write("allowlist.toml", config)?;
    let _filter = testbed.filter(&["--config", &config.display().to_string()])?;
    let mut watch = watch(&testbed, &["--count", "1"])?;
    assert!(gets_through(&testbed, STRANGERS[0])?);
    ensure!(watch.wait(SOON)?.success(), "{}", watch.output());
    let line = watch.stdout();
    ensure!(
        line.contains("192.0.2.66:40000 > 198.51.100.1:443 udp 47 bytes: not-allowed"),
        "{line}"
    );
    Ok(())
}
