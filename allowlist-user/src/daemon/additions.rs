//! Added prefixes: `add` and `remove` requests, and the expiry of times to live.

use std::collections::BTreeSet;
use std::time::Duration;

use allowlist_lists::feed::parse_prefix;
use allowlist_policy::Gate;
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::hints::{self, counted};
use allowlist_policy::text::{is_deceptive, on_one_line};
use ipnet::IpNet;
use log::{info, warn};

use super::commit::Transaction;
use super::{Daemon, Logged};
use crate::additions::{Addition, Additions, Edit};
use crate::audit::Actor;
use crate::control::{ApplyOptions, ApplyOutcome, PrefixRequest};
use crate::error_code::ApiError;
use crate::journal::Change;
use crate::operation::{Operation, Prefixes};

/// The longest time to live of an added prefix; a request with a longer one is refused.
const LONGEST_TTL: Duration = Duration::from_hours(24 * 3660);
/// The longest note of an added prefix, in characters, since it is stored with each prefix; a longer one is refused.
const LONGEST_NOTE: usize = 200;
/// The maximum number of errors in one answer; the rest are counted.
const SHOWN: usize = 20;

impl Daemon {
    /// Adds prefixes to services, all or none. Returns the operation for the audit log, and the result.
    pub(super) async fn add(
        &mut self,
        entries: &[PrefixRequest],
        options: &ApplyOptions,
        actor: &Actor,
    ) -> (Operation, Result<ApplyOutcome, ApiError>) {
        let moment = self.store.journal.now();
        let now = moment.wall;
        let ttl = |entry: &PrefixRequest| entry.ttl_seconds.map(Duration::from_secs);
        let first = entries.first();
        let action = Prefixes {
            until: first.and_then(|entry| {
                let seconds = entry
                    .ttl_seconds
                    .filter(|ttl| *ttl <= LONGEST_TTL.as_secs())?;
                Some(now + Duration::from_secs(seconds))
            }),
            note: first
                .and_then(|entry| entry.note.clone())
                .filter(|note| require_note(note).is_ok()),
            ..requested_prefixes(entries)
        };
        let edits = collect_edits(entries, |entry| {
            let prefix = read_prefix(&entry.prefix)?;
            let service = entry.service.clone().unwrap_or_default();
            self.require_service(&service)?;
            if !options.force {
                require_narrow(prefix)?;
            }
            if entry
                .ttl_seconds
                .is_some_and(|ttl| ttl == 0 || ttl > LONGEST_TTL.as_secs())
            {
                return Err(invalid(
                    "the time to live must be from 1 second to 10 years",
                ));
            }
            let note = entry.note.clone().filter(|note| !note.is_empty());
            note.as_deref().map_or(Ok(()), require_note)?;
            Ok(vec![Edit::Add(Addition {
                prefix,
                service,
                until: ttl(entry).map(|ttl| now + ttl),
                until_uptime: ttl(entry).and_then(|ttl| Some(moment.uptime.as_ref()?.after(ttl))),
                note,
                added: now,
                by: actor.to_string(),
            })])
        });
        let edits = match edits {
            Ok(edits) => edits,
            Err(error) => return (Operation::Add(action), Err(error)),
        };
        let operation = Operation::Add(Prefixes {
            until: action.until,
            note: action.note,
            ..edited_prefixes(&edits)
        });
        let edits = self.changed_edits(edits);
        let done = if edits.is_empty() {
            // No new policy, since the number of stored ones is limited.
            self.require_idle().map(|()| ApplyOutcome {
                notes: vec![
                    "no change: all prefixes are already allowed with these settings".to_owned(),
                ],
                ..self.outcome()
            })
        } else {
            self.edit(edits, &operation, options, actor).await
        };
        (operation, done)
    }

