//! The compiled egress policy allows the destinations that the rules list, by port and unit: it equals a slow model that
//! loops over rules, sources and prefixes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use allowlist_common::abi::{Grant, InterfaceServices, service_set};
use allowlist_common::packet::{ICMP, TCP, UDP};
use ipnet::IpNet;
use jiff::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::policy::{Egress, EgressRule, Feed, Origin, Ports, Service, Source, UnitPlace};

/// The units that rules name.
const UNITS: [&str; 3] = ["alertd.service", "batch.slice", "/machine/agent"];
/// The units of each test's callers, the outermost first: also a service in a slice, and a program of no unit that a rule
/// names.
const CALLERS: [&[&str]; 5] = [
    &["alertd.service"],
    &["batch.slice"],
    &["batch.slice", "alertd.service"],
    &["/machine/agent"],
    &["other"],
];

/// A destination port, or a protocol without ports.
type Target = (u8, u16);
const TARGETS: [Target; 6] = [
    (TCP, 443),
    (TCP, 8443),
    (UDP, 443),
    (UDP, 53),
    (ICMP, 0),
    (47, 0),
];

/// The decision on a call: the rules that cover its port for the caller, and the sources that list the destination if
/// such a rule allows the call.
#[derive(Debug, PartialEq)]
struct Answer {
    covering: BTreeSet<String>,
    allowed_by: Option<BTreeSet<String>>,
}

/// Answers from the rules and the lists themselves.
fn slow(policy: &Policy, lists: &Snapshot, caller: &[&str], target: Target, to: IpAddr) -> Answer {
    let rules = &policy.egress.as_ref().expect("an egress policy").rules;
    let covers = |ports: &Ports| match ports {
        Ports::Tcp(range) => target.0 == TCP && range.contains(&target.1),
        Ports::Udp(range) => target.0 == UDP && range.contains(&target.1),
        Ports::Sctp(_) => false,
        Ports::Icmp => target.0 == ICMP,
        Ports::Protocol(protocol) => target.0 == *protocol,
        Ports::Any => true,
    };
    let lists_it = |source: &String| lists[source].active().any(|prefix| prefix.contains(&to));
    let mut covering = BTreeSet::new();
    let mut is_allowed = false;
    for rule in rules {
        let mut units = rule.units.iter();
        let is_for_caller = rule.units.is_empty() || units.any(|unit| caller.contains(&&**unit));
        if is_for_caller && rule.ports.iter().any(covers) {
            covering.insert(rule.name.clone());
            is_allowed |= rule.to.iter().any(lists_it);
        }
    }
    let listing = || {
        let all = rules.iter().flat_map(|rule| &rule.to);
        all.filter(|source| lists_it(source)).cloned().collect()
    };
    Answer {
        covering,
        allowed_by: is_allowed.then(listing),
    }
}

/// Answers from the tables, as the kernel program does: the rows of the innermost unit by path and of a unit by name.
fn compiled(tables: &Tables, caller: &[&str], (protocol, port): Target, to: IpAddr) -> Answer {
    let mut by_path: &InterfaceServices = &tables.services.interfaces[0];
    let mut by_name = &InterfaceServices::EMPTY;
    for unit in caller {
        match tables.interfaces.get(*unit) {
            Some(row) if UnitPlace::of(unit).is_path() => by_path = row,
            Some(row) => by_name = row,
            None => {}
        }
    }
    let anywhere = match protocol {
        TCP => tables.services.tcp[usize::from(port)],
        UDP => tables.services.udp[usize::from(port)],
        _ => tables.services.protocol[usize::from(protocol)],
    };
    let rules = [by_path, by_name].map(|row| row.effective[anywhere as usize]);
    let services = rules.iter().fold(0, |set, one| set | service_set(*one));
    let grant = grant(tables, to).filter(|grant| grant.services() & services != 0);
    let counters = rules.map(|one| tables.services.counter_ids[one as usize] as usize);
    let covering = counters.iter().flat_map(|id| &tables.ids.services[*id]);
    Answer {
        covering: covering.cloned().collect(),
        allowed_by: grant.map(|grant| {
            let names = &tables.ids.matches[grant.match_id as usize];
            names.iter().cloned().collect()
        }),
    }
}

