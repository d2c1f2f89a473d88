//! The resolvers of this host, for an egress policy that names none: read from the resolver configuration, and read again
//! every second, so that a changed network does not cut programs off from DNS.

use std::net::IpAddr;
use std::path::Path;

use allowlist_files::bounded::Open;
use log::{info, warn};
use tokio::task::{JoinHandle, spawn_blocking};

use super::Daemon;
use super::commit::Transaction;

/// The file with this host's resolvers (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The file with the servers that systemd-resolved queries, in the same format (systemd-resolved.service(8)).
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";
/// The maximum size of both files, in bytes; no resolver is read from a larger file.
const MAX_BYTES: u64 = 1 << 16;

/// This host's resolvers as they were read last.
#[derive(Default)]
pub(super) struct HostResolvers {
    known: Vec<IpAddr>,
    /// The read in progress, on a thread of its own, since a file system can hang.
    reading: Option<JoinHandle<Vec<IpAddr>>>,
}

impl HostResolvers {
    /// Returns the resolvers that were read last.
    pub(super) fn known(&self) -> &[IpAddr] {
        &self.known
    }

    /// Reads the resolvers, waiting for the result; within the limits of time for state files.
    pub(super) async fn read(&mut self) {
        if let Ok(found) = spawn_blocking(host_resolvers).await {
            self.known = found;
        }
    }

    /// Starts a read, or takes the result of the last one; returns whether the resolvers have changed.
    async fn has_changed(&mut self) -> bool {
        let Some(reading) = self.reading.take() else {
            self.reading = Some(spawn_blocking(host_resolvers));
            return false;
        };
        if !reading.is_finished() {
            self.reading = Some(reading);
            return false;
        }
        match reading.await {
            Ok(found) if found != self.known => {
                self.known = found;
                true
            }
            _ => false,
        }
    }
}

/// Returns the addresses of the resolvers: those in `/etc/resolv.conf` and, if systemd-resolved is among these, those
/// that it queries. A file that cannot be read has none.
fn host_resolvers() -> Vec<IpAddr> {
    let mut found = read(RESOLV_CONF);
    if found.iter().any(IpAddr::is_loopback) {
        for address in read(RESOLVED_CONF) {
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    found
}

/// Returns the resolvers in a file in the format of resolv.conf(5).
fn read(path: &str) -> Vec<IpAddr> {
    let text = Open::configured(MAX_BYTES).read(Path::new(path));
    text.map_or_else(
        |_| Vec::new(),
        |text| parse(&String::from_utf8_lossy(&text)),
    )
}

fn parse(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver")
            && let Some(Ok(address)) = words.next().map(str::parse)
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

impl Daemon {
    /// Reads this host's resolvers, and publishes the egress policy again if it uses them and they have changed. A failure
    /// is logged.
    pub(super) async fn follow_resolvers(&mut self) {
        let has_changed = self.resolvers.has_changed().await;
        let egress = self.state.policy().egress.as_ref();
        let uses_them = egress.is_some_and(|egress| egress.resolvers.is_empty());
        if !has_changed || !uses_them || self.is_inactive {
            return;
        }
        let known: Vec<String> = self
            .resolvers
            .known()
            .iter()
            .map(IpAddr::to_string)
            .collect();
        info!(
            "the resolvers of this host have changed, and the egress policy allows them now: {}",
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        );
        let transaction = Transaction::again(self.state.clone());
        if let Err(error) = self.commit(transaction).await {
            warn!(
                "the egress policy cannot be published with the changed resolvers: {error}; programs may be refused the new ones; `allowlist reload` tries again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_from_resolv_conf() {
        let text = "# nameserver 192.0.2.1\nsearch example.com\nnameserver 192.0.2.53\n\tnameserver  2001:db8::53 \n\
                    nameserver fe80::1%eth0\nnameserver\nnameservers 192.0.2.2\nnameserver 192.0.2.53\n";
        let expected: [IpAddr; 2] =
            ["192.0.2.53", "2001:db8::53"].map(|one| one.parse().expect("an address"));
        assert_eq!(parse(text), expected);
    }
}
