//! A closed host learns of a shorter path from routers that nobody knows, if they quote a packet that it
//! sent, and is told no tales.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _};

use allowlist_common::packet::{Contents, TCP, Transport, UDP, parse};
use allowlist_tests::lab::{FrameSender, Tap, add_addresses, eventually, frame};
use allowlist_tests::require_root;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt,
    socket, sockopt,
};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use serde_json::json;

use super::talk::{DOMAIN, Server, ask_socket};
use super::*;

/// What both families' kernels believe.
const SHORT: u16 = 1400;
/// What the link takes.
const LONG: i32 = 1500;
/// Allowed by [`close`], in the order of [`FAMILIES`].
const FRIENDS: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];

sockopt_impl!(
    /// What `IpMtu` is for IPv4.
    Ipv6Mtu,
    GetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU,
    libc::c_int
);

sockopt_impl!(
    /// The hop-by-hop options of sent packets.
    HopByHopOptions,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_HOPOPTS,
    [u8; 8]
);
sockopt_impl!(
    /// The destination options of sent packets.
    DestinationOptions,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_DSTOPTS,
    [u8; 8]
);

/// How long a packet may be, as the kernel has it for a socket that is connected.
fn path_mtu(socket: &impl AsFd, family: Family) -> anyhow::Result<i32> {
    Ok(if family.host(0).is_ipv4() {
        getsockopt(socket, sockopt::IpMtu)?
    } else {
        getsockopt(socket, Ipv6Mtu)?
    })
}

/// The next packet that the host sends from a port, without its Ethernet header.
fn sent(tap: &Tap, protocol: u8, from: SocketAddr) -> anyhow::Result<Vec<u8>> {
    const ETHERNET: usize = 14;
    let frame = tap.next(|frame| {
        let Ok(Contents::Ip(packet)) = parse(frame) else {
            return false;
        };
        let is_from_port =
            matches!(packet.transport, Transport::Ports { source, .. } if source == from.port());
        is_from_port && packet.protocol == protocol && IpAddr::from(packet.source) == from.ip()
    })?;
    Ok(frame[ETHERNET..].to_vec())
}

/// A packet as a router quotes it.
fn quoted(packet: &[u8]) -> &[u8] {
    &packet[..packet.len().min(400)]
}

/// Where in a packet its addresses and ports are: source, destination, ports, each with its length.
fn places(family: Family) -> [(usize, usize); 3] {
    if family.host(0).is_ipv4() {
        [(12, 4), (16, 4), (20, 4)]
    } else {
        [(8, 16), (24, 16), (40, 4)]
    }
}

/// The packet with another address at one of `places`.
fn readdressed(packet: &[u8], (at, length): (usize, usize), address: SocketAddr) -> Vec<u8> {
    let mut changed = packet.to_vec();
    match address.ip() {
        IpAddr::V4(address) => changed[at..at + length].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => changed[at..at + length].copy_from_slice(&address.octets()),
    }
    changed
}

/// The packet with another port.
fn with_port(packet: &[u8], at: usize, port: u16) -> Vec<u8> {
    let mut changed = packet.to_vec();
    changed[at..at + 2].copy_from_slice(&port.to_be_bytes());
    changed
}

const OTHER_CLIENT: &str = "another remote port";

/// What is quoted, about a packet that the host has not sent.
fn tales(family: Family, packet: &[u8]) -> [(&'static str, Vec<u8>); 5] {
    let [source, destination, (ports, _)] = places(family);
    [
        ("another local port", with_port(packet, ports, 9)),
        (OTHER_CLIENT, with_port(packet, ports + 2, 9)),
        (
            "another's packet",
            readdressed(packet, source, family.stranger(0)),
        ),
        (
            "to somebody else",
            readdressed(packet, destination, family.stranger(0)),
        ),
        ("no ports", packet[..ports + 2].to_vec()),
    ]
}

/// A router's word about a socket's own packet is believed, and before it none of the tales is; those in
/// `believed` are let in, and only the kernel knows better.
fn hears_of_the_path(
    site: &Testbed,
    family: Family,
    socket: &impl AsFd,
    packet: &[u8],
    believed: &[&str],
) -> anyhow::Result<()> {
    let sender = FrameSender::new(&site.peer, "eth0")?;
    let tell = |quote: &[u8]| {
        let router = family.stranger(0).ip();
        let told = frame::too_big(router, family.host(0).ip(), SHORT, quoted(quote));
        sender.send(&told)
    };
    assert_eq!(path_mtu(socket, family)?, LONG);
    for (name, tale) in tales(family, packet) {
        let mut expected = site.counted("eth0")?;
        let end = if believed.contains(&name) {
            "pass icmp-error"
        } else {
            "drop icmp-error"
        };
        expected[end] = json!(packets(&expected, end) + 1);
        tell(&tale)?;
        site.check_counted("eth0", &expected)
            .map_err(|error| error.context(name))?;
        assert_eq!(path_mtu(socket, family)?, LONG, "{name}");
    }
    let mut expected = site.counted("eth0")?;
    expected["pass icmp-error"] = json!(packets(&expected, "pass icmp-error") + 1);
    tell(packet)?;
    site.check_counted("eth0", &expected)?;
    eventually(|| Ok(path_mtu(socket, family)? == i32::from(SHORT)))
}

/// One flow of each kind, in each family.
fn all_flows(attach_mode: &str) -> anyhow::Result<()> {
    let datagrams = |family: Family| {
        let site = Testbed::new()?;
        let _server = Server::start(&site)?;
        let _filter = close(&site, "", &["--attach-mode", attach_mode])?;
        let client = ask_socket(&site, family)?;
        let tap = Tap::new(&site.peer)?;
        client.send(&[1; 1000])?;
        let packet = sent(&tap, UDP, client.local_addr()?)?;
        hears_of_the_path(&site, family, &client, &packet, &[])
    };
    let own_connection = |family: Family| {
        let site = Testbed::new()?;
        let server = Server::start(&site)?;
        let _filter = close(&site, "", &["--attach-mode", attach_mode])?;
        let (client, far_end) = server
            .accept(&site, family, SOON)?
            .expect("answers to connections come in");
        let packet = acknowledgement(&site, &client, &far_end)?;
        hears_of_the_path(&site, family, &client, &packet, &[])
    };
    let services_connection = |(family, friend): (Family, &str)| {
        let site = Testbed::new()?;
        add_addresses(&site.peer, "eth0", &[friend.parse()?])?;
        let _filter = close(&site, "", &["--attach-mode", attach_mode])?;
        let listener = site
            .host
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 443)))?;
        let client = site
            .peer
            .run(|| connected(at(friend, 0), family.host(443)))?;
        let (served, _) = listener.accept()?;
        served.set_read_timeout(Some(SOON))?;
        let packet = acknowledgement(&site, &served, &client)?;
        // Connections of services are not tracked: whoever may reach it could have this one.
        hears_of_the_path(&site, family, &served, &packet, &[OTHER_CLIENT])
    };
    for (family, friend) in FAMILIES.into_iter().zip(FRIENDS) {
        let name = |what| format!("{what} of {}", family.host);
        datagrams(family).map_err(|error| error.context(name("datagrams")))?;
        own_connection(family).map_err(|error| error.context(name("own connection")))?;
        services_connection((family, friend))
            .map_err(|error| error.context(name("service's connection")))?;
    }
    Ok(())
}

