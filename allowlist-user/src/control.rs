//! The API of a running daemon: HTTP with JSON over a Unix socket, for the command line and for `curl --unix-socket`.
//!
//! - `server` listens, with limits: `places` for connections, `bodies` for memory; `socket` creates the socket; `peer`
//!   identifies the client; `client` sends requests
//!
//! Invariants: only the daemon writes; a slow or broken client delays no publish. docs/api.md describes the API.

mod bodies;
mod client;
mod peer;
mod places;
mod server;
mod socket;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use allowlist_lists::event::Change;
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::lockout::Session;
use allowlist_policy::{MAX_NAME_BYTES, Mode, is_name};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use client::Client;
pub use server::Control;

use crate::audit::Actor;
use crate::error_code::ApiError;
use crate::operation::Operation;
use crate::report::Report;

/// The prefix of all API paths.
const VERSION: &str = "/v1";
/// The valid range of `confirm_within_seconds`.
pub const CONFIRM_WITHIN: RangeInclusive<u64> = 1..=86_400;

/// The state of a running daemon, as the API reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// The process id of the daemon.
    pub pid: u32,
    /// The version of the daemon's program.
    pub version: String,
    /// The time at which the daemon started.
    pub started: Timestamp,
    /// The origin of the configuration: the path of its file, or the command line.
    pub configuration: String,
    /// The mode in the configuration; a mode that was set by command may be active instead. `None` if the daemon's
    /// version does not report it.
    #[serde(default)]
    pub configured_mode: Option<Mode>,
    /// The number of the active policy; `None` if the journal has no policy.
    pub policy: Option<u64>,
    /// Whether the configuration file is suppressed: it is ignored, since its last change was rolled back.
    pub config_suppressed: bool,
    /// The names of the used sources that have no list.
    pub missing_sources: Vec<String>,
    /// Whether the configuration is not active, because `missing_sources` have no list and `at_start` is `wait`.
    pub inactive: bool,
    /// Whether every address passes as if listed by `missing_sources`, since `at_start` is `pass`.
    #[serde(default)]
    pub failing_open: bool,
    /// The configured interfaces that do not exist; the filter is attached when they appear.
    pub missing_interfaces: Vec<String>,
    /// The change that is pending confirmation, if any.
    pub pending: Option<PendingChange>,
    /// Warnings about the configuration and the mode.
    pub warnings: Vec<String>,
    /// The time of the next fetch, by source name.
    pub next_fetch: BTreeMap<String, Timestamp>,
}

/// A change that is rolled back unless it is confirmed in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingChange {
    /// The description of the pending change.
    pub what: String,
    /// The name of the user who made the change.
    pub by: String,
    /// The deadline of the confirmation, at which the change is rolled back.
    pub until: Timestamp,
}

/// An operation that a client can request, by a POST to the path with its name. Not all operations can be requested.
pub type Request = Operation<Vec<PrefixRequest>>;

/// A prefix that a request adds or removes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixRequest {
    /// The prefix or address to add or to remove, such as `192.0.2.0/24` or `192.0.2.1`.
    pub prefix: String,
    /// The name of the service, required in an addition. In a removal, `None` stands for all services to which the
    /// prefix was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The time to live in seconds; `None` for an unlimited time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// The user's note on the prefix, for reports; `None` without a note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The options of a change: the lockout check and commit confirm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplyOptions {
    /// Whether to skip the lockout check (`--force`).
    pub force: bool,
    /// The time after which the change is rolled back unless it is confirmed; `None` if it needs no confirmation.
    pub confirm_within: Option<Duration>,
    /// The login session of the client, for the lockout check; `None` if the client knows of none.
    pub session: Option<Session>,
}

/// The body of a request, for all operations. A key that the operation does not accept is an error.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RequestBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<Vec<PrefixRequest>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<bool>,
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

/// A request in the daemon's queue of requests.
#[derive(Debug)]
pub struct QueuedRequest {
    /// The requested operation.
    pub operation: Request,
    /// The options of the operation.
    pub options: ApplyOptions,
    /// The client that made the request.
    pub actor: Actor,
    /// The channel for the answer. Its receiver is gone if the client has disconnected.
    pub answer: oneshot::Sender<Result<ApplyOutcome, ApiError>>,
}

