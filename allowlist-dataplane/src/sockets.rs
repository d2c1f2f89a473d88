//! This host's TCP and UDP sockets, by `sock_diag`: the evidence about flows that are older than the flow
//! tracker. Changes nothing.
//!
//! Sees the sockets of the network namespace that it is called in, and no forwarded traffic.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd as _;

use allowlist_common::packet::{TCP, UDP};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use crate::error::{Context as _, Result, bail, ensure};

/// The state of a socket: the kernel's number of a TCP state, for UDP as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(u8);

impl State {
    const SYN_SENT: Self = Self(2);
    const SYN_RECEIVED: Self = Self(3);
    const TIME_WAIT: Self = Self(6);
    const LISTEN: Self = Self(10);
    const NEW_SYN_RECEIVED: Self = Self(12);

    /// Returns whether this host has not closed the connection.
    const fn is_open(self) -> bool {
        /// `ESTABLISHED` and `CLOSE_WAIT`.
        const OPEN: u16 = 1 << 1 | 1 << 8;
        OPEN >> (self.0 % 16) & 1 != 0
    }
}

/// A socket of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// The IP protocol number: that of TCP or UDP.
    pub protocol: u8,
    /// The state of the socket.
    pub state: State,
    /// The address and port of the local end; an unspecified address stands for all addresses.
    pub local: SocketAddr,
    /// The address and port of the remote end; the port is 0 if the socket is not connected.
    pub remote: SocketAddr,
}

/// A flow that this host initiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnFlow {
    /// The IP protocol number: that of TCP or UDP.
    pub protocol: u8,
    /// The address and port of this host's end.
    pub local: SocketAddr,
    /// The address and port of the remote end.
    pub remote: SocketAddr,
    /// The phase of the flow's connection.
    pub phase: Phase,
}

/// The phase of a flow that this host initiated: of its TCP connection; a UDP flow is always [`Self::Open`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The connection is not established yet.
    Opening,
    /// The connection is established; a UDP flow always has this phase.
    Open,
    /// This host has closed the connection.
    Closing,
}

/// The flows from before the start of tracking, as far as this host's sockets show them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The flows of clients: their local port is in the kernel's range of local ports, and no server uses it.
    pub own: Vec<OwnFlow>,
    /// The UDP ports of servers: the side that initiated their flows is unknown. An unconnected socket belongs to a server
    /// unless the kernel chose its port.
    pub unknown_ports: BTreeSet<u16>,
}

impl Evidence {
    /// Returns the flows that a list of sockets shows. `own_ports` are the ports from which this host connects.
    pub fn from_sockets(sockets: &[Socket], own_ports: &RangeInclusive<u16>) -> Self {
        // By protocol and port: other hosts may initiate flows to these.
        let served: BTreeSet<(u8, u16)> = sockets
            .iter()
            .filter(|socket| socket.is_server())
            .map(|socket| (socket.protocol, socket.local.port()))
            .collect();
        let connected: BTreeSet<u16> = sockets
            .iter()
            .filter(|socket| socket.protocol == UDP && !socket.is_server())
            .map(|socket| socket.local.port())
            .collect();
        let is_client_port = |port: u16| own_ports.contains(&port) && !connected.contains(&port);
        let mut evidence = Self::default();
        for socket in sockets {
            let port = socket.local.port();
            let is_own = own_ports.contains(&port) && !served.contains(&(socket.protocol, port));
            match socket.phase().filter(|_| is_own) {
                Some(phase) => evidence.own.push(OwnFlow {
                    protocol: socket.protocol,
                    local: socket.local,
                    remote: socket.remote,
                    phase,
                }),
                // An unconnected client, such as a resolver, also has a port of the range.
                None if socket.protocol == UDP && !(is_client_port(port) && socket.is_server()) => {
                    evidence.unknown_ports.insert(port);
                }
                None => {}
            }
        }
        evidence
    }
}

impl Socket {
    /// Returns whether other hosts may initiate flows to this socket.
    fn is_server(&self) -> bool {
        if self.protocol == TCP {
            self.state == State::LISTEN
        } else {
            self.remote.port() == 0
        }
    }

