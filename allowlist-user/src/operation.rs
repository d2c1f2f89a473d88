//! The operations on the filter: one type is behind the request, the record in the journal, the line of the audit log and
//! the line of the log.
//!
//! Pure. `control` has the format of requests; `audit` and `journal` store operations.

use std::fmt;

use allowlist_policy::Mode;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The maximum number of prefixes that a record stores of one operation.
const MAX_STORED_PREFIXES: usize = 200;
/// The maximum number of prefixes of one operation that a text shows.
const MAX_SHOWN_PREFIXES: usize = 4;
/// The maximum length of an invalid prefix in a record, in characters; the rest is cut off.
const MAX_TEXT_CHARS: usize = 60;

/// An operation on the filter. `P` is the type of the prefixes of `add`, `remove` and `expire`.
///
/// A record has a summary of the prefixes; a request has a list of all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Operation<P = Prefixes> {
    /// The daemon starts.
    Start {
        /// The origin of the configuration: the path of its file, or the command line.
        from: String,
    },
    /// The daemon ends, after a signal or after `allowlist detach`.
    Stop {
        /// Whether the filter stays attached after the daemon has ended.
        filtering: bool,
    },
    /// Adds all of these prefixes to services, or none of them.
    Add(P),
    /// Removes all of these added prefixes, or none of them.
    Remove(P),
    /// Removes added prefixes at the end of their time to live.
    Expire(P),
    /// Sets the active mode for packets, or that of the egress policy.
    Mode {
        /// The mode to set.
        mode: Mode,
        /// Whether the mode of the egress policy is set, and not the mode for packets.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        egress: bool,
    },
    /// Accepts a list that the gate rejected.
    Accept {
        /// The name of the list's source.
        source: String,
        /// The id of the rejected list. Without it, the answer is an error that names the present rejected list.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
    /// Fetches the lists of sources now.
    Refresh {
        /// The names of the sources; in a request, empty for all sources.
        sources: Vec<String>,
    },
    /// Reads the configuration file again, and activates the configuration.
    Reload {
        /// The path of the configuration file; `None` in a request, and in records of earlier versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
    },
    /// Activates an earlier policy.
    Rollback {
        /// The number of the earlier policy; `None` for the policy before the newest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<u64>,
    },
    /// Confirms the pending change.
    Confirm,
    /// Rolls the pending change back at its deadline, since it was not confirmed.
    NotConfirmed {
        /// The number of the policy that is active again; `None` if nothing was filtered before the change.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<u64>,
    },
}

/// A summary of the prefixes of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefixes {
    /// The number of all prefixes of the operation, including the invalid ones of a request.
    pub count: usize,
    /// The first valid prefixes of the operation, at most 200.
    pub prefixes: Vec<IpNet>,
    /// The first invalid prefixes of the request, at most 4, each cut to 60 characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
    /// The names of the services whose added prefixes the operation concerns.
    pub services: Vec<String>,
    /// The time at which the prefixes expire; `None` for an unlimited time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The user's note on the prefixes; `None` without a note.
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

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { from } => write!(out, "start by {from}"),
            Self::Stop { filtering: true } => out.write_str("stop; the filter stays attached"),
            Self::Stop { filtering: false } => out.write_str("stop; nothing is filtered"),
            Self::Add(prefixes) => write!(out, "add {}", prefixes.text("to")),
            Self::Remove(prefixes) => write!(out, "remove {}", prefixes.text("from")),
            Self::Expire(prefixes) => write!(out, "expire {}", prefixes.text("from")),
            Self::Mode { mode, egress } => {
                let of = if *egress { "egress mode" } else { "mode" };
                write!(out, "{of} {}", mode.name())
            }
            Self::Accept { source, id: None } => write!(out, "accept the list of {source}"),
            Self::Accept {
                source,
                id: Some(id),
            } => write!(out, "accept the list of {source} with the id {id}"),
            Self::Refresh { sources } if sources.is_empty() => out.write_str("refresh nothing"),
            Self::Refresh { sources } => write!(out, "refresh {}", sources.join(" ")),
            Self::Reload { from: None } => out.write_str("reload"),
            Self::Reload { from: Some(from) } => write!(out, "reload of {from}"),
            Self::Rollback { to: None } => out.write_str("rollback"),
            Self::Rollback { to: Some(to) } => write!(out, "rollback to policy {to}"),
            Self::Confirm => out.write_str("confirm"),
            Self::NotConfirmed { to: None } => out.write_str("roll back the unconfirmed change"),
            Self::NotConfirmed { to: Some(to) } => write!(
                out,
                "rollback to policy {to}, since a change was not confirmed"
            ),
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

/// The operation of a record in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Recorded {
    /// The operation.
    Operation(Operation),
    /// The text that an earlier version of the program stored instead of the operation.
    Text(String),
}

impl fmt::Display for Recorded {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operation(operation) => operation.fmt(out),
            Self::Text(text) => out.write_str(text),
        }
    }
}

impl From<Operation> for Recorded {
    fn from(operation: Operation) -> Self {
        Self::Operation(operation)
    }
}
