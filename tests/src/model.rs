//! What the filter should do, said as plainly as possible: every service, every source and every
//! prefix, one after the other. Slow and obvious; shares no code with `compile` or the kernel.
//!
//! Also random policies and packets to compare with, from a universe so small that prefixes
//! overlap and packets hit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use allowlist_common::abi::{Control, Grant, Keep, ReturnTraffic, ServiceId};
use allowlist_common::flow::Flow;
use allowlist_common::packet::{Address, ICMP, ICMPV6, Packet, Quote, SCTP, TCP, Transport, UDP};
use allowlist_common::verdict::{Reason, Verdict};
use allowlist_user::compile::Tables;
use allowlist_user::policy::{Feed, Origin, Policy, Ports, Service, Snapshot, Source};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::prelude::*;

/// A packet as the model sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Who sent it.
    pub source: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// For TCP and UDP.
    pub port: u16,
}

impl Facts {
    /// The same as the parser would say it.
    pub fn packet(&self) -> Packet {
        Packet {
            vlan: 0,
            source: self.source.into(),
            destination: self.source.into(),
            hops: 64,
            protocol: self.protocol,
            transport: match self.protocol {
                TCP | UDP => Transport::Ports {
                    source: 40_000,
                    destination: self.port,
                    flags: 0,
                },
                ICMP => Transport::Icmp {
                    kind: 8,
                    identifier: 0,
                },
                ICMPV6 => Transport::Icmp {
                    kind: 128,
                    identifier: 0,
                },
                _ => Transport::Other,
            },
        }
    }
}

/// What becomes of a packet.
pub fn judge(
    policy: &Policy,
    snapshot: &Snapshot,
    default: Verdict,
    facts: &Facts,
) -> (Verdict, Reason) {
    let mut covered = false;
    for service in &policy.services {
        if !service.ports.iter().any(|ports| covers(ports, facts)) {
            continue;
        }
        covered = true;
        for source in &service.allow {
            if snapshot[source]
                .prefixes
                .iter()
                .any(|prefix| prefix.contains(&facts.source))
            {
                return (Verdict::Pass, Reason::Allowed);
            }
        }
    }
    if covered {
        (Verdict::Drop, Reason::NotAllowed)
    } else {
        (default, Reason::Default)
    }
}

fn covers(ports: &Ports, facts: &Facts) -> bool {
    match ports {
        Ports::Tcp(range) => facts.protocol == TCP && range.contains(&facts.port),
        Ports::Udp(range) => facts.protocol == UDP && range.contains(&facts.port),
        Ports::Sctp(range) => facts.protocol == SCTP && range.contains(&facts.port),
        Ports::Icmp => facts.protocol == ICMP || facts.protocol == ICMPV6,
        Ports::Any => true,
    }
}

/// Compiled tables, looked up as the kernel does it, on an interface that no service names.
pub struct Host<'a> {
    tables: &'a Tables,
    control: Control,
    frame: &'a [u8],
}

impl<'a> Host<'a> {
    /// These tables, with this verdict for what no service covers.
    pub const fn new(tables: &'a Tables, default: Verdict) -> Self {
        Self {
            tables,
            control: Control {
                generation: 1,
                slot: 0,
                default_verdict: default,
                observe: false,
                return_traffic: ReturnTraffic::Off,
                keep: Keep::ALL,
            },
            frame: &[],
        }
    }
}

impl allowlist_common::judge::Tables for Host<'_> {
    fn control(&self) -> &Control {
        &self.control
    }

    fn service_of_port(&self, protocol: u8, port: u16) -> ServiceId {
        self.tables.services.of_port(0, protocol, port)
    }

    fn service_of_protocol(&self, protocol: u8) -> ServiceId {
        self.tables.services.of_protocol(0, protocol)
    }

    fn services_of_protocol(&self, protocol: u8) -> u64 {
        self.tables.services.any_of_protocol(0, protocol)
    }

    fn counted(&self, service: ServiceId) -> u32 {
        self.tables.services.counted[usize::from(service)]
    }

    fn grant(&self, source: &Address) -> Option<Grant> {
        match IpAddr::from(*source) {
            IpAddr::V4(address) => longest(
                &self.tables.v4,
                |prefix| prefix.contains(&address),
                Ipv4Net::prefix_len,
            ),
            IpAddr::V6(address) => longest(
                &self.tables.v6,
                |prefix| prefix.contains(&address),
                Ipv6Net::prefix_len,
            ),
        }
    }

    fn sent_from(&self, _: u8, _: u16) -> bool {
        false
    }

    fn sent(&self, _: &Flow) -> bool {
        false
    }

    fn quoted(&self, quote: Quote, source: Address) -> Option<Flow> {
        quote.flow(self.frame, source)
    }
}

fn longest<P>(
    entries: &[(P, Grant)],
    contains: impl Fn(&P) -> bool,
    length: impl Fn(&P) -> u8,
) -> Option<Grant> {
    entries
        .iter()
        .filter(|(prefix, _)| contains(prefix))
        .max_by_key(|(prefix, _)| length(prefix))
        .map(|(_, grant)| *grant)
}

