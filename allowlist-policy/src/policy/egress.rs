//! The egress policy: the destinations that this host's programs may connect to.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use allowlist_common::abi::{EgressControl, Refusal};
use allowlist_common::egress::units::name_offset;
use allowlist_common::verdict::Verdict;

use super::{ELSEWHERE, Mode, Policy, Ports, Service, Source};

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
    /// The units whose programs the rule applies to, as names of systemd units or as paths of cgroups below the root of
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

    /// Returns the units that rules name, sorted and distinct. The index of a unit plus one is the
    /// index of its row in [`allowlist_common::abi::ServiceTable::interfaces`].
    pub fn units(&self) -> Vec<String> {
        let named = self.rules.iter().flat_map(|rule| &rule.units);
        named
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// Returns the places of [`Self::units`] in the tree of cgroups, in the same order.
    pub fn unit_places(&self) -> Vec<UnitPlace> {
        self.units()
            .iter()
            .map(|unit| UnitPlace::of(unit))
            .collect()
    }

    /// Returns the policy in the form that is compiled: each rule as a service, its destinations as the allowed
    /// sources, and its units as interfaces. A rule for a unit also applies to the units inside it that other rules
    /// name.
    ///
    /// The interface of a unit whose path is unknown has only the rules that name the unit: the kernel program joins
    /// them with those for the cgroups around the unit, and with those for all programs.
    pub fn as_services(&self, sources: &[Source]) -> Policy {
        let all = self.units();
        let has_names = all.iter().any(|unit| !UnitPlace::of(unit).is_path());
        let applies = |rule: &EgressRule, unit: &str| {
            if rule.units.is_empty() {
                UnitPlace::of(unit).is_path()
            } else {
                rule.units.iter().any(|outer| contains(outer, unit))
            }
        };
        let services = self.rules.iter().map(|rule| {
            let mut interfaces: Vec<String> = all
                .iter()
                .filter(|unit| applies(rule, unit))
                .cloned()
                .collect();
            if rule.units.is_empty() && !has_names {
                interfaces.clear();
            } else if rule.units.is_empty() {
                interfaces.push(ELSEWHERE.to_owned());
            }
            Service {
                name: rule.name.clone(),
                ports: rule.ports.clone(),
                interfaces,
                allow: rule.to.clone(),
            }
        });
        Policy {
            services: services.collect(),
            sources: sources.to_vec(),
            egress: None,
        }
    }
}

/// The types of systemd units that get a new cgroup with each start.
pub const STARTED_UNITS: [&str; 5] = ["service", "scope", "socket", "mount", "swap"];

/// The place of a unit in the tree of cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitPlace {
    /// The path of the cgroup below the root of cgroup v2.
    Path(String),
    /// The last component of the path, below slices that are unknown.
    Name(String),
}

impl UnitPlace {
    /// Returns the place of a unit. The path of a slice is made of the slices that its name contains
    /// (systemd.slice(5)).
    pub fn of(unit: &str) -> Self {
        if unit.starts_with('/') {
            return Self::Path(unit.to_owned());
        }
        let Some(name) = unit.strip_suffix(".slice") else {
            return Self::Name(escaped(unit));
        };
        let mut path = String::new();
        for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
            path.push('/');
            path.push_str(&escaped(&format!("{}.slice", &name[..end])));
        }
        Self::Path(path)
    }

    /// Returns the path or the name; a path begins with `/`.
    pub fn text(&self) -> &str {
        match self {
            Self::Path(text) | Self::Name(text) => text,
        }
    }

    /// Returns whether the path is known.
    pub const fn is_path(&self) -> bool {
        matches!(self, Self::Path(_))
    }

    /// Returns whether the unit gets a new cgroup with each start, in which its programs may run at once. The cgroup of
    /// a slice, or of a path without the type of a unit, exists before its programs.
    pub fn is_started(&self) -> bool {
        let kind = Path::new(self.text()).extension();
        kind.is_some_and(|kind| STARTED_UNITS.iter().any(|started| *started == kind))
    }
}

/// Returns the name of a unit's cgroup: systemd prepends `_` to a name that could be that of one of the kernel's files in
/// a cgroup.
fn escaped(unit: &str) -> String {
    const CONTROLLERS: [&str; 9] = [
        "cgroup", "cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids",
    ];
    let (first, _) = unit.split_once('.').unwrap_or((unit, ""));
    if CONTROLLERS.contains(&first) || unit.starts_with(['_', '.']) {
        format!("_{unit}")
    } else {
        unit.to_owned()
    }
}

