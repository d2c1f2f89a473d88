//! Loads the benchmark's programs (`tests/ebpf`), fills their maps, runs them in bursts and reads their counters.

use std::fmt::{Display, Write as _};
use std::mem::offset_of;
use std::path::{Path, PathBuf};

use allowlist_common::abi::{self, GenerationTables, Grant};
use allowlist_dataplane::{Dataplane, View};
use allowlist_policy::compile::{IdTable, Tables, compile};
use allowlist_policy::{Feed, Snapshot};
use allowlist_tests::EBPF_OBJECT;
use allowlist_tests::lab::Scratch;
use allowlist_user::config::Config;
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, MapData, PerCpuArray};
use aya::programs::{Program, ProgramInfo, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::traffic::{Family, List};

/// The number of addresses in the map of source addresses; `tests/ebpf` has the same constant.
pub(crate) const ADDRESSES: usize = 1 << 20;

/// The return value of a program that drops the packet.
pub(crate) const XDP_DROP: u32 = 1;

/// The counters that a benchmark program keeps on one CPU, or their sum over all CPUs; `tests/ebpf` has the same type.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) taken: u64,
    pub(crate) found: u64,
    pub(crate) dropped: u64,
    sum: u64,
}

/// The sizes of a program, as the kernel reports them.
pub(crate) struct Size {
    /// The size of the machine code in bytes.
    pub(crate) code: u32,
    /// The number of BPF instructions after the kernel's rewriting (`xlated`).
    pub(crate) instructions: u32,
    /// The number of instructions that the verifier processed on all paths of the program.
    pub(crate) verified: u32,
}

#[expect(unsafe_code, reason = "aya reads map values of this type")]
// SAFETY: integers without padding, so any bytes are a valid value.
unsafe impl aya::Pod for Tally {}

/// Loads all benchmark programs and maps; `capacities` has the capacities of maps by name.
///
/// Pass the result to `mem::forget` if it has many prefixes and a measurement follows: the kernel occupies a CPU while
/// it frees them.
pub(crate) fn load(capacities: &[(&str, u32)]) -> Result<Ebpf> {
    load_with(capacities, None)
}

/// Loads all benchmark programs and maps, with `table`, if given, as the map of the range table.
pub(crate) fn load_with(capacities: &[(&str, u32)], table: Option<&RangeTable>) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    if let Some(table) = table {
        loader
            .map_pin_path("TABLES", &table.pin)
            .override_global(abi::GLOBAL_POOL, &table.pool, true)
            .override_global("SLOT", &table.slot, true);
    }
    for (map, entries) in capacities {
        loader.map_max_entries(map, (*entries).max(1));
    }
    let mut object = loader
        .load(EBPF_OBJECT)
        .context("the kernel refuses the benchmark's maps")?;
    for (name, program) in object.programs_mut() {
        let result = match program {
            Program::Xdp(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => bail!("the benchmark does not know the type of its program {name}"),
        };
        result.with_context(|| format!("the kernel refuses the benchmark's program {name}"))?;
    }
    Ok(object)
}

