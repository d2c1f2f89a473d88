//! What a source holds at one moment: what it lists, and what it listed until lately.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Family, PerFamily};

/// One source's prefixes at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    /// What the source lists. Sorted, distinct; not merged, so that an operator finds what the vendor
    /// wrote.
    pub prefixes: Vec<IpNet>,
    /// What it does not list any more, and which stays for its grace period. Sorted, distinct, and
    /// none of it is in `prefixes`.
    pub held: Vec<Held>,
    /// When the vendor (or the file, or the configuration) last gave them, or said that nothing is new.
    pub fetched: Timestamp,
    /// What to send so that the vendor can answer that nothing is new, one for each URL.
    pub validators: Vec<Validator>,
    /// What the operator should know of this list, such as rows that are about to go.
    pub notes: Vec<String>,
    /// How this list came about within the source's growth window, the newest change first.
    pub changes: Vec<PastChange>,
    /// When the source last answered, also with a list that the gate rejected: the ages in `changes` and `held` are of
    /// this time.
    pub answered: Timestamp,
}

/// A change of a list, or several in a row, kept so that the list before it can be restored.
///
/// Ages grow with the time that passes between answers, and carry no time of day: a clock that is set changes
/// none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastChange {
    /// The age of the newest change.
    pub seconds: u64,
    /// The age of the oldest change.
    pub oldest_seconds: u64,
    /// In the list after the changes only; sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<IpNet>,
    /// In the list before the changes only; sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<IpNet>,
    /// The fewest addresses that were active just before one of the changes, grace prefixes included. None in a list
    /// that was stored by a program that did not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fewest: Option<PerFamily>,
}

/// A prefix that its source does not list any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Held {
    /// The prefix.
    pub prefix: IpNet,
    /// When it goes.
    pub until: Timestamp,
    /// The time in seconds since the list dropped the prefix, which grows like the ages of [`PastChange`]. The maximum
    /// if the operator accepted a list while the prefix was active.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub seconds: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a server said of the version of a list, to be asked whether it is still the newest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validator {
    /// Its `ETag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Its `Last-Modified`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
}

/// What came of asking a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has nothing newer than what the validators are of.
    Unchanged(Timestamp),
    /// What it holds.
    List(Fetched),
}

/// A list as it was received. Nobody has judged it yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Sorted, distinct.
    pub prefixes: Vec<IpNet>,
    /// What the operator should know of it.
    pub notes: Vec<String>,
    /// When it was got; of a compiled-in list, when it was checked.
    pub fetched: Timestamp,
    /// What to ask with next time, one for each URL.
    pub validators: Vec<Validator>,
    /// When the source says to ask again, such as by its records' time to live.
    pub again: Option<Duration>,
    /// The families with a name that has no answer. `prefixes` may be incomplete in these families: the previous
    /// prefixes stay valid.
    pub kept: Vec<Family>,
}

impl Fetched {
    /// A list of which nothing else is known. `prefixes` are sorted and distinct.
    pub fn new(prefixes: Vec<IpNet>, fetched: Timestamp) -> Self {
        Self {
            prefixes,
            notes: Vec::new(),
            fetched,
            validators: Vec::new(),
            again: None,
            kept: Vec::new(),
        }
    }
}

/// All sources' prefixes of one moment, by source name.
pub type Snapshot = BTreeMap<String, Feed>;

impl Feed {
    /// A list of which nothing else is known. `prefixes` are sorted and distinct.
    pub fn new(prefixes: Vec<IpNet>, fetched: Timestamp) -> Self {
        Self {
            prefixes,
            held: Vec::new(),
            fetched,
            validators: Vec::new(),
            notes: Vec::new(),
            changes: Vec::new(),
            answered: fetched,
        }
    }

    /// What is in force: what is listed, and what is held. In no particular order, distinct.
    pub fn in_force(&self) -> impl Iterator<Item = IpNet> {
        let held = self.held.iter().map(|held| held.prefix);
        self.prefixes.iter().copied().chain(held)
    }

    /// How many prefixes are in force.
    pub fn len(&self) -> usize {
        self.prefixes.len() + self.held.len()
    }

    /// Whether nothing is in force.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Validator {
    /// Whether there is nothing to ask with.
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }
}