    /// Removes added prefixes, all or none. Returns the operation for the audit log, and the result.
    pub(super) async fn remove(
        &mut self,
        entries: &[PrefixRequest],
        options: &ApplyOptions,
        actor: &Actor,
    ) -> (Operation, Result<ApplyOutcome, ApiError>) {
        let edits = collect_edits(entries, |entry| {
            if entry.ttl_seconds.is_some() || entry.note.is_some() {
                return Err(invalid("remove takes neither a time to live nor a note"));
            }
            let prefix = read_prefix(&entry.prefix)?;
            let additions = self.state.additions();
            let mut services = additions.services_of(&prefix);
            if let Some(service) = &entry.service {
                services.retain(|one| one == service);
            }
            if services.is_empty() {
                let text = self.not_added(prefix, entry.service.as_deref());
                return Err(ApiError::new(ErrorCode::NotAdded, text));
            }
            let edit = |service| Edit::Remove { prefix, service };
            Ok(services.into_iter().map(edit).collect())
        });
        match edits {
            Ok(edits) => {
                let operation = Operation::Remove(edited_prefixes(&edits));
                let done = self.edit(edits, &operation, options, actor).await;
                (operation, done)
            }
            Err(error) => (Operation::Remove(requested_prefixes(entries)), Err(error)),
        }
    }

    async fn edit(
        &mut self,
        edits: Vec<Edit>,
        operation: &Operation,
        options: &ApplyOptions,
        actor: &Actor,
    ) -> Result<ApplyOutcome, ApiError> {
        let change = Change {
            edits,
            ..self.change(actor, operation.clone())
        };
        self.apply(change, options).await
    }

    /// Removes the expired added prefixes, and publishes without them.
    pub(super) async fn expire_added(&mut self) {
        // The scheduled time may be wrong, since either clock may have been set.
        let now = self.store.journal.now();
        let left = self.state.additions().next_expiry(&now);
        if left.is_none_or(|left| !left.is_zero()) {
            self.expiries.schedule(self.state.additions(), &now);
            return;
        }
        let mut additions = Additions::clone(self.state.additions());
        let gone = additions.expire(&now);
        let next = self.state.with_additions(additions);
        if let Err(error) = self.commit(Transaction::new(next)).await {
            warn!(
                "{} added prefixes have expired, but are still allowed: {error}; retrying",
                gone.len()
            );
            self.expiries.delay();
            return;
        }
        self.store.journal.expire(&now);
        self.expiries.schedule(self.state.additions(), &now);
        info!(
            target: "allowlist::expired",
            "{} added prefixes have expired",
            gone.len()
        );
        let pairs = gone.iter().map(|one| (one.prefix, &*one.service));
        let operation = Operation::Expire(Prefixes::of(pairs));
        self.log(Actor::Daemon, operation, Logged::done());
    }

    /// Returns the edits that have an effect: all but additions that equal a present one in expiry and note.
    fn changed_edits(&self, edits: Vec<Edit>) -> Vec<Edit> {
        let is_new = |edit: &Edit| {
            self.existing(edit)
                .is_none_or(|(new, known)| (new.until, &new.note) != (known.until, &known.note))
        };
        edits.into_iter().filter(is_new).collect()
    }

    /// Returns the new and the present settings of an added prefix, if the edit would replace it.
    ///
    /// Returns `None` if the edit removes a prefix, or adds one that its service does not have yet.
    fn existing<'e>(&'e self, edit: &'e Edit) -> Option<(&'e Addition, &'e Addition)> {
        let Edit::Add(new) = edit else {
            return None;
        };
        let known = self.state.additions();
        Some((new, known.get(&new.service, &new.prefix)?))
    }

    fn require_service(&self, name: &str) -> Result<(), ApiError> {
        let services = &self.state.config().policy.services;
        if services.iter().any(|service| service.name == name) {
            return Ok(());
        }
        let names: Vec<_> = services.iter().map(|service| &*service.name).collect();
        if name.is_empty() {
            return Err(invalid(format!(
                "no `service` is given; {}",
                hints::there_are(names)
            )));
        }
        Err(ApiError::new(
            ErrorCode::UnknownService,
            format!("no service is called {name:?}; {}", hints::there_are(names)),
        ))
    }

    fn not_added(&self, prefix: IpNet, service: Option<&str>) -> String {
        let feeds = self.state.sources().feeds().iter();
        let listing: Vec<_> = feeds
            .filter(|(_, feed)| feed.active().any(|one| one == prefix))
            .map(|(name, _)| &**name)
            .filter(|name| !name.starts_with(crate::additions::SOURCE_PREFIX))
            .collect();
        let at = service.map_or_else(String::new, |service| format!(" to {service}"));
        if listing.is_empty() {
            format!(
                "{prefix} was not added{at} by command; `allowlist list --added` lists the added prefixes"
            )
        } else {
            format!(
                "{prefix} was not added{at} by command: it is in the list of the source {}; remove it from that list or, if a vendor publishes the list, remove the source from the service's `allow`",
                listing.join(" and ")
            )
        }
    }
}

