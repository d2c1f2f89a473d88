//! The programs that exist to be measured (`tests/ebpf`), loaded: their maps filled, their bursts run, their
//! counts read.

use std::fmt::{Display, Write as _};
use std::mem::offset_of;
use std::path::{Path, PathBuf};

use allowlist_common::abi::{self, GenerationTables, Grant};
use allowlist_tests::lab::Scratch;
use allowlist_user::compile::{Names, Tables, compile};
use allowlist_user::config::Config;
use allowlist_user::dataplane::{Dataplane, View};
use allowlist_user::policy::{Feed, Snapshot};
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, MapData, PerCpuArray};
use aya::programs::{ProgramInfo, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::traffic::{Family, List};

/// The object that `tests/ebpf` compiles to.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/allowlist-bench-ebpf"));

/// How many addresses the programs have to take from; theirs, repeated.
pub(crate) const ADDRESSES: usize = 1 << 20;

/// What a program says to drop a packet.
pub(crate) const XDP_DROP: u32 = 1;

/// What the programs counted, on all CPUs; theirs, repeated.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) taken: u64,
    pub(crate) found: u64,
    pub(crate) dropped: u64,
    sum: u64,
}

/// What the kernel made of a program.
pub(crate) struct Size {
    /// Bytes of machine code.
    pub(crate) code: u32,
    /// As the kernel has them after it has put in what it knows better.
    pub(crate) instructions: u32,
    /// That the verifier walked.
    pub(crate) walked: u32,
}

#[expect(unsafe_code, reason = "maps' contents are read as this")]
// SAFETY: integers without padding, so any bytes are one.
unsafe impl aya::Pod for Tally {}

/// All programs and maps once; `room` is how many entries maps are made for.
///
/// Forget it (`mem::forget`) where it holds many prefixes and something is measured afterwards: the kernel
/// takes a CPU for as long as it frees them.
pub(crate) fn load(room: &[(&str, u32)]) -> Result<Ebpf> {
    load_with(room, None)
}

/// The same, with a range table that is in force.
pub(crate) fn load_with(room: &[(&str, u32)], table: Option<&RangeTable>) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    if let Some(table) = table {
        loader
            .map_pin_path("TABLES", &table.pin)
            .override_global(abi::GLOBAL_POOL, &table.pool, true)
            .override_global("SLOT", &table.slot, true);
    }
    for (map, entries) in room {
        loader.map_max_entries(map, (*entries).max(1));
    }
    let mut object = loader
        .load(OBJECT)
        .context("the kernel does not take the benchmark's programs")?;
    for (name, program) in object.programs_mut() {
        let program: &mut Xdp = program.try_into()?;
        program
            .load()
            .with_context(|| format!("the kernel does not take the benchmark's {name}"))?;
    }
    Ok(object)
}

pub(crate) fn program<'a>(object: &'a Ebpf, name: &str) -> Result<&'a Xdp> {
    let program = object
        .program(name)
        .with_context(|| format!("the benchmark has no program {name}"))?;
    Ok(program.try_into()?)
}

/// What comes, in this order, and again from the start.
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
    let addresses: Box<[T; N]> = addresses
        .try_into()
        .map_err(|other: Vec<T>| anyhow::anyhow!("{} addresses", other.len()))?;
    let map = object.map_mut(name).with_context(|| format!("no {name}"))?;
    let mut array: Array<&mut MapData, [T; N]> = map.try_into()?;
    array.set(0, addresses, 0)?;
    Ok(())
}

/// A list in the range table that ships, by the code that ships.
pub(crate) struct RangeTable {
    /// Of the map that holds it, and the slot there.
    pin: PathBuf,
    slot: u32,
    /// Words of its pool.
    pool: u32,
    /// Bytes of its roots and its pool, spare room included; the services beside them are not counted.
    pub(crate) bytes: u64,
    _dataplane: Dataplane,
    _scratch: Scratch,
}

/// Sources that a list is dealt out to, so that what is next to each other is told apart.
const SOURCES: usize = 16;

/// A list in force, by the code that ships.
pub(crate) struct InForce {
    pub(crate) config: Config,
    pub(crate) dataplane: Dataplane,
    pub(crate) scratch: Scratch,
}

impl InForce {
    /// A policy with these keys and services, whose sources are named `s0` to `s15`, over a list.
    pub(crate) fn of(list: &List, keys_and_services: &str) -> Result<Self> {
        let mut text = String::from(keys_and_services);
        for source in 0..SOURCES {
            write!(text, "\n[sources.s{source}]\nprefixes = ['192.0.2.1']")?;
        }
        let config = Config::parse(&text, Path::new("bench"))?;
        let scratch = Scratch::new()?;
        let room = config.rules.tracks().then_some(config.max_flows);
        let dataplane = Dataplane::open(scratch.pin_dir(), room)?;
        let mut in_force = Self {
            config,
            dataplane,
            scratch,
        };
        let tables = in_force.compile(&Self::snapshot(list, None))?;
        in_force.publish(&tables)?;
        Ok(in_force)
    }

