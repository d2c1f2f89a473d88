//! Sends each packet, one after the other, and watches the kernel's counters and the host's sockets.
//!
//! Invariant: what it observes of a packet is of that packet alone. That holds because nothing else
//! crosses the link, and because the host ends a connection, so that no packet of it comes later.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use allowlist_common::verdict::Verdict;
use anyhow::Context;
use libc::linger;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use super::counters;
use super::fixtures::{Decision, Packet, Port, SSH, UNPROTECTED, WEBHOOKS};
use super::topology::{Topology, host_address};

/// A packet that is neither counted nor delivered by then is lost.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// How long a packet that was counted as dropped has to turn up at the socket nevertheless.
const GRACE: Duration = Duration::from_millis(3);
/// How often to look.
const POLL: Duration = Duration::from_micros(200);

/// What became of a packet.
pub(crate) struct Observed {
    pub(crate) packet: Packet,
    /// What the kernel counted; nothing, or several things, when something is wrong.
    pub(crate) decisions: Vec<Decision>,
    /// Whether a socket of the host got it.
    pub(crate) delivered: bool,
}

impl Observed {
    /// What the kernel decided, if it decided one thing.
    pub(crate) fn decision(&self) -> Option<Decision> {
        match self.decisions[..] {
            [decision] => Some(decision),
            _ => None,
        }
    }
}

/// Sends `packets` from the internet to the host.
pub(crate) fn send_all(topology: &Topology, packets: Vec<Packet>) -> anyhow::Result<Vec<Observed>> {
    let sockets = topology
        .host
        .run(Sockets::open)
        .context("cannot listen on the host")?;
    topology.internet.run(|| {
        let observe = |packet| observe(packet, topology, &sockets);
        packets.into_iter().map(observe).collect()
    })
}

fn observe(packet: Packet, topology: &Topology, sockets: &Sockets) -> anyhow::Result<Observed> {
    let before = topology.counters()?;
    let decisions = || Ok::<_, anyhow::Error>(counters::between(&before, &topology.counters()?));
    // Open until the outcome is known, and closed before an attempt to connect is repeated.
    let sender = send(&packet).with_context(|| format!("cannot send from {}", packet.source))?;

    let mut deadline = Instant::now() + LOST_AFTER;
    let mut dropped = false;
    let mut delivered = false;
    while !delivered && Instant::now() < deadline {
        thread::sleep(POLL);
        delivered = sockets.received(&packet)?;
        if !dropped
            && decisions()?
                .iter()
                .any(|decision| decision.verdict == Verdict::Drop)
        {
            dropped = true;
            deadline = Instant::now() + GRACE;
        }
    }
    let decisions = decisions()?;
    drop(sender);
    Ok(Observed {
        packet,
        decisions,
        delivered,
    })
}

/// Sends a datagram or begins to connect, from the packet's very address.
fn send(packet: &Packet) -> io::Result<OwnedFd> {
    let source = SocketAddr::new(packet.source, 0);
    match packet.port {
        Port::Udp(port) => {
            let sender = UdpSocket::bind(source)?;
            sender.send_to(b"hello", host_address(packet.source, port))?;
            Ok(sender.into())
        }
        Port::Tcp(port) => {
            let family = match packet.source {
                IpAddr::V4(_) => AddressFamily::Inet,
                IpAddr::V6(_) => AddressFamily::Inet6,
            };
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let sender = socket(family, SockType::Stream, flags, None)?;
            bind(sender.as_raw_fd(), &SockaddrStorage::from(source))?;
            let host = SockaddrStorage::from(host_address(packet.source, port));
            match connect(sender.as_raw_fd(), &host) {
                Ok(()) | Err(Errno::EINPROGRESS) => Ok(sender),
                Err(error) => Err(error.into()),
            }
        }
    }
}

/// The host's sockets, one for each port.
struct Sockets(Vec<(Port, Receiver)>);

enum Receiver {
    Connections(TcpListener),
    Datagrams(UdpSocket),
}

impl Sockets {
    fn open() -> io::Result<Self> {
        let ports = [WEBHOOKS, SSH].into_iter().chain(UNPROTECTED);
        ports
            .map(|port| Ok((port, Receiver::open(port)?)))
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Whether the socket of the packet's port got it.
    fn received(&self, packet: &Packet) -> io::Result<bool> {
        for (port, receiver) in &self.0 {
            if *port == packet.port
                && let Some(from) = receiver.poll()?
            {
                return Ok(from == packet.source);
            }
        }
        Ok(false)
    }
}

impl Receiver {
    /// For both families, and without waiting.
    fn open(port: Port) -> io::Result<Self> {
        Ok(match port {
            Port::Tcp(port) => {
                let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
                listener.set_nonblocking(true)?;
                Self::Connections(listener)
            }
            Port::Udp(port) => {
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
                socket.set_nonblocking(true)?;
                Self::Datagrams(socket)
            }
        })
    }

    /// Whom the next connection or datagram is from, if there is one.
    fn poll(&self) -> io::Result<Option<IpAddr>> {
        let received = match self {
            Self::Connections(listener) => listener.accept().and_then(|(connection, from)| {
                reset(&connection)?;
                Ok(from)
            }),
            Self::Datagrams(socket) => socket.recv_from(&mut [0; 64]).map(|(_, from)| from),
        };
        match received {
            Ok(from) => Ok(Some(from.ip().to_canonical())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Makes the end of `connection` one segment from here, which asks for no answer.
fn reset(connection: &TcpStream) -> io::Result<()> {
    let at_once = linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(connection, sockopt::Linger, &at_once)?;
    Ok(())
}
