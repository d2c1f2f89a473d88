//! Replies of local UDP servers pass, to the endpoints that sent to them and to no others.

use std::net::{SocketAddr, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use allowlist_tests::lab::{Cgroup, Testbed};
use allowlist_tests::require_root;

use super::*;

/// A server that prints the result of a reply to each datagram, and of a datagram to another port of its sender.
const SERVER: &str = "
import errno, socket, sys
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 9000))
print('listening', flush=True)
while True:
    data, peer = s.recvfrom(100)
    for port in (peer[1], peer[1] ^ 1):
        try:
            s.sendto(data, (peer[0], port))
            print('ok', flush=True)
        except OSError as error:
            print(errno.errorcode[error.errno], flush=True)
";

#[test]
fn a_server_may_reply_to_its_clients_only() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let _daemon = start(&testbed, &cgroup, PARTNER)?;
    for (address, client) in [
        ("0.0.0.0", ["198.51.100.1", "198.51.100.2"]),
        ("::", ["2001:db8:1::1", "2001:db8:1::2"]),
        // A client of IPv4 on a socket of both families.
        ("::", ["198.51.100.1", "198.51.100.2"]),
    ] {
        let mut command = testbed.host.command("python3")?;
        command.args(["-c", SERVER, address]).stdout(Stdio::piped());
        cgroup.hold(&mut command)?;
        let server = allowlist_tests::lab::Program::start(command)?;
        let soon = Duration::from_mins(3);
        server.wait_for_line("listening", soon)?;
        let [host, peer] = client.map(str::parse::<std::net::IpAddr>);
        let (host, peer) = (host?, peer?);
        let socket = testbed.peer.run(|| UdpSocket::bind((peer, 0)))?;
        socket.set_read_timeout(Some(soon))?;
        socket.send_to(b"ping", SocketAddr::from((host, 9000)))?;
        let mut buffer = [0; 8];
        let (length, _) = socket.recv_from(&mut buffer)?;
        assert_eq!(&buffer[..length], b"ping", "{address} for {peer}");
        server.wait_for_line("EPERM", soon)?;
        let words: Vec<String> = server.stdout().lines().map(str::to_owned).collect();
        assert_eq!(words, ["listening", "ok", "EPERM"], "{address} for {peer}");
    }
    assert_eq!(counter(&testbed, "send", "pass", "reply")?, 3);
    Ok(())
}