/// The answer to a successful request. Fields that do not apply are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyOutcome {
    /// The number of the active generation.
    pub generation: u32,
    /// The number of the active policy; `None` if the journal has no policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<u64>,
    /// The difference between the effective states before and after, one line per change; empty if and only if the
    /// reports `status`, `list` and `explain` stay the same.
    #[serde(default)]
    pub changes: Vec<String>,
    /// Notes on the result, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Warnings for the operator, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The deadline by which the change must be confirmed; `None` if it needs no confirmation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_until: Option<Timestamp>,
    /// The prefixes that an accepted list adds and removes; `None` for other operations. Removed prefixes stay active
    /// for their grace period.
    #[serde(default, flatten)]
    pub change: Option<Change>,
    /// The outcomes of a refresh, by source name; empty for other operations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, RefreshOutcome>,
}

/// The outcome of the fetch of one source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshOutcome {
    /// Whether the list that the source serves now is active.
    pub ok: bool,
    /// The number of the source's active prefixes.
    pub prefixes: usize,
    /// The reason why the fetch failed or the list was rejected; `None` after a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The code of the failure's reason; `None` after a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_code: Option<ErrorCode>,
}

impl Report for DaemonStatus {
    fn text(&self) -> String {
        format!("process {}, version {}\n", self.pid, self.version)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("strings and numbers are JSON")
    }
}

impl RequestBody {
    fn new(operation: Request, options: &ApplyOptions) -> Self {
        let mut request = Self {
            force: options.force.then_some(true),
            confirm_within_seconds: options.confirm_within.map(|within| within.as_secs()),
            session: options.session.clone(),
            ..Self::default()
        };
        match operation {
            Operation::Add(entries) | Operation::Remove(entries) => request.entries = Some(entries),
            Operation::Mode { mode, egress } => {
                (request.mode, request.egress) = (Some(mode), egress.then_some(true));
            }
            Operation::Accept { source, id } => (request.source, request.id) = (Some(source), id),
            Operation::Refresh { sources } => request.source = sources.into_iter().next(),
            Operation::Rollback { to } => request.to = to,
            _ => {}
        }
        request
    }

