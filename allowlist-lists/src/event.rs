//! Events of a source's list, for `history` and the hook. Plain data.

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The most prefixes of one event in the history.
const MAX_STORED_PREFIXES: usize = 200;

/// An event of a source's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The time.
    pub time: Timestamp,
    /// The name of the source.
    pub source: String,
    /// The event.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// The kinds of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum EventKind {
    /// A new list is active.
    Changed {
        /// The generation with the list.
        generation: u32,
        /// The changed prefixes; removed ones stay active until `held_until`.
        #[serde(flatten)]
        change: Change,
        /// The end of the grace period of the removed prefixes, if they have one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        held_until: Option<Timestamp>,
        /// Whether the gate had rejected the list, and the operator accepted it.
        #[serde(skip_serializing_if = "is_false", default)]
        accepted: bool,
    },
    /// A grace period has ended.
    Released {
        /// The generation without these prefixes.
        generation: u32,
        /// The removed prefixes.
        #[serde(flatten)]
        change: Change,
    },
    /// The gate rejected a list; the last-good list stays active.
    Refused {
        /// The reason.
        reason: String,
        /// The change that the list would have made.
        #[serde(flatten)]
        change: Change,
    },
    /// The first failed fetch after a success; the last-good list stays active.
    Failed {
        /// The reason.
        reason: String,
    },
    /// A fetch succeeded after failures.
    Recovered,
    /// The list is older than `max_age`; it stays active.
    Stale {
        /// The time of the last successful fetch.
        fetched: Timestamp,
    },
}

/// The added and removed prefixes. The counts include prefixes that the lists omit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The number of added prefixes.
    pub added_count: usize,
    /// The number of removed prefixes.
    pub removed_count: usize,
    /// The added prefixes, sorted.
    pub added: Vec<IpNet>,
    /// The removed prefixes, sorted.
    pub removed: Vec<IpNet>,
}

impl Change {
    /// Returns the change with these complete lists.
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
    /// Returns the event with this generation, which is not known yet during a start.
    #[must_use]
    pub fn with_generation(mut self, first: u32) -> Self {
        if let EventKind::Changed { generation, .. } | EventKind::Released { generation, .. } =
            &mut self.kind
        {
            *generation = first;
        }
        self
    }

    /// Returns the event with at most `MAX_STORED_PREFIXES` prefixes per list, which limits its size in the history.
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
