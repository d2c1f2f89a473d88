//! Added prefixes: allowed by command, for one service each, with an optional time to live.
//!
//! Pure. Each edit returns the edits that undo it, for a rollback. `journal` stores the edits.

use std::collections::BTreeMap;
use std::time::Duration;

use allowlist_policy::{Feed, Origin, Policy, Source};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::time::{Now, Uptime};

/// An added prefix: a prefix that a user allowed by command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addition {
    /// The prefix that was added.
    pub prefix: IpNet,
    /// The name of the service that the prefix may reach.
    pub service: String,
    /// The time at which the prefix expires; `None` if it never expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The expiry by the boot clock, which includes suspended time and cannot be set; `None` if the prefix never
    /// expires or the host has no boot identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_uptime: Option<Uptime>,
    /// The user's note on the prefix; `None` without a note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The time at which the prefix was added.
    pub added: Timestamp,
    /// The name of the user who added the prefix.
    pub by: String,
}

impl Addition {
    /// Returns the time until the prefix expires, zero if it has expired; `None` if it never expires.
    pub fn left(&self, now: &Now) -> Option<Duration> {
        let until = self.until?;
        Some(now.left(until, self.until_uptime.as_ref()))
    }
}

/// An edit of the set of added prefixes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Edit {
    /// Adds a prefix to a service, or replaces the same prefix of that service.
    Add(Addition),
    /// Removes a prefix from a service; no effect if the service does not have it.
    Remove {
        /// The prefix to remove.
        prefix: IpNet,
        /// The name of the service that loses the prefix.
        service: String,
    },
}

impl Edit {
    /// Returns the name of the service that the edit concerns.
    pub fn service(&self) -> &str {
        match self {
            Self::Add(addition) => &addition.service,
            Self::Remove { service, .. } => service,
        }
    }

    /// Returns the prefix that the edit adds or removes.
    pub fn prefix(&self) -> IpNet {
        match self {
            Self::Add(addition) => addition.prefix,
            Self::Remove { prefix, .. } => *prefix,
        }
    }
}

/// The added prefixes, by service and prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Additions {
    services: BTreeMap<String, BTreeMap<IpNet, Addition>>,
}

impl Additions {
    /// Applies edits in order. Returns the edits that undo them.
    pub fn apply(&mut self, edits: &[Edit]) -> Vec<Edit> {
        let mut undo = Vec::with_capacity(edits.len());
        for edit in edits {
            let (service, prefix) = (edit.service().to_owned(), edit.prefix());
            let before = match edit {
                Edit::Add(addition) => self
                    .services
                    .entry(service.clone())
                    .or_default()
                    .insert(prefix, addition.clone()),
                Edit::Remove { .. } => self.take(&service, &prefix),
            };
            match (before, edit) {
                (Some(before), _) => undo.push(Edit::Add(before)),
                (None, Edit::Add(_)) => undo.push(Edit::Remove { prefix, service }),
                (None, Edit::Remove { .. }) => {}
            }
        }
        undo.reverse();
        undo
    }

    /// Removes and returns the prefixes that have expired at `now`.
    pub fn expire(&mut self, now: &Now) -> Vec<Addition> {
        let over = |addition: &&Addition| addition.left(now).is_some_and(|left| left.is_zero());
        let gone: Vec<Addition> = self.all().filter(over).cloned().collect();
        for addition in &gone {
            self.take(&addition.service, &addition.prefix);
        }
        gone
    }

    /// Returns the time until the next prefix expires, zero if one has expired already; `None` if no prefix has a time
    /// to live.
    pub fn next_expiry(&self, now: &Now) -> Option<Duration> {
        self.all().filter_map(|addition| addition.left(now)).min()
    }

    /// Returns all added prefixes, by service, then by prefix.
    pub fn all(&self) -> impl Iterator<Item = &Addition> {
        self.services.values().flat_map(BTreeMap::values)
    }

    /// Returns the number of added prefixes.
    pub fn len(&self) -> usize {
        self.services.values().map(BTreeMap::len).sum()
    }

    /// Returns whether there are no added prefixes.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Returns the added prefix `prefix` of a service, or `None` if the service does not have it.
    pub fn get(&self, service: &str, prefix: &IpNet) -> Option<&Addition> {
        self.services.get(service)?.get(prefix)
    }

    /// Returns the names of the services to which exactly this prefix was added.
    pub fn services_of(&self, prefix: &IpNet) -> Vec<String> {
        let has = |of_service: &BTreeMap<IpNet, Addition>| of_service.contains_key(prefix);
        self.services
            .iter()
            .filter(|(_, of_service)| has(of_service))
            .map(|(service, _)| service.clone())
            .collect()
    }

    /// Returns the policy, extended by a source of added prefixes for each service that has some.
    pub fn with(&self, policy: &Policy) -> Policy {
        let mut policy = policy.clone();
        for service in &mut policy.services {
            if self.services.contains_key(&service.name) {
                let name = source_name(&service.name);
                policy.sources.push(Source::new(&name, Origin::Added));
                service.allow.push(name);
            }
        }
        policy.sources.sort_by(|a, b| a.name.cmp(&b.name));
        policy
    }

