//! The kernel's side as userspace sees it, and the only user of aya: maps, programs, links, pins.
//!
//! - this file writes: makes or adopts the maps, and publishes generations
//! - `attach` puts the program on an interface
//! - `egress` notes what is sent on it, where answers are to be told
//! - `flows` keeps the table of flows at its size
//! - `force` goes back to what was in force, and takes it off
//! - `view` reads, and needs no daemon
//! - `lookup` asks the generation in force what would become of a packet
//! - `link` asks what a pinned link is on, and takes it off
//! - `pins` knows where everything is pinned
//! - `trace` prints the program's log lines
//! - `verify` asks the kernel what it makes of the programs
//! - `watch` reads drop events
//!
//! Invariants: maps and links are pinned from the moment they exist, so the kernel goes on
//! filtering whatever becomes of this process; a publish changes one word, last, and what fails
//! before touches only the slot that no packet is looked up in. Knows nothing of sources, files or
//! time.

mod attach;
mod egress;
mod flows;
mod force;
mod link;
mod lookup;
mod pins;
mod trace;
mod verify;
mod view;
mod watch;

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use allowlist_common::abi::{
    self, Control, Grant, Interface, Keep, ReturnTraffic, ServiceTable, ServiceTraffic, Traffic,
};
use allowlist_common::verdict::Verdict;
use anyhow::{Context as _, Result, bail};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, ArrayOfMaps, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues};
use aya::programs::Xdp;
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};
use log::warn;
use memmap2::{MmapOptions, MmapRaw};

pub use self::attach::{Attached, AttachedIn};
pub use self::egress::Hook;
pub use self::force::{InForce, detach_all};
pub use self::lookup::Lookup;
pub use self::pins::require_privileges;
pub use self::trace::print_trace;
pub use self::verify::{Verified, verify};
pub use self::view::{Attachment, Entry, View, clock};
pub use self::watch::{Seen, Watch};
use crate::compile::Tables;
use crate::policy::{self, DefaultVerdict, Mode, Rules};
use flows::Flows;
use pins::Pins;

/// The object that allowlist-ebpf compiles to: part of this program, so it needs no other file.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/allowlist-ebpf"));

type Trie<K> = LpmTrie<MapData, K, Grant>;
type Services = Array<MapData, ServiceTable>;

/// The maps, open for writing. One process at a time may hold one for a pin folder.
pub struct Dataplane {
    pins: Pins,
    control: ControlWord,
    services: ArrayOfMaps<MapData, Services>,
    v4: ArrayOfMaps<MapData, Trie<[u8; 4]>>,
    v6: ArrayOfMaps<MapData, Trie<[u8; 16]>>,
    matches: PerCpuArray<MapData, Traffic>,
    service_counts: PerCpuArray<MapData, ServiceTraffic>,
    interfaces: Array<MapData, Interface>,
    flows: Flows,
    /// The service table in force, if this process published it.
    active: Option<Services>,
    /// Whether what this host sends is noted.
    tracks: bool,
}

impl Dataplane {
    /// Adopts the maps pinned under `pin_dir`, or makes and pins them. Filters nothing by itself.
    ///
    /// `max_flows` is how many flows of this host can be tracked at once; none is for not tracking.
    pub fn open(pin_dir: &Path, max_flows: Option<u32>) -> Result<Self> {
        let pins = Pins::create(pin_dir)?;
        let _changing = pins.change()?;
        flows::put_back(&pins)?; // a process may have ended between
        if pins.have_links() && !pins.are_whole() {
            bail!(
                "some of the maps under {} are gone while the filter is on; `allowlist detach` first",
                pin_dir.display()
            );
        }
        let wanted = max_flows.map(|flows| flows.saturating_mul(flows::ENTRIES));
        let room = wanted.unwrap_or(flows::UNUSED);
        flows::set_aside(&pins, wanted)?;
        let mut object = load(&pins, 0, false, room).inspect_err(|_| {
            if !pins.have_links() {
                let _ = pins.remove(); // half of the maps would be in the way of the next start
            } else if let Err(error) = flows::put_back(&pins) {
                warn!("{error:#}");
            }
        })?;
        let mut take = |name: &str| {
            object
                .take_map(name)
                .with_context(|| format!("the kernel object has no map {name}"))
        };
        let mut flows: Flows = take(abi::FLOWS)?.try_into()?;
        flows::copy(&pins, &mut flows)?;
        Ok(Self {
            control: ControlWord::map(take(abi::CONTROL)?)?,
            services: take(abi::SERVICES)?.try_into()?,
            v4: take(abi::SOURCES_V4)?.try_into()?,
            v6: take(abi::SOURCES_V6)?.try_into()?,
            matches: take(abi::MATCHES)?.try_into()?,
            service_counts: take(abi::SERVICE_COUNTS)?.try_into()?,
            interfaces: take(abi::INTERFACES)?.try_into()?,
            flows,
            active: None,
            tracks: max_flows.is_some(),
            pins,
        })
    }

