//! The kernel's side as userspace sees it, and the only user of aya: maps, programs, links, pins.
//!
//! - this file makes or adopts the maps, and loads programs
//! - `publish` fills them, and flips from one generation to the next
//! - `guard` has the kernel go back by itself where a change is not confirmed
//! - `migrate` takes over from another version's program
//! - `attach` puts the program on an interface
//! - `egress` notes what is sent on it, where answers are to be told
//! - `flows` keeps the tables of flows at their size, `tracking` knows which flows from before are this host's own, and
//!   `tracked` lists and cuts them
//! - `force` goes back to what was in force, and takes it off
//! - `view` reads, and needs no daemon
//! - `lookup` asks the generation in force what would become of a packet
//! - `ranges` and `tries` are the two things that sources are looked up in
//! - `generations` are their tables, `slots` are maps of what else each has, and `memory` is a map's
//! - `words` are what it stores at once, `readers` waits for packets, `calls` are system calls that aya lacks
//! - `link` asks what a pinned link is on, and takes it off
//! - `pins` knows where everything is pinned
//! - `selfcheck` compares the kernel with the published state, `facts` reads both, `repair` makes pins again
//! - `trace` prints the program's log lines
//! - `verify` asks the kernel what it makes of the programs
//! - `watch` reads drop events
//!
//! Invariants: maps and links are pinned from the moment they exist, so the kernel goes on
//! filtering whatever becomes of this process. Knows nothing of sources or files.

mod attach;
mod clock;
mod commit_confirm;
mod control_map;
mod detach;
mod egress;
mod facts;
mod flows;
mod generations;
mod link;
mod lookup;
mod memory;
mod migrate;
mod mount;
mod new_link;
mod pins;
mod publish;
mod ranges;
mod rcu;
mod repair;
mod selfcheck;
mod slots;
mod snapshot;
mod sys;
mod trace;
mod tracked;
mod tracking;
mod tries;
mod verify;
mod view;
mod watch;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use allowlist_common::abi::{self, Control, Identity, Interface, ServiceTraffic, Traffic};
use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use aya::programs::Xdp;
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};
use log::warn;

pub use self::attach::{Attached, XdpMode, name_of_program};
pub use self::clock::kernel_clock;
pub use self::commit_confirm::PendingConfirm;
pub use self::detach::detach_all;
pub use self::egress::Hook;
pub use self::facts::require_namespace;
pub use self::lookup::Lookup;
pub use self::mount::has_private_pins;
pub use self::pins::{NothingPinned, require_privileges};
pub(crate) use self::publish::{keep, lookup, return_traffic};
pub use self::selfcheck::{Difference, DifferenceKind};
pub use self::snapshot::AppliedState;
pub use self::trace::print_trace;
pub use self::tracked::{Side, TrackedFlow};
pub use self::verify::{Verified, verify};
pub use self::view::{Attachment, Counted, Entry, View, by_all_names};
pub use self::watch::{Seen, Watch};
use crate::policy::Mode;
use control_map::{ControlMap, FallbackMap, PublishedControl, PublishedMap};
use flows::Flows;
use generations::Generations;
use migrate::PreviousVersion;
use pins::{Pins, is_pinned};
use publish::Published;
use rcu::GracePeriod;
use repair::OpenMaps;
use slots::Slots;
use sys::Access;
use tracking::Marks;
use tries::TrieSlots;

/// The object that allowlist-ebpf compiles to: part of this program, so it needs no other file.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/allowlist-ebpf"));

/// The object file of the kernel programs that this program carries.
pub fn object() -> &'static [u8] {
    OBJECT
}

/// The maps that another one of the same name may replace.
const MOVED: [&str; 3] = [abi::FLOWS, abi::PEERS, abi::GENERATIONS];

/// The maps, open for writing. One process at a time may hold one for a pin folder.
pub struct Dataplane {
    pins: Pins,
    /// Every pinned map, to pin it again where its pin is gone.
    open_maps: OpenMaps,
    /// By slot: the programs that were attached there last, with the maps that are pinned now.
    programs: BTreeMap<u32, Ebpf>,
    control: PublishedControl,
    fallback: FallbackMap,
    generations: Generations,
    prefixes: Slots,
    tries: TrieSlots,
    matches: PerCpuArray<MapData, Traffic>,
    service_counts: PerCpuArray<MapData, ServiceTraffic>,
    interfaces: Array<MapData, Interface>,
    identities: Array<MapData, Identity>,
    names: Array<MapData, u64>,
    flows: Box<Flows>,
    marks: Box<Marks>,
    rcu: GracePeriod,
    /// The tables in force, if this value published them.
    published: Option<Published>,
    /// Whether what this host sends is noted.
    tracks: bool,
    /// What programs of other versions pinned, and is not taken off yet.
    others: Vec<PreviousVersion>,
    /// Whether some link of theirs holds this version's program already.
    has_replaced: bool,
    /// Whether some maps were missing at the start while the filter was on, so that its programs use others.
    is_patched: bool,
    /// Whether this process has detached the filter itself.
    has_detached: AtomicBool,
}

