//! xdp-filter, of xdp-tools. It knows addresses and no prefixes: so it gets the first address of each, which
//! is one lookup in a hash table for a packet from elsewhere, as it would be with any others.

use std::path::Path;

use allowlist_tests::lab::Testbed;
use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;

use super::{number_after, run};
use crate::interface::subject::Subject;
use crate::traffic::List;

pub(super) const NAME: &str = "xdp-filter";
/// What its table has room for, and not to be changed.
pub(super) const MOST: usize = 10_000;

/// Where it keeps its addresses, in the mount namespace that sites share; so there is one at a time.
const TABLE: &str = "/sys/fs/bpf/xdp-filter/filter_ipv4";
/// An address is let in as a source (its `MAP_FLAG_SRC`).
const SOURCE: u64 = 1;

pub(super) fn make(name: &'static str, list: &List) -> Result<Subject> {
    let site = Testbed::new()?;
    let load = "load eth0 --policy deny --features ipv4 --mode native";
    run(&site, NAME, &load.split(' ').collect::<Vec<_>>())?;
    // By its own command, one address takes a process.
    let map = Map::from_map_data(MapData::from_pin(Path::new(TABLE)).context(TABLE)?)?;
    let mut table: PerCpuHashMap<MapData, [u8; 4], u64> = map.try_into()?;
    let cpus = nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
    for prefix in &list.prefixes {
        let address = (prefix.address as u32).to_be_bytes();
        let values = PerCpuValues::try_from(vec![SOURCE; cpus])?;
        table.insert(address, values, 0)?;
    }
    let count = |site: &Testbed| {
        let text = run(site, NAME, &["status"])?;
        number_after(&text, "XDP_DROP")
    };
    Ok(Subject::new(name, site, Box::new(count)))
}
