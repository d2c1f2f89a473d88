//! Tests which addresses are admitted: connections from loopback addresses to a port of the same namespace.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use allowlist_tests::lab::{Namespace, add_addresses};
use anyhow::Context;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Addresses of `BEFORE` and `AFTER`, with their neighbours.
const VISITORS: [&str; 9] = [
    "192.0.2.7",
    "192.0.2.64",
    "198.51.100.8",
    "198.51.100.9",
    "203.0.113.9",
    "2001:db8::7",
    "2001:db8:1::7",
    "2001:db8:ffff::1",
    "2001:db8:ffff::2",
];
/// The timeout of connections that a filter drops; loopback answers at once.
const PATIENCE: Duration = Duration::from_millis(300);
/// The timeout of answers, longer than any server needs.
const SOON: Duration = Duration::from_mins(3);

/// Adds the addresses of the visitors to a namespace.
pub(crate) fn add_addresses_to(namespace: &Namespace) -> anyhow::Result<()> {
    add_addresses(namespace, "lo", &addresses(&VISITORS))
}

pub(crate) fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    let address = |text: &&str| text.parse().expect("an address");
    texts.iter().map(address).collect()
}

/// Returns all visitors.
pub(crate) fn everybody() -> BTreeSet<IpAddr> {
    addresses(&VISITORS).into_iter().collect()
}

/// Returns the visitors that are listed.
pub(crate) fn listed(texts: &[&str]) -> BTreeSet<IpAddr> {
    let prefixes = crate::prefixes(texts);
    let is_listed = |address: &IpAddr| prefixes.iter().any(|prefix| prefix.contains(address));
    everybody().into_iter().filter(is_listed).collect()
}

/// Opens a port.
pub(crate) fn listen(namespace: &Namespace, port: u16) -> anyhow::Result<TcpListener> {
    let every = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    namespace
        .run(|| TcpListener::bind(every))
        .context("cannot listen")
}

/// Returns the visitors that the port answers. Tries twice, since the first attempt may fail on a busy machine.
pub(crate) fn admitted(namespace: &Namespace, port: u16) -> anyhow::Result<BTreeSet<IpAddr>> {
    let mut admitted = BTreeSet::new();
    for _ in 0..2 {
        let connected = connections(namespace, port, PATIENCE)?;
        admitted.extend(connected.into_iter().map(|(visitor, _)| visitor));
    }
    Ok(admitted)
}

/// Returns the first bytes that each visitor receives in answer to `request`, if any. No filter drops packets, so that
/// each visitor connects.
pub(crate) fn answers(
    namespace: &Namespace,
    port: u16,
    request: &str,
) -> anyhow::Result<Vec<(IpAddr, String)>> {
    let connected = connections(namespace, port, SOON)?;
    connected
        .into_iter()
        .map(|(visitor, mut stream)| {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(SOON))?;
            let mut answer = [0; 200];
            // A server that refuses a visitor may close the connection before it reads.
            let sent = stream.write_all(request.as_bytes());
            let length = sent.and_then(|()| stream.read(&mut answer)).unwrap_or(0);
            let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
            Ok((visitor, answer))
        })
        .collect()
}

fn connections(
    namespace: &Namespace,
    port: u16,
    patience: Duration,
) -> anyhow::Result<Vec<(IpAddr, TcpStream)>> {
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut visits: JoinSet<_> = addresses(&VISITORS)
                .into_iter()
                .map(|visitor| visit(visitor, port, patience))
                .collect();
            let mut connected = Vec::new();
            while let Some(visit) = visits.join_next().await {
                connected.extend(visit??);
            }
            Ok(connected)
        })
    })
}

/// Connects a visitor; `None` if the port does not answer or closes at once.
async fn visit(
    visitor: IpAddr,
    port: u16,
    patience: Duration,
) -> anyhow::Result<Option<(IpAddr, TcpStream)>> {
    let (socket, host) = if visitor.is_ipv4() {
        (TcpSocket::new_v4()?, IpAddr::from(Ipv4Addr::LOCALHOST))
    } else {
        (TcpSocket::new_v6()?, IpAddr::from(Ipv6Addr::LOCALHOST))
    };
    socket.bind((visitor, 0).into())?;
    let Ok(stream) = timeout(patience, socket.connect((host, port).into())).await else {
        return Ok(None);
    };
    match stream {
        Ok(stream) => Ok(Some((visitor, stream.into_std()?))),
        // A proxy may close the connection before the client sees the handshake.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error).with_context(|| format!("nothing listens to {visitor} on {port}")),
    }
}
