//! The changes of lists, and the changes that a refresh would make, as text and as JSON. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use allowlist_lists::event::{Change, Event, EventKind};
use allowlist_lists::list_update::{AcceptedUpdate, RejectedUpdate};
use allowlist_lists::rejected::{RejectedLists, command, list_id};
use allowlist_policy::difference::Difference;
use allowlist_policy::error_code::CodedError;
use allowlist_policy::hints::counted;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::rejected::rejected_text;
use crate::control::RefreshOutcome;

/// The maximum number of added, and of removed, prefixes that a text shows for one list; JSON has every prefix.
const SHOWN: usize = 20;

/// The result of the fetch of one source for `allowlist diff`.
pub enum Outcome {
    /// The fetch failed, with this error.
    Failed(CodedError),
    /// The gate would reject the list.
    Refused(Box<RejectedUpdate>),
    /// The list would become active. Its removed prefixes would stay allowed for this grace period.
    Changed(AcceptedUpdate, Duration),
}

/// Returns the rejected lists and the changes that a refresh would make, by source, as text.
pub fn diff_text(outcomes: &BTreeMap<String, Outcome>, rejected: &RejectedLists) -> String {
    let mut text = String::new();
    for (name, outcome) in outcomes {
        let id = match outcome {
            Outcome::Refused(refused) => Some(list_id(name, &refused.fetched.prefixes)),
            _ => None,
        };
        // The list that the daemon rejected may differ from the current one.
        let waiting = rejected.sources.get(name);
        let other = waiting.filter(|list| id.as_ref() != Some(&list.id));
        text += &other.map_or_else(String::new, |list| rejected_text(name, list));
        match outcome {
            Outcome::Failed(error) => text += &format!("{name}: fetch failed: {error}\n"),
            Outcome::Refused(refused) => {
                text += &format!(
                    "{name}: the gate would reject this list: {}\n",
                    refused.rejection
                );
                text += &widest_first(&refused.difference);
                let id = id.filter(|_| refused.rejection.is_acceptable());
                let when = if waiting.is_some() && other.is_none() {
                    "to accept exactly this list"
                } else {
                    "to accept exactly this list, once a daemon has fetched it"
                };
                text += &id.map_or_else(String::new, |id| {
                    format!("  {when}: {}\n", command(name, &id))
                });
            }
            Outcome::Changed(renewal, grace) => {
                let (feed, difference) = (&renewal.feed, &renewal.difference);
                if difference.is_empty() {
                    let prefixes = counted(feed.prefixes.len(), "prefix");
                    text += &format!("{name}: unchanged, {prefixes}\n");
                    continue;
                }
                let stay = if difference.removed.is_empty() || grace.is_zero() {
                    String::new()
                } else {
                    format!(
                        ", which stay active for {}",
                        humantime::format_duration(*grace)
                    )
                };
                text += &format!(
                    "{name}: {}, {} added, {} removed{stay}\n",
                    counted(feed.prefixes.len(), "prefix"),
                    difference.added.len(),
                    difference.removed.len(),
                );
                text += &signed(&difference.added, &difference.removed);
            }
        }
    }
    text
}

/// Returns the rejected lists and the changes that a refresh would make, by source, as JSON.
pub fn diff_json(outcomes: &BTreeMap<String, Outcome>, rejected: &RejectedLists) -> Value {
    let one = |name: &str, outcome: &Outcome| match outcome {
        Outcome::Failed(error) => json!({ "outcome": "failed", "reason": error.error }),
        Outcome::Refused(refused) => json!({
            "outcome": "refused",
            "id": list_id(name, &refused.fetched.prefixes),
            "reason": refused.rejection.to_string(),
            "acceptable": refused.rejection.is_acceptable(),
            "added": refused.difference.added,
            "removed": refused.difference.removed,
        }),
        Outcome::Changed(renewal, grace) => json!({
            "outcome": if renewal.difference.is_empty() { "unchanged" } else { "changed" },
            "prefixes": renewal.feed.prefixes.len(),
            "added": renewal.difference.added,
            "removed": renewal.difference.removed,
            "grace_seconds": grace.as_secs(),
            "notes": renewal.feed.notes,
        }),
    };
    let sources = outcomes
        .iter()
        .map(|(name, outcome)| (name.clone(), one(name, outcome)));
    json!({
        "sources": sources.collect::<serde_json::Map<_, _>>(),
        "rejected": rejected.sources,
    })
}

/// Returns the changes of a rejected list as text. The widest prefixes are first, so that none hides behind many narrow
/// ones.
pub fn widest_first(difference: &Difference) -> String {
    let mut added = difference.added.clone();
    added.sort_by_key(IpNet::prefix_len);
    signed(&added, &difference.removed)
}

/// Returns the events of the history as text.
pub fn history_text(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        let time = event.time.strftime("%Y-%m-%d %H:%M:%SZ");
        text += &format!("{time}  {}: {}\n", event.source, told(&event.kind));
        if let EventKind::Changed { change, .. }
        | EventKind::Released { change, .. }
        | EventKind::Refused { change, .. } = &event.kind
        {
            text += &signed(&change.added, &change.removed);
        }
    }
    text
}

fn told(what: &EventKind) -> String {
    let counts = |change: &Change| match (change.added_count, change.removed_count) {
        (added, 0) => format!("{added} added"),
        (0, removed) => format!("{removed} removed"),
        (added, removed) => format!("{added} added, {removed} removed"),
    };
    match what {
        EventKind::Changed {
            generation,
            change,
            grace_until,
            accepted,
        } => {
            let mut text = format!("changed: {}", counts(change));
            if let Some(until) = grace_until {
                text += &format!(" (active until {})", until.strftime("%Y-%m-%d %H:%M:%SZ"));
            }
            if *accepted {
                text += ", accepted by the operator";
            }
            text + &format!("; generation {generation}")
        }
        EventKind::Released { generation, change } => format!(
            "released: {} after their grace period; generation {generation}",
            counts(change)
        ),
        EventKind::Refused { reason, change } => {
            format!("rejected: {}: {reason}", counts(change))
        }
        EventKind::Failed { reason } => format!("fetch failed: {reason}"),
        EventKind::Recovered => "recovered: the list can be fetched again".to_owned(),
        EventKind::Stale { fetched } => format!("stale: the list was last fetched {fetched}"),
    }
}

/// Returns the outcomes of a refresh as text, one line per source.
pub fn refreshed_text(sources: &BTreeMap<String, RefreshOutcome>) -> String {
    if sources.is_empty() {
        return "nothing was fetched: no service allows a source whose list can change\n"
            .to_owned();
    }
    let mut text = String::new();
    for (name, outcome) in sources {
        text += &match &outcome.failure {
            Some(failure) => format!(
                "{name}: not refreshed, still {}: {failure}\n",
                counted(outcome.prefixes, "prefix")
            ),
            None => format!("{name}: {}\n", counted(outcome.prefixes, "prefix")),
        };
    }
    text
}

/// Returns a line for each added prefix and each removed prefix, at most 20 of each, and the number of the rest.
pub fn signed(added: &[IpNet], removed: &[IpNet]) -> String {
    let mut text = String::new();
    for (sign, prefixes) in [('+', added), ('-', removed)] {
        for prefix in prefixes.iter().take(SHOWN) {
            text += &format!("  {sign} {prefix}\n");
        }
        if let Some(more @ 1..) = prefixes.len().checked_sub(SHOWN) {
            text += &format!("  {sign} and {more} more; --json shows them\n");
        }
    }
    text
}
