//! Judges packets by the active generation as the kernel program does, from the pinned maps and without a daemon.
//! Read-only.
//!
//! Invariant: all results of one [`Lookup`] are of one generation, even if another generation is published during the lookups.

use std::cell::RefCell;
use std::net::IpAddr;

use allowlist_common::abi::{self, Control, ControlBits, Grant, ServiceId, ServiceTable};
use allowlist_common::flow::{Flow, FlowEntry};
use allowlist_common::judge::{self, Decision};
use allowlist_common::packet::{Address, Contents, Packet, Quote};
use allowlist_common::volatile::VolatileRef;
use aya::maps::{HashMap, MapData, MapError};

use super::clock::kernel_clock;
use super::generations;
use super::ranges::{self, Copied};
use super::tries::Tries;
use super::view::{Entry, View};
use crate::error::{Context as _, Result, bail};

/// The number of attempts to read the tables without a publish in between. Publishes are seconds apart.
pub(super) const ATTEMPTS: usize = 10;

/// The tables of one generation, which a later publish does not change.
pub struct Lookup {
    control: Control,
    /// The tables of the generation; `None` before the first publish.
    tables: Option<Tables>,
    flows: HashMap<MapData, Flow, FlowEntry>,
    metadata: Option<Vec<u8>>,
}

struct Tables {
    copied: Copied,
    /// The tries, if the generation looks up sources in tries; else `None`.
    tries: Option<Tries>,
    /// The prefixes of the generation, sorted.
    entries: Vec<Entry>,
}

impl View {
    /// Reads the tables of the active generation for lookups.
    pub fn lookup(&self) -> Result<Lookup> {
        for _ in 0..ATTEMPTS {
            let control = self.control()?;
            let tables = if control.generation == 0 {
                None
            } else {
                Some(self.tables(control)?)
            };
            let metadata = self.metadata()?;
            // Else a publish may have put other maps into that slot while they were opened.
            if self.control()? == control {
                return Ok(Lookup {
                    control,
                    tables,
                    flows: self.pins.open_map(abi::FLOWS)?.try_into()?,
                    metadata,
                });
            }
        }
        bail!(
            "cannot read the tables of the active generation, because each attempt was interrupted by a publish; try again"
        )
    }

    fn tables(&self, control: Control) -> Result<Tables> {
        let slot = control.slot;
        let memory = generations::read(&self.pins, abi::GENERATIONS, slot % abi::SLOTS)?;
        let copied = Copied::of(&memory.all())?;
        let (tries, entries) = match control.lookup {
            abi::Engine::RangeTable => {
                let entries = ranges::entries_in(&self.pins, abi::PREFIXES, slot, &copied)?;
                (None, entries)
            }
            abi::Engine::LpmTrie => {
                let tries = Tries::open(&self.pins, slot)?;
                let entries = tries.entries()?;
                (Some(tries), entries)
            }
        };
        Ok(Tables {
            copied,
            tries,
            entries,
        })
    }
}

impl Lookup {
    /// Returns the control word of the generation.
    pub const fn control(&self) -> Control {
        self.control
    }

    /// Returns the metadata of the generation; `None` if it has none.
    pub fn metadata(&self) -> Option<&[u8]> {
        self.metadata.as_deref()
    }

    /// Returns the decision on each of `packets`, as if received on the interface in a slot.
    ///
    /// Before the first publish, each decision is [`Decision::INTERNAL_ERROR`].
    pub fn judge(
        &self,
        slot: u32,
        packets: impl IntoIterator<Item = Packet>,
    ) -> Result<Vec<Decision>> {
        let packets = packets.into_iter();
        let Some(tables) = &self.tables else {
            return Ok(packets.map(|_| Decision::INTERNAL_ERROR).collect());
        };
        let on_interface = OnInterface {
            lookup: self,
            tables,
            slot: (slot % abi::MAX_INTERFACES) as usize,
            last: RefCell::new(None),
            failed: RefCell::new(None),
        };
        let decisions = packets
            .map(|packet| judge::judge(&Ok(Contents::Ip(packet)), &on_interface))
            .collect();
        match on_interface.failed.into_inner() {
            Some(error) => {
                Err(error).context("cannot look up an address or a flow in the kernel's tables")
            }
            None => Ok(decisions),
        }
    }

