//! What changed, and what a refresh would change, as text for people and as JSON for programs. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::control::Refreshed;
use crate::event::{Change, Event, What};
use crate::renew::{Refused, Renewal};

/// As many prefixes as a text shows of one change; JSON has all of them.
const SHOWN: usize = 20;

/// What came of asking a source whether it has something new.
pub enum Outcome {
    /// It could not be had.
    Failed(String),
    /// The gate would refuse what it has.
    Refused(Box<Refused>),
    /// It would have this, and what is gone would stay for so long.
    Changed(Renewal, Duration),
}

/// Sources and what would become of them, for people.
pub fn diff_text(outcomes: &BTreeMap<String, Outcome>) -> String {
    let mut text = String::new();
    for (name, outcome) in outcomes {
        match outcome {
            Outcome::Failed(reason) => text += &format!("{name}: cannot be had: {reason}\n"),
            Outcome::Refused(refused) => {
                let accept = if refused.refusal.is_acceptable() {
                    format!("; if the vendor means it, `allowlist accept {name}` lets it in")
                } else {
                    String::new()
                };
                text += &format!("{name}: would be refused: {}{accept}\n", refused.refusal);
                let difference = &refused.difference;
                text += &signed(&difference.added, &difference.removed);
            }
            Outcome::Changed(renewal, grace) => {
                let (feed, difference) = (&renewal.feed, &renewal.difference);
                if difference.is_empty() {
                    text += &format!("{name}: nothing new, {} prefixes\n", feed.prefixes.len());
                    continue;
                }
                let stay = if difference.removed.is_empty() || grace.is_zero() {
                    String::new()
                } else {
                    format!(", which stay for {}", humantime::format_duration(*grace))
                };
                text += &format!(
                    "{name}: {} prefixes, {} more, {} less{stay}\n",
                    feed.prefixes.len(),
                    difference.added.len(),
                    difference.removed.len(),
                );
                text += &signed(&difference.added, &difference.removed);
            }
        }
    }
    text
}

/// The same for programs.
pub fn diff_json(outcomes: &BTreeMap<String, Outcome>) -> Value {
    let one = |outcome: &Outcome| match outcome {
        Outcome::Failed(reason) => json!({ "outcome": "failed", "reason": reason }),
        Outcome::Refused(refused) => json!({
            "outcome": "refused",
            "reason": refused.refusal.to_string(),
            "acceptable": refused.refusal.is_acceptable(),
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
        .map(|(name, outcome)| (name.clone(), one(outcome)));
    json!({ "sources": sources.collect::<serde_json::Map<_, _>>() })
}

/// Events, for people.
pub fn history_text(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        let time = event.time.strftime("%Y-%m-%d %H:%M:%SZ");
        text += &format!("{time}  {}: {}\n", event.source, told(&event.what));
        if let What::Changed { change, .. }
        | What::Released { change, .. }
        | What::Refused { change, .. } = &event.what
        {
            text += &signed(&change.added, &change.removed);
        }
    }
    text
}

fn told(what: &What) -> String {
    let counts = |change: &Change| match (change.added_count, change.removed_count) {
        (added, 0) => format!("{added} more"),
        (0, removed) => format!("{removed} less"),
        (added, removed) => format!("{added} more, {removed} less"),
    };
    match what {
        What::Changed {
            generation,
            change,
            held_until,
            accepted,
        } => {
            let mut text = format!("changed: {}", counts(change));
            if let Some(until) = held_until {
                text += &format!(" (in force until {})", until.strftime("%Y-%m-%d %H:%M:%SZ"));
            }
            if *accepted {
                text += ", accepted by the operator";
            }
            text + &format!("; generation {generation}")
        }
        What::Released { generation, change } => format!(
            "released: {} after their grace period; generation {generation}",
            counts(change)
        ),
        What::Refused { reason, change } => format!("refused: {}: {reason}", counts(change)),
        What::Failed { reason } => format!("failed: {reason}"),
        What::Recovered => "recovered".to_owned(),
        What::Stale { fetched } => format!("stale: its list is of {fetched}"),
    }
}

/// What came of asking for lists, a line each.
pub fn refreshed_text(sources: &BTreeMap<String, Refreshed>) -> String {
    if sources.is_empty() {
        return "there is no source that can be asked\n".to_owned();
    }
    let mut text = String::new();
    for (name, outcome) in sources {
        text += &match &outcome.failure {
            Some(failure) => format!(
                "{name}: {} prefixes, as before: {failure}\n",
                outcome.prefixes
            ),
            None => format!("{name}: {} prefixes\n", outcome.prefixes),
        };
    }
    text
}

/// A line for each prefix that came or went, as far as a person reads.
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
