//! The kernel side of allowlist: maps, programs, links and pins. The only user of aya, and of `unsafe` in userspace.
//!
//! [`Dataplane`] writes: it opens or creates the maps, publishes generations, and attaches. [`View`] reads the same maps
//! in any process, without a daemon. [`interface`], [`driver`], [`netlink`] and [`sockets`] are about the host's
//! interfaces and sockets.
//!
//! - this file makes or adopts the maps, and loads programs
//! - `publish` switches from one generation to the next; `tables` writes the slots, `control_state` has the control word
//!   and its fallback, `interface_slots` the records of the interfaces, `counters` the counters
//! - `apply` applies a write as a whole: publishes, attaches, and rolls back if a step fails
//! - `commit_confirm` makes the kernel roll back a change that is not confirmed
//! - `migrate` replaces the program of another version
//! - `attach` and `new_link` attach the program to an interface, `tracker` the flow tracker
//! - `egress` loads the programs of the egress policy and writes its tables, `egress_links` attaches the programs to cgroups
//!   (`cgroup`), `egress_maps` has their maps, `egress_units` follows the cgroups of units (with offsets from
//!   `kernel_types`), `egress_view` reads them, `egress_lookup` decides on hypothetical calls
//! - `own_process` returns the daemon's process id for the egress policy
//! - `flows` resizes the flow table, `tracking` adds flows that are older than the filter, `tracked` lists and cuts flows
//! - `snapshot` reads and restores the applied state, `detach` detaches
//! - `view` reads the maps without a daemon
//! - `lookup` computes the verdict of the active generation for a packet, `egress_lookup` reads the tables that decide on a call
//! - `ranges` and `tries` are the two lookup structures for sources
//! - `generations` are the tables of the slots, `slots` other maps by slot, `memory` the memory of a map,
//!   `hash_maps` the whole contents of one
//! - `metadata` has the names of a generation's ids, for reports
//! - `btf` describes the types of large tables, `control_map` stores values atomically, `rcu` waits for running programs, `sys` makes system calls that aya lacks
//! - `link` reads and detaches pinned links
//! - `pins` knows the paths of all pins
//! - `selfcheck` compares the kernel with the published state, `facts` reads both, `repair` restores pins
//! - `trace` prints the log lines of the program
//! - `verify` loads the programs for the kernel's verifier only
//! - `watch` reads drop events, `egress_watch` judged calls, both by `event_reader`; `seen` reads the destinations that no rule allows
//!
//! Invariant: maps and links are pinned as soon as they exist, so the kernel filters without this process. Knows nothing
//! of lists or files.
//!
//! # Examples
//!
//! Make a policy the active generation, in observe mode, as root:
//!
//! ```no_run
//! use std::path::Path;
//!
//! use allowlist_dataplane::Dataplane;
//! use allowlist_policy::compile::{IdTable, compile};
//! use allowlist_policy::{Mode, Policy, Rules, Snapshot};
//!
//! let tables = compile(&Policy::default(), &Snapshot::default(), 1000, &IdTable::default())?;
//! let mut dataplane = Dataplane::open(Path::new("/sys/fs/bpf/allowlist"), None)?;
//! let interfaces = ["eth0".to_owned()];
//! let generation = dataplane.publish(&tables, Mode::Observe, &Rules::default(), &interfaces, &[])?;
//! assert_eq!(generation, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod apply;
mod attach;
mod attach_mode;
mod btf;
mod cgroup;
mod clock;
mod commit_confirm;
mod control_map;
mod control_state;
mod counters;
mod detach;
mod egress;
mod egress_links;
mod egress_lookup;
mod egress_maps;
mod egress_units;
mod egress_view;
mod egress_watch;
mod error;
mod event_reader;
mod facts;
mod flows;
mod generations;
mod hash_maps;
mod interface_slots;
mod kernel_types;
mod link;
mod lookup;
mod memory;
mod metadata;
mod migrate;
mod mount;
mod name_maps;
mod new_link;
mod own_process;
mod pins;
mod publish;
mod ranges;
mod rcu;
mod repair;
mod seen;
mod selfcheck;
mod slots;
mod snapshot;
mod sys;
mod tables;
mod trace;
mod tracked;
mod tracker;
mod tracking;
mod tries;
mod verify;
mod view;
mod watch;

