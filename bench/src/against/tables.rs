//! Writes one policy into the maps of an object file, of this or of an older ABI version.
//!
//! Each object has its own maps, of the sizes in the object file; this build's policy compiler produces their contents.
//! In the tables of a generation, the end of each interface row may be longer or shorter, because no packet of this
//! measure needs that part. Any other difference in size is an error.

use std::fmt::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use allowlist_common::abi::{
    self, Control, GenerationTables, InterfaceServices, MIN_POOL_WORDS, ReturnTraffic, ServiceTable,
};
use allowlist_common::verdict::Verdict;
use allowlist_policy::compile::{IdTable, RangeTable, Tables, compile};
use allowlist_tests::model::static_snapshot;
use allowlist_user::config::Config;
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, Map, MapData};
use aya::{Ebpf, EbpfLoader};

use crate::traffic::{Family, List, Traffic};

/// The number of listed prefixes of each family; their tables fit into the smallest pool.
pub(super) const PREFIXES: usize = 500;
/// The UDP and TCP port that the service of the policy covers.
pub(super) const PORT: u16 = 4_433;
const SEED: u64 = 20_261_129;

/// The generation slot into which the policy is written.
const SLOT: u32 = 0;
/// The names of the maps whose capacity depends on the configuration in some version of the filter.
const BY_CONFIGURATION: [&str; 3] = [abi::FLOWS, "PEERS", "FOREIGN"];
const ROOM: u32 = 1024;

/// The compiled policy of a closed host with one service.
pub(super) struct Policy {
    tables: Tables,
    ranges: RangeTable,
}

impl Policy {
    pub(super) fn new() -> Result<Self> {
        let mut prefixes = String::new();
        for family in Family::BOTH {
            for prefix in List::new(family, PREFIXES, SEED).prefixes {
                write!(prefixes, "'{}', ", prefix.net(family))?;
            }
        }
        let text = format!(
            "default = 'drop'\nreturn_traffic = 'off'\n\
             [services.web]\nports = ['udp/{PORT}', 'tcp/{PORT}']\nallow = ['list']\n\
             [sources.list]\nprefixes = [{prefixes}]\n"
        );
        let config = Config::parse(&text, Path::new("bench"))?;
        let snapshot = static_snapshot(&config.policy);
        let tables = compile(&config.policy, &snapshot, u32::MAX, &IdTable::default())?;
        let ranges = RangeTable::of(&tables.v4, &tables.v6);
        Ok(Self { tables, ranges })
    }
}

/// Returns the bytes of an address that the policy allows.
pub(super) fn listed(family: Family) -> Vec<u8> {
    let list = List::new(family, PREFIXES, SEED);
    let address = list.addresses(Traffic::Hit, 1, SEED).map(|all| all[0]);
    let address = address.expect("a list with prefixes");
    match family {
        Family::V4 => (address as u32).to_be_bytes().to_vec(),
        Family::V6 => address.to_be_bytes().to_vec(),
    }
}

/// The layout of the tables in an object file of the filter, which depends on its version.
pub(super) struct Layout {
    /// The size of one generation's tables with its pool, in bytes.
    generation: usize,
    /// The size of the end of an interface row ([`InterfaceServices`]), behind its services, in bytes.
    row_end: usize,
}

/// The default size of a pool, in 64-bit words.
const POOL: usize = MIN_POOL_WORDS as usize;

impl Layout {
    /// Reads the layout of an object's maps.
    ///
    /// # Errors
    /// Fails if a map is missing, or if this build cannot fill a map of its size.
    pub(super) fn of(object: &Ebpf) -> Result<Self> {
        let control = array(object, abi::CONTROL)?.info()?.value_size() as usize;
        ensure!(
            control == size_of::<[u64; 2]>(),
            "map {}: the older object has values of {control} bytes, this build of {}; compare with an object of a nearer version",
            abi::CONTROL,
            size_of::<[u64; 2]>()
        );
        let generation = array(object, abi::GENERATIONS)?.info()?.value_size() as usize;
        let Some(row_end) = row_end(generation) else {
            bail!(
                "map {}: the older object has values of {generation} bytes, this build of {OWN}, and not only the ends of the interface rows differ; compare with an object of a nearer version",
                abi::GENERATIONS
            );
        };
        Ok(Self {
            generation,
            row_end,
        })
    }

    /// Writes the policy to the first slot of the object's tables, and makes it the active generation.
    pub(super) fn fill(&self, object: &mut Ebpf, policy: &Policy) -> Result<()> {
        write_slot(array(object, abi::GENERATIONS)?, &self.bytes(policy)?)?;
        let control = Control {
            generation: 1,
            slot: SLOT,
            default_verdict: Verdict::Drop,
            return_traffic: ReturnTraffic::Off,
            ..Control::NONE
        };
        let map = object
            .map_mut(abi::CONTROL)
            .context("the object file has no map CONTROL; use an object of allowlist")?;
        let mut words: Array<&mut MapData, [u64; 2]> = map.try_into()?;
        words.set(0, [control.encode(), 0], 0)?;
        Ok(())
    }