/// Returns the grant of the longest prefix that contains an address.
fn grant(tables: &Tables, address: IpAddr) -> Option<Grant> {
    match address {
        IpAddr::V4(address) => {
            let containing = tables.v4.iter().filter(|(net, _)| net.contains(&address));
            let longest = containing.max_by_key(|(net, _)| net.prefix_len());
            longest.map(|(_, grant)| *grant)
        }
        IpAddr::V6(address) => {
            let containing = tables.v6.iter().filter(|(net, _)| net.contains(&address));
            let longest = containing.max_by_key(|(net, _)| net.prefix_len());
            longest.map(|(_, grant)| *grant)
        }
    }
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u32..8).prop_map(|n| Ipv4Addr::from_bits(0xc000_0200 | n).into()),
        (0_u128..8).prop_map(|n| Ipv6Addr::from_bits(0x2001_0db8 << 96 | n).into()),
    ]
}

/// Prefixes of few addresses, so that they overlap.
fn prefix() -> impl Strategy<Value = IpNet> {
    (address(), 0_u8..4).prop_map(|(address, host_bits)| {
        let length = if address.is_ipv4() { 32 } else { 128 } - host_bits;
        let net = IpNet::new(address, length).expect("the length is valid");
        net.trunc()
    })
}

fn ports() -> impl Strategy<Value = Ports> {
    let texts = [
        "tcp/443",
        "tcp/400-9000",
        "udp/53",
        "udp/443",
        "icmp",
        "gre",
        "ip/tcp",
        "sctp/443",
        "any",
    ];
    select(texts.to_vec()).prop_map(|text| text.parse().expect("an entry of ports"))
}

/// Returns random egress policies over four sources, with a service that uses another source, and their lists.
fn policies() -> impl Strategy<Value = (Policy, Snapshot)> {
    let names: Vec<String> = (0..4).map(|n| format!("list{n}")).collect();
    let rule = (
        subsequence(names.clone(), 1..=3),
        vec(ports(), 1..3),
        prop_oneof![
            Just(Vec::new()),
            subsequence(UNITS.map(str::to_owned).to_vec(), 1..=2),
        ],
    );
    (vec(rule, 0..6), vec(vec(prefix(), 0..6), 5)).prop_map(move |(rules, lists)| {
        let names = names.iter().map(String::as_str).chain(["inbound"]);
        let lists: Vec<_> = names.zip(lists).collect();
        let rules = rules.into_iter().enumerate();
        let policy = Policy {
            services: vec![Service {
                name: "web".to_owned(),
                ports: vec![Ports::Any],
                interfaces: Vec::new(),
                allow: vec!["inbound".to_owned(), "list0".to_owned()],
            }],
            sources: lists
                .iter()
                .map(|(name, list)| Source::new(name, Origin::Prefixes(list.clone())))
                .collect(),
            egress: Some(Egress {
                rules: rules
                    .map(|(n, (to, ports, units))| EgressRule {
                        name: format!("rule{n}"),
                        to,
                        ports,
                        units,
                    })
                    .collect(),
                ..Egress::default()
            }),
        };
        let lists = lists.into_iter().map(|(name, list)| {
            let feed = Feed::new(list, Timestamp::UNIX_EPOCH).into();
            (name.to_owned(), feed)
        });
        (policy, lists.collect())
    })
}

fn compile_one(policy: &Policy, lists: &Snapshot, previous: &IdTable) -> Tables {
    let tables = compile_egress(policy, lists, 1000, previous);
    tables.expect("it fits").expect("an egress policy")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn compiled_egress_rules_equal_the_model(
        (policy, lists) in policies(),
        others in vec(address(), 4),
    ) {
        let tables = compile_one(&policy, &lists, &IdTable::default());
        let edges = lists.values().flat_map(|feed| &feed.prefixes);
        let edges = edges.flat_map(|prefix| [prefix.network(), prefix.broadcast()]);
        let destinations: BTreeSet<IpAddr> = edges.chain(others).collect();
        for caller in CALLERS {
            for target in TARGETS {
                for to in &destinations {
                    prop_assert_eq!(
                        compiled(&tables, caller, target, *to),
                        slow(&policy, &lists, caller, target, *to),
                        "{:?} calls {:?} at {}", caller, target, to
                    );
                }
            }
        }
    }

    /// A unit has a row if and only if a rule names it.
    #[test]
    fn named_units_have_rows((policy, lists) in policies()) {
        let tables = compile_one(&policy, &lists, &IdTable::default());
        let rules = &policy.egress.as_ref().expect("an egress policy").rules;
        let named: BTreeSet<&String> = rules.iter().flat_map(|rule| &rule.units).collect();
        prop_assert_eq!(tables.interfaces.keys().collect::<BTreeSet<_>>(), named);
    }

    /// Ids of an earlier generation keep their names, so that counters continue.
    #[test]
    fn ids_keep_their_names((old, lists) in policies(), (new, new_lists) in policies()) {
        let ids = compile_one(&old, &lists, &IdTable::default()).ids;
        prop_assert!(compile_one(&new, &new_lists, &ids).ids.extends(&ids));
    }
}

