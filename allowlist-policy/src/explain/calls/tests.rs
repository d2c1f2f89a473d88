//! The decisions on calls by compiled tables equal those of a slow model, which loops over rules, units and sources; and
//! ranges of ports have the decision of each of their ports.

use std::sync::Arc;

use allowlist_common::abi::{Control, EgressControl, Endpoint, Exemptions, Refusal};
use allowlist_common::egress::embedded;
use allowlist_common::verdict::Verdict;
use ipnet::IpNet;
use jiff::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::compile::{IdTable, Tables, compile_egress};
use crate::policy::{
    Egress, EgressRule, Feed, Lookup, Origin, Policy, Ports, Snapshot, Source, UnitPlace,
};

const UNITS: [&str; 5] = [
    "x.service",
    "a.slice",
    "/a.slice/x.service",
    "/machine/agent",
    "a-b.slice",
];
/// The paths of callers; one without a `/` is the name of a unit in slices that are not known.
const CALLERS: [&str; 9] = [
    "/",
    "x.service",
    "/b.slice/x.service",
    "/a.slice/x.service/below",
    "/a.slice/a-b.slice/x.service",
    "/a.slice/y.service",
    "/user/x.service",
    "/machine/agent/1",
    "/machine/agents",
];
const PORTS: [&str; 6] = [
    "tcp/443",
    "tcp/80-90",
    "udp/443",
    "udp/50-60",
    "icmp",
    "any",
];
const TARGETS: [&str; 13] = [
    "tcp/443", "tcp/442", "tcp/79", "tcp/80", "tcp/85", "tcp/90", "tcp/91", "tcp/53", "udp/443",
    "udp/53", "udp/54", "udp/123", "icmp",
];
const ADDRESSES: [&str; 12] = [
    "127.0.0.1",
    "fe80::1",
    "203.0.113.5",
    "203.0.113.53",
    "203.0.113.123",
    "198.51.100.7",
    "198.51.100.200",
    "::ffff:198.51.100.7",
    "64:ff9b::198.51.100.7",
    "2001:db8:7::7",
    "10.1.2.3",
    "8.8.8.8",
];
const PREFIXES: [&str; 6] = [
    "198.51.100.0/24",
    "198.51.100.7/32",
    "2001:db8:7::/48",
    "10.0.0.0/8",
    "64:ff9b::/96",
    "0.0.0.0/0",
];
const NAMES: [&str; 4] = ["x.test", "a.x.test", "*.x.test", "*.test"];

/// A policy, and the addresses that were answered for its names.
#[derive(Clone, Debug)]
struct World {
    policy: Policy,
    /// Pairs of an address and a name of [`NAMES`].
    answered: Vec<(&'static str, &'static str)>,
}

