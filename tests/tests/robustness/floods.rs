//! Clients with too many, too slow or invalid requests: no publish waits for them, and others are answered.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::thread;

use super::*;

/// Returns the memory of a process in KiB, and the number of its descriptors.
fn cost(process: u32) -> anyhow::Result<(u64, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = line
        .and_then(|line| line.split_whitespace().next())
        .context("a size")?;
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd"))?.count();
    Ok((resident.parse()?, descriptors))
}

#[test]
fn a_flood_on_the_socket_blocks_nothing() -> anyhow::Result<()> {
    require_root!();
    let (testbed, config) = prepared()?;
    let filter = start(&testbed, &config)?;
    let socket = testbed.scratch.file("socket");
    let before = cost(filter.id())?;
    let head = |length: usize| {
        format!("POST /v1/add HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")
    };
    let greetings: [Vec<u8>; 6] = [
        Vec::new(),
        b"GET /v1/status HTT".to_vec(),
        b"\0\xff\x16\x03\x01 nonsense\r\n\r\n".to_vec(),
        head(1 << 30).into_bytes(),
        [head(100).as_bytes(), b"{\"entries\": ["].concat(),
        [
            b"GET /v1/status HTTP/1.1\r\nhost: x\r\n".to_vec(),
            b"x-long: y\r\n".repeat(10_000),
        ]
        .concat(),
    ];
    // Three times the number of concurrent connections. Each may be open for 5 to 10 seconds, so the last client waits for
    // all connections before it.
    let mut open = Vec::new();
    for number in 0..200 {
        let Ok(mut stream) = UnixStream::connect(&socket) else {
            continue; // the queue is full, as intended
        };
        stream.set_write_timeout(Some(Duration::from_millis(20)))?;
        let _ = stream.write_all(&greetings[number % greetings.len()]);
        open.push(stream);
    }
    // A client that sends more than the maximum size of a body.
    let mut endless = UnixStream::connect(&socket)?;
    endless.set_write_timeout(Some(Duration::from_millis(200)))?;
    let blanks = vec![b' '; 1 << 16];
    let mut sent = 0;
    if endless.write_all(head(64 << 20).as_bytes()).is_ok() {
        while sent < 64 << 20 && endless.write_all(&blanks).is_ok() {
            sent += blanks.len();
        }
    }
    // Publishes continue while the clients wait.
    for more in ["198.19.0.1", "198.19.0.2"] {
        testbed.scratch.write("list.txt", friends_and(more))?;
        eventually(|| gets_through(&testbed, more))?;
    }
    assert!(gets_through(&testbed, FRIENDS[0])? && !gets_through(&testbed, STRANGERS[0])?);
    let (resident, _) = cost(filter.id())?;
    assert!(
        resident < before.0 + 150_000,
        "{resident} KiB, before {} KiB",
        before.0
    );
    // Idle connections are closed at their time limit.
    eventually(|| {
        Ok(testbed
            .run(&["add", "198.18.0.1", "--service", "web"])?
            .code
            == Some(0))
    })?;
    drop(open);
    drop(endless);
    eventually(|| Ok(cost(filter.id())?.1 <= before.1 + 2))?;
    done(&testbed, &["status"]);
    Ok(())
}

/// Many valid requests at once: each is answered or refused as `busy`.
#[test]
fn concurrent_requests_are_answered_or_refused() -> anyhow::Result<()> {
    require_root!();
    let (testbed, config) = prepared()?;
    let _filter = start(&testbed, &config)?;
    let answers: Vec<Ended> = thread::scope(|scope| {
        let clients: Vec<_> = (0..24)
            .map(|number| {
                let testbed = &testbed;
                scope.spawn(move || {
                    testbed.run(&["add", &format!("198.18.1.{number}"), "--service", "web"])
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|one| one.join().expect("no panic"))
            .collect::<anyhow::Result<_>>()
    })?;
    let accepted = answers.iter().filter(|one| one.code == Some(0)).count();
    assert_eq!(added_in_kernel(&testbed)?.len(), accepted, "{answers:?}");
    assert!(accepted > 12, "{answers:?}");
    Ok(())
}
