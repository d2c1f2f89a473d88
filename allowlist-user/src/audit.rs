//! Who changed what and when, on disk beside last-good: a line of JSON a deed, the oldest dropped first.
//!
//! A line is added and never changed. Knows what can be done, and not how.

use std::fmt;
use std::io;
use std::path::Path;

use anyhow::Result;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::lines::{self, Lines, Names};
use crate::policy::Mode;

const NAMES: Names = Names {
    file: "audit.v1.jsonl",
    old: "audit.v1.old.jsonl",
};

/// As many prefixes of one deed as are kept.
const KEPT: usize = 200;
/// As many of them as are shown in a line.
const SHOWN: usize = 4;
/// The longest text of a request that is kept, in characters, where it is no prefix.
const LONGEST_TEXT: usize = 60;

/// Something that was done, or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    pub time: Timestamp,
    /// By whom.
    pub who: Who,
    /// What.
    #[serde(flatten)]
    pub deed: Deed,
    /// Why it was not done; absent if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Whether the request succeeded and changed nothing, since everything was as requested already.
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_change: bool,
    /// The generation in force afterwards.
    pub generation: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// Who asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// A process that asked over the control socket, by what the kernel says of it.
    Peer(Peer),
    /// The daemon itself, such as by a time that was over.
    Daemon,
    /// Whoever sent the daemon a signal: the kernel does not say who.
    Signal,
}

/// A process on the other end of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its user's number.
    pub uid: u32,
    /// Its group's number.
    pub gid: u32,
    /// Its number; absent if it is of another process namespace.
    pub pid: Option<i32>,
    /// Its user's name, if there is one.
    pub user: Option<String>,
    /// The user who became that one by sudo, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
    /// What its program is called.
    pub program: Option<String>,
}

impl fmt::Display for Who {
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

/// What can be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Deed {
    /// The filter was started, or adopted.
    Start {
        /// Where the configuration came from.
        from: String,
        /// The number of the policy.
        policy: u64,
    },
    /// The daemon ended.
    Stop {
        /// Whether the filter stays in force.
        filtering: bool,
    },
    /// Prefixes were let in.
    Add(Prefixes),
    /// They were let in no more.
    Remove(Prefixes),
    /// Their time was over.
    Expire(Prefixes),
    /// Drops are carried out, or only counted.
    Mode {
        /// From then on.
        mode: Mode,
    },
    /// A list that the gate had refused was let in.
    Accept {
        /// Its source.
        source: String,
        /// Its id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
    /// Lists were asked for before their time.
    Refresh {
        /// Their sources.
        sources: Vec<String>,
    },
    /// The configuration was read again.
    Reload {
        /// The number of the policy that it made; absent if nothing was new.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<u64>,
    },
    /// An earlier policy was put in force again.
    Rollback {
        /// Which.
        to: u64,
        /// The number that it has now; absent where it was refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<u64>,
    },
    /// A change that was to be confirmed was.
    Confirm,
    /// It was not, and what was before is in force again.
    NotConfirmed,
}

/// Some prefixes at a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefixes {
    /// How many.
    pub count: usize,
    /// The first of them.
    pub prefixes: Vec<IpNet>,
    /// The first texts of the request that are no prefixes, each cut to 60 characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
    /// The services.
    pub services: Vec<String>,
    /// When they go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Prefixes {
    /// Of these, of which only the first are kept.
    pub fn of<'s>(pairs: impl Iterator<Item = (IpNet, &'s str)>) -> Self {
        let mut services = std::collections::BTreeSet::new();
        let (mut count, mut prefixes) = (0, Vec::new());
        for (prefix, service) in pairs {
            count += 1;
            services.insert(service);
            if prefixes.len() < KEPT {
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

    /// Adds texts of a request that are no prefixes.
    #[must_use]
    pub fn with_unreadable<'t>(mut self, texts: impl Iterator<Item = &'t str>) -> Self {
        for text in texts {
            self.count += 1;
            if self.unreadable.len() < SHOWN {
                self.unreadable
                    .push(text.chars().take(LONGEST_TEXT).collect());
            }
        }
        self
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { from, policy } => write!(out, "start by {from}, policy {policy}"),
            Self::Stop { filtering: true } => out.write_str("stop; the filter stays in force"),
            Self::Stop { filtering: false } => out.write_str("stop; nothing is filtered"),
            Self::Add(prefixes) => write!(out, "add {prefixes}"),
            Self::Remove(prefixes) => write!(out, "remove {prefixes}"),
            Self::Expire(prefixes) => write!(out, "expire {prefixes}"),
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
            Self::NotConfirmed => out.write_str("take back what was not confirmed"),
        }
    }
}

impl fmt::Display for Prefixes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.prefixes.iter().take(SHOWN);
        let mut words: Vec<String> = shown.map(ToString::to_string).collect();
        let left = SHOWN - words.len();
        let unreadable = self.unreadable.iter().take(left);
        words.extend(unreadable.map(|text| format!("{text:?}")));
        if self.count > words.len() {
            words.push(format!("and {} more", self.count - words.len()));
        }
        // Where it was refused, perhaps nobody said at which.
        let services = self.services.join(" ");
        if !services.is_empty() {
            words.push(format!("at {services}"));
        }
        if let Some(until) = self.until {
            words.push(format!("until {}", until.strftime("%Y-%m-%d %H:%M:%SZ")));
        }
        if let Some(note) = &self.note {
            words.push(format!("({note})"));
        }
        out.write_str(&words.join(" "))
    }
}

/// The writing side.
#[derive(Debug)]
pub struct Audit(Lines);

impl Audit {
    /// In a state directory, which must be there. Takes no more than `max_bytes` of it.
    pub fn new(folder: &Path, max_bytes: u64) -> Self {
        Self(Lines::new(folder, NAMES, max_bytes))
    }

    /// Adds an entry.
    pub fn add(&self, entry: &Entry) -> io::Result<()> {
        self.0.add(serde_json::to_vec(entry)?)
    }
}

/// What is kept, the oldest first, and how many lines could not be read.
pub fn read(folder: &Path) -> Result<(Vec<Entry>, usize)> {
    lines::read(folder, NAMES)
}
