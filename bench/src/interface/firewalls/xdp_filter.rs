//! xdp-filter, from xdp-tools. It matches addresses, not prefixes, so its table gets the first address of each prefix. A
//! packet from another source costs one hash lookup, which does not depend on the addresses in the table.

use std::path::Path;

use allowlist_tests::lab::Testbed;
use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;

use super::{number_after, run};
use crate::interface::subject::Subject;
use crate::traffic::List;

pub(super) const NAME: &str = "xdp-filter";
/// The fixed number of entries of xdp-filter's address table.
pub(super) const MOST: usize = 10_000;

/// The pin of xdp-filter's address table. All testbeds share the mount namespace, so only one can use it at a time.
const TABLE: &str = "/sys/fs/bpf/xdp-filter/filter_ipv4";
/// The value of a table entry that allows the address as a source (`MAP_FLAG_SRC` of xdp-filter).
const SOURCE: u64 = 1;

pub(super) fn make(name: &'static str, list: &List) -> Result<Subject> {
    let testbed = Testbed::new()?;
    let load = "load eth0 --policy deny --features ipv4 --mode native";
    run(&testbed, NAME, &load.split(' ').collect::<Vec<_>>())?;
    // The xdp-filter command adds only one address per process.
    let map = Map::from_map_data(
        MapData::from_pin(Path::new(TABLE))
            .with_context(|| format!("cannot open the pinned table {TABLE} of xdp-filter"))?,
    )?;
    let mut table: PerCpuHashMap<MapData, [u8; 4], u64> = map.try_into()?;
    let cpus = nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
    for prefix in &list.prefixes {
        let address = (prefix.address as u32).to_be_bytes();
        let values = PerCpuValues::try_from(vec![SOURCE; cpus])?;
        table.insert(address, values, 0)?;
    }
    let count = |testbed: &Testbed| {
        let text = run(testbed, NAME, &["status"])?;
        number_after(&text, "XDP_DROP")
    };
    Ok(Subject::new(name, testbed, Box::new(count)))
}
