//! Path MTU discovery of a closed host: ICMP errors of unknown routers pass if they quote a packet that the host has sent,
//! and forged ones do not.

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

use super::conversations::{DOMAIN, Server, client_socket};
use super::*;

/// The path MTU in the errors, which both families accept.
const SHORT: u16 = 1400;
/// The MTU of the link.
const LONG: i32 = 1500;
/// Addresses that [`close`] allows, in the order of [`FAMILIES`].
const FRIENDS: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];

sockopt_impl!(
    /// The IPv6 equivalent of `IpMtu`.
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

/// Returns the path MTU of a connected socket.
fn path_mtu(socket: &impl AsFd, family: Family) -> anyhow::Result<i32> {
    Ok(if family.host(0).is_ipv4() {
        getsockopt(socket, sockopt::IpMtu)?
    } else {
        getsockopt(socket, Ipv6Mtu)?
    })
}

/// Returns the next packet that the host sends from a port, without its Ethernet header.
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

/// Returns the part of a packet that a router quotes.
fn quoted(packet: &[u8]) -> &[u8] {
    &packet[..packet.len().min(400)]
}

/// Returns the offsets and lengths of source address, destination address and ports.
fn field_offsets(family: Family) -> [(usize, usize); 3] {
    if family.host(0).is_ipv4() {
        [(12, 4), (16, 4), (20, 4)]
    } else {
        [(8, 16), (24, 16), (40, 4)]
    }
}

/// Replaces the address at one of the [`field_offsets`].
fn readdressed(packet: &[u8], (at, length): (usize, usize), address: SocketAddr) -> Vec<u8> {
    let mut changed = packet.to_vec();
    match address.ip() {
        IpAddr::V4(address) => changed[at..at + length].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => changed[at..at + length].copy_from_slice(&address.octets()),
    }
    changed
}

/// Replaces the port at an offset.
fn with_port(packet: &[u8], at: usize, port: u16) -> Vec<u8> {
    let mut changed = packet.to_vec();
    changed[at..at + 2].copy_from_slice(&port.to_be_bytes());
    changed
}

const OTHER_CLIENT: &str = "another remote port";

/// Returns quotes of packets that the host has not sent.
fn forged_quotes(family: Family, packet: &[u8]) -> [(&'static str, Vec<u8>); 5] {
    let [source, destination, (ports, _)] = field_offsets(family);
    [
        ("another local port", with_port(packet, ports, 9)),
        (OTHER_CLIENT, with_port(packet, ports + 2, 9)),
        (
            "another source",
            readdressed(packet, source, family.stranger(0)),
        ),
        (
            "another destination",
            readdressed(packet, destination, family.stranger(0)),
        ),
        ("no ports", packet[..ports + 2].to_vec()),
    ]
}

/// Checks that an error with a valid quote changes the path MTU of the socket, and errors with forged quotes do not. The
/// filter passes those in `passed`, and the network stack ignores them.
fn check_path_mtu(
    testbed: &Testbed,
    family: Family,
    socket: &impl AsFd,
    packet: &[u8],
    passed: &[&str],
) -> anyhow::Result<()> {
    let sender = FrameSender::new(&testbed.peer, "eth0")?;
    let send_error = |quote: &[u8]| {
        let router = family.stranger(0).ip();
        let error = frame::too_big(router, family.host(0).ip(), SHORT, quoted(quote));
        sender.send(&error)
    };
    assert_eq!(path_mtu(socket, family)?, LONG);
    for (name, quote) in forged_quotes(family, packet) {
        let mut expected = testbed.counted("eth0")?;
        let counter = if passed.contains(&name) {
            "pass icmp-error"
        } else {
            "drop icmp-error"
        };
        expected[counter] = json!(packets(&expected, counter) + 1);
        send_error(&quote)?;
        testbed
            .check_counted("eth0", &expected)
            .map_err(|error| error.context(name))?;
        assert_eq!(path_mtu(socket, family)?, LONG, "{name}");
    }
    let mut expected = testbed.counted("eth0")?;
    expected["pass icmp-error"] = json!(packets(&expected, "pass icmp-error") + 1);
    send_error(packet)?;
    testbed.check_counted("eth0", &expected)?;
    eventually(|| Ok(path_mtu(socket, family)? == i32::from(SHORT)))
}

/// Checks a flow of each kind in each family.
fn all_flows(attach_mode: &str) -> anyhow::Result<()> {
    let datagrams = |family: Family| {
        let testbed = Testbed::new()?;
        let _server = Server::start(&testbed)?;
        let _filter = close(&testbed, "", &["--attach-mode", attach_mode])?;
        let client = client_socket(&testbed, family)?;
        let tap = Tap::new(&testbed.peer)?;
        client.send(&[1; 1000])?;
        let packet = sent(&tap, UDP, client.local_addr()?)?;
        check_path_mtu(&testbed, family, &client, &packet, &[])
    };
    let own_connection = |family: Family| {
        let testbed = Testbed::new()?;
        let server = Server::start(&testbed)?;
        let _filter = close(&testbed, "", &["--attach-mode", attach_mode])?;
        let (client, far_end) = server
            .accept(&testbed, family, SOON)?
            .expect("the connection is established");
        let packet = acknowledgement(&testbed, &client, &far_end)?;
        check_path_mtu(&testbed, family, &client, &packet, &[])
    };
    let services_connection = |(family, friend): (Family, &str)| {
        let testbed = Testbed::new()?;
        add_addresses(&testbed.peer, "eth0", &[friend.parse()?])?;
        let _filter = close(&testbed, "", &["--attach-mode", attach_mode])?;
        let listener = testbed
            .host
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 443)))?;
        let client = testbed
            .peer
            .run(|| connected(at(friend, 0), family.host(443)))?;
        let (served, _) = listener.accept()?;
        served.set_read_timeout(Some(SOON))?;
        let packet = acknowledgement(&testbed, &served, &client)?;
        // Connections of services are not tracked: errors pass for each peer that the service allows.
        check_path_mtu(&testbed, family, &served, &packet, &[OTHER_CLIENT])
    };
    for (family, friend) in FAMILIES.into_iter().zip(FRIENDS) {
        let name = |kind| format!("{kind} of {}", family.host);
        datagrams(family).map_err(|error| error.context(name("datagrams")))?;
        own_connection(family).map_err(|error| error.context(name("own connection")))?;
        services_connection((family, friend))
            .map_err(|error| error.context(name("service's connection")))?;
    }
    Ok(())
}

