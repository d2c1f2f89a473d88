//! Strategies for random policies, rules and traffic. The few addresses and ports make prefixes and ports overlap, and
//! packets match.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use allowlist_policy::{
    Engine, Keep, Mode, Origin, Policy, Ports, ReturnTraffic, Rules, Service, Snapshot, Source,
    Verdict,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::static_snapshot;
use super::traffic::{Moment, traffic};

/// The interfaces of every scenario, in alphabetical order, which is the order of their slots if both are published at
/// once.
pub const INTERFACES: [&str; 2] = ["lan0", "wan0"];

/// A policy with prefixes, and the traffic under it.
#[derive(Clone)]
pub struct Scenario {
    /// The policy.
    pub policy: Policy,
    /// The prefixes of its sources.
    pub snapshot: Snapshot,
    /// The rules for packets that no service decides.
    pub rules: Rules,
    /// The mode of the filter: enforce or observe.
    pub mode: Mode,
    /// The sent and received frames, in order.
    pub traffic: Vec<Moment>,
}

/// Returns random scenarios with this many frames.
pub fn scenarios(frames: usize) -> impl Strategy<Value = Scenario> {
    let feeds = vec(vec(prefix(), 1..12), 1..6);
    (feeds, rules(), any::<bool>()).prop_flat_map(move |(feeds, rules, observes)| {
        let service = (
            vec(ports(), 1..4),
            vec(0..feeds.len(), 1..4),
            prop_oneof![
                3 => Just(Vec::new()),
                2 => subsequence(vec![INTERFACES[0], INTERFACES[1], "vpn0"], 1..=2),
            ],
        );
        let addresses = vec(address(), 8);
        let seeds = vec(any::<u64>(), frames);
        (vec(service, 0..6), addresses, seeds).prop_map(move |(services, mut remotes, seeds)| {
            remotes.extend(edges(feeds.iter().map(Vec::as_slice)));
            let policy = policy(&feeds, services);
            Scenario {
                snapshot: static_snapshot(&policy),
                policy,
                rules,
                mode: if observes {
                    Mode::Observe
                } else {
                    Mode::Enforce
                },
                traffic: traffic(&remotes, &seeds),
            }
        })
    })
}

impl Scenario {
    /// Returns the first and last address of each prefix, and the adjacent addresses outside.
    pub fn edges(&self) -> Vec<IpAddr> {
        edges(self.snapshot.values().map(|feed| &feed.prefixes[..]))
    }

    /// Shrinks the scenario to the frame with the index `position`, the frames that the host sent before it, and the
    /// services; then removes each sent frame and service without which `fails` still returns true.
    #[must_use]
    pub fn smallest(&self, position: usize, mut fails: impl FnMut(&Self) -> bool) -> Self {
        let mut smallest = self.clone();
        let mut positions = 0..;
        smallest
            .traffic
            .retain(|moment| match positions.next().cmp(&Some(position)) {
                Ordering::Less => moment.is_sent,
                Ordering::Equal => true,
                Ordering::Greater => false,
            });
        for place in (0..smallest.traffic.len() - 1).rev() {
            let mut without = smallest.clone();
            without.traffic.remove(place);
            if fails(&without) {
                smallest = without;
            }
        }
        for place in (0..smallest.policy.services.len()).rev() {
            let mut without = smallest.clone();
            without.policy.services.remove(place);
            if fails(&without) {
                smallest = without;
            }
        }
        smallest
    }
}

/// Prints the policy in a form similar to the configuration.
impl fmt::Debug for Scenario {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{:?} {:?}", self.mode, self.rules)?;
        for service in &self.policy.services {
            let ports: Vec<String> = service.ports.iter().map(ToString::to_string).collect();
            writeln!(
                out,
                "{} {ports:?} on {:?} allows {:?}",
                service.name, service.interfaces, service.allow
            )?;
        }
        let allowed = |name| {
            let mut services = self.policy.services.iter();
            services.any(|service| service.allow.contains(name))
        };
        for (name, feed) in self.snapshot.iter().filter(|(name, _)| allowed(name)) {
            writeln!(out, "{name} {:?}", feed.prefixes)?;
        }
        for moment in &self.traffic {
            writeln!(out, "{moment:?}")?;
        }
        Ok(())
    }
}

