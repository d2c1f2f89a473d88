//! Conversations that the host begins: with a server by UDP and by TCP, and with the peer by ping.
//!
//! Invariant: each says whether its answer came in time, and leaves nothing on its way.

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

/// Where a resolver listens.
pub(crate) const DOMAIN: u16 = 53;
/// An answer so long that it takes several packets.
pub(crate) const FRAGMENTED: usize = 4000;

/// The peer's server.
pub(crate) struct Server {
    pub(crate) udp: UdpSocket,
    pub(crate) tcp: TcpListener,
}

impl Server {
    /// On [`DOMAIN`], for both families and protocols.
    pub(crate) fn start(site: &Testbed) -> anyhow::Result<Self> {
        let address = (Ipv6Addr::UNSPECIFIED, DOMAIN);
        site.peer.run(|| {
            Ok(Self {
                udp: UdpSocket::bind(address)?,
                tcp: TcpListener::bind(address)?,
            })
        })
    }

    /// Whether a datagram of the host's is answered by one of `length` bytes.
    pub(crate) fn answers(
        &self,
        site: &Testbed,
        family: Family,
        length: usize,
        timeout: Duration,
    ) -> anyhow::Result<bool> {
        let client = ask_socket(site, family)?;
        self.answers_to(&client, length, timeout)
    }

    /// The same for a socket that may have asked before.
    pub(crate) fn answers_to(
        &self,
        client: &UdpSocket,
        length: usize,
        timeout: Duration,
    ) -> anyhow::Result<bool> {
        client.send(b"question")?;
        let asking = client.local_addr()?;
        let from = loop {
            let mut question = [0; 64];
            self.udp.set_read_timeout(Some(timeout))?;
            match self.udp.recv_from(&mut question) {
                Ok((_, from))
                    if from.ip().to_canonical() == asking.ip() && from.port() == asking.port() =>
                {
                    break from;
                }
                Ok(_) => {} // somebody's who gave up before it came
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        };
        let answer = vec![7; length];
        self.udp.send_to(&answer, from)?;
        let Some((received, _)) = receive(client, timeout)? else {
            return Ok(false);
        };
        ensure!(received == answer, "another answer: {received:?}");
        Ok(true)
    }

    /// Whether a connection of the host's is made, and carries words and more both ways.
    pub(crate) fn accepts(
        &self,
        site: &Testbed,
        family: Family,
        timeout: Duration,
    ) -> anyhow::Result<bool> {
        match self.accept(site, family, timeout)? {
            Some((mut client, mut server)) => {
                talk(&mut client, &mut server)?;
                transfer(&client, &server).context("to the server")?;
                transfer(&server, &client).context("to the host")?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Both ends of a connection of the host's.
    pub(crate) fn accept(
        &self,
        site: &Testbed,
        family: Family,
        timeout: Duration,
    ) -> anyhow::Result<Option<(TcpStream, TcpStream)>> {
        let connected = site
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

/// A socket of the host's that is connected to the server.
pub(crate) fn ask_socket(site: &Testbed, family: Family) -> anyhow::Result<UdpSocket> {
    Ok(site.host.run(|| {
        let socket = UdpSocket::bind(family.host(0))?;
        socket.connect(family.peer(DOMAIN))?;
        Ok::<_, std::io::Error>(socket)
    })?)
}

/// A word there and one back.
pub(crate) fn talk(client: &mut TcpStream, server: &mut TcpStream) -> anyhow::Result<()> {
    let mut word = [0; 8];
    client.write_all(b"question")?;
    server.read_exact(&mut word).context("nothing came")?;
    server.write_all(b"answered")?;
    client.read_exact(&mut word).context("no answer came")?;
    ensure!(&word == b"answered", "another answer: {word:?}");
    Ok(())
}

/// So much that the kernel hands over packets longer than the link's.
fn transfer(mut from: &TcpStream, mut to: &TcpStream) -> anyhow::Result<()> {
    const BYTES: usize = 4 << 20;
    thread::scope(|scope| {
        let sending = scope.spawn(move || from.write_all(&vec![7; BYTES]));
        let mut received = vec![0; BYTES];
        to.read_exact(&mut received)?;
        ensure!(received == vec![7; BYTES], "other bytes came");
        Ok(sending.join().expect("sending does not panic")?)
    })
}

/// Whether the peer's kernel answers an echo request of the host's.
pub(crate) fn pings(site: &Testbed, family: Family, timeout: Duration) -> anyhow::Result<bool> {
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
    site.host.set("ipv4/ping_group_range", "0 0")?;
    let socket = site.host.run(|| {
        // A datagram socket: the kernel gives it an identifier, as a port.
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
