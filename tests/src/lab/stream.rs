//! Datagrams that cross a link: from friends and strangers, one or a stream of them, and what arrives.
//!
//! Nothing but what a test sends crosses a link, so counts are exact.

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

/// Long enough for a machine that is busy building.
pub const SOON: Duration = Duration::from_mins(3);
/// Long enough for what does not come.
pub const NEVER: Duration = Duration::from_millis(200);

/// Allowed by every policy of tests that use this.
pub const FRIENDS: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];
/// Allowed by none.
pub const STRANGERS: [&str; 2] = ["192.0.2.66", "2001:db8:bad::66"];
/// A port that every policy here protects.
pub const PROTECTED: u16 = 443;
/// A port that none does.
pub const UNPROTECTED: u16 = 9000;

/// An address of a test.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address of this file")
}

/// The host's address on `eth0`, of the same family.
pub fn host(source: IpAddr, port: u16) -> SocketAddr {
    let host = if source.is_ipv4() {
        "198.51.100.1"
    } else {
        "2001:db8:1::1"
    };
    SocketAddr::new(ip(host), port)
}

/// A datagram's frame from `source` to the host.
pub fn datagram(source: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    frame::udp(SocketAddr::new(source, 40_000), host(source, port), payload)
}

/// A socket of the host with room for all that a test sends.
pub fn inbox(site: &Testbed, port: u16) -> anyhow::Result<UdpSocket> {
    const ROOM: usize = 64 << 20;
    // A process that another test starts has this one's sockets from fork to exec, the last inbox
    // among them, and the port is taken so long.
    let mut bound = None;
    eventually(|| {
        match site
            .host
            .run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))
        {
            Ok(socket) => bound = Some(socket),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error.into()),
        }
        Ok(bound.is_some())
    })?;
    let socket = bound.context("bound, or it would have failed")?;
    setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
    socket.set_read_timeout(Some(NEVER))?;
    Ok(socket)
}

/// What has come, by sender, until nothing more comes.
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

/// Whether the host's socket gets a datagram from `source`.
pub fn gets_through(site: &Testbed, source: &str) -> anyhow::Result<bool> {
    let inbox = inbox(site, PROTECTED)?;
    FrameSender::new(&site.peer, "eth0")?.send(&datagram(ip(source), PROTECTED, b"hello"))?;
    Ok(!drain(&inbox)?.is_empty())
}

/// The rounds that a stream has at least.
const FEWEST_ROUNDS: u64 = 100;

/// Datagrams with running numbers from each address, all the while that a task takes.
pub struct Streamed {
    /// How many were sent from each address.
    pub rounds: u64,
    /// The numbers that the host got, by address.
    received: BTreeMap<IpAddr, Vec<u64>>,
}

impl Streamed {
    /// All the while that `task` takes.
    pub fn during(
        site: &Testbed,
        sources: &[&str],
        task: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        /// Also when the task panics: else the sender would be waited for in vain.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }

        let inbox = inbox(site, PROTECTED)?;
        let sender = FrameSender::new(&site.peer, "eth0")?;
        let stopped = AtomicBool::new(false);
        let send = || {
            let mut rounds = 0_u64;
            // A task may end before a busy machine has sent enough.
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
            // All the while, since no socket has room for a long stream.
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

    /// The numbers that came from an address.
    pub fn from(&self, source: &str) -> &[u64] {
        self.received.get(&ip(source)).map_or(&[], Vec::as_slice)
    }

    /// Of the two friends and two strangers each datagram was counted once, by what became of it.
    pub fn check_counted(&self, site: &Testbed) -> anyhow::Result<()> {
        let sent = self.rounds * 2;
        let expected = json!({"pass allowed": sent, "drop not-allowed": sent});
        site.check_counted("eth0", &expected)
    }

    /// All of these, and nothing of those.
    #[track_caller]
    pub fn check(&self, always: &[&str], never: &[&str]) {
        assert!(
            self.rounds > FEWEST_ROUNDS,
            "{} rounds are no stream",
            self.rounds
        );
        for source in always {
            let received = self.from(source);
            let lost: Vec<u64> = (0..self.rounds)
                .filter(|n| received.binary_search(n).is_err())
                .collect();
            assert!(
                lost.is_empty(),
                "of {} from {source} these were lost: {lost:?}",
                self.rounds
            );
        }
        for source in never {
            assert_eq!(self.from(source), [0; 0], "{source}");
        }
    }
}
