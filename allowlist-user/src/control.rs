//! What can be asked of a running daemon, and what it answers: HTTP with JSON over a Unix socket, so that
//! `curl --unix-socket` can ask as well as the command line.
//!
//! - `server` listens, with limits: `places` for connections, `bodies` for memory; `socket` is its file; `peer`
//!   identifies the client; `client` sends requests
//!
//! Invariant: the daemon alone writes. Whoever asks waits for the daemon, and the daemon for nobody: a slow
//! or broken client delays no publish. docs/api.md tells it for people.

mod bodies;
mod client;
mod peer;
mod places;
mod server;
mod socket;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use client::Client;
pub use server::Control;

use crate::audit::Who;
use crate::error_code::{CodedError, ErrorCode};
use crate::event::Change;
use crate::policy::{MAX_NAME_BYTES, Mode, is_name};
use crate::report::Report;
use crate::session::Session;

/// What all paths begin with.
const VERSION: &str = "/v1";
/// How many seconds a change may wait to be confirmed.
pub const CONFIRM_WITHIN: RangeInclusive<u64> = 1..=86_400;

/// What only a running daemon knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Since when it runs.
    pub started: Timestamp,
    /// Where its configuration comes from.
    pub configuration: String,
    /// The mode that the configuration states; a mode that was set by command may be active instead.
    #[serde(default)]
    pub configured_mode: Option<Mode>,
    /// The number of the policy in force.
    pub policy: Option<u64>,
    /// Whether another policy than the file's is in force, since its last change was taken back.
    pub held_back: bool,
    /// Sources that have no list yet.
    pub waiting: Vec<String>,
    /// Whether the configuration is in force only when they have.
    pub is_waiting: bool,
    /// Whether everybody passes as if listed by those that have no list.
    #[serde(default)]
    pub is_open: bool,
    /// Interfaces that are not there, and are filtered as soon as they are.
    pub waiting_for: Vec<String>,
    /// A change that waits to be confirmed.
    pub pending: Option<Unconfirmed>,
    /// What is legal in the configuration, and yet probably not what was meant.
    pub warnings: Vec<String>,
    /// By source name: when it will be fetched next.
    pub next_fetch: BTreeMap<String, Timestamp>,
}

/// A change that is taken back unless it is confirmed in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    /// What it is.
    pub what: String,
    /// Who made it.
    pub by: String,
    /// When it is taken back.
    pub until: Timestamp,
}

/// What is asked of a daemon that changes something. Each has a path of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Lets prefixes in: all of them, or none.
    Add(Vec<Entry>),
    /// Lets them in no more: all of them, or none.
    Remove(Vec<Entry>),
    /// Carries verdicts out, or only counts them.
    Mode(Mode),
    /// Accepts a list that the gate rejected.
    Accept {
        /// The source's name.
        source: String,
        /// The id of the list. Without it, the answer names the list that waits.
        id: Option<String>,
    },
    /// Asks for the list of this source now, or for all of them.
    Refresh(Option<String>),
    /// Goes back to the policy of this number, or to the one before the newest.
    Rollback(Option<u64>),
    /// Reads the configuration again.
    Reload,
    /// Keeps the change that waits for it.
    Confirm,
}

/// A prefix at a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// A prefix or an address.
    pub prefix: String,
    /// The service. To remove, without it: all to which it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// How long it is let in; for ever without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// With how much care something is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Care {
    /// Even if it cuts the connection over which it is asked.
    pub force: bool,
    /// Taken back after so long, unless it is confirmed.
    pub confirm_within: Option<Duration>,
    /// The connection over which it is asked, as far as whoever asks knows.
    pub session: Option<Session>,
}

/// The body of a request: what the path's name takes of it, and how much care is to be taken. A key that it
/// does not take is an error, since whoever wrote it meant something by it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asked {
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<Vec<Entry>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    force: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confirm_within_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<Session>,
}

/// Something that is asked, by whom, and where the answer goes. Who asked may be gone by then.
#[derive(Debug)]
pub struct Request {
    /// What.
    pub wanted: Wanted,
    /// How.
    pub care: Care,
    /// Who.
    pub who: Who,
    /// The answer, when it is done.
    pub answer: oneshot::Sender<Result<Done, CodedError>>,
}

/// What was done. What does not apply is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The generation that has it.
    pub generation: u32,
    /// The number of the policy in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<u64>,
    /// The difference between the effective states before and after, a line each: empty exactly if `status`,
    /// `list` and `explain` answer as before.
    #[serde(default)]
    pub changes: Vec<String>,
    /// What else there is to know about the answer, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What should be thought about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// When it is taken back, unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_until: Option<Timestamp>,
    /// What a list that was let in has more, and less; what it has less stays for its grace period.
    #[serde(default, flatten)]
    pub change: Option<Change>,
    /// What came of asking for lists, by source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, Refreshed>,
}

