//! What happens to a source's list: what `history` keeps, and what a hook is told.
//!
//! Plain data. Who keeps it and who is told is decided elsewhere.

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// As many prefixes of a list as the history keeps of one event.
const KEPT: usize = 200;

/// Something that happened to a source's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// The source's name.
    pub source: String,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum What {
    /// Another list is in force.
    Changed {
        /// The generation that has it.
        generation: u32,
        /// What the list has more and less. What it has less is in force until `held_until`.
        #[serde(flatten)]
        change: Change,
        /// When what is not listed any more goes; absent if it went at once.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        held_until: Option<Timestamp>,
        /// Whether the gate had refused it, and the operator accepted it.
        #[serde(skip_serializing_if = "is_false", default)]
        accepted: bool,
    },
    /// A grace period is over.
    Released {
        /// The generation without these prefixes.
        generation: u32,
        /// What went.
        #[serde(flatten)]
        change: Change,
    },
    /// The gate refused a list, and the last good one stays in force.
    Refused {
        /// Why.
        reason: String,
        /// What it would have changed.
        #[serde(flatten)]
        change: Change,
    },
    /// The list could not be had, after it could; the last good one stays in force.
    Failed {
        /// Why.
        reason: String,
    },
    /// The list could be had again.
    Recovered,
    /// The list is older than `max_age`; it stays in force.
    Stale {
        /// When it was last got.
        fetched: Timestamp,
    },
}

/// Prefixes that came and went. The numbers are true also where the lists are cut short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// How many came.
    pub added_count: usize,
    /// How many went.
    pub removed_count: usize,
    /// What came; sorted.
    pub added: Vec<IpNet>,
    /// What went; sorted.
    pub removed: Vec<IpNet>,
}

impl Change {
    /// Of whole lists.
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
    /// The same, as part of that generation: what a start takes in has none yet.
    #[must_use]
    pub fn of(mut self, first: u32) -> Self {
        if let What::Changed { generation, .. } | What::Released { generation, .. } = &mut self.what
        {
            *generation = first;
        }
        self
    }

    /// The same with lists that are cut short, so that a great change does not push out the rest.
    #[must_use]
    pub fn shortened(mut self) -> Self {
        let change = match &mut self.what {
            What::Changed { change, .. }
            | What::Released { change, .. }
            | What::Refused { change, .. } => change,
            What::Failed { .. } | What::Recovered | What::Stale { .. } => return self,
        };
        change.added.truncate(KEPT);
        change.removed.truncate(KEPT);
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
