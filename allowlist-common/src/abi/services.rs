//! What each protocol and port belongs to.
//!
//! A *kernel service* is a distinct set of configured services that share some port, so a port costs
//! one load. A service may be limited to interfaces, so what a port's kernel service is on one
//! interface takes a second load, from a row that stays in the cache.

use core::ops::RangeInclusive;

use crate::packet::{SCTP, TCP, UDP, hides_protocol};

use super::{MAX_INTERFACES, MAX_SERVICES};

/// A kernel service's number: 0 is no service, `n` is bit `n - 1` of a set.
pub type ServiceId = u8;

/// The set of one service; empty for 0 and for what cannot be a service.
#[inline(always)]
pub const fn service_set(id: ServiceId) -> u64 {
    if id == 0 || id as usize > MAX_SERVICES {
        0
    } else {
        1 << (id - 1)
    }
}

/// Ports and protocols to services, one load for each question.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceTable {
    /// By TCP destination port.
    pub tcp: [ServiceId; 1 << 16],
    /// By UDP destination port.
    pub udp: [ServiceId; 1 << 16],
    /// By SCTP destination port.
    pub sctp: [ServiceId; 1 << 16],
    /// By protocol number, for protocols without ports.
    pub protocol: [ServiceId; 1 << 8],
    /// By interface slot.
    pub interfaces: [InterfaceServices; MAX_INTERFACES as usize],
    /// By service: the id to count it under, an index into [`super::SERVICE_COUNTS`].
    pub counter_ids: [u32; 1 << 8],
}

/// What services are on one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct InterfaceServices {
    /// By service: what is left of it here, without the services that are limited to other interfaces.
    pub effective: [ServiceId; 1 << 8],
    /// By [`fragment_class`]: the set of services that cover any port of that class effective. For later fragments, which have no ports.
    pub fragment_services: [u64; CLASSES],
    /// The set of services that cover a port from which this host connects: tracked answers pass there too.
    pub shared: u64,
}

/// How many classes of later fragments there are.
pub const CLASSES: usize = 4;
/// The class of later fragments whose protocol cannot be seen: it could be any.
pub const CLASS_UNKNOWN: usize = 3;

/// The index of the services that a later fragment of an IP `family` and protocol could be of; `None` for a protocol
/// without ports, which one service covers or none.
#[inline(always)]
pub const fn fragment_class(family: u8, protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(0),
        UDP => Some(1),
        SCTP => Some(2),
        // The headers behind the extension header are in the first fragment.
        _ if hides_protocol(family, protocol) => Some(CLASS_UNKNOWN),
        _ => None,
    }
}

impl InterfaceServices {
    /// Where no service is limited, and none covers anything.
    pub const EMPTY: Self = Self {
        effective: [0; 1 << 8],
        fragment_services: [0; CLASSES],
        shared: 0,
    };
}

#[expect(
    clippy::large_stack_arrays,
    reason = "a constant, which is copied to where it is boxed"
)]
impl ServiceTable {
    /// A table in which no service covers anything. A constant: never on a stack.
    pub const EMPTY: Self = Self {
        tcp: [0; 1 << 16],
        udp: [0; 1 << 16],
        sctp: [0; 1 << 16],
        protocol: [0; 1 << 8],
        interfaces: [InterfaceServices::EMPTY; MAX_INTERFACES as usize],
        counter_ids: [0; 1 << 8],
    };

    /// Finds the services that cover a TCP or UDP port of `own`, the ports from which this host connects, on each
    /// interface.
    ///
    /// Returns whether there are any.
    pub fn update_shared(&mut self, own: &RangeInclusive<u16>) -> bool {
        let mut covering = [false; 1 << 8];
        for port in own.clone().map(usize::from) {
            covering[self.tcp[port] as usize] = true;
            covering[self.udp[port] as usize] = true;
        }
        let mut any = 0;
        for row in &mut self.interfaces {
            let effective = row.effective.iter().zip(covering);
            row.shared = effective
                .filter(|(_, covers)| *covers)
                .fold(0, |shared, (service, _)| shared | service_set(*service));
            any |= row.shared;
        }
        any != 0
    }

    /// Whether this host connects from a port of a service in the set on an interface.
    #[inline(always)]
    pub const fn is_shared(&self, slot: usize, services: u64) -> bool {
        self.interfaces[slot].shared & services != 0
    }

    /// The service that covers a port of TCP, SCTP or, for any other `protocol`, UDP on an interface.
    #[inline(always)]
    pub const fn port_service(&self, slot: usize, protocol: u8, port: u16) -> ServiceId {
        let port = port as usize;
        let service = match protocol {
            TCP => self.tcp[port],
            SCTP => self.sctp[port],
            _ => self.udp[port],
        };
        self.interfaces[slot].effective[service as usize]
    }

    /// The service that covers a protocol without ports on an interface.
    #[inline(always)]
    pub const fn protocol_service(&self, slot: usize, protocol: u8) -> ServiceId {
        self.interfaces[slot].effective[self.protocol[protocol as usize] as usize]
    }

    /// All services that cover any part of a protocol on an interface, for later fragments of an IP `family`.
    #[inline(always)]
    pub const fn protocol_services(&self, slot: usize, family: u8, protocol: u8) -> u64 {
        match fragment_class(family, protocol) {
            Some(class) => self.interfaces[slot].fragment_services[class],
            None => service_set(self.protocol_service(slot, protocol)),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::boxed::Box;

    use super::*;

    #[test]
    fn sets_of_one_service() {
        assert_eq!(service_set(0), 0);
        assert_eq!(service_set(1), 1);
        assert_eq!(service_set(64), 1 << 63);
        assert_eq!(service_set(65), 0);
    }

    #[test]
    fn services_that_cover_own_ports() {
        let mut table = Box::new(ServiceTable::EMPTY);
        for (port, service) in [(443, 1), (40_000, 2), (60_999, 3), (61_000, 4)] {
            table.tcp[port] = service;
        }
        table.udp[32_768] = 5;
        table.sctp[40_000] = 6;
        for service in 0..8 {
            table.interfaces[3].effective[usize::from(service)] = service;
        }
        table.interfaces[4].effective[5] = 7;
        assert!(table.update_shared(&(32_768..=60_999)));
        assert_eq!(table.interfaces[3].shared, 0b1_0110);
        assert_eq!(table.interfaces[4].shared, 0b100_0000);
        assert_eq!(table.interfaces[0].shared, 0);
        assert!(table.is_shared(3, 0b11) && !table.is_shared(3, 0b1));
        assert!(!table.update_shared(&(1..=2)));
        assert_eq!(table.interfaces[3].shared, 0);
    }

    #[test]
    fn classes_of_later_fragments() {
        for (family, protocol, class) in [
            (4, TCP, Some(0)),
            (6, TCP, Some(0)),
            (4, UDP, Some(1)),
            (6, SCTP, Some(2)),
            (4, 1, None),
            (6, 58, None),
            (4, 47, None),
            (6, 50, None),
            (6, 0, Some(CLASS_UNKNOWN)),
            (6, 43, Some(CLASS_UNKNOWN)),
            (6, 44, Some(CLASS_UNKNOWN)),
            (6, 51, Some(CLASS_UNKNOWN)),
            (6, 60, Some(CLASS_UNKNOWN)),
            (4, 0, None),
            (4, 43, None),
            (4, 44, None),
            (4, 51, None),
            (4, 60, None),
        ] {
            assert_eq!(
                fragment_class(family, protocol),
                class,
                "{protocol} of IPv{family}"
            );
        }
    }
}