pub mod driver;
pub mod interface;
pub mod netlink;
pub mod sockets;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use allowlist_common::abi::{self, Control, EgressControl};
use allowlist_policy::Mode;
use aya::programs::Xdp;
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};
use log::warn;

pub use self::apply::{AttachedPrograms, Attachments, Publication, Write};
pub use self::attach::{Attached, XdpMode, name_of_program};
pub use self::attach_mode::AttachModeRequest;
pub use self::cgroup::mount_point as cgroup_mount_point;
pub use self::clock::kernel_clock;
pub use self::commit_confirm::PendingConfirm;
pub use self::detach::detach_all;
pub use self::egress::EgressPublication;
pub use self::egress_links::EgressFault;
pub use self::egress_lookup::{CallingUnit, EgressLookup};
pub use self::egress_view::EgressCounted;
pub use self::egress_watch::{EgressWatch, SeenCall, WantedCalls};
pub use self::error::{Error, Result};
pub use self::facts::require_namespace;
pub use self::lookup::Lookup;
pub use self::mount::has_private_pins;
pub use self::name_maps::LearnedAddress;
pub use self::pins::{NothingPinned, require_privileges};
pub use self::seen::{SeenDestination, SeenDestinations};
pub use self::selfcheck::{Difference, DifferenceKind};
pub use self::snapshot::AppliedState;
pub use self::trace::print_trace;
pub use self::tracked::{Side, TrackedFlow};
pub use self::tracker::Hook;
pub use self::verify::{Verified, verify};
pub use self::view::{Attachment, Counted, Entry, View, by_all_names};
pub use self::watch::{Seen, Watch};
use crate::error::Context as _;
use control_map::{ControlMap, FallbackMap, PublishedControl, PublishedMap};
use control_state::ControlState;
use counters::Counters;
use egress::EgressPolicy;
use flows::Flows;
use generations::Generations;
use interface_slots::InterfaceSlots;
use metadata::Metadata;
use migrate::{Migration, PreviousVersion};
use pins::{Pins, is_pinned};
use rcu::GracePeriod;
use repair::OpenMaps;
use slots::Slots;
use sys::Access;
use tables::SlotTables;
use tracking::{Marks, Tracking};
use tries::TrieSlots;

/// The object file of allowlist-ebpf, embedded into this program.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/allowlist-ebpf"));

/// Returns the embedded object file of the kernel programs.
pub fn object() -> &'static [u8] {
    OBJECT
}

/// The build of the filter that a [`Dataplane`] belongs to. Tests of upgrades use other builds than the current one.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// The object file of the kernel programs.
    pub object: &'static [u8],
    /// The ABI version under which the maps are pinned.
    pub version: u32,
}

impl Build {
    /// This build.
    pub const CURRENT: Self = Self {
        object: OBJECT,
        version: abi::VERSION,
    };
}

/// The maps that can be replaced by a larger one of the same name.
const MOVED: [&str; 3] = [abi::FLOWS, abi::PEERS, abi::GENERATIONS];

/// The kernel maps and programs, open for writing. Only one process at a time can open a pin directory.
pub struct Dataplane {
    pins: Pins,
    /// The object file of the kernel programs.
    object: &'static [u8],
    /// Descriptors of all pinned maps, to restore missing pins.
    open_maps: OpenMaps,
    /// The loaded programs that were last attached, by interface slot. They are replaced when a map that they use is.
    programs: BTreeMap<u32, Ebpf>,
    control: ControlState,
    tables: SlotTables,
    counters: Counters,
    interfaces: InterfaceSlots,
    tracking: Tracking,
    egress: EgressPolicy,
    migration: Migration,
    /// Whether pins were missing at the start, so that the attached programs use other maps than this value.
    is_patched: bool,
    /// Whether this process has detached the filter itself.
    has_detached: AtomicBool,
}

