//! A closed host, met from outside and from inside: `default = "drop"`, with services for a few, and
//! answers to what the host itself sends.
//!
//! Both ends of a conversation are held by one thread, so nothing runs that a test does not wait for.

mod closing;
mod dhcp;
mod foreign;
mod hooks;
mod neighbours;
mod own_traffic;
mod path_mtu;
mod restarts;
mod strangers;
mod talk;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use allowlist_tests::lab::{Program, Testbed};
use serde_json::Value;

/// Long enough for a machine that is busy building.
const SOON: Duration = Duration::from_mins(3);
/// Long enough for what does not come.
const NEVER: Duration = Duration::from_millis(200);

/// The addresses of one family.
#[derive(Clone, Copy)]
struct Family {
    host: &'static str,
    /// The other end of the link.
    peer: &'static str,
    /// Behind the other end: nobody that the host knows.
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
    SocketAddr::new(address.parse().expect("an address of this file"), port)
}

/// Starts the filter on a closed host with more lines in its configuration, those without a table
/// first. One service: `tcp/443` and `udp/443` for `203.0.113.0/24` and `2001:db8:7::/48`.
fn close(site: &Testbed, lines: &str, options: &[&str]) -> anyhow::Result<Program> {
    let config = site.scratch.write(
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
    site.filter(&[&["--config", &config], options].concat())
}

/// What a socket gets next, and from whom; `None` if nothing comes in time.
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

/// How many packets were counted so; 0 where none were.
fn packets(counted: &Value, end: &str) -> u64 {
    counted[end].as_u64().unwrap_or(0)
}