impl Dataplane {
    /// Adopts the maps pinned under `pin_dir`, or makes and pins them. Filters nothing by itself.
    ///
    /// What another version pinned there filters on until [`Self::attach`] and [`Self::remove_previous`]; maps of
    /// it that mean the same are taken over.
    ///
    /// `max_flows` is how many flows of this host can be tracked at once; none is for not tracking.
    pub fn open(pin_dir: &Path, max_flows: Option<u32>) -> Result<Self> {
        let pins = Pins::create(pin_dir)?;
        let _pin_lock = pins.lock_exclusive()?;
        for name in MOVED {
            pins.restore_backup(name)?;
        }
        let is_patched = repair::restore_maps(&pins)?;
        let adopted = PreviousVersion::find(pin_dir).and_then(|others| {
            migrate::adopt_maps(&pins, &others)?;
            Ok(others)
        });
        let mut others = adopted.inspect_err(|_| remove_unused(&pins))?;
        let room = max_flows.unwrap_or(flows::UNUSED);
        flows::back_up_resized(&pins, max_flows)?;
        let mut object = load(&pins, 0, false, room).inspect_err(|_| {
            remove_unused(&pins);
            flows::restore_backups(&pins);
        })?;
        let mut flows = Box::new(Flows::take(&mut object)?);
        flows.copy(&pins)?;
        let mut take = |name: &str| {
            object
                .take_map(name)
                .with_context(|| format!("the kernel object has no map {name}"))
        };
        migrate::detect_shared_maps(&pins, &mut others)?;
        let mut rcu = GracePeriod::new()?;
        rcu.start(); // another process may have left a slot just now
        let control = PublishedControl::new(
            ControlMap::map(&take(abi::CONTROL)?, Access::ReadWrite)?,
            PublishedMap::map(&take(abi::PUBLISHED)?, Access::ReadWrite)?,
        );
        if control.restore() {
            warn!(
                "another process changed the control word while no daemon ran; the published word is restored"
            );
        }
        Ok(Self {
            control,
            fallback: FallbackMap::map(&take(abi::FALLBACK)?, Access::ReadWrite)?,
            tries: TrieSlots {
                v4: take(abi::TRIES_V4)?.try_into()?,
                v6: take(abi::TRIES_V6)?.try_into()?,
            },
            generations: Generations::open(&pins)?,
            prefixes: Slots::open(&pins, abi::PREFIXES)?,
            matches: take(abi::MATCHES)?.try_into()?,
            service_counts: take(abi::SERVICE_COUNTS)?.try_into()?,
            interfaces: take(abi::INTERFACES)?.try_into()?,
            identities: take(abi::IDENTITIES)?.try_into()?,
            names: take(abi::NAMES)?.try_into()?,
            flows,
            marks: Box::new(Marks::open(&pins)?),
            rcu,
            published: None,
            tracks: max_flows.is_some(),
            others,
            has_replaced: false,
            is_patched,
            has_detached: AtomicBool::new(false),
            open_maps: OpenMaps::open(&pins)?,
            programs: BTreeMap::new(),
            pins,
        })
    }

    /// The generation in force; 0 before the first publish.
    pub fn generation(&self) -> u32 {
        self.control.load().generation
    }

    /// The generation whose counts the maps hold: the one in force, or where there is none yet, another
    /// version's whose maps were taken over.
    pub fn counted_generation(&self) -> u32 {
        let own = self.generation();
        let adopted = self.others.iter().map(|other| other.counted).max();
        own.max(adopted.unwrap_or(0))
    }

    /// The number of the next generation.
    fn next_generation(&self) -> u32 {
        self.counted_generation().wrapping_add(1).max(1)
    }

    /// Notes what tells which names the ids of what is published next have.
    pub fn name(&mut self, checksum: u64) -> Result<()> {
        Ok(self.names.set(0, checksum, 0)?)
    }

    /// What [`Self::name`] noted last, by whichever process; 0 if nothing was.
    pub fn named(&self) -> Result<u64> {
        Ok(self.names.get(&0, 0)?)
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
            .context("the kernel rejected the program (verifier log follows)")?;
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
}

/// Removes maps that no program uses: half of them would be in the way of the next start.
fn remove_unused(pins: &Pins) {
    if pins.have_links().is_ok_and(|are_there| !are_there) {
        let _ = pins.remove();
    }
}

/// One copy of the programs for the interface in `slot`, with the pinned maps, not yet loaded. Where
/// flows have no table yet it gets `room` for so many.
fn load(pins: &Pins, slot: u32, trace: bool, room: u32) -> Result<Ebpf> {
    let trace = u8::from(trace);
    let pool = pool_words(pins)?;
    let cpus = nr_cpus().map_err(|(_, error)| error)? as u32;
    let paths: Vec<_> = abi::PINNED
        .iter()
        .map(|(name, _)| (*name, pins.map(name)))
        .collect();
    let mut loader = EbpfLoader::new();
    loader
        .override_global(abi::GLOBAL_INTERFACE, &slot, true)
        .override_global(abi::GLOBAL_TRACE, &trace, true)
        .override_global(abi::GLOBAL_POOL, &pool, true)
        .override_global(abi::GLOBAL_CPUS, &cpus, true);
    for name in flows::TABLES {
        loader.map_max_entries(name, room);
    }
    for (name, path) in &paths {
        loader.map_pin_path(name, path);
    }
    loader
        .load(OBJECT)
        .context("cannot create or open the kernel maps")
}

/// Words of the pool of the tables that are pinned, or of those that are made with the program.
fn pool_words(pins: &Pins) -> Result<u32> {
    if !is_pinned(&pins.map(abi::GENERATIONS))? {
        return Ok(abi::MIN_POOL_WORDS);
    }
    let words = Generations::open(pins)?.words() - ranges::FIXED;
    u32::try_from(words).context("the tables are too large")
}