    /// Returns the phase of the flow, if this may be the socket of a client's connection to another host.
    ///
    /// Returns `None` for a socket that is unconnected, listens, or is in TIME-WAIT, and for a connection that is local
    /// or that the other side is opening.
    fn phase(&self) -> Option<Phase> {
        if self.remote.port() == 0
            || self.local.ip().is_unspecified()
            || self.remote.ip().is_loopback()
        {
            return None;
        }
        match self.state {
            _ if self.protocol == UDP => Some(Phase::Open),
            State::SYN_RECEIVED | State::NEW_SYN_RECEIVED | State::LISTEN | State::TIME_WAIT => {
                None
            }
            State::SYN_SENT => Some(Phase::Opening),
            state if state.is_open() => Some(Phase::Open),
            _ => Some(Phase::Closing),
        }
    }
}

/// Returns the kernel's range of local ports for this host's own connections.
pub fn own_ports() -> Result<RangeInclusive<u16>> {
    const FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = std::fs::read_to_string(FILE).with_context(|| format!("cannot read {FILE}"))?;
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..=last),
        _ => bail!(
            "{FILE} states {:?} and not a range of ports such as \"32768 60999\"; set it with `sysctl net.ipv4.ip_local_port_range`",
            text.trim()
        ),
    }
}

/// Returns all TCP and UDP sockets of this host.
///
/// # Errors
/// Fails if the kernel lacks `sock_diag` for one of the protocols.
pub fn read() -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for (protocol, name) in [(TCP, "tcp_diag"), (UDP, "udp_diag")] {
        for family in [AddressFamily::Inet as u8, AddressFamily::Inet6 as u8] {
            dump(family, protocol, &mut sockets).with_context(|| {
                format!("cannot list this host's sockets with {name} (`modprobe {name}` may help)")
            })?;
        }
    }
    Ok(sockets)
}

const HEADER: usize = 16;
/// Bytes of `struct inet_diag_msg`.
const MESSAGE: usize = 72;

/// Appends all sockets of an address family and protocol to `sockets`, as the kernel lists them by netlink.
fn dump(family: u8, protocol: u8, sockets: &mut Vec<Socket>) -> Result<()> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const REQUEST_DUMP: u16 = 0x301;
    const REQUEST: usize = HEADER + 56;
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    let mut request = [0; REQUEST];
    request[0..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    request[HEADER] = family;
    request[HEADER + 1] = protocol;
    request[HEADER + 4..HEADER + 8].copy_from_slice(&u32::MAX.to_ne_bytes()); // sockets in all states
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if parse(&buffer[..length], protocol, sockets)? {
            return Ok(());
        }
    }
}

