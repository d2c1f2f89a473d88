//! The login session that a command belongs to, and the lockout check, which protects it.
//!
//! - this file finds the session
//! - `login_sources` parses the environment, the process status and `utmp`: pure
//! - `host_interfaces` reads this host's interfaces and addresses
//! - `lockout` refuses a change that would cut the session
//!
//! A session is only a reason to refuse a change, never a permission: a caller can forge it. Finds remote logins only.

mod host_interfaces;
pub mod lockout;
mod login_sources;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utmp_rs::{UtmpEntry, UtmpParser};

pub use host_interfaces::{HostInterface, host_interfaces};
pub use lockout::{ChangeOrigin, Generation, LockoutError};

use crate::explain::Typed;

/// The environment variable in which sshd stores the addresses and ports of both ends.
const SSH_CONNECTION: &str = "SSH_CONNECTION";
/// The port of sshd for a session whose local port is unknown.
const SSH: u16 = 22;
/// The number of ancestors to examine, above any chain of processes that a user starts.
const MAX_ANCESTORS: usize = 64;

/// A remote login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The remote end. Its port is 0 if it is unknown.
    pub peer: SocketAddr,
    /// This host's end. Its address is unspecified if it is unknown.
    pub local: SocketAddr,
    /// The interface, if an address has a zone.
    pub interface: Option<String>,
    /// The source of the information.
    #[serde(rename = "how")]
    pub evidence: Evidence,
}

/// The source of the information about a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// The environment of this process.
    Environment,
    /// The environment of an ancestor, by its process id: `sudo` and `su` drop the variable.
    Ancestor(u32),
    /// The login at a terminal, by `utmp`.
    Login(String),
}

impl Session {
    /// Returns the session of this process, or `None` without evidence of one, as at a console.
    pub fn find() -> Option<Self> {
        let own = std::env::var(SSH_CONNECTION).ok();
        Host::default().find(own.as_deref(), std::process::id())
    }

    fn from_connection(text: &str, evidence: Evidence) -> Option<Self> {
        let (peer, local, interface) = login_sources::connection(text)?;
        Some(Self {
            peer,
            local,
            interface,
            evidence,
        })
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => write!(out, "{SSH_CONNECTION} of this process"),
            Self::Ancestor(process) => write!(out, "{SSH_CONNECTION} of process {process}"),
            Self::Login(line) => write!(out, "the login at {line}"),
        }
    }
}

/// The files in which a host describes its processes and logins.
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
        own.and_then(|text| Session::from_connection(text, Evidence::Environment))
            .or_else(|| {
                self.ancestors(process).into_iter().find_map(|ancestor| {
                    // An ordinary user cannot read the environment of another user's process.
                    let bytes = fs::read(self.path_of(ancestor, "environ")).ok()?;
                    let text = login_sources::variable(&bytes, SSH_CONNECTION)?;
                    Session::from_connection(&text, Evidence::Ancestor(ancestor))
                })
            })
            .or_else(|| self.by_login(process))
    }

    /// Returns the ancestors of a process, the nearest first, without process 1.
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

    /// Returns the remote login at the nearest terminal of a process and its ancestors: `sudo` gives a command a
    /// terminal of its own.
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
