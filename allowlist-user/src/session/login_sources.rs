//! Parses the texts that describe a login: a process's environment and status, and `utmp`. Pure.

use std::net::SocketAddr;

use allowlist_policy::explain::Typed;
use utmp_rs::UtmpEntry;

/// Parses the value of `SSH_CONNECTION`, `client_address client_port server_address server_port`. Returns the client's
/// and the server's end, and the zone (interface) of a link-local address; `None` for the zone if no address has one.
///
/// Returns `None` for any other text, such as the one that sshd sets for a connection without addresses.
pub(super) fn connection(text: &str) -> Option<(SocketAddr, SocketAddr, Option<String>)> {
    let mut words = text.split_whitespace();
    let mut end = || {
        let typed: Typed = words.next()?.parse().ok()?;
        let port: u16 = words.next()?.parse().ok()?;
        Some((SocketAddr::new(typed.address, port), typed.zone))
    };
    let ((peer, peer_zone), (local, local_zone)) = (end()?, end()?);
    let is_valid = peer.is_ipv4() == local.is_ipv4() && words.next().is_none();
    is_valid.then_some((peer, local, local_zone.or(peer_zone)))
}

/// Returns the value of the variable `name` in an environment with the format of `/proc/PID/environ`; `None` if the
/// variable is not set.
pub(super) fn variable(environment: &[u8], name: &str) -> Option<String> {
    environment.split(|byte| *byte == 0).find_map(|variable| {
        let value = variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(String::from_utf8_lossy(value).into_owned())
    })
}

/// Returns the id of the parent process from the text of `/proc/PID/status`, or `None` if the text does not state it.
pub(super) fn parent(status: &str) -> Option<u32> {
    let number = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    number.trim().parse().ok()
}

/// Returns the name that a terminal has in `utmp`, for the path of its device; `None` if the file is no terminal.
pub(super) fn line(file: &str) -> Option<String> {
    let line = file.strip_prefix("/dev/")?;
    (line.starts_with("pts/") || line.starts_with("tty")).then(|| line.to_owned())
}

/// Returns the remote address of the login at a terminal; `None` for a local login, or one from a host name.
pub(super) fn remote_of(logins: &[UtmpEntry], terminal: &str) -> Option<Typed> {
    logins.iter().find_map(|login| match login {
        UtmpEntry::UserProcess { line, host, .. } if line == terminal => {
            // Programs add to the address, such as `203.0.113.9 via mosh [4711]`.
            host.split_whitespace().next()?.parse().ok()
        }
        _ => None,
    })
}
