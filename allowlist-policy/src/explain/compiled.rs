//! The verdicts of compiled tables, as the kernel would give them after a publish. Pure.
//!
//! Does not know flows: an answer to a flow of this host has the verdict of a packet without a flow.

use std::net::IpAddr;

use allowlist_common::abi::{Control, ControlBits, Grant, ServiceId, ServiceTable};
use allowlist_common::flow::Flow;
use allowlist_common::judge::{self, Decision};
use allowlist_common::packet::{Address, Contents, Packet, Quote};
use allowlist_common::verdict::Verdict;
use allowlist_common::volatile::VolatileRef;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::compile::Tables;
use crate::policy::{Mode, Rules};

/// Decides about packets by a compiled generation with its mode and rules, as the kernel program would.
#[derive(Clone, Copy)]
pub struct Judge<'t> {
    tables: &'t Tables,
    control: Control,
}

impl<'t> Judge<'t> {
    /// Returns a judge that decides by these tables, mode and rules.
    pub fn new(tables: &'t Tables, mode: Mode, rules: &Rules) -> Self {
        Self {
            tables,
            control: rules.control(mode),
        }
    }

    /// Returns the decisions on one filtered interface, to which services can be limited.
    pub fn on(&self, interface: &str) -> OnInterface<'t> {
        let limited = self.tables.interfaces.get(interface).map(|row| {
            let mut services = self.tables.services.clone();
            services.interfaces[SLOT] = **row;
            services
        });
        OnInterface {
            tables: self.tables,
            control: self.control,
            limited,
        }
    }

    /// Returns the names of the services that cover the target of `decision`, sorted; empty if no service does.
    pub fn services_of(&self, decision: Decision) -> &'t [String] {
        let names = self.tables.ids.services.get(decision.service as usize);
        names.map_or(&[], |names| names)
    }
}

/// The slot whose interface row is read. Compiled tables have equal rows in all slots, so any slot would do.
const SLOT: usize = 0;

/// The compiled tables as the kernel program on one interface reads them.
pub struct OnInterface<'t> {
    tables: &'t Tables,
    control: Control,
    /// The service table of this interface if a service names the interface; `None` to use the common table.
    limited: Option<Box<ServiceTable>>,
}

impl OnInterface<'_> {
    /// Returns the decision about `packet` on this interface.
    pub fn judge(&self, packet: &Packet) -> Decision {
        judge::judge(&Ok(Contents::Ip(*packet)), self)
    }

    /// Returns whether `packet` passes on this interface: its verdict is pass, or observe mode ignores the verdict.
    pub fn lets_through(&self, packet: &Packet) -> bool {
        self.control.observe || self.judge(packet).verdict == Verdict::Pass
    }

    fn services(&self) -> VolatileRef<'_, ServiceTable> {
        let services = self.limited.as_deref();
        services.unwrap_or(&self.tables.services).volatile()
    }
}

impl judge::Tables for OnInterface<'_> {
    fn control(&self) -> ControlBits {
        ControlBits(self.control.encode())
    }

    fn service_of_port(&self, protocol: u8, port: u16) -> ServiceId {
        self.services().port_service(SLOT, protocol, port)
    }

    fn service_of_protocol(&self, protocol: u8) -> ServiceId {
        self.services().protocol_service(SLOT, protocol)
    }

    fn services_of_protocol(&self, family: u8, protocol: u8) -> u64 {
        self.services().protocol_services(SLOT, family, protocol)
    }

    /// Returns `false`: no flow is known here, so no packet is an answer.
    fn is_shared(&self, _services: u64) -> bool {
        false
    }

    fn service_counter_id(&self, service: ServiceId) -> u32 {
        self.services().counter_id(service)
    }

    fn grant(&self, source: &Address) -> Option<Grant> {
        self.tables.grant_of(&IpAddr::from(*source))
    }

    fn port_has_flows(&self, _protocol: u8, _port: u16) -> bool {
        false
    }

    fn has_flow(&self, _flow: &Flow) -> bool {
        false
    }

    fn flow_quoted_by(&self, _quote: Quote, _source: Address) -> Option<Flow> {
        None
    }
}

impl Tables {
    /// Returns the grant (reachable services and match id) of the longest prefix that contains an address, or `None` if
    /// no prefix contains it. Makes one binary search per prefix length.
    pub(super) fn grant_of(&self, address: &IpAddr) -> Option<Grant> {
        match *address {
            IpAddr::V4(address) => (0..=32).rev().find_map(|length| {
                let prefix = Ipv4Net::new_assert(address, length).trunc();
                found(&self.v4, &prefix)
            }),
            IpAddr::V6(address) => (0..=128).rev().find_map(|length| {
                let prefix = Ipv6Net::new_assert(address, length).trunc();
                found(&self.v6, &prefix)
            }),
        }
    }
}

fn found<P: Ord>(entries: &[(P, Grant)], prefix: &P) -> Option<Grant> {
    let place = entries.binary_search_by(|(entry, _)| entry.cmp(prefix));
    place.ok().map(|place| entries[place].1)
}