    /// Returns the tables of a generation in the layout of this object.
    fn bytes(&self, policy: &Policy) -> Result<Vec<u8>> {
        let services = &policy.tables.services;
        let ranges = &policy.ranges;
        let mut bytes = Vec::with_capacity(self.generation);
        bytes.extend(services.tcp);
        bytes.extend(services.udp);
        bytes.extend(services.sctp);
        bytes.extend(services.protocol);
        for row in &services.interfaces {
            bytes.extend(row.effective);
            bytes.extend(vec![0; self.row_end]);
        }
        bytes.extend(services.counter_ids.iter().flat_map(|id| id.to_ne_bytes()));
        bytes.extend(ranges.reach.iter().flat_map(|set| set.to_ne_bytes()));
        bytes.extend(ranges.v4.iter().flat_map(|offset| offset.to_ne_bytes()));
        bytes.extend(ranges.v6.iter().flat_map(|offset| offset.to_ne_bytes()));
        ensure!(
            ranges.pool.len() <= POOL,
            "the list of the benchmark does not fit the smallest range table; use a shorter list in `against/tables.rs`"
        );
        bytes.extend(ranges.pool.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.resize(self.generation, 0);
        Ok(bytes)
    }
}

/// Loads an object file and creates its maps, without pinning them.
pub(super) fn load(object: &[u8]) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for name in BY_CONFIGURATION {
        loader.map_max_entries(name, ROOM);
    }
    loader.load(object).context(
        "cannot load the object file and create its maps (is it an eBPF object of allowlist?)",
    )
}

fn array<'a>(object: &'a Ebpf, name: &str) -> Result<&'a MapData> {
    match object.map(name) {
        Some(Map::Array(data)) => Ok(data),
        Some(_) => bail!(
            "map {name} of the older object is no array: the object is too old to compare with; use an object of a nearer version"
        ),
        None => bail!(
            "map {name} of the older object is missing: the object is too old, or not one of allowlist; use an object of a nearer version"
        ),
    }
}

/// The size in bytes of the services at the start of an interface row.
const SERVICES: usize = std::mem::offset_of!(InterfaceServices, fragment_services);
/// An upper bound, for any version, of the size in bytes of an interface row behind its services.
const LONGEST_END: usize = 256;

const _: () = assert!(
    std::mem::offset_of!(ServiceTable, interfaces) == 3 * (1 << 16) + (1 << 8),
    "ports and protocols precede the interface rows"
);

/// The size of one generation's tables in this build, in bytes.
const OWN: usize = size_of::<GenerationTables>() + POOL * size_of::<u64>();

/// Computes the size in bytes of the end of an interface row, behind its services, from the size of a whole generation
/// in bytes; `None` if another part differs from this build too.
fn row_end(generation: usize) -> Option<usize> {
    let rows = abi::MAX_INTERFACES as usize;
    let without_ends = OWN - rows * (size_of::<InterfaceServices>() - SERVICES);
    let ends = generation.checked_sub(without_ends)?;
    let row_end = ends / rows;
    (ends.is_multiple_of(rows * size_of::<u64>()) && row_end <= LONGEST_END).then_some(row_end)
}

/// Writes bytes to the first slot of a map that has the flag `BPF_F_MMAPABLE`.
#[expect(
    unsafe_code,
    reason = "aya writes only values whose size is known at compile time"
)]
fn write_slot(map: &MapData, bytes: &[u8]) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    let fd = map.fd().as_fd().as_raw_fd();
    let length = bytes.len().next_multiple_of(4096);
    // SAFETY: a new mapping of an open descriptor, at an address that the kernel chooses.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd,
            0,
        )
    };
    ensure!(
        at != libc::MAP_FAILED,
        "cannot map the tables into memory: {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: the mapping is long enough, no other code has its address, and no program runs on these tables yet.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.cast(), bytes.len());
        libc::munmap(at, length);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_ends_may_differ_by_whole_words() {
        let own = size_of::<InterfaceServices>() - SERVICES;
        let (rows, word) = (abi::MAX_INTERFACES as usize, size_of::<u64>());
        assert_eq!(row_end(OWN), Some(own));
        assert_eq!(row_end(OWN + rows * word), Some(own + word));
        assert_eq!(row_end(OWN - rows * word), Some(own - word));
        for other in [0, OWN - 1, OWN + word, OWN + (1 << 16), OWN * 2] {
            assert_eq!(row_end(other), None, "{other}");
        }
    }
}
