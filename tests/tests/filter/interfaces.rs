//! Several interfaces, and jumbo frames.

use std::sync::Barrier;

use allowlist_tests::lab::{rename, set_mtu};
use allowlist_tests::skip;
use anyhow::ensure;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::*;

/// `web` is protected on eth0 only, `dns` on both interfaces; `list` is read every second.
const CONFIG: &str = r#"
    interfaces = ["eth0", "eth1"]
    [services.web]
    ports = ["udp/443"]
    interfaces = ["eth0"]
    allow = ["list"]
    [services.dns]
    ports = ["udp/53"]
    allow = ["list"]
    [sources.list]
    file = "list.txt"
    every = "1s"
"#;
const DNS: u16 = 53;

/// Returns the first two CPUs on which this process may run.
fn two_cpus() -> anyhow::Result<Option<[usize; 2]>> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut numbers = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    Ok(numbers
        .next()
        .zip(numbers.next())
        .map(|(first, second)| [first, second]))
}

/// Pins this thread to a CPU, so that its packets are decided and counted there.
fn pin_to(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Sends on two interfaces from two CPUs while `task` runs, and returns the rounds on each interface. A round is a datagram
/// from each friend and each stranger to each port.
fn flood(
    testbed: &Testbed,
    cpus: [usize; 2],
    task: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<[u64; 2]> {
    /// Stops the senders also if the task panics; otherwise the scope would wait for them forever.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let stopped = AtomicBool::new(false);
    let both = Barrier::new(2);
    let send = |name: &str, cpu| -> anyhow::Result<u64> {
        pin_to(cpu)?;
        let sender = FrameSender::new(&testbed.peer, name)?;
        let frames: Vec<_> = [FRIENDS[0], FRIENDS[1], STRANGERS[0], STRANGERS[1]]
            .iter()
            .flat_map(|source| {
                [PROTECTED, DNS].map(|port| datagram(ip(source), port, name.as_bytes()))
            })
            .collect();
        let mut rounds = 0;
        both.wait();
        while !stopped.load(Ordering::Relaxed) {
            frames.iter().try_for_each(|frame| sender.send(frame))?;
            rounds += 1;
            thread::sleep(Duration::from_micros(500));
        }
        Ok(rounds)
    };
    thread::scope(|scope| {
        let senders = [("eth0", cpus[0]), ("eth1", cpus[1])]
            .map(|(name, cpu)| scope.spawn(move || send(name, cpu)));
        let stop = Stop(&stopped);
        task()?;
        drop(stop);
        let [first, second] = senders.map(|sender| sender.join().expect("sending does not panic"));
        Ok([first?, second?])
    })
}

fn last_times(status: &Value) -> anyhow::Result<Vec<jiff::Timestamp>> {
    [
        &status["sources"]["list"]["last_passed"],
        &status["services"]["web"]["last_passed"],
        &status["services"]["dns"]["last_passed"],
    ]
    .into_iter()
    .map(|time| Ok(time.as_str().with_context(|| status.to_string())?.parse()?))
    .collect()
}

#[test]
fn counters_of_two_interfaces_are_exact_during_publishes_and_restarts() -> anyhow::Result<()> {
    require_root!();
    let Some(cpus) = two_cpus()? else {
        skip!("needs two CPUs for two concurrent senders");
    };
    let testbed = Testbed::new()?;
    testbed.second_link()?;
    let list = |other: &str| {
        let friends = FRIENDS.join("\n");
        testbed
            .scratch
            .write("list.txt", format!("{friends}\n{other}\n"))
    };
    list("198.18.0.1")?;
    let config = testbed.scratch.write("allowlist.toml", CONFIG)?;
    let config = config.display().to_string();
    let mut filter = testbed.filter(&["--config", &config])?;
    let inboxes = [inbox(&testbed, PROTECTED)?, inbox(&testbed, DNS)?];
    let has = |other: &str| -> anyhow::Result<bool> {
        let list = testbed.json("list")?;
        let mut prefixes = list["prefixes"].as_array().into_iter().flatten();
        Ok(prefixes.any(|entry| entry["prefix"] == format!("{other}/32")))
    };
    let rounds = flood(&testbed, cpus, || {
        for (publish, signal) in [
            ("198.18.0.2", Signal::SIGKILL),
            ("198.18.0.3", Signal::SIGTERM),
        ] {
            list(publish)?;
            eventually(|| has(publish))?;
            filter.stop(signal, SOON)?;
            filter = testbed.filter(&["--config", &config])?;
        }
        Ok(())
    })?;
    let [eth0, eth1] = rounds;
    ensure!(eth0 > 100 && eth1 > 100, "only {rounds:?} rounds");
    check_counted(
        &testbed,
        "eth0",
        &json!({"pass allowed": 4 * eth0, "drop not-allowed": 4 * eth0}),
    )?;
    check_counted(
        &testbed,
        "eth1",
        &json!({"pass allowed": 2 * eth1, "pass default": 4 * eth1, "drop not-allowed": 2 * eth1}),
    )?;

    let status = testbed.json("status")?;
    let bytes = |ports: &[u16], name: &str| -> u64 {
        let frames = FRIENDS.iter().flat_map(|friend| {
            ports
                .iter()
                .map(|port| datagram(ip(friend), *port, name.as_bytes()).len() as u64)
        });
        frames.sum()
    };
    let source = &status["sources"]["list"];
    assert_eq!(source["passed_packets"], 4 * eth0 + 2 * eth1);
    assert_eq!(
        source["passed_bytes"],
        bytes(&[PROTECTED, DNS], "eth0") * eth0 + bytes(&[DNS], "eth1") * eth1
    );
    for (name, packets) in [("web", 2 * eth0), ("dns", 2 * (eth0 + eth1))] {
        let service = &status["services"][name];
        for what in ["passed_packets", "dropped_packets"] {
            assert_eq!(service[what], packets, "{what} of {name}");
        }
    }

    // Exactly the passed datagrams have arrived.
    for (inbox, port) in inboxes.iter().zip([PROTECTED, DNS]) {
        let received = drain(inbox)?;
        for (sources, passes) in [(FRIENDS, true), (STRANGERS, port == PROTECTED)] {
            for source in sources {
                let payloads = received.get(&ip(source)).map_or(&[][..], Vec::as_slice);
                let from = |name: &str| {
                    let arrived = payloads
                        .iter()
                        .filter(|payload| *payload == name.as_bytes());
                    arrived.count() as u64
                };
                let is_friend = FRIENDS.contains(&source);
                let expected = (
                    if is_friend { eth0 } else { 0 },
                    if passes { eth1 } else { 0 },
                );
                assert_eq!((from("eth0"), from("eth1")), expected, "{source} to {port}");
            }
        }
    }

    let before = last_times(&status)?;
    let sender = FrameSender::new(&testbed.peer, "eth0")?;
    for port in [PROTECTED, DNS] {
        sender.send(&datagram(ip(FRIENDS[0]), port, b"eth0"))?;
    }
    eventually(|| {
        let now = last_times(&testbed.json("status")?)?;
        Ok(before.iter().zip(&now).all(|(before, now)| before < now))
    })
}

/// Checks datagrams that fill a jumbo frame, which a driver receives in several buffers.
#[track_caller]
fn check_jumbo(attach_mode: &str) {
    const LENGTH: usize = 8000;
    let jumbo = || -> anyhow::Result<()> {
        let testbed = Testbed::new()?;
        for namespace in [&testbed.host, &testbed.peer] {
            set_mtu(namespace, "eth0", 9000)?;
        }
        let _filter =
            testbed.filter(&[&INLINE_OPTIONS[..], &["--attach-mode", attach_mode]].concat())?;
        assert_eq!(
            testbed.json("status")?["interfaces"],
            json!([{"name": "eth0", "mode": attach_mode, "attached": true}])
        );
        let inbox = inbox(&testbed, PROTECTED)?;
        let sender = FrameSender::new(&testbed.peer, "eth0")?;
        let mut bytes = 0;
        for source in [FRIENDS, STRANGERS].concat() {
            let frame = datagram(ip(source), PROTECTED, &[7; LENGTH]);
            sender.send(&frame)?;
            if FRIENDS.contains(&source) {
                bytes += frame.len();
            }
        }
        let mut received = Vec::new();
        let mut buffer = [0; LENGTH + 1];
        while let Ok((length, from)) = inbox.recv_from(&mut buffer) {
            ensure!(
                buffer[..length] == [7; LENGTH],
                "received {length} other bytes"
            );
            received.push(from.ip().to_canonical());
        }
        assert_eq!(received, FRIENDS.map(ip));
        check_counted(
            &testbed,
            "eth0",
            &json!({"pass allowed": 2, "drop not-allowed": 2}),
        )?;
        assert_eq!(
            testbed.json("status")?["sources"]["cli"]["passed_bytes"],
            bytes
        );
        Ok(())
    };
    jumbo().unwrap_or_else(|error| panic!("{attach_mode}: {error:?}"));
}

#[test]
fn jumbo_frames_are_filtered_in_native_mode() {
    require_root!();
    check_jumbo("native");
}

#[test]
fn jumbo_frames_are_filtered_in_generic_mode() {
    require_root!();
    check_jumbo("generic");
}

/// The services of a name apply to a new interface with that name, while the former one still exists.
#[test]
fn services_apply_to_the_next_interface_with_their_name() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let config = testbed.scratch.write(
        "allowlist.toml",
        r#"
        interfaces = ["eth0"]
        [services.web]
        ports = ["udp/443"]
        interfaces = ["eth0"]
        allow = ["friends"]
        [sources.friends]
        prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
        "#,
    )?;
    let filter = testbed.filter(&["--config", &config.display().to_string()])?;
    assert!(!gets_through(&testbed, STRANGERS[0])?);
    rename(&testbed.host, "eth0", "old0")?;
    rename(&testbed.peer, "eth0", "old0")?;
    testbed.link(
        "eth0",
        ["198.51.102.1/24", "2001:db8:3::1/64"],
        ["198.51.102.2/24", "2001:db8:3::2/64"],
    )?;
    eventually(|| Ok(filter.stderr().matches("eth0: attached").count() == 2))?;
    let sender = FrameSender::new(&testbed.peer, "eth0")?;
    for source in [FRIENDS[0], STRANGERS[0]] {
        sender.send(&datagram(ip(source), PROTECTED, b"hello"))?;
    }
    let counted = || Ok(testbed.json("status")?["services"]["web"]["dropped_packets"] == 2);
    eventually(counted)?; // one packet on each
    Ok(())
}
