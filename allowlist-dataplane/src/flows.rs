//! The tables of this host's flows, at the configured size.
//!
//! A kernel map cannot grow, so another size requires another map. The pin of the old map is renamed, its flows are
//! copied before any program uses the new map, and flows that were recorded meanwhile are copied once all programs use
//! it. Invariant: if a process ends in between, the next process finds either map and continues.

use allowlist_common::abi;
use allowlist_common::flow::{Flow, FlowEntry};
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError};
use log::{info, warn};

use super::pins::{Pins, is_pinned};
use super::{Dataplane, load};
use crate::error::{Context as _, Result};

/// The number of entries of a flow table that is not used, since a map cannot be empty.
pub(super) const UNUSED: u32 = 1;

/// The names of the maps of flows and of their peers, each with `max_flows` entries: a flow has at most one peer, so
/// neither map fills before the other.
pub(super) const TABLES: [&str; 2] = [abi::FLOWS, abi::PEERS];

/// A map from flows to their entries.
pub(super) type Table = HashMap<MapData, Flow, FlowEntry>;

/// The maps of this host's flows and of their peers.
pub(super) struct Flows {
    own: Table,
    peers: Table,
}

impl Flows {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self> {
        let mut take = |name: &str| -> Result<Table> {
            let map = object.take_map(name).with_context(|| {
                format!("the embedded eBPF object has no map {name}; reinstall allowlist")
            })?;
            Ok(map.try_into()?)
        };
        Ok(Self {
            own: take(abi::FLOWS)?,
            peers: take(abi::PEERS)?,
        })
    }

    /// Records a flow of this host, unless the table has an entry for it that has not expired at `now`, in seconds of
    /// the kernel programs' clock.
    ///
    /// Returns whether the flow was recorded.
    pub(super) fn adopt(&mut self, flow: &Flow, entry: FlowEntry, now: u32) -> Result<bool> {
        match self.own.get(flow, 0) {
            Ok(known) if known.is_alive(now) => return Ok(false),
            Ok(_) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error).context("cannot read the flow table"),
        }
        self.own
            .insert(flow, entry, 0)
            .and_then(|()| {
                let peer = FlowEntry::open(flow.protocol, now);
                self.peers.insert(flow.peer(), peer, 0)
            })
            .context("cannot write the flow table")?;
        Ok(true)
    }

    /// Removes all flows and peers.
    pub(super) fn clear(&mut self) -> Result<()> {
        for table in [&mut self.own, &mut self.peers] {
            remove_where(table, |_| true).context("cannot clear the flow table")?;
        }
        Ok(())
    }

    /// Copies flows from the old tables that the new tables do not have.
    ///
    /// Returns the number of copied flows; `None` if there is no old table.
    pub(super) fn copy(&mut self, pins: &Pins) -> Result<Option<u32>> {
        let flows = copy(pins, abi::FLOWS, &mut self.own)?;
        copy(pins, abi::PEERS, &mut self.peers)?;
        Ok(flows)
    }
}

/// Removes the flows for which `is_gone` returns true, and returns them with their entries.
pub(super) fn remove_where(
    table: &mut Table,
    is_gone: impl Fn(&Flow) -> bool,
) -> Result<Vec<(Flow, FlowEntry)>, MapError> {
    let all = table.iter().flatten(); // others may come and go during that
    let found: Vec<_> = all.filter(|(flow, _)| is_gone(flow)).collect();
    for (flow, _) in &found {
        match table.remove(flow) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Returns whether a map error states that the entry does not exist.
fn is_missing(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error)
        if error.io_error.raw_os_error() == Some(libc::ENOENT))
}

/// Renames the pins of flow tables whose maximum number of entries is not `room`, so that new tables can be pinned.
///
/// If `room` is `None`, because flows are not tracked, tables of any size stay pinned, because a failed start goes back
/// to the policy that uses them.
pub(super) fn back_up_resized(pins: &Pins, room: Option<u32>) -> Result<()> {
    let Some(room) = room else {
        return Ok(());
    };
    for name in TABLES {
        if is_pinned(&pins.map(name))? && pins.open_data(name)?.info()?.max_entries() != room {
            pins.back_up(name)?;
        }
    }
    Ok(())
}

/// Undoes [`back_up_resized`] after a failed start.
pub(super) fn restore_backups(pins: &Pins) {
    for name in TABLES {
        if let Err(error) = pins.restore_backup(name) {
            warn!("{error:#}");
        }
    }
}

fn copy(pins: &Pins, name: &str, new: &mut Table) -> Result<Option<u32>> {
    const BPF_NOEXIST: u64 = 1;
    let aside = pins.backup_path(name);
    if !is_pinned(&aside)? {
        return Ok(None);
    }
    let old = MapData::from_pin(aside).with_context(|| {
        format!("cannot open the previous map {name}, from which the flows are copied")
    })?;
    let old: Table = Map::from_map_data(old)?.try_into()?;
    let mut copied = 0;
    // The table evicts older flows if it is full; flows start and end meanwhile.
    for (flow, tracked) in old.iter().flatten() {
        copied += u32::from(new.insert(flow, tracked, BPF_NOEXIST).is_ok());
    }
    Ok(Some(copied))
}

impl Dataplane {
    /// Sets the maximum number of entries in the flow table; `None` disables flow tracking.
    ///
    /// Afterwards attach every interface again, and call [`Self::finish_flow_migration`].
    pub fn track(&mut self, max_flows: Option<u32>) -> Result<()> {
        let _pin_lock = self.pins.lock_exclusive()?;
        back_up_resized(&self.pins, max_flows)?;
        let loaded = load(
            self.object,
            &self.pins,
            0,
            false,
            max_flows.unwrap_or(UNUSED),
        );
        let mut object = loaded.inspect_err(|_| restore_backups(&self.pins))?;
        *self.tracking.flows = Flows::take(&mut object)?;
        self.tracking.flows.copy(&self.pins)?;
        self.tracking.is_on = max_flows.is_some();
        for name in TABLES {
            self.keep_open(name)?;
        }
        Ok(())
    }

    /// Copies the remaining flows after a change of size, and removes the old tables.
    ///
    /// Call it once every program uses the new tables.
    pub fn finish_flow_migration(&mut self) -> Result<()> {
        let more = self.tracking.flows.copy(&self.pins)?;
        for name in TABLES {
            self.pins.unpin_backup(name)?;
        }
        if let Some(more) = more {
            info!(
                "resized the flow table to the new max_flows; {more} flows that began during the copy are copied too"
            );
        }
        Ok(())
    }
}
