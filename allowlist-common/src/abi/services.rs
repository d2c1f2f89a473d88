//! The tables from ports and protocols to services.
//!
//! A *kernel service* is a distinct set of configured services that share a port, so that one load returns all services
//! of a port. A service may be limited to interfaces: a second load, from a row that stays in the cache, maps the
//! kernel service to the one that is effective on an interface.

use core::ops::RangeInclusive;

use crate::packet::{SCTP, TCP, UDP, hides_protocol};
use crate::volatile::{VolatileRef, field};

use super::{MAX_INTERFACES, MAX_SERVICES};

/// The number of a kernel service (a distinct set of configured services that cover a port): 0 for no service, `n` for
/// bit `n - 1` of a set.
pub type ServiceId = u8;

/// Returns the set of one service; empty for 0 and for numbers above [`MAX_SERVICES`].
#[inline(always)]
pub const fn service_set(id: ServiceId) -> u64 {
    if id == 0 || id as usize > MAX_SERVICES {
        0
    } else {
        1 << (id - 1)
    }
}

/// The service of each port and protocol, and the services that are effective on each interface.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceTable {
    /// The service of each TCP destination port.
    pub tcp: [ServiceId; 1 << 16],
    /// The service of each UDP destination port.
    pub udp: [ServiceId; 1 << 16],
    /// The service of each SCTP destination port.
    pub sctp: [ServiceId; 1 << 16],
    /// The service of each protocol without ports, by protocol number.
    pub protocol: [ServiceId; 1 << 8],
    /// The services on each interface, by interface slot.
    pub interfaces: [InterfaceServices; MAX_INTERFACES as usize],
    /// The counter id of each service: an index into [`super::SERVICE_COUNTS`].
    pub counter_ids: [u32; 1 << 8],
}

/// The services on one interface.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct InterfaceServices {
    /// For each kernel service, the one that is effective on this interface: without the configured services that are
    /// limited to other interfaces.
    pub effective: [ServiceId; 1 << 8],
    /// By [`fragment_class`], the set of services that cover any port of the class: for later fragments, which have no
    /// ports.
    pub fragment_services: [u64; CLASSES],
    /// The set of services that cover a port from which this host connects: answers of tracked flows pass to these
    /// ports, in addition to the allowed packets.
    pub shared: u64,
}

/// The number of classes of later fragments.
pub const CLASSES: usize = 4;
/// The class of later fragments whose transport protocol is not visible, so that it may be any protocol.
pub const CLASS_UNKNOWN: usize = 3;

/// Returns the class of later fragments of an IP `family` and protocol: an index into
/// [`InterfaceServices::fragment_services`].
///
/// Returns `None` for a protocol without ports, whose service does not depend on the first fragment.
#[inline(always)]
pub const fn fragment_class(family: u8, protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(0),
        UDP => Some(1),
        SCTP => Some(2),
        // The first fragment has the headers after the extension header.
        _ if hides_protocol(family, protocol) => Some(CLASS_UNKNOWN),
        _ => None,
    }
}

impl InterfaceServices {
    /// The row of an interface without services.
    pub const EMPTY: Self = Self {
        effective: [0; 1 << 8],
        fragment_services: [0; CLASSES],
        shared: 0,
    };
}

#[expect(
    clippy::large_stack_arrays,
    reason = "a constant, which is copied into a box"
)]
impl ServiceTable {
    /// A table without services.
    pub const EMPTY: Self = Self {
        tcp: [0; 1 << 16],
        udp: [0; 1 << 16],
        sctp: [0; 1 << 16],
        protocol: [0; 1 << 8],
        interfaces: [InterfaceServices::EMPTY; MAX_INTERFACES as usize],
        counter_ids: [0; 1 << 8],
    };

    /// Sets [`InterfaceServices::shared`] of each interface: the services that cover a TCP or UDP port in `own`, the
    /// ports from which this host connects.
    ///
    /// Returns whether any interface has such a service.
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

    /// Returns a reference for lookups.
    pub const fn volatile(&self) -> VolatileRef<'_, Self> {
        VolatileRef::from_ref(self)
    }
}

/// Lookups, in the kernel's memory or in a copy.
impl VolatileRef<'_, ServiceTable> {
    /// Reports whether, on an interface, this host connects from a port that a service of the set covers.
    #[inline(always)]
    pub fn is_shared(self, slot: usize, services: u64) -> bool {
        field!(field!(self, interfaces).at(slot), shared).load() & services != 0
    }

    /// Returns the service that covers a destination port on an interface; 0 for none.
    ///
    /// A `protocol` other than TCP and SCTP counts as UDP.
    #[inline(always)]
    pub fn port_service(self, slot: usize, protocol: u8, port: u16) -> ServiceId {
        let ports = match protocol {
            TCP => field!(self, tcp),
            SCTP => field!(self, sctp),
            _ => field!(self, udp),
        };
        self.effective(slot, ports.at(port as usize).load())
    }

    /// Returns the service that covers a protocol without ports on an interface; 0 for none.
    #[inline(always)]
    pub fn protocol_service(self, slot: usize, protocol: u8) -> ServiceId {
        let service = field!(self, protocol).at(protocol as usize).load();
        self.effective(slot, service)
    }

    /// Returns the set of services that cover any part of a protocol on an interface, for later fragments of an IP
    /// `family`.
    #[inline(always)]
    pub fn protocol_services(self, slot: usize, family: u8, protocol: u8) -> u64 {
        match fragment_class(family, protocol) {
            Some(class) => {
                let row = field!(self, interfaces).at(slot);
                field!(row, fragment_services).at(class).load()
            }
            None => service_set(self.protocol_service(slot, protocol)),
        }
    }

    /// Returns the id under which packets to a service are counted: an index into [`super::SERVICE_COUNTS`].
    #[inline(always)]
    pub fn counter_id(self, service: ServiceId) -> u32 {
        field!(self, counter_ids).at(service as usize).load()
    }

    /// Returns the kernel service that is effective on an interface in place of `service`.
    #[inline(always)]
    fn effective(self, slot: usize, service: ServiceId) -> ServiceId {
        let row = field!(self, interfaces).at(slot);
        field!(row, effective).at(service as usize).load()
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
    fn services_on_local_ports_are_shared() {
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
        assert!(table.volatile().is_shared(3, 0b11));
        assert!(!table.volatile().is_shared(3, 0b1));
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