    /// A list as what its sources had, with one prefix more.
    pub(crate) fn snapshot(list: &List, more: Option<IpNet>) -> Snapshot {
        let mut lists = vec![Vec::new(); SOURCES];
        for (place, prefix) in list.prefixes.iter().enumerate() {
            lists[place % SOURCES].push(prefix.net(list.family));
        }
        lists[0].extend(more);
        let feeds = lists.into_iter().enumerate().map(|(source, prefixes)| {
            let feed = Feed::new(prefixes, Timestamp::UNIX_EPOCH);
            (format!("s{source}"), feed)
        });
        feeds.collect()
    }

    pub(crate) fn compile(&self, snapshot: &Snapshot) -> Result<Tables> {
        let names = Names::default();
        Ok(compile(&self.config.policy, snapshot, u32::MAX, &names)?)
    }

    pub(crate) fn publish(&mut self, tables: &Tables) -> Result<()> {
        let config = &self.config;
        self.dataplane
            .publish(tables, config.mode, &config.rules, &[])?;
        Ok(())
    }

    /// The sources, as a service's `allow` lists them.
    pub(crate) fn sources() -> String {
        let names: Vec<_> = (0..SOURCES).map(|source| format!("'s{source}'")).collect();
        names.join(", ")
    }
}

impl RangeTable {
    pub(crate) fn of(list: &List) -> Result<Self> {
        let sources = InForce::sources();
        let policy = format!("[services.web]\nports = ['tcp/443']\nallow = [{sources}]\n");
        let InForce {
            dataplane, scratch, ..
        } = InForce::of(list, &policy)?;
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

/// The room that [`fill_trie`] takes.
pub(crate) fn trie_room(list: &List) -> (&'static str, u32) {
    (trie_name(list.family), list.prefixes.len() as u32)
}

/// Puts a list into the trie of its family.
///
/// # Returns
/// Bytes of memory, as the kernel says.
pub(crate) fn fill_trie(object: &mut Ebpf, list: &List) -> Result<u64> {
    let name = trie_name(list.family);
    let map = object.map_mut(name).with_context(|| format!("no {name}"))?;
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

const fn trie_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "TRIE_V4",
        Family::V6 => "TRIE_V6",
    }
}

/// Bytes that a map takes, as the kernel says.
pub(crate) fn memory(object: &Ebpf, map: &str) -> Result<u64> {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let map = object.map(map).with_context(|| format!("no {map}"))?;
    let data = match map {
        aya::maps::Map::Array(data) | aya::maps::Map::LpmTrie(data) => data,
        other => bail!("no memory is known of {other:?}"),
    };
    let path = format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(bytes
        .context("the kernel names no memory")?
        .trim()
        .parse()?)
}

/// Nanoseconds a run, over a burst of runs.
pub(crate) fn cost(program: &Xdp, frame: &[u8], burst: u32) -> Result<f64> {
    let options = TestRunOptions {
        data_in: Some(frame),
        repeat: burst,
        ..TestRunOptions::default()
    };
    let took = program.test_run(options)?.duration;
    ensure!(
        !took.is_zero(),
        "the kernel measured nothing; give a larger --burst"
    );
    // The kernel says whole nanoseconds, in 32 bits.
    Ok(f64::from(u32::try_from(took.as_nanos())?))
}

/// What a program says to a frame.
pub(crate) fn verdict(program: &Xdp, frame: &[u8]) -> Result<u32> {
    let options = TestRunOptions {
        data_in: Some(frame),
        ..TestRunOptions::default()
    };
    Ok(program.test_run(options)?.return_value)
}

/// Whether a program does what is measured: it drops, and finds in a burst of lookups what it should.
pub(crate) fn check(program: &Xdp, name: impl Display, frame: &[u8]) -> Result<()> {
    let verdict = verdict(program, frame)?;
    ensure!(verdict == XDP_DROP, "{name} said {verdict}, and not drop");
    Ok(())
}

pub(crate) fn tally(object: &Ebpf) -> Result<Tally> {
    let map = object.map("TALLY").context("no TALLY")?;
    let array: PerCpuArray<&MapData, Tally> = map.try_into()?;
    let here = array.get(&0, 0)?;
    Ok(here.iter().fold(Tally::default(), |sum, cpu| Tally {
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
        walked: info.verified_instruction_count().unwrap_or(0),
    })
}
