//! Compiles services to the tables of ports, protocols and interfaces.
//!
//! Does not know sources. A set of configured services is a `u64`, so a policy has at most 64 services.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use allowlist_common::abi::{
    CLASS_UNKNOWN, CLASSES, InterfaceServices, MAX_SERVICE_COUNTS, MAX_SERVICES, ServiceId,
    ServiceTable, fragment_class, service_set,
};
use allowlist_common::packet::{ICMP, ICMPV6, SCTP, TCP, UDP};

use super::CompileError;
use crate::policy::{ELSEWHERE, Policy, Ports};

/// A set of configured services: bit `n` stands for the service with index `n` in the policy.
pub(super) type ServiceSet = u64;

/// The configured services that cover each port and each protocol without ports, on any interface.
pub(super) struct Covers {
    tcp: Vec<ServiceSet>,
    udp: Vec<ServiceSet>,
    sctp: Vec<ServiceSet>,
    /// The services that cover each IP protocol, indexed by its number; empty sets for protocols with ports.
    protocol: Vec<ServiceSet>,
}

impl Covers {
    pub(super) fn of(policy: &Policy) -> Self {
        let mut covers = Self {
            tcp: vec![0; 1 << 16],
            udp: vec![0; 1 << 16],
            sctp: vec![0; 1 << 16],
            protocol: vec![0; 1 << 8],
        };
        let cover = |table: &mut [ServiceSet], ports: &RangeInclusive<u16>, service| {
            for set in &mut table[usize::from(*ports.start())..=usize::from(*ports.end())] {
                *set |= service;
            }
        };
        for (place, service) in policy.services.iter().enumerate() {
            let service_bit = 1 << place;
            for ports in &service.ports {
                match ports {
                    Ports::Tcp(range) => cover(&mut covers.tcp, range, service_bit),
                    Ports::Udp(range) => cover(&mut covers.udp, range, service_bit),
                    Ports::Sctp(range) => cover(&mut covers.sctp, range, service_bit),
                    Ports::Icmp => {
                        for protocol in [ICMP, ICMPV6] {
                            covers.protocol[usize::from(protocol)] |= service_bit;
                        }
                    }
                    Ports::Protocol(TCP) => cover(&mut covers.tcp, &ALL_PORTS, service_bit),
                    Ports::Protocol(UDP) => cover(&mut covers.udp, &ALL_PORTS, service_bit),
                    Ports::Protocol(SCTP) => cover(&mut covers.sctp, &ALL_PORTS, service_bit),
                    Ports::Protocol(protocol) => {
                        covers.protocol[usize::from(*protocol)] |= service_bit;
                    }
                    Ports::Any => {
                        for table in [&mut covers.tcp, &mut covers.udp, &mut covers.sctp] {
                            cover(table, &ALL_PORTS, service_bit);
                        }
                        for set in &mut covers.protocol {
                            *set |= service_bit;
                        }
                    }
                }
            }
        }
        covers
    }

    /// Returns the sets of services that cover a port or protocol, for each class of later fragments.
    ///
    /// A later fragment has no port, so its class is TCP, UDP, SCTP, or unknown if its protocol is not visible.
    fn classes(&self) -> [BTreeSet<ServiceSet>; CLASSES] {
        let distinct = |sets: &[ServiceSet]| sets.iter().copied().collect::<BTreeSet<_>>();
        let mut classes: [BTreeSet<ServiceSet>; CLASSES] = Default::default();
        classes[CLASS_UNKNOWN] = distinct(&self.protocol);
        for (protocol, ports) in [(TCP, &self.tcp), (UDP, &self.udp), (SCTP, &self.sctp)] {
            let class = fragment_class(4, protocol).expect("a protocol with ports has a class");
            classes[class] = distinct(ports);
            classes[CLASS_UNKNOWN].extend(ports);
        }
        classes
    }

    pub(super) fn table(&self, kernel: &KernelServices) -> Box<ServiceTable> {
        let mut table = Box::new(ServiceTable::EMPTY);
        for port in 0..=usize::from(u16::MAX) {
            table.tcp[port] = kernel.id(self.tcp[port]);
            table.udp[port] = kernel.id(self.udp[port]);
            table.sctp[port] = kernel.id(self.sctp[port]);
        }
        for protocol in 0..=u8::MAX {
            let protocol = usize::from(protocol);
            table.protocol[protocol] = kernel.id(self.protocol[protocol]);
        }
        table.interfaces.fill(*kernel.elsewhere);
        table
    }
}