/// Returns the newest segment of a connection. The network stack ignores errors that quote older ones.
fn acknowledgement(
    testbed: &Testbed,
    mut here: &TcpStream,
    mut there: &TcpStream,
) -> anyhow::Result<Vec<u8>> {
    let tap = Tap::new(&testbed.peer)?;
    there.write_all(b"data")?;
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
fn the_path_mtu_is_learned_in_native_mode() -> anyhow::Result<()> {
    require_root!();
    all_flows("native")
}

#[test]
fn the_path_mtu_is_learned_in_generic_mode() -> anyhow::Result<()> {
    require_root!();
    all_flows("generic")
}

/// Sets the extension headers that a socket sends.
type SetOptions = fn(&std::net::UdpSocket) -> nix::Result<()>;

/// A quote includes the extension headers between addresses and ports.
#[test]
fn the_path_mtu_is_learned_from_a_quote_with_extension_headers() -> anyhow::Result<()> {
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
        let testbed = Testbed::new()?;
        let _server = Server::start(&testbed)?;
        let _filter = close(&testbed, "", &[])?;
        let client = client_socket(&testbed, family)?;
        set(&client)?;
        let tap = Tap::new(&testbed.peer)?;
        client.send(&[1; 1000])?;
        let packet = sent(&tap, UDP, client.local_addr()?)?;
        assert_ne!(packet[6], UDP, "the kernel sent no options");
        let error = frame::too_big(
            family.stranger(0).ip(),
            family.host(0).ip(),
            SHORT,
            quoted(&packet),
        );
        FrameSender::new(&testbed.peer, "eth0")?.send(&error)?;
        eventually(|| Ok(path_mtu(&client, family)? == i32::from(SHORT)))?;
    }
    Ok(())
}

/// Without the exemption, ICMP errors are dropped.
#[test]
fn the_path_mtu_is_not_learned_without_the_exemption() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let _server = Server::start(&testbed)?;
    let _filter = close(&testbed, "keep.icmp_errors = false", &[])?;
    let sender = FrameSender::new(&testbed.peer, "eth0")?;
    for (number, family) in (1..).zip(FAMILIES) {
        let client = client_socket(&testbed, family)?;
        let tap = Tap::new(&testbed.peer)?;
        client.send(b"question")?;
        let packet = sent(&tap, UDP, client.local_addr()?)?;
        let router = family.stranger(DOMAIN).ip();
        sender.send(&frame::too_big(
            router,
            family.host(0).ip(),
            SHORT,
            quoted(&packet),
        ))?;
        testbed.check_counted("eth0", &json!({"drop default": number}))?;
        assert_eq!(path_mtu(&client, family)?, LONG);
    }
    Ok(())
}
