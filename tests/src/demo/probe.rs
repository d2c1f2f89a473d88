//! Sends the packets one after the other, and observes the kernel's counters and the host's sockets.
//!
//! Invariant: an observation concerns one packet only. The link carries no other packets, and the host resets each
//! connection, so that no packet of a connection arrives later.

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

/// The time after which a packet counts as lost if it was neither counted nor delivered.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// The time for which the socket is observed after a packet was counted as dropped.
const GRACE: Duration = Duration::from_millis(3);
/// The interval between observations.
const POLL: Duration = Duration::from_micros(200);

/// A packet with its observed decision and delivery.
pub(crate) struct Observed {
    pub(crate) packet: Packet,
    /// The decisions that the kernel counted: exactly one, unless there is an error.
    pub(crate) decisions: Vec<Decision>,
    /// Whether a socket of the host received the packet.
    pub(crate) delivered: bool,
}

impl Observed {
    /// Returns the kernel's decision, if there is exactly one.
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
    // Kept open until the result is known, and closed before the kernel retransmits a SYN.
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

/// Sends a datagram or a SYN from the address of the packet.
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

    /// Reports whether the socket of the packet's port has received it.
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
    /// Opens a non-blocking socket for both families.
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

    /// Returns the sender of the next connection or datagram, if there is one.
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

/// Makes closing `connection` send a reset, to which the peer does not answer.
fn reset(connection: &TcpStream) -> io::Result<()> {
    let immediately = linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(connection, sockopt::Linger, &immediately)?;
    Ok(())
}
