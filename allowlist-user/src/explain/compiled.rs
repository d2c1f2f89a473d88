//! Compiled tables, asked as the kernel would be if they were published. Pure.
//!
//! Knows no flows: a packet that answers something is judged as if it did not.

use std::net::IpAddr;

use allowlist_common::abi::{Control, ControlBits, Grant, ServiceId, ServiceTable};
use allowlist_common::flow::Flow;
use allowlist_common::judge::{self, Decision};
use allowlist_common::packet::{Address, Contents, Packet, Quote};
use allowlist_common::verdict::Verdict;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::compile::Tables;
use crate::dataplane;
use crate::policy::{DefaultVerdict, Mode, Rules};

/// A generation that is compiled, and how it would be in force.
#[derive(Clone, Copy)]
pub struct Judge<'t> {
    tables: &'t Tables,
    control: Control,
}

impl<'t> Judge<'t> {
    /// These tables under these rules.
    pub fn new(tables: &'t Tables, mode: Mode, rules: &Rules) -> Self {
        Self {
            tables,
            control: Control {
                default_verdict: match rules.default {
                    DefaultVerdict::Pass => Verdict::Pass,
                    DefaultVerdict::Drop => Verdict::Drop,
                },
                observe: mode == Mode::Observe,
                return_traffic: dataplane::return_traffic(*rules),
                exemptions: dataplane::keep(rules.keep),
                lookup: dataplane::lookup(rules.lookup),
                ..Control::NONE
            },
        }
    }

    /// The same on one interface that is filtered.
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

    /// The services that a decision was made by, in order of name.
    pub fn services_of(&self, decision: Decision) -> &'t [String] {
        let names = self.tables.names.services.get(decision.service as usize);
        names.map_or(&[], |names| names)
    }
}

/// Any: until a publish puts the rows of limited services into the table, all of its rows are the same.
const SLOT: usize = 0;

/// What one interface's copy of the program would look into.
pub struct OnInterface<'t> {
    tables: &'t Tables,
    control: Control,
    /// The services as they are there, if other than elsewhere.
    limited: Option<Box<ServiceTable>>,
}

impl OnInterface<'_> {
    /// What becomes of a packet.
    pub fn judge(&self, packet: &Packet) -> Decision {
        judge::judge(&Ok(Contents::Ip(*packet)), self)
    }

    /// Whether a packet is let through: also where the verdict is not carried out.
    pub fn lets_through(&self, packet: &Packet) -> bool {
        self.control.observe || self.judge(packet).verdict == Verdict::Pass
    }

    fn services(&self) -> &ServiceTable {
        self.limited.as_deref().unwrap_or(&self.tables.services)
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

    /// No packet here is an answer.
    fn is_shared(&self, _services: u64) -> bool {
        false
    }

    fn service_counter_id(&self, service: ServiceId) -> u32 {
        self.services().counter_ids[usize::from(service)]
    }

    /// The longest prefix that holds the address: one search in the sorted list for each length.
    fn grant(&self, source: &Address) -> Option<Grant> {
        match IpAddr::from(*source) {
            IpAddr::V4(address) => (0..=32).rev().find_map(|length| {
                let prefix = Ipv4Net::new_assert(address, length).trunc();
                found(&self.tables.v4, &prefix)
            }),
            IpAddr::V6(address) => (0..=128).rev().find_map(|length| {
                let prefix = Ipv6Net::new_assert(address, length).trunc();
                found(&self.tables.v6, &prefix)
            }),
        }
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

fn found<P: Ord>(entries: &[(P, Grant)], prefix: &P) -> Option<Grant> {
    let place = entries.binary_search_by(|(entry, _)| entry.cmp(prefix));
    place.ok().map(|place| entries[place].1)
}