/// Services and egress rules have separate tables, and a policy without `[egress]` has none for calls.
#[test]
fn services_and_egress_rules_do_not_meet() {
    let prefix = |text: &str| vec![text.parse::<IpNet>().expect("a prefix")];
    let (inbound, outbound) = (prefix("192.0.2.0/24"), prefix("198.51.100.0/24"));
    let mut policy = Policy {
        services: vec![Service {
            name: "web".to_owned(),
            ports: vec![Ports::Tcp(443..=443)],
            interfaces: Vec::new(),
            allow: vec!["in".to_owned()],
        }],
        sources: vec![
            Source::new("in", Origin::Prefixes(inbound.clone())),
            Source::new("out", Origin::Prefixes(outbound.clone())),
        ],
        egress: Some(Egress {
            rules: vec![EgressRule {
                name: "api".to_owned(),
                to: vec!["out".to_owned()],
                ports: vec![Ports::Tcp(443..=443)],
                units: Vec::new(),
            }],
            ..Egress::default()
        }),
    };
    let lists: Snapshot = [("in", inbound.clone()), ("out", outbound.clone())]
        .map(|(name, list)| {
            let feed = Feed::new(list, Timestamp::UNIX_EPOCH).into();
            (name.to_owned(), feed)
        })
        .into();
    let listed = |tables: &Tables| {
        let nets = tables.v4.iter().map(|(net, _)| IpNet::from(*net));
        nets.collect::<Vec<_>>()
    };
    let ids = IdTable::default();
    let packets = compile(&policy, &lists, 10, &ids).expect("it fits");
    assert_eq!(listed(&packets), inbound);
    assert_eq!(listed(&compile_one(&policy, &lists, &ids)), outbound);
    let missing = Snapshot::from([("in".to_owned(), lists["in"].clone())]);
    assert!(compile(&policy, &missing, 10, &ids).is_ok());
    let error = compile_egress(&policy, &missing, 10, &ids).err();
    assert_eq!(
        error.expect("a list is missing").code(),
        ErrorCode::MissingLists
    );

    policy.egress = None;
    let none = compile_egress(&policy, &lists, 10, &ids).expect("it fits");
    assert!(none.is_none());
}

/// Changing the names of interfaces keeps the egress policy, whose units are no interfaces.
#[test]
fn renamed_interfaces_keep_the_egress_policy() {
    let policy = Policy {
        services: vec![Service {
            name: "web".to_owned(),
            ports: vec![Ports::Any],
            interfaces: vec!["lan".to_owned()],
            allow: Vec::new(),
        }],
        sources: Vec::new(),
        egress: Some(Egress {
            rules: vec![EgressRule {
                name: "api".to_owned(),
                to: Vec::new(),
                ports: vec![Ports::Any],
                units: vec!["lan".to_owned()],
            }],
            ..Egress::default()
        }),
    };
    let filtered = ["eth0".to_owned()];
    let renamed = policy.on_interfaces(&filtered, |_| Some(1));
    assert_eq!(renamed.services[0].interfaces, filtered);
    assert_eq!(renamed.egress, policy.egress);
}

/// A source of an egress rule is used, and so fetched; `user_of` is about services alone.
#[test]
fn sources_of_egress_rules_are_used() {
    let sources =
        ["in", "out", "spare"].map(|name| Source::new(name, Origin::Prefixes(Vec::new())));
    let policy = Policy {
        services: vec![Service {
            name: "web".to_owned(),
            ports: vec![Ports::Any],
            interfaces: Vec::new(),
            allow: vec!["in".to_owned()],
        }],
        egress: Some(Egress {
            rules: vec![EgressRule {
                name: "api".to_owned(),
                to: vec!["out".to_owned()],
                ports: vec![Ports::Any],
                units: Vec::new(),
            }],
            ..Egress::default()
        }),
        sources: sources.to_vec(),
    };
    let used: Vec<&str> = policy.used_sources().map(|one| &*one.name).collect();
    assert_eq!(used, ["in", "out"]);
    assert_eq!(policy.user_of(&sources[1]), None);
}