    /// The generation in force; 0 before the first publish.
    pub fn generation(&self) -> u32 {
        self.control.load().generation
    }

    /// Makes `tables` the generation that every interface uses, for both families at once.
    ///
    /// New maps are filled first, then put into the slot that no packet is looked up in, and only
    /// then one store flips to it. On an error the generation in force stays in force.
    ///
    /// Services that are limited to some of `interfaces` are so from then on.
    ///
    /// # Returns
    /// The new generation's number.
    pub fn publish(
        &mut self,
        tables: &Tables,
        mode: Mode,
        rules: &Rules,
        interfaces: &[String],
    ) -> Result<u32> {
        let current = self.control.load();
        let idle = abi::SLOTS - 1 - current.slot;

        let mut table = tables.services.clone();
        for (name, here) in &tables.interfaces {
            if interfaces.contains(name) {
                table.interfaces[self.reserve(name)? as usize] = **here;
            }
        }
        let mut services = Services::create(1, 0).context("cannot make a service table")?;
        services.set(0, table.as_ref(), 0)?;
        let v4 = trie(
            tables.v4.iter().map(|(prefix, grant)| {
                let key = Key::new(prefix.prefix_len().into(), prefix.network().octets());
                (key, *grant)
            }),
            tables.v4.len(),
        )?;
        let v6 = trie(
            tables.v6.iter().map(|(prefix, grant)| {
                let key = Key::new(prefix.prefix_len().into(), prefix.network().octets());
                (key, *grant)
            }),
            tables.v6.len(),
        )?;

        self.wait_for_readers(current)?;
        self.services.set(idle, &services, 0)?;
        self.v4.set(idle, &v4, 0)?;
        self.v6.set(idle, &v6, 0)?;
        let next = Control {
            generation: current.generation.wrapping_add(1).max(1),
            slot: idle,
            default_verdict: match rules.default {
                DefaultVerdict::Pass => Verdict::Pass,
                DefaultVerdict::Drop => Verdict::Drop,
            },
            observe: mode == Mode::Observe,
            return_traffic: return_traffic(*rules),
            keep: keep(rules.keep),
        };
        self.control.store(next);
        self.active = Some(services);
        Ok(next.generation)
    }

    /// Changes whether verdicts are carried out: one store, and nothing else changes.
    pub fn set_mode(&mut self, mode: Mode) {
        self.control.store(Control {
            observe: mode == Mode::Observe,
            ..self.control.load()
        });
    }

    /// One more copy of the program for the interface in `slot`: loaded, and attached to nothing.
    pub fn load_program(&self, slot: u32, trace: bool) -> Result<Ebpf> {
        let mut object = self.load(slot, trace)?;
        let program: &mut Xdp = object
            .program_mut(abi::PROGRAM)
            .with_context(|| format!("the kernel object has no program {}", abi::PROGRAM))?
            .try_into()?;
        program
            .load()
            .context("the kernel refused the program (its verifier's log follows)")?;
        Ok(object)
    }

    fn load(&self, slot: u32, trace: bool) -> Result<Ebpf> {
        load(&self.pins, slot, trace, flows::UNUSED)
    }

    /// Sets what was counted by source and by service to nothing: for when nobody knows what the ids
    /// meant.
    pub fn forget_counts(&mut self) -> Result<()> {
        let cpus = nr_cpus().map_err(|(_, error)| error)?;
        for id in 0..abi::MAX_MATCHES {
            let nothing = PerCpuValues::try_from(vec![Traffic::default(); cpus])?;
            self.matches.set(id, nothing, 0)?;
        }
        for id in 0..abi::MAX_SERVICE_COUNTS {
            let nothing = PerCpuValues::try_from(vec![ServiceTraffic::default(); cpus])?;
            self.service_counts.set(id, nothing, 0)?;
        }
        Ok(())
    }