    /// Returns all prefixes of the generation, IPv4 first, sorted.
    pub fn entries(&self) -> &[Entry] {
        self.tables.as_ref().map_or(&[], |tables| &tables.entries)
    }

    /// Returns the prefixes that contain an address, the longest first.
    pub fn containing(&self, address: IpAddr) -> Vec<Entry> {
        let all = self.entries().iter();
        let mut entries: Vec<Entry> = all
            .filter(|entry| entry.prefix.contains(&address))
            .copied()
            .collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.prefix.prefix_len()));
        entries
    }

    /// Returns the number of this host's flows with a remote address whose answers pass now.
    pub fn flows_with(&self, address: IpAddr) -> usize {
        let now = kernel_clock().as_secs() as u32;
        let alive = self.flows.iter().flatten().filter(|(flow, tracked)| {
            !flow.is_peer()
                && tracked.is_alive(now)
                && IpAddr::from(flow.remote_address()) == address
        });
        alive.count()
    }
}

/// The tables as the program on one interface sees them.
struct OnInterface<'l> {
    lookup: &'l Lookup,
    tables: &'l Tables,
    slot: usize,
    /// The source address that was looked up last, and its grant (its services), which saves a system call if the next
    /// packet has the same one; `None` before the first lookup.
    last: RefCell<Option<(Address, Option<Grant>)>>,
    /// The error of the first failed lookup, which makes the decisions invalid; `None` while none has failed.
    failed: RefCell<Option<MapError>>,
}

impl OnInterface<'_> {
    fn services(&self) -> VolatileRef<'_, ServiceTable> {
        self.tables.copied.services().volatile()
    }

    /// Returns the value of a map lookup; `None` if there is no entry, or after an error, which is recorded in
    /// `failed`.
    fn found<T>(&self, looked_up: Result<T, MapError>) -> Option<T> {
        match looked_up {
            Ok(value) => Some(value),
            Err(MapError::KeyNotFound) => None,
            Err(error) => {
                self.failed.borrow_mut().get_or_insert(error);
                None
            }
        }
    }
}

impl judge::Tables for OnInterface<'_> {
    fn control(&self) -> ControlBits {
        ControlBits(self.lookup.control.encode())
    }

    fn service_of_port(&self, protocol: u8, port: u16) -> ServiceId {
        self.services().port_service(self.slot, protocol, port)
    }

    fn service_of_protocol(&self, protocol: u8) -> ServiceId {
        self.services().protocol_service(self.slot, protocol)
    }

    fn services_of_protocol(&self, family: u8, protocol: u8) -> u64 {
        self.services()
            .protocol_services(self.slot, family, protocol)
    }

    fn is_shared(&self, services: u64) -> bool {
        self.services().is_shared(self.slot, services)
    }

    fn service_counter_id(&self, service: ServiceId) -> u32 {
        self.services().counter_id(service)
    }

    fn grant(&self, source: &Address) -> Option<Grant> {
        if let Some((address, grant)) = *self.last.borrow()
            && address == *source
        {
            return grant;
        }
        let grant = match &self.tables.tries {
            Some(tries) => self.found(tries.grant(source)).flatten(),
            None => self.tables.copied.grant(source),
        };
        self.last.replace(Some((*source, grant)));
        grant
    }

    /// Always true: the test only saves the kernel program calls of `has_flow`, which is sufficient here.
    fn port_has_flows(&self, _protocol: u8, _port: u16) -> bool {
        true
    }

    fn has_flow(&self, flow: &Flow) -> bool {
        let now = kernel_clock().as_secs() as u32;
        self.found(self.lookup.flows.get(flow, 0))
            .is_some_and(|tracked| tracked.is_alive(now))
    }

    /// Always `None`: a judged packet has no payload that could quote another packet.
    fn flow_quoted_by(&self, _quote: Quote, _source: Address) -> Option<Flow> {
        None
    }
}