impl Dataplane {
    /// Opens the maps that are pinned under `pin_dir`, or creates and pins them. Attaches nothing.
    ///
    /// A filter of another version stays active until [`Self::attach`] and [`Self::remove_previous`] replace it; its
    /// maps are adopted if their contents are compatible.
    ///
    /// `max_flows` is the maximum number of entries in the flow table; `None` disables flow tracking.
    pub fn open(pin_dir: &Path, max_flows: Option<u32>) -> Result<Self> {
        Self::open_build(Build::CURRENT, pin_dir, max_flows)
    }

    /// Opens the maps like [`Self::open`], as another build of the filter, for tests of upgrades.
    #[doc(hidden)]
    pub fn open_build(build: Build, pin_dir: &Path, max_flows: Option<u32>) -> Result<Self> {
        let pins = Pins::create(pin_dir, build.version)?;
        let _pin_lock = pins.lock_exclusive()?;
        for name in MOVED {
            pins.restore_backup(name)?;
        }
        let is_patched = repair::restore_maps(&pins)?;
        let adopted = PreviousVersion::find(&pins).and_then(|others| {
            migrate::adopt_maps(&pins, &others)?;
            Ok(others)
        });
        let mut others = adopted.inspect_err(|_| remove_unused(&pins))?;
        let room = max_flows.unwrap_or(flows::UNUSED);
        flows::back_up_resized(&pins, max_flows)?;
        let mut object = load(build.object, &pins, 0, false, room).inspect_err(|_| {
            remove_unused(&pins);
            flows::restore_backups(&pins);
        })?;
        let mut flows = Box::new(Flows::take(&mut object)?);
        flows.copy(&pins)?;
        let mut take = |name: &str| {
            object.take_map(name).with_context(|| {
                format!("the embedded eBPF object has no map {name}; reinstall allowlist")
            })
        };
        migrate::detect_shared_maps(&pins, &mut others)?;
        let mut rcu = GracePeriod::new()?;
        rcu.start(); // another process may just have left a slot
        let control = PublishedControl::new(
            ControlMap::map(&take(abi::CONTROL)?, Access::ReadWrite)?,
            PublishedMap::map(&take(abi::PUBLISHED)?, Access::ReadWrite)?,
        );
        if control.restore() {
            warn!(
                "another process changed the control word, which selects the active policy and mode, while no daemon ran; restored the published control word"
            );
        }
        let fallback = FallbackMap::map(&take(abi::FALLBACK)?, Access::ReadWrite)?;
        let tables = SlotTables {
            generations: Generations::open(&pins, abi::GENERATIONS)?,
            prefixes: Slots::open(&pins, abi::PREFIXES)?,
            tries: TrieSlots {
                v4: take(abi::TRIES_V4)?.try_into()?,
                v6: take(abi::TRIES_V6)?.try_into()?,
            },
            metadata: Metadata::open(&pins)?,
            rcu,
            published: None,
        };
        Ok(Self {
            control: ControlState::new(control, fallback),
            tables,
            counters: Counters {
                matches: take(abi::MATCHES)?.try_into()?,
                services: take(abi::SERVICE_COUNTS)?.try_into()?,
            },
            interfaces: InterfaceSlots {
                interfaces: take(abi::INTERFACES)?.try_into()?,
                identities: take(abi::IDENTITIES)?.try_into()?,
            },
            tracking: Tracking {
                is_on: max_flows.is_some(),
                flows,
                marks: Box::new(Marks::open(&pins)?),
            },
            egress: EgressPolicy::open(&pins)?,
            migration: Migration::new(others),
            is_patched,
            has_detached: AtomicBool::new(false),
            open_maps: OpenMaps::open(&pins)?,
            programs: BTreeMap::new(),
            object: build.object,
            pins,
        })
    }

