//! The login session that a command belongs to, and the lockout check, which protects it.
//!
//! - this file finds the session, and runs the lockout check with it
//! - `login_sources` parses the environment, the process status and `utmp`: pure
//! - `host_interfaces` reads this host's interfaces and addresses
//!
//! A session is only a reason to refuse a change, never a permission: a caller can forge it. Finds remote logins only.

mod host_interfaces;
mod login_sources;

#[cfg(test)]
mod tests;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use allowlist_policy::explain::Typed;
use allowlist_policy::lockout::{
    ChangeOrigin, Evidence, Generation, LockoutError, SSH_CONNECTION, Session, evaluate,
};
use log::warn;
use utmp_rs::{UtmpEntry, UtmpParser};

use host_interfaces::host_interfaces;

/// The local port that is assumed for an SSH session whose port is unknown.
const SSH: u16 = 22;
/// The maximum number of ancestors of a process to examine, above any chain of processes that a user starts.
const MAX_ANCESTORS: usize = 64;

/// Returns the login session of this process, or `None` if there is no evidence of a remote session, as at a console.
pub fn find() -> Option<Session> {
    let own = std::env::var(SSH_CONNECTION).ok();
    Host::default().find(own.as_deref(), std::process::id())
}

/// Does the lockout check: compares the generations before and after a change, for `session` and this host's present
/// interfaces. `before` is `None` if nothing was published before. Without a session every change is safe.
///
/// # Errors
/// Fails if the change would cut the session.
pub fn check(
    session: Option<&Session>,
    before: Option<Generation<'_>>,
    after: Generation<'_>,
    origin: ChangeOrigin,
) -> Result<(), Box<LockoutError>> {
    let Some(session) = session else {
        return Ok(());
    };
    let interfaces = host_interfaces().unwrap_or_else(|error| {
        warn!("{error:#}; the lockout check assumes that your session can arrive at any interface");
        Vec::new()
    });
    match evaluate(session, &interfaces, before, after, origin) {
        Some(error) => Err(Box::new(error)),
        None => Ok(()),
    }
}

/// Parses the value of `SSH_CONNECTION` into a session with this evidence; `None` if the value has no addresses.
fn from_connection(text: &str, evidence: Evidence) -> Option<Session> {
    let (peer, local, interface) = login_sources::connection(text)?;
    Some(Session {
        peer,
        local,
        interface,
        evidence,
    })
}

/// The files in which a host describes its processes and logins; tests use copies.
struct Host {
    processes: PathBuf,
    logins: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            processes: PathBuf::from("/proc"),
            logins: PathBuf::from("/run/utmp"),
        }
    }
}

impl Host {
    fn find(&self, own: Option<&str>, process: u32) -> Option<Session> {
        own.and_then(|text| from_connection(text, Evidence::Environment))
            .or_else(|| {
                self.ancestors(process).into_iter().find_map(|ancestor| {
                    // An ordinary user cannot read the environment of another user's process.
                    let bytes = fs::read(self.path_of(ancestor, "environ")).ok()?;
                    let text = login_sources::variable(&bytes, SSH_CONNECTION)?;
                    from_connection(&text, Evidence::Ancestor(ancestor))
                })
            })
            .or_else(|| self.by_login(process))
    }

    /// Returns the process ids of a process's ancestors, the nearest first, without process 1; at most
    /// [`MAX_ANCESTORS`].
    fn ancestors(&self, process: u32) -> Vec<u32> {
        let mut ancestors = Vec::new();
        let mut current = process;
        while ancestors.len() < MAX_ANCESTORS
            && let Ok(status) = fs::read_to_string(self.path_of(current, "status"))
            && let Some(parent @ 2..) = login_sources::parent(&status)
        {
            ancestors.push(parent);
            current = parent;
        }
        ancestors
    }

    /// Returns the session of the remote login at the nearest terminal of a process or its ancestors, or `None` if
    /// there is no such login. Ancestors count since `sudo` gives a command a terminal of its own.
    fn by_login(&self, process: u32) -> Option<Session> {
        let logins: Vec<UtmpEntry> = UtmpParser::from_path(&self.logins)
            .ok()?
            .filter_map(Result::ok) // skips damaged entries
            .collect();
        let chain = [process].into_iter().chain(self.ancestors(process));
        let mut lines = chain.flat_map(|process| self.terminals(process));
        lines.find_map(|line| {
            let Typed { address, zone, .. } = login_sources::remote_of(&logins, &line)?;
            let unspecified: IpAddr = match address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            Some(Session {
                peer: SocketAddr::new(address, 0),
                local: SocketAddr::new(unspecified, SSH),
                interface: zone,
                evidence: Evidence::Login(line),
            })
        })
    }

    /// Returns the terminals of a process's standard input, output and error, named as in `utmp`.
    fn terminals(&self, process: u32) -> Vec<String> {
        let files = (0..=2).filter_map(|number| {
            fs::read_link(self.path_of(process, &format!("fd/{number}"))).ok()
        });
        let mut lines: Vec<String> = files
            .filter_map(|file| login_sources::line(&file.to_string_lossy()))
            .collect();
        lines.dedup();
        lines
    }

    fn path_of(&self, process: u32, file: &str) -> PathBuf {
        self.processes.join(process.to_string()).join(file)
    }
}
