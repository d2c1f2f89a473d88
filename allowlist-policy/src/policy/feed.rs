//! The state of a source's list at one moment: its prefixes, its grace prefixes and its recent changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Family, PerFamily};

/// The prefixes of one source at one moment, with the times and changes that later lists are compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    /// The prefixes of the vendor's list. Sorted and distinct; not merged, so that reports show the vendor's own
    /// prefixes.
    pub prefixes: Vec<IpNet>,
    /// The prefixes that have left the list and are in their grace period. Sorted, distinct, and disjoint from
    /// `prefixes`.
    pub grace: Vec<GracePrefix>,
    /// The time when the origin last delivered the list or confirmed it as unchanged.
    pub fetched: Timestamp,
    /// The validators (`ETag`, Last-Modified) for the next conditional requests, one for each URL; empty if there are
    /// none.
    pub validators: Vec<Validator>,
    /// Notes for the operator about this list, such as rows that are marked as deprecated.
    pub notes: Vec<String>,
    /// The changes of the list within the growth window ([`super::Gate::growth_window`]), newest first, from which
    /// earlier lists can be restored.
    pub changes: Vec<PastChange>,
    /// The time of the origin's last answer, also if the gate rejected its list. The ages in `changes` and `grace` are
    /// relative to this time.
    pub answered: Timestamp,
}

/// One or several consecutive changes of a list, from which the list before them can be restored.
///
/// Ages grow by the time between answers and contain no time of day, so setting the clock does not change them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastChange {
    /// The age of the newest change in this entry, in seconds, as of [`Feed::answered`].
    pub seconds: u64,
    /// The age of the oldest change in this entry, in seconds, as of [`Feed::answered`].
    pub oldest_seconds: u64,
    /// The prefixes that these changes together added to the list; sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<IpNet>,
    /// The prefixes that these changes together removed from the list; sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<IpNet>,
    /// The smallest number of addresses that were active just before a change in this entry, grace prefixes included.
    /// `None` if an older version of the program stored the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fewest: Option<PerFamily>,
}

/// A grace prefix: a prefix that left its list and stays active until the end of its grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GracePrefix {
    /// The prefix that left the list.
    pub prefix: IpNet,
    /// The end of the prefix's grace period.
    pub until: Timestamp,
    /// The time since the prefix left the list, in seconds, as of [`Feed::answered`]; it grows like the ages of
    /// [`PastChange`]. `u64::MAX` if the operator has accepted a list since then: the gate then treats the prefix as
    /// older than the growth window.
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

/// The validators of an HTTP response, with which the next request can be conditional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validator {
    /// The value of the `ETag` header, if the response has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The value of the `Last-Modified` header, if the response has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
}

/// The answer of a source's origin to a successful fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The list is the same as at the last answer; the origin confirmed this at the given time.
    Unchanged(Timestamp),
    /// The origin delivered a list, which may equal the last one.
    List(Fetched),
}

/// A list as its origin delivered it, before the gate has checked it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The prefixes of the list; sorted and distinct.
    pub prefixes: Vec<IpNet>,
    /// The notes for the operator about this list.
    pub notes: Vec<String>,
    /// The time of fetching; for a built-in list, the day on which it was last compared with the vendor's page.
    pub fetched: Timestamp,
    /// The validators for the next conditional requests, one for each URL; empty if there are none.
    pub validators: Vec<Validator>,
    /// The time until the next fetch that the origin states, such as a DNS record's time to live; `None` to use
    /// `every`.
    pub again: Option<Duration>,
    /// The address families in which the query for a name failed. The source keeps its previous prefixes of the
    /// families listed here, since `prefixes` may lack some.
    pub kept: Vec<Family>,
}

impl Fetched {
    /// Returns a fetched list without validators and notes. `prefixes` must be sorted and distinct.
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

/// The lists of all sources at one moment, by source name. Copies of a snapshot share the lists.
pub type Snapshot = BTreeMap<String, Arc<Feed>>;

impl Feed {
    /// Returns a feed without grace prefixes, changes, validators and notes. `prefixes` must be sorted and distinct.
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

    /// Returns the active prefixes: those of the list and the grace prefixes; distinct, in no particular order.
    pub fn active(&self) -> impl Iterator<Item = IpNet> {
        let grace = self.grace.iter().map(|grace| grace.prefix);
        self.prefixes.iter().copied().chain(grace)
    }

    /// Returns the active prefixes: those of the list and the grace prefixes; distinct and sorted.
    pub fn sorted_active(&self) -> Vec<IpNet> {
        let mut prefixes: Vec<IpNet> = self.active().collect();
        prefixes.sort_unstable();
        prefixes
    }

    /// Returns the number of active prefixes, grace prefixes included.
    pub fn len(&self) -> usize {
        self.prefixes.len() + self.grace.len()
    }

    /// Returns whether no prefix is active, not even a grace prefix.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Validator {
    /// Returns whether the response had neither an `ETag` nor a `Last-Modified` header.
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }
}
