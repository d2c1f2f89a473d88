//! One policy in the maps of an object of this or of an older ABI version.
//!
//! Maps are the object's own, so each version is loaded with the sizes that it was built with; their contents come from the
//! shipped compiler. In the tables of a generation, the rows of interfaces may be longer or shorter at their end, which
//! judges no packet of this measure; any other difference in size is refused.

use std::fmt::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use allowlist_common::abi::{
    self, Control, GenerationTables, InterfaceServices, MIN_POOL_WORDS, ReturnTraffic, ServiceTable,
};
use allowlist_common::verdict::Verdict;
use allowlist_tests::model::static_snapshot;
use allowlist_user::compile::{Names, RangeTable, Tables, compile};
use allowlist_user::config::Config;
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, Map, MapData};
use aya::{Ebpf, EbpfLoader};

use crate::traffic::{Family, List, Traffic};

/// How many prefixes of each family are listed: their tables fit into the smallest pool.
pub(super) const PREFIXES: usize = 500;
/// The service's, by UDP and TCP.
pub(super) const PORT: u16 = 4_433;
const SEED: u64 = 20_261_129;

/// The slot that is filled.
const SLOT: u32 = 0;
/// Maps whose room goes by the configuration, in some version.
const BY_CONFIGURATION: [&str; 3] = [abi::FLOWS, "PEERS", "FOREIGN"];
const ROOM: u32 = 1024;

/// A closed host with one service, compiled.
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
        let tables = compile(&config.policy, &snapshot, u32::MAX, &Names::default())?;
        let ranges = RangeTable::of(&tables.v4, &tables.v6);
        Ok(Self { tables, ranges })
    }
}

/// The bytes of a listed address.
pub(super) fn listed(family: Family) -> Vec<u8> {
    let list = List::new(family, PREFIXES, SEED);
    let address = list.addresses(Traffic::Hit, 1, SEED).map(|all| all[0]);
    let address = address.expect("a list with prefixes");
    match family {
        Family::V4 => (address as u32).to_be_bytes().to_vec(),
        Family::V6 => address.to_be_bytes().to_vec(),
    }
}

/// How an object lays its tables out.
pub(super) struct Layout {
    /// Bytes of one generation's tables, its pool included.
    generation: usize,
    /// Bytes at the end of each interface's row, behind the services.
    row_end: usize,
}

/// Words of a pool, by default.
const POOL: usize = MIN_POOL_WORDS as usize;

impl Layout {
    /// # Errors
    /// Names the map that is missing, or of another size than this build can fill.
    pub(super) fn of(object: &Ebpf) -> Result<Self> {
        let control = array(object, abi::CONTROL)?.info()?.value_size() as usize;
        ensure!(
            control == size_of::<[u64; 2]>(),
            "its {} has values of {control} bytes, and this build's have {}: it cannot be filled; compare with an object of a nearer version",
            abi::CONTROL,
            size_of::<[u64; 2]>()
        );
        let generation = array(object, abi::GENERATIONS)?.info()?.value_size() as usize;
        let Some(row_end) = row_end(generation) else {
            bail!(
                "its {} has values of {generation} bytes, and this build's have {OWN}, which differ in more than the ends of the interfaces' rows: it cannot be filled; compare with an object of a nearer version",
                abi::GENERATIONS
            );
        };
        Ok(Self {
            generation,
            row_end,
        })
    }

    /// Puts the policy into the first slot, and makes it active.
    pub(super) fn fill(&self, object: &mut Ebpf, policy: &Policy) -> Result<()> {
        write_slot(array(object, abi::GENERATIONS)?, &self.bytes(policy)?)?;
        let control = Control {
            generation: 1,
            slot: SLOT,
            default_verdict: Verdict::Drop,
            return_traffic: ReturnTraffic::Off,
            ..Control::NONE
        };
        let map = object.map_mut(abi::CONTROL).context("no control word")?;
        let mut words: Array<&mut MapData, [u64; 2]> = map.try_into()?;
        words.set(0, [control.encode(), 0], 0)?;
        Ok(())
    }

    /// The tables of a generation as this object has them.
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
        bytes.extend(ranges.v4.iter().flat_map(|place| place.to_ne_bytes()));
        bytes.extend(ranges.v6.iter().flat_map(|place| place.to_ne_bytes()));
        ensure!(
            ranges.pool.len() <= POOL,
            "the list is too large for the smallest pool"
        );
        bytes.extend(ranges.pool.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.resize(self.generation, 0);
        Ok(bytes)
    }
}

/// An object's maps, which are its own and pinned nowhere.
pub(super) fn load(object: &[u8]) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for name in BY_CONFIGURATION {
        loader.map_max_entries(name, ROOM);
    }
    loader
        .load(object)
        .context("the kernel does not take its maps, or it is no eBPF object file")
}

fn array<'a>(object: &'a Ebpf, name: &str) -> Result<&'a MapData> {
    match object.map(name) {
        Some(Map::Array(data)) => Ok(data),
        Some(_) => bail!("its {name} is no array: it is too old to be compared with"),
        None => bail!("it has no map {name}: it is too old, or not allowlist's"),
    }
}

/// Bytes of an interface's row before its end: the services.
const SERVICES: usize = std::mem::offset_of!(InterfaceServices, fragment_services);
/// More than any version has behind them.
const LONGEST_END: usize = 256;

const _: () = assert!(
    std::mem::offset_of!(ServiceTable, interfaces) == 3 * (1 << 16) + (1 << 8),
    "ports and protocols come before the interfaces"
);

/// Bytes of one generation's tables in this build.
const OWN: usize = size_of::<GenerationTables>() + POOL * size_of::<u64>();

/// The bytes behind the services in each interface's row, by those of a whole generation; `None` if they differ from this
/// build's in anything else.
fn row_end(generation: usize) -> Option<usize> {
    let rows = abi::MAX_INTERFACES as usize;
    let without_ends = OWN - rows * (size_of::<InterfaceServices>() - SERVICES);
    let ends = generation.checked_sub(without_ends)?;
    let row_end = ends / rows;
    (ends.is_multiple_of(rows * size_of::<u64>()) && row_end <= LONGEST_END).then_some(row_end)
}

/// Writes to the first slot of a map that the kernel lets processes map into their memory.
#[expect(
    unsafe_code,
    reason = "aya writes values of a size that is known to the compiler alone"
)]
fn write_slot(map: &MapData, bytes: &[u8]) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    let fd = map.fd().as_fd().as_raw_fd();
    let length = bytes.len().next_multiple_of(4096);
    // SAFETY: a new mapping at an address of the kernel's choice, of a descriptor that is open.
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
    // SAFETY: the mapping is as long, no other code has its address, and no packet is judged by these tables yet.
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
    fn rows_may_end_later_or_sooner() {
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
