//! What a process's environment, its status and `utmp` tell of a login. Pure: text and bytes in, words out.

use std::net::SocketAddr;

use utmp_rs::UtmpEntry;

use crate::explain::Typed;

/// `client_address client_port server_address server_port`, and the interface that came with either
/// address; none for anything else, such as what sshd says of a connection without addresses.
pub(super) fn connection(text: &str) -> Option<(SocketAddr, SocketAddr, Option<String>)> {
    let mut words = text.split_whitespace();
    let mut end = || {
        let typed: Typed = words.next()?.parse().ok()?;
        let port: u16 = words.next()?.parse().ok()?;
        Some((SocketAddr::new(typed.address, port), typed.zone))
    };
    let ((peer, peer_zone), (local, local_zone)) = (end()?, end()?);
    let is_one = peer.is_ipv4() == local.is_ipv4() && words.next().is_none();
    is_one.then_some((peer, local, local_zone.or(peer_zone)))
}

/// The value of a variable in an environment as `/proc/PID/environ` has it.
pub(super) fn variable(environment: &[u8], name: &str) -> Option<String> {
    environment.split(|byte| *byte == 0).find_map(|variable| {
        let value = variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(String::from_utf8_lossy(value).into_owned())
    })
}

/// The process above one, as `/proc/PID/status` has it.
pub(super) fn parent(status: &str) -> Option<u32> {
    let number = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    number.trim().parse().ok()
}

/// What `utmp` calls a terminal; none for what is no terminal.
pub(super) fn line(file: &str) -> Option<String> {
    let line = file.strip_prefix("/dev/")?;
    (line.starts_with("pts/") || line.starts_with("tty")).then(|| line.to_owned())
}

/// From where somebody is logged in at a terminal; none for who sits here, and where only a name is known.
pub(super) fn remote_of(logins: &[UtmpEntry], terminal: &str) -> Option<Typed> {
    logins.iter().find_map(|login| match login {
        UtmpEntry::UserProcess { line, host, .. } if line == terminal => {
            // What stands behind it tells of programs, such as `203.0.113.9 via mosh [4711]`.
            host.split_whitespace().next()?.parse().ok()
        }
        _ => None,
    })
}
