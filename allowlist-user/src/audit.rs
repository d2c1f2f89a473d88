//! The entries of the audit log: who changed what and when. Plain data, which `event_log` stores.

use std::fmt;

use allowlist_policy::Mode;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The maximum number of prefixes that the audit log stores of one action.
const MAX_STORED_PREFIXES: usize = 200;
/// The maximum number of prefixes of one action that a report shows.
const MAX_SHOWN_PREFIXES: usize = 4;
/// The maximum length of an invalid prefix in the audit log, in characters.
const MAX_TEXT_CHARS: usize = 60;

/// An entry of the audit log: an action that was done or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// The time of the action.
    pub time: Timestamp,
    /// The client that requested the action, or the daemon itself.
    #[serde(rename = "who")]
    pub actor: Actor,
    /// The action that was done or refused.
    #[serde(flatten)]
    pub action: AuditAction,
    /// The reason if the action was refused; `None` if it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Whether the action was done without changing anything.
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_change: bool,
    /// The number of the active generation after the action.
    pub generation: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// The originator of an action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Actor {
    /// A client of the control socket, by its kernel credentials.
    Peer(Peer),
    /// The daemon itself, for example for a rollback at a deadline.
    Daemon,
    /// A process that sent a signal to the daemon; it is not known.
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

/// An action of the audit log, by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum AuditAction {
    /// The daemon started.
    Start {
        /// The origin of the configuration: the path of its file, or the command line.
        from: String,
        /// The number of the active policy.
        policy: u64,
    },
    /// The daemon ended, after a signal or after `allowlist detach`.
    Stop {
        /// Whether the filter stays attached after the daemon has ended.
        filtering: bool,
    },
    /// Prefixes were added to services.
    Add(Prefixes),
    /// Added prefixes were removed.
    Remove(Prefixes),
    /// Added prefixes reached the end of their time to live.
    Expire(Prefixes),
    /// The mode was set.
    Mode {
        /// The mode that was set.
        mode: Mode,
    },
    /// A rejected list was accepted.
    Accept {
        /// The name of the list's source.
        source: String,
        /// The id of the accepted list; `None` if the request had no id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
    /// Lists were fetched because of a command.
    Refresh {
        /// The names of the fetched sources.
        sources: Vec<String>,
    },
    /// The configuration was read again.
    Reload {
        /// The number of the new policy; `None` if nothing changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<u64>,
    },
    /// An earlier policy was activated.
    Rollback {
        /// The number of the earlier policy, which was restored.
        to: u64,
        /// The number of the new policy, which restores the earlier one; `None` if the request was refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<u64>,
    },
    /// The pending change was confirmed.
    Confirm,
    /// The pending change was rolled back at its deadline, as it was not confirmed.
    NotConfirmed,
}

/// A summary of the prefixes of an action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefixes {
    /// The number of all prefixes of the action.
    pub count: usize,
    /// The first prefixes of the action, up to a limit.
    pub prefixes: Vec<IpNet>,
    /// The first invalid prefixes of the request, each cut to 60 characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
    /// The names of the services that the prefixes reach.
    pub services: Vec<String>,
    /// The time at which the prefixes expire; `None` for an unlimited time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The user's note on the prefixes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Prefixes {
    /// Returns a summary of prefixes, each given with its service.
    pub fn of<'s>(pairs: impl Iterator<Item = (IpNet, &'s str)>) -> Self {
        let mut services = std::collections::BTreeSet::new();
        let (mut count, mut prefixes) = (0, Vec::new());
        for (prefix, service) in pairs {
            count += 1;
            services.insert(service);
            if prefixes.len() < MAX_STORED_PREFIXES {
                prefixes.push(prefix);
            }
        }
        Self {
            count,
            prefixes,
            unreadable: Vec::new(),
            services: services.into_iter().map(str::to_owned).collect(),
            until: None,
            note: None,
        }
    }

    /// Adds the invalid prefixes of a request to the summary.
    #[must_use]
    pub fn with_unreadable<'t>(mut self, texts: impl Iterator<Item = &'t str>) -> Self {
        for text in texts {
            self.count += 1;
            if self.unreadable.len() < MAX_SHOWN_PREFIXES {
                self.unreadable
                    .push(text.chars().take(MAX_TEXT_CHARS).collect());
            }
        }
        self
    }
}

impl fmt::Display for AuditAction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { from, policy } => write!(out, "start by {from}, policy {policy}"),
            Self::Stop { filtering: true } => out.write_str("stop; the filter stays attached"),
            Self::Stop { filtering: false } => out.write_str("stop; nothing is filtered"),
            Self::Add(prefixes) => write!(out, "add {}", prefixes.text("to")),
            Self::Remove(prefixes) => write!(out, "remove {}", prefixes.text("from")),
            Self::Expire(prefixes) => write!(out, "expire {}", prefixes.text("from")),
            Self::Mode { mode } => write!(out, "mode {}", mode.name()),
            Self::Accept { source, id } => {
                write!(out, "accept the list of {source}")?;
                match id {
                    Some(id) => write!(out, ", {id}"),
                    None => Ok(()),
                }
            }
            Self::Refresh { sources } if sources.is_empty() => out.write_str("refresh nothing"),
            Self::Refresh { sources } => write!(out, "refresh {}", sources.join(" ")),
            Self::Reload { policy: None } => out.write_str("reload"),
            Self::Reload {
                policy: Some(policy),
            } => write!(out, "reload, policy {policy}"),
            Self::Rollback { to, policy: None } => write!(out, "rollback to policy {to}"),
            Self::Rollback {
                to,
                policy: Some(policy),
            } => write!(out, "rollback to policy {to}, as policy {policy}"),
            Self::Confirm => out.write_str("confirm"),
            Self::NotConfirmed => out.write_str("roll back the unconfirmed change"),
        }
    }
}

impl Prefixes {
    /// Returns the prefixes with their services, in one line; `preposition` precedes the services.
    fn text(&self, preposition: &str) -> String {
        let shown = self.prefixes.iter().take(MAX_SHOWN_PREFIXES);
        let mut words: Vec<String> = shown.map(ToString::to_string).collect();
        let left = MAX_SHOWN_PREFIXES - words.len();
        let unreadable = self.unreadable.iter().take(left);
        words.extend(unreadable.map(|text| format!("{text:?}")));
        if self.count > words.len() {
            words.push(format!("and {} more", self.count - words.len()));
        }
        // A refused request may lack the service.
        let services = self.services.join(" ");
        if !services.is_empty() {
            words.push(format!("{preposition} {services}"));
        }
        if let Some(until) = self.until {
            words.push(format!("until {}", until.strftime("%Y-%m-%d %H:%M:%SZ")));
        }
        if let Some(note) = &self.note {
            words.push(format!("({note})"));
        }
        words.join(" ")
    }
}