    /// Returns the operation that the body requests at the path `name`, with the options of the operation.
    fn read(mut self, name: &str) -> Result<(Request, ApplyOptions), ApiError> {
        let invalid = |error: String| ApiError::new(ErrorCode::InvalidRequest, error);
        // Checked before the request is logged, so that no foreign text reaches the log.
        let entries = self.entries.iter().flatten();
        let services = entries.filter_map(|entry| entry.service.as_deref());
        let names = [("source", self.source.as_deref())].into_iter();
        let names = names.chain(services.map(|service| ("service", Some(service))));
        for (key, name) in names {
            // An empty name is answered with a list of the names.
            if let Some(name) = name.filter(|name| !name.is_empty() && !is_name(name)) {
                let error = format!(
                    "{name:?} is not a valid name of a {key}; names consist of a-z, 0-9, - and _, up to {MAX_NAME_BYTES} characters"
                );
                return Err(invalid(error));
            }
        }
        let lacks = |key: &str| {
            invalid(format!(
                "the body of the request {name} lacks the key `{key}`"
            ))
        };
        let operation = match name {
            "add" => Operation::Add(self.entries.take().ok_or_else(|| lacks("entries"))?),
            "remove" => Operation::Remove(self.entries.take().ok_or_else(|| lacks("entries"))?),
            "mode" => Operation::Mode {
                mode: self.mode.take().ok_or_else(|| lacks("mode"))?,
                egress: self.egress.take().unwrap_or_default(),
            },
            "accept" => Operation::Accept {
                source: self.source.take().ok_or_else(|| lacks("source"))?,
                id: self.id.take(),
            },
            "refresh" => Operation::Refresh {
                sources: self.source.take().into_iter().collect(),
            },
            "rollback" => Operation::Rollback { to: self.to.take() },
            "reload" => Operation::Reload { from: None },
            "confirm" => Operation::Confirm,
            _ => {
                return Err(ApiError::new(
                    ErrorCode::NotFound,
                    format!("there is no request {name:?}; GET / lists all requests"),
                ));
            }
        };
        if self.confirm_within_seconds.is_some() && matches!(name, "accept" | "refresh" | "confirm")
        {
            return Err(invalid(format!(
                "the request {name} does not take the key `confirm_within_seconds`, since its effect cannot be rolled back; remove the key"
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
        let options = ApplyOptions {
            force: self.force.take().unwrap_or(false),
            confirm_within: self.confirm_within_seconds.take().map(Duration::from_secs),
            session: self.session.take(),
        };
        let unused = [
            ("entries", self.entries.is_some()),
            ("mode", self.mode.is_some()),
            ("egress", self.egress.is_some()),
            ("source", self.source.is_some()),
            ("id", self.id.is_some()),
            ("to", self.to.is_some()),
        ];
        match unused.into_iter().find(|(_, is_given)| *is_given) {
            Some((key, _)) => Err(invalid(format!(
                "the request {name} does not take the key `{key}`; remove the key"
            ))),
            None => Ok((operation, options)),
        }
    }
}

/// The names of all requests, which are also the names of their paths.
const REQUESTS: [&str; 8] = [
    "accept", "add", "confirm", "mode", "refresh", "reload", "remove", "rollback",
];

impl Request {
    /// Returns the name of the operation, which is also the name of its path.
    const fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Add(_) => "add",
            Self::Remove(_) => "remove",
            Self::Expire(_) => "expire",
            Self::Mode { .. } => "mode",
            Self::Accept { .. } => "accept",
            Self::Refresh { .. } => "refresh",
            Self::Reload { .. } => "reload",
            Self::Rollback { .. } => "rollback",
            Self::Confirm => "confirm",
            Self::NotConfirmed { .. } => "not-confirmed",
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn read(name: &str, body: &str) -> Result<Request, ApiError> {
        let request: RequestBody = serde_json::from_str(body)
            .map_err(|error| ApiError::new(ErrorCode::InvalidRequest, error.to_string()))?;
        Ok(request.read(name)?.0)
    }

    #[test]
    fn valid_bodies() {
        let entry = PrefixRequest {
            prefix: "192.0.2.1".to_owned(),
            service: Some("web".to_owned()),
            ttl_seconds: Some(9),
            note: None,
        };
        for (name, body, expected) in [
            (
                "mode",
                r#"{"mode":"observe"}"#,
                Operation::Mode {
                    mode: Mode::Observe,
                    egress: false,
                },
            ),
            ("reload", "{}", Operation::Reload { from: None }),
            (
                "rollback",
                r#"{"to":7,"force":true}"#,
                Operation::Rollback { to: Some(7) },
            ),
            (
                "refresh",
                "{}",
                Operation::Refresh {
                    sources: Vec::new(),
                },
            ),
            (
                "add",
                r#"{"entries":[{"prefix":"192.0.2.1","service":"web","ttl_seconds":9}]}"#,
                Operation::Add(vec![entry]),
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
                the body of the request mode lacks the key `mode`
            mode {"mode":"off"}
                unknown variant `off`, expected `enforce` or `observe` at line 1 column 13
            mode {"mode":"observe","source":"x"}
                the request mode does not take the key `source`; remove the key
            reload {"forced":true}
                unknown field `forced`, expected one of `entries`, `mode`, `egress`, `source`, `id`, `to`, `force`, `confirm_within_seconds`, `session` at line 1 column 9
            detach {}
                there is no request "detach"; GET / lists all requests
            accept {"source":"../x"}
                "../x" is not a valid name of a source; names consist of a-z, 0-9, - and _, up to 63 characters
            accept {"source":"x","confirm_within_seconds":9}
                the request accept does not take the key `confirm_within_seconds`, since its effect cannot be rolled back; remove the key
            reload {"confirm_within_seconds":0}
                confirm_within_seconds = 0 is out of range; write 1 to 86400
            add {"entries":[{"prefix":"192.0.2.1","service":"web","ttl":9}]}
                unknown field `ttl`, expected one of `prefix`, `service`, `ttl_seconds`, `note` at line 1 column 55
        "#]].assert_eq(&text);
    }

    #[test]
    fn requests_round_trip() {
        let options = ApplyOptions {
            force: true,
            confirm_within: Some(Duration::from_mins(1)),
            session: None,
        };
        for operation in [
            Operation::Add(vec![PrefixRequest::default()]),
            Operation::Remove(Vec::new()),
            Operation::Mode {
                mode: Mode::Enforce,
                egress: false,
            },
            Operation::Accept {
                source: "a".to_owned(),
                id: Some("1f".to_owned()),
            },
            Operation::Refresh {
                sources: vec!["a".to_owned()],
            },
            Operation::Rollback { to: None },
            Operation::Reload { from: None },
            Operation::Confirm,
        ] {
            let name = operation.name();
            let mut options = options.clone();
            if matches!(name, "accept" | "refresh" | "confirm") {
                options.confirm_within = None;
            }
            assert!(REQUESTS.contains(&name));
            let body = serde_json::to_string(&RequestBody::new(operation.clone(), &options))
                .expect("is JSON");
            let request: RequestBody = serde_json::from_str(&body).expect("is a body");
            assert_eq!(request.read(name), Ok((operation, options.clone())));
        }
    }

    #[test]
    fn every_listed_request_is_served() {
        for name in REQUESTS {
            if let Err(error) = read(name, "{}") {
                assert_eq!(error.code, ErrorCode::InvalidRequest, "{name}: {error}");
            }
        }
    }
}
