//! The egress policy: the destinations that this host's programs may connect to.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use allowlist_common::abi::{EgressControl, Refusal};
use allowlist_common::verdict::Verdict;

use super::{Mode, Policy, Ports, Service, Source};

/// The egress policy of a configuration: `[egress]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Whether calls are refused (enforce), or decisions are only counted (observe); independent of the mode for
    /// packets.
    pub mode: Mode,
    /// The verdict for destinations that no rule allows; [`Verdict::Drop`] refuses the call.
    pub default: Verdict,
    /// The error that a refused program gets.
    pub errno: Refusal,
    /// The resolvers that programs may query; empty for the resolvers that this host is configured with.
    pub resolvers: Vec<SocketAddr>,
    /// The time servers (NTP) that programs may query; empty for none.
    pub time_servers: Vec<IpAddr>,
    /// The time for which an address is allowed at least, after a resolver answered it for a listed name.
    pub linger: Duration,
    /// The cgroups whose programs are subject to the policy; empty for the root of cgroup v2, so for all programs.
    pub cgroups: Vec<PathBuf>,
    /// The rules, sorted by name.
    pub rules: Vec<EgressRule>,
}

/// A rule of the egress policy: the destinations, and by which ports and programs they may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRule {
    /// The name of the rule: its key under `[egress.rules]`.
    pub name: String,
    /// The names of the sources that list the destinations, in the order of the configuration.
    pub to: Vec<String>,
    /// The destination ports and protocols that the rule covers.
    pub ports: Vec<Ports>,
    /// The slices or cgroups whose programs the rule applies to, as names of systemd slices or as paths below the root of
    /// cgroup v2; empty for all programs.
    pub units: Vec<String>,
}

impl Egress {
    /// The default of `linger`.
    pub const LINGER: Duration = Duration::from_hours(1);

    /// Returns the settings of the kernel's control word for this policy in `mode`.
    pub const fn control(&self, mode: Mode) -> EgressControl {
        EgressControl {
            observe: matches!(mode, Mode::Observe),
            default_verdict: self.default,
            refusal: self.errno,
        }
    }

    /// Returns the rule that lists `source`, the first by name; `None` if no rule does.
    pub fn user_of(&self, source: &Source) -> Option<&EgressRule> {
        self.rules
            .iter()
            .find(|rule| rule.to.contains(&source.name))
    }

    /// Returns the units (slices or cgroups) that rules name, sorted and distinct. The index of a unit plus one is the
    /// index of its row in [`allowlist_common::abi::ServiceTable::interfaces`].
    pub fn units(&self) -> Vec<String> {
        let named = self.rules.iter().flat_map(|rule| &rule.units);
        named
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// Returns the paths of the cgroups of [`Self::units`] below the root of cgroup v2, in the same order.
    pub fn unit_paths(&self) -> Vec<PathBuf> {
        self.units().iter().map(|unit| unit_path(unit)).collect()
    }

    /// Returns the policy in the form that is compiled: each rule as a service, its destinations as the allowed
    /// sources, and its units as interfaces. A rule for a unit also applies to the units inside it that other rules
    /// name.
    pub fn as_services(&self, sources: &[Source]) -> Policy {
        let all = self.units();
        let services = self.rules.iter().map(|rule| Service {
            name: rule.name.clone(),
            ports: rule.ports.clone(),
            interfaces: all
                .iter()
                .filter(|one| rule.units.iter().any(|unit| contains(unit, one)))
                .cloned()
                .collect(),
            allow: rule.to.clone(),
        });
        Policy {
            services: services.collect(),
            sources: sources.to_vec(),
            egress: None,
        }
    }
}

/// Returns the path of a unit's cgroup below the root of cgroup v2: that of a slice is made of the slices that its name
/// contains (systemd.slice(5)).
pub fn unit_path(unit: &str) -> PathBuf {
    let Some(name) = unit
        .strip_suffix(".slice")
        .filter(|_| !unit.starts_with('/'))
    else {
        return PathBuf::from(unit);
    };
    let mut path = PathBuf::from("/");
    for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
        path.push(format!("{}.slice", &name[..end]));
    }
    path
}

/// Returns whether the cgroup of `unit` is, or contains, that of the unit `other`.
fn contains(unit: &str, other: &str) -> bool {
    unit_path(other).starts_with(unit_path(unit))
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            default: Verdict::Pass,
            errno: Refusal::default(),
            resolvers: Vec::new(),
            time_servers: Vec::new(),
            linger: Self::LINGER,
            cgroups: Vec::new(),
            rules: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_units() {
        for (unit, path) in [
            ("batch.slice", "/batch.slice"),
            ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"),
            ("/machine/agent", "/machine/agent"),
            ("/a.slice/a-b.slice", "/a.slice/a-b.slice"),
        ] {
            assert_eq!(unit_path(unit), PathBuf::from(path), "{unit}");
        }
        assert!(contains("a.slice", "a-b.slice") && contains("a.slice", "a.slice"));
        assert!(!contains("a-b.slice", "a.slice") && !contains("a.slice", "ab.slice"));
    }

    #[test]
    fn a_rule_for_a_slice_applies_to_named_units_in_it() {
        let rule = |name: &str, unit: &str| EgressRule {
            name: name.to_owned(),
            to: Vec::new(),
            ports: Vec::new(),
            units: vec![unit.to_owned()],
        };
        let egress = Egress {
            rules: vec![rule("inner", "/a.slice/x"), rule("outer", "a.slice")],
            ..Egress::default()
        };
        let services = egress.as_services(&[]).services;
        let units: Vec<_> = services
            .iter()
            .map(|one| one.interfaces.join(" "))
            .collect();
        assert_eq!(units, ["/a.slice/x", "/a.slice/x a.slice"]);
    }
}