    /// Returns the added prefixes of a service as a feed; `None` if it has none.
    pub fn feed(&self, service: &str) -> Option<Feed> {
        let additions = self.services.get(service)?;
        let prefixes = additions.keys().copied().collect();
        let newest = additions.values().map(|addition| addition.added).max();
        Some(Feed::new(prefixes, newest.unwrap_or(Timestamp::UNIX_EPOCH)))
    }

    /// Returns the names of the services that have added prefixes.
    pub fn services(&self) -> impl Iterator<Item = &String> {
        self.services.keys()
    }

    /// Returns the services with added prefixes that `policy` does not have, each with the number of its added
    /// prefixes.
    pub fn without_service(&self, policy: &Policy) -> Vec<(&str, usize)> {
        let is_there = |name: &str| policy.services.iter().any(|service| service.name == name);
        self.services
            .iter()
            .filter(|(name, _)| !is_there(name))
            .map(|(name, additions)| (&**name, additions.len()))
            .collect()
    }

    fn take(&mut self, service: &str, prefix: &IpNet) -> Option<Addition> {
        let of_service = self.services.get_mut(service)?;
        let taken = of_service.remove(prefix);
        if of_service.is_empty() {
            self.services.remove(service);
        }
        taken
    }
}

/// Returns the name of the source that has the added prefixes of a service. Unlike names in the configuration, it has a
/// dot.
pub fn source_name(service: &str) -> String {
    format!("{SOURCE_PREFIX}{service}")
}

/// The start of the names of all sources of added prefixes.
pub const SOURCE_PREFIX: &str = "added.";

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn addition(prefix: u8, service: u8, until: Option<i64>) -> Addition {
        Addition {
            prefix: format!("192.0.2.{prefix}/32").parse().expect("a prefix"),
            service: format!("s{service}"),
            until: until.map(|second| Timestamp::from_second(second).expect("a time")),
            until_uptime: None,
            note: None,
            added: Timestamp::UNIX_EPOCH,
            by: "root".to_owned(),
        }
    }

    pub(crate) fn edit() -> impl Strategy<Value = Edit> {
        let until = prop::option::of(0_i64..20);
        (0_u8..6, 0_u8..3, until, any::<bool>()).prop_map(|(prefix, service, until, adds)| {
            let addition = addition(prefix, service, until);
            if adds {
                Edit::Add(addition)
            } else {
                Edit::Remove {
                    prefix: addition.prefix,
                    service: addition.service,
                }
            }
        })
    }

    proptest! {
        #[test]
        fn undo_restores_the_state_before(
            first in prop::collection::vec(edit(), 0..20),
            second in prop::collection::vec(edit(), 0..20),
        ) {
            let mut added = Additions::default();
            added.apply(&first);
            let before = added.clone();
            let undo = added.apply(&second);
            added.apply(&undo);
            prop_assert_eq!(added, before);
        }

        /// `Additions` equals a flat map that has the last edit of each prefix.
        #[test]
        fn the_last_edit_of_a_prefix_counts(edits in prop::collection::vec(edit(), 0..40), now in 0_i64..20) {
            let mut added = Additions::default();
            added.apply(&edits);
            let now = Timestamp::from_second(now).expect("a time");
            let moment = Now::by_wall(now);
            let next = added.next_expiry(&moment);
            let gone = added.expire(&moment);
            prop_assert_eq!(gone.is_empty(), next.is_none_or(|next| !next.is_zero()));
            let mut model = BTreeMap::new();
            for edit in &edits {
                let key = (edit.service().to_owned(), edit.prefix());
                match edit {
                    Edit::Add(addition) => model.insert(key, addition.clone()),
                    Edit::Remove { .. } => model.remove(&key),
                };
            }
            model.retain(|_, addition| addition.until.is_none_or(|until| until > now));
            let found: Vec<_> = added.all().cloned().collect();
            prop_assert_eq!(found, model.into_values().collect::<Vec<_>>());
        }
    }

    #[test]
    fn added_prefixes_are_a_source() {
        use allowlist_policy::{Ports, Service};
        let service = |name: &str| Service {
            name: name.to_owned(),
            ports: vec![Ports::Any],
            interfaces: Vec::new(),
            allow: vec!["office".to_owned()],
        };
        let policy = Policy {
            services: vec![service("s1"), service("s2")],
            sources: vec![Source::new("office", Origin::Prefixes(Vec::new()))],
            egress: None,
        };
        let mut added = Additions::default();
        added.apply(&[
            Edit::Add(addition(7, 1, None)),
            Edit::Add(addition(7, 3, None)),
        ]);
        let with = added.with(&policy);
        assert_eq!(with.services[0].allow, ["office", "added.s1"]);
        assert_eq!(with.services[1], policy.services[1]);
        let names: Vec<_> = with.sources.iter().map(|source| &*source.name).collect();
        assert_eq!(names, ["added.s1", "office"]);
        assert_eq!(added.without_service(&policy), [("s3", 1)]);
        let prefix = "192.0.2.7/32".parse().expect("a prefix");
        assert_eq!(added.services_of(&prefix), ["s1", "s3"]);
    }
}
