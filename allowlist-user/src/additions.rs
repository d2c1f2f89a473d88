//! Prefixes that people let in by command: to which service, until when, and who did it.
//!
//! Pure: a book that is told what is edited and what time it is. Each edit gives what undoes it, so that a
//! change can be taken back when it cannot be put in force, or is not confirmed. `ledger` keeps it on disk.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::policy::{Feed, Origin, Policy, Source};
use crate::time::{Now, Uptime};

/// A prefix that somebody let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addition {
    /// The prefix.
    pub prefix: IpNet,
    /// The service that it reaches.
    pub service: String,
    /// When it goes; none is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The expiry on the boot clock, which counts while the host is up and cannot be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_uptime: Option<Uptime>,
    /// Why, in the words of who did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// When it was let in.
    pub added: Timestamp,
    /// By whom.
    pub by: String,
}

impl Addition {
    /// Returns the time that is left, zero if it has expired; `None` for an addition without a time limit.
    pub fn left(&self, now: &Now) -> Option<Duration> {
        let until = self.until?;
        Some(now.left(until, self.until_uptime.as_ref()))
    }
}

/// One step of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Edit {
    /// Lets a prefix in, in the place of what is known of it there.
    Add(Addition),
    /// Lets it in no more. One that is not there stays away.
    Remove {
        /// The prefix.
        prefix: IpNet,
        /// The service.
        service: String,
    },
}

impl Edit {
    /// The service that it is about.
    pub fn service(&self) -> &str {
        match self {
            Self::Add(addition) => &addition.service,
            Self::Remove { service, .. } => service,
        }
    }

    /// The prefix that it is about.
    pub fn prefix(&self) -> IpNet {
        match self {
            Self::Add(addition) => addition.prefix,
            Self::Remove { prefix, .. } => *prefix,
        }
    }
}

/// The book, by service and prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Additions {
    services: BTreeMap<String, BTreeMap<IpNet, Addition>>,
}

impl Additions {
    /// Carries out edits, in order.
    ///
    /// # Returns
    /// What undoes them, in order.
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

    /// Removes the additions that have expired, and returns them.
    pub fn expire(&mut self, now: &Now) -> Vec<Addition> {
        let over = |addition: &&Addition| addition.left(now).is_some_and(|left| left.is_zero());
        let gone: Vec<Addition> = self.all().filter(over).cloned().collect();
        for addition in &gone {
            self.take(&addition.service, &addition.prefix);
        }
        gone
    }

    /// Returns the time until the next addition expires, or `None` if none ever does.
    pub fn next_expiry(&self, now: &Now) -> Option<Duration> {
        self.all().filter_map(|addition| addition.left(now)).min()
    }

    /// By service, then by prefix.
    pub fn all(&self) -> impl Iterator<Item = &Addition> {
        self.services.values().flat_map(BTreeMap::values)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.services.values().map(BTreeMap::len).sum()
    }

    /// Whether nobody was let in.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// What is known of a prefix at a service.
    pub fn get(&self, service: &str, prefix: &IpNet) -> Option<&Addition> {
        self.services.get(service)?.get(prefix)
    }

    /// The services to which exactly this prefix was let in.
    pub fn services_of(&self, prefix: &IpNet) -> Vec<String> {
        let has = |of_service: &BTreeMap<IpNet, Addition>| of_service.contains_key(prefix);
        self.services
            .iter()
            .filter(|(_, of_service)| has(of_service))
            .map(|(service, _)| service.clone())
            .collect()
    }

    /// The policy with what was let in as one more source of each service that it is for.
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

    /// What the source of a service has; none where nothing was added to it.
    pub fn feed(&self, service: &str) -> Option<Feed> {
        let additions = self.services.get(service)?;
        let prefixes = additions.keys().copied().collect();
        let newest = additions.values().map(|addition| addition.added).max();
        Some(Feed::new(prefixes, newest.unwrap_or(Timestamp::UNIX_EPOCH)))
    }

    /// The services to which something was added.
    pub fn services(&self) -> impl Iterator<Item = &String> {
        self.services.keys()
    }

    /// Services that have something and are not in the policy.
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

/// The source that what was let in to a service counts as. No configured source's name has a dot.
pub fn source_name(service: &str) -> String {
    format!("{SOURCE_PREFIX}{service}")
}

/// What the names of those sources begin with.
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
        fn what_is_undone_was_never_done(
            first in prop::collection::vec(edit(), 0..20),
            second in prop::collection::vec(edit(), 0..20),
        ) {
            let mut book = Additions::default();
            book.apply(&first);
            let before = book.clone();
            let undo = book.apply(&second);
            book.apply(&undo);
            prop_assert_eq!(book, before);
        }

        /// A book is what a flat list of its last words is.
        #[test]
        fn a_book_says_what_was_said_last(edits in prop::collection::vec(edit(), 0..40), now in 0_i64..20) {
            let mut book = Additions::default();
            book.apply(&edits);
            let now = Timestamp::from_second(now).expect("a time");
            let moment = Now::by_wall(now);
            let next = book.next_expiry(&moment);
            let gone = book.expire(&moment);
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
            let found: Vec<_> = book.all().cloned().collect();
            prop_assert_eq!(found, model.into_values().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_service_gets_a_source_more() {
        use crate::policy::{Ports, Service};
        let service = |name: &str| Service {
            name: name.to_owned(),
            ports: vec![Ports::Any],
            interfaces: Vec::new(),
            allow: vec!["office".to_owned()],
        };
        let policy = Policy {
            services: vec![service("s1"), service("s2")],
            sources: vec![Source::new("office", Origin::Prefixes(Vec::new()))],
        };
        let mut book = Additions::default();
        book.apply(&[
            Edit::Add(addition(7, 1, None)),
            Edit::Add(addition(7, 3, None)),
        ]);
        let with = book.with(&policy);
        assert_eq!(with.services[0].allow, ["office", "added.s1"]);
        assert_eq!(with.services[1], policy.services[1]);
        let names: Vec<_> = with.sources.iter().map(|source| &*source.name).collect();
        assert_eq!(names, ["added.s1", "office"]);
        assert_eq!(book.without_service(&policy), [("s3", 1)]);
        let prefix = "192.0.2.7/32".parse().expect("a prefix");
        assert_eq!(book.services_of(&prefix), ["s1", "s3"]);
    }
}
