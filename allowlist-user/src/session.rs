//! The connection that a command is given over: by what is known of its process, and what would cut it.
//!
//! - this file looks for it
//! - `told` reads what tells of it: pure
//! - `holders` asks which interface has which address
//! - `cut` says whether a change would cut it: pure
//!
//! What is found is good for refusing a change and for nothing else: whoever gives a command can make it say
//! anything. Knows no connection that was made otherwise than by a login from elsewhere.

mod cut;
mod holders;
mod told;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use log::warn;
use serde::{Deserialize, Serialize};
use utmp_rs::{UtmpEntry, UtmpParser};

pub use cut::{By, Cut, Generation, cut};
pub use holders::{Holder, holders};

use crate::explain::Typed;

/// The environment variable in which sshd says who is connected: address and port of both ends.
const SSH_CONNECTION: &str = "SSH_CONNECTION";
/// Where sshd listens, where nothing says otherwise.
const SSH: u16 = 22;
/// Longer than any chain of processes that somebody typed.
const MOST_ANCESTORS: usize = 64;

/// A login from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The other side. Its port is 0 where it is not known.
    pub peer: SocketAddr,
    /// This side. Its address is unspecified where it is not known.
    pub local: SocketAddr,
    /// The interface, where an address came with it.
    pub interface: Option<String>,
    /// What told of it.
    pub how: How,
}

/// What told of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// This process's own environment.
    Environment,
    /// The environment of the process of that number, below which this one runs: `sudo` and `su` drop the
    /// variable.
    Ancestor(u32),
    /// Who is logged in at that terminal, by `utmp`.
    Login(String),
}

impl Session {
    /// The one that this process belongs to; none where nothing tells of any, as at a console.
    pub fn find() -> Option<Self> {
        let own = std::env::var(SSH_CONNECTION).ok();
        Host::default().find(own.as_deref(), std::process::id())
    }

    fn of_connection(text: &str, how: How) -> Option<Self> {
        let (peer, local, interface) = told::connection(text)?;
        Some(Self {
            peer,
            local,
            interface,
            how,
        })
    }
}

/// Fails where a change would cut the session that it is given over, by this host's interfaces as they are.
/// Without a session there is nothing to cut.
pub fn guard(
    session: Option<&Session>,
    before: Option<Generation<'_>>,
    after: Generation<'_>,
    by: By,
) -> Result<(), Box<Cut>> {
    let Some(session) = session else {
        return Ok(());
    };
    let holders = holders().unwrap_or_else(|error| {
        warn!("{error:#}; so a connection may come in by any interface");
        Vec::new()
    });
    match cut(session, &holders, before, after, by) {
        Some(cut) => Err(Box::new(cut)),
        None => Ok(()),
    }
}

impl fmt::Display for How {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => write!(out, "{SSH_CONNECTION} of this process"),
            Self::Ancestor(process) => write!(out, "{SSH_CONNECTION} of process {process}"),
            Self::Login(line) => write!(out, "the login at {line}"),
        }
    }
}

/// Where a host tells of its processes and logins.
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
        own.and_then(|text| Session::of_connection(text, How::Environment))
            .or_else(|| {
                self.ancestors(process).into_iter().find_map(|ancestor| {
                    // Of another user's process, an ordinary user sees none.
                    let bytes = fs::read(self.of(ancestor, "environ")).ok()?;
                    let text = told::variable(&bytes, SSH_CONNECTION)?;
                    Session::of_connection(&text, How::Ancestor(ancestor))
                })
            })
            .or_else(|| self.by_login(process))
    }

    /// The processes above one, the nearest first, without the first of all, which belongs to nobody.
    fn ancestors(&self, process: u32) -> Vec<u32> {
        let mut ancestors = Vec::new();
        let mut current = process;
        while ancestors.len() < MOST_ANCESTORS
            && let Ok(status) = fs::read_to_string(self.of(current, "status"))
            && let Some(parent @ 2..) = told::parent(&status)
        {
            ancestors.push(parent);
            current = parent;
        }
        ancestors
    }

    /// Of the terminals of a process and of those above it, the nearest at which somebody is logged in from
    /// elsewhere: `sudo` gives a command a terminal of its own.
    fn by_login(&self, process: u32) -> Option<Session> {
        let logins: Vec<UtmpEntry> = UtmpParser::from_path(&self.logins)
            .ok()?
            .filter_map(Result::ok) // what is damaged tells nothing
            .collect();
        let chain = [process].into_iter().chain(self.ancestors(process));
        let mut lines = chain.flat_map(|process| self.terminals(process));
        lines.find_map(|line| {
            let Typed { address, zone, .. } = told::remote_of(&logins, &line)?;
            let nobody: IpAddr = match address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            Some(Session {
                peer: SocketAddr::new(address, 0),
                local: SocketAddr::new(nobody, SSH),
                interface: zone,
                how: How::Login(line),
            })
        })
    }

    /// What standard input, output and error of a process are, as `utmp` calls it.
    fn terminals(&self, process: u32) -> Vec<String> {
        let files = (0..=2)
            .filter_map(|number| fs::read_link(self.of(process, &format!("fd/{number}"))).ok());
        let mut lines: Vec<String> = files
            .filter_map(|file| told::line(&file.to_string_lossy()))
            .collect();
        lines.dedup();
        lines
    }

    fn of(&self, process: u32, file: &str) -> PathBuf {
        self.processes.join(process.to_string()).join(file)
    }
}