/// What came of asking for a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refreshed {
    /// Whether what it has is in force.
    pub ok: bool,
    /// How many prefixes of it are in force.
    pub prefixes: usize,
    /// Why it is not what the source has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The code of that reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_code: Option<ErrorCode>,
}

impl Report for Live {
    fn text(&self) -> String {
        format!("process {}, version {}\n", self.pid, self.version)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("strings and numbers are JSON")
    }
}

impl Asked {
    fn new(wanted: Wanted, care: &Care) -> Self {
        let mut asked = Self {
            force: care.force.then_some(true),
            confirm_within_seconds: care.confirm_within.map(|within| within.as_secs()),
            session: care.session.clone(),
            ..Self::default()
        };
        match wanted {
            Wanted::Add(entries) | Wanted::Remove(entries) => asked.entries = Some(entries),
            Wanted::Mode(mode) => asked.mode = Some(mode),
            Wanted::Accept { source, id } => (asked.source, asked.id) = (Some(source), id),
            Wanted::Refresh(source) => asked.source = source,
            Wanted::Rollback(to) => asked.to = to,
            Wanted::Reload | Wanted::Confirm => {}
        }
        asked
    }

    /// What the path of this name is asked by this body.
    fn read(mut self, name: &str) -> Result<(Wanted, Care), CodedError> {
        let invalid = |error: String| CodedError::new(ErrorCode::InvalidRequest, error);
        // Before anything is logged: a name that cannot exist must not reach a line of the log.
        let entries = self.entries.iter().flatten();
        let services = entries.filter_map(|entry| entry.service.as_deref());
        let names = [("source", self.source.as_deref())].into_iter();
        let names = names.chain(services.map(|service| ("service", Some(service))));
        for (key, name) in names {
            // Without a name, the daemon lists those that there are.
            if let Some(name) = name.filter(|name| !name.is_empty() && !is_name(name)) {
                let error = format!(
                    "{name:?} cannot be the name of a {key}: those have a-z, 0-9, - and _, up to {MAX_NAME_BYTES} characters"
                );
                return Err(invalid(error));
            }
        }
        let lacks = |key: &str| invalid(format!("{name} needs `{key}`"));
        let wanted = match name {
            "add" => Wanted::Add(self.entries.take().ok_or_else(|| lacks("entries"))?),
            "remove" => Wanted::Remove(self.entries.take().ok_or_else(|| lacks("entries"))?),
            "mode" => Wanted::Mode(self.mode.take().ok_or_else(|| lacks("mode"))?),
            "accept" => Wanted::Accept {
                source: self.source.take().ok_or_else(|| lacks("source"))?,
                id: self.id.take(),
            },
            "refresh" => Wanted::Refresh(self.source.take()),
            "rollback" => Wanted::Rollback(self.to.take()),
            "reload" => Wanted::Reload,
            "confirm" => Wanted::Confirm,
            _ => {
                return Err(CodedError::new(
                    ErrorCode::NotFound,
                    format!(
                        "there is nothing called {name:?} to ask; docs/api.md lists what there is"
                    ),
                ));
            }
        };
        if self.confirm_within_seconds.is_some() && matches!(name, "accept" | "refresh" | "confirm")
        {
            return Err(invalid(format!(
                "{name} does not take `confirm_within_seconds`: it cannot be taken back"
            )));
        }
        if let Some(seconds) = self.confirm_within_seconds
            && !CONFIRM_WITHIN.contains(&seconds)
        {
            return Err(invalid(format!(
                "confirm_within_seconds = {seconds} is out of range; write {} to {}",
                CONFIRM_WITHIN.start(),
                CONFIRM_WITHIN.end()
            )));
        }
        let care = Care {
            force: self.force.take().unwrap_or(false),
            confirm_within: self.confirm_within_seconds.take().map(Duration::from_secs),
            session: self.session.take(),
        };
        let unused = [
            ("entries", self.entries.is_some()),
            ("mode", self.mode.is_some()),
            ("source", self.source.is_some()),
            ("id", self.id.is_some()),
            ("to", self.to.is_some()),
        ];
        match unused.into_iter().find(|(_, is_given)| *is_given) {
            Some((key, _)) => Err(invalid(format!("{name} does not take `{key}`"))),
            None => Ok((wanted, care)),
        }
    }
}

impl Wanted {
    /// The names of all paths.
    const NAMES: [&str; 8] = [
        "accept", "add", "confirm", "mode", "refresh", "reload", "remove", "rollback",
    ];