/// Returns whether the cgroup of `unit` is, or contains, that of the unit `other`. If the path of `other` is unknown, this
/// is unknown too, except for the same unit, and the result is false.
fn contains(unit: &str, other: &str) -> bool {
    match (UnitPlace::of(unit), UnitPlace::of(other)) {
        (UnitPlace::Path(outer), UnitPlace::Path(inner)) => Path::new(&inner).starts_with(outer),
        (UnitPlace::Name(outer), UnitPlace::Path(inner)) => Path::new(&inner)
            .ancestors()
            .any(|path| name_in_slices(path) == Some(&outer)),
        (UnitPlace::Name(outer), UnitPlace::Name(inner)) => outer == inner,
        (UnitPlace::Path(_), UnitPlace::Name(_)) => false,
    }
}

/// Returns the last component of a path if all components before it are slices, as the kernel program does.
pub(crate) fn name_in_slices(path: &Path) -> Option<&str> {
    let path = path.to_str()?;
    let byte = |place: usize| path.as_bytes().get(place).copied().unwrap_or(0);
    Some(&path[name_offset(byte)?..])
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
            ("cpu.slice", "/_cpu.slice"),
            ("/machine/agent", "/machine/agent"),
            ("/a.slice/a-b.slice", "/a.slice/a-b.slice"),
        ] {
            assert_eq!(
                UnitPlace::of(unit),
                UnitPlace::Path(path.to_owned()),
                "{unit}"
            );
        }
        for (unit, name) in [
            ("a-b@1.service", "a-b@1.service"),
            // Names that systemd escapes.
            ("memory.service", "_memory.service"),
            ("memory-x.service", "memory-x.service"),
            ("_x.service", "__x.service"),
        ] {
            assert_eq!(
                UnitPlace::of(unit),
                UnitPlace::Name(name.to_owned()),
                "{unit}"
            );
        }
    }

    #[test]
    fn units_in_units() {
        for (outer, inner, expected) in [
            ("a.slice", "a-b.slice", true),
            ("a.slice", "a.slice", true),
            ("a-b.slice", "a.slice", false),
            ("a.slice", "ab.slice", false),
            ("x.service", "x.service", true),
            ("x.service", "/a.slice/x.service", true),
            ("x.service", "/a.slice/x.service/below", true),
            ("x.service", "/a/x.service", false),
            ("x.service", "/a.slice/y.service/x.service", false),
            ("x.service", "y.service", false),
            // Known only at run time.
            ("/a.slice/x.service", "x.service", false),
            ("a.slice", "x.service", false),
        ] {
            assert_eq!(contains(outer, inner), expected, "{outer} {inner}");
        }
    }

    #[test]
    fn units_that_are_started() {
        for unit in ["x.service", "/a.slice/x.scope", "w@1.service", "x.socket"] {
            assert!(UnitPlace::of(unit).is_started(), "{unit}");
        }
        for unit in ["a.slice", "/a.slice", "/machine/agent", "/x.service/below"] {
            assert!(!UnitPlace::of(unit).is_started(), "{unit}");
        }
    }

    #[test]
    fn units_by_name_have_only_the_rules_that_name_them() {
        let rule = |name: &str, units: &[&str]| EgressRule {
            name: name.to_owned(),
            to: Vec::new(),
            ports: Vec::new(),
            units: units.iter().map(|unit| (*unit).to_owned()).collect(),
        };
        let rules = vec![
            rule("all", &[]),
            rule("named", &["x.service"]),
            rule("path", &["/a.slice/x.service"]),
            rule("slice", &["a.slice"]),
        ];
        let egress = Egress {
            rules,
            ..Egress::default()
        };
        let policy = egress.as_services(&[]);
        let on = |interface: &str| -> Vec<&str> {
            let services = policy.services.iter();
            let on = services.filter(|service| service.is_on(interface));
            on.map(|service| &*service.name).collect()
        };
        assert_eq!(on("x.service"), ["named"]);
        assert_eq!(on("/a.slice/x.service"), ["all", "named", "path", "slice"]);
        assert_eq!(on("a.slice"), ["all", "slice"]);
        assert_eq!(on(ELSEWHERE), ["all"]);
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
