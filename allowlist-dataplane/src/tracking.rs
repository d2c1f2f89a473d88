//! Flows whose start the flow tracker did not see: flows older than the flow tracker, and flows from ports that a
//! service covered.
//!
//! Invariants: an interface slot is *armed*, so that the flow tracker creates UDP flows there, only once packets on it
//! are marked as foreign or dropped, and the ports of older sockets are recorded as unknown. Flows that were recorded
//! before a time without tracking are removed.

use std::net::SocketAddr;

use allowlist_common::abi::{self, ReturnTraffic, ServiceTable, service_set};
use allowlist_common::flow::{Flow, FlowEntry, PortsInUse, UDP_IDLE, max_lifetime, port_table};
use allowlist_common::packet::{Address, TCP};
use aya::maps::MapData;
use log::{info, warn};

use super::Dataplane;
use super::clock::kernel_clock;
use super::flows::Flows;
use super::memory::Memory;
use super::pins::Pins;
use crate::error::{Context as _, Result};
use crate::sockets::{self, Evidence, OwnFlow, Phase};

/// The maps by which the flow tracker decides whether a flow is this host's own, mapped into memory.
pub(super) struct Marks {
    /// The map [`abi::MARKING`]: the armed interface slots, in which the flow tracker may create UDP flows.
    marking: Memory,
    /// The map [`abi::FOREIGN_PORTS`]: the times until which datagrams from each local UDP port may be replies.
    foreign_ports: Memory,
    /// The map [`abi::PORTS`]: the time until which each local port may have live flows.
    ports: Memory,
}

impl Marks {
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        let map = |name: &str, words: usize| {
            let map = MapData::from_pin(pins.map(name))
                .with_context(|| format!("cannot open the map {name}"))?;
            Memory::map(map, words)
        };
        Ok(Self {
            marking: map(abi::MARKING, 2)?,
            foreign_ports: map(abi::FOREIGN_PORTS, 1 << 16)?,
            ports: map(abi::PORTS, size_of::<PortsInUse>() / size_of::<u64>())?,
        })
    }

    /// Returns the armed interface slots, in which the flow tracker may create UDP flows, as bits.
    fn armed(&self) -> u64 {
        self.marking.all().load(0)
    }

    fn is_armed(&self, slot: u32) -> bool {
        self.armed() >> slot & 1 != 0
    }

    fn arm(&self, slot: u32, is_armed: bool) {
        let bit = 1 << slot;
        // Not one atomic operation: the kernel programs only read this word, and one daemon writes at a time.
        let others = self.armed() & !bit;
        let armed = if is_armed { others | bit } else { others };
        self.marking.all().store(0, armed);
    }

    pub(super) fn disarm_all(&self) {
        self.marking.all().store(0, 0);
    }

    /// Records that the origin of flows from a local UDP port is unknown, until flows that exist `now` (in seconds)
    /// have expired.
    fn distrust(&self, port: u16, now: u32) {
        let until = now.saturating_add(UDP_IDLE);
        self.foreign_ports
            .all()
            .store_half(usize::from(port) * 2 + 1, until);
    }

    /// Records that a local port may have live flows until the time `until`, in seconds.
    fn expect(&self, protocol: u8, port: u16, until: u32) {
        let table = port_table(protocol) << 16;
        for port in [port, 0] {
            let place = table | usize::from(port);
            self.ports.all().raise_half(place, until);
        }
    }
}

/// The tables of this host's flows, and whether the policy tracks flows.
pub(super) struct Tracking {
    pub(super) is_on: bool,
    pub(super) flows: Box<Flows>,
    pub(super) marks: Box<Marks>,
}

impl Tracking {
    /// Records the flows of this host's client sockets. Returns the ports from which flows of unknown origin may exist.
    fn adopt(&mut self) -> Result<Vec<u16>> {
        adopt(&mut self.flows, &self.marks)
    }