/// The snapshot of a policy whose sources all have their prefixes in the configuration.
pub fn static_snapshot(policy: &Policy) -> Snapshot {
    policy
        .sources
        .iter()
        .map(|source| {
            let Origin::Prefixes(prefixes) = &source.origin else {
                panic!("{} is not static", source.name)
            };
            let feed = Feed {
                prefixes: prefixes.clone(),
                fetched: jiff::Timestamp::UNIX_EPOCH,
            };
            (source.name.clone(), feed)
        })
        .collect()
}

/// A policy with prefixes, and packets that are likely to hit their edges.
#[derive(Clone, Debug)]
pub struct World {
    /// Who may reach what.
    pub policy: Policy,
    /// With these prefixes.
    pub snapshot: Snapshot,
    /// And this for the rest.
    pub default: Verdict,
    /// What arrives.
    pub packets: Vec<Facts>,
}

/// Random worlds with this many packets.
pub fn worlds(packets: usize) -> impl Strategy<Value = World> {
    let sources = vec(vec(prefix(), 1..12), 1..6);
    (sources, any::<bool>()).prop_flat_map(move |(feeds, drop)| {
        let service = (vec(ports(), 1..4), vec(0..feeds.len(), 1..4));
        let edges = edges(&feeds);
        let facts = (
            prop_oneof![proptest::sample::select(edges), address()],
            prop_oneof![Just(TCP), Just(UDP), Just(ICMP), Just(47)],
            port(),
        );
        (vec(service, 0..6), vec(facts, packets)).prop_map(move |(services, facts)| {
            let policy = policy(&feeds, services);
            World {
                snapshot: static_snapshot(&policy),
                policy,
                default: if drop { Verdict::Drop } else { Verdict::Pass },
                packets: facts
                    .into_iter()
                    .map(|(source, protocol, port)| Facts {
                        source,
                        protocol: match (protocol, source) {
                            (ICMP, IpAddr::V6(_)) => ICMPV6,
                            _ => protocol,
                        },
                        port,
                    })
                    .collect(),
            }
        })
    })
}

fn policy(feeds: &[Vec<IpNet>], services: Vec<(Vec<Ports>, Vec<usize>)>) -> Policy {
    Policy {
        services: services
            .into_iter()
            .enumerate()
            .map(|(place, (ports, allow))| Service {
                name: format!("service{place}"),
                ports,
                interfaces: Vec::new(),
                allow: allow.into_iter().map(source_name).collect(),
            })
            .collect(),
        sources: feeds
            .iter()
            .enumerate()
            .map(|(place, prefixes)| Source {
                name: source_name(place),
                origin: Origin::Prefixes(prefixes.clone()),
                provider: None,
                every: Source::EVERY,
                warning: None,
            })
            .collect(),
    }
}

fn source_name(place: usize) -> String {
    format!("source{place}")
}

/// The first and last address of each prefix, and the addresses outside next to them.
fn edges(feeds: &[Vec<IpNet>]) -> Vec<IpAddr> {
    let step = |address: IpAddr, up: bool| match address {
        IpAddr::V4(address) => {
            let bits = address.to_bits();
            let next = if up {
                bits.wrapping_add(1)
            } else {
                bits.wrapping_sub(1)
            };
            IpAddr::V4(Ipv4Addr::from_bits(next))
        }
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            let next = if up {
                bits.wrapping_add(1)
            } else {
                bits.wrapping_sub(1)
            };
            IpAddr::V6(Ipv6Addr::from_bits(next))
        }
    };
    feeds
        .iter()
        .flatten()
        .flat_map(|prefix| {
            let (first, last) = (prefix.network(), prefix.broadcast());
            [first, last, step(first, false), step(last, true)]
        })
        .collect()
}

fn prefix() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        3 => (address_v4(), 6_u8..=32).prop_map(|(address, length)| {
            IpNet::V4(Ipv4Net::new(address, length).expect("at most 32 bits").trunc())
        }),
        2 => (address_v6(), 30_u8..=128).prop_map(|(address, length)| {
            IpNet::V6(Ipv6Net::new(address, length).expect("at most 128 bits").trunc())
        }),
        1 => prop_oneof![Just("0.0.0.0/0"), Just("::/0"), Just("255.255.255.255/32")]
            .prop_map(|text| text.parse().expect("a prefix")),
    ]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        address_v4().prop_map(IpAddr::V4),
        address_v6().prop_map(IpAddr::V6)
    ]
}

/// A few bits here and there, so that prefixes meet.
fn address_v4() -> impl Strategy<Value = Ipv4Addr> {
    (0_u32..4, 0_u32..4, 0_u32..4).prop_map(|(high, middle, low)| {
        Ipv4Addr::from_bits(0x0a00_0000 | high << 22 | middle << 11 | low)
    })
}

fn address_v6() -> impl Strategy<Value = Ipv6Addr> {
    (0_u128..4, 0_u128..4, 0_u128..4).prop_map(|(high, middle, low)| {
        Ipv6Addr::from_bits(0x2001_0db8 << 96 | high << 94 | middle << 63 | low)
    })
}

fn ports() -> impl Strategy<Value = Ports> {
    prop_oneof![
        4 => (port(), port()).prop_map(|(a, b)| Ports::Tcp(a.min(b)..=a.max(b))),
        2 => (port(), port()).prop_map(|(a, b)| Ports::Udp(a.min(b)..=a.max(b))),
        1 => Just(Ports::Icmp),
        1 => Just(Ports::Any),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    proptest::sample::select(vec![1_u16, 22, 80, 443, 444, 8080, 65535])
}
