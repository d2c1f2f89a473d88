//! The state of a source's list at one moment: its prefixes, its grace prefixes and its recent changes.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Family, PerFamily};

/// The prefixes of one source at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    /// The prefixes of the list. Sorted and distinct; not merged, so that reports show the vendor's own prefixes.
    pub prefixes: Vec<IpNet>,
    /// The grace prefixes, which have left the list. Sorted, distinct, and disjoint from `prefixes`.
    pub grace: Vec<GracePrefix>,
    /// The time when the origin last delivered the list or confirmed it as unchanged.
    pub fetched: Timestamp,
    /// The validators of conditional requests, one for each URL.
    pub validators: Vec<Validator>,
    /// Notes for the operator about this list, such as rows that are marked as deprecated.
    pub notes: Vec<String>,
    /// The changes of the list within the growth window, newest first.
    pub changes: Vec<PastChange>,
    /// The time of the last answer, including rejected lists. The ages in `changes` and `grace` are relative to it.
    pub answered: Timestamp,
}

/// A change of a list, or several consecutive ones, from which the list before it can be restored.
///
/// Ages grow by the time between answers and contain no time of day, so setting the clock does not change them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastChange {
    /// The age of the newest change.
    pub seconds: u64,
    /// The age of the oldest change.
    pub oldest_seconds: u64,
    /// The prefixes only in the list after the changes; sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<IpNet>,
    /// The prefixes only in the list before the changes; sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<IpNet>,
    /// The smallest number of addresses that were active just before one of the changes, including grace prefixes.
    /// `None` in lists stored by older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fewest: Option<PerFamily>,
}

/// A grace prefix: it left its list and stays active until the end of its grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GracePrefix {
    /// The prefix.
    pub prefix: IpNet,
    /// The end of the grace period.
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

/// The validators of a response, for a conditional request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validator {
    /// The `ETag` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The `Last-Modified` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
}

/// The result of fetching a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The list has not changed since the validators; confirmed at this time.
    Unchanged(Timestamp),
    /// A new list.
    List(Fetched),
}

/// A list as received, before the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The prefixes; sorted and distinct.
    pub prefixes: Vec<IpNet>,
    /// Notes for the operator.
    pub notes: Vec<String>,
    /// The time of fetching; for a built-in list, the day of its last check.
    pub fetched: Timestamp,
    /// The validators for the next request, one for each URL.
    pub validators: Vec<Validator>,
    /// The time until the next fetch that the source requests, such as a record's time to live.
    pub again: Option<Duration>,
    /// The families in which a name had no answer. `prefixes` may be incomplete there, so the previous prefixes stay.
    pub kept: Vec<Family>,
}

impl Fetched {
    /// Returns a list without validators and notes. `prefixes` must be sorted and distinct.
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

/// The lists of all sources at one moment, by source name.
pub type Snapshot = BTreeMap<String, Feed>;

impl Feed {
    /// Returns a list without validators and notes. `prefixes` must be sorted and distinct.
    pub fn new(prefixes: Vec<IpNet>, fetched: Timestamp) -> Self {
        Self {
            prefixes,
            grace: Vec::new(),
            fetched,
            validators: Vec::new(),
            notes: Vec::new(),
            changes: Vec::new(),
            answered: fetched,
        }
    }

    /// Returns the active prefixes: those of the list and the grace prefixes. Distinct, in no particular order.
    pub fn active(&self) -> impl Iterator<Item = IpNet> {
        let grace = self.grace.iter().map(|grace| grace.prefix);
        self.prefixes.iter().copied().chain(grace)
    }

    /// Returns the number of active prefixes.
    pub fn len(&self) -> usize {
        self.prefixes.len() + self.grace.len()
    }

    /// Returns whether no prefix is active.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Validator {
    /// Returns whether there is no validator.
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }
}