fn invalid(text: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, text)
}

fn read_prefix(text: &str) -> Result<IpNet, ApiError> {
    parse_prefix(text).map_err(|error| ApiError::new(ErrorCode::InvalidPrefix, error.to_string()))
}

/// Returns the edits that `read` makes of all entries.
///
/// # Errors
/// The error has a line for each invalid entry, and the code of the first one.
fn collect_edits(
    entries: &[PrefixRequest],
    read: impl Fn(&PrefixRequest) -> Result<Vec<Edit>, ApiError>,
) -> Result<Vec<Edit>, ApiError> {
    let mut edits = Vec::with_capacity(entries.len());
    let (mut problems, mut code) = (Vec::new(), None);
    for (place, entry) in (1..).zip(entries) {
        match read(entry) {
            Ok(more) => edits.extend(more),
            Err(problem) => {
                code.get_or_insert(problem.code);
                problems.push(if entries.len() == 1 {
                    problem.error
                } else {
                    let entry = on_one_line(&entry.prefix);
                    format!("entry {place} ({entry}): {}", problem.error)
                });
            }
        }
    }
    if entries.is_empty() {
        problems.push("the request has no entries; give at least one prefix".to_owned());
    }
    let more = problems.len().saturating_sub(SHOWN);
    problems.truncate(SHOWN);
    if more > 0 {
        problems.push(format!("and {} more", counted(more, "invalid entry")));
    }
    if problems.is_empty() {
        return Ok(edits);
    }
    if entries.len() > 1 {
        problems.push("nothing was changed".to_owned());
    }
    let code = code.unwrap_or(ErrorCode::InvalidRequest);
    Err(ApiError::new(code, problems.join("\n")))
}

/// Summarizes the prefixes of a request for the audit log, including invalid ones.
fn requested_prefixes(entries: &[PrefixRequest]) -> Prefixes {
    let pairs = entries.iter().filter_map(|entry| {
        let service = entry.service.as_deref().unwrap_or_default();
        Some((parse_prefix(&entry.prefix).ok()?, service))
    });
    let texts = entries.iter().map(|entry| &*entry.prefix);
    let services: BTreeSet<_> = entries
        .iter()
        .filter_map(|entry| entry.service.clone())
        .collect();
    Prefixes {
        services: services.into_iter().collect(),
        ..Prefixes::of(pairs).with_unreadable(texts.filter(|text| parse_prefix(text).is_err()))
    }
}

/// Summarizes the prefixes of edits for the audit log.
fn edited_prefixes(edits: &[Edit]) -> Prefixes {
    Prefixes::of(edits.iter().map(|edit| (edit.prefix(), edit.service())))
}

/// Requires a note of one line, of limited length, without characters that could forge output.
fn require_note(note: &str) -> Result<(), ApiError> {
    if note.chars().count() > LONGEST_NOTE || note.contains(is_deceptive) {
        return Err(invalid(format!(
            "a note must be one line of at most {LONGEST_NOTE} characters without control or bidirectional formatting characters"
        )));
    }
    Ok(())
}

/// Refuses a prefix that is wider than the gate's default limit, so that its length is probably a typing mistake, such
/// as /2 for /24.
fn require_narrow(prefix: IpNet) -> Result<(), ApiError> {
    let gate = Gate::default();
    let least = match prefix {
        IpNet::V4(_) => gate.min_prefix_len_v4,
        IpNet::V6(_) => gate.min_prefix_len_v6,
    };
    if prefix.prefix_len() >= least {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::PrefixTooWide,
        format!(
            "{prefix} is wider than /{least}, so its length is probably a mistake; use --force to add it anyway"
        ),
    ))
}
