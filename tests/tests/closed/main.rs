//! A closed host: `default = "drop"`, services for a few sources, and answers to the host's own packets. Tests send from
//! outside and from the host.
//!
//! One thread has both ends of each conversation, so nothing runs that a test does not wait for.

mod closing;
mod conversations;
mod dhcp;
mod egress_hook;
mod foreign;
mod neighbours;
mod own_traffic;
mod path_mtu;
mod restarts;
mod strangers;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use allowlist_tests::lab::{Program, Testbed};
use serde_json::Value;

/// Long enough for a machine that is busy building.
const SOON: Duration = Duration::from_mins(3);
/// The time to wait for a packet that should not arrive.
const NEVER: Duration = Duration::from_millis(200);

/// The addresses of one family.
#[derive(Clone, Copy)]
struct Family {
    host: &'static str,
    /// The other end of the link.
    peer: &'static str,
    /// An address behind the peer, in no source.
    stranger: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        host: "198.51.100.1",
        peer: "198.51.100.2",
        stranger: "192.0.2.66",
    },
    Family {
        host: "2001:db8:1::1",
        peer: "2001:db8:1::2",
        stranger: "2001:db8:bad::66",
    },
];

impl Family {
    fn host(&self, port: u16) -> SocketAddr {
        at(self.host, port)
    }

    fn peer(&self, port: u16) -> SocketAddr {
        at(self.peer, port)
    }

    fn stranger(&self, port: u16) -> SocketAddr {
        at(self.stranger, port)
    }
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// Starts the filter on a closed host with one service: `tcp/443` and `udp/443` for `203.0.113.0/24` and
/// `2001:db8:7::/48`. `lines` are further lines of the configuration, top-level keys first.
fn close(testbed: &Testbed, lines: &str, options: &[&str]) -> anyhow::Result<Program> {
    let config = testbed.scratch.write(
        "allowlist.toml",
        format!(
            r#"
            interfaces = ["eth0"]
            default = "drop"
            {lines}
            [services.web]
            ports = ["tcp/443", "udp/443"]
            allow = ["friends"]
            [sources.friends]
            prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
            "#
        ),
    )?;
    let config = config.display().to_string();
    testbed.filter(&[&["--config", &config], options].concat())
}

/// Receives the next datagram and its source; `None` if none arrives in time.
fn receive(socket: &UdpSocket, timeout: Duration) -> anyhow::Result<Option<(Vec<u8>, IpAddr)>> {
    let mut buffer = vec![0; 1 << 16];
    socket.set_read_timeout(Some(timeout))?;
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) => {
            buffer.truncate(length);
            Ok(Some((buffer, from.ip().to_canonical())))
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns the counter of this name, or 0.
fn packets(counted: &Value, name: &str) -> u64 {
    counted[name].as_u64().unwrap_or(0)
}
