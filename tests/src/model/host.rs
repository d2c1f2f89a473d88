//! The shipped packet logic in userspace: `parse` and `judge` over slices and compiled tables, with the tracked flows in
//! maps of the standard library. No flow expires.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use allowlist_common::abi::{
    Control, ControlBits, Engine, Exemptions, Grant, ReturnTraffic, ServiceId, ServiceTable,
    service_set,
};
use allowlist_common::flow::{
    Flow, FlowEntry, ForeignPort, Origins, OutboundPacket, Table, port_table,
};
use allowlist_common::judge::{self, Decision};
use allowlist_common::packet::{Address, Contents, Quote, TCP, UDP, parse};
use allowlist_common::verdict::{Reason, Verdict};
use allowlist_common::volatile::VolatileRef;
use allowlist_policy::compile::Tables;
use allowlist_policy::{Mode, Rules};
use ipnet::{Ipv4Net, Ipv6Net};

/// Compiled tables with a control word, and the tracked flows of the host.
pub struct Host<'a> {
    tables: &'a Tables,
    services: Box<ServiceTable>,
    interfaces: Vec<String>,
    control: Control,
    flows: HashMap<Flow, FlowEntry>,
    ports: BTreeSet<(usize, u16)>,
    foreign: RefCell<HashMap<Flow, FlowEntry>>,
}

impl<'a> Host<'a> {
    /// Creates a host in enforce mode with these tables, rules and interfaces, without flows.
    pub fn new(tables: &'a Tables, rules: &Rules, interfaces: &[&str]) -> Self {
        let mut services = tables.services.clone();
        for (slot, name) in interfaces.iter().enumerate() {
            if let Some(row) = tables.interfaces.get(*name) {
                services.interfaces[slot] = **row;
            }
        }
        let mut control = control(*rules);
        control.shares_ports =
            control.return_traffic == ReturnTraffic::Track && services.update_shared(&own_ports());
        Self {
            tables,
            services,
            interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
            control,
            flows: HashMap::new(),
            ports: BTreeSet::new(),
            foreign: RefCell::default(),
        }
    }

    /// Sets the mode: enforce or observe.
    #[must_use]
    pub fn in_mode(mut self, mode: Mode) -> Self {
        self.control.observe = mode == Mode::Observe;
        self
    }

    /// Tracks a frame that the host sends on an interface.
    pub fn send(&mut self, interface: &str, frame: &[u8]) {
        let lookup = self.lookup(interface, frame);
        if self.control.return_traffic == ReturnTraffic::Track
            && let Ok(Contents::Ip(packet)) = parse(frame)
            && let Some(sent) = OutboundPacket::from_packet(&packet)
        {
            let flow = sent.flow;
            if lookup.is_served(&flow) {
                return;
            }
            let before = self.flows.get(&flow).copied().unwrap_or(FlowEntry::NONE);
            let mut update = sent.update(before, false, 0);
            if update.table == Table::Undecided {
                let mark = self.foreign.borrow().get(&flow.foreign()).copied();
                let origins = Origins {
                    is_armed: true,
                    port: ForeignPort::default(),
                    crowded_until: 0,
                };
                update = sent.decide(before, mark.unwrap_or(FlowEntry::NONE), &origins, 0);
            }
            match update.table {
                Table::Own => {
                    self.flows.insert(flow, update.entry);
                    if update.entry.expires > before.expires {
                        self.flows.insert(flow.peer(), sent.peer_entry(0));
                        let table = port_table(flow.protocol);
                        self.ports.extend([(table, flow.local_port), (table, 0)]);
                    }
                }
                Table::Foreign => {
                    self.flows.remove(&flow);
                    let foreign = self.foreign.get_mut();
                    foreign.insert(flow.foreign(), update.entry);
                }
                Table::None | Table::Undecided => {}
            }
        }
    }

    /// Decides a frame that an interface receives.
    pub fn receive(&self, interface: &str, frame: &[u8]) -> Decision {
        let lookup = self.lookup(interface, frame);
        let parsed = parse(frame);
        let decision = judge::judge(&parsed, &lookup);
        if decision.marks_foreign(ControlBits(self.control.encode()), false)
            && let Ok(Contents::Ip(packet)) = parsed
            && let Some(flow) = Flow::from_inbound(&packet)
        {
            let is_allowed = decision.reason == Reason::Allowed;
            let is_skipped = is_allowed && (flow.protocol != UDP || lookup.is_served(&flow));
            if !is_skipped && !judge::Tables::has_flow(&lookup, &flow) {
                let mark = FlowEntry::foreign(flow.protocol, 0);
                self.foreign.borrow_mut().insert(flow.foreign(), mark);
            }
        }
        decision
    }