    /// The name of its path.
    const fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "add",
            Self::Remove(_) => "remove",
            Self::Mode(_) => "mode",
            Self::Accept { .. } => "accept",
            Self::Refresh(_) => "refresh",
            Self::Rollback(_) => "rollback",
            Self::Reload => "reload",
            Self::Confirm => "confirm",
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn read(name: &str, body: &str) -> Result<Wanted, CodedError> {
        let asked: Asked = serde_json::from_str(body)
            .map_err(|error| CodedError::new(ErrorCode::InvalidRequest, error.to_string()))?;
        Ok(asked.read(name)?.0)
    }

    #[test]
    fn valid_bodies() {
        let entry = Entry {
            prefix: "192.0.2.1".to_owned(),
            service: Some("web".to_owned()),
            ttl_seconds: Some(9),
            note: None,
        };
        for (name, body, expected) in [
            ("mode", r#"{"mode":"observe"}"#, Wanted::Mode(Mode::Observe)),
            ("reload", "{}", Wanted::Reload),
            (
                "rollback",
                r#"{"to":7,"force":true}"#,
                Wanted::Rollback(Some(7)),
            ),
            ("refresh", "{}", Wanted::Refresh(None)),
            (
                "add",
                r#"{"entries":[{"prefix":"192.0.2.1","service":"web","ttl_seconds":9}]}"#,
                Wanted::Add(vec![entry]),
            ),
        ] {
            assert_eq!(read(name, body), Ok(expected), "{name} {body}");
        }
    }

    #[test]
    fn invalid_bodies() {
        let mut text = String::new();
        for (name, body, code) in [
            ("mode", "{}", ErrorCode::InvalidRequest),
            ("mode", r#"{"mode":"off"}"#, ErrorCode::InvalidRequest),
            (
                "mode",
                r#"{"mode":"observe","source":"x"}"#,
                ErrorCode::InvalidRequest,
            ),
            ("reload", r#"{"forced":true}"#, ErrorCode::InvalidRequest),
            ("detach", "{}", ErrorCode::NotFound),
            ("accept", r#"{"source":"../x"}"#, ErrorCode::InvalidRequest),
            (
                "accept",
                r#"{"source":"x","confirm_within_seconds":9}"#,
                ErrorCode::InvalidRequest,
            ),
            (
                "reload",
                r#"{"confirm_within_seconds":0}"#,
                ErrorCode::InvalidRequest,
            ),
            (
                "add",
                r#"{"entries":[{"prefix":"192.0.2.1","service":"web","ttl":9}]}"#,
                ErrorCode::InvalidRequest,
            ),
        ] {
            let error = read(name, body).expect_err("the body is invalid");
            assert_eq!(error.code, code, "{name} {body}");
            text += &format!("{name} {body}\n    {error}\n");
        }
        expect![[r#"
            mode {}
                mode needs `mode`
            mode {"mode":"off"}
                unknown variant `off`, expected `enforce` or `observe` at line 1 column 13
            mode {"mode":"observe","source":"x"}
                mode does not take `source`
            reload {"forced":true}
                unknown field `forced`, expected one of `entries`, `mode`, `source`, `id`, `to`, `force`, `confirm_within_seconds`, `session` at line 1 column 9
            detach {}
                there is nothing called "detach" to ask; docs/api.md lists what there is
            accept {"source":"../x"}
                "../x" cannot be the name of a source: those have a-z, 0-9, - and _, up to 63 characters
            accept {"source":"x","confirm_within_seconds":9}
                accept does not take `confirm_within_seconds`: it cannot be taken back
            reload {"confirm_within_seconds":0}
                confirm_within_seconds = 0 is out of range; write 1 to 86400
            add {"entries":[{"prefix":"192.0.2.1","service":"web","ttl":9}]}
                unknown field `ttl`, expected one of `prefix`, `service`, `ttl_seconds`, `note` at line 1 column 55
        "#]].assert_eq(&text);
    }

    #[test]
    fn what_is_asked_is_what_is_read() {
        let care = Care {
            force: true,
            confirm_within: Some(Duration::from_mins(1)),
            session: None,
        };
        for wanted in [
            Wanted::Add(vec![Entry::default()]),
            Wanted::Remove(Vec::new()),
            Wanted::Mode(Mode::Enforce),
            Wanted::Accept {
                source: "a".to_owned(),
                id: Some("1f".to_owned()),
            },
            Wanted::Refresh(Some("a".to_owned())),
            Wanted::Rollback(None),
            Wanted::Reload,
            Wanted::Confirm,
        ] {
            let name = wanted.name();
            let mut care = care.clone();
            if matches!(name, "accept" | "refresh" | "confirm") {
                care.confirm_within = None;
            }
            assert!(Wanted::NAMES.contains(&name));
            let body = serde_json::to_string(&Asked::new(wanted.clone(), &care)).expect("is JSON");
            let asked: Asked = serde_json::from_str(&body).expect("is a body");
            assert_eq!(asked.read(name), Ok((wanted, care.clone())));
        }
    }
}