fn lists(policy: &Policy) -> Snapshot {
    let feed = |source: &Source| {
        let prefixes = match &source.origin {
            Origin::Prefixes(prefixes) => prefixes.clone(),
            _ => Vec::new(),
        };
        let feed = Feed::new(prefixes, Timestamp::UNIX_EPOCH);
        (source.name.clone(), Arc::new(feed))
    };
    policy.sources.iter().map(feed).collect()
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Returns the destination as the network sees it.
fn canonical(text: &str) -> IpAddr {
    address(text).to_canonical()
}

fn rules() -> impl Strategy<Value = Vec<EgressRule>> {
    let rule = (
        subsequence(vec!["one", "two", "names", "special", "polled"], 1..4),
        subsequence(PORTS.to_vec(), 1..3),
        subsequence(UNITS.to_vec(), 0..3),
    );
    vec(rule, 0..5).prop_map(|rules| {
        let texts = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
        let rules = rules.into_iter().enumerate();
        rules
            .map(|(number, (to, ports, units))| EgressRule {
                name: format!("r{number}"),
                to: texts(to),
                ports: ports
                    .into_iter()
                    .map(|one| one.parse().expect("ports"))
                    .collect(),
                units: texts(units),
            })
            .collect()
    })
}

fn worlds() -> impl Strategy<Value = World> {
    let prefixes = || {
        subsequence(PREFIXES.to_vec(), 0..4).prop_map(|texts| {
            let mut all: Vec<IpNet> = texts
                .into_iter()
                .map(|one| one.parse().expect("a prefix"))
                .collect();
            all.sort_unstable();
            Origin::Prefixes(all)
        })
    };
    let names = |believes_answers| {
        subsequence(NAMES.to_vec(), 1..3).prop_map(move |patterns| {
            let (wildcards, names): (Vec<&str>, Vec<&str>) =
                patterns.into_iter().partition(|one| one.starts_with('*'));
            let mut lookup = Lookup::new(names.into_iter().map(str::to_owned).collect());
            lookup.wildcards = wildcards.iter().map(|one| one[2..].to_owned()).collect();
            lookup.believes_answers = believes_answers;
            Origin::Names(lookup)
        })
    };
    let sources = (
        prefixes(),
        prefixes(),
        names(true),
        names(true),
        names(false),
    );
    let answered = vec((select(ADDRESSES.to_vec()), select(NAMES.to_vec())), 0..6);
    let default = select(vec![Verdict::Drop, Verdict::Drop, Verdict::Pass]);
    (rules(), sources, answered, default).prop_map(|(rules, origins, answered, default)| {
        let (one, two, names, special, polled) = origins;
        let mut sources = vec![
            Source::new("names", names),
            Source::new("one", one),
            Source::new("polled", polled),
            Source::new("special", special),
            Source::new("two", two),
        ];
        sources[3].gate.allow_special_use = true;
        let egress = Egress {
            default,
            rules,
            ..Egress::default()
        };
        let policy = Policy {
            sources,
            egress: Some(egress),
            ..Policy::default()
        };
        World { policy, answered }
    })
}

impl World {
    fn egress(&self) -> &Egress {
        self.policy.egress.as_ref().expect("it has one")
    }

    /// Returns the verdict and reason for a call, from the rules themselves.
    fn slow(&self, caller: &str, to: &str, target: Target) -> (Verdict, EgressReason) {
        let destination = canonical(to);
        let egress = self.egress();
        let pass = |reason| (Verdict::Pass, reason);
        match (to, target) {
            ("127.0.0.1" | "fe80::1" | "203.0.113.5", _) => return pass(EgressReason::Local),
            ("203.0.113.53", Target::Tcp(53) | Target::Udp(53)) => {
                return pass(EgressReason::Resolver);
            }
            ("203.0.113.123", Target::Udp(123)) => return pass(EgressReason::Essential),
            _ => {}
        }
        let covering: Vec<&EgressRule> = egress
            .rules
            .iter()
            .filter(|rule| {
                rule.units.is_empty() || rule.units.iter().any(|unit| is_in(caller, unit))
            })
            .filter(|rule| rule.ports.iter().any(|ports| covers(ports, target)))
            .collect();
        let sources = |rule: &EgressRule| {
            let all = self.policy.sources.clone().into_iter();
            let to = rule.to.clone();
            all.filter(move |source| to.contains(&source.name))
        };
        let inner = embedded(destination.into()).map(IpAddr::from);
        let has_prefix = |source: &Source| match &source.origin {
            Origin::Prefixes(all) => all.iter().any(|one| {
                one.contains(&destination) || inner.is_some_and(|inner| one.contains(&inner))
            }),
            _ => false,
        };
        if covering
            .iter()
            .any(|rule| sources(rule).any(|one| has_prefix(&one)))
        {
            return pass(EgressReason::Allowed);
        }
        let is_closed = destination.to_string().starts_with("10.");
        let key = |address: IpAddr| match embedded(address.into()) {
            Some(inner) => inner.into(),
            None => address,
        };
        let same = self.answered.iter();
        let names = same.filter(|(one, _)| key(canonical(one)) == key(destination));
        let names: Vec<&str> = names.map(|(_, name)| *name).collect();
        let has_name = |source: &Source| match &source.origin {
            Origin::Names(lookup) => {
                lookup.believes_answers
                    && (!is_closed || source.gate.allow_special_use)
                    && lookup
                        .patterns()
                        .iter()
                        .any(|one| names.iter().any(|name| is_below(name, one)))
            }
            _ => false,
        };
        if covering
            .iter()
            .any(|rule| sources(rule).any(|one| has_name(&one)))
        {
            return pass(EgressReason::AllowedName);
        }
        match egress.default {
            Verdict::Drop if is_closed => (Verdict::Drop, EgressReason::ClosedRange),
            verdict => (verdict, EgressReason::Default),
        }
    }
}

/// Returns whether a name or wildcard is the pattern or below it.
fn is_below(name: &str, pattern: &str) -> bool {
    name == pattern
        || pattern
            .strip_prefix('*')
            .is_some_and(|below| name.ends_with(below))
}

/// Returns whether a caller is in a unit.
fn is_in(caller: &str, unit: &str) -> bool {
    if !caller.starts_with('/') {
        return caller == unit;
    }
    let path = match unit {
        "a.slice" => "/a.slice",
        "a-b.slice" => "/a.slice/a-b.slice",
        "x.service" => {
            let mut components = caller[1..]
                .split('/')
                .skip_while(|one| one.strip_suffix(".slice").is_some());
            return components.next() == Some(unit);
        }
        path => path,
    };
    caller == path || caller.starts_with(&format!("{path}/"))
}

fn covers(ports: &Ports, target: Target) -> bool {
    match (ports, target) {
        (Ports::Any, _) | (Ports::Icmp, Target::Icmp) => true,
        (Ports::Tcp(range), Target::Tcp(port)) | (Ports::Udp(range), Target::Udp(port)) => {
            range.contains(&port)
        }
        _ => false,
    }
}

/// The compiled tables with the parts that are not compiled, which the kernel has in other maps.
struct Compiled {
    tables: Tables,
    services: Box<ServiceTable>,
    settings: EgressSettings,
    learned: LearnedIds,
    own: BTreeSet<[u64; 2]>,
    units: UnitRowsByText,
    control: ControlBits,
}

impl Compiled {
    fn new(world: &World) -> Self {
        let egress = world.egress();
        let mut previous = IdTable {
            names: vec![String::new()],
            ..IdTable::default()
        };
        // Names that an earlier policy listed have ids too.
        previous.names.extend(NAMES.map(str::to_owned));
        let tables = compile_egress(&world.policy, &lists(&world.policy), 1000, &previous);
        let tables = tables
            .expect("it is small")
            .expect("it has an egress policy");
        let mut settings = EgressSettings {
            has_units: 1,
            linger: 1,
            ..EgressSettings::default()
        };
        let key = |text: &str| address_key(address(text).into());
        let endpoints = [
            Endpoint::new(key("203.0.113.53"), UDP, 53, EgressReason::Resolver),
            Endpoint::new(key("203.0.113.53"), TCP, 53, EgressReason::Resolver),
            Endpoint::new(key("203.0.113.123"), UDP, 123, EgressReason::Essential),
        ];
        settings.endpoints[..endpoints.len()].copy_from_slice(&endpoints);
        settings.count = endpoints.len() as u32;
        let mut learned = LearnedIds::new();
        for (to, name) in &world.answered {
            let id = tables.ids.names.iter().position(|one| one == name);
            let key = address_key(allowlist_common::egress::learned(canonical(to).into()));
            let ids = learned.entry(key).or_default();
            ids.push(id.expect("it has an id") as u32);
        }
        let places = egress.unit_places();
        let units = (1..).zip(&places).map(|(row, place)| {
            let row = if place.is_path() {
                UnitRow::by_path(row)
            } else {
                UnitRow::by_name(row)
            };
            (place.text().to_owned(), row)
        });
        let control = Control {
            exemptions: Exemptions::ALL,
            egress: Some(EgressControl {
                observe: false,
                default_verdict: egress.default,
                refusal: Refusal::NotPermitted,
            }),
            ..Control::NONE
        };
        Self {
            services: tables.services_of_units(),
            settings,
            learned,
            own: [key("203.0.113.5")].into(),
            units: units.collect(),
            control: ControlBits(control.encode()),
            tables,
        }
    }

    fn of(&self, caller: &str) -> CallTables<'_, impl Fn(&Address) -> Option<Grant>> {
        let rows = match UnitPlace::of(caller) {
            UnitPlace::Path(path) => CallerRows::of_path(&path, &self.units),
            UnitPlace::Name(name) => CallerRows::of_name(&name, &self.units),
        };
        CallTables {
            control: self.control,
            services: &self.services,
            rows,
            settings: &self.settings,
            names: &self.tables.names.grants,
            learned: &self.learned,
            own: &self.own,
            grant: |address: &Address| self.tables.grant_of(&IpAddr::from(*address)),
        }
    }
}