    /// Disarms an interface slot (the flow tracker may not create UDP flows there), because its interface has no
    /// program that marks foreign flows, or will have none for a moment.
    pub(super) fn disarm(&self, slot: u32) {
        self.marks.arm(slot, false);
    }

    /// Records that the origin of a UDP port's flows is unknown, if `before` did not record the port's flows because a
    /// service covers it, and `after` does.
    ///
    /// Datagrams from such a port may be replies to source addresses that the service allowed, and those flows were not
    /// marked as foreign (initiated by the other side).
    pub(super) fn distrust_newly_recorded(&self, before: &ServiceTable, after: &ServiceTable) {
        let now = kernel_clock().as_secs() as u32;
        for port in newly_recorded(before, after) {
            self.marks.distrust(port, now);
        }
    }
}

impl Dataplane {
    /// Prepares the tables of flows for tracking: call it before tracking starts or continues.
    ///
    /// If flows were not marked until now, removes all recorded flows, because other hosts may use the same ports now.
    ///
    /// # Errors
    /// Fails if the maps cannot be written.
    pub fn prepare_tracking(&mut self) -> Result<()> {
        if !self.tracking.is_on {
            return Ok(());
        }
        if !self.is_marking() {
            self.tracking.marks.disarm_all();
            self.tracking.flows.clear()?;
        }
        Ok(())
    }

    /// Records the flows of this host's client sockets, if the policy tracks flows and an interface slot is not armed.
    ///
    /// In a slot that is not armed, the flow tracker may not create UDP flows yet.
    ///
    /// # Errors
    /// Fails if the maps cannot be written.
    pub fn adopt_clients(&mut self) -> Result<()> {
        if self.tracking.is_on && !self.unarmed()?.is_empty() {
            self.tracking.adopt()?;
        }
        Ok(())
    }

    /// Arms the slots of all filtered interfaces, so that the flow tracker creates UDP flows there.
    ///
    /// Call it once packets are judged by a policy that tracks flows.
    ///
    /// # Errors
    /// Fails if the maps cannot be written.
    pub fn arm(&mut self) -> Result<()> {
        if !self.tracking.is_on || !self.is_marking() {
            return Ok(());
        }
        let unarmed = self.unarmed()?;
        if unarmed.is_empty() {
            return Ok(());
        }
        let unknown = self.tracking.adopt()?;
        let now = kernel_clock().as_secs() as u32;
        for port in unknown {
            self.tracking.marks.distrust(port, now);
        }
        for slot in unarmed {
            self.tracking.marks.arm(slot, true);
        }
        Ok(())
    }

    /// Returns whether the effective generation tracks flows, so that foreign flows are marked.
    fn is_marking(&self) -> bool {
        let control = self.control.effective();
        control.generation != 0 && control.return_traffic == ReturnTraffic::Track
    }

    /// Returns the slots that have a flow tracker and in which it may not create UDP flows yet.
    fn unarmed(&self) -> Result<Vec<u32>> {
        let mut slots = self.interfaces.tracked()?;
        slots.retain(|slot| !self.tracking.marks.is_armed(*slot));
        Ok(slots)
    }
}

/// Records the flows of this host's client sockets in the flow table.
fn adopt(flows: &mut Flows, marks: &Marks) -> Result<Vec<u16>> {
    let read = sockets::read().and_then(|sockets| Ok((sockets, sockets::own_ports()?)));
    let (sockets, own_ports) = match read {
        Ok(read) => read,
        Err(error) => {
            warn!(
                "{error:#}; connections that this host opened before the filter started are not in the flow table, so their return traffic is dropped until the connections are reopened"
            );
            return Ok((0..=u16::MAX).collect());
        }
    };
    let evidence = Evidence::from_sockets(&sockets, &own_ports);
    let now = kernel_clock().as_secs() as u32;
    let mut adopted = 0;
    for own in &evidence.own {
        let Some(flow) = flow_of(own) else {
            continue;
        };
        let entry = match (own.protocol, own.phase) {
            (TCP, Phase::Opening) => FlowEntry::partial(now, false),
            (TCP, Phase::Closing) => FlowEntry::partial(now, true),
            (protocol, _) => FlowEntry::open(protocol, now),
        };
        if flows.adopt(&flow, entry, now)? {
            marks.expect(
                flow.protocol,
                flow.local_port,
                now + max_lifetime(flow.protocol),
            );
            adopted += 1;
        }
    }
    if adopted != 0 {
        info!(
            "added {adopted} client flows of this host that are older than the filter to the flow table"
        );
    }
    Ok(evidence.unknown_ports.into_iter().collect())
}

