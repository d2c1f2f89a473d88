//! The table of flows at the size that is configured.
//!
//! A kernel's map cannot grow. Another size takes another map: the old one is moved aside, its flows are
//! copied before any program uses the new one, and once more when all do, for those that were noted
//! meanwhile. Invariant: where a process ends between, the next one finds either table and goes on.

use allowlist_common::abi;
use allowlist_common::flow::{Flow, Tracked};
use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use log::{info, warn};

use super::pins::{Pins, is_pinned};
use super::{Dataplane, load};

/// The room of a table that nobody uses.
pub(super) const UNUSED: u32 = 1;

/// Entries that a flow takes: its own and its peer's, which it mostly has for itself.
pub(super) const ENTRIES: u32 = 2;

/// The table.
pub(super) type Flows = HashMap<MapData, Flow, Tracked>;

/// Moves the pinned table aside if it has not this room. Where none is wanted, one that is there stays
/// as it is: a start that fails goes back to it.
pub(super) fn set_aside(pins: &Pins, room: Option<u32>) -> Result<()> {
    let pin = pins.map(abi::FLOWS);
    let Some(room) = room else {
        return Ok(());
    };
    if !is_pinned(&pin)? {
        return Ok(());
    }
    let had = pins.open_data(abi::FLOWS)?.info()?.max_entries();
    if had != room {
        pins.move_aside(abi::FLOWS)?;
    }
    Ok(())
}

/// Copies what the new table does not have.
///
/// # Returns
/// How many flows and peers; `None` where there is no old table.
pub(super) fn copy(pins: &Pins, new: &mut Flows) -> Result<Option<u32>> {
    const BPF_NOEXIST: u64 = 1;
    let aside = pins.aside(abi::FLOWS);
    if !is_pinned(&aside)? {
        return Ok(None);
    }
    let old = MapData::from_pin(aside).context("cannot open the table of flows from before")?;
    let old: Flows = Map::from_map_data(old)?.try_into()?;
    let mut copied = 0;
    // Those that do not fit push older ones out; others come and go meanwhile.
    for (flow, tracked) in old.iter().flatten() {
        copied += u32::from(new.insert(flow, tracked, BPF_NOEXIST).is_ok());
    }
    Ok(Some(copied))
}

impl Dataplane {
    /// Changes whether what this host sends is noted, and how many flows there is room for. Every interface
    /// is to be attached anew then, and [`Self::settle`] called.
    pub fn track(&mut self, max_flows: Option<u32>) -> Result<()> {
        let _changing = self.pins.change()?;
        let wanted = max_flows.map(|flows| flows.saturating_mul(ENTRIES));
        set_aside(&self.pins, wanted)?;
        let loaded = load(&self.pins, 0, false, wanted.unwrap_or(UNUSED));
        let mut object = loaded.inspect_err(|_| {
            if let Err(error) = self.pins.put_back(abi::FLOWS) {
                warn!("{error:#}");
            }
        })?;
        let flows = object
            .take_map(abi::FLOWS)
            .context("the kernel object has no table of flows")?;
        self.flows = flows.try_into()?;
        copy(&self.pins, &mut self.flows)?;
        self.tracks = max_flows.is_some();
        self.keep_open(abi::FLOWS)
    }

    /// Call it when every program uses the maps of this object: the last flows move to a table of another
    /// size, if there is one, and the old one goes.
    pub fn settle(&mut self) -> Result<()> {
        if let Some(more) = copy(&self.pins, &mut self.flows)? {
            info!("the room for flows changed, and they moved; {more} at the last moment");
            self.pins.unpin_aside(abi::FLOWS)?;
        }
        Ok(())
    }
}