/// Returns whether the text of a row's ports includes a target.
fn includes(ports: &[String], target: Target) -> bool {
    let (wanted, port) = match target {
        Target::Tcp(port) => ("tcp", port),
        Target::Udp(port) => ("udp", port),
        _ => ("icmp", 0),
    };
    ports.iter().any(|text| {
        let (protocol, range) = text.split_once('/').unwrap_or((text, "0"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse::<u16>().expect("a port");
        protocol == "any" || protocol == wanted && (number(first)..=number(last)).contains(&port)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn calls_are_decided_as_the_rules_state(world in worlds()) {
        let compiled = Compiled::new(&world);
        for caller in CALLERS {
            let tables = compiled.of(caller);
            let everything = tables.targets(None);
            for to in ADDRESSES {
                let all = tables.reach(canonical(to), &everything);
                for text in TARGETS {
                    let target: Target = text.parse().expect("a target");
                    let expected = world.slow(caller, to, target);
                    let rows = tables.reach(address(to), &tables.targets(Some(target)));
                    let found = (rows[0].decision.verdict, rows[0].decision.reason);
                    prop_assert_eq!(found, expected, "{} {} {}", caller, to, text);
                    let of_port: Vec<_> = all.iter().filter(|row| includes(&row.ports, target)).collect();
                    prop_assert_eq!(of_port.len(), 1, "{} in {:?}", text, all);
                    prop_assert_eq!(of_port[0].decision, rows[0].decision);
                }
            }
        }
    }

    /// An unknown address of a name has the decision of an address that was answered for it, if no table lists it.
    #[test]
    fn unknown_addresses_are_decided_as_answered_ones(world in worlds(), name in select(NAMES.to_vec())) {
        let answered = World { answered: vec![("8.8.8.8", name)], ..world };
        let compiled = Compiled::new(&answered);
        let id = compiled.tables.ids.names.iter().position(|one| one == name).expect("an id");
        let everything = compiled.tables.v4.iter().find(|(prefix, _)| prefix.prefix_len() == 0);
        let everything = everything.map(|(_, grant)| *grant);
        for caller in CALLERS {
            let tables = compiled.of(caller);
            let targets = tables.targets(None);
            prop_assert_eq!(
                tables.reach_unknown(id as u32, everything, &targets),
                tables.reach(canonical("8.8.8.8"), &targets)
            );
        }
    }
}

#[test]
fn calls_that_are_not_judged_have_no_decision() {
    let world = World {
        policy: Policy {
            egress: Some(Egress {
                default: Verdict::Drop,
                ..Egress::default()
            }),
            ..Policy::default()
        },
        answered: Vec::new(),
    };
    let compiled = Compiled::new(&world);
    let tables = compiled.of("/");
    for target in ["sctp/443", "ip/47", "other"] {
        let target = target.parse().expect("a target");
        let targets = tables.targets(Some(target));
        assert!(tables.reach(canonical("8.8.8.8"), &targets).is_empty());
    }
    let ports = |to: &str| {
        let rows = tables.reach(canonical(to), &tables.targets(None));
        rows.into_iter()
            .map(|row| row.ports.join(" "))
            .collect::<Vec<_>>()
    };
    assert_eq!(ports("8.8.8.8"), ["any"]);
    let others = "tcp/0-52 tcp/54-65535 udp/0-52 udp/54-65535 icmp";
    assert_eq!(ports("203.0.113.53"), ["tcp/53 udp/53", others]);
}

/// Cgroups below the depth that the kernel searches have the rows of the cgroups above them.
#[test]
fn rows_of_deep_cgroups() {
    let deep = "/x".repeat(MAX_LEVELS as usize);
    let units: UnitRowsByText = [
        (deep.clone(), UnitRow::by_path(1)),
        (format!("{deep}/x"), UnitRow::by_path(2)),
    ]
    .into();
    for path in [deep.clone(), format!("{deep}/x")] {
        assert_eq!(CallerRows::of_path(&path, &units).by_path, 1);
    }
}