fn flow_of(own: &OwnFlow) -> Option<Flow> {
    let ends = match (own.local, own.remote) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) | (SocketAddr::V6(_), SocketAddr::V6(_)) => {
            (own.local, own.remote)
        }
        _ => return None, // no packet has both
    };
    Some(Flow::between(
        Address::from(ends.0.ip()),
        Address::from(ends.1.ip()),
        own.protocol,
        (ends.0.port(), ends.1.port()),
    ))
}

/// Returns the UDP ports whose flows `before` does not record on some interface, and `after` does.
///
/// Flows from a port are recorded if no service covers the port, or if this host also connects from the service's
/// ports.
fn newly_recorded(before: &ServiceTable, after: &ServiceTable) -> Vec<u16> {
    // By service: the slots of the interfaces on which flows from its ports are not recorded.
    let rows = |table: &ServiceTable| -> Vec<u64> {
        let unrecorded = |id: usize| {
            let slots = table.interfaces.iter().enumerate();
            slots.fold(0, |unrecorded, (slot, row)| {
                let service = row.effective[id];
                let is_served =
                    service != 0 && !table.volatile().is_shared(slot, service_set(service));
                unrecorded | u64::from(is_served) << slot
            })
        };
        (0..1 << 8).map(unrecorded).collect()
    };
    let (rows_before, rows_after) = (rows(before), rows(after));
    (0..=u16::MAX)
        .zip(before.udp.iter().zip(&after.udp))
        .filter(|(_, (before, after))| {
            rows_before[usize::from(**before)] & !rows_after[usize::from(**after)] != 0
        })
        .map(|(port, _)| port)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ports: &[(usize, u8)], here: &[(usize, u8)]) -> Box<ServiceTable> {
        let mut table = Box::new(ServiceTable::EMPTY);
        for (port, id) in ports {
            table.udp[*port] = *id;
        }
        for (slot, id) in here {
            table.interfaces[*slot].effective[usize::from(*id)] = *id;
        }
        table
    }

    #[test]
    fn ports_whose_flows_are_recorded_from_now_on() {
        let both = [(0, 1), (1, 1), (0, 2), (1, 2)];
        let before = table(&[(53, 1), (123, 2)], &both);
        for (after, expected) in [
            (table(&[(53, 1), (123, 2)], &both), &[][..]),
            (table(&[(53, 2), (123, 1)], &both), &[]),
            (table(&[(123, 1)], &both), &[53]),
            (table(&[], &[]), &[53, 123]),
            // On one of two interfaces.
            (
                table(&[(53, 1), (123, 2)], &[(0, 1), (0, 2), (1, 2)]),
                &[53],
            ),
        ] {
            assert_eq!(newly_recorded(&before, &after), expected);
        }
        assert_eq!(newly_recorded(&table(&[], &[]), &before), &[] as &[u16]);
        // Covered before and after, but this host connects from there as well from now on.
        let mut shared = table(&[(53, 1), (123, 2)], &both);
        shared.interfaces[1].shared = service_set(1);
        assert_eq!(newly_recorded(&before, &shared), &[53]);
        assert_eq!(newly_recorded(&shared, &before), &[] as &[u16]);
    }
}
