//! The whole contents of a pinned hash map that kernel programs change.

use std::collections::BTreeMap;

use aya::maps::{HashMap, MapError};

use super::pins::Pins;
use crate::error::{Context as _, Result};

/// Returns the entries of a map. The kernel programs change it during the iteration, so that a key may be read twice.
pub(super) fn entries<K: aya::Pod + Ord, V: aya::Pod>(
    pins: &Pins,
    name: &str,
) -> Result<BTreeMap<K, V>> {
    let map: HashMap<_, K, V> = pins.open_map(name)?.try_into()?;
    let entries = map.iter().collect::<Result<_, _>>();
    entries.with_context(|| format!("cannot read the map {name}"))
}

/// Removes all entries of a map.
pub(super) fn clear<K: aya::Pod, V: aya::Pod>(pins: &Pins, name: &str) -> Result<()> {
    let what = || format!("cannot empty the map {name}");
    let mut map: HashMap<_, K, V> = pins.open_map(name)?.try_into()?;
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>().with_context(what)?;
    for key in keys {
        match map.remove(&key) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error).with_context(what),
        }
    }
    Ok(())
}
