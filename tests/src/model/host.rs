//! The logic that ships, on the host: `parse` and `judge` over slices and compiled tables, with what
//! was sent in plain sets. Nothing expires.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use allowlist_common::abi::{
    Control, Engine, Grant, Keep, ReturnTraffic, ServiceId, ServiceTable, Word,
};
use allowlist_common::flow::{Flow, Sent, Tracked, port_table};
use allowlist_common::judge::{self, Decision};
use allowlist_common::packet::{Address, Contents, Quote, TCP, UDP, parse};
use allowlist_common::verdict::Verdict;
use allowlist_user::compile::Tables;
use allowlist_user::policy::{self, DefaultVerdict, Rules};
use ipnet::{Ipv4Net, Ipv6Net};

/// Compiled tables under a control word, and what the host sent.
pub struct Host<'a> {
    tables: &'a Tables,
    services: Box<ServiceTable>,
    interfaces: Vec<String>,
    control: Control,
    flows: HashMap<Flow, Tracked>,
    ports: BTreeSet<(usize, u16)>,
}

impl<'a> Host<'a> {
    /// These tables by these rules on these interfaces; nothing was sent yet.
    pub fn new(tables: &'a Tables, rules: &Rules, interfaces: &[&str]) -> Self {
        let mut services = tables.services.clone();
        for (slot, name) in interfaces.iter().enumerate() {
            if let Some(row) = tables.interfaces.get(*name) {
                services.interfaces[slot] = **row;
            }
        }
        Self {
            tables,
            services,
            interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
            control: control(*rules),
            flows: HashMap::new(),
            ports: BTreeSet::new(),
        }
    }

    /// The host sends a frame on an interface.
    pub fn send(&mut self, interface: &str, frame: &[u8]) {
        let lookup = self.lookup(interface, frame);
        if self.control.return_traffic == ReturnTraffic::Track
            && let Ok(Contents::Ip(packet)) = parse(frame)
            && let Some(sent) = Sent::of(&packet)
        {
            let flow = sent.flow;
            let is_served = matches!(flow.protocol, TCP | UDP)
                && judge::Tables::service_of_port(&lookup, flow.protocol, flow.local_port) != 0;
            let entry = Tracked::after(
                self.flows.get(&flow).copied().unwrap_or(Tracked::NONE),
                &sent,
                0,
            );
            if !is_served {
                self.flows.insert(flow, entry);
            }
            if !is_served && !entry.is_foreign() {
                let peer = Sent {
                    flow: flow.peer(),
                    flags: 0,
                };
                self.flows
                    .insert(flow.peer(), Tracked::after(Tracked::NONE, &peer, 0));
                let table = port_table(flow.protocol);
                self.ports.extend([(table, flow.local_port), (table, 0)]);
            }
        }
    }

    /// What becomes of a frame that an interface receives.
    pub fn receive(&self, interface: &str, frame: &[u8]) -> Decision {
        judge::judge(&parse(frame), &self.lookup(interface, frame))
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

/// The control word of these rules.
fn control(rules: Rules) -> Control {
    let kept = [
        (Keep::ARP, rules.keep.arp),
        (Keep::NOT_IP, rules.keep.not_ip),
        (Keep::NEIGHBOUR_DISCOVERY, rules.keep.neighbour_discovery),
        (Keep::ICMP_ERRORS, rules.keep.icmp_errors),
        (Keep::DHCP, rules.keep.dhcp),
        (Keep::MULTICAST, rules.keep.multicast),
    ];
    let (default_verdict, return_traffic) = match (rules.default, rules.return_traffic) {
        (DefaultVerdict::Pass, _) => (Verdict::Pass, ReturnTraffic::Off),
        (_, policy::ReturnTraffic::Off) => (Verdict::Drop, ReturnTraffic::Off),
        (_, policy::ReturnTraffic::Established) => (Verdict::Drop, ReturnTraffic::Established),
        (_, policy::ReturnTraffic::Track) => (Verdict::Drop, ReturnTraffic::Track),
    };
    Control {
        lookup: Engine::RangeTable, // it has lists of its own
        generation: 1,
        slot: 0,
        default_verdict,
        observe: false,
        return_traffic,
        keep: kept
            .into_iter()
            .fold(Keep::NONE, |set, (exception, is_kept)| {
                set.set(exception, is_kept)
            }),
        pending: false,
        open: false,
    }
}

/// For one frame on one interface.
struct Lookup<'h> {
    host: &'h Host<'h>,
    slot: usize,
    frame: &'h [u8],
}

impl judge::Tables for Lookup<'_> {
    fn word(&self) -> Word {
        Word(self.host.control.encode())
    }

    fn service_of_port(&self, protocol: u8, port: u16) -> ServiceId {
        self.host.services.of_port(self.slot, protocol, port)
    }

    fn service_of_protocol(&self, protocol: u8) -> ServiceId {
        self.host.services.of_protocol(self.slot, protocol)
    }

    fn services_of_protocol(&self, family: u8, protocol: u8) -> u64 {
        let services = &self.host.services;
        services.any_of_protocol(self.slot, family, protocol)
    }

    fn counted(&self, service: ServiceId) -> u32 {
        self.host.services.counted[usize::from(service)]
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

    fn sent_from(&self, protocol: u8, port: u16) -> bool {
        self.host.ports.contains(&(port_table(protocol), port))
    }

    fn sent(&self, flow: &Flow) -> bool {
        let entry = self.host.flows.get(flow);
        entry.is_some_and(|entry| entry.is_alive(0))
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
