//! Sends single datagrams or a stream from allowed and other addresses over a link, and records the received ones.
//!
//! A silent link carries only the test's packets, so counts are exact.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;

use super::{FrameSender, Testbed, eventually, frame};

/// The time to wait for an expected event, long enough for a machine that is busy building.
pub const SOON: Duration = Duration::from_mins(3);
/// The time to wait for a datagram that should not arrive.
pub const NEVER: Duration = Duration::from_millis(200);

/// Addresses that the policies of the tests allow.
pub const FRIENDS: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];
/// Addresses that the policies of the tests do not allow.
pub const STRANGERS: [&str; 2] = ["192.0.2.66", "2001:db8:bad::66"];
/// A port that the policies of the tests protect.
pub const PROTECTED: u16 = 443;
/// A port that the policies of the tests do not protect.
pub const UNPROTECTED: u16 = 9000;

/// Parses a constant address of a test.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Returns the host's address on `eth0` of the same family as `source`, with a port.
pub fn host(source: IpAddr, port: u16) -> SocketAddr {
    let host = if source.is_ipv4() {
        "198.51.100.1"
    } else {
        "2001:db8:1::1"
    };
    SocketAddr::new(ip(host), port)
}

/// Returns the frame of a datagram from `source` to the host.
pub fn datagram(source: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    frame::udp(SocketAddr::new(source, 40_000), host(source, port), payload)
}

/// Binds a socket on the host whose buffer has room for all datagrams of a test.
pub fn inbox(testbed: &Testbed, port: u16) -> anyhow::Result<UdpSocket> {
    const BUFFER: usize = 64 << 20;
    // A child process that another test starts holds this process's sockets between fork and exec, so the port of the
    // previous inbox can still be in use.
    let mut bound = None;
    eventually(|| {
        match testbed
            .host
            .run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))
        {
            Ok(socket) => bound = Some(socket),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error.into()),
        }
        Ok(bound.is_some())
    })?;
    let socket = bound.context("the socket is not bound")?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    socket.set_read_timeout(Some(NEVER))?;
    Ok(socket)
}

/// Receives until no more datagrams arrive, and returns the payloads by sender.
pub fn drain(socket: &UdpSocket) -> anyhow::Result<BTreeMap<IpAddr, Vec<Vec<u8>>>> {
    let mut received = BTreeMap::<_, Vec<_>>::new();
    let mut buffer = [0; 64];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let payloads = received.entry(from.ip().to_canonical()).or_default();
                payloads.push(buffer[..length].to_vec());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(received),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reports whether a socket on the host receives a datagram from `source`.
pub fn gets_through(testbed: &Testbed, source: &str) -> anyhow::Result<bool> {
    let inbox = inbox(testbed, PROTECTED)?;
    FrameSender::new(&testbed.peer, "eth0")?.send(&datagram(ip(source), PROTECTED, b"hello"))?;
    Ok(!drain(&inbox)?.is_empty())
}

/// The minimum number of rounds of a stream.
const FEWEST_ROUNDS: u64 = 100;

/// Numbered datagrams from each address, sent during a task.
pub struct Streamed {
    /// The number of datagrams sent from each address.
    pub rounds: u64,
    /// The numbers of the datagrams that the host received, by address.
    received: BTreeMap<IpAddr, Vec<u64>>,
}

impl Streamed {
    /// Sends datagrams from `sources` while `task` runs.
    pub fn during(
        testbed: &Testbed,
        sources: &[&str],
        task: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        /// Stops the sender also if the task panics; otherwise the scope would wait for the sender forever.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }

        let inbox = inbox(testbed, PROTECTED)?;
        let sender = FrameSender::new(&testbed.peer, "eth0")?;
        let stopped = AtomicBool::new(false);
        let send = || {
            let mut rounds = 0_u64;
            // The task may end before a busy machine has sent enough rounds.
            while !stopped.load(Ordering::Relaxed) || rounds <= FEWEST_ROUNDS {
                for source in sources {
                    sender.send(&datagram(ip(source), PROTECTED, &rounds.to_be_bytes()))?;
                }
                rounds += 1;
                thread::sleep(Duration::from_micros(250));
            }
            anyhow::Ok(rounds)
        };
        let receive = || -> anyhow::Result<BTreeMap<IpAddr, Vec<Vec<u8>>>> {
            let mut received = BTreeMap::<_, Vec<_>>::new();
            loop {
                let is_last = stopped.load(Ordering::Relaxed);
                for (source, mut payloads) in drain(&inbox)? {
                    received.entry(source).or_default().append(&mut payloads);
                }
                if is_last {
                    return Ok(received);
                }
            }
        };
        let (rounds, received) = thread::scope(|scope| {
            let sending = scope.spawn(send);
            // Receives concurrently, because no socket buffer has room for a long stream.
            let receiving = scope.spawn(receive);
            let stop = Stop(&stopped);
            task()?;
            drop(stop);
            let rounds = sending.join().expect("sending does not panic")?;
            let received = receiving.join().expect("receiving does not panic")?;
            anyhow::Ok((rounds, received))
        })?;
        let number = |payload: Vec<u8>| Some(u64::from_be_bytes(payload.try_into().ok()?));
        let received = received
            .into_iter()
            .map(|(source, payloads)| (source, payloads.into_iter().filter_map(number).collect()));
        Ok(Self {
            rounds,
            received: received.collect(),
        })
    }

    /// Returns the numbers of the datagrams received from an address.
    pub fn from(&self, source: &str) -> &[u64] {
        self.received.get(&ip(source)).map_or(&[], Vec::as_slice)
    }

    /// Checks that the filter counted each datagram of two allowed and two other addresses exactly once.
    pub fn check_counted(&self, testbed: &Testbed) -> anyhow::Result<()> {
        let sent = self.rounds * 2;
        let expected = json!({"pass allowed": sent, "drop not-allowed": sent});
        testbed.check_counted("eth0", &expected)
    }

    /// Checks that all datagrams from `always` and none from `never` were received.
    #[track_caller]
    pub fn check(&self, always: &[&str], never: &[&str]) {
        assert!(
            self.rounds > FEWEST_ROUNDS,
            "only {} rounds were sent",
            self.rounds
        );
        for source in always {
            let received = self.from(source);
            let lost: Vec<u64> = (0..self.rounds)
                .filter(|n| received.binary_search(n).is_err())
                .collect();
            assert!(
                lost.is_empty(),
                "{source}: lost {lost:?} of {} datagrams",
                self.rounds
            );
        }
        for source in never {
            assert_eq!(self.from(source), [0; 0], "{source}");
        }
    }
}
