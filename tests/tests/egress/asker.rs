//! A program of the judged cgroup that queries a resolver, and connects to the addresses of the answer: two sockets of the
//! test.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use allowlist_tests::dns_message::query;
use allowlist_tests::lab::{Cgroup, Testbed};
use anyhow::{Context as _, bail};
use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use nix::errno::Errno;

use super::names::SOON;

/// Binds a socket of the cgroup on the host.
pub(super) fn socket(
    testbed: &Testbed,
    cgroup: &Cgroup,
    address: &str,
) -> anyhow::Result<UdpSocket> {
    let address = SocketAddr::new(address.parse()?, 0);
    let socket = cgroup.bind_udp(&testbed.host, address)?;
    socket.set_read_timeout(Some(SOON))?;
    Ok(socket)
}

/// Returns the result of a `connect` to an address: "ok" or "EPERM".
pub(super) fn connect(socket: &UdpSocket, to: Ipv4Addr) -> anyhow::Result<&'static str> {
    match socket.connect((to, 443)) {
        Ok(()) => Ok("ok"),
        Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => Ok("EPERM"),
        Err(error) => bail!("connect to {to}: {error}"),
    }
}

/// A program that queries a resolver on the loopback interface.
pub(super) struct Asker {
    resolver: SocketAddr,
    socket: UdpSocket,
    /// The socket that connects to the addresses.
    probe: UdpSocket,
}

/// The answer to a query: the addresses, and the shortest time to live in seconds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) addresses: Vec<Ipv4Addr>,
    pub(super) ttl: Option<u32>,
}

impl Asker {
    /// Makes the sockets of a program in the cgroup, on the host.
    pub(super) fn new(
        testbed: &Testbed,
        cgroup: &Cgroup,
        resolver: SocketAddr,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            resolver,
            socket: socket(testbed, cgroup, "127.0.0.1")?,
            probe: socket(testbed, cgroup, "198.51.100.1")?,
        })
    }

    /// Queries the resolver for a name, and returns its answer, which may be an error without addresses.
    pub(super) fn ask(&self, name: &str) -> anyhow::Result<Answer> {
        let id = fastrand::u16(..);
        self.socket.send_to(&query(id, name), self.resolver)?;
        let mut buffer = [0; 4096];
        let received = self.socket.recv(&mut buffer);
        let length = received.with_context(|| format!("no answer for {name}"))?;
        let answer = Message::from_vec(&buffer[..length])?;
        let addresses = answer
            .answers
            .iter()
            .filter_map(|record| match record.data {
                RData::A(address) => Some(address.0),
                _ => None,
            });
        Ok(Answer {
            addresses: addresses.collect(),
            ttl: answer.answers.iter().map(|record| record.ttl).min(),
        })
    }

    /// Returns the result of a `connect` to an address: "ok" or "EPERM".
    pub(super) fn connect(&self, to: Ipv4Addr) -> anyhow::Result<&'static str> {
        connect(&self.probe, to)
    }

    /// Queries the resolver for a name, and connects at once to the addresses of the answer; returns the results.
    pub(super) fn resolve(&self, name: &str) -> anyhow::Result<Vec<&'static str>> {
        let addresses = self.ask(name)?.addresses;
        addresses.into_iter().map(|one| self.connect(one)).collect()
    }
}