/// Parses one datagram of netlink messages, and returns whether it is the last one.
fn parse(mut datagram: &[u8], protocol: u8, sockets: &mut Vec<Socket>) -> Result<bool> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    while let Some((length, kind)) = header(datagram) {
        ensure!(
            (HEADER..=datagram.len()).contains(&length),
            "the kernel sent a netlink message of {length} bytes in a datagram of {} bytes",
            datagram.len()
        );
        let body = &datagram[HEADER..length];
        match kind {
            DONE => return Ok(true),
            ERROR => {
                let code = body
                    .first_chunk()
                    .map_or(0, |code| i32::from_ne_bytes(*code));
                return Err(std::io::Error::from_raw_os_error(-code).into());
            }
            _ => sockets.extend(parse_socket(body, protocol)),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(false)
}

fn header(datagram: &[u8]) -> Option<(usize, u16)> {
    let header: &[u8; HEADER] = datagram.first_chunk()?;
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
    Some((length as usize, u16::from_ne_bytes([header[4], header[5]])))
}

/// Parses the kernel's `struct inet_diag_msg`.
fn parse_socket(body: &[u8], protocol: u8) -> Option<Socket> {
    let message: &[u8; MESSAGE] = body.first_chunk()?;
    let port = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    let address = |at: usize| -> IpAddr {
        if message[0] == AddressFamily::Inet as u8 {
            IpAddr::from([
                message[at],
                message[at + 1],
                message[at + 2],
                message[at + 3],
            ])
        } else {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&message[at..at + 16]);
            // A socket for both families has mapped IPv4 addresses.
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        }
    };
    Some(Socket {
        protocol,
        state: State(message[1]),
        local: SocketAddr::new(address(8), port(4)),
        remote: SocketAddr::new(address(24), port(6)),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    const OWN: RangeInclusive<u16> = 32_768..=60_999;

    fn socket(protocol: u8, state: u8, local: &str, remote: &str) -> Socket {
        Socket {
            protocol,
            state: State(state),
            local: local.parse().expect("an address"),
            remote: remote.parse().expect("an address"),
        }
    }

    #[track_caller]
    fn check(sockets: &[Socket], own: &[(u16, Phase)], unknown: &[u16]) {
        let evidence = Evidence::from_sockets(sockets, &OWN);
        let found: Vec<_> = evidence
            .own
            .iter()
            .map(|flow| (flow.local.port(), flow.phase))
            .collect();
        assert_eq!(found, own);
        assert_eq!(
            evidence.unknown_ports.iter().copied().collect::<Vec<_>>(),
            unknown
        );
    }

    #[test]
    fn tcp_clients_are_own_and_accepted_connections_are_not() {
        let remote = "198.18.0.1:443";
        check(
            &[
                socket(TCP, 1, "198.51.100.1:40000", remote),
                socket(TCP, 2, "198.51.100.1:40001", remote),
                socket(TCP, 5, "198.51.100.1:40002", remote),
                socket(TCP, 6, "198.51.100.1:40003", remote),
                socket(TCP, 3, "198.51.100.1:40004", remote),
                socket(TCP, 8, "[2001:db8::1]:40005", "[2001:db8::2]:443"),
                // A server on a port of the range, bound to all addresses of the other family.
                socket(TCP, 10, "[::]:40006", "[::]:0"),
                socket(TCP, 1, "198.51.100.1:40006", remote),
                // A connection of a server that may have ended.
                socket(TCP, 1, "198.51.100.1:22", remote),
                socket(TCP, 1, "127.0.0.1:40007", "127.0.0.1:80"),
            ],
            &[
                (40_000, Phase::Open),
                (40_001, Phase::Opening),
                (40_002, Phase::Closing),
                (40_005, Phase::Open),
            ],
            &[],
        );
    }

    #[test]
    fn connected_udp_sockets_are_own_unless_a_server_has_their_port() {
        check(
            &[
                socket(UDP, 1, "198.51.100.1:40000", "198.18.0.1:53"),
                socket(UDP, 7, "0.0.0.0:40001", "0.0.0.0:0"),
                socket(UDP, 1, "198.51.100.1:40001", "198.18.0.1:53"),
                socket(UDP, 1, "198.51.100.1:123", "198.18.0.1:123"),
                // The kernel chose the port.
                socket(UDP, 7, "0.0.0.0:40002", "0.0.0.0:0"),
                socket(UDP, 7, "[::]:5353", "[::]:0"),
                // A TCP server does not use the UDP port.
                socket(TCP, 10, "0.0.0.0:40000", "0.0.0.0:0"),
            ],
            &[(40_000, Phase::Open)],
            &[123, 5353, 40_001],
        );
    }

    #[test]
    fn the_kernel_reports_the_sockets_of_this_process() {
        let listener = TcpListener::bind("[::1]:0").expect("a socket");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let asking = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        asking
            .connect(server.local_addr().expect("bound"))
            .expect("connected");
        let sockets = match read() {
            Ok(sockets) => sockets,
            Err(error) => panic!("{error:#}"),
        };
        let has = |protocol, state, local: SocketAddr, remote: Option<SocketAddr>| {
            sockets.iter().any(|socket| {
                (socket.protocol, socket.state, socket.local) == (protocol, State(state), local)
                    && remote.is_none_or(|remote| remote == socket.remote)
            })
        };
        let end = |socket: &UdpSocket| socket.local_addr().expect("bound");
        assert!(has(TCP, 10, listener.local_addr().expect("bound"), None));
        assert!(has(
            TCP,
            1,
            client.local_addr().expect("bound"),
            client.peer_addr().ok()
        ));
        assert!(has(UDP, 7, end(&server), None));
        assert!(has(UDP, 1, end(&asking), Some(end(&server))));
    }

    #[test]
    fn errors_and_truncated_messages() {
        let mut sockets = Vec::new();
        let mut refused = [0_u8; HEADER + 4];
        refused[0..4].copy_from_slice(&20_u32.to_ne_bytes());
        refused[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        refused[HEADER..].copy_from_slice(&(-2_i32).to_ne_bytes());
        assert!(parse(&refused, TCP, &mut sockets).is_err());
        refused[4..6].copy_from_slice(&3_u16.to_ne_bytes());
        assert!(parse(&refused, TCP, &mut sockets).expect("the end"));
        assert!(!parse(&refused[..15], TCP, &mut sockets).expect("no message"));
        assert!(parse(&refused[..16], TCP, &mut sockets).is_err());
        assert!(sockets.is_empty());
    }
}