pub(crate) fn program<'a>(object: &'a Ebpf, name: &str) -> Result<&'a Xdp> {
    let program = object
        .program(name)
        .with_context(|| format!("the benchmark's eBPF object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// Sets the source addresses that the benchmark programs look up, in this order and cyclically.
pub(crate) fn set_addresses(object: &mut Ebpf, family: Family, addresses: &[u128]) -> Result<()> {
    match family {
        Family::V4 => {
            let words = addresses.iter().map(|address| *address as u32);
            set_array::<_, ADDRESSES>(object, "ADDRESSES_V4", words.collect())
        }
        Family::V6 => {
            let halves = |address: &u128| [(address >> 64) as u64, *address as u64];
            let halves = addresses.iter().flat_map(halves);
            set_array::<_, { ADDRESSES * 2 }>(object, "ADDRESSES_V6", halves.collect())
        }
    }
}

fn set_array<T: aya::Pod, const N: usize>(
    object: &mut Ebpf,
    name: &str,
    addresses: Vec<T>,
) -> Result<()> {
    let addresses: Box<[T; N]> = addresses.try_into().map_err(|other: Vec<T>| {
        anyhow::anyhow!("{} addresses do not fill the map {name}", other.len())
    })?;
    let map = object.map_mut(name).with_context(|| no_map(name))?;
    let mut array: Array<&mut MapData, [T; N]> = map.try_into()?;
    array.set(0, addresses, 0)?;
    Ok(())
}

/// A list in the product's range table, compiled and published by the product's code.
pub(crate) struct RangeTable {
    /// The path at which the map with the range table is pinned.
    pin: PathBuf,
    /// The slot of the active generation in the map.
    slot: u32,
    /// The size of the range table's pool, in 64-bit words.
    pool: u32,
    /// The size of the range table in bytes: its root tables, and its pool with the spare room, but not the services.
    pub(crate) bytes: u64,
    _dataplane: Dataplane,
    _scratch: Scratch,
}

/// The number of sources in the published policy. Prefixes are distributed over them, so that adjacent prefixes have
/// different match ids (the results of a lookup in the range table).
const SOURCES: usize = 16;

/// A list that the product's code has compiled and published.
pub(crate) struct PublishedList {
    pub(crate) config: Config,
    pub(crate) dataplane: Dataplane,
    pub(crate) scratch: Scratch,
}

impl PublishedList {
    /// Publishes a policy with these keys and services, whose sources `s0` to `s15` have the prefixes of a list.
    pub(crate) fn publish_policy(list: &List, keys_and_services: &str) -> Result<Self> {
        let mut text = String::from(keys_and_services);
        for source in 0..SOURCES {
            write!(text, "\n[sources.s{source}]\nprefixes = ['192.0.2.1']")?;
        }
        let config = Config::parse(&text, Path::new("bench"))?;
        let scratch = Scratch::new()?;
        let max_flows = config.rules.tracks().then_some(config.max_flows);
        let dataplane = Dataplane::open(scratch.pin_dir(), max_flows)?;
        let mut published = Self {
            config,
            dataplane,
            scratch,
        };
        let tables = published.compile(&Self::snapshot(list, None))?;
        published.publish(&tables)?;
        Ok(published)
    }

    /// Returns the lists of the sources: the prefixes of `list`, distributed over all sources, and `more` in the first
    /// one.
    pub(crate) fn snapshot(list: &List, more: Option<IpNet>) -> Snapshot {
        let mut lists = vec![Vec::new(); SOURCES];
        for (index, prefix) in list.prefixes.iter().enumerate() {
            lists[index % SOURCES].push(prefix.net(list.family));
        }
        lists[0].extend(more);
        let feeds = lists.into_iter().enumerate().map(|(source, prefixes)| {
            let feed = Feed::new(prefixes, Timestamp::UNIX_EPOCH);
            (format!("s{source}"), feed.into())
        });
        feeds.collect()
    }

    pub(crate) fn compile(&self, snapshot: &Snapshot) -> Result<Tables> {
        let ids = IdTable::default();
        Ok(compile(&self.config.policy, snapshot, u32::MAX, &ids)?)
    }

    pub(crate) fn publish(&mut self, tables: &Tables) -> Result<()> {
        let config = &self.config;
        self.dataplane
            .publish(tables, config.mode, &config.rules, &[], &[])?;
        Ok(())
    }

    /// Returns the names of the sources, for the `allow` key of a service.
    pub(crate) fn sources() -> String {
        let names: Vec<_> = (0..SOURCES).map(|source| format!("'s{source}'")).collect();
        names.join(", ")
    }
}

impl RangeTable {
    pub(crate) fn of(list: &List) -> Result<Self> {
        let sources = PublishedList::sources();
        let policy = format!("[services.web]\nports = ['tcp/443']\nallow = [{sources}]\n");
        let PublishedList {
            dataplane, scratch, ..
        } = PublishedList::publish_policy(list, &policy)?;
        let bytes = dataplane.table_bytes();
        let services = offset_of!(GenerationTables, reach);
        let pool = (bytes - size_of::<GenerationTables>()) / size_of::<u64>();
        Ok(Self {
            pin: scratch
                .pin_dir()
                .join(format!("v{}/{}", abi::VERSION, abi::GENERATIONS)),
            slot: View::open(scratch.pin_dir())?.control()?.slot,
            pool: pool.try_into()?,
            bytes: (bytes - services) as u64,
            _dataplane: dataplane,
            _scratch: scratch,
        })
    }
}

/// Returns the map that [`fill_trie`] writes, with the capacity for a list.
pub(crate) fn trie_capacity(list: &List) -> (&'static str, u32) {
    (trie_name(list.family), list.prefixes.len() as u32)
}

/// Writes a list to the trie of its family, and returns the memory of the trie in bytes, as the kernel reports it.
pub(crate) fn fill_trie(object: &mut Ebpf, list: &List) -> Result<u64> {
    let name = trie_name(list.family);
    let map = object.map_mut(name).with_context(|| no_map(name))?;
    let value = Grant::new(1, 1);
    match list.family {
        Family::V4 => {
            let mut trie: LpmTrie<&mut MapData, [u8; 4], Grant> = map.try_into()?;
            for prefix in &list.prefixes {
                let address = (prefix.address as u32).to_be_bytes();
                trie.insert(&Key::new(prefix.length.into(), address), value, 0)?;
            }
        }
        Family::V6 => {
            let mut trie: LpmTrie<&mut MapData, [u8; 16], Grant> = map.try_into()?;
            for prefix in &list.prefixes {
                let address = prefix.address.to_be_bytes();
                trie.insert(&Key::new(prefix.length.into(), address), value, 0)?;
            }
        }
    }
    memory(object, name)
}

/// Returns the error text for a map that the benchmark's eBPF object lacks.
pub(crate) fn no_map(name: &str) -> String {
    format!("the benchmark's eBPF object has no map {name}")
}

const fn trie_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "TRIE_V4",
        Family::V6 => "TRIE_V6",
    }
}

