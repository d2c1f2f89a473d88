//! The tracked flows, listed and cut by the other side's address: from the pinned maps alone.

use std::net::IpAddr;

use crate::error::{Context as _, Result, bail};
use allowlist_common::abi;
use allowlist_common::flow::{Flow, FlowEntry};
use aya::maps::Map;
use ipnet::IpNet;

use super::clock::kernel_clock;
use super::flows::{Table, remove_where};
use super::view::View;

/// Which side initiated a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// This host: answers pass.
    Own,
    /// The other side, while everything passed: nothing answers it.
    Foreign,
    /// Unknown: nothing answers it.
    Unknown,
}

impl Side {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Foreign => "foreign",
            Self::Unknown => "unknown",
        }
    }
}

/// A flow in the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackedFlow {
    /// Its addresses and ports.
    pub flow: Flow,
    /// Which side initiated it.
    pub side: Side,
    /// Whether this host has closed it.
    pub is_closing: bool,
    /// Seconds until it expires.
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

    /// The other side's address.
    pub fn remote(&self) -> IpAddr {
        self.flow.remote_address().into()
    }

    /// This host's address; `None` for a flow that it did not initiate, since that may be any.
    pub fn local(&self) -> Option<IpAddr> {
        (self.side == Side::Own).then(|| self.flow.local_address().into())
    }
}

impl View {
    /// How many flows of this host can be tracked at once, and how many are alive.
    pub fn flows(&self) -> Result<(u32, usize)> {
        let map = self.pins.open_map(abi::FLOWS)?;
        let Map::LruHashMap(data) = &map else {
            bail!("map {} has an unexpected type", abi::FLOWS);
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

    /// The flows with the addresses of a prefix, or all: this host's own first, then by address and port.
    ///
    /// # Errors
    /// Where the maps cannot be opened.
    pub fn tracked(&self, prefix: Option<&IpNet>) -> Result<Vec<TrackedFlow>> {
        let read = |table: &Table| table.iter().flatten().collect();
        self.each_flow(prefix, |table, _| Ok(read(table)))
    }

    /// Removes the flows with the addresses of a prefix, and their peers, from the kernel's tables.
    ///
    /// Returns those that had not expired.
    ///
    /// # Errors
    /// Where the maps cannot be opened or written.
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
