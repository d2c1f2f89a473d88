//! The entries of the audit log: who changed what and when. Plain data, which `event_log` stores.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::operation::Operation;

/// An entry of the audit log: an operation that was done or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// The time of the operation.
    pub time: Timestamp,
    /// The client that requested the operation, or the daemon itself.
    #[serde(rename = "who")]
    pub actor: Actor,
    /// The operation that was done or refused.
    #[serde(flatten)]
    pub operation: Operation,
    /// The number of the policy that a start, a reload or a rollback made active; `None` for other operations, and if
    /// the operation was refused or changed nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<u64>,
    /// The reason if the operation was refused; `None` if it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Whether the operation was done without changing anything.
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_change: bool,
    /// The number of the active generation after the operation.
    pub generation: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// The originator of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Actor {
    /// A client of the control socket, by its kernel credentials.
    Peer(Peer),
    /// The daemon itself, for example for a rollback at a deadline.
    Daemon,
    /// A signal to the daemon; which process sent it is not known.
    Signal,
}

/// A client of the control socket, as the kernel and `/proc` describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The user id of the client.
    pub uid: u32,
    /// The group id of the client.
    pub gid: u32,
    /// The process id of the client; `None` if the process is in another PID namespace.
    pub pid: Option<i32>,
    /// The name of the user; `None` if the host has no name for the user id.
    pub user: Option<String>,
    /// The name of the user who ran `sudo`; `None` without `sudo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
    /// The name of the client's program; `None` if it cannot be read.
    pub program: Option<String>,
}

impl fmt::Display for Actor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => peer.fmt(out),
            Self::Daemon => out.write_str("the daemon"),
            Self::Signal => out.write_str("a signal"),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => out.write_str(user),
            None => write!(out, "user {}", self.uid),
        }?;
        match &self.sudo_user {
            Some(user) => write!(out, " (by sudo, {user})"),
            None => Ok(()),
        }
    }
}

impl AuditEntry {
    /// Returns the operation, with the policy that it made active, if any.
    pub fn summary(&self) -> String {
        let operation = &self.operation;
        match (operation, self.policy) {
            (_, None) => operation.to_string(),
            (Operation::Rollback { .. }, Some(policy)) => {
                format!("{operation}, as policy {policy}")
            }
            (_, Some(policy)) => format!("{operation}, policy {policy}"),
        }
    }
}
