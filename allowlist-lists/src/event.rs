//! Events of a source's list, for `history` and the hook. Plain data.

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The maximum number of added prefixes, and of removed prefixes, that the history stores for one event.
const MAX_STORED_PREFIXES: usize = 200;

/// An event in the life of a source's list, for the history and the hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The time at which the event occurred.
    pub time: Timestamp,
    /// The name of the source.
    pub source: String,
    /// What happened to the list.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened to a source's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum EventKind {
    /// A new list became active.
    Changed {
        /// The number of the generation that has the list.
        generation: u32,
        /// The prefixes that the list adds and removes; removed ones stay active until `grace_until`.
        #[serde(flatten)]
        change: Change,
        /// The end of the grace period of the removed prefixes; `None` if they have no grace period. Records of earlier
        /// builds have it as `held_until`.
        #[serde(alias = "held_until", skip_serializing_if = "Option::is_none", default)]
        grace_until: Option<Timestamp>,
        /// Whether the gate had rejected the list, and the operator accepted it.
        #[serde(skip_serializing_if = "is_false", default)]
        accepted: bool,
    },
    /// Grace prefixes were removed because their grace period ended.
    Released {
        /// The number of the generation without these prefixes.
        generation: u32,
        /// The grace prefixes that are no longer active.
        #[serde(flatten)]
        change: Change,
    },
    /// The gate rejected a list, or it could not be published; the last-good list stays active.
    Refused {
        /// The reason why the list was rejected or not published.
        reason: String,
        /// The prefixes that the list would have added and removed.
        #[serde(flatten)]
        change: Change,
    },
    /// A fetch failed for the first time since the last success; the last-good list stays active.
    Failed {
        /// The reason why the fetch failed.
        reason: String,
    },
    /// A new answer was accepted after one or several failures.
    Recovered,
    /// The list became stale: it is older than `max_age`, and stays active.
    Stale {
        /// The time of the last successful fetch.
        fetched: Timestamp,
    },
}

/// The prefixes that a list adds and removes. The counts include prefixes that the two lists omit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The number of added prefixes.
    pub added_count: usize,
    /// The number of removed prefixes.
    pub removed_count: usize,
    /// The added prefixes, sorted; possibly only the first ones.
    pub added: Vec<IpNet>,
    /// The removed prefixes, sorted; possibly only the first ones.
    pub removed: Vec<IpNet>,
}

impl Change {
    /// Returns the change with the complete, sorted lists `added` and `removed`.
    pub fn new(added: Vec<IpNet>, removed: Vec<IpNet>) -> Self {
        Self {
            added_count: added.len(),
            removed_count: removed.len(),
            added,
            removed,
        }
    }
}

impl Event {
    /// Returns the event with the generation `number`, which is known only after publishing. Events other than
    /// [`EventKind::Changed`] and [`EventKind::Released`] have none, and are returned unchanged.
    #[must_use]
    pub fn with_generation(mut self, number: u32) -> Self {
        if let EventKind::Changed { generation, .. } | EventKind::Released { generation, .. } =
            &mut self.kind
        {
            *generation = number;
        }
        self
    }

    /// Returns the event with only the first `MAX_STORED_PREFIXES` added and removed prefixes each, for the history;
    /// the counts remain those of all prefixes.
    #[must_use]
    pub fn shortened(mut self) -> Self {
        let change = match &mut self.kind {
            EventKind::Changed { change, .. }
            | EventKind::Released { change, .. }
            | EventKind::Refused { change, .. } => change,
            EventKind::Failed { .. } | EventKind::Recovered | EventKind::Stale { .. } => {
                return self;
            }
        };
        change.added.truncate(MAX_STORED_PREFIXES);
        change.removed.truncate(MAX_STORED_PREFIXES);
        self
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks with a reference"
)]
fn is_false(value: &bool) -> bool {
    !value
}