/// A segment of the host's that is the newest of its connection: a kernel asks no less of a quote.
fn acknowledgement(
    site: &Testbed,
    mut here: &TcpStream,
    mut there: &TcpStream,
) -> anyhow::Result<Vec<u8>> {
    let tap = Tap::new(&site.peer)?;
    there.write_all(b"word")?;
    here.read_exact(&mut [0; 4])?;
    let local = here.local_addr()?;
    sent(
        &tap,
        TCP,
        SocketAddr::new(local.ip().to_canonical(), local.port()),
    )
}

fn connected(from: SocketAddr, to: SocketAddr) -> anyhow::Result<TcpStream> {
    let family = match from {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let client = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(client.as_raw_fd(), &SockaddrStorage::from(from))?;
    connect(client.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(client.into())
}

#[test]
fn is_learned_in_native_mode() -> anyhow::Result<()> {
    require_root!();
    all_flows("native")
}

#[test]
fn is_learned_in_generic_mode() -> anyhow::Result<()> {
    require_root!();
    all_flows("generic")
}

/// Sets the extension headers that a socket sends.
type SetOptions = fn(&std::net::UdpSocket) -> nix::Result<()>;

/// A router quotes the extension headers between the addresses and the ports as well.
#[test]
fn is_learned_from_a_quote_with_extension_headers() -> anyhow::Result<()> {
    /// One padding option; the kernel writes the next header's number.
    const OPTIONS: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
    require_root!();
    let [_, family] = FAMILIES;
    let setters: [SetOptions; 3] = [
        |socket| setsockopt(socket, HopByHopOptions, &OPTIONS),
        |socket| setsockopt(socket, DestinationOptions, &OPTIONS),
        |socket| {
            setsockopt(socket, HopByHopOptions, &OPTIONS)?;
            setsockopt(socket, DestinationOptions, &OPTIONS)
        },
    ];
    for set in setters {
        let site = Testbed::new()?;
        let _server = Server::start(&site)?;
        let _filter = close(&site, "", &[])?;
        let client = ask_socket(&site, family)?;
        set(&client)?;
        let tap = Tap::new(&site.peer)?;
        client.send(&[1; 1000])?;
        let packet = sent(&tap, UDP, client.local_addr()?)?;
        assert_ne!(packet[6], UDP, "the kernel sent no options");
        let told = frame::too_big(
            family.stranger(0).ip(),
            family.host(0).ip(),
            SHORT,
            quoted(&packet),
        );
        FrameSender::new(&site.peer, "eth0")?.send(&told)?;
        eventually(|| Ok(path_mtu(&client, family)? == i32::from(SHORT)))?;
    }
    Ok(())
}

/// The other side of it: an operator who wants no errors gets none.
#[test]
fn without_the_exception_it_is_not() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let _server = Server::start(&site)?;
    let _filter = close(&site, "keep.icmp_errors = false", &[])?;
    let sender = FrameSender::new(&site.peer, "eth0")?;
    for (number, family) in (1..).zip(FAMILIES) {
        let client = ask_socket(&site, family)?;
        let tap = Tap::new(&site.peer)?;
        client.send(b"question")?;
        let packet = sent(&tap, UDP, client.local_addr()?)?;
        let router = family.stranger(DOMAIN).ip();
        sender.send(&frame::too_big(
            router,
            family.host(0).ip(),
            SHORT,
            quoted(&packet),
        ))?;
        site.check_counted("eth0", &json!({"drop default": number}))?;
        assert_eq!(path_mtu(&client, family)?, LONG);
    }
    Ok(())
}
