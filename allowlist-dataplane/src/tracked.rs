//! Lists and cuts tracked flows by their remote address, with the pinned maps and without a daemon.

use std::net::IpAddr;

use allowlist_common::abi;
use allowlist_common::flow::{Flow, FlowEntry};
use aya::maps::Map;
use ipnet::IpNet;

use super::clock::kernel_clock;
use super::flows::{Table, remove_where};
use super::view::View;
use crate::error::{Context as _, Result, bail};

/// Which side initiated a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// This host initiated the flow: answers pass.
    Own,
    /// The remote side initiated the flow, while all packets passed: its packets are not answers.
    Foreign,
    /// It is unknown which side initiated the flow: its packets are not answers.
    Unknown,
}

impl Side {
    /// Returns the name of the side, as in reports and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Foreign => "foreign",
            Self::Unknown => "unknown",
        }
    }
}

/// A flow in the kernel's flow tables that has not expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackedFlow {
    /// The addresses and ports of the flow.
    pub flow: Flow,
    /// The side that initiated the flow.
    pub side: Side,
    /// Whether this host has closed the flow, by a FIN or RST.
    pub is_closing: bool,
    /// The time until the flow expires, in seconds.
    pub remaining: u32,
}

impl TrackedFlow {
    fn new((flow, tracked): (Flow, FlowEntry), is_own: bool, now: u32) -> Option<Self> {
        tracked.is_alive(now).then(|| Self {
            flow,
            side: match (is_own, tracked.closing) {
                (true, _) => Side::Own,
                (false, 0) => Side::Foreign,
                (false, _) => Side::Unknown,
            },
            is_closing: is_own && tracked.closing != 0,
            remaining: tracked.expires - now,
        })
    }

    /// Returns the remote address.
    pub fn remote(&self) -> IpAddr {
        self.flow.remote_address().into()
    }

    /// Returns this host's address; `None` for a flow that this host did not initiate, because its entry may have no
    /// local address.
    pub fn local(&self) -> Option<IpAddr> {
        (self.side == Side::Own).then(|| self.flow.local_address().into())
    }
}

impl View {
    /// Returns the maximum number of this host's tracked flows, and the number of flows that have not expired.
    pub fn flows(&self) -> Result<(u32, usize)> {
        let map = self.pins.open_map(abi::FLOWS)?;
        let Map::LruHashMap(data) = &map else {
            bail!(
                "map {} has an unexpected type (expected BPF_MAP_TYPE_LRU_HASH)",
                abi::FLOWS
            );
        };
        let room = data.info()?.max_entries();
        let flows: Table = map.try_into()?;
        let now = kernel_clock().as_secs() as u32;
        let alive = flows.iter().flatten();
        Ok((
            room,
            alive.filter(|(_, tracked)| tracked.is_alive(now)).count(),
        ))
    }

    /// Returns the flows with a remote address in `prefix` that have not expired; for `None`, all such flows.
    ///
    /// The flows are sorted by [`Side`], remote address, protocol and ports, so those of this host come first.
    ///
    /// # Errors
    /// Fails if the maps cannot be opened.
    pub fn tracked(&self, prefix: Option<&IpNet>) -> Result<Vec<TrackedFlow>> {
        let read = |table: &Table| table.iter().flatten().collect();
        self.each_flow(prefix, |table, _| Ok(read(table)))
    }

    /// Removes the flows with a remote address in `prefix`, and their peers, from the kernel's tables.
    ///
    /// Returns the removed flows that had not expired.
    ///
    /// # Errors
    /// Fails if the maps cannot be opened or written.
    pub fn cut(&self, prefix: &IpNet) -> Result<Vec<TrackedFlow>> {
        let cut = self.each_flow(Some(prefix), |table, name| {
            remove_where(table, |flow| is_with(flow, prefix))
                .with_context(|| format!("cannot remove flows from the map {name}"))
        })?;
        let mut peers = self.table(abi::PEERS)?;
        remove_where(&mut peers, |flow| is_with(flow, prefix))
            .with_context(|| format!("cannot remove flows from the map {}", abi::PEERS))?;
        Ok(cut)
    }

    fn each_flow(
        &self,
        prefix: Option<&IpNet>,
        take: impl Fn(&mut Table, &str) -> Result<Vec<(Flow, FlowEntry)>>,
    ) -> Result<Vec<TrackedFlow>> {
        let now = kernel_clock().as_secs() as u32;
        let mut flows = Vec::new();
        for (name, is_own) in [(abi::FLOWS, true), (abi::FOREIGN, false)] {
            let found = take(&mut self.table(name)?, name)?;
            flows.extend(
                found
                    .into_iter()
                    .filter(|(flow, _)| prefix.is_none_or(|prefix| is_with(flow, prefix)))
                    .filter_map(|found| TrackedFlow::new(found, is_own, now)),
            );
        }
        let order = |one: &TrackedFlow| {
            let flow = &one.flow;
            (
                one.side,
                one.remote(),
                flow.protocol,
                flow.remote_port,
                flow.local_port,
            )
        };
        flows.sort_by_key(order);
        Ok(flows)
    }

    fn table(&self, name: &str) -> Result<Table> {
        Ok(self.pins.open_map(name)?.try_into()?)
    }
}

fn is_with(flow: &Flow, prefix: &IpNet) -> bool {
    prefix.contains(&IpAddr::from(flow.remote_address()))
}