const ALL_PORTS: RangeInclusive<u16> = 0..=u16::MAX;

/// The kernel services: the distinct sets of configured services that cover a port on an interface.
pub(super) struct KernelServices {
    /// The sets of configured services, sorted; the id of a kernel service is the index of its set plus one.
    pub(super) sets: Vec<ServiceSet>,
    /// The row of the interfaces that no service names.
    elsewhere: Box<InterfaceServices>,
    /// The rows of the interfaces that a service names, by interface name.
    pub(super) limited: BTreeMap<String, Box<InterfaceServices>>,
}

impl KernelServices {
    pub(super) fn new(policy: &Policy, covers: &Covers) -> Result<Self, CompileError> {
        let classes = covers.classes();
        let named: BTreeSet<&String> = policy
            .services
            .iter()
            .flat_map(|service| &service.interfaces)
            .filter(|name| *name != ELSEWHERE)
            .collect();
        let elsewhere = services_on(policy, ELSEWHERE);
        let on: BTreeMap<&String, ServiceSet> = named
            .into_iter()
            .map(|name| (name, services_on(policy, name)))
            .collect();
        let mut sets = BTreeSet::new();
        for set in &classes[CLASS_UNKNOWN] {
            sets.insert(*set);
            sets.insert(set & elsewhere);
            sets.extend(on.values().map(|here| set & here));
        }
        sets.remove(&0);
        if sets.len() > MAX_SERVICES {
            return Err(CompileError::TooManyServices {
                combinations: sets.len(),
            });
        }
        let mut kernel = Self {
            sets: sets.into_iter().collect(),
            elsewhere: Box::new(InterfaceServices::EMPTY),
            limited: BTreeMap::new(),
        };
        kernel.elsewhere = kernel.limited_to(elsewhere, &classes);
        for (name, here) in on {
            let row = kernel.limited_to(here, &classes);
            kernel.limited.insert(name.clone(), row);
        }
        Ok(kernel)
    }

    /// Returns the id of the kernel service for `set`; 0 only for the empty set.
    fn id(&self, set: ServiceSet) -> ServiceId {
        match self.sets.binary_search(&set) {
            Ok(place) => place as ServiceId + 1,
            Err(_) => 0,
        }
    }

    /// Returns the row of an interface to which exactly the services in `here` apply.
    fn limited_to(
        &self,
        here: ServiceSet,
        classes: &[BTreeSet<ServiceSet>; CLASSES],
    ) -> Box<InterfaceServices> {
        let mut row = Box::new(InterfaceServices::EMPTY);
        for (set, id) in self.sets.iter().zip(1..) {
            row.effective[id] = self.id(set & here);
        }
        for (of_class, sets) in row.fragment_services.iter_mut().zip(classes) {
            for set in sets {
                *of_class |= service_set(self.id(set & here));
            }
        }
        row
    }

    /// Writes the counter id of each kernel service to `counted`, and the service names behind new ids to `names`.
    /// Equal sets of services keep their id from earlier generations.
    pub(super) fn number_counts(
        &self,
        policy: &Policy,
        names: &mut Vec<Vec<String>>,
        counted: &mut [u32; 256],
    ) -> Result<(), CompileError> {
        for (set, service) in self.sets.iter().zip(1..) {
            let members: Vec<String> = policy
                .services
                .iter()
                .enumerate()
                .filter(|(place, _)| set & (1 << place) != 0)
                .map(|(_, service)| service.name.clone())
                .collect();
            let known = names.iter().position(|names| *names == members);
            let id = known.unwrap_or(names.len()) as u32;
            if id >= MAX_SERVICE_COUNTS {
                return Err(CompileError::TooManyServiceCounts);
            }
            if known.is_none() {
                names.push(members);
            }
            counted[service] = id;
        }
        Ok(())
    }
}

/// Returns the services of `policy` that apply to `interface`.
fn services_on(policy: &Policy, interface: &str) -> ServiceSet {
    policy
        .services
        .iter()
        .enumerate()
        .filter(|(_, service)| service.is_on(interface))
        .fold(0, |set, (place, _)| set | 1 << place)
}
