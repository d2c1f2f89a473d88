//! Prefixes that are let in by command, and let in no more: by people, and when their time is over.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use log::{info, warn};
use tokio::time::Instant;

use super::Daemon;
use super::refresh::RELEASE_RETRY;
use crate::additions::{Addition, Edit};
use crate::audit::{Deed, Prefixes, Who};
use crate::control::{Care, Done, Entry};
use crate::error_code::{CodedError, ErrorCode};
use crate::feed::parse_prefix;
use crate::hints;
use crate::policy::Gate;
use crate::text::{is_deceptive, on_one_line};

/// The longest that a prefix is let in for, but for ever.
const LONGEST_TTL: Duration = Duration::from_hours(24 * 3660);
/// The longest reason, in characters: it is kept with each prefix, and read in a line.
const LONGEST_NOTE: usize = 200;
/// How many mistakes are told at once.
const SHOWN: usize = 20;

/// The next expiry of an addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    /// No addition has a time limit.
    Never,
    /// The next one expires then.
    At(Instant),
    /// Additions have expired, and the kernel still has them, since a publish failed.
    Unpublished,
}

impl Daemon {
    /// Lets prefixes in.
    pub(super) fn add(
        &mut self,
        entries: &[Entry],
        care: &Care,
        who: &Who,
    ) -> (Deed, Result<Done, CodedError>) {
        let moment = self.ledger.now();
        let now = moment.wall;
        let ttl = |entry: &Entry| entry.ttl_seconds.map(Duration::from_secs);
        let first = entries.first();
        let mut deed = Prefixes {
            until: first.and_then(|entry| {
                let seconds = entry
                    .ttl_seconds
                    .filter(|ttl| *ttl <= LONGEST_TTL.as_secs())?;
                Some(now + Duration::from_secs(seconds))
            }),
            note: first
                .and_then(|entry| entry.note.clone())
                .filter(|note| require_note(note).is_ok()),
            ..asked(entries)
        };
        let edits = each(entries, |entry| {
            let prefix = read_prefix(&entry.prefix)?;
            let service = entry.service.clone().unwrap_or_default();
            self.require_service(&service)?;
            if !care.force {
                require_narrow(prefix)?;
            }
            if entry
                .ttl_seconds
                .is_some_and(|ttl| ttl == 0 || ttl > LONGEST_TTL.as_secs())
            {
                return Err(invalid("a time to live is from 1 second to 10 years"));
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
                by: who.to_string(),
            })])
        });
        let done = edits.and_then(|edits| {
            deed = Prefixes {
                until: deed.until,
                note: deed.note.take(),
                ..of(&edits)
            };
            let edits = self.news(edits);
            if edits.is_empty() {
                // No policy of its own: those that can be gone back to are few.
                self.require_free()?;
                return Ok(Done {
                    notes: vec![
                        "no change: all prefixes are already allowed with these settings"
                            .to_owned(),
                    ],
                    ..self.done()
                });
            }
            self.edit(edits, "add", care, who)
        });
        (Deed::Add(deed), done)
    }

    /// Lets prefixes in no more that were let in by command.
    pub(super) fn remove(
        &mut self,
        entries: &[Entry],
        care: &Care,
        who: &Who,
    ) -> (Deed, Result<Done, CodedError>) {
        let mut deed = asked(entries);
        let edits = each(entries, |entry| {
            if entry.ttl_seconds.is_some() || entry.note.is_some() {
                return Err(invalid("to remove takes no time to live and no note"));
            }
            let prefix = read_prefix(&entry.prefix)?;
            let additions = self.ledger.known().additions();
            let mut services = additions.services_of(&prefix);
            if let Some(service) = &entry.service {
                services.retain(|one| one == service);
            }
            if services.is_empty() {
                let text = self.not_added(prefix, entry.service.as_deref());
                return Err(CodedError::new(ErrorCode::NotAdded, text));
            }
            let edit = |service| Edit::Remove { prefix, service };
            Ok(services.into_iter().map(edit).collect())
        });
        let done = edits.and_then(|edits| {
            deed = of(&edits);
            self.edit(edits, "remove", care, who)
        });
        (Deed::Remove(deed), done)
    }

    fn edit(
        &mut self,
        edits: Vec<Edit>,
        verb: &str,
        care: &Care,
        who: &Who,
    ) -> Result<Done, CodedError> {
        let what = match &edits[..] {
            [one] => format!("{verb} {} at {}", one.prefix(), one.service()),
            all => format!("{verb} {} prefixes", all.len()),
        };
        let change = crate::ledger::Change {
            edits,
            ..self.change(who, what)
        };
        self.apply(change, care)
    }

    /// Notes when the next addition expires, by either clock.
    pub(super) fn schedule_expiry(&mut self) {
        let additions = self.ledger.known().additions();
        let left = additions.next_expiry(&self.ledger.now());
        self.expiry = left.map_or(Expiry::Never, |left| Expiry::At(Instant::now() + left));
    }

    /// Removes the additions that have expired.
    pub(super) fn expire(&mut self) {
        if self.expiry == Expiry::Never || self.release_after > Instant::now() {
            return;
        }
        let is_unpublished = self.expiry == Expiry::Unpublished;
        // Not by `expiry`: either clock may have been set since.
        let gone = self.ledger.expire(&self.ledger.now());
        self.schedule_expiry();
        if gone.is_empty() && !is_unpublished {
            return;
        }
        let services: BTreeSet<String> = gone.iter().map(|one| one.service.clone()).collect();
        self.follow_ledger(&services);
        let released = self.with_lists(|daemon, lists| daemon.publish(lists, None));
        if let Err(error) = released {
            warn!(
                "{} prefixes that were added by command have expired and still pass: {error:#}; this is tried again",
                gone.len()
            );
            self.expiry = Expiry::Unpublished;
            self.release_after = Instant::now() + RELEASE_RETRY;
        }
        if gone.is_empty() {
            return;
        }
        info!(
            target: "allowlist::expired",
            "{} prefixes that were added by command have expired",
            gone.len()
        );
        let pairs = gone.iter().map(|one| (one.prefix, &*one.service));
        self.log(Who::Daemon, Deed::Expire(Prefixes::of(pairs)), None);
    }

    /// Those that are not in the book already as they are asked.
    fn news(&self, edits: Vec<Edit>) -> Vec<Edit> {
        let is_new = |edit: &Edit| {
            self.known(edit).is_none_or(|(asked, known)| {
                (asked.until, &asked.note) != (known.until, &known.note)
            })
        };
        edits.into_iter().filter(is_new).collect()
    }

    /// What an edit adds, and what is in the book in its place; none where nothing is.
    fn known<'e>(&'e self, edit: &'e Edit) -> Option<(&'e Addition, &'e Addition)> {
        let Edit::Add(asked) = edit else {
            return None;
        };
        let known = self.ledger.known().additions();
        Some((asked, known.get(&asked.service, &asked.prefix)?))
    }

    fn require_service(&self, name: &str) -> Result<(), CodedError> {
        let services = &self.config.policy.services;
        if services.iter().any(|service| service.name == name) {
            return Ok(());
        }
        let names: Vec<_> = services.iter().map(|service| &*service.name).collect();
        if name.is_empty() {
            return Err(invalid(format!(
                "the service is missing; {}",
                hints::there_are(names)
            )));
        }
        Err(CodedError::new(
            ErrorCode::UnknownService,
            format!("there is no service {name:?}; {}", hints::there_are(names)),
        ))
    }

    fn not_added(&self, prefix: IpNet, service: Option<&str>) -> String {
        let feeds = self.lists.feeds().iter();
        let listing: Vec<_> = feeds
            .filter(|(_, feed)| feed.in_force().any(|one| one == prefix))
            .map(|(name, _)| &**name)
            .filter(|name| !name.starts_with(crate::additions::SOURCE_PREFIX))
            .collect();
        let at = service.map_or_else(String::new, |service| format!(" to {service}"));
        if listing.is_empty() {
            format!(
                "{prefix} was not added{at} by command; `allowlist list --added` shows what was"
            )
        } else {
            format!(
                "{prefix} was not added{at} by command: {} lists it, and is where to take it out",
                listing.join(" and ")
            )
        }
    }
}