/// Generates rules. Most have `default = "drop"` and flow tracking, which have more cases.
fn rules() -> impl Strategy<Value = Rules> {
    let default = prop_oneof![1 => Just(Verdict::Pass), 3 => Just(Verdict::Drop)];
    let return_traffic = prop_oneof![
        3 => Just(ReturnTraffic::Track),
        1 => Just(ReturnTraffic::Established),
        1 => Just(ReturnTraffic::Off),
    ];
    let keep = prop_oneof![Just([true; 6]), any::<[bool; 6]>()];
    let lookup = prop_oneof![Just(Engine::RangeTable), Just(Engine::LpmTrie)];
    (default, return_traffic, keep, lookup).prop_map(|(default, return_traffic, keep, lookup)| {
        let [
            arp,
            neighbour_discovery,
            icmp_errors,
            dhcp,
            multicast,
            not_ip,
        ] = keep;
        Rules {
            default,
            return_traffic,
            keep: Keep {
                arp,
                neighbour_discovery,
                icmp_errors,
                dhcp,
                multicast,
                not_ip,
            },
            lookup,
        }
    })
}

type Parts = (Vec<Ports>, Vec<usize>, Vec<&'static str>);

fn policy(feeds: &[Vec<IpNet>], services: Vec<Parts>) -> Policy {
    Policy {
        services: services
            .into_iter()
            .enumerate()
            .map(|(place, (ports, allow, interfaces))| Service {
                name: format!("service{place}"),
                ports,
                interfaces: interfaces.into_iter().map(str::to_owned).collect(),
                allow: allow.into_iter().map(source_name).collect(),
            })
            .collect(),
        sources: feeds
            .iter()
            .enumerate()
            .map(|(place, prefixes)| {
                Source::new(&source_name(place), Origin::Prefixes(prefixes.clone()))
            })
            .collect(),
        egress: None,
    }
}

fn source_name(place: usize) -> String {
    format!("source{place}")
}

/// Returns the first and last address of each prefix, and the adjacent addresses outside.
fn edges<'f>(feeds: impl Iterator<Item = &'f [IpNet]>) -> Vec<IpAddr> {
    feeds
        .flatten()
        .flat_map(|prefix| {
            let (first, last) = (prefix.network(), prefix.broadcast());
            [first, last, beside(first, false), beside(last, true)]
        })
        .collect()
}

/// Returns the next address if `up`, otherwise the previous one; wraps around at the ends of the address space.
fn beside(address: IpAddr, up: bool) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let step = if up { 1 } else { u32::MAX };
            Ipv4Addr::from_bits(address.to_bits().wrapping_add(step)).into()
        }
        IpAddr::V6(address) => {
            let step = if up { 1 } else { u128::MAX };
            Ipv6Addr::from_bits(address.to_bits().wrapping_add(step)).into()
        }
    }
}

fn prefix() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        3 => (address_v4(), 6_u8..=32).prop_map(|(address, length)| {
            IpNet::V4(Ipv4Net::new(address, length).expect("at most 32 bits").trunc())
        }),
        2 => (address_v6(), 30_u8..=128).prop_map(|(address, length)| {
            IpNet::V6(Ipv6Net::new(address, length).expect("at most 128 bits").trunc())
        }),
        1 => select(vec!["0.0.0.0/0", "::/0", "255.255.255.255/32"])
            .prop_map(|text| text.parse().expect("a prefix")),
    ]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        4 => address_v4().prop_map(IpAddr::V4),
        4 => address_v6().prop_map(IpAddr::V6),
        // Begins with the bytes of an IPv4 address that `address_v4` generates.
        1 => Just(IpAddr::V6(Ipv6Addr::new(0x0a00, 0, 0, 0, 0, 0, 0, 0))),
    ]
}

/// Generates addresses that differ in few bits, so that prefixes overlap.
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
    let range = || {
        let port = || select(vec![1_u16, 22, 80, 443, 444, 8080, 65535]);
        (port(), port()).prop_map(|(a, b)| a.min(b)..=a.max(b))
    };
    prop_oneof![
        8 => range().prop_map(Ports::Tcp),
        4 => range().prop_map(Ports::Udp),
        2 => range().prop_map(Ports::Sctp),
        2 => Just(Ports::Icmp),
        2 => select(vec![0_u8, 1, 2, 6, 17, 44, 47, 50, 51, 58, 60, 132, 255]).prop_map(Ports::Protocol),
        1 => Just(Ports::Any),
    ]
}
