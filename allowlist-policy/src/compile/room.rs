//! The capacity of the kernel's tables: shares for sources, and a reserve for added prefixes, which a source that fills
//! `max_prefixes` cannot use up.
//!
//! Invariants: a changing list within its share always fits, and so do added prefixes within the reserve; all other
//! lists together fit `max_prefixes`. So the result depends only on the lists, and is the same after a restart.

use ipnet::IpNet;

use super::CompileError;
use crate::policy::{Origin, Policy, Snapshot, Source};

/// The divisor of `max_prefixes` for lists that can change: a quarter is reserved for them, in equal shares.
const SHARES: usize = 4;
/// The divisor of `max_prefixes` for prefixes added by command: an eighth is reserved for them.
const RESERVE: usize = 8;
/// The minimum size of the reserve for prefixes added by command, in prefixes.
const LEAST_RESERVE: usize = 64;

/// Checks that the lists in `snapshot` fit tables of `max_prefixes` prefixes: those of services, and those of the egress
/// policy, which has tables of its own. Sources without a list are ignored.
///
/// A list that can change and is no larger than its reserved share always fits, and so do prefixes added by command
/// within their reserve. The other lists together must not exceed `max_prefixes`.
///
/// # Errors
/// The lists exceed `max_prefixes`. The error has the number of prefixes that count towards the limit, and the largest
/// list that counts.
pub fn require_room(
    policy: &Policy,
    snapshot: &Snapshot,
    max_prefixes: u32,
) -> Result<(), CompileError> {
    let limit = max_prefixes as usize;
    if snapshot.values().map(|feed| feed.len()).sum::<usize>() <= limit {
        return Ok(());
    }
    if let Some(egress) = &policy.egress {
        let rules = egress.as_services(&policy.sources);
        require_room(&rules, snapshot, max_prefixes)?;
    }
    let is_added = |source: &&Source| matches!(source.origin, Origin::Added);
    let used: Vec<&Source> = policy
        .sources
        .iter()
        .filter(|source| policy.user_of(source).is_some())
        .collect();
    let changing = used.iter().filter(|source| source.can_change()).count();
    let share = limit / SHARES / changing.max(1);
    let size = |source: &Source| snapshot.get(&source.name).map_or(0, |feed| feed.len());
    let added: usize = used
        .iter()
        .filter(|source| is_added(source))
        .map(|one| size(one))
        .sum();
    let has_reserve = added <= (limit / RESERVE).max(LEAST_RESERVE);
    let counts = |source: &&&Source| {
        if is_added(source) {
            !has_reserve
        } else {
            !source.can_change() || size(source) > share
        }
    };
    let counted: Vec<&Source> = used.iter().filter(counts).copied().collect();
    let mut prefixes: Vec<IpNet> = counted
        .iter()
        .filter_map(|source| snapshot.get(&source.name))
        .flat_map(|feed| feed.active())
        .collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    if prefixes.len() <= limit {
        return Ok(());
    }
    let largest = counted.iter().max_by_key(|source| size(source));
    Err(CompileError::TooManyPrefixes {
        prefixes: prefixes.len(),
        limit: max_prefixes,
        largest: largest.map_or_else(String::new, |source| source.name.clone()),
        count: largest.map_or(0, |source| size(source)),
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::policy::{Egress, EgressRule, Feed, Format, Ports, Service};

    /// Returns whether lists of these sizes fit. The prefixes `added.` and `static.` of names stand for added prefixes
    /// and static lists.
    fn fits(limit: u32, lists: &[(&str, u32)]) -> bool {
        let source = |(place, &(name, size)): (usize, &(&str, u32))| {
            let first = u32::try_from(place).expect("few") << 20;
            let list: Vec<IpNet> = (0..size)
                .map(|n| IpNet::from(std::net::IpAddr::V4((first + n).into())))
                .collect();
            let origin = match name.split_once('.') {
                Some(("added", _)) => Origin::Added,
                Some(("static", _)) => Origin::Prefixes(Vec::new()),
                _ => Origin::File {
                    path: name.into(),
                    format: Format::Text,
                },
            };
            let feed = Feed::new(list, Timestamp::UNIX_EPOCH).into();
            (Source::new(name, origin), (name.to_owned(), feed))
        };
        let (sources, snapshot): (Vec<_>, Snapshot) = lists.iter().enumerate().map(source).unzip();
        let policy = Policy {
            services: vec![Service {
                name: "web".to_owned(),
                ports: vec![Ports::Any],
                interfaces: Vec::new(),
                allow: lists.iter().map(|(name, _)| (*name).to_owned()).collect(),
            }],
            sources,
            egress: None,
        };
        require_room(&policy, &snapshot, limit).is_ok()
    }

    #[test]
    fn egress_rules_have_tables_of_their_own() {
        let list = |first: u32, size: u32| {
            let addresses =
                (first..first + size).map(|n| IpNet::from(std::net::IpAddr::V4(n.into())));
            Feed::new(addresses.collect(), Timestamp::UNIX_EPOCH).into()
        };
        let fits = |inbound: u32, outbound: u32| {
            let lists = [("in", list(0, inbound)), ("out", list(1 << 20, outbound))];
            let policy = Policy {
                services: vec![Service {
                    name: "web".to_owned(),
                    ports: vec![Ports::Any],
                    interfaces: Vec::new(),
                    allow: vec!["in".to_owned()],
                }],
                sources: ["in", "out"]
                    .map(|name| Source::new(name, Origin::Prefixes(Vec::new())))
                    .to_vec(),
                egress: Some(Egress {
                    rules: vec![EgressRule {
                        name: "api".to_owned(),
                        to: vec!["out".to_owned()],
                        ports: vec![Ports::Any],
                        units: Vec::new(),
                    }],
                    ..Egress::default()
                }),
            };
            let lists = lists.map(|(name, list)| (name.to_owned(), list));
            require_room(&policy, &lists.into(), 10).is_ok()
        };
        assert!(fits(10, 10));
        assert!(!fits(11, 0));
        assert!(!fits(0, 11));
    }

    #[test]
    fn max_prefixes_is_exact() {
        assert!(fits(1000, &[("a", 1000)]));
        assert!(!fits(1000, &[("a", 1001)]));
        assert!(fits(1000, &[("a", 500), ("b", 500)]));
        assert!(!fits(1000, &[("a", 501), ("b", 500)]));
        assert!(!fits(3, &[("a", 2), ("b", 2)]));
    }

    #[test]
    fn every_source_has_a_share() {
        // A quarter, divided by two sources.
        assert!(fits(1000, &[("a", 1000), ("b", 125)]));
        assert!(!fits(1000, &[("a", 1000), ("b", 126)]));
        assert!(!fits(1000, &[("a", 1001), ("b", 1)]));
        assert!(fits(1000, &[("a", 999), ("b", 1), ("c", 83)]));
        // A static list does not grow and has no share.
        assert!(fits(1000, &[("a", 999), ("static.b", 1)]));
        assert!(!fits(1000, &[("a", 1000), ("static.b", 1)]));
        assert!(fits(1000, &[("a", 999), ("static.b", 1), ("c", 125)]));
    }

    #[test]
    fn added_prefixes_have_a_reserve() {
        let added = "added.web";
        for size in [999, 1000] {
            assert!(fits(1000, &[("a", size), (added, 1)]), "{size}");
        }
        assert!(fits(1000, &[("a", 1000), (added, 125)]));
        assert!(!fits(1000, &[("a", 1000), (added, 126)]));
        // More than the reserve fits if the tables have room.
        assert!(fits(1000, &[("a", 200), (added, 800)]));
        assert!(!fits(1000, &[("a", 1001), (added, 1)]));
        // The minimum of the reserve applies to the smallest tables.
        assert!(fits(1, &[("a", 1), (added, 64)]));
        let other = "added.ssh";
        assert!(!fits(1, &[("a", 1), (added, 64), (other, 1)]));
    }
}