    /// Returns when no packet is being judged by a generation older than `current`.
    ///
    /// A packet that read the control word before the last flip may still be looking into the idle
    /// slot. Storing into an array of maps returns after an RCU grace period (the kernel's
    /// `maybe_wait_bpf_programs`), so storing what is there already waits for exactly that.
    fn wait_for_readers(&mut self, current: Control) -> Result<()> {
        /// Longer than any packet takes, also on a virtual machine that is not let run.
        const LONG: Duration = Duration::from_secs(1);
        match &self.active {
            Some(services) => self.services.set(current.slot, services, 0)?,
            None if current.generation == 0 => {}
            // Another process flipped last. Reading what is there takes CAP_SYS_ADMIN.
            None => match self.services.get(&current.slot, 0) {
                Ok(services) => self.services.set(current.slot, &services, 0)?,
                Err(_) => std::thread::sleep(LONG),
            },
        }
        Ok(())
    }
}

/// What counts as an answer: nothing needs to, where everything passes.
pub(crate) const fn return_traffic(rules: Rules) -> ReturnTraffic {
    match (rules.default, rules.return_traffic) {
        (DefaultVerdict::Pass, _) | (_, policy::ReturnTraffic::Off) => ReturnTraffic::Off,
        (_, policy::ReturnTraffic::Established) => ReturnTraffic::Established,
        (_, policy::ReturnTraffic::Track) => ReturnTraffic::Track,
    }
}

/// What is kept, as the kernel has it.
pub(crate) const fn keep(keep: policy::Keep) -> Keep {
    Keep::NONE
        .set(Keep::ARP, keep.arp)
        .set(Keep::NEIGHBOUR_DISCOVERY, keep.neighbour_discovery)
        .set(Keep::ICMP_ERRORS, keep.icmp_errors)
        .set(Keep::DHCP, keep.dhcp)
        .set(Keep::MULTICAST, keep.multicast)
        .set(Keep::NOT_IP, keep.not_ip)
}

/// A new trie with room for exactly what goes in. The kernel allocates its nodes one by one.
fn trie<K: aya::Pod>(
    entries: impl Iterator<Item = (Key<K>, Grant)>,
    length: usize,
) -> Result<Trie<K>> {
    const BPF_F_NO_PREALLOC: u32 = 1;
    let room = u32::try_from(length.max(1))?;
    let mut trie = Trie::create(room, BPF_F_NO_PREALLOC)
        .context("cannot make a prefix table in the kernel")?;
    for (key, grant) in entries {
        trie.insert(&key, grant, 0).with_context(|| {
            format!("the kernel took no more prefixes than some of {length}; is memory short?")
        })?;
    }
    Ok(trie)
}

/// One copy of the programs for the interface in `slot`, with the pinned maps, not yet loaded. Where
/// flows have no table yet it gets `room` for so many.
fn load(pins: &Pins, slot: u32, trace: bool, room: u32) -> Result<Ebpf> {
    let trace = u8::from(trace);
    let paths: Vec<_> = abi::PINNED
        .iter()
        .map(|name| (*name, pins.map(name)))
        .collect();
    let mut loader = EbpfLoader::new();
    loader
        .override_global(abi::GLOBAL_INTERFACE, &slot, true)
        .override_global(abi::GLOBAL_TRACE, &trace, true)
        .map_max_entries(abi::FLOWS, room);
    for (name, path) in &paths {
        loader.map_pin_path(name, path);
    }
    loader
        .load(OBJECT)
        .context("cannot make or open the kernel maps")
}

/// The control word, mapped into memory: the one store that must be atomic is a plain store, not
/// a copy by a system call.
struct ControlWord {
    memory: MmapRaw,
}

impl ControlWord {
    fn map(map: Map) -> Result<Self> {
        let Map::Array(array) = map else {
            bail!("the control word is not in an array");
        };
        let fd = array.fd().as_fd().as_raw_fd();
        let memory = MmapOptions::new()
            .len(size_of::<u64>())
            .map_raw(fd)
            .context("cannot map the control word into memory")?;
        Ok(Self { memory })
    }

    #[expect(unsafe_code, reason = "an atomic in memory shared with the kernel")]
    fn word(&self) -> &AtomicU64 {
        // SAFETY: the mapping is page-aligned, at least 8 bytes, and lives as long as `self`; the
        // kernel program only reads it, and every access from here is atomic.
        unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().cast()) }
    }

    fn load(&self) -> Control {
        Control::decode(self.word().load(Ordering::Acquire))
    }

    fn store(&self, control: Control) {
        self.word().store(control.encode(), Ordering::Release);
    }
}