    /// Returns the number of the generation that was published last; 0 before the first publish.
    ///
    /// This generation is not effective if it was not confirmed in time.
    pub fn generation(&self) -> u32 {
        self.control.load().generation
    }

    /// Returns the generation to which the counters in the maps belong.
    ///
    /// This is [`Self::generation`] or, before the first publish, the generation of another version whose maps were
    /// adopted; 0 without such a version.
    pub fn counted_generation(&self) -> u32 {
        self.generation().max(self.migration.counted())
    }

    /// Returns the number of the next generation.
    fn next_generation(&self) -> u32 {
        self.counted_generation().wrapping_add(1).max(1)
    }

    /// Switches between observe and enforce mode, by one atomic store of the control word.
    pub fn set_mode(&mut self, mode: Mode) {
        self.control.store(Control {
            observe: mode == Mode::Observe,
            ..self.control.load()
        });
    }

    /// Sets the mode for packets and the mode of the egress policy, if there is one, by one atomic store.
    pub fn set_modes(&mut self, mode: Mode, egress: Mode) {
        let control = self.control.load();
        self.control.store(Control {
            observe: mode == Mode::Observe,
            egress: control.egress.map(|settings| EgressControl {
                observe: egress == Mode::Observe,
                ..settings
            }),
            ..control
        });
    }

    /// Loads a copy of the program for the interface in `slot`, without attaching it.
    pub fn load_program(&self, slot: u32, trace: bool) -> Result<Ebpf> {
        let mut object = self.load(slot, trace)?;
        let program: &mut Xdp = object
            .program_mut(abi::PROGRAM)
            .with_context(|| {
                format!(
                    "the embedded eBPF object has no program {}; reinstall allowlist",
                    abi::PROGRAM
                )
            })?
            .try_into()?;
        program.load().context(
            "the kernel rejected the XDP program; report this with the verifier log, which follows",
        )?;
        Ok(object)
    }

    fn load(&self, slot: u32, trace: bool) -> Result<Ebpf> {
        load(self.object, &self.pins, slot, trace, flows::UNUSED)
    }

    /// Resets the counters of sources and services, and removes the addresses that were learnt for names. Call it if the ids under which they count can no longer be mapped
    /// to names.
    pub fn forget_counts(&mut self) -> Result<()> {
        self.forget_addresses()?;
        self.counters.reset()
    }
}

/// Removes the pins of all maps after a failed start, if no link is pinned: an incomplete set of maps would fail the
/// next start.
fn remove_unused(pins: &Pins) {
    if pins.have_links().is_ok_and(|are_there| !are_there) {
        let _ = pins.remove();
    }
}

/// Loads the object file for the interface in `slot`, with the pinned maps. A new flow table gets `room` entries.
fn load(object: &[u8], pins: &Pins, slot: u32, trace: bool, room: u32) -> Result<Ebpf> {
    let trace = u8::from(trace);
    let pool = pool_words(pins)?;
    let cpus = nr_cpus().map_err(|(path, error)| {
        Error::from(error).context(format!("cannot read the number of CPUs from {path}"))
    })? as u32;
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
        .load(object)
        .context("cannot create or open the kernel maps")
}

/// Returns the size of the pool after each generation's tables in the pinned map, in words of 8 bytes.
///
/// If no map is pinned, returns the size of a new map's pool.
fn pool_words(pins: &Pins) -> Result<u32> {
    if !is_pinned(&pins.map(abi::GENERATIONS))? {
        return Ok(abi::MIN_POOL_WORDS);
    }
    let words = Generations::open(pins, abi::GENERATIONS)?.words() - ranges::FIXED;
    u32::try_from(words).map_err(|_| {
        Error::message(
            "the pinned map GENERATIONS is too large for the XDP program; run `allowlist detach`, then start the daemon again",
        )
    })
}