/// Returns the memory of a map in bytes, as the kernel reports it.
pub(crate) fn memory(object: &Ebpf, map: &str) -> Result<u64> {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let map = object.map(map).with_context(|| no_map(map))?;
    let data = match map {
        aya::maps::Map::Array(data) | aya::maps::Map::LpmTrie(data) => data,
        other => bail!("cannot measure the memory of a kernel map of this type: {other:?}"),
    };
    let path = format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(bytes
        .context("the kernel reports no `memlock` for the map, from which its memory is read")?
        .trim()
        .parse()?)
}

/// Runs a program in a burst, and returns the mean cost of a run in nanoseconds.
pub(crate) fn cost(program: &Xdp, frame: &[u8], burst: u32) -> Result<f64> {
    let options = TestRunOptions {
        data_in: Some(frame),
        repeat: burst,
        ..TestRunOptions::default()
    };
    let elapsed = program.test_run(options)?.duration;
    ensure!(
        !elapsed.is_zero(),
        "the kernel measured 0 ns for a run of the program: use a larger --burst"
    );
    // The kernel reports whole nanoseconds in 32 bits.
    Ok(f64::from(u32::try_from(elapsed.as_nanos())?))
}

/// Runs a program once, and returns its return value.
pub(crate) fn verdict(program: &Xdp, frame: &[u8]) -> Result<u32> {
    let options = TestRunOptions {
        data_in: Some(frame),
        ..TestRunOptions::default()
    };
    Ok(program.test_run(options)?.return_value)
}

/// Checks that a program drops the frame.
pub(crate) fn check(program: &Xdp, name: impl Display, frame: &[u8]) -> Result<()> {
    let verdict = verdict(program, frame)?;
    ensure!(
        verdict == XDP_DROP,
        "program {name}: the verdict on the benchmark's packet is {verdict}, not {XDP_DROP} (drop)"
    );
    Ok(())
}

pub(crate) fn tally(object: &Ebpf) -> Result<Tally> {
    let map = object.map("TALLY").with_context(|| no_map("TALLY"))?;
    let array: PerCpuArray<&MapData, Tally> = map.try_into()?;
    let cpus = array.get(&0, 0)?;
    Ok(cpus.iter().fold(Tally::default(), |sum, cpu| Tally {
        taken: sum.taken.wrapping_add(cpu.taken),
        found: sum.found.wrapping_add(cpu.found),
        dropped: sum.dropped.wrapping_add(cpu.dropped),
        sum: sum.sum.wrapping_add(cpu.sum),
    }))
}

pub(crate) fn size(program: &Xdp) -> Result<Size> {
    let info: ProgramInfo = program.info()?;
    Ok(Size {
        code: info.size_jitted(),
        instructions: info.size_translated().unwrap_or(0) / 8,
        verified: info.verified_instruction_count().unwrap_or(0),
    })
}
