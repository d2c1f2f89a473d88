//! Conversations that the host initiates: with a server by UDP and TCP, and with the peer by echo requests.
//!
//! Invariant: each function reports whether the answer arrived in time, and leaves no packet in flight.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;

use anyhow::{Context as _, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv,
    send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::*;

/// The port of the server.
pub(crate) const DOMAIN: u16 = 53;
/// The length of an answer that needs several packets.
pub(crate) const FRAGMENTED: usize = 4000;

/// A server on the peer.
pub(crate) struct Server {
    pub(crate) udp: UdpSocket,
    pub(crate) tcp: TcpListener,
}

impl Server {
    /// Starts the server on [`DOMAIN`] for both families and protocols.
    pub(crate) fn start(testbed: &Testbed) -> anyhow::Result<Self> {
        let address = (Ipv6Addr::UNSPECIFIED, DOMAIN);
        testbed.peer.run(|| {
            Ok(Self {
                udp: UdpSocket::bind(address)?,
                tcp: TcpListener::bind(address)?,
            })
        })
    }

    /// Sends a datagram from a new socket of the host, and reports whether an answer of `length` bytes arrives.
    pub(crate) fn answers(
        &self,
        testbed: &Testbed,
        family: Family,
        length: usize,
        timeout: Duration,
    ) -> anyhow::Result<bool> {
        let client = client_socket(testbed, family)?;
        self.answers_to(&client, length, timeout)
    }

    /// Sends a datagram from this socket, and reports whether an answer of `length` bytes arrives.
    pub(crate) fn answers_to(
        &self,
        client: &UdpSocket,
        length: usize,
        timeout: Duration,
    ) -> anyhow::Result<bool> {
        client.send(b"question")?;
        let address = client.local_addr()?;
        let from = loop {
            let mut question = [0; 64];
            self.udp.set_read_timeout(Some(timeout))?;
            match self.udp.recv_from(&mut question) {
                Ok((_, from))
                    if from.ip().to_canonical() == address.ip()
                        && from.port() == address.port() =>
                {
                    break from;
                }
                Ok(_) => {} // from a client that no longer waits
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        };
        let answer = vec![7; length];
        self.udp.send_to(&answer, from)?;
        let Some((received, _)) = receive(client, timeout)? else {
            return Ok(false);
        };
        ensure!(received == answer, "unexpected answer: {received:?}");
        Ok(true)
    }

    /// Reports whether the host can open a connection; transfers short and long data in both directions.
    pub(crate) fn accepts(
        &self,
        testbed: &Testbed,
        family: Family,
        timeout: Duration,
    ) -> anyhow::Result<bool> {
        match self.accept(testbed, family, timeout)? {
            Some((mut client, mut server)) => {
                talk(&mut client, &mut server)?;
                transfer(&client, &server).context("to the server")?;
                transfer(&server, &client).context("to the host")?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Opens a connection from the host, and returns both ends; `None` after a timeout.
    pub(crate) fn accept(
        &self,
        testbed: &Testbed,
        family: Family,
        timeout: Duration,
    ) -> anyhow::Result<Option<(TcpStream, TcpStream)>> {
        let connected = testbed
            .host
            .run(|| TcpStream::connect_timeout(&family.peer(DOMAIN), timeout));
        let client = match connected {
            Ok(client) => client,
            Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (server, _) = self.tcp.accept()?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(SOON))?;
            end.set_write_timeout(Some(SOON))?;
        }
        Ok(Some((client, server)))
    }
}

/// Returns a socket of the host that is connected to the server.
pub(crate) fn client_socket(testbed: &Testbed, family: Family) -> anyhow::Result<UdpSocket> {
    Ok(testbed.host.run(|| {
        let socket = UdpSocket::bind(family.host(0))?;
        socket.connect(family.peer(DOMAIN))?;
        Ok::<_, std::io::Error>(socket)
    })?)
}

/// Sends a message in each direction.
pub(crate) fn talk(client: &mut TcpStream, server: &mut TcpStream) -> anyhow::Result<()> {
    let mut word = [0; 8];
    client.write_all(b"question")?;
    server
        .read_exact(&mut word)
        .context("no question arrived")?;
    server.write_all(b"answered")?;
    client.read_exact(&mut word).context("no answer arrived")?;
    ensure!(&word == b"answered", "unexpected answer: {word:?}");
    Ok(())
}

/// Transfers so much data that the kernel merges packets.
fn transfer(mut from: &TcpStream, mut to: &TcpStream) -> anyhow::Result<()> {
    const BYTES: usize = 4 << 20;
    thread::scope(|scope| {
        let sending = scope.spawn(move || from.write_all(&vec![7; BYTES]));
        let mut received = vec![0; BYTES];
        to.read_exact(&mut received)?;
        ensure!(received == vec![7; BYTES], "received other bytes");
        Ok(sending.join().expect("sending does not panic")?)
    })
}

/// Reports whether the peer's kernel answers an echo request of the host.
pub(crate) fn pings(testbed: &Testbed, family: Family, timeout: Duration) -> anyhow::Result<bool> {
    let destination = family.peer(0);
    let (address_family, protocol, request) = match destination {
        SocketAddr::V4(_) => (
            AddressFamily::Inet,
            SockProtocol::Icmp,
            [8, 0, 0, 0, 0, 0, 0, 1],
        ),
        SocketAddr::V6(_) => (
            AddressFamily::Inet6,
            SockProtocol::IcmpV6,
            [128, 0, 0, 0, 0, 0, 0, 1],
        ),
    };
    testbed.host.set("ipv4/ping_group_range", "0 0")?;
    let socket = testbed.host.run(|| {
        // A datagram socket, whose identifier the kernel chooses like a port.
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(address_family, SockType::Datagram, flags, protocol)
    })?;
    let (seconds, rest) = (
        timeout.as_secs().cast_signed(),
        timeout.subsec_micros().into(),
    );
    setsockopt(
        &socket,
        sockopt::ReceiveTimeout,
        &TimeVal::new(seconds, rest),
    )?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(destination))?;
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut reply = [0; 64];
    match recv(socket.as_raw_fd(), &mut reply, MsgFlags::empty()) {
        Ok(length) => Ok(length == request.len()),
        Err(nix::errno::Errno::EAGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