    fn lookup<'h>(&'h self, interface: &str, frame: &'h [u8]) -> Lookup<'h> {
        let slot = self.interfaces.iter().position(|name| name == interface);
        Lookup {
            host: self,
            slot: slot.expect("an interface of this host"),
            frame,
        }
    }
}

/// Returns the control word for these rules.
fn control(rules: Rules) -> Control {
    let kept = [
        (Exemptions::ARP, rules.keep.arp),
        (Exemptions::NOT_IP, rules.keep.not_ip),
        (
            Exemptions::NEIGHBOUR_DISCOVERY,
            rules.keep.neighbour_discovery,
        ),
        (Exemptions::ICMP_ERRORS, rules.keep.icmp_errors),
        (Exemptions::DHCP, rules.keep.dhcp),
        (Exemptions::MULTICAST, rules.keep.multicast),
    ];
    let return_traffic = match rules.default {
        Verdict::Pass => ReturnTraffic::Off,
        Verdict::Drop => rules.return_traffic,
    };
    Control {
        lookup: Engine::RangeTable, // not used: `grant` searches the compiled lists
        generation: 1,
        slot: 0,
        default_verdict: rules.default,
        observe: false,
        return_traffic,
        exemptions: kept
            .into_iter()
            .fold(Exemptions::NONE, |set, (exception, is_kept)| {
                set.set(exception, is_kept)
            }),
        pending: false,
        open: false,
        shares_ports: false,
        egress: None,
    }
}

/// Returns the ephemeral port range of the host.
pub(super) fn own_ports() -> RangeInclusive<u16> {
    allowlist_dataplane::sockets::own_ports().expect("a Linux host")
}

/// The lookups for one frame on one interface.
struct Lookup<'h> {
    host: &'h Host<'h>,
    slot: usize,
    frame: &'h [u8],
}

impl Lookup<'_> {
    fn services(&self) -> VolatileRef<'_, ServiceTable> {
        self.host.services.volatile()
    }

    /// Reports whether services alone decide packets to the port of a flow.
    fn is_served(&self, flow: &Flow) -> bool {
        use judge::Tables as _;
        if !matches!(flow.protocol, TCP | UDP) {
            return false;
        }
        let service = self.service_of_port(flow.protocol, flow.local_port);
        service != 0 && !(self.host.control.shares_ports && self.is_shared(service_set(service)))
    }
}

impl judge::Tables for Lookup<'_> {
    fn control(&self) -> ControlBits {
        ControlBits(self.host.control.encode())
    }

    fn service_of_port(&self, protocol: u8, port: u16) -> ServiceId {
        self.services().port_service(self.slot, protocol, port)
    }

    fn service_of_protocol(&self, protocol: u8) -> ServiceId {
        self.services().protocol_service(self.slot, protocol)
    }

    fn services_of_protocol(&self, family: u8, protocol: u8) -> u64 {
        self.services()
            .protocol_services(self.slot, family, protocol)
    }

    fn is_shared(&self, services: u64) -> bool {
        self.services().is_shared(self.slot, services)
    }

    fn service_counter_id(&self, service: ServiceId) -> u32 {
        self.services().counter_id(service)
    }

    fn grant(&self, source: &Address) -> Option<Grant> {
        let tables = self.host.tables;
        match IpAddr::from(*source) {
            IpAddr::V4(address) => longest(
                &tables.v4,
                |prefix| prefix.contains(&address),
                Ipv4Net::prefix_len,
            ),
            IpAddr::V6(address) => longest(
                &tables.v6,
                |prefix| prefix.contains(&address),
                Ipv6Net::prefix_len,
            ),
        }
    }

    fn port_has_flows(&self, protocol: u8, port: u16) -> bool {
        self.host.ports.contains(&(port_table(protocol), port))
    }

    fn has_flow(&self, flow: &Flow) -> bool {
        let entry = self.host.flows.get(flow);
        entry.is_some_and(|entry| entry.is_alive(0))
    }

    fn flow_quoted_by(&self, quote: Quote, source: Address) -> Option<Flow> {
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