fn invalid(text: impl Into<String>) -> CodedError {
    CodedError::new(ErrorCode::InvalidRequest, text)
}

fn read_prefix(text: &str) -> Result<IpNet, CodedError> {
    parse_prefix(text).map_err(|error| CodedError::new(ErrorCode::InvalidPrefix, error.to_string()))
}

/// Returns the edits of all entries, or an error that has a line for each entry that is wrong and the code of the
/// first one.
fn each(
    entries: &[Entry],
    read: impl Fn(&Entry) -> Result<Vec<Edit>, CodedError>,
) -> Result<Vec<Edit>, CodedError> {
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
        problems.push("there are no entries".to_owned());
    }
    let more = problems.len().saturating_sub(SHOWN);
    problems.truncate(SHOWN);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    if problems.is_empty() {
        return Ok(edits);
    }
    if entries.len() > 1 {
        problems.push("nothing was changed".to_owned());
    }
    let code = code.unwrap_or(ErrorCode::InvalidRequest);
    Err(CodedError::new(code, problems.join("\n")))
}

/// What was asked, as far as it is prefixes.
fn asked(entries: &[Entry]) -> Prefixes {
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

fn of(edits: &[Edit]) -> Prefixes {
    Prefixes::of(edits.iter().map(|edit| (edit.prefix(), edit.service())))
}

/// It is shown in lines of others, and a line of JSON is kept for each prefix.
fn require_note(note: &str) -> Result<(), CodedError> {
    if note.chars().count() > LONGEST_NOTE || note.contains(is_deceptive) {
        return Err(invalid(format!(
            "a note is one line of at most {LONGEST_NOTE} visible characters, without control characters and marks of direction"
        )));
    }
    Ok(())
}

/// A digit that is missing lets half the world in.
fn require_narrow(prefix: IpNet) -> Result<(), CodedError> {
    let gate = Gate::default();
    let least = match prefix {
        IpNet::V4(_) => gate.min_prefix_len_v4,
        IpNet::V6(_) => gate.min_prefix_len_v6,
    };
    if prefix.prefix_len() >= least {
        return Ok(());
    }
    Err(CodedError::new(
        ErrorCode::PrefixTooWide,
        format!(
            "{prefix} is wider than /{least}, which is more than any network has; --force if it is meant"
        ),
    ))
}
