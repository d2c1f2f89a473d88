//! The table of flows at the size that is configured.
//!
//! A kernel's map cannot grow. Another size takes another map, and the flows move: what is sent in the
//! moment between may have to be sent again before its answer is let in.

use std::fs;
use std::io::ErrorKind;

use allowlist_common::abi;
use allowlist_common::flow::{Flow, Tracked};
use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData, MapInfo};
use log::info;

use super::pins::Pins;

/// The room of a table that nobody uses.
pub(super) const UNUSED: u32 = 1;

/// A pinned table of another size, out of the way of a new one.
pub(super) struct Aside {
    had: u32,
}

const ASIDE: &str = "FLOWS_aside";

/// Moves the pinned table aside if it is of another size.
pub(super) fn set_aside(pins: &Pins, room: u32) -> Result<Option<Aside>> {
    let (pin, aside) = (pins.map(abi::FLOWS), pins.map(ASIDE));
    if aside.exists() && !pin.exists() {
        put_back(pins)?; // a process ended between
    }
    if !pin.exists() {
        return Ok(None);
    }
    let had = MapInfo::from_pin(&pin)
        .context("cannot ask for the table of flows")?
        .max_entries();
    if had == room {
        return Ok(None);
    }
    fs::rename(&pin, &aside).context("cannot move the table of flows aside")?;
    Ok(Some(Aside { had }))
}

/// After `set_aside`, if no new table was made.
pub(super) fn put_back(pins: &Pins) -> Result<()> {
    match fs::rename(pins.map(ASIDE), pins.map(abi::FLOWS)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context("cannot put the table of flows back")
        }
        _ => Ok(()),
    }
}

impl Aside {
    /// Moves the flows to the new table, and drops the old one.
    pub(super) fn move_to(self, pins: &Pins, new: Map) -> Result<()> {
        let what = "cannot move the flows to a table of another size";
        let old = Map::from_map_data(MapData::from_pin(pins.map(ASIDE)).context(what)?)?;
        let old: HashMap<MapData, Flow, Tracked> = old.try_into()?;
        let mut new: HashMap<MapData, Flow, Tracked> = new.try_into()?;
        let mut moved = 0_u32;
        // Those that do not fit push older ones out; others come and go meanwhile.
        for (flow, tracked) in old.iter().flatten() {
            new.insert(flow, tracked, 0).context(what)?;
            moved += 1;
        }
        pins.unpin(ASIDE)?;
        if self.had != UNUSED {
            info!(
                "the room for flows changed from {}; {moved} moved",
                self.had
            );
        }
        Ok(())
    }
}

/// Removes what an ended process may have left.
pub(super) fn remove(pins: &Pins) -> Result<()> {
    pins.unpin(ASIDE)
}
