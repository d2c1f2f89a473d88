//! The load of measure 6: sockets in the measured cgroup, and their peers outside.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use allowlist_dataplane::cgroup_mount_point;
use allowlist_tests::dns_message::query;
use allowlist_tests::lab::Cgroup;
use anyhow::{Context as _, Result};

/// The listed address; as the other two, in the network of the testbed's interface.
pub(super) const LISTED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The listed name.
pub(super) const NAME: &str = "events.example.com";
/// The address of the listed name.
const ANSWERED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
/// An address that no rule allows.
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// The port that the rule covers.
const PORT: u16 = 443;
/// The time to wait for a message on loopback.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sockets in the measured cgroup, and their peers, which no program of the policy sees.
pub(super) struct Load {
    /// Connects, and sends nothing.
    caller: UdpSocket,
    resolver: UdpSocket,
    resolving: UdpSocket,
    udp: [UdpSocket; 2],
    /// The first one is not connected.
    server: [UdpSocket; 2],
    tcp: [TcpStream; 2],
}

impl Load {
    /// Opens the sockets, in the network namespace of the calling thread.
    pub(super) fn new(cgroup: &Cgroup) -> Result<Self> {
        let udp = || -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        // A socket belongs to the cgroup of the process that opened it, so the peers are opened outside.
        let resolver = udp()?;
        let (peer, client) = (udp()?, udp()?);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (caller, resolving, measured, server, stream) =
            inside(cgroup, || -> io::Result<_> {
                Ok((
                    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
                    udp()?,
                    udp()?,
                    udp()?,
                    TcpStream::connect(listener.local_addr()?)?,
                ))
            })??;
        let (accepted, _) = listener.accept()?;
        for stream in [&stream, &accepted] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        measured.connect(peer.local_addr()?)?;
        peer.connect(measured.local_addr()?)?;
        client.connect(server.local_addr()?)?;
        Ok(Self {
            caller,
            resolver,
            resolving,
            udp: [measured, peer],
            server: [server, client],
            tcp: [stream, accepted],
        })
    }

    /// Returns the address of the name server.
    pub(super) fn resolver(&self) -> SocketAddr {
        self.resolver.local_addr().expect("the socket is bound")
    }

    pub(super) fn connect_listed(&self, times: u32) -> io::Result<()> {
        self.connect(LISTED, times, true)
    }

    pub(super) fn connect_answered(&self, times: u32) -> io::Result<()> {
        self.connect(ANSWERED, times, true)
    }

    pub(super) fn connect_refused(&self, times: u32) -> io::Result<()> {
        self.connect(OTHER, times, false)
    }

    fn connect(&self, to: Ipv4Addr, times: u32, passes: bool) -> io::Result<()> {
        for _ in 0..times {
            let result = self.caller.connect((to, PORT));
            if result.is_ok() != passes {
                return Err(result.err().unwrap_or_else(|| {
                    io::Error::other(format!("the connection to {to} was not refused"))
                }));
            }
        }
        Ok(())
    }

    /// Sends queries for [`NAME`], and answers each.
    pub(super) fn resolve(&self, times: u32) -> io::Result<()> {
        let resolver = self.resolver();
        // The first call makes the policy believe this socket.
        self.resolving.connect(resolver)?;
        let mut buffer = [0; 512];
        for id in 0..times {
            self.resolving.send(&query(id as u16, NAME))?;
            let (length, client) = self.resolver.recv_from(&mut buffer)?;
            self.resolver.send_to(&answer(&buffer[..length]), client)?;
            self.resolving.recv(&mut buffer)?;
        }
        Ok(())
    }

    /// Exchanges datagrams on connected sockets.
    pub(super) fn exchange_by_udp(&self, times: u32) -> io::Result<()> {
        let [measured, peer] = &self.udp;
        let mut buffer = [0; 64];
        for _ in 0..times {
            measured.send(b"question")?;
            peer.recv(&mut buffer)?;
            peer.send(b"answer")?;
            measured.recv(&mut buffer)?;
        }
        Ok(())
    }

    /// Sends datagrams to a socket that is not connected.
    pub(super) fn receive_unconnected(&self, times: u32) -> io::Result<()> {
        let [server, client] = &self.server;
        let mut buffer = [0; 64];
        for _ in 0..times {
            client.send(b"question")?;
            server.recv(&mut buffer)?;
        }
        Ok(())
    }

    /// Exchanges segments on a connection.
    pub(super) fn exchange_by_tcp(&self, times: u32) -> io::Result<()> {
        let [mut measured, mut peer] = self.tcp.each_ref();
        let mut buffer = [0; 1];
        for _ in 0..times {
            measured.write_all(b"q")?;
            peer.read_exact(&mut buffer)?;
            peer.write_all(b"a")?;
            measured.read_exact(&mut buffer)?;
        }
        Ok(())
    }
}

/// Runs `task` while this process is in the cgroup.
fn inside<T>(cgroup: &Cgroup, task: impl FnOnce() -> T) -> Result<T> {
    let former = own_cgroup()?;
    enter(cgroup.path())?;
    let done = task();
    enter(&former)?;
    Ok(done)
}

/// Returns the directory of this process's cgroup.
fn own_cgroup() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .context("this process is in no cgroup of version 2")?;
    Ok(cgroup_mount_point()?.join(path))
}

/// Moves this process into a cgroup.
fn enter(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.procs");
    fs::write(&file, "0").with_context(|| format!("cannot write {}", file.display()))
}

/// Returns an answer to a query: an alias, `a.` before the name, and [`ANSWERED`] as the address of the alias.
fn answer(query: &[u8]) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2] = 0x81;
    message[7] = 2;
    message.extend([
        0xc0, 0x0c, 0, 5, 0, 1, 0, 0, 0, 60, 0, 4, 1, b'a', 0xc0, 0x0c,
    ]);
    let alias = message.len() as u8 - 4;
    message.extend([0xc0, alias, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    message.extend(ANSWERED.octets());
    message
}
