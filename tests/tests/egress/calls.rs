//! The judged calls and their results for the program: every kind of socket, both families, allowed and refused.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use allowlist_tests::lab::{Cgroup, Testbed, add_addresses};
use allowlist_tests::require_root;

use super::*;

/// The peer's addresses that no rule allows.
const OTHERS: [&str; 2] = ["192.0.2.77", "2001:db8:bad::77"];
const ALLOWED: [&str; 2] = ["198.51.100.2", "2001:db8:1::2"];

/// Opens the ports of the peer to which the calls go.
fn listen(testbed: &Testbed) -> anyhow::Result<Vec<TcpListener>> {
    let others: Vec<IpAddr> = OTHERS
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    add_addresses(&testbed.peer, "eth0", &others)?;
    testbed.peer.run(|| {
        [443, 8443]
            .map(|port| {
                Ok(TcpListener::bind(SocketAddr::from((
                    Ipv6Addr::UNSPECIFIED,
                    port,
                )))?)
            })
            .into_iter()
            .collect()
    })
}

/// The kinds of calls, and whether they are made for IPv6 addresses too.
const KINDS: [(&str, bool); 10] = [
    ("tcp", true),
    ("mptcp", true),
    ("fastopen", true),
    ("udp_connect", true),
    ("udp_connected", true),
    ("udp_send", true),
    ("udplite_send", true),
    ("mapped_tcp", false),
    ("mapped_udp_send", false),
    ("mapped_udp_connect", false),
];

#[test]
fn every_kind_of_call_is_judged() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let _listeners = listen(&testbed)?;
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    let outside = Cgroup::new()?;
    for (place, family) in ["IPv4", "IPv6"].iter().enumerate() {
        for (kind, has_v6) in KINDS {
            if place == 1 && !has_v6 {
                continue;
            }
            let calls = [
                (kind, ALLOWED[place], 443),
                (kind, OTHERS[place], 443),
                (kind, ALLOWED[place], 8443),
            ];
            let results = call(&testbed.host, &cgroup, &calls)?;
            assert_eq!(results, ["ok", "EPERM", "EPERM"], "{kind} over {family}");
            // Programs outside of the cgroup are not judged.
            let results = call(&testbed.host, &outside, &calls)?;
            assert_eq!(results, ["ok"; 3], "{kind} over {family}, outside");
        }
    }
    // Each refused call is counted once: 17 kinds and families, of which 5 only connect a datagram socket.
    let refused = |call| counter(&testbed, call, "refuse", "default");
    assert_eq!(refused("connect")?, 2 * (2 * 3 + 1));
    assert_eq!(refused("probe")?, 2 * (2 * 2 + 1));
    assert_eq!(refused("send")?, 2 * (2 * 2 + 1));
    Ok(())
}

#[test]
fn a_container_is_judged_before_translation() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let container = cgroup.child("container")?;
    let _listeners = listen(&testbed)?;
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    // A program in a child cgroup and another network namespace, as in a container: the peer's own namespace, where the
    // address is local to that namespace, but not to the host.
    let calls = [("tcp", ALLOWED[0], 443), ("tcp", OTHERS[0], 443)];
    let results = call(&testbed.peer, &container, &calls)?;
    assert_eq!(results, ["ok", "EPERM"]);
    Ok(())
}

#[test]
fn destinations_on_this_host_pass() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let here = testbed
        .host
        .run(|| TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 9000))))?;
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    let own = [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "198.51.100.1",
        "2001:db8:1::1",
        "0.0.0.0",
        "::",
    ];
    let calls = own.map(|address| ("tcp", address, 9000));
    assert_eq!(call(&testbed.host, &cgroup, &calls)?, ["ok"; 7]);
    assert_eq!(counter(&testbed, "connect", "pass", "local")?, 7);
    drop(here);
    Ok(())
}

#[test]
fn closed_ranges_are_refused_with_their_own_reason() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    let closed = [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.7.7",
        "169.254.169.254",
        "100.64.0.1",
        "fd00::1",
        "64:ff9b::a00:1",
    ];
    let calls = closed.map(|address| ("tcp", address, 443));
    assert_eq!(call(&testbed.host, &cgroup, &calls)?, ["EPERM"; 7]);
    assert_eq!(counter(&testbed, "connect", "refuse", "closed-range")?, 7);
    Ok(())
}

#[test]
fn the_error_of_a_refused_call_is_configurable() -> anyhow::Result<()> {
    require_root!();
    for errno in ["EPERM", "EACCES", "ECONNREFUSED"] {
        let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
        let _daemon = start(&testbed, &cgroup, &format!("errno = {errno:?}\n{PARTNER}"))?;
        let calls = [("tcp", OTHERS[0], 443), ("udp_send", OTHERS[1], 443)];
        assert_eq!(call(&testbed.host, &cgroup, &calls)?, [errno; 2]);
    }
    Ok(())
}

#[test]
fn resolvers_and_time_servers_pass_on_their_ports_only() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let settings = "resolvers = [\"198.51.100.53\"]\ntime_servers = [\"2001:db8:1::123\"]\n";
    let _daemon = start(&testbed, &cgroup, &format!("{settings}{PARTNER}"))?;
    let calls = [
        ("udp_send", "198.51.100.53", 53),
        ("udp_connect", "198.51.100.53", 53),
        ("udp_send", "198.51.100.53", 80),
        ("udp_send", "2001:db8:1::123", 123),
        ("udp_send", "2001:db8:1::123", 53),
    ];
    let results = call(&testbed.host, &cgroup, &calls)?;
    assert_eq!(results, ["ok", "ok", "EPERM", "ok", "EPERM"]);
    Ok(())
}

#[test]
fn connections_from_before_the_policy_continue() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let server = testbed
        .peer
        .run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 7000)))?;
    // Connected before the policy is attached; the process of the test is in no cgroup of the policy, so the socket is
    // made by a program in it.
    let script = "import socket,sys\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.connect((sys.argv[1],7000))\ns.send(b'1')\nprint('connected',flush=True)\nsys.stdin.readline()\ns.send(b'2')\nprint('sent',flush=True)\n";
    let mut command = testbed.host.command("python3")?;
    command.args(["-c", script, "198.51.100.2"]);
    command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let mut client = cgroup.hold(&mut command)?.spawn()?;
    let mut buffer = [0; 8];
    server.recv(&mut buffer)?;
    let _daemon = start(&testbed, &cgroup, "")?;
    assert_eq!(
        call(
            &testbed.host,
            &cgroup,
            &[("udp_send", "198.51.100.2", 7000)]
        )?,
        ["EPERM"]
    );
    drop(client.stdin.take());
    let length = server.recv(&mut buffer)?;
    assert_eq!(&buffer[..length], b"2");
    assert!(client.wait()?.success());
    Ok(())
}
